"""Operators for stored costs in CuPy: each one chooses a launch, wraps its arguments, and calls a CUDA kernel.

CUDA kernels ignore strides and take scalars as raw bytes. This is the border, where arrays are made C-contiguous and
every scalar gets its exact type.
"""

from collections.abc import Callable
from typing import NamedTuple

import cupy as cp
import numpy as np

from cusink.backends import stored
from cusink.backends.cupy.launch import Launch, plan_parts
from cusink.backends.cupy.run import LOG2_E, NULL, choose_launch, device, run, sizes
from cusink.types import Array, Axis, HostArray


class Scales(NamedTuple):
    """Factors of `log_sums`: its result is ``value * log2(sum_j exp2(logit * logits_j - cost * C_ij))``."""

    cost: float
    logit: float
    value: float

    @classmethod
    def softmin(cls, eps: float) -> "Scales":
        """Return the factors with which `log_sums` is the softmin of natural logits."""
        return cls(LOG2_E / eps, LOG2_E, -eps / LOG2_E)


def softmin(C: Array, logits: Array, eps: float, axis: Axis) -> Array:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n); +inf where every term is zero.

    C may be in half precision.
    """
    return log_sums(C, logits, Scales.softmin(eps), axis)


def repeated_softmin(C: Array, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`."""
    return lambda logits, axis: softmin(C, logits, eps, axis)


def log_sums(
    C: Array, logits: Array, scales: Scales, axis: Axis, index: Array | None = None, out: Array | None = None
) -> Array:
    """Return scaled log-sum-exp in base 2, see `Scales`; `index` (B,) says which of the costs a problem has."""
    C, logits = map(cp.ascontiguousarray, (C, logits))
    (B, _), (n, m), dtype = logits.shape, C.shape[-2:], logits.dtype
    out = cp.empty((B, n if axis else m), dtype) if out is None else out
    half = C.dtype == np.float16
    launch = choose_launch("softmin", B, n, m, dtype, axis=axis, shared_cost=C.ndim == 2, half=half)
    factors = [dtype.type(scale) for scale in scales]
    run(launch, dtype, out, C, logits, *_cost_index(launch, index), *factors, *_cost_stride(launch, C), *sizes(B, n, m))
    return out


def plan(C: Array, p: Array, q: Array, eps: float) -> Array:
    """Return the plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    C, p, q = map(cp.ascontiguousarray, (C, p, q))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    out = cp.empty((B, n, m), dtype)
    launch = choose_launch("plan", B, n, m, dtype)
    run(launch, dtype, out, C, p, q, dtype.type(LOG2_E / eps), *_cost_stride(launch, C), *sizes(B, n, m))
    return out


def plan_sum(
    C: Array, p: Array, q: Array, rows: Array, columns: Array | None, costs: Array | None, eps: float
) -> Array:
    """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m) of logits (B, n) and (B, m) and one cost."""
    C, p, q = map(cp.ascontiguousarray, (C, p, q))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    optional = (NULL if x is None else cp.ascontiguousarray(x, dtype) for x in (columns, costs))
    launch, parts = choose_launch("plan_sum", B, n, m, dtype), plan_parts(B, n, m, device())
    out = cp.empty((parts, n, m), dtype)
    inputs = (C, p, q, cp.ascontiguousarray(rows, dtype), *optional, dtype.type(LOG2_E / eps))
    run(launch, dtype, out, *inputs, *sizes(parts, B, n, m))
    return out[0] if parts == 1 else out.sum(axis=0)


def apply_plan(C: Array, p: Array, q: Array, v: Array, eps: float, axis: Axis) -> Array:
    """Return ``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    C, p, q, v = map(cp.ascontiguousarray, (C, p, q, v))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    kept, summed = (p, q) if axis else (q, p)
    out = cp.empty_like(kept)
    launch = choose_launch("apply_plan", B, n, m, dtype, axis=axis, shared_cost=C.ndim == 2)
    inputs = (C, kept, summed, v, *_cost_index(launch, None), dtype.type(LOG2_E / eps), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *sizes(B, n, m))
    return out


def transport_cost(C: Array, p: Array, q: Array, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,), to which a forbidden pair (cost +inf) adds nothing."""
    return row_costs(C, p, q, LOG2_E / eps).sum(axis=1)


def row_costs(C: Array, p: Array, q: Array, cost_scale: float, index: Array | None = None) -> Array:
    """Return ``sum_j P_ij C_ij`` (B, n); `index` (B,) says which of the costs a problem has."""
    C, p, q = map(cp.ascontiguousarray, (C, p, q))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    out = cp.empty_like(p)
    launch = choose_launch("transport_cost", B, n, m, dtype, shared_cost=C.ndim == 2)
    inputs = (C, p, q, *_cost_index(launch, index), dtype.type(cost_scale), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *sizes(B, n, m))
    return out


def c_transform(C: Array, potential: Array, axis: Axis) -> Array:
    """Return ``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    C, potential = map(cp.ascontiguousarray, (C, potential))
    (B, _), (n, m), dtype = potential.shape, C.shape[-2:], potential.dtype
    out = cp.empty((B, n if axis else m), dtype)
    launch = choose_launch("c_transform", B, n, m, dtype, axis=axis, shared_cost=C.ndim == 2)
    inputs = (C, potential, *_cost_index(launch, None), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *sizes(B, n, m))
    return out


def cost_range(C: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite cost."""
    return float(C.min()), float(cp.where(cp.isfinite(C), C, -cp.inf).max())


def cost_block(C: Array, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m)."""
    return stored.cost_block(cp, C, problems, rows)


def bilinear(C: Array, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y; +inf only where a forbidden pair meets mass."""
    return stored.bilinear(cp, C, x, y)


def _cost_index(launch: Launch, index: Array | None) -> tuple[Array, ...]:
    """Return the index of the cost of each problem, if the kernel has this parameter: tiled ones share one cost."""
    return () if "_tiled" in launch.kernel else (NULL if index is None else index,)


def _cost_stride(launch: Launch, C: Array) -> tuple[np.int64, ...]:
    """Return the distance between the costs of two problems, if the kernel has this parameter."""
    return () if "_tiled" in launch.kernel else (np.int64(0 if C.ndim == 2 else C.shape[1] * C.shape[2]),)
