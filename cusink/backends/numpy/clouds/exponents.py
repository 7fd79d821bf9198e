"""Exponents ``rows_i + columns_j - C_ij / eps`` of point costs in NumPy, in blocks that stay in the cache.

For squared distances a block is one matrix product. Rows are in an order that puts neighbours together, and each block
has its own centre c as the origin,

    |x - y|**2 = |x - c|**2 - 2 (x - c)(y - c) + |y - c|**2,

so that the terms that cancel are hardly larger than the squared distances themselves, wherever the clouds lie. The
terms of one index are summed in float64, where potentials cancel with squares; the product adds them as two more
coordinates. A block whose rows lie so far apart that squares would cancel visibly is multiplied in float64, or made
of differences. For other costs differences come first.
"""

import numpy as np

from cusink.backends.numpy.clouds.layout import (
    ABSENT,
    EXACT_DIMENSIONS,
    PRODUCT_COORDINATES,
    CloudSide,
    Columns,
    Workspace,
    extended,
)
from cusink.backends.numpy.distances import LOST_DIGITS, fill_distances, repair_near
from cusink.types import Array, HostArray

# Squared radius of a block, in the exponent, up to which a product has digits enough: with 256 float32 errs by 2**-16,
# with 2**20 float64 by 2**-33. In many dimensions no two points are near, and costs are like the squared radius.
SINGLE_RADIUS, SINGLE_RADIUS_PER_COORDINATE = 2.0**8, 2.0**4
DOUBLE_RADIUS = 2.0**20
ROUNDED_RADIUS = 2.0**30  # of products in float64 that are rounded to float32

NEAR = np.float32(2.5 * LOST_DIGITS)  # of the squared distance of a row from the centre: about half of both together
MOSTLY_NEAR = 1 / 16  # share of a block from which on differences of all its pairs are faster

Factors = tuple[HostArray, HostArray, float]


class Exponents:
    """``rows_i + columns_j - scale C_ij`` of a side; `rows` (n,) and `columns` (m,) in its order, in float64.

    Without `rows` each block comes with an offset, which is to be added to it: its largest exponent is then about 0.
    """

    def __init__(self, side: CloudSide, columns: HostArray, scale: float, rows: HostArray | None = None) -> None:
        self.side, self.scale, self.rows = side, scale, rows
        self.columns = np.maximum(columns, ABSENT)
        if side.squared:
            self.scale = scale * side.costs.factor
            single = SINGLE_RADIUS + SINGLE_RADIUS_PER_COORDINATE * len(side.y)
            self.most = single if side.dtype == np.float32 else DOUBLE_RADIUS
            y = side.y - side.origin.astype(np.float64)[:, None]
            self.linear = np.vstack([y, self.columns - self.scale * np.einsum("kj,kj->j", y, y)])

    def block(self, k: int, work: Workspace, columns: Columns | None = None) -> tuple[HostArray, HostArray | float]:
        """Return block k as an array (tiles, rows, width) in ``work.block``, and its offset, a number or (rows,).

        All columns, or some.
        """
        side = self.side
        rows, chosen = side.blocks[k], columns or side.all
        factors = self.factors(k, work, chosen) if side.squared else None
        if factors is not None:
            left, right, offset = factors
            out = work.block(len(left), chosen)
            if self.rows is not None or left.dtype == out.dtype:
                return multiply(left, right, out), offset
            whole = multiply(left, right, np.empty(out.shape))  # of rows far apart, each with a largest of its own
            top = whole.max(axis=0).max(axis=1)
            np.subtract(whole, top[:, None], out=out, casting="same_kind")
            return out, offset + top
        out = differences(side, rows, work, chosen) if side.squared else costs(side, rows, work, chosen)
        out *= side.dtype.type(-self.scale)
        offset = float(self.columns.max()) if self.rows is None else 0.0
        out += chosen.tiled(extended((self.columns - offset).astype(side.dtype), ABSENT))[:, None, :]
        if self.rows is not None:
            out += self.rows[rows].astype(side.dtype)[:, None]
        return out, offset

    def factors(self, k: int, work: Workspace, chosen: Columns) -> Factors | None:
        """Return the factors of which block k is the product, the second perhaps in `work`, and its offset.

        They are in float64 where products in the dtype of the points would lose digits, and None where all would. For
        squared distances only.
        """
        side, scale = self.side, self.scale
        x = side.x[side.blocks[k]].astype(np.float64)
        d, count = x.shape[1], chosen.count
        centre = side.centre(side.blocks[k]).astype(side.dtype) if side.local else side.origin
        moved = centre.astype(np.float64)
        x -= moved
        moved -= side.origin
        squares = scale * np.einsum("ik,ik->i", x, x)
        radius, far = float(squares.max()), scale * float(moved @ moved)
        if radius + far > DOUBLE_RADIUS or radius > self.most:
            return self._factors_in_float64(k, chosen)
        right, linear = work.right(side, chosen), chosen.of(self.linear)
        np.subtract(chosen.of(side.y), centre[:, None], out=right[:d, :count])
        last = linear[d].copy()
        if side.local:
            for along, at in zip(linear, moved, strict=False):
                last += 2 * scale * at * along
            last -= far
        return self._factors(k, x, squares, last, right)

    def _factors_in_float64(self, k: int, chosen: Columns) -> Factors | None:
        """Return `factors` about the centre of the block alone; None where float64 has too few digits, too."""
        side = self.side
        x = side.x[side.blocks[k]].astype(np.float64)
        d, count = x.shape[1], chosen.count
        centre = side.centre(side.blocks[k])
        x -= centre
        squares = self.scale * np.einsum("ik,ik->i", x, x)
        if not squares.max() <= (ROUNDED_RADIUS if side.dtype == np.float32 else DOUBLE_RADIUS):
            return None
        right = np.zeros((d + 2, chosen.padded))
        right[d] = 1
        y = np.subtract(chosen.of(side.y), centre[:, None], out=right[:d, :count])
        last = chosen.of(self.columns) - self.scale * np.einsum("kj,kj->j", y, y)
        return self._factors(k, x, squares, last, right)

    def _factors(self, k: int, x: HostArray, squares: HostArray, last: HostArray, right: HostArray) -> Factors:
        """Return the factors of a block, given its rows `x` and the terms of its columns, which are overwritten."""
        d, count = x.shape[1], len(last)
        offset = float(last.max(initial=ABSENT))  # of no column at all, where none counts
        last -= offset
        right[d + 1, :count], right[d + 1, count:] = last, ABSENT
        terms = -squares
        if self.rows is not None:
            terms += self.rows[self.side.blocks[k]] + offset
            offset = 0.0
        left = np.empty((len(x), d + 2), right.dtype)
        left[:, :d], left[:, d], left[:, d + 1] = 2 * self.scale * x, terms, 1
        return left, right, offset


@np.errstate(invalid="ignore")  # BLAS may compute with what lies on its stack, and leave that out of the product
def multiply(left: HostArray, right: HostArray, out: HostArray) -> HostArray:
    """Return ``left @ right`` as tiles (tiles, rows, width), in products that BLAS does not thread."""
    tiles, _, width = out.shape
    right = right.reshape(len(right), tiles, width).transpose(1, 0, 2)
    depth, most = left.shape[1], PRODUCT_COORDINATES
    if left.dtype != out.dtype:
        for tile, sums in zip(right, out, strict=True):
            whole = left[:, :most] @ tile[:most]
            for start in range(most, depth, most):
                whole += left[:, start : start + most] @ tile[start : start + most]
            sums[...] = whole
        return out
    if depth <= most + 2:
        return np.matmul(left, right, out=out)
    np.matmul(left[:, :most], right[:, :most], out=out)
    product = np.empty(out.shape[1:], out.dtype)
    for start in range(most, depth, most):
        some = slice(start, start + most)
        for tile, sums in zip(right[:, some], out, strict=True):
            sums += np.matmul(left[:, some], tile, out=product)
    return out


def costs(side: CloudSide, rows: slice, work: Workspace, columns: Columns | None = None, exact: bool = False) -> Array:
    """Return the costs of some rows as tiles in ``work.block``; with `exact` to the last digits if that is fast."""
    columns = columns or side.all
    product = side.product and not (exact and side.x.shape[1] <= EXACT_DIMENSIONS)
    distances = products if product else differences
    return side.costs.of_distances(np, distances(side, rows, work, columns))


def differences(side: CloudSide, rows: slice, work: Workspace, columns: Columns) -> HostArray:
    """Return squared or city-block distances as tiles, each right to rounding."""
    x = side.x[rows]
    y = (columns.tiled(extended(along))[:, None, :] for along in side.y)
    out, scratch = work.block(len(x), columns), work.second(len(x), columns)
    return fill_distances(x.T[:, :, None], y, out, scratch, side.costs.norm == "cityblock")


def products(side: CloudSide, rows: slice, work: Workspace, columns: Columns) -> HostArray:
    """Return squared distances as tiles, by a matrix product; by differences where that has lost too many digits.

    Near are pairs that are close beside their distance from the centre, which is then about that of the row.
    """
    x, right, count = side.x[rows], work.right(side, columns), columns.count
    d = x.shape[1]
    centre = side.centre(rows).astype(side.dtype)
    x = x - centre
    np.subtract(columns.of(side.y), centre[:, None], out=right[:d, :count])
    right[d + 1] = np.einsum("kj,kj->j", right[:d], right[:d])
    left = np.empty((len(x), d + 2), side.dtype)
    left[:, :d], left[:, d], left[:, d + 1] = -2 * x, np.einsum("ik,ik->i", x, x), 1
    out = multiply(left, right, work.block(len(x), columns))
    places = np.flatnonzero(out < NEAR * left[:, d, None])
    if len(places) > MOSTLY_NEAR * out.size:
        return differences(side, rows, work, columns)
    if len(places):
        tile, row, column = near = np.unravel_index(places, out.shape)
        repair_near(out, near, side.x[rows], row, columns.of(side.y).T, tile * columns.width + column)
    return np.maximum(out, 0, out=out)


def exp_shifted(exponents: HostArray) -> HostArray:
    """Overwrite a block by ``exp(exponents - top)``; return the largest exponents `top` (rows,) of its rows."""
    top: HostArray = exponents.max(axis=0).max(axis=1)
    exponents -= top[:, None]
    np.exp(exponents, out=exponents)
    return top.astype(np.float64)


def row_sums(block: HostArray, tiles: HostArray) -> HostArray:
    """Return ``block @ v`` (rows,) of a block (tiles, rows, width) and a vector v as tiles (tiles, width)."""
    sums: HostArray = np.matvec(block, tiles).sum(axis=0)
    return sums


def flat(block: HostArray, columns: int) -> HostArray:
    """Return a block (tiles, rows, width) as an array (rows, columns)."""
    return block.transpose(1, 0, 2).reshape(block.shape[1], -1)[:, :columns]
