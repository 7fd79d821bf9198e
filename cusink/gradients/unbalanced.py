"""Gradients of unbalanced transport, see docs/unbalanced.md: the envelope's, and the exact ones by a damped system.

The plan is also the balanced one between its own marginals ``a exp(-f / rho_a)`` and ``b exp(-g / rho_b)``, with the
potentials ``f / kappa_a`` and ``g / kappa_b``. In that form it goes where plans of balanced transport go. The system

    x + kappa_a R y = h        kappa_b S' x + y = k

with the conditional means R and S' differs from that of balanced transport by its factors, and has one solution.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cusink.gradients.system import additive_fit
from cusink.gradients.terms import Terms, finite, unweighted
from cusink.solver.values import sides


@dataclass(frozen=True, eq=False, kw_only=True)
class UnbalancedTerms(Terms):
    """As `Terms`, whose `problem` is that between the marginals.

    Weights may change their mass, so that their gradients `of_a` (B, n) and `of_b` (B, m) are not projected. `scaled`
    are f / rho_a and g / rho_b, and `lost` (B,) is what ``KL(P | a b')`` has beside ``<P, log(P / a b')>``.
    """

    of_a: Any
    of_b: Any
    scaled: tuple[Any, Any]
    lost: Any

    def by_a(self):
        return self.of_a

    def by_b(self):
        return self.of_b

    def by_eps(self):
        """Gradient by the regularisation, (B,) or ()."""
        out = self.lost.copy()
        for problems, rows in self._blocks():
            gradient, log_ratio, direct = self._block(problems, rows)
            log_ratio = log_ratio - self.scaled[0][problems, rows, None] - self.scaled[1][problems, None, :]
            out[problems] += ((gradient - direct) * log_ratio).sum(axis=(1, 2), dtype=np.float64)
        return self.problem.outward(out)


def unbalanced_terms(ops, problem, grad_cost, grad_reg_cost, grad_f, grad_g, tol, max_iter):
    """What the gradients are made of, and whether the linear system of each problem was solved (B,), in NumPy."""
    xp, eps, dtype = ops.xp, problem.eps, problem.a.dtype
    scaled = tuple(finite(xp, potential / rho) for _, potential, rho in sides(problem))
    kept = tuple(xp.exp(-x) for x in scaled)  # of its weight by each bin; by an empty one, of a first bit
    f, g = ((finite(xp, x) + eps * s).astype(dtype) for x, s in zip((problem.f, problem.g), scaled, strict=True))
    a, b = ((weights * k).astype(dtype) for weights, k in zip((problem.a, problem.b), kept, strict=True))
    level = sum((x for x in (grad_cost, grad_reg_cost) if x is not None), start=xp.zeros(len(a), dtype))
    of_weights, lost = [xp.zeros(x.shape, np.float64) for x in (a, b)], xp.zeros(len(a), np.float64)
    if grad_reg_cost is not None:
        mass_a, mass_b, mass = (x.sum(axis=1, dtype=np.float64) for x in (problem.a, problem.b, a))
        lost = grad_reg_cost * (mass_a * mass_b - mass)
        for out, (_, potential, rho), keeps, other in zip(
            of_weights, sides(problem), kept, (mass_b, mass_a), strict=True
        ):
            gain = potential if rho == np.inf else -rho * xp.expm1(-potential / rho)
            out += grad_reg_cost[:, None] * (gain + eps * (other[:, None] - keeps))
    x = y = None
    converged = np.ones(len(a), bool)
    marginal = replace(problem, a=a, b=b, f=f, g=g)
    if grad_cost is not None or grad_f is not None:
        slack = tuple(eps / rho for rho in problem.reach)
        by_a, by_b = (1 / (1 + s) for s in slack)
        (rows, columns), x, y, converged = _fit(ops, marginal, grad_cost, grad_f, grad_g, tol, max_iter, slack)
        of_weights[0] += kept[0] * (rows - eps * by_b * x)
        of_weights[1] += kept[1] * (columns - eps * by_a * y)
        w = 0 if grad_cost is None else grad_cost[:, None]
        x, y = (w * f - by_a * (rows - eps * by_b * x)) / eps, (w * g - by_b * (columns - eps * by_a * y)) / eps
        if grad_f is not None:
            grad_f, grad_g = by_a * grad_f, by_b * grad_g
    reached = (xp.isfinite(potential) for potential in (problem.f, problem.g))
    of_a, of_b = (xp.where(at, out, 0).astype(dtype) for at, out in zip(reached, of_weights, strict=True))
    terms = UnbalancedTerms(
        problem=marginal,
        level=level,
        grad_cost=grad_cost,
        grad_entropic_cost=None,
        grad_f=grad_f,
        grad_g=grad_g,
        x=x,
        y=y,
        of_a=of_a,
        of_b=of_b,
        scaled=scaled,
        lost=lost,
    )
    return terms, converged


def _fit(ops, problem, grad_cost, grad_f, grad_g, tol, max_iter, slack):
    """The means of the cost given each bin times grad_cost, the solution x, y of the system, and who converged."""
    xp, eps, C, a, b = ops.xp, problem.eps, problem.C, problem.a, problem.b
    costs, h, k = (xp.zeros_like(a), xp.zeros_like(b)), xp.zeros_like(a), xp.zeros_like(b)
    if grad_f is not None:
        h, k = unweighted(ops, C, problem.f, problem.g, eps, grad_f, grad_g)

    def right(index, means):
        if grad_cost is None:
            return h[index], k[index]
        for out, axis in zip(costs, (1, 0), strict=True):
            out[index] = grad_cost[index, None] * means.mean_cost(axis)
        of_rows, of_columns = means.mean(costs[1][index], 1) / eps, means.mean(costs[0][index], 0) / eps
        return (of_rows + h[index]).astype(a.dtype), (of_columns + k[index]).astype(b.dtype)

    return costs, *additive_fit(ops, C, a, b, problem.f, problem.g, eps, right, tol, max_iter, slack)
