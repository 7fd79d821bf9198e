"""The kernel of one problem between two clouds in NumPy, with its potentials absorbed, in blocks of rows.

Near the solution every sum of ``A = exp((f + g - C) / eps)`` is about 1, whatever the range of C / eps; A itself is at
most 1 / weight. Blocks are kept as far as memory allows, and made anew whenever they are needed beyond that.
"""

import os

import numpy as np

from cusink._point_blocks_numpy import ABSENT, Exponents, row_sums


class PlanKernel:
    """A for potentials f (n,) and g (m,) in float64; all vectors are in the order of the `side`.

    ``weigh(rows, sums)`` tells the weights p of a block's rows, which may depend on the sums over its columns: so one
    pass over A serves both. Between two bins that are `empty`, (n,) and (m,), A would be as large as it likes; it is 0.
    """

    def __init__(self, side, f, g, eps, budget, empty=None):
        self.side, self.f, self.g, self.eps = side, f, g, eps
        self.exponents = Exponents(side, g / eps, 1 / eps, f / eps)
        block = side.rows * side.tiles * side.width * side.dtype.itemsize
        workspaces = 3 * block * min(os.cpu_count(), len(side.blocks))
        self.room = max(0, budget - workspaces) // block  # blocks before this one are kept
        self.kept = {}
        self.empty = empty and (empty[0], side.padded(empty[1]))

    def sums(self, q, weigh, pool):
        """``T = A q`` (n,) and ``S = A' p`` (m,); without q or `weigh` None in their places."""
        side = self.side
        T = None if q is None else np.empty(side.shape[0], side.dtype)
        q = None if q is None else side.padded(q)

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # for the caller to find in the sums
        def run(blocks, work):
            S = np.zeros((side.tiles, side.width))
            for k in blocks:
                rows, A = side.blocks[k], self._block(k, work)
                if q is not None:
                    T[rows] = row_sums(A, q)
                if weigh is not None:
                    S += np.vecmat(weigh(rows, None if T is None else T[rows]), A)
            return S

        parts = side.for_parts(run, pool)
        return T, None if weigh is None else self._columns(parts)

    def priced_sums(self, q, weigh, pool):
        """T and S as `sums`, and the same with ``A_ij C_ij`` in the place of A: ``(T, S, TC, SC)``, these in float64.

        With ``E = log A`` the cost is ``f + g - eps E``, so that no second block is needed for it.
        """
        side, level = self.side, float(self.g.mean())
        T, TC = np.empty(side.shape[0], side.dtype), np.empty(side.shape[0])
        qg = side.padded((q * (self.g - level)).astype(side.dtype))
        q = side.padded(q)

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")
        def run(blocks, work):
            S, SC = np.zeros((2, side.tiles, side.width))
            for k in blocks:
                rows = side.blocks[k]
                A, AE = self._with_exponents(k, work)
                T[rows] = row_sums(A, q)
                p = weigh(rows, T[rows])
                f = self.f[rows] + level
                TC[rows] = f * T[rows] + row_sums(A, qg) - self.eps * row_sums(AE, q)
                S += np.vecmat(p, A)
                SC += np.vecmat((p * f).astype(p.dtype), A) - self.eps * np.vecmat(p, AE)
            return S, SC

        S, SC = (self._columns(parts, np.float64) for parts in zip(*side.for_parts(run, pool), strict=True))
        return T, S.astype(side.dtype), TC, SC + (self.g - level) * S

    def _exponents(self, k, work):
        exponents, _ = self.exponents.block(k, work)
        if self.empty is not None:
            rows = np.flatnonzero(self.empty[0][self.side.blocks[k]])
            exponents[:, rows] = np.where(self.empty[1][:, None, :], ABSENT, exponents[:, rows])
        return exponents

    @np.errstate(over="ignore")
    def _block(self, k, work):
        """Block k of A (tiles, rows, width)."""
        if k in self.kept:
            return self.kept[k]
        block = self._exponents(k, work)
        np.exp(block, out=block)
        if k < self.room:
            block = self.kept[k] = block.copy()
        return block

    @np.errstate(over="ignore", invalid="ignore")
    def _with_exponents(self, k, work):
        """Block k of A, and that of ``A E``."""
        exponents = self._exponents(k, work)
        A = self.kept.get(k)
        if A is None:
            A = np.exp(exponents, out=work.second(exponents.shape[1], self.side.all))
        exponents *= A
        return A, exponents

    def priced(self, k, work):
        """Blocks k of A and of ``A_ij C_ij``."""
        A, AE = self._with_exponents(k, work)
        g = self.side.padded(self.g.astype(A.dtype))
        AE *= A.dtype.type(-self.eps)
        AE += A * (self.f[self.side.blocks[k]].astype(A.dtype)[:, None] + g[:, None, :])
        return A, AE

    def _columns(self, parts, dtype=None):
        """The sum of what parts of the rows gave each column."""
        return sum(parts).reshape(-1)[: self.side.shape[1]].astype(dtype or self.side.dtype)
