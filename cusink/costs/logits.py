"""Logits: the form in which operators take the weights and the potentials of one side."""

from typing import Any

import numpy as np

from cusink.types import Array, ArrayModule


def logits(xp: ArrayModule, weights: Array, potential: Array, eps: float | Array, dtype: Any = None) -> Array:
    """Return ``log weights + potential / eps`` in `dtype` (that of the weights).

    `eps` is a number, or an array (B, 1). A zero weight has -inf, whatever its potential. The sum is taken in float64:
    the terms of a small weight or a small eps cancel.
    """
    with np.errstate(divide="ignore"):
        log_weights = xp.log(weights.astype(np.float64, copy=False))
    potential = xp.where(weights > 0, potential, 0)
    return (log_weights + potential / eps).astype(weights.dtype if dtype is None else dtype)
