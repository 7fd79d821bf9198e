"""Values of a solved problem, balanced or not, and bounds on the unregularised one."""

from dataclasses import replace

import numpy as np

from cusink.backends.operators import ops_for
from cusink.solver.unbalanced import translation

__all__ = [
    "values",
]

VALUES = ("cost", "reg_cost", "entropic_cost")


def values(xp, problem):
    """``reg_cost`` and ``entropic_cost`` (B,) of a solved problem, from its potentials."""
    if problem.reach is not None:
        return unbalanced_values(problem)
    a, b = problem.a, problem.b
    reg_cost = weighted_sum(xp, a, problem.f) + weighted_sum(xp, b, problem.g)
    return reg_cost, reg_cost - problem.eps * (_entropy(xp, a) + _entropy(xp, b))


def _entropy(xp, weights):
    """``-sum_i w_i log w_i`` (B,)."""
    log = xp.where(weights > 0, weights, 1)
    return -weighted_sum(xp, weights, xp.log(log, out=log))


def weighted_sum(xp, weights, values):
    """``sum_i weights_i values_i`` (B,), where a zero weight makes even an infinite value nothing."""
    if not xp.isfinite(values).all():
        values = xp.where(weights > 0, values, 0)
    return xp.einsum("bi,bi->b", weights.astype(np.float64, copy=False), values.astype(np.float64, copy=False))


def unbalanced_values(problem):
    """``reg_cost`` and ``entropic_cost`` (B,) of a solved problem, from its potentials."""
    xp, eps = ops_for(problem.C).xp, problem.eps
    dual, entropy, sums = 0, 0, []
    for (weights, potential, rho), unshifted in zip(sides(problem), (problem.f, problem.g), strict=True):
        weights, potential = (x.astype(np.float64) for x in (weights, xp.where(weights > 0, potential, 0)))
        marginal = weights * xp.exp(-potential / rho)
        dual += price(xp, weights, potential, rho)
        # <P, log P> in the potentials without their shift: both marginals have one mass, and it cancels.
        logs = xp.where(weights > 0, unshifted + eps * xp.log(xp.where(weights > 0, weights, 1)), 0)
        entropy += (marginal * logs).sum(axis=1)
        sums.append((weights.sum(axis=1), marginal.sum(axis=1)))
    (mass_a, mass), (mass_b, _) = sums
    return dual + eps * (mass_a * mass_b - mass), entropy


def unbalanced_bounds(problem):
    """Numbers (B,) between which ``min <P, C> + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)`` lies."""
    ops, xp = ops_for(problem.C), ops_for(problem.C).xp
    rounding = 8 * float(np.finfo(problem.C.dtype.name).eps)
    problem = replace(problem, **{name: getattr(problem, name).astype(np.float64) for name in "abCfg"})
    a, b, C, eps = problem.a, problem.b, problem.C, problem.eps
    g = xp.where(b > 0, problem.g, -xp.inf)
    f = ops.c_transform(C, g, axis=1)
    g = ops.c_transform(C, xp.where(a > 0, f, -xp.inf), axis=0)
    f, g = xp.where(a > 0, f, 0), xp.where(b > 0, g, 0)
    shift = translation(xp, a, b, f, g, problem.reach)[:, None]
    (rho_a, rho_b), f, g = problem.reach, f + shift, g - shift
    lower = price(xp, a, f, rho_a) + price(xp, b, g, rho_b)

    p, q = problem.logits()
    rows, columns = (ops.apply_plan(C, p, q, xp.ones_like(x), eps, axis) for x, axis in ((b, 1), (a, 0)))
    if rho_a == np.inf:  # the marginal that is to be met is met by scaling, and the other one follows
        p = p + _log_ratio(xp, a, rows)
        columns = ops.apply_plan(C, p, q, xp.ones_like(a), eps, 0)
    if rho_b == np.inf:
        q = q + _log_ratio(xp, b, columns)
        rows = ops.apply_plan(C, p, q, xp.ones_like(b), eps, 1)
    upper = ops.transport_cost(C, p, q, eps)
    moved = xp.abs(upper) + a.sum(axis=1) * max(map(abs, ops.cost_range(C)))  # by rounding of the plan's entries
    slack = 0
    for weights, potential, marginal, rho in ((a, f, rows, rho_a), (b, g, columns, rho_b)):
        if rho < np.inf:
            upper = upper + rho * marginal_divergence(xp, marginal, weights)
        else:  # a bin that no mass reaches, for underflow, cannot be scaled to what it is to have
            lost = ((weights > 0) & (marginal == 0)).any(axis=1)
            upper = xp.where(lost, xp.inf, upper)
        carried = xp.maximum(weights, weights * xp.exp(-potential / rho)).sum(axis=1)
        slack = slack + rounding * carried * xp.abs(potential).max(axis=1)
        moved = moved + carried * xp.abs(potential).max(axis=1)
    return problem.outward(lower - slack), problem.outward(upper + slack + problem.rounding() * moved)


def sides(problem):
    """Weights, potential and price of both sides."""
    f, g = problem.potentials()
    return (problem.a, f, problem.reach[0]), (problem.b, g, problem.reach[1])


def price(xp, weights, potential, rho):
    """What a potential brings in the dual objective, ``rho sum_i a_i (1 - exp(-f_i / rho))``: ``<a, f>`` for inf."""
    gain = potential if rho == np.inf else -rho * xp.expm1(-potential / rho)
    return (weights * gain).sum(axis=1)


def marginal_divergence(xp, marginal, weights):
    """``KL(p | a) = sum_i p_i log(p_i / a_i) - p_i + a_i`` (B,)."""
    both = (marginal > 0) & (weights > 0)
    ratio = xp.where(both, marginal, 1) / xp.where(both, weights, 1)
    return (marginal * xp.log(ratio) - marginal + weights).sum(axis=1)


def _log_ratio(xp, wanted, have):
    """Logarithm of the factors that take marginals `have` to `wanted`; 0 where there is nothing to scale."""
    both = (wanted > 0) & (have > 0)
    return xp.log(xp.where(both, wanted, 1) / xp.where(both, have, 1))
