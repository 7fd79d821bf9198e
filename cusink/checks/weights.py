"""Rules for weights: values, masses, batch axes."""

import numpy as np

MASS_TOLERANCE = {"float32": 1e-3, "float64": 1e-6}


def weight_values(name, weights, xp):
    """Check that weights are finite, non-negative, and not all zero."""
    if not xp.isfinite(weights).all():
        row, column = first_true(xp, ~xp.isfinite(weights))
        raise ValueError(f"'{name}' must be finite; got {float(weights[row, column])} at [{row}, {column}]")
    if (weights < 0).any():
        row, column = first_true(xp, weights < 0)
        raise ValueError(
            f"'{name}' must be non-negative; got {float(weights[row, column]):g} at [{row}, {column}]. "
            "Weights are masses, not their logarithms"
        )
    empty = weights.sum(axis=1) == 0
    if empty.any():
        raise ValueError(
            f"'{name}' must have a positive sum; row {int(empty.argmax())} is all zero. Leave empty rows out"
        )


def equal_mass(a, b, xp, check):
    """`b` scaled to the mass of `a`, which it must have up to the tolerance of its dtype."""
    mass_a, mass_b = a.sum(axis=1, dtype=np.float64), b.sum(axis=1, dtype=np.float64)
    if check:
        tolerance = MASS_TOLERANCE[a.dtype.name]
        off = xp.abs(mass_a - mass_b) > tolerance * mass_a
        if off.any():
            row = int(off.argmax())
            raise ValueError(
                f"'a' and 'b' must have the same mass (relative {tolerance:g}); got {float(mass_a[row]):g} and "
                f"{float(mass_b[row]):g} in row {row}. "
                "To normalise, divide each by its sum: a / a.sum(axis=-1, keepdims=True). Where the difference has a "
                "meaning, 'reach' lets mass appear and vanish at a price"
            )
    return b * (mass_a / mass_b).astype(b.dtype)[:, None]


def batch_size(sizes):
    batch = {size for size in sizes.values() if size != 1}
    if len(batch) > 1:
        listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise ValueError(f"batch sizes must be equal or 1; got {listed}")
    if 0 in batch:
        name = next(name for name, size in sizes.items() if size == 0)
        raise ValueError(f"'{name}' must hold at least one problem; got a batch of 0")
    return batch.pop() if batch else 1


def broadcast_weights(xp, weights, bins, size, dtype):
    if weights is None:
        return xp.full((size, bins), 1 / bins, dtype)
    return xp.ascontiguousarray(xp.broadcast_to(weights, (size, bins)))


def first_true(xp, mask):
    index = int(mask.argmax())
    return divmod(index, mask.shape[1])
