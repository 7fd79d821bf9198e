"""Sums of a radial function over all pairs of points, in CuPy: the operators of `cusink.backends.numpy.sums`."""

from typing import Protocol

import cupy as cp

from cusink.backends.cupy.run import LOG2_E, NULL, choose_launch, run, sizes
from cusink.types import Array

FORMS = ("linear", "root", "log")  # by their numbers in kernel_product.cu


class Profile(Protocol):
    """The function of the distance, see `cusink.backends.numpy.sums`."""

    @property
    def form(self) -> str: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def shift(self) -> float: ...  # noqa: D102
    @property
    def slope(self) -> float: ...  # noqa: D102


def kernel_sums(x: Array, y: Array, v: Array, profile: Profile) -> Array:
    """Return ``sum_j k(x_i, y_j) v_j`` (B, n) of points x (B, n, d) and y (B, m, d) and values v (B, m)."""
    x, y, v = map(cp.ascontiguousarray, (x, y, v))
    out = cp.empty(x.shape[:2], x.dtype)
    if profile.form == "distance":
        _launch("distance_sums", x, y, (out, x, y, v), (profile.rate,))
    else:
        _launch("kernel_sums", x, y, (out, x, y, v), _exponents(profile), _form(profile))
    return out


def kernel_log_sums(x: Array, y: Array, q: Array, profile: Profile) -> Array:
    """Return ``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    x, y, q = map(cp.ascontiguousarray, (x, y, q))
    out = cp.empty(x.shape[:2], x.dtype)
    _launch("kernel_log_sums", x, y, (out, x, y, q), _exponents(profile), _form(profile))
    return out


def kernel_slopes(
    x: Array, y: Array, v: Array, p: Array | None, q: Array | None, profile: Profile
) -> tuple[Array, Array]:
    """Return ``sum_j w_ij`` (B, n) and ``sum_j w_ij grad_x log k(x_i, y_j)`` (B, n, d).

    The weights are ``w_ij = k exp(p_i + q_j) v_j``; None stands for logits that are 0.
    """
    x, y, v = map(cp.ascontiguousarray, (x, y, v))
    sums, slopes = cp.empty(x.shape[:2], x.dtype), cp.empty(x.shape, x.dtype)
    if profile.form == "distance":
        _launch("distance_slopes", x, y, (sums, slopes, x, y, v), (profile.rate, profile.slope))
    else:
        p, q = (NULL if logits is None else cp.ascontiguousarray(logits) for logits in (p, q))
        scalars = (*_exponents(profile), profile.slope)
        _launch("kernel_slopes", x, y, (sums, slopes, x, y, v, p, q), scalars, _form(profile))
    return sums, slopes


def _exponents(profile: Profile) -> tuple[float, float]:
    """Return the rate and the shift of a logarithm in base 2; that of the form "log" is already."""
    return (profile.rate if profile.form == "log" else profile.rate * LOG2_E), profile.shift


def _form(profile: Profile) -> tuple[int]:
    return (FORMS.index(profile.form),)


def _launch(
    operator: str, x: Array, y: Array, arrays: tuple[Array, ...], reals: tuple[float, ...], form: tuple[int, ...] = ()
) -> None:
    (B, n, d), m, dtype = x.shape, y.shape[1], x.dtype
    launch = choose_launch(operator, B, n, m, dtype, d=d)
    run(launch, dtype, *arrays, *map(dtype.type, reals), *sizes(*form, B, n, m, d))
