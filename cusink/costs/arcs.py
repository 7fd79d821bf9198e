"""Angles between points of the unit sphere, with all digits for points that coincide and for antipodes."""

from dataclasses import dataclass

from cusink.costs.formulas import Sums, finite_power
from cusink.types import Array, ArrayModule

ANTIPODES = 2.0**-8  # of ``4 - s`` with squared chords s: below it the difference lacks digits


class Chords(Sums):
    """A function of squared chords s and of ``4 - s``, the squared distances from the antipodes.

    Points of the sphere have three coordinates about any origin, and the same three about the centre of the sphere.
    """

    def _coordinates(self, x: Array, y: Array) -> list[tuple[Array, Array]]:
        return super()._coordinates(x[..., :3], y[..., :3])

    def _sum(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        s = super()._sum(xp, x, y)
        rest = 4 - s
        places = xp.nonzero(rest < ANTIPODES)
        if len(places[0]):
            *problem, row, column = places
            both = x[(*problem, row)][:, 3:].astype(rest.dtype) + y[(*problem, column)][:, 3:]
            rest[places] = (both * both).sum(axis=-1)
        return s, rest


@dataclass(frozen=True)
class Arc:
    """``scale * angle ** power`` of two points of the unit sphere, of a pair of arrays: see `Chords`.

    The angle has no derivative between a point and its antipode, where zero is taken.
    """

    power: float
    scale: float  # radius ** power

    def value(self, xp: ArrayModule, s: Array) -> Array:
        """See `Outer`."""
        return self.scale * self._angle(xp, s) ** self.power

    def rate(self, xp: ArrayModule, s: Array) -> Array:
        """See `Outer`: at 0, with a power of 2 it is that of ``radius ** 2 * s``."""
        scale, turn = self.scale, finite_power(xp, s[0] * s[1], -0.5)
        out = scale * self.power * finite_power(xp, self._angle(xp, s), self.power - 1) * turn
        return xp.where(s[0] > 0, out, scale) if self.power == 2 else out

    def bend(self, xp: ArrayModule, s: Array, moved: Array) -> Array:
        """See `Outer`."""
        angle, inside = self._angle(xp, s), s[0] * s[1]
        turn, turned = finite_power(xp, inside, -0.5), (s[0] - 2) * finite_power(xp, inside, -1.5)
        first = (self.power - 1) * finite_power(xp, angle, self.power - 2) * turn**2
        return self.scale * self.power * (first + finite_power(xp, angle, self.power - 1) * turned) * moved

    @staticmethod
    def _angle(xp: ArrayModule, s: Array) -> Array:
        return 2 * xp.arctan2(xp.sqrt(s[0]), xp.sqrt(s[1]))
