"""Pairs of items that each have a support of their own: documents over a vocabulary, and ragged point clouds."""

import dataclasses

import numpy as np

from cusink import _checks, _document_tiles
from cusink._checks_documents import documents, is_measures, is_sparse, sums
from cusink._ops import ops_for

__all__ = ["DocumentPairs", "are_documents", "document_pairs"]


def are_documents(A, B):
    """Whether a call with these collections is one of `document_pairs`."""
    return any(is_sparse(x) or is_measures(x) for x in (A, B))


def document_pairs(A, B, C, *, eps, check, on_empty="nan"):
    """The checked pairs of all items of A with all items of B (None: of A) at the cost C."""
    return DocumentPairs(documents(A, B, C, eps=eps, check=check, on_empty=on_empty), eps)


class DocumentPairs:
    """Items of A with items of B, see `cusink._pairs.HistogramPairs` for the attributes.

    Only the points that an item has enter its problems. A pair with an empty item has the distance NaN and the error
    NaN; there is nothing to converge, so it counts as converged.
    """

    def __init__(self, given, eps):
        self.A, self.B, self.C, self.eps, self.dtype = given.A, given.B, given.C, eps, given.dtype
        self.ops = ops_for(given.C)
        self.shape = (len(given.A), len(given.B))
        self.dense = isinstance(given.C, given.xp.ndarray)
        mirrored = _checks.symmetric(given.C) if self.dense else given.C.x is given.C.y
        self.symmetric = mirrored and given.A is given.B
        self.comparable = mirrored or not self.dense
        self.entropy_A, self.entropy_B = (_entropies(side) for side in (given.A, given.B))
        self._last = None, None
        itemsize = given.A.weights.itemsize
        largest = [max(int(side.sizes.max()), 1) for side in (given.A, given.B)]
        used = min(self.C.shape[-1], len(given.B.places))
        self.pair_bytes = _document_tiles.COPIES * largest[0] * largest[1] * itemsize
        self.shared_bytes = 3 * largest[0] * used * itemsize

    def solve(self, row, columns, value, options):
        """Solve one item against `columns`, a slice or an index array; a dict of arrays (len(columns),)."""
        columns = np.arange(len(self.B))[columns]
        kept = np.flatnonzero(self.B.sizes[columns]) if self.A.sizes[row] else []
        found = _nothing(len(columns))
        if len(kept):
            solved = self._solved(self.A, row, self.B, columns[kept], self.C, options)
            solved["entropic_cost"] = solved["reg_cost"] - self.eps * (
                self.entropy_A[row] + self.entropy_B[columns[kept]]
            )
            _fill(found, kept, solved, value)
        return found

    def solve_selves(self, side, items, options):
        """Solve items, a slice, of A (side 0) or B (side 1) each against itself; a dict as from `solve`, `reg_cost`."""
        ours, C = (self.A, self.B)[side], self.C
        if not self.dense:
            points = (C.x, C.y)[side]
            C = dataclasses.replace(C, x=points, y=points)
        items = np.arange(len(ours))[items]
        found = _nothing(len(items))
        for place, k in enumerate(items):
            if ours.sizes[k]:
                part = slice(ours.offsets[k], ours.offsets[k + 1])
                solved = _document_tiles.solve_self(ours.weights[part], ours.places[part], C, self.eps, options)
                _fill(found, [place], solved, "reg_cost")
        return found

    def content(self):
        """What the distances depend on beside the options, by name, for a fingerprint; B is None where it is A."""
        return {"A": self.A, "B": None if self.B is self.A else self.B, "C": self.C}

    def _solved(self, ours, row, theirs, columns, C, options):
        key = id(theirs), columns.tobytes()
        if self._last[0] != key:  # the rows of a tile meet the same columns
            self._last = key, _document_tiles.padded(theirs, columns, C.shape[-1])
        part = slice(ours.offsets[row], ours.offsets[row + 1])
        return _document_tiles.solve_row(ours.weights[part], ours.places[part], self._last[1], C, self.eps, options)


def _nothing(count):
    """The result of pairs of which none can be solved."""
    return {
        "distances": np.full(count, np.nan),
        "error": np.full(count, np.nan),
        "n_iter": np.zeros(count, np.int64),
        "converged": np.ones(count, bool),
    }


def _fill(found, kept, solved, value):
    """Write what was solved into its places."""
    found["distances"][kept] = solved[value]
    for name in ("error", "n_iter", "converged"):
        found[name][kept] = solved[name]


def _entropies(side):
    """The entropy of each item, 0 for an empty one."""
    weights = side.weights.astype(np.float64)
    return -sums(side.offsets, weights * np.log(weights))
