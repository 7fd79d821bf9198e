"""Squared and city-block distances between points, by differences: the parts that all blocks of them share."""

from collections.abc import Iterable

import numpy as np

from cusink.backends.numpy import limits
from cusink.types import HostArray

# The part of |x|^2 + |y|^2 below which |x|^2 + |y|^2 - 2 xy, a matrix product, has lost too many digits.
LOST_DIGITS = 1e-2


def fill_distances(
    x: Iterable[HostArray], y: Iterable[HostArray], out: HostArray, scratch: HostArray, cityblock: bool = False
) -> HostArray:
    """Fill `out` with squared, or city-block, distances, each right to rounding.

    `x` and `y` iterate over the coordinates of points as arrays that broadcast to the shape of `out`; `scratch` is like
    `out`.
    """
    for k, (x_k, y_k) in enumerate(zip(x, y, strict=True)):
        into = scratch if k else out
        np.subtract(x_k, y_k, out=into)
        if cityblock:
            np.abs(into, out=into)
        else:
            into *= into
        if k:
            out += scratch
    return out


def repair_near(
    squares: HostArray, near: tuple[HostArray, ...], x: HostArray, rows: HostArray, y: HostArray, columns: HostArray
) -> None:
    """Overwrite the entries of `squares` at the indices `near` by ``|x[rows] - y[columns]|^2`` from differences."""
    step = limits.LIMITS.difference_coordinates // x.shape[1] + 1
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        gap = x[rows[some]] - y[columns[some]]
        squares[tuple(index[some] for index in near)] = np.einsum("ik,ik->i", gap, gap)
