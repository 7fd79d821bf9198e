"""Costs between the cells of a grid, never stored: the data that operators take."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeAlias

import numpy as np

from cusink.costs.blockwise import check_row, entries_at_a_time, stays
from cusink.costs.formulas import finite_power
from cusink.placement import array_module
from cusink.types import Array, ArrayModule, HostArray, Index

Spacing: TypeAlias = float | tuple[float, ...]  # of an axis: between all neighbours, or between each two


@dataclasses.dataclass(frozen=True, eq=False)
class GridCosts:
    """``C_ij = sum_k axes[k][i_k, j_k]`` for cells i and j of a grid, numbered in C order.

    `axes` are symmetric arrays (n_k, n_k) of one dtype, from 0 up, and `slopes` in float64 their derivatives with
    respect to the positions of the cells of the rows.
    """

    axes: tuple[Array, ...]
    slopes: tuple[Array, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``, of the cost that is not stored."""
        cells = math.prod(self.cells)
        return (cells, cells)

    @property
    def ndim(self) -> int:
        """2: all problems share the cost."""
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the axes."""
        dtype: np.dtype[Any] = self.axes[0].dtype
        return dtype

    def astype(self, dtype: Any) -> Self:
        """Return the same grid in another precision."""
        return dataclasses.replace(self, axes=tuple(axis.astype(dtype) for axis in self.axes))

    def block(self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None)) -> Array:
        """Return the costs (rows, n) of some rows as an array."""
        del problems  # all share them
        of_rows = xp.unravel_index(xp.arange(self.shape[0])[rows], self.cells)
        out = xp.zeros((len(of_rows[0]), *self.cells), self.dtype)
        for k, (axis, cells) in enumerate(zip(self.axes, of_rows, strict=True)):
            out += axis[cells].reshape(len(cells), *(len(axis) if other == k else 1 for other in range(len(self.axes))))
        return out.reshape(len(of_rows[0]), -1)

    def axes_adjoint(self, xp: ArrayModule, blocks: Iterable[tuple[slice, Array]]) -> tuple[Array, ...]:
        """Pull the gradient of all costs, in blocks of rows (rows, n), back to the positions of the cells (n_k,)."""
        sums = [xp.zeros(axis.shape) for axis in self.slopes]
        for rows, gradient in blocks:
            of_rows = xp.unravel_index(xp.arange(self.shape[0])[rows], self.cells)
            gradient = gradient.reshape(-1, *self.cells)
            for k, (total, cells) in enumerate(zip(sums, of_rows, strict=True)):
                others = tuple(1 + axis for axis in range(len(self.cells)) if axis != k)
                chosen = (cells == xp.arange(len(total))[:, None]).astype(np.float64)
                total += chosen @ gradient.sum(axis=others, dtype=np.float64)
        return tuple(((total + total.T) * slope).sum(axis=1) for total, slope in zip(sums, self.slopes, strict=True))

    def at(self, problems: Index) -> Self:
        """Return the grid itself, which all problems share."""
        del problems
        return self

    def largest(self, xp: ArrayModule) -> float:
        """Return the largest cost."""
        del xp
        return float(sum(float(axis.max()) for axis in self.axes))


@dataclasses.dataclass(frozen=True, eq=False)
class EuclideanCosts:
    """``C_ij = unit * sqrt(sum_k axes[k][i_k, j_k])`` for cells i and j of a grid, made in blocks from `squares`.

    These are the squared distances along each axis, in float64 and in units of the largest spacing: no distance that
    `dtype` holds is lost to the range of its square. Along the axis `even`, if there is one, a cost depends on the
    distance alone. `around` says that an axis is periodic.
    """

    squares: GridCosts
    unit: float
    even: int | None
    around: bool
    dtype: np.dtype[Any]
    memory_limit: int

    def __post_init__(self) -> None:
        """Refuse a limit that holds no row of costs."""
        check_row(self.memory_limit, self.shape[1])

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return self.squares.cells

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``, of the cost that is not stored."""
        return self.squares.shape

    @property
    def ndim(self) -> int:
        """2: all problems share the cost."""
        return 2

    @property
    def kept(self) -> bool:
        """Whether the costs may be stored while an iteration needs them."""
        return stays(array_module(self.squares.axes[0]), self.shape, self.dtype, self.memory_limit)

    @property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest cost."""
        return 0.0, self.largest(np)

    def largest(self, xp: ArrayModule) -> float:
        """Return the largest cost."""
        del xp
        return self.unit * math.sqrt(sum(float(axis.max()) for axis in self.squares.axes))

    def entries(self, xp: ArrayModule) -> int:
        """Return how many costs are made at a time."""
        return entries_at_a_time(xp, self.memory_limit)

    def centres(self, xp: ArrayModule) -> Array:
        """Return the centres (n, d) of the cells of a grid that is not periodic, in float64, from that of the first."""
        places = [self.unit * xp.sqrt(axis[:, 0]) for axis in self.squares.axes]
        cells = xp.unravel_index(xp.arange(self.shape[0]), self.cells)
        return xp.stack([place[along] for place, along in zip(places, cells, strict=True)], axis=-1)

    def astype(self, dtype: Any) -> Self:
        """Return the same grid in another precision."""
        return dataclasses.replace(self, dtype=np.dtype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the grid itself, which all problems share."""
        del problems
        return self

    def block(
        self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None), columns: Index = slice(None)
    ) -> Array:
        """Return the costs of some rows and columns as an array, each rounded once to `dtype`."""
        count = self.shape[1]
        if isinstance(columns, slice) and len(range(*columns.indices(count))) < count:  # the cost is symmetric
            return xp.ascontiguousarray(self.block(xp, problems, columns).T[rows])
        out = xp.empty((len(xp.arange(count)[rows]), count), self.dtype)
        every = xp.arange(count)[rows]
        step = max(1, self.entries(xp) // count)
        for start in range(0, len(every), step):
            part = self.squares.block(xp, rows=every[start : start + step])
            xp.sqrt(part, out=part)
            if self.unit != 1:
                part *= self.unit
            with np.errstate(over="ignore"):  # what exceeds the dtype is refused by the checks
                out[start : start + step] = part
        return out

    def axes_adjoint(self, xp: ArrayModule, blocks: Iterable[tuple[slice, Array]]) -> tuple[Array, ...]:
        """Pull the gradient of all costs, in blocks of rows (rows, n), back to the positions of the cells (n_k,).

        Between a cell and itself, where a distance has no derivative, zero is taken.
        """

        def of_squares() -> Iterator[tuple[slice, Array]]:
            for rows, gradient in blocks:
                squares = self.squares.block(xp, rows=rows)
                yield rows, gradient * (0.5 * finite_power(xp, squares, -0.5))

        return self.squares.axes_adjoint(xp, of_squares())


def apart(cells: int, spacing: Spacing, periodic: bool) -> tuple[HostArray, HostArray]:
    """Return the distances between the cells of an axis, and their derivatives by the positions of the rows' cells.

    Half way around, which is neither up nor down, a distance has none.
    """
    if isinstance(spacing, tuple):
        # Sums of the gaps between each two cells: of positions, a small gap would be lost beside a large one.
        gaps = np.asarray(spacing, np.float64)
        above = np.triu(np.broadcast_to(np.append(0, gaps[: cells - 1]), (cells, cells)), 1).cumsum(axis=1)
        distance: HostArray = above + above.T
        up = np.sign(np.arange(cells)[:, None] - np.arange(cells)).astype(np.float64)
        if not periodic:
            return distance, up
        before, behind = np.append(0, gaps[:-1].cumsum()), gaps[::-1].cumsum()[::-1]
        around = np.triu(before[:, None] + behind, 1)
        other = around + around.T
        np.fill_diagonal(other, np.inf)
        return np.minimum(distance, other), up * np.sign(other - distance)
    steps = np.arange(cells)[:, None] - np.arange(cells)
    if periodic:  # the shorter way
        steps = (steps + cells // 2) % cells - cells // 2
    up = np.where(2 * np.abs(steps) == cells, 0, steps) if periodic else steps
    return spacing * np.abs(steps).astype(np.float64), np.sign(up).astype(np.float64)
