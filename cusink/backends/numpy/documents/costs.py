"""The costs between the words of one document and those of many, once for all pairs of them."""

import numpy as np

from cusink.backends.numpy.distances import LOST_DIGITS, repair_near
from cusink.costs.points import PointCosts
from cusink.types import Array, HostArray

DIFFERENCE_DIMENSIONS = 8  # at most; beyond, a matrix product is faster than one subtraction per coordinate


def costs_between(C: HostArray | PointCosts, rows: HostArray, columns: HostArray) -> Array:
    """Return the costs between the points `rows` and `columns` of C, transposed: (len(columns), len(rows)).

    They are C-contiguous.
    """
    if isinstance(C, np.ndarray):
        return np.ascontiguousarray(C.take(rows, axis=0).take(columns, axis=1).T)
    if C.kind == "blocks" or C.norm != "squared" or C.x.shape[1] <= DIFFERENCE_DIMENSIONS:
        return np.ascontiguousarray(C.take(rows, columns).block(np).T)
    x = C.x[rows]
    centre = x.mean(axis=0)
    return C.of_distances(np, squared_distances(C.y[columns] - centre, x - centre))


def squared_distances(y: HostArray, x: HostArray) -> HostArray:
    """Return ``|y_i - x_j|^2`` by a matrix product; where that loses digits, by differences, and 0 for equal points."""
    yy, xx = (np.einsum("ij,ij->i", p, p) for p in (y, x))
    squares: HostArray = y @ (-2 * x.T)
    squares += yy[:, None]
    squares += xx
    near = np.nonzero(squares < (y.dtype.type(LOST_DIGITS) * (yy + xx.max(initial=0)))[:, None])
    repair_near(squares, near, y, near[0], x, near[1])
    return squares
