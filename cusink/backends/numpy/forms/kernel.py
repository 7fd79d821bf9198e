"""The kernel of a stored cost, shared by all problems."""

import functools

import numpy as np

from cusink.backends.numpy.certificate import repair
from cusink.backends.numpy.forms.log import finish_log
from cusink.backends.ranges import KERNEL, Loss, scaled_kernel


class DenseKernel:
    """``K = 2**s exp((shift - C) / eps)`` (n, m) with `shift` the smallest cost; s lifts small entries from underflow.

    Problems are columns.
    """

    def __init__(self, C, dtype, eps):
        self.C, self.eps, self.dtype = C, eps, np.dtype(dtype)
        self.shift, self.s = float(C.min()), KERNEL[self.dtype.name]

    @functools.cached_property
    def K(self):
        return scaled_kernel(self.C, self.dtype, self.eps, self.shift)

    def product(self, factor, axis, out=None):
        """``K factor`` (axis 1) or ``K' factor`` (axis 0)."""
        return np.matmul(self.K if axis == 1 else self.K.T, factor, out=out)

    def product_of_rows(self, factor, axis):
        """As `product` with problems as rows."""
        return np.matmul(factor, self.K.T if axis == 1 else self.K)

    def cost_product(self, factor, axis, out=None):
        """As `product` with ``K * C / unit`` in the place of K, for its largest entry may overflow without."""
        KC = self._priced[0]
        return np.matmul(KC if axis == 1 else KC.T, factor, out=out)

    @property
    def costs(self):
        """The cost (n, m)."""
        return self.C

    @property
    def unit(self):
        """The unit of `cost_product`."""
        return self._priced[1]

    @functools.cached_property
    def _priced(self):
        carry = self.K > 0
        unit = float(np.abs(self.C[carry]).max(initial=0)) or 1.0
        return np.divide(self.C, unit, where=carry, out=np.zeros_like(self.K)) * self.K, unit

    def loss(self, axis):
        """What `product` may lose."""
        return Loss.of_product(self.C.shape[axis], 2.0**self.s)

    def repair(self, potential, sound, logits, axis):
        """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin."""
        repair(potential, sound, self.C, logits, self.eps, axis)

    def finish_log(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps)


def log_scaled(x, exponent):
    """``log(x * 2**exponent)`` of columns x (n, B), transposed, in float64, with no digit lost to a large exponent."""
    log = np.multiply(x, np.exp2(exponent), dtype=np.float64)
    if log.min(initial=1) >= np.finfo(np.float64).tiny and log.max(initial=1) < np.inf:
        return np.log(log, out=log).T
    mantissa, power = np.frexp(x)
    np.log(mantissa, out=log, dtype=np.float64)
    log += (power + exponent) * np.log(2)
    return log.T
