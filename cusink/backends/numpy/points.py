"""The operators of `backends.operators` for costs between points, gathered under the names that the solver calls."""

import numpy as xp

from cusink.backends.numpy.clouds.iteration import Iteration
from cusink.backends.numpy.clouds.means import plan_means
from cusink.backends.numpy.clouds.reductions import (
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
from cusink.backends.numpy.dense import to_host

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
