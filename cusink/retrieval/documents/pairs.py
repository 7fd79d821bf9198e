"""Pairs of items that each have a support of their own: documents over a vocabulary, and ragged point clouds."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from cusink.backends.numpy.documents.buffers import Buffers
from cusink.backends.numpy.documents.costs import costs_between
from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.costs.measures import sums
from cusink.deferred import cached_property
from cusink.operand import dense_cost
from cusink.retrieval.documents.supports import CheckedDocuments, RaggedWeights
from cusink.retrieval.documents.tiles import (
    DocumentSolutions,
    PaddedDocuments,
    Queries,
    Setting,
    solve_listed,
)
from cusink.retrieval.pairs import Solved, digest
from cusink.retrieval.tiles import Sizes, tile_shape
from cusink.solver.symmetric import self_potentials
from cusink.types import Array, ArrayModule, HostArray, Value

ROWS_PER_CALL = 8  # solved at once: a round of iterations costs as much for few pairs as for many
KERNELS_PER_PAIR = 6  # copies of its kernel that a pair takes: costs, kernel, and the arrays that finish it
COSTS_PER_ROW = 3  # copies of the costs to a row's words that making them takes


@dataclass(frozen=True, eq=False, kw_only=True)
class DocumentPairs:
    """`Pairs` of documents; `span` are numbers between which the costs lie.

    Only the points that an item has enter its problems. A pair with an empty item has the distance NaN and the error
    NaN; there is nothing to converge, so it counts as converged.
    """

    A: RaggedWeights
    B: RaggedWeights
    C: Cost[Any]
    eps: float
    dtype: Any
    span: tuple[float, float]
    symmetric: bool
    on_host: bool
    point_bytes: int  # of a cost that is not stored
    pair_bytes: int
    shared_bytes: int
    rows_per_call: int

    @classmethod
    def of(cls, given: CheckedDocuments, eps: float, memory_limit: int | None = None) -> Self:
        """Return the pairs of checked documents; `memory_limit` bytes decide how many rows are solved at once."""
        A, B, C = given.A, given.B, given.C
        mirrored = A is B and C.symmetric
        point_bytes = 0 if C.stored else C.data.point_bytes
        sizes = _sizes(given, mirrored, point_bytes, memory_limit)
        rows_per_call = ROWS_PER_CALL
        if memory_limit is not None:
            _, width = tile_shape(sizes, memory_limit)
            row_bytes = sizes.shared_bytes - point_bytes + min(width, len(B)) * sizes.pair_bytes
            rows_per_call = max(1, min((memory_limit - point_bytes) // row_bytes, ROWS_PER_CALL))
        return cls(
            A=A,
            B=B,
            C=C,
            eps=eps,
            dtype=given.dtype,
            span=C.range(),
            symmetric=mirrored,
            on_host=given.xp is np,
            point_bytes=point_bytes,
            pair_bytes=sizes.pair_bytes,
            shared_bytes=sizes.shared_bytes,
            rows_per_call=rows_per_call,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Items of A and of B."""
        return len(self.A), len(self.B)

    @property
    def xp(self) -> ArrayModule:
        """The array module of the cost."""
        return self.C.xp

    def to_host(self, array: Array) -> HostArray:
        """Return an array of this library as a NumPy array."""
        return self.C.to_host(array)

    @cached_property
    def setting(self) -> Setting:
        """Regularisation, range of the costs, and memory for solving on the host."""
        return Setting(self.eps, self.span, Buffers())

    def solve(self, rows: slice, columns: slice, value: Value, options: Options) -> Solved:
        """Solve rows against columns; see `Pairs`."""
        at, to = np.arange(len(self.A))[rows], np.arange(len(self.B))[columns]
        found = DocumentSolutions.empty(len(at), len(to))
        i, j = np.flatnonzero(self.A.sizes[at]), np.flatnonzero(self.B.sizes[to])
        if len(i) and len(j):
            if self.on_host:
                documents = PaddedDocuments.of(self.B, to[j], self.C.shape[-1])
                queries = Queries.of([self.A.item(k) for k in at[i]], documents, self.C)
                pairs = np.repeat(np.arange(len(i)), len(j)), np.tile(np.arange(len(j)), len(i))
                solved = solve_listed(queries, documents, *pairs, self.setting, options)
            else:
                pairs = np.repeat(at[i], len(j)), np.tile(to[j], len(i))
                solved = self.on_device(0, 1, *pairs, self.C, options)
            for whole, part in zip(found, solved, strict=True):
                whole[np.ix_(i, j)] = part.reshape(len(i), len(j))
        distances = found.cost if value == "cost" else found.reg_cost
        if value == "entropic_cost":
            ours, theirs = self._entropies
            distances = distances - self.eps * (ours[at, None] + theirs[to])
        return self._solved(distances, found)

    def solve_selves(self, side: Literal[0, 1], items: slice, options: Options) -> Solved:
        """Solve items of one side, each with itself; see `Pairs`."""
        own, C = (self.A, self.B)[side], self.C.own(side)
        at = np.arange(len(own))[items]
        found, filled = DocumentSolutions.empty(len(at)), np.flatnonzero(own.sizes[at])
        if len(filled):
            if self.on_host:
                each = [_solve_self(*own.item(k), C, self.eps, options) for k in at[filled]]
                solved = DocumentSolutions(*map(np.concatenate, zip(*each, strict=True)))
            else:
                solved = self.on_device(side, side, at[filled], at[filled], C, options)
            for whole, part in zip(found, solved, strict=True):
                whole[filled] = part
        return self._solved(found.reg_cost, found)

    @property
    def mass(self) -> float:
        """The mass of the items that are not empty."""
        return float(self.A.weights.sum(dtype=np.float64)) / max(1, int(np.count_nonzero(self.A.sizes)))

    @property
    def reach(self) -> None:
        """None: the marginals are met."""
        return None

    @property
    def masses(self) -> None:
        """None: all items have one mass."""
        return None

    def digests(self, side: Literal[0, 1], first: int = 0) -> list[bytes]:
        """Return a digest of each item from `first` on; see `Pairs`.

        Words are told apart by their places, points by where they are.
        """
        items = (self.A, self.B)[side]
        points = None if self.C.stored else self.to_host((self.C.data.x, self.C.data.y)[side])
        each = (items.item(k) for k in range(first, len(items)))
        return [digest(weights, places if points is None else points[places]) for weights, places in each]

    def content(self) -> dict[str, Any]:
        """Return the inputs by name, for fingerprints; see `Pairs`."""
        return {"A": self.A.content(), "B": None if self.B is self.A else self.B.content(), "C": self.C.data}

    @cached_property
    def _entropies(self) -> tuple[HostArray, HostArray]:
        """The entropies of the items of A and of B, 0 for an empty one."""
        ours = entropies_of(self.A)
        return ours, ours if self.B is self.A else entropies_of(self.B)

    @cached_property
    def _uploaded(self) -> list[Any]:
        """Both collections on the device."""
        from cusink.backends.cupy import documents

        return [documents.on_device(side.offsets, side.places, side.weights) for side in (self.A, self.B)]

    def on_device(
        self, ours: int, theirs: int, rows: HostArray, columns: HostArray, C: Cost[Any], options: Options
    ) -> DocumentSolutions:
        """Solve pairs of items of two sides, by the numbers 0 and 1 of the sides: arrays (len(rows),)."""
        from cusink.backends.cupy import documents

        items, sides = (self.A, self.B), (self._uploaded[ours], self._uploaded[theirs])
        points = items[ours].sizes[rows], items[theirs].sizes[columns]
        found = documents.solve_pairs(*sides, points, (rows, columns), C, self.eps, options)
        return DocumentSolutions(**found)

    def _solved(self, distances: HostArray, found: DocumentSolutions) -> Solved:
        """Return distances in the user's library, the rest in NumPy."""
        return Solved(self.xp.asarray(distances), found.error, found.n_iter, found.converged)


def _sizes(given: CheckedDocuments, mirrored: bool, point_bytes: int, memory_limit: int | None) -> Sizes:
    """Return the bytes of pairs: a limit holds for the largest items, without one the average tells the work."""
    itemsize, used = given.A.weights.itemsize, min(given.C.shape[-1], len(given.B.places))
    n, m = (max(1, int(x.sizes.mean() if memory_limit is None else x.sizes.max())) for x in (given.A, given.B))
    shape, entries = (len(given.A), len(given.B)), n * m * itemsize
    sizes = Sizes(shape, mirrored, KERNELS_PER_PAIR * entries, point_bytes + COSTS_PER_ROW * n * used * itemsize)
    if memory_limit is not None and tile_shape(sizes, memory_limit)[1] * m < used:
        # The costs to the words of so few documents are less than those to all words.
        return Sizes(shape, mirrored, (KERNELS_PER_PAIR + COSTS_PER_ROW) * entries, point_bytes)
    return sizes


def _solve_self(weights: HostArray, places: HostArray, C: Cost[Any], eps: float, options: Options) -> DocumentSolutions:
    """Solve one item with itself: arrays (1,), without `cost`."""
    own = self_potentials(dense_cost(costs_between(C.data, places, places)), weights[None], eps, options)
    return DocumentSolutions(np.full(1, np.nan), own.reg_cost, own.error, own.n_iter, own.converged)


def entropies_of(side: RaggedWeights) -> HostArray:
    """Return the entropies of items, 0 for an empty one."""
    weights = side.weights.astype(np.float64)
    return -sums(side.offsets, weights * np.log(weights))
