"""The k nearest columns of each row, kept while pairs are being solved, and which columns are equal."""

from typing import Any

import numpy as np

from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.pairs import PairsOnBins
from cusink.types import HostArray


class TopK:
    """The `k` nearest of all pairs added so far for each row, ascending, ties in the order of columns; in NumPy.

    Where fewer than k pairs have been added, ``values`` (rows, k) is inf and ``columns`` the number of columns.
    """

    def __init__(self, rows: int, k: int, columns: int) -> None:
        self.k, self.nothing = k, columns
        self.values, self.columns = np.full((rows, k), np.inf), np.full((rows, k), columns)
        self.error, self.converged = np.full((rows, k), np.inf), np.zeros((rows, k), bool)

    def add(
        self, rows: HostArray, columns: HostArray, values: HostArray, error: HostArray, converged: HostArray
    ) -> None:
        """Add pairs (K,); a value of NaN comes after all others."""
        touched = np.unique(rows)
        fields = self.columns, self.values, self.error, self.converged
        held = np.repeat(touched, self.k), *(field[touched].ravel() for field in fields)
        rows, *added = map(np.concatenate, zip(held, (rows, columns, values, error, converged), strict=True))
        columns, values, *_ = added
        order = np.lexsort((columns, values, columns == self.nothing, rows))
        first = order[rank_within(rows[order]) < self.k]
        for field, both in zip(fields, added, strict=True):
            field[touched] = both[first].reshape(-1, self.k)


class Duplicates:
    """Equal items of B: ``first`` (D,), in NumPy, is for each item the first one that is equal to it."""

    def __init__(self, pairs: PairsOnBins) -> None:
        import hashlib

        self.first = np.arange(pairs.shape[1])
        seen: dict[bytes, int] = {}
        for block in blocks(len(self.first), ROWS_PER_BLOCK):
            for index, weights in enumerate(pairs.to_host(pairs.B[block]), block.start):
                content = hashlib.blake2b(weights.tobytes(), digest_size=16).digest()
                self.first[index] = seen.setdefault(content, index)
        self.order = np.argsort(self.first, kind="stable")
        self.size = np.bincount(self.first, minlength=len(self.first))
        self.start = np.cumsum(self.size) - self.size

    def of(self, firsts: HostArray) -> tuple[HostArray, HostArray]:
        """Return all items that are equal to one of the `firsts`: positions in `firsts`, and the items."""
        size = self.size[firsts]
        which = np.repeat(np.arange(len(firsts)), size)
        rank = np.arange(len(which)) - np.repeat(np.cumsum(size) - size, size)
        return which, self.order[self.start[firsts][which] + rank]


def rank_within(groups: HostArray) -> HostArray:
    """Return the rank of each entry of sorted groups within its group."""
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    ranks: HostArray = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return ranks


def smallest_per_row(lower: HostArray, rows: HostArray, columns: HostArray, count: int) -> tuple[Any, Any]:
    """Return the pairs among (rows, columns) whose `lower` (K,) is among the `count` smallest of their row, by row."""
    order = np.lexsort((columns, lower, rows))
    chosen = order[rank_within(rows[order]) < count]
    return rows[chosen], columns[chosen]
