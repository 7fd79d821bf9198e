"""The kernel of one problem between two clouds in NumPy, with its potentials absorbed, in blocks of rows.

Near the solution every sum of ``A = exp((f + g - C) / eps)`` is about 1 for any range of C / eps, and most pairs
add nothing to it: a block holds only the columns in which it has an entry above `least`. As its rows are neighbours,
these are few where eps is small. The first blocks are kept, as many as memory allows, and the others made when they are
needed: which, is settled between passes over all of them, so that threads have no say in it.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.cells import ColumnCells
from cusink.backends.numpy.clouds.expanded import Expanded, Polynomial, cheapest
from cusink.backends.numpy.clouds.exponents import Exponents, multiply, row_sums
from cusink.backends.numpy.clouds.layout import CloudSide, Columns, Workspace, extended
from cusink.backends.ranges import flush
from cusink.types import HostArray

# Rows of the right factor of a block, up to which it is kept: to make a block from it is then fast.
KEPT_FACTOR_ROWS = 18
OF_EXPONENTS = 2.0**-6  # rounding of exponents in float32 that must not leave out what counts
LARGEST_IN_FLOAT32 = 1e30  # entry of a kernel whose sums are taken in float32
ALL_COLUMNS_ABOVE = 0.8  # share of the columns that a block needs, from which it has all of them

Weigh = Callable[[slice, HostArray], HostArray]  # the weights p of some rows from their sums ``A q``


class CostSums(NamedTuple):
    """Sums of A, and in float64 the same with ``A_ij C_ij`` for A."""

    T: HostArray  # A q (n,)
    S: HostArray  # A' p (m,)
    TC: HostArray
    SC: HostArray


class PlanKernel:
    """A for potentials f (n,) and g (m,) in float64; all vectors are in the order of the `side`.

    ``weigh(rows, sums)`` gives the weights p of some rows, which may depend on the sums over their columns: so one
    pass over A serves both. A sum with a vector q lacks at most ``least * sum q``; `least` may be 0.
    """

    def __init__(
        self,
        side: CloudSide,
        f: HostArray,
        g: HostArray,
        eps: float,
        budget: int,
        least: float = 0.0,
        share: float = 0.0,
    ) -> None:
        self.side, self.f, self.g, self.eps, self.dtype = side, f, g, eps, side.dtype
        self.exponents = Exponents(side, g / eps, 1 / eps, f / eps)
        n, m = side.shape
        self.least = least if n * m >= limits.LIMITS.cloud_sparse_pairs else 0.0
        block_bytes = side.rows * side.all.padded * side.dtype.itemsize
        # Bytes to keep: less a workspace, and a quarter that the allocator and further threads may need.
        self.room = max(0, budget * 3 // 4 - 3 * block_bytes)
        self.cells: ColumnCells | None = None
        self.near: list[HostArray | None] = [None] * len(side.blocks)  # the cells that each block needs, once known
        self.looked_at: list[HostArray] = []  # cells that it may need
        if self.least and side.celled:
            self.cells = ColumnCells(side, f, g, eps)
            level = float(np.log(self.least)) - OF_EXPONENTS
            self.looked_at = [self.cells.near(k, level) for k in range(len(side.blocks))]
            entries = side.rows * sum(self.cells.size * len(near) for near in self.looked_at)
            self.room = budget if entries * side.dtype.itemsize <= budget // 2 else 0  # all or nothing
        self.share = share if self.cells is not None and side.squared else 0.0
        self.expansions: dict[int, tuple[HostArray, Polynomial] | None] = {}  # None where entries are faster
        self.kept: dict[int, HostArray] = {}
        self.factors: dict[int, tuple[HostArray, HostArray]] = {}
        self.lock = threading.Lock()
        self.store: HostArray | None = None
        # The columns that each block needs; None before that is known.
        self.columns: list[Columns | None] = [None if self.least else side.all] * len(side.blocks)
        self.used = self.keeps = self.keeps_factors = 0  # entries of the store; and so many of the first blocks
        indexed = self.least and self.cells is None
        self.index_bytes = min(4 * side.all.padded, self.room // len(side.blocks)) if indexed else 0  # of a block
        self.lowest = side.dtype.type(np.log(float(np.finfo(side.dtype).tiny)) + 1e-3)  # denormals are slow

    def row_sums(self, q: HostArray) -> HostArray:
        """Return ``A q`` (n,)."""
        return self._sums(q, None)[0]

    def column_sums(self, p: HostArray) -> HostArray:
        """Return ``A' p`` (m,)."""
        return self._sums(None, lambda rows, _: p[rows])[1]

    def sums(self, q: HostArray, weigh: Weigh) -> tuple[HostArray, HostArray]:
        """Return ``T = A q`` (n,) and ``S = A' p`` (m,)."""
        return self._sums(q, weigh)

    def _sums(self, q: HostArray | None, weigh: Weigh | None) -> tuple[HostArray, HostArray]:
        """Return T and S; without q or `weigh` one of them means nothing."""
        self._settle()
        side = self.side
        T = np.empty(side.shape[0] if q is not None else 0, self.dtype)
        vector = None if q is None else extended(q)
        every = None if vector is None else side.all.tiled(vector)

        def tiles_of(columns: Columns) -> HostArray | None:
            return every if vector is None or columns is side.all else columns.tiled(vector)

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # for the caller to find in the sums
        def run(blocks: Sequence[int], work: Workspace) -> HostArray:
            S = np.zeros(side.shape[1] + 1)
            for k, rows in ((k, side.blocks[k]) for k in blocks):
                thin = self._expanded(k, work)
                if thin is not None:
                    if vector is not None:
                        T[rows] = thin.row_sums(vector.take(thin.index))
                    if weigh is not None:
                        S[thin.index] += thin.column_sums(weigh(rows, T[rows]))
                    continue
                if k not in self.kept:
                    A, columns = self._block(k, work)
                    here = tiles_of(columns)
                    if here is not None:
                        T[rows] = row_sums(A, here)
                    if weigh is not None:
                        columns.add(S, np.vecmat(weigh(rows, T[rows]), A))
                    continue
                A, columns = self.kept[k], self._columns_of(k)
                here = tiles_of(columns)
                for some, part in self._kept_rows(k, A):
                    if here is not None:
                        np.matmul(part, here.reshape(-1), out=T[some])
                    if weigh is not None:
                        columns.add(S, np.matmul(weigh(some, T[some]), part))
            return S

        S: HostArray = sum(side.for_blocks(run), np.zeros(1))
        return T, S[:-1].astype(self.dtype)

    def cost_sums(self, q: HostArray, weigh: Weigh, columns: bool = True, keep: bool = False) -> CostSums:
        """Return `sums`, and the same with ``A_ij C_ij`` for A.

        Without `columns` SC means nothing. With ``E = log A`` the cost is ``f + g - eps E``: it takes no second block.
        With `keep` blocks are kept as in sums, for which they need not be made again.
        """
        self._settle()
        side, level = self.side, float(self.g.mean())
        T, TC = np.empty(side.shape[0], side.dtype), np.empty(side.shape[0])
        q, qg = extended(q), extended((q * (self.g - level)).astype(side.dtype))

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")
        def run(blocks: Sequence[int], work: Workspace) -> tuple[HostArray, HostArray]:
            S, SC = np.zeros((2, side.shape[1] + 1))
            for k, rows in ((k, side.blocks[k]) for k in blocks):
                thin = None if columns else self._expanded(k, work)
                if thin is not None:
                    T[rows], squares = thin.cost_sums(q.take(thin.index))
                    TC[rows] = side.costs.factor * squares
                    S[thin.index] += thin.column_sums(weigh(rows, T[rows]))
                    continue
                A, AE, some = self._with_exponents(k, work, keep)
                here = some.tiled(q)
                T[rows] = row_sums(A, here)
                p = weigh(rows, T[rows])
                f = self.f[rows] + level
                TC[rows] = f * T[rows] + row_sums(A, some.tiled(qg)) - self.eps * row_sums(AE, here)
                some.add(S, np.vecmat(p, A))
                if columns:
                    some.add(SC, np.vecmat((p * f).astype(p.dtype), A) - self.eps * np.vecmat(p, AE))
            return S, SC

        S, SC = (sum(shares)[:-1] for shares in zip(*side.for_blocks(run), strict=True))
        return CostSums(T, S.astype(side.dtype), TC, SC + (self.g - level) * S)

    def with_costs(self, k: int, work: Workspace) -> tuple[HostArray, HostArray, Columns]:
        """Return block k of A and of ``A_ij C_ij``, and their columns."""
        A, AE, columns = self._with_exponents(k, work)
        g = columns.tiled(extended(self.g.astype(A.dtype)))
        AE *= A.dtype.type(-self.eps)
        AE += A * (self.f[self.side.blocks[k]].astype(A.dtype)[:, None] + g[:, None, :])
        return A, AE, columns

    @np.errstate(over="ignore")
    def _block(self, k: int, work: Workspace) -> tuple[HostArray, Columns]:
        """Return block k of A (tiles, rows, width), which is kept if there is room, and its columns."""
        block, columns = self._exponents(k, work)
        place = self._place_of(k, block)
        return np.exp(block, out=block if place is None else place), columns

    def _place_of(self, k: int, block: HostArray) -> HostArray | None:
        """Return where block k is kept, in the shape of `block`; None if it is not."""
        if k >= self.keeps:
            return None
        tiles, rows, width = block.shape
        self.kept[k] = self._place((rows, tiles * width))
        return self.kept[k].reshape(rows, tiles, width).transpose(1, 0, 2)

    def in_float32(self) -> "PlanKernel | None":
        """Return the kept kernel in float32, for sums; None if not all is kept, or it leaves the range or the room."""
        blocks = [self.kept.get(k) for k in range(len(self.columns))]
        if self.dtype == np.float32 or self.share or any(A is None for A in blocks):
            return None
        kept = sum(A.nbytes for A in blocks if A is not None) + self.index_bytes * len(blocks)
        if kept * 3 // 2 + sum(right.nbytes for _, right in self.factors.values()) > self.room:
            return None
        out = copy.copy(self)
        out.dtype, out.kept = np.dtype(np.float32), {}
        for k, A in enumerate(blocks):
            if A is None or not A.max(initial=0) <= LARGEST_IN_FLOAT32:
                return None
            out.kept[k] = flush(A.astype(np.float32))
        return out

    def _kept_rows(self, k: int, A: HostArray) -> Iterator[tuple[slice, HostArray]]:
        """Iterate over slices of rows of a kept block, with as many entries as BLAS takes on the thread that calls."""
        start, stop = self.side.blocks[k].start, self.side.blocks[k].stop
        step = max(1, limits.LIMITS.cloud_block_entries // A.shape[1])
        for row in range(start, stop, step):
            rows = slice(row, min(row + step, stop))
            yield rows, A[rows.start - start : rows.stop - start]

    def _place(self, shape: tuple[int, int]) -> HostArray:
        """Return an uninitialised block of one store: its memory comes in larger pages than that of many arrays."""
        with self.lock:
            if self.store is None:
                n, dtype = self.side.shape[0], self.side.dtype
                size = min(n * self.side.all.padded, self.room // dtype.itemsize + math.prod(shape))
                self.store = np.empty(size, dtype)
            start = self.used
            self.used += math.prod(shape)
            return self.store[start : self.used].reshape(shape)

    @np.errstate(over="ignore", invalid="ignore")
    def _with_exponents(self, k: int, work: Workspace, keep: bool = False) -> tuple[HostArray, HostArray, Columns]:
        """Return block k of A, which may be made to `keep`, and of ``A E``, and their columns."""
        exponents, columns = self._exponents(k, work)
        A = self.kept.get(k)
        if A is not None:
            tiles, rows, width = exponents.shape
            A = A.reshape(rows, tiles, width).transpose(1, 0, 2)
        else:
            place = self._place_of(k, exponents) if keep else None
            A = np.exp(exponents, out=work.second(exponents.shape[1], columns) if place is None else place)
        exponents *= A
        return A, exponents, columns

    def _exponents(self, k: int, work: Workspace) -> tuple[HostArray, Columns]:
        """Return block k of E and its columns, which are chosen the first time, when all columns are looked at."""
        if self.cells is not None:
            return self._exponents_of_cells(k, work, self.cells)
        side, columns = self.side, self.columns[k]
        if columns is None:
            exponents = self._make(k, work, side.all)
            needed = np.flatnonzero(exponents.max(axis=1).reshape(-1)[: side.shape[1]] > np.log(self.least))
            if len(needed) > ALL_COLUMNS_ABOVE * side.shape[1] or 4 * len(needed) > self.index_bytes:
                self.columns[k] = side.all
                return np.maximum(exponents, self.lowest, out=exponents), side.all
            columns = self.columns[k] = Columns(side.shape[1], side.tile_columns, needed)
        exponents = self._make(k, work, columns)
        return np.maximum(exponents, self.lowest, out=exponents), columns

    def _exponents_of_cells(self, k: int, work: Workspace, cells: ColumnCells) -> tuple[HostArray, Columns]:
        """Return block k of E and its columns; the first time, all cells that may have an entry are looked at."""
        near, level = self.near[k], float(np.log(self.least)) - OF_EXPONENTS
        if near is None:
            near = self.looked_at[k]
            found = cells.above(self._make(k, work, cells.of(near)), near, level)
            near = self.near[k] = found
        columns = cells.of(near)
        exponents = self._make(k, work, columns)
        return np.maximum(exponents, self.lowest, out=exponents), columns

    def _expanded(self, k: int, work: Workspace) -> Expanded | None:
        """Return block k of A in thin factors, where they take less time than its entries."""
        if not self.share or self.cells is None:
            return None
        near, side = self.near[k], self.side
        if k not in self.expansions:
            near = self.looked_at[k]
            found = None
            if len(near):
                middle, far = self.cells.around(near)
                reach = 2 * side.costs.factor / self.eps * far * float(np.linalg.norm(self.cells.rows.half[k]))
                polynomial = cheapest(self.share, reach, side.x.shape[1], side.rows, side.dtype)
                found = None if polynomial is None else (middle, polynomial)
            if found is not None:
                self.near[k] = near
            self.expansions[k] = found
        expansion = self.expansions[k]
        if expansion is None or near is None:
            return None
        return Expanded(side, k, self.cells.index(near), *expansion, (self.f, self.g), self.eps, work)

    @property
    def inexact(self) -> bool:
        """Whether entries err by `share`."""
        return any(expansion is not None for expansion in self.expansions.values())

    def shares(self) -> tuple[float, float]:
        """Return the shares of the pairs that are left out, and that err, once all blocks were made."""
        (n, m), made, thin = self.side.shape, 0, 0
        for k, rows in enumerate(self.side.blocks):
            near = self.near[k]
            columns = (self.columns[k] or self.side.all).count if self.cells is None else 0
            if self.cells is not None and near is not None and len(near):  # the last cell may not be full
                columns = min(len(near) * self.cells.size, m - int(near[-1] + 1 - len(near)) * self.cells.size)
            made += (rows.stop - rows.start) * columns
            thin += (rows.stop - rows.start) * columns if self.expansions.get(k) is not None else 0
        return 1 - made / (n * m), thin / (n * m)

    def _columns_of(self, k: int) -> Columns:
        """Return the columns of a block that was made before."""
        near = self.near[k]
        if self.cells is not None and near is not None:
            return self.cells.of(near)
        return self.columns[k] or self.side.all

    def _make(self, k: int, work: Workspace, columns: Columns) -> HostArray:
        """Return block k of E for these columns."""
        kept = self.factors.get(k)
        factors = kept or (self.exponents.factors(k, work, columns) if self.side.squared else None)
        if factors is None:
            exponents, _ = self.exponents.block(k, work, columns)
        else:
            left, right, *_ = factors
            exponents = multiply(left, right, work.block(len(left), columns))
            short = columns is self.columns[k] and len(right) <= KEPT_FACTOR_ROWS
            if kept is None and short and k < self.keeps_factors:
                self.factors[k] = left, right.copy()
        return exponents

    def _settle(self) -> None:
        """Say which blocks and factors are kept in the pass that begins, from what is known of all columns by now.

        Where the columns of a block are not known it may need all, so that a later pass may keep more, never fewer.
        """
        if self.cells is not None:
            self.keeps = len(self.columns) if self.room else 0
            return
        side, rows = self.side, len(self.side.y) + 2
        widths = np.cumsum([(columns or side.all).padded for columns in self.columns])
        left = self.room - self.index_bytes * len(widths)
        if side.squared and rows <= KEPT_FACTOR_ROWS:
            factors = widths * (8 * rows)  # some may be in float64
            self.keeps_factors = int(np.searchsorted(factors, left, side="right"))
            left -= int(factors[self.keeps_factors - 1]) if self.keeps_factors else 0
        self.keeps = int(np.searchsorted(widths * (side.rows * side.dtype.itemsize), left, side="right"))
