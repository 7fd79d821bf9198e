"""Launches of ``near_points.cu``: pure functions of sizes, dtype and device, as `cusink.backends.cupy.launch` has them.

>>> configure("softmin_near", 1, 100_000, 100_000, "float32", H100, d=3)
Launch(file='near_points.cu', kernel='softmin_near', grid=1563, block=128, shared=2912)
"""

import numpy as np
import numpy.typing as npt

from cusink.backends.cupy.launch import GROUP, H100, POINTS, STATE, TILE, Device, Launch, grid_of

__all__ = ["H100", "MOST_NEAR", "configure"]

MOST_NEAR = 8  # coordinates, as in near_tiles.cuh
WARPS = 4  # of a block, and twice as many where blocks are few


def configure(operator: str, B: int, kept: int, summed: int, dtype: npt.DTypeLike, device: Device, d: int) -> Launch:
    """Return the launch of a kernel for points of up to `MOST_NEAR` coordinates.

    Parameters
    ----------
    operator : str
        ``"softmin_near"``, or ``"tile_boxes"`` and ``"tile_bounds"`` of the points that are summed over.
    B, kept, summed : int
        Problems and points.
    dtype : str or dtype
        float32 or float64.
    device : Device
    d : int
        Coordinates of the points.

    Returns
    -------
    Launch
    """
    size = np.dtype(dtype).itemsize
    if operator != "softmin_near":  # a warp for each tile
        return Launch("near_points.cu", operator, grid_of(B * -(-summed // TILE), 4), 128, 0)
    blocks = B * -(-kept // POINTS[size])
    warps = WARPS if blocks >= 8 * device.multiprocessors else 2 * WARPS
    points = d * (POINTS[size] + 32 * warps + 2 * GROUP) + 32 * warps
    shared = size * max(points, POINTS[size] * warps * STATE["softmin"])
    return Launch("near_points.cu", operator, grid_of(blocks, 1), 32 * warps, shared)
