"""The operators of `cusink._ops` for NumPy arrays, gathered under the names that the solver calls."""

import numpy as xp

from cusink._iteration_numpy import Iteration
from cusink._plan_means_numpy import plan_means
from cusink._reductions_numpy import (
    apply_plan,
    bilinear,
    c_transform,
    cost_block,
    cost_range,
    plan,
    plan_sum,
    softmin,
    transport_cost,
)
from cusink._repeated_softmin_numpy import repeated_softmin

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
    """Return `array` as a NumPy array; here it is one already."""
    return array
