"""The reductions of costs that are made in blocks: each block is a stored cost while it is needed.

A block has all entries of the axis that is summed over, so that nothing is summed across blocks but values.
"""

from collections.abc import Callable, Iterator

import numpy as np

from cusink.costs.blocks import blocks
from cusink.costs.blockwise import InBlocks
from cusink.costs.operators import Operators
from cusink.types import Array, ArrayModule, Axis, HostArray

Piece = tuple[slice, slice, Array]  # problems, bins of the axis that is kept, and their costs


def pieces(xp: ArrayModule, C: InBlocks, axis: Axis) -> Iterator[Piece]:
    """Iterate over blocks of rows for axis 1, of columns for axis 0; all problems at once where they share the cost."""
    (n, m), size = C.shape[-2:], 1 if C.ndim == 2 else C.shape[0]
    kept, summed = (n, m) if axis == 1 else (m, n)
    for problems, part in blocks(size, kept, summed, C.entries(xp)):
        costs = C.block(xp, problems, rows=part) if axis == 1 else C.block(xp, problems, columns=part)
        yield slice(None) if C.ndim == 2 else problems, part, costs


def over_pieces(
    xp: ArrayModule, C: InBlocks, axis: Axis, like: Array, reduced: Callable[[slice, slice, Array], Array]
) -> Array:
    """Return the results (B, n) or (B, m) of a reduction of all pieces, for an array `like` (B, ...) of problems."""
    out: Array = None
    for problems, part, costs in pieces(xp, C, axis):
        found = reduced(problems, part, costs)
        if out is None:
            out = xp.empty((len(like), C.shape[-2] if axis == 1 else C.shape[-1]), found.dtype)
        out[problems, part] = found
    return out


def softmin(dense: Operators[Array], C: InBlocks, logits: Array, eps: float, axis: Axis) -> Array:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n); +inf where every term is zero."""
    return over_pieces(dense.xp, C, axis, logits, lambda some, _, costs: dense.softmin(costs, logits[some], eps, axis))


def plan(dense: Operators[Array], C: InBlocks, p: Array, q: Array, eps: float) -> Array:
    """Return the plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    out = dense.xp.empty((len(p), *C.shape[-2:]), p.dtype)
    for some, rows, costs in pieces(dense.xp, C, 1):
        out[some, rows] = dense.plan(costs, p[some, rows], q[some], eps)
    return out


def apply_plan(dense: Operators[Array], C: InBlocks, p: Array, q: Array, v: Array, eps: float, axis: Axis) -> Array:
    """Return ``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""

    def applied(some: slice, part: slice, costs: Array) -> Array:
        rows, columns = (p[some, part], q[some]) if axis == 1 else (p[some], q[some, part])
        return dense.apply_plan(costs, rows, columns, v[some], eps, axis)

    return over_pieces(dense.xp, C, axis, p, applied)


def transport_cost(dense: Operators[Array], C: InBlocks, p: Array, q: Array, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    out = dense.xp.zeros(len(p), np.float64)
    for some, rows, costs in pieces(dense.xp, C, 1):
        out[some] += dense.transport_cost(costs, p[some, rows], q[some], eps)
    return out.astype(p.dtype)


def mean_costs(dense: Operators[Array], C: InBlocks, p: Array, q: Array, eps: float, axis: Axis) -> Array:
    """Return ``sum_j P_ij C_ij`` (axis 1) or ``sum_i P_ij C_ij`` (axis 0)."""

    def summed(some: slice, part: slice, costs: Array) -> Array:
        rows, columns = (p[some, part], q[some]) if axis == 1 else (p[some], q[some, part])
        return (dense.plan(costs, rows, columns, eps) * costs).sum(axis=2 if axis == 1 else 1)

    return over_pieces(dense.xp, C, axis, p, summed)


def c_transform(dense: Operators[Array], C: InBlocks, potential: Array, axis: Axis) -> Array:
    """Return ``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    return over_pieces(
        dense.xp, C, axis, potential, lambda some, _, costs: dense.c_transform(costs, potential[some], axis)
    )


def bilinear(dense: Operators[Array], C: InBlocks, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    out = dense.xp.zeros(len(x), np.float64)
    for some, rows, costs in pieces(dense.xp, C, 1):
        out[some] += dense.bilinear(costs, x[some, rows], y[some])
    return out.astype(x.dtype)


def cost_range(C: InBlocks) -> tuple[float, float]:
    """Return the smallest and the largest cost between points with weight."""
    return C.extent


def cost_block(xp: ArrayModule, C: InBlocks, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m) as an array."""
    return C.block(xp, problems, rows)
