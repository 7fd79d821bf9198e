"""`cusink.torch.PointCloud`: a cost between points that are tensors."""

from typing import Any

import torch

from cusink.bridges.options import cloud_shapes, factor_shape, point_kind
from cusink.torch.arrays import one_tensor

__all__ = ["PointCloud"]


class PointCloud:
    """The cost between points that are tensors, never stored; losses are differentiable in the points.

    Parameters
    ----------
    x : tensor, shape (n, d) or (n,), or (B, n, d)
        Source points; n numbers are n points on a line.
    y : tensor, shape (m, d) or (m,), or (B, m, d), or None
        Target points; None stands for `x`.
    metric : str
        A name that `cusink.PointCloud` knows; "kl" has no divergence.
    power : float
        The cost is the metric to this power.
    p : float, optional
        Of "minkowski", at most 16; 2 if not given.
    radius : float, optional
        Of the sphere of "haversine"; 1 if not given.
    factor : tensor, shape (d, k), optional
        Of "mahalanobis": distances are ``|(x - y) L|``. Losses are differentiable in it as often as in the points.

    Raises
    ------
    TypeError
        What is no tensor of real numbers.
    ValueError
        Tensors without points or coordinates, a metric that does not exist, a power that is not
        positive, a parameter of another metric, a factor of another shape.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import PointCloud, sinkhorn_loss
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> sinkhorn_loss(None, None, PointCloud(x, x.detach() + 2, "euclidean"), eps=0.01).backward()
    >>> x.grad.squeeze().round(decimals=2)
    tensor([-0.5000, -0.5000])
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        metric: str = "sqeuclidean",
        *,
        power: float = 1,
        p: float | None = None,
        radius: float | None = None,
        factor: torch.Tensor | None = None,
    ) -> None:
        self.kind, self.metric = point_kind(metric, power, y is None, p, radius, factor), metric
        given: dict[str, Any] = {"x": x} if y is None else {"x": x, "y": y}
        self.tensors = {}
        for name, points in given.items():
            one_tensor(name, points)
            points = points.unsqueeze(-1) if points.ndim == 1 else points
            self.tensors[name] = points
        cloud_shapes({name: tuple(points.shape) for name, points in self.tensors.items()})
        if factor is not None:
            one_tensor("factor", factor)
            factor_shape(tuple(factor.shape), self.tensors)
            self.tensors["factor"] = factor

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(points.shape)}" for name, points in self.tensors.items())
        return f"PointCloud({shapes}, metric={self.metric!r}, power={self.kind.power})"
