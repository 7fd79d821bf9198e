"""Gradients of balanced transport, see docs/gradients.md."""

from dataclasses import replace

import numpy as np

from cusink.costs.means import Means
from cusink.gradients.parts import Cotangents, replace_inf
from cusink.gradients.system import LinearSolve, MarginalSolution, solve_marginal_system
from cusink.gradients.terms import GradientTerms, apply_density
from cusink.solver.problem import Problem
from cusink.types import Array, HostArray


def balanced_terms(problem: Problem, given: Cotangents, how: LinearSolve) -> tuple[GradientTerms, HostArray]:
    """Return the terms, and whether the marginal system of each problem was solved (B,), in NumPy."""
    if any(x is not None for x in given._replace(reg_cost=None)):  # its gradients are the potentials as they are
        problem = problem.in_one_dtype()
    values = [x for x in (given.cost, given.reg_cost, given.entropic_cost) if x is not None]
    level = sum(values[1:], start=values[0]) if values else problem.xp.zeros(len(problem.a), problem.a.dtype)
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
    xp, a = problem.xp, problem.a
    f, g = replace_inf(xp, problem.f), replace_inf(xp, problem.g)
    sums: tuple[Array, Array] | None = None
    if given.f is not None and given.g is not None:
        sums = apply_density(replace(problem, f=f, g=g), given.f, given.g)

    def right(index: HostArray, means: Means) -> tuple[Array, Array]:
        every = len(index) == len(a)
        of_potentials = None if sums is None else tuple(v if every else v[index] for v in sums)
        if given.cost is None:
            assert of_potentials is not None
            return of_potentials
        # The means of log(P / a b') = (f + g - C) / eps: the potentials over eps, of which numbers have room.
        eps = problem.eps_as(2, index)
        w, f_, g_ = (v if every else v[index] for v in (given.cost[:, None], f, g))
        f_, g_, scaled = f_ / eps, g_ / eps, bool((w != 1).any())
        rows, columns = means.mean_less_cost(g_, eps, 1), means.mean_less_cost(f_, eps, 0)
        for k, (total, own) in enumerate(((rows, f_), (columns, g_))):
            total += own
            if scaled:
                total *= w
            if of_potentials is not None:
                total += of_potentials[k]
        return rows.astype(a.dtype, copy=False), columns.astype(a.dtype, copy=False)

    return solve_marginal_system(replace(problem, f=f, g=g), right, how)
