"""Entropy-regularised Wasserstein distances for many pairs at once, on NumPy and on CuPy."""

from cusink import operand as _operand
from cusink.backends import doors as _doors
from cusink.barycenters.barycenter import Barycenter, barycenter
from cusink.costs.clouds import PointCloud
from cusink.costs.grid import Grid
from cusink.costs.matrix import cost_matrix, cost_matrix_adjoint
from cusink.divergence.adjoint import DivergenceGradients, sinkhorn_divergence_adjoint
from cusink.divergence.forward import SinkhornDivergence, sinkhorn_divergence
from cusink.errors import ConvergenceWarning
from cusink.gradients.adjoint import SinkhornGradients, sinkhorn_adjoint
from cusink.norms.likelihood import kernel_neg_log_likelihood, kernel_neg_log_likelihood_adjoint
from cusink.norms.norms import (
    kernel_distance,
    kernel_distance_adjoint,
    kernel_scalar_product,
    kernel_scalar_product_adjoint,
)
from cusink.norms.products import (
    KernelGradients,
    kernel_product,
    kernel_product_adjoint,
    kernel_product_log,
    kernel_product_log_adjoint,
)
from cusink.retrieval.documents.measures import Measures
from cusink.retrieval.index import Index
from cusink.retrieval.matrix import DistanceMatrix, distance_matrix
from cusink.retrieval.nearest import nearest
from cusink.retrieval.neighbours import Neighbours
from cusink.solver.result import SinkhornResult
from cusink.solver.sinkhorn import sinkhorn
from cusink.version import __version__ as __version__
from cusink.workers import set_workers

_operand.connect("numpy", _doors.numpy_operators)
_operand.connect("cupy", _doors.cupy_operators)

__all__ = [
    "Barycenter",
    "ConvergenceWarning",
    "DistanceMatrix",
    "DivergenceGradients",
    "Grid",
    "Index",
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
    "set_workers",
    "sinkhorn",
    "sinkhorn_adjoint",
    "sinkhorn_divergence",
    "sinkhorn_divergence_adjoint",
]
