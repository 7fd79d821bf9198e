"""Pairs of two collections picked one by one, solved many at a time, to the values that a distance matrix has."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink._grid_costs import GridCosts
from cusink._overrelaxation import STEEP as RELAXED_AT_ONCE
from cusink._point_costs import PointCosts
from cusink.result import Problem, values
from cusink.sinkhorn import STEEP as ANNEALED
from cusink.sinkhorn import solve

__all__ = ["PairBatches", "Solved", "between", "parts"]

CALL = 150_000  # entries of the cost, times pairs, whose iteration takes as long as an iteration of anything
ROWS = 4096  # items looked at together: a collection may be larger than the memory


@dataclass(frozen=True, eq=False)
class Solved:
    """Pairs (K,): values, errors and convergence in NumPy; if wanted, potentials f (K, n) and g (K, m) on all bins."""

    values: Any
    error: Any
    converged: Any
    f: Any
    g: Any


class PairBatches:
    """Solves pairs (row, column) of `pairs`, a `cusink._pairs.HistogramPairs`, in any order and mixture.

    A problem iterates by itself, whatever it is solved beside; but the range of the cost that a batch shares decides
    how it starts: with over-relaxation where it is large, after annealing where it is larger still. A matrix solves a
    row with the bins of that row alone. Rows are put together only if each would start alike by itself, so that values
    agree with those of the matrix up to rounding, not just up to the tolerance.
    """

    def __init__(self, pairs, value, options, width):
        self.pairs, self.value, self.options, self.width = pairs, value, options, width
        xp, to_host = pairs.ops.xp, pairs.ops.to_host
        self.support = np.concatenate([to_host(pairs.A[part] > 0) for part in parts(len(pairs.A), ROWS)])
        used = sum((pairs.B[part] > 0).any(axis=0).astype(int) for part in parts(len(pairs.B), ROWS))
        if isinstance(pairs.C, GridCosts):  # all cells or none
            self.support, used = np.ones_like(self.support), used + 1
        self.columns = xp.flatnonzero(used)
        self.start = self._starts(self.support)

    def solve(self, rows, columns, potentials=True):
        """Solve the pairs (rows[k], columns[k]), NumPy indices; return `Solved`, with or without `potentials`."""
        xp, C = self.pairs.ops.xp, self.pairs.C
        order = np.lexsort((columns, rows, self.start[rows]))
        out = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows), bool)
        f, g = (xp.zeros((len(rows), size), C.dtype) if potentials else None for size in C.shape)
        for part, union in self._together(rows[order]):
            at, bins = order[part], xp.asarray(np.flatnonzero(union))
            *solved, some_f, some_g = self._solve(rows[at], columns[at], bins)
            for whole, some in zip(out, solved, strict=True):
                whole[at] = some
            if potentials:
                at = xp.asarray(at)[:, None]
                f[at, bins], g[at, self.columns] = some_f, some_g
        return Solved(*out, f, g)

    def _solve(self, rows, columns, bins):
        """Values, errors, convergence and potentials of pairs whose rows have weight in no other `bins`."""
        pairs, xp = self.pairs, self.pairs.ops.xp
        a = xp.ascontiguousarray(pairs.A[xp.asarray(rows)][:, bins])
        b = xp.ascontiguousarray(pairs.B[xp.asarray(columns)][:, self.columns])
        C = between(pairs, bins, self.columns)
        f, g, found, error, _, converged = solve(pairs.ops, a, b, C, pairs.eps, None, **self.options)
        if self.value != "cost":
            problem = Problem(a=a, b=b, C=C, eps=pairs.eps, f=f, g=g, dtype=a.dtype, batched=True)
            reg_cost, entropic_cost = values(xp, problem)
            found = entropic_cost if self.value == "entropic_cost" else reg_cost
        return pairs.ops.to_host(found), error, converged, f, g

    def _together(self, rows):
        """Yield slices of the ordered `rows` to be solved at once, and the bins (n,) that they use.

        Another row joins while that costs less than a call of its own: the more bins it adds, the more it costs.
        """
        unique, first = np.unique(rows, return_index=True)
        unique, ends = unique[np.argsort(first)], np.append(np.sort(first)[1:], len(rows))
        start = at = 0
        while start < len(rows):
            union, stop, separate = np.zeros_like(self.support[0]), start, 0
            while at < len(unique):
                own = self.support[unique[at]]
                separate += self._work(own, ends[at] - stop)
                worse = self._work(union | own, ends[at] - start) > separate
                if stop > start and (worse or not self._alike(unique[at], unique[at - 1], union | own)):
                    break
                union, stop, at = union | own, ends[at], at + 1
            for part in parts(stop - start, self.width):
                yield slice(start + part.start, start + part.stop), union
            start = stop

    def _work(self, bins, size):
        """What an iteration of `size` pairs whose rows use some `bins` (n,) takes."""
        return CALL + np.count_nonzero(bins) * len(self.columns) * size

    def _alike(self, row, other, union):
        """Whether two rows start alike, and as with all bins of `union`."""
        return self.start[row] == self.start[other] == self._starts(union[None])[0]

    def _starts(self, supports):
        """How `cusink.sinkhorn.solve` starts rows that use the bins (K, n), as numbers (K,)."""
        pairs, xp = self.pairs, self.pairs.ops.xp
        if isinstance(pairs.C, xp.ndarray):
            C = pairs.C[:, self.columns]
            low, high = (np.broadcast_to(pairs.ops.to_host(x), supports.shape) for x in (C.min(axis=1), C.max(axis=1)))
            low, high = np.where(supports, low, np.inf).min(axis=1), np.where(supports, high, -np.inf).max(axis=1)
        else:
            bins = (xp.asarray(np.flatnonzero(support)) for support in supports)
            ranges = np.array([pairs.ops.cost_range(between(pairs, some, self.columns)) for some in bins])
            low, high = ranges.T
        steepness = (high.astype(np.float64) - low) / pairs.eps
        stages = np.ceil(np.log(np.maximum(steepness, 1) / ANNEALED) / math.log(4))
        stages = np.where(steepness > 2 * ANNEALED, stages, 0)
        return 2 * stages + (steepness >= RELAXED_AT_ONCE)


def between(pairs, rows, columns):
    """The cost between some bins of A and some of B."""
    if isinstance(pairs.C, GridCosts):
        return pairs.C
    if isinstance(pairs.C, PointCosts):
        return pairs.C.take(rows, columns)
    C = pairs.C[:, columns] if len(columns) < pairs.C.shape[1] else pairs.C
    return pairs.ops.xp.ascontiguousarray(C[rows] if len(rows) < len(C) else C)


def parts(count, size):
    """Slices of at most `size` that cover ``range(count)``."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
