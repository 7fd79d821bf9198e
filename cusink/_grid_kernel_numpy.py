"""The kernel of a grid as one small matrix for each axis, in the place of `cusink._shared_kernel_numpy.DenseKernel`."""

import functools
import math

import numpy as np

from cusink import _grid_reductions as grid
from cusink import _ops_numpy as dense
from cusink._certificate_numpy import Loss, flush
from cusink._log_domain_numpy import finish_log
from cusink._reductions_grid_numpy import Reductions
from cusink._shared_kernel_numpy import KERNEL, scaled_kernel


class GridKernel:
    """``K = K_1 x K_2 x ... = 2**s exp(-C / eps)`` as its factors ``K_k = 2**s_k exp(-C_k / eps)``, all symmetric.

    Problems are columns, so that each factor meets few long rows: the array (n_1, ..., n_d, B) is multiplied along
    one axis after the other.
    """

    shift = 0.0

    def __init__(self, C, dtype, eps):
        self.C, self.eps, self.dtype = C, eps, np.dtype(dtype)
        # An axis of one cell has nothing to sum over.
        self.costs_of_axes = [cost for cost in C.axes if len(cost) > 1] or [C.axes[0]]
        self.each = KERNEL[self.dtype.name] // len(self.costs_of_axes)
        self.s = self.each * len(self.costs_of_axes)
        self.before = [math.prod(map(len, self.costs_of_axes[:k])) for k in range(len(self.costs_of_axes))]
        self.tiny = np.finfo(self.dtype).tiny
        self.scratch = None

    @functools.cached_property
    def axes(self):
        """The factors."""
        return [scaled_kernel(cost, self.dtype, self.eps, 0.0, self.each) for cost in self.costs_of_axes]

    def product(self, factor, axis, out=None, signed=False):
        """``K factor``, which is ``K' factor``, of a non-negative `factor` unless told otherwise."""
        out = np.empty(factor.shape, self.dtype) if out is None else out
        if not out.flags.c_contiguous:
            out[...] = self.product(factor, axis, signed=signed)
            return out
        source = np.ascontiguousarray(factor)
        if self.scratch is None or self.scratch.shape != out.shape:
            self.scratch = np.empty(out.shape, self.dtype)
        passes = len(self.axes)
        for k, K in enumerate(self.axes):
            target = self.scratch if (passes - k) % 2 == 0 else out
            self._along(k, K, source, target)
            if k + 1 < passes and self._reaches_far and not signed:
                np.maximum(target, self.tiny, out=target)  # flushed to tiny, which is faster than to zero
            source = target
        return out

    def product_of_rows(self, factor, axis):
        """As `product` with problems as rows, of any sign."""
        return np.ascontiguousarray(self.product(factor.T, axis, signed=True).T)

    def cost_product(self, factor, axis, out=None):
        """As `product` with ``K * C / unit`` in the place of K; see `cusink._grid_reductions.log_priced`."""
        factor, priced = np.ascontiguousarray(factor), None
        for k, (K, cost) in enumerate(zip(self.axes, self.costs_of_axes, strict=True)):
            here = self._along(k, flush(K * (cost / self.unit).astype(K.dtype)), factor, np.empty_like(factor))
            if priced is not None:
                here += self._along(k, K, priced, np.empty_like(factor))
            priced = here
            if k + 1 < len(self.axes):
                factor = self._along(k, K, factor, np.empty_like(factor))
        if out is None:
            return priced
        out[...] = priced
        return out

    def loss(self, axis):
        """What `product` may lose."""
        return self._loss

    def repair(self, potential, sound, logits, axis):
        """Overwrite the entries of `potential` (B, n) that are not `sound` (n, B) by their softmin."""
        if np.all(sound):
            return
        problems = np.flatnonzero(~sound.all(axis=0))
        right = grid.softmin(dense, self.C, logits[problems], self.eps)
        potential[problems] = np.where(sound[:, problems].T, potential[problems], right)

    def finish_log(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, Reductions)

    @property
    def unit(self):
        """The unit of `cost_product`."""
        return self.C.largest(np) or 1.0

    @property
    def K(self):
        """The kernel (n, n): memory of that size."""
        return functools.reduce(np.kron, self.axes)

    @property
    def costs(self):
        """The cost (n, n): memory of that size."""
        return self.C.block(np)

    @functools.cached_property
    def _loss(self):
        """A pass loses as one product does; what it lost before is multiplied by the row sums of the passes after it.

        See docs/grid.md.
        """
        sums = [float(K.sum(axis=1, dtype=np.float64).max()) for K in self.axes]
        of_kernel = of_products = 0.0
        for k, K in enumerate(self.axes):
            after = float(np.prod(sums[k + 1 :]))
            of_products += (len(K) + 1) * after
            if K.min() < self.tiny:
                of_kernel += len(K) * after * float(np.prod(sums[:k]))
        gain = float(np.prod(sums))
        return Loss(of_kernel, of_products, gain, gain)

    @functools.cached_property
    def _reaches_far(self):
        """Whether sums of one pass may be denormals, which would slow the next one."""
        return min(float(K.min()) for K in self.axes) < float(self.tiny) ** 0.5

    def _along(self, k, K, source, target):
        """Multiply by K along the axis k: (before, n_k, after)."""
        before = self.before[k]
        after = source.size // (before * len(K))
        if after == 1:  # one problem: lines are rows, and K is symmetric
            np.matmul(source.reshape(before, len(K)), K, out=target.reshape(before, len(K)))
        else:
            shape = (before, len(K), after)
            np.matmul(K, source.reshape(shape), out=target.reshape(shape))
        return target
