"""Gradients by the prices of both marginals, `reach`, see docs/unbalanced.md."""

import numpy as np

from cusink.solver.problem import Problem
from cusink.solver.values import sides
from cusink.types import Array

SMALL_SHARE = 1e-2  # f / rho below which 1 - (1 + x) exp(-x) is taken as a series, whose terms do not cancel


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def through_potentials(problem: Problem, fields: tuple[Array, Array]) -> Array:
    """Return what a change of the prices does to potentials (B, 2), given multipliers of the rows and columns.

    The equation ``exp(-f / rho) = sum_j b_j E_ij`` of a row moves like that of costs which rise by ``eps f / rho**2``.
    """
    out = []
    for of_bins, (_, potential, rho) in zip(fields, sides(problem), strict=True):
        carries = problem.xp.isfinite(potential)
        moved = problem.xp.where(carries, potential, 0).astype(np.float64) / rho / rho
        out.append(problem.eps_as(1) * (problem.xp.where(carries, of_bins, 0) * moved).sum(axis=1))
    return problem.xp.stack(out, axis=1)


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def unmet(problem: Problem) -> Array:
    """Return ``KL(P 1 | a)`` and ``KL(P' 1 | b)`` (B, 2): the derivatives of `reg_cost` with respect to the prices."""
    xp, out = problem.xp, []
    for weights, potential, rho in sides(problem):
        x = xp.where((weights > 0) & xp.isfinite(potential), potential, 0).astype(np.float64) / rho
        near = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 8 - x * (1 / 30 - x / 144))))
        share = xp.where(xp.abs(x) < SMALL_SHARE, near, -xp.expm1(-x) - x * xp.exp(-x))
        out.append((weights * xp.where(xp.isfinite(potential), share, 1)).sum(axis=1, dtype=np.float64))
    return xp.stack(out, axis=1)
