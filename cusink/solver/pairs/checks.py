"""Checks of two collections of measures that are compared pair by pair."""

from typing import Any

import numpy as np

from cusink.checks.arrays import arrays, kind
from cusink.checks.regularisation import for_problems
from cusink.checks.weights import first_index, mass_in_range, same_mass
from cusink.costs.measures import Measures
from cusink.costs.metric import metric_of
from cusink.costs.wanted import check_points, check_targets
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.types import Eps


def are_measures(a: object, b: object) -> bool:
    """Say whether one side is a collection of measures."""
    return isinstance(a, Measures) or isinstance(b, Measures)


def eps_of_pairs(eps: Eps, given: CheckedPairs) -> Eps:
    """Check that eps is a number for all pairs, or an array (K,) of one for each."""
    if isinstance(eps, np.ndarray) and eps.shape != (given.count,):
        raise ValueError(
            f"'eps' must be a number, or an array of one for each of the {given.count} pairs; got shape {eps.shape}"
        )
    return for_problems(eps, given.count, True, given.computing)


def unused(**options: object) -> None:
    """Refuse options that pairs of measures do not have."""
    for name, given in options.items():
        if given is not None:
            raise ValueError(f"'{name}' must be None where 'a' and 'b' are cusink.Measures; got {kind(given)}")


def normalised_measures(*given: Any) -> tuple[Any, ...]:
    """Return measures whose weights have the sum 1; anything else, and measures without weight, as they are."""
    return tuple(x.normalised() if isinstance(x, Measures) else x for x in given)


def pairs_of_measures(a: Any, b: Any, C: Any, balanced: bool, check: bool) -> CheckedPairs:
    """Check the measures of a call; without `reach`, when it is `balanced`, the masses of a pair are to be equal."""
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Measures):
            raise TypeError(f"'a' and 'b' must both be cusink.Measures, or neither; '{name}' is {kind(x)}")
    ground = metric_of(C).ground
    if len(a) != len(b):
        raise ValueError(
            f"'a' and 'b' must hold equally many measures, which are compared pair by pair; got {len(a)} and {len(b)}. "
            "cusink.distance_matrix compares each with each"
        )
    if a.points.shape[1] != b.points.shape[1]:
        raise ValueError(
            f"'a' and 'b' must have points of one dimension; got d = {a.points.shape[1]} and d = {b.points.shape[1]}"
        )
    named = {f"{name}.{part}": getattr(x, part) for name, x in (("a", a), ("b", b)) for part in ("weights", "points")}
    dtype = arrays(**named)[-1]
    sides = []
    for name, x in (("a", a), ("b", b)):
        empty = np.diff(x.offsets) == 0
        if empty.any():
            raise ValueError(
                f"'{name}' must hold measures with points; item {int(empty.argmax())} has none. Leave it out"
            )
        sides.append(Side.of(x))
    found = CheckedPairs(sides[0], sides[1], ground, dtype)
    _masses(found, balanced, check)
    _points(found)
    return found


def _masses(given: CheckedPairs, balanced: bool, check: bool) -> None:
    """Check that each measure has weight, and both of a pair as much."""
    for name, mass in zip("ab", given.masses, strict=True):
        if (mass == 0).any():
            raise ValueError(
                f"'{name}' must hold measures with weight; item {int((mass == 0).argmax())} has none. Leave it out"
            )
        if check:
            computing = np.dtype(np.float64) if given.dtype == np.float64 else np.dtype(np.float32)
            mass_in_range(name, mass, computing)
    if balanced and check:
        of_a, of_b = given.masses
        same_mass(
            "both measures of a pair",
            np,
            of_b,
            of_a,
            given.dtype,
            got=lambda k: f"got {of_a[k]:g} and {of_b[k]:g} in pair {k}",
            advice="normalise=True divides each by its sum. Where the difference has a meaning, 'reach' lets mass "
            "appear and vanish at a price",
        )


def _points(given: CheckedPairs) -> None:
    """Check what the metric asks of all points."""
    metric = given.ground.metric
    for name, side in (("a", given.A), ("b", given.B)):
        if metric == "cosine" and (at := first_index(~side.points.any(axis=1))) is not None:
            raise ValueError(f"'{name}' must hold no zero vector for metric 'cosine'; point {at[0]} is one")
        check_points(metric, given.ground.factor, f"{name}.points", side.points)
    check_targets(metric, "b.points", given.B.points)
