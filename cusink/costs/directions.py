"""Directions of points from the origin, which the metric "cosine" compares, and how they move."""

import numpy as np

from cusink.types import Array, ArrayModule


def unit_tangent(xp: ArrayModule, points: Array, move: Array) -> Array:
    """Return how the directions of points move with them; the same map pulls gradients back."""
    points = points.astype(np.float64)
    norm = xp.sqrt((points * points).sum(axis=-1, keepdims=True))
    unit = points / norm
    return (move - unit * (unit * move).sum(axis=-1, keepdims=True)) / norm


def unit_curvature(xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
    """Return the derivative of `unit_tangent` of a `gradient` that stays, while the points `move`."""
    points = points.astype(np.float64)
    norm = xp.sqrt((points * points).sum(axis=-1, keepdims=True))
    unit = points / norm
    turn, along = unit_tangent(xp, points, move), (unit * gradient).sum(axis=-1, keepdims=True)
    of_norm = unit_tangent(xp, points, gradient) * (unit * move).sum(axis=-1, keepdims=True)
    return -(turn * along + unit * (turn * gradient).sum(axis=-1, keepdims=True) + of_norm) / norm
