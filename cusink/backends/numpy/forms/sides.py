"""The two updates of an iteration of problems that are columns, and for how long nobody needs to look at them."""

import math
from typing import NamedTuple

import numpy as np

from cusink.backends.ranges import UnderflowBound
from cusink.types import Axis, HostArray


class Side(NamedTuple):
    """One side: its `scaling` becomes ``gamma / sums``, where the product of the kernel and `factor` gives the sums.

    All are arrays of a workspace, ``more`` is omega times ``gamma``. `empty` has 1 where a weight is zero, and is None
    where none is.
    """

    axis: Axis
    factor: HostArray
    factor_weights: HostArray
    scaling: HostArray
    weights: HostArray
    gamma: HostArray
    more: HostArray
    room: HostArray
    scratch: HostArray
    empty: HostArray | None
    bound: UnderflowBound
    floor: float  # sums above it are certified, even if an entry of the factor underflowed

    def certain(self, lowest: float, largest: float, limit: float) -> bool:
        """Return whether sums, the `lowest` of all, are certified by one look at the factor, at most `largest`."""
        dtype = self.factor.dtype
        underflowed = float(self.factor.min(initial=np.inf)) < float(np.finfo(dtype).tiny)
        return largest <= limit and lowest >= float(self.bound.floor(dtype, largest, underflowed))

    def drift(self, following: HostArray) -> float:
        """Return the largest change of the logarithm of the scaling up to the `following` one; inf if it is none."""
        np.divide(following, self.scaling, out=self.scratch)
        least, most = float(self.scratch.min(initial=1)), float(self.scratch.max(initial=1))
        return math.log(max(most, 1 / least)) if 0 < least <= most < math.inf else math.inf


class Outlook(NamedTuple):
    """Plain iterations that are `done`, how many by then need no look, and before which to look ahead is in vain."""

    done: int = 0
    watched: int = 0
    due: float = 0


def fill_more(sides: tuple[Side, Side], excess: HostArray) -> None:
    """Fill in the numerators of updates that are over-relaxed by omega, `excess` more than 1; of plain ones nothing."""
    if excess.any():
        for side in sides:
            np.multiply(side.gamma, 1 + excess, out=side.more)


def unwatched(sides: tuple[Side, Side], lowest: list[float], limit: float, drift: float) -> tuple[int, float]:
    """Return for how many plain iterations scalings stay within `limit`, and what the second one is at most by then.

    `lowest` are the least sums of both sides in the last iteration, and `drift` is that of a scaling in it. A plain
    iteration is a softmin of a softmin. It brings two starts no farther apart in any entry of their logarithms, so that
    no later iteration drifts more than the last one, but for rounding.
    """
    largest = [float(side.scaling.max(initial=0)) for side in sides]
    every = zip(sides, lowest, largest, strict=True)
    room = min(min(low / side.floor, limit / max(top, side.floor)) for side, low, top in every)
    if not (1 < room < math.inf and drift < math.inf):
        return 0, largest[1]
    n, m = (len(side.scaling) for side in sides)
    drift += 2 * (n + m) * float(np.finfo(sides[0].scaling.dtype).eps)
    count = int(math.log(room) / drift)
    return count, largest[1] * math.exp(count * drift)
