"""The kernel of a grid as one small matrix for each axis, and what a product with all of them can lose."""

import functools
import math

import numpy as np

from cusink.backends.ranges import KERNEL, Loss, scaled_kernel


class GridKernel:
    """``K = K_1 x K_2 x ... = 2**s exp(-C / eps)`` as its factors ``K_k = 2**s_k exp(-C_k / eps)``, all symmetric.

    Problems are columns, so that each factor meets few long rows: the array (n_1, ..., n_d, B) is multiplied along
    one axis after the other. `dense` is the module of the operators for arrays of the library in use.
    """

    shift = 0.0

    def __init__(self, dense, C, dtype, eps):
        self.dense, self.xp, self.C, self.eps, self.dtype = dense, dense.xp, C, eps, np.dtype(dtype)
        # An axis of one cell has nothing to sum over.
        axes = [dense.to_host(cost) for cost in C.axes]
        self.costs_of_axes = [cost for cost in axes if len(cost) > 1] or axes[:1]
        self.unit = sum(float(cost.max()) for cost in axes) or 1.0
        self.before = [math.prod(map(len, self.costs_of_axes[:k])) for k in range(len(self.costs_of_axes))]
        self.each = KERNEL[self.dtype.name] // len(self.costs_of_axes)
        self.s = self.each * len(self.costs_of_axes)
        self.tiny = float(np.finfo(self.dtype).tiny)
        self.scratch = None

    @functools.cached_property
    def axes(self):
        """The factors."""
        return [self.xp.asarray(K) for K in self._on_host]

    def product(self, factor, axis, out=None, signed=False):
        """``K factor``, which is ``K' factor``, of a non-negative `factor` unless told otherwise."""
        xp = self.xp
        out = xp.empty(factor.shape, self.dtype) if out is None else out
        if not out.flags.c_contiguous:
            out[...] = self.product(factor, axis, signed=signed)
            return out
        source = xp.ascontiguousarray(factor)
        if self.scratch is None or self.scratch.shape != out.shape:
            self.scratch = xp.empty(out.shape, self.dtype)
        passes = len(self.axes)
        for k, K in enumerate(self.axes):
            target = self.scratch if (passes - k) % 2 == 0 else out
            self._along(k, K, source, target)
            if k + 1 < passes and self._reaches_far and not signed:
                xp.maximum(target, self.dtype.type(self.tiny), out=target)  # flushed to tiny: faster than to zero
            source = target
        return out

    def product_of_rows(self, factor, axis):
        """As `product` with problems as rows, of any sign."""
        return self.xp.ascontiguousarray(self.product(factor.T, axis, signed=True).T)

    def cost_product(self, factor, axis, out=None):
        """As `product` with ``K * C / unit`` in the place of K; see `cusink.backends.grid.reductions.log_priced`."""
        xp = self.xp
        factor, priced = xp.ascontiguousarray(factor), None
        for k, (K, KC) in enumerate(zip(self.axes, self._priced, strict=True)):
            here = self._along(k, KC, factor, xp.empty_like(factor))
            if priced is not None:
                here += self._along(k, K, priced, xp.empty_like(factor))
            priced = here
            if k + 1 < len(self.axes):
                factor = self._along(k, K, factor, xp.empty_like(factor))
        if out is None:
            return priced
        out[...] = priced
        return out

    def loss(self, axis):
        """What `product` may lose."""
        return self._loss

    @functools.cached_property
    def _on_host(self):
        return [scaled_kernel(cost, self.dtype, self.eps, 0.0, self.each) for cost in self.costs_of_axes]

    @functools.cached_property
    def _priced(self):
        """``K_k * C_k / unit`` for each axis."""
        pairs = zip(self._on_host, self.costs_of_axes, strict=True)
        return [self.xp.asarray(K * (cost / self.unit).astype(K.dtype)) for K, cost in pairs]

    @functools.cached_property
    def _loss(self):
        """A pass loses as one product does; what it lost before is multiplied by the row sums of the passes after it.

        See docs/grid.md.
        """
        sums = [float(K.sum(axis=1, dtype=np.float64).max()) for K in self._on_host]
        of_kernel = of_products = 0.0
        for k, K in enumerate(self._on_host):
            after = math.prod(sums[k + 1 :])
            of_products += (len(K) + 1) * after
            if K.min() < self.tiny:
                of_kernel += len(K) * after * math.prod(sums[:k])
        gain = math.prod(sums)
        return Loss(of_kernel, of_products, gain, gain)

    @functools.cached_property
    def _reaches_far(self):
        """Whether sums of one pass may be denormals, which would slow the next one."""
        return min(float(K.min()) for K in self._on_host) < self.tiny**0.5

    def _along(self, k, K, source, target):
        """Multiply by K along the axis k: (before, n_k, after)."""
        before = self.before[k]
        after = source.size // (before * len(K))
        if after == 1:  # one problem: lines are rows, and K is symmetric
            self.xp.matmul(source.reshape(before, len(K)), K, out=target.reshape(before, len(K)))
        else:
            shape = (before, len(K), after)
            self.xp.matmul(K, source.reshape(shape), out=target.reshape(shape))
        return target
