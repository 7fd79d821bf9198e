"""Costs of losses between arrays of JAX."""

from typing import Any

from cusink.bridges.options import CostKind, grid_or_refuse


def cost_arrays(C: Any) -> tuple[CostKind, dict[str, Any]]:
    """Return the kind of a cost and its arrays by name."""
    if isinstance(getattr(C, "kind", None), CostKind):  # a `PointCloud` of arrays of JAX
        return C.kind, C.points
    kind = grid_or_refuse(C, "an array, a cusink.jax.PointCloud or a cusink.Grid", "cusink.jax.PointCloud(x, y)")
    return (CostKind(), {"C": C}) if kind is None else (kind, {})
