"""The operators of `cusink._ops` for costs between points, on arrays of the costs made for each call."""

from cusink import _ops_cupy as dense
from cusink._ops_cupy import to_host, xp

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


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows)."""
    return dense.softmin(C.block(xp), logits, eps, axis)


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`, prepared for many calls."""
    return dense.repeated_softmin(C.block(xp), eps)


def plan(C, p, q, eps):
    """Plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    return dense.plan(C.block(xp), p, q, eps)


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    return dense.apply_plan(C.block(xp), p, q, v, eps, axis)


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    return dense.transport_cost(C.block(xp), p, q, eps)


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, m)."""
    return dense.plan_sum(C.block(xp), p, q, weights, eps)


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink._ops`."""
    return dense.plan_means(C.block(xp), a, b, f, g, eps)


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""
    return dense.c_transform(C.block(xp), potential, axis)


def cost_range(C):
    """Bounds of the costs, as numbers."""
    return 0.0, C.largest(xp)


def cost_block(C, problems, rows):
    """Costs (rows, m) or (problems, rows, m) as an array."""
    return C.block(xp, problems, rows)


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    return dense.bilinear(C.block(xp), x, y)


class Iteration(dense.Iteration):
    """Problems under way, see `cusink._ops`."""

    def __init__(self, C, a, b, eps, f, g, method):
        super().__init__(C.block(xp), a, b, eps, f, g, method)
