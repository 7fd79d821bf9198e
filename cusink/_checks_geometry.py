"""Checks of the arguments of `cusink.PointCloud` and `cusink.Grid`."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

from cusink._arrays import arrays, kind

METRICS = ("sqeuclidean", "euclidean", "cityblock", "cosine")
SEPARABLE = ("sqeuclidean", "cityblock")


@dataclass(frozen=True, eq=False)
class Points:
    """Points (n, d) or (B, n, d) in their own dtype; y is x itself if it was not given."""

    x: Any
    y: Any
    flat: tuple[bool, bool | None]


def point_cloud(x, y, metric, power, tf32):
    """Points of a call of `cusink.PointCloud`."""
    if metric not in METRICS:
        raise ValueError(f"'metric' must be one of {', '.join(map(repr, METRICS))}; got {metric!r}")
    if isinstance(power, bool) or not isinstance(power, numbers.Real):
        raise TypeError(f"'power' must be a number; got {kind(power)}")
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"'power' must be positive and finite; got {power}")
    if tf32 not in (True, False):
        raise TypeError(f"'tf32' must be True or False; got {tf32!r}")
    if x is None:
        raise TypeError("'x' must be an array of points; got None. Only 'y' may be None, for x itself")
    given = {"x": x} if y is None else {"x": x, "y": y}
    converted, xp, dtype = arrays(**given)
    shaped, flat = [], []
    for name, p in zip(given, converted, strict=True):
        flat.append(p.ndim == 1)
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim not in (2, 3) or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) or (B, points, d) with at least one point and one coordinate; "
                f"got {p.shape}"
            )
        if not xp.isfinite(p).all():
            raise ValueError(f"'{name}' must be finite; got NaN or infinity")
        if metric == "cosine" and not p.any(axis=-1).all():
            raise ValueError(f"'{name}' must hold no zero vector for metric 'cosine'; it has one")
        shaped.append(p)
    if len(shaped) == 1:
        x = shaped[0].astype(dtype, copy=False)
        return Points(x, x, (flat[0], None))
    x, y = shaped
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    if x.ndim == 3 or y.ndim == 3:
        sizes = {len(p) for p in (x, y) if p.ndim == 3 and len(p) > 1}
        if len(sizes) > 1:
            raise ValueError(f"'x' and 'y' must have one batch size, or 1; got {x.shape} and {y.shape}")
        size = sizes.pop() if sizes else 1
        x, y = (xp.broadcast_to(p, (size, *p.shape[-2:])) for p in (x, y))
    return Points(x.astype(dtype, copy=False), y.astype(dtype, copy=False), tuple(flat))


def grid(shape, metric, spacing, periodic):
    """Cells, spacing and periodicity of each axis of a call of `cusink.Grid`."""
    if metric not in SEPARABLE:
        raise ValueError(
            f"'metric' must be one of {', '.join(map(repr, SEPARABLE))}, which are sums over the axes of a grid; got "
            f"{metric!r}. For another one pass PointCloud(points, metric={metric!r})"
        )
    cells = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not 1 <= len(cells) <= 3 or not all(isinstance(k, numbers.Integral) and k > 0 for k in cells):
        raise ValueError(f"'shape' must be one, two or three positive numbers of cells; got {shape!r}")
    spacings = _for_each_axis("spacing", spacing, len(cells))
    for value in spacings:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"'spacing' must be positive and finite, one number or one for each axis; got {spacing!r}")
    around = _for_each_axis("periodic", periodic, len(cells))
    if not all(value in (True, False) for value in around):
        raise ValueError(f"'periodic' must be a bool, or one for each axis; got {periodic!r}")
    return tuple(map(int, cells)), tuple(map(float, spacings)), tuple(map(bool, around))


def _for_each_axis(name, value, count):
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    if len(values) != count:
        raise ValueError(f"'{name}' must be one value, or {count} for a grid of {count} axes; got {value!r}")
    return values
