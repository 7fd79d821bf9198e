"""Costs of losses between tensors."""

from typing import Any

import torch

from cusink.bridges.options import CostKind, grid_or_refuse
from cusink.operand import check_shape
from cusink.torch.arrays import one_tensor


def cost_tensors(C: Any) -> tuple[CostKind, dict[str, torch.Tensor]]:
    """Return the kind of a cost and its tensors by name."""
    if isinstance(getattr(C, "kind", None), CostKind):  # a `PointCloud` of tensors
        return C.kind, C.tensors
    kind = grid_or_refuse(C, "a tensor, a cusink.torch.PointCloud or a cusink.Grid", "cusink.torch.PointCloud(x, y)")
    if kind is not None:
        return kind, {}
    one_tensor("C", C)
    check_shape(C)
    return CostKind(), {"C": C}
