"""The cost of a call as the operators take it: an array, `PointCosts` or `GridCosts`."""

import numpy as np

from cusink.checks.arrays import HALF
from cusink.checks.scalars import positive_bytes
from cusink.costs.grid import Grid, GridCosts, grid_costs
from cusink.costs.points import KEPT, PointCloud, PointCosts, point_costs

__all__ = [
    "between",
]


def arrays_of(C):
    """What of a cost is to be checked and converted together with the other arrays of a call, by name."""
    if isinstance(C, PointCloud):
        return {"C.x": C.x, "C.y": C.y}
    return {} if isinstance(C, Grid) else {"C": C}


def costs_of(C, xp, dtype, parts, memory_limit=KEPT):
    """The cost as the operators take it: an array, `PointCosts`, or `GridCosts`.

    `parts` are the arrays that `arrays_of` named, in the `dtype` of the computation; a kernel may take `memory_limit`
    bytes.
    """
    if isinstance(C, PointCloud):
        return point_costs(xp, C, *parts, memory_limit)
    return grid_costs(xp, C, dtype) if isinstance(C, Grid) else parts[0]


def cost(C, xp, dtype, parts, memory_limit=None, batch=True):
    """The cost as the operators take it, and whether it is an array; `parts` are its arrays, converted."""
    stored = not isinstance(C, (PointCloud, Grid))
    computing = np.dtype(np.float32) if dtype.name in HALF else dtype
    limit = {} if memory_limit is None else {"memory_limit": positive_bytes(memory_limit)}
    C = costs_of(C, xp, computing, parts, **limit)
    cost_shape(C, batch)
    if not stored and C.largest(xp) > float(np.finfo(C.dtype.name).max):
        raise ValueError(f"'C' must hold finite costs; the largest exceed the range of {C.dtype}. Scale the points")
    return C, stored


def cost_shape(C, batch=True):
    """Check the shape of a cost."""
    wanted = "(n, m) or (B, n, m)" if batch else "(n, m)"
    if C is None:
        raise TypeError("'C' must be an array of costs; got None. cusink.cost_matrix makes one from points")
    if C.ndim not in ((2, 3) if batch else (2,)):
        raise ValueError(f"'C' must have shape {wanted}; got {C.shape}")
    if 0 in C.shape:
        raise ValueError(f"'C' must have at least one row and one column; got shape {C.shape}")


def symmetric(C):
    """Whether a cost is symmetric."""
    if isinstance(C, PointCosts):
        return C.x is C.y
    if isinstance(C, GridCosts):
        return True
    return C.shape[0] == C.shape[1] and bool((C == C.T).all())


def costs_at(C, index):
    """The costs of the problems at `index`, where each has its own."""
    return C if C.ndim == 2 else C.at(index) if isinstance(C, PointCosts) else C[index]


def between(xp, C, rows, columns):
    """The cost C between some bins; of a grid, between all."""
    if isinstance(C, GridCosts):
        return C
    if isinstance(C, PointCosts):
        return C.take(rows, columns)
    C = C[:, columns] if len(columns) < C.shape[1] else C
    return xp.ascontiguousarray(C[rows] if len(rows) < len(C) else C)
