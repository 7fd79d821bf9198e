"""Checks of the arguments of `cusink.kernel_products` and `cusink.kernel_norms`, in the manner of `solver.checks`."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.checks.arrays import arrays
from cusink.checks.scalars import positive_number
from cusink.checks.weights import batch_size, weight_values

KERNELS = ("gaussian", "laplace", "energy")
LOG_KERNELS = (*KERNELS, "exponential")


@dataclass(frozen=True, eq=False, kw_only=True)
class Measures:
    """Checked x (B, n, d), y (B, m, d), and numbers per point of either, all in the dtype of the computation."""

    x: Any
    y: Any
    numbers: dict
    xp: Any
    dtype: Any
    batched: bool
    flat: bool
    shapes: dict

    def outward(self, array):
        """A result in the user's dtype, without the batch axis if there was none."""
        return (array if self.batched else array[0]).astype(self.dtype)

    def gradient(self, name, array):
        """The gradient by input `name` in the input's own shape: summed over the batch where all problems share it."""
        shape = self.shapes[name]
        if math.prod(shape) != array.size:
            array = array.sum(axis=0)
        return array.reshape(shape).astype(self.dtype)


def kernel(name, scale, log):
    """Check a kernel's name and its scale."""
    allowed = LOG_KERNELS if log else KERNELS
    if name not in allowed:
        hint = ". 'exponential' exists in the log form alone: cusink.kernel_product_log" if name in LOG_KERNELS else ""
        raise ValueError(f"'kernel' must be one of {', '.join(map(repr, allowed))}; got {name!r}{hint}")
    positive_number("scale", scale, "It is a length in the units of the points")


def measures(x, y, log=False, positive=False, **per_point):
    """Check points and, for each name in `per_point`, ``(numbers, "x" or "y")``; None stands for uniform weights.

    `log` says that the numbers are log weights, which may be -inf; `positive` that they are weights, not all zero.
    """
    named = {"x": x, "y": y} | {name: given for name, (given, _) in per_point.items()}
    checked, xp, dtype = arrays(**named)
    checked = dict(zip(named, checked, strict=True))
    flat = checked["x"] is not None and checked["x"].ndim == 1
    points = {name: _points(name, checked[name], xp) for name in ("x", "y")}
    if points["x"].shape[-1] != points["y"].shape[-1]:
        raise ValueError(
            f"'x' and 'y' must have the same number of coordinates; got shapes {checked['x'].shape} and "
            f"{checked['y'].shape}"
        )
    for name, (_, side) in per_point.items():
        _numbers(name, checked[name], side, checked[side].shape, points[side], xp, log and name != "grad")
    sizes = {name: len(p) for name, p in points.items() if p.ndim == 3}
    sizes |= {name: len(checked[name]) for name in per_point if checked[name] is not None and checked[name].ndim == 2}
    size = batch_size(sizes)
    shapes, full = {name: checked[name].shape for name in points}, {}
    for name, (_, side) in per_point.items():
        count = points[side].shape[-2]
        if checked[name] is None:
            uniform = -math.log(count) if log else 1 / count
            checked[name] = xp.full(count, uniform, points[side].dtype)
        shapes[name] = checked[name].shape
        full[name] = xp.ascontiguousarray(xp.broadcast_to(checked[name], (size, count)))
        if positive and name != "grad":
            weight_values(name, full[name], xp)
    x, y = (xp.ascontiguousarray(xp.broadcast_to(p, (size, *p.shape[-2:]))) for p in points.values())
    return Measures(x=x, y=y, numbers=full, xp=xp, dtype=dtype, batched=bool(sizes), flat=flat, shapes=shapes)


def scale_of(scale, dtype):
    """Check that the square of a scale is a number of the dtype of the computation."""
    limits = np.finfo(dtype)
    if not float(limits.tiny) <= float(scale) ** 2 <= float(limits.max):
        low, high = float(limits.tiny) ** 0.5, float(limits.max) ** 0.5
        raise ValueError(
            f"'scale' must lie between {low:.2g} and {high:.2g} in {dtype}, so that its square does not leave the "
            f"range; got {scale}. Change the unit of the points"
        )


def factor(name, value, measures):
    """Check the derivative by a value of shape () or (B,); return it with a trailing axis, (B, 1)."""
    size = len(measures.x)
    if isinstance(value, numbers.Real):
        value = measures.xp.asarray(float(value), measures.dtype)
    (value, _), xp, _ = arrays(**{name: value, "x": _sample(measures)})
    allowed = [(), (size,)] if measures.batched else [()]
    if value.shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"'{name}' must have shape {wanted}, as the value; got {value.shape}")
    if not xp.isfinite(value).all():
        raise ValueError(f"'{name}' must be finite; got NaN or infinity")
    return xp.broadcast_to(value, (size,))[:, None]


def field_points(field_at, measures):
    """Check the points at which a field is wanted; return them as (B, k, d), and the shape of the field."""
    (points, _), xp, _ = arrays(field_at=field_at, x=_sample(measures))
    d = measures.x.shape[-1]
    if points.ndim == 0 or 0 in points.shape or (not measures.flat and points.shape[-1] != d):
        wanted = "a shape, with a point per number," if measures.flat else f"shape (..., {d}), like 'x',"
        raise ValueError(f"'field_at' must have {wanted} and at least one point; got shape {points.shape}")
    if not xp.isfinite(points).all():
        raise ValueError("'field_at' must be finite; got NaN or infinity")
    shape = points.shape if measures.flat else points.shape[:-1]
    points = xp.broadcast_to(points.reshape(1, -1, d), (len(measures.x), math.prod(shape), d))
    return xp.ascontiguousarray(points), shape


def wanted(wrt, names):
    """Check the names of the inputs by which gradients are wanted; None for all."""
    if wrt is None:
        return frozenset(names)
    given = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    unknown = [name for name in given if name not in names]
    if unknown or not given:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"'wrt' must name some of {listed}, or be None for all; got {wrt!r}")
    return frozenset(given)


def _sample(measures):
    """An array of the library and the dtype of the user."""
    return measures.x[0, 0].astype(measures.dtype)


def _points(name, points, xp):
    """Points as (n, d) or (B, n, d)."""
    if points is None:
        raise TypeError(f"'{name}' must be an array of points; got None")
    shape = points.shape
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim not in (2, 3) or 0 in shape:
        raise ValueError(
            f"'{name}' must have shape (points, d), (points,) or (B, points, d) with at least one point and one "
            f"coordinate; got {shape}"
        )
    if not xp.isfinite(points).all():
        raise ValueError(f"'{name}' must be finite; got NaN or infinity")
    return points


def _numbers(name, x, side, shape, points, xp, log):
    count = points.shape[-2]
    if x is None:
        if name == "grad":
            raise TypeError("'grad' must be an array, the derivative by each entry of the result; got None")
        return
    if x.ndim not in (1, 2) or x.shape[-1] != count or len(x) == 0:
        raise ValueError(
            f"'{name}' must have shape ({count},) or (B, {count}), a number per point, to match '{side}' of shape "
            f"{shape}; got {x.shape}"
        )
    if log and (xp.isnan(x).any() or (x == xp.inf).any()):
        what = "NaN" if xp.isnan(x).any() else "+inf"
        raise ValueError(f"'{name}' must hold log weights, finite or -inf (for a weight of zero); got {what}")
    if not log and not xp.isfinite(x).all():
        raise ValueError(f"'{name}' must be finite; got NaN or infinity")
