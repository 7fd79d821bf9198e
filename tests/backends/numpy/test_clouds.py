"""Costs between points on NumPy: operators without the array of costs, against float64 definitions on that array."""

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

import cusink
from cusink.backends.numpy import points as ops
from cusink.backends.numpy.clouds.layout import neighbours, sorted_clouds
from cusink.backends.numpy.clouds.means import CloudMeans
from cusink.costs.kinds import data_of, named_arrays

ROW = 8 * 90  # bytes: of costs, the least limit that the problems here are solved with
FLOATS = [np.float32, np.float64]
METRICS = [("sqeuclidean", 1), ("sqeuclidean", 1.5), ("euclidean", 1), ("cityblock", 1), ("cosine", 1)]
DIMENSIONS = [1, 3, 20, 130]  # differences, products about a centre each, products of all, products in parts


@pytest.fixture(params=["default blocks", "many blocks on threads"])
def cut(request, limits):
    """Results must not depend on where blocks end, who makes them, or what they leave out.

    By default these problems are small enough for arrays of their costs.
    """
    if request.param != "default blocks":
        limits(
            cloud_array_pairs=0,
            cloud_block_entries=1 << 9,
            cloud_block_rows=(4, 8),
            cloud_leaf_points=4,
            cloud_shares=3,
            cloud_sparse_pairs=1,
            difference_coordinates=1 << 9,
            product_multiplications=1 << 7,
            threaded_pairs=1,
        )


def points(shape, dtype, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)


def given(x, y, metric="sqeuclidean", power=1, memory_limit=1 << 30):
    """Return the cost as the operators take it."""
    C = cusink.PointCloud(x, y, metric, power=power)
    return data_of(C, np, x.dtype, list(named_arrays(C).values()), memory_limit)


def dense(x, y, metric="sqeuclidean", power=1):
    """Return the cost by its definition, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return cdist(x, y, metric) ** power


def logits(n, m, dtype, problems=2, seed=1):
    """Logits of weights and potentials, some of them -inf."""
    rng = np.random.default_rng(seed)
    p, q = (rng.normal(size=(problems, k)).astype(dtype) for k in (n, m))
    if min(n, m) > 4:
        p[:, 2] = q[0, 1] = -np.inf
    return p, q


def naive(C, eps, dtype):
    """Bound the error of a naive computation in this precision in an exponent."""
    return 8 * np.finfo(dtype).eps * (C.max() / eps + 8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("metric", "power"), METRICS)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_operators(d, metric, power, dtype, cut):
    n, m = 61, 43
    x, y = points((n, d), dtype, 0), points((m, d), dtype, 1)
    C, D = given(x, y, metric, power), dense(x, y, metric, power)
    eps = 0.05 * D.mean() + 0.01  # between directions on a line the mean may be 0
    p, q = logits(n, m, dtype)
    rng = np.random.default_rng(3)
    v, w = (rng.normal(size=shape).astype(dtype) for shape in ((2, m), (2, n)))
    rows, columns = (z.astype(np.float64) - D / eps for z in (q[:, None, :], p[:, :, None]))
    P, relative = np.exp(p[:, :, None] + rows), naive(D, eps, dtype)

    def near(found, want, size):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, want, rtol=0, atol=relative * size)

    near(ops.softmin(C, q, eps, 1), -eps * logsumexp(rows, axis=2), eps)
    near(ops.softmin(C, p, eps, 0), -eps * logsumexp(columns, axis=1), eps)
    near(ops.repeated_softmin(C, eps)(p, 0), -eps * logsumexp(columns, axis=1), eps)
    near(ops.plan(C, p, q, eps), P, P.max())
    near(ops.apply_plan(C, p, q, v, eps, 1), np.einsum("bij,bj->bi", P, v), (P @ np.abs(v)[:, :, None]).max())
    near(ops.apply_plan(C, p, q, w, eps, 0), np.einsum("bij,bi->bj", P, w), (np.abs(w)[:, None] @ P).max())
    near(ops.transport_cost(C, p, q, eps), (P * D).sum(axis=(1, 2)), (P * D).sum(axis=(1, 2)).max())
    near(ops.bilinear(C, w**2, v**2), np.einsum("bi,ij,bj->b", w**2, D, v**2), D.max() * np.sum(w**2) * np.sum(v**2))
    near(ops.c_transform(C, q, 1), (D - q[:, None, :]).min(axis=2), eps)
    near(ops.c_transform(C, p, 0), (D - p[:, :, None]).min(axis=1), eps)
    low, high = ops.cost_range(C)
    assert low <= D.min() and D.max() <= high * (1 + relative)
    near(ops.cost_block(C, slice(None), slice(5, 9)), D[5:9], eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_problem_may_have_its_own_points(dtype, cut):
    x, y = points((2, 30, 3), dtype, 0), points((2, 21, 3), dtype, 1)
    C, D = given(x, y), np.stack([dense(*each) for each in zip(x, y, strict=True)])
    p, q = logits(30, 21, dtype)
    want = -0.3 * logsumexp(q[:, None, :] - D / 0.3, axis=2)
    np.testing.assert_allclose(ops.softmin(C, q, 0.3, 1), want, rtol=0, atol=0.3 * naive(D, 0.3, dtype))
    P = np.exp(p[:, :, None] + q[:, None, :] - D / 0.3)
    np.testing.assert_allclose(ops.plan(C, p, q, 0.3), P, rtol=0, atol=naive(D, 0.3, dtype) * P.max())


def test_no_weight_at_all_reaches_nothing():
    C = given(points((5, 2), np.float32), points((4, 2), np.float32, 1))
    assert np.isposinf(ops.softmin(C, np.full((1, 4), -np.inf, np.float32), 0.1, 1)).all()
    assert np.isposinf(ops.c_transform(C, np.full((1, 4), -np.inf, np.float32), 1)).all()


@pytest.mark.parametrize("d", [3, 40])
def test_far_from_the_origin_nothing_is_lost(d, cut):
    """In float32 a coordinate of 1e4 has three digits behind the point, and its square none."""
    x, y = points((61, d), np.float32, 0, offset=1e4), points((43, d), np.float32, 1, offset=1e4)
    C, D = given(x, y), dense(x, y)
    eps = 0.01 * D.mean()
    q = np.zeros((1, 43), np.float32)
    want = -eps * logsumexp(-D / eps, axis=1)[None]
    np.testing.assert_allclose(ops.softmin(C, q, eps, 1), want, rtol=0, atol=eps * naive(D, eps, np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
def test_roots_of_small_distances_keep_their_digits(dtype, cut):
    """Off by roundings of the coordinates; a product alone would be off by the root of one, 3e-4 in float32."""
    x = points((40, 30), dtype)
    y = (x + dtype(1e-4) * points((40, 30), dtype, 1))[::-1].copy()
    found = ops.c_transform(given(x, y, "euclidean"), np.zeros((1, 40), dtype), 1)[0]
    np.testing.assert_allclose(
        found, dense(x, y, "euclidean").min(axis=1), rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(x).max()
    )


def cloud_problem(n, m, dtype, shift=0.0, zeros=False, d=3, seed=0):
    """Weights, points, and an eps of 0.01 of the mean cost: costs of hundreds of eps."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)).astype(dtype), (rng.normal(size=(m, d)) * 0.7 + shift).astype(dtype)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    if zeros:
        a[: n // 5], b[-3:] = 0, 0
    a, b = ((w / w.sum()).astype(dtype) for w in (a, b))
    D = dense(x, y)
    return a, b, x, y, D, 0.01 * D.mean()


def same_up_to_a_constant(found, want, absolute):
    difference = found - want
    np.testing.assert_allclose(difference, difference.mean(), rtol=0, atol=absolute)


@pytest.mark.parametrize("limit", [ROW, 1 << 30], ids=["made anew", "kept"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("zeros", "shift"), [(False, 0.0), (True, 3.0)])
def test_iterations(zeros, shift, dtype, limit, cut):
    """Exactly so many, as the oracle counts them; the error allowed is that of the oracle in this precision."""
    a, b, x, y, D, eps = cloud_problem(90, 70, dtype, shift, zeros)
    want = reference.sinkhorn(a, b, D, eps, 12)
    rough = reference.sinkhorn(a, b, D, eps, 12, dtype=dtype)
    allowed = 4 * max(np.abs(rough.f - want.f).max(), np.finfo(dtype).eps * D.max())
    C = cusink.PointCloud(x, y)
    result = cusink.sinkhorn(a, b, C, eps=eps, max_iter=12, tol=None, memory_limit=limit, check=False)
    assert result.f.dtype == dtype
    same_up_to_a_constant(result.f[a > 0], want.f[a > 0], allowed)
    same_up_to_a_constant(result.g[b > 0], want.g[b > 0], allowed)
    P = reference.plan(a, b, D, eps, want.f, want.g)
    assert float(result.cost) == pytest.approx((P * D).sum(), rel=4 * naive(D, eps, dtype))
    assert float(result.error) == pytest.approx(want.error, rel=1e-3, abs=4 * naive(D, eps, dtype))
    # A bin without weight has its own softmin, up to the same constant.
    full = reference.softmin(D, result.g.astype(float), b.astype(float), eps, 1)
    np.testing.assert_allclose(result.f, full, rtol=0, atol=eps * naive(D, eps, dtype))


@pytest.mark.parametrize("method", ["auto", "scaling", "log"])
@pytest.mark.parametrize("omega", [None, 1.8])
def test_methods_agree(omega, method, cut, limits):
    limits(cloud_array_pairs=0)  # an array's kernel starts from another g
    a, b, x, y, D, eps = cloud_problem(50, 60, np.float64, 2.0, zeros=True)
    options = {"eps": eps, "max_iter": 30, "tol": None, "overrelaxation": omega}
    want = cusink.sinkhorn(a, b, D, method="log", **options)
    for limit in (ROW, None):
        C = cusink.PointCloud(x, y)
        found = cusink.sinkhorn(a, b, C, method=method, memory_limit=limit, check=False, **options)
        for name in ("f", "g", "cost", "error"):
            np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=0, atol=1e-11 * D.max())


@pytest.mark.parametrize("problems", ["one shared cost", "their own costs"])
def test_a_batch_is_a_loop(problems, cut):
    rng = np.random.default_rng(5)
    x, y = points((40, 3), np.float64), points((30, 3), np.float64, 1)
    if problems != "one shared cost":
        x, y = np.stack([x, 2 * x, x + 1]), np.stack([y, y, y])
    A, B = rng.dirichlet(np.ones(40), 3), rng.dirichlet(np.ones(30), 3)
    A[1, :9] = 0
    for limit in (ROW, None):
        options = {"eps": 0.1, "tol": 1e-9, "memory_limit": limit, "check": False}
        together = cusink.sinkhorn(A, B, cusink.PointCloud(x, y), **options)
        grads = cusink.sinkhorn_adjoint(together, grad_cost=1.0)
        for k in range(3):
            C = cusink.PointCloud(x, y) if x.ndim == 2 else cusink.PointCloud(x[k], y[k])
            alone = cusink.sinkhorn(A[k], B[k], C, **options)
            assert float(together.cost[k]) == pytest.approx(float(alone.cost), rel=1e-6)
            want = cusink.sinkhorn_adjoint(alone, grad_cost=1.0)
            np.testing.assert_allclose(grads.a[k], want.a, atol=1e-4 * np.abs(want.a).max())


def test_a_start_that_is_far_off_is_left_behind(cut):
    """Potentials from which no product is in range: the first iteration is log-sum-exp."""
    a, b, x, y, D, eps = cloud_problem(40, 50, np.float32)
    f, g = (np.random.default_rng(k).normal(size=size).astype(np.float32) * 50 for k, size in ((1, 40), (2, 50)))
    found = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=eps, init=(f, g), tol=1e-4)
    assert found.converged
    want = reference.optimum(a / a.sum(dtype=float), b / b.sum(dtype=float), D, eps)
    assert float(found.cost) == pytest.approx(want.cost, rel=1e-3)


def test_one_point_and_equal_points():
    one = cusink.sinkhorn(None, None, cusink.PointCloud(np.zeros((1, 2)), np.ones((1, 2))), eps=0.1)
    assert float(one.cost) == 2.0 and one.converged
    equal = cusink.sinkhorn(None, None, cusink.PointCloud(np.ones((4, 2))), eps=0.1)
    assert float(equal.cost) == 0.0 and equal.converged


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["made anew", "kept"])
def test_means(limit, dtype, cut):
    a, b, x, y, D, eps = cloud_problem(40, 30, dtype, 1.0, zeros=True)
    a, b = (w.astype(float) for w in (a, b))
    f, g = reference.sinkhorn(a, b, D, eps, 300)[:2]
    E = np.exp((f[:, None] + g - D) / eps)
    to, of = E * b / (E @ b)[:, None], a[:, None] * E / (a @ E)
    arrays = (w.astype(dtype)[None] for w in (a, b, f, g))
    ((index, means),) = ops.plan_means(given(x, y, memory_limit=limit), *arrays, eps)
    assert index.tolist() == [0]
    relative = naive(D, eps, dtype)

    def near(found, want, size):
        np.testing.assert_allclose(found, want, rtol=0, atol=relative * size)

    v, w = points((1, 30), dtype, 2), points((1, 40), dtype, 3)
    near(means.mean(v, 1), v @ to.T, np.abs(v).max())
    near(means.mean(w, 0), w @ of, np.abs(w).max())
    smooth, some = (v @ to.T @ of)[:, b > 0], b > 0
    near(means.smoothed(v, 0)[:, some], smooth, np.abs(v).max())
    near(means.smoothed(w, 1)[:, a > 0], (w @ of @ to.T)[:, a > 0], np.abs(w).max())
    narrow = means.in_float32()
    assert narrow is not None or not isinstance(means, CloudMeans) or limit == 0 or dtype == np.float32
    if narrow is not None:  # of the kernel that is kept
        found = narrow.smoothed(v.astype(np.float32), 0)[:, some]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, smooth, rtol=0, atol=naive(D, eps, np.float32) * np.abs(v).max())
    near(means.mean_cost(1), (to * D).sum(axis=1)[None], D.max())
    near(means.mean_cost(0), (of * D).sum(axis=0)[None], D.max())
    P = a[:, None] * E * b
    near(means.marginal(1), P.sum(axis=1)[None], 1)
    near(means.marginal(0), P.sum(axis=0)[None], 1)
    cost = np.array([0.7], dtype)
    size = P.max() * (np.abs(v).max() + np.abs(w).max() + D.max())
    near(means.plan_sum(w, v, cost), P * (w[0, :, None] + v + 0.7 * D), size)
    near(means.plan_sum(w, None, None), P * w[0, :, None], size)


def test_memory_is_that_of_points_and_blocks():
    """A cost in float32 would be 36 MB; everything works in a fraction of it."""
    n = 3000
    rng = np.random.default_rng(0)
    x, y = rng.random((2, n, 2)).astype(np.float32)
    C = cusink.PointCloud(x, y)
    eps = 0.1 * C.mean()
    limit = 3 << 20

    def peak(work):
        tracemalloc.start()
        try:
            answer = work()
            return answer, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    result, used = peak(lambda: cusink.sinkhorn(None, None, C, eps=eps, max_iter=3, tol=None, memory_limit=limit))
    assert used < 12e6
    assert peak(lambda: result.apply(x[:, 0], 0))[1] < 12e6
    assert peak(result.bounds)[1] < 24e6  # float64
    with pytest.warns(cusink.ConvergenceWarning):
        _, used = peak(lambda: cusink.sinkhorn_adjoint(result, grad_cost=1.0, max_iter=2).a)
    assert used < 24e6
    A = np.stack([np.full(n, 1 / n, np.float32)] * 3)
    solve = lambda: cusink.sinkhorn(A, A, C, eps=eps, max_iter=1, tol=None, memory_limit=limit)  # noqa: E731
    assert peak(solve)[1] < 48e6


def test_a_kernel_that_fits_is_kept_within_the_limit(monkeypatch):
    """Whole, in part, or not at all: with the same answer to rounding, and never more than what is allowed."""
    from cusink.backends.numpy.clouds.kernel import PlanKernel

    kernels = []
    keep = PlanKernel.__init__

    def remember(self, *args):
        keep(self, *args)
        kernels.append(self)

    monkeypatch.setattr(PlanKernel, "__init__", remember)
    x, y = np.random.default_rng(0).random((2, 1500, 3)).astype(np.float32)
    costs = []
    for limit in (8 * 1500, 8_000_000, 1 << 30):
        result = cusink.sinkhorn(
            None, None, cusink.PointCloud(x, y), eps=0.05, max_iter=5, tol=None, memory_limit=limit, check=False
        )
        costs.append(result.cost)
        kept = sum(block.nbytes for block in kernels[-1].kept.values())
        assert kept <= limit
        assert (kept > 0) == (limit >= 8_000_000) and (kept >= 4 * 1500**2) == (limit == 1 << 30)
    # Kept blocks are summed in another order: here the costs are equal, on other CPUs they were one rounding apart.
    np.testing.assert_array_max_ulp(np.asarray(costs), np.repeat(costs[0], 3), maxulp=1, dtype=np.float32)


def test_orders_are_forgotten_with_their_points():
    C = given(points((9, 2), np.float32), points((9, 2), np.float32, 1))
    ops.softmin(C, np.zeros((1, 9), np.float32), 1.0, 1)
    there = weakref.ref(sorted_clouds(C, 0))
    del C
    gc.collect()
    assert there() is None


def test_neighbours_are_an_order_of_neighbours():
    x = points((1000, 3), np.float64)
    order = neighbours(x, 64)
    assert sorted(order) == list(range(1000))
    radius = [np.ptp(x[order[k : k + 64]], axis=0).prod() for k in range(0, 960, 64)]
    assert np.median(radius) < 0.1 * np.ptp(x, axis=0).prod()


def test_threads_share_one_order_and_no_workspace():
    C = given(points((900, 2), np.float32), points((800, 2), np.float32, 1))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: sorted_clouds(C, 0), range(16)))
    assert len(set(map(id, found))) == 1
    spare = found[0].side(1).workspaces
    with spare.borrow() as first, spare.borrow() as second:
        assert first is not second
    with spare.borrow() as third:
        assert third in (first, second)


def test_a_kernel_between_points_of_many_coordinates_leaves_no_room_for_factors_that_are_not_kept(monkeypatch, limits):
    from cusink.backends.numpy.clouds.kernel import PlanKernel

    limits(cloud_block_rows=(8, 8), cloud_array_pairs=0)
    kernels, begin = [], PlanKernel.__init__
    monkeypatch.setattr(PlanKernel, "__init__", lambda self, *given: kernels.append(self) or begin(self, *given))
    x, y = np.random.default_rng(0).random((2, 300, 200))
    limit = 8 * 300**2 * 3 // 2
    options = {"eps": 2.0, "max_iter": 5, "tol": None, "memory_limit": limit, "check": False}
    cusink.sinkhorn(None, None, cusink.PointCloud(x, y), **options)
    assert len(kernels[-1].kept) == len(kernels[-1].columns) and not kernels[-1].factors
