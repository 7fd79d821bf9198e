"""Means of values under the rows of plans: barycentric maps, which need one softmin and no second potential."""

from typing import Any

import numpy as np

from cusink.checks.arrays import arrays, in_range
from cusink.costs.blocks import blocks
from cusink.costs.cost import Cost
from cusink.solver.problem import Problem
from cusink.types import Array, Axis

BLOCK_ENTRIES = 1 << 20  # of plans that exist at a time


def map_values(values: Any, axis: Axis, problem: Problem) -> tuple[Array, bool]:
    """Check the values of a barycentric map; return them as (1, bins, d) or (B, bins, d), and if they were numbers."""
    if values is None:
        raise TypeError("'values' must be an array, a row for each bin; got None")
    (values, _), xp, _ = arrays(values=values, plan=problem.f[:0].astype(problem.dtype))
    bins, size = problem.C.shape[axis - 2], len(problem.a)
    shape, flat = values.shape, values.ndim == 1
    values = values[:, None] if flat else values
    values = values if values.ndim == 3 else values[None]
    if values.ndim != 3 or values.shape[1] != bins or 0 in shape or len(values) not in (1, size):
        wanted = f"({bins},) or ({bins}, d)" + (f" or ({size}, {bins}, d)" if problem.batched else "")
        raise ValueError(f"'values' must have shape {wanted} for axis={axis}; got {shape}")
    in_range("values", values, xp)
    return values, flat


def conditional_means(C: Cost[Any], logits: Array, softmin: Array, values: Array, eps: float, axis: Axis) -> Array:
    """Return the means (B, rows, d) of values (1, bins, d) or (B, bins, d) given each bin of the other side.

    `logits` (B, bins) are those of the side that `axis` sums over, and `softmin` (B, rows) is theirs, by which each
    row of a plan has the sum 1 up to its rounding; the sum itself divides the rest out. A row with +inf there, which
    may have nothing, gets 0.
    """
    xp = C.xp
    rows = xp.where(xp.isfinite(softmin), softmin / eps, -np.inf).astype(logits.dtype)
    means = _in_blocks if C.divisible else _by_products
    return means(C, rows, logits, values.astype(logits.dtype, copy=False), eps, axis)


def _in_blocks(C: Cost[Any], rows: Array, logits: Array, values: Array, eps: float, axis: Axis) -> Array:
    """Return the means from plans, block by block: each entry is made once for all coordinates of the values."""
    xp, (size, count), bins = C.xp, rows.shape, logits.shape[1]
    values = xp.broadcast_to(values, (size, *values.shape[1:]))
    out, every = xp.empty((size, count, values.shape[-1]), rows.dtype), xp.arange(bins)
    for problems, part in blocks(size, count, bins, BLOCK_ENTRIES):
        cost, p, q = C.at(problems), rows[problems, part], logits[problems]
        if p.shape[1] < count:  # of one problem
            cost, some = C if C.shared else C.at(problems.start), xp.arange(part.start, part.stop)
            cost = cost.between(some, every) if axis == 1 else cost.between(every, some)
        P = cost.plan(p, q, eps) if axis == 1 else xp.swapaxes(cost.plan(q, p, eps), -1, -2)
        out[problems, part] = _ratio(xp, xp.matmul(P, values[problems]), P.sum(axis=-1, keepdims=True))
    return out


def _by_products(C: Cost[Any], rows: Array, logits: Array, values: Array, eps: float, axis: Axis) -> Array:
    """Return the means from products with the plans of a grid, which are cheaper than their entries."""
    xp, p, q = C.xp, *((rows, logits) if axis == 1 else (logits, rows))
    values = xp.broadcast_to(values, (len(rows), *values.shape[1:]))
    columns = [xp.ones_like(values[..., 0]), *(values[..., k] for k in range(values.shape[-1]))]
    sums = [C.apply_plan(p, q, xp.ascontiguousarray(v), eps, axis) for v in columns]
    return xp.stack([_ratio(xp, each, sums[0]) for each in sums[1:]], axis=-1)


def _ratio(xp: Any, sums: Array, mass: Array) -> Array:
    return sums / xp.where(mass > 0, mass, 1)
