"""The operators of `cusink._ops` for CuPy arrays, gathered under the names that the solver calls."""

import cupy as xp

from cusink._iteration_cupy import Iteration
from cusink._plan_means_cupy import plan_means
from cusink._reductions_cupy import (
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


def to_host(array):
    """Return `array` as a NumPy array."""
    return xp.asnumpy(array)
