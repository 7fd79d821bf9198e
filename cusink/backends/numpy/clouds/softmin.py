"""Log-sum-exp reductions between clouds, prepared for many calls."""

from collections.abc import Callable

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.reductions import softmin
from cusink.backends.numpy.softmin import repeated_softmin as repeated_dense
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis


def repeated_softmin(C: PointCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`; small clouds that problems share become an array."""
    if C.ndim == 2 and C.shape[0] * C.shape[1] <= limits.LIMITS.cloud_array_pairs:
        return repeated_dense(C.block(np), eps)
    return lambda logits, axis: softmin(C, logits, eps, axis)
