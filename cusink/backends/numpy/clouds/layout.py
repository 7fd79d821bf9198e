"""Exponents ``rows_i + columns_j - C_ij / eps`` of point costs in NumPy, in blocks that stay in the cache.

For squared distances a block is one matrix product. Rows are in an order that puts neighbours together, and each block
takes its own centre c for the origin,

    |x - y|**2 = |x - c|**2 - 2 (x - c)(y - c) + |y - c|**2,

so that what cancels is hardly larger than the squared distances themselves, wherever the clouds lie. The terms of one
index are summed in float64, where potentials cancel with squares; the product adds them up as two more coordinates.
Other costs take differences first.
"""

import weakref

import numpy as np

from cusink.backends.numpy.workers import THREADED, threads

ENTRIES = 1 << 18  # of a block, which is to stay in the cache, and of a matrix that BLAS multiplies with on one thread
PRODUCT = 1 << 18  # multiplications up to which OpenBLAS leaves a matrix product to the thread that calls it
DIRECT = 8  # dimensions up to which differences first are fast enough where every digit counts
ROWS = 64, 256  # of a block, least and most
DEPTH = 62  # coordinates in one matrix product
DEEP = 16  # dimensions from which neighbours are so far apart that a centre of their own gains nothing
LEAF = 64  # points that may lie in any order
PARTS = 16  # of the rows, which threads take as they come; sums do not depend on who took which
SMALL = 1 << 16  # pairs of points up to which the costs of a problem, or of a tile of problems, are an array
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
        leaf = max(LEAF, min(ROWS[1], ENTRIES // max(len(x), len(y))))
        order = neighbours(x, leaf)
        orders = order, order if y is x else neighbours(y, leaf)
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


def neighbours(x, leaf):
    """An order of the points x (n, d) in which neighbours are together: halved along the widest axis, again and again.

    All parts but the last have whole leaves.
    """
    parts, stack = [], [np.arange(len(x))]
    while stack:
        index = stack.pop()
        if len(index) <= leaf:
            parts.append(index)
            continue
        points = x[index]
        along = points[:, np.argmax(points.max(axis=0) - points.min(axis=0))]
        half = -(-len(index) // (2 * leaf)) * leaf
        index = index[np.argpartition(along, half)]
        stack += [index[half:], index[:half]]
    return np.concatenate(parts)


class Side:
    """Rows x (n, d) against columns y (m, d), cut into blocks; `order` and `columns` are their places outside."""

    def __init__(self, costs, x, y, order, columns):
        self.costs, self.dtype, self.order, self.columns = costs, x.dtype, order, columns
        (n, d), m = x.shape, len(y)
        self.shape, self.x = (n, m), x
        self.rows = int(np.clip(ENTRIES // m // ROWS[0] * ROWS[0], *ROWS))
        self.blocks = [slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]
        self.squared = costs.norm == "squared" and costs.exponent == 1
        self.product = self.squared or (costs.norm == "squared" and (costs.exponent > 1 or d > DIRECT))
        self.local = d <= DEEP
        self.spare = []  # workspaces
        self.most = max(LEAF, PRODUCT // (self.rows * (min(d, DEPTH) + 2)))
        self.y, self.all = np.ascontiguousarray(y.T), Columns(self)

    def for_parts(self, run, pool=None, blocks=None):
        """``run(blocks, workspace)`` for parts of the blocks, at the same time where that pays; answers in order."""
        blocks = range(len(self.blocks)) if blocks is None else blocks
        count = len(blocks)
        if count * self.rows * self.shape[1] < THREADED or count < 2:
            return [self._with_workspace(run, blocks)]
        if pool is None:
            with threads() as pool:
                return self.for_parts(run, pool, blocks)
        cuts = [count * part // PARTS for part in range(PARTS + 1)]
        parts = [blocks[first:last] for first, last in zip(cuts, cuts[1:], strict=False) if first < last]
        return list(pool.map(lambda part: self._with_workspace(run, part), parts))

    def _with_workspace(self, run, blocks):
        """Workspaces are used again: to fetch memory costs about as much as to fill it."""
        work = self.spare.pop() if self.spare else Workspace(self)
        try:
            return run(blocks, work)
        finally:
            self.spare.append(work)


class Columns:
    """All columns of a side, or those at `index`.

    They come in whole tiles, the last ones absent: `tiles` of `width` each, whose product BLAS leaves to the thread
    that calls it. A vector over all columns that is to be cut into tiles has one more entry, the absent columns'.
    """

    def __init__(self, side, index=None):
        self.count = side.shape[1] if index is None else len(index)
        self.tiles = max(1, -(-self.count // side.most))
        self.width = max(8, -(-self.count // (8 * self.tiles)) * 8)
        self.padded = self.tiles * self.width
        self.index = None
        if index is not None:
            self.index = np.full(self.padded, side.shape[1], np.int32)
            self.index[: self.count] = index

    def of(self, v):
        """The entries of v (..., m) that belong to these columns."""
        return v if self.index is None else np.take(v, self.index[: self.count], axis=-1)

    def tiled(self, v):
        """A vector v (m + 1,) as tiles (tiles, width) of these columns."""
        if self.index is not None:
            return v.take(self.index).reshape(self.tiles, self.width)
        out = np.full(self.padded, v[-1])
        out[: self.count] = v[:-1]
        return out.reshape(self.tiles, self.width)

    def add(self, sums, tiles):
        """Add what the tiles of these columns hold to `sums` (m + 1,)."""
        if self.index is None:
            sums[:-1] += tiles.reshape(-1)[: self.count]
        else:
            sums[self.index] += tiles.reshape(-1)


def extended(v, absent=0):
    """V (m,) with the entry of absent columns."""
    out = np.empty(len(v) + 1, v.dtype)
    out[:-1], out[-1] = v, absent
    return out


class Workspace:
    """Arrays for a block of a side, made once for many blocks. It knows no side, which has it in a list."""

    def __init__(self, side):
        self.size, self.dtype = side.rows * side.all.padded, side.dtype
        self.first = self.other = self.factors = None

    def block(self, rows, columns):
        """Uninitialised (tiles, rows, width)."""
        if self.first is None:
            self.first = np.empty(self.size, self.dtype)
        return _shaped(self.first, rows, columns)

    def second(self, rows, columns):
        """Another one."""
        if self.other is None:
            self.other = np.empty(self.size, self.dtype)
        return _shaped(self.other, rows, columns)

    def right(self, side, columns):
        """Right factor (d + 2, padded) of a product of coordinates, with rows for y and for two terms, the first 1."""
        d = len(side.y)
        if self.factors is None:
            self.factors = np.zeros((d + 2) * side.all.padded, self.dtype)
        out = self.factors[: (d + 2) * columns.padded].reshape(d + 2, columns.padded)
        if not side.local:
            out[:d, : columns.count] = columns.of(side.y)
        out[d] = 1
        return out


def _shaped(array, rows, columns):
    return array[: rows * columns.padded].reshape(columns.tiles, rows, columns.width)
