"""Maps of points to others, between whose images a metric is a Euclidean distance or a function of one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.costs.directions import directions, unit_curvature, unit_tangent
from cusink.costs.formulas import finite_power
from cusink.types import Array, ArrayModule


class Map(ABC):
    """A map of points (..., d) in float64, see `cusink.costs.between.Embedding`."""

    @abstractmethod
    def images(self, xp: ArrayModule, points: Array) -> Array:
        """Return the images (..., k) of points."""

    def of_both(self, xp: ArrayModule, x: Array, y: Array, dtype: Any) -> tuple[Array, Array]:
        """Return the images of points about the mean of those of x, rounded once."""
        u = self.images(xp, x.astype(np.float64))
        v = u if y is x else self.images(xp, y.astype(np.float64))
        middle = u.mean(axis=-2, keepdims=True)
        of_x = (u - middle).astype(dtype)
        return of_x, of_x if y is x else (v - middle).astype(dtype)


class Directions(Map):
    """``x / |x|``: half the squared distance of the images is the cosine distance."""

    def images(self, xp: ArrayModule, points: Array) -> Array:
        """See `Embedding`."""
        return directions(xp, points)[0]

    def tangent(self, xp: ArrayModule, points: Array, move: Array) -> Array:
        """See `Embedding`."""
        return unit_tangent(xp, points, move)

    def pulled(self, xp: ArrayModule, points: Array, gradient: Array) -> Array:
        """See `Embedding`: the map is its own adjoint."""
        return unit_tangent(xp, points, gradient)

    def curvature(self, xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
        """See `Embedding`."""
        return unit_curvature(xp, points, gradient, move)


class Roots(Map):
    """``sqrt(x)``: half the squared distance of the images is the squared Hellinger distance.

    The root has no derivative at 0, where zero is taken.
    """

    def images(self, xp: ArrayModule, points: Array) -> Array:
        """See `Embedding`."""
        return xp.sqrt(points)

    def tangent(self, xp: ArrayModule, points: Array, move: Array) -> Array:
        """See `Embedding`."""
        return move * finite_power(xp, points, -0.5) / 2

    def pulled(self, xp: ArrayModule, points: Array, gradient: Array) -> Array:
        """See `Embedding`: the map is its own adjoint."""
        return self.tangent(xp, points, gradient)

    def curvature(self, xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
        """See `Embedding`."""
        return -gradient * move * finite_power(xp, points, -1.5) / 4


@dataclass(frozen=True, eq=False)
class Linear(Map):
    """``x L`` for a `factor` L (d, k): the distance of the images is Mahalanobis' with the matrix ``L L'``."""

    factor: Array

    def images(self, xp: ArrayModule, points: Array) -> Array:
        """See `Embedding`."""
        return xp.matmul(points, self.factor)

    def tangent(self, xp: ArrayModule, points: Array, move: Array) -> Array:
        """See `Embedding`."""
        del points
        return xp.matmul(move, self.factor)

    def pulled(self, xp: ArrayModule, points: Array, gradient: Array) -> Array:
        """See `Embedding`."""
        del points
        return xp.matmul(gradient, self.factor.T)

    def curvature(self, xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
        """See `Embedding`: a linear map has none."""
        del gradient, move
        return xp.zeros(points.shape)

    def of_both(self, xp: ArrayModule, x: Array, y: Array, dtype: Any) -> tuple[Array, Array]:
        """See `Embedding`: points far from 0 keep the digits of their differences."""
        centre = x.mean(axis=-2, keepdims=True, dtype=np.float64)
        of_x = x - centre
        return super().of_both(xp, of_x, of_x if y is x else y - centre, dtype)

    def factor_adjoint(self, points: Array, gradient: Array) -> Array:
        """Return the gradient with respect to the factor, given that of the images of points."""
        return points.reshape(-1, points.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])


class Sphere(Map):
    """Latitude and longitude in radians as points of the unit sphere: a chord between them has an angle.

    Each point comes twice: about the mean, and about the centre of the sphere, see `cusink.costs.arcs.Chords`.
    """

    def of_both(self, xp: ArrayModule, x: Array, y: Array, dtype: Any) -> tuple[Array, Array]:
        """See `Embedding`."""
        of_x, of_y = super().of_both(xp, x, y, dtype)
        with_x = xp.concatenate([of_x, self.images(xp, x.astype(np.float64)).astype(dtype)], axis=-1)
        if y is x:
            return with_x, with_x
        return with_x, xp.concatenate([of_y, self.images(xp, y.astype(np.float64)).astype(dtype)], axis=-1)

    def images(self, xp: ArrayModule, points: Array) -> Array:
        """See `Embedding`: once, about the centre."""
        latitude, longitude = points[..., 0], points[..., 1]
        level = xp.cos(latitude)
        return xp.stack([level * xp.cos(longitude), level * xp.sin(longitude), xp.sin(latitude)], axis=-1)

    def tangent(self, xp: ArrayModule, points: Array, move: Array) -> Array:
        """See `Embedding`."""
        moved = move[..., :1] * _north(xp, points) + move[..., 1:] * _east(xp, points)
        return xp.concatenate([moved, moved], axis=-1)

    def pulled(self, xp: ArrayModule, points: Array, gradient: Array) -> Array:
        """See `Embedding`."""
        gradient = gradient[..., :3] + gradient[..., 3:]
        of_each = ((gradient * slope(xp, points)).sum(axis=-1) for slope in (_north, _east))
        return xp.stack(list(of_each), axis=-1)

    def curvature(self, xp: ArrayModule, points: Array, gradient: Array, move: Array) -> Array:
        """See `Embedding`."""
        gradient = gradient[..., :3] + gradient[..., 3:]
        latitude, longitude = points[..., 0], points[..., 1]
        zero, high = xp.zeros(latitude.shape), xp.sin(latitude)
        mixed = xp.stack([high * xp.sin(longitude), -high * xp.cos(longitude), zero], axis=-1)
        level = xp.cos(latitude)
        east_east = xp.stack([-level * xp.cos(longitude), -level * xp.sin(longitude), zero], axis=-1)
        of_north = move[..., :1] * -self.images(xp, points) + move[..., 1:] * mixed
        of_east = move[..., :1] * mixed + move[..., 1:] * east_east
        return xp.stack([(gradient * of_north).sum(axis=-1), (gradient * of_east).sum(axis=-1)], axis=-1)


def _north(xp: ArrayModule, points: Array) -> Array:
    """Return the derivative (..., 3) of points of the sphere with respect to the latitude."""
    latitude, longitude = points[..., 0], points[..., 1]
    high = xp.sin(latitude)
    return xp.stack([-high * xp.cos(longitude), -high * xp.sin(longitude), xp.cos(latitude)], axis=-1)


def _east(xp: ArrayModule, points: Array) -> Array:
    """Return the derivative (..., 3) of points of the sphere with respect to the longitude."""
    latitude, longitude = points[..., 0], points[..., 1]
    level = xp.cos(latitude)
    return xp.stack([-level * xp.sin(longitude), level * xp.cos(longitude), xp.zeros(level.shape)], axis=-1)
