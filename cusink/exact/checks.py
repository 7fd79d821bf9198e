"""Checks of the arguments of transport on the line: points are rows of numbers, the rest is as for kernel norms."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.checks.arrays import promoted, weights_dtype
from cusink.checks.scalars import positive_number
from cusink.checks.weights import equal_mass, same_mass
from cusink.norms.checks import WeightedPoints, weighted_points
from cusink.types import Array


def power_of_distance(power: object) -> float:
    """Check the power of the distance: below 1 the cost is concave, and quantiles are not the optimal plan."""
    rule = "at least 1 and finite, as the cost must be convex"
    number = positive_number("power", power, "For a concave cost there is cusink.sinkhorn", rule=rule)
    if number < 1:
        raise ValueError(f"'power' must be {rule}; got {number:g}. For a concave cost there is cusink.sinkhorn")
    return number


def points_on_a_line(x: Any, a: Any, y: Any, b: Any, power: float) -> WeightedPoints:
    """Check numbers (n,) or (B, n) with weights of one mass; return float64 points (B, n, 1), b scaled to that of a."""
    (points_x, points_y, *weights), xp, dtype = promoted(x=x, y=y, a=a, b=b)
    points = {"x": _column("x", points_x), "y": _column("y", points_y)}
    given = weighted_points(points["x"], points["y"], dict(zip("ab", weights, strict=True)), positive=True)
    first, second = (given.per_point[name].astype(np.float64) for name in "ab")
    mass, of_second = first.sum(axis=1), second.sum(axis=1)
    same_mass(
        "'a' and 'b'",
        xp,
        of_second,
        mass,
        weights_dtype(dtype, a, b),
        got=lambda row: f"got {float(mass[row]):g} and {float(of_second[row]):g} in row {row}",
        advice="Divide each by its sum",
    )
    second = equal_mass(first, second, xp, False, dtype)
    first_x, first_y = (p.astype(np.float64) for p in (given.x, given.y))
    span = max(float(first_x.max()), float(first_y.max())) - min(float(first_x.min()), float(first_y.min()))
    most = math.log(float(np.finfo(given.x.dtype).max))
    if span > 0 and power * math.log(span) + math.log(float(first.sum(axis=1).max())) > most:
        raise ValueError(
            f"'x' and 'y' must lie so close that |x - y| ** {power:g}, the distance to 'power', is a number of "
            f"{given.x.dtype}; they span {span:.3g}. Change the unit of the points"
        )
    shapes = given.shapes | {"x": points_x.shape, "y": points_y.shape}
    per_point = {"a": first, "b": second}
    return replace(given, x=first_x, y=first_y, per_point=per_point, dtype=dtype, flat=True, shapes=shapes)


def _column(name: str, points: Array | None) -> Array:
    """Return numbers (n,) or (B, n) as points (n, 1) or (B, n, 1)."""
    if points is None:
        raise TypeError(f"'{name}' must be an array of numbers, the points on the line; got None")
    if points.ndim not in (1, 2) or 0 in points.shape:
        raise ValueError(
            f"'{name}' must have shape (points,) or (B, points) with at least one point; got {points.shape}. Points of "
            "more coordinates are for cusink.sinkhorn"
        )
    return points[..., None]
