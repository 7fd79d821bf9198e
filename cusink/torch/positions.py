"""The points that a cost is between: of clouds, and of the cells of a grid."""

from typing import Any

import torch

from cusink.bridges.options import CostKind
from cusink.checks.arrays import kind
from cusink.torch.arrays import one_tensor
from cusink.torch.costs import cost_tensors

Pair = tuple[torch.Tensor, torch.Tensor]


def histograms_at_points(a: Any, b: Any, C: Any) -> tuple[Pair, Pair]:
    """Return weights, those of images as one axis, and the points of both sides of a cost."""
    ground, tensors = cost_tensors(C)
    if "C" in tensors:
        raise TypeError(
            "'C' must be a cusink.torch.PointCloud, a cusink.torch.Grid or a cusink.Grid, between whose points the "
            f"kernel is taken; got {kind(C)}"
        )
    weights = _flat("a", a, ground), _flat("b", b, ground)
    if "x" in tensors:
        return weights, (tensors["x"], tensors.get("y", tensors["x"]))
    if any(ground.periodic):
        raise ValueError("a kernel is of points in space, where no axis of a grid is periodic; got a periodic grid")
    steps = [tensors.get(f"spacing_{k}", spacing) for k, spacing in enumerate(ground.spacing)]
    axes = [_along(n, step, weights[0]) for n, step in zip(ground.cells, steps, strict=True)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))
    return weights, (cells, cells)


def _flat(name: str, weights: Any, ground: CostKind) -> torch.Tensor:
    """Return weights, those of an image as one axis."""
    one_tensor(name, weights)
    image = ground.image
    flat: torch.Tensor = weights
    if image is not None and tuple(weights.shape[-len(image) :]) == image:
        flat = weights.reshape(*weights.shape[: -len(image)], -1)
    return flat


def _along(n: int, step: Any, like: torch.Tensor) -> torch.Tensor:
    """Return the positions (n,) along an axis, in the dtype and on the device of `like`."""
    dtype = like.dtype if like.is_floating_point() else torch.float64
    distances = torch.as_tensor(step, dtype=dtype, device=like.device).reshape(-1).expand(n - 1)
    return torch.cat([distances.new_zeros(1), distances.cumsum(0)])
