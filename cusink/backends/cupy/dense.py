"""The operators for stored costs, for CuPy arrays."""

import cupy as xp

from cusink.backends.cupy.at_once import adjoint_at_once, solve_at_once
from cusink.backends.cupy.iteration import Iteration
from cusink.backends.cupy.means import plan_means
from cusink.backends.cupy.reductions import (
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
from cusink.backends.cupy.unbalanced import STEPS
from cusink.costs.operators import Operators
from cusink.types import Array, HostArray


def to_host(array: Array) -> HostArray:
    """Return `array` as a NumPy array."""
    host: HostArray = xp.asnumpy(array)
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
    damped_steps=STEPS,
    solve_at_once=solve_at_once,
    adjoint_at_once=adjoint_at_once,
)
