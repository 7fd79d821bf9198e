"""Numbers that leave the range on the way to a gradient: what is infinite is NaN in the end, what is large is not.

Derivatives are linear in the gradients of outputs and in directions, so that both may be taken in a unit of their own.
"""

import math
from collections.abc import Mapping

import numpy as np

from cusink.checks.arrays import array_module, largest
from cusink.types import Array


def finite_or_zero(cotangent: Array) -> Array:
    """Return the gradient of outputs with zeros where it is not finite; `lost` tells where that was."""
    xp = array_module(cotangent)
    finite = xp.isfinite(cotangent)
    return cotangent if finite.all() else xp.where(finite, cotangent, 0).astype(cotangent.dtype)


def lost(grad: Array, rank: int, cotangent: Array) -> Array:
    """Return the gradient of an input, NaN for the problems where that of the losses (B,) or () is not finite.

    `rank` is the number of axes of the input of one problem. The scaler of half-precision training expects an overflow
    to arrive at the parameters.
    """
    xp = array_module(cotangent)
    wrong = ~xp.isfinite(cotangent)
    if not wrong.any():
        return grad
    own = wrong.ndim == 1 and grad.ndim > rank and len(grad) == len(wrong)
    return xp.where(wrong.reshape(-1, *(1,) * rank) if own else wrong.any(), xp.nan, grad).astype(grad.dtype)


def overflowed(cotangent: Array, rank: int) -> Array:
    """Return numbers (B,) or () that are not finite where the gradient of an output of `rank` axes is not."""
    axes = tuple(range(cotangent.ndim - rank, cotangent.ndim))
    with np.errstate(invalid="ignore", over="ignore"):
        total: Array = (cotangent - cotangent).sum(axis=axes)
    return total


def with_room(given: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    """Return arrays in a unit, a power of two, in which sums of their finite numbers stay in the range; and that unit.

    The unit is 1 unless a number is close to the largest there are.
    """
    most = max((_size(x) / largest(x.dtype) for x in given.values()), default=0.0)
    unit = 2.0 ** math.ceil(math.log2(most)) if most > 1 else 1.0
    return {name: x if unit == 1 else x * x.dtype.type(1 / unit) for name, x in given.items()}, unit


def in_unit(given: Mapping[str, Array], *units: float) -> dict[str, Array]:
    """Return arrays multiplied by some units; what has no room then is infinite."""
    out = dict(given)
    for unit in units:
        if unit != 1:
            with np.errstate(over="ignore", invalid="ignore"):
                out = {name: x * x.dtype.type(unit) for name, x in out.items()}
    return out


def _size(x: Array) -> float:
    """Return the largest finite number of an array."""
    xp = array_module(x)
    size = float(xp.abs(x).max()) if x.size else 0.0
    return size if math.isfinite(size) else float(xp.where(xp.isfinite(x), xp.abs(x), 0).max())
