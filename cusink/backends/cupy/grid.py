"""The operators for costs between the cells of a grid, for CuPy arrays: `cusink.backends.grid` on those of `dense`."""

from collections.abc import Callable, Iterator

import cupy as xp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.dense import to_host
from cusink.backends.cupy.grid_iteration import GridIteration as Iteration
from cusink.backends.cupy.grid_logs import LineSoftmin
from cusink.backends.cupy.grid_unbalanced import GRID_STEPS
from cusink.backends.cupy.reductions import plan as stored_plan
from cusink.backends.grid import reductions as grid
from cusink.backends.grid.means import LogMeans, log_means
from cusink.costs.cells import GridCosts
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, HostArray


def softmin(C: GridCosts, logits: Array, eps: float, axis: Axis) -> Array:  # noqa: ARG001 - the cost is symmetric
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return grid.softmin(dense.OPERATORS, C, logits, eps)


def repeated_softmin(C: GridCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`, prepared for many calls."""
    return LineSoftmin(C, eps)


def plan(C: GridCosts, p: Array, q: Array, eps: float) -> Array:
    """Return the plans (B, n, n) of the logits p (B, n) and q (B, n)."""
    return stored_plan(C.block(xp), p, q, eps)


def apply_plan(C: GridCosts, p: Array, q: Array, v: Array, eps: float, axis: Axis) -> Array:
    """Return ``P v`` (axis 1) or ``P' v`` (axis 0), v (B, n) of any sign."""
    return grid.apply_plan(dense.OPERATORS, C, *((p, q) if axis == 1 else (q, p)), v, eps)


def transport_cost(C: GridCosts, p: Array, q: Array, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    return grid.transport_cost(dense.OPERATORS, C, p, q, eps)


def plan_means(
    C: GridCosts, a: Array, b: Array, f: Array, g: Array, eps: float
) -> Iterator[tuple[HostArray, LogMeans]]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`: all problems at once."""
    yield np.arange(len(a)), log_means(dense.OPERATORS, C, eps, a, b, f, g)


def c_transform(C: GridCosts, potential: Array, axis: Axis) -> Array:  # noqa: ARG001 - the cost is symmetric
    """Return ``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    return grid.c_transform(dense.OPERATORS, C, potential)


def cost_range(C: GridCosts) -> tuple[float, float]:
    """Return numbers between which all costs lie."""
    return 0.0, C.largest(xp)


def cost_block(C: GridCosts, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, n) as an array."""
    return C.block(xp, problems, rows)


def bilinear(C: GridCosts, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    return grid.bilinear(xp, C, x, y)


OPERATORS: Operators[GridCosts] = Operators(
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
    damped_steps=GRID_STEPS,
)
