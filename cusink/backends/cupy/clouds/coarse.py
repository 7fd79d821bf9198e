"""Coarse levels of two large clouds in CuPy: their cells are found on the host, their problems solved on the device."""

from dataclasses import replace

import cupy as cp

from cusink.backends import coarse
from cusink.backends.cupy import limits
from cusink.costs.points import PointCosts
from cusink.types import Array


def levels(C: PointCosts, a: Array, b: Array) -> list[coarse.Level]:
    """Return the levels of one problem between clouds, see `cusink.costs.operators.CoarseLevels`."""
    sizes = limits.LIMITS.coarse
    n, m = C.shape[-2:]
    if C.ndim == 3 or n * m < sizes.pairs:  # before anything is copied
        return []
    x = cp.asnumpy(C.x)
    host = replace(C, x=x, y=x if C.y is C.x else cp.asnumpy(C.y), filled=None, given=None, cloud=None)
    return [level.moved(cp) for level in coarse.levels(host, cp.asnumpy(a), cp.asnumpy(b), sizes)]
