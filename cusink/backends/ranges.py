"""What a kernel and scalings may span in each dtype, and what underflow can lose."""

import dataclasses

import numpy as np

# How the binary exponents of a dtype are shared out: K reaches up to 2**KERNEL, the scalings up to about 2**SCALING
# and, until they are brought back there, to 2**HEADROOM. Their products and ``gamma`` need room below the largest
# number, and small entries of each need room above the smallest.
KERNEL = {"float32": 58, "float64": 700}
SCALING = {"float32": 24, "float64": 100}
HEADROOM = {"float32": 2.0**40, "float64": 2.0**200}


def scaled_kernel(C, dtype, eps, shift, s=None):
    """``2**s exp((shift - C) / eps)``, without denormals; s is `KERNEL` if not given."""
    # float64 first: C / eps may be 1e4, and float32 would leave exp with that many rounding errors.
    exponents = np.maximum((shift - C.astype(np.float64)) / eps, -1e6)
    powers = np.floor(exponents / np.log(2))  # apart, for a digit of C / eps would drown in the shift
    s = KERNEL[np.dtype(dtype).name] if s is None else s
    K = np.ldexp(np.exp(exponents - powers * np.log(2)), powers.astype(int) + s)
    return flush(K.astype(dtype))


@dataclasses.dataclass(frozen=True)
class Loss:
    """What underflow can take from a sum, in units of `tiny`: ``of_kernel * max factor + of_products`` and, if an
    entry of the factor underflowed, `of_factor`. A sum is at most ``gain * max factor``.
    """

    of_kernel: float
    of_products: float
    of_factor: float
    gain: float

    @classmethod
    def of_product(cls, terms, largest_K):
        """Of one matrix product that sums over so many terms."""
        return cls(terms, terms, terms * largest_K, terms * largest_K)

    def floor(self, dtype, largest, underflowed):
        """The least sum that is right to rounding."""
        info = np.finfo(dtype)
        lost = self.of_kernel * largest + self.of_products + self.of_factor * underflowed
        return float(info.tiny) / float(info.eps) * lost


def flush(array):
    """Set denormals of a non-negative array to zero, in place: they slow a product, and the certificate covers them."""
    tiny = np.finfo(array.dtype).tiny
    if array.min(initial=tiny) < tiny:
        array *= array >= tiny  # much faster than to assign zeros
    return array
