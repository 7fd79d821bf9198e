"""The kernel of a stored cost, shared by all problems."""

from typing import Any, Literal, Protocol

import numpy as np

from cusink.backends.numpy.certificate import repair
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.log import finish_log
from cusink.backends.ranges import KERNEL_EXPONENT, UnderflowBound, flush, scaled_kernel
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray


class Kernel(Protocol):
    """``K = 2**s exp((shift - C) / eps)`` (n, m) of a cost of any kind. Problems are columns."""

    C: Any
    eps: float
    dtype: np.dtype[Any]
    shift: float
    s: int

    @property
    def K(self) -> HostArray:  # noqa: N802
        """The kernel as an array (n, m)."""

    def in_float32(self) -> "Kernel":
        """Return the same kernel in float32."""

    @property
    def costs(self) -> HostArray:
        """The cost as an array (n, m)."""

    @property
    def unit(self) -> float:
        """The unit of `cost_product`."""

    def product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return ``K factor`` (axis 1) or ``K' factor`` (axis 0)."""

    def product_of_rows(self, factor: HostArray, axis: Axis) -> HostArray:
        """Return the `product` with problems as rows, (B, n) or (B, m)."""

    def cost_product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return the `product` with ``K * C / unit`` for K."""

    def underflow_bound(self, axis: Axis) -> UnderflowBound:
        """Return what `product` may lose."""

    def repair(self, potential: HostArray, sound: HostArray | Literal[True], logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin."""

    def finish_log(self, a: HostArray, b: HostArray, g: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` after a plain f-update as log-sum-exp."""


class DenseKernel:
    """``K = 2**s exp((shift - C) / eps)`` (n, m) with `shift` the smallest cost; s lifts small entries from underflow.

    Problems are columns.
    """

    def __init__(self, C: HostArray, dtype: Any, eps: float) -> None:
        self.C, self.eps, self.dtype = C, eps, np.dtype(dtype)
        self.shift, self.s = float(C.min()), KERNEL_EXPONENT[self.dtype.name]

    @cached_property
    def K(self) -> HostArray:  # noqa: N802
        """The kernel (n, m)."""
        return scaled_kernel(self.C, self.dtype, self.eps, self.shift)

    def in_float32(self) -> "DenseKernel":
        """Return the kernel in float32."""
        narrow = DenseKernel(self.C, np.float32, self.eps)
        narrow.__dict__["K"] = flush(np.ldexp(self.K, narrow.s - self.s).astype(np.float32))
        return narrow

    def product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return ``K factor`` (axis 1) or ``K' factor`` (axis 0)."""
        return np.matmul(self.K if axis == 1 else self.K.T, factor, out=out)

    @np.errstate(invalid="ignore")  # BLAS may compute with what lies on its stack, and leave that out of the product
    def product_of_rows(self, factor: HostArray, axis: Axis) -> HostArray:
        """Return the `product` with problems as rows."""
        out: HostArray = np.matmul(factor, self.K.T if axis == 1 else self.K)
        return out

    @np.errstate(invalid="ignore")
    def cost_product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return the `product` with ``K * C / unit`` for K: without the unit, its largest entry may overflow."""
        KC = self._cost_kernel[0]
        return np.matmul(KC if axis == 1 else KC.T, factor, out=out)

    @property
    def costs(self) -> HostArray:
        """The cost (n, m)."""
        return self.C

    @property
    def unit(self) -> float:
        """The unit of `cost_product`."""
        return self._cost_kernel[1]

    @cached_property
    def _cost_kernel(self) -> tuple[HostArray, float]:
        if self.K.min() > 0:
            KC, unit = np.empty_like(self.K), max(abs(self.shift), abs(float(self.C.max()))) or 1.0
            np.divide(self.C, unit, out=KC)
        else:
            carry = self.K > 0
            unit = float(np.abs(self.C[carry]).max(initial=0)) or 1.0
            KC = np.divide(self.C, unit, where=carry, out=np.zeros_like(self.K))
        KC *= self.K
        return KC, unit

    def underflow_bound(self, axis: Axis) -> UnderflowBound:
        """Return what `product` may lose."""
        return UnderflowBound.of_product(self.C.shape[axis], 2.0**self.s)

    def repair(self, potential: HostArray, sound: HostArray | Literal[True], logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin."""
        repair(potential, sound, self.C, logits, self.eps, axis)

    def finish_log(self, a: HostArray, b: HostArray, g: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` after a plain f-update as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps)


def log_scaled(x: Array, exponent: HostArray) -> HostArray:
    """Return ``log(x * 2**exponent)`` of columns x (n, B), transposed, as a new array in float64.

    No digit is lost to a large exponent.
    """
    rows = x.T.copy()  # transposed before it is widened: that moves half of the bytes
    log: HostArray = rows.astype(np.float64, copy=False)
    log *= np.exp2(exponent)[:, None]
    if log.min(initial=1) >= np.finfo(np.float64).tiny and log.max(initial=1) < np.inf:
        return np.log(log, out=log)
    mantissa, power = np.frexp(x.T)
    np.log(mantissa, out=log, dtype=np.float64)
    log += (power + exponent[:, None]) * np.log(2)
    return log
