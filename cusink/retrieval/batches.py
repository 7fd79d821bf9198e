"""Pairs of two collections picked one by one, solved many at a time, to the values that a distance matrix has."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.retrieval.tiles import ROWS, parts

__all__ = [
    "PairBatches",
    "Solved",
]


CALL = 150_000  # entries of the cost, times pairs, whose iteration takes as long as an iteration of anything


@dataclass(frozen=True, eq=False)
class Solved:
    """Pairs (K,): values, errors and convergence in NumPy; if wanted, potentials f (K, n) and g (K, m) on all bins."""

    values: Any
    error: Any
    converged: Any
    f: Any
    g: Any


class PairBatches:
    """Solves pairs (row, column) of `pairs`, a `cusink.retrieval.histograms.HistogramPairs`, in any order and mixture.

    A problem iterates by itself, whatever it is solved beside, and begins as the costs of all bins ask for: values
    agree with those of a matrix, which solves a row with the bins of that row alone, up to rounding.
    """

    def __init__(self, pairs, value, options, width):
        self.pairs, self.value, self.options, self.width = pairs, value, options, width
        xp, to_host = pairs.ops.xp, pairs.ops.to_host
        self.support = np.concatenate([to_host(pairs.A[part] > 0) for part in parts(len(pairs.A), ROWS)])
        used = sum((pairs.B[part] > 0).any(axis=0).astype(int) for part in parts(len(pairs.B), ROWS))
        if not pairs.C.divisible:  # all bins or none
            self.support, used = np.ones_like(self.support), used + 1
        self.columns = xp.flatnonzero(used)

    def solve(self, rows, columns, potentials=True):
        """Solve the pairs (rows[k], columns[k]), NumPy indices; return `Solved`, with or without `potentials`."""
        xp, C = self.pairs.ops.xp, self.pairs.C
        order = np.lexsort((columns, rows))
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
        C = pairs.C.between(bins, self.columns)
        solved = pairs.solve_problems(a, b, C, self.value, self.options)
        return pairs.ops.to_host(solved["distances"]), *(solved[name] for name in ("error", "converged", "f", "g"))

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
                if stop > start and self._work(union | own, ends[at] - start) > separate:
                    break
                union, stop, at = union | own, ends[at], at + 1
            for part in parts(stop - start, self.width):
                yield slice(start + part.start, start + part.stop), union
            start = stop

    def _work(self, bins, size):
        """What an iteration of `size` pairs whose rows use some `bins` (n,) takes."""
        return CALL + np.count_nonzero(bins) * len(self.columns) * size
