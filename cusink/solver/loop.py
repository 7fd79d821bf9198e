"""The solver's loop: iterate, check, stop each problem by itself, anneal where the cost is steep."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.convergence.options import Options
from cusink.convergence.rules import RELAX_ABOVE, Relaxation, StallDetector, StopState
from cusink.costs.cost import Cost, Solvable
from cusink.costs.operators import Iteration
from cusink.solver import forbidden, gauge
from cusink.solver.annealing import HALVING, Patience, Slow, halved, halvings, quartered, still_needed
from cusink.solver.ending import PLAN_ROUNDING, Ending, Spared, ended
from cusink.solver.newton import ALONE, BATCH, Found, first_look, in_one_bin, newton, worth
from cusink.solver.semidual import CLOSE, OVERSHOOT
from cusink.solver.solution import Callback, Solution, in_range, later
from cusink.types import Array, HostArray, Method

CARRIED = 4  # roundings of a product of scalings and a kernel that an entry of the plan carries
POOR = 0.3  # error after one iteration from which a start is worth less than none
UNCHECKED = 1e-4  # error from rounding up to which float32 is kept where no tolerance is given
FAR_START = 1e3  # size of a start over eps, beside costs, from which on no solution is as large
SPARED = 1e-3  # share of the tolerance below which a bound on the rounding of exponents will do
CHECKS_PER_LAUNCH = 16  # at most, where a backend makes the checks itself

Start = Callable[[Any, Array, Array, float, Array, Array, Method], Iteration]  # C, a, b, eps, f, g, method


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
    judge: bool = False,
    annealed: bool = False,
    together: int = BATCH,
    potentials: bool = True,
    defer: bool = False,
) -> Solution:
    """Solve checked problems with weights a (B, n) and b (B, m).

    `init` is (f, g); `start` puts problems under way where the iteration of the backend is not wanted. `span`, numbers
    between which the costs lie, decides how problems begin: pass that of the whole cost where `C` is a part of it.
    `costs_of` returns the costs of some of the problems. With it, those that hardly converge begin again from another
    start, one by Newton's method alone if `init` is `annealed`; with `restrict`, numbers too large for the digits of
    float64 are left out where they forbid their pairs; and with `judge`, problems that `init` puts far from the
    solution begin without it; those with a `start` end after one iteration. `together` problems share an iteration,
    more or less. Without `potentials` those of the solution are not to be read, and are not computed where
    nothing else needs them; with `defer` they may be left for later.
    """
    low, high = C.range() if span is None else span
    steepness = (high - low) / eps
    if not math.isfinite(steepness):
        raise ValueError(f"'eps' must be such that C / eps is finite; got {eps:g} for costs of up to {high:g}")
    xp, dtype = C.xp, a.dtype
    if high - low > forbidden.FORBIDS * eps and restrict and options.tol is not None and costs_of is not None:
        return forbidden.solve_beside(solve, costs_of, a, b, eps, options, init, callback, (low, high), together)
    exponent = max(abs(low), abs(high)) / eps
    widened = needs_float64(C, dtype, options.tol, exponent, start)
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
    given_far = False
    if init is not None and start is None:
        init, given_far = gauge.centred(xp, a, b, init, (4 * exponent + FAR_START) * eps)
    rounding, of_exponents = CARRIED * float(np.finfo(a.dtype).eps) / 2, _exponent_rounding(C, start)
    of_plan = of_exponents + PLAN_ROUNDING
    wanted = tol = options.tol
    if tol is not None:  # leave room for the rounding that is added to the error
        tol -= rounding + min(2 * of_plan * exponent, tol / 2)
    options = replace(options, tol=tol)
    spent = np.zeros(len(a), np.int64)
    again_or_left = costs_of is not None or start is not None
    poor = POOR if judge and init is not None and tol is not None and again_or_left else math.inf
    least = worth(a.shape[1], b.shape[1], together, C.stored)
    ahead: Found | None = None
    if near := tol is not None and init is None:
        rough = functools.partial(
            solve, start=start, span=(low, high), costs_of=costs_of, restrict=False, together=together
        )
        # Newton's method, which is not far for a single problem, ends what is close and crawls.
        close = CLOSE if costs_of is not None and together == ALONE and least < math.inf else 0.0
        if close and callback is None and costs_of is not None:
            ahead = first_look(costs_of(np.arange(1)), a, b, eps, options, steepness)
        if ahead is not None:
            spent, init = spent + ahead.taken, (ahead.f, ahead.g)
        if ahead is None or ahead.error > max(close, tol or 0.0):
            # Each leaves room for rounding itself. One iteration is left for after them.
            rest = replace(options, tol=wanted, max_iter=options.max_iter - 1 - int(spent.max()))
            taken, annealed_start = quartered(rough, C, a, b, eps, rest, steepness, close)
            spent, init = spent + taken, annealed_start or init
    remaining = replace(options, max_iter=max(options.max_iter - int(spent.max()), 0))
    found, slow, patience = Solution.of_no_potentials(xp, a, b), Slow.none(len(a)), None
    spared: Spared | None = None
    found.newton[:] = 0 if ahead is None else ahead.steps
    if ahead is not None and tol is not None and ahead.error <= tol:
        found = found.ended(slice(None), ahead.f, ahead.g, np.array([ahead.cost]))
        found.error[:] = ahead.error
    else:
        begin = C.iteration if start is None else functools.partial(start, C)
        begun = (xp.zeros_like(a), xp.zeros_like(b)) if init is None else init
        iteration = begin(a, b, eps, *begun, options.method)
        del begun  # the iteration may take the memory
        setting = None if tol is None and options.overrelaxation == "auto" else options.overrelaxation
        # Where exponents are taken in float64, their rounding explains no error of float32.
        explained = exponent * 2 * of_exponents / float(np.finfo(a.dtype).eps)
        started = near and init is not None
        one_bin = in_one_bin(C, a, b) if setting == "auto" and steepness >= RELAX_ABOVE else None
        every = options.check_every
        rules = StopState.start(
            Relaxation.start(len(a), setting, steepness, slow=started, check_every=every, one_bin=one_bin),
            StallDetector.start(len(a), a.dtype, explained),
        )
        if costs_of is not None and setting == "auto":
            at_least = 1.0 if annealed else steepness
            patience = Patience.start(len(a), least, at_least, remaining.max_iter, started=started)
        if start is None and exponent < gauge.DIGITS and not given_far:
            if defer and not widened:
                spared = Spared(len(a), gauge.DIGITS * eps, keep=True)
            elif not potentials and tol is not None:
                # Their size counts for the rounding of exponents alone: a bound on it will do where that is small.
                most = SPARED * tol * eps / of_plan
                spared = Spared(len(a), most, keep=False) if exponent * eps < most else None
        slow, found = _iterate(
            C, iteration, rules, remaining, found, callback, init is not None, patience, poor, spared
        )
    ending = Ending(
        C=C,
        a=a,
        b=b,
        eps=eps,
        mass=size,
        rounding=rounding,
        of_plan=of_plan,
        islands=start is None,
        steep=start is None and exponent > gauge.DIGITS,
        begun=init is not None,
    )
    for why, part in slow.parts(found.n_iter):
        if costs_of is None:  # left to the caller, who has the start
            break
        costs, weights = costs_of(part), (a[part], b[part])
        resume = functools.partial(
            solve, callback=later(callback, found, part), span=(low, high), restrict=False, together=together
        )
        again = functools.partial(resume, costs_of=costs.at)
        if why == "poor":
            cold = again(costs, *weights, eps, replace(remaining, max_iter=remaining.max_iter - 1))
            found.put(part, cold._replace(n_iter=cold.n_iter + 1, converged=np.isfinite(cold.error)))
        else:
            more = resume if why == "by_newton" else functools.partial(again, annealed=True)
            _restart(more, costs, weights, eps, remaining, found, part, steepness, why == "by_newton")
    most_error = math.inf if wanted is None else wanted
    out = ended(found, spared, ending, most_error)
    cost = out.cost if size is None else out.cost * size
    return out._replace(
        cost=narrowed(in_range(cost, dtype), dtype, xp),
        n_iter=out.n_iter + spent,
        converged=out.converged & (out.error <= most_error),
        needed=out.needed + spent,
    )


def _widened(costs_of: Callable[[HostArray], Cost[Any]]) -> Callable[[HostArray], Cost[Any]]:
    """Return the same costs in float64."""
    return lambda part: costs_of(part).widened()


def _exponent_rounding(C: Solvable, start: Start | None) -> float:
    """Return the relative rounding of exponents: that of its dtype for an iteration that is not the backend's own."""
    return C.exponent_rounding() if start is None else float(np.finfo(C.dtype).eps) / 2


def needs_float64(C: Solvable, dtype: Any, tol: float | None, exponent: float, start: Start | None = None) -> bool:
    """Return whether float32 has too few digits for the exponents, or for the tolerance."""
    rounding = CARRIED * float(np.finfo(dtype).eps) / 2 + _exponent_rounding(C, start) * exponent
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
    poor: float = math.inf,
    spared: Spared | None = None,
) -> tuple[Slow, Solution]:
    """Iterate until every problem has stopped; return what it ends with, for which there is room in `out`.

    There `converged` says whether the problem stayed in range. Return before it which problems were given up: by
    `patience`, or for an error above `poor` after the first iteration. What is `spared` says of which problems no
    potentials are computed.
    """
    tol, max_iter = options.tol, options.max_iter
    active, done, given_up = np.arange(len(out.error)), 0, Slow.none(len(out.error))
    earlier, since = np.full(len(out.error), np.nan), 0  # the bounds after about half of the iterations
    while len(active) and done < max_iter:
        # A problem that a device stopped in vain is behind the others.
        count = _iterations_until_check(options, int(out.n_iter[active].max()), callback is not None, started)
        plain = started and done == 0 and rules.relaxation.adaptive  # it tells whether the start is a solution
        watched = callback is not None or plain or count != options.check_every
        if iteration.stops_itself and tol is not None and not watched:
            ahead = max_iter if patience is None else min(max_iter, -(-patience.due // count) * count)
            # At least one, so that those behind come to the look, too.
            checks = max(1, min(CHECKS_PER_LAUNCH, (ahead - int(out.n_iter[active].max())) // count))
            rules, bound, taken, over = iteration.advance_until_converged(rules, tol, count, checks)
        else:
            seen = rules.plain() if plain else rules
            bound, taken = C.to_host(iteration.advance(seen.relaxation.omega, count)), np.asarray(count)
            if tol is None:  # all take as many iterations as they are told, and omega is a number
                over = np.zeros(len(active), bool)
            else:
                over = ~np.isfinite(bound) | seen.may_end(bound, tol)
                rules = rules.observe(bound, count)
                over |= rules.stall.stalled
        out.n_iter[active] += taken
        done = int(out.n_iter[active].min())
        out.error[active] = bound
        if callback is not None:
            callback(done, out.error.copy())
        spent = out.n_iter[active] >= max_iter
        if tol is not None and spent.any():
            out.needed[active[spent]] = done + still_needed(earlier[active], bound, tol, done - since)[spent]
        if done >= 2 * since:
            earlier[active], since = bound, done
        over |= spent
        if started and done == 1:
            given_up.poor[active] = bound > poor
            over |= bound > poor
        if patience is not None and tol is not None and done >= patience.due:
            patience, slow = patience.look(rules.plain() if plain else rules, bound, done, tol)
            for chosen, marked in zip(slow, given_up, strict=True):
                marked[active[chosen]] = True
                over |= chosen
        if over.any():
            index = np.flatnonzero(over)
            at = slice(None) if len(index) == len(out.error) else active[index]
            found = None if spared is None else spared.measure(iteration, index, at, not given_up.among(at).any())
            if found is None:
                *solved, measured = iteration.finish(index)
                out.omitted[at] = iteration.omitted(index)
                out = out.ended(at, *solved)
            else:
                out.cost[at], measured = found
            out.error[at] = C.to_host(measured)
            out.converged[at] = np.isfinite(out.error[at] if tol is not None else bound[index])
            vain = np.zeros(len(active), bool)
            if tol is not None:
                # The error is not within the tolerance, or rounding made it exceed its bound: the problem goes on.
                on = (out.error[at] > tol) & (out.n_iter[at] < max_iter) & ~rules.stall.stalled[index]
                for marked in given_up:
                    marked[at] &= on
                vain[index] = on & (bound[index] != np.inf) & ~given_up.among(at)
            if vain.any():
                rules = rules.refuse(np.flatnonzero(vain))
            index = np.flatnonzero(~over | vain)
            if not len(index):
                break
            iteration.keep(index)
            rules, active = rules.select(index), active[index]
            patience = patience and patience.select(index)
    return given_up, out


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
        start = out.f[slow], out.g[slow]
        tol, most = options.tol / 2, left - OVERSHOOT
        f, g, cost, error, taken, _ = newton(C, *weights, eps, start, tol, steepness, most)
        out.newton[slow] += taken
        if error <= options.tol:
            out.omitted[slow] = 0
            out.f[slow], out.g[slow], out.cost[slow], out.error[slow] = f, g, cost, error
            out.n_iter[slow] += taken
            return
        init = (f, g) if error < out.error[slow[0]] else None
    annealed = HALVING * halvings(steepness)
    if init is None and taken + annealed <= left:
        init, taken = halved(C, *weights, eps, options, steepness), taken + annealed
    out.n_iter[slow] += taken
    if init is None:
        init = out.f[slow], out.g[slow]
    rest = replace(options, max_iter=max(1, left + 1 - taken))
    found = resume(C, *weights, eps, rest, init=init)
    out.n_iter[slow], out.newton[slow] = out.n_iter[slow] + found.n_iter, out.newton[slow] + found.newton
    index = np.flatnonzero(found.error <= out.error[slow])
    at = slow[index]
    out.f[at], out.g[at], out.cost[at], out.error[at] = (x[index] for x in found[:4])
    out.omitted[at] = found.omitted[index]
    out.needed[slow] = found.needed + (out.n_iter[slow] - found.n_iter)


def _iterations_until_check(options: Options, done: int, watched: bool, started: bool) -> int:
    """Return how many iterations to take until the next look at the error."""
    if options.tol is None and not watched:
        return options.max_iter
    if done == 0 and started:
        return 1  # the start may be the solution
    return min(options.check_every, options.max_iter - done)
