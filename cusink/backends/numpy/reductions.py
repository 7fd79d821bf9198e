"""Operators of stored costs in NumPy: log-sum-exp reductions in blocks that stay in the cache.

No operator forms an array (B, n, m), except `plan`, whose result it is: a block of problems and rows is filled, reduced
and forgotten.
"""

import math

import numpy as np

from cusink.backends import stored
from cusink.backends.numpy import limits
from cusink.backends.ranges import exp_times
from cusink.costs.blocks import blocks
from cusink.costs.exponentials import exp_from
from cusink.types import Array, Axis, HostArray


def softmin(C: HostArray, logits: HostArray, eps: float, axis: Axis) -> HostArray:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows); +inf where every term is zero."""
    turned = _turned(C, axis)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(logits), rows), logits.dtype)
    for problems, block in blocks(len(logits), rows, columns, limits.LIMITS.dense_block_entries):
        exponents = _exponents(turned, logits, eps, problems, block)
        maximum = _exp_shifted(exponents)
        with np.errstate(divide="ignore"):
            out[problems, block] = np.log(exponents.sum(axis=-1)) + maximum
    out *= -eps
    return out


def softmin_entries(
    C: HostArray, logits: HostArray, eps: float, axis: Axis, problems: HostArray, entries: HostArray
) -> HostArray:
    """Return single entries (k,) of the `softmin`: row ``entries[k]`` of problem ``problems[k]``."""
    turned = _turned(C, axis)
    out = np.empty(len(problems), logits.dtype)
    step = max(1, limits.LIMITS.dense_block_entries // turned.shape[-1])
    for start in range(0, len(problems), step):
        chosen = slice(start, start + step)
        cost = stored.select(turned, problems[chosen], entries[chosen])
        exponents = logits[problems[chosen]] - cost * logits.dtype.type(1.0 / eps)
        maximum = _exp_shifted(exponents)
        with np.errstate(divide="ignore"):
            out[chosen] = np.log(exponents.sum(axis=-1)) + maximum
    out *= -eps
    return out


def plan(C: HostArray, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return the plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    exponents = _plan_exponents(C, p, q, eps, 1, slice(None), slice(None))
    # Smaller than the smallest number they are zero in any case.
    info = np.finfo(exponents.dtype)
    least = (info.minexp - info.nmant) * math.log(2) - 1  # where denormals are flushed, the smallest number is 0
    out: HostArray = exp_from(np, exponents, least, zero=True)
    return out


def apply_plan(C: HostArray, p: HostArray, q: HostArray, v: HostArray, eps: float, axis: Axis) -> HostArray:
    """Return ``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    turned = _turned(C, axis)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(p), rows), p.dtype)
    for problems, block in blocks(len(p), rows, columns, limits.LIMITS.dense_block_entries):
        exponents = _plan_exponents(turned, p, q, eps, axis, problems, block)
        maximum = _exp_shifted(exponents)
        total = np.matvec(exponents, v[problems])
        out[problems, block] = exp_times(maximum, total)
    return out


def transport_cost(C: HostArray, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return ``sum_ij P_ij C_ij`` (B,), in which a forbidden pair (cost +inf) carries nothing and costs nothing."""
    rows, columns = C.shape[-2:]
    out = np.zeros(len(p), p.dtype)
    for problems, block in blocks(len(p), rows, columns, limits.LIMITS.dense_block_entries):
        exponents = _exponents(C, q, eps, problems, block)
        maximum = _exp_shifted(exponents)
        exponents *= stored.replace_inf(np, stored.select(C, problems, block))
        with np.errstate(over="ignore"):
            out[problems] += exp_times(p[problems, block] + maximum, exponents.sum(axis=-1)).sum(axis=-1)
    np.minimum(out, np.finfo(out.dtype).max, out=out)
    return out


def c_transform(C: HostArray, potential: HostArray, axis: Axis) -> HostArray:
    """Return ``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""
    turned = _turned(C, axis)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(potential), rows), potential.dtype)
    for problems, block in blocks(len(potential), rows, columns, limits.LIMITS.dense_block_entries):
        slack = stored.select(turned, problems, block) - potential[problems, None, :]
        out[problems, block] = slack.min(axis=-1)
    return out


def cost_range(C: HostArray) -> tuple[float, float]:
    """Return the smallest and the largest finite cost."""
    return stored.cost_range(np, C)


def cost_block(C: HostArray, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m)."""
    return stored.cost_block(np, C, problems, rows)


def bilinear(C: HostArray, x: HostArray, y: HostArray) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y; +inf only where a forbidden pair meets mass."""
    return stored.bilinear(np, C, x, y)


def _turned(C: HostArray, axis: Axis) -> HostArray:
    """Return a view of the cost with the axis that is summed over last."""
    return C if axis == 1 else np.swapaxes(C, -1, -2)


def _exponents(C: HostArray, logits: HostArray, eps: float, problems: slice, rows: slice) -> HostArray:
    """Return ``logits_j - C_ij / eps`` of one block, (problems, rows, summed)."""
    scaled = np.multiply(stored.select(C, problems, rows), logits.dtype.type(-1.0 / eps), order="C")
    exponents: HostArray = logits[problems, None, :] + scaled
    return exponents


def _plan_exponents(
    turned: HostArray, p: HostArray, q: HostArray, eps: float, axis: Axis, problems: slice, rows: slice
) -> HostArray:
    """Return ``(q_j - C_ij / eps) + p_i`` of one block, (problems, rows, summed): to the same bits for either axis."""
    scaled = np.multiply(stored.select(turned, problems, rows), p.dtype.type(-1.0 / eps), order="C")
    if axis == 1:
        p, q = p[problems, rows, None], q[problems, None, :]
    else:
        p, q = p[problems, None, :], q[problems, rows, None]
    exponents: HostArray = scaled + q
    exponents += p
    return exponents


def _exp_shifted(exponents: HostArray) -> HostArray:
    """Overwrite `exponents` by ``exp(exponents - maximum)`` along the last axis; return the maximum, 0 for -inf."""
    maximum: HostArray = exponents.max(axis=-1, keepdims=True)
    maximum[np.isneginf(maximum)] = 0
    exponents -= maximum
    np.exp(exponents, out=exponents)
    return maximum.reshape(exponents.shape[:-1])
