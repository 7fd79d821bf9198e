"""The operands: one for each kind of cost."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.blocks import blocks
from cusink.costs.cost import Cost, GradientBlock
from cusink.costs.grid import GridCosts
from cusink.costs.points import Cloud, PointCosts
from cusink.types import Array, ArrayModule, Index

SYMMETRY_ENTRIES = 1 << 16  # compared at a time


@dataclass(frozen=True, eq=False)
class DenseCost(Cost[Array]):
    """An array (n, m) or (B, n, m) of costs; +inf forbids a pair."""

    @property
    def stored(self) -> bool:
        """True: `data` is the array."""
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def symmetric(self) -> bool:
        """Whether the array equals its transpose."""
        C = self.data
        return bool(C.shape[0] == C.shape[1]) and all(
            bool((C[rows] == C[:, rows].T).all()) for _, rows in blocks(1, len(C), len(C), SYMMETRY_ENTRIES)
        )

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype, copy=False))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own."""
        return self if self.shared else replace(self, data=self.data[problems])

    def without(self, above: float) -> Self:
        """Return the cost with +inf for the pairs that cost more than `above`."""
        return replace(self, data=self.xp.where(self.data > above, self.data.dtype.type(np.inf), self.data))

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some bins; without a copy, where these are all."""
        C = self.data[:, columns] if len(columns) < self.shape[1] else self.data
        return replace(self, data=self.xp.ascontiguousarray(C[rows] if len(rows) < len(C) else C))

    def own(self, side: int) -> Self:
        """Return the cost itself, which is between bins that both sides share."""
        del side
        return self

    def exponent_rounding(self) -> float:
        """Return the rounding of float64 on the host, which takes exponents in it, and of the dtype on a device."""
        return float(np.finfo("float64" if self.xp is np else self.dtype.name).eps) / 2

    def row_bytes(self, copies: int) -> int:
        """Return the size of that many copies."""
        return copies * int(self.data.size) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class PointCost(Cost[PointCosts]):
    """The cost between points as an operand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        return self.data.dtype

    @property
    def symmetric(self) -> bool:
        """Whether both sides are one cloud."""
        return self.data.x is self.data.y

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own."""
        return self if self.shared else replace(self, data=self.data.at(problems))

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some points."""
        return replace(self, data=self.data.take(rows, columns))

    @property
    def has_own(self) -> bool:
        """True: each cloud can be compared with itself."""
        return True

    def own(self, side: int) -> Self:
        """Return the cost of the points of one side to themselves."""
        return replace(self, data=self.data.own(side))

    def weighted(self, x: Array, y: Array) -> Self:
        """Return the same cost with masks of the points that have weight, which alone decide how large it is."""
        return replace(self, data=self.data.weighted(x, y))

    def row_bytes(self, copies: int) -> int:
        """Return the memory of the kernels that may be kept, and of the points."""
        n, m = self.shape[-2:]
        return min(copies * n * m * self.dtype.itemsize, self.data.memory_limit) + self.data.point_bytes

    def points_adjoint(self, blocks: Iterable[GradientBlock]) -> tuple[Array, Array | None]:
        """Pull the gradient of all costs, in blocks, back to the points in the shapes that the user passed.

        It is summed over the problems of a shared cloud.
        """
        xp, costs = self.xp, self.data
        gx, gy = (xp.zeros(points.shape, np.float64) for points in (costs.x, costs.y))
        for problems, rows, gradient in blocks:
            if self.shared:
                of_rows, of_columns = costs.block_adjoint(xp, gradient.sum(axis=0), rows=rows)
                gx[rows] += of_rows
                gy += of_columns
            else:
                of_rows, of_columns = costs.block_adjoint(xp, gradient, problems, rows)
                gx[problems, rows] += of_rows
                gy[problems] += of_columns
        assert costs.cloud is not None
        if self.ndim < costs.cloud.x.ndim:  # a batch of one
            gx, gy = gx[None], gy[None]
        return _to_user_points(xp, costs.cloud, gx, gy)


def _to_user_points(xp: ArrayModule, cloud: Cloud, gx: Array, gy: Array) -> tuple[Array, Array | None]:
    """Return the gradients with respect to the points of a cloud, given those by the points or their directions.

    With one cloud on both sides the first is that of the points as sources and as targets, and the second is None.
    """
    out = []
    for given, flat, gradient in zip((cloud.x, cloud.y), cloud.flat, (gx, gy), strict=True):
        if cloud.metric == "cosine":
            given = given.astype(np.float64)
            norm = xp.sqrt((given * given).sum(axis=-1, keepdims=True))
            unit = given / norm
            gradient = (gradient - unit * (unit * gradient).sum(axis=-1, keepdims=True)) / norm
        out.append(gradient[..., 0] if flat else gradient)
    if cloud.x is cloud.y:
        total = out[0] + (out[1][..., 0] if cloud.flat[0] else out[1])
        return narrowed(total, cloud.x.dtype, xp), None
    return narrowed(out[0], cloud.x.dtype, xp), narrowed(out[1], cloud.x.dtype, xp)


@dataclass(frozen=True, eq=False)
class GridCost(Cost[GridCosts]):
    """The cost between the cells of a grid as an operand. It is shared, and needs all cells."""

    divisible: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, n)``."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        return self.data.dtype

    @property
    def symmetric(self) -> bool:
        """True: a distance is."""
        return True

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the cost itself, which all problems share."""
        del problems
        return self

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between all cells."""
        del rows, columns
        return self

    def own(self, side: int) -> Self:
        """Return the cost itself: both sides are one grid."""
        del side
        return self

    def exponent_rounding(self) -> float:
        """Return the rounding of float64, in which exponents are taken."""
        return float(np.finfo("float64").eps) / 2

    def row_bytes(self, copies: int) -> int:
        """Return 0: an axis is small."""
        del copies
        return 0
