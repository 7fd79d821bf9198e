"""Orders of points that put neighbours together, found on the device: their places along a Hilbert curve."""

import cupy as cp
import numpy as np

from cusink.types import Array

KEY_BITS, MOST_BITS = 62, 20  # of a place on the curve, and of a coordinate
TAIL = 64  # one in so many points at either end of an axis is not measured
WIDER = 1.125  # than what is measured: the cube of most points


def along_curve(points: Array) -> Array:
    """Return an order (n,) of points (n, d), for d up to 8; of points in one cell of the curve any order.

    The curve fills a cube, of which each half lies together, and each half of these. Turns and reflections of the
    halves are those of Skilling, "Programming the Hilbert curve", 2004.
    """
    n, d = points.shape
    bits = min(MOST_BITS, KEY_BITS // d)
    at = _cells(points, bits)
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for k in range(d):
            turned = (at[k] >> bit & 1) * below
            swapped = (at[0] ^ at[k]) & (below - turned)
            at[0] = at[0] ^ swapped ^ turned
            at[k] = at[k] ^ swapped if k else at[k]
    for k in range(1, d):
        at[k] = at[k] ^ at[k - 1]
    flips = cp.zeros(n, np.int64)
    for bit in range(bits - 1, 0, -1):
        flips = flips ^ (at[d - 1] >> bit & 1) * ((1 << bit) - 1)
    key = cp.zeros(n, np.int64)
    for bit in range(bits - 1, -1, -1):
        for k in range(d):
            key = key << 1 | (at[k] ^ flips) >> bit & 1
    return cp.argsort(key)


def _cells(points: Array, bits: int) -> list[Array]:
    """Return the cells (n,) of points along each axis, cubes of a size that few points far away do not change."""
    n, d = points.shape
    points = points.astype(np.float64)
    ends = cp.sort(points, axis=0)[[n // TAIL, n - 1 - n // TAIL]]
    widest = cp.maximum((ends[1] - ends[0]).max(), np.finfo(np.float64).tiny)
    # Most points are in one of 4^d cubes, which the curve fills without leaving it; those far off share outer cells.
    scaled = (points - (ends[0] + ends[1]) / 2) / (4 * WIDER * widest) + 0.375
    cells = cp.clip(scaled * (1 << bits), 0, (1 << bits) - 1).astype(np.int64)
    return [cells[:, k] for k in range(d)]
