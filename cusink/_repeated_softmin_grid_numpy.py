"""Log-sum-exp over the cells of a grid prepared for many calls: products with the small kernel of each axis."""

import numpy as np

from cusink import _grid_reductions as grid
from cusink._grid_kernel_numpy import NumpyGridKernel
from cusink._repeated_softmin_numpy import Products
from cusink._repeated_softmin_numpy import repeated_softmin as repeated_dense


class LineProducts:
    """`softmin` as an exponential, a small product and a logarithm along each axis.

    Every line of cells has a scale of its own, so that this reaches further than one product with the whole kernel.
    """

    def __init__(self, C, eps):
        self.cells, self.eps = C.cells, eps
        self.reductions = [_along(repeated_dense(cost, eps)) for cost in C.axes]

    def __call__(self, logits, axis):
        return grid.by_axis(logits, self.cells, self.reductions, -1 / self.eps)


class GridProducts(Products):
    """`softmin` as one exponential, a product along each axis, and one logarithm, where that is certified."""

    def __init__(self, C, eps):
        super().__init__(NumpyGridKernel(C, C.dtype, eps))
        self.lines = LineProducts(C, eps)

    def _repair(self, out, sound, logits, axis):
        problems = np.flatnonzero(~sound.all(axis=0))
        out[problems] = self.lines(logits[problems], axis)


def _along(softmin):
    return lambda lines: softmin(lines, 1)
