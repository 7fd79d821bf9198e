"""Exponents ``rows_i + columns_j - C_ij / eps`` of point costs in NumPy, in blocks that stay in the cache.

For squared distances a block is one matrix product. Rows are in an order that puts neighbours together, and each block
takes its own centre c for the origin,

    |x - y|**2 = |x - c|**2 - 2 (x - c)(y - c) + |y - c|**2,

so that what cancels is hardly larger than the squared distances themselves, wherever the clouds lie. The terms of one
index are summed in float64, where potentials cancel with squares; the product adds them up as two more coordinates.
Other costs take differences first.
"""

import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ENTRIES = 1 << 18  # of a block: in a core's second-level cache, and too few for BLAS to start threads for them
PRODUCT = 1 << 18  # multiplications up to which OpenBLAS leaves a matrix product to the thread that calls it
ROWS = 16, 256  # of a block, least and most
DEPTH = 62  # coordinates in one matrix product
DEEP = 16  # dimensions from which neighbours are so far apart that a centre of their own gains nothing
DIRECT = 8  # dimensions up to which differences first are fast enough where every digit counts
NEAR = 1e-2  # squared distance over the largest squares, below which a root takes differences first
LEAF = 64  # points that may lie in any order
PARTS = 16  # of the rows, which threads take as they come; sums do not depend on who took which
SMALL = 1 << 16  # pairs of points in a problem, up to which problems with clouds of their own share a tile
THREADED = 1 << 21  # entries from which threads pay
ABSENT = -1e30  # log of what is not there; finite, for -inf times 0 is NaN

_pairs = weakref.WeakKeyDictionary()


def pairs_of(C):
    """The `Pairs` of each problem: one for a shared cost, a list of B for costs of their own; made once for a cost."""
    if C not in _pairs:
        clouds = [(C.x, C.y)] if C.ndim == 2 else zip(C.x, C.y, strict=True)
        rule = C.take(slice(0), slice(0))  # without the points, which would keep the key alive for ever
        _pairs[C] = [Pairs(rule, x, y) for x, y in clouds]
    return _pairs[C]


def pairs_for(C, problem):
    """`Pairs` of one problem."""
    return pairs_of(C)[0 if C.ndim == 2 else problem]


class Pairs:
    """Two clouds in orders that put neighbours together, and the sides from which to see them."""

    def __init__(self, costs, x, y):
        order = neighbours(x)
        orders = order, order if y is x else neighbours(y)
        self.costs, self.orders, self.points = costs, orders, (x[orders[0]], y[orders[1]])
        self.shape = len(x), len(y)

    def side(self, axis, rows=None, columns=None):
        """Rows and columns for a sum over `axis`: x and y for axis 1, y and x for axis 0, or the chosen ones."""
        kept, summed = (0, 1) if axis == 1 else (1, 0)
        sides = []
        for which, chosen in ((kept, rows), (summed, columns)):
            points, order = self.points[which], self.orders[which]
            if chosen is not None and not chosen.all():
                points, order = points[chosen[order]], order[chosen[order]]
            sides += [points, order]
        x, order, y, columns = sides
        return Side(self.costs, x, y, order, columns)


def neighbours(x):
    """An order of the points x (n, d) in which neighbours are together: halved along the widest axis, again and again.

    All parts but the last have whole leaves.
    """
    parts, stack = [], [np.arange(len(x))]
    while stack:
        index = stack.pop()
        if len(index) <= LEAF:
            parts.append(index)
            continue
        points = x[index]
        along = points[:, np.argmax(points.max(axis=0) - points.min(axis=0))]
        half = -(-len(index) // (2 * LEAF)) * LEAF
        index = index[np.argpartition(along, half)]
        stack += [index[half:], index[:half]]
    return np.concatenate(parts)


class Side:
    """Rows x (n, d) against columns y (m, d), cut into blocks; `order` and `columns` are their places for the caller.

    Columns come in whole tiles, the last ones absent: `tiles` of `width` each.
    """

    def __init__(self, costs, x, y, order, columns):
        self.costs, self.dtype, self.order, self.columns = costs, x.dtype, order, columns
        self.x, self.y = x, np.ascontiguousarray(y.T)
        (n, d), m = x.shape, len(y)
        self.shape = n, m
        self.rows = int(np.clip(ENTRIES // m // ROWS[0] * ROWS[0], *ROWS))
        self.blocks = [slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]
        self.squared = costs.norm == "squared" and costs.exponent == 1
        self.product = self.squared or (costs.norm == "squared" and (costs.exponent > 1 or d > DIRECT))
        self.local = d <= DEEP
        self.tiles, self.width = self.cut(m)
        self.squares = np.einsum("kj,kj->j", self.y, self.y, dtype=np.float64) if self.product else None

    def cut(self, columns):
        """``(tiles, width)`` for so many columns: each tile's product is left to the thread that calls it."""
        most = max(LEAF, PRODUCT // (self.rows * (min(self.x.shape[1], DEPTH) + 2)))
        tiles = -(-columns // most)
        return tiles, -(-columns // (8 * tiles)) * 8

    def padded(self, v, absent=0.0):
        """A vector (m,) in the columns' order, as tiles (tiles, width)."""
        out = np.full(self.tiles * self.width, v.dtype.type(absent))
        out[: len(v)] = v
        return out.reshape(self.tiles, self.width)

    def for_parts(self, run, pool=None, blocks=None):
        """``run(blocks, workspace)`` for parts of the blocks, at the same time where that pays; answers in order."""
        blocks = range(len(self.blocks)) if blocks is None else blocks
        count = len(blocks)
        if count * self.rows * self.shape[1] < THREADED or count < 2:
            return [run(blocks, Workspace(self))]
        if pool is None:
            with threads() as pool:
                return self.for_parts(run, pool, blocks)
        cuts = [count * part // PARTS for part in range(PARTS + 1)]
        parts = [blocks[first:last] for first, last in zip(cuts, cuts[1:], strict=False) if first < last]
        return list(pool.map(lambda part: run(part, Workspace(self)), parts))


def threads():
    """A pool for `Side.for_parts`: NumPy lets go of the interpreter inside each operation."""
    return ThreadPoolExecutor(os.cpu_count())


class Workspace:
    """Arrays for a block of a side, made once for many blocks."""

    def __init__(self, side):
        d, padded = side.x.shape[1], side.tiles * side.width
        self.out = np.empty(side.rows * padded, side.dtype)
        self.more = None
        self.columns = None
        if side.product:
            self.columns = np.zeros((d + 2, padded), side.dtype)
            self.columns[d] = 1
            if not side.local:
                self.columns[:d, : side.shape[1]] = side.y

    def second(self):
        """Another array like `out`."""
        if self.more is None:
            self.more = np.empty_like(self.out)
        return self.more


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
            last = self.columns - self.scale * side.squares
            self.linear = np.vstack([side.y, last]) if side.local else last

    def block(self, k, work):
        """Block k as an array (tiles, rows, width) in ``work.out``, and its offset."""
        side = self.side
        block = side.blocks[k]
        if side.squared:
            return self._product(block, work)
        out = costs(side, block, work)
        out *= side.dtype.type(-self.scale)
        columns = self.columns
        offset = columns.max() if self.rows is None else 0.0
        out += side.padded((columns - offset).astype(side.dtype), ABSENT)[:, None, :]
        if self.rows is not None:
            out += self.rows[block].astype(side.dtype)[:, None]
        return out, offset

    def _product(self, block, work):
        side, scale, m = self.side, self.scale, self.side.shape[1]
        x, d, columns = side.x[block], side.x.shape[1], work.columns
        if side.local:
            centre = x.mean(axis=0, dtype=np.float64).astype(side.dtype)
            np.subtract(side.y, centre[:, None], out=columns[:d, :m])
            centre = centre.astype(np.float64)
            last = np.append(2 * scale * centre, 1) @ self.linear
            last -= scale * (centre @ centre)
            x = x - centre
        else:
            last, x = self.linear.copy(), x.astype(np.float64)
        offset = last.max()
        last -= offset
        columns[d + 1, :m] = last
        columns[d + 1, m:] = ABSENT
        terms = -scale * np.einsum("ik,ik->i", x, x)
        if self.rows is not None:
            terms += self.rows[block] + offset
            offset = 0.0
        rows = np.empty((len(x), d + 2), side.dtype)
        rows[:, :d], rows[:, d], rows[:, d + 1] = 2 * scale * x, terms, 1
        return multiply(rows, columns, side, work.out, work), offset


def multiply(rows, columns, side, out, work):
    """``rows @ columns`` as tiles (tiles, rows, width) in `out`, in products that BLAS does not thread."""
    shape = side.tiles, len(rows), side.width
    out = out[: len(rows) * side.tiles * side.width].reshape(shape)
    tiled = columns.reshape(len(columns), side.tiles, side.width).transpose(1, 0, 2)
    depth = rows.shape[1]
    if depth <= DEPTH + 2:
        return np.matmul(rows, tiled, out=out)
    np.matmul(rows[:, :DEPTH], tiled[:, :DEPTH], out=out)
    part = np.empty(shape[1:], out.dtype)
    for start in range(DEPTH, depth, DEPTH):
        left, right = rows[:, start : start + DEPTH], tiled[:, start : start + DEPTH]
        for tile, sums in zip(right, out, strict=True):
            sums += np.matmul(left, tile, out=part)
    return out


def costs(side, block, work, exact=False):
    """Costs of a block as tiles in ``work.out``; with `exact` to the last digits where that is not too slow."""
    d = side.x.shape[1]
    product = side.product and not (exact and d <= DIRECT)
    distances = products if product else differences
    return side.costs.of_distances(np, distances(side, block, work))


def differences(side, block, work):
    """Squared or city-block distances, each to rounding."""
    x, m = side.x[block], side.shape[1]
    shape = side.tiles, len(x), side.width
    size = len(x) * side.tiles * side.width
    out, step = (array[:size].reshape(shape) for array in (work.out, work.second()))
    for k in range(x.shape[1]):
        into = out if k == 0 else step
        np.subtract(x[:, k, None], side.padded(side.y[k, :m])[:, None, :], out=into)
        if side.costs.norm == "cityblock":
            np.abs(into, out=into)
        else:
            into *= into
        if k:
            out += step
    return out


def products(side, block, work):
    """Squared distances by a matrix product; where a root would show what cancelled, by differences."""
    x, m, (d, dtype) = side.x[block], side.shape[1], (side.x.shape[1], side.dtype)
    centre = x.mean(axis=0, dtype=np.float64).astype(dtype) if side.local else np.zeros(d, dtype)
    x = x - centre
    columns = work.columns
    if side.local:
        np.subtract(side.y, centre[:, None], out=columns[:d, :m])
        np.einsum("kj,kj->j", columns[:d, :m], columns[:d, :m], out=columns[d + 1, :m])
    else:
        columns[d + 1, :m] = side.squares
    columns[d + 1, m:] = 0
    rows = np.empty((len(x), d + 2), dtype)
    rows[:, :d], rows[:, d], rows[:, d + 1] = -2 * x, np.einsum("ik,ik->i", x, x), 1
    out = multiply(rows, columns, side, work.out, work)
    if side.costs.exponent < 1:
        limit = NEAR * float(rows[:, d].max() + columns[d + 1].max())
        tile, row, column = np.nonzero(out < limit)
        for start in range(0, len(tile), ENTRIES // d + 1):
            some = slice(start, start + ENTRIES // d + 1)
            place = tile[some] * side.width + column[some]
            gap = x[row[some]] - columns[:d, place].T
            out[tile[some], row[some], column[some]] = np.einsum("ik,ik->i", gap, gap)
    return np.maximum(out, 0, out=out)


def shifted(exponents):
    """Overwrite a block by ``exp(exponents - top)`` with its rows' largest exponents `top`, which are returned."""
    top = exponents.max(axis=2).max(axis=0)
    exponents -= top[:, None]
    np.exp(exponents, out=exponents)
    return top.astype(np.float64)


def row_sums(block, tiles):
    """``block @ v`` (rows,) of a block (tiles, rows, width) and a vector v as tiles (tiles, width)."""
    return np.matvec(block, tiles).sum(axis=0)


def flat(block, columns):
    """A block (tiles, rows, width) as an array (rows, columns)."""
    return block.transpose(1, 0, 2).reshape(block.shape[1], -1)[:, :columns]
