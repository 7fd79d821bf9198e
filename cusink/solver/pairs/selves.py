"""What a divergence asks of a device that solves pairs: the pairs, and each of their measures with itself."""

from dataclasses import replace
from typing import Any

import numpy as np

from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side


def with_selves(given: CheckedPairs, balanced: bool) -> CheckedPairs:
    """Return 3 K pairs: those given, all first measures with themselves, all second ones with themselves.

    Weights are in float64. Both measures of a pair that is `balanced` have the mass of the first.
    """
    A, B = (replace(side, weights=side.weights.astype(np.float64)) for side in (given.A, given.B))
    if balanced:
        of_a, of_b = given.masses
        B = replace(B, weights=B.weights * given.xp.asarray(np.repeat(of_a / of_b, B.sizes)))
    return replace(given, A=_stacked(given.xp, A, A, B), B=_stacked(given.xp, B, A, B))


def _stacked(xp: Any, *sides: Side) -> Side:
    """Return the items of all sides as those of one."""
    sizes = np.concatenate([side.sizes for side in sides])
    return Side(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        weights=xp.concatenate([side.weights for side in sides]),
        points=xp.concatenate([side.points for side in sides]),
    )
