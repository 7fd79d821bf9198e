"""Directions of points from the origin, which the metric "cosine" compares, and how they move."""

import numpy as np

from cusink.types import Array, ArrayModule


def directions(xp: ArrayModule, points: Array) -> tuple[Array, Array]:
    """Return points (..., d) divided by their lengths, and these (..., 1): squares stay in the range for any points."""
    _, exponent = xp.frexp(xp.abs(points).max(axis=-1, keepdims=True))
    near_one = xp.ldexp(points, -exponent)
    length = xp.sqrt((near_one * near_one).sum(axis=-1, keepdims=True))
    return near_one / length, xp.ldexp(length, exponent)


@np.errstate(invalid="ignore")  # of potentials that solve nothing, which is said before
def unit_tangent(xp: ArrayModule, points: Array, move: Array) -> Array:
    """Return how the directions of points move with them; the same map pulls gradients back."""
    unit, norm = directions(xp, points.astype(np.float64))
    return (move - unit * (unit * move).sum(axis=-1, keepdims=True)) / norm


def unit_curvature(xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
    """Return the derivative of `unit_tangent` of a `gradient` that stays, while the points `move`."""
    unit, norm = directions(xp, points.astype(np.float64))
    turn, along = unit_tangent(xp, points, move), (unit * gradient).sum(axis=-1, keepdims=True)
    of_norm = unit_tangent(xp, points, gradient) * (unit * move).sum(axis=-1, keepdims=True)
    return -(turn * along + unit * (turn * gradient).sum(axis=-1, keepdims=True) + of_norm) / norm
