"""Sums of a radial function over all pairs of points, in CuPy: the operators of `cusink.backends.numpy.sums`."""

from typing import Protocol

import cupy as cp
import numpy as np

from cusink.backends.cupy.point_parts import SplitPoints
from cusink.backends.cupy.run import LOG2_E, NULL, choose_launch, find_launch, run, sizes
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
    operator = "distance_sums" if profile.form == "distance" else "kernel_sums"
    return _sums(operator, x, y, v, 0, profile)


def kernel_log_sums(x: Array, y: Array, q: Array, profile: Profile) -> Array:
    """Return ``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    return _sums("kernel_log_sums", x, y, q, -np.inf, profile)


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


def _sums(operator: str, x: Array, y: Array, values: Array, nothing: float, profile: Profile) -> Array:
    """Return one sum for each x; a point y of the value `nothing` has no part in it."""
    x, y, values = map(cp.ascontiguousarray, (x, y, values))
    (B, n, d), m, dtype, out = x.shape, y.shape[1], x.dtype, cp.empty(x.shape[:2], x.dtype)
    plain = profile.form == "distance"
    reals, form = ((profile.rate,), ()) if plain else (_exponents(profile), _form(profile))
    launch = find_launch(f"{operator}_products", B, n, m, dtype, d=d)
    if launch is None or not SplitPoints.has_room(x, y, 0):
        _launch(operator, x, y, (out, x, y, values), reals, form)
        return out
    arrays = (*(array for side in _split(x, y, values != nothing) for array in side), values)
    reals = reals if plain else (*reals, _room(profile))
    run(launch, dtype, out, *arrays, *map(dtype.type, reals), *sizes(*form), np.int32(d), *sizes(B, n, m))
    return out


def _split(x: Array, y: Array, weighted: Array) -> tuple[SplitPoints, SplitPoints]:
    """Return the points as products take them: their parts about the mean of x and of the points y with weight."""
    own = cp.where(weighted[..., None], y, 0).sum(axis=1, dtype=np.float64)
    means = x.mean(axis=1, dtype=np.float64), own / cp.maximum(weighted.sum(axis=1), 1)[:, None]
    centre = ((means[0] + means[1]) / 2).astype(x.dtype)[:, None]
    # However far off a point without weight lies, it costs no other a digit.
    sides = x - centre, cp.where(weighted[..., None], y - centre, x.dtype.type(0))
    parts_x, parts_y = map(SplitPoints.of, sides)
    return parts_x._replace(points=x), parts_y._replace(points=y)


def _room(profile: Profile) -> float:
    """Return the squared distance beside which, or beside the shift, a kernel hardly changes."""
    return 1 / abs(profile.rate) if profile.form == "linear" else profile.shift


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
