"""The rules of convergence, each against a definition of its own: plain loops over numbers, and Young's theory."""

import math

import numpy as np
import pytest

from cusink.convergence import rules
from cusink.convergence.marginals import marginal_error
from cusink.convergence.rules import Relaxation, StallDetector, StopState

OMEGAS = [1.0, 1.5, 1.9]


# ---- the over-relaxed update ---------------------------------------------------------------------------------------


def relaxed(old, plain, omega):
    """Return one entry of the over-relaxed update by its definition."""
    return (omega - 1) * plain + max(plain - (omega - 1) * old, 0.0)


@pytest.mark.parametrize("omega", OMEGAS)
def test_the_update_is_that_of_its_definition_wherever_it_is_written(omega):
    old, plain = np.random.default_rng(0).random((2, 3, 7)) + 0.01
    old[0, 0], old[1, 2] = 50.0, 0.0  # far above the plain update, and nothing at all
    want = np.vectorize(relaxed)(old, plain, omega)
    before = old.copy(), plain.copy()
    np.testing.assert_allclose(rules.overrelaxed(np, old, plain, omega - 1), want, rtol=1e-15)
    scratch, out = np.empty_like(old), np.empty_like(old)
    np.testing.assert_allclose(rules.overrelaxed(np, old, plain, omega - 1, scratch=scratch, out=out), want, rtol=1e-15)
    np.testing.assert_allclose(out, want, rtol=1e-15)
    np.testing.assert_array_equal(np.stack(before), np.stack([old, plain]))
    updated, sums = old.copy(), np.random.default_rng(1).random((3, 7)) + 0.5
    rules.overrelaxed_quotient(np, updated, omega * plain * sums, sums, omega - 1, (omega - 1) / omega, sums, scratch)
    np.testing.assert_allclose(updated, want, rtol=1e-14, atol=1e-14)
    found = rules.overrelaxed(np, old, plain, omega - 1, out=old)
    assert found is old
    np.testing.assert_allclose(old, want, rtol=1e-15)


@pytest.mark.parametrize("omega", OMEGAS)
@pytest.mark.parametrize("unit", [0.1, -0.1])
def test_the_update_of_potentials_is_that_of_their_exponentials(omega, unit):
    old, plain = np.random.default_rng(1).normal(size=(2, 4, 5)) / 10
    found = rules.overrelaxed_log(np, old, plain, omega - 1, unit)
    want = unit * np.log(np.vectorize(relaxed)(np.exp(old / unit), np.exp(plain / unit), omega))
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-14)


def test_small_steps_keep_their_digits_and_large_ones_stay_finite():
    for step in (1e-12, -1e-12):
        np.testing.assert_allclose(rules.overrelaxed_step(np, np.array([step]), 0.8, 1.0), 0.8 * step, rtol=1e-9)
    # Down by more than the share that is left, the update is omega - 1 times the plain one, however far down.
    for step in (-2.0, -79.0, -81.0, -1e6):
        np.testing.assert_allclose(rules.overrelaxed_step(np, np.array([step]), 0.5, 1.0), math.log(0.5), rtol=1e-12)
    np.testing.assert_allclose(rules.overrelaxed_step(np, np.array([1e6]), 0.5, 1.0), math.log(1.5), rtol=1e-12)


def test_potentials_that_are_infinite_stay_as_they_are():
    old, plain = np.array([[np.inf, -np.inf, 1.0]]), np.array([[np.inf, -np.inf, 1.0]])
    np.testing.assert_array_equal(rules.overrelaxed_log(np, old, plain, 0.5, 0.1), plain)


# ---- the factor ----------------------------------------------------------------------------------------------------


def waiting(omega, error, checks=1):
    """Return factors just chosen, at these errors, after some checks."""
    return Relaxation(np.array(omega), np.array(error), np.zeros(len(omega), np.int64), checks, True, False)


@pytest.mark.parametrize(
    ("setting", "steepness", "first", "second"),
    [
        ("auto", 74.0, 1.0, 1.5),
        ("auto", 75.0, 1.6, None),
        ("auto", 499.0, 1.6, None),
        ("auto", 500.0, 1.0, 1.5),
        (None, 100.0, 1.0, 1.0),
        (1.7, 100.0, 1.7, 1.7),
    ],
)
def test_the_first_factors(setting, steepness, first, second):
    start = Relaxation.start(3, setting, steepness)
    np.testing.assert_array_equal(start.omega, np.full(3, first))
    assert start.checks == 0 and np.isinf(start.error).all()
    after = start.observe(np.full(3, 0.1), 10)
    np.testing.assert_array_equal(after.omega, np.full(3, first if second is None else second))
    assert after.checks == 1
    np.testing.assert_array_equal(after.error, np.full(3, 0.1))
    if setting != "auto":
        np.testing.assert_array_equal(after.observe(np.full(3, 0.05), 10).omega, start.omega)


def test_an_error_that_fell_as_fast_as_the_first_factor_lets_it_asks_for_plain_iterations():
    """Steep are also costs of which a few stand out: then the plain iteration may be faster than any other."""
    start, error = Relaxation.start(3, "auto", 100.0), np.array([0.6, 0.617, 0.619])
    np.testing.assert_array_equal(start.observe(error**10, 10).omega, [1.0, 1.0, 1.6])
    np.testing.assert_array_equal(start.observe(error**20, 20).omega, [1.0, 1.0, 1.6])
    # Not where the first error was smaller: of a start that iterations have made, or that was looked at before.
    np.testing.assert_array_equal(Relaxation.start(3, "auto", 100.0, slow=True).observe(error**10, 10).omega, 1.6)
    np.testing.assert_array_equal(start.observe(error, 1).observe(error**10, 9).omega, 1.6)
    np.testing.assert_array_equal(Relaxation.start(3, 1.6, 100.0).observe(error**10, 10).omega, 1.6)


def contraction(eta, omega):
    """Return the rate of the over-relaxed iteration: the largest root of ``(r + w - 1)**2 = r w**2 eta``, in size."""
    return max(abs(np.roots([1, 2 * (omega - 1) - omega**2 * eta, (omega - 1) ** 2])))


@pytest.mark.parametrize("iterations", [10, 25])
def test_the_best_factor_is_found_from_the_rate_of_any_below_it(iterations):
    for eta in (0.3, 0.7, 0.95, 0.995):
        best = 2 / (1 + math.sqrt(1 - eta))
        for omega in np.linspace(1, 1 + 0.9 * (best - 1), 4):
            state = waiting([omega], [1e-2])
            error = np.array([1e-2 * contraction(eta, omega) ** iterations])
            np.testing.assert_allclose(state.observe(error, iterations).omega, min(best, 1.97), rtol=1e-9)


def test_a_factor_that_is_too_large_falls_by_a_tenth_of_its_excess():
    state = waiting([1.8] * 3, [1.0] * 3)
    # Above its best value a factor contracts by its excess; 3 % more is still taken for that.
    after = state.observe(np.array([0.8, 0.8 * 1.029, 0.8 * 1.031]) ** 10, 10)
    np.testing.assert_allclose(after.omega[:2], 1 + 0.9 * 0.8)
    assert after.omega[2] != after.omega[1]


def test_no_error_takes_a_factor_out_of_its_range():
    for before in (0.0, 1e-3, 1.0, np.inf):
        state = waiting([1.5] * 6, [before] * 6, 3)
        after = state.observe(np.array([0.0, 1e-300, 1.0, 1e300, np.inf, np.nan]), 10)
        assert ((after.omega >= 1) & (after.omega <= 1.97)).all()
    # An error that grows is a rate just below 1, of which the best factor is beyond the largest.
    assert waiting([1.0], [1.0]).observe(np.array([2.0]), 10).omega == 1.97
    assert waiting([1.0], [1.0]).observe(np.array([0.0]), 10).omega == pytest.approx(2 / (1 + math.sqrt(1 - 1e-3)))


def test_a_rate_is_taken_over_ten_iterations_or_more():
    """Beyond its best value a factor makes the error swing as it falls: single iterations tell nothing."""
    eta, omega = 0.9, 1.3
    rate, state = contraction(eta, omega), waiting([omega], [1.0])
    for k in range(1, 10):
        state = state.observe(np.array([rate**k * (4.0 if k % 2 else 0.1)]), 1)
        assert (state.omega, state.error, state.since, state.checks) == (omega, 1.0, k, k + 1)
    state = state.observe(np.array([rate**10]), 1)
    np.testing.assert_allclose(state.omega, 2 / (1 + math.sqrt(1 - eta)), rtol=1e-9)
    assert (state.error, state.since, state.checks) == (rate**10, 0, 11)
    # Three looks of four iterations are twelve.
    state = waiting([omega], [1.0])
    for k in range(3):
        assert state.since == 4 * k and state.omega == omega
        state = state.observe(np.array([rate ** (4 * (k + 1))]), 4)
    np.testing.assert_allclose(state.omega, 2 / (1 + math.sqrt(1 - eta)), rtol=1e-9)


def test_the_first_factor_waits_for_ten_iterations_unless_the_problem_is_known_to_be_slow():
    state = Relaxation.start(1, "auto", 1.0)
    for k in range(1, 10):
        state = state.observe(np.array([0.1]), 1)
        assert state.omega == 1.0 and np.isinf(state.error) and state.since == k
    assert state.observe(np.array([0.1]), 1).omega == rules.FIRST_OMEGA
    assert Relaxation.start(1, "auto", 1.0, slow=True).observe(np.array([0.1]), 1).omega == rules.FIRST_OMEGA


def test_selected_problems_keep_their_factors():
    state = Relaxation(np.array([1.1, 1.2, 1.3]), np.array([1.0, 2.0, 3.0]), np.array([0, 4, 2]), 4, True, True)
    chosen = state.select(np.array([2, 0]))
    assert (chosen.omega.tolist(), chosen.error.tolist(), chosen.since.tolist()) == ([1.3, 1.1], [3.0, 1.0], [2, 0])
    assert (chosen.checks, chosen.adaptive, chosen.steep) == (4, True, True)


# ---- stalls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)])
def test_the_rounding_level(dtype):
    assert rules.rounding_level(dtype, 0.0) == 64 * np.finfo(dtype).eps
    assert rules.rounding_level(dtype, 99.0) == pytest.approx(6400 * np.finfo(dtype).eps)
    assert StallDetector.start(2, dtype, 99.0).level == rules.rounding_level(dtype, 99.0)


def test_ten_checks_without_progress_at_the_level_are_a_stall():
    state = StallDetector(1e-10, np.full(3, np.inf), np.zeros(3, np.int64))
    # One is at the level, one above it, and one gains a little more than a hundredth at each check.
    errors = np.array([1e-10, 1.1e-10, 1e-11])
    state = state.observe(errors)
    for check in range(1, 12):
        gained = 0.9899**check
        state = state.observe(errors * [0.9901 if check == 1 else 1.0, 1.0, gained])
        assert state.stalled.tolist() == [check >= 10, False, False], check
    np.testing.assert_allclose(state.best, errors * [1, 1, gained])
    assert state.checks.tolist() == [11, 11, 0]
    chosen = state.select(np.array([2, 0]))
    assert chosen.checks.tolist() == [0, 11] and chosen.best.tolist() == state.best[[2, 0]].tolist()
    assert StallDetector.start(2, np.dtype(np.float64), 1.0).stalled.tolist() == [False, False]


# ---- when to stop --------------------------------------------------------------------------------------------------


def stop(omega, checks):
    relaxation = waiting(omega, [0.1] * len(omega), checks)
    return StopState.start(relaxation, StallDetector.start(len(omega), np.dtype(np.float64), 1.0))


def test_a_problem_may_end_where_its_bound_or_what_it_stands_for_is_within_tol():
    state = stop([1.0, 1.5, 1.5, 1.9], 4)
    # A bound of omega / (2 - omega) times tol is what a plain step of tol may look like: 1, 3, 3 and 19 times.
    found = state.may_end(np.array([1.01, 2.99, 3.01, 18.9]) * 1e-6, 1e-6)
    assert found.tolist() == [False, True, False, True]
    assert state.may_end(np.array([1e-6, 1e-6, 1e-6, 1.001e-6]), 1e-6).all()


def test_a_problem_that_was_measured_in_vain_waits_for_a_quarter_more_checks():
    state = stop([1.5, 1.5, 1.5], 8)
    bound = np.full(3, 2e-6)
    refused = state.refuse(np.array([0, 2]))
    assert refused.retry.tolist() == [10, 0, 10] and state.retry.tolist() == [0, 0, 0]
    assert refused.may_end(bound, 1e-6).tolist() == [False, True, False]
    assert refused.may_end(bound / 2, 1e-6).all()  # a bound within tol needs no measurement
    for checks in (9, 10):
        refused = refused._replace(relaxation=waiting([1.5] * 3, [0.1] * 3, checks))
        assert refused.may_end(bound, 1e-6).tolist() == [checks >= 10, True, checks >= 10]
    assert refused.select(np.array([1, 2])).retry.tolist() == [0, 10]


def test_a_check_reaches_both_states():
    after = stop([1.0, 1.0], 0).observe(np.array([0.5, 0.25]), 10)
    assert after.relaxation.checks == 1 and after.relaxation.error.tolist() == [0.5, 0.25]
    assert after.stall.best.tolist() == [0.5, 0.25]
    chosen = after.select(np.array([1]))
    assert chosen.relaxation.error.tolist() == [0.25] and chosen.stall.best.tolist() == [0.25]


# ---- the error -----------------------------------------------------------------------------------------------------


def test_the_error_is_how_far_the_marginals_are_from_the_weights():
    rng = np.random.default_rng(3)
    weights, before, after = rng.random((3, 2, 5))
    weights[0, 1] = 0
    before[0, 1] = np.inf
    weights *= 3
    eps = 0.3
    want = [
        sum(w * abs(1 - math.exp((x - y) / eps)) for w, x, y in zip(*row, strict=True) if w) / sum(row[0])
        for row in zip(weights, before, after, strict=True)
    ]
    np.testing.assert_allclose(marginal_error(np, weights, before, after, eps), want, rtol=1e-13)
    assert np.isfinite(marginal_error(np, np.ones((1, 1)), np.full((1, 1), 1e6), np.zeros((1, 1)), 1.0)).all()


def test_the_error_counts_what_lies_in_a_bin_with_hardly_any_weight():
    for dtype, least, step in ((np.float64, 1e-300, 750.0), (np.float32, 1e-38, 90.0)):
        weights = np.array([[least, 1.0]], dtype)
        error = marginal_error(np, weights, np.array([[step, 0.0]], dtype), np.zeros((1, 2), dtype), 1.0)
        assert error == pytest.approx(math.exp(step + math.log(least)), rel=1e-4)
