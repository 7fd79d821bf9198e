"""Rules for eps: one number, or one for each problem of a batch."""

from typing import Any

import numpy as np

from cusink.checks.arrays import one_array, to_host
from cusink.checks.scalars import price_in_range, regularisation
from cusink.types import Eps


def regularisations(eps: Any) -> Eps:
    """Check a number, or an array (B,); return a float or a new NumPy array of float64."""
    if not isinstance(eps, (list, tuple)) and getattr(eps, "ndim", 0) == 0:
        return regularisation(eps)
    given = one_array("eps", eps)
    if given.ndim != 1 or not given.size:
        raise ValueError(
            f"'eps' must be a number, or an array of one for each problem, shape (B,); got shape {tuple(given.shape)}"
        )
    if given.dtype.kind == "b":
        raise TypeError("'eps' must hold numbers; got dtype bool")
    each = to_host(given).astype(np.float64)
    wrong = ~(np.isfinite(each) & (each > 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"'eps' must be positive and finite; got {each[at]:g} at [{at}]")
    return each


def for_problems(eps: Eps, size: int, batched: bool, dtype: Any) -> Eps:
    """Check that there is one eps for each of `size` problems, or one for all, in the range of the computation."""
    if not isinstance(eps, np.ndarray):
        price_in_range("eps", eps, dtype)
        return eps
    if not batched:
        raise ValueError(
            f"'eps' must be a number for one problem; got {len(eps)} of them. To solve it with each, pass 'a' with a "
            "batch axis: a[None]"
        )
    for value in (eps.min(), eps.max()):
        price_in_range("eps", float(value), dtype)
    return np.broadcast_to(eps, (size,)).copy()
