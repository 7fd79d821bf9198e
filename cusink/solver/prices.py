"""What the prices of both marginals say of a divergence and of its self-terms, and what a potential is worth."""

import numpy as np

from cusink.types import Array, ArrayModule, Reach


def alike(reach: Reach | None) -> bool:
    """Whether both marginals have one price, or are met: then equal measures have the divergence 0."""
    return reach is None or reach[0] == reach[1]


def own_prices(reach: Reach | None, side: int) -> Reach | None:
    """Return the prices of a measure with itself: that of its side for both marginals."""
    return None if reach is None else (reach[side], reach[side])


def price(xp: ArrayModule, weights: Array, potential: Array, rho: float) -> Array:
    """Return the share (B,) of a potential in the dual objective: ``rho sum_i a_i (1 - exp(-f_i / rho))``.

    For an infinite rho that is ``<a, f>``.
    """
    gain = potential if rho == np.inf else -rho * xp.expm1(-potential / rho)
    return (weights * gain).sum(axis=1)
