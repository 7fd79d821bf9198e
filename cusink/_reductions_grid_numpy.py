"""What a log-domain form takes from the operators of a grid, in NumPy."""

from cusink import _grid_reductions as grid
from cusink import _ops_numpy as dense


class Reductions:
    """Log-sum-exp along one axis at a time."""

    @staticmethod
    def softmin(C, logits, eps, axis):
        return grid.softmin(dense, C, logits, eps)

    @staticmethod
    def transport_cost(C, p, q, eps):
        return grid.transport_cost(dense, C, p, q, eps)
