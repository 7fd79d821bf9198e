"""The operators of `cusink.backends.operators` for costs between points, for CuPy arrays."""

import cupy as xp

from cusink.backends.cupy.clouds.iteration import Iteration, plan_means
from cusink.backends.cupy.clouds.reductions import (
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
from cusink.backends.cupy.dense import to_host

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
