"""`cusink.Grid`: a cost between the cells of a grid that is never stored, as users pass it."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import kind
from cusink.checks.scalars import integer, one_of, real, shown
from cusink.costs.between import KERNEL_BYTES
from cusink.costs.cells import EuclideanCosts, GridCosts, Spacing, apart
from cusink.types import ArrayModule, HostArray

__all__ = ["Grid"]

GridMetric: TypeAlias = Literal["sqeuclidean", "euclidean", "cityblock"]
GRID_METRICS: tuple[GridMetric, ...] = ("sqeuclidean", "euclidean", "cityblock")
MOST_CELLS = np.iinfo(np.intp).max // 8  # numbers of float64 in an array


class _Axes(NamedTuple):
    """One entry for each axis."""

    cells: tuple[int, ...]
    spacing: tuple[Spacing, ...]
    periodic: tuple[bool, ...]


def checked_axes(shape: Any, metric: Any, spacing: Any, periodic: Any) -> _Axes:
    """Check the arguments of `Grid`."""
    one_of("metric", metric, GRID_METRICS, "For another one pass a cusink.PointCloud of the centres of cells")
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
    around = _for_each_axis("periodic", periodic, len(counts))
    for value in around:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"'periodic' must be a bool, or one for each axis; got {kind(value)}")
    return _Axes(counts, _spacings(spacing, counts, around, metric == "sqeuclidean"), tuple(map(bool, around)))


def _spacings(spacing: Any, counts: tuple[int, ...], periodic: tuple[Any, ...], squared: bool) -> tuple[Spacing, ...]:
    """Check the distances between cells, of which there are `counts` along the axes; `squared` says that costs are."""
    out: list[Spacing] = []
    for k, value in enumerate(_for_each_axis("spacing", spacing, len(counts))):
        several = isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim > 0)
        if not isinstance(spacing, (tuple, list)) or not several:
            out.append(_positive(value))
            continue
        wanted = counts[k] if periodic[k] else counts[k] - 1
        if len(value) != wanted or getattr(value, "ndim", 1) != 1:
            raise ValueError(
                f"'spacing' must have {wanted} distances between neighbours for axis {k} of {counts[k]} cells"
                f"{', the last one from the last cell to the first' if periodic[k] else ''}; got {shown(value)}"
            )
        gaps = tuple(map(_positive, value))
        out.append(gaps if len(set(gaps)) > 1 else gaps[0] if gaps else 1.0)
    lengths = list(map(_length, out, counts))
    if not math.isfinite(sum(length * length if squared else length for length in lengths)):
        raise ValueError(f"'spacing' must be such that costs are finite; got {shown(spacing)}. Change its unit")
    return tuple(out)


def _positive(value: Any) -> float:
    """Check a distance between cells."""
    rule = "'spacing' must be positive and finite, one number or one for each axis"
    number = real(value)
    if number is None:
        raise TypeError(f"{rule}; got {kind(value)}")
    if not 0 < number < math.inf:
        raise ValueError(f"{rule}; got {shown(value)}")
    return number


def _length(spacing: Spacing, cells: int) -> float:
    """Return a bound on the length of an axis."""
    return sum(spacing) if isinstance(spacing, tuple) else spacing * cells


def _for_each_axis(name: str, value: Any, count: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    if len(values) != count:
        raise ValueError(f"'{name}' must be one value, or {count} for a grid of {count} axes; got {len(values)}")
    return values


class Grid:
    """The cost between the cells of a grid, which is never stored: images and volumes as histograms.

    It takes the place of `C` in `cusink.sinkhorn` and the functions built on it. Histograms have one bin for each cell,
    in C order: ``image.reshape(-1)``. With "sqeuclidean" and "cityblock", which are sums over the axes, every reduction
    over the N cells runs axis by axis, with work of ``N (n_1 + n_2 + ...)`` instead of ``N**2``.

    Parameters
    ----------
    shape : tuple of int
        Cells along each axis: one, two or three axes.
    metric : {"sqeuclidean", "euclidean", "cityblock"}
        Between the centres of cells.
    spacing : float or tuple of float, or tuple of arrays
        Distance between neighbouring cells, for all axes or for each. In a tuple an axis of n cells may have an
        array of the n - 1 distances between its neighbours, such as ``numpy.diff`` of coordinates; of n, the last one
        from the last cell to the first, if it is periodic.
    periodic : bool or tuple of bool
        Whether the last cell of an axis is the neighbour of its first: the shorter way counts.

    Attributes
    ----------
    cells, metric, spacing, periodic
        As given, the last two for each axis; distances that are all equal are one number.
    shape : tuple
        Of the cost, (N, N).

    Raises
    ------
    TypeError, ValueError
        A shape, spacing or metric that is none.

    Notes
    -----
    "euclidean" is no sum over the axes. Its work is ``N**2``, with memory for ``2 N**2 / n`` entries of the kernel,
    where n is the longest axis whose cells are evenly spaced, see docs/grid.md; on a line it is "cityblock".

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

    @one_call
    def __init__(
        self,
        shape: int | tuple[int, ...],
        metric: GridMetric = "sqeuclidean",
        *,
        spacing: float | Sequence[float | Sequence[float] | HostArray] = 1.0,
        periodic: bool | tuple[bool, ...] = False,
    ) -> None:
        self.cells, self.spacing, self.periodic = checked_axes(shape, metric, spacing, periodic)
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

    @property
    def is_sum(self) -> bool:
        """Whether the cost is a sum over the axes."""
        return self.metric != "euclidean" or sum(count > 1 for count in self.cells) <= 1

    def dense(self) -> HostArray:
        """Return the cost as an array, in float64: memory of its size.

        Returns
        -------
        array, shape (N, N)
            The costs.
        """
        cost: HostArray = data_of_grid(np, self, np.float64).block(np)
        return cost

    def max(self) -> float:
        """Return the largest cost, a common unit of `eps`.

        Returns
        -------
        float
            In the unit of `spacing`, squared for "sqeuclidean".
        """
        return data_of_grid(np, self, np.float64).largest(np)


def data_of_grid(
    xp: ArrayModule, grid: Grid, dtype: Any, memory_limit: int = KERNEL_BYTES
) -> GridCosts | EuclideanCosts:
    """Return the cost of a grid as operators take it."""
    if grid.is_sum:
        return grid_costs(xp, grid, dtype)
    unit = max(max(h) if isinstance(h, tuple) else h for h in grid.spacing)
    evenly = [k for k, spacing in enumerate(grid.spacing) if not isinstance(spacing, tuple)]
    even = max(evenly, key=lambda k: grid.cells[k]) if evenly else None
    squares = grid_costs(xp, grid, np.float64, squared=True, unit=unit)
    around = any(count > 1 and periodic for count, periodic in zip(grid.cells, grid.periodic, strict=True))
    return EuclideanCosts(squares, unit, even, around, np.dtype(dtype), memory_limit)


def grid_costs(xp: ArrayModule, grid: Grid, dtype: Any, squared: bool | None = None, unit: float = 1.0) -> GridCosts:
    """Return an array of distances, or of their squares, for each axis of a grid, in a unit of its spacing."""
    squared = grid.metric == "sqeuclidean" if squared is None else squared
    axes, slopes = [], []
    for cells, spacing, periodic in zip(grid.cells, grid.spacing, grid.periodic, strict=True):
        distance, up = apart(cells, spacing, periodic)
        # What exceeds the dtype is refused by the checks.
        with np.errstate(over="ignore"):
            distance = distance / unit
            axes.append(xp.asarray(distance**2 if squared else distance, dtype))
        slopes.append(xp.asarray(2 * up * distance if squared else up, np.float64))
    return GridCosts(tuple(axes), tuple(slopes))
