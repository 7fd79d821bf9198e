"""Entropy-regularised Wasserstein distances for many pairs at once, on NumPy and on CuPy."""

from cusink.adjoint import SinkhornGradients, sinkhorn_adjoint
from cusink.costs import cost_matrix, cost_matrix_adjoint
from cusink.geometry import Grid, PointCloud
from cusink.result import SinkhornResult
from cusink.retrieval import DistanceMatrix, distance_matrix
from cusink.sinkhorn import ConvergenceWarning, sinkhorn

__all__ = [
    "ConvergenceWarning",
    "DistanceMatrix",
    "Grid",
    "PointCloud",
    "SinkhornGradients",
    "SinkhornResult",
    "cost_matrix",
    "cost_matrix_adjoint",
    "distance_matrix",
    "sinkhorn",
    "sinkhorn_adjoint",
]

__version__ = "0.1.0"
