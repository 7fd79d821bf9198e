"""The kernel of one problem between two clouds in NumPy, with its potentials absorbed, in blocks of rows.

Near the solution every sum of ``A = exp((f + g - C) / eps)`` is about 1, whatever the range of C / eps, and most pairs
have no part in it: a block holds the columns only in which it has an entry above `least`. As its rows are neighbours,
these are few where eps is small. Blocks are kept as far as memory allows, and made anew whenever they are needed
beyond that.
"""

import math
import os
import threading

import numpy as np

from cusink.backends.numpy.clouds.exponents import Exponents, multiply, row_sums
from cusink.backends.numpy.clouds.layout import ABSENT, ENTRIES, Columns, extended

SPARSE = 1 << 21  # pairs of points from which it pays to leave some out
SHALLOW = 18  # rows of a factor, from which it is made anew faster than it is multiplied
MOST = 0.8  # share of the columns up to which a block takes them one by one


class PlanKernel:
    """A for potentials f (n,) and g (m,) in float64; all vectors are in the order of the `side`.

    ``weigh(rows, sums)`` tells the weights p of a block's rows, which may depend on the sums over its columns: so one
    pass over A serves both. What is left out of a sum with a vector q is at most ``least * sum q``; `least` may be 0.
    Between two bins that are `empty`, (n,) and (m,), A would be as large as it likes; it is 0.
    """

    def __init__(self, side, f, g, eps, budget, least=0.0, empty=None):
        self.side, self.f, self.g, self.eps = side, f, g, eps
        self.exponents = Exponents(side, g / eps, 1 / eps, f / eps)
        n, m = side.shape
        self.least = least if n * m >= SPARSE else 0.0
        block = side.rows * side.all.padded * side.dtype.itemsize
        # Bytes to keep; what workspaces take comes off, and a part that the allocator may need to cut it up.
        self.room = budget * 3 // 4 - 3 * block * min(os.cpu_count(), len(side.blocks))
        self.kept, self.factors, self.lock = {}, {}, threading.Lock()
        self.store, self.used = None, 0
        self.columns = [None] * len(side.blocks) if self.least else [side.all] * len(side.blocks)
        self.empty = empty
        self.lowest = side.dtype.type(np.log(float(np.finfo(side.dtype).tiny)) + 1e-3)  # denormals are slow

    def sums(self, q, weigh, pool):
        """``T = A q`` (n,) and ``S = A' p`` (m,); without q or `weigh` None in their places."""
        side = self.side
        T = None
        if q is not None:
            T, q = np.empty(side.shape[0], side.dtype), extended(q)
            every = side.all.tiled(q)

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # for the caller to find in the sums
        def run(blocks, work):
            S = np.zeros(side.shape[1] + 1)
            for k in blocks:
                if k not in self.kept:
                    rows, A = side.blocks[k], self._block(k, work)
                    columns = self.columns[k]
                    if q is not None:
                        T[rows] = row_sums(A, every if columns is side.all else columns.tiled(q))
                    if weigh is not None:
                        columns.add(S, np.vecmat(weigh(rows, None if T is None else T[rows]), A))
                    continue
                A, columns = self.kept[k], self.columns[k]
                here = None if q is None else (every if columns is side.all else columns.tiled(q)).reshape(-1)
                for rows, part in self._parts(k, A):
                    if q is not None:
                        np.matmul(part, here, out=T[rows])
                    if weigh is not None:
                        columns.add(S, np.matmul(weigh(rows, None if T is None else T[rows]), part))
            return S

        parts = side.for_parts(run, pool)
        return T, None if weigh is None else sum(parts)[:-1].astype(side.dtype)

    def priced_sums(self, q, weigh, pool, columns=True):
        """T and S as `sums`, and the same with ``A_ij C_ij`` in the place of A: ``(T, S, TC, SC)``, these in float64.

        Without `columns` SC means nothing. With ``E = log A`` the cost is ``f + g - eps E``: it takes no second block.
        """
        side, level = self.side, float(self.g.mean())
        T, TC = np.empty(side.shape[0], side.dtype), np.empty(side.shape[0])
        q, qg = extended(q), extended((q * (self.g - level)).astype(side.dtype))

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")
        def run(blocks, work):
            S, SC = np.zeros((2, side.shape[1] + 1))
            for k in blocks:
                rows = side.blocks[k]
                A, AE, some = self._with_exponents(k, work)
                here = some.tiled(q)
                T[rows] = row_sums(A, here)
                p = weigh(rows, T[rows])
                f = self.f[rows] + level
                TC[rows] = f * T[rows] + row_sums(A, some.tiled(qg)) - self.eps * row_sums(AE, here)
                some.add(S, np.vecmat(p, A))
                if columns:
                    some.add(SC, np.vecmat((p * f).astype(p.dtype), A) - self.eps * np.vecmat(p, AE))
            return S, SC

        S, SC = (sum(parts)[:-1] for parts in zip(*side.for_parts(run, pool), strict=True))
        return T, S.astype(side.dtype), TC, SC + (self.g - level) * S

    def priced(self, k, work):
        """Blocks k of A and of ``A_ij C_ij``, and their columns."""
        A, AE, columns = self._with_exponents(k, work)
        g = columns.tiled(extended(self.g.astype(A.dtype)))
        AE *= A.dtype.type(-self.eps)
        AE += A * (self.f[self.side.blocks[k]].astype(A.dtype)[:, None] + g[:, None, :])
        return A, AE, columns

    @np.errstate(over="ignore")
    def _block(self, k, work):
        """Block k of A (tiles, rows, width), which is kept as rows if there is room."""
        block = self._exponents(k, work)
        if not self._afford(block.nbytes, self.columns[k]):
            return np.exp(block, out=block)
        tiles, rows, width = block.shape
        self.kept[k] = self._place((rows, tiles * width))
        return np.exp(block, out=self.kept[k].reshape(rows, tiles, width).transpose(1, 0, 2))

    def _parts(self, k, A):
        """Slices of rows, and those rows of a kept block: as many as BLAS takes on the thread that calls it."""
        start, stop = self.side.blocks[k].start, self.side.blocks[k].stop
        step = max(1, ENTRIES // A.shape[1])
        for row in range(start, stop, step):
            rows = slice(row, min(row + step, stop))
            yield rows, A[rows.start - start : rows.stop - start]

    def _place(self, shape):
        """An uninitialised block in the one array of all, whose memory comes in larger pages than that of many."""
        with self.lock:
            if self.store is None:
                n, dtype = self.side.shape[0], self.side.dtype
                size = min(n * self.side.all.padded, self.room // dtype.itemsize + math.prod(shape))
                self.store = np.empty(size, dtype)
            start = self.used
            self.used += math.prod(shape)
            return self.store[start : self.used].reshape(shape)

    @np.errstate(over="ignore", invalid="ignore")
    def _with_exponents(self, k, work):
        """Block k of A, that of ``A E``, and their columns."""
        exponents = self._exponents(k, work)
        A = self.kept.get(k)
        if A is not None:
            tiles, rows, width = exponents.shape
            A = A.reshape(rows, tiles, width).transpose(1, 0, 2)
        else:
            A = np.exp(exponents, out=work.second(exponents.shape[1], self.columns[k]))
        exponents *= A
        return A, exponents, self.columns[k]

    def _exponents(self, k, work):
        """Block k of E; the first time all columns are looked at, to see which it needs."""
        side = self.side
        if self.columns[k] is None:
            exponents = self._made(k, work, side.all)
            needed = np.flatnonzero(exponents.max(axis=1).reshape(-1)[: side.shape[1]] > np.log(self.least))
            self.columns[k] = side.all
            if len(needed) > MOST * side.shape[1] or not self._afford(4 * len(needed)):
                return np.maximum(exponents, self.lowest, out=exponents)
            self.columns[k] = Columns(side, needed)
        exponents = self._made(k, work, self.columns[k])
        return np.maximum(exponents, self.lowest, out=exponents)

    def _made(self, k, work, columns):
        if k in self.factors:
            left, right = self.factors[k]
            exponents = multiply(left, right, work.block(len(left), columns))
        elif self.side.squared:
            left, right, _ = self.exponents.factors(k, work, columns)
            exponents = multiply(left, right, work.block(len(left), columns))
            if columns is self.columns[k] and len(right) <= SHALLOW and self._afford(right.nbytes):
                self.factors[k] = left, right.copy()
        else:
            exponents, _ = self.exponents.block(k, work, columns)
        if self.empty is not None:
            rows = np.flatnonzero(self.empty[0][self.side.blocks[k]])
            none = columns.tiled(extended(self.empty[1]))
            exponents[:, rows] = np.where(none[:, None, :], ABSENT, exponents[:, rows])
        return exponents

    def _afford(self, size, columns=None):
        """Whether so many bytes may be kept; a block, which has `columns`, leaves room for the factors of all."""
        reserve = 0
        if columns is not None:
            each = columns.padded * (4 + self.side.dtype.itemsize * (len(self.side.y) + 2))
            reserve = each * (len(self.columns) - len(self.factors))
        with self.lock:
            afforded = size + reserve <= self.room
            self.room -= size if afforded else 0
        return afforded
