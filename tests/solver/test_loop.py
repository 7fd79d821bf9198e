"""The pieces of the loop, each by itself: when it looks, what it keeps, how it begins again, gauges, self-terms."""

import functools
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import reference

import cusink
from cusink.backends.numpy.iteration import Iteration
from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.operand import dense_cost
from cusink.solver import annealing, gauge, loop
from cusink.solver.annealing import Patience
from cusink.solver.newton import Found
from cusink.solver.semidual import Semidual
from cusink.solver.symmetric import self_potentials

rng = np.random.default_rng(5)
A, B = rng.dirichlet(np.ones(5), 4), rng.dirichlet(np.ones(6), 4)
A[1, 2] = B[2, 0] = 0
A, B = (w / w.sum(axis=1, keepdims=True) for w in (A, B))
C = rng.random((5, 6))
EPS = 0.05


def unconverged(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        return cusink.sinkhorn(*args, **options)


@functools.cache
def first_look_within(tol, every, k):
    """Return after how many plain iterations problem `k` is first seen within `tol`, looking after `every`."""
    count, found = 0, SimpleNamespace(f=None, error=np.inf)
    while not found.error <= tol:
        found, count = reference.sinkhorn(A[k], B[k], C, EPS, every, f=found.f), count + every
    return count


# ---- iterations, looks, what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [1.0, 3.0, 1e-6])
@pytest.mark.parametrize("method", ["auto", "log"])
def test_each_problem_ends_at_its_first_look_within_tol(method, mass):
    seen = []
    options = {"eps": EPS, "tol": 1e-5, "overrelaxation": None, "method": method, "check_every": 7}
    result = cusink.sinkhorn(mass * A, mass * B, C, callback=lambda *x: seen.append(x), **options)
    for k in range(4):
        count = first_look_within(1e-5, 7, k)
        want = reference.iterated(mass * A[k], mass * B[k], C, EPS, count)
        assert result.n_iter[k] == count
        np.testing.assert_allclose(result.f[k], want.f, rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.error[k], want.error, rtol=1e-6)
        P = reference.plan(mass * A[k], mass * B[k], C, EPS, want.f, want.g)
        np.testing.assert_allclose(result.cost[k], (P * C).sum(), rtol=1e-11)
    assert result.converged.all() and len(set(result.n_iter.tolist())) > 1
    assert [done for done, _ in seen] == list(range(7, result.n_iter.max() + 1, 7))
    np.testing.assert_allclose(seen[-1][1], result.error, rtol=1e-6)
    assert all(error.shape == (4,) for _, error in seen)


@pytest.mark.parametrize("max_iter", [1, 9, 10, 23])
def test_the_last_look_is_at_max_iter(max_iter):
    seen = []
    result = unconverged(A, B, C, eps=0.01, tol=1e-12, max_iter=max_iter, callback=lambda *x: seen.append(x[0]))
    assert (result.n_iter == max_iter).all() and not result.converged.any()
    assert seen == [*range(10, max_iter, 10), max_iter]
    fixed = cusink.sinkhorn(A, B, C, eps=0.01, tol=None, max_iter=max_iter)
    assert (fixed.n_iter == max_iter).all() and fixed.converged.all()
    want = [reference.iterated(a, b, C, 0.01, max_iter) for a, b in zip(A, B, strict=True)]
    np.testing.assert_allclose(fixed.f, [x.f for x in want], rtol=0, atol=1e-12)
    np.testing.assert_allclose(fixed.error, [x.error for x in want], rtol=1e-9)


def test_the_solution_is_a_start_that_needs_one_iteration():
    best = [reference.solve(a, b, C, EPS) for a, b in zip(A, B, strict=True)]
    init = np.array([x.f for x in best]), np.array([x.g for x in best])
    for mass in (1.0, 5.0):
        shift = EPS / 2 * math.log(mass)  # of both potentials: weights stay outside of them
        result = cusink.sinkhorn(mass * A, mass * B, C, eps=EPS, init=(init[0] - shift, init[1] - shift), tol=1e-8)
        assert result.n_iter.tolist() == [1] * 4 and result.converged.all()
        one = cusink.sinkhorn(
            mass * A, mass * B, C, eps=EPS, init=(init[0] - shift, init[1] - shift), tol=None, max_iter=1
        )
        np.testing.assert_allclose(one.plan(), result.plan(), rtol=1e-12, atol=1e-15)


def test_when_a_problem_ends_does_not_depend_on_the_others():
    """Also where the error of some is measured in vain, before it is within tol."""
    random = np.random.default_rng(8)
    a, b = random.dirichlet(np.full(12, 0.5), (2, 40))
    costs, options = random.random((12, 12)), {"eps": 0.02, "tol": 1e-9, "check_every": 3, "max_iter": 5000}
    together = cusink.sinkhorn(a, b, costs, **options)
    twice = [cusink.sinkhorn(*np.stack([pair, pair], axis=1), costs, **options) for pair in zip(a, b, strict=True)]
    alone = [int(result.n_iter[0]) for result in twice]
    assert together.n_iter.tolist() == alone and len(set(alone)) > 5


@pytest.mark.parametrize(
    ("tol", "watched", "started", "done", "count"),
    [
        (None, False, False, 0, 35),
        (None, False, True, 0, 35),
        (None, True, False, 0, 10),
        (1e-6, False, False, 0, 10),
        (1e-6, False, True, 0, 1),
        (1e-6, False, True, 1, 10),
        (1e-6, False, False, 30, 5),
    ],
)
def test_when_to_look(tol, watched, started, done, count):
    assert loop._iterations_until_check(Options(max_iter=35, tol=tol, check_every=10), done, watched, started) == count


def test_what_is_left_is_told_from_the_rate():
    earlier, bound = np.array([1e-2, 1e-4, 1e-4, np.nan]), np.array([1e-4, 1e-4, 1e-3, 1e-3])
    # From 1e-2 to 1e-4 in 50: to 1e-6 it takes 50 more. What stands still or grows takes for ever.
    np.testing.assert_allclose(annealing.still_needed(earlier, bound, 1e-6, 50), [50, np.inf, np.inf, np.inf])


def test_where_float32_has_too_few_digits():
    single, double, stored = np.dtype(np.float32), np.dtype(np.float64), SimpleNamespace(exponent_rounding=lambda: 6e-8)
    own = 2 * float(np.finfo(np.float32).eps)  # four half roundings
    for tol, exponent in ((1e-5, 10.0), (None, 500.0)):
        limit = 1e-4 if tol is None else tol / 2
        top = (limit - own) / 6e-8
        assert not loop.needs_float64(stored, single, tol, 0.999 * top)
        assert loop.needs_float64(stored, single, tol, 1.001 * top) and top > exponent
        assert not loop.needs_float64(stored, double, tol, 1e9)


def test_sizes_are_powers_of_two_near_the_masses():
    assert loop._size(np, np.ones((3, 1))) is None
    assert loop._size(np, np.array([[0.5, 0.4], [3.1, 2.0], [1e-3, 0]])).tolist() == [1, 4, 2.0**-10]


# ---- beginning again -------------------------------------------------------------------------------------------------


def test_how_often_eps_is_halved():
    assert [annealing.halvings(x) for x in (0.0, 1.0, 1.5, 2.0, 2.1, 1024.0, 1025.0)] == [0, 0, 1, 1, 2, 10, 11]


class Planned:
    """A solve that reports errors as planned: `errors` (looks, B) of the looks at eps itself, 1e-2 at larger ones."""

    def __init__(self, errors, tol=1e-7):
        self.errors, self.tol, self.calls = np.asarray(errors, float), tol, []
        self.looks = np.zeros(self.errors.shape[1], int)

    def __call__(self, cost, a, b, eps, options, init):
        self.calls.append((eps, options.max_iter, options.tol, [x.copy() for x in init], a))
        error = np.full(len(a), 1e-2)
        if options.tol == self.tol:
            of = [int(np.flatnonzero((A == row).all(axis=1))[0]) for row in a]
            error = self.errors[self.looks[of], of]
            self.looks[of] += 1
        n_iter = 3 + np.arange(len(a)) if options.tol != self.tol else np.full(len(a), options.max_iter)
        return SimpleNamespace(f=init[0] + 1, g=init[1] + 3, error=error, n_iter=n_iter, converged=error <= options.tol)


def test_starts_at_larger_eps():
    cost = dense_cost(C)
    a, b, options = A[:2], B[:2], Options(max_iter=800, tol=1e-7)
    for steepness, stages in ((1000.0, 0), (2000.0, 0), (2001.0, 1), (4000.0, 1), (4001.0, 2), (17_000.0, 3)):
        solve = Planned(
            [[0.9, 0.8]] * max(stages, 1)
        )  # looks: in all as long as annealing takes at the least, 12 a stage
        spent, init = annealing.quartered(solve, cost, a, b, 0.01, options, steepness)
        assert (init is None) == (stages == 0) == (solve.calls == [])
        if not stages:
            assert spent.tolist() == [0, 0]
            continue
        # First a few iterations at eps itself, from zero, to the tolerance asked for.
        looks, annealed = solve.calls[:stages], solve.calls[stages:]
        assert all(call[:3] == (0.01, 10, 1e-7) for call in looks)
        assert [call[0] for call in annealed] == pytest.approx([0.01 * 4**k for k in range(stages, 0, -1)])
        assert all(call[1:3] == (800 // (4 * stages), 1e-2) for call in annealed)
        assert spent.tolist() == [10 * stages + k * stages for k in (3, 4)]
        assert all(not np.any(x) for call in (looks[0], annealed[0]) for x in call[3])
        np.testing.assert_allclose(*((x * (w > 0)).sum(axis=1) for x, w in zip(init, (a, b), strict=True)), rtol=1e-12)
        np.testing.assert_allclose(init[0][:, :1] + init[1], (1 + 3) * stages, rtol=1e-12)  # every one was begun with
    solve = Planned([[0.9]])
    spent, init = annealing.quartered(solve, cost, a, b, 0.01, Options(max_iter=11), 17_000.0)
    assert solve.calls == [] and spent.tolist() == [0, 0] and init is None  # nothing to spend


def test_a_problem_that_ends_sooner_than_annealing_would_is_not_annealed():
    """With two stages, 100 iterations: one problem ends in the first look, one falls fast enough, two do not.

    The first two looks tell nothing but the end: annealing takes as long.
    """
    cost, options = dense_cost(C), Options(max_iter=800, tol=1e-7)
    solve = Planned([[1e-8, 2e-4, 0.5, 1e-3], [0, 9e-8, 0.5, 5e-4]])
    spent, init = annealing.quartered(solve, cost, A, B, 0.01, options, 4001.0)
    assert spent.tolist() == [10, 20, 20 + 6, 20 + 8]
    assert [len(call[4]) for call in solve.calls] == [4, 3, 2, 2]
    assert (init[0][0] == 1).all() and (init[1][0] == 3).all() and (init[0][1] == 2).all()
    assert not (init[0][2] == 1).all()
    # With three, 150, of which 12 looks may be left after the third; with a budget of 20 for each, three.
    for most, error, spent in ((800, 0.289, 40), (800, 0.290, 30), (240, 0.0177, 40), (240, 0.0179, 30)):
        solve, few = Planned([[1.0], [1.0], [error], [error * 0.999]]), Options(max_iter=most, tol=1e-7)
        assert annealing.quartered(solve, cost, A[:1], B[:1], 0.01, few, 17_000.0)[0] == [spent + 9]
    # What a look promised is forgotten at the next,
    solve = Planned([[2e-2], [8.15e-4], [7.4e-5], [7e-5]])
    assert annealing.quartered(solve, cost, A[:1], B[:1], 0.01, options, 17_000.0)[0] == [40 + 9]
    # but where two more looks would do.
    solve = Planned([[1e-4], [1e-5], [1e-6], [9e-8]])
    assert annealing.quartered(solve, cost, A[:1], B[:1], 0.01, options, 4001.0)[0] == [40]
    # Those that are close do not anneal, nor wait for another look.
    solve = Planned([[1e-2, 1.1e-2], [0, 1.01e-2]])
    spent, init = annealing.quartered(solve, cost, A[:2], B[:2], 0.01, options, 4001.0, 1e-2)
    assert spent.tolist() == [10, 20 + 6] and [len(call[4]) for call in solve.calls] == [2, 1, 1, 1]
    assert (init[0][0] == 1).all() and (init[1][0] == 3).all()
    solve = Planned([[1e-8]])
    spent, init = annealing.quartered(solve, cost, A[:1], B[:1], 0.01, options, 4001.0)
    assert len(solve.calls) == 1 and spent.tolist() == [10] and (init[0] == 1).all()


def test_looks_leave_room_for_annealing_and_what_comes_after_it():
    """Each look promises that two more would do, and comes a third closer to that."""
    solve = Planned([[0.999e-7 * np.exp(10 * (2 / 3) ** (k + 1))] for k in range(40)])
    # Two values of eps, with 12 iterations each at most: 72 are left for looks.
    spent, _ = annealing.quartered(solve, dense_cost(C), A[:1], B[:1], 0.01, Options(max_iter=96, tol=1e-7), 4001.0)
    assert spent == [7 * 10 + 2 * 3]


def test_what_a_look_found_keeps_its_digits():
    """Of problems in float32 that share an iteration, with costs of 9e5 eps: 30 plain iterations solve them."""
    a, b = np.full((2, 2), 0.5, np.float32), np.array([[0.6, 0.4]] * 2, np.float32)
    C = np.array([[[0.3, 0.9], [0.1, 0.2]]] * 2, np.float32)
    result = cusink.sinkhorn(a, b, C, eps=1e-6, tol=1e-5)
    assert result.converged.all() and (result.n_iter <= 2 * 30 + 10).all()


def test_halved_is_plain_iterations_at_each_eps():
    f, g = annealing.halved(dense_cost(C), A, B, 0.03, Options(), 7.9)
    for k in range(4):
        state = {"f": np.zeros(5)}
        for stage in (3, 2, 1):
            found = reference.sinkhorn(A[k], B[k], C, 0.03 * 2**stage, 20, **state)
            state = {"f": found.f}
        u, v = A[k] > 0, B[k] > 0
        ours, theirs = f[k][u][:, None] + g[k][v], found.f[u][:, None] + found.g[v]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_patience_is_what_a_new_start_costs():
    found = Patience.start(3, 700.0, 1000.0, 10_000)  # ten halvings of 20 iterations
    assert (found.newton, found.cost, found.first, found.latest) == (700, 200, 400, 9700)
    assert (found.due, found.since, found.least) == (35, 0, 0)  # a twentieth of what Newton's method takes
    assert Patience.start(3, 400.0, 1000.0, 10_000).least == 40
    assert Patience.start(3, 420.0, 1000.0, 10_000).due == 21
    assert Patience.start(3, 3000.0, 1000.0, 10_000).due == 150
    assert Patience.start(3, 7000.0, 1000.0, 10_000).due == 200
    assert Patience.start(3, np.inf, 1000.0, 10_000).due == 50  # where it cannot be had
    assert found.level.shape == found.bound.shape == (3,)
    assert np.isinf(found.level).all() and np.isinf(found.bound).all()
    steep = Patience.start(3, 700.0, 4000.0, 10_000)  # annealed at once: past its plateau
    assert (steep.cost, steep.first) == (240, 240)
    assert Patience.start(1, 700.0, 4.0, 10_000).first == 200  # 200 iterations are for every problem
    flat = Patience.start(3, 700.0, 1.0, 10_000)  # nothing to halve
    assert flat.first > flat.latest
    tight = Patience.start(1, 700.0, 1000.0, 699)  # to halve would leave too few
    assert tight.first > tight.latest


def rules_of(*omega):
    count = len(omega)
    relaxation = Relaxation(np.array(omega), np.ones(count), np.zeros(count, np.int64), 1, True, False)
    return StopState.start(relaxation, StallDetector.start(count, np.dtype(np.float64), 1.0))


def test_who_begins_again_by_halving():
    rules = rules_of(1.0, 1.0, 1.5, 1.0)
    first, slow = Patience.start(4, np.inf, 1000.0, 10_000).look(rules, np.full(4, 1e-2), 200, 1e-6)
    assert not np.any(slow) and (first.since, first.due) == (200, 399)
    np.testing.assert_allclose(first.level, [1e-2, 1e-2, 1e-2 / 3, 1e-2])
    # Missing is log(bound / tol) at log(level / new) in 200: twice the 200 of annealing are allowed.
    fast = 1e-6 ** (1 / 3) * 1e-2 ** (2 / 3)  # half of what is missing was gained: as much again is left
    bound = np.array([0.99 * fast, 1.01 * fast, 1e-2, np.inf])
    second, slow = first.look(rules, bound, 400, 1e-6)
    assert slow.by_halving.tolist() == [False, True, True, False] and not slow.by_newton.any()
    assert not np.any(first.look(rules, bound, 9701, 1e-6)[1])
    assert first.look(rules, bound, 9700, 1e-6)[1].by_halving.any()
    assert second.select(np.array([2, 0])).level.tolist() == second.level[[2, 0]].tolist()
    assert second.select(np.array([2, 0])).bound.tolist() == bound[[2, 0]].tolist()


def test_who_begins_again_by_newton():
    """Where more is left than Newton takes, by the slower of two rates: of the bound, and of a plain iteration.

    No bound here is close to the solution.
    """
    rules = rules_of(1.0, 1.0, 1.0, 1.0)
    first, slow = Patience.start(4, 100.0, 1000.0, 10_000).look(rules, np.full(4, 1e4), 50, 1e-4)
    assert not np.any(slow)
    fast = 1.0  # half of what is missing was gained in 50: 50 are left
    slow_by = 1e-4 ** (1 / 3) * 1e4 ** (2 / 3)  # a third: 100 are left
    bound = np.array([fast, 0.99 * slow_by, 1.01 * slow_by, np.inf])
    _, slow = first.look(rules, bound, 100, 1e-4)
    assert slow.by_newton.tolist() == [False, False, True, False] and not slow.by_halving.any()
    # It need not pay where the iterations would not do; but some must be left for it.
    for newton, max_iter, turns in ((1e5, 200, True), (1e5, 10_000, False), (np.inf, 200, False), (1.0, 139, False)):
        first, _ = Patience.start(4, newton, 1.0, max_iter).look(rules, np.full(4, 1e4), 50, 1e-4)
        assert first.look(rules, np.full(4, 1.01 * slow_by), 100, 1e-4)[1].by_newton.all() == turns
    # Where it costs more than all iterations that are left, the last look with room for it decides.
    for max_iter, at, turns in ((950, 400, False), (950, 800, True), (949, 400, True)):
        first, _ = Patience.start(4, 1e5, 1.0, max_iter).look(rules, np.full(4, 1e4), at // 2, 1e-4)
        assert first.look(rules, np.full(4, 0.9e4), at, 1e-4)[1].by_newton.all() == turns
    # A larger omega makes the plain error look small; the bound has not moved.
    first, _ = Patience.start(4, 100.0, 1000.0, 10_000).look(rules, np.full(4, 1e4), 50, 1e-4)
    _, slow = first.look(rules_of(1.0, 1.0, 1.97, 1.97), np.full(4, 1e4), 100, 1e-4)
    assert slow.by_newton.all()


def test_close_problems_begin_again_by_newton_where_that_pays():
    rules, newton = rules_of(1.0, 1.0, 1.0), 150.0
    early = 2 * newton  # a rate may grow twofold yet
    first, slow = Patience.start(3, newton, 1000.0, 10_000).look(rules, np.full(3, 0.02), 10, 1e-12)
    assert not np.any(slow) and (first.since, first.due, first.least) == (10, 19, 40)
    close = 0.01 * np.array([1.0, 1.0, 1.01])
    assert first.look(rules, close, 20, 1e-12)[1].by_newton.tolist() == [True, True, False]  # early only those
    assert first.look(rules, close, 40, 1e-12)[1].by_newton.all()
    # Missing is log(0.01 / tol); log 2 of it takes ten iterations.
    for tol, turns in ((0.01 / 2 ** (0.99 * early / 10), False), (0.01 / 2 ** (1.01 * early / 10), True)):
        assert first.look(rules, close[:1].repeat(3), 20, tol)[1].by_newton.all() == turns
    tight, _ = Patience.start(3, newton, 1000.0, 59).look(rules, np.full(3, 0.02), 10, 1e-12)
    assert not np.any(tight.look(rules, close, 20, 1e-12)[1])  # 39 are left


def test_when_close_problems_are_looked_at():
    assert Patience.start(1, 100.0, 1000.0, 10_000).due == 10
    assert Patience.start(1, 100.0, 1000.0, 10_000, started=True).due == 1
    assert Patience.start(1, 420.0, 1000.0, 10_000, started=True).due == 21  # where it costs more, as all others
    first, _ = Patience.start(1, 100.0, 1.0, 10_000, started=True).look(rules_of(1.0), np.ones(1), 1, 1e-6)
    second, _ = first.look(rules_of(1.0), np.ones(1), 11, 1e-6)
    assert (first.due, second.due) == (2, 21)


CRAWLS = np.where(np.arange(16).reshape(4, 4) == 7, -1.85, 0.0), np.full(4, 0.25), np.full(4, 0.25), 0.001
TIES = 1 - np.eye(2), np.array([0.5, 0.5]), np.array([0.25, 0.75]), 1e-4


@pytest.mark.parametrize(("problem", "max_iter"), [(CRAWLS, 20_000), (TIES, 1000), (TIES, 200)])
def test_iterations_of_every_start_are_counted(monkeypatch, problem, max_iter):
    """Of a problem that is annealed at once, or after it has crawled."""
    taken, original = [], Iteration.advance

    def counted(self, omega, count):
        taken.append(count)
        return original(self, omega, count)

    def evaluated(self, logits, before=None):
        taken.append(1)
        return at(self, logits, before)

    def iterated(self, point, count):
        there, count = swept(self, point, count)
        taken.append(count - 1)  # the last one is evaluated
        return there, count

    at, swept = Semidual.at, Semidual.swept
    monkeypatch.setattr(Iteration, "advance", counted)
    monkeypatch.setattr(Semidual, "at", evaluated)
    monkeypatch.setattr(Semidual, "swept", iterated)
    costs, a, b, eps = problem
    result = unconverged(a, b, costs, eps=eps, max_iter=max_iter)
    assert result.n_iter == sum(taken) <= max_iter and result.n_iter > 20


# ---- gauges ----------------------------------------------------------------------------------------------------------


def test_the_gauge_has_equal_sums_over_bins_with_weight():
    f, g = rng.normal(size=A.shape) + 30, rng.normal(size=B.shape)
    found = gauge.in_gauge(dense_cost(C), A, B, f, g, EPS)
    for k in range(4):
        u, v = A[k] > 0, B[k] > 0
        constant = (g[k, v].sum() - f[k, u].sum()) / (u.sum() + v.sum())
        np.testing.assert_allclose(found[0][k], f[k] + constant, rtol=1e-13)
        np.testing.assert_allclose(found[1][k], g[k] - constant, rtol=1e-13)
        want = np.abs(f[k, u]).max() + np.abs(g[k, v]).max()
        assert gauge.size(np, A, B, f, g)[k] == pytest.approx(want)
    for x, y in zip(gauge.sized(dense_cost(C), A, B, f, g, EPS), (*found, gauge.size(np, A, B, *found)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


@pytest.mark.parametrize("apart", [True, False])
def test_islands_of_a_plan_get_gauges_of_their_own(apart):
    cost = np.array([[0.1, 1e9], [1e9, 0.3]])
    if not apart:
        cost[0, 1] = 0.2
    a = b = np.array([[0.5, 0.5]])
    f, g = np.array([[1e7, 0.1]]), np.array([[0.1 - 1e7, 0.2]])
    if not apart:
        f[0, 1], g[0, 1] = 1e7 + 0.1, 0.2 - 1e7
    found = gauge.in_gauge(dense_cost(cost), a, b, f, g, 1.0)
    np.testing.assert_allclose(found[0] + found[1], [[0.1, 0.3]], atol=1e-8)
    assert max(np.abs(x).max() for x in found) < 0.5
    if apart:
        np.testing.assert_allclose(found[0], found[1], atol=1e-8)


def test_a_bin_that_rounding_left_alone_keeps_a_potential_that_shows_it():
    """It would seem an island without mass, and its potential small: no rounding would be counted."""
    cost, a, b = np.array([[1.137896931751909e17, 1.0]]), np.ones((1, 1)), np.array([[0.3, 0.7]])
    found = gauge.in_gauge(dense_cost(cost), a, b, np.array([[-8e-15]]), np.array([[cost[0, 0], 0.35]]), 0.01)
    assert gauge.size(np, a, b, *found)[0] > 1e16
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(None, b[0], cost, eps=0.00964)
    assert not result.converged
    assert result.error >= abs(result.plan().sum(axis=0) - b[0]).sum()


def test_digits_that_were_lost_before_the_gauge_are_counted():
    """Annealing from a cost of 6e10 eps leaves potentials of 0.8, which then become 0.004."""
    a, b = np.array([0.28125, 0.25, 0.1875, 0.171875]), np.array([0.3641627193679638, 0.5264622806320363])
    cost = np.array([[0.0, 530.0], [0.0, 0.01], [0.0, 0.0], [0.0, 0.006]])
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, b, cost, eps=9e-09, tol=1e-9, overrelaxation=None)  # Newton's method would end it
    assert result.error >= abs(result.plan().sum(axis=1) - a).sum() / a.sum()


def test_potentials_without_digits_give_numbers_and_no_warning():
    a, cost = np.full(11, 1 / 11), np.zeros((11, 1))
    cost[6] = 9.3e19
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, None, cost, eps=0.0142)
    assert not result.converged and result.error >= 1
    assert np.isfinite(result.apply(np.ones(1), 1)).all() and np.isfinite(result.plan()).all()


# ---- measures with themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [math.inf, 0.7])
@pytest.mark.parametrize("own", [False, True])
def test_self_terms_are_the_optimum_and_take_the_steps_of_their_rule(rho, own):
    cost = C[:, :5] + C[:, :5].T
    costs = np.stack([cost * (1 + k / 9) for k in range(4)]) if own else cost
    found = self_potentials(dense_cost(costs), A, 0.3, Options(tol=1e-9, max_iter=400), rho)
    kappa = 1 if rho == math.inf else rho / (rho + 0.3)
    for k, a in enumerate(A):
        one, f, image = costs[k] if own else cost, np.zeros(5), None
        for count in range(1, 401):
            plain = reference.softmin(one, f, a, 0.3, axis=1)
            image = kappa * plain
            marginal = a * np.exp((f - plain) / 0.3), a * (1 if rho == math.inf else np.exp(-f / rho))
            if np.abs(marginal[0] - marginal[1]).sum() / (marginal[1].sum() if rho < math.inf else a.sum()) <= 1e-9:
                break
            f = f + (1 / (1.5 + 0.5 * math.cos(math.pi / 4 * (3 if count % 2 else 1)))) * np.where(a > 0, image - f, 0)
        assert abs(found.n_iter[k] - count) <= 1 and found.converged[k]
        np.testing.assert_allclose(found.f[k], reference.softmin(one, found.f[k], a, 0.3, axis=1) * kappa, atol=1e-8)
        P = reference.plan(a, a, one, 0.3, found.f[k], found.f[k])
        value = (P * one).sum() + 0.3 * reference.kl_to_product(P, a, a)
        if rho < math.inf:
            p, used = P.sum(axis=1), a > 0
            value += 2 * rho * (p[used] * np.log(p[used] / a[used]) - p[used] + a[used]).sum()
            value += 0.3 * (1 - P.sum())
        np.testing.assert_allclose(found.reg_cost[k], value, rtol=1e-8)
        if rho == math.inf:  # more accurate than the plan
            np.testing.assert_allclose(found.reg_cost[k], reference.optimum(a, a, one, 0.3).reg_cost, rtol=1e-12)
    short = self_potentials(dense_cost(cost), A, 0.01, Options(tol=1e-12, max_iter=4), rho)
    assert short.n_iter.tolist() == [4] * 4 and not short.converged.any()
    fixed = self_potentials(dense_cost(cost), A, 0.01, Options(tol=None, max_iter=4), rho)
    assert fixed.converged.all() and fixed.n_iter.tolist() == [4] * 4


# ---- values alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", ["easy", "given up", "of mass 3"])
def test_values_do_not_need_potentials(monkeypatch, case, dtype):
    """All but the error to the last bit, and the error to what a tolerance does not see."""
    cost, a, b, eps = CRAWLS if case == "given up" else (C, A, B, EPS)
    a, b = (np.atleast_2d(w).astype(dtype) * (3 if case == "of mass 3" else 1) for w in (a, b))
    b *= (a.sum(axis=1) / b.sum(axis=1))[:, None]
    operator, tol = dense_cost(cost.astype(dtype)), 1e-6 if dtype == np.float64 else 1e-4
    options = Options(tol=tol, max_iter=20_000)
    want = loop.solve(operator, a, b, eps, options, costs_of=operator.at)
    if case != "given up":
        monkeypatch.setattr(Iteration, "finish", None)  # nobody calls it
    found = loop.solve(operator, a, b, eps, options, costs_of=operator.at, potentials=False)
    assert want.converged.all() and found.converged.all()
    for name in ("cost", "n_iter", "converged"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    assert (found.error >= want.error).all() and (found.error <= want.error + 2 * loop.SPARED * tol).all()
    if case == "given up":
        assert want.n_iter.max() > 50


# ---- what a result is asked -----------------------------------------------------------------------------------------


def test_apply_says_what_is_no_vector():
    result = cusink.sinkhorn(A, B, C, eps=EPS)
    with pytest.raises(TypeError, match="'v' must be an array of vectors; got None"):
        result.apply(None, 1)
    for axis in (2, -1, 0.5, None):
        with pytest.raises(ValueError, match="'axis' must be 0"):
            result.apply(np.ones(6), axis)
    for v in (np.ones(5), np.ones((3, 6)), np.ones((4, 6, 1))):
        with pytest.raises(ValueError, match=r"'v' must have shape \(6,\) or \(4, 6\) for axis=1; got .*axis=0"):
            result.apply(v, 1)
    with pytest.raises(ValueError, match=r"'v' must have shape \(5,\) for axis=0"):
        cusink.sinkhorn(A[0], B[0], C, eps=EPS).apply(np.ones((1, 5)), 0)
    for v, axis in ((rng.normal(size=6), 1), (rng.normal(size=(4, 5)), 0)):
        want = np.einsum("bij,bj->bi" if axis else "bij,bi->bj", result.plan(), np.broadcast_to(v, (4, v.shape[-1])))
        np.testing.assert_allclose(result.apply(v, axis), want, atol=1e-14)


def test_a_cost_of_one_problem_is_that_of_all():
    result = cusink.sinkhorn(A, B, C[None], eps=EPS)
    np.testing.assert_array_equal(result.cost, cusink.sinkhorn(A, B, C, eps=EPS).cost)


# ---- what comes before iterations ------------------------------------------------------------------------------------


@pytest.fixture
def ahead(monkeypatch):
    """Replace the first look by one that finds `potentials` with `error`, after 11 iterations of its own."""
    told = SimpleNamespace(asked=[], quartered=[], error=1e-9, potentials=None)
    original = annealing.quartered

    def first_look(C, a, b, eps, options, steepness):
        told.asked.append((a, b, eps, options, steepness))
        f, g = told.potentials
        return Found(f[None], g[None], 7.0, told.error, 11)

    def quartered(*given):
        told.quartered.append(given[-1])
        return original(*given)

    monkeypatch.setattr("cusink.solver.loop.first_look", first_look)
    monkeypatch.setattr("cusink.solver.loop.quartered", quartered)
    return told


def test_what_the_first_look_solved_is_the_solution(ahead):
    ahead.potentials = np.array([1.0, 2.0]), np.array([4.0, 3.0])
    result = cusink.sinkhorn([0.5, 0.5], [0.25, 0.75], 1 - np.eye(2), eps=0.01)
    (_, b, eps, options, steepness), *others = ahead.asked
    assert not others and not ahead.quartered
    assert b.tolist() == [[0.25, 0.75]] and (eps, options.max_iter, steepness) == (0.01, 1000, 100.0)
    assert result.converged and result.n_iter == 11 and result.cost == 7 and 1e-9 <= result.error <= 1.01e-9 + 1e-12
    np.testing.assert_allclose(result.f, [2, 3])  # in the gauge of a result
    np.testing.assert_allclose(result.g, [3, 2])


def test_from_what_it_did_not_solve_iterations_go_on(ahead):
    a, b, cost = np.array([0.5, 0.5]), np.array([0.25, 0.75]), 1 - np.eye(2)
    plain = reference.sinkhorn(a, b, cost, 0.05, 3000)
    ahead.potentials, ahead.error = (plain.f, plain.g), 1e-3
    result = cusink.sinkhorn(a, b, cost, eps=0.05)
    assert result.converged and result.n_iter == 11 + 1 and not ahead.quartered  # close: it is not annealed
    ahead.error = 0.02
    result = cusink.sinkhorn(a, b, cost, eps=0.05)
    assert result.n_iter == 11 + 1 and ahead.quartered == [1e-2]


def test_who_is_looked_at_first(ahead):
    ahead.potentials = np.array([1.0, 2.0]), np.array([4.0, 3.0])
    a, cost = np.full((2, 2), 0.5), 1 - np.eye(2)
    for given in ({"callback": lambda *_: None}, {"init": (np.zeros(2), np.zeros(2))}, {"tol": None}, {"reach": 1.0}):
        unconverged(a[0], a[0], cost, eps=0.05, max_iter=100, **given)
        assert not ahead.asked, given
    cusink.sinkhorn(a, a, cost, eps=0.05)  # two problems
    assert not ahead.asked
    cusink.sinkhorn(a[0], a[0], cost, eps=0.05)
    assert len(ahead.asked) == 1


def test_an_iteration_is_left_after_all_that_comes_before_them():
    """What the first look and annealing took was all of `max_iter`, and there were no potentials."""
    C = [[1.0, 0.0, 0.4], [0.3, 0.1, 0.2], [0.1, 0.2, 0.3]]
    for max_iter in (60, 61, 64, 70, 80, 90):
        options = {"eps": 1 / 2500, "tol": 1e-9, "max_iter": max_iter, "check_every": 1, "normalise": True}
        result = unconverged([1, 1000, 100], [10, 10000, 1], C, **options)
        assert result.n_iter <= max_iter and np.isfinite(result.f).all() and np.isfinite(result.cost)
        a = np.array([1, 1000, 100]) / 1101
        assert np.abs(result.plan().sum(axis=1) - a).sum() <= result.error


def test_what_the_first_look_solved_to_a_large_tolerance_is_not_annealed(ahead):
    ahead.potentials, ahead.error = (np.array([1.0, 2.0]), np.array([4.0, 3.0])), 0.03
    result = cusink.sinkhorn([0.5, 0.5], [0.25, 0.75], 1 - np.eye(2), eps=1e-4, tol=0.05)
    assert result.converged and result.n_iter == 11 and not ahead.quartered


@pytest.mark.parametrize(("overrelaxation", "first"), [("auto", 1.0), (1.5, 1.5)])
def test_the_first_iteration_from_a_start_is_plain_unless_a_factor_is_asked_for(monkeypatch, overrelaxation, first):
    taken, advance = [], Iteration.advance

    def advanced(self, omega, count):
        taken.append((omega.tolist(), count))
        return advance(self, omega, count)

    monkeypatch.setattr(Iteration, "advance", advanced)
    init = rng.normal(size=A.shape) * EPS, rng.normal(size=B.shape) * EPS
    steep = cusink.sinkhorn(A, B, C, eps=np.ptp(C) / 200, init=init, overrelaxation=overrelaxation)
    assert taken[0] == ([first] * len(A), 1)
    assert taken[1][0][0] > 1 and steep.converged.all()
