"""Numbers that forbid their pairs: which problems may do without these, when the answer stands, what happens else."""

from types import SimpleNamespace

import numpy as np
import pytest

from cusink.convergence.options import Options
from cusink.operand import dense_cost
from cusink.solver import forbidden
from cusink.solver.forbidden import carried_nothing, promising, solve_beside
from cusink.solver.newton import ALONE, BATCH
from cusink.solver.solution import Solution

BIG = 1e20
# Two islands of bins: rows 0 and 1 with columns 0 and 1, row 2 with column 2.
ISLANDS = np.array([[0.0, 1.0, BIG], [1.0, 0.0, BIG], [BIG, BIG, 0.5]])
A = np.array([[0.3, 0.2, 0.5]])


def told(b, C=ISLANDS, a=A, tol=1e-6):
    return bool(promising(dense_cost(C), a, np.asarray([b]), 10.0, tol)[0])


def test_islands_of_equal_mass_may_do_without():
    assert told([0.1, 0.4, 0.5])
    assert not told([0.1, 0.5, 0.4])
    # What both islands lack is counted, relative to the mass, and the tolerance is included.
    surplus = [0.1, 0.4 + 2.0**-20, 0.5 - 2.0**-20]
    assert told(surplus, tol=2.0**-19) and not told(surplus, tol=2.0**-19 * 0.999)
    assert told(np.multiply(3, surplus), a=3 * A, tol=2.001 * 2.0**-20)
    assert not told(np.multiply(3, surplus), a=3 * A, tol=1.999 * 2.0**-20)


def test_a_bin_that_would_be_alone_is_not():
    # Row 0 reaches the second island at a high cost only, and carries too little for its mass to tell.
    alone = ISLANDS.copy()
    alone[0, :2] = np.inf
    assert not told([1e-9, 0.5, 0.5], alone, np.array([[1e-9, 0.5, 0.5]]))
    assert not told([1e-9, 0.5, 0.5], alone.T, np.array([[1e-9, 0.5, 0.5]]))
    alone[0] = np.inf  # without any partner, it is none of this concern
    assert told([1e-9, 0.5, 0.5], alone, np.array([[1e-9, 0.5, 0.5]]))
    assert told([0.5, 0.0, 0.5], ISLANDS, np.array([[0.5, 0.0, 0.5]]))  # bins without weight do not count
    at_limit = np.where(ISLANDS == BIG, 10.0, ISLANDS)
    assert told([0.1, 0.5, 0.4], at_limit)  # the limit itself is left in
    at_limit[:, 2] = np.inf, np.inf, 10.0
    assert told([0.1, 0.4, 0.5], at_limit)


def test_each_problem_and_cost_is_told_for_itself():
    b = np.array([[0.1, 0.4, 0.5], [0.1, 0.5, 0.4], [0.5, 0.0, 0.5]])
    a = np.repeat(A, 3, axis=0)
    assert promising(dense_cost(ISLANDS), a, b, 10.0, 1e-6).tolist() == [True, False, True]
    own = np.stack([ISLANDS, np.zeros((3, 3)), ISLANDS[::-1]])
    assert promising(dense_cost(own), a, b, 10.0, 1e-6).tolist() == [True, True, False]
    not_stored = SimpleNamespace(without=lambda above: None)
    assert promising(not_stored, a, b, 10.0, 1e-6).tolist() == [False] * 3


def test_pairs_carry_nothing_where_potentials_are_far_below_their_costs():
    eps, limit = 0.5, 100.0
    edge = limit + forbidden.NEGLIGIBLE * eps
    f = np.array([[edge - 1.0, 0.0], [edge + 1.0, 0.0], [0.0, 1e9]])
    g = np.array([[0.5, 0.0], [0.0, -3.0], [0.5, 1e9]])
    a, b = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert forbidden.NEGLIGIBLE < 0
    found = carried_nothing(dense_cost(np.zeros((2, 2))), a, b, f, g, eps, limit)
    assert found.tolist() == [True, False, True]


class Recorder:
    """A solver that finds what it is told, and notes how it was called."""

    def __init__(self, converged, highest=0.0):
        self.converged, self.highest, self.calls = converged, highest, []

    def __call__(self, C, a, b, eps, options, **given):
        costs = given["costs_of"](np.arange(len(a)))
        self.calls.append((len(a), bool(np.isinf(costs.data).any()), options.max_iter, given))
        out = Solution.empty(np, a, b)
        out.f[:], out.g[:], out.cost[:], out.error[:] = self.highest, 0.0, len(self.calls), 1e-9
        out.n_iter[:], out.converged[:] = 10 * len(self.calls), self.converged
        return out


def beside(solve, b, max_iter=101, init=None, tol=1e-6, C=ISLANDS):
    b = np.asarray(b, float)
    a, C = np.repeat(A, len(b), axis=0), dense_cost(C)
    options = Options(max_iter, tol, 10, "auto", "auto")
    return solve_beside(solve, C.at, a, b, 1e-9, options, init, None, (0.0, BIG), BATCH if len(b) > 1 else ALONE)


EQUAL, UNEQUAL = [0.1, 0.4, 0.5], [0.1, 0.5, 0.4]


def test_an_answer_without_these_pairs_stands():
    solve = Recorder(True)
    found = beside(solve, [EQUAL])
    assert [call[:3] for call in solve.calls] == [(1, True, 50)]
    given = solve.calls[0][3]
    assert given["span"] is None and given["restrict"] is False and given["together"] == ALONE and given["init"] is None
    assert (found.n_iter[0], found.cost[0], found.computed) == (10, 1, np.float64)
    solve.calls.clear()
    beside(solve, [[0.1, 0.4 + 1e-5, 0.5 - 1e-5]], tol=1e-4, C=np.where(ISLANDS == BIG, 15.0, ISLANDS))  # 1.5e10 eps
    assert [call[:2] for call in solve.calls] == [(1, True)]


@pytest.mark.parametrize("solve", [Recorder(False), Recorder(True, highest=100.0)], ids=["unconverged", "carried"])
def test_an_answer_that_does_not_hold_is_sought_with_them(solve):
    found = beside(solve, [EQUAL], init=(np.ones((1, 3)), np.zeros((1, 3))))
    assert [call[:3] for call in solve.calls] == [(1, True, 50), (1, False, 51)]
    assert solve.calls[1][3]["span"] == (0.0, BIG)
    assert all((call[3]["init"][0] == 1).all() for call in solve.calls)
    assert (found.n_iter[0], found.cost[0]) == (30, 2)  # both are counted


def test_problems_go_their_own_ways():
    solve = Recorder(True)
    found = beside(solve, [UNEQUAL, EQUAL, UNEQUAL, EQUAL])
    assert [call[:3] for call in solve.calls] == [(2, True, 50), (2, False, 51)]
    assert all(call[3]["together"] == BATCH for call in solve.calls)
    assert found.n_iter.tolist() == [20, 10, 20, 10] and found.cost.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("b", "max_iter", "tol", "left"), [(UNEQUAL, 101, 1e-6, 51), (EQUAL, 1, 1e-6, 1), (UNEQUAL, 101, None, 51)]
)
def test_what_has_no_chance_without_them_is_solved_with_them_alone(b, max_iter, tol, left):
    solve = Recorder(True)
    beside(solve, [b], max_iter, tol=tol)
    assert [call[:3] for call in solve.calls] == [(1, False, left)]
