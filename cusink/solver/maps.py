"""Means of values under the rows of plans: barycentric maps, which need the potential of one side alone."""

from typing import Any

import numpy as np

from cusink.checks.arrays import in_range, widened
from cusink.costs.blocks import blocks
from cusink.costs.cost import Cost
from cusink.costs.each import apply_each
from cusink.costs.images import Cells
from cusink.solver.problem import Problem
from cusink.types import Array, Axis, Eps

BLOCK_ENTRIES = 1 << 17  # of plans that exist at a time, in the cache of a core


def map_values(values: Any, axis: Axis, problem: Problem) -> tuple[Array, bool]:
    """Check the values of a barycentric map; return them as (1, bins, d) or (B, bins, d), and if they were numbers."""
    if values is None:
        raise TypeError("'values' must be an array, a row for each bin; got None")
    values, xp = widened("values", values, "plan", problem.f[:0].astype(problem.dtype))
    bins, size = problem.C.shape[axis - 2], len(problem.a)
    shape = values.shape
    values, flat = _in_bins(values, problem.images[axis])
    values = values if values.ndim == 3 else values[None]
    if values.ndim != 3 or values.shape[1] != bins or 0 in shape or len(values) not in (1, size):
        wanted = f"({bins},) or ({bins}, d)" + (f" or ({size}, {bins}, d)" if problem.batched else "")
        raise ValueError(f"'values' must have shape {wanted} for axis={axis}; got {shape}")
    in_range("values", values, xp)
    return values, flat


def _in_bins(values: Array, cells: Cells) -> tuple[Array, bool]:
    """Return values of bins, or of cells of images, with an axis of coordinates, and whether they were numbers."""
    for before in (0, 1) if cells is not None else ():
        if cells is not None and values.shape[before : before + len(cells)] == cells:
            rest = values.shape[before + len(cells) :]
            return values.reshape(*values.shape[:before], -1, *(rest or (1,))), not rest
    return (values[:, None], True) if values.ndim == 1 else (values, False)


def conditional_means(C: Cost[Any], logits: Array, values: Array, eps: Eps, axis: Axis) -> Array:
    """Return the means (B, rows, d) of values (1, bins, d) or (B, bins, d) given each bin of the other side.

    `logits` (B, bins) are those of the side that `axis` sums over: no other potential is needed, as each row is divided
    by its own sum. A row that may have nothing gets 0.
    """
    xp = C.xp
    values = xp.broadcast_to(values.astype(logits.dtype, copy=False), (len(logits), *values.shape[1:]))
    if isinstance(eps, np.ndarray):
        return apply_each(C, eps, lambda C, eps, q, v: conditional_means(C, q, v, eps, axis), logits, values)
    if C.divisible and C.cheap_blocks:
        return _in_blocks(C, None, logits, values, eps, axis)
    softmin = C.softmin(logits, eps, axis)
    rows = xp.where(xp.isfinite(softmin), softmin / eps, -np.inf).astype(logits.dtype)
    return (_in_blocks if C.divisible else _by_products)(C, rows, logits, values, eps, axis)


def _in_blocks(C: Cost[Any], rows: Array | None, logits: Array, values: Array, eps: float, axis: Axis) -> Array:
    """Return the means from shares in blocks: each entry is made once for all coordinates of the values."""
    xp, size, count, every = C.xp, len(logits), C.shape[-1 - axis], C.xp.arange(logits.shape[1])
    out = xp.empty((size, count, values.shape[-1]), logits.dtype)
    for problems, part in blocks(size, count, len(every), BLOCK_ENTRIES):
        cost, q = C.at(problems), logits[problems]
        if part.stop - part.start < count:  # of one problem
            cost, some = C if C.shared else C.at(problems.start), xp.arange(part.start, part.stop)
            cost = cost.between(some, every) if axis == 1 else cost.between(every, some)
        if rows is None:
            shares = _shares(cost, q, eps, axis)
        elif axis == 1:
            shares = cost.plan(rows[problems, part], q, eps)
        else:
            shares = xp.swapaxes(cost.plan(q, rows[problems, part], eps), -1, -2)
        out[problems, part] = _ratio(xp, xp.matmul(shares, values[problems]), shares.sum(axis=-1, keepdims=True))
    return out


def _shares(C: Cost[Any], logits: Array, eps: float, axis: Axis) -> Array:
    """Return the entries (B, rows, bins) of plans, divided by the largest of each row."""
    xp, costs = C.xp, C.block(slice(None), slice(None))
    exponents = (costs if axis == 1 else xp.swapaxes(costs, -1, -2)) * logits.dtype.type(-1 / eps) + logits[:, None, :]
    top = exponents.max(axis=-1, keepdims=True)
    exponents -= xp.where(xp.isfinite(top), top, 0)
    return xp.exp(exponents, out=exponents)


def _by_products(C: Cost[Any], rows: Array, logits: Array, values: Array, eps: float, axis: Axis) -> Array:
    """Return the means from products with the plans of a grid, which are cheaper than their entries."""
    xp, (p, q) = C.xp, (rows, logits) if axis == 1 else (logits, rows)
    columns = [xp.ones_like(values[..., 0]), *(values[..., k] for k in range(values.shape[-1]))]
    sums = [C.apply_plan(p, q, xp.ascontiguousarray(v), eps, axis) for v in columns]
    return xp.stack([_ratio(xp, each, sums[0]) for each in sums[1:]], axis=-1)


def _ratio(xp: Any, sums: Array, mass: Array) -> Array:
    return sums / xp.where(mass > 0, mass, 1)
