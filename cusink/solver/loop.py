"""The solver's loop: iterate, check, stop each problem by itself, anneal where the cost is steep."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.costs.cost import Cost, Solvable
from cusink.costs.operators import Iteration
from cusink.solver import forbidden, gauge
from cusink.solver.annealing import HALVING, Patience, Slow, halved, halvings, quartered
from cusink.solver.newton import newton, worth
from cusink.solver.solution import Solution
from cusink.types import Array, HostArray, Method

CARRIED = 4  # roundings of a product of scalings and a kernel that an entry of the plan carries
PLAN_ROUNDING = 1.5 * float(np.finfo(float).eps)  # of an exponent f / eps + log a + g / eps + log b - C / eps
UNCHECKED = 1e-4  # error from rounding up to which float32 is kept where no tolerance is given
CHECKS_PER_LAUNCH = 16  # at most, where a backend makes the checks itself

Start = Callable[[Array, Array, float, Array, Array, Method], Iteration]  # a, b, eps, f, g, method
Callback = Callable[[int, HostArray], Any]


def solve(
    C: Solvable,
    a: Array,
    b: Array,
    eps: float,
    options: Options,
    *,
    init: tuple[Array, Array] | None = None,
    callback: Callback | None = None,
    start: Start | None = None,
    span: tuple[float, float] | None = None,
    costs_of: Callable[[HostArray], Cost[Any]] | None = None,
    restrict: bool = True,
    annealed: bool = False,
    many: bool = True,
) -> Solution:
    """Solve checked problems with weights a (B, n) and b (B, m).

    `init` is (f, g); `start` puts problems under way where the iteration of the backend is not wanted. `span`, numbers
    between which the costs lie, decides how problems begin: pass that of the whole cost where `C` is a part of it.
    `costs_of` returns the costs of some of the problems. With it, those that hardly converge begin again from another
    start, one by Newton's method alone if `init` is `annealed`; and with `restrict`, numbers too large for the digits
    of float64 are left out where they forbid their pairs. `many` says that problems come in large numbers.
    """
    low, high = C.range() if span is None else span
    steepness = (high - low) / eps
    if not math.isfinite(steepness):
        raise ValueError(f"'eps' must be such that C / eps is finite; got {eps:g} for costs of up to {high:g}")
    xp, dtype = C.xp, a.dtype
    if high - low > forbidden.FORBIDS * eps and restrict and options.tol is not None and costs_of is not None:
        return _beside_huge_numbers(costs_of, a, b, eps, options, init, callback, (low, high), many)
    exponent = max(abs(low), abs(high)) / eps
    widened = _needs_float64(C, dtype, options.tol, exponent)
    if widened:
        C, a, b = C.widened(), a.astype(np.float64), b.astype(np.float64)
        if start is None:  # masses that were equal in float32 are so in float64, or the error would not fall
            b *= (a.sum(axis=1) / b.sum(axis=1))[:, None]
        costs_of = None if costs_of is None else _widened(costs_of)
    size = None if start else _size(xp, a)
    if size is not None:  # exact: the sizes are powers of two
        a, b = a / size[:, None].astype(a.dtype), b / size[:, None].astype(b.dtype)
        lift = (eps / 2 * np.log(2)) * xp.log2(size)[:, None]
        init = None if init is None else (init[0] + lift, init[1] + lift)
    rounding = CARRIED * float(np.finfo(a.dtype.name).eps) / 2
    wanted = tol = options.tol
    if tol is not None:  # leave room for the rounding that is added to the error
        tol -= rounding + min(2 * (C.exponent_rounding() + PLAN_ROUNDING) * exponent, tol / 2)
    options = replace(options, tol=tol)
    spent = np.zeros(len(a), np.int64)
    if tol is not None and init is None:
        rough = functools.partial(solve, start=start, span=(low, high), costs_of=costs_of, restrict=False, many=many)
        spent, init = quartered(rough, C, a, b, eps, options, steepness)
    f, g = (xp.zeros_like(a), xp.zeros_like(b)) if init is None else init
    iteration = (start or C.iteration)(a, b, eps, f, g, options.method)
    setting = None if tol is None and options.overrelaxation == "auto" else options.overrelaxation
    # Where exponents are taken in float64, their rounding explains no error of float32.
    explained = exponent * (1 if start else 2 * C.exponent_rounding() / float(np.finfo(C.dtype.name).eps))
    rules = StopState.start(
        Relaxation.start(len(a), setting, steepness), StallDetector.start(len(a), C.dtype, explained)
    )
    remaining = replace(options, max_iter=max(options.max_iter - int(spent.max()), 0))
    found = Solution.empty(xp, a, b)
    patience = None
    if costs_of is not None and setting == "auto":
        least = worth(a.shape[1], b.shape[1], many)
        patience = Patience.start(len(a), least, 1.0 if annealed else steepness, remaining.max_iter)
    slow = _iterate(C, iteration, rules, remaining, found, callback, init is not None, patience)
    if patience is not None and costs_of is not None:
        parts = [np.asarray([row]) for row in slow.by_newton]
        for so_far in np.unique(found.n_iter[slow.by_halving]):
            parts.append(slow.by_halving[found.n_iter[slow.by_halving] == so_far])
        for part in parts:
            costs, weights, by_newton = costs_of(part), (a[part], b[part]), part[0] in slow.by_newton
            resume = functools.partial(solve, callback=_later(callback, found, part), span=(low, high), restrict=False)
            if not by_newton:
                resume = functools.partial(resume, costs_of=costs.at, annealed=True, many=many)
            _restart(resume, costs, weights, eps, remaining, found, part, steepness, by_newton)
    f, g, cost, error, n_iter, in_range, needed, computed = found
    if size is not None:
        f, g, cost = f - lift, g - lift, cost * size
    if start is None:
        f, g = gauge.in_gauge(C, a, b, f, g, eps)
    size_of = C.to_host(gauge.size(xp, a, b, f, g)) / eps
    error = error + rounding + np.expm1(np.minimum((C.exponent_rounding() + PLAN_ROUNDING) * size_of, 700.0))
    if start is None and exponent > gauge.DIGITS:
        gauge.equalise(C, a, b, f, g, eps, gauge.DIGITS_IF_STEEP)
    reached = in_range & (error <= (math.inf if wanted is None else wanted))
    return Solution(f, g, cost.astype(dtype, copy=False), error, n_iter + spent, reached, needed + spent, computed)


def _widened(costs_of: Callable[[HostArray], Cost[Any]]) -> Callable[[HostArray], Cost[Any]]:
    """Return the same costs in float64."""
    return lambda part: costs_of(part).widened()


def _beside_huge_numbers(
    costs_of: Callable[[HostArray], Cost[Any]],
    a: Array,
    b: Array,
    eps: float,
    options: Options,
    init: tuple[Array, Array] | None,
    callback: Callback | None,
    span: tuple[float, float],
    many: bool,
) -> Solution:
    """Solve without the pairs whose costs are numbers of another size, and with them the problems that need them."""
    every, limit = np.arange(len(a)), span[0] + forbidden.FORBIDS * eps
    C = costs_of(every)
    out = Solution.empty(C.xp, a, b)

    def solved(at: HostArray, restricted: bool) -> Solution:
        def costs(part: HostArray) -> Cost[Any]:
            return forbidden.without(costs_of(at[part]), limit) if restricted else costs_of(at[part])

        return solve(
            costs(every[: len(at)]),
            a[at],
            b[at],
            eps,
            options,
            init=None if init is None else (init[0][at], init[1][at]),
            callback=_later(callback, out, at),
            span=None if restricted else span,
            costs_of=costs,
            restrict=False,
            many=many,
        )

    at, left = np.flatnonzero(forbidden.promising(C, a, b, limit, options.tol or 0.0)), every
    if len(at):
        found = solved(at, restricted=True)
        sound = found.converged & forbidden.carried_nothing(C, a[at], b[at], found.f, found.g, eps, limit)
        left = np.setdiff1d(every, at[sound])
        out.put(at, found)
    if len(left):
        found = solved(left, restricted=False)
        found.n_iter[:] += out.n_iter[left]
        out.put(left, found)
    return out._replace(computed=found.computed)


def _needs_float64(C: Solvable, dtype: Any, tol: float | None, exponent: float) -> bool:
    """Return whether float32 has too few digits for the exponents, or for the tolerance."""
    rounding = CARRIED * float(np.finfo(dtype.name).eps) / 2 + C.exponent_rounding() * exponent
    return bool(dtype == np.float32 and rounding > (UNCHECKED if tol is None else tol / 2))


def _size(xp: Any, weights: Array) -> Array | None:
    """Return powers of two (B,) near the masses; None where all are 1."""
    size = xp.exp2(xp.round(xp.log2(weights.sum(axis=1, dtype=np.float64))))
    return None if (size == 1).all() else size


def _iterate(
    C: Solvable,
    iteration: Iteration,
    rules: StopState,
    options: Options,
    out: Solution,
    callback: Callback | None,
    started: bool,
    patience: Patience | None = None,
) -> Slow:
    """Iterate until every problem has stopped, and write what it ends with into `out`.

    There `converged` says whether the problem stayed in range. Return which problems `patience` gave up.
    """
    tol, max_iter = options.tol, options.max_iter
    active, done = np.arange(len(out.error)), 0
    given_up = Slow(*np.zeros((2, len(out.error)), bool))
    earlier, since = np.full(len(out.error), np.nan), 0  # the bounds after about half of the iterations
    while len(active) and done < max_iter:
        # A problem that a device stopped in vain is behind the others.
        count = _iterations_until_check(options, int(out.n_iter[active].max()), callback is not None, started)
        checks = 1
        if iteration.stops_itself and tol is not None and callback is None and count == options.check_every:
            ahead = max_iter if patience is None else min(max_iter, -(-patience.due // count) * count)
            checks = max(1, min(CHECKS_PER_LAUNCH, (ahead - int(out.n_iter[active].max())) // count))
        if checks > 1 and tol is not None:
            rules, bound, taken, over = iteration.advance_until_converged(rules, tol, count, checks)
        else:
            bound, taken = C.to_host(iteration.advance(rules.relaxation.omega, count)), np.asarray(count)
            over = np.zeros(len(active), bool) if tol is None else ~np.isfinite(bound) | rules.may_end(bound, tol)
            rules = rules.observe(bound, count)
            over |= (tol is not None) & rules.stall.stalled
        out.n_iter[active] += taken
        done = int(out.n_iter[active].min())
        out.error[active] = bound
        if callback is not None:
            callback(done, out.error.copy())
        spent = out.n_iter[active] >= max_iter
        if tol is not None and spent.any():
            out.needed[active[spent]] = done + _remaining(earlier[active], bound, tol, done - since)[spent]
        if done >= 2 * since:
            earlier[active], since = bound, done
        over |= spent
        if patience is not None and tol is not None and done >= patience.due:
            patience, slow = patience.look(rules, bound, done, tol)
            for chosen, marked in zip(slow, given_up, strict=True):
                marked[active[chosen]] = True
                over |= chosen
        if over.any():
            index = np.flatnonzero(over)
            at = slice(None) if len(index) == len(out.error) else active[index]
            out.f[at], out.g[at], out.cost[at], measured = iteration.finish(index)
            out.error[at] = C.to_host(measured)
            out.converged[at] = np.isfinite(out.error[at] if tol is not None else bound[index])
            vain = np.zeros(len(active), bool)
            if tol is not None:
                # The error is not within the tolerance, or rounding made it exceed its bound: the problem goes on.
                on = (out.error[at] > tol) & (out.n_iter[at] < max_iter) & ~rules.stall.stalled[index]
                for marked in given_up:
                    marked[at] &= on
                vain[index] = on & (bound[index] != np.inf) & ~(given_up.by_newton | given_up.by_halving)[at]
            if vain.any():
                rules = rules.refuse(np.flatnonzero(vain))
            index = np.flatnonzero(~over | vain)
            if not len(index):
                break
            iteration.keep(index)
            rules, active = rules.select(index), active[index]
            patience = patience and patience.select(index)
    return Slow(*map(np.flatnonzero, given_up))


def _restart(
    resume: Callable[..., Solution],
    C: Cost[Any],
    weights: tuple[Array, Array],
    eps: float,
    options: Options,
    out: Solution,
    slow: HostArray,
    steepness: float,
    by_newton: bool,
) -> None:
    """Solve the problems `slow` again, from another start, and keep in `out` what is better.

    They have taken equally many iterations; `C` and `weights` are theirs. `resume` takes a cost, weights, eps, options
    and `init`. `by_newton`, for a single problem, tries that first.
    """
    left = options.max_iter - int(out.n_iter[slow[0]]) - 1
    init, taken = None, 0
    if by_newton and options.tol is not None:
        wide, a, b = C.widened(), *(x.astype(np.float64) for x in weights)
        b *= a.sum() / b.sum()
        start = out.f[slow], out.g[slow]
        *potentials, error, taken = newton(wide, a, b, eps, start, options.tol / 2, steepness, left)
        init = tuple(potentials) if error < out.error[slow[0]] else None
    annealed = HALVING * halvings(steepness)
    if init is None and taken + annealed <= left:
        init, taken = halved(C, *weights, eps, options, steepness), taken + annealed
    out.n_iter[slow] += taken
    if init is None:
        init = out.f[slow], out.g[slow]
    rest = replace(options, max_iter=max(1, left + 1 - taken))
    found = resume(C, *weights, eps, rest, init=init)
    out.n_iter[slow] += found.n_iter
    index = np.flatnonzero(found.error <= out.error[slow])
    at = slow[index]
    out.f[at], out.g[at], out.cost[at], out.error[at] = (x[index] for x in found[:4])
    out.needed[slow] = found.needed + (out.n_iter[slow] - found.n_iter)


def _later(callback: Callback | None, out: Solution, slow: HostArray) -> Callback | None:
    """Return the callback for the problems `slow` of `out`, which have iterated before."""
    if callback is None:
        return None

    def watch(iteration: int, error: HostArray) -> None:
        every = out.error.copy()
        every[slow] = error
        callback(int(out.n_iter[slow].max()) + iteration, every)

    return watch


def _remaining(earlier: HostArray, bound: HostArray, tol: float, count: int) -> HostArray:
    """Return how many iterations (B,) are left at the rate of the last `count`; inf where the bound did not fall."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gained: HostArray = np.log(earlier / bound)
        return np.where(gained > 0, count * np.log(bound / tol) / gained, np.inf)


def _iterations_until_check(options: Options, done: int, watched: bool, started: bool) -> int:
    """Return how many iterations to take until the next look at the error."""
    if options.tol is None and not watched:
        return options.max_iter
    if done == 0 and started:
        return 1  # the start may be the solution
    return min(options.check_every, options.max_iter - done)
