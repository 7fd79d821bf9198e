"""Gradients of potentials after a solve with `reach`, in which no marginal of the plan occurs.

With the shares R of rows and S of columns the potentials move as ``df = kappa_a <R, dC - dg>`` and ``dg = kappa_b <S,
dC - df>``. For cotangents u of f and v of g the transposed system

    x + kappa_b S y = u        kappa_a R' x + y = v

has one solution, and C takes ``kappa_a x_i R_ij + kappa_b y_j S_ij``. A bin that keeps nothing of its weight has its
shares all the same. The unknowns of `cusink.gradients.unbalanced` are larger by the inverse of what is kept. See
docs/unbalanced.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cusink.costs.cost import GradientBlock
from cusink.deferred import cached_property
from cusink.gradients.blocks import BlockTerms
from cusink.gradients.chebyshev import chebyshev, chebyshev_steps
from cusink.gradients.conditional import FAR, FAR_IN_FLOAT32, LogShares, goes_far
from cusink.gradients.motion import Solved, solved
from cusink.gradients.parts import Directions
from cusink.gradients.prices import through_potentials
from cusink.gradients.products import left_product, right_product
from cusink.gradients.system import ROUNDS, LinearSolve
from cusink.solver.problem import Problem
from cusink.types import Array, HostArray


@dataclass(frozen=True, eq=False, kw_only=True)
class PotentialTerms(BlockTerms):
    """The solution x (B, n), y (B, m) of the transposed system.

    `direct` makes blocks, given problems and rows, of what C takes besides, and `of_weights` is what weights do.
    """

    given: Solved
    x: Array
    y: Array
    direct: Callable[[slice, slice], Array] | None
    of_weights: tuple[Array | float, Array | float]

    @property
    def problem(self) -> Problem:
        """The problem in float64."""
        return self.given.problem

    @cached_property
    def _fields(self) -> tuple[Array, Array]:
        """The multipliers of the shares of rows and of columns."""
        of_rows, of_columns = self.given.damping
        return self.x / of_rows, self.y / of_columns

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights."""
        return self._wrt_weights[0]

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights."""
        return self._wrt_weights[1]

    @cached_property
    def _wrt_weights(self) -> tuple[Array, Array]:
        (rows, columns), (x, y) = self.given.sided, self._fields
        problem, xp = self.given.problem, self.given.problem.xp
        of_a, of_b = xp.zeros_like(problem.a), xp.zeros_like(problem.b)
        for of_rows, of_columns in zip(rows.pairs(Directions()), columns.pairs(Directions()), strict=True):
            at, some = of_rows.problems, of_rows.rows
            of_a[at, some] += right_product(of_columns.density, y[at])
            of_b[at] += left_product(of_rows.density, x[at, some])
        eps, (more_a, more_b) = problem.eps_as(2), self.of_weights
        return self.given.by_weights(more_a - eps * of_a, more_b - eps * of_b)

    def wrt_reach(self) -> Array | None:
        """Return the gradient (B, 2) or (2,) with respect to the prices of both marginals."""
        return self.shown.to_user(through_potentials(self.given.problem, self._fields))

    def _blocks(self, of_eps: Array | None = None) -> Iterator[GradientBlock]:
        """Yield the gradients by costs; add up those by eps."""
        (rows, columns), (x, y), log_ratio = self.given.sided, self._fields, self.given.log_ratio
        a, b = rows.problem.a, rows.problem.b
        for of_rows, of_columns in zip(rows.pairs(Directions(), log_ratio), columns.pairs(Directions()), strict=True):
            at, some = of_rows.problems, of_rows.rows
            gradient = of_rows.density * b[at, None, :] * x[at, some, None]
            gradient += of_columns.density * a[at, some, None] * y[at, None, :]
            if self.direct is not None:
                gradient += self.direct(at, some)
            if of_eps is not None:
                of_eps[at] += (gradient * of_rows.others[0]).sum(axis=(1, 2))
            yield at, some, gradient


def leaves_range(problem: Problem) -> bool:
    """Whether marginals of the problem, or the densities between them, leave the range of its user's dtype."""
    return problem.reach is not None and goes_far(problem, FAR if problem.dtype == np.float64 else FAR_IN_FLOAT32)


def potential_terms(problem: Problem, u: Array, v: Array, how: LinearSolve) -> tuple[PotentialTerms, HostArray]:
    """Return the terms of cotangents u (B, n) of f and v (B, m) of g, and which systems were solved (B,), in NumPy."""
    return sided_terms(problem, solved(problem), u.astype(np.float64), v.astype(np.float64), how)


def sided_terms(
    shown: Problem,
    given: Solved,
    u: Array,
    v: Array,
    how: LinearSolve,
    direct: Callable[[slice, slice], Array] | None = None,
    of_weights: tuple[Array | float, Array | float] = (0.0, 0.0),
) -> tuple[PotentialTerms, HostArray]:
    """Return the terms of cotangents in float64, with what costs and weights take besides."""
    u, v = (given.problem.xp.where(at, x, 0) for at, x in zip(given.reached, (u, v), strict=True))
    x, y, converged = _transposed(given.shares, given.damping, u, v, how)
    return PotentialTerms(shown=shown, given=given, x=x, y=y, direct=direct, of_weights=of_weights), converged


def _transposed(
    shares: LogShares, damping: tuple[float | Array, float | Array], u: Array, v: Array, how: LinearSolve
) -> tuple[Array, Array, HostArray]:
    """Return x, y and which problems were solved (B,): to `tol` in sums of sizes, which R' and S do not raise."""
    xp, (of_rows, of_columns) = shares.C.xp, damping
    both = of_rows * of_columns
    steps = min(how.max_iter, chebyshev_steps(float(xp.asarray(1 - 1 / both).min()), how.tol))
    target = how.tol * (xp.abs(u).sum(axis=1) + xp.abs(v).sum(axis=1))
    y = v - shares.spread(u, 1) / of_rows
    for attempt in range(ROUNDS + 1):
        x = u - shares.spread(y, 0) / of_columns
        residual = v - shares.spread(x, 1) / of_rows - y
        reached = shares.C.to_host(xp.abs(residual).sum(axis=1) <= target)
        if attempt == ROUNDS or reached.all():
            break
        y = y + chebyshev(lambda w: w - shares.spread(shares.spread(w, 0), 1) / both, residual, 1 - 1 / both, steps)
    y = y + residual  # one more step of the equations themselves
    return u - shares.spread(y, 0) / of_columns, y, reached
