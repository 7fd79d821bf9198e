"""The operators of `backends.operators` in CuPy: each one chooses a launch, wraps its arguments, and calls a kernel.

Kernels ignore strides and take scalars as raw bytes, so that here, at the border, arrays are made C-contiguous and
every scalar gets its exact type. Launches come from `cusink.backends.cupy.launch`.
"""

import cupy as cp
import numpy as np

from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.run import LOG2_E, NO_INDEX, device, run


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows); +inf where every term is zero. C may be float16."""
    return log_sums(C, logits, LOG2_E / eps, LOG2_E, -eps / LOG2_E, axis)


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`."""
    return lambda logits, axis: softmin(C, logits, eps, axis)


def log_sums(C, logits, cost_scale, logit_scale, value_scale, axis, index=None, out=None):
    """``value_scale * log2(sum_j exp2(logit_scale * logits_j - cost_scale * C_ij))``; `index`: which cost is whose."""
    C, logits = map(cp.ascontiguousarray, (C, logits))
    (B, _), (n, m), dtype = logits.shape, C.shape[-2:], logits.dtype
    out = cp.empty((B, n if axis else m), dtype) if out is None else out
    half = C.dtype == np.float16
    launch = configure("softmin", B, n, m, dtype.name, device(), axis=axis, shared_cost=C.ndim == 2, half=half)
    scales = [dtype.type(scale) for scale in (cost_scale, logit_scale, value_scale)]
    run(launch, dtype, out, C, logits, *_cost_index(launch, index), *scales, *_cost_stride(launch, C), *_sizes(B, n, m))
    return out


def plan(C, p, q, eps):
    """Plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    C, p, q = map(cp.ascontiguousarray, (C, p, q))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    out = cp.empty((B, n, m), dtype)
    launch = configure("plan", B, n, m, dtype.name, device())
    run(launch, dtype, out, C, p, q, dtype.type(LOG2_E / eps), *_cost_stride(launch, C), *_sizes(B, n, m))
    return out


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    C, p, q, v = map(cp.ascontiguousarray, (C, p, q, v))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    kept, summed = (p, q) if axis else (q, p)
    out = cp.empty_like(kept)
    launch = configure("apply_plan", B, n, m, dtype.name, device(), axis=axis, shared_cost=C.ndim == 2)
    inputs = (C, kept, summed, v, *_cost_index(launch, None), dtype.type(LOG2_E / eps), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *_sizes(B, n, m))
    return out


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,), where a forbidden pair (cost +inf) carries nothing and costs nothing."""
    return costs_of_rows(C, p, q, LOG2_E / eps).sum(axis=1)


def costs_of_rows(C, p, q, cost_scale, index=None):
    """``sum_j P_ij C_ij`` (B, n); `index`: which cost is whose."""
    C, p, q = map(cp.ascontiguousarray, (C, p, q))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    out = cp.empty_like(p)
    launch = configure("transport_cost", B, n, m, dtype.name, device(), shared_cost=C.ndim == 2)
    inputs = (C, p, q, *_cost_index(launch, index), dtype.type(cost_scale), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *_sizes(B, n, m))
    return out


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, m) of problems that share one cost, or of problems with a cost each."""
    C, p, q, weights = map(cp.ascontiguousarray, (C, p, q, weights))
    (B, n), m, dtype = p.shape, q.shape[1], p.dtype
    out = cp.empty((n, m), dtype)
    launch = configure("plan_sum", B, n, m, dtype.name, device())
    run(launch, dtype, out, C, p, q, weights, dtype.type(LOG2_E / eps), *_cost_stride(launch, C), *_sizes(B, n, m))
    return out


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""
    C, potential = map(cp.ascontiguousarray, (C, potential))
    (B, _), (n, m), dtype = potential.shape, C.shape[-2:], potential.dtype
    out = cp.empty((B, n if axis else m), dtype)
    launch = configure("c_transform", B, n, m, dtype.name, device(), axis=axis, shared_cost=C.ndim == 2)
    inputs = (C, potential, *_cost_index(launch, None), *_cost_stride(launch, C))
    run(launch, dtype, out, *inputs, *_sizes(B, n, m))
    return out


def cost_range(C):
    """The smallest and the largest finite cost, as numbers."""
    return float(C.min()), float(cp.where(cp.isfinite(C), C, -cp.inf).max())


def cost_block(C, problems, rows):
    """Costs (rows, m) or (problems, rows, m)."""
    return cp.ascontiguousarray(C[rows] if C.ndim == 2 else C[problems, rows])


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y; +inf only where a forbidden pair meets mass."""
    forbidden = cp.isposinf(C)
    if not forbidden.any():
        return (cp.matmul(x[:, None, :], C)[:, 0, :] * y).sum(axis=1)
    met = (cp.matmul(x[:, None, :], forbidden.astype(x.dtype))[:, 0, :] * y).sum(axis=1)
    return cp.where(met > 0, cp.inf, bilinear(cp.where(forbidden, 0, C), x, y))


def _sizes(*sizes):
    return tuple(np.int64(size) for size in sizes)


def _cost_index(launch, index):
    """The argument that says which cost a problem has, where the kernel takes it: tiles are for one shared cost."""
    return () if "_tiled" in launch.kernel else (NO_INDEX if index is None else index,)


def _cost_stride(launch, C):
    """The argument that says how far apart two problems' costs lie, where the kernel takes it."""
    return () if "_tiled" in launch.kernel else (np.int64(0 if C.ndim == 2 else C.shape[1] * C.shape[2]),)
