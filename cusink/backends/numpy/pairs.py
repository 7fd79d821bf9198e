"""Squared distances of all pairs of points for sums of a radial kernel, a block at a time.

Up to four coordinates, differences are taken before squares, in the dtype of the points: that is exact far from the
origin, and as fast as the alternative. From five on ``|x|^2 + |y|^2 - 2 x y`` is one matrix product in float64 for both
dtypes, of points about their mean. With r the largest distance of a row x from it, ``|y| <= r + |x - y|``: the error of
q is about 1e-16 of ``r^2 + q``, wherever y lies. Where the kernel would feel the part of r, pairs that are near beside
r are made anew, of differences.

Rows in groups far apart are put in an order of neighbours, and each block has the mean of its rows as the origin. A
block in which a large part of the pairs is near is made of differences as a whole.
"""

from typing import Any

import numpy as np

from cusink.backends.neighbours import neighbours
from cusink.backends.numpy import limits
from cusink.backends.numpy.distances import fill_distances, repair_near
from cusink.backends.profile import Profile
from cusink.types import HostArray

DIFFERENCE_DIMENSIONS = 4  # at most, in which differences are taken coordinate by coordinate

PRODUCT_ERROR = 4 * np.finfo(np.float64).eps  # of q from a product, beside r^2
LEAST_ERROR = 2.0**-41  # relative, of a kernel, that is let pass in float64
NEAR = 2.0**-8  # of r^2: a larger q has an error of about 1e-13 of itself
MOSTLY_NEAR = 1 / 16  # share of the pairs from which on differences of all are faster
PROBES = 256  # pairs of rows by which groups far apart are found


class Memory:
    """The work arrays of one thread, in which a block of any shape is contiguous, and what is known of its last block.

    `factors` are the factors of the product of the block, or None if it is of differences; `near` are the rows and
    columns of the pairs that were made anew.
    """

    def __init__(self, entries: int, dtype: np.dtype[Any]) -> None:
        self.arrays = [np.empty(entries, dtype) for _ in range(2)]
        self.entries = entries
        self.product: HostArray | None = None
        self.origin: HostArray | None = None
        self.factors: tuple[HostArray, HostArray] | None = None
        self.near: tuple[HostArray, HostArray] | None = None

    def take(self, number: int, shape: tuple[int, ...]) -> HostArray:
        """Return an uninitialised block in array 0 or 1."""
        return self.arrays[number][: shape[0] * shape[1]].reshape(shape)

    def wide(self, shape: tuple[int, ...]) -> HostArray:
        """Return an uninitialised block in float64."""
        if self.product is None:
            self.product = np.empty(self.entries)
        return self.product[: shape[0] * shape[1]].reshape(shape)

    def right(self, d: int, columns: int) -> HostArray:
        """Return an uninitialised right factor (d + 2, columns) in float64; there are never more than at first."""
        if self.origin is None:
            self.origin = np.empty((d + 2) * columns)
        return self.origin[: (d + 2) * columns].reshape(d + 2, columns)


class PointPairs:
    """The pairs of x (n, d) with y (m, d), a block at a time; `order` is that of the rows, None for their own."""

    def __init__(self, x: HostArray, y: HostArray, profile: Profile) -> None:
        (self.n, self.d), self.m, self.dtype, self.profile = x.shape, len(y), x.dtype, profile
        self.x, self.y, self.direct, self.order = x, y, self.d <= DIFFERENCE_DIMENSIONS, None
        with np.errstate(all="ignore"):  # far points may have infinite squares, and a flat kernel any error
            self.exact = max(np.finfo(self.dtype).eps / 4, LEAST_ERROR) / (PRODUCT_ERROR * _steepness(profile))
            if not self.direct:
                means = [points.mean(axis=0, dtype=np.float64) for points in (x, y) if len(points)]
                centre = sum(means) / len(means)
                self.left, self.right = _factors(x, y, centre, np.empty((self.d + 2, self.m)))
                squares = self.left[:, -2]
                self.direct = not np.isfinite(8 * (squares.max() + self.right[-1].max(initial=0)))
            if self.direct:
                self.x, self.y = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)
            elif squares.max() > self.exact and self._grouped(squares):
                self.order = neighbours(x, self._rows())
                self.x = x[self.order]

    def _grouped(self, squares: HostArray) -> bool:
        """Return whether many pairs of rows are near beside their distance from the mean, by its `squares`."""
        first, second = np.random.default_rng(0).integers(self.n, size=(2, PROBES))
        gap = self.x[first] - self.x[second]
        near = (np.vecdot(gap, gap) < NEAR * squares[first]) & (first != second)
        return bool(near.mean() > MOSTLY_NEAR)

    def _rows(self) -> int:
        """Return how many rows a block has."""
        return max(1, limits.LIMITS.sum_block_entries // max(1, min(self.m, limits.LIMITS.sum_block_columns)))

    def rows(self) -> list[slice]:
        """Return the rows of each block."""
        size = self._rows()
        return [slice(first, min(first + size, self.n)) for first in range(0, self.n, size)]

    def columns(self) -> list[slice]:
        """Return the columns of each block."""
        size = limits.LIMITS.sum_block_columns
        return [slice(first, min(first + size, self.m)) for first in range(0, self.m, size)]

    def places(self, rows: slice) -> slice | HostArray:
        """Return the places of some rows among those of the caller."""
        return rows if self.order is None else self.order[rows]

    def base(self, rows: slice, columns: slice, memory: Memory) -> HostArray:
        """Return q, sqrt(q + shift), q + shift or sqrt(q) of a block, by the form; in the first array of `memory`."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = memory.take(0, shape)
        if self.direct or not self._multiply(rows, columns, memory, out):
            memory.factors = memory.near = None
            x, y = self._coordinates(rows, columns)
            fill_distances(x[:, :, None], y, out, memory.take(1, shape))
        if self.profile.form != "linear":
            if self.profile.shift:
                out += self.dtype.type(self.profile.shift)
            if self.profile.form != "log":
                np.sqrt(out, out=out)
        return out

    def _multiply(self, rows: slice, columns: slice, memory: Memory, out: HostArray) -> bool:
        """Fill `out` with q by a product and repairs; return whether that has its digits."""
        if self.order is None:
            left, right = self.left[rows], self.right[:, columns]
        else:
            centre = self.x[rows].mean(axis=0, dtype=np.float64)
            left, right = _factors(self.x[rows], self.y[columns], centre, memory.right(self.d, out.shape[1]))
        square = left[:, -2].max()
        wide = np.matmul(left, right, out=memory.wide(out.shape))
        near = None
        if square > self.exact:
            places = np.flatnonzero(wide < NEAR * square)
            if len(places) > MOSTLY_NEAR * wide.size:
                return False
            if len(places):
                row, column = near = np.divmod(places, out.shape[1])
        np.maximum(wide, 0, out=out, casting="same_kind")
        if near is not None:
            repair_near(out, near, self.x[rows], row, self.y[columns], column)
        memory.factors, memory.near = (left, right), near
        return True

    def _coordinates(self, rows: slice, columns: slice) -> tuple[HostArray, HostArray]:
        """Return the coordinates (d, rows) and (d, columns) of the points of a block."""
        if self.direct:
            return self.x[:, rows], self.y[:, columns]
        return np.ascontiguousarray(self.x[rows].T), np.ascontiguousarray(self.y[columns].T)

    def differences(self, amounts: HostArray, rows: slice, columns: slice, memory: Memory) -> HostArray:
        """Return ``sum_j amounts_ij (x_i - y_j)`` (rows, d) of the last block; overwrites `amounts`."""
        if memory.factors is not None:
            return self._multiplied_differences(amounts, rows, columns, memory, *memory.factors)
        out = np.empty((len(amounts), self.d), amounts.dtype)
        difference = memory.take(0, amounts.shape)
        for k, (x_k, y_k) in enumerate(zip(*self._coordinates(rows, columns), strict=True)):
            np.subtract(x_k[:, None], y_k, out=difference)
            out[:, k] = np.vecdot(amounts, difference)
        return out

    def _multiplied_differences(
        self, amounts: HostArray, rows: slice, columns: slice, memory: Memory, left: HostArray, right: HostArray
    ) -> HostArray:
        """Return `differences` as ``x_i (sum_j F) - (F y)_i``, those of pairs made anew one by one."""
        single = None
        if memory.near is not None:
            single = amounts[memory.near].astype(np.float64)
            amounts[memory.near] = 0
        wide = memory.wide(amounts.shape)
        wide[:] = amounts
        sums = wide @ right[:-1].T
        slopes: HostArray = left[:, : self.d] * (sums[:, -1:] / -2) - sums[:, :-1]
        if memory.near is not None and single is not None:
            x, y, (row, column) = self.x[rows], self.y[columns], memory.near
            step = limits.LIMITS.difference_coordinates // self.d + 1
            for start in range(0, len(row), step):
                some = slice(start, start + step)
                np.add.at(slopes, row[some], single[some, None] * (x[row[some]] - y[column[some]]))
        return slopes


def _factors(x: HostArray, y: HostArray, centre: HostArray, right: HostArray) -> tuple[HostArray, HostArray]:
    """Return factors (n, d + 2) and `right` (d + 2, m) in float64 whose product is q, with an origin."""
    n, d = x.shape
    x = x - centre
    np.subtract(y.T, centre[:, None], out=right[:d])
    right[d] = 1
    right[d + 1] = np.einsum("kj,kj->j", right[:d], right[:d])
    left = np.empty((n, d + 2))
    left[:, :d], left[:, d], left[:, d + 1] = -2 * x, np.vecdot(x, x), 1
    return left, right


def _steepness(profile: Profile) -> float:
    """Return the largest derivative of the logarithm of a kernel by q; infinite beside a kink."""
    if profile.form == "linear":
        return abs(profile.rate)
    if profile.shift == 0:
        return np.inf
    return abs(profile.rate) / (2 * profile.shift**0.5 if profile.form == "root" else profile.shift)
