"""The operators of `cusink._ops` for costs between points, gathered under the names that the solver calls."""

from cusink._ops_numpy import to_host, xp
from cusink._point_iteration_numpy import Iteration
from cusink._point_means_numpy import plan_means
from cusink._point_reductions_numpy import (
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
