"""Entropy-regularised Wasserstein distances for many pairs at once, on NumPy and on CuPy."""

from cusink.adjoint import SinkhornGradients, sinkhorn_adjoint
from cusink.barycenters import Barycenter, barycenter
from cusink.costs import cost_matrix, cost_matrix_adjoint
from cusink.divergence import (
    DivergenceGradients,
    SinkhornDivergence,
    sinkhorn_divergence,
    sinkhorn_divergence_adjoint,
)
from cusink.geometry import Grid, PointCloud
from cusink.kernel_norms import (
    kernel_distance,
    kernel_distance_adjoint,
    kernel_neg_log_likelihood,
    kernel_neg_log_likelihood_adjoint,
    kernel_scalar_product,
    kernel_scalar_product_adjoint,
)
from cusink.kernel_products import (
    KernelGradients,
    kernel_product,
    kernel_product_adjoint,
    kernel_product_log,
    kernel_product_log_adjoint,
)
from cusink.measures import Measures
from cusink.nearest import Neighbours, nearest
from cusink.result import SinkhornResult
from cusink.retrieval import DistanceMatrix, distance_matrix
from cusink.sinkhorn import ConvergenceWarning, sinkhorn

__all__ = [
    "Barycenter",
    "ConvergenceWarning",
    "DistanceMatrix",
    "DivergenceGradients",
    "Grid",
    "KernelGradients",
    "Measures",
    "Neighbours",
    "PointCloud",
    "SinkhornDivergence",
    "SinkhornGradients",
    "SinkhornResult",
    "barycenter",
    "cost_matrix",
    "cost_matrix_adjoint",
    "distance_matrix",
    "kernel_distance",
    "kernel_distance_adjoint",
    "kernel_neg_log_likelihood",
    "kernel_neg_log_likelihood_adjoint",
    "kernel_product",
    "kernel_product_adjoint",
    "kernel_product_log",
    "kernel_product_log_adjoint",
    "kernel_scalar_product",
    "kernel_scalar_product_adjoint",
    "nearest",
    "sinkhorn",
    "sinkhorn_adjoint",
    "sinkhorn_divergence",
    "sinkhorn_divergence_adjoint",
]

__version__ = "0.1.0"
