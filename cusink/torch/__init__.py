"""Losses for PyTorch, with explicit gradients; ``pip install torch``.

Tensors are shared with the solver, not copied: with NumPy on the CPU and, through DLPack, with CuPy on a GPU. Backward
takes the explicit gradients of `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from cusink.torch.barycenters import Barycenter, barycenter
from cusink.torch.clouds import PointCloud
from cusink.torch.grids import Grid
from cusink.torch.kernels import kernel_distance, kernel_neg_log_likelihood
from cusink.torch.losses import apply_plan, sinkhorn_divergence, sinkhorn_loss, sinkhorn_potentials
from cusink.torch.maps import barycentric_map, entropic_map, potential_at
from cusink.torch.measures import Measures
from cusink.torch.modules import KernelDistance, SinkhornDivergence, SinkhornLoss

__all__ = [
    "Barycenter",
    "Grid",
    "KernelDistance",
    "Measures",
    "PointCloud",
    "SinkhornDivergence",
    "SinkhornLoss",
    "apply_plan",
    "barycenter",
    "barycentric_map",
    "entropic_map",
    "kernel_distance",
    "kernel_neg_log_likelihood",
    "potential_at",
    "sinkhorn_divergence",
    "sinkhorn_loss",
    "sinkhorn_potentials",
]
