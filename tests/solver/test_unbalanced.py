"""Unbalanced transport: an optimum is proved by a plan and potentials of one objective value, whoever found them."""

import re

import numpy as np
import problems
import pytest
import reference
from scipy.optimize import minimize

import cusink
from cusink.solver.unbalanced import marginal_error, over_relaxed

REACHES = [0.05, 0.5, (0.5, 0.1), (0.3, None), (None, 0.3), 30.0, 1e6]


def prices(reach):
    pair = reach if isinstance(reach, tuple) else (reach, reach)
    return [np.inf if rho is None else rho for rho in pair]


def kl(p, q):
    """``sum p log(p / q) - p + q``."""
    carried = p > 0
    return (p[carried] * np.log(p[carried] / q[carried])).sum() - p.sum() + q.sum()


def primal(P, a, b, C, eps, reach):
    """Return the objective of a plan from its definition; where a marginal is to be met its price is left out."""
    value = reference.transport_cost(P, C) + (eps * kl(P, np.outer(a, b)) if eps else 0)
    for rho, marginal, weights in zip(prices(reach), (P.sum(axis=1), P.sum(axis=0)), (a, b), strict=True):
        value += rho * kl(marginal, weights) if rho < np.inf else 0
    return value


def dual(f, g, a, b, C, eps, reach):
    """Return a lower bound of the objective over all plans."""
    value = -eps * (reference.plan(a, b, C, eps, f, g).sum() - a.sum() * b.sum())
    for rho, weights, potential in zip(prices(reach), (a, b), (f, g), strict=True):
        value += (weights * (potential if rho == np.inf else rho * -np.expm1(-potential / rho))).sum()
    return value


def drawn(B=3, n=12, m=17, mass=1.7, zeros=0.3):
    rng = np.random.default_rng(5)
    a, b = problems.histograms(rng, B, n, zeros), problems.histograms(rng, B, m, zeros, mass)
    return a, b, problems.line_cost(n, m)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("eps", [0.1, 0.003])
def test_plan_and_potentials_prove_each_other_optimal(eps, reach):
    a, b, C = drawn()
    result = cusink.sinkhorn(a, b, C, eps=eps, reach=reach, tol=1e-11, max_iter=5000)
    assert result.converged.all()
    plans, scale = result.plan(), max(1, min(1e6, *prices(reach)))
    for k, P in enumerate(plans):
        value = primal(P, a[k], b[k], C, eps, reach)
        # A potential is known to the rounding of the price, of which the objective takes differences.
        lower = dual(result.f[k], result.g[k], a[k], b[k], C, eps, reach)
        assert abs(value - lower) <= 1e-9 + 1e-15 * scale * 20
        assert abs(result.reg_cost[k] - value) <= 1e-11 + 1e-15 * scale
        assert abs(result.cost[k] - (P * C).sum()) <= 1e-14
        assert abs(result.entropic_cost[k] - ((P * C).sum() - eps * reference.entropy(P))) <= 1e-10
        for rho, marginal, weights in zip(prices(reach), (P.sum(axis=1), P.sum(axis=0)), (a[k], b[k]), strict=True):
            if rho == np.inf:
                np.testing.assert_allclose(marginal, weights, rtol=0, atol=2e-11)


@pytest.mark.parametrize("reach", [0.2, (0.4, None)])
def test_float32_is_float64_to_rounding(reach):
    a, b, C = drawn()
    wide = cusink.sinkhorn(a, b, C, eps=0.02, reach=reach, tol=1e-10)
    narrow = cusink.sinkhorn(*(x.astype(np.float32) for x in (a, b, C)), eps=0.02, reach=reach, tol=1e-5)
    assert narrow.converged.all() and narrow.f.dtype == np.float32
    for name in ("cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(narrow, name), getattr(wide, name), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(narrow.plan(), wide.plan(), rtol=0, atol=2e-6)


def test_float32_loses_nothing_to_a_large_reach():
    """The potentials are as large as the reach, and their sum is not: the plan must not come from their difference."""
    a, b, C = (x.astype(np.float32) for x in drawn())
    result = cusink.sinkhorn(a, b, C, eps=0.02, reach=1e5, tol=1e-5)
    assert result.converged.all() and np.abs(result.f).max() > 1e4
    ratio = b.sum(axis=1) / a.sum(axis=1)
    np.testing.assert_allclose(result.plan().sum(axis=2), a * np.sqrt(ratio)[:, None], rtol=0, atol=2e-5)


def smallest(a, b, C, eps, reach):
    """Return the least objective that SciPy finds over plans that are squares, and the plan."""

    def objective(roots):
        P = roots.reshape(C.shape) ** 2
        slope = C + (eps * np.log(P / np.outer(a, b)) if eps else 0)
        for k, rho in enumerate(prices(reach)):
            marginal = P.sum(axis=1 - k) / (a, b)[k]
            slope = slope + rho * np.expand_dims(np.log(marginal), 1 - k)
        return primal(P, a, b, C, eps, reach), (2 * roots.reshape(C.shape) * slope).ravel()

    start = np.sqrt(np.outer(a, b)).ravel()
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 2000})
    return found.fun, found.x.reshape(C.shape) ** 2


def test_scipy_finds_no_better_plan():
    a, b, C = (x[0] if len(x) == 1 else x for x in drawn(B=1, n=4, m=5, zeros=0))
    for reach in (0.1, (0.4, 0.05)):
        result = cusink.sinkhorn(a, b, C, eps=0.1, reach=reach, tol=1e-12)
        value, plan = smallest(a, b, C, 0.1, reach)
        assert abs(value - result.reg_cost) <= 1e-10
        np.testing.assert_allclose(plan, result.plan(), rtol=0, atol=1e-6)


def test_a_large_reach_is_balanced_transport_and_no_reach_is_too():
    a, b, C = drawn(mass=1.0)
    balanced = cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-11)
    for name in ("f", "g", "cost"):
        values = getattr(cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-11, reach=(None, None)), name)
        np.testing.assert_array_equal(values, getattr(balanced, name))
    off = []
    for reach in (1e3, 1e6):
        result = cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-11, reach=reach)
        assert (result.n_iter <= balanced.n_iter + 10).all()  # the direction that a large reach leaves slow is solved
        plans, values = result.plan() - balanced.plan(), result.reg_cost - balanced.reg_cost
        off.append(max(np.abs(plans).max(), np.abs(values).max()))
    assert off[0] <= 1e-3 and off[1] <= 2e-3 * off[0]


def test_the_three_values_scale_as_stated_with_another_mass():
    """The balanced limit of the objective has ``sum a sum b - sum P``, which for a mass M is ``M**2 - M``."""
    a, b, C = drawn(mass=1.0)
    balanced = cusink.sinkhorn(3 * a, 3 * b, C, eps=0.05, tol=1e-11)
    result = cusink.sinkhorn(3 * a, 3 * b, C, eps=0.05, tol=1e-11, reach=1e7)
    np.testing.assert_allclose(result.reg_cost, balanced.reg_cost + 0.05 * 6, atol=1e-6)


@pytest.mark.parametrize("reach", [0.3, (None, 0.2)])
def test_options_change_the_way_and_not_the_answer(reach):
    a, b, C = drawn()
    ways = [{}, {"method": "log"}, {"overrelaxation": None}, {"overrelaxation": 1.9}, {"check_every": 3}]
    plans = [cusink.sinkhorn(a, b, C, eps=0.01, reach=reach, tol=1e-10, max_iter=3000, **way).plan() for way in ways]
    for plan in plans[1:]:
        np.testing.assert_allclose(plan, plans[0], rtol=0, atol=1e-10)
    solved = cusink.sinkhorn(a, b, C, eps=0.01, reach=reach, tol=1e-10)
    again = cusink.sinkhorn(a, b, C, eps=0.01, reach=reach, tol=1e-9, init=(solved.f, solved.g))
    assert (again.n_iter == 1).all()


def test_batch_is_its_problems_and_each_stops_by_itself():
    rng = np.random.default_rng(2)
    a, b = problems.histograms(rng, 4, 9), problems.histograms(rng, 4, 11, mass=0.5)
    clouds = rng.random((4, 9, 2)), rng.random((4, 11, 2))
    C = cusink.PointCloud(*clouds)
    result = cusink.sinkhorn(a, b, C, eps=0.005, reach=0.2, check_every=1)
    dense = cusink.sinkhorn(a, b, C.dense(), eps=0.005, reach=0.2, check_every=1)
    assert len(set(result.n_iter)) > 1
    np.testing.assert_allclose(result.cost, dense.cost, rtol=1e-9)
    for k in range(4):
        one = cusink.sinkhorn(a[k], b[k], C.dense()[k], eps=0.005, reach=0.2, check_every=1)
        assert one.n_iter == dense.n_iter[k]
        np.testing.assert_allclose(one.plan(), dense.plan()[k], rtol=0, atol=1e-12)


def test_both_libraries(xp):
    a, b, C = drawn()
    result = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=0.05, reach=(0.2, None))
    assert xp.owns(result.f) and xp.owns(result.bounds()[0])
    best = cusink.sinkhorn(a, b, C, eps=0.05, reach=(0.2, None))
    np.testing.assert_allclose(xp.numpy(result.plan()), best.plan(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(xp.numpy(result.reg_cost), best.reg_cost, rtol=1e-10)


def test_empty_bins_and_forbidden_pairs():
    """An empty bin has the potential of its own softmin; one that nothing may reach has any finite one, and no mass."""
    a, b, C = np.array([0.5, 0.0, 0.7, 0.0]), np.array([0.3, 0.0, 0.4]), problems.line_cost(4, 3).copy()
    C[3], C[0, 2] = np.inf, np.inf
    eps, rho = 0.1, 0.4
    result = cusink.sinkhorn(a, b, C, eps=eps, reach=rho, tol=1e-12)
    assert np.isfinite(result.f).all()
    image = reference.softmin(C[:3], result.g, b, eps, axis=1)
    np.testing.assert_allclose(result.f[:3], rho / (rho + eps) * image, rtol=0, atol=1e-12)
    image = reference.softmin(C, result.f, a, eps, axis=0)
    np.testing.assert_allclose(result.g, rho / (rho + eps) * image, rtol=0, atol=1e-10)
    for unreachable in (result, cusink.sinkhorn(a, b * a.sum() / b.sum(), C, eps=eps)):
        assert unreachable.plan()[3].max() == 0 and np.isfinite(unreachable.plan()).all()
        lower, upper = unreachable.bounds()  # inf, where mass is missing that a forbidden pair would have to take
        assert np.isfinite(lower) and upper >= lower


def test_bounds_enclose_the_problem_without_entropy():
    a, b, C = (x[0] if len(x) == 1 else x for x in drawn(B=1, n=4, m=5, zeros=0))
    for reach in (0.1, 2.0):
        best, _ = smallest(a, b, C, 0, reach)
        loose, tight = (cusink.sinkhorn(a, b, C, eps=eps, reach=reach, max_iter=5000) for eps in (0.1, 1e-3))
        for result, width in ((loose, 0.2), (tight, 2e-3)):
            lower, upper = result.bounds()
            assert lower <= best + 1e-7 and best <= upper + 1e-7 and upper - lower <= width
        # Wider than the plan's own cost by what rounding may do to its entries, and by no more.
        wider = tight.bounds()[1] - primal(tight.plan(), a, b, C, 0, reach)
        assert 0 <= wider <= 3 * tight.problem.rounding()[0]
    for reach in ((None, 0.1), (0.1, None)):
        lower, upper = cusink.sinkhorn(a, b, C, eps=1e-3, reach=reach, max_iter=5000).bounds()
        assert 0 <= upper - lower <= 2e-3


def test_over_relaxation_never_lowers_the_dual_objective():
    """Per entry: ``-rho a exp(-f / rho) - eps p exp((f - old) / eps)`` with its maximum at `plain`."""
    rng = np.random.default_rng(0)
    old, plain = rng.normal(size=(2, 1, 200)) * 10.0 ** rng.uniform(-3, 1, (2, 1, 200))
    for eps, rho in ((1.0, 1e-3), (1.0, 0.3), (1.0, 1e3), (0.1, np.inf)):
        for omega in (1.2, 1.97):
            new = over_relaxed(np, old, plain, np.array([[omega - 1]]), eps, rho)
            ahead = np.abs(plain - old) < 1e-3 * min(eps, rho)
            expected = (old + omega * (plain - old))[ahead]
            np.testing.assert_allclose(new[ahead], expected, rtol=0, atol=1e-6 * min(eps, rho))

            def gain(f, old=old, plain=plain, eps=eps, rho=rho):
                """Change of the objective over eps p, where p makes it stationary at `plain`."""
                up = (f - old) / eps
                if rho == np.inf:
                    return np.exp((plain - old) / eps) * up - np.expm1(up)
                at_plain = np.exp((plain - old) * (1 / eps + 1 / rho))
                return -rho / eps * at_plain * np.expm1(-(f - old) / rho) - np.expm1(up)

            with np.errstate(over="ignore", invalid="ignore"):
                gained, most = gain(new), gain(plain)
            known = np.isfinite(gained) & np.isfinite(most)
            assert known.sum() > 50
            assert (gained[known] >= -1e-9 * np.abs(most[known])).all()


BAD = [
    ({"reach": "far"}, TypeError, "'reach' must be a positive number in the unit of 'C', None, or a pair"),
    ({"reach": True}, TypeError, "got bool"),
    ({"reach": 0}, ValueError, "got 0"),
    ({"reach": -1.0}, ValueError, "got -1.0"),
    ({"reach": float("nan")}, ValueError, "got nan"),
    ({"reach": (1.0, 2.0, 3.0)}, ValueError, "got 3 values"),
    ({"reach": 1.0, "method": "scaling"}, ValueError, "'method' must be 'auto' or 'log'"),
    ({}, ValueError, "'reach' lets mass appear and vanish at a price"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    a, b, C = drawn()
    with pytest.raises(error, match=re.escape(message)):
        cusink.sinkhorn(a, b, C, eps=0.1, **options)


def test_an_error_holds_mass_where_none_should_be():
    """A column whose marginal is ``exp(-2e6)`` and whose plan is not: both far below the range of a ratio."""
    a, b = np.array([0.13580246, 0.12345679]), np.array([1.5, 0.5])
    C = np.array([[20367888.0, 0.960271], [20367888.0, 20367888.0]])
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, b, C, eps=5.78e-06, reach=(None, 4.7), max_iter=300)
    wanted = b * np.exp(-result.g / 4.7)
    off = abs(result.plan().sum(axis=0) - wanted).sum() / wanted.sum()
    assert off > 0.5
    assert result.error == pytest.approx(off, rel=1e-2)


def test_an_error_beyond_all_numbers_lets_the_iteration_go_on():
    """Beside costs of 2e10 eps the first plans are out of the range of exp; the last one is not."""
    a, b = np.ones(2), np.array([1.0, 1.0, 2e-18])
    C = np.array([[2e10, 2e10, 1.0], [0.7, 2e10, 0.3]])
    with pytest.warns(cusink.ConvergenceWarning, match="rounding of float64"):
        result = cusink.sinkhorn(a, b, C, eps=0.9, reach=2.5)
    expected = cusink.sinkhorn(a, b, np.where(C > 1e9, np.inf, C), eps=0.9, reach=2.5)
    assert result.error < 1e-4 and expected.converged
    assert result.reg_cost == pytest.approx(expected.reg_cost, rel=1e-4)


@pytest.mark.filterwarnings("error")
def test_a_marginal_beyond_all_numbers_beside_the_mass_lets_the_iteration_go_on():
    """After a level of annealing a plan was more than 1e308 times its marginal: the iteration ended there."""
    b, cloud = np.array([1e-188, 1.0]), cusink.PointCloud([[1.0, 0.5], [0.0, 800.0]], [[0.0, 0.0], [11.0, 11.0]])
    looked = [cusink.sinkhorn(np.ones(2), b, cloud, eps=0.1, reach=0.4, check_every=every) for every in (1, 10)]
    assert all(found.converged for found in looked)
    np.testing.assert_allclose(looked[0].f, looked[1].f, rtol=1e-7)
    assert looked[0].n_iter <= 2 * 8 + 10  # plain iterations take 8
    potential = np.array([[0.0, 1000.0]])
    error = marginal_error(np, np.array([[1e-200, 1.0]]), potential, potential - 100, np.zeros((1, 1)), 0.1, 0.4)
    assert 1e100 < error[0] < np.inf


def test_plans_out_of_the_range_on_the_way_are_not_warned_of():
    cloud = cusink.PointCloud([0.6, 0.0], [0.7, 200.0], power=2)
    found = cusink.sinkhorn(None, None, cloud, eps=0.1, reach=0.2, check_every=3, tol=1e-4)
    assert found.converged and found.cost < 0.1


@pytest.mark.parametrize("kind", ["dense", "grid", "points"])
def test_the_cost_in_float32_is_that_of_the_plan(kind):
    """Logits of 77 in float32 are off by 4e-6 each; the cost was off by 3e-5 where the error was 5e-6."""
    C = {
        "dense": np.array([[0.0, 1.0], [1.0, 0.0]], "f4"),
        "grid": cusink.Grid((1, 1, 2)),
        "points": cusink.PointCloud(np.array([[0.0], [1.0]], "f4")),
    }[kind]
    a, b = np.array([0.15138267, 0.8486173], "f4"), np.array([0.0, 1.0], "f4")
    found = cusink.sinkhorn(a, b, C, eps=0.013, reach=1.0)
    assert found.cost.dtype == np.float32 and found.error < 1e-5
    P = found.plan().astype(float)
    assert abs(found.cost - P[0, 1]) <= 2e-7 * P[0, 1]


def test_a_start_with_a_large_potential_of_an_empty_bin_keeps_its_digits():
    """The shift of a start was the mean over all bins: 5e7 for a bin 1e4 away, beside which nothing converged."""
    a, b, C = np.array([0.2]), np.array([0.4, 0.0]), cusink.cost_matrix(np.array([0.1]), np.array([1.0, 1e4]))
    first = cusink.sinkhorn(a, b, C, eps=0.02, reach=1.6)
    again = cusink.sinkhorn(a, b, C, eps=0.02, reach=1.6, init=(first.f, first.g))
    assert again.converged and again.n_iter == 1 and again.error < 1e-12


def test_a_bin_far_away_takes_no_digits_from_the_others():
    """The shift of a start was half of the mean potential, 3e7 here: the error was more than the one claimed."""
    C = np.array([[0.9], [1.1e10]])
    found = cusink.sinkhorn(np.ones(2), np.array([2.0]), C, eps=1.0, reach=0.01)
    f, g = found.problem.f[0], found.problem.g[0]
    assert found.converged and abs(f[0]) < 1 and abs(g[0]) < 1
    off = found.plan().sum(axis=0) - 2 * np.exp(-found.g / 0.01)
    assert abs(off[0]) <= found.error * found.plan().sum()


@pytest.mark.parametrize("of_points", [False, True])
def test_the_error_of_float32_counts_what_its_logits_lost(of_points):
    """Logits of 300 have few digits in float32: plans were off by twice the error that was reported."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, far = (rng.uniform(low, low + 5, (1, 2)).astype(np.float32) for low in (0, 20))
        y = np.concatenate([far, x + np.float32(2)])
        C = np.sqrt(((x.astype(float)[:, None] - y) ** 2).sum(axis=-1))
        cost = cusink.PointCloud(x, y, power=0.5) if of_points else C.astype(np.float32)
        a, b = np.ones(1, np.float32), np.array([1, 0], np.float32)
        found = cusink.sinkhorn(a, b, cost, eps=0.1, tol=1e-3, reach=2.7)
        wanted = np.exp(-float(found.g[0]) / 2.7)
        assert abs(float(found.plan().sum()) / wanted - 1) <= found.error, seed
