"""Sums over plans that move, and the derivative of `reg_cost`, which needs no change of the potentials."""

from typing import NamedTuple

import numpy as np

from cusink.gradients.affine import Affine
from cusink.gradients.motion import DENSEST, Motion, solved
from cusink.gradients.parts import Directions, replace_inf
from cusink.solver.problem import Problem
from cusink.types import Array


class Sums(NamedTuple):
    """Sums over pairs (B,): ``<P, dC>``, ``<P, Z>``, ``<dP, Z>``."""

    of_costs: Array
    log_ratio: Array
    moved: Array


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def plan_sums(moved: Motion) -> Sums:
    """Go through the plans once."""
    xp, moves = moved.solved.problem.xp, moved.along.cost is not None
    out = Sums(*(xp.zeros(len(moved.df)) for _ in Sums._fields))
    for pairs, P, dP, _ in moved.plans(*([Affine(move=xp.ones(len(moved.df)))] if moves else [])):
        at, Z = pairs.problems, pairs.log_ratio
        for dC in pairs.others:
            out.of_costs[at] += (P * dC).sum(axis=(1, 2))
        out.log_ratio[at] += (P * Z).sum(axis=(1, 2))
        out.moved[at] += (dP * Z).sum(axis=(1, 2))
    return out


def reg_cost_tangent(problem: Problem, along: Directions) -> Array:
    """Return the derivative (B,) of `reg_cost` alone, by the envelope theorem: no system is solved."""
    given = solved(problem)
    still = problem.xp.zeros_like(given.problem.a), problem.xp.zeros_like(given.problem.b)
    moved = Motion(given, given.feasible(along), *still, np.ones(len(problem.a), bool))
    _, of_a, of_b = both_sides(moved)
    return reg_cost_along(moved, plan_sums(moved), of_a, of_b)


def reg_cost_along(moved: Motion, sums: Sums, of_a: Array, of_b: Array) -> Array:
    """Return the derivative (B,) of `reg_cost`, given its gradients by the weights."""
    along, problem, kl = moved.along, moved.solved.problem, sums.log_ratio
    if moved.solved.kept is not None:
        mass_a, mass_b, mass = (x.sum(axis=1) for x in (problem.a, problem.b, problem.a * moved.solved.kept[0]))
        kl = kl + mass_a * mass_b - mass
    out: Array = along.dot(of_a, of_b) + sums.of_costs + kl * (0 if along.eps is None else along.eps)
    return out


def both_sides(moved: Motion) -> tuple[list[tuple[Array, Array, Array]], Array, Array]:
    """Return for both sides the marginal, how it moves, and the weights; and the gradients of `reg_cost`."""
    given, xp = moved.solved, moved.solved.problem.xp
    problem, marginals, gradients = given.problem, [], []
    for k, (weights, potential, change) in enumerate(
        zip((problem.a, problem.b), given.dual, (moved.df, moved.dg), strict=True)
    ):
        direction = moved.along[k]
        direction = xp.zeros_like(weights) if direction is None else direction
        if given.kept is None or problem.reach is None:
            marginals.append((weights, direction, weights))
            gradients.append(replace_inf(xp, potential))
            continue
        kept, rho = given.kept[k], problem.reach[k]
        other = (problem.b, problem.a)[k].sum(axis=1, keepdims=True)
        marginals.append((weights * kept, kept * (direction - weights * change / rho), weights))
        gain = potential if rho == np.inf else -rho * xp.expm1(xp.minimum(-potential / rho, DENSEST))
        gradients.append(gain + problem.eps_as(2) * (other - kept))
    return marginals, gradients[0], gradients[1]
