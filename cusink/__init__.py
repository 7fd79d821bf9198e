"""Entropy-regularised Wasserstein distances for many pairs at once, on NumPy and on CuPy."""

import typing as _typing

from cusink import connection as _connection
from cusink.backends import doors as _doors
from cusink.version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from cusink.public import *  # what __getattr__ finds when the program runs

_connection.connect("numpy", _doors.numpy_operators)
_connection.connect("cupy", _doors.cupy_operators)

__all__ = [
    "Barycenter",
    "BarycenterGradients",
    "ConvergenceWarning",
    "CostGradients",
    "DistanceMatrix",
    "DivergenceCurvature",
    "DivergenceGradients",
    "DivergencePairs",
    "ExtensionGradients",
    "Flow",
    "FreeBarycenter",
    "FreeBarycenterGradients",
    "Grid",
    "Index",
    "KernelGradients",
    "LineGradients",
    "MapGradients",
    "Measures",
    "Metric",
    "Neighbours",
    "PointCloud",
    "RelativeEps",
    "SinkhornCurvature",
    "SinkhornDivergence",
    "SinkhornExtension",
    "SinkhornForm",
    "SinkhornGradients",
    "SinkhornPairs",
    "SinkhornResult",
    "SinkhornTangents",
    "barycenter",
    "barycenter_adjoint",
    "barycentric_map_adjoint",
    "cost_matrix",
    "cost_matrix_adjoint",
    "distance_matrix",
    "extension_adjoint",
    "free_barycenter",
    "free_barycenter_adjoint",
    "gradient_flow",
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
    "sinkhorn_divergence_hvp",
    "sinkhorn_divergence_jvp",
    "sinkhorn_hvp",
    "sinkhorn_jvp",
    "wasserstein_1d",
    "wasserstein_1d_adjoint",
]


def __getattr__(name: str) -> _typing.Any:
    """Load the public names when the first is asked for: it takes as long as importing NumPy does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cusink import public

    globals().update({each: getattr(public, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
