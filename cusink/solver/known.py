"""Solutions of problems whose potentials are known: one update of each side, and by how much the columns miss."""

from typing import Any

import numpy as np

from cusink.costs.cost import Cost
from cusink.costs.each import costs_of, groups, per_problem
from cusink.costs.logits import logits
from cusink.solver import gauge
from cusink.solver.ending import brought
from cusink.solver.problem import CheckedProblem, Problem
from cusink.solver.solution import Solution
from cusink.solver.unbalanced import damped, marginal_error, partnered
from cusink.types import Array, Axis, Reach


def known_solution(
    given: CheckedProblem, side: Axis, potential: Array, reach: Reach | None
) -> tuple[Problem, Solution]:
    """Return checked problems with a g (B, m), of side 0 the best one for a given f (B, n), and the best f for it."""
    a, b = (w.astype(np.float64) for w in (given.a, given.b))
    C, xp, g = given.C.astype(np.float64), given.C.xp, potential
    if reach is not None:
        return _at_prices(given, C, (a, b), side, potential, reach)
    if side == 0:
        by = per_problem(xp, given.eps, potential) if isinstance(given.eps, np.ndarray) else given.eps
        g = C.softmin(logits(xp, a, potential, by), given.eps, 0)
    g = xp.where(xp.isfinite(g), g, 0)  # of a bin without weight that may have nothing
    found = Solution.empty(xp, a, b)
    for value, at in groups(np.broadcast_to(given.eps, len(a))):
        some, own = costs_of(C, at), (a[at], b[at])
        start = some.softmin(logits(xp, b[at], g[at], value), value, 1)
        new_f, new_g, cost, error = some.iteration(*own, value, start, g[at], "log").finish(np.arange(len(at)))
        found.f[at], found.g[at], found.error[at] = brought(some, *own, new_f, new_g, value, error)
        found.cost[at] = cost
    return Problem.of(given, found.f, found.g, None, None), found


def _at_prices(
    given: CheckedProblem, C: Cost[Any], weights: tuple[Array, Array], side: Axis, potential: Array, reach: Reach
) -> tuple[Problem, Solution]:
    """Return the same of unbalanced transport: there the constant of the potential counts, and is the shift."""
    xp, (rho_a, rho_b) = C.xp, reach
    a, b = partnered(C, *weights)
    found = Solution.empty(xp, a, b)
    constant = gauge.mean(xp, (a, b)[side], potential)  # (B, 1)
    centred, shift = potential - constant, -constant if side else constant
    for value, at in groups(np.broadcast_to(given.eps, len(a))):
        some, t, own_a, own_b = costs_of(C, at), shift[at], a[at], b[at]
        new_g = centred[at]
        if side == 0:
            new_g = damped(some.softmin(logits(xp, own_a, new_g, value), value, 0), -t, value, rho_b)
        new_g = xp.where(own_b > 0, new_g, 0)  # of a bin that may have nothing there may be none
        q = logits(xp, own_b, new_g, value)
        new_f = damped(some.softmin(q, value, 1), t, value, rho_a)
        p = logits(xp, own_a, xp.where(own_a > 0, new_f, 0), value)
        image = some.softmin(p, value, 0)
        found.f[at], found.g[at] = new_f, xp.where(own_b > 0, new_g, damped(image, -t, value, rho_b))
        found.error[at] = C.to_host(marginal_error(xp, own_b, new_g, image, -t, value, rho_b))
        found.cost[at] = some.transport_cost(p, q, value)
    return Problem.of(given, found.f, found.g, reach, shift[:, 0]), found
