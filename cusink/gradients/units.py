"""Gradients of outputs in a unit in which squares and products of them have room: derivatives are linear in them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cusink.gradients.parts import Terms
from cusink.types import Array

NEAR_ONE = 2.0**20  # largest size, and inverse of the smallest, that needs no other unit


def unit_of(given: Iterable[Array | None]) -> float:
    """Return a power of two near the largest number of some arrays, 1 where that is near 1; its inverse is a number."""
    some = [x for x in given if x is not None and x.size]
    size = max((float(abs(x).max()) for x in some), default=1.0)
    if 1 / NEAR_ONE <= size <= NEAR_ONE or size == 0:
        return 1.0
    least = min(int(np.finfo(x.dtype).minexp) for x in some)
    return 2.0 ** max(math.frexp(size)[1], least)


def times(array: Array | None, unit: float) -> Array | None:
    """Return an array times a unit; what is beyond the largest number of its dtype is that."""
    if array is None:
        return None
    most = np.finfo(array.dtype).max
    with np.errstate(over="ignore", under="ignore"):
        return (array * array.dtype.type(unit)).clip(-most, most)


@dataclass(frozen=True, eq=False)
class TermsInUnit:
    """Terms of gradients of outputs that were divided by a unit."""

    terms: Terms
    unit: float

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights."""
        return times(self.terms.wrt_a(), self.unit)

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights."""
        return times(self.terms.wrt_b(), self.unit)

    def wrt_cost(self) -> Array | None:
        """Return the gradient with respect to a stored cost."""
        return times(self.terms.wrt_cost(), self.unit)

    def wrt_eps(self) -> Array:
        """Return the gradient with respect to the regularisation."""
        return times(self.terms.wrt_eps(), self.unit)

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """Return the gradients with respect to the positions of the cells of a grid."""
        found = self.terms.wrt_axes()
        return None if found is None else tuple(times(x, self.unit) for x in found)

    def wrt_reach(self) -> Array | None:
        """Return the gradient with respect to the prices of both marginals."""
        return times(self.terms.wrt_reach(), self.unit)

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud."""
        x, y = self.terms.wrt_points()
        return times(x, self.unit), times(y, self.unit)

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of a metric."""
        return {name: times(x, self.unit) for name, x in self.terms.wrt_metric().items()}
