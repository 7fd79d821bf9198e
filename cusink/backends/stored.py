"""Stored costs: what NumPy and CuPy do in the same way with an array (n, m) or (B, n, m) of costs."""

import numpy as np

from cusink.costs.blocks import blocks
from cusink.types import Array, ArrayModule, HostArray

RANGE_ENTRIES = 1 << 16  # of a block: a range takes no memory that a limit would count


def cost_range(xp: ArrayModule, C: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite cost, without a copy of all."""
    least, largest = float(C.min()), float(C.max())
    if np.isfinite(largest):
        return least, largest
    rows, largest = C.reshape(-1, C.shape[-1]), -np.inf
    for _, block in blocks(1, len(rows), C.shape[-1], RANGE_ENTRIES):
        largest = max(largest, float(xp.where(xp.isfinite(rows[block]), rows[block], -np.inf).max()))
    return least, largest


def cost_block(xp: ArrayModule, C: Array, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m), C-contiguous."""
    return xp.ascontiguousarray(select(C, problems, rows))


def bilinear(xp: ArrayModule, C: Array, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y; +inf only where a forbidden pair meets mass."""
    forbidden = xp.isposinf(C)
    if not forbidden.any():
        return (xp.matmul(x[:, None, :], C)[:, 0, :] * y).sum(axis=1)
    met = (xp.matmul(x[:, None, :], forbidden.astype(x.dtype))[:, 0, :] * y).sum(axis=1)
    return xp.where(met > 0, np.inf, bilinear(xp, xp.where(forbidden, 0, C), x, y))


def select(C: Array, problems: slice | HostArray, rows: slice | HostArray | None = None) -> Array:
    """Return the costs of some problems and rows: (rows, m) of a shared cost, else (problems, rows, m)."""
    if C.ndim == 2:
        return C if rows is None else C[rows]
    return C[problems] if rows is None else C[problems, rows]


def replace_inf(xp: ArrayModule, C: Array) -> Array:
    """Return the costs with 0 for forbidden pairs, which carry no mass; C itself where there are none."""
    if not C.size or C.max() < np.inf:  # one pass, where to look for +inf takes four
        return C
    return xp.where(xp.isposinf(C), 0, C)


def ratio(xp: ArrayModule, x: Array, y: Array) -> Array:
    """Return ``x / y`` of non-negative y, and 0 where y is 0: the mean of a bin that no mass can reach."""
    positive = y > 0
    return xp.where(positive, x / xp.where(positive, y, 1), 0)
