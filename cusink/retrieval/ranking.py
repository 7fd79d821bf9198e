"""The k closest columns of each row, kept while pairs are being solved, and what is equal among the columns."""

import numpy as np

__all__ = [
    "Closest",
    "Twins",
    "smallest",
]


class Closest:
    """The `k` best of all pairs taken in so far for each of some rows, ascending, ties by column; in NumPy.

    ``values`` (rows, k) is inf, ``columns`` one too large, where fewer than k pairs have been taken in.
    """

    def __init__(self, rows, k, documents):
        self.k, self.nothing = k, documents
        self.values, self.columns = np.full((rows, k), np.inf), np.full((rows, k), documents)
        self.error, self.converged = np.full((rows, k), np.inf), np.zeros((rows, k), bool)

    def take(self, rows, columns, values, error, converged):
        """Take in pairs (K,) of the rows; a value of NaN comes after all others."""
        touched = np.unique(rows)
        at = np.repeat(touched, self.k)
        held = (at, *(x[touched].ravel() for x in (self.columns, self.values, self.error, self.converged)))
        new = (rows, columns, values, error, converged)
        rows, columns, values, error, converged = (np.concatenate(both) for both in zip(held, new, strict=True))
        order = np.lexsort((columns, values, columns == self.nothing, rows))
        first = order[ranks(rows[order]) < self.k]
        for mine, x in (
            (self.columns, columns),
            (self.values, values),
            (self.error, error),
            (self.converged, converged),
        ):
            mine[touched] = x[first].reshape(-1, self.k)


class Twins:
    """Which items of B are equal: ``first`` (D,), in NumPy, is for each item the first one that is equal to it."""

    def __init__(self, pairs, rows=4096):
        import hashlib

        self.first, seen = np.arange(pairs.shape[1]), {}
        for start in range(0, len(self.first), rows):
            for index, weights in enumerate(pairs.ops.to_host(pairs.B[start : start + rows]), start):
                content = hashlib.blake2b(weights.tobytes(), digest_size=16).digest()
                self.first[index] = seen.setdefault(content, index)
        self.order = np.argsort(self.first, kind="stable")
        self.size = np.bincount(self.first, minlength=len(self.first))
        self.start = np.cumsum(self.size) - self.size

    def of(self, firsts):
        """All items that are equal to one of the `firsts`: which of these, and the items."""
        size = self.size[firsts]
        which = np.repeat(np.arange(len(firsts)), size)
        rank = np.arange(len(which)) - np.repeat(np.cumsum(size) - size, size)
        return which, self.order[self.start[firsts][which] + rank]


def ranks(groups):
    """The rank of each entry of sorted groups within its group."""
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def smallest(lower, rows, columns, count):
    """Those of the pairs (rows, columns) whose `lower` (K,) is among the `count` smallest of their row, by row."""
    order = np.lexsort((columns, lower, rows))
    chosen = order[ranks(rows[order]) < count]
    return rows[chosen], columns[chosen]
