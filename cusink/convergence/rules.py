"""The rules of convergence: the over-relaxed update, the factor omega of each problem, and when a problem stops.

They also stand in kernels/convergence.cuh, for problems whose checks run on the device; the constants are passed to
it, and a test compares both.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.types import Array, ArrayModule, HostArray, Overrelaxation

# Every omega is safe, see docs/method.md, so that trying one costs little. Where costs differ by many eps the plain
# iteration is certainly slow and over-relaxation begins at once, unless somebody looks more often than that; elsewhere
# it begins after `LEAST_OBSERVED` iterations, by which time fast problems have ended.
FIRST_OMEGA = 1.5
FIRST_OMEGA_IF_STEEP = 1.6
RELAX_ABOVE = 75  # range of the costs over eps from which on a problem is steep
# Beyond it the first iterations are plain again. They leave modes that hardly converge as small as a plain solve does,
# over-relaxed ones need not; ordinary problems are so slow there that they do not notice.
RELAX_LATER_ABOVE = 500
ANNEAL_ABOVE = 1000  # beyond twice this range, problems are annealed before the first iteration
LARGEST_OMEGA = 1.97
TOO_LARGE = 1.03  # times omega - 1: a rate up to which it is omega that holds the iteration up
# Beyond the best omega the error swings as it falls, so that a rate over fewer iterations may be anything.
LEAST_OBSERVED = 10
NEARLY_ALL = 0.95  # of the weights
PLAIN_IF_ONE_BIN = 20  # so many more come first where nearly all weight of a side is in one bin
# Averaging steps f + s (T f - f), for s in turn, of a measure with itself. T contracts, and so does every such average
# with s in (0, 1]. Near the solution T f - f falls by 1 - s (1 + eta) with eta in [0, 1] for a positive definite
# kernel: these s are the inverse Chebyshev points of [1, 2], and two steps make the error 17 times smaller. Steps of
# 1/2 would make it 4 times smaller.
STEPS = tuple(1 / (1.5 + 0.5 * np.cos(np.pi * k / 4)) for k in (1, 3))

NO_REACH = 1e12  # times eps: as good as inf where the price of a marginal only scales an over-relaxation

STALLED_CHECKS = 10  # checks without progress, at an error that rounding explains, after which a problem stops
PROGRESS = 0.99  # factor by which an error must fall to count as progress
ROUNDINGS = 64  # roundings of C / eps that an error which no longer falls may be


def overrelaxed(
    xp: ArrayModule, old: Array, plain: Any, excess: Any, *, scratch: Array | None = None, out: Array | None = None
) -> Array:
    """Return the scaling ``excess * plain + max(plain - excess * old, 0)``; `excess` is omega - 1.

    To first order it is ``old * (plain / old) ** omega``, but each entry raises the dual objective for every omega in
    [1, 2), so that no omega makes the iteration diverge; see docs/method.md. `out` may be `old`.
    """
    # As the larger of ``(1 + excess) * plain - excess * old`` and ``excess * plain``: a maximum of two arrays takes
    # half the time of one with a number.
    scratch = xp.multiply(plain, 1 + excess, out=scratch)
    moved = xp.multiply(old, excess, out=out)
    scratch = xp.subtract(scratch, moved, out=scratch)
    least = xp.multiply(plain, excess, out=moved)
    return xp.maximum(scratch, least, out=least)


def overrelaxed_quotient(
    xp: ArrayModule, old: Array, more: Array, sums: Array, excess: Any, share: Any, room: Array, scratch: Array
) -> None:
    """Overwrite `old` by `overrelaxed` of it and of the plain update; omega times that is the quotient ``more / sums``.

    `share` is ``excess / omega``. `room`, which may be `sums`, and `scratch` are overwritten too.
    """
    longest = xp.divide(more, sums, out=room)
    least = xp.multiply(longest, share, out=scratch)
    moved = xp.subtract(longest, xp.multiply(old, excess, out=old), out=room)
    xp.maximum(moved, least, out=old)


def overrelaxed_log(xp: ArrayModule, old: Array, plain: Array, excess: Any, unit: Any) -> Array:
    """Return `overrelaxed` of ``exp(old / unit)`` and ``exp(plain / unit)`` as ``unit * log``: for potentials."""
    with np.errstate(invalid="ignore"):
        step = plain - old
    step = xp.where(xp.isnan(step), 0, step)  # +inf, where a bin without weight reaches nothing, stays
    return plain + overrelaxed_step(xp, step, excess, unit)


def overrelaxed_step(xp: ArrayModule, step: Array, excess: Any, unit: Any) -> Array:
    """Return how far `overrelaxed` goes beyond a plain update of the potential by `step`.

    It is accurate for steps that are small in comparison with `unit`.
    """
    # Beyond 80 the bound below holds for every excess, and exp(80) is within float32.
    beyond = -excess * xp.expm1(xp.minimum(-step / unit, 80.0))
    return unit * xp.log1p(xp.maximum(beyond, excess - 1))


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Over-relaxation factors omega (B,) in [1, 2), and what the next ones are estimated from.

    Near the solution the plain iteration contracts by some rate eta. Over-relaxed by omega, it contracts by the
    larger root of ``(rate + omega - 1)**2 = rate omega**2 eta`` while omega is below ``2 / (1 + sqrt(1 - eta))``, its
    best value, and by ``omega - 1`` above it (Young's theory, carried to Sinkhorn by Lehmann et al. 2020). The rate
    observed since the last check therefore tells eta, or that omega is too large.
    """

    omega: HostArray  # (B,)
    error: HostArray  # (B,), when omega was last chosen
    since: HostArray  # (B,), iterations since then
    checks: int
    adaptive: bool
    steep: bool

    @classmethod
    def start(
        cls,
        problems: int,
        setting: Overrelaxation,
        steepness: float,
        *,
        slow: bool = False,
        check_every: int = LEAST_OBSERVED,
        one_bin: HostArray | None = None,
    ) -> Self:
        """Return the factors to begin with; `steepness` is the range of the costs over eps.

        `slow` problems are known to outlast the first check. Those of nearly `one_bin` (B,) mostly end there without;
        for others the last of the mass arrives all at once after some steps: they stay plain for longer.
        """
        adaptive, steep = setting == "auto", RELAX_ABOVE <= steepness < RELAX_LATER_ABOVE
        if adaptive:
            first = FIRST_OMEGA_IF_STEEP if steep and check_every >= LEAST_OBSERVED else 1.0
        else:
            first = 1.0 if setting is None else float(setting)
        errors, since = np.full(problems, np.inf), np.full(problems, LEAST_OBSERVED if slow else 0)
        omega = np.full(problems, first)
        if one_bin is not None:
            omega[one_bin], since[one_bin] = 1.0, since[one_bin] - PLAIN_IF_ONE_BIN
        return cls(omega, errors, since, 0, adaptive, steep)

    def observe(self, error: HostArray, iterations: int) -> Self:
        """Return the factors that follow from the errors (B,) after another `iterations`."""
        omega, since = self.omega, self.since + iterations
        chosen = since >= LEAST_OBSERVED
        if self.adaptive:
            # Steep are also costs of which a few stand out, and then the plain iteration may be fast.
            fast = (self.since == 0) & (error <= (TOO_LARGE * (omega - 1)) ** iterations)  # of an error of 1 at first
            first = np.where(fast, 1.0, FIRST_OMEGA_IF_STEEP if self.steep else FIRST_OMEGA)
            best = np.where(np.isinf(self.error), first, estimated_omega(omega, self.error, error, since))
            omega = np.where(chosen, best, omega)
        error, since = np.where(chosen, error, self.error), np.where(chosen, 0, since)
        return type(self)(omega, error, since, self.checks + 1, self.adaptive, self.steep)

    def select(self, index: HostArray) -> Self:
        """Return the factors of the problems at `index`."""
        omega, error, since = (x[index] for x in (self.omega, self.error, self.since))
        return type(self)(omega, error, since, self.checks, self.adaptive, self.steep)


def estimated_omega(omega: HostArray, before: HostArray, error: HostArray, iterations: int | HostArray) -> HostArray:
    """Return the factors that follow from errors (B,) `iterations` apart, see `Relaxation`."""
    with np.errstate(all="ignore"):  # an error may be infinite, or larger than all but the largest numbers
        rate = (error / before) ** (1 / iterations)
    rate = np.fmax(np.fmin(rate, 1 - 1e-5), 1e-3)  # fmin and fmax leave no NaN
    excess = omega - 1
    eta = ((rate + excess) ** 2 / (rate * omega**2)).clip(max=1 - 1e-5)
    best = 2 / (1 + np.sqrt(1 - eta))
    too_large = rate <= TOO_LARGE * excess
    return np.where(too_large, 1 + 0.9 * excess, best).clip(1, LARGEST_OMEGA)


def rounding_level(dtype: Any, exponent: float) -> float:
    """Return the marginal error that rounding explains; `exponent` is the largest cost over eps."""
    return ROUNDINGS * float(np.finfo(dtype).eps) * (1 + exponent)


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
        return type(self)(self.level, np.where(better, error, self.best), np.where(better, 0, self.checks + 1))

    def select(self, index: HostArray) -> Self:
        """Return the detector of the problems at `index`."""
        return type(self)(self.level, self.best[index], self.checks[index])


class StopState(NamedTuple):
    """All that the checks of problems under way carry from one to the next.

    The error after a plain update is often much smaller than its bound: a mode that hardly converges moves by
    ``omega / (2 - omega)`` times a plain step in every iteration, and so far the bound exceeds the error. Where this
    factor may explain why the bound exceeds the tolerance, the error is worth measuring. A problem that is measured in
    vain is not measured again before a quarter more checks have passed.
    """

    relaxation: Relaxation
    stall: StallDetector
    retry: HostArray  # (B,), the number of checks before which the error is not worth measuring

    @classmethod
    def start(cls, relaxation: Relaxation, stall: StallDetector) -> "StopState":
        """Return the state of problems that have not been checked."""
        return cls(relaxation, stall, np.zeros(len(stall.best), np.int64))

    def plain(self) -> "StopState":
        """Return the state with plain iterations."""
        omega = np.ones_like(self.relaxation.omega)
        return self._replace(relaxation=replace(self.relaxation, omega=omega))

    def may_end(self, bound: HostArray, tol: float) -> HostArray:
        """Return which problems (B,) may be within `tol`; `bound` (B,) is that of the check to be observed next."""
        omega = self.relaxation.omega
        promising = (bound * (2 - omega) <= tol * omega) & (self.relaxation.checks >= self.retry)
        ends: HostArray = (bound <= tol) | promising
        return ends

    def refuse(self, index: HostArray) -> "StopState":
        """Return the state after the problems at `index` turned out not to be within the tolerance."""
        retry, checks = self.retry.copy(), self.relaxation.checks
        retry[index] = checks + checks // 4
        return self._replace(retry=retry)

    def observe(self, error: HostArray, iterations: int) -> "StopState":
        """Return the state after a check that measured the errors (B,) after another `iterations`."""
        return self._replace(relaxation=self.relaxation.observe(error, iterations), stall=self.stall.observe(error))

    def select(self, index: HostArray) -> "StopState":
        """Return the state of the problems at `index`."""
        return StopState(self.relaxation.select(index), self.stall.select(index), self.retry[index])
