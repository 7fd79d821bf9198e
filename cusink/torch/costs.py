"""Costs of losses between tensors."""

from typing import Any

import torch

from cusink.bridges.options import CostKind, grid_or_refuse, images
from cusink.operand import check_shape
from cusink.torch.arrays import one_tensor


def cost_tensors(C: Any) -> tuple[CostKind, dict[str, torch.Tensor]]:
    """Return the kind of a cost and its tensors by name."""
    if isinstance(getattr(C, "kind", None), CostKind):  # a `PointCloud` or a `Grid` of tensors
        return C.kind, C.tensors
    kind = grid_or_refuse(C, "a tensor, a cusink.torch.PointCloud or a cusink.Grid", "cusink.torch.PointCloud(x, y)")
    if kind is not None:
        return kind, {}
    one_tensor("C", C)
    check_shape(C)
    return CostKind(), {"C": C}


def as_the_metric_sees(named: dict[str, Any]) -> dict[str, Any]:
    """Return tensors of one dtype by name, with points as images under the factor of "mahalanobis" if there is one."""
    return images(named, torch.Tensor.detach, _product)


def _product(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return ``x L`` in the dtype of both, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.matmul(x, factor)
