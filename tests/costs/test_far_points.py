"""Clouds of which some points lie far from the others, with weight or without: no digit of the near ones is lost."""

import numpy as np
import pytest
import reference
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

import cusink
from cusink.backends.numpy import points as ops
from cusink.backends.numpy.clouds.exponents import DOUBLE_RADIUS
from cusink.costs.kinds import data_of, named_arrays
from cusink.operand import operand

FLOATS = (np.float32, np.float64)
DIMENSIONS = (1, 2, 3, 10, 20, 70)
METRICS = (("sqeuclidean", 1), ("euclidean", 1), ("cityblock", 1), ("sqeuclidean", 1.5))
EPS = 0.02


def padded(rng, d, far, pads=1, n=70):
    """Return points in the unit cube, and as many without weight at `far`."""
    x, y = rng.random((n, d)), rng.random((n + 5, d))
    x[rng.choice(n, pads, replace=False)] = far
    y[rng.choice(n + 5, pads, replace=False)] = far
    a, b = (np.where((p == far).all(axis=1), 0.0, 1.0) for p in (x, y))
    return x, y, a, b


def towns(rng, d, apart, n=70):
    """Return two unit cubes, half of the points of either side in each."""
    x, y = rng.random((n, d)), rng.random((n, d))
    x[::2, 0] += apart
    y[n // 2 :, 0] += apart
    return x, y, np.ones(n), np.ones(n)


def outlier(rng, d, far, n=70):
    """Return the unit cube, and a point with weight far off on both sides."""
    x, y = rng.random((n, d)), rng.random((n, d))
    x[3] = y[-1] = far
    return x, y, np.ones(n), np.ones(n)


def elsewhere(rng, d, far, n=70):
    """Return the unit cube, moved; with padding at the origin."""
    x, y, a, b = padded(rng, d, 0.0, 20, n)
    return np.where(x == 0, x, x + far), np.where(y == 0, y, y + far), a, b


CLOUDS = {
    "padded with -9999": lambda rng, d: padded(rng, d, -9999.0),
    "padded with 1e3": lambda rng, d: padded(rng, d, 1e3),
    "half padded with 1e5": lambda rng, d: padded(rng, d, 1e5, 35),
    "padded with 1e8": lambda rng, d: padded(rng, d, 1e8, 3),
    "two towns": lambda rng, d: towns(rng, d, 1000.0),
    "two towns far away": lambda rng, d: towns(rng, d, 1e5),
    "an outlier": lambda rng, d: outlier(rng, d, 1e3),
    "moved, with padding at the origin": lambda rng, d: elsewhere(rng, d, 1e3),
}


@pytest.fixture(params=["default blocks", "many blocks"], autouse=True)
def cut(request, limits):
    """As blocks are for clouds of thousands of points, too."""
    if request.param != "default blocks":
        limits(
            cloud_array_pairs=0,
            cloud_block_entries=1 << 9,
            cloud_block_rows=(4, 8),
            cloud_leaf_points=4,
            cloud_sparse_pairs=1,
            product_multiplications=1 << 7,
        )


def made(name, d, dtype, seed=0):
    """Return points in `dtype`, and normalised weights."""
    x, y, a, b = CLOUDS[name](np.random.default_rng(seed), d)
    return x.astype(dtype), y.astype(dtype), a / a.sum(), b / b.sum()


def dense(x, y, metric="sqeuclidean", power=1):
    """Return the cost between the points as they are, in float64."""
    return cdist(x.astype(np.float64), y.astype(np.float64), metric) ** power


def given(x, y, metric="sqeuclidean", power=1):
    cloud = cusink.PointCloud(x, y, metric, power=power)
    return data_of(cloud, np, x.dtype, list(named_arrays(cloud).values()))


def log(weights):
    with np.errstate(divide="ignore"):
        return np.log(weights)


def near(found, want, allowed):
    """Assert equality up to `allowed` in every entry."""
    assert np.isfinite(found).all()
    excess = np.abs(found - want) - allowed
    assert (excess <= 0).all(), f"{excess.max():g} more than {np.ravel(allowed)[excess.argmax()]:g}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("metric", "power"), METRICS)
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", CLOUDS)
def test_operators(name, d, metric, power, dtype):
    """Each as exact as with a cost in this precision, of which every entry is right to rounding."""
    x, y, a, b = made(name, d, dtype)
    D, C, eps = dense(x, y, metric, power), given(x, y, metric, power), EPS * d
    rounding = 8 * np.finfo(dtype).eps
    q = log(b).astype(dtype)[None]
    f = -eps * logsumexp(q - D / eps, axis=1)
    p = (log(a) + f / eps).astype(dtype)[None]
    rows = q.astype(np.float64) - D / eps
    P = np.exp(p[0, :, None].astype(np.float64) + rows)
    # Products of float64 are taken of terms of up to this size, of whatever size the sum is.
    lost = DOUBLE_RADIUS if dtype == np.float64 and (metric, power) == ("sqeuclidean", 1) else 0
    exponent = 4 + lost + D / eps + np.where(P > 0, np.abs(p[0, :, None]), 0)

    to = np.exp(rows - logsumexp(rows, axis=1, keepdims=True))
    of_rows = (to * (4 + lost + D / eps)).sum(axis=1)
    near(ops.softmin(C, q, eps, 1)[0], f, rounding * eps * of_rows)
    found = ops.plan(C, p, q, eps)[0]
    near(found, P, rounding * exponent * P + np.finfo(dtype).tiny)
    v, w = (np.random.default_rng(1).normal(size=(1, k)).astype(dtype) for k in (len(b), len(a)))
    near(ops.apply_plan(C, p, q, v, eps, 1)[0], P @ v[0], rounding * (exponent * P) @ np.abs(v[0]))
    near(ops.apply_plan(C, p, q, w, eps, 0)[0], w[0] @ P, rounding * np.abs(w[0]) @ (exponent * P))
    near(ops.transport_cost(C, p, q, eps)[0], (P * D).sum(), rounding * (exponent * P * D).sum())
    least = (D - q).min(axis=1)
    near(ops.c_transform(C, q, 1)[0], least, rounding * (np.abs(least) + 8))
    near(ops.cost_block(C, slice(None), slice(3, 9)), D[3:9], rounding * D[3:9])
    near(ops.bilinear(C, a.astype(dtype)[None], b.astype(dtype)[None])[0], a @ D @ b, rounding * (a @ D @ b))


def solved(name, d, dtype, metric="sqeuclidean", power=1):
    """Return a cloud with its weights, and the solution between the points with weight as the oracle has it."""
    x, y, a, b = made(name, d, dtype)
    eps = EPS * d
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    D = dense(x[rows], y[columns], metric, power)
    want = reference.optimum(a[rows], b[columns], D, eps)
    return (x, y, a, b, eps), (rows, columns), D, want


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("name", [name for name in CLOUDS if "padd" in name])
def test_padding_changes_nothing(name, d, metric, dtype):
    """Neither the solution and its bounds, nor the gradients and the divergence."""
    (x, y, a, b, eps), (rows, columns), D, want = solved(name, d, dtype, metric)
    some = cusink.sinkhorn(None, None, cusink.PointCloud(x[rows], y[columns], metric), eps=eps, tol=1e-5)
    cloud, (a, b) = cusink.PointCloud(x, y, metric), (w.astype(dtype) for w in (a, b))
    found = cusink.sinkhorn(a, b, cloud, eps=eps, tol=1e-5)
    allowed = 16 * np.finfo(dtype).eps * (8 + D.max() / eps) + 4e-5
    assert found.converged and float(found.cost) == pytest.approx(want.cost, rel=allowed)
    P = found.plan()
    np.testing.assert_allclose(P.sum(axis=1), a, rtol=0, atol=allowed * a.max())
    np.testing.assert_allclose(P[np.ix_(rows, columns)], some.plan(), rtol=0, atol=allowed * P.max())
    np.testing.assert_allclose(found.bounds(), some.bounds(), rtol=allowed)
    grads, alone = (cusink.sinkhorn_adjoint(r, grad_cost=1.0, grad_reg_cost=0.5) for r in (found, some))
    for mine, other, kept in ((grads.x, alone.x, rows), (grads.y, alone.y, columns)):
        np.testing.assert_allclose(mine[kept], other, rtol=0, atol=20 * allowed * np.abs(other).max())
        assert not np.delete(mine, kept, axis=0).any()
    divergence = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, tol=1e-5).divergence
    assert float(divergence) == pytest.approx(
        float(
            cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x[rows], y[columns], metric), eps=eps).divergence
        ),
        rel=allowed,
        abs=allowed * eps,
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_means_given_empty_bins_are_those_of_a_first_bit_of_weight(dtype, limits):
    """Wherever they lie: a potential of theirs would have no digit left."""
    limits(cloud_array_pairs=0)
    x, y, a, b = made("padded with 1e3", 2, dtype)
    x[~(a > 0)] = 3  # far, but near enough for its means to be known
    D, eps = dense(x, y), 0.1
    g = np.random.default_rng(1).normal(size=len(b)) * eps
    f = -eps * logsumexp(log(b) + (g - D) / eps, axis=1)
    shares = np.exp(log(b) + (g - D) / eps + f[:, None] / eps)
    v = np.random.default_rng(2).normal(size=(1, len(b))).astype(dtype)
    for limit in (0, 1 << 30):
        C = cusink.PointCloud(x, y)
        C = data_of(C, np, dtype, [x, y], limit)
        ((_, means),) = ops.plan_means(C, *(w.astype(dtype)[None] for w in (a, b, f, g)), eps)
        rounding = 8 * np.finfo(dtype).eps * (4 + D[:, b > 0].max() / eps)
        np.testing.assert_allclose(means.mean(v, 1)[0], shares @ v[0], rtol=0, atol=rounding * np.abs(v).max())
        np.testing.assert_allclose(means.mean_cost(1)[0], (shares * D).sum(axis=1), rtol=rounding)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_batch_of_clouds_is_a_loop(dtype):
    each = [
        made(name, 3, dtype, seed) for seed, name in enumerate(["padded with 1e3", "padded with -9999", "two towns"])
    ]
    size = min(len(y) for _, y, _, _ in each)
    each = [(x, y[-size:], a, b[-size:] / b[-size:].sum()) for x, y, a, b in each]
    x, y, a, b = (np.stack(part).astype(dtype) for part in zip(*each, strict=True))
    found = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.5, tol=1e-4)
    for k in range(len(each)):
        alone = cusink.sinkhorn(a[k], b[k], cusink.PointCloud(x[k], y[k]), eps=0.5, tol=1e-4)
        assert float(found.cost[k]) == pytest.approx(float(alone.cost), rel=1e-3)
        np.testing.assert_allclose(found.plan()[k].sum(axis=1), a[k], rtol=0, atol=2e-3 * a[k].max())


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_problems_on_a_padded_cloud(dtype):
    """They share a kernel, in which the padding has no part."""
    x, y, a, b = made("padded with 1e3", 2, dtype)
    rng = np.random.default_rng(3)
    A, B = (rng.dirichlet(np.ones(len(w)), 9) * (w > 0) for w in (a, b))
    A, B = ((w / w.sum(axis=1, keepdims=True)).astype(dtype) for w in (A, B))
    found = cusink.sinkhorn(A, B, cusink.PointCloud(x, y), eps=0.05, tol=1e-5)
    D = dense(x, y)
    kept = np.ix_(a > 0, b > 0)
    for k in range(9):
        p, q = (w.astype(float)[v > 0] for w, v in ((A[k], a), (B[k], b)))
        want = reference.optimum(p / p.sum(), q / q.sum(), D[kept], 0.05)
        assert float(found.cost[k]) == pytest.approx(want.cost, rel=1e-4)
    np.testing.assert_allclose(found.plan().sum(axis=2), A, rtol=0, atol=1e-4 * A.max())


def test_padding_does_not_decide_how_large_costs_are():
    x, y, a, b = made("padded with 1e8", 2, np.float32)
    parts, masks = [x, y], (a > 0, b > 0)
    plain, weighted = (operand(cusink.PointCloud(x, y), np, x.dtype, parts, weighted=w) for w in (None, masks))
    assert plain.largest() > 1e15 and 1 < weighted.largest() < 10
    assert weighted.own(0).largest() < 10 and weighted.between(np.arange(60), np.arange(50)).largest() < 10
    batch = operand(cusink.PointCloud(x[None], y[None]), np, x.dtype, [x[None], y[None]], weighted=masks)
    assert batch.at(0).largest() == weighted.largest() == batch.at([0]).largest()


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_costs_in_float64_are_those_between_the_points_of_the_user(metric):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 9, 4)).astype(np.float32) + 5 for _ in range(2))
    C = operand(cusink.PointCloud(x, y, metric), np, x.dtype, [x, y])
    want = np.stack([dense(*each, metric) for each in zip(x, y, strict=True)])
    rows, columns = np.array([5, 2, 2]), np.array([0, 7])
    for cost, exact in (
        (C, want),
        (C.at([1]), want[[1]]),
        (C.at(0), want[0]),
        (C.between(rows, columns), want[:, rows][:, :, columns]),
        (C.own(1), np.stack([dense(z, z, metric) for z in y])),
    ):
        found = cost.astype(np.float64).block(slice(None), slice(None))
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13 * want.max())
    same = C.astype(np.float32)
    np.testing.assert_array_equal(same.data.x, C.data.x)


def test_a_cosine_far_from_a_right_angle_keeps_its_digits():
    """Directions that lie together are rounded about their mean."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40, 5)).astype(np.float32) + 100 for _ in range(2))
    D = dense(x, y, "cosine")
    eps = 0.05 * D.mean()
    found = ops.softmin(given(x, y, "cosine"), np.zeros((1, 40), np.float32), eps, 1)[0]
    want = -eps * logsumexp(-D / eps, axis=1)
    np.testing.assert_allclose(found, want, rtol=0, atol=8 * np.finfo(np.float32).eps * (D.max() + 8 * eps))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CLOUDS)
def test_gradients_by_points_keep_the_digits_of_near_ones(name, dtype):
    """A point is pulled to those that it shares mass with, from wherever all are."""
    x, y, a, b = made(name, 3, dtype)
    rows = log(b) - dense(x, y) / EPS
    G = (a[:, None] * np.exp(rows - logsumexp(rows, axis=1, keepdims=True))).astype(dtype)
    found = given(x, y).block_adjoint(np, G)
    pulls = 2 * G[..., None].astype(np.float64) * (x[:, None].astype(np.float64) - y)
    least = 8 * np.finfo(np.float64).eps * max(np.abs(x).max(), np.abs(y).max()) / np.count_nonzero(a)  # of its sums
    for gradient, want, size in zip(
        found, (pulls.sum(axis=1), -pulls.sum(axis=0)), (np.abs(pulls).sum(axis=k) for k in (1, 0)), strict=True
    ):
        np.testing.assert_allclose(gradient, want, rtol=0, atol=2.0**8 * np.finfo(dtype).eps * size.max() + least)


def test_a_point_without_weight_beside_a_few_does_not_move_their_centre():
    x = np.zeros((2, 9), np.float32)
    x[0, [0, 2, 4, 6]], x[1, :2] = (0.4, 1, 0.6, 1), 10
    y = np.array([[0, 0.5, 0, 0.8, 0, 1, 0.3, 1, 0.8]], np.float32)
    a, b = np.array([0.1, 0], np.float32), np.ones(1, np.float32)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.2, reach=14.0)
    mass = np.asarray(result.plan()[0, 0], np.float64)
    np.testing.assert_allclose(result.cost, mass * cdist(x[:1].astype(float), y.astype(float))[0, 0] ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "sizes"), [(np.float64, [1e-300, 1e-160, 1e160, 1e300]), (np.float32, [1e-30, 1e30])]
)
@pytest.mark.filterwarnings("error")
def test_a_cosine_does_not_depend_on_lengths(dtype, sizes):
    x, y = np.random.default_rng(3).normal(size=(2, 6, 2)).astype(dtype)
    C = cusink.cost_matrix(x, y, "cosine")
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, "cosine"), eps=0.1)
    cosines = np.einsum("ik,jk->ij", x, y, dtype=float) / np.hypot(*x.astype(float).T)[:, None]
    np.testing.assert_allclose(C, 1 - cosines / np.hypot(*y.astype(float).T), atol=1e-6)
    for size in sizes:
        long = (x * dtype(size)).astype(dtype)
        np.testing.assert_allclose(cusink.cost_matrix(long, y, "cosine"), C, atol=1e-6)
        np.testing.assert_allclose(result.at(long).potential, result.at(x).potential, atol=1e-6)
        np.testing.assert_allclose(result.at(long).map(), result.at(x).map(), atol=1e-5)
        fields = result.at(long).gradient().astype(np.longdouble) * size, result.at(x).gradient()
        np.testing.assert_allclose(*fields, rtol=1e-4, atol=1e-5)


def test_a_cosine_of_points_in_float32_is_taken_in_float64():
    rng = np.random.default_rng(4)
    x = (1 + 1e-3 * rng.normal(size=(30, 3))).astype(np.float32)
    units = x / np.sqrt((x.astype(float) ** 2).sum(axis=1, keepdims=True))
    wanted = ((units[:, None] - units) ** 2).sum(axis=-1) / 2
    np.testing.assert_allclose(cusink.cost_matrix(x, x, "cosine"), wanted, rtol=1e-6, atol=1e-12)
