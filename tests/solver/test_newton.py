"""Newton's method on the semi-dual: it finds what the iterations would, where these take for ever."""

import numpy as np
import pytest
import reference
from scipy.special import logsumexp

import cusink
from cusink.convergence.options import Options
from cusink.operand import dense_cost
from cusink.solver.balance import evened
from cusink.solver.newton import (
    ALONE,
    BATCH,
    FAR,
    LARGEST,
    LARGEST_STORED,
    MANY,
    PACE,
    TILE,
    first_look,
    hand_over,
    iterations_left,
    newton,
    sharing,
    worth,
)
from cusink.solver.semidual import DIRECT, OVERSHOOT, REACH, Semidual, _solution


def points(rng, n, m, d, shared=0):
    x, y = rng.random((n, d)), rng.random((m, d))
    y[:shared] = x[:shared]
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return C / C.max()


def towns(rng):
    """Return weights and costs of two towns whose masses differ, so that a little has to travel."""
    x, y = (np.concatenate([rng.random((30, 2)), rng.random((n, 2)) + 5]) for n in (20, 30))
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return np.full(50, 1 / 50), np.full(60, 1 / 60), C / C.max()


def hard(name):
    rng = np.random.default_rng(3)
    if name == "two towns":
        return towns(rng)
    if name == "tie":
        C = np.zeros((4, 4))
        C[1, 3] = -1.85
        return np.full(4, 0.25), np.full(4, 0.25), C
    n, m, d, shared = {"shared points": (60, 60, 16, 30), "tall": (40, 25, 2, 0), "wide": (25, 40, 2, 0)}[name]
    return np.full(n, 1 / n), np.full(m, 1 / m), points(rng, n, m, d, shared)


def solved(a, b, C, eps, tol=1e-10, start=None):
    steepness = (C[np.isfinite(C)].max() - C.min()) / eps
    start = (np.zeros((1, len(a))), np.zeros((1, len(b)))) if start is None else start
    return newton(dense_cost(C), a[None], b[None], eps, start, tol, steepness, 1000)


def plan_of(found, a, b, C, eps):
    with np.errstate(divide="ignore"):
        return np.exp(np.log(a)[:, None] + found.f[0][:, None] / eps + np.log(b) + found.g[0] / eps - C / eps)


def marginal_error(found, a, b, C, eps):
    """Return the larger of the two, of the plan in float64."""
    plan = plan_of(found, a, b, C, eps)
    return max(np.abs(plan.sum(axis=1) - a).sum(), np.abs(plan.sum(axis=0) - b).sum())


@pytest.mark.parametrize("eps", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", ["two towns", "tie", "shared points", "tall", "wide"])
def test_the_plan_meets_both_marginals(name, eps):
    a, b, C = hard(name)
    found = solved(a, b, C, eps)
    assert found.error <= 1e-10
    assert marginal_error(found, a, b, C, eps) <= 1.1e-10 + 1e-15 * np.abs(C).max() / eps
    assert found.taken <= 150


def test_it_finds_what_the_iterations_find():
    a, b, C = hard("tall")
    found, plain = solved(a, b, C, 0.05), reference.sinkhorn(a, b, C, 0.05, 3000)
    moved = (found.f[0] - plain.f).mean()
    np.testing.assert_allclose(found.f[0], plain.f + moved, atol=1e-9)
    np.testing.assert_allclose(found.g[0], plain.g - moved, atol=1e-9)


def test_empty_bins_and_forbidden_pairs_are_left_out():
    a, b, C = hard("shared points")
    a, b, C = a.copy(), b.copy(), C.copy()
    a[:7] = b[20:25] = 0
    C[40:, :30] = np.inf
    a[40:] *= b[30:].sum() * 0.5 / a[40:].sum()
    a, b = a / a.sum(), b / b.sum()
    for pair, costs in (((a, b), C), ((b, a), C.T)):
        found = solved(*pair, costs, 1e-3)
        assert marginal_error(found, *pair, costs, 1e-3) <= 2e-10
        np.testing.assert_allclose(plan_of(found, *pair, costs, 1e-3).sum(axis=1), pair[0], rtol=1e-11)


def test_what_cannot_be_reached_is_said(monkeypatch):
    """Two islands of unequal mass: no plan has these marginals."""
    a, b, C = np.array([0.5, 0.5]), np.array([0.3, 0.7]), np.array([[0, np.inf], [np.inf, 0]])
    seen, original = [], Semidual.ascend
    monkeypatch.setattr(Semidual, "ascend", lambda self, *given: seen.append(self.eps) or original(self, *given))
    found = newton(dense_cost(C), a[None], b[None], 0.1, (0 * a[None], 0 * b[None]), 1e-10, 16.0, 1000)
    assert seen == [0.1, 0.1]  # costs that differ by 16 eps are not annealed
    assert found.error > 0.1
    assert np.isfinite(found.f).all() and np.isfinite(found.g).all()


def test_few_evaluations_are_kept_to():
    a, b, C = hard("two towns")
    found = newton(dense_cost(C), a[None], b[None], 1e-3, (0 * a[None], 0 * b[None]), 1e-10, 1e3, 5)
    assert found.taken <= 9


def test_the_price_of_a_start_grows_with_size_and_with_the_batch():
    assert worth(10, 10, ALONE) < worth(100, 100, ALONE) < worth(1000, 1000, ALONE)
    assert worth(100, 100, ALONE) < worth(100, 100, BATCH)
    assert worth(LARGEST, 2, ALONE) == np.inf == worth(LARGEST_STORED, 2, ALONE, True) > worth(LARGEST, 2, ALONE, True)
    assert worth(LARGEST, 2, BATCH, True) == np.inf


@pytest.mark.parametrize("kind", ["stored", "points", "a batch", "a cost each"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_solver_turns_to_it(kind, dtype):
    """Shared points, where plain iterations take more than ten thousand."""
    rng = np.random.default_rng(0)
    p = rng.random((80, 16)).astype(dtype)
    x, y = p[:50], p[30:]
    tol = 1e-8 if dtype == np.float64 else 1e-5
    C = cusink.cost_matrix(x, y)
    eps = float(C.max()) * (1e-3 if dtype == np.float64 else 1e-4)
    cost = {"stored": C, "points": cusink.PointCloud(x, y), "a batch": C, "a cost each": np.stack([C, C])}[kind]
    a = np.full((2, 50), 1 / 50, dtype) if kind == "a batch" else None
    result = cusink.sinkhorn(a, a, cost, eps=eps, tol=tol, max_iter=1200)
    assert np.all(result.converged) and np.all(result.n_iter < 1000)
    plan = np.asarray(result.plan(), np.float64).reshape(-1, 50, 50)
    error = np.abs(plan.sum(axis=1) - 1 / 50).sum(axis=1) + np.abs(plan.sum(axis=2) - 1 / 50).sum(axis=1)
    assert (error <= 2 * tol + 50 * np.finfo(dtype).eps).all()


def test_stored_costs_of_a_thousand_points_and_more_are_turned_to_it():
    """Iterations alone are off by 4e-6 after the 1000 that a call may take."""
    x, y = np.random.default_rng(0).normal(size=(2, 1100, 16))
    y[:550] = x[:550]
    C = cusink.cost_matrix(x, y)
    result = cusink.sinkhorn(None, None, C, eps=1e-3 * C.max())
    assert result.converged
    plan = result.plan()
    assert np.abs(plan.sum(axis=1) - 1 / 1100).sum() + np.abs(plan.sum(axis=0) - 1 / 1100).sum() <= 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("name", "eps", "most"),  # of iterations; before steps were bent, and close problems turned early: 44, 98, 118, 342
    [("permutation", 1e-3, 27), ("permutation", 1e-4, 28), ("classes", 1e-3, 92), ("classes", 1e-4, 190)],
)
def test_how_many_iterations_a_hard_problem_takes(name, eps, most, dtype):
    rng = np.random.default_rng(5)
    x = rng.random((100, 2))
    C = cusink.cost_matrix(x, rng.permutation(x)) if name == "permutation" else 1 - np.eye(80)
    a, b = np.full((2, 100), 0.01) if name == "permutation" else rng.dirichlet(np.ones(80), 2)
    tol = 1e-8 if dtype == np.float64 else 1e-5
    result = cusink.sinkhorn(*(w.astype(dtype) for w in (a, b, C / C.max())), eps=eps, tol=tol, max_iter=1000)
    if dtype == np.float32 and (name, eps) == ("permutation", 1e-3):
        most = 44  # its tolerance is near enough for plain iterations
    assert result.converged and result.n_iter <= most
    plan = np.asarray(result.plan(), np.float64)
    assert np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum() <= tol + 20 * np.finfo(dtype).eps


# ---- parts of a step -------------------------------------------------------------------------------------------------


def semidual(name, eps):
    a, b, C = hard(name)
    return Semidual(dense_cost(C), a[None], b[None], eps)


def entries_of(point):
    """Return the plan of a point."""
    return point.kernel.entries * point.row[:, None] * point.scale


def plan_at(dual, logits):
    """Return the plan (fixed, moving) whose rows have their mass, by its definition."""
    plan = np.exp(logits - dual.exponents)
    return plan * (dual.fixed / plan.sum(axis=1))[:, None]


@pytest.mark.parametrize("name", ["tall", "wide", "two towns"])
def test_an_evaluation_is_that_of_the_plan(name):
    dual, rng = semidual(name, 0.05), np.random.default_rng(1)
    logits = dual.log_moving + rng.normal(size=len(dual.moving))
    point, plan = dual.at(logits), plan_at(dual, logits)
    assert len(dual.moving) <= len(dual.fixed)
    np.testing.assert_allclose(entries_of(point), plan, rtol=1e-12)
    np.testing.assert_allclose(point.gradient, dual.moving - plan.sum(axis=0), atol=1e-15)
    np.testing.assert_allclose(point.fixed[:, 0], np.log(np.exp(logits - dual.exponents).sum(axis=1)), rtol=1e-12)
    assert dual.error(point) == pytest.approx(np.abs(point.gradient).sum() / dual.moving.sum())
    step, h = rng.normal(size=len(logits)), 1e-5
    slope = (dual.at(logits + h * step).objective - dual.at(logits - h * step).objective) / (2 * h)
    assert slope == pytest.approx(step @ point.gradient, rel=1e-6)
    for far in (15, REACH - 1, REACH + 1):  # from there on exponentials are taken anew
        there, moved = dual.at(logits + far * np.sign(step), point.kernel), dual.at(logits + far * np.sign(step))
        assert (there.kernel is point.kernel) == (far < REACH)
        np.testing.assert_allclose(entries_of(there), entries_of(moved), rtol=1e-12, atol=1e-40)
        np.testing.assert_allclose(there.gradient, moved.gradient, atol=1e-14)
        assert there.objective == pytest.approx(moved.objective, rel=1e-13)
        np.testing.assert_allclose(there.fixed, moved.fixed, rtol=1e-12)
    assert dual.cost(there) == pytest.approx((plan_at(dual, there.logits) * dual.exponents).sum() * 0.05, rel=1e-12)


@pytest.mark.parametrize("mass", [1.0, 1e6])
def test_where_scalings_of_a_kernel_reach(mass):
    a, b, C = hard("tall")
    dual = Semidual(dense_cost(C), mass * a[None], mass * b[None], 0.05)
    for row, scale, reached in (
        ([1.0, 1e30], [1.0, 1e13], True),
        ([1.0, 1e30], [1.0, 3e13], False),
        ([1.0, 1.0], [1.0, 0.0], False),
        ([1.0, 1.0], [1.0, np.nan], False),
        ([1e300, 1.0], [1e300, 1.0], False),
    ):
        assert dual._in_range(mass * np.array(row), np.array(scale)) == reached


@pytest.mark.parametrize("finite", [True, False])
def test_exponentials_are_taken_anew_where_what_was_cut_off_would_count(finite):
    """Between towns costs are cut off: scaled by more than `FARTHEST` they would be more than 1e-100 of the mass."""
    dual = semidual("two towns", 1e-4)
    assert dual.axis == 0 and dual.exponents.min() < 1 and dual.exponents.max() > 9000
    dual.finite = finite
    point, away = dual.at(dual.log_moving), np.where(np.arange(len(dual.moving)) < 30, -1.0, 1.0)
    for far, kept in ((40, True), (60, False), (140, False)):
        there = dual.at(dual.log_moving + far * away, point.kernel)
        assert (there.kernel is point.kernel) == kept, far
        np.testing.assert_allclose(entries_of(there), plan_at(dual, there.logits), rtol=1e-12, atol=1e-100)
        np.testing.assert_allclose(there.gradient, dual.at(there.logits).gradient, atol=1e-14)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_step_solves_the_linear_system(ridge):
    dual = semidual("tall", 0.05)
    logits = dual.log_moving + np.random.default_rng(1).normal(size=25)
    point, plan = dual.at(logits, dual.at(logits - 3).kernel), plan_at(dual, logits)
    assert point.scale[0] == pytest.approx(np.exp(3))
    columns = plan.sum(axis=0)
    laplacian = np.diag(columns) - plan.T @ (plan / dual.fixed[:, None])
    weights = np.diag(laplacian) + ridge * columns
    system = laplacian + ridge * np.diag(columns) + np.outer(weights, weights) / weights.sum()
    step = np.linalg.solve(system, point.gradient)
    np.testing.assert_allclose(dual.direction(point, ridge), step - step.mean(), rtol=1e-8, atol=1e-12)


def test_a_step_crosses_edges_that_a_difference_would_lose():
    """Two pairs of bins, joined by 1e-18 of their mass: the step between them is one over that."""
    C, eps = np.full((4, 4), np.inf), 1.0
    C[:2, :2] = C[2:, 2:] = 0
    C[2, 1] = 18 * np.log(10)
    a, b = np.array([[0.25, 0.25 - 1e-6, 0.25 + 1e-6, 0.25]]), np.full((1, 4), 0.25)
    dual = Semidual(dense_cost(C), a, b, eps)
    assert dual.axis == 0
    step = dual.direction(dual.at(dual.log_moving), 0.0)
    assert step[2:].mean() - step[:2].mean() > 1e8
    assert np.ptp(step[:2]) < 1e-3 * step[2:].mean()


def test_a_step_too_long_for_a_line_is_bent():
    dual = semidual("two towns", 1e-3)
    m = len(dual.moving)
    point = dual.at(dual.log_moving)
    step = dual.direction(point, 1e-14)
    assert abs(step).max() > 1e6
    bent = dual.bent(step)
    assert bent @ point.gradient > 0 and abs(bent).max() < 40 and abs(bent.mean()) < 1e-13
    order = np.argsort(step)
    assert (np.diff(bent[order]) >= 0).all()
    rng = np.random.default_rng(0)
    short, hopeless = rng.uniform(-100, 100, m), np.full(m, np.nan)
    assert dual.bent(short) is short and dual.bent(hopeless) is hopeless
    # Zero is where half of the mass is on either side.
    away = np.where(np.arange(m) < m // 4, 1e5, rng.normal(size=m) * 1e-3)
    np.testing.assert_allclose(np.ptp(dual.bent(7.0 + away)), np.arcsinh(1e5), rtol=1e-3)


@pytest.mark.parametrize("finite", [True, False])
def test_exponents_that_underflow_change_nothing(finite):
    dual = semidual("two towns", 1e-4)
    assert dual.finite and dual.exponents.max() > 9000
    dual.finite = finite
    point, plan = dual.at(dual.log_moving), plan_at(dual, dual.log_moving)
    np.testing.assert_allclose(entries_of(point), plan, rtol=1e-12, atol=1e-140)
    assert (point.kernel.entries.min() > 1e-145) == finite


def test_a_matrix_that_rounding_made_indefinite_is_solved_all_the_same():
    right = np.array([1.0, 2.0])
    for matrix in ([[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]):
        np.testing.assert_allclose(np.array(matrix) @ _solution(np, np.array(matrix), right), right)
    assert np.isnan(_solution(np, np.zeros((2, 2)), right)).all()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("name", "eps"), [("tall", 0.05), ("wide", 0.05), ("two towns", 1e-5)])
def test_iterations_from_a_point_are_those_of_the_logarithms(name, eps, count):
    """Between the towns scalings do not reach far enough at once: there an iteration takes logarithms of sums."""
    dual = semidual(name, eps)
    point = dual.at(dual.log_moving + np.random.default_rng(1).normal(size=len(dual.moving)))
    swept, taken = dual.swept(point, count)
    assert taken == (count if name != "two towns" else 1)
    f, logits = point.fixed, point.logits
    for _ in range(taken):
        logits = dual.log_moving - logsumexp(np.log(dual.fixed)[:, None] - f - dual.exponents, axis=0)
        f = logsumexp(logits - dual.exponents, axis=1, keepdims=True)
    np.testing.assert_allclose(swept.logits, logits, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(swept.fixed, f, rtol=1e-10, atol=1e-10)
    assert swept.objective > point.objective


def test_an_iteration_never_loses(monkeypatch):
    dual = semidual("tall", 0.05)
    point = dual.at(dual.log_moving + np.random.default_rng(1).normal(size=25))
    monkeypatch.setattr(dual, "at", lambda logits, before: point._replace(objective=point.objective - 1))
    assert dual.swept(point, 3) == (point, 3)
    monkeypatch.setattr(dual, "at", lambda logits, before: point._replace(logits=logits))
    assert dual.swept(point, 3)[0] is not point


@pytest.mark.parametrize(
    ("name", "eps"), [("tall", 0.05), ("wide", 0.05), ("turned towns", 1e-4), ("far column", 5e-3)]
)
def test_the_first_half_step_is_that_of_an_iteration(monkeypatch, name, eps):
    """From f = 0, whichever side is the smaller one, and where no scaling reaches the column of a kernel."""
    summed, original = [], Semidual._sums
    monkeypatch.setattr(Semidual, "_sums", lambda self, logits: summed.append(1) or original(self, logits))
    if name == "far column":
        a, b, C = np.full(3, 1 / 3), np.array([0.4, 0.6]), np.array([[0.0, 5.0], [0.1, 5.0], [0.0, 5.2]])
    else:
        a, b, C = hard(name.removeprefix("turned ").replace("towns", "two towns"))
    if name == "turned towns":
        a, b, C = b, a, C.T
    dual = Semidual(dense_cost(C), a[None], b[None], eps)
    f, g = dual.potentials(dual.first(), min(len(a), len(b)))
    want = -eps * logsumexp(np.log(a)[:, None] - C / eps, axis=0)
    np.testing.assert_allclose(g[0], want, atol=1e-13)
    assert len(summed) == (name == "far column")
    if name == "wide":
        assert not f.any()
    else:  # the best f is known at once
        np.testing.assert_allclose(f[0], -eps * logsumexp(np.log(b) + (want - C) / eps, axis=1), atol=1e-13)


def test_errors_are_relative_to_the_mass():
    a, b, C = hard("tall")
    small, large = (Semidual(dense_cost(C), m * a[None], m * b[None], 0.05) for m in (1, 3))
    step = np.random.default_rng(1).normal(size=25)
    errors = [dual.error(dual.at(dual.log_moving + step)) for dual in (small, large)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-12)


@pytest.fixture
def tried(monkeypatch):
    """Points at which nothing is gained."""
    dual, seen = semidual("tall", 0.05), []
    point = dual.at(dual.log_moving)

    def at(logits, before):
        assert before is point.kernel
        seen.append(logits - point.logits)
        return point._replace(objective=point.objective - 1, logits=logits)

    monkeypatch.setattr(dual, "at", at)
    return dual, point, seen


def test_a_step_is_limited_and_made_shorter(tried):
    dual, point, seen = tried
    step = point.gradient / abs(point.gradient).max()
    assert dual._farther(point, 80 * step, 1.0) == (None, 0.0, 4)
    np.testing.assert_allclose([moved / step for moved in seen], np.outer(20 / 4.0 ** np.arange(4), np.ones(25)))
    seen.clear()
    dual._farther(point, 2 * step, 1.0)
    np.testing.assert_allclose(seen[0], 2 * step)
    seen.clear()
    for hopeless in (-step, step * np.nan, step * np.inf):
        with np.errstate(invalid="ignore"):
            assert dual._farther(point, hopeless, 1.0) == (None, 0.0, 0)
    assert not seen


def test_what_counts_as_a_gain(monkeypatch):
    dual = semidual("tall", 0.05)
    point = dual.at(dual.log_moving)
    slope = float(point.gradient @ point.gradient)

    def gaining(gain, gradient):
        monkeypatch.setattr(
            dual, "at", lambda *_: point._replace(objective=point.objective + gain, gradient=gradient * point.gradient)
        )
        return dual._farther(point, point.gradient, dual.error(point))[1:]

    assert gaining(1.01e-4 * slope, 1.0) == (1.0, 1)
    assert gaining(0.9998 * slope, 1.0) == (1.0, 1)
    assert gaining(0.9e-4 * slope, 1.0) == (0.25, 2)  # a shorter step promises less
    noise = 1e-11 * (1 + abs(point.objective))
    assert gaining(-0.9 * noise, 0.9) == (1.0, 1)  # rounding hides what is gained: the error falls
    assert gaining(-0.9 * noise, 1.0) == (0.0, 4)
    assert gaining(-1.1 * noise, 0.9) == (0.0, 4)


def test_a_step_that_gains_what_it_promises_is_made_longer(monkeypatch):
    """As between parts that have to move by hundreds of eps before any mass is exchanged."""
    dual = semidual("tall", 0.05)
    point = dual.at(dual.log_moving)
    slope, gains = float(point.gradient @ point.gradient), {}

    def at(logits, before):
        length = float((logits - point.logits) @ point.gradient) / slope
        return point._replace(logits=logits, objective=point.objective + gains[round(length)] * slope)

    monkeypatch.setattr(dual, "at", at)
    for known, want in (
        ({1: 0.99991, 4: 3.9995}, (4.0, 2)),  # the second gains less than its share
        ({1: 0.99991, 4: 3.9997, 16: 4.0}, (16.0, 3)),
        ({1: 0.99991, 4: 3.9997, 16: 3.9996}, (4.0, 3)),  # what is lost is left out
        ({1: 1.0, 4: 4.0, 16: 16.0, 64: 64.0, 256: 256.0}, (256.0, 5)),
    ):
        gains.clear()
        gains.update(known)
        there, length, taken = dual._farther(point, point.gradient, 1.0)
        assert (length, taken) == want
        np.testing.assert_allclose(there.logits, point.logits + length * point.gradient)


def test_the_ridge_grows_until_it_is_no_use(monkeypatch):
    dual, ridges = semidual("two towns", 1e-2), []
    monkeypatch.setattr(dual, "direction", lambda point, ridge: ridges.append(ridge) or -point.gradient)
    _, error, taken = dual.ascend(dual.begun(np.zeros(len(dual.moving))), 1e-10, 100)
    assert taken == 1 and error > 0.1
    np.testing.assert_allclose(ridges, [1e-14, *10.0 ** np.arange(-12, 0, 2)])


def test_the_ridge_shrinks_with_full_steps(monkeypatch):
    dual, ridges, original = semidual("two towns", 1e-2), [], Semidual.direction

    def direction(point, ridge):
        ridges.append(ridge)
        return -point.gradient if len(ridges) in (1, 2) else original(dual, point, ridge)

    monkeypatch.setattr(dual, "direction", direction)
    monkeypatch.setattr(
        dual, "_farther", lambda point, step, error: (None, 0.0, 0) if step @ point.gradient < 0 else (point, 1.0, 1)
    )
    dual.ascend(dual.begun(np.zeros(len(dual.moving))), 1e-10, 16)
    np.testing.assert_allclose(ridges[:8], [1e-14, 1e-12, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-14])


def test_an_ascent_that_falls_behind_its_pace_ends():
    dual = semidual("two towns", 1e-3)
    start = dual.begun(np.zeros(len(dual.moving)))
    _, error, taken = dual.ascend(start, 1e-10, 100, PACE)
    assert error > 0.05 and DIRECT <= taken <= DIRECT + 5
    assert dual.ascend(start, 1e-10, 30)[2] > DIRECT + 5
    near = semidual("shared points", 1e-2)
    _, error, taken = near.ascend(near.begun(np.zeros(60)), 1e-10, 100, PACE)
    assert error <= 1e-10 and taken > DIRECT  # it goes on for as long as the error falls


def test_the_pace_is_asked_for_from_eight_evaluations_on(monkeypatch):
    dual = semidual("two towns", 1e-3)
    monkeypatch.setattr(dual, "_farther", lambda point, step, error: (point, 1.0, 6))
    monkeypatch.setattr(dual, "swept", lambda point, count: (point, count))
    start = dual.begun(np.zeros(len(dual.moving)))
    assert dual.ascend(start, 1e-10, 100, PACE)[2] == DIRECT == 8
    monkeypatch.setattr(dual, "_farther", lambda point, step, error: (point, 1.0, 5))
    assert dual.ascend(start, 1e-10, 100, PACE)[2] == 13


@pytest.fixture
def ascents(monkeypatch):
    """Return what ascents are asked for: eps, the error at their start, tolerance, evaluations, and a pace, if any."""
    seen, original = [], Semidual.ascend

    def ascend(self, start, tol, most, *pace):
        seen.append((self.eps, self.error(start), tol, most, *pace))
        return original(self, start, tol, most, *pace)

    monkeypatch.setattr(Semidual, "ascend", ascend)
    return seen


def test_the_values_of_eps_from_a_start_that_is_too_far(ascents):
    a, b, C = hard("two towns")
    cost, zero = dense_cost(C), (0 * a[None], 0 * b[None])
    found = newton(cost, a[None], b[None], 1e-3, zero, 1e-10, 1000.0, 500)
    assert found.error <= 1e-10
    # Five factors of 4 lead to the range of the costs, from the third of them on any start will do. Two iterations come
    # first at each, and at least one step is taken.
    *larger, last = ascents
    assert [row[0] for row in larger] == pytest.approx([1e-3 * 4**k for k in (3, 2, 1)])
    assert [row[2] for row in larger] == [min(1e-2, row[1] / 2) for row in larger]
    assert [row[3:] for row in ascents] == [(18,)] * 3 + [(98,)] and last[2] == 1e-10
    ascents.clear()
    assert newton(cost, a[None], b[None], 1e-3, zero, 1e-10, 1000.0, 61).error > 0.05  # too few for three stages
    assert [row[3:] for row in ascents] == [(61, 0.9)]
    ascents.clear()
    found = newton(cost, a[None], b[None], 1e-3, zero, 1e-10, 1000.0, 62)
    assert len(ascents) == 4 and found.taken <= 62 + OVERSHOOT


def test_from_a_start_that_is_not_far_steps_are_tried_before_larger_values_of_eps(ascents):
    a, b, C = hard("two towns")
    zero = 0 * a[None], 0 * b[None]
    newton(dense_cost(C), a[None], b[None], 0.02, zero, 1e-10, 50.0, 500)  # costs that differ by so few eps
    assert [(row[1] > FAR, *row[2:]) for row in ascents] == [(True, 1e-10, 100, 0.9)]
    ascents.clear()
    found, rng = solved(a, b, C, 1e-3), np.random.default_rng(0)
    for off, far in ((0.05, False), (3.0, True)):
        ascents.clear()
        start = tuple(x + off * 1e-3 * rng.normal(size=x.shape) for x in (found.f, found.g))
        newton(dense_cost(C), a[None], b[None], 1e-3, start, 1e-10, 1000.0, 500)
        first = ascents[0]
        assert (first[2:] == (1e-10, 100, 0.9)) == (not far)
        assert far or 0.02 < first[1] < FAR


def test_at_larger_values_of_eps_no_step_is_taken_where_iterations_end(ascents):
    """Nearly all weight in one bin: steps to half of an error of rounding took 105 evaluations for 24 iterations."""
    a, b = np.array([1e-20, 1e-9, 1.0]), np.array([1e-30, 0.3, 0.7])
    C = np.abs(np.arange(3)[:, None] - np.arange(3)) / 2.0
    found = solved(a / a.sum(), b, C, 1e-3, tol=1e-8)
    *larger, _ = ascents
    assert found.error <= 1e-8 and len(larger) == 3
    assert all(row[1] <= row[2] == 1e-8 for row in larger) and found.taken <= 20


@pytest.mark.parametrize("steepness", [3e4, 3e5, 1.5e6])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_steep_costs_between_weights_that_differ(ascents, steepness, alpha):
    """Where an error of 0.1 leads to the next value of eps, a tenth of them takes 1000 iterations in vain.

    Of two parts of the mass that are out of place, a step finds the smaller one last, and at eps it is far away.
    """
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(5, 60, 2)
        C = ((rng.random((n, 1, 2)) - rng.random((1, m, 2))) ** 2).sum(axis=2) if seed % 2 else rng.random((n, m))
        a, b = rng.dirichlet(np.full(n, alpha)), rng.dirichlet(np.full(m, alpha))
        result = cusink.sinkhorn(a, b, C, eps=float(np.ptp(C)) / steepness)
        assert result.converged and result.n_iter <= 200, seed
    larger = [row for row in ascents if row[0] > 2 * min(row[0] for row in ascents)]
    assert max(row[2] for row in larger) <= 100 / steepness


@pytest.mark.parametrize(
    ("name", "eps", "taken"),
    [
        ("two towns", 1e-2, {11}),
        ("shared points", 1e-3, {27, 30}),  # the rounding of BLAS's kernels may decide
        ("tall", 1e-3, {30}),
        ("wide", 1e-4, {45}),
        ("tie", 1e-4, {16}),
    ],
)
def test_how_many_evaluations_it_takes(name, eps, taken):
    found = solved(*hard(name), eps).taken
    assert min(abs(found - count) for count in taken) <= 2


def test_parts_that_hardly_exchange_mass_are_crossed_at_once():
    """Cost 0 or 1: nearly every bin is a part, and what is missing in them differs by orders of magnitude."""
    b, a = np.random.default_rng(0).dirichlet(np.ones(60), 2)
    for eps, most in ((1e-2, 30), (1e-3, 45)):  # made shorter as a whole, steps take 46 and 71
        found = solved(a, b, 1 - np.eye(60), eps)
        assert found.error <= 1e-10 and found.taken <= most


def test_stages_take_no_more_evaluations_than_are_allowed():
    """Parts that exchange no mass: every stage of four takes more than its share, of 184 in all 214 were taken."""
    a, b, C = np.array([0.5, 0.5]), np.array([9.99998000004e-07, 0.999999000002]), np.array([[0.2, 0.8], [0.6, np.inf]])
    for most in (150, 184, 250):
        zero = np.zeros((1, 2))
        found = newton(dense_cost(C), a[None], b[None], 3e-6, (zero, zero), 5e-7, 333333.0, most)
        assert found.taken <= most + OVERSHOOT


def test_one_bin_needs_no_step():
    found = solved(np.array([1.0]), np.array([0.3, 0.7]), np.array([[1.0, 2.0]]), 0.1)
    assert found.error <= 1e-15 and found.taken == 1


def test_what_it_is_worth_in_iterations():
    """Measured on one core: of 100 x 100, a step as 3.8 iterations of a single problem, as 17 of 300 x 300."""
    assert worth(100, 100, ALONE) == pytest.approx(15 * 3.8, rel=0.03)
    assert worth(300, 300, ALONE) == pytest.approx(15 * 17.4, rel=0.03)
    assert worth(100, 100, BATCH) == pytest.approx(15 * 37, rel=0.03)
    assert worth(64, 64, TILE) == pytest.approx(15 * 120, rel=0.1)  # 1.06 us an iteration, 130 us an evaluation
    assert worth(100, 300, ALONE) == worth(300, 100, ALONE) < worth(173, 173, ALONE) * 2
    assert worth(1024, 1024, ALONE) < np.inf == worth(1025, 1024, ALONE)
    # To make a kernel and to finish takes 2.3 ms of 200 x 200, where an iteration takes 72 us.
    assert hand_over(200, 200) == pytest.approx(33, rel=0.03)


def test_how_many_share_an_iteration():
    assert sharing(1, True) == sharing(1, False) == ALONE
    assert sharing(2, True) == sharing(MANY - 1, True) == sharing(10 * MANY, False) == BATCH
    assert sharing(MANY, True) == TILE


# ---- plain iterations first ------------------------------------------------------------------------------------------


def looked(a, b, C, eps, tol=1e-9, max_iter=2000, **options):
    finite = C[np.isfinite(C)]
    how = Options(max_iter=max_iter, tol=tol, **options)
    return first_look(dense_cost(C), a[None], b[None], eps, how, float(np.ptp(finite)) / eps)


def permutation(n=30):
    """Return weights and costs of a cloud and itself in another order."""
    rng = np.random.default_rng(4)
    x = rng.random((n, 2))
    C = ((x[:, None] - rng.permutation(x)[None]) ** 2).sum(axis=2)
    return *np.full((2, n), 1 / n), C / C.max()


@pytest.mark.parametrize(("name", "eps"), [("tall", 1e-2), ("wide", 1e-2), ("two towns", 1e-3)])
def test_ten_plain_iterations_come_first(monkeypatch, name, eps):
    a, b, C = hard(name)
    monkeypatch.setattr("cusink.solver.newton._climbed", lambda dual, point, *_: (point, 1))
    monkeypatch.setattr("cusink.solver.newton.MOST_LOOKED", 10)
    found = looked(a, b, C, eps)
    assert found.taken == 11
    plain = reference.sinkhorn(a, b, C, eps, 11)  # the last half-step gives f, whichever side moves
    np.testing.assert_allclose(found.f[0], plain.f, atol=1e-10)
    np.testing.assert_allclose(found.g[0], plain.g, atol=1e-10)
    np.testing.assert_allclose(plan_of(found, a, b, C, eps).sum(axis=1), a, rtol=1e-11)
    assert found.error == pytest.approx(marginal_error(found, a, b, C, eps), rel=1e-6)


def test_a_problem_that_ends_soon_needs_no_step(monkeypatch):
    monkeypatch.setattr(Semidual, "direction", None)
    a, b, C = permutation()
    found = looked(a, b, C, 0.013, tol=3e-2)
    assert found.error <= 3e-2 and found.taken <= 11
    assert found.cost == pytest.approx((plan_of(found, a, b, C, 0.013) * C).sum(), rel=1e-9)


def test_steps_follow_where_iterations_would_go_on():
    a, b, C = permutation()
    for eps in (1e-2, 1e-3, 6e-4):
        found = looked(a, b, C, eps)
        assert found.error <= 1e-9 and found.taken <= 17
        assert marginal_error(found, a, b, C, eps) <= 1e-9 + 1e-15 / eps
    result = cusink.sinkhorn(a, b, C, eps=1e-3, tol=1e-9)
    assert result.converged and result.n_iter == looked(a, b, C, 1e-3).taken
    assert result.cost == pytest.approx((result.plan() * C).sum(), rel=1e-12)


def test_what_steps_do_not_solve_is_annealed_where_it_is_steep(monkeypatch):
    a, b, C = permutation()
    monkeypatch.setattr("cusink.solver.newton._climbed", lambda dual, point, *_: (point, 1))
    assert 1e-9 < looked(a, b, C, 1 / 1990).error < 1 < looked(a, b, C, 1 / 2010).error == np.inf


@pytest.mark.parametrize(("eps", "far"), [(1e-2, False), (1e-3, True)])
def test_far_from_the_solution_rates_promise_nothing(monkeypatch, eps, far):
    """Beyond 256 eps and an error of 0.1 steps come next, whatever iterations would take by the rate so far."""
    climbed, (a, b, C) = [], hard("tall")
    monkeypatch.setattr("cusink.solver.newton.iterations_left", lambda *_: (np.inf, 0.0))
    monkeypatch.setattr("cusink.solver.newton.hand_over", lambda *_: 0.0)
    monkeypatch.setattr(
        "cusink.solver.newton._climbed", lambda dual, point, *_: climbed.append(dual.error(point)) or (point, 1)
    )
    looked(a, b, C, eps)
    assert [error > FAR for error in climbed] == [True] * far


def test_who_begins_in_another_way():
    a, b, C = permutation()
    assert looked(a, b, C, 1e-3, max_iter=60) is not None
    for given in (
        {"max_iter": 59},
        {"tol": None},
        {"overrelaxation": 1.5},
        {"overrelaxation": None},
        {"method": "log"},
    ):
        assert looked(a, b, C, 1e-3, **given) is None, given
    assert looked(a, b, C, 1 / 74) is None and looked(a, b, C, 1 / 76) is not None  # ordinary costs
    assert looked(a, b, C, 1e-3, tol=-1e-17) is None  # less than rounding leaves
    assert looked(a, b, np.array(C) * 1.9e6, 1.0) is not None
    assert looked(a, b, np.array(C) * 2.1e6, 1.0) is None  # potentials without digits
    big = np.full((2, 340), 1 / 340)
    assert worth(340, 340, ALONE) > 300 and looked(*big, np.random.default_rng(0).random((340, 340)), 1e-3) is None
    with np.errstate(invalid="ignore"):  # a row without a partner
        assert looked(a, b, np.where(np.arange(30) == 3, np.inf, C), 1e-3) is None


@pytest.mark.parametrize(
    ("before", "error", "plain"), [(1e-1, 1e-2, 15.0), (1e-2, 9e-3, 362.0), (1e-2, 1.1e-2, np.inf)]
)
def test_how_many_iterations_are_left(before, error, plain):
    left, relaxed = iterations_left(before, error, 1e-5, 5)
    assert left == pytest.approx(plain, rel=0.2 if plain == 362.0 else 1e-9)
    if np.isfinite(left):
        eta = (error / before) ** 0.2
        best = 2 / (1 + np.sqrt(1 - eta)) - 1  # the rate of over-relaxation by its best factor
        assert best**relaxed == pytest.approx(1e-5 / error, rel=1e-9)
    assert iterations_left(before, 1e-5, 1e-5, 5) == (0, 0)


@pytest.mark.parametrize("side", [0, 1])
def test_bins_without_weight_have_the_potential_of_their_softmin(side):
    a, b, C = permutation()
    weights = a.copy(), b.copy()
    weights[side][:4] = 0
    weights[side][:] /= weights[side].sum()
    found = looked(*weights, C, 1e-2)
    f, g = found.f[0], found.g[0]
    want = reference.softmin(C, f, weights[0], 1e-2, axis=0), reference.softmin(C, g, weights[1], 1e-2, axis=1)
    np.testing.assert_allclose(g[:4], want[0][:4], atol=1e-11)
    np.testing.assert_allclose(f[:4], want[1][:4], atol=1e-9)


def test_masses_that_differ_in_float32_count_as_error():
    a, b, C = permutation()
    a, b = a.astype(np.float32), (b * (1 + 3e-7)).astype(np.float32)
    found = looked(a, b, C.astype(np.float32), 1e-2, tol=1e-5)
    apart = abs(b.sum(dtype=float) / a.sum(dtype=float) - 1)
    assert apart > 1e-7 and found.error >= apart
    plan = plan_of(found, *(x.astype(np.float64) for x in (a, b, C.astype(np.float32))), 1e-2)
    assert np.abs(plan.sum(axis=0) - b).sum() + np.abs(plan.sum(axis=1) - a).sum() <= found.error + 1e-9


@pytest.mark.parametrize("weight", [1e-12, 1e-30, 1e-100, 3e-247])
def test_a_bin_with_hardly_any_weight_has_its_own_potential(weight):
    """All mass is in one bin of the other side, at a cost of 1: so that is the potential, and all of the cost."""
    a, b = np.array([1.0, weight]), np.array([1.0, 0.0])
    C = np.array([[0.0, 1.0], [1.0, 0.0]])
    result = cusink.sinkhorn(a, b, C, eps=0.01)
    assert result.converged and result.f[1] - result.f[0] == pytest.approx(1, abs=1e-12)
    assert result.plan()[1, 0] == pytest.approx(weight, rel=1e-9) and result.cost == pytest.approx(weight, rel=1e-9)
    gradient = cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0).a
    assert gradient[1] - gradient[0] == pytest.approx(1, abs=1e-12)
    other = cusink.sinkhorn(b, a, C, eps=0.01)  # of the side that is updated first, too
    assert other.g[1] - other.g[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", [142, 161])
def test_columns_with_less_weight_than_the_error_have_the_best_potentials(seed):
    rng = np.random.default_rng(seed)
    a, C = np.full(8, 1 / 8), rng.random((8, 5))
    b = np.array([0.4, 0.3, 0.3, 1e-12, 1e-40])
    result = cusink.sinkhorn(a, b, C, eps=0.003, tol=1e-6)
    best = -0.003 * logsumexp(np.log(a)[:, None] + (result.f[:, None] - C) / 0.003, axis=0)
    np.testing.assert_allclose(result.g[3:], best[3:], atol=1e-6)
    np.testing.assert_allclose(result.plan().sum(axis=1), a, rtol=1e-12)


@pytest.mark.parametrize("eps", [1e-3, 7e-4, 1.5e-3])
def test_a_cost_below_what_exponentials_were_cut_off_to_is_that_of_the_plan(eps):
    C = np.array([[0.0, 1.0], [1.0, 0.0]])
    result = cusink.sinkhorn(np.full(2, 0.5), np.full(2, 0.5), C, eps=eps)
    assert result.converged and result.cost == pytest.approx((result.plan() * C).sum(), rel=1e-9, abs=1e-300)


# ---- islands ---------------------------------------------------------------------------------------------------------


def islands(seed, surplus=0.0):
    """Two islands of points on a line; one gets a share `surplus` more than it gives, the other less."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(24) % 2, np.arange(16) % 2
    x, y = rng.random(24), rng.random(16)
    C = np.where(rows[:, None] == columns, 300 * (x[:, None] - y) ** 2, np.inf)
    a, b = rng.random(24), rng.random(16)
    for island in (0, 1):
        a[rows == island] /= 2 * a[rows == island].sum()
        b[columns == island] /= 2 * b[columns == island].sum()
    return a, b * np.where(columns == 0, 1 + surplus, 1 - surplus), C


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("surplus", [1e-12, 1e-9, 4e-7])
def test_masses_of_islands_may_differ_by_rounding(surplus, turned):
    """The difference was a slope without end: up to 1000 iterations in place of some forty."""
    for seed in range(4):
        even, uneven = (islands(seed, d) for d in (0.0, surplus))
        if turned:
            even, uneven = ((b, a, C.T.copy()) for a, b, C in (even, uneven))
        usual = cusink.sinkhorn(*even, eps=1.0, tol=1e-6).n_iter
        a, b, C = uneven
        result = cusink.sinkhorn(a, b, C, eps=1.0, tol=1e-6)
        P = result.plan()
        missed = max(abs(P.sum(axis=1) - a).sum(), abs(P.sum(axis=0) - b).sum())
        assert result.converged and result.n_iter <= usual + 5
        assert missed <= result.error * (1 + 1e-6) <= 1.01e-6
        narrow = cusink.sinkhorn(*(w.astype("f") for w in even), eps=1.0, tol=1e-6)
        assert narrow.converged and narrow.n_iter <= usual + 5


def test_masses_of_islands_that_differ_are_no_solution():
    a, b, C = islands(0, 1e-3)
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, b, C, eps=1.0, tol=1e-6)
    assert not result.converged and result.error >= 0.999e-3


def test_islands_are_evened_out_by_bins_with_weight():
    pairs = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], bool)
    a, b = np.array([0.2, 0.5, 0.0, 0.3]), np.array([0.1, 0.2, 0.2, 0.0, 0.5])
    # The third row, without weight, joins no islands; the last row and the last but one column meet nobody.
    np.testing.assert_allclose(evened(pairs, a, b), [2 / 3, 2 / 3, 5 / 7, 1, 5 / 7])
