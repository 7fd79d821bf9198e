"""The operators of costs between points in NumPy."""

import numpy as xp

from cusink.backends.numpy.clouds.coarse import levels
from cusink.backends.numpy.clouds.iteration import Iteration
from cusink.backends.numpy.clouds.layout import kept_costs
from cusink.backends.numpy.clouds.means import plan_means
from cusink.backends.numpy.clouds.near import near_softmin, pull_plan
from cusink.backends.numpy.clouds.reductions import (
    apply_plan,
    bilinear,
    c_transform,
    cost_block,
    cost_range,
    plan,
)
from cusink.backends.numpy.clouds.softmin import repeated_softmin, softmin, transport_cost
from cusink.backends.numpy.dense import to_host
from cusink.costs.operators import Operators
from cusink.costs.points import PointCosts

__all__ = [
    "OPERATORS",
    "Iteration",
    "apply_plan",
    "bilinear",
    "c_transform",
    "cost_block",
    "cost_range",
    "kept_costs",
    "near_softmin",
    "plan",
    "plan_means",
    "pull_plan",
    "repeated_softmin",
    "softmin",
    "to_host",
    "transport_cost",
    "xp",
]

OPERATORS: Operators[PointCosts] = Operators(
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
    levels=levels,
    near_softmin=near_softmin,
    pull_plan=pull_plan,
    kept_costs=kept_costs,
)
