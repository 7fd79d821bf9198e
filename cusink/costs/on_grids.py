"""The operands of costs between the cells of a grid."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from cusink.costs.cells import EuclideanCosts, GridCosts
from cusink.costs.cost import Cost, GradientBlock
from cusink.types import Array, Index, Statistic

CellData = TypeVar("CellData", GridCosts, EuclideanCosts)


class _OnGrid(Cost[CellData]):
    """A cost between the cells of a grid. It is shared, and needs all cells."""

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

    def axes_adjoint(self, blocks: Iterable[GradientBlock]) -> tuple[Array, ...]:
        """Pull the gradient of all costs, in blocks, back to the positions of the cells along each axis."""
        return self.data.axes_adjoint(self.xp, ((rows, gradient.sum(axis=0)) for _, rows, gradient in blocks))


@dataclass(frozen=True, eq=False)
class GridCost(_OnGrid[GridCosts]):
    """A cost that is a sum over the axes."""

    kind: ClassVar[str] = "grid"

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def known_statistic(self, name: Statistic) -> float | None:
        """Return the largest or the mean cost, which are sums of those of the axes."""
        of_axes = [float(x.max() if name == "max" else x.mean(dtype=np.float64)) for x in self.data.axes]
        return None if name == "median" else sum(of_axes)

    def exponent_rounding(self) -> float:
        """Return the rounding of float64, in which exponents are taken."""
        return float(np.finfo("float64").eps) / 2

    def row_bytes(self, copies: int) -> int:
        """Return 0: an axis is small."""
        del copies
        return 0


@dataclass(frozen=True, eq=False)
class EuclideanCost(_OnGrid[EuclideanCosts]):
    """A distance, which is the root of a sum over the axes."""

    kind: ClassVar[str] = "cells"

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def known_statistic(self, name: Statistic) -> float | None:
        """Return the largest cost, which is that of two corners."""
        return self.largest() if name == "max" else None

    def exponent_rounding(self) -> float:
        """Return the rounding of exponents of costs rounded to the dtype, as of costs that are stored."""
        return float(np.finfo("float64" if self.xp is np else self.dtype.name).eps) / 2

    def row_bytes(self, copies: int) -> int:
        """Return the memory of a row of pairs, of costs that may be stored."""
        n, m = self.shape
        return min(copies * n * m * self.dtype.itemsize, self.data.memory_limit)
