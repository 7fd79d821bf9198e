"""Formulas of costs between points that no CUDA kernel knows: sums over coordinates.

They are taken in float64 where they are sums. Points x are (..., n, d) and y (..., m, d); all arrays of pairs are
(..., n, m).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from cusink.types import Array, ArrayModule

CLOSE = 0.05  # of x and y relative to their sum, up to which six terms of a series have all digits


class Formula(Protocol):
    """A cost between points."""

    @property
    def symmetric(self) -> bool | None:
        """Whether the cost of x and y is always that of y and x; None if nobody knows."""

    @property
    def twice(self) -> bool:
        """Whether `tangent` and `curvature` can be taken along moves of the points."""

    def costs(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """Return the costs."""

    def adjoint(self, xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Pull the gradient of costs back to x and y."""

    def tangent(self, xp: ArrayModule, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        """Return the derivative of the costs while the points move."""

    def curvature(
        self, xp: ArrayModule, gradient: Array, tangent: Array, x: Array, y: Array, moves: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Return the derivative of `adjoint` while the points move, and its gradient by `tangent`."""


class Term(Protocol):
    """A function of one coordinate of x (..., n, 1) and of y (..., 1, m); 0 where it has no derivative."""

    symmetric: ClassVar[bool]

    def value(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """Return the function."""

    def slopes(self, xp: ArrayModule, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the derivatives with respect to x and to y."""

    def bends(self, xp: ArrayModule, x: Array, y: Array, move_x: Array, move_y: Array) -> tuple[Array, Array]:
        """Return the derivatives of the `slopes` while x and y move."""


class Outer(Protocol):
    """A function of a sum s >= 0 of terms; 0 in the place of derivatives that it lacks at the end of its range."""

    def value(self, xp: ArrayModule, s: Array) -> Array:
        """Return the function."""

    def rate(self, xp: ArrayModule, s: Array) -> Array:
        """Return its derivative."""

    def bend(self, xp: ArrayModule, s: Array, moved: Array) -> Array:
        """Return the derivative of its `rate` while s is `moved`."""


@dataclass(frozen=True)
class Sums:
    """``outer(sum_k term(x_k, y_k))``, a coordinate at a time: differences are taken before anything else."""

    term: Term
    outer: Outer
    twice: ClassVar[bool] = True

    @property
    def symmetric(self) -> bool:
        """See `Formula`."""
        return self.term.symmetric

    def costs(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """See `Formula`."""
        return self.outer.value(xp, self._sum(xp, x, y))

    def adjoint(self, xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """See `Formula`."""
        return self._pulled(xp, gradient * self.outer.rate(xp, self._sum(xp, x, y)), x, y)

    def tangent(self, xp: ArrayModule, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        """See `Formula`."""
        return self.outer.rate(xp, self._sum(xp, x, y)) * self._moved_sum(xp, x, y, moves)

    def curvature(
        self, xp: ArrayModule, gradient: Array, tangent: Array, x: Array, y: Array, moves: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """See `Formula`."""
        s = self._sum(xp, x, y)
        rate = self.outer.rate(xp, s)
        moved = tangent * rate + gradient * self.outer.bend(xp, s, self._moved_sum(xp, x, y, moves))
        gx, gy = self._pulled(xp, moved, x, y)
        rate = gradient * rate
        for k, (of_x, of_y) in enumerate(self._coordinates(x, y)):
            of_moves = moves[0][..., :, None, k], moves[1][..., None, :, k]
            bend_x, bend_y = self.term.bends(xp, of_x, of_y, *of_moves)
            gx[..., k] += (rate * bend_x).sum(axis=-1)
            gy[..., k] += (rate * bend_y).sum(axis=-2)
        return gx, gy

    def _coordinates(self, x: Array, y: Array) -> list[tuple[Array, Array]]:
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
        return [(x[..., :, None, k], y[..., None, :, k]) for k in range(x.shape[-1])]

    def _sum(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        total = xp.zeros((*x.shape[:-1], y.shape[-2]))
        for of_x, of_y in self._coordinates(x, y):
            total += self.term.value(xp, of_x, of_y)
        return total

    def _moved_sum(self, xp: ArrayModule, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        total = xp.zeros((*x.shape[:-1], y.shape[-2]))
        for k, (of_x, of_y) in enumerate(self._coordinates(x, y)):
            slope_x, slope_y = self.term.slopes(xp, of_x, of_y)
            total += slope_x * moves[0][..., :, None, k] + slope_y * moves[1][..., None, :, k]
        return total

    def _pulled(self, xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Pull the gradient of the sums back to the points."""
        gx, gy = xp.zeros(x.shape), xp.zeros(y.shape)
        for k, (of_x, of_y) in enumerate(self._coordinates(x, y)):
            slope_x, slope_y = self.term.slopes(xp, of_x, of_y)
            gx[..., k], gy[..., k] = (gradient * slope_x).sum(axis=-1), (gradient * slope_y).sum(axis=-2)
        return gx, gy


@dataclass(frozen=True)
class Squares:
    """``(x - y) ** 2``."""

    symmetric: ClassVar[bool] = True

    def value(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """See `Term`."""
        del xp
        d = x - y
        return d * d

    def slopes(self, xp: ArrayModule, x: Array, y: Array) -> tuple[Array, Array]:
        """See `Term`."""
        del xp
        slope = 2 * (x - y)
        return slope, -slope

    def bends(self, xp: ArrayModule, x: Array, y: Array, move_x: Array, move_y: Array) -> tuple[Array, Array]:
        """See `Term`."""
        del xp, x, y
        bend = 2 * (move_x - move_y)
        return bend, -bend


@dataclass(frozen=True)
class RelativeEntropy:
    """``x log(x / y) - x + y``, where 0 log 0 is 0; y is positive."""

    symmetric: ClassVar[bool] = False

    def value(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """See `Term`."""
        mean, v, near = _ratio(xp, x, y)
        odd, even = _of_arctanh(v * v)
        # With v = (x - y) / (x + y): (x + y) (v arctanh v + (arctanh v - v)), by its series where x and y are close.
        close = 2 * mean * v * v * (odd + v * even)
        return xp.where(near, close, xp.maximum(x * (_log(xp, x) - xp.log(y)) - (x - y), 0))

    def slopes(self, xp: ArrayModule, x: Array, y: Array) -> tuple[Array, Array]:
        """See `Term`: that of x is -inf at 0, and 0 is taken."""
        _, v, near = _ratio(xp, x, y)
        logs = xp.where(near, 2 * v * _of_arctanh(v * v)[0], _log(xp, x) - xp.log(y))
        return xp.where(x > 0, logs, 0), (y - x) / y

    def bends(self, xp: ArrayModule, x: Array, y: Array, move_x: Array, move_y: Array) -> tuple[Array, Array]:
        """See `Term`."""
        share = move_y / y  # first, as squares of y may be no numbers
        return finite_power(xp, x, -1.0) * move_x - share, (x * share - move_x) / y


def _ratio(xp: ArrayModule, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return ``(x + y) / 2``, ``(x - y) / (x + y)``, and where that is so small that logarithms lose its digits."""
    mean = x / 2 + y / 2  # the sum may leave the range
    v = (x / 2 - y / 2) / mean
    return mean, v, xp.abs(v) < CLOSE


def _of_arctanh(q: Array) -> tuple[Array, Array]:
    """Return the series of ``arctanh(v) / v`` and of ``(arctanh(v) - v) / v**3`` for q = v**2 below ``CLOSE**2``."""
    rest = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13))))
    return 1 + q * rest, rest


@dataclass(frozen=True)
class Power:
    """``factor * s ** exponent``."""

    exponent: float
    factor: float = 1.0

    def value(self, xp: ArrayModule, s: Array) -> Array:
        """See `Outer`."""
        del xp
        return self.factor * (s if self.exponent == 1 else s**self.exponent)

    def rate(self, xp: ArrayModule, s: Array) -> Array:
        """See `Outer`."""
        return self.factor * self.exponent * finite_power(xp, s, self.exponent - 1)

    def bend(self, xp: ArrayModule, s: Array, moved: Array) -> Array:
        """See `Outer`."""
        return self.rate(xp, s) * ((self.exponent - 1) * moved / xp.where(s > 0, s, xp.inf))


def finite_power(xp: ArrayModule, x: Array, exponent: float) -> Array:
    """Return ``x ** exponent`` of x >= 0, and 0 in the place of infinity at 0."""
    if exponent >= 0:
        return x**exponent
    positive = x > 0
    return xp.where(positive, xp.where(positive, x, 1) ** exponent, 0)


def _log(xp: ArrayModule, x: Array) -> Array:
    """Return the logarithm of x >= 0, and 0 at 0."""
    return xp.log(xp.where(x > 0, x, 1))
