"""Powers of norms of differences between points, for clouds that no CUDA kernel knows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cusink.costs.formulas import finite_power
from cusink.types import Array, ArrayModule


@dataclass(frozen=True)
class NormPower:
    """``factor * (sum_k |x_k - y_k| ** p) ** (power / p)``, in float64, see `cusink.costs.formulas.Formula`.

    A pair has about its largest difference as its unit: sums of powers stay in the range, whatever lies beside it.
    Where there is no derivative, zero is taken.
    """

    p: float
    power: float = 1.0
    factor: float = 1.0
    symmetric: ClassVar[bool] = True
    twice: ClassVar[bool] = True

    def costs(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """See `Formula`."""
        unit, s = self._sum(xp, x, y)
        if self.power != self.p:
            s **= self.power / self.p
        s *= unit if self.power == 1 else unit**self.power
        if self.factor != 1:
            s *= self.factor
        return s

    def adjoint(self, xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """See `Formula`."""
        unit, s = self._sum(xp, x, y)
        return self._pulled(xp, gradient * self._rate(xp, unit, s), unit, x, y)

    def tangent(self, xp: ArrayModule, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        """See `Formula`."""
        unit, s = self._sum(xp, x, y)
        return self._rate(xp, unit, s) * self._moved_sum(xp, unit, x, y, moves)

    def curvature(
        self, xp: ArrayModule, gradient: Array, tangent: Array, x: Array, y: Array, moves: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """See `Formula`."""
        unit, s = self._sum(xp, x, y)
        of_sum = (self.power - self.p) * self._moved_sum(xp, unit, x, y, moves) / unit
        moved = tangent + gradient * (of_sum * finite_power(xp, s, -1.0))
        gx, gy = self._pulled(xp, moved * self._rate(xp, unit, s), unit, x, y)
        rate = self.factor * self.power * (self.p - 1) * unit ** (self.power - 2)
        rate = gradient * (rate * finite_power(xp, s, self.power / self.p - 1))
        for k, d in self._differences(xp, x, y, unit):
            bend = rate * finite_power(xp, xp.abs(d, out=d), self.p - 2)
            bend *= moves[0][..., :, None, k] - moves[1][..., None, :, k]
            gx[..., k] += bend.sum(axis=-1)
            gy[..., k] -= bend.sum(axis=-2)
        return gx, gy

    def _sum(self, xp: ArrayModule, x: Array, y: Array) -> tuple[Array, Array]:
        """Return a positive unit for each pair, and the sum of the powers of its differences in that unit."""
        unit, s = (xp.zeros((*x.shape[:-1], y.shape[-2])) for _ in range(2))
        if self.p != 1:
            for _, d in self._differences(xp, x, y):
                xp.maximum(unit, xp.abs(d, out=d), out=unit)
        unit += unit == 0
        if self.p not in (1, 2):
            unit *= 0.75  # NumPy takes half as long again for powers of exactly 1
        for _, d in self._differences(xp, x, y, unit):
            xp.abs(d, out=d)
            if self.p == 2:
                d *= d
            elif self.p != 1:
                d **= self.p
            s += d
        return unit, s

    def _rate(self, xp: ArrayModule, unit: Array, s: Array) -> Array:
        """Return the derivative of the costs by the differences, without `_slope`."""
        rate = self.factor * self.power * finite_power(xp, s, self.power / self.p - 1)
        return rate if self.power == 1 else rate * unit ** (self.power - 1)

    def _slope(self, xp: ArrayModule, d: Array) -> Array:
        """Return ``sign(d) |d| ** (p - 1)``."""
        return d if self.p == 2 else xp.sign(d) * finite_power(xp, xp.abs(d), self.p - 1)

    def _pulled(self, xp: ArrayModule, gradient: Array, unit: Array, x: Array, y: Array) -> tuple[Array, Array]:
        gx, gy = xp.empty(x.shape), xp.empty(y.shape)
        for k, d in self._differences(xp, x, y, unit):
            slope = gradient * self._slope(xp, d)
            gx[..., k], gy[..., k] = slope.sum(axis=-1), -slope.sum(axis=-2)
        return gx, gy

    def _moved_sum(self, xp: ArrayModule, unit: Array, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        total = xp.zeros(unit.shape)
        for k, d in self._differences(xp, x, y, unit):
            total += self._slope(xp, d) * (moves[0][..., :, None, k] - moves[1][..., None, :, k])
        return total

    @staticmethod
    def _differences(xp: ArrayModule, x: Array, y: Array, unit: Array | None = None) -> Iterator[tuple[int, Array]]:
        """Yield the differences of each coordinate, in units of the pairs if given, in one array for all."""
        # Rows of one coordinate each: NumPy subtracts contiguous numbers in half the time.
        x, y = (xp.ascontiguousarray(xp.moveaxis(points, -1, 0), np.float64) for points in (x, y))
        d = xp.empty((*x.shape[1:], y.shape[-1]))
        for k, (of_x, of_y) in enumerate(zip(x, y, strict=True)):
            xp.subtract(of_x[..., :, None], of_y[..., None, :], out=d)
            if unit is not None:
                d /= unit
            yield k, d


def every_square_fits(xp: ArrayModule, x: Array, y: Array, dtype: Any) -> bool:
    """Whether no difference of two coordinates has a square that a `dtype` has no room for, with all its digits."""
    number = np.finfo(dtype)
    least, most = math.sqrt(number.tiny / number.eps**3), math.sqrt(number.max / (8 * x.shape[-1]))
    sizes = [xp.abs(points) for points in (x, y)]
    if max(float(size.max()) for size in sizes) > most:
        return False
    # Two numbers differ by a rounding of the smaller one at least, or not at all.
    return all(float(xp.where(size > 0, size, least).min()) >= least for size in sizes)
