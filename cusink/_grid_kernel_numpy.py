"""The kernel of a grid in the place of `cusink._shared_kernel_numpy.DenseKernel`."""

import functools

import numpy as np

from cusink import _grid_reductions as grid
from cusink import _ops_numpy as dense
from cusink._grid_kernel import GridKernel
from cusink._log_domain_numpy import finish_log
from cusink._reductions_grid_numpy import Reductions


class NumpyGridKernel(GridKernel):
    """A `GridKernel` with what lies beyond its range."""

    def __init__(self, C, dtype, eps):
        super().__init__(dense, C, dtype, eps)

    def repair(self, potential, sound, logits, axis):
        """Overwrite the entries of `potential` (B, n) that are not `sound` (n, B) by their softmin."""
        if np.all(sound):
            return
        problems = np.flatnonzero(~sound.all(axis=0))
        right = grid.softmin(dense, self.C, logits[problems], self.eps)
        potential[problems] = np.where(sound[:, problems].T, potential[problems], right)

    def finish_log(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, Reductions)

    @property
    def K(self):
        """The kernel (n, n): memory of that size."""
        return functools.reduce(np.kron, self.axes)

    @property
    def costs(self):
        """The cost (n, n): memory of that size."""
        return self.C.block(np)
