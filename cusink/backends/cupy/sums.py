"""Sums of a kernel over all pairs of points, in CuPy: as `cusink.backends.numpy.sums`, by ``kernel_product.cu``."""

import cupy as cp
import numpy as np

from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.run import LOG2_E, NO_INDEX, device, run

FORMS = ("linear", "root", "log")  # by their numbers in kernel_product.cu


def kernel_sums(x, y, v, profile):
    """``sum_j k(x_i, y_j) v_j`` (B, n)."""
    x, y, v = map(cp.ascontiguousarray, (x, y, v))
    out = cp.empty(x.shape[:2], x.dtype)
    _launch("kernel_sums", profile, x, y, (out, x, y, v))
    return out


def kernel_log_sums(x, y, q, profile):
    """``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    x, y, q = map(cp.ascontiguousarray, (x, y, q))
    out = cp.empty(x.shape[:2], x.dtype)
    _launch("kernel_log_sums", profile, x, y, (out, x, y, q))
    return out


def kernel_slopes(x, y, v, p, q, profile):
    """``sum_j w_ij`` (B, n) and ``sum_j w_ij grad_x log k(x_i, y_j)`` (B, n, d), ``w_ij = k exp(p_i + q_j) v_j``."""
    x, y, v = map(cp.ascontiguousarray, (x, y, v))
    p, q = (NO_INDEX if logits is None else cp.ascontiguousarray(logits) for logits in (p, q))
    sums, slopes = cp.empty(x.shape[:2], x.dtype), cp.empty(x.shape, x.dtype)
    _launch("kernel_slopes", profile, x, y, (sums, slopes, x, y, v, p, q), x.dtype.type(profile.slope))
    return sums, slopes


def _launch(operator, profile, x, y, arrays, *slope):
    (B, n, d), m, dtype = x.shape, y.shape[1], x.dtype
    # The exponent in base 2; a logarithm has the base of its argument's own.
    rate = profile.rate if profile.form == "log" else profile.rate * LOG2_E
    launch = configure(operator, B, n, m, dtype.name, device(), d=d)
    scalars = (dtype.type(rate), dtype.type(profile.shift), *slope)
    sizes = (np.int64(number) for number in (FORMS.index(profile.form), B, n, m, d))
    run(launch, dtype, *arrays, *scalars, *sizes)
