"""What `cusink.free_barycenter` returns, and what gradients through it start from."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cusink.barycenters.checks import FreeProblem
from cusink.summary import Summary
from cusink.types import Array

__all__ = [
    "FreeBarycenter",
]

Start: TypeAlias = tuple[Array, Array] | None  # potentials of the last step


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """Where the steps ended: the checked problem, points and weights, and how the problems are solved."""

    given: FreeProblem
    x: Array
    a: Array
    starts: list[Start] | None
    debiased: bool
    fixed: bool
    options: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FreeBarycenter(Summary):
    """Barycenter of clouds, as a cloud.

    Attributes
    ----------
    points : array, shape (n, d)
        Where the points have come to rest.
    weights : array, shape (n,)
        Their weights: as they were given, or as they were found with `free_weights`.
    shift : float
        How far points moved in the last step, as a root of a weighted mean square, relative to the spread of all clouds
        about their mean.
    weights_gap : float
        With `free_weights` a bound on how much the objective is above that of the best weights for these points,
        relative to the square of the spread and the mass; 0 without.
    n_iter : int
        Steps taken.
    converged : bool
        Whether `shift` and `weights_gap` reached the tolerance.
    """

    points: Array
    weights: Array
    shift: float
    weights_gap: float
    n_iter: int
    converged: bool
    found: Found = field(repr=False)
