"""Losses for JAX, with explicit gradients; ``pip install jax``.

Outside ``jit`` arrays are shared with NumPy on the CPU and, through DLPack, with CuPy on a GPU; inside, JAX calls the
NumPy solver back. Gradients are those of `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from cusink.jax.barycenters import barycenter
from cusink.jax.clouds import PointCloud
from cusink.jax.grids import Grid
from cusink.jax.kernels import kernel_distance, kernel_neg_log_likelihood
from cusink.jax.losses import apply_plan, sinkhorn_divergence, sinkhorn_loss, sinkhorn_potentials
from cusink.jax.maps import barycentric_map, entropic_map, potential_at
from cusink.jax.measures import Measures

__all__ = [
    "Grid",
    "Measures",
    "PointCloud",
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
