"""Exponentials of the exponents of a plan, of which most may underflow."""

import math

import numpy as np

from cusink.types import Array, ArrayModule

FEW = 1 / 3  # of all exponents, up to which it pays to gather those that count: NumPy may take 8 ns for each
NEARLY_ALL = 0.95  # of them, from which on it does not pay to leave the others out


def exp_from(xp: ArrayModule, exponents: Array, least: float, *, zero: bool = False) -> Array:
    """Overwrite exponents by their exponentials, those below `least` by ``exp(least)``, or by `zero`.

    With `zero` they are nothing in any case. Exponentials that underflow take five times as long as others.
    """
    if xp is np and exponents.flags.c_contiguous:
        left_out = exponents < least  # and no NaN
        count = exponents.size - np.count_nonzero(left_out)
        if count <= FEW * exponents.size:
            flat = exponents.reshape(-1)
            at = np.flatnonzero(~left_out)
            some = flat[at]
            flat.fill(0 if zero else math.exp(least))
            flat[at] = np.exp(some, out=some)
            return exponents
        if zero and count < NEARLY_ALL * exponents.size:
            np.copyto(exponents, 0, where=left_out)
            np.exp(exponents, out=exponents)
            np.copyto(exponents, 0, where=left_out)
            return exponents
    if not zero:
        xp.maximum(exponents, least, out=exponents)
    return xp.exp(exponents, out=exponents)
