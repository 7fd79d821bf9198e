"""Log-sum-exp reductions prepared for many calls: matrix products where every sum is certified, see docs/method.md."""

import numpy as np

from cusink._certificate_numpy import certified, flush, repair
from cusink._reductions_numpy import softmin
from cusink._shared_kernel_numpy import KERNEL, SCALING, log_scaled, scaled_kernel

DIRECT = 0.1  # share of entries out of range from which log-sum-exp of all is faster than of each


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`."""
    if C.ndim == 3:
        return lambda logits, axis: softmin(C, logits, eps, axis)
    return Products(C, eps)


class Products:
    """`softmin` for a shared cost C (n, m), as a product with its kernel ``K = 2**s exp((shift - C) / eps)``."""

    def __init__(self, C, eps):
        self.C, self.eps, self.shift = C, eps, float(C.min())
        self.s, self.top = KERNEL[C.dtype.name], SCALING[C.dtype.name]
        self.K = scaled_kernel(C, C.dtype, eps, self.shift)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def __call__(self, logits, axis):
        largest = logits.max(axis=1, keepdims=True)
        largest[np.isneginf(largest)] = 0
        factor = logits - largest
        factor += factor.dtype.type(self.top * np.log(2))
        np.exp(factor, out=factor)
        factor = flush(np.ascontiguousarray(factor.T))
        sums = np.matmul(self.K if axis == 1 else self.K.T, factor)
        sound = certified(sums, factor, logits.T > -np.inf, 2.0**self.s)
        if sound is not True and np.count_nonzero(sound) < (1 - DIRECT) * sound.size:
            return softmin(self.C, logits, self.eps, axis)
        logs = log_scaled(sums, np.full(len(logits), -float(self.top + self.s)))
        logs += largest
        logs *= -self.eps
        logs += self.shift
        out = logs.astype(logits.dtype, order="C")
        repair(out, sound, self.C, logits, self.eps, axis)
        return out
