"""Conditional means under plans between the cells of a grid: certified products along each axis where they can be.

What is out of their range is close to a matching of cells, and the linear system to a singular one. It is solved with
the plan of one problem at a time, which is one and the same matrix in both directions, unless the grid is too large
for that: then with log-sum-exp along each axis, whose roundings differ between the directions.
"""

import numpy as np

from cusink import _ops_numpy as dense
from cusink._grid_kernel_numpy import NumpyGridKernel
from cusink._grid_means import log_means
from cusink._plan_means_numpy import shared_means, tile_means

PLAN_BYTES = 1 << 28


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink._ops`; all the means of a group can be taken at once."""
    rest = np.arange(len(a))
    for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
        rest = yield from shared_means(NumpyGridKernel(C, dtype, eps), rest, a, b, f, g)
    if C.shape[0] ** 2 * 8 <= PLAN_BYTES and len(rest):
        yield from tile_means(C.block(np), rest, a, b, f, g, eps)
    elif len(rest):
        parts = (x[rest].astype(np.float64) for x in (a, b, f, g))
        yield rest, log_means(dense, C.astype(np.float64), eps, *parts)
