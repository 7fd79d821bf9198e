"""What a kernel and scalings may span in each dtype, and what underflow can take from a sum."""

import dataclasses
from typing import Any, Self

import numpy as np

from cusink.types import HostArray

# How the binary exponents of a dtype are shared out: the kernel reaches up to 2**KERNEL_EXPONENT, the scalings up to
# about 2**SCALING_EXPONENT and, before they are rescaled to that, up to SCALING_LIMIT. Products of them and ``gamma``
# need room below the largest number, and small entries of each need room above the smallest.
KERNEL_EXPONENT = {"float32": 58, "float64": 700}
SCALING_EXPONENT = {"float32": 24, "float64": 100}
SCALING_LIMIT = {"float32": 2.0**40, "float64": 2.0**200}

KERNEL_ENTRIES = 1 << 16  # of a kernel that are made at a time: the arrays that this takes stay in the cache

REPEATED_ITERATIONS = 25  # that a problem repeats at most in the next form when it leaves the range of its form


def scaled_kernel(C: HostArray, dtype: Any, eps: float, shift: float, s: int | None = None) -> HostArray:
    """Return ``2**s exp((shift - C) / eps)`` without denormals; s is `KERNEL_EXPONENT` if not given."""
    s = KERNEL_EXPONENT[np.dtype(dtype).name] if s is None else s
    if C.size <= KERNEL_ENTRIES:
        return _scaled_kernel(C, dtype, eps, shift, s)
    out = np.empty(C.shape, dtype)
    step = max(1, KERNEL_ENTRIES * len(C) // C.size)
    for start in range(0, len(C), step):
        rows = slice(start, start + step)
        out[rows] = _scaled_kernel(C[rows], dtype, eps, shift, s)
    return out


def _scaled_kernel(C: HostArray, dtype: Any, eps: float, shift: float, s: int) -> HostArray:
    # float64 first: C / eps may be 1e4, and float32 would leave exp with that many rounding errors.
    exponents = C.astype(np.float64)  # in place from here on: to fetch memory takes longer than to use it
    np.subtract(shift, exponents, out=exponents)
    exponents /= eps
    np.maximum(exponents, -1e6, out=exponents)
    powers = exponents / np.log(2)
    np.floor(powers, out=powers)  # on their own: added to the shift, a digit of C / eps would be lost
    binary = powers.astype(np.int32)
    binary += s
    powers *= np.log(2)
    exponents -= powers
    K = np.ldexp(np.exp(exponents, out=exponents), binary, out=exponents)
    return flush(K.astype(dtype, copy=False))


def exp_times(exponents: HostArray, factors: HostArray) -> HostArray:
    """Return ``exp(exponents) * factors``; of potentials without digits the largest numbers there are, and no NaN.

    The exponential comes in two halves: it may leave the range where the product is in it.
    """
    largest = np.finfo(exponents.dtype).max
    with np.errstate(over="ignore"):
        half = np.minimum(np.exp(exponents / 2), largest)
        out: HostArray = factors * half
        out *= half
        return np.clip(out, -largest, largest)


@dataclasses.dataclass(frozen=True)
class UnderflowBound:
    """What underflow can take from a sum of products of a kernel and a factor, in units of the smallest number.

    It is at most ``of_kernel * max factor + of_products``, and `of_factor` more if an entry of the factor underflowed.
    A sum is at most ``gain * max factor``.
    """

    of_kernel: float
    of_products: float
    of_factor: float
    gain: float

    @classmethod
    def of_product(cls, terms: int, largest_entry: float) -> Self:
        """Return the bound of one matrix product with so many terms in a sum and so large entries of the kernel."""
        return cls(terms, terms, terms * largest_entry, terms * largest_entry)

    def floor(self, dtype: Any, largest: Any, underflowed: Any) -> Any:
        """Return the least sum that is right to rounding.

        `largest` is the largest entry of the factor and `underflowed` whether one underflowed: numbers, or arrays (B,).
        """
        info = np.finfo(dtype)
        lost = self.of_kernel * largest + self.of_products + self.of_factor * underflowed
        return float(info.tiny) / float(info.eps) * lost


def flush(array: HostArray) -> HostArray:
    """Set denormals of a non-negative array to zero, in place: they slow a product, and the certificate covers them."""
    tiny = np.finfo(array.dtype).tiny
    if array.size and array.min() < tiny:
        array *= array >= tiny  # much faster than to assign zeros
    return array
