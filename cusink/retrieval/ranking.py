"""The k nearest columns of each row, kept while pairs are being solved, and which columns are equal."""

from typing import Any

import numpy as np

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

    def take(self, rows: slice, other: "TopK") -> None:
        """Take over some rows of another one."""
        for name in ("values", "columns", "error", "converged"):
            getattr(self, name)[rows] = getattr(other, name)[rows]


class Duplicates:
    """Equal items of B, which have equal `digests` (D, 16), of dtype uint8.

    ``first`` (D,), in NumPy, is for each item the first one that is equal to it.
    """

    def __init__(self, digests: HostArray) -> None:
        words = np.ascontiguousarray(digests).view(f"S{digests.shape[1]}")[:, 0]
        _, first, back = np.unique(words, return_index=True, return_inverse=True)
        self.first = first[back]
        self.order = np.argsort(self.first, kind="stable")
        self.size = np.bincount(self.first, minlength=len(self.first))
        self.start = np.cumsum(self.size) - self.size

    @property
    def any(self) -> bool:
        """Whether any two items are equal."""
        return bool((self.size > 1).any())

    def repeat(self, columns: slice, fields: list[HostArray], seen: dict[int, list[HostArray]]) -> None:
        """Give equal columns of `fields` (rows, columns) the values of the first of them.

        `seen` holds those of the columns before, for the same rows.
        """
        for at, (column, first) in enumerate(zip(range(columns.start, columns.stop), self.first[columns], strict=True)):
            if self.size[first] == 1:
                continue
            if first == column:
                seen[int(first)] = [field[:, at].copy() for field in fields]
            else:
                for field, values in zip(fields, seen[int(first)], strict=True):
                    field[:, at] = values

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


def smallest_per_row(lower: HostArray, rows: HostArray, columns: HostArray, count: int | HostArray) -> tuple[Any, Any]:
    """Return the pairs among (rows, columns) whose `lower` (K,) is among the `count` smallest of their row, by row.

    `count` may be an array, of a number for each row.
    """
    order = np.lexsort((columns, lower, rows))
    most = count[rows[order]] if isinstance(count, np.ndarray) else count
    chosen = order[rank_within(rows[order]) < most]
    return rows[chosen], columns[chosen]
