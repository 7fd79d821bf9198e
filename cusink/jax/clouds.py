"""`cusink.jax.PointCloud`: a cost between points that are arrays of JAX."""

from typing import Any

import jax

from cusink.bridges.options import cloud_shapes, factor_shape, point_kind
from cusink.jax.arrays import floating

__all__ = ["PointCloud"]


class PointCloud:
    """The cost between points that are arrays of JAX, never stored; losses are differentiable in the points.

    Parameters
    ----------
    x : array, shape (n, d) or (n,), or (B, n, d)
        Source points; n numbers are n points on a line.
    y : array, shape (m, d) or (m,), or (B, m, d), or None
        Target points; None stands for `x`.
    metric : str
        A name that `cusink.PointCloud` knows; "kl" has no divergence.
    power : float
        The cost is the metric to this power.
    p : float, optional
        Of "minkowski", at most 16; 2 if not given.
    radius : float, optional
        Of the sphere of "haversine"; 1 if not given.
    factor : array, shape (d, k), optional
        Of "mahalanobis": distances are ``|(x - y) L|``. Losses are differentiable in it as often as in the points.

    Raises
    ------
    TypeError
        What is no array of real numbers.
    ValueError
        Arrays without points or coordinates, a metric that does not exist, a power that is not
        positive, a parameter of another metric, a factor of another shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, sinkhorn_loss
    >>> cloud = PointCloud(jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]]), "euclidean")
    >>> print(f"{sinkhorn_loss(None, None, cloud, eps=0.01):.3f}")
    2.000
    """

    def __init__(
        self,
        x: jax.Array,
        y: jax.Array | None = None,
        metric: str = "sqeuclidean",
        *,
        power: float = 1,
        p: float | None = None,
        radius: float | None = None,
        factor: jax.Array | None = None,
    ) -> None:
        self.kind, self.metric = point_kind(metric, power, y is None, p, radius, factor), metric
        given: dict[str, Any] = {"x": x} if y is None else {"x": x, "y": y}
        *both, factor = floating(**given, factor=factor)
        self.arrays: dict[str, Any] = {}
        for name, points in zip(given, both, strict=True):
            if points is None:
                raise TypeError(f"'{name}' must be an array of points; got None. Only 'y' may be None, for x itself")
            points = points[:, None] if points.ndim == 1 else points
            self.arrays[name] = points
        cloud_shapes({name: tuple(points.shape) for name, points in self.arrays.items()})
        if factor is not None:
            factor_shape(factor.shape, self.arrays)
            self.arrays["factor"] = factor

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(points.shape)}" for name, points in self.arrays.items())
        return f"PointCloud({shapes}, metric={self.metric!r}, power={self.kind.power})"
