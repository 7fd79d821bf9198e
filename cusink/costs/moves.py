"""Checks of directions in which what a cost is made of may move."""

import numpy as np

from cusink.types import Array, ArrayModule


def refuse_directions(given: dict[str, Array | None], reason: str) -> None:
    """Refuse directions that a cost does not have."""
    for name, x in given.items():
        if x is not None:
            raise ValueError(f"'{name}' must be None for {reason}; got an array")


def like(name: str, x: Array, shape: tuple[int, ...], xp: ArrayModule) -> Array:
    """Return a direction in float64, spread to the shape of what moves."""
    try:
        return xp.broadcast_to(x.astype(np.float64), shape)
    except ValueError:
        raise ValueError(f"'{name}' must have shape {shape}, or one that spreads to it; got {x.shape}") from None
