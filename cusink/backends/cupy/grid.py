"""Sinkhorn iterations between the cells of a grid on a GPU: `cusink.backends.grid.iteration` on CuPy arrays."""

import cupy as xp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.dense import to_host
from cusink.backends.grid import reductions as grid
from cusink.backends.grid.iteration import GridIteration
from cusink.backends.grid.means import log_means
from cusink.costs.grid import GridCosts
from cusink.costs.operators import Operators

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


class Iteration(GridIteration):
    """Problems under way, see `cusink.backends.operators`."""

    def __init__(self, C, a, b, eps, f, g, method):
        super().__init__(dense, C, a, b, eps, f, g, method)


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return grid.softmin(dense, C, logits, eps)


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`, prepared for many calls."""
    return lambda logits, axis: softmin(C, logits, eps, axis)


def plan(C, p, q, eps):
    """Plans (B, n, n) of the logits p (B, n) and q (B, n)."""
    return dense.plan(C.block(xp), p, q, eps)


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1) or ``P' v`` (axis 0), v (B, n) of any sign."""
    return grid.apply_plan(dense, C, *((p, q) if axis == 1 else (q, p)), v, eps)


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    return grid.transport_cost(dense, C, p, q, eps)


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, n)."""
    return dense.plan_sum(C.block(xp), p, q, weights, eps)


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink.backends.operators`: all problems at once."""
    yield np.arange(len(a)), log_means(dense, C, eps, a, b, f, g)


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    return grid.c_transform(dense, C, potential)


def cost_range(C):
    """Bounds of the costs, as numbers."""
    return 0.0, C.largest(xp)


def cost_block(C, problems, rows):
    """Costs (rows, n) as an array."""
    return C.block(xp, problems, rows)


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
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
)
