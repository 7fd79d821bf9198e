"""Exponents ``(f_i + g_j - C_ij) / eps`` of blocks of a cloud, by differences or by matrix products."""

import numpy as np

from cusink.backends.numpy.clouds.layout import ABSENT, DEPTH, DIRECT, ENTRIES, extended

NEAR = 1e-2  # squared distance over the largest squares, below which a root takes differences first


class Exponents:
    """``rows_i + columns_j - scale C_ij`` of a side; `rows` (n,) and `columns` (m,) in its order, in float64.

    Without `rows` each block comes with an offset of its own, which is to be added: what is left is about 0 where it
    is largest.
    """

    def __init__(self, side, columns, scale, rows=None):
        self.side, self.scale, self.rows = side, scale, rows
        self.columns = np.maximum(columns, ABSENT)
        if side.squared:
            self.scale = scale * side.costs.factor
            y = side.y.astype(np.float64)
            self.linear = np.vstack([y, self.columns - self.scale * np.einsum("kj,kj->j", y, y)])

    def block(self, k, work, columns=None):
        """Block k as an array (tiles, rows, width) in ``work.block``, and its offset; all columns, or some."""
        side = self.side
        block, chosen = side.blocks[k], columns or side.all
        if side.squared:
            left, right, offset = self.factors(k, work, chosen)
            return multiply(left, right, work.block(len(left), chosen)), offset
        out = costs(side, block, work, chosen)
        out *= side.dtype.type(-self.scale)
        offset = self.columns.max() if self.rows is None else 0.0
        out += chosen.tiled(extended((self.columns - offset).astype(side.dtype), ABSENT))[:, None, :]
        if self.rows is not None:
            out += self.rows[block].astype(side.dtype)[:, None]
        return out, offset

    def factors(self, k, work, chosen):
        """For squared distances: the factors of which block k is the product, the second in `work`, and its offset."""
        side, scale, block = self.side, self.scale, self.side.blocks[k]
        x, right = side.x[block].astype(np.float64), work.right(side, chosen)
        d, k = x.shape[1], chosen.count
        linear = chosen.of(self.linear)
        last = linear[d].copy()
        if side.local:
            centre = x.mean(axis=0).astype(side.dtype)
            np.subtract(chosen.of(side.y), centre[:, None], out=right[:d, :k])
            right[:d, k:] = 0
            centre = centre.astype(np.float64)
            x -= centre
            for along, at in zip(linear, centre, strict=False):
                last += 2 * scale * at * along
            last -= scale * (centre @ centre)
        offset = last.max()
        last -= offset
        right[d + 1, :k], right[d + 1, k:] = last, ABSENT
        terms = -scale * np.einsum("ik,ik->i", x, x)
        if self.rows is not None:
            terms += self.rows[block] + offset
            offset = 0.0
        left = np.empty((len(x), d + 2), side.dtype)
        left[:, :d], left[:, d], left[:, d + 1] = 2 * scale * x, terms, 1
        return left, right, offset


def multiply(left, right, out):
    """``left @ right`` as tiles (tiles, rows, width), in products that BLAS does not thread."""
    tiles, _, width = out.shape
    right = right.reshape(len(right), tiles, width).transpose(1, 0, 2)
    depth = left.shape[1]
    if depth <= DEPTH + 2:
        return np.matmul(left, right, out=out)
    np.matmul(left[:, :DEPTH], right[:, :DEPTH], out=out)
    part = np.empty(out.shape[1:], out.dtype)
    for start in range(DEPTH, depth, DEPTH):
        some = slice(start, start + DEPTH)
        for tile, sums in zip(right[:, some], out, strict=True):
            sums += np.matmul(left[:, some], tile, out=part)
    return out


def costs(side, block, work, columns=None, exact=False):
    """Costs of a block as tiles in ``work.block``; with `exact` to the last digits where that is not too slow."""
    columns = columns or side.all
    product = side.product and not (exact and side.x.shape[1] <= DIRECT)
    distances = products if product else differences
    return side.costs.of_distances(np, distances(side, block, work, columns))


def differences(side, block, work, columns):
    """Squared or city-block distances, each to rounding."""
    x = side.x[block]
    out, step = work.block(len(x), columns), work.second(len(x), columns)
    for k in range(x.shape[1]):
        into = out if k == 0 else step
        np.subtract(x[:, k, None], columns.tiled(extended(side.y[k]))[:, None, :], out=into)
        if side.costs.norm == "cityblock":
            np.abs(into, out=into)
        else:
            into *= into
        if k:
            out += step
    return out


def products(side, block, work, columns):
    """Squared distances by a matrix product; where a root would show what cancelled, by differences."""
    x, right, k = side.x[block], work.right(side, columns), columns.count
    d = x.shape[1]
    if side.local:
        centre = x.mean(axis=0, dtype=np.float64).astype(side.dtype)
        x = x - centre
        np.subtract(columns.of(side.y), centre[:, None], out=right[:d, :k])
        right[:d, k:] = 0
    right[d + 1] = np.einsum("kj,kj->j", right[:d], right[:d])
    left = np.empty((len(x), d + 2), side.dtype)
    left[:, :d], left[:, d], left[:, d + 1] = -2 * x, np.einsum("ik,ik->i", x, x), 1
    out = multiply(left, right, work.block(len(x), columns))
    if side.costs.exponent < 1:
        limit = NEAR * float(left[:, d].max() + right[d + 1].max())
        tile, row, column = np.nonzero(out < limit)
        step = ENTRIES // d + 1
        for start in range(0, len(tile), step):
            near = slice(start, start + step)
            gap = x[row[near]] - right[:d, tile[near] * columns.width + column[near]].T
            out[tile[near], row[near], column[near]] = np.einsum("ik,ik->i", gap, gap)
    return np.maximum(out, 0, out=out)


def shifted(exponents):
    """Overwrite a block by ``exp(exponents - top)`` with its rows' largest exponents `top`, which are returned."""
    top = exponents.max(axis=0).max(axis=1)
    exponents -= top[:, None]
    np.exp(exponents, out=exponents)
    return top.astype(np.float64)


def row_sums(block, tiles):
    """``block @ v`` (rows,) of a block (tiles, rows, width) and a vector v as tiles (tiles, width)."""
    return np.matvec(block, tiles).sum(axis=0)


def flat(block, columns):
    """A block (tiles, rows, width) as an array (rows, columns)."""
    return block.transpose(1, 0, 2).reshape(block.shape[1], -1)[:, :columns]
