"""The solver's loop: iterate, check, stop each problem by itself, anneal where the cost is steep."""

import math

import numpy as np

from cusink.backends.relaxation import OverRelaxation, Rounding

STEEP = 1000  # largest cost difference over eps, beyond which to anneal
CHECKS = 16  # that a launch may hold where it can make them itself


def solve(
    ops,
    a,
    b,
    C,
    eps,
    init,
    *,
    max_iter,
    tol,
    check_every,
    method,
    overrelaxation,
    callback=None,
    start=None,
    span=None,
):
    """Run checked problems to their tolerance; return f, g, cost of the backend and error, n_iter, converged in NumPy.

    `a` (B, n), `b` (B, m) and `C` (n, m) or (B, n, m) are arrays of one backend; `init` is (f, g) or None. `start`
    puts problems under way where the iteration of the backend is not the one that is wanted. `span`, numbers between
    which the costs lie, decides how problems begin: pass that of the whole cost where `C` is a part of it.
    """
    xp = ops.xp
    low, high = ops.cost_range(C) if span is None else span
    options = {"check_every": check_every, "method": method, "overrelaxation": overrelaxation, "start": start}
    options["span"] = low, high
    steepness = (high - low) / eps
    if not math.isfinite(steepness):
        raise ValueError(f"'eps' must be such that C / eps is finite; got {eps:g} for costs of up to {high:g}")
    spent = 0
    if tol is not None and init is None:
        spent, init = anneal(ops, a, b, C, eps, max_iter, options, steepness)
    max_iter -= int(np.max(spent))
    f, g = (xp.zeros_like(a), xp.zeros_like(b)) if init is None else init
    iteration = (start or ops.Iteration)(C, a, b, eps, f, g, method)
    f, g, cost = xp.empty_like(a), xp.empty_like(b), xp.empty(len(a), a.dtype)
    error, n_iter = np.full(len(a), np.inf), np.zeros(len(a), np.int64)
    relaxation = OverRelaxation(len(a), None if tol is None and overrelaxation == "auto" else overrelaxation, steepness)
    rounding = Rounding(len(a), C.dtype, max(abs(low), abs(high)) / eps)
    in_range = np.ones(len(a), bool)
    watched = getattr(iteration, "watched", None)
    active, done = np.arange(len(a)), 0
    while len(active) and done < max_iter:
        if tol is None and callback is None:
            count = max_iter
        elif done == 0 and init is not None:
            count = 1  # the start may be the solution
        else:
            count = min(check_every, max_iter - done)
        alone = watched is not None and tol is not None and callback is None and count == check_every
        checks = min(CHECKS, (max_iter - done) // count) if alone else 1
        if checks > 1:
            bound, taken, over = watched(relaxation, rounding, tol, count, checks)
        else:
            bound, taken = ops.to_host(iteration.advance(relaxation.omega, count)), count
            over = np.zeros(len(active), bool)
            if tol is not None:
                over = (bound <= tol) | ~np.isfinite(bound) | rounding.reached(bound)
        n_iter[active] += taken
        done += checks * count
        error[active] = bound
        if callback is not None:
            callback(done, error.copy())
        over |= done >= max_iter
        if over.any():
            index = np.flatnonzero(over)
            at = active[index]
            in_range[at] = np.isfinite(bound[index])
            f[at], g[at], cost[at], measured = iteration.finish(index)
            error[at] = ops.to_host(measured)
            if done < max_iter:
                # Where rounding made the error exceed its bound and the tolerance, the problem goes on.
                over[index] &= (tol is None) | (error[at] <= tol) | (bound[index] > tol)
                index = np.flatnonzero(~over)
                iteration.keep(index)
                relaxation.keep(index)
                rounding.keep(index)
                bound, active = bound[index], active[index]
        if checks == 1:
            relaxation.observe(bound, count)
    return f, g, cost, error, n_iter + spent, in_range & (tol is None or error <= tol)


def anneal(ops, a, b, C, eps, max_iter, options, steepness):
    """Iterations (B,) spent on larger eps, and potentials found there, or None where `C` is not so steep that it pays.

    Only the start depends on it: the problem solved, and its tolerance, stay what they are.
    """
    xp = ops.xp
    stages = math.ceil(math.log(steepness / STEEP, 4)) if steepness > 2 * STEEP else 0
    spent, init = np.zeros(len(a), np.int64), None
    for stage in range(stages, 0, -1):
        budget = max_iter // (4 * stages)
        if budget:
            start = init or (xp.zeros_like(a), xp.zeros_like(b))
            f, g, _, _, n_iter, _ = solve(ops, a, b, C, eps * 4**stage, start, max_iter=budget, tol=1e-2, **options)
            spent, init = spent + n_iter, (f, g)
    return spent, init
