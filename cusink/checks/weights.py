"""Rules for weights: values, masses, batch axes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cusink.types import Array, ArrayModule

# By the dtype of the user: weights that were normalised in it have masses that differ by less. Half precision is 2.5
# roundings of bfloat16.
MASS_TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-3, "float64": 1e-6}


def first_index(mask: Array) -> tuple[int, ...] | None:
    """Return the index of the first true entry of `mask`; None if there is none."""
    return tuple(map(int, np.unravel_index(int(mask.argmax()), mask.shape))) if mask.any() else None


def first_bad_weight(xp: ArrayModule, weights: Array) -> tuple[int, ...] | None:
    """Return the index of the first entry that is negative, infinite or NaN; None if all are weights."""
    return first_index(~((weights >= 0) & xp.isfinite(weights)))


def weight_values(name: str, weights: Array, xp: ArrayModule, first_row: int = 0) -> Array:
    """Check that weights (B, n) are finite, non-negative, and of a positive sum within the range of their dtype.

    Messages count from row `first_row`. Return the sums (B,), in float64.
    """
    with np.errstate(over="ignore"):
        mass = weights.sum(axis=1, dtype=np.float64)
    limits = np.finfo(weights.dtype)
    if (weights.min() >= 0) & (mass.min() >= float(limits.tiny)) & (mass.max() <= float(limits.max)):
        return mass  # as in nearly all calls; NaN is in none of these ranges
    if (at := first_bad_weight(xp, weights)) is not None:
        value = float(weights[at])
        rule, advice = "finite", ""
        if math.isfinite(value):
            rule, advice = "non-negative", ". Weights are masses, not their logarithms"
        raise ValueError(f"'{name}' must be {rule}; got {value:g} at [{first_row + at[0]}, {at[1]}]{advice}")
    if (at := first_index(~weights.any(axis=1))) is not None:
        raise ValueError(
            f"'{name}' must have a positive sum; row {first_row + at[0]} is all zero. Leave empty rows out"
        )
    mass_in_range(name, mass, weights.dtype, first_row)
    return mass


def mass_in_range(name: str, mass: Array, dtype: Any, first_row: int = 0) -> None:
    """Check that masses (B,) are normal numbers of the dtype of the weights; messages count from row `first_row`."""
    limits = np.finfo(dtype)
    low, high = float(limits.tiny), float(limits.max)
    if (at := first_index(~((mass >= low) & (mass <= high)))) is not None:
        raise ValueError(
            f"'{name}' must have a sum between {low:.2g} and {high:.2g}, a number of {dtype}; got "
            f"{float(mass[at]):.3g} in row {first_row + at[0]}. Divide the weights by their sum"
        )


def first_unequal_mass(
    xp: ArrayModule, mass: Array, wanted: float | Array, dtype: Any
) -> tuple[float, tuple[int, ...] | None]:
    """Return the relative tolerance of `dtype`, and the index of the first mass that differs by more from `wanted`.

    Empty items, of mass zero, are for other rules.
    """
    tolerance = MASS_TOLERANCE[dtype.name]
    return tolerance, first_index((xp.abs(mass - wanted) > tolerance * wanted) & (mass != 0))


def same_mass(
    subject: str,
    xp: ArrayModule,
    mass: Array,
    wanted: float | Array,
    dtype: Any,
    *,
    got: Callable[..., str],
    advice: str,
) -> None:
    """Check that `mass` is `wanted` up to the tolerance of `dtype`; `got(*index)` describes the first that is not."""
    tolerance, at = first_unequal_mass(xp, mass, wanted, dtype)
    if at is not None:
        raise ValueError(f"{subject} must have the same mass (relative {tolerance:g}); {got(*at)}. {advice}")


def equal_mass(
    a: Array, b: Array, xp: ArrayModule, check: bool, dtype: Any, masses: tuple[Array, Array] | None = None
) -> Array:
    """Return `b` (B, m) with the mass of `a` (B, n), which it must have up to the tolerance of the user's dtype.

    `masses` are their sums (B,), where they are known.
    """
    mass_a, mass_b = masses or (w.sum(axis=1, dtype=np.float64) for w in (a, b))
    if check:
        same_mass(
            "'a' and 'b'",
            xp,
            mass_b,
            mass_a,
            dtype,
            got=lambda row: f"got {float(mass_a[row]):g} and {float(mass_b[row]):g} in row {row}",
            advice="normalise=True divides each by its sum. Where the difference has "
            "a meaning, 'reach' lets mass appear and vanish at a price",
        )
    return b * (mass_a / mass_b).astype(b.dtype)[:, None]


def of_sum_one(weights: Array) -> Array:
    """Return weights (B, n) divided by their sums, which are positive."""
    mass = weights.sum(axis=1, dtype=np.float64, keepdims=True)
    return (weights / mass).astype(weights.dtype, copy=False)


def batch_size(sizes: Mapping[str, int]) -> int:
    """Return the batch size of arrays whose sizes `sizes` names, each that or 1; 1 if there are none."""
    batch = {size for size in sizes.values() if size != 1}
    if len(batch) > 1:
        listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise ValueError(f"batch sizes must be equal or 1; got {listed}")
    if 0 in batch:
        name = next(name for name, size in sizes.items() if size == 0)
        raise ValueError(f"'{name}' must hold at least one problem; got a batch of 0")
    return batch.pop() if batch else 1


def broadcast_weights(xp: ArrayModule, weights: Array | None, bins: int, size: int, dtype: Any) -> Array:
    """Return weights as (size, bins); None stands for uniform ones."""
    if weights is None:
        return xp.full((size, bins), 1 / bins, dtype)
    return xp.ascontiguousarray(xp.broadcast_to(weights, (size, bins)))
