"""Reductions over the cells of a grid, one axis at a time, over the reductions for arrays of either library.

``exp(-C_ij / eps)`` is a product over the axes, so that the sum over all cells is a sum along the last axis, then
along the one before it, and so on: lines of n_k cells are the problems, and all of them share the small cost of their
axis. After a pass its axis comes first, so that after the last pass all axes are in their places.

`dense` are the operators for arrays of the library.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from cusink.costs.cells import GridCosts
from cusink.costs.operators import Operators
from cusink.types import Array, ArrayModule

Reduce = Callable[[Array], Array]  # of lines (lines, cells) along their last axis
AXIS: Literal[1] = 1  # of the costs along an axis, which are symmetric


def softmin(dense: Operators[Array], C: GridCosts, logits: Array, eps: float) -> Array:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return by_axis(logits, C.cells, [_softmin_along(dense, cost, eps) for cost in C.axes], -1 / eps)


def c_transform(dense: Operators[Array], C: GridCosts, potential: Array) -> Array:
    """Return ``min_j (C_ij - potential_j)`` (B, n)."""
    return by_axis(potential, C.cells, [partial(dense.c_transform, cost, axis=AXIS) for cost in C.axes], -1)


def by_axis(x: Array, cells: Sequence[int], reductions: Sequence[Reduce], factor: float) -> Array:
    """Reduce x (B, n) along each axis by its own function; multiply by `factor` between them."""
    for k, (count, reduce) in enumerate(zip(reversed(cells), reversed(reductions), strict=True)):
        x = along_last(x if k == 0 else x * factor, count, reduce)
    return x


def along_last(x: Array, count: int, reduce: Reduce) -> Array:
    """Reduce the lines (lines, count) along the last axis of x (B, n), and make it the first axis."""
    lines = reduce(x.reshape(-1, count))
    return lines.reshape(len(x), -1, count).swapaxes(1, 2).reshape(x.shape)


def log_products(dense: Operators[Array], C: GridCosts, q: Array, v: Array, eps: float) -> tuple[Array, Array]:
    """Return logarithms (B, n) of ``sum_j exp(q_j - C_ij / eps) v_j`` of the positive and of the negative part of v."""
    xp = dense.xp

    def log_product(part: Array) -> Array:
        with np.errstate(divide="ignore"):
            logits = q + xp.log(xp.maximum(part, 0).astype(q.dtype))
        return softmin(dense, C, logits, eps) * (-1 / eps)

    return log_product(v), log_product(-v)


def apply_plan(dense: Operators[Array], C: GridCosts, p: Array, q: Array, v: Array, eps: float) -> Array:
    """Return ``sum_j P_ij v_j`` (B, n), v of any sign: the difference of two sums of one sign."""
    xp = dense.xp
    plus, minus = log_products(dense, C, q, v, eps)
    largest = xp.maximum(plus, minus)
    largest = xp.where(xp.isfinite(largest), largest, 0)
    return xp.exp(p + largest) * (xp.exp(plus - largest) - xp.exp(minus - largest))


def transport_cost(dense: Operators[Array], C: GridCosts, p: Array, q: Array, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    return dense.xp.exp(p + log_cost_sums(dense, C, q, eps)).sum(axis=1)


def log_cost_sums(dense: Operators[Array], C: GridCosts, q: Array, eps: float) -> Array:
    """Return ``log(sum_j exp(q_j - C_ij / eps) C_ij)`` (B, n).

    A cost that is a sum over the axes is the derivative of a product: each pass takes the plain sums and the sums with
    the cost, in which one axis, this or one before, has ``C_k exp(-C_k / eps)`` for ``exp(-C_k / eps)``.
    """
    xp = dense.xp

    def log_sums(x: Array, cost: Array) -> Array:
        return along_last(x, len(cost), _softmin_along(dense, cost, eps)) * (-1 / eps)

    with_cost = xp.full_like(q, -xp.inf)
    for axis in reversed(C.axes):
        cost = axis.astype(q.dtype, copy=False)  # eps log C is small beside C, and both stand in an exponent
        with np.errstate(divide="ignore"):
            times_cost = cost - (eps * xp.log(cost)).astype(cost.dtype)
        with_cost = xp.logaddexp(log_sums(with_cost, cost), log_sums(q, times_cost))
        q = log_sums(q, cost)
    return with_cost


def bilinear(xp: ArrayModule, C: GridCosts, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,): a sum over the axes needs only the marginals of x and y on each."""
    total: Array = 0
    for k, cost in enumerate(C.axes):
        other = tuple(1 + axis for axis in range(len(C.axes)) if axis != k)
        of_x, of_y = (z.reshape(len(z), *C.cells).sum(axis=other) for z in (x, y))
        total = total + (xp.matmul(of_x, cost) * of_y).sum(axis=1)
    return total


def _softmin_along(dense: Operators[Array], cost: Array, eps: float) -> Reduce:
    return partial(dense.softmin, cost, eps=eps, axis=AXIS)
