"""How far the marginals of a plan are from the weights, told from potentials, without the plan."""

import numpy as np

from cusink.types import Array, ArrayModule

LARGEST_STEP = {"float32": 80.0, "float64": 700.0}  # over eps, whose exponential, a ratio far off, is in range


def marginal_error(xp: ArrayModule, weights: Array, before: Array, after: Array, eps: float) -> Array:
    """Return ``sum_j w_j |1 - exp((before_j - after_j) / eps)|`` (B,) relative to the mass.

    `after` is the plain update of the potential `before` (B, m). The exponential is the marginal over its weight.
    """
    with np.errstate(invalid="ignore"):  # inf - inf in an empty bin, which counts nothing
        step = xp.where(weights > 0, before - after, 0) / eps
    most = LARGEST_STEP[step.dtype.name]
    off = weights * xp.abs(1 - xp.exp(xp.minimum(step, most)))
    with np.errstate(divide="ignore"):
        logs = step + xp.log(weights)  # of the marginal: a weight may be too small for its product with a ratio cut off
    off = xp.where(step > most, xp.exp(xp.minimum(logs, most / 2)), off)  # of many bins, too
    return off.sum(axis=1) / weights.sum(axis=1, dtype=np.float64)
