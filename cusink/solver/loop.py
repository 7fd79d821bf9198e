"""The solver's loop: iterate, check, stop each problem by itself, anneal where the cost is steep."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.costs.cost import Solvable
from cusink.costs.operators import Iteration
from cusink.solver.gauge import in_gauge
from cusink.types import Array, HostArray, Method

ANNEAL_ABOVE = 1000  # range of the costs over eps beyond which to anneal
CARRIED = 4  # roundings of a product of scalings and a kernel that an entry of the plan carries
UNCHECKED = 1e-4  # error from rounding up to which float32 is kept where no tolerance is given
CHECKS_PER_LAUNCH = 16  # at most, where a backend makes the checks itself

Start = Callable[[Array, Array, float, Array, Array, Method], Iteration]  # a, b, eps, f, g, method
Callback = Callable[[int, HostArray], Any]


class Solution(NamedTuple):
    """Potentials f (B, n) and g (B, m), transport cost (B,); error, iterations, convergence (B,) in NumPy."""

    f: Array
    g: Array
    cost: Array
    error: HostArray
    n_iter: HostArray
    converged: HostArray


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
) -> Solution:
    """Solve checked problems with weights a (B, n) and b (B, m).

    `init` is (f, g); `start` puts problems under way where the iteration of the backend is not wanted. `span`, numbers
    between which the costs lie, decides how problems begin: pass that of the whole cost where `C` is a part of it.
    """
    low, high = C.range() if span is None else span
    steepness = (high - low) / eps
    if not math.isfinite(steepness):
        raise ValueError(f"'eps' must be such that C / eps is finite; got {eps:g} for costs of up to {high:g}")
    xp, dtype = C.xp, a.dtype
    exponent = max(abs(low), abs(high)) / eps
    if _needs_float64(C, dtype, options.tol, exponent):
        C, a, b = C.widened(), a.astype(np.float64), b.astype(np.float64)
        if start is None:  # masses that were equal in float32 are so in float64, or the error would not fall
            b *= (a.sum(axis=1) / b.sum(axis=1))[:, None]
    size = None if start else _size(xp, a)
    if size is not None:  # exact: the sizes are powers of two
        a, b = a / size[:, None].astype(a.dtype), b / size[:, None].astype(b.dtype)
        lift = (eps / 2 * np.log(2)) * xp.log2(size)[:, None]
        init = None if init is None else (init[0] + lift, init[1] + lift)
    rounding = CARRIED * float(np.finfo(a.dtype.name).eps) / 2
    wanted = tol = options.tol
    if tol is not None:  # leave room for the rounding that is added to the error
        tol -= rounding + min(2 * C.exponent_rounding() * exponent, tol / 2)
    options = replace(options, tol=tol)
    spent = np.zeros(len(a), np.int64)
    if tol is not None and init is None:
        spent, init = _anneal(C, a, b, eps, options, start, (low, high))
    f, g = (xp.zeros_like(a), xp.zeros_like(b)) if init is None else init
    iteration = (start or C.iteration)(a, b, eps, f, g, options.method)
    setting = None if tol is None and options.overrelaxation == "auto" else options.overrelaxation
    rules = StopState(Relaxation.start(len(a), setting, steepness), StallDetector.start(len(a), C.dtype, exponent))
    remaining = replace(options, max_iter=max(options.max_iter - int(spent.max()), 0))
    found = Solution(
        xp.empty(a.shape),
        xp.empty(b.shape),
        xp.empty(len(a), a.dtype),
        np.full(len(a), np.inf),
        np.zeros(len(a), np.int64),
        np.ones(len(a), bool),
    )
    _iterate(C, iteration, rules, remaining, found, callback, init is not None)
    f, g, cost, error, n_iter, in_range = found
    if size is not None:
        f, g, cost = f - lift, g - lift, cost * size
    if start is None:
        f, g = in_gauge(C, a, b, f, g, eps)
    largest = sum(xp.where(w > 0, xp.abs(x), 0).max(axis=1) for w, x in ((a, f), (b, g)))
    error = error + rounding + C.exponent_rounding() * C.to_host(largest) / eps
    reached = in_range & (error <= (math.inf if wanted is None else wanted))
    return Solution(f, g, cost.astype(dtype, copy=False), error, n_iter + spent, reached)


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
) -> None:
    """Iterate until every problem has stopped, and write what it ends with into `out`.

    There `converged` says whether the problem stayed in range.
    """
    tol, max_iter = options.tol, options.max_iter
    active, done = np.arange(len(out.error)), 0
    while len(active) and done < max_iter:
        count = _iterations_until_check(options, done, callback is not None, started)
        checks = 1
        if iteration.stops_itself and tol is not None and callback is None and count == options.check_every:
            checks = min(CHECKS_PER_LAUNCH, (max_iter - done) // count)
        if checks > 1 and tol is not None:
            rules, bound, taken, over = iteration.advance_until_converged(rules, tol, count, checks)
        else:
            bound, taken = C.to_host(iteration.advance(rules.relaxation.omega, count)), np.asarray(count)
            rules = rules.observe(bound, count)
            over = np.zeros(len(active), bool)
            if tol is not None:
                over = (bound <= tol) | ~np.isfinite(bound) | rules.stall.stalled
        out.n_iter[active] += taken
        done += checks * count
        out.error[active] = bound
        if callback is not None:
            callback(done, out.error.copy())
        over |= done >= max_iter
        if over.any():
            index = np.flatnonzero(over)
            at = active[index]
            out.f[at], out.g[at], out.cost[at], measured = iteration.finish(index)
            out.error[at] = C.to_host(measured)
            out.converged[at] = np.isfinite(bound[index] if tol is None else out.error[at])
            if done < max_iter:
                # Where rounding made the error exceed its bound and the tolerance, the problem goes on.
                over[index] &= (tol is None) | (out.error[at] <= tol) | (bound[index] > tol)
                index = np.flatnonzero(~over)
                iteration.keep(index)
                rules, active = rules.select(index), active[index]


def _iterations_until_check(options: Options, done: int, watched: bool, started: bool) -> int:
    """Return how many iterations to take until the next look at the error."""
    if options.tol is None and not watched:
        return options.max_iter
    if done == 0 and started:
        return 1  # the start may be the solution
    return min(options.check_every, options.max_iter - done)


def _anneal(
    C: Solvable, a: Array, b: Array, eps: float, options: Options, start: Start | None, span: tuple[float, float]
) -> tuple[HostArray, tuple[Array, Array] | None]:
    """Return iterations (B,) spent on larger eps and the potentials found there, or None where it does not pay.

    Only the start depends on it: the problem solved, and its tolerance, stay the same.
    """
    steepness = (span[1] - span[0]) / eps
    stages = math.ceil(math.log(steepness / ANNEAL_ABOVE, 4)) if steepness > 2 * ANNEAL_ABOVE else 0
    spent, init = np.zeros(len(a), np.int64), None
    for stage in range(stages, 0, -1):
        budget = options.max_iter // (4 * stages)
        if budget:
            begin = init or (C.xp.zeros_like(a), C.xp.zeros_like(b))
            rough = replace(options, max_iter=budget, tol=1e-2)
            found = solve(C, a, b, eps * 4**stage, rough, init=begin, start=start, span=span)
            spent, init = spent + found.n_iter, in_gauge(C, a, b, found.f, found.g, eps * 4**stage)
    return spent, init
