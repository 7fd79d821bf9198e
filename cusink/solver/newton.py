"""Newton's method for single problems that hardly converge, on the dual objective of the smaller side alone.

See `cusink.solver.semidual`. What it solved is the solution; elsewhere iterations go on from what it found.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import ANNEAL_ABOVE, NEARLY_ALL, PLAIN_IF_ONE_BIN, RELAX_ABOVE
from cusink.costs.cost import Cost
from cusink.costs.heap import keep_heap
from cusink.solver.balance import evened, offsets
from cusink.solver.gauge import DIGITS
from cusink.solver.semidual import CLOSE, QUADRATIC, Point, Semidual
from cusink.types import Array, HostArray

PACE = 0.9  # factor of the error for each evaluation from the potentials at hand on; beyond it, eps is annealed
STAGE, PER_STAGE = 4, 20  # factor between two values of eps; evaluations at the larger ones
ROUGH, FINER = 1e-2, 100  # tolerance there; over the range of the costs over eps: what is left out of place is far away
FAR, MANY_STAGES = 0.1, 2  # error beyond which steps lead nowhere, where eps has more larger values than that
BETWEEN = 2  # iterations at every value, before a step: they lower the error more than they come closer
FAST = 8  # factor by which they lower it where as many again are taken before a step
EASY = 2  # largest values of eps that are left out: from there on any start will do
LAST = 100  # evaluations at the smallest eps
SETTLING = 10  # evaluations after parts of a plan were moved against each other
LARGEST = 1 << 20  # entries of a plan up to which some copies of it may be made
LARGEST_STORED = 1 << 22  # where they are, of a problem alone: its iteration holds 8 such arrays, Newton's method 10
ARRAYS = 12  # of the size of the costs, twice which malloc is to keep from one problem to the next
ALONE, BATCH, TILE = 1, 16, 256  # that share an iteration: one problem, those of a call, pairs of a distance matrix
MANY = 64  # problems of one cost from which on they are a tile
EVALUATIONS = 15  # that a problem takes, more or less
FIRST_EVALUATIONS = 8  # until it is known not to be too far away
CLOSE_EVALUATIONS = 1  # that are counted on within an error of `CLOSE`: rates of iterations promise too much
CHEAP = 300  # iterations that take as long as Newton's method, up to which a problem begins with it in view
LEAST = 30  # iterations that it must be allowed then
LOOK, LEAST_LOOKED, MOST_LOOKED = 5, 10, 40  # plain iterations between two looks; those before it, at least and at most


class Found(NamedTuple):
    """Potentials f (1, n) and g (1, m), transport cost, marginal error, and evaluations of the plan.

    `steps` are those of Newton's method: what was `taken` without the plain iterations before it.
    """

    f: Array
    g: Array
    cost: float
    error: float
    taken: int
    steps: int = 0


def newton(
    C: Cost[Any], a: Array, b: Array, eps: float, start: tuple[Array, Array], tol: float, steepness: float, most: int
) -> Found:
    """Return potentials of one problem from the potentials `start`, after `most` evaluations, at most `OVERSHOOT` more.

    `error` may be above `tol`. `steepness` is the range of the costs over eps. Where `start` is too far away, eps is
    annealed.
    """
    dual, changed = _dual(C, a, b, eps)
    moving = start[dual.axis][0].astype(np.float64)
    point, taken = _climbed(dual, dual.begun(moving[dual.present]), tol, steepness, most)
    return _found(dual, (a, b), changed, *_settled(dual, point, tol, taken, most))


def in_one_bin(C: Any, a: Array, b: Array) -> HostArray:
    """Return which problems (B,) have nearly all weight of a side in one bin: an iteration solves them to that."""
    in_one_row, in_one_column = (w.max(axis=1) >= NEARLY_ALL * w.sum(axis=1) for w in (a, b))
    found: HostArray = C.to_host(in_one_row | in_one_column)
    return found


def first_look(C: Cost[Any], a: Array, b: Array, eps: float, options: Options, steepness: float) -> Found | None:
    """Return where plain iterations lead one problem, and Newton's method after these; None where it is not for it.

    Where the iterations that are left take less than that, it is where the plain ones ended. `options` have a
    tolerance; about half of their iterations are taken at most. An error of inf says to begin anew: where costs are so
    large that they are annealed, iterations go on better from there than from where steps did not get any farther.
    """
    tol, most = options.tol, options.max_iter // 2
    n, m = a.shape[1], b.shape[1]
    price = worth(n, m, ALONE, C.stored)
    usual = options.overrelaxation == "auto" and options.method == "auto" and C.xp is np
    steep = RELAX_ABOVE <= steepness <= DIGITS
    if not (usual and steep and price <= CHEAP and most >= LEAST and tol and tol > 0):
        return None
    least = LEAST_LOOKED + (PLAIN_IF_ONE_BIN if in_one_bin(C, a, b)[0] else 0)
    dual, changed = _dual(C, a, b, eps)
    point, taken, failed, plain_ones = dual.first(), 1, False, math.inf
    error = dual.error(point)
    while error > tol:  # and no NaN
        before = error
        point, more = dual.swept(point, LOOK)
        error, taken = dual.error(point), taken + more
        plain, relaxed = iterations_left(before, error, tol, more)
        steps = CLOSE_EVALUATIONS if error <= CLOSE else FIRST_EVALUATIONS
        by_newton = steps * _step(n, m) / _sweep(n, m)
        if taken > MOST_LOOKED or taken > least and plain > by_newton:
            if _far(error, steepness) or relaxed + hand_over(n, m) > price * steps / EVALUATIONS:
                plain_ones, (point, more) = taken, _climbed(dual, point, tol, steepness, most - taken)
                error, taken = dual.error(point), taken + more - 1  # it begins where it was
                failed = error > tol and steepness > 2 * ANNEAL_ABOVE
            break
    if not math.isfinite(error):
        return None
    found = _found(dual, (a, b), changed, *_settled(dual, point, tol, taken, most))
    found = found._replace(steps=found.taken - int(min(plain_ones, taken)))
    return found._replace(error=math.inf) if failed else found


def iterations_left(before: float, error: float, tol: float, count: int) -> tuple[float, float]:
    """Return how many iterations lead to `tol`, plain and over-relaxed as well as can be, after `count` plain ones."""
    if not tol < error < before:
        return (0.0, 0.0) if error <= tol else (math.inf, math.inf)
    missing, rate = math.log(error / tol), max(math.log(before / error) / count, 1e-9)
    omega = 2 / (1 + math.sqrt(-math.expm1(-rate)))
    return missing / rate, missing / -math.log(min(max(omega - 1, 1e-3), 1 - 1e-6))


def _dual(C: Cost[Any], a: Array, b: Array, eps: float) -> tuple[Semidual, float]:
    """Return the dual objective in float64 of weights of one mass, and what share of that of `b` had to change.

    Between islands, which forbidden pairs keep apart, no mass is exchanged: each is given one mass of its own. The
    least difference, as of the rounding of weights in float32, would be a slope without end.
    """
    C, a, b = C.widened(), a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)
    keep_heap(ARRAYS * a.size * b.size * 8)  # of the host, also for a device, whose memory is kept in any case
    even = b * (a.sum() / b.sum())
    dual = Semidual(C, a, even, eps)
    if not dual.finite:
        costs, u, v = (C.to_host(x) for x in (C.costs_of(0, slice(None)), a[0], even[0]))
        even = even * C.xp.asarray(evened(np.isfinite(costs), u, v))
        dual = Semidual(C, a, even, eps)
    return dual, float(abs(even - b).sum() / b.sum())


def _climbed(dual: Semidual, start: Point, tol: float, steepness: float, most: int) -> tuple[Point, int]:
    """Return where steps from `start` lead, annealed if that is too far away, and how many evaluations they took."""
    stages = _stages(steepness)
    point, error, taken = start, dual.error(start), 1
    if not (_far(error, steepness) and taken + stages * PER_STAGE < most):
        point, error, taken = dual.ascend(start, tol, min(LAST, most), PACE)
    if error > tol and taken + stages * PER_STAGE < most:
        potential = dual.xp.zeros(len(dual.present))
        for stage in range(stages, -1, -1):
            left = most - taken
            at_most = min(PER_STAGE, left - 1) if stage else min(LAST, left)
            if stage and at_most <= 0:  # stages may have taken more than they are allowed, and one remains
                continue
            rough = dual.annealed(STAGE**stage)
            point, swept = rough.begun(potential), 0
            goal, before, error = tol, math.inf, rough.error(point)
            while swept + BETWEEN < at_most and error > goal and FAST * error <= before:
                before = error
                point, more = rough.swept(point, BETWEEN)
                error, swept = rough.error(point), swept + more
                if not stage:  # at the smallest eps steps end far below the tolerance, iterations just below it
                    break
                if goal == tol:
                    goal = max(tol, min(ROUGH, FINER / steepness, QUADRATIC * error))
            point, error, more = rough.ascend(point, goal, at_most - swept)
            potential, taken = rough.potential(point), taken + swept + more
    return point, taken


def _stages(steepness: float) -> int:
    """Return at how many larger values of eps to begin."""
    return max(0, math.ceil(math.log(max(steepness, 1), STAGE)) - EASY)


def _far(error: float, steepness: float) -> bool:
    """Return whether a point is so far away that steps from there lead nowhere."""
    return error > FAR and _stages(steepness) > MANY_STAGES


def _settled(dual: Semidual, point: Point, tol: float, taken: int, most: int) -> tuple[Point, int]:
    """Return a solution with the parts of its plan in balance, and `taken` with the evaluations that this took."""
    error = dual.error(point)
    if not (error <= tol and taken < most):
        return point, taken
    to_host = dual.C.to_host
    moved = offsets(to_host(dual.log_plan(point)), to_host(dual.fixed), to_host(dual.moving), error)
    if moved is None:
        return point, taken
    start = dual.at(point.logits + dual.xp.asarray(moved), point.kernel)
    there, error, more = dual.ascend(start, tol, min(SETTLING, most - taken))
    return there if error <= tol else point, taken + more


def _found(dual: Semidual, sides: tuple[Array, Array], changed: float, point: Point, taken: int) -> Found:
    """Return what is known of a point of the problem with weights (1, n) and (1, m), of which a share was `changed`."""
    point, error = dual.ended(point)
    f, g = dual.potentials(point, sides[dual.axis].shape[1])
    return Found(f, g, dual.cost(point), error + changed, taken)


def sharing(problems: int, shared: bool) -> int:
    """Return how many share an iteration, more or less: problems with one cost, or one each, are a product apart."""
    if problems == 1:
        return ALONE
    return TILE if shared and problems >= MANY else BATCH


def worth(n: int, m: int, together: int, stored: bool = False) -> float:
    """Return how many iterations of a problem take as long as `newton`, more or less, where `together` share each.

    It is inf for a plan that is too large: that of a problem alone may be larger if its costs are `stored`.

    Counted in units of 0.05 ns, as measured on one core: an iteration of a single problem waits for memory, a batch
    does not; an exponential and a call take their time too. `together` is one of three constants, so that among
    as many, more or less, no problem ends in another way because of others.
    """
    if n * m > (LARGEST_STORED if stored and together == ALONE else LARGEST):
        return math.inf
    return EVALUATIONS * _step(n, m) / _iteration(n, m, together)


def _step(n: int, m: int) -> float:
    """Return how long an evaluation by Newton's method takes, with its step."""
    k = min(n, m)
    return n * m * (0.54 * k + 40) + 0.7 * k**3 + 2e6


def _sweep(n: int, m: int) -> float:
    """Return how long one of its own iterations takes, see `Semidual.swept`."""
    return 6 * n * m + 2e5


def hand_over(n: int, m: int) -> float:
    """Return how many iterations of a single problem take as long as to make a kernel and to finish with it."""
    return (800 * n * m + 1.5e7) / _iteration(n, m, ALONE)


def _iteration(n: int, m: int, together: int) -> float:
    """Return how long an iteration of one of the problems takes that share it."""
    return 4 * n * m * (1 + 3 / together) + 8e5 / together
