"""The operators for costs between points, for CuPy arrays."""

import cupy as xp

from cusink.backends.cupy.clouds.coarse import levels
from cusink.backends.cupy.clouds.iteration import Iteration, plan_means
from cusink.backends.cupy.clouds.reductions import (
    apply_plan,
    bilinear,
    c_transform,
    cost_block,
    cost_range,
    plan,
    repeated_softmin,
    softmin,
    transport_cost,
)
from cusink.backends.cupy.dense import to_host
from cusink.backends.cupy.ragged import adjoint_ragged, solve_ragged
from cusink.backends.cupy.unbalanced import STEPS
from cusink.costs.operators import Operators
from cusink.costs.points import PointCosts

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
    damped_steps=STEPS,
    levels=levels,
    solve_ragged=solve_ragged,
    adjoint_ragged=adjoint_ragged,
)
