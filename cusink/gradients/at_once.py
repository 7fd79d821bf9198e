"""Gradients of the values of small problems on a device: one launch, and one look at whether they are right.

As for `cusink.solver.at_once`: where cotangents are not what they have to be, or the marginal system was not solved,
the gradients are thrown away, and `sinkhorn_adjoint` goes its usual way.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink.checks.arrays import array_module, largest
from cusink.checks.scalars import real
from cusink.costs.at_once import AdjointAtOnce, FitRules, SolvedArrays
from cusink.deferred import cached_property
from cusink.gradients.system import ROUNDS, LinearSolve
from cusink.gradients.terms import GradientTerms
from cusink.solver.problem import Problem
from cusink.types import Array


@dataclass(frozen=True, eq=False)
class TermsAtOnce:
    """Gradients that are known, as `cusink.gradients.parts.Terms`."""

    found: AdjointAtOnce
    problem: Problem = field(repr=False)
    grad_cost: float | Array
    level: float | Array

    def wrt_a(self) -> Array:
        """By the source weights."""
        return self.found.a

    def wrt_b(self) -> Array:
        """By the target weights."""
        return self.found.b

    def wrt_cost(self) -> Array | None:
        """By the cost; a sum over problems that share it is another launch."""
        problem, out = self.problem, self.found.C
        if out is None:
            return self._summed.wrt_cost()
        if problem.C.shared:
            return out[None] if problem.batch_of_one else out
        return out if problem.batched else out[0]

    @cached_property
    def _summed(self) -> GradientTerms:
        problem, xp = self.problem.in_one_dtype(), self.problem.xp
        level, grad_cost = (
            xp.full(len(problem.a), x, problem.a.dtype) if isinstance(x, float) else x.astype(problem.a.dtype)
            for x in (self.level, self.grad_cost)
        )
        return GradientTerms(problem=problem, level=level, grad_cost=grad_cost, x=self.found.x, y=self.found.y)

    def wrt_eps(self) -> Array:
        """By the regularisation."""
        return self.problem.to_user(self.found.eps)

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """None: a stored cost has no points."""
        return None, None

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """None: it has no axes."""
        return None

    def wrt_metric(self) -> dict[str, Array]:
        """Nothing: it has no metric."""
        return {}

    def wrt_reach(self) -> Array | None:
        """None: both marginals are met."""
        return None


def adjoint_at_once(
    problem: Problem, converged: Array, grad_cost: Any, grad_reg_cost: Any, how: LinearSolve
) -> TermsAtOnce | None:
    """Return the gradients of the sum of both values' cotangents; None where the usual way has to be gone."""
    pull, C = problem.C.ops.adjoint_at_once, problem.C
    if pull is None or not isinstance(problem.eps, float) or problem.reach is not None or problem.dtype != C.dtype:
        return None
    if problem.f.dtype != np.float64:
        return None
    given = [_cotangent(problem, x) for x in (grad_cost, grad_reg_cost)]
    if any(x is None for x in given) or (grad_cost is None and grad_reg_cost is None):
        return None
    of_cost, of_reg_cost = given
    level = of_reg_cost if grad_cost is None else of_cost if grad_reg_cost is None else of_cost + of_reg_cost
    arrays = SolvedArrays(problem.a, problem.b, problem.f, problem.g, converged.reshape(-1))
    found = pull(C.data, arrays, (of_cost, level), problem.eps, FitRules(how.tol, how.max_iter, ROUNDS))
    if found is None or not ((found.solved == 1) & (found.odd == 0) & (found.sound == 1)).all():
        return None
    return TermsAtOnce(found, problem, of_cost, level)


def _cotangent(problem: Problem, x: Any) -> Any:
    """Return a cotangent as a float or an array (B,), 0.0 for None; None for what has to be looked at or converted."""
    if x is None:
        return 0.0
    dtype = problem.C.dtype
    if isinstance(x, array_module(problem.f).ndarray):
        wanted = problem.a.shape[:1] if problem.batched else ()
        return x.reshape(-1) if x.dtype == dtype and x.shape == wanted else None
    number = real(x)
    if number is None or not abs(number) <= largest(dtype.name):
        return None
    return float(dtype.type(number))
