"""Conditional means under plans whose marginals leave the range of numbers, in the log domain.

With `reach` the marginals of a plan are ``a exp(-f / rho_a)`` and ``b exp(-g / rho_b)``, which may be far below and
above what a number can be. The shares of the partners in a row and in a column may not:

    R_ij = exp(r_i + q_j - C_ij / eps)        S_ij = exp(p_i + s_j - C_ij / eps)

with the logits p, q of the plan, and r, s such that the rows of R and the columns of S sum to 1. The damped system and
its transpose are all that derivatives need of the marginals, and they are written in R and S alone.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cusink.costs.cost import Cost
from cusink.costs.means import Means
from cusink.deferred import cached_property
from cusink.gradients.parts import replace_inf
from cusink.solver.problem import Problem
from cusink.types import Array, Axis, Eps, HostArray

FAR = 150.0  # f / rho, beyond which the squares of marginals are left to the log domain
FAR_IN_FLOAT32 = 20.0
LEAST = 1e-300  # share of the largest marginal that a bin with weight has at the least


@dataclass(frozen=True, eq=False)
class LogShares(Means):
    """Shares R and S of problems with logits p (B, n) and q (B, m): `cusink.costs.operators.Means` of any range.

    `softmins` are -eps r and -eps s, +inf for a bin without partners.
    """

    C: Cost[Any]
    eps: Eps
    p: Array
    q: Array
    softmins: tuple[Array, Array]

    @cached_property
    def _normalising(self) -> tuple[Array, Array]:
        """The logarithms r and s."""
        xp, eps = self.C.xp, self.eps
        unit = xp.asarray(eps)[:, None] if isinstance(eps, np.ndarray) else eps
        of_rows, of_columns = (xp.where(xp.isfinite(x), x, 0) / unit for x in self.softmins)
        return of_rows, of_columns

    def _given(self, axis: Axis) -> tuple[Array, Array]:
        """Return the logits of R (axis 1) or of S (axis 0)."""
        r, s = self._normalising
        return (r, self.q) if axis == 1 else (self.p, s)

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return ``R v`` (axis 1) or ``S' v`` (axis 0)."""
        return self.C.apply_plan(*self._given(axis), v, self.eps, axis)

    def spread(self, v: Array, axis: Axis) -> Array:
        """Return ``R' v`` (axis 1, v (B, n)) or ``S v`` (axis 0, v (B, m))."""
        return self.C.apply_plan(*self._given(axis), v, self.eps, 0 if axis == 1 else 1)

    def mean_cost(self, axis: Axis) -> Array:
        """Raise: no system of any range has it on its right-hand side."""
        raise NotImplementedError

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Raise: the plan may underflow."""
        raise NotImplementedError

    def marginal(self, axis: Axis) -> Array:
        """Return the marginal in a unit of each problem, that of a bin with weight at least `LEAST`."""
        xp, (r, s) = self.C.xp, self._normalising
        top = xp.where(xp.isfinite(self.softmins[0]), self.p - r, -xp.inf).max(axis=1, keepdims=True)
        logs = (self.p - r if axis == 1 else self.q - s) - xp.where(xp.isfinite(top), top, 0)
        return xp.where(xp.isneginf(logs), 0, xp.exp(xp.maximum(logs, math.log(LEAST))))

    def at(self, index: HostArray) -> Self:
        """Return the means of the problems at `index`."""
        eps = self.eps[index] if isinstance(self.eps, np.ndarray) else self.eps
        of_rows, of_columns = (x[index] for x in self.softmins)
        C, p, q = self.C.at(index), self.p[index], self.q[index]
        return replace(self, C=C, eps=eps, p=p, q=q, softmins=(of_rows, of_columns))


def log_shares(problem: Problem) -> LogShares:
    """Return the shares of a problem in float64."""
    p, q = problem.logits()
    C, eps = problem.C, problem.eps
    return LogShares(C, eps, p, q, (C.softmin(q, eps, 1), C.softmin(p, eps, 0)))


def goes_far(problem: Problem, limit: float) -> bool:
    """Whether a bin of a problem with `reach` keeps less than ``exp(-limit)`` of its weight, or as much more."""
    assert problem.reach is not None
    return any(
        rho < np.inf and float(problem.xp.abs(replace_inf(problem.xp, potential)).max()) > limit * rho
        for potential, rho in zip(problem.potentials(), problem.reach, strict=True)
    )
