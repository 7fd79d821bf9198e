"""The masses of the items of a call: all equal, all made one, or free."""

from typing import Any, Literal, TypeAlias

import numpy as np

from cusink.types import Array, Reach

Masses: TypeAlias = Literal["equal", "one", "free"]


def masses_of(normalise: bool, reach: Reach | None) -> Masses:
    """Return what a call says of the masses of items: with `reach` they may be any."""
    if normalise:
        return "one"
    return "equal" if reach is None else "free"


def wanted_mass(first: Array, masses: Masses) -> float:
    """Return the mass that items are scaled to, by the first of them (1, n); NaN for none."""
    if masses == "one":
        return 1.0
    return float("nan") if masses == "free" else float(first.sum(dtype=np.float64))


def factors(mass: Array, wanted: float, dtype: Any) -> Array:
    """Return the factors (Q,) from masses to the wanted one; ones if none is."""
    return (wanted / mass if wanted == wanted else mass * 0 + 1).astype(dtype)


def without_reach(reach: Reach | None) -> None:
    """Refuse prices of marginals, which pairs of documents are not solved with."""
    if reach is not None:
        raise ValueError(
            "'reach' must be None for sparse rows and cusink.Measures, whose items are compared at one mass; got "
            f"{reach}. cusink.sinkhorn takes it for pairs of cusink.Measures, and all functions do for dense arrays"
        )
