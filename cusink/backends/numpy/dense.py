"""The operators of stored costs in NumPy."""

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
    softmin,
)
from cusink.backends.numpy.softmin import repeated_softmin, transport_cost
from cusink.costs.operators import Operators
from cusink.types import Array, HostArray

__all__ = [
    "OPERATORS",
    "Iteration",
    "apply_plan",
    "bilinear",
    "c_transform",
    "cost_block",
    "cost_range",
    "plan",
    "plan_means",
    "repeated_softmin",
    "softmin",
    "to_host",
    "transport_cost",
    "xp",
]


def to_host(array: Array) -> HostArray:
    """Return `array` as a NumPy array; here it is one already."""
    host: HostArray = array
    return host


OPERATORS: Operators[Array] = Operators(
    xp=xp,
    to_host=to_host,
    softmin=softmin,
    repeated_softmin=repeated_softmin,
    plan=plan,
    apply_plan=apply_plan,
    transport_cost=transport_cost,
    c_transform=c_transform,
    cost_range=cost_range,
    cost_block=cost_block,
    bilinear=bilinear,
    iteration=Iteration,
    plan_means=plan_means,
)
