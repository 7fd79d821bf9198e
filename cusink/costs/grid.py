"""Costs between the cells of a regular grid, never stored: what users pass, and the data that operators take."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np

from cusink.checks.arrays import kind
from cusink.checks.scalars import integer, one_of, real, shown
from cusink.types import Array, ArrayModule, HostArray, Index

__all__ = ["Grid"]

SeparableMetric: TypeAlias = Literal["sqeuclidean", "cityblock"]
SEPARABLE: tuple[SeparableMetric, ...] = ("sqeuclidean", "cityblock")
MOST_CELLS = np.iinfo(np.intp).max // 8  # numbers of float64 in an array


@dataclasses.dataclass(frozen=True, eq=False)
class GridCosts:
    """``C_ij = sum_k axes[k][i_k, j_k]`` for cells i and j of a grid, numbered in C order.

    `axes` are symmetric arrays (n_k, n_k) of one dtype, from 0 up.
    """

    axes: tuple[Array, ...]

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

    def at(self, problems: Index) -> Self:
        """Return the grid itself, which all problems share."""
        del problems
        return self

    def largest(self, xp: ArrayModule) -> float:
        """Return the largest cost."""
        del xp
        return float(sum(float(axis.max()) for axis in self.axes))


class _Axes(NamedTuple):
    """One entry for each axis."""

    cells: tuple[int, ...]
    spacing: tuple[float, ...]
    periodic: tuple[bool, ...]


def _checked_axes(shape: Any, metric: Any, spacing: Any, periodic: Any) -> _Axes:
    """Check the arguments of `Grid`."""
    one_of("metric", metric, SEPARABLE, "Only these are sums over axes: for another one pass a cusink.PointCloud")
    given = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    cells = [integer(k) for k in given]
    if not 1 <= len(cells) <= 3 or not all(k is not None and k > 0 for k in cells):
        raise ValueError(f"'shape' must be one, two or three positive numbers of cells; got {shown(shape)}")
    counts = tuple(int(k) for k in cells if k is not None)
    if math.prod(counts) > MOST_CELLS or max(counts) ** 2 > MOST_CELLS:
        raise ValueError(
            f"'shape' must be of cells that arrays can hold; got {shown(math.prod(counts))} cells, of which "
            f"{shown(max(counts))} along an axis. Take a coarser grid"
        )
    spacings = _spacings(spacing, counts)
    around = _for_each_axis("periodic", periodic, len(counts))
    for value in around:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"'periodic' must be a bool, or one for each axis; got {kind(value)}")
    return _Axes(counts, spacings, tuple(map(bool, around)))


def _spacings(spacing: Any, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Check the distances between cells, of which there are `counts` along the axes."""
    rule = "'spacing' must be positive and finite, one number or one for each axis"
    out = []
    for value in _for_each_axis("spacing", spacing, len(counts)):
        number = real(value)
        if number is None:
            raise TypeError(f"{rule}; got {kind(value)}")
        if not 0 < number < math.inf:
            raise ValueError(f"{rule}; got {shown(value)}")
        out.append(number)
    if not math.isfinite(sum((number * k) * (number * k) for number, k in zip(out, counts, strict=True))):
        raise ValueError(f"'spacing' must be such that costs are finite; got {shown(spacing)}. Change its unit")
    return tuple(out)


def _for_each_axis(name: str, value: Any, count: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    if len(values) != count:
        raise ValueError(f"'{name}' must be one value, or {count} for a grid of {count} axes; got {len(values)}")
    return values


class Grid:
    """The cost between the cells of a regular grid, as a sum over its axes: images and volumes as histograms.

    It takes the place of `C` in `cusink.sinkhorn` and the functions built on it. Histograms have one bin for each cell,
    in C order: ``image.reshape(-1)``. Every reduction over the N cells runs axis by axis, with work of ``N (n_1 + n_2 +
    ...)`` instead of ``N**2``.

    Parameters
    ----------
    shape : tuple of int
        Cells along each axis: one, two or three axes.
    metric : {"sqeuclidean", "cityblock"}
        Between the centres of cells; both are sums over the axes, which "euclidean" is not.
    spacing : float or tuple of float
        Distance between neighbouring cells, for all axes or for each.
    periodic : bool or tuple of bool
        Whether the last cell of an axis is the neighbour of its first.

    Attributes
    ----------
    cells, metric, spacing, periodic
        As given, the last two for each axis.
    shape : tuple
        Of the cost, (N, N).

    Raises
    ------
    TypeError, ValueError
        A shape, spacing or metric that is none.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> image = np.zeros((28, 28))
    >>> image[4, 4] = 1
    >>> moved = np.roll(image, (3, 4), axis=(0, 1))
    >>> grid = cusink.Grid((28, 28))
    >>> print(f"{cusink.sinkhorn(image.reshape(-1), moved.reshape(-1), grid, eps=1.0).cost:.4f}")
    25.0000
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        metric: SeparableMetric = "sqeuclidean",
        *,
        spacing: float | tuple[float, ...] = 1.0,
        periodic: bool | tuple[bool, ...] = False,
    ) -> None:
        self.cells, self.spacing, self.periodic = _checked_axes(shape, metric, spacing, periodic)
        self.metric = metric
        count = math.prod(self.cells)
        self.shape = (count, count)

    def __eq__(self, other: object) -> bool:
        return self._parameters() == other._parameters() if isinstance(other, Grid) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._parameters())

    def _parameters(self) -> tuple[Any, ...]:
        return self.cells, self.metric, self.spacing, self.periodic

    def __repr__(self) -> str:
        return f"Grid({self.cells}, {self.metric!r}, spacing={self.spacing}, periodic={self.periodic})"

    def dense(self) -> HostArray:
        """Return the cost as an array, in float64: memory of its size.

        Returns
        -------
        array, shape (N, N)
            The costs.
        """
        cost: HostArray = grid_costs(np, self, np.float64).block(np)
        return cost

    def max(self) -> float:
        """Return the largest cost, a common unit of `eps`.

        Returns
        -------
        float
            In the unit of `spacing`, squared for "sqeuclidean".
        """
        return grid_costs(np, self, np.float64).largest(np)


def grid_costs(xp: ArrayModule, grid: Grid, dtype: Any) -> GridCosts:
    """Return an array of costs for each axis of a grid."""
    axes = []
    for cells, spacing, periodic in zip(grid.cells, grid.spacing, grid.periodic, strict=True):
        steps = np.abs(np.arange(cells)[:, None] - np.arange(cells))
        distance = spacing * (np.minimum(steps, cells - steps) if periodic else steps).astype(np.float64)
        # What exceeds the dtype is refused by the checks.
        with np.errstate(over="ignore"):
            axes.append(xp.asarray(distance**2 if grid.metric == "sqeuclidean" else distance, dtype))
    return GridCosts(tuple(axes))
