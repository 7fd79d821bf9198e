"""Points of clouds in orders that put neighbours together, and the blocks in which reductions pass over their pairs.

A block is some rows against all columns, or some of them. It comes as an array (tiles, rows, width): tiles of columns
whose matrix product BLAS leaves to the thread that calls it.
"""

import functools
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from cusink.backends.neighbours import neighbours, nested
from cusink.backends.numpy import limits
from cusink.backends.numpy.workers import run_all
from cusink.backends.spare import Spare
from cusink.costs.points import PointCosts
from cusink.types import Axis, HostArray

R = TypeVar("R")
Filled: TypeAlias = tuple[HostArray | None, HostArray | None]

PRODUCT_COORDINATES = 62  # at most, in one matrix product
LOCAL_DIMENSIONS = 16  # at most; beyond, neighbours are so far apart that a centre of their own gains nothing
EXACT_DIMENSIONS = 8  # at most, in which differences first are fast enough where every digit counts
ABSENT = -1e30  # log of zero; finite, for -inf times 0 is NaN

# Operators are functions of a cost: the order of its points, made by the first of them, is kept while the cost lives.
_sorted: weakref.WeakKeyDictionary[PointCosts, list["SortedClouds"]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def sorted_clouds(C: PointCosts, problem: int) -> "SortedClouds":
    """Return the two clouds of one problem, which are sorted once for a cost."""
    with _lock:
        found = _sorted.get(C)
    if found is None:
        sides = C.x, C.y, C.origin
        clouds = [sides] if C.ndim == 2 else list(zip(*sides, strict=True))
        rule = C.take(slice(0), slice(0))  # without the points, which would keep the key alive for ever
        masks = _masks(C, len(clouds))
        found = [
            SortedClouds(rule, x, y, origin[0], filled) for (x, y, origin), filled in zip(clouds, masks, strict=True)
        ]
        with _lock:
            found = _sorted.setdefault(C, found)
    return found[0 if C.ndim == 2 else problem]


def _masks(C: PointCosts, problems: int) -> list[Filled]:
    """Return which points of every problem have weight."""
    if C.filled is None:
        return [(None, None)] * problems
    x, y = (mask.reshape(problems, -1) for mask in C.filled)
    return list(zip(x, y, strict=True))


class SortedClouds:
    """Two clouds in orders that put neighbours together, and the sides from which to see them.

    Most of the points lie about their `origin` (d,). Where `filled` is known, it has masks of the points with weight.
    """

    def __init__(
        self, costs: PointCosts, x: HostArray, y: HostArray, origin: HostArray, filled: Filled = (None, None)
    ) -> None:
        sizes = limits.LIMITS
        leaf = max(
            sizes.cloud_leaf_points,
            min(sizes.cloud_block_rows[1], sizes.cloud_block_entries // max(len(x), len(y))),
        )
        self.celled = len(x) * len(y) >= sizes.cloud_cell_pairs and x.shape[1] <= LOCAL_DIMENSIONS
        sort = (
            functools.partial(nested, least=sizes.cloud_least_run)
            if self.celled
            else functools.partial(neighbours, leaf=leaf)
        )
        order = sort(x)
        orders = order, order if y is x else sort(y)
        self.costs, self.orders, self.points = costs, orders, (x[orders[0]], y[orders[1]])
        self.shape, self.origin, self.filled = (len(x), len(y)), origin, filled

    def side(self, axis: Axis, rows: HostArray | None = None, columns: HostArray | None = None) -> "CloudSide":
        """Return rows and columns for a sum over `axis`: x and y for axis 1, y and x for axis 0.

        `rows` and `columns` are masks of the points to take; None for all.
        """
        kept, summed = (0, 1) if axis == 1 else (1, 0)
        sides = []
        for which, chosen in ((kept, rows), (summed, columns)):
            points, order = self.points[which], self.orders[which]
            if chosen is not None and not chosen.all():
                points, order = points[chosen[order]], order[chosen[order]]
            sides.append((points, order))
        (x, row_order), (y, column_order) = sides
        mask = self.filled[kept]
        filled = None if mask is None or mask.all() else mask[row_order]
        return CloudSide(self.costs, x, y, row_order, column_order, self.origin, filled, celled=self.celled)


class CloudSide:
    """Rows x (n, d) against columns y (m, d), cut into blocks of rows.

    `order` (n,) and `columns` (m,) are their places in the order of the caller; y is transposed, (d, m). `filled` (n,)
    says which rows have weight; None stands for all. Columns of a `celled` side are looked for in cells.
    """

    def __init__(
        self,
        costs: PointCosts,
        x: HostArray,
        y: HostArray,
        order: HostArray,
        columns: HostArray,
        origin: HostArray,
        filled: HostArray | None = None,
        celled: bool = False,
    ) -> None:
        sizes = limits.LIMITS
        self.celled, self.filled = celled, filled
        self.costs, self.dtype, self.order, self.columns, self.origin = costs, x.dtype, order, columns, origin
        (n, d), m = x.shape, len(y)
        self.shape, self.x = (n, m), x
        least, most = sizes.cloud_block_rows
        self.rows = int(np.clip(sizes.cloud_block_entries // m // least * least, least, most))
        if celled:
            self.rows = sizes.cloud_celled_rows[n >= sizes.cloud_dense_points**d]
        self.blocks = [slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]
        self.squared = costs.norm == "squared" and costs.exponent == 1
        self.product = self.squared or (costs.norm == "squared" and (costs.exponent > 1 or d > EXACT_DIMENSIONS))
        self.local = d <= LOCAL_DIMENSIONS
        multiplied = self.rows * (min(d, PRODUCT_COORDINATES) + 2)
        self.tile_columns = max(sizes.cloud_leaf_points, sizes.product_multiplications // multiplied)
        self.y, self.all = np.ascontiguousarray(y.T), Columns(m, self.tile_columns)
        self.workspaces = Spare(functools.partial(Workspace, self.rows * self.all.padded, self.dtype))

    def centre(self, rows: slice) -> HostArray:
        """Return the mean (d,) of some rows in float64: of those with weight, so that no other costs them digits."""
        x = self.x[rows]
        if self.filled is not None and self.filled[rows].any():
            x = x[self.filled[rows]]
        mean: HostArray = x.mean(axis=0, dtype=np.float64)
        return mean

    def for_blocks(
        self,
        run: Callable[[Sequence[int], "Workspace"], R],
        blocks: Sequence[int] | None = None,
    ) -> list[R]:
        """Return ``run(numbers of blocks, workspace)`` for shares of the blocks, in order; on threads if that pays."""
        blocks = range(len(self.blocks)) if blocks is None else blocks
        count, sizes = len(blocks), limits.LIMITS

        def run_share(share: Sequence[int]) -> R:
            with self.workspaces.borrow() as work:
                return run(share, work)

        if count * self.rows * self.shape[1] < sizes.threaded_pairs or count < 2:
            return [run_share(blocks)]
        cuts = [count * share // sizes.cloud_shares for share in range(sizes.cloud_shares + 1)]
        shares = [blocks[first:last] for first, last in zip(cuts, cuts[1:], strict=False) if first < last]
        return run_all(run_share, shares)


class Columns:
    """All `total` columns of a side, or those at `index`, in tiles of at most about `most` columns.

    They come in whole tiles, the last columns absent: `tiles` of `width` each. A vector over all columns that is to be
    cut into tiles has one more entry, for the absent columns.
    """

    def __init__(self, total: int, most: int, index: HostArray | None = None) -> None:
        self.count = total if index is None else len(index)
        self.tiles = max(1, -(-self.count // most))
        self.width = max(8, -(-self.count // (8 * self.tiles)) * 8)
        self.padded = self.tiles * self.width
        self.index: HostArray | None = None
        if index is not None:
            self.index = np.full(self.padded, total, np.int32)
            self.index[: self.count] = index

    def of(self, v: HostArray) -> HostArray:
        """Return the entries of v (..., m) that belong to these columns."""
        return v if self.index is None else np.take(v, self.index[: self.count], axis=-1)

    def tiled(self, v: HostArray) -> HostArray:
        """Return a vector v (m + 1,) as tiles (tiles, width) of these columns."""
        if self.index is not None:
            return v.take(self.index).reshape(self.tiles, self.width)
        out = np.full(self.padded, v[-1])
        out[: self.count] = v[:-1]
        return out.reshape(self.tiles, self.width)

    def add(self, sums: HostArray, tiles: HostArray) -> None:
        """Add the entries of the tiles of these columns to `sums` (m + 1,)."""
        if self.index is None:
            sums[:-1] += tiles.reshape(-1)[: self.count]
        else:
            sums[self.index] += tiles.reshape(-1)


def extended(v: HostArray, absent: float = 0) -> HostArray:
    """Return v (m,) with one more entry, for absent columns."""
    out = np.empty(len(v) + 1, v.dtype)
    out[:-1], out[-1] = v, absent
    return out


class Workspace:
    """Arrays for a block of a side, made once for many blocks; `size` is the number of entries of a block."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self.size, self.dtype = size, dtype
        self._first: HostArray | None = None
        self._second: HostArray | None = None
        self._factors: HostArray | None = None
        self._bytes: HostArray | None = None

    def block(self, rows: int, columns: Columns) -> HostArray:
        """Return an uninitialised block (tiles, rows, width)."""
        if self._first is None:
            self._first = np.empty(self.size, self.dtype)
        return _shaped(self._first, rows, columns)

    def second(self, rows: int, columns: Columns) -> HostArray:
        """Return another block."""
        if self._second is None:
            self._second = np.empty(self.size, self.dtype)
        return _shaped(self._second, rows, columns)

    def flat(self, rows: int, columns: int, dtype: np.dtype[Any]) -> HostArray:
        """Return an uninitialised array (rows, columns)."""
        size = rows * columns * dtype.itemsize
        if self._bytes is None or len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(rows, columns)

    def right(self, side: CloudSide, columns: Columns) -> HostArray:
        """Return an uninitialised right factor (d + 2, padded) of a product of coordinates.

        Row d has ones, and columns that are absent have coordinates of zero.
        """
        d = len(side.y)
        if self._factors is None:
            self._factors = np.zeros((d + 2) * side.all.padded, self.dtype)
        out = self._factors[: (d + 2) * columns.padded].reshape(d + 2, columns.padded)
        out[:d, columns.count :], out[d] = 0, 1
        return out


def _shaped(array: HostArray, rows: int, columns: Columns) -> HostArray:
    return array[: rows * columns.padded].reshape(columns.tiles, rows, columns.width)


def costs_kept(C: PointCosts) -> bool:
    """Return whether the costs of all problems may be kept as an array, and a kernel of them."""
    kept_bytes = math.prod(C.shape) * np.dtype(np.float64).itemsize
    return kept_bytes <= min(limits.LIMITS.own_kernel_bytes, C.memory_limit // 2)


def kept_costs(C: PointCosts) -> HostArray | None:
    """Return the costs (B, n, m) of small clouds in float64, differences before squares, where all may be kept.

    All points must have weight: one without any may lie so far off that an array does not tell how large costs are.
    """
    few = C.ndim == 3 and C.shape[-2] * C.shape[-1] <= limits.LIMITS.cloud_array_pairs
    if not few or not costs_kept(C) or not all(mask.all() for mask in C.filled or ()):
        return None
    costs: HostArray = C.astype(np.float64).block(np)
    return costs
