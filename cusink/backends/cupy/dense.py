"""The operators of `cusink.backends.operators` for CuPy arrays, gathered under the names that the solver calls."""

import cupy as xp

from cusink.backends.cupy.iteration import Iteration
from cusink.backends.cupy.means import plan_means
from cusink.backends.cupy.reductions import (
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
