"""When problems stop: never late, never unconverged below the tolerance, and with advice that helps."""

import numpy as np
import pytest
import reference
from truth.claims import assert_claims_hold, assert_values, attempt, iterations_by_halving

import cusink

METHODS = ["auto", "log", "scaling"]


def points_cost(x, y=None):
    y = x if y is None else y
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return C / C.max()


# P: an error below the tolerance is convergence.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("check_every", [1, 2, 10])
def test_below_the_tolerance_is_converged(check_every, method):
    a, b, C = np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([[0, 0], [0, 8.0]])
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.02, check_every=check_every, method=method)
    assert_claims_hold(outcome.result, a, b, C, 0.02, flags=outcome.flags)
    assert_values(outcome, 1e-6, cost=4.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_start_at_the_solution_is_converged(dtype, method):
    a, b, C = (np.asarray(x, dtype) for x in ([0.5, 0.5], [0.0, 1.0], [[0, 0], [0, 8.0]]))
    first = attempt(cusink.sinkhorn, a, b, C, eps=0.02, method=method).result
    for moved in (0, 1e-9, 1e-5):
        init = (first.f, (first.g + np.asarray([moved, 0], dtype)).astype(dtype))
        outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.02, init=init, method=method)
        assert_claims_hold(outcome.result, a, b, C, 0.02, flags=outcome.flags)
        assert_values(outcome, 4e-6, cost=4.0)


# G: over-relaxation costs at most twice the plain iterations plus ten.


def slow(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    C = points_cost(rng.random((n, 2)))
    a = rng.dirichlet(np.ones(n))
    b = a if seed % 2 == 0 else rng.dirichlet(np.ones(n))
    return a, b, C, float(10 ** rng.uniform(-2.7, -1))


@pytest.mark.parametrize(
    ("method", "layout"), [("auto", "shared cost"), ("auto", "a cost each"), ("log", "shared cost")]
)
@pytest.mark.parametrize("equal", [True, False])
def test_never_later_than_twice_the_plain_iterations(equal, method, layout):
    late, total = [], np.zeros(2)
    for seed in range(46 if equal else 47, 72, 2):
        a, b, C, eps = slow(seed)
        C = C if layout == "shared cost" else np.stack([C])
        options = {"eps": eps, "method": method, "max_iter": 1500}
        auto, plain = (
            attempt(cusink.sinkhorn, a, b, C, overrelaxation=how, **options).result for how in ("auto", None)
        )
        counts = [int(np.ravel(r.n_iter)[0]) for r in (auto, plain)]
        total += counts
        if counts[0] > 2 * counts[1] + 10:
            late.append((seed, *counts))
    assert not late, f"(seed, auto, plain): {late}"
    assert total[0] <= total[1]


@pytest.mark.parametrize("steepness", [80.0, 200.0, 490.0])
def test_few_large_costs_do_not_make_an_easy_problem_late(steepness):
    """A range of many eps over-relaxes at once; here most pairs cost nothing, and plain iterations are fast."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, m = (int(size) for size in rng.integers(2, 40, 2))
        C = (rng.random((n, m)) < rng.uniform(0.02, 0.2)).astype(float)
        C[0, 0], C[-1, -1] = 1, 0
        a, b = rng.dirichlet(np.ones(n), 2), rng.dirichlet(np.ones(m), 2)
        options = {"eps": 1 / steepness, "tol": 10.0 ** rng.uniform(-11, -8)}
        auto, plain = (cusink.sinkhorn(a, b, C, overrelaxation=how, **options) for how in ("auto", 1.0))
        assert auto.converged.all() and (auto.n_iter <= 2 * plain.n_iter + 10).all(), seed


@pytest.mark.parametrize("layout", ["dense", "grid"])
def test_mass_that_arrives_all_at_once_is_waited_for(layout):
    """Plain iterations show an error of 2 until they end after 17; Newton's method took over after 10, and took 36."""
    a = np.array([9.99994e-07, 0.999995, *[9.99994e-07] * 4], "f")
    b = np.array([7.5350914e-34, 8.5399515e-13, 1.0243534e-16, 2.3715027e-10, 1.0, 1.5002428e-24], "f")
    C = cusink.Grid(6) if layout == "grid" else cusink.Grid(6).dense().astype("f")
    plain, auto = (cusink.sinkhorn(a, b, C, eps=0.014, check_every=1, overrelaxation=how) for how in (1.0, "auto"))
    assert plain.converged and auto.converged and auto.n_iter <= 2 * plain.n_iter + 10


def test_problems_are_not_annealed_before_their_mass_has_had_time_to_arrive():
    """Far points: 40 plain iterations, of which 10 show no progress; annealed after them it took 107."""
    a = np.array([[0.8, 0.2], [0.0, 1.0]])
    b = np.array(
        [[0.5950149743765006, 1.6959797e-07, 0.404984836], [0.9997606541367967, 2.393458479e-4, 1.5314659e-11]]
    )
    x = np.array([[0.4, 0.0, 0.8], [900.0, 900.0, 900.0]])
    C = cusink.PointCloud(x, np.array([[0.0, 0.0, 0.0], [77.0, 77.1, 77.0], [77.1, 76.5, 77.1]]))
    b *= a.sum(axis=1, keepdims=True) / b.sum(axis=1, keepdims=True)
    found = cusink.sinkhorn(a, b, C, eps=2.0)
    assert found.converged.all() and (found.n_iter <= [50, 12]).all()


def test_problems_at_their_rounding_are_not_looked_at_again_before_they_are_annealed():
    """One pair at a cost of 4e9 eps, whose error is that of rounding after one iteration; looks took 147."""
    x, y, one = np.full((1, 19), 0.4, "f"), np.full((1, 19), 7939.0337, "f"), np.full((2, 1), 0.0827342, "f")
    found = cusink.sinkhorn(one, one, cusink.PointCloud(x, y), eps=0.285)
    assert (found.n_iter <= 30).all()


def test_the_report_stops_in_time():
    rng = np.random.default_rng(14)
    C, a = points_cost(rng.random((6, 2))), rng.dirichlet(np.ones(6))
    plain = attempt(cusink.sinkhorn, a, a, C, eps=0.003, overrelaxation=None)
    auto = attempt(cusink.sinkhorn, a, a, C, eps=0.003)
    assert_claims_hold(auto.result, a, a, C, 0.003, flags=auto.flags)
    assert auto.result.n_iter <= 2 * plain.result.n_iter + 10


def test_shared_points_in_many_dimensions():
    """The error is below the tolerance long before a bound is that does not fall."""
    p = np.random.default_rng(0).random((51, 64))
    C = points_cost(p[:50], p[1:])
    outcome = attempt(cusink.sinkhorn, None, None, C, eps=0.01, max_iter=40_000)
    a = np.full(50, 1 / 50)
    assert_claims_hold(outcome.result, a, a, C, 0.01, flags=outcome.flags)
    assert np.asarray(outcome.result.converged)
    assert outcome.result.n_iter <= 2 * iterations_by_halving(a, a, C, 0.01, most=3000) + 10


# G', O: ties. Annealing gets the iterations that it needs.


def uniform(n):
    return np.full(n, 1 / n)


def tie(size):
    C = np.zeros((4, 4))
    C[1, 3] = -size
    return uniform(4), uniform(4), C


TIES = {
    "two bins": (np.array([0.5, 0.5]), np.array([0.25, 0.75]), 1 - np.eye(2), 1e-4),
    "four bins": (*tie(1.85), 0.01),
    "four bins, steep": (*tie(1.85), 0.001),
    "four bins, mild": (*tie(0.5), 0.01),
    "a line": (uniform(6), uniform(6), np.abs(np.arange(6.0)[:, None] - np.arange(6.0)[None]), 0.005),
}


@pytest.mark.parametrize("name", TIES)
def test_ties_take_no_longer_than_by_halving(name):
    a, b, C, eps = TIES[name]
    halving = iterations_by_halving(a, b, C, eps)
    for method in ("auto", "log"):
        outcome = attempt(cusink.sinkhorn, a, b, C, eps=eps, method=method, max_iter=2000)
        assert_claims_hold(outcome.result, a, b, C, eps, flags=outcome.flags)
        assert np.asarray(outcome.result.converged)
        assert outcome.result.n_iter <= halving + 10, f"{outcome.result.n_iter} against {halving} by halving"


def test_the_default_number_of_iterations_serves_a_tie():
    a, b, C, eps = TIES["two bins"]
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=eps)
    assert_claims_hold(outcome.result, a, b, C, eps, flags=outcome.flags, exact=0.25)
    assert_values(outcome, 1e-5, cost=0.25)


def test_shared_points_at_a_small_eps():
    p = np.random.default_rng(0).random((15, 128))
    C = points_cost(p[:10], p[5:])
    outcome = attempt(cusink.sinkhorn, None, None, C, eps=1e-3)
    assert_claims_hold(outcome.result, uniform(10), uniform(10), C, 1e-3, flags=outcome.flags)
    assert_values(outcome, 1e-4, cost=reference.assignment_cost(C))


# A start never costs more than none.


@pytest.mark.parametrize(("method", "eps"), [("auto", 0.01), ("auto", 1e-3), ("auto", 1e-4), ("log", 0.01)])
def test_a_start_never_costs_more_than_none(method, eps):
    more = []
    for seed in (1, 3, 5):
        rng = np.random.default_rng(seed)
        a, b = rng.dirichlet(np.ones(8), 2)
        C = rng.random((8, 8))
        options = {"eps": eps, "method": method, "max_iter": 2000}
        cold = attempt(cusink.sinkhorn, a, b, C, **options).result
        for size in (0.1, 3.0):
            init = (cold.f + size * rng.standard_normal(8), cold.g + size * rng.standard_normal(8))
            warm = attempt(cusink.sinkhorn, a, b, C, init=init, **options).result
            if warm.n_iter > cold.n_iter + 1:  # one more to see that the start is not the solution
                more.append((seed, size, int(warm.n_iter), int(cold.n_iter)))
    assert not more, f"(seed, size, with start, without): {more}"


# W: weights of any size.


@pytest.mark.parametrize("seed", [80, 89, 91, 92])
@pytest.mark.parametrize("layout", ["shared cost", "a cost each"])
@pytest.mark.parametrize("eps", [0.01, 1e-3, 3e-4])
def test_small_weights_need_no_more_than_log(eps, layout, seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(3, 16, 2)
    a, b = 10.0 ** rng.uniform(-300, 0, n), 10.0 ** rng.uniform(-300, 0, m)
    C = rng.random((n, m))
    a, b, C = a / a.sum(), b / b.sum(), C if layout == "shared cost" else np.stack([C])
    outcomes = [attempt(cusink.sinkhorn, a, b, C, eps=eps, method=method) for method in ("auto", "log")]
    auto, log = (int(np.ravel(outcome.result.n_iter)[0]) for outcome in outcomes)
    assert auto <= 2 * log + 10, f"{auto} against {log} in the log domain"


# H: the default tolerance is one that float32 reaches, and a warning says what helps.


def batch(n=20, count=20):
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(n), (2, count)).astype(np.float32)
    return a, b, points_cost(rng.random((n, 2))).astype(np.float32)


@pytest.mark.parametrize("options", [{"reach": 1.0}, {"method": "log"}, {}], ids=str)
@pytest.mark.parametrize("eps", [0.02, 0.01, 0.005])
def test_float32_reaches_the_default_tolerance(eps, options):
    a, b, C = batch()
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=eps, max_iter=5000, **options)
    prices = (1.0, 1.0) if "reach" in options else None
    # The default is stated in the result: it converges, or a warning names the tolerance.
    converged = np.asarray(outcome.result.converged)
    assert converged.all(), f"{converged.sum()} of {len(a)} converged; errors up to {np.max(outcome.result.error)}"
    tol = max(1e-6, float(np.max(outcome.result.error)))  # whatever the default is in float32
    assert tol <= 1e-3
    assert_claims_hold(outcome.result, a, b, C, eps, tol=tol, reach=prices, flags=outcome.flags)


@pytest.mark.parametrize("eps", [0.02, 0.005])
@pytest.mark.parametrize("debiased", [False, True])
def test_barycenters_reach_the_default_tolerance(debiased, eps):
    a, _, C = batch(30, 4)
    outcome = attempt(cusink.barycenter, a, C, eps=eps, debiased=debiased, max_iter=5000)
    assert np.asarray(outcome.result.converged).all(), f"error {outcome.result.error}; {outcome.flags}"


@pytest.mark.parametrize("options", [{}, {"reach": 1.0}, {"method": "log"}], ids=str)
def test_the_warning_of_a_problem_at_its_rounding_level_says_what_helps(options):
    """In float32 a tolerance of 1e-12 is reached, by float64 inside; none is at 1e-17."""
    a, b, C = batch(count=4)
    reached = attempt(cusink.sinkhorn, a, b, C, eps=0.02, tol=1e-12, max_iter=20_000, **options)
    assert np.asarray(reached.result.converged).all(), reached.flags
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.02, tol=1e-17, max_iter=20_000, **options)
    assert not np.asarray(outcome.result.converged).any()
    assert np.max(outcome.result.n_iter) < 20_000
    (said,) = outcome.flags
    assert "Raise 'max_iter'" not in said and "within max_iter" not in said, said
    assert "rounding of float64" in said and "tol" in said, said


@pytest.mark.parametrize(
    "solve",
    [
        lambda a, b, C: cusink.sinkhorn_divergence(a, b, C, eps=0.02, tol=1e-17),
        lambda a, b, C: cusink.sinkhorn_divergence(a, b, C, eps=0.02, tol=1e-17, reach=1.0),
        lambda a, b, C: cusink.barycenter(a, C, eps=0.02, tol=1e-17),
    ],
    ids=["divergence", "divergence with reach", "barycenter"],
)
def test_other_warnings_at_the_rounding_level_say_what_helps(solve):
    a, b, C = (x.astype(float) for x in batch(8, 3))
    (said,) = attempt(solve, a, b / b.sum(1, keepdims=True) * a.sum(1, keepdims=True), C).flags
    assert "rounding of float64" in said and "Raise 'max_iter'" not in said, said


def test_the_warning_of_costs_beyond_all_digits_accepts_no_tolerance():
    (said,) = attempt(cusink.sinkhorn, [1.0], [0.5, 0.5], [[1e8, 3e7]], eps=1e-9).flags
    assert "raise 'eps'" in said and "accept" not in said, said


def test_the_warning_of_a_problem_that_ran_out_names_max_iter():
    a, b, C = batch()
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.005, max_iter=5)
    (said,) = outcome.flags
    assert "max_iter" in said


@pytest.mark.parametrize("start", [0.0, 0.4, 20.0])
def test_a_problem_that_costs_nothing_ends_at_once_from_any_start(start):
    """In a batch with steep costs: over-relaxed from its first iteration on, it took 31 for 10 plain ones."""
    a, b = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.3, 0.7], [1.0, 0.0]])
    C = np.array([np.zeros((2, 2)), [[400.0, 0.0], [0.0, 3.0]]])
    init = np.array([[0.0, start], [0.0, 0.0]]), np.array([[0.0, 0.6], [0.0, 0.3]])
    result = cusink.sinkhorn(a, b, C, eps=3.0, init=init, tol=1e-9)
    assert result.converged.all() and result.n_iter.tolist() == [1, 1]
    np.testing.assert_allclose(result.plan()[0], a[0, :, None] * b[0], rtol=1e-12)
