"""Log-sum-exp reductions between clouds, prepared for many calls."""

import math
from collections.abc import Callable

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.reductions import softmin
from cusink.backends.numpy.softmin import repeated_softmin as repeated_dense
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis


def repeated_softmin(C: PointCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`; small clouds become an array."""
    pairs = C.shape[-2] * C.shape[-1]
    if pairs <= limits.LIMITS.cloud_array_pairs and (C.ndim == 2 or costs_kept(C)):
        return repeated_dense(C.block(np), eps)
    return lambda logits, axis: softmin(C, logits, eps, axis)


def costs_kept(C: PointCosts) -> bool:
    """Return whether the costs of all problems may be kept as an array, and a kernel of them."""
    kept_bytes = math.prod(C.shape) * np.dtype(np.float64).itemsize
    return kept_bytes <= min(limits.LIMITS.own_kernel_bytes, C.memory_limit // 2)
