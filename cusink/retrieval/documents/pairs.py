"""Pairs of items that each have a support of their own: documents over a vocabulary, and ragged point clouds."""

import dataclasses

import numpy as np

from cusink.backends.numpy.documents.buffers import Buffers
from cusink.backends.operators import ops_for
from cusink.convergence.options import Options
from cusink.costs.operand import symmetric
from cusink.retrieval.documents import tiles
from cusink.retrieval.documents.checks import documents
from cusink.retrieval.documents.supports import sums
from cusink.retrieval.tiles import tile_shape

__all__ = [
    "DocumentPairs",
    "document_pairs",
]


def document_pairs(A, B, C, *, eps, check, memory_limit=None, on_empty="nan"):
    """The checked pairs of all items of A with all items of B (None: of A) at the cost C."""
    return DocumentPairs(documents(A, B, C, eps=eps, check=check, on_empty=on_empty), eps, memory_limit)


TOGETHER = 8  # rows that are solved at once
COPIES = 6  # of its kernel that a pair takes: costs, kernel, and what finishing it needs
BLOCKS = 3  # of the costs to a row's words, that making them takes


class DocumentPairs:
    """Items of A with items of B, see `cusink.retrieval.histograms.HistogramPairs` for the attributes.

    Only the points that an item has enter its problems. A pair with an empty item has the distance NaN and the error
    NaN; there is nothing to converge, so it counts as converged.

    Some rows of a tile are solved at once, and kept for the calls that ask for them: a round of an iteration costs as
    much for few pairs as for many. Which rows these are follows from `cusink.retrieval.tiles.tile_shape` alone.
    """

    def __init__(self, given, eps, memory_limit=None):
        self.A, self.B, self.C, self.eps, self.dtype = given.A, given.B, given.C, eps, given.dtype
        self.ops = ops_for(given.C)
        self.shape = (len(given.A), len(given.B))
        self.dense = isinstance(given.C, given.xp.ndarray)
        mirrored = symmetric(given.C) if self.dense else given.C.x is given.C.y
        self.symmetric = mirrored and given.A is given.B
        self.entropy_A, self.entropy_B = (_entropies(side) for side in (given.A, given.B))
        self.on_host, self.buffers = given.xp is np, Buffers()
        self.span = self.ops.cost_range(given.C)
        self._key = self._columns = self._kept = self._uploaded = None
        itemsize, sizes = given.A.weights.itemsize, (given.A.sizes, given.B.sizes)
        # A limit holds for the largest items; without one the average says well enough how much work a pair is.
        n, m = (max(1, int(side.max() if memory_limit is not None else side.mean())) for side in sizes)
        used = min(self.C.shape[-1], len(given.B.places))
        self.pair_bytes = COPIES * n * m * itemsize
        self.point_bytes = 0 if self.dense else self.C.point_bytes
        self.shared_bytes = self.point_bytes + BLOCKS * n * used * itemsize
        if memory_limit is not None and tile_shape(self, memory_limit)[1] * m < used:
            # The costs to the words of so few documents are less than those to all words.
            self.pair_bytes, self.shared_bytes = (COPIES + BLOCKS) * n * m * itemsize, self.point_bytes
        self.height, width = tile_shape(self, memory_limit)
        self.together = TOGETHER
        if memory_limit is not None:
            row_bytes = self.shared_bytes - self.point_bytes + min(width, self.shape[1]) * self.pair_bytes
            self.together = max(1, min((memory_limit - self.point_bytes) // row_bytes, TOGETHER))

    def solve(self, row, columns, value, options):
        """Solve one item against `columns`, a slice or an index array; a dict of arrays (len(columns),)."""
        columns = np.arange(len(self.B))[columns]
        start = row - row % self.height
        first = row - (row - start) % self.together
        key = first, options
        if self._key != key or not np.isin(columns, self._columns).all():
            rows = np.arange(first, min(first + self.together, start + self.height, len(self.A)))
            self._key, self._columns = key, np.unique(columns)
            self._kept = self._solved(rows, self._columns, options)
        place = np.searchsorted(self._columns, columns)
        kept = {name: part[row - first, place] for name, part in self._kept.items()}
        kept["entropic_cost"] = kept["reg_cost"] - self.eps * (self.entropy_A[row] + self.entropy_B[columns])
        return self._outward(kept, value)

    def solve_selves(self, side, items, options):
        """Solve items, a slice, of A (side 0) or B (side 1) each against itself; a dict as from `solve`, `reg_cost`."""
        ours, C = (self.A, self.B)[side], self.C
        if not self.dense:
            points = (C.x, C.y)[side]
            C = dataclasses.replace(C, x=points, y=points)
        items = np.arange(len(ours))[items]
        found, filled = _nothing(len(items)), np.flatnonzero(ours.sizes[items])
        if len(filled):
            if self.on_host:
                solved = [tiles.solve_self(*ours.item(k), C, self.eps, options) for k in items[filled]]
                solved = {name: np.concatenate([part[name] for part in solved]) for name in solved[0]}
            else:
                solved = self._on_device(side, side, items[filled], items[filled], C, options)
            for name, part in solved.items():
                found[name][filled] = part
        return self._outward(found, "reg_cost")

    def content(self):
        """What the distances depend on beside the options, by name, for a fingerprint; B is None where it is A."""
        return {"A": self.A, "B": None if self.B is self.A else self.B, "C": self.C}

    def _solved(self, rows, columns, options):
        """A dict of arrays (len(rows), len(columns))."""
        found = _nothing((len(rows), len(columns)))
        i, j = np.flatnonzero(self.A.sizes[rows]), np.flatnonzero(self.B.sizes[columns])
        if len(i) and len(j):
            if self.on_host:
                against = tiles.padded(self.B, columns[j], self.C.shape[-1])
                queries = tiles.queries_of([self.A.item(k) for k in rows[i]], against, self.C)
                pairs = np.repeat(np.arange(len(i)), len(j)), np.tile(np.arange(len(j)), len(i))
                shared = self.span, self.buffers
                solved = tiles.solve_listed(queries, against, *pairs, *shared, self.eps, options)
            else:
                pairs = np.repeat(rows[i], len(j)), np.tile(columns[j], len(i))
                solved = self._on_device(0, 1, *pairs, self.C, options)
            for name, part in solved.items():
                found[name][np.ix_(i, j)] = part.reshape(len(i), len(j))
        return found

    def _on_device(self, ours, theirs, rows, columns, C, options):
        """Solve pairs of items of two sides, by their numbers 0 and 1; a dict of arrays (len(rows),)."""
        from cusink.backends.cupy import documents

        if self._uploaded is None:
            sides = ((side.offsets, side.places, side.weights) for side in (self.A, self.B))
            self._uploaded = [documents.on_device(*parts) for parts in sides]
        sizes = [int((self.A, self.B)[side].sizes.max()) for side in (ours, theirs)]
        sides = self._uploaded[ours], self._uploaded[theirs]
        options = Options(**{name: value for name, value in options.items() if name != "callback"})
        return documents.solve_pairs(*sides, tuple(sizes), (rows, columns), C, self.eps, options)

    def _outward(self, found, value):
        """The result of `solve`: distances in the user's library, the rest in NumPy."""
        rest = {name: found[name] for name in ("error", "n_iter", "converged")}
        return {"distances": self.ops.xp.asarray(found[value]), **rest}


def _nothing(shape):
    """The result of pairs of which none can be solved."""
    return {
        "cost": np.full(shape, np.nan),
        "reg_cost": np.full(shape, np.nan),
        "error": np.full(shape, np.nan),
        "n_iter": np.zeros(shape, np.int64),
        "converged": np.ones(shape, bool),
    }


def _entropies(side):
    """The entropy of each item, 0 for an empty one."""
    weights = side.weights.astype(np.float64)
    return -sums(side.offsets, weights * np.log(weights))
