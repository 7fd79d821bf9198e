"""Potentials of problems that are columns, made of their scalings at the last update; at once, or when asked for."""

from typing import NamedTuple

import numpy as np

from cusink.backends.numpy.forms.kernel import log_scaled
from cusink.backends.numpy.forms.scalings import LastUpdate, log_quotient
from cusink.types import HostArray


class Unit(NamedTuple):
    """The numbers of a kernel ``2**s exp((shift - C) / eps)``."""

    eps: float
    shift: float
    s: int

    def of_sums(self, sums: HostArray, exponent: HostArray) -> HostArray:
        """Return the softmin (B, rows) of f whose sums are ``sums * 2**exponent``; that of g is larger by `shift`."""
        potential = log_scaled(sums, exponent - self.s)
        potential *= -self.eps
        return potential

    def of_scaling(self, V: HostArray, b: HostArray, ev: HostArray, carried: HostArray | None) -> HostArray:
        """Return the potential g (B, m) of the scaling V of b; anything where it is not `carried`, None for nowhere."""
        if carried is not None:
            V, b = np.where(carried, V, 1), np.where(carried, b, 1)
        potential = log_quotient(V, b, ev)
        potential *= self.eps
        potential += self.shift
        return potential

    def of_columns(self, S: HostArray, eu: HostArray) -> HostArray:
        """Return the softmin g (B, m) whose sums are ``S * 2**eu``."""
        return self.shift + self.of_sums(S, eu)


class Ended(NamedTuple):
    """Copies of what the potentials of problems are made of, whose iteration goes on or is forgotten.

    Sums T (n, B), scaling V (m, B) of b, and exponents (B,), all in range. Where a weight b is zero, also S (m, B), the
    sums that its potential is the softmin of, else None.
    """

    unit: Unit
    T: HostArray
    V: HostArray
    b: HostArray
    eu: HostArray
    ev: HostArray
    S: HostArray | None

    @classmethod
    def kept(cls, unit: Unit, last: LastUpdate, T: HostArray) -> "Ended":
        """Return copies of problems at their last update, whose sums were `T`, which are kept as they are."""
        S = None if (last.V > 0).all() else last.S.copy(order="K")
        return cls(unit, T, last.V.copy(order="K"), last.b.copy(order="K"), last.eu.copy(), last.ev.copy(), S)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def potentials(self) -> tuple[HostArray, HostArray]:
        """Return f (B, n) and g (B, m)."""
        unit, V, b, ev = self.unit, self.V, self.b, self.ev
        f = unit.of_sums(self.T, ev)
        if self.S is None:
            return f, unit.of_scaling(V, b, ev, None)
        carried = V > 0
        return f, np.where(carried.T, unit.of_scaling(V, b, ev, carried), unit.of_columns(self.S, self.eu))
