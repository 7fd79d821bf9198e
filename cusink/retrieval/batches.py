"""Pairs of two collections picked one by one, solved many at a time, to the values that a distance matrix has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.pairs import PairsOnBins, Rows, SolvedProblems
from cusink.types import Array, HostArray, Value
from cusink.workers import each

CALL_ENTRIES = 300_000  # entries of the cost, times pairs, whose iteration takes as long as the overhead of a call


@dataclass(frozen=True, eq=False)
class SolvedPairs:
    """Pairs (K,): values, errors and convergence in NumPy; if wanted, potentials f (K, n) and g (K, m) on all bins."""

    values: HostArray
    error: HostArray
    converged: HostArray
    f: Array
    g: Array


def bins_in_use(B: Rows, C: Cost[Any], first: int = 0) -> HostArray:
    """Return the bins, in NumPy, that columns from `first` on have weight in; all where the cost is not divisible."""
    used = np.zeros(C.shape[1], bool)
    for rows in blocks(len(B) - first, ROWS_PER_BLOCK, first):
        used |= C.to_host((B[rows] > 0).any(axis=0))
    return np.flatnonzero(used | (not C.divisible))


class PairBatches:
    """Solves pairs (row, column) of `PairsOnBins` in any order and mixture, `width` at once, by `at_once` threads.

    Results do not depend on the batch: each problem converges alone and is annealed by the range of all costs. They
    agree with those of a matrix, which solves a row with the bins of that row alone, up to rounding. `columns` are the
    bins that the columns use, if they are known.
    """

    def __init__(
        self,
        pairs: PairsOnBins,
        value: Value,
        options: Options,
        width: int,
        columns: Array | None = None,
        at_once: int | None = None,
    ) -> None:
        self.at_once = at_once
        self.pairs, self.value, self.options, self.width = pairs, value, options, width
        A, to_host = pairs.A, pairs.to_host
        self.support = np.concatenate([to_host(A[rows] > 0) for rows in blocks(len(A), ROWS_PER_BLOCK)])
        if not pairs.C.divisible:  # all bins or none
            self.support = np.ones_like(self.support)
        self.columns = pairs.xp.asarray(bins_in_use(pairs.B, pairs.C) if columns is None else columns)

    def solve(self, rows: HostArray, columns: HostArray, potentials: bool = True) -> SolvedPairs:
        """Solve the pairs (rows[k], columns[k]), with or without `potentials`."""
        xp, C = self.pairs.xp, self.pairs.C
        order = np.lexsort((columns, rows))
        values, error, converged = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows), bool)
        f, g = (xp.zeros((len(rows) if potentials else 0, size), C.dtype) for size in C.shape)

        def solve_batch(batch: slice, union: HostArray) -> None:
            at, bins = order[batch], xp.asarray(np.flatnonzero(union))
            solved, some_f, some_g = self._solve(rows[at], columns[at], bins, potentials)
            values[at], error[at], converged[at] = (
                self.pairs.to_host(solved.distances),
                solved.error,
                solved.converged,
            )
            if potentials:
                at = xp.asarray(at)[:, None]
                f[at, bins], g[at, self.columns] = some_f, some_g

        each(solve_batch, self.groups(rows[order], self.width), self.at_once)
        return SolvedPairs(values, error, converged, f, g)

    def _solve(self, rows: HostArray, columns: HostArray, bins: Array, potentials: bool) -> SolvedProblems:
        """Solve pairs whose rows have weight in no other `bins`."""
        pairs, xp = self.pairs, self.pairs.xp
        a = xp.ascontiguousarray(pairs.A[xp.asarray(rows)][:, bins])
        b = xp.ascontiguousarray(pairs.B[xp.asarray(columns)][:, self.columns])
        C = pairs.C.between(bins, self.columns)
        return pairs.solve_problems(a, b, C, self.value, self.options, potentials)

    def groups(self, rows: HostArray, width: int) -> Iterator[tuple[slice, HostArray]]:
        """Yield slices of the ordered `rows` to be worked on at once, at most `width`, and a mask (n,) of their bins.

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
            for batch in blocks(stop - start, width, start):
                yield batch, union
            start = stop

    def _work(self, bins: HostArray, size: int) -> int:
        """Return the work of an iteration of `size` pairs whose rows use some `bins` (n,), in `CALL_ENTRIES`."""
        return CALL_ENTRIES + int(np.count_nonzero(bins)) * len(self.columns) * size
