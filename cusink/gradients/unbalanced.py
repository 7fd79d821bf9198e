"""Gradients of unbalanced transport, see docs/unbalanced.md: the envelope's, and the exact ones by a damped system.

The plan is also the balanced one between its own marginals ``a exp(-f / rho_a)`` and ``b exp(-g / rho_b)``, with the
potentials ``f / kappa_a`` and ``g / kappa_b``. In that form it goes where plans of balanced transport go. The system

    x + kappa_a R y = h        kappa_b S' x + y = k

with the conditional means R and S' differs from that of balanced transport by its factors, and has one solution.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cusink.costs.means import Means
from cusink.gradients.first_bits import largest_factor
from cusink.gradients.parts import Cotangents, replace_inf
from cusink.gradients.prices import through_potentials, unmet
from cusink.gradients.system import LinearSolve, MarginalSolution, solve_marginal_system
from cusink.gradients.terms import GradientTerms, apply_density
from cusink.solver.problem import Problem
from cusink.solver.values import sides
from cusink.types import Array, HostArray


@dataclass(frozen=True, eq=False, kw_only=True)
class UnbalancedTerms(GradientTerms):
    """As `GradientTerms`, whose `problem` is that between the marginals.

    Weights may change their mass, so that their gradients `of_a` (B, n) and `of_b` (B, m) are not projected. `scaled`
    are f / rho_a and g / rho_b, `of_reach` (B, 2) is the gradient by the prices, and `lost` (B,) is ``KL(P | a b')``
    minus ``<P, log(P / a b')>``.
    """

    of_a: Array
    of_b: Array
    scaled: tuple[Array, Array]
    lost: Array
    of_reach: Array

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights."""
        return self.of_a

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights."""
        return self.of_b

    def wrt_reach(self) -> Array | None:
        """Return the gradient (B, 2) or (2,) with respect to the prices of both marginals."""
        return self.problem.to_user(self.of_reach)

    @np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
    def wrt_eps(self) -> Array:
        """Return the gradient with respect to the regularisation, (B,) or ()."""
        out = self.lost.copy()
        for problems, rows in self._blocks():
            gradient, log_ratio, direct = self._block(problems, rows, with_log_ratio=True)
            log_ratio = log_ratio - self.scaled[0][problems, rows, None] - self.scaled[1][problems, None, :]
            out[problems] += ((gradient - direct) * log_ratio).sum(axis=(1, 2), dtype=np.float64)
        return self.problem.to_user(out)


def unbalanced_terms(problem: Problem, given: Cotangents, how: LinearSolve) -> tuple[GradientTerms, HostArray]:
    """Return the terms, and whether the marginal system of each problem was solved (B,), in NumPy."""
    assert problem.reach is not None
    xp, eps, dtype = problem.xp, problem.eps_as(2), problem.a.dtype
    # The derivative by a first bit of weight may leave the range of the user's dtype: it is clipped.
    least = -float(np.log(largest_factor(problem.dtype)))
    scaled = tuple(xp.maximum(replace_inf(xp, side.potential) / side.rho, least) for side in sides(problem))
    # Fraction of its weight that each bin sends away, the limit for empty bins; 0 where all partners are forbidden.
    kept = tuple(
        xp.where(xp.isfinite(side.potential), xp.exp(-x), 0) for x, side in zip(scaled, sides(problem), strict=True)
    )
    f, g = ((replace_inf(xp, x) + eps * s).astype(dtype) for x, s in zip((problem.f, problem.g), scaled, strict=True))
    a, b = ((weights * k).astype(dtype) for weights, k in zip((problem.a, problem.b), kept, strict=True))
    level = sum((x for x in (given.cost, given.reg_cost) if x is not None), start=xp.zeros(len(a), dtype))
    of_weights, lost = [xp.zeros(x.shape, np.float64) for x in (a, b)], xp.zeros(len(a), np.float64)
    if given.reg_cost is not None:
        mass_a, mass_b, mass = (x.sum(axis=1, dtype=np.float64) for x in (problem.a, problem.b, a))
        lost = given.reg_cost * (mass_a * mass_b - mass)
        for out, (_, potential, rho), of_rho, keeps, other in zip(
            of_weights, sides(problem), scaled, kept, (mass_b, mass_a), strict=True
        ):
            gain = potential if rho == np.inf else xp.where(xp.isfinite(potential), -rho * xp.expm1(-of_rho), rho)
            out += given.reg_cost[:, None] * (gain + eps * (other[:, None] - keeps))
    x = y = None
    through: Array | float = 0
    converged = np.ones(len(a), bool)
    marginal = replace(problem, a=a, b=b, f=f, g=g)
    grad_f, grad_g = given.f, given.g
    if given.cost is not None or grad_f is not None:
        slack = (eps / problem.reach[0], eps / problem.reach[1])
        of_rows, of_columns = (1 / (1 + s) for s in slack)
        evenly = grad_f is not None  # of values, what light bins have counts as little as they do
        costs, (x, y, converged) = _fit(marginal, given, replace(how, slack=slack, evenly=evenly))
        of_weights[0] += kept[0] * (costs.rows - eps * of_columns * x)
        of_weights[1] += kept[1] * (costs.columns - eps * of_rows * y)
        w = 0 if given.cost is None else given.cost[:, None]
        x, y = (
            (w * f - of_rows * (costs.rows - eps * of_columns * x)) / eps,
            (w * g - of_columns * (costs.columns - eps * of_rows * y)) / eps,
        )
        of_prices = (a * (w * f / eps - x), b * (w * g / eps - y))
        if grad_f is not None and grad_g is not None:
            grad_f, grad_g = of_rows * grad_f, of_columns * grad_g
            of_prices = (of_prices[0] + grad_f, of_prices[1] + grad_g)
        through = through_potentials(problem, of_prices)
    # A bin that must send its weight away, and may not, cannot take any.
    reached = (xp.isfinite(x) | (rho < np.inf) for x, rho in zip((problem.f, problem.g), problem.reach, strict=True))
    of_a, of_b = (xp.where(at, out, 0).astype(dtype) for at, out in zip(reached, of_weights, strict=True))
    terms = UnbalancedTerms(
        problem=marginal,
        level=level,
        grad_cost=given.cost,
        grad_f=grad_f,
        grad_g=grad_g,
        x=x,
        y=y,
        of_a=of_a,
        of_b=of_b,
        scaled=(scaled[0], scaled[1]),
        lost=lost,
        of_reach=through + (0 if given.reg_cost is None else given.reg_cost[:, None] * unmet(problem)),
    )
    return terms, converged


class MeanCosts(NamedTuple):
    """Mean cost of each row (B, n) and of each column (B, m) under the plan, times the cotangent of the cost."""

    rows: Array
    columns: Array


def _fit(problem: Problem, given: Cotangents, how: LinearSolve) -> tuple[MeanCosts, MarginalSolution]:
    """Return the mean costs and the solution of the damped system."""
    xp, a, b = problem.xp, problem.a, problem.b
    costs, h, k = MeanCosts(xp.zeros_like(a), xp.zeros_like(b)), xp.zeros_like(a), xp.zeros_like(b)
    if given.f is not None and given.g is not None:
        h, k = apply_density(problem, given.f, given.g)

    def right(index: HostArray, means: Means) -> tuple[Array, Array]:
        if given.cost is None:
            return h[index], k[index]
        eps, w = problem.eps_as(2, index), given.cost[index, None]
        of_rows, of_columns = means.mean_cost(1), means.mean_cost(0)
        costs.rows[index], costs.columns[index] = w * of_rows, w * of_columns
        # Means first: a kernel has no room for what is large.
        of_rows, of_columns = w * means.mean(of_columns / eps, 1), w * means.mean(of_rows / eps, 0)
        return (of_rows + h[index]).astype(a.dtype), (of_columns + k[index]).astype(b.dtype)

    return costs, solve_marginal_system(problem, right, how)
