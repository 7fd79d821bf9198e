"""Costs of more eps than the dtype has digits, and masses at the ends of its range: right, or flagged."""

import numpy as np
import pytest
import reference
from truth.claims import assert_claims_hold, assert_values, attempt, of_one_mass, optimum

import cusink

METHODS = ["auto", "log", "scaling"]
LAYOUTS = ["single", "shared cost", "a cost each"]


def arranged(layout, *given):
    a, b, C = given
    if layout == "single":
        return a, b, C
    a, b = np.stack([a, a]), np.stack([b, b])
    return (a, b, C) if layout == "shared cost" else (a, b, np.stack([C, C]))


# One bin has all the mass of a side: the plan is b, whatever the costs. D of the reports.
ONE_ROW = [
    ("float32", 1.0, [[1e8, 3e7]]),
    ("float32", 1.0, [[3e9, 1e9]]),
    ("float32", 1.0, [[3e13, 1e13]]),
    ("float32", 0.02, [[1e5, 3e5]]),
    ("float64", 1e-6, [[1e8, 3e7]]),
    ("float64", 1e-9, [[1e8, 3e7]]),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "eps", "C"), ONE_ROW)
def test_a_steep_cost_with_one_plan(dtype, eps, C, method, layout):
    given = arranged(layout, *(np.asarray(x, dtype) for x in ([1.0], [0.5, 0.5], C)))
    outcome = attempt(cusink.sinkhorn, *given, eps=eps, method=method)
    assert_claims_hold(outcome.result, *given, eps, flags=outcome.flags)
    value = np.mean(C)
    # In the range of the report it must be right; beyond, where C / eps exceeds 1e8 roundings, it may be flagged.
    assert_values(outcome, 1e-6, may_flag=method != "auto" or value / eps > 1e8, cost=value, reg_cost=value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("span", [1e2, 1e4, 1e6, 1e8, 1e10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_counts_what_steep_costs_lose(dtype, span, method, layout):
    """Where every pair costs much, no dtype's own digits carry the plan: flagged, or right."""
    rng = np.random.default_rng(8)
    C = span * (1 + rng.random((4, 5)))
    C = C.astype(dtype)
    a, b = (rng.dirichlet(np.full(n, 5.0)).astype(dtype) for n in C.shape)
    given = arranged(layout, a, b, C)
    outcome = attempt(cusink.sinkhorn, *given, eps=1.0, method=method, max_iter=3000)
    assert_claims_hold(outcome.result, *given, 1.0, flags=outcome.flags)
    exact = reference.exact_cost(*of_one_mass(a, b), C)
    assert span == 1e10 or np.all(outcome.result.converged)
    # Entropy moves the cost by eps log(n m) at most; the rest is rounding of the weights.
    found = np.ravel(np.asarray(outcome.result.cost, np.float64))[np.ravel(outcome.result.converged)]
    assert (np.abs(found - exact) <= 3.0 + 4e-6 * span).all()


@pytest.mark.parametrize(("dtype", "shift"), [("float32", 1e4), ("float32", 1e6), ("float64", 1e9), ("float64", -1e9)])
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_in_the_cost_moves_the_value_alone(dtype, shift, method):
    rng = np.random.default_rng(9)
    C = (rng.integers(0, 16, (5, 6)) / 16 + shift).astype(dtype)
    a, b = (rng.dirichlet(np.full(n, 5.0)).astype(dtype) for n in C.shape)
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.1, method=method)
    assert_claims_hold(outcome.result, a, b, C, 0.1, flags=outcome.flags)
    want = optimum(a, b, C.astype(np.float64) - C.min(), 0.1)
    mass = float(a.sum(dtype=np.float64))
    # In float64 as well costs of 1e10 eps have lost more digits than the tolerance leaves them.
    assert outcome.result.converged or dtype == "float64"
    if bool(outcome.result.converged):
        slack = 4 * np.finfo(dtype).eps * abs(shift) + 2e-6
        assert abs(float(outcome.result.cost) - float(C.min()) * mass - want.cost) <= slack
        assert abs(float(outcome.result.reg_cost) - float(C.min()) * mass - want.reg_cost) <= slack


def line(points):
    return np.asarray(points, np.float64)[:, None]


def on_a_line(x, y):
    """Return the cost of transport on a line: both in order."""
    return float(np.mean((np.sort(x) - np.sort(y)) ** 2))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steep_documents(dtype, scale):
    """Measures on a line, whose exact cost is that of both in order; C / eps goes up to 1e12."""
    rng = np.random.default_rng(10)
    clouds = [np.sort(rng.integers(0, 64, 6)).astype(float) + k for k in range(3)]
    points = [(scale * line(c)).astype(dtype) for c in clouds]
    found = attempt(cusink.distance_matrix, cusink.Measures.of(points), None, "sqeuclidean", eps=1.0, full_output=True)
    want = np.array([[on_a_line(x, y) for y in clouds] for x in clouds])
    converged = np.asarray(found.result.converged)
    assert (converged.all() or found.flags) and converged.diagonal().all()
    off = np.abs(np.asarray(found.result.distances, np.float64) / scale**2 - want)
    # Entropy costs eps log(6) at most, and the marginals are met to 1e-6.
    assert (off[converged] <= 2 / scale**2 + 1e-5 * 64**2).all(), off


@pytest.mark.parametrize("pairs", ["one for all", "one each"])
def test_steep_documents_of_the_report(pairs):
    """C / eps of 1e10: 15.34 for 3.099 was returned."""
    rng = np.random.default_rng(11)
    clouds = [rng.random((n, 2)).astype(np.float32) * 3 for n in (4, 5, 6)]
    weights = [rng.dirichlet(np.full(len(c), 5.0)).astype(np.float32) for c in clouds]
    measures = cusink.Measures.of(clouds, weights).normalised()
    eps = 1e-9
    rows = measures if pairs == "one for all" else measures[:1]
    found = attempt(cusink.distance_matrix, rows, measures, "sqeuclidean", eps=eps, full_output=True)
    converged = np.asarray(found.result.converged)
    assert (converged.all() or found.flags) and converged.diagonal().all()
    offsets = measures.offsets
    for i, j in np.argwhere(converged):
        (x, p), (y, q) = (
            (measures.points[k].astype(float), measures.weights[k].astype(float))
            for k in (slice(offsets[i], offsets[i + 1]), slice(offsets[j], offsets[j + 1]))
        )
        C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        exact = reference.exact_cost(*of_one_mass(p, q), C)
        assert abs(float(found.result.distances[i, j]) - exact) <= 1e-5 * C.max() * 10, (i, j)


# Masses and single weights at the ends of the range.

MASSES = [("float32", 1e8), ("float32", 1e12), ("float32", 1e30), ("float32", 1e-30)]
MASSES += [("float64", 1e-300), ("float64", 1e200), ("float64", 1e-200)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "mass"), MASSES)
def test_any_mass_is_carried(dtype, mass, method, layout):
    a, b, C = np.array([0.4, 0.6]), np.array([0.7, 0.3]), np.array([[0, 1.0], [1.0, 0]])
    given = arranged(layout, (a * mass).astype(dtype), (b * mass).astype(dtype), C.astype(dtype))
    outcome = attempt(cusink.sinkhorn, *given, eps=0.1, method=method)
    assert_claims_hold(outcome.result, *given, 0.1, flags=outcome.flags)
    want = optimum(a, b, C, 0.1)
    # KL(P | a b') of mass M has M log(1 / M) more.
    rtol = 2e-6 if dtype == "float64" else 5e-6
    assert_values(outcome, rtol, cost=mass * want.cost, reg_cost=mass * (want.reg_cost - 0.1 * np.log(mass)))


@pytest.mark.parametrize("span", [85, 95, 100, 112])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_large_masses_at_the_edge_of_the_range(seed, method, span):
    rng = np.random.default_rng(seed)
    n, m = ((1, 2), (2, 5), (4, 6))[seed]
    a, b = (rng.random(k) + 0.1 for k in (n, m))
    C = rng.random((n, m))
    C = ((C - C.min()) / np.ptp(C) * span * 0.01 - 0.3).astype(np.float32)
    a, b = ((1e11 * w / w.sum()).astype(np.float32) for w in (a, b))
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.01, method=method)
    assert_claims_hold(outcome.result, a, b, C, 0.01, flags=outcome.flags)
    may_flag = method == "scaling"  # as its range is at an end
    assert_values(outcome, 1e-5, may_flag=may_flag, reg_cost=optimum(a, b, C, 0.01).reg_cost)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "small", "cost"), [("float32", 1e-32, 8.0), ("float64", 1e-300, 70.0), ("float32", 1e-37, 8.0)]
)
def test_a_weight_at_the_end_of_the_range(dtype, small, cost, method):
    a, b, C = (np.asarray(x, dtype) for x in ([1.0], [small, 1.0], [[cost, 0.0]]))
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.1, method=method)
    assert_claims_hold(outcome.result, a, b, C, 0.1, flags=outcome.flags)
    # The plan is b: its cost is exact, and KL(b | b) = 0.
    for name in ("cost", "reg_cost"):
        np.testing.assert_allclose(
            getattr(outcome.result, name), small * cost, rtol=0.02
        )  # of its weight a millionth of the mass is left open
    assert np.asarray(outcome.result.converged)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masses_with_reach(dtype):
    """With prices the weights count absolutely: mass is left behind where it is small against eps and rho."""
    for mass in (1e-6, 1e6):
        a, b, C = (np.asarray(x, dtype) for x in ([0.4 * mass, 0.6 * mass], [0.7 * mass, 0.3 * mass], 1 - np.eye(2)))
        outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.1, reach=1.0)
        assert_claims_hold(outcome.result, a, b, C, 0.1, reach=(1.0, 1.0), flags=outcome.flags)


@pytest.mark.parametrize("offset", [1.0, 100.0])
def test_the_error_counts_what_a_start_far_from_its_gauge_has_lost(offset):
    """Potentials of 1e4 and 1e6 eps, and opposite ones: the plan has the digits that they had."""
    C, init = np.array([[4e-6]]), (np.array([offset]), np.zeros(1))
    result = cusink.sinkhorn([1.0], [1.0], C, eps=1e-4, init=init)
    assert abs(result.plan() - 1).max() <= result.error < 1e-8 and result.converged


def test_a_plan_of_potentials_without_digits_is_made_of_numbers():
    """Weight that must pay 1e19 eps: flagged, and nothing in the plan is infinite."""
    C = np.array([[3.8e15, 0.3, 0.83, 0.35]])
    with pytest.warns(cusink.ConvergenceWarning, match="forbid pairs with"):
        result = cusink.sinkhorn(np.ones(1), np.full(4, 0.25), C, eps=1.9e-4)
    assert not result.converged and result.error >= 1
    assert np.isfinite(result.plan()).all()


def test_a_cost_that_float32_cannot_hold_is_infinite_without_a_word_of_numpys():
    x, y, one = np.float32([[38992.363]]), np.float32([[0.19777058], [38992.363]]), np.float32([1])
    C = cusink.PointCloud(x, y, "sqeuclidean", power=2.0)
    with pytest.warns(cusink.ConvergenceWarning, match="raise 'eps'") as seen:
        result = cusink.sinkhorn(one, np.float32([1, 0]), C, eps=0.151, method="scaling")
    assert len(seen) == 1 and not result.converged and 1 < result.error < np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_a_plan_without_digits_is_a_number(dtype):
    C = cusink.PointCloud(np.array([[0.4]], dtype), np.array([[70000.0]], dtype), power=2.0)
    result = cusink.sinkhorn(np.ones(1, dtype), np.ones(1, dtype), C, eps=44.3, tol=None)
    assert result.error.dtype == dtype and 1 < result.error < np.inf


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("metric", "method"), [("cityblock", "log"), ("euclidean", "log"), ("cosine", "auto"), ("cosine", "log")]
)
def test_the_error_counts_the_roundings_of_a_plan_of_one_pair(metric, method, batched):
    """In the log domain three roundings of each exponent of float32 were up to three times the error claimed.

    So were those of points on the unit sphere, to which "cosine" moves the given ones.
    """
    rng = np.random.default_rng(7)
    x, y = rng.random((2, 60, 1, 3)).astype(np.float32)
    one, eps = np.ones(1, np.float32), 0.003 if metric == "cosine" else 0.012
    if batched:
        found = [cusink.sinkhorn(one, one, cusink.PointCloud(x, y, metric), eps=eps, tol=1e-4, method=method)]
    else:
        pairs = (cusink.PointCloud(*pair, metric) for pair in zip(x, y, strict=True))
        found = [cusink.sinkhorn(one, one, C, eps=eps, tol=1e-4, method=method) for C in pairs]
    f, g, error = (np.ravel(parts) for parts in zip(*((r.problem.f, r.problem.g, r.error) for r in found), strict=True))
    x, y = (points.astype(np.float64)[:, 0] for points in (x, y))
    if metric == "cosine":
        x, y = (points / np.linalg.norm(points, axis=1, keepdims=True) for points in (x, y))
    costs = {
        "cityblock": np.abs(x - y).sum(axis=1),
        "euclidean": np.sqrt(((x - y) ** 2).sum(axis=1)),
        "cosine": ((x - y) ** 2).sum(axis=1) / 2,
    }[metric]
    assert (np.abs(np.expm1((f + g - costs) / eps)) <= error).all() and error.max() < 5e-5
