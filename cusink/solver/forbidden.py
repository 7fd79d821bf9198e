"""Large finite numbers in the place of +inf: told from costs, and left out of the solve where they forbid their pairs.

Beside a number of more than about 1e10 eps float64 has too few digits for the other costs: annealing from the size of
that number leaves potentials without them. Without the pairs of such a number a problem is one of ordinary costs, and
if its potentials say that these pairs carry no mass, they are the solution with them, too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost, Solvable
from cusink.solver.gauge import NEGLIGIBLE, islands
from cusink.solver.solution import Callback, Solution, later
from cusink.types import Array, HostArray

FORBIDS = 1e10  # range of the costs over eps from which on numbers are taken to forbid


def without(C: Cost[Any], limit: float) -> Cost[Any]:
    """Return a stored cost without the pairs that cost more than `limit`."""
    restricted = C.without(limit)
    assert restricted is not None
    return restricted


def promising(C: Solvable, a: Array, b: Array, limit: float, tol: float) -> HostArray:
    """Return which problems (B,) may be solved without the pairs that cost more than `limit`.

    In these each island of the pairs that are left has the same mass on both sides, to `tol`, and no bin is alone that
    has a partner at some cost. None is promising where the cost is not stored.
    """
    out = np.zeros(len(a), bool)
    if C.without(limit) is None:
        return out
    for k, (p, q) in enumerate(zip(*(C.to_host(x).astype(np.float64) for x in (a, b)), strict=True)):
        costs = C.to_host(C.costs_of(k, slice(None)))
        rows, columns = np.flatnonzero(p), np.flatnonzero(q)
        alone = [
            (np.isfinite(side).any(axis=axis) & ~(side <= limit).any(axis=axis)).any()
            for axis, side in ((1, costs[:, columns]), (0, costs[rows]))
        ]
        left = costs[np.ix_(rows, columns)] <= limit
        of_rows, of_columns = islands([(slice(0, len(rows)), left)], len(rows), len(columns))
        count = len(rows) + len(columns)
        surplus = np.bincount(of_rows, p[rows], count) - np.bincount(of_columns, q[columns], count)
        out[k] = not any(alone) and np.abs(surplus).sum() <= tol * p.sum()
    return out


def carried_nothing(C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float, limit: float) -> HostArray:
    """Return in which problems (B,) pairs that cost more than `limit` carry no mass at potentials of the others."""
    xp = C.xp
    highest = sum(xp.where(w > 0, x, -xp.inf).max(axis=1) for w, x in ((a, f), (b, g)))
    return C.to_host(highest < limit + NEGLIGIBLE * eps)


def solve_beside(
    solve: Callable[..., Solution],
    costs_of: Callable[[HostArray], Cost[Any]],
    a: Array,
    b: Array,
    eps: float,
    options: Options,
    init: tuple[Array, Array] | None,
    callback: Callback | None,
    span: tuple[float, float],
    together: int,
) -> Solution:
    """Solve without the pairs whose costs are numbers of another size, and with them the problems that need them."""
    every, limit = np.arange(len(a)), span[0] + FORBIDS * eps
    C = costs_of(every)
    out = Solution.empty(C.xp, a, b)

    # Half of the iterations at most are for the attempt without these pairs.
    at_most = {True: options.max_iter // 2, False: options.max_iter - options.max_iter // 2}

    def solved(at: HostArray, restricted: bool) -> Solution:
        def costs(part: HostArray) -> Cost[Any]:
            return without(costs_of(at[part]), limit) if restricted else costs_of(at[part])

        return solve(
            costs(every[: len(at)]),
            a[at],
            b[at],
            eps,
            replace(options, max_iter=at_most[restricted]),
            init=None if init is None else (init[0][at], init[1][at]),
            callback=later(callback, out, at),
            span=None if restricted else span,
            costs_of=costs,
            restrict=False,
            together=together,
        )

    at, left = np.flatnonzero(promising(C, a, b, limit, options.tol or 0.0)), every
    if len(at) and at_most[True]:
        found = solved(at, restricted=True)
        sound = found.converged & carried_nothing(C, a[at], b[at], found.f, found.g, eps, limit)
        left = np.setdiff1d(every, at[sound])
        out.put(at, found)
    if len(left):
        found = solved(left, restricted=False)
        found.n_iter[:] += out.n_iter[left]
        out.put(left, found)
    return out._replace(computed=found.computed)
