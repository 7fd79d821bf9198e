"""Reductions over the cells of a grid, one axis at a time, written once over those of arrays of either library.

``exp(-C_ij / eps)`` is a product over the axes, so that the sum over all cells is a sum along the last axis, then
along the one before it, and so on: lines of n_k cells are the problems, and all of them share the small cost of their
axis. After a pass its axis comes first, which after the last pass leaves all of them where they were.

`dense` is the module of these reductions for arrays, with its array module as ``dense.xp``.
"""

from functools import partial

import numpy as np


def softmin(dense, C, logits, eps):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return by_axis(logits, C.cells, [partial(dense.softmin, cost, eps=eps, axis=1) for cost in C.axes], -1 / eps)


def c_transform(dense, C, potential):
    """``min_j (C_ij - potential_j)`` (B, n)."""
    return by_axis(potential, C.cells, [partial(dense.c_transform, cost, axis=1) for cost in C.axes], -1)


def by_axis(x, cells, reductions, factor):
    """Reduce x (B, n) along each axis by its own function; what goes from one to the next is multiplied by `factor`."""
    for k, (count, reduce) in enumerate(zip(reversed(cells), reversed(reductions), strict=True)):
        x = along_last(x if k == 0 else x * factor, count, reduce)
    return x


def along_last(x, count, reduce):
    """``reduce(lines)`` of the lines (lines, count) along the last axis of x (B, n), which is the first then."""
    lines = reduce(x.reshape(-1, count))
    return lines.reshape(len(x), -1, count).swapaxes(1, 2).reshape(x.shape)


def log_products(dense, C, q, v, eps):
    """Logarithms (B, n) of ``sum_j exp(q_j - C_ij / eps) v_j`` of the positive and of the negative part of v."""
    xp = dense.xp
    with np.errstate(divide="ignore"):
        parts = [q + xp.log(xp.maximum(sign * v, 0).astype(q.dtype)) for sign in (1, -1)]
    return [softmin(dense, C, part, eps) * (-1 / eps) for part in parts]


def apply_plan(dense, C, p, q, v, eps):
    """``sum_j P_ij v_j`` (B, n), v of any sign: the difference of two sums of one sign."""
    xp = dense.xp
    plus, minus = log_products(dense, C, q, v, eps)
    largest = xp.maximum(plus, minus)
    largest = xp.where(xp.isfinite(largest), largest, 0)
    return xp.exp(p + largest) * (xp.exp(plus - largest) - xp.exp(minus - largest))


def transport_cost(dense, C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    return dense.xp.exp(p + log_priced(dense, C, q, eps)).sum(axis=1)


def log_priced(dense, C, q, eps):
    """``log(sum_j exp(q_j - C_ij / eps) C_ij)`` (B, n).

    A cost that is a sum over the axes is the derivative of a product: each pass takes both the plain sums and the
    priced ones, in which one axis, this or one before, has ``C_k exp(-C_k / eps)`` in the place of ``exp(-C_k / eps)``.
    """
    xp = dense.xp

    def log_sums(x, cost):
        return along_last(x, len(cost), partial(dense.softmin, cost, eps=eps, axis=1)) * (-1 / eps)

    priced = xp.full_like(q, -xp.inf)
    for cost in reversed(C.axes):
        with np.errstate(divide="ignore"):
            price = cost - (eps * xp.log(cost)).astype(cost.dtype)
        priced = xp.logaddexp(log_sums(priced, cost), log_sums(q, price))
        q = log_sums(q, cost)
    return priced


def bilinear(xp, C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,): a sum over the axes asks only for the marginals of x and y on each."""
    total = 0
    for k, cost in enumerate(C.axes):
        other = tuple(1 + axis for axis in range(len(C.axes)) if axis != k)
        of_x, of_y = (z.reshape(len(z), *C.cells).sum(axis=other) for z in (x, y))
        total = total + (xp.matmul(of_x, cost) * of_y).sum(axis=1)
    return total
