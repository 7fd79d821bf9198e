"""One side of the pairs: values of all points, item after item, as rows of one length for a batch, and back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.costs.measures import Measures
from cusink.types import Array, ArrayModule, HostArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Side:
    """Measures of one side: item k has the points from offsets[k] to offsets[k + 1].

    `weights` (N,) and `points` (N, d) are in the dtype of the user.
    """

    offsets: HostArray
    weights: Array
    points: Array

    @classmethod
    def of(cls, measures: Measures) -> "Side":
        """Return a copy, which changes of the caller's arrays do not reach."""
        return cls(offsets=measures.offsets, weights=measures.weights.copy(), points=measures.points.copy())

    @property
    def sizes(self) -> HostArray:
        """How many points each item has."""
        return np.diff(self.offsets)

    def item(self, k: int) -> slice:
        """Return where the points of one item are."""
        return slice(int(self.offsets[k]), int(self.offsets[k + 1]))

    def places(self, items: HostArray, width: int) -> HostArray:
        """Return the places (P, width) of the points of some items; the last point of an item fills its row."""
        sizes = self.sizes[items]
        places: HostArray = self.offsets[items, None] + np.minimum(np.arange(width), sizes[:, None] - 1)
        return places

    def filled(self, items: HostArray, width: int) -> HostArray:
        """Return which entries (P, width) of such rows are points of their item."""
        filled: HostArray = np.arange(width) < self.sizes[items, None]
        return filled

    def spread(self, xp: ArrayModule, values: Array) -> Array:
        """Return values (K,) of the items as those of all their points (N,)."""
        return values[xp.asarray(np.repeat(np.arange(len(self.sizes)), self.sizes))]


def rows(xp: ArrayModule, side: Side, values: Array, items: HostArray, width: int) -> Array:
    """Return values (N, ...) of all points as rows (P, width, ...) of some items."""
    return values[xp.asarray(side.places(items, width))]


def weight_rows(xp: ArrayModule, side: Side, items: HostArray, width: int) -> Array:
    """Return the weights as rows (P, width), which end with zeros."""
    own = rows(xp, side, side.weights, items, width)
    return xp.where(xp.asarray(side.filled(items, width)), own, own.dtype.type(0))


def flat(xp: ArrayModule, side: Side, parts: Iterable[tuple[HostArray, Array]], known: Array | None = None) -> Array:
    """Return rows (P, width, ...) of batches of items as values (N, ...) of all points, item after item.

    Those of other items are `known`.
    """
    out: Any = None if known is None else known.copy()
    for items, part in parts:
        out = put(xp, side, out, items, part)
    return out


def put(xp: ArrayModule, side: Side, out: Array | None, items: HostArray, part: Array) -> Array:
    """Write rows (P, width, ...) of items into values `out` (N, ...) of all points, or into a new array; return it."""
    if out is None:
        out = xp.empty((int(side.offsets[-1]), *part.shape[2:]), part.dtype)
    filled = side.filled(items, part.shape[1])
    out[xp.asarray(side.places(items, part.shape[1])[filled])] = part[xp.asarray(filled)]
    return out


def in_order(
    xp: ArrayModule, parts: Iterable[tuple[HostArray, Array]], count: int, known: Array | None = None
) -> Array:
    """Return values (P, ...) of batches of pairs as one array (K, ...); those of other pairs are `known`."""
    out: Any = None if known is None else known.copy()
    for pairs, part in parts:
        out = put_in_order(xp, out, pairs, part, count)
    return out


def put_in_order(xp: ArrayModule, out: Array | None, pairs: HostArray, part: Array, count: int) -> Array:
    """Write values (P, ...) of pairs into `out` (K, ...), or into a new array; return it."""
    if out is None:
        out = xp.empty((count, *part.shape[1:]), part.dtype)
    out[xp.asarray(pairs)] = part
    return out


def by_problem(A: Side, B: Side, rows: Array, columns: Array) -> tuple[tuple[Array, Array], ...]:
    """Return values of both sides of what a divergence asks for as those of the pairs, of A and of B with themselves.

    Its sides are A, A, B and B, A, B, see `cusink.solver.pairs.selves`.
    """
    N, M = len(A.weights), len(B.weights)
    return (
        (rows[:N], columns[:M]),
        (rows[N : 2 * N], columns[M : M + N]),
        (rows[2 * N :], columns[M + N :]),
    )


def centred(xp: ArrayModule, side: Side, values: Array) -> Array:
    """Return values (N,) less their mean over each item."""
    sizes = side.sizes
    item = xp.asarray(np.repeat(np.arange(len(sizes)), sizes))
    mean = xp.bincount(item, values.astype(np.float64), len(sizes)) / xp.asarray(sizes)
    return (values - mean[item]).astype(values.dtype)
