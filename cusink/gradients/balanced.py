"""Gradients of balanced transport, see docs/gradients.md."""

from dataclasses import replace

import numpy as np

from cusink.costs.operators import Means
from cusink.gradients.parts import Cotangents, replace_inf
from cusink.gradients.system import LinearSolve, MarginalSolution, solve_marginal_system
from cusink.gradients.terms import GradientTerms, apply_density
from cusink.solver.problem import Problem
from cusink.types import Array, HostArray


def balanced_terms(problem: Problem, given: Cotangents, how: LinearSolve) -> tuple[GradientTerms, HostArray]:
    """Return the terms, and whether the marginal system of each problem was solved (B,), in NumPy."""
    values = (x for x in (given.cost, given.reg_cost, given.entropic_cost) if x is not None)
    level = sum(values, start=problem.xp.zeros(len(problem.a), problem.a.dtype))
    grad_f, grad_g = given.f, given.g
    if grad_f is not None and grad_g is not None:  # of the potentials with equal sums over the bins with weight
        rows, columns = problem.a > 0, problem.b > 0
        count = rows.sum(axis=1, keepdims=True) + columns.sum(axis=1, keepdims=True)
        lead = ((grad_f.sum(axis=1, keepdims=True) - grad_g.sum(axis=1, keepdims=True)) / count).astype(grad_f.dtype)
        grad_f, grad_g = grad_f - lead * rows, grad_g + lead * columns
    x = y = None
    converged = np.ones(len(problem.a), bool)
    if given.cost is not None or grad_f is not None:
        x, y, converged = _fit(problem, given._replace(f=grad_f, g=grad_g), how)
    terms = GradientTerms(
        problem=problem,
        level=level,
        grad_cost=given.cost,
        grad_entropic_cost=given.entropic_cost,
        grad_f=grad_f,
        grad_g=grad_g,
        x=x,
        y=y,
    )
    return terms, converged


def _fit(problem: Problem, given: Cotangents, how: LinearSolve) -> MarginalSolution:
    """Solve for the x and y through which all gradients of the cost and the potentials go."""
    xp, a, b = problem.xp, problem.a, problem.b
    f, g = replace_inf(xp, problem.f), replace_inf(xp, problem.g)
    h, k = xp.zeros_like(a), xp.zeros_like(b)
    if given.f is not None and given.g is not None:
        h, k = apply_density(replace(problem, f=f, g=g), given.f, given.g)

    def right(index: HostArray, means: Means) -> tuple[Array, Array]:
        if given.cost is None:
            return h[index], k[index]
        # The means of log(P / a b') = (f + g - C) / eps: the potentials over eps, of which numbers have room.
        every, eps = len(index) == len(a), problem.eps_as(2, index)
        w, f_, g_, h_, k_ = (v if every else v[index] for v in (given.cost[:, None], f, g, h, k))
        f_, g_ = f_ / eps, g_ / eps
        rows = f_ + means.mean(g_, 1) - means.mean_cost(1) / eps
        columns = g_ + means.mean(f_, 0) - means.mean_cost(0) / eps
        return (w * rows + h_).astype(a.dtype), (w * columns + k_).astype(b.dtype)

    return solve_marginal_system(replace(problem, f=f, g=g), right, how)
