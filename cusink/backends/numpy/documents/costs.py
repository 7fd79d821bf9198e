"""The costs between the words of one document and those of many, once for all pairs of them."""

import numpy as np

FEW = 8  # coordinates that are subtracted one after the other faster than they go through a matrix product
DIGITS = 1e-2  # the part of |x|^2 + |y|^2 below which |x|^2 + |y|^2 - 2 xy has lost too many digits
CHUNK = 1 << 18  # coordinates that are subtracted at once


def costs_between(C, rows, columns):
    """Costs between the points `rows` and `columns` of C, transposed: (len(columns), len(rows)), C-contiguous."""
    if isinstance(C, np.ndarray):
        return np.ascontiguousarray(C.take(rows, axis=0).take(columns, axis=1).T)
    if C.norm != "squared" or C.x.shape[1] <= FEW:
        return np.ascontiguousarray(C.take(rows, columns).block(np).T)
    return C.of_distances(np, squared_distances(C.y[columns], C.x[rows]))


def squared_distances(y, x):
    """``|y_i - x_j|^2`` through a matrix product; by differences, as an exact zero too, where that loses digits."""
    yy, xx = (np.einsum("ij,ij->i", p, p) for p in (y, x))
    s = y @ (-2 * x.T)
    s += yy[:, None]
    s += xx
    i, j = np.nonzero(s < (y.dtype.type(DIGITS) * (yy + xx.max(initial=0)))[:, None])
    step = max(1, CHUNK // y.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = y[i[part]] - x[j[part]]
        s[i[part], j[part]] = np.einsum("ij,ij->i", difference, difference)
    return s
