"""Log-sum-exp reductions prepared for many calls: matrix products where every sum is certified, see docs/method.md."""

import numpy as np

from cusink.backends.numpy.certificate import certified_within
from cusink.backends.numpy.forms.kernel import DenseKernel, log_scaled
from cusink.backends.numpy.reductions import softmin
from cusink.backends.ranges import SCALING, flush

DIRECT = 0.1  # share of entries out of range from which log-sum-exp of all is faster than of each


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`."""
    if C.ndim == 3:
        return lambda logits, axis: softmin(C, logits, eps, axis)
    return Products(DenseKernel(C, C.dtype, eps))


class Products:
    """`softmin` for a shared cost, as a product with its kernel ``K = 2**s exp((shift - C) / eps)``."""

    def __init__(self, kernel):
        self.kernel, self.top = kernel, SCALING[kernel.dtype.name]

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def __call__(self, logits, axis):
        kernel = self.kernel
        largest = logits.max(axis=1, keepdims=True)
        largest[np.isneginf(largest)] = 0
        factor = logits - largest
        factor += factor.dtype.type(self.top * np.log(2))
        np.exp(factor, out=factor)
        factor = flush(np.ascontiguousarray(factor.T))
        sums = kernel.product(factor, axis)
        sound = certified_within(kernel.loss(axis), sums, factor, logits.T > -np.inf)
        logs = log_scaled(sums, np.full(len(logits), -float(self.top + kernel.s)))
        logs += largest
        logs *= -kernel.eps
        logs += kernel.shift
        out = logs.astype(logits.dtype, order="C")
        if sound is not True:
            self._repair(out, sound, logits, axis)
        return out

    def _repair(self, out, sound, logits, axis):
        """Overwrite what of `out` (B, rows) is not `sound` (rows, B)."""
        if np.count_nonzero(sound) < (1 - DIRECT) * sound.size:
            out[...] = softmin(self.kernel.C, logits, self.kernel.eps, axis)
        else:
            self.kernel.repair(out, sound, logits, axis)
