"""Costs between points that are made in blocks by a formula, in the place of CUDA kernels and of forms of their own."""

import dataclasses
import math
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from cusink.costs.between import BetweenPoints
from cusink.costs.blocks import blocks
from cusink.costs.formulas import Formula
from cusink.deferred import cached_property
from cusink.placement import array_module
from cusink.types import Array, ArrayModule, Index

HOST_ENTRIES, DEVICE_ENTRIES = 1 << 16, 1 << 22  # of a block that is made at a time
COPIES = 14  # of such a block in float64 that a formula and an operator may hold
COPIES_KEPT = 5  # of all costs in float64 that solves and linear systems take where they are stored on the host
COPIES_ON_DEVICE = 4  # of all costs in their dtype
SYMMETRY = 64.0  # roundings of the largest cost by which functions that are symmetric may differ


class InBlocks(Protocol):
    """Costs that operators make in blocks, as they need them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``, of the cost that is not stored."""

    @property
    def ndim(self) -> int:
        """2 for a cost that all problems share, 3 for one each."""

    @property
    def kept(self) -> bool:
        """Whether the costs may be stored while an iteration needs them."""

    @property
    def extent(self) -> tuple[float, float]:
        """Numbers between which all costs lie."""

    def entries(self, xp: ArrayModule) -> int:
        """Return how many costs are made at a time."""

    def astype(self, dtype: Any) -> Self:
        """Return the same costs in another precision."""

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own; else the shared one."""

    def block(
        self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None), columns: Index = slice(None)
    ) -> Array:
        """Return the costs of some problems, rows and columns as an array."""


def check_row(memory_limit: int, bins: int) -> None:
    """Refuse a limit that holds no row of costs."""
    least = 8 * COPIES * bins
    if memory_limit < least:
        raise ValueError(
            f"'memory_limit' must hold a row of costs as they are made, {least} bytes; got {memory_limit}. Raise it"
        )


def entries_at_a_time(xp: ArrayModule, memory_limit: int) -> int:
    """Return how many costs may be made at a time."""
    return min(HOST_ENTRIES if xp is np else DEVICE_ENTRIES, memory_limit // (8 * COPIES))


def check_stored_row(memory_limit: int, bins: int) -> None:
    """Refuse a limit that holds no row of costs between points, of which kernels are made that it bounds."""
    if memory_limit < 8 * bins:
        raise ValueError(
            f"'memory_limit' must hold a row of costs in float64, {8 * bins} bytes; got {memory_limit}. Raise it"
        )


def stays(xp: ArrayModule, shape: tuple[int, ...], dtype: np.dtype[Any], memory_limit: int) -> bool:
    """Return whether costs may be stored while an iteration needs them: of float32 too, the host works in float64."""
    copies = 8 * COPIES_KEPT if xp is np else COPIES_ON_DEVICE * dtype.itemsize
    return copies * math.prod(shape) <= memory_limit


@dataclasses.dataclass(frozen=True, eq=False)
class BlockCosts(BetweenPoints):
    """``C_ij = formula(x_i, y_j) + table[labels of i, j]``; the second for points with labels."""

    formula: Formula
    labels: tuple[Array, Array] | None = None  # of int64, in the shapes of `filled`
    table: Array | None = None  # in float64
    kind: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        """Refuse a limit that holds no row of costs."""
        check_row(self.memory_limit, max(self.shape[-2:]))

    @property
    def movable(self) -> bool:
        """Whether `block_tangent` can be taken: not of a function."""
        return self.formula.twice

    def entries(self, xp: ArrayModule) -> int:
        """Return how many costs are made at a time."""
        return entries_at_a_time(xp, self.memory_limit)

    @property
    def kept(self) -> bool:
        """Whether the costs may be stored while an iteration needs them."""
        return stays(array_module(self.x), self.shape, self.dtype, self.memory_limit)

    def own(self, side: int) -> Self:
        """Return the costs of the points of side 0 (x) or 1 (y) to themselves."""
        labels = None if self.labels is None else (self.labels[side],) * 2
        return dataclasses.replace(super().own(side), labels=labels)

    def _select(self, rows: tuple[Any, ...], columns: tuple[Any, ...], coordinates: tuple[Any, ...]) -> Self:
        chosen = super()._select(rows, columns, coordinates)
        if self.labels is None:
            return chosen
        return dataclasses.replace(chosen, labels=(self.labels[0][rows], self.labels[1][columns]))

    def same_points(self) -> Array | bool:
        """Return for which problems (B,), or whether, points and labels of both sides are the same."""
        same = super().same_points()
        if self.labels is None or self.labels[0] is self.labels[1]:
            return same
        return same & (self.labels[0] == self.labels[1]).all(axis=-1)

    def block(
        self,
        xp: ArrayModule,
        problems: Index = slice(None),
        rows: Index = slice(None),
        columns: Index = slice(None),
    ) -> Array:
        """Return the costs (n, m) or (B, n, m) of some problems, rows and columns as an array."""
        x, y = self._points(problems, rows)
        y = y[..., columns, :]
        labels = self._labels(problems, rows, columns)
        out = xp.empty((*x.shape[:-1], y.shape[-2]), self.dtype)
        every = out if out.ndim == 3 else out[None]
        with np.errstate(over="ignore", invalid="ignore"):  # what leaves the range is refused by its `extent`
            self._fill(xp, every, x, y, labels)
        return out

    def _fill(self, xp: ArrayModule, every: Array, x: Array, y: Array, labels: tuple[Array, Array] | None) -> None:
        """Write costs into `every` (1, n, m) or (B, n, m)."""
        out = every if x.ndim == 3 else every[0]
        for some, part in blocks(len(every), out.shape[-2], out.shape[-1], self.entries(xp)):
            if out.ndim == 2:
                made = self.formula.costs(xp, x[part], y)
            else:
                made = self.formula.costs(xp, x[some, part], y[some])
            if labels is not None and self.table is not None:
                of_x, of_y = labels if out.ndim == 2 else (labels[0][some], labels[1][some])
                made = made + self.table[of_x[..., part, None], of_y[..., None, :]]
            every[some, part] = made

    def _labels(self, problems: Index, rows: Index, columns: Index = slice(None)) -> tuple[Array, Array] | None:
        if self.labels is None:
            return None
        of_x, of_y = self.labels if self.ndim == 2 else (self.labels[0][problems], self.labels[1][problems])
        return of_x[..., rows], of_y[..., columns]

    def block_adjoint(
        self, xp: ArrayModule, gradient: Array, problems: Index = slice(None), rows: Index = slice(None)
    ) -> tuple[Array, Array]:
        """Pull the `gradient` of a `block` back to the points of its rows (n, d) and of all columns (m, d)."""
        return self.formula.adjoint(xp, gradient, *self._points(problems, rows))

    def block_tangent(
        self, xp: ArrayModule, moves: tuple[Array, Array], problems: Index = slice(None), rows: Index = slice(None)
    ) -> Array:
        """Return the derivative of a `block` while the points x and y `moves`, in float64."""
        return self.formula.tangent(xp, *self._points(problems, rows), self._moves(moves, problems, rows))

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
        moved = self._moves(moves, problems, rows)
        return self.formula.curvature(xp, gradient, tangent, *self._points(problems, rows), moved)

    def table_adjoint(
        self, xp: ArrayModule, gradient: Array, problems: Index = slice(None), rows: Index = slice(None)
    ) -> Array:
        """Return the gradient of a `block` summed over the pairs of each entry of the table of labels."""
        labels = self._labels(problems, rows)
        assert labels is not None and self.table is not None
        of_x, of_y = (
            (of_side[..., None] == xp.arange(count)).astype(np.float64)
            for of_side, count in zip(labels, self.table.shape, strict=True)
        )
        out = xp.matmul(xp.matmul(xp.swapaxes(of_x, -1, -2), gradient.astype(np.float64)), of_y)
        return out if out.ndim == 2 else out.sum(axis=0)

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest cost between points with weight; of a function, all answers are checked."""
        xp = array_module(self.x)
        least, most = math.inf, -math.inf
        size, (n, m) = 1 if self.ndim == 2 else len(self.x), self.shape[-2:]
        for problems, rows in blocks(size, n, m, self.entries(xp)):
            costs = self.block(xp, problems, rows)
            low = high = costs
            if self.filled is not None:
                of_x, of_y = self.filled if self.ndim == 2 else (part[problems] for part in self.filled)
                mask = of_x[..., rows, None] & of_y[..., None, :]
                low, high = xp.where(mask, costs, np.inf), xp.where(mask, costs, -np.inf)
            if bool(xp.isnan(costs).any()):  # of numbers whose products left the range
                return (0.0, math.inf)
            least, most = min(least, float(low.min())), max(most, float(high.max()))
        return (least, most) if least <= most else (0.0, 0.0)

    @cached_property
    def has_own(self) -> bool:
        """Whether the costs of either side to itself are symmetric."""
        table = self.table
        if table is not None and (table.shape[0] != table.shape[1] or not bool((table == table.T).all())):
            return False
        if self.formula.symmetric is not None:
            return self.formula.symmetric
        if self.x is self.y:
            return self._mirrored
        return all(self.own(side)._mirrored for side in (0, 1))

    @property
    def _mirrored(self) -> bool:
        """Whether the costs between the points of one cloud are symmetric up to rounding."""
        xp, size = array_module(self.x), 1 if self.ndim == 2 else len(self.x)
        slack = SYMMETRY * float(np.finfo(self.dtype).eps) * self.extent[1]
        for problems, rows in blocks(size, self.shape[-2], self.shape[-1], self.entries(xp)):
            other = xp.swapaxes(self.block(xp, problems, columns=rows), -1, -2)
            if not bool((xp.abs(self.block(xp, problems, rows) - other) <= slack).all()):
                return False
        return True
