"""The operators of `cusink._ops` for costs between points, for CuPy arrays."""

from cusink._ops_cupy import to_host, xp
from cusink._point_iteration_cupy import Iteration, plan_means
from cusink._point_reductions_cupy import (
    apply_plan,
    bilinear,
    c_transform,
    cost_block,
    cost_range,
    plan,
    plan_sum,
    repeated_softmin,
    softmin,
    transport_cost,
)

__all__ = [
    "Iteration",
    "apply_plan",
    "bilinear",
    "c_transform",
    "cost_block",
    "cost_range",
    "plan",
    "plan_means",
    "plan_sum",
    "repeated_softmin",
    "softmin",
    "to_host",
    "transport_cost",
    "xp",
]
