"""Large finite numbers in the place of +inf: told from costs, and left out of the solve where they forbid their pairs.

Beside a number of more than about 1e10 eps float64 has too few digits for the other costs: annealing from the size of
that number leaves potentials without them. Without the pairs of such a number a problem is one of ordinary costs, and
if its potentials say that these pairs carry no mass, they are the solution with them, too.
"""

from typing import Any

import numpy as np

from cusink.costs.cost import Cost, Solvable
from cusink.solver.gauge import NEGLIGIBLE, islands
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
