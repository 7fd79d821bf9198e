"""When a problem stops: at its tolerance, or at the rounding level of its dtype.

The same rule stands in kernels/convergence.cuh; the constants are passed to it, and a test compares both.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.convergence.relaxation import Relaxation
from cusink.types import HostArray

STALLED_CHECKS = 10  # checks without progress, at an error that rounding explains, after which a problem stops
PROGRESS = 0.99  # factor by which an error must fall to count as progress
ROUNDINGS = 64  # roundings of C / eps that an error which no longer falls may be


def rounding_level(dtype: Any, exponent: float) -> float:
    """Return the marginal error that rounding explains; `exponent` is the largest cost over eps."""
    return ROUNDINGS * float(np.finfo(dtype.name).eps) * (1 + exponent)


@dataclass(frozen=True, eq=False)
class StallDetector:
    """Detects problems at the rounding level of their dtype: a small error that no longer falls."""

    level: float
    best: HostArray  # (B,), the smallest error so far
    checks: HostArray  # (B,), checks since it fell

    @classmethod
    def start(cls, problems: int, dtype: Any, exponent: float) -> Self:
        """Return a detector that has seen no error; `exponent` is the largest cost over eps."""
        level = rounding_level(dtype, exponent)
        return cls(level, np.full(problems, np.inf), np.zeros(problems, np.int64))

    @property
    def stalled(self) -> HostArray:
        """Which problems (B,) are as good as they get."""
        return (self.checks >= STALLED_CHECKS) & (self.best <= self.level)

    def observe(self, error: HostArray) -> Self:
        """Return the detector after a check that measured the errors (B,)."""
        better = error < PROGRESS * self.best
        return replace(self, best=np.where(better, error, self.best), checks=np.where(better, 0, self.checks + 1))

    def select(self, index: HostArray) -> Self:
        """Return the detector of the problems at `index`."""
        return replace(self, best=self.best[index], checks=self.checks[index])


class StopState(NamedTuple):
    """All that the checks of problems under way carry from one to the next."""

    relaxation: Relaxation
    stall: StallDetector

    def observe(self, error: HostArray, iterations: int) -> "StopState":
        """Return the state after a check that measured the errors (B,) after another `iterations`."""
        return StopState(self.relaxation.observe(error, iterations), self.stall.observe(error))

    def select(self, index: HostArray) -> "StopState":
        """Return the state of the problems at `index`."""
        return StopState(self.relaxation.select(index), self.stall.select(index))
