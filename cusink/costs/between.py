"""Points whose costs are never stored, and what every formula of their costs has in common."""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from cusink.placement import array_module
from cusink.types import Array, ArrayModule, Index

MEAN_ENTRIES = 1 << 20  # costs that are averaged at a time
LONG_SUM = 8.0  # root of the coordinates from which on their roundings count in float32
OF_IMAGES = 2.0  # roundings of a squared distance, in float32, of images that were rounded
ROUNDINGS = 8.0  # of a cost in float64, at most: of centres, products and powers
KERNEL_BYTES = 1 << 30  # that a kernel may take if the caller sets no limit


class Cloud(Protocol):
    """The `cusink.PointCloud` that points came from."""

    x: Array
    y: Array
    flat: tuple[bool, bool | None]
    batches: tuple[int | None, int | None]  # sizes of the batch axes that x and y came with

    def _costs_with(self, xp: ArrayModule, costs: "BetweenPoints", side: int, points: Any) -> "BetweenPoints":
        """Return the costs between new points in the place of those of a side, and those of the other side."""


class Embedding(Protocol):
    """A map of points (..., d), all in float64; `pulled` is the adjoint of `tangent`."""

    def images(self, xp: ArrayModule, points: Array) -> Array:
        """Return the images (..., k) of points."""

    def tangent(self, xp: ArrayModule, points: Array, move: Array) -> Array:
        """Return how images move with points."""

    def pulled(self, xp: ArrayModule, points: Array, gradient: Array) -> Array:
        """Return the gradient with respect to points, given that of their images."""

    def curvature(self, xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
        """Return the derivative of `pulled` of a `gradient` that stays, while the points `move`."""

    def of_both(self, xp: ArrayModule, x: Array, y: Array, dtype: Any) -> tuple[Array, Array]:
        """Return the images of points about the mean of those of x, rounded once."""


@dataclasses.dataclass(frozen=True, eq=False)
class BetweenPoints(ABC):
    """Costs between `x` (n, d) or (B, n, d) and `y` (m, d) or (B, m, d), C-contiguous, of one dtype.

    Both have a batch axis or neither. They are the points of the user, to the last digit: to move them would cost those
    near 0 their digits. With an `embedding` they are the images of the points `given`. An operator may keep a kernel of
    `memory_limit` bytes, and recreates the costs in blocks where it would be larger.
    """

    x: Array
    y: Array
    _: dataclasses.KW_ONLY
    memory_limit: int = KERNEL_BYTES
    cloud: Cloud | None = None
    embedding: Embedding | None = None
    given: tuple[Array, Array] | None = None  # the points of the user, where x and y are their images
    filled: tuple[Array, Array] | None = None  # masks (n,) or (B, n) and (m,) or (B, m) of points with weight; all
    loss: float = 0.0  # share of a sum over a large cloud that may be left out, and is counted as error

    kind: ClassVar[str]  # the word by which operators are found

    @property
    def movable(self) -> bool:
        """Whether `block_tangent` can be taken."""
        return True

    @property
    def cheap_blocks(self) -> bool:
        """Whether a `block` takes hardly longer than the exponentials of its entries."""
        return False

    @property
    def apart(self) -> tuple[Array, Array] | None:
        """The centres of both clouds, if gradients by points grow with what lies between them, and this is much."""
        return None

    def affine_tangent(self, moves: tuple[Array, Array]) -> tuple[Array, Array] | None:
        """Return the part (n,) or (B, n) by rows and that by columns of a tangent that goes with what lies between.

        None where the clouds are not `apart`.
        """
        del moves
        return None

    def pulled_excess(self, side: int, excess: Array) -> Array:
        """Return what of a gradient of points (n, d) or (B, n, d) comes of an `excess` (n,) or (B, n) of its sums."""
        raise NotImplementedError

    @property
    def has_own(self) -> bool:
        """Whether the costs of either side to itself are symmetric."""
        return True

    @property
    def symmetric(self) -> bool:
        """Whether both sides are one cloud, and its costs symmetric."""
        return self.x is self.y and self.has_own

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``, of the cost that is not stored."""
        return (*self.x.shape[:-1], self.y.shape[-2])

    @property
    def ndim(self) -> int:
        """2 for a cost that all problems share, 3 for one each."""
        return int(self.x.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the points."""
        dtype: np.dtype[Any] = self.x.dtype
        return dtype

    @property
    def roundings(self) -> float:
        """How many roundings of its dtype a cost is off by: a long sum, in float32 beside the mean of many pairs."""
        if self.dtype != np.float32:
            return ROUNDINGS
        of_images = 0.0 if self.embedding is None else OF_IMAGES * max(1.0, self.power_of_squares)
        return max(1.0, math.sqrt(self.x.shape[-1]) / LONG_SUM) + of_images

    @property
    def power_of_squares(self) -> float:
        """About which power of squared distances the costs are."""
        return 1.0

    @property
    def point_bytes(self) -> int:
        """Memory of the points."""
        return int(self.x.nbytes) + (0 if self.y is self.x else int(self.y.nbytes))

    def squares_fit(self, xp: ArrayModule) -> bool:
        """Whether the dtype has room for squared distances, if the costs are powers of such."""
        del xp
        return True

    def weighted(self, x: Array, y: Array) -> Self:
        """Return the same costs with masks of the points that have weight: no other decides how large the costs are."""
        x, y = (_like(mask, points) for mask, points in ((x, self.x), (y, self.y)))
        return dataclasses.replace(self, filled=(x, y))

    def astype(self, dtype: Any) -> Self:
        """Return the same points in another precision; images are those of the points of the user."""
        if dtype == self.dtype:
            return self
        if self.given is not None and self.embedding is not None:
            x, y = self.embedding.of_both(array_module(self.x), *self.given, dtype)
            return dataclasses.replace(self, x=x, y=y)
        x = self.x.astype(dtype)
        return dataclasses.replace(self, x=x, y=x if self.y is self.x else self.y.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own; else the shared one."""
        return self if self.ndim == 2 else self._select((problems,), (problems,), ())

    def take(self, rows: Index, columns: Index) -> Self:
        """Return the costs between some of the points."""
        return self._select((..., rows), (..., columns), (slice(None),))

    def own(self, side: int) -> Self:
        """Return the costs of the points of side 0 (x) or 1 (y) to themselves."""
        given, filled = (None if pair is None else (pair[side],) * 2 for pair in (self.given, self.filled))
        points = (self.x, self.y)[side]
        return dataclasses.replace(self, x=points, y=points, given=given, filled=filled)

    def _select(self, rows: tuple[Any, ...], columns: tuple[Any, ...], coordinates: tuple[Any, ...]) -> Self:
        """Return the costs between some of the points, given by indices of masks and of the axis after theirs."""

        def chosen(x: Array, y: Array, rest: tuple[Any, ...]) -> tuple[Array, Array]:
            return x[(*rows, *rest)], y[(*columns, *rest)]

        x, y = chosen(self.x, self.y, coordinates)
        given = None if self.given is None else chosen(*self.given, coordinates)
        filled = None if self.filled is None else chosen(*self.filled, ())
        return dataclasses.replace(self, x=x, y=y, given=given, filled=filled)

    def same_points(self) -> Array | bool:
        """Return for which problems (B,), or whether, the points of both sides are the same."""
        return True if self.x is self.y else (self.x == self.y).all(axis=(-1, -2))

    def _points(self, problems: Index, rows: Index) -> tuple[Array, Array]:
        x, y = (self.x, self.y) if self.ndim == 2 else (self.x[problems], self.y[problems])
        return x[..., rows, :], y

    def _moves(self, moves: tuple[Array, Array], problems: Index, rows: Index) -> tuple[Array, Array]:
        x, y = moves if self.ndim == 2 else (moves[0][problems], moves[1][problems])
        return x[..., rows, :], y

    @abstractmethod
    def block(self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None)) -> Array:
        """Return the costs (n, m) or (B, n, m) of some problems and rows as an array."""

    @abstractmethod
    def block_adjoint(
        self, xp: ArrayModule, gradient: Array, problems: Index = slice(None), rows: Index = slice(None)
    ) -> tuple[Array, Array]:
        """Pull the `gradient` of a `block` back to the points of its rows (n, d) and of all columns (m, d).

        Points that coincide get zero where the cost has no derivative, as in `cusink.cost_matrix_adjoint`.
        """

    @abstractmethod
    def block_tangent(
        self, xp: ArrayModule, moves: tuple[Array, Array], problems: Index = slice(None), rows: Index = slice(None)
    ) -> Array:
        """Return the derivative of a `block` while the points x and y `moves`, in float64."""

    @abstractmethod
    def block_curvature(
        self,
        xp: ArrayModule,
        gradient: Array,
        tangent: Array,
        moves: tuple[Array, Array],
        problems: Index = slice(None),
        rows: Index = slice(None),
    ) -> tuple[Array, Array]:
        """Return the derivative of `block_adjoint` while the points `moves`, and its `gradient` moves by `tangent`."""

    def mean(self, xp: ArrayModule) -> float:
        """Return the mean cost, over the problems too."""
        total, height = 0.0, max(1, MEAN_ENTRIES // self.shape[-1])
        for problem in range(1 if self.ndim == 2 else len(self.x)):
            for start in range(0, self.shape[-2], height):
                rows = slice(start, start + height)
                total += float(self.block(xp, slice(problem, problem + 1), rows).sum(dtype=np.float64))
        return total / math.prod(self.shape)


def _like(mask: Array, points: Array) -> Array:
    """Return a mask of points (n, d) or (B, n, d) in the shape of these without coordinates."""
    mask = mask if mask.ndim < points.ndim else mask.any(axis=0)
    return mask if mask.ndim == points.ndim - 1 else mask[None].repeat(len(points), axis=0)
