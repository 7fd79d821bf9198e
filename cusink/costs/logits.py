"""Logits: the weights and the potential of one side as one array."""

import numpy as np

from cusink.types import Array, ArrayModule


def logits(xp: ArrayModule, weights: Array, potential: Array, eps: float) -> Array:
    """Return ``log weights + potential / eps`` (B, n), -inf where the weight is zero, whatever its potential."""
    with np.errstate(divide="ignore"):
        return xp.log(weights) + xp.where(weights > 0, potential, potential.dtype.type(0)) / eps
