"""The kernel of a grid as one small matrix for each axis, and what a product with all of them can lose."""

import math
from typing import Any

import numpy as np

from cusink.backends.ranges import KERNEL_EXPONENT, UnderflowBound, scaled_kernel
from cusink.backends.spare import Spare
from cusink.costs.cells import GridCosts
from cusink.costs.operators import Operators
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray


class Scratch:
    """An array for one product after another, made again where another shape is needed."""

    def __init__(self) -> None:
        self._array: Array = None

    def like(self, array: Array, make: Any) -> Array:
        """Return the uninitialised array of the shape of `array`."""
        if self._array is None or self._array.shape != array.shape:
            self._array = make(array.shape)
        return self._array


class GridKernel:
    """``K = K_1 x K_2 x ... = 2**s exp(-C / eps)`` as its factors ``K_k = 2**s_k exp(-C_k / eps)``, all symmetric.

    Problems are columns, so that each factor meets few long rows: the array (n_1, ..., n_d, B) is multiplied along
    one axis after the other. `dense` are the operators for arrays of the library in use.
    """

    shift: float = 0.0

    def __init__(self, dense: Operators[Array], C: GridCosts, dtype: Any, eps: float) -> None:
        self.xp, self.C, self.eps, self.dtype = dense.xp, C, eps, np.dtype(dtype)
        # An axis of one cell has nothing to sum over.
        axes = [dense.to_host(cost) for cost in C.axes]
        self.costs_of_axes = [cost for cost in axes if len(cost) > 1] or axes[:1]
        self.unit = sum(float(cost.max()) for cost in axes) or 1.0
        self.before = [math.prod(map(len, self.costs_of_axes[:k])) for k in range(len(self.costs_of_axes))]
        self.exponent_of_axis = KERNEL_EXPONENT[self.dtype.name] // len(self.costs_of_axes)
        self.s = self.exponent_of_axis * len(self.costs_of_axes)
        self.tiny = float(np.finfo(self.dtype).tiny)
        self._scratch = Spare(Scratch)

    @cached_property
    def axes(self) -> list[Array]:
        """The factors."""
        return [self.xp.asarray(K) for K in self._on_host]

    def product(self, factor: Array, axis: Axis, out: Array | None = None, signed: bool = False) -> Array:
        """Return ``K factor``, which is ``K' factor``; `factor` is non-negative unless it is `signed`."""
        xp = self.xp
        out = self._empty(factor.shape) if out is None else out
        if not out.flags.c_contiguous:
            out[...] = self.product(factor, axis, signed=signed)
            return out
        source, passes = xp.ascontiguousarray(factor), len(self.axes)
        with self._scratch.borrow() as memory:
            for k, K in enumerate(self.axes):
                target = memory.like(out, self._empty) if (passes - k) % 2 == 0 else out
                self._along(k, K, source, target)
                if k + 1 < passes and self._reaches_far and not signed:
                    xp.maximum(target, self.dtype.type(self.tiny), out=target)  # flushed to tiny: faster than to zero
                source = target
        return out

    def product_of_rows(self, factor: Array, axis: Axis) -> Array:
        """Return the `product` with problems as rows, of any sign."""
        return self.xp.ascontiguousarray(self.product(factor.T, axis, signed=True).T)

    def cost_product(self, factor: Array, axis: Axis, out: Array | None = None) -> Array:
        """Return the `product` with ``K * C / unit`` for K, see `cusink.backends.grid.reductions.log_cost_sums`."""
        del axis  # K is symmetric
        xp = self.xp
        factor, with_cost = xp.ascontiguousarray(factor), None
        for k, (K, KC) in enumerate(zip(self.axes, self.cost_factors, strict=True)):
            here = self._along(k, KC, factor, xp.empty_like(factor))
            if with_cost is not None:
                here += self._along(k, K, with_cost, xp.empty_like(factor))
            with_cost = here
            if k + 1 < len(self.axes):
                factor = self._along(k, K, factor, xp.empty_like(factor))
        if out is None:
            return with_cost
        out[...] = with_cost
        return out

    def underflow_bound(self, axis: Axis) -> UnderflowBound:
        """Return what `product` may lose."""
        del axis
        return self._underflow_bound

    @cached_property
    def _on_host(self) -> list[HostArray]:
        return [scaled_kernel(cost, self.dtype, self.eps, 0.0, self.exponent_of_axis) for cost in self.costs_of_axes]

    @cached_property
    def cost_factors(self) -> list[Array]:
        """``K_k * C_k / unit`` for each axis."""
        pairs = zip(self._on_host, self.costs_of_axes, strict=True)
        return [self.xp.asarray(K * (cost / self.unit).astype(K.dtype)) for K, cost in pairs]

    @cached_property
    def _underflow_bound(self) -> UnderflowBound:
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
        return UnderflowBound(of_kernel, of_products, gain, gain)

    @cached_property
    def _reaches_far(self) -> bool:
        """Whether sums of one pass may be denormals, which would slow the next one."""
        return bool(min(float(K.min()) for K in self._on_host) < self.tiny**0.5)

    def _empty(self, shape: tuple[int, ...]) -> Array:
        return self.xp.empty(shape, self.dtype)

    def _along(self, k: int, K: Array, source: Array, target: Array) -> Array:
        """Multiply by K along the axis k: (before, n_k, after)."""
        before = self.before[k]
        after = source.size // (before * len(K))
        if after == 1:  # one problem: lines are rows, and K is symmetric
            self.xp.matmul(source.reshape(before, len(K)), K, out=target.reshape(before, len(K)))
        else:
            shape = (before, len(K), after)
            self.xp.matmul(K, source.reshape(shape), out=target.reshape(shape))
        return target
