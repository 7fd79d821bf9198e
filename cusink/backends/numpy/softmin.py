"""Log-sum-exp reductions prepared for many calls: matrix products where every sum is certified, see docs/method.md."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.backends.numpy import limits, reductions
from cusink.backends.numpy.certificate import certified, repair
from cusink.backends.numpy.forms.kernel import DenseKernel, Kernel, log_scaled
from cusink.backends.numpy.reductions import softmin
from cusink.backends.ranges import SCALING_EXPONENT, UnderflowBound, exp_times, flush
from cusink.costs.blocks import blocks
from cusink.types import Array, Axis, HostArray

NARROW_EXPONENT = 40.0  # range of the costs over eps up to which kernels of single problems may be in float32
PRODUCT_PROBLEMS = 8  # with one cost, from which on to make their kernel pays for one product
DIRECT_SHARE = 0.1  # of the entries out of range, from which log-sum-exp of all entries is faster than of single ones


def repeated_softmin(C: HostArray, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is the `softmin` of this cost and eps."""
    if C.ndim == 3:
        if C.size * np.dtype(np.float64).itemsize <= limits.LIMITS.own_kernel_bytes:
            by_kernels = OwnKernelSoftmin(C, eps)
            if np.isfinite(by_kernels.steepness):
                return by_kernels
        return lambda logits, axis: softmin(C, logits, eps, axis)
    return KernelSoftmin(DenseKernel(C, C.dtype, eps))


class KernelSoftmin:
    """The softmin of a shared cost as a product with its kernel ``K = 2**s exp((shift - C) / eps)``."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.top = kernel, SCALING_EXPONENT[kernel.dtype.name]

    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (B, rows) of logits (B, summed)."""
        out = self.by_product(logits, axis)
        return softmin(self.kernel.C, logits, self.kernel.eps, axis) if out is None else out

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def by_product(self, logits: HostArray, axis: Axis) -> HostArray | None:
        """Return the softmin (B, rows) of logits (B, summed), None where too many sums are out of range."""
        kernel = self.kernel
        factor, largest = self._factor(logits)
        sums = np.empty((len(logits), kernel.C.shape[1 - axis]), kernel.dtype)
        kernel.product(factor.T, axis, out=sums.T)
        sound = certified(kernel.underflow_bound(axis), sums.T, factor.T, logits.T > -np.inf)
        logs = log_scaled(sums.T, np.full(len(logits), -float(self.top + kernel.s)))
        logs *= -kernel.eps
        logs += kernel.shift - kernel.eps * largest.astype(np.float64)
        out = logs.astype(logits.dtype, copy=False)
        return out if sound is True else self._repaired(out, sound, logits, axis)

    def _repaired(self, out: HostArray, sound: HostArray, logits: HostArray, axis: Axis) -> HostArray | None:
        """Return `out` (B, rows) with the entries that are not `sound` (rows, B) made anew; None if they are many."""
        if np.count_nonzero(sound) < (1 - DIRECT_SHARE) * sound.size:
            return None
        self.kernel.repair(out, sound, logits, axis)
        return out

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def transport_cost(self, p: HostArray, q: HostArray) -> tuple[HostArray, HostArray]:
        """Return ``sum_ij P_ij C_ij`` (B,) of the plans with logits p and q in float64, and which of them are right."""
        kernel = self.kernel
        (U, of_p), (V, of_q) = ((factor.T, largest) for factor, largest in (self._factor(p), self._factor(q)))
        sums = kernel.product(U, 0)
        sound = certified(kernel.underflow_bound(0), sums, U, p.T > -np.inf)
        right = (V > 0) | (q.T == -np.inf)
        right &= sound | (V == 0)
        weighted = kernel.cost_product(U, 0)
        weighted *= V
        scale = (of_p + of_q)[:, 0].astype(np.float64) - kernel.shift / kernel.eps
        scale += np.log(kernel.unit) - (kernel.s + 2 * self.top) * np.log(2)
        total = weighted.sum(axis=0, dtype=np.float64)
        return exp_times(scale, total), right.all(axis=0) & np.isfinite(total)

    def _factor(self, logits: HostArray) -> tuple[HostArray, HostArray]:
        """Return ``2**top exp(logits - largest)`` (B, summed), and the largest logits (B, 1)."""
        largest = logits.max(axis=1, keepdims=True)
        largest[np.isneginf(largest)] = 0
        factor: HostArray = (logits - largest).astype(self.kernel.dtype, copy=False)
        factor += factor.dtype.type(self.top * np.log(2))
        np.exp(factor, out=factor)
        return flush(factor), largest


def transport_cost(C: HostArray, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return ``sum_ij P_ij C_ij`` (B,): of many problems with one cost by products with their kernel."""
    if C.ndim == 3 or len(p) < PRODUCT_PROBLEMS:
        return reductions.transport_cost(C, p, q, eps)
    return costs_by_products(
        lambda dtype: DenseKernel(C, dtype, eps), p, q, lambda p, q: reductions.transport_cost(C, p, q, eps)
    )


def costs_by_products(
    kernel_of: Callable[[Any], Kernel],
    p: HostArray,
    q: HostArray,
    directly: Callable[[HostArray, HostArray], HostArray],
) -> HostArray:
    """Return transport costs (B,) by products with a kernel, in float64 at last; else of those problems `directly`."""
    out, left = np.zeros(len(p), p.dtype), np.arange(len(p))
    for dtype in dict.fromkeys((p.dtype, np.dtype(np.float64))):
        if len(left):
            cost, right = KernelSoftmin(kernel_of(dtype)).transport_cost(p[left], q[left])
            out[left[right]], left = cost[right], left[~right]
    if len(left):
        out[left] = directly(p[left], q[left])
    return out


class OwnKernelSoftmin:
    """The softmin of a finite cost for each problem as products with its kernels ``exp((shift - C) / eps)`` (B, n, m).

    The shift of a problem is its smallest cost. Kernels are made at the first call, in float32 where either the costs
    or the logits are and it has room for them.
    """

    def __init__(self, C: HostArray, eps: float) -> None:
        self.C, self.eps = C, eps
        self.shift: HostArray = C.min(axis=(1, 2))[:, None]
        with np.errstate(invalid="ignore"):  # a cost that is not finite is for others
            self.steepness = float((C.max(axis=(1, 2)) - self.shift[:, 0]).max()) / eps
        self.kernels: HostArray | None = None

    def _made_kernels(self, dtype: Any) -> HostArray:
        C, K = self.C, np.empty(self.C.shape, dtype if self.steepness <= NARROW_EXPONENT else np.float64)
        wide = np.result_type(C, K)
        for problems, rows in blocks(len(C), C.shape[1], C.shape[2], limits.LIMITS.dense_block_entries):
            part = np.subtract(C[problems, rows], self.shift[problems, :, None], dtype=wide)
            part *= wide.type(-1 / self.eps)
            flush(np.exp(part.astype(K.dtype, copy=False), out=K[problems, rows]))
        return K

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (B, rows) of logits (B, summed)."""
        if self.kernels is None:
            self.kernels = self._made_kernels(min(self.C.dtype, logits.dtype, key=lambda dtype: dtype.itemsize))
        K, largest = self.kernels, logits.max(axis=1, keepdims=True)
        largest[np.isneginf(largest)] = 0
        factor: HostArray = (logits - largest).astype(K.dtype, copy=False)
        factor = flush(np.exp(factor, out=factor))
        sums: HostArray = np.matvec(K, factor) if axis == 1 else np.vecmat(factor, K)
        bound = UnderflowBound.of_product(factor.shape[1], 1.0)
        sound = certified(bound, sums.T, factor.T, logits.T > -np.inf)
        logs = np.log(sums, dtype=np.result_type(sums, logits))
        logs += largest
        logs *= -self.eps
        logs += self.shift
        out = logs.astype(logits.dtype, copy=False)
        if sound is not True and np.count_nonzero(sound) < (1 - DIRECT_SHARE) * sound.size:
            return softmin(self.C, logits, self.eps, axis)
        repair(out, sound, self.C, logits, self.eps, axis)
        return out
