"""The values of a solved problem, from its potentials."""

from typing import NamedTuple, get_args

import numpy as np

from cusink.solver.prices import price
from cusink.solver.problem import Problem
from cusink.types import Array, ArrayModule, Value

LEAST_MASS = float(np.finfo(float).tiny)  # of a marginal by which may be divided
VALUES: tuple[Value, ...] = get_args(Value)


class Side(NamedTuple):
    """Weights and potential (B, n) of one side, and the price of its marginal."""

    weights: Array
    potential: Array
    rho: float


def values(problem: Problem) -> tuple[Array, Array]:
    """Return ``reg_cost`` and ``entropic_cost`` (B,), in float64."""
    if problem.reach is not None:
        return _unbalanced_values(problem)
    xp, a, b = problem.xp, problem.a, problem.b
    # <a, f> + <b, g>, in the gauge in which <a, f> is zero: there nothing cancels.
    wide_a, wide_b = (w.astype(np.float64, copy=False) for w in (a, b))
    level = weighted_sum(xp, wide_a, problem.f) / wide_a.sum(axis=1)
    reg_cost = weighted_sum(xp, wide_b, problem.g + level[:, None])
    return reg_cost, reg_cost - problem.eps_as(1) * (_entropy(xp, a, wide_a) + _entropy(xp, b, wide_b))


def _entropy(xp: ArrayModule, weights: Array, wide: Array) -> Array:
    """Return ``-sum_i w_i log w_i`` (B,) of weights in their dtype and in float64."""
    return -weighted_sum(xp, wide, xp.log(weights if weights.min() > 0 else xp.where(weights > 0, weights, 1)))


def weighted_sum(xp: ArrayModule, weights: Array, values: Array) -> Array:
    """Return ``sum_i weights_i values_i`` (B,); a zero weight counts nothing, even times an infinite value."""
    weights, values = weights.astype(np.float64, copy=False), values.astype(np.float64, copy=False)
    total = xp.einsum("bi,bi->b", weights, values)
    if xp.isfinite(total).all():  # as with values that are all finite
        return total
    return xp.einsum("bi,bi->b", weights, xp.where(weights > 0, values, 0))


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def _unbalanced_values(problem: Problem) -> tuple[Array, Array]:
    """Return `values` of unbalanced transport, see docs/unbalanced.md."""
    xp, eps = problem.xp, problem.eps_as(2)
    dual, sums, means = 0, [], []
    for (weights, potential, rho), unshifted in zip(sides(problem), (problem.f, problem.g), strict=True):
        weights, potential = (x.astype(np.float64) for x in (weights, xp.where(weights > 0, potential, 0)))
        marginal = weights * xp.exp(-potential / rho)
        dual += price(xp, weights, potential, rho)
        carries = (weights > 0) & xp.isfinite(potential)
        logs = xp.where(carries, unshifted + eps * xp.log(xp.where(weights > 0, weights, 1)), 0)
        share = marginal / xp.maximum(marginal.sum(axis=1), LEAST_MASS)[:, None]
        means.append((share * logs).sum(axis=1))
        sums.append((weights.sum(axis=1), marginal.sum(axis=1)))
    (mass_a, mass), (mass_b, _) = sums
    # <P, log P> by the means of both sides: both marginals have one mass, and a constant in f and g cancels.
    return dual + problem.eps_as(1) * (mass_a * mass_b - mass), mass * (means[0] + means[1])


def sides(problem: Problem) -> tuple[Side, Side]:
    """Return both sides of a problem with `reach`."""
    assert problem.reach is not None
    f, g = problem.potentials()
    return Side(problem.a, f, problem.reach[0]), Side(problem.b, g, problem.reach[1])
