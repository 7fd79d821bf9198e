"""Log-sum-exp reductions prepared for many calls: matrix products where every sum is certified, see docs/method.md."""

from collections.abc import Callable

import numpy as np

from cusink.backends.numpy.certificate import certified
from cusink.backends.numpy.forms.kernel import DenseKernel, Kernel, log_scaled
from cusink.backends.numpy.reductions import softmin
from cusink.backends.ranges import SCALING_EXPONENT, flush
from cusink.types import Array, Axis, HostArray

DIRECT_SHARE = 0.1  # of the entries out of range, from which log-sum-exp of all entries is faster than of single ones


def repeated_softmin(C: HostArray, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is the `softmin` of this cost and eps."""
    if C.ndim == 3:
        return lambda logits, axis: softmin(C, logits, eps, axis)
    return KernelSoftmin(DenseKernel(C, C.dtype, eps))


class KernelSoftmin:
    """The softmin of a shared cost as a product with its kernel ``K = 2**s exp((shift - C) / eps)``."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.top = kernel, SCALING_EXPONENT[kernel.dtype.name]

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (B, rows) of logits (B, summed)."""
        kernel = self.kernel
        largest = logits.max(axis=1, keepdims=True)
        largest[np.isneginf(largest)] = 0
        factor: HostArray = logits - largest
        factor += factor.dtype.type(self.top * np.log(2))
        np.exp(factor, out=factor)
        factor = flush(np.ascontiguousarray(factor.T))
        sums = kernel.product(factor, axis)
        sound = certified(kernel.underflow_bound(axis), sums, factor, logits.T > -np.inf)
        logs = log_scaled(sums, np.full(len(logits), -float(self.top + kernel.s)))
        logs += largest
        logs *= -kernel.eps
        logs += kernel.shift
        out = logs.astype(logits.dtype, order="C")
        if sound is not True:
            self._repair(out, sound, logits, axis)
        return out

    def _repair(self, out: HostArray, sound: HostArray, logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `out` (B, rows) that are not `sound` (rows, B)."""
        if np.count_nonzero(sound) < (1 - DIRECT_SHARE) * sound.size:
            out[...] = softmin(self.kernel.C, logits, self.kernel.eps, axis)
        else:
            self.kernel.repair(out, sound, logits, axis)
