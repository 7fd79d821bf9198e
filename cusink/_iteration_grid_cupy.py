"""Sinkhorn iterations between the cells of a grid on a GPU: `cusink._grid_iteration` on CuPy arrays."""

from cusink import _ops_cupy as dense
from cusink._grid_iteration import GridIteration


class Iteration(GridIteration):
    """Problems under way, see `cusink._ops`."""

    def __init__(self, C, a, b, eps, f, g, method):
        super().__init__(dense, C, a, b, eps, f, g, method)
