"""Certified bounds on the unregularised problem, converged or not."""

import numpy as np

from cusink.solver.prices import price
from cusink.solver.problem import Problem
from cusink.solver.unbalanced import translation
from cusink.solver.values import weighted_sum
from cusink.types import Array, ArrayModule

FIRST_STEP = 2.0**-25  # of a bound that is rounded outwards: half of what float32 can add to 1


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # sums of plans without digits may be infinite
def bounds(solved: Problem) -> tuple[Array, Array]:
    """Return numbers (B,) between which the minimum lies: dual potentials made feasible, and a plan made feasible."""
    if solved.proved is not None:
        return _to_user(solved, *solved.proved)
    if solved.reach is not None:
        return _unbalanced_bounds(solved, solved.reach)
    # In float32 the entries of a plan are only known to some (C / eps) roundings: too few digits to certify with.
    problem = solved.in_float64()
    xp, a, b, C, eps = problem.xp, problem.a, problem.b, problem.C, problem.eps
    mass = a.sum(axis=1)
    g = xp.where(b > 0, problem.g, -xp.inf)
    f = C.c_transform(g, axis=1)
    g = C.c_transform(xp.where(a > 0, f, -xp.inf), axis=0)
    lower = weighted_sum(xp, a, f) + weighted_sum(xp, b, g)

    p, q = problem.logits()
    one = xp.ones_like(b)
    rows = C.apply_plan(p, q, one, eps, axis=1)
    p = p + xp.log(_shrink(xp, a, rows))
    columns = C.apply_plan(p, q, xp.ones_like(a), eps, axis=0)
    q = q + xp.log(_shrink(xp, b, columns))
    short_a = xp.maximum(a - C.apply_plan(p, q, one, eps, axis=1), 0)
    short_b = xp.maximum(b - C.apply_plan(p, q, xp.ones_like(a), eps, axis=0), 0)
    missing = xp.maximum(short_a.sum(axis=1), short_b.sum(axis=1))
    share = short_a / xp.where(missing > 0, missing, 1)[:, None]  # first, as products of masses may leave the range
    rest = xp.where(missing > 0, C.bilinear(share, short_b), 0)
    upper = C.transport_cost(p, q, eps) + rest

    carried = xp.where(a > 0, xp.abs(f), 0).max(axis=1), xp.where(b > 0, xp.abs(g), 0).max(axis=1)
    slack = 8 * float(np.finfo(solved.C.dtype).eps) * mass * (carried[0] + carried[1])
    # Each scaling recomputes the plan; allow for its rounding in the upper bound.
    upper = upper + problem.rounding() * (xp.abs(upper) + mass * C.largest()) + slack
    return _to_user(solved, xp.minimum(lower - slack, upper), upper)


def _unbalanced_bounds(solved: Problem, reach: tuple[float, float]) -> tuple[Array, Array]:
    """Return numbers (B,) between which ``min <P, C> + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)`` lies."""
    rounding = 8 * float(np.finfo(solved.C.dtype).eps)
    problem = solved.in_float64()
    xp, a, b, C, eps = problem.xp, problem.a, problem.b, problem.C, problem.eps
    g = xp.where((b > 0) & xp.isfinite(problem.g), problem.g, -xp.inf)
    f = C.c_transform(g, axis=1)
    g = C.c_transform(xp.where((a > 0) & xp.isfinite(f), f, -xp.inf), axis=0)
    f, g = xp.where(a > 0, f, 0), xp.where(b > 0, g, 0)
    shift = translation(xp, a, b, f, g, reach)[:, None]
    (rho_a, rho_b), f, g = reach, xp.where(a > 0, f + shift, 0), xp.where(b > 0, g - shift, 0)
    lower = price(xp, a, f, rho_a) + price(xp, b, g, rho_b)

    p, q = problem.logits()
    rows, columns = C.apply_plan(p, q, xp.ones_like(b), eps, 1), C.apply_plan(p, q, xp.ones_like(a), eps, 0)
    if rho_a == np.inf:  # the marginal that is to be met is met by scaling, and the other one follows
        p = p + _log_ratio(xp, a, rows)
        columns = C.apply_plan(p, q, xp.ones_like(a), eps, 0)
    if rho_b == np.inf:
        q = q + _log_ratio(xp, b, columns)
        rows = C.apply_plan(p, q, xp.ones_like(b), eps, 1)
    upper = C.transport_cost(p, q, eps)
    moved = xp.abs(upper) + a.sum(axis=1) * C.largest()  # by rounding of the plan's entries
    slack = 0
    for weights, potential, marginal, rho in ((a, f, rows, rho_a), (b, g, columns, rho_b)):
        if rho < np.inf:
            upper = upper + rho * marginal_divergence(xp, marginal, weights)
        else:  # a bin that no mass reaches, for underflow, cannot be scaled to what it is to have
            lost = ((weights > 0) & (marginal == 0)).any(axis=1)
            upper = xp.where(lost, xp.inf, upper)
        carried = xp.maximum(weights, weights * xp.exp(-potential / rho)).sum(axis=1)
        largest = xp.where(xp.isfinite(potential), xp.abs(potential), rho).max(axis=1)
        slack = slack + rounding * carried * largest
        moved = moved + carried * largest
    upper = upper + slack + problem.rounding() * moved
    return _to_user(solved, xp.minimum(lower - slack, upper), upper)


def _to_user(solved: Problem, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return bounds (B,) in the shape and the dtype of the user's arrays."""
    return solved.to_user(outwards(solved, lower, -1)), solved.to_user(outwards(solved, upper, 1))


def outwards(solved: Problem, bound: Array, sign: int) -> Array:
    """Return numbers (B,) that the user's dtype rounds to no less than `bound`, or to no more where `sign` is -1.

    The way out is searched by doubling, as not every library knows what is next to a number of half precision.
    """
    moved, step = bound, FIRST_STEP * solved.xp.abs(bound)
    while (inside := sign * (moved.astype(solved.dtype).astype(bound.dtype) - bound) < 0).any():
        moved, step = solved.xp.where(inside, bound + sign * step, moved), 2 * step
    return moved


def marginal_divergence(xp: ArrayModule, marginal: Array, weights: Array) -> Array:
    """Return ``KL(p | a) = sum_i p_i log(p_i / a_i) - p_i + a_i`` (B,)."""
    both = (marginal > 0) & (weights > 0)
    ratio = xp.where(both, marginal, 1) / xp.where(both, weights, 1)
    return (marginal * xp.log(ratio) - marginal + weights).sum(axis=1)


def _log_ratio(xp: ArrayModule, wanted: Array, have: Array) -> Array:
    """Return the logarithm of the factors from marginals `have` to `wanted`; 0 where nothing can be scaled."""
    both = (wanted > 0) & (have > 0)
    return xp.log(xp.where(both, wanted, 1) / xp.where(both, have, 1))


def _shrink(xp: ArrayModule, wanted: Array, have: Array) -> Array:
    """Return factors of at most 1 that bring marginals `have` down to `wanted`."""
    largest = xp.maximum(have, wanted)
    return xp.where(largest > 0, wanted / xp.where(largest > 0, largest, 1), 1)
