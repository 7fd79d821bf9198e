"""The kernel of cells of a grid whose costs depend along one axis on the distance alone: a block Toeplitz matrix."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from cusink.backends.blocks import reductions as blocks
from cusink.backends.numpy import dense, limits
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.log import LogReductions, finish_log
from cusink.backends.ranges import KERNEL_EXPONENT, UnderflowBound, flush, scaled_kernel
from cusink.costs.cells import EuclideanCosts
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray

ARRAYS = dense.OPERATORS
LOGS = LogReductions(functools.partial(blocks.softmin, ARRAYS), functools.partial(blocks.transport_cost, ARRAYS))
ARRAYS_MADE = 4  # of kernels: with the cost and without, in two precisions


def has_shifts(C: EuclideanCosts) -> bool:
    """Return whether a `ShiftKernel` pays, and fits."""
    if C.even is None or C.shape[0] <= limits.LIMITS.grid_array_cells:
        return False
    kernel_bytes = 2 * C.shape[0] ** 2 // C.cells[C.even] * 8
    return ARRAYS_MADE * kernel_bytes <= C.memory_limit


class ShiftKernel:
    """``K = 2**s exp(-C / eps)`` between n slices of m cells each, along the axis `even` of a grid.

    The block (m, m) between two slices is that of their distance d = 0, ..., n - 1. These blocks lie side by side in an
    array (m, (2 n - 1) m), d falling to 0 and rising again, in which the rows of each slice are a window: products are
    those of matrices, with ``2 N**2 / n`` numbers in memory in the place of ``N**2``. Problems are columns.
    """

    shift: float = 0.0

    def __init__(self, C: EuclideanCosts, dtype: Any, eps: float) -> None:
        assert C.even is not None
        self.C, self.eps, self.dtype, self.even = C, eps, np.dtype(dtype), C.even
        self.n, self.m = C.cells[C.even], C.shape[0] // C.cells[C.even]
        self.s, self.unit = KERNEL_EXPONENT[self.dtype.name], C.largest(np) or 1.0

    @cached_property
    def wide(self) -> HostArray:
        """The blocks side by side."""
        return self._side_by_side(lambda costs: scaled_kernel(costs, self.dtype, self.eps, self.shift))

    @cached_property
    def _wide_costs(self) -> HostArray:
        """``K * C / unit``, side by side."""
        wide = self._side_by_side(lambda costs: (costs / self.unit).astype(self.dtype))
        wide *= self.wide
        return wide

    def in_float32(self) -> "ShiftKernel":
        """Return the kernel in float32."""
        narrow = ShiftKernel(self.C, np.float32, self.eps)
        narrow.__dict__["wide"] = flush(np.ldexp(self.wide, narrow.s - self.s).astype(np.float32))
        return narrow

    def product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return ``K factor``, which is ``K' factor``."""
        del axis
        return self._multiply(self.wide, factor, out)

    def product_of_rows(self, factor: HostArray, axis: Axis) -> HostArray:
        """Return the `product` with problems as rows, of any sign."""
        return np.ascontiguousarray(self.product(np.ascontiguousarray(factor.T), axis).T)

    def cost_product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return the `product` with ``K * C / unit`` for K."""
        del axis
        return self._multiply(self._wide_costs, factor, out)

    def underflow_bound(self, axis: Axis) -> UnderflowBound:
        """Return what `product` may lose."""
        del axis
        return UnderflowBound.of_product(self.n * self.m, 2.0**self.s)

    def repair(self, potential: HostArray, sound: HostArray | Literal[True], logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `potential` (B, n) that are not `sound` (n, B) by their softmin."""
        del axis
        if sound is True or sound.all():
            return
        problems, rows = np.flatnonzero(~sound.all(axis=0)), np.flatnonzero(~sound.all(axis=1))
        step = max(1, self.C.entries(np) // self.C.shape[1])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            right = dense.softmin(self.C.block(np, rows=part), logits[problems], self.eps, 1)
            here = np.ix_(problems, part)
            potential[here] = np.where(sound[np.ix_(part, problems)].T, potential[here], right)

    def finish_log(self, a: HostArray, b: HostArray, g: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` after a plain f-update as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, LOGS)

    @property
    def K(self) -> HostArray:  # noqa: N802
        """The kernel (n, n): memory of that size."""
        return self.product(np.eye(self.n * self.m, dtype=self.dtype), 1)

    @property
    def costs(self) -> Array:
        """The cost (n, n): memory of that size."""
        return self.C.block(np)

    def _side_by_side(self, made: Callable[[HostArray], HostArray]) -> HostArray:
        """Return what is made of the costs (m, m) between a slice and those at each distance, side by side."""
        at = np.moveaxis(np.arange(self.n * self.m).reshape(self.C.cells), self.even, 0).reshape(self.n, self.m)
        wide = np.empty((self.m, 2 * self.n - 1, self.m), self.dtype)
        step = max(1, self.C.entries(np) // self.C.shape[1])
        for start in range(0, self.m, step):
            part = slice(start, start + step)
            found = made(self.C.block(np, rows=at[0, part])[:, at])  # (rows, n, m)
            wide[part, self.n - 1 :], wide[part, : self.n - 1] = found, found[:, :0:-1]
        return wide.reshape(self.m, -1)

    def _multiply(self, wide: HostArray, factor: HostArray, out: HostArray | None) -> HostArray:
        """Return the product of the blocks `wide` with a factor (N, B)."""
        n, m, B = self.n, self.m, factor.shape[1]
        slices = np.ascontiguousarray(self._slices_first(factor))
        straight = self.even == 0 and out is not None and out.flags.c_contiguous
        found = out if straight and out is not None else np.empty((n * m, B), self.dtype)
        if B < limits.LIMITS.grid_window_problems:
            for k in range(B):
                self._of_one(wide, slices[:, k].reshape(n, m), found[:, k].reshape(n, m))
        else:
            for i in range(n):
                window = wide[:, (n - 1 - i) * m : (2 * n - 1 - i) * m]
                np.matmul(window, slices, out=found[i * m : (i + 1) * m])
        if straight:
            return found
        return self._back(found, np.empty((n * m, B), self.dtype) if out is None else out)

    def _of_one(self, wide: HostArray, x: HostArray, out: HostArray) -> None:
        """Write the product with one x (n, m) to `out` (n, m): slices at one distance are added first.

        One product of matrices reads the kernel once, where a vector would have every window read.
        """
        n, m = x.shape
        padded = np.zeros((3 * n - 2, m), x.dtype)
        padded[n - 1 : 2 * n - 1] = x
        blocks = wide[:, (n - 1) * m :].T
        step = max(1, limits.LIMITS.grid_shift_entries // (n * m))
        for start in range(0, n, step):
            stop = min(n, start + step)
            sums = np.empty((stop - start, n, m), x.dtype)
            sums[:, 0] = x[start:stop]
            first, last = n - 1 + start, n - 1 + stop
            for d in range(1, n):
                np.add(padded[first - d : last - d], padded[first + d : last + d], out=sums[:, d])
            out[start:stop] = sums.reshape(stop - start, n * m) @ blocks

    def _slices_first(self, x: HostArray) -> HostArray:
        """Return x (N, B) with the axis `even` of the cells before the others."""
        if self.even == 0:
            return x
        return np.moveaxis(x.reshape(*self.C.cells, -1), self.even, 0).reshape(x.shape)

    def _back(self, x: HostArray, out: HostArray) -> HostArray:
        """Write x (N, B), which has the axis `even` before the others, to `out` in the order of the cells."""
        cells = self.C.cells
        first = (cells[self.even], *cells[: self.even], *cells[self.even + 1 :])
        out[...] = np.moveaxis(x.reshape(*first, -1), 0, self.even).reshape(x.shape)
        return out
