"""What goes into derivatives, cotangents of the outputs and directions of the inputs, and what comes out of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from cusink.costs.means import Means
from cusink.types import Array, ArrayModule, HostArray

RightSide = Callable[[HostArray, Means], tuple[Array, Array]]  # h (., n) and k (., m) of the problems at an index


class Cotangents(NamedTuple):
    """Derivatives of the loss with respect to the outputs: values (B,), potentials (B, n) and (B, m)."""

    cost: Array | None = None
    reg_cost: Array | None = None
    entropic_cost: Array | None = None
    f: Array | None = None
    g: Array | None = None


class Directions(NamedTuple):
    """How the inputs move: weights (B, n) and (B, m) or None, eps (B,) or None, and the cost as operands take it."""

    a: Array | None = None
    b: Array | None = None
    eps: Array | None = None
    cost: Any = None

    def times(self, level: Array, a: Array, b: Array) -> tuple[Array, Array]:
        """Return how weights (B, n) and (B, m) that are multiplied by a `level` (B,) move."""
        of_a, of_b = (0 * w if v is None else level[:, None] * v for v, w in ((self.a, a), (self.b, b)))
        return of_a, of_b

    def dot(self, of_a: Array, of_b: Array) -> Array | float:
        """Return the scalar products (B,) of the weights' directions with arrays (B, n) and (B, m)."""
        return sum((v * x).sum(axis=1) for v, x in ((self.a, of_a), (self.b, of_b)) if v is not None)


class Terms(Protocol):
    """Gradients of some outputs by each input, see `cusink.gradients.terms.GradientTerms`."""

    def wrt_a(self) -> Array:
        """By the source weights (B, n)."""

    def wrt_b(self) -> Array:
        """By the target weights (B, m)."""

    def wrt_cost(self) -> Array | None:
        """By a stored cost."""

    def wrt_eps(self) -> Array:
        """By the regularisation."""

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """By the points of a cloud."""

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """By the positions of the cells of a grid."""

    def wrt_metric(self) -> dict[str, Array]:
        """By the parameters of the metric of a cloud, by name."""

    def wrt_reach(self) -> Array | None:
        """By the prices of both marginals."""


def replace_inf(xp: ArrayModule, x: Array, instead: float = 0) -> Array:
    """Return `x` with `instead` for the +inf of a forbidden pair, or of a bin that has no other."""
    if not x.size or bool(x.max() < np.inf):  # as nearly always
        return x
    return xp.where(xp.isposinf(x), x.dtype.type(instead), x)
