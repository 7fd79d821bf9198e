"""Solutions of linear systems with a known spectrum, by steps in which no inner product is taken."""

import math
from collections.abc import Callable

from cusink.types import Array


def chebyshev(apply: Callable[[Array], Array], residual: Array, least: float | Array, steps: int) -> Array:
    """Return about the solution of ``apply(y) = residual`` for a matrix with real eigenvalues from `least` to 1.

    No inner product is taken: rows of any scale count alike, and a device does not wait for the host.
    """
    centre, radius = (1 + least) / 2, (1 - least) / 2
    factor = radius / centre  # below 1
    step = residual / centre
    out, residual, share = step, residual - apply(step), factor
    for _ in range(steps - 1):
        share, before = 1 / (2 / factor - share), share
        step = share * before * step + 2 * share / radius * residual
        out = out + step
        residual = residual - apply(step)
    return out


def chebyshev_steps(least: float, tol: float) -> int:
    """Return the steps after which the polynomial of `chebyshev` is below `tol`."""
    root = math.sqrt(least)
    return max(1, math.ceil(math.log(2 / tol) / -math.log((1 - root) / (1 + root))))
