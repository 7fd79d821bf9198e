"""The three values of a result, the certified bounds on the exact cost, and POT's second opinion."""

import dataclasses
import functools
import warnings

import numpy as np
import problems
import pytest
import reference

import cusink

named = {"ids": str}
BY_NAME = {p.name: p for p in problems.KNOWN + problems.HARD}


def solve(xp, p, dtype=np.float64, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        return cusink.sinkhorn(xp(p.a, dtype), xp(p.b, dtype), xp(p.C, dtype), eps=p.eps, **options)


def triples(p, dtype=np.float64):
    """Yield the problems of a batch, rounded to dtype and back."""
    return reference.each(lambda *one: one, *(np.asarray(x, dtype).astype(np.float64) for x in (p.a, p.b, p.C)))


@functools.cache
def optima(p):
    return np.array(reference.each(reference.optimum, p.a, p.b, p.C, p.eps))


@functools.cache
def exact_costs(p, dtype):
    return np.array([reference.exact_cost(*one) for one in triples(p, dtype)])


def scale_of(p):
    """Return the most that a value can be: all the mass at the largest cost, or spread over all bins."""
    entropy = np.log(p.C.shape[-1] * p.C.shape[-2])
    return float(p.a.sum(axis=-1).max() * (np.abs(p.C[np.isfinite(p.C)]).max() + p.eps * (entropy + 1)))


# The three values


@pytest.mark.parametrize("p", problems.HARD, **named)
def test_each_value_is_that_of_the_plan_by_its_definition(xp, p):
    result = solve(xp, p, tol=1e-12, max_iter=20_000)
    plans = np.asarray(xp.numpy(result.plan())).reshape(-1, *p.C.shape[-2:])
    want = np.array([reference.values(P, *one, p.eps) for P, one in zip(plans, triples(p), strict=True)])
    error = np.atleast_1d(xp.numpy(result.error))
    potential = max(np.abs(xp.numpy(result.f)).max(), np.abs(xp.numpy(result.g)).max())
    # At the optimum <a, f> + <b, g> is the primal value; off it they differ by <P'1 - b, g>.
    tolerance = 1e-11 * scale_of(p) + 2 * error * potential * p.a.sum(axis=-1).max()
    for k, name in enumerate(("cost", "reg_cost", "entropic_cost")):
        found = np.atleast_1d(xp.numpy(getattr(result, name)))
        assert (np.abs(found - want[:, k]) <= tolerance).all(), name


@pytest.mark.parametrize("max_iter", [1, 10])
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_cost_belongs_to_the_plan_that_is_returned(xp, p, max_iter):
    """Also where the iteration is far from its end."""
    result = solve(xp, p, tol=None, max_iter=max_iter)
    plans = np.asarray(xp.numpy(result.plan())).reshape(-1, *p.C.shape[-2:])
    want = [reference.transport_cost(P, C) for P, (_, _, C) in zip(plans, triples(p), strict=True)]
    np.testing.assert_allclose(np.atleast_1d(xp.numpy(result.cost)), want, rtol=1e-10, atol=1e-12 * scale_of(p))


@pytest.mark.parametrize("max_iter", [1, 10, 300])
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_values_differ_by_the_entropies_of_the_weights(xp, p, max_iter):
    result = solve(xp, p, tol=None, max_iter=max_iter)
    entropies = np.array([reference.entropy(a) + reference.entropy(b) for a, b, _ in triples(p)])
    found = np.atleast_1d(xp.numpy(result.reg_cost)) - np.atleast_1d(xp.numpy(result.entropic_cost))
    np.testing.assert_allclose(found, p.eps * entropies, rtol=1e-12, atol=1e-13 * scale_of(p))


@pytest.mark.parametrize("max_iter", [1, 10, 300])
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_reg_cost_is_the_dual_value_of_the_potentials(xp, p, max_iter):
    """<a, f> + <b, g>, and so, after an f-update, a lower bound on the optimum."""
    result = solve(xp, p, tol=None, max_iter=max_iter)
    f, g = (np.atleast_2d(xp.numpy(x)) for x in (result.f, result.g))
    dual = [float(a @ f[k] + b @ g[k]) for k, (a, b, _) in enumerate(triples(p))]
    found = np.atleast_1d(xp.numpy(result.reg_cost))
    np.testing.assert_allclose(found, dual, rtol=1e-12, atol=1e-13 * scale_of(p))
    best = optima(p)[:, 1]
    assert (found <= best + 1e-9 * scale_of(p)).all()


def test_gaussians_have_their_closed_form(xp):
    p = problems.gaussians(eps=0.2)
    result = solve(xp, p, tol=1e-11, max_iter=5000)
    assert float(result.cost) == pytest.approx(p.known["cost"], rel=1e-9)
    assert float(result.reg_cost) == pytest.approx(p.known["reg_cost"], rel=1e-9)


def test_reg_cost_has_the_derivative_that_the_envelope_theorem_states(xp):
    """``d reg_cost / d eps = KL(P | a x b)``, by centred differences: the value and the plan belong together."""
    p = BY_NAME["one problem, no batch axis"]
    result = solve(xp, p, tol=1e-13, max_iter=20_000)
    step = 1e-4 * p.eps
    up, down = (solve(xp, dataclasses.replace(p, eps=p.eps + s), tol=1e-13, max_iter=20_000) for s in (step, -step))
    slope = (float(up.reg_cost) - float(down.reg_cost)) / (2 * step)
    assert slope == pytest.approx(reference.kl_to_product(xp.numpy(result.plan()), p.a, p.b), rel=1e-6)


# Certified bounds on the exact cost


@pytest.mark.parametrize("max_iter", [1, 5, 500])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_bounds_hold_the_exact_cost(xp, p, dtype, max_iter):
    """However far the iteration has come, up to rounding in the dtype of the bounds."""
    result = solve(xp, p, dtype, tol=None, max_iter=max_iter)
    lower, upper = (np.atleast_1d(xp.numpy(x)) for x in result.bounds())
    assert not (np.isnan(lower).any() or np.isnan(upper).any())
    exact = exact_costs(p, dtype)
    rounding = (8 * np.finfo(dtype).eps + 1e-9) * scale_of(p)
    assert (lower <= exact + rounding).all()
    assert (upper >= exact - rounding).all()
    assert (lower <= upper + rounding).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(80))
def test_bounds_hold_the_exact_cost_of_problems_drawn_at_random(xp, seed, dtype):
    p = problems.drawn(seed)
    result = solve(xp, p, dtype, tol=1e-4, max_iter=(1, 20, 150)[seed % 3])
    lower, upper = (xp.numpy(x).astype(float) for x in result.bounds())
    exact = np.array([reference.exact_cost(*one) for one in triples(p, dtype)])
    slack = (8 * np.finfo(dtype).eps + 1e-9) * p.a.sum(axis=1) * np.abs(p.C).max()
    assert (lower <= exact + slack).all()
    assert (upper >= exact - slack).all()


@pytest.mark.parametrize("p", [p for p in problems.HARD if np.isfinite(p.C).all()], **named)
def test_bounds_enclose_what_convergence_promises(xp, p):
    result = solve(xp, p, tol=1e-10, max_iter=50_000)
    lower, upper = (np.atleast_1d(xp.numpy(x)) for x in result.bounds())
    cost = np.atleast_1d(xp.numpy(result.cost))
    rounding = 1e-8 * scale_of(p)
    assert (lower <= cost + rounding).all()
    # The rounded plan is the plan itself but for its marginal error.
    np.testing.assert_allclose(upper, cost, rtol=0, atol=rounding)
    # A feasible dual is one c-transform away from the potentials: the bound is no worse than the worse of the two.
    for k, (a, b, C) in enumerate(triples(p)):
        f, g = (np.atleast_2d(xp.numpy(x))[k] for x in (result.f, result.g))
        from_f = a @ f + b @ (C - f[:, None]).min(axis=0)
        from_g = b @ g + a @ (C - g).min(axis=1)
        assert lower[k] >= min(from_f, from_g) - rounding


def test_bounds_tighten_as_eps_falls(xp):
    p = BY_NAME["n < m, shared cost"]
    gaps = []
    for eps in (0.3, 0.1, 0.03, 0.01, 0.003):
        lower, upper = solve(xp, dataclasses.replace(p, eps=eps), tol=1e-7, max_iter=50_000).bounds()
        gaps.append(xp.numpy(upper) - xp.numpy(lower))
    assert (np.diff(gaps, axis=0) < 0).all()
    assert (gaps[-1] < 0.05 * gaps[0]).all()


def test_bounds_are_finite_with_forbidden_pairs_and_equal_marginals(xp):
    """Two islands: the lower bound reaches the exact cost of a problem whose optimal plan is known."""
    p = problems.separated(eps=0.005)
    lower, upper = solve(xp, p, tol=1e-12, max_iter=20_000).bounds()
    exact = reference.exact_cost(p.a, p.b, p.C)
    assert float(lower) == pytest.approx(exact, abs=0.05)
    assert float(lower) <= exact + 1e-12
    assert float(upper) >= exact - 1e-12


def test_bounds_of_equal_histograms_start_at_zero(xp):
    weights = problems.histograms(np.random.default_rng(0), 4, 12)
    lower, upper = cusink.sinkhorn(
        xp(weights), xp(weights), xp(problems.line_cost(12)), eps=0.01, max_iter=20_000
    ).bounds()
    assert (xp.numpy(lower) <= 1e-12).all() and (xp.numpy(upper) >= 0).all()


# POT


def pot_cases():
    rng = np.random.default_rng(42)
    for n, m, eps in ((15, 15, 0.1), (20, 33, 0.05), (40, 12, 0.02)):
        a, b = problems.histograms(rng, 1, n)[0], problems.histograms(rng, 1, m)[0]
        yield a, b, rng.random((n, m)), eps


@pytest.mark.parametrize(("a", "b", "C", "eps"), list(pot_cases()), ids=["n = m", "n < m", "n > m"])
def test_pot_agrees(a, b, C, eps):
    ot = pytest.importorskip("ot")  # a second opinion only
    result = cusink.sinkhorn(a, b, C, eps=eps, tol=1e-11, max_iter=20_000)
    plan = ot.sinkhorn(a, b, C, eps, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    np.testing.assert_allclose(result.plan(), plan, rtol=0, atol=1e-10)
    cost = ot.sinkhorn2(a, b, C, eps, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    assert float(result.cost) == pytest.approx(float(cost), rel=1e-8)
    lower, upper = result.bounds()
    assert lower <= ot.emd2(a, b, C) <= upper


def test_pot_agrees_on_exact_costs():
    """The oracle's linear programme and POT's network simplex are two programs: the lower bound rests on both."""
    ot = pytest.importorskip("ot")  # a second opinion only
    for a, b, C, _ in pot_cases():
        assert reference.exact_cost(a, b, C) == pytest.approx(ot.emd2(a, b, C), abs=1e-10)


def test_products_with_the_plan_of_half_precision_take_and_give_half_precision():
    rng = np.random.default_rng(8)
    a, b, C = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4)), rng.random((5, 4))
    a, b, C = (x.astype(np.float16) for x in (a, b, C))
    result = cusink.sinkhorn(a / a.sum(), b / b.sum(), C, eps=0.5, check=False)
    product = result.apply(result.g, axis=1)
    assert product.dtype == np.float16
    expected = result.plan().astype(float) @ result.g.astype(float)
    np.testing.assert_allclose(product, expected, atol=2e-3)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # at the smallest eps the error owns up to rounding
@pytest.mark.parametrize("eps", [1e-4, 1e-7, 1e-10])
def test_bounds_enclose_the_cost_where_rounding_of_the_plan_is_all_there_is(eps):
    """One source bin: every plan is the same, and its cost is known."""
    rng = np.random.default_rng(9)
    for _ in range(20):
        C, b = 1 + rng.random((1, 9)), rng.dirichlet(np.ones(9))
        lower, upper = cusink.sinkhorn(b.sum(keepdims=True), b, C, eps=eps).bounds()
        assert lower <= float(b @ C[0]) <= upper


def test_what_half_precision_cannot_hold_is_said_once_and_plainly():
    ends = np.eye(300, dtype=np.float16)[[0, -1]]
    with pytest.warns(RuntimeWarning, match="exceeds the range of float16 and is infinite there. Pass float32"):
        assert np.isposinf(cusink.sinkhorn(*ends, cusink.Grid(300), eps=100.0).cost)
    with pytest.warns(RuntimeWarning, match="float16"):
        assert np.isposinf(cusink.distance_matrix(ends, None, cusink.Grid(300), eps=100.0)[0, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["shared", "own", "one", "points", "own points"])
def test_a_cost_near_the_smallest_number_is_that_of_the_plan(kind, dtype):
    """A pair that carries next to nothing is then all that costs anything."""
    info = np.finfo(dtype)
    for exponent in (0.8, 0.99, 1.02, 1.1):  # of the smallest normal number; above 1 with fewer digits
        distance = -exponent * np.log(float(info.tiny))
        C, a = np.array([[0, distance], [distance, 0]], dtype), np.array([[0.45, 0.55], [0.5, 0.5]], dtype)
        x = np.array([[0], [np.sqrt(distance)]], dtype)
        costs = {
            "own": np.stack([C, C]),
            "points": cusink.PointCloud(x),
            "own points": cusink.PointCloud(np.stack([x, x])),
        }
        a = a[0] if kind == "one" else a
        found = cusink.sinkhorn(a, a, costs.get(kind, C), eps=1.0, tol=1e-3)
        exponents = found.f[..., :, None].astype(np.float64) + found.g[..., None, :] - C
        exact = (a[..., :, None] * np.exp(exponents) * a[..., None, :] * C).sum(axis=(-2, -1))
        np.testing.assert_allclose(found.cost, exact, rtol=1e-3, atol=8 * float(info.smallest_subnormal) * distance)


def test_values_without_a_digit_stay_numbers_in_float32():
    """A pair 1e20 eps away among near ones: the plan has no digits, the error says so, and nothing is infinite."""
    a, b = np.array([[0.3, 0.2, 0.5]] * 2, np.float32), np.ones((2, 1), np.float32)
    x = np.array([[0.4764324, 0.069311544], [1.0, 0.0], [71804.62, 71804.62]], np.float32)
    costs = cusink.PointCloud(x, x[2:], "sqeuclidean", power=2.0)
    with pytest.warns(cusink.ConvergenceWarning):
        found = cusink.sinkhorn(a, b, costs, eps=0.491)
    assert not found.converged.any() and found.cost.dtype == np.float32
    assert all(np.isfinite(value).all() for value in (found.cost, found.reg_cost, found.entropic_cost, found.error))


@pytest.mark.parametrize("method", ["auto", "scaling", "log"])
@pytest.mark.parametrize("constant", [1e6, 1e12, 1e16, 1e20, 1e300, 1.7e308])
def test_a_constant_in_a_start_changes_nothing(method, constant):
    C, a, b = np.array([[0.0, 1.0], [1.0, 0.0]]), [0.5, 0.5], [0.3, 0.7]
    start = np.full(2, constant), np.full(2, -constant)
    found = cusink.sinkhorn(a, b, C, eps=1.0, init=start, method=method)
    cold = cusink.sinkhorn(a, b, C, eps=1.0, method=method)
    assert found.converged and abs(found.plan().sum(axis=0) - b).sum() <= found.error <= 1e-6
    np.testing.assert_allclose(found.f, cold.f, atol=1e-5)
    np.testing.assert_allclose(found.reg_cost, cold.reg_cost, atol=1e-6)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
@pytest.mark.parametrize("size", [1e3, 1e8, 1e12, 1e20, 1e300])
def test_errors_after_starts_of_any_size_are_those_of_the_plan(size):
    rng = np.random.default_rng(0)
    a, b, C = rng.dirichlet(np.ones(5), 4), rng.dirichlet(np.ones(6), 4), rng.random((5, 6))
    found = cusink.sinkhorn(a, b, C, eps=0.1, init=(size * rng.normal(size=(4, 5)), size * rng.normal(size=(4, 6))))
    missed = abs(found.plan().sum(axis=1) - b).sum(axis=1) + abs(found.plan().sum(axis=2) - a).sum(axis=1)
    assert (missed <= found.error + 1e-12).all()
    assert (found.error[found.converged] <= 1e-6).all()


@pytest.mark.parametrize("side", ["f", "g"])
@pytest.mark.parametrize("size", [1e12, 1e17, 1e200, 1e300])
def test_errors_of_potentials_that_are_brought_are_those_of_the_plan(side, size):
    C, a, b = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.5, 0.5]), np.array([0.3, 0.7])
    for potential in (np.full(2, size), np.array([0.2, -0.1]) + size, np.array([size, -size])):
        found = cusink.SinkhornResult.from_potentials(a, b, C, eps=1.0, **{side: potential})
        assert abs(found.plan().sum(axis=0) - b).sum() <= found.error + 1e-12
        assert not found.converged
        assert np.isfinite([found.cost, found.reg_cost, *found.bounds()]).all()
