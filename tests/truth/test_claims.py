"""The check itself: right results pass it, and every claim can break."""

import dataclasses
import warnings

import numpy as np
import problems
import pytest
import reference
from truth.claims import assert_claims_hold, attempt, divergence, iterations_by_halving, unbalanced

EPS = 0.25
P = problems.two_by_two(eps=EPS)


@dataclasses.dataclass
class Solved:
    """A result with the names of the package's, made by the oracle."""

    f: np.ndarray
    g: np.ndarray
    cost: float
    reg_cost: float
    entropic_cost: float
    error: float
    converged: bool
    factor: float = 1.0
    products: float = 1.0
    interval: tuple = (-np.inf, np.inf)

    def plan(self):
        return self.factor * reference.plan(P.a, P.b, P.C, EPS, self.f, self.g)

    def apply(self, v, axis):
        plan = self.products * self.plan()
        return plan @ v if axis == 1 else v @ plan

    def bounds(self):
        return self.interval


def solved(**changes):
    solution = reference.solve(P.a, P.b, P.C, EPS)
    plan = reference.plan(P.a, P.b, P.C, EPS, solution.f, solution.g)
    values = reference.values(plan, P.a, P.b, P.C, EPS)._asdict()
    exact = reference.exact_cost(P.a, P.b, P.C)
    interval = (exact - 0.01, exact + 0.01)
    fields = {"f": solution.f, "g": solution.g, "error": solution.error, "converged": True, "interval": interval}
    return dataclasses.replace(Solved(**fields, **values), **changes), exact


def test_the_oracle_passes():
    result, exact = solved()
    assert_claims_hold(result, P.a, P.b, P.C, EPS, exact=exact)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": 0.1},
        {"reg_cost": 0.1},
        {"entropic_cost": 0.1},
        {"factor": 1 + 1e-9},
        {"factor": -1.0},
        {"products": 1 + 1e-9},
        {"error": 1e-5},
        {"converged": False},
        {"error": np.nan},
        {"interval": (0.0, 0.1)},
        {"interval": (0.4, 0.3)},
        {"g": np.array([np.inf, 0.0])},
    ],
    ids=str,
)
def test_every_claim_can_break(change):
    result, exact = solved(**change)
    with pytest.raises(AssertionError):
        assert_claims_hold(result, P.a, P.b, P.C, EPS, exact=exact)


def test_a_gauge_is_seen():
    result, _ = solved()
    moved = dataclasses.replace(result, f=result.f + 1e6, g=result.g - 1e6)
    with pytest.raises(AssertionError, match="gauge"):
        assert_claims_hold(moved, P.a, P.b, P.C, EPS)


def test_warnings_and_convergence_must_agree():
    result, _ = solved()
    with pytest.raises(AssertionError, match="warnings"):
        assert_claims_hold(result, P.a, P.b, P.C, EPS, flags=["missed"])


def test_only_clear_errors_refuse():
    def refuse():
        raise ValueError("'a' is not right")

    def fail():
        raise ZeroDivisionError("integer division")

    def murmur():
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)

    assert str(attempt(refuse).refused) == "'a' is not right"
    with pytest.raises(ZeroDivisionError):
        attempt(fail)
    with pytest.raises(AssertionError, match="overflow"):
        attempt(murmur)


def test_oracles():
    a, b, C = np.array([0.3, 0.7]), np.array([0.6, 0.4]), np.array([[0.0, 1], [1, 0]])
    want = reference.optimum(a, b, C, 0.1)
    plan, value = unbalanced(a, b, C, 0.1, (np.inf, np.inf))
    np.testing.assert_allclose([(plan * C).sum(), value], want[:2], rtol=1e-10)
    # One bin each: the mass is where the derivative of the objective by its logarithm is zero.
    plan, _ = unbalanced([2.0], [3.0], [[0.7]], 0.1, (0.5, 0.2))
    np.testing.assert_allclose(
        np.log(plan) * 0.8, 0.1 * np.log(6) + 0.5 * np.log(2) + 0.2 * np.log(3) - 0.7, rtol=1e-12
    )
    assert abs(divergence(a, a, C, 0.1)) < 1e-14
    assert iterations_by_halving(a, b, C, 0.1) < 150
