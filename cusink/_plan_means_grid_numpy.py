"""Conditional means under plans between the cells of a grid: certified products along each axis, or log-sum-exp."""

import numpy as np

from cusink import _ops_numpy as dense
from cusink._grid_kernel_numpy import GridKernel
from cusink._grid_means import log_means
from cusink._plan_means_numpy import shared_means


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink._ops`; all the means of a group can be taken at once."""
    rest = np.arange(len(a))
    for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
        rest = yield from shared_means(GridKernel(C, dtype, eps), rest, a, b, f, g)
    if len(rest):
        parts = (x[rest].astype(np.float64) for x in (a, b, f, g))
        yield rest, log_means(dense, C.astype(np.float64), eps, *parts)
