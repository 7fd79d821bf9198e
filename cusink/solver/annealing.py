"""Starts for problems that hardly converge: their solutions at larger eps. Only the start depends on it.

Costs that differ by thousands of eps are annealed before the first iteration. Any other problem gets a start of another
kind once it has shown that it converges more slowly than that would take: one found by Newton's method, or annealed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import ANNEAL_ABOVE, StopState
from cusink.costs.cost import Solvable
from cusink.solver.gauge import in_gauge
from cusink.solver.semidual import CLOSE
from cusink.types import Array, HostArray

NEAR = 2  # looks until the end, where a problem goes on whatever it took
SHORTEST_LOOK = 10  # iterations between two looks that tell of a rate
LARGEST_ERROR = 2.0  # of a plan with the mass of the weights: where nothing is known
STAGE, LEAST_STAGE = 50, 12  # iterations that a stage of `quartered` takes where it is hard, and where it is easy
HALVING = 20  # iterations at each eps of `halved`
FIRST_LOOK = 20, 50, 200  # iterations until the first look: least, without Newton's method, most; then twice as many
OF_NEWTON = 1 / 20  # share of what Newton's method takes after which to look: a problem that ends there lost little
GROWING = 2.0  # by how much a rate may yet grow there, while the factor of over-relaxation is found
CLOSE_LOOK = 10  # iterations until the first look for close problems, where the usual first look is the earliest
LEAST_LEFT = 40  # of the iterations that a problem may take must be left for Newton's method,
ROOM = 150  # and so many where it was put off
PATIENCE = 200  # iterations that every problem gets before it may be annealed
WORTH = 2  # times the iterations of `halved` must be left before it pays

Potentials = tuple[Array, Array]


class Found(Protocol):
    """What `quartered` needs of a solution."""

    @property
    def f(self) -> Array:
        """Potentials (B, n)."""

    @property
    def g(self) -> Array:
        """Potentials (B, m)."""

    @property
    def error(self) -> HostArray:
        """Marginal errors (B,)."""

    @property
    def n_iter(self) -> HostArray:
        """Iterations (B,)."""

    @property
    def converged(self) -> HostArray:
        """Whether each problem reached the tolerance (B,)."""


def quartered(
    solve: Callable[..., Found],
    C: Solvable,
    a: Array,
    b: Array,
    eps: float,
    options: Options,
    steepness: float,
    close: float = 0.0,
) -> tuple[HostArray, Potentials | None]:
    """Return iterations (B,) spent on ..., 16 and 4 times eps and the potentials found; None where it does not pay.

    Before that, every problem gets as many iterations as annealing takes at the least, and as many as come between two
    looks as long as its error falls so fast that it ends sooner than annealing would, or very soon: those that end
    there are done. Those within an error of `close` are not annealed. `solve` takes a cost, weights, eps, options and
    `init`; `steepness` is the range of the costs over eps.
    """
    stages = math.ceil(math.log(steepness / ANNEAL_ABOVE, 4)) if steepness > 2 * ANNEAL_ABOVE else 0
    budget = options.max_iter // (4 * max(stages, 1))
    every = max(options.check_every, SHORTEST_LOOK)
    if not stages or budget <= every:
        return np.zeros(len(a), np.int64), None
    # Not in float32: potentials of thousands of eps would lose what was found from one look to the next.
    f, g = (C.xp.zeros(w.shape, np.float64) for w in (a, b))
    spent, done = np.zeros(len(a), np.int64), np.zeros(len(a), bool)
    some, error = np.arange(len(a)), np.full(len(a), LARGEST_ERROR)
    while len(some):
        found = solve(C.at(some), a[some], b[some], eps, replace(options, max_iter=every), init=(f[some], g[some]))
        f[some], g[some] = found.f, found.g
        spent[some], done[some] = spent[some] + found.n_iter, found.converged
        looks = _looks_left(found, error[some], options)
        # Mass may arrive all at once: an error that has not begun to fall tells nothing, unless it is that of rounding.
        under_way = ~found.converged & (found.n_iter >= every)
        early = under_way & (spent[some] + every <= stages * min(budget, LEAST_STAGE))
        ahead = early | (spent[some] + looks * every <= stages * min(budget, STAGE)) | (looks <= NEAR)
        error[some] = found.error
        room = spent[some] + every <= options.max_iter - stages * budget  # and for all values of eps
        some = some[ahead & room & ~(found.error <= close)]
    some = np.flatnonzero(~done & ~(error <= close))
    if len(some):
        part, weights = C.at(some), (a[some], b[some])
        init: Potentials = (C.xp.zeros_like(weights[0]), C.xp.zeros_like(weights[1]))
        for stage in range(stages, 0, -1):
            larger = eps * 4**stage
            found = solve(part, *weights, larger, replace(options, max_iter=budget, tol=1e-2), init=init)
            spent[some], init = spent[some] + found.n_iter, in_gauge(part, *weights, found.f, found.g, larger)
        f[some], g[some] = init
    return spent, (f, g)


def _looks_left(found: Found, before: HostArray, options: Options) -> HostArray:
    """Return after how many more looks (B,) problems will end, at the rate of the last one; NaN for those that did."""
    assert options.tol is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        # Not logarithms of ratios: on the way an error may be near the largest number.
        left = np.log(found.error)
        gained, missing = np.log(before) - left, left - np.log(options.tol)
        looks = np.where(gained > 0, missing / gained, np.inf)
    return np.where(found.converged, np.nan, looks)


def still_needed(earlier: HostArray, bound: HostArray, tol: float, count: int) -> HostArray:
    """Return how many iterations (B,) are left at the rate of the last `count`; inf where the bound did not fall."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gained: HostArray = np.log(earlier / bound)
        return np.where(gained > 0, count * np.log(bound / tol) / gained, np.inf)


def halved(C: Solvable, a: Array, b: Array, eps: float, options: Options, steepness: float) -> Potentials:
    """Return potentials (B, n) and (B, m) found by halving eps every `HALVING` plain iterations, down to twice eps."""
    f, g = C.xp.zeros_like(a), C.xp.zeros_like(b)
    every, plain = np.arange(len(a)), np.ones(len(a))
    for stage in range(halvings(steepness), 0, -1):
        iteration = C.iteration(a, b, eps * 2**stage, f, g, options.method)
        iteration.advance(plain, HALVING)
        f, g = in_gauge(C, a, b, *iteration.finish(every)[:2], eps * 2**stage)
    return f, g


def halvings(steepness: float) -> int:
    """Return how often eps is halved until it is what it is, from the range of the costs on."""
    return max(0, math.ceil(math.log2(max(steepness, 1))))


class Slow(NamedTuple):
    """Which problems (B,) begin again: from a start by `newton`, from one by `halved`, or without their own."""

    by_newton: HostArray
    by_halving: HostArray
    poor: HostArray

    @classmethod
    def none(cls, problems: int) -> Self:
        """Return that none does."""
        return cls(*np.zeros((3, problems), bool))

    def among(self, at: HostArray | slice) -> HostArray:
        """Return which of the problems `at` begin again for whatever reason."""
        return self.by_newton[at] | self.by_halving[at] | self.poor[at]

    def parts(self, n_iter: HostArray) -> Iterator[tuple[str, HostArray]]:
        """Iterate over reasons and problems: single ones for `newton`, else all that have taken equally many."""
        for row in np.flatnonzero(self.by_newton):
            yield "by_newton", np.asarray([row])
        for why, marked in (("by_halving", self.by_halving & ~self.by_newton), ("poor", self.poor)):
            for so_far in np.unique(n_iter[marked]):
                yield why, np.flatnonzero(marked & (n_iter == so_far))


@dataclass(frozen=True, eq=False)
class Patience:
    """Tells which problems converge so slowly that a new start takes less."""

    newton: float  # iterations that `newton` takes; inf where it cannot be had
    max_iter: int
    cost: int  # iterations that `halved` takes
    first: int  # iterations before which it is too early for `halved`,
    latest: int  # and after which it is too late
    least: int  # iterations before which only close problems turn to Newton's method
    due: int  # iterations at which to look
    since: int  # iterations at the last look
    bound: HostArray  # (B,), the bound on the error at the last look
    level: HostArray  # (B,), the error of a plain iteration, estimated then

    @classmethod
    def start(cls, problems: int, newton: float, steepness: float, max_iter: int, *, started: bool = False) -> Self:
        """Return the patience with problems at their start; `newton` is the `worth` of Newton's method.

        Of problems that were `started` by iterations, the first one tells an error.
        """
        cost = HALVING * halvings(steepness)
        # Plateaus are common before ordinary problems begin to converge; those annealed at once are past them.
        first = max(PATIENCE, cost if steepness > 2 * ANNEAL_ABOVE else 2 * cost)
        latest = max_iter - cost - PATIENCE // 2 if cost else 0
        least, usual, most = FIRST_LOOK
        usual = usual if newton == math.inf else int(np.clip(OF_NEWTON * newton, least, most))
        due = usual if usual > least else 1 if started else CLOSE_LOOK
        least = 0 if due == usual else 2 * usual
        return cls(newton, max_iter, cost, first, latest, least, due, 0, *np.full((2, problems), np.inf))

    def look(self, rules: StopState, bound: HostArray, done: int, tol: float) -> tuple[Self, Slow]:
        """Return the patience after a look at the bounds (B,) after `done` iterations, and who is given up."""
        omega = rules.relaxation.omega
        level = bound * (2 - omega) / omega
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            gained = np.log(self.level / level), np.log(self.bound / bound)
            rates = [gain / (done - self.since) for gain in gained]
            missing = np.log(bound / tol)
        # Before the first look nothing is known. Neither number alone tells much: a larger omega makes one larger and
        # the other smaller.
        promising, worse = rates[0], np.minimum(*rates)
        known = np.isfinite(bound) & (missing > 0) & (self.since > 0)
        by_newton, by_halving, poor = Slow.none(len(bound))
        with np.errstate(invalid="ignore"):  # a rate of minus infinity times nothing
            left = self.max_iter - done
            # Where all iterations that are left take less than Newton's method, it is for problems that would not end
            # at all. Early rates do not tell which: it is put off, as waiting costs less than it would.
            last = left - done < ROOM
            if self.newton < np.inf and left >= LEAST_LEFT and (self.newton < left or last):
                early = done < self.least
                rate = GROWING * worse if early else worse
                by_newton = known & ((bound <= CLOSE) | (not early)) & ~(missing <= min(self.newton, left) * rate)
            if self.first <= done <= self.latest:
                by_halving = known & ~by_newton & ~(missing <= WORTH * self.cost * promising)
        due = max(2 * done - 1, done + 1)  # twice as many again after a start, whose first look is taken after one
        return replace(self, due=due, since=done, bound=bound, level=level), Slow(by_newton, by_halving, poor)

    def select(self, index: HostArray) -> Self:
        """Return the patience with the problems at `index`."""
        return replace(self, bound=self.bound[index], level=self.level[index])
