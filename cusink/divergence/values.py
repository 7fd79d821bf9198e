"""Values with all the digits of float64, of potentials that have fewer."""

from dataclasses import replace

import numpy as np

from cusink.solver.near import near_softmin
from cusink.solver.problem import Problem
from cusink.solver.unbalanced import damped
from cusink.solver.values import values
from cusink.types import Array, ArrayModule


def value_in_float64(problem: Problem, mass: Array) -> Array:
    """Return the dual value (B,) of the potential g with the best f for it, of balanced problems at a `mass` (B,).

    It is as accurate as the square of the error of g.
    """
    problem = problem.in_float64()
    if problem.reach is None:  # all of one mass, to more digits than the weights were given with
        a, b = (w * (mass[:, None] / w.sum(axis=1, keepdims=True)) for w in (problem.a, problem.b))
        problem = replace(problem, a=a, b=b)
    _, q = problem.logits()
    C, eps, near = problem.C, problem.eps, None
    if len(q) == 1 and problem.reach is None:
        near = near_softmin(C, problem.a, problem.b, float(np.max(eps)), many=False)
    if near is not None:
        f = near(problem.f, problem.g)
    elif C.shared and not isinstance(eps, np.ndarray):
        f = C.repeated_softmin(eps)(q, 1)
    else:
        f = C.softmin(q, eps, 1)
    if problem.reach is not None and problem.shift is not None:
        f = damped(f, problem.shift[:, None], problem.eps_as(2), problem.reach[0])
    return values(replace(problem, f=f))[0]


def range_of(xp: ArrayModule, used: Array, potential: Array) -> Array:
    """Return by how much the potential of used bins differs (B,)."""
    used = used & xp.isfinite(potential)
    highest, lowest = xp.where(used, potential, -xp.inf).max(axis=1), xp.where(used, potential, xp.inf).min(axis=1)
    return xp.maximum(highest - lowest, 0)
