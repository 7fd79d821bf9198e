"""Sinkhorn divergences, their two self-terms, and their gradients."""

import numpy as np
import problems
import pytest
import reference

import cusink
from cusink.convergence.options import Options
from cusink.operand import dense_cost
from cusink.solver.symmetric import self_potentials


def assert_solves_itself(a, C, eps, dtype, tol):
    """Potentials, value and error of `self_potentials` against the oracle, in every bin."""
    a, C = a.astype(dtype), C.astype(dtype)
    f, reg_cost, error, n_iter, converged, *_ = self_potentials(dense_cost(C), a, eps, Options(max_iter=1000, tol=tol))
    assert converged.all() and (error <= tol).all() and f.dtype == dtype
    rounding = 8 * np.finfo(dtype).eps * np.abs(C).max()
    for k, (weights, cost) in enumerate(zip(a, np.broadcast_to(C, (len(a), *C.shape[-2:])), strict=True)):
        best = reference.optimum(weights, weights, cost, eps)
        assert abs(reg_cost[k] - best.reg_cost) <= rounding + eps * tol**2 * 10
        wide = f[k].astype(np.float64)
        image = reference.softmin(cost.astype(np.float64), wide, weights.astype(np.float64), eps, axis=1)
        assert np.abs(image - wide)[weights > 0].max() <= rounding + eps * tol / weights[weights > 0].min()
        assert np.abs(image - wide).max() <= rounding + eps * tol * 1e3
    return n_iter


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_self_potentials_are_a_fixed_point(eps, dtype):
    a = problems.histograms(np.random.default_rng(0), 5, 30, zeros=0.3)
    n_iter = assert_solves_itself(a, problems.line_cost(30), eps, dtype, tol=1e-6)
    assert n_iter.max() <= 16  # each step makes the error of a positive definite kernel four times smaller


def test_self_potentials_with_a_cost_per_problem():
    rng = np.random.default_rng(1)
    C = rng.random((4, 12, 12))
    C += np.swapaxes(C, 1, 2)  # no positive definite kernel
    n_iter = assert_solves_itself(problems.histograms(rng, 4, 12, mass=3.0), C, 0.2, np.float64, tol=1e-9)
    assert len(set(n_iter)) > 1  # each problem stops by itself


def oracle(a, b, C, C_aa, C_bb, eps):
    """Return the divergence of one pair from its definition."""
    return reference.optimum(a, b, C, eps).reg_cost - sum(
        reference.optimum(w, w, cost, eps).reg_cost / 2 for w, cost in ((a, C_aa), (b, C_bb))
    )


def drawn(B=3, n=14, m=11, mass=1.0):
    """Weights with empty bins on points of the plane."""
    rng = np.random.default_rng(8)
    a, b = problems.histograms(rng, B, n, 0.3), problems.histograms(rng, B, m, 0.3, mass)
    return a, b, rng.random((n, 2)), rng.random((m, 2)) + 0.3


@pytest.mark.parametrize("eps", [1.0, 0.05, 0.003])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_histograms_on_shared_bins(eps, dtype):
    rng = np.random.default_rng(2)
    a, b = (problems.histograms(rng, 3, 25, 0.3).astype(dtype) for _ in range(2))
    C = problems.line_cost(25).astype(dtype)
    tol = 1e-6 if dtype == np.float64 else 1e-5 if eps > 0.01 else 1e-4
    result = cusink.sinkhorn_divergence(a, b, C, eps=eps, tol=tol)
    wide = [x.astype(np.float64) for x in (a, b, C)]
    wide[:2] = (w / w.sum(axis=1, keepdims=True) for w in wide[:2])
    expected = [oracle(x, y, wide[2], wide[2], wide[2], eps) for x, y in zip(*wide[:2], strict=True)]
    assert result.converged.all() and result.divergence.dtype == dtype
    np.testing.assert_allclose(
        result.divergence, expected, rtol=1e-9 if dtype == np.float64 else 1e-6, atol=10 * eps * tol**2
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_equal_measures_are_zero_apart_and_unequal_ones_are_not(eps, dtype):
    a, b, x, _ = drawn(n=14, m=14)
    C = cusink.cost_matrix(x).astype(dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    for reach in (None, 0.3):
        result = cusink.sinkhorn_divergence(a, a.copy(), C, eps=eps, reach=reach, tol=1e-6 if eps == 1 else 1e-5)
        assert (result.divergence >= 0).all()
        assert (result.divergence <= 1e-13 * (eps + 1)).all()  # no digit of float32 cancels either
        grads = cusink.sinkhorn_divergence_adjoint(result)
        assert not any(g.any() for g in (grads.a, grads.b, grads.eps))
        assert np.abs(grads.C).max() < np.finfo(dtype).tiny  # halves of the smallest numbers are rounded
        apart = cusink.sinkhorn_divergence(a, b, C, eps=eps, reach=reach, tol=1e-5)
        assert (apart.divergence > 1e-3).all()


def test_equal_measures_at_steep_costs_are_not_solved_again():
    a, _, x, _ = drawn(n=14, m=14)
    C = cusink.cost_matrix(x)
    result = cusink.sinkhorn_divergence(a, a, C, eps=C.max() / 5000, tol=1e-6)
    assert result.converged.all() and (result.n_iter == 1).all() and (result.divergence == 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("reach", [None, 0.3])
def test_the_gradient_is_zero_for_the_equal_pairs_of_a_batch(reach, dtype):
    a, b, x, _ = drawn(n=14, m=14)
    mixed = np.concatenate([a[:1], b[1:2], a[2:]]).astype(dtype)
    cloud = cusink.PointCloud(x.astype(dtype), x.astype(dtype))
    result = cusink.sinkhorn_divergence(a.astype(dtype), mixed, cloud, eps=0.05, reach=reach, tol=1e-5)
    grads = cusink.sinkhorn_divergence_adjoint(result)
    equal = (a.astype(dtype) == mixed).all(axis=1)
    assert equal.sum() == len(a) - 1
    np.testing.assert_array_equal(grads.a.any(axis=1), ~equal)
    np.testing.assert_array_equal(grads.b.any(axis=1), ~equal)
    np.testing.assert_array_equal(result.divergence > 0, ~equal)


def test_what_is_almost_equal_is_told_apart_in_float32():
    a, b, x, _ = drawn(n=14, m=14)
    C, near = cusink.cost_matrix(x), 0.99 * a + 0.01 * b
    wide = cusink.sinkhorn_divergence(a, near, C, eps=0.1, tol=1e-8).divergence
    narrow = cusink.sinkhorn_divergence(*(v.astype(np.float32) for v in (a, near, C)), eps=0.1, tol=1e-5).divergence
    assert wide.max() < 3e-4 * cusink.sinkhorn(a, near, C, eps=0.1).reg_cost.min()
    np.testing.assert_allclose(narrow, wide, rtol=1e-3)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_clouds_and_given_costs(metric):
    a, b, x, y = drawn()
    result = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y, metric), eps=0.05)
    costs = [cusink.cost_matrix(p, q, metric) for p, q in ((x, y), (x, x), (y, y))]
    given = cusink.sinkhorn_divergence(a, b, costs[0], eps=0.05, C_aa=costs[1], C_bb=costs[2])
    expected = [oracle(p, q, *costs, 0.05) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(result.divergence, expected, rtol=1e-9)
    np.testing.assert_allclose(given.divergence, expected, rtol=1e-9)
    one = cusink.sinkhorn_divergence(a, b[0], cusink.PointCloud(x, y, metric), eps=0.05)  # solved with itself once
    np.testing.assert_allclose(one.divergence[0], expected[0], rtol=1e-9)
    single = cusink.sinkhorn_divergence(a[1], b[1], cusink.PointCloud(x, y, metric), eps=0.05)
    assert single.divergence.shape == () and abs(single.divergence - expected[1]) <= 1e-9
    moved = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x + 1e3, y + 1e3, metric), eps=0.05)
    np.testing.assert_allclose(moved.divergence, expected, rtol=1e-7)


def small_clouds(dtype):
    """Three pairs of clouds of 14 and 11 points, their weights, and these and those in float64."""
    rng = np.random.default_rng(3)
    x, y = rng.random((3, 14, 2)) + 1, rng.random((3, 11, 2)) + 1.2
    given = [part.astype(dtype) for part in (rng.dirichlet(np.ones(14), 3), rng.dirichlet(np.ones(11), 3), x, y)]
    a, b, x, y = (part.astype(np.float64) for part in given)
    return given, (a, b * (a.sum(axis=1) / b.sum(axis=1))[:, None], x, y)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_small_clouds_of_a_batch_are_solved_as_their_costs_in_float64(metric, dtype):
    """The costs of float32 points are not rounded to float32, and nothing of them is kept in the result."""
    eps, rtol = 0.02, {np.float64: 1e-9, np.float32: 1e-6}[dtype]
    (a, b, *points), (wide_a, wide_b, x, y) = small_clouds(dtype)
    cloud = cusink.PointCloud(*points, metric)
    result = cusink.sinkhorn_divergence(a, b, cloud, eps=eps)
    costs = [
        np.stack([cusink.cost_matrix(p, q, metric) for p, q in zip(*pair, strict=True)])
        for pair in ((x, y), (x, x), (y, y))
    ]
    expected = [oracle(*each, eps) for each in zip(wide_a, wide_b, *costs, strict=True)]
    np.testing.assert_allclose(result.divergence, expected, rtol=rtol)
    cost = result.problems[0].C
    assert not any(problem.C.stored for problem in result.problems) and cost.dtype == dtype
    assert cost.kept().stored and cost.kept().dtype == np.float64
    np.testing.assert_allclose(cost.kept().data, costs[0], rtol=1e-13, atol=1e-15)
    few = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, memory_limit=1 << 10)  # in which no costs are kept
    np.testing.assert_allclose(few.divergence, expected, rtol=rtol)
    assert few.problems[0].C.kept() is few.problems[0].C


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_points_without_weight_do_not_say_how_large_kept_costs_are(dtype):
    (a, b, x, y), _ = small_clouds(dtype)
    near = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.02)
    a, x = (np.concatenate([part, part[:, :1]], axis=1) for part in (a, x))
    a[:, -1], x[:, -1] = 0, 1e6
    far = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.02)
    np.testing.assert_allclose(far.divergence, near.divergence, rtol=4 * np.finfo(dtype).eps, atol=1e-8)
    assert far.converged.all() and far.n_iter.max() <= near.n_iter.max() + 20
    assert far.problems[0].C.kept() is far.problems[0].C and near.problems[0].C.kept().stored


@pytest.mark.parametrize("eps", [0.05, 0.03])
def test_clouds_in_float32_take_the_iterations_of_their_costs_and_say_their_error(eps):
    """`error` holds for the plan of the returned potentials at the costs of the points, in float64."""
    x, y = np.random.default_rng(0).random((2, 8, 40, 3)).astype(np.float32)
    a = np.full((8, 40), 1 / 40, np.float32)
    result = cusink.sinkhorn_divergence(a, a, cusink.PointCloud(x, y), eps=eps)
    C, C_aa, C_bb = (cusink.PointCloud(*pair).dense() for pair in ((x, y), (x, x), (y, y)))
    given = cusink.sinkhorn_divergence(a, a, C, C_aa=C_aa, C_bb=C_bb, eps=eps)
    np.testing.assert_array_equal(result.n_iter, given.n_iter)
    for k in range(8):
        exact = ((x[k, :, None].astype(np.float64) - y[k]) ** 2).sum(axis=-1)
        f, g = (potential[k].astype(np.float64) for potential in (result.f, result.g))
        P = np.exp((f[:, None] + g - exact) / eps) / 1600
        off = sum(np.abs(P.sum(axis=axis) - 1 / 40).sum() for axis in (0, 1))
        of_rounding = 2.0**-24 * (np.abs(f).max() + np.abs(g).max()) / eps  # of what is returned
        assert off <= result.error[k] + 2 * of_rounding


def test_a_grid_and_clouds_of_their_own():
    rng = np.random.default_rng(4)
    images = problems.histograms(rng, 4, 20)
    grid = cusink.Grid((4, 5), spacing=0.3)
    result = cusink.sinkhorn_divergence(images[:2], images[2:], grid, eps=0.1)
    dense = cusink.sinkhorn_divergence(images[:2], images[2:], grid.dense(), eps=0.1)
    np.testing.assert_allclose(result.divergence, dense.divergence, rtol=1e-9)
    x, y = rng.random((2, 6, 2)), rng.random((2, 5, 2))
    batch = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x, y), eps=0.1)
    for k in range(2):
        one = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x[k], y[k]), eps=0.1)
        assert abs(one.divergence - batch.divergence[k]) <= 1e-10


def test_unequal_masses_with_a_reach():
    """Against its definition: ``OT_ab - OT_aa / 2 - OT_bb / 2 + eps / 2 (difference of the masses) squared``."""
    a, b, x, y = drawn(mass=1.6)
    eps, reach = 0.05, 0.4
    result = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=eps, reach=reach, tol=1e-9)
    terms = [
        cusink.sinkhorn(v, w, cusink.cost_matrix(p, q), eps=eps, reach=reach, tol=1e-9).reg_cost
        for v, w, p, q in ((a, b, x, y), (a, a, x, x), (b, b, y, y))
    ]
    expected = terms[0] - (terms[1] + terms[2]) / 2 + eps / 2 * 0.6**2
    np.testing.assert_allclose(result.divergence, expected, rtol=0, atol=1e-12)
    assert (result.divergence > 0).all()
    balanced = cusink.sinkhorn_divergence(a, a[::-1], cusink.PointCloud(x), eps=eps, tol=1e-9)
    far = cusink.sinkhorn_divergence(a, a[::-1], cusink.PointCloud(x), eps=eps, reach=1e6, tol=1e-9)
    np.testing.assert_allclose(far.divergence, balanced.divergence, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "reach"),
    [
        ("cloud", None),
        ("cloud", 0.4),
        ("one cloud", 0.4),
        ("line", None),
        ("shared bins", None),
        ("shared bins", 0.4),
        ("given costs", None),
    ],
)
def test_gradients_are_differences(kind, reach):
    rng = np.random.default_rng(9)
    a, b, x, y = drawn(B=2, n=6, m=6 if kind in ("one cloud", "shared bins") else 5, mass=1.0 if reach is None else 1.4)
    a, b = a + 0.02, b + 0.02 * b.sum(axis=1, keepdims=True) * a.shape[1] / b.shape[1]
    b *= (1.0 if reach is None else 1.4) * a.sum(axis=1, keepdims=True) / b.sum(axis=1, keepdims=True)
    free = {"a": a, "b": b, "eps": 0.1}
    if kind in ("cloud", "one cloud", "line"):
        x, y = (x[:, 0], y[:, 0]) if kind == "line" else (x, y)
        free |= {"x": x} if kind == "one cloud" else {"x": x, "y": y}
    else:
        costs = (cusink.cost_matrix(x, x if kind == "shared bins" else y), cusink.cost_matrix(x), cusink.cost_matrix(y))
        free |= {"C": costs[0]} if kind == "shared bins" else dict(zip(("C", "C_aa", "C_bb"), costs, strict=True))

    def solve(a, b, eps, x=None, y=None, C=None, **own):
        C = cusink.PointCloud(x, y) if C is None else C
        return cusink.sinkhorn_divergence(a, b, C, eps=eps, reach=reach, tol=1e-11, max_iter=3000, **own)

    grad = rng.normal(size=2)
    grads = cusink.sinkhorn_divergence_adjoint(solve(**free), grad=grad)
    for name, value in free.items():
        step = 1e-4 * rng.normal(size=np.shape(value)) * (np.abs(value) > 0)
        if name in "ab":
            step *= value
            step -= step.mean(axis=1, keepdims=True) if reach is None else 0
        elif name in ("C_aa", "C_bb") or (name == "C" and kind == "shared bins"):
            step = step + step.T  # symmetric costs have symmetric neighbours
        up, down = ((grad * solve(**(free | {name: value + sign * step})).divergence).sum() for sign in (1, -1))
        found = getattr(grads, name)
        assert np.shape(found) == (np.shape(value) or (2,))
        assert abs((up - down) / 2 - (found * step).sum()) <= 2e-6 * np.abs(found * step).sum() + 1e-13, name
    if kind == "one cloud":
        assert grads.y is None and grads.C is None and grads.C_aa is None


def test_both_libraries(xp):
    a, b, x, y = drawn()
    result = cusink.sinkhorn_divergence(xp(a), xp(b), cusink.PointCloud(xp(x), xp(y)), eps=0.05)
    here = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.05)
    np.testing.assert_allclose(xp.numpy(result.divergence), here.divergence, rtol=1e-9)
    grads, there = cusink.sinkhorn_divergence_adjoint(result), cusink.sinkhorn_divergence_adjoint(here)
    for name in ("a", "b", "x", "y", "eps"):
        assert xp.owns(getattr(grads, name))
        np.testing.assert_allclose(xp.numpy(getattr(grads, name)), getattr(there, name), rtol=0, atol=1e-6)
    for name in ("f", "g_self", "error", "n_iter", "converged"):
        assert xp.owns(getattr(result, name))


def test_a_miss_is_said_once():
    a, b, x, y = drawn()
    with pytest.warns(cusink.ConvergenceWarning, match="3 of 3 problems did not reach") as record:
        result = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.01, max_iter=2)
    assert len(record) == 1 and record[0].filename == __file__
    assert not result.converged.any() and (result.error > 1e-6).all()
    assert cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.01, max_iter=2, tol=None).converged.all()


BAD = [
    ({"C": np.ones((14, 11))}, "'C' must be square, between bins that 'a' and 'b' share; got shape"),
    ({"b": "a", "C": np.ones((14, 14))}, "'C' must have a diagonal of zeros"),
    ({"b": "a", "C": np.triu(np.ones((14, 14)), 1)}, "'C' must be symmetric"),
    ({"C_aa": np.zeros((14, 14))}, "'C_aa' must be None for a PointCloud"),
    ({"C": np.ones((14, 11)), "C_aa": np.zeros((14, 14))}, "must both be given, or neither; 'C_bb' is None"),
    ({"C": np.ones((14, 11)), "C_aa": np.zeros((3, 3)), "C_bb": np.zeros((11, 11))}, "'C_aa' must have shape"),
    ({"C": np.ones((14, 11)), "C_aa": np.full((14, 14), np.nan), "C_bb": np.zeros((11, 11))}, "'C_aa' must be finite"),
    ({"reach": (1.0, 2.0, None)}, "'reach' must be a positive number in the unit of 'C', None, or a pair of these"),
    ({"reach": -1.0}, "'reach' must be a positive number"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input(options, message):
    a, b, x, y = drawn()
    given = {"a": a, "b": b, "C": cusink.PointCloud(x, y), "eps": 0.1} | options
    given["b"] = a if isinstance(given["b"], str) else given["b"]
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        cusink.sinkhorn_divergence(**given)


def test_bad_gradients():
    a, b, x, y = drawn()
    result = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.1)
    with pytest.raises(ValueError, match=r"'grad' must have shape \(3,\)"):
        cusink.sinkhorn_divergence_adjoint(result, grad=np.ones(2))
    with pytest.raises(ValueError, match="'grad' must be finite"):
        cusink.sinkhorn_divergence_adjoint(result, grad=np.array([1.0, np.nan, 0]))
    with pytest.raises(TypeError, match="'result' must be what cusink.sinkhorn_divergence returned"):
        cusink.sinkhorn_divergence_adjoint(cusink.sinkhorn([1.0], [1.0], [[0.0]], eps=1.0))


def test_gradients_by_costs_have_their_batch_axes():
    C = cusink.cost_matrix(np.arange(4.0))
    a, b = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3))

    def gradients(*costs):
        return cusink.sinkhorn_divergence_adjoint(
            cusink.sinkhorn_divergence(a, b, costs[0], **dict(zip(("C_aa", "C_bb"), costs[1:], strict=False)), eps=0.5)
        )

    plain, one = gradients(C), gradients(C[None])
    assert one.C.shape == (1, 4, 4)
    np.testing.assert_array_equal(one.C[0], plain.C)
    mixed = gradients(C, C[None], C)
    assert (mixed.C.shape, mixed.C_aa.shape, mixed.C_bb.shape) == ((4, 4), (1, 4, 4), (4, 4))


def test_self_terms_multiply_as_the_cloud_asks():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    result = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x, y, tf32=True), eps=1.0)
    assert [problem.C.data.terms for problem in result.problems] == [1, 1, 1]


def test_bins_lighter_than_the_error_leave_no_negative_divergence():
    a, b = np.array([0.999999999999, 9.99999999998e-13]), np.array([0.9999999999999925, 7.560413480376042e-15])
    result = cusink.sinkhorn_divergence(a, b, cusink.cost_matrix([0.7, 1.0]), eps=3e-6)
    assert result.converged
    assert result.divergence >= 0
