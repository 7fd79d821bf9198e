"""Kernels by their names, checked points with their weights, and the sums over both of the library of the arrays."""

from typing import Literal, Protocol, TypeAlias

import numpy as np

from cusink.backends.numpy import sums
from cusink.backends.profile import Profile
from cusink.norms import checks
from cusink.norms.checks import WeightedPoints
from cusink.types import Array

Kernel: TypeAlias = Literal["gaussian", "laplace", "energy", "exponential", "distance"]
LogKernel: TypeAlias = Literal["gaussian", "laplace", "energy", "exponential"]


class KernelSums(Protocol):
    """The sums over pairs that each array library has, see `cusink.backends.numpy.sums`."""

    def kernel_sums(self, x: Array, y: Array, v: Array, profile: Profile) -> Array:
        """Return ``sum_j k(x_i, y_j) v_j`` (B, n)."""

    def kernel_log_sums(self, x: Array, y: Array, q: Array, profile: Profile) -> Array:
        """Return ``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n)."""

    def kernel_slopes(
        self, x: Array, y: Array, v: Array, p: Array | None, q: Array | None, profile: Profile
    ) -> tuple[Array, Array]:
        """Return ``sum_j w_ij`` (B, n) and ``sum_j w_ij ∇log k`` (B, n, d) for ``w_ij = k exp(p_i + q_j) v_j``."""


def prepare(
    x: Array, y: Array, kernel: str, scale: float, log: bool = False, **per_point: Array | None
) -> tuple[WeightedPoints, Profile]:
    """Return checked points with their weights, and the profile of the kernel; `log` allows the log forms."""
    scale = checks.kernel(kernel, scale, log)
    given = checks.weighted_points(x, y, per_point, positive=log and "a" in per_point)
    checks.scale_in_range(kernel, scale, given.x.dtype)
    if kernel in ("exponential", "distance"):  # of distances, whose squares may have no room where they have
        given = given.in_own_unit()
    else:
        checks.differences_in_range(given)
    checks.distances_in_range(kernel, scale, given)
    return given, profile(kernel, scale, given.unit)


def prepare_norm(
    x: Array, a: Array | None, y: Array, b: Array | None, kernel: str, scale: float
) -> tuple[WeightedPoints, Profile]:
    """Return checked measures whose difference has a norm, and the profile of the kernel."""
    given, profile = prepare(x, y, kernel, scale, a=a, b=b)
    if kernel == "distance":
        checks.equal_masses(given)
    return given, profile


def profile(kernel: str, scale: float, unit: float = 1.0) -> Profile:
    """Return the `Profile` of a kernel by its name, for points that are given in a unit; slopes are not."""
    s = float(scale)
    return {
        "gaussian": Profile("linear", -1 / s**2, 0.0, -2 / s**2),
        "laplace": Profile("root", -1.0, s**2, -1.0),
        "energy": Profile("log", -0.25, s**2, -0.5),
        "exponential": Profile("root", -unit / s, 0.0, -1 / s),
        "distance": Profile("distance", -unit / s, 0.0, -1 / s),
    }[kernel]


def backend(given: WeightedPoints) -> KernelSums:
    """Return the module with the sums for the library of the arrays."""
    if given.xp is np:
        return sums
    from cusink.backends.cupy import sums as cupy_sums

    return cupy_sums
