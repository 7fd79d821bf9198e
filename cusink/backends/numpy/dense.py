"""The operators of `cusink.backends.operators` for NumPy arrays, gathered under the names that the solver calls."""

import numpy as xp

from cusink.backends.numpy.iteration import Iteration
from cusink.backends.numpy.means import plan_means
from cusink.backends.numpy.reductions import (
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
from cusink.backends.numpy.softmin import repeated_softmin

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
