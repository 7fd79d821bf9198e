"""Gradients of functions of the plan: of ``<M, P>`` for a matrix M, given whole or as a product of thin ones.

With the least-squares fit ``X_i + Y_j`` of M under the plan, the gradient by C is ``-P (M - X - Y) / eps``, and those
by the weights are X and Y: `cost` is the case M = C, plus the plan itself. See docs/gradients.md. M is taken block by
block, so that nothing of its size is made for a cloud.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cusink.costs.cost import GradientBlock
from cusink.gradients.blocks import BlockTerms
from cusink.gradients.motion import Solved, motion, solved
from cusink.gradients.parts import Directions, Terms
from cusink.gradients.prices import through_potentials
from cusink.gradients.products import left_product, right_product
from cusink.gradients.system import LinearSolve
from cusink.solver.problem import Problem
from cusink.types import Array, Axis, HostArray

Matrix = Callable[[slice, slice], Array]  # a block of M (problems, rows, m), given problems and rows
Product = Callable[[slice, slice, Array], Array]  # a block of ``P_ij M_ij``, given problems, rows and the block of P


@dataclass(frozen=True, eq=False, kw_only=True)
class PlanTerms(BlockTerms):
    """A solved problem, ``P_ij M_ij``, the fit x, y of ``M / eps``, and weights (B,) of the plan and of its entropy."""

    given: Solved
    product: Product
    x: Array
    y: Array
    direct: Array | None = None
    entropy: Array | None = None

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights."""
        return self._wrt_weights()[0]

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights."""
        return self._wrt_weights()[1]

    @property
    def problem(self) -> Problem:
        """The problem in float64."""
        return self.given.problem

    @np.errstate(over="ignore")  # by a first bit of weight in a bin that would keep ever more of it: cut off
    def _wrt_weights(self) -> tuple[Array, Array]:
        problem, kept = self.given.problem, self.given.kept
        out = [problem.eps_as(2) * self.x, problem.eps_as(2) * self.y]
        if kept is not None and problem.reach is not None:
            out = [x * k * (1 + problem.eps_as(2) / rho) for x, k, rho in zip(out, kept, problem.reach, strict=True)]
        return self.given.by_weights(out[0], out[1])

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud."""
        problem, w = self.problem, 0.0 if self.direct is None else self.direct[:, None]
        if self.given.kept is not None:
            return super().wrt_points()
        # A cost that grows by rows and columns changes no plan, and so no function of it alone.
        return problem.C.points_adjoint(self._blocks(), (w * problem.a, w * problem.b))

    def _summed_eps(self) -> Array:
        """Return the gradient (B,) by eps, with that of the entropy."""
        out = super()._summed_eps()
        return out if self.entropy is None else out + self.entropy

    def wrt_reach(self) -> Array | None:
        """Return the gradient (B, 2) or (2,) with respect to the prices of both marginals."""
        problem, kept = self.given.problem, self.given.kept
        if kept is None:
            return None
        fields = (problem.a * kept[0] * self.x, problem.b * kept[1] * self.y)
        return self.shown.to_user(through_potentials(problem, fields))

    def _blocks(self, of_eps: Array | None = None) -> Iterator[GradientBlock]:
        """Yield the gradients by costs; add up those by eps, which move Z and not the plan itself."""
        problem = self.given.problem
        for pairs in self.given.pairs(Directions()):
            problems, rows = pairs.problems, pairs.rows
            P = pairs.density * problem.a[problems, rows, None] * problem.b[problems, None, :]
            with np.errstate(over="ignore", invalid="ignore"):  # of potentials that solve nothing, which is said before
                gradient = P * (self.x[problems, rows, None] + self.y[problems, None, :])
                gradient -= self.product(problems, rows, P) / problem.eps_as(3, problems)
                if of_eps is not None:
                    of_eps[problems] += (gradient * pairs.log_ratio).sum(axis=(1, 2))
            if self.direct is not None:
                gradient += P * self.direct[problems, None, None]
            yield problems, rows, gradient


def plan_terms(problem: Problem, matrix: Matrix, how: LinearSolve) -> tuple[PlanTerms, HostArray]:
    """Return the terms of ``<M, P>``, and whether the marginal system of each problem was solved (B,), in NumPy."""
    return _fitted(problem, solved(problem), matrix, how)


def entropic_terms(problem: Problem, weight: Array, how: LinearSolve) -> tuple[PlanTerms, HostArray]:
    """Return the terms of `entropic_cost` with cotangent `weight` (B,) after a solve with `reach`.

    It is ``<P, C> + eps <P, log P>``, and ``C + eps log P`` is a sum of rows and columns.
    """
    given = solved(problem)
    double, xp = given.problem, given.problem.xp
    weight = weight.astype(np.float64)
    logs = [xp.log(xp.where(w > 0, w, 1)) for w in (double.a, double.b)]
    rows = weight[:, None] * (double.f + double.eps_as(2) * (logs[0] + 1))
    columns = weight[:, None] * (double.g + double.eps_as(2) * logs[1])
    entropy = xp.zeros(len(weight))
    for pairs in given.pairs(Directions()):
        at = pairs.problems
        P = pairs.density * double.a[at, pairs.rows, None] * double.b[at, None, :]
        entropy[at] += (P * (pairs.log_ratio + logs[0][at, pairs.rows, None] + logs[1][at, None, :])).sum(axis=(1, 2))
    return _fitted(problem, given, functools.partial(_sum_of, rows, columns), how, weight, weight * entropy)


def _sum_of(of_rows: Array, of_columns: Array, problems: slice, rows: slice) -> Array:
    """Return a block of the matrix that is a sum of rows (B, n) and columns (B, m)."""
    block: Array = of_rows[problems, rows, None] + of_columns[problems, None, :]
    return block


def _fitted(
    shown: Problem,
    given: Solved,
    matrix: Matrix,
    how: LinearSolve,
    direct: Array | None = None,
    entropy: Array | None = None,
) -> tuple[PlanTerms, HostArray]:
    """Solve for the fit of M."""
    problem, xp = given.problem, given.problem.xp
    h, k = xp.zeros_like(problem.a), xp.zeros_like(problem.b)
    for pairs in given.pairs(Directions()):
        M = pairs.density * matrix(pairs.problems, pairs.rows)
        h[pairs.problems, pairs.rows] += right_product(M, problem.b[pairs.problems])
        k[pairs.problems] += left_product(M, problem.a[pairs.problems, pairs.rows])
    return product_terms(shown, given, functools.partial(_times, matrix), (h, k), how, direct, entropy)


def _times(matrix: Matrix, problems: slice, rows: slice, P: Array) -> Array:
    """Return a block of ``P_ij M_ij``."""
    block: Array = P * matrix(problems, rows)
    return block


def product_terms(
    shown: Problem,
    given: Solved,
    product: Product,
    sums: tuple[Array, Array],
    how: LinearSolve,
    direct: Array | None = None,
    entropy: Array | None = None,
) -> tuple[PlanTerms, HostArray]:
    """Return the terms of products ``P_ij M_ij``, given their sums over rows / a (B, n) and over columns / b (B, m)."""
    eps = given.problem.eps_as(2)
    ((x, y, converged),) = given.solve([given.sums(sums[0] / eps, sums[1] / eps)], how)
    terms = PlanTerms(shown=shown, given=given, product=product, x=x, y=y, direct=direct, entropy=entropy)
    return terms, converged


@dataclass(frozen=True, eq=False)
class SumOfTerms:
    """Terms of several cotangents, whose gradients add up."""

    parts: tuple[Terms, ...]

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights."""
        return sum(part.wrt_a() for part in self.parts)

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights."""
        return sum(part.wrt_b() for part in self.parts)

    def wrt_cost(self) -> Array | None:
        """Return the gradient with respect to a stored cost."""
        return _total([part.wrt_cost() for part in self.parts])

    def wrt_eps(self) -> Array:
        """Return the gradient with respect to the regularisation."""
        return sum(part.wrt_eps() for part in self.parts)

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """Return the gradients with respect to the positions of the cells of a grid."""
        found = [part.wrt_axes() for part in self.parts]
        return None if found[0] is None else tuple(map(_total, zip(*found, strict=True)))

    def wrt_reach(self) -> Array | None:
        """Return the gradient with respect to the prices of both marginals."""
        return _total([part.wrt_reach() for part in self.parts])

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud."""
        x, y = zip(*(part.wrt_points() for part in self.parts), strict=True)
        return _total(x), _total(y)

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of a metric."""
        found = [part.wrt_metric() for part in self.parts]
        return {name: sum(part[name] for part in found) for name in found[0]}


def _total(parts: Sequence[Array | None]) -> Array | None:
    """Return the sum of gradients, None where there is none."""
    total: Array | None = None if parts[0] is None else functools.reduce(operator.add, parts)
    return total


def applied_tangent(problem: Problem, along: Directions, v: Array, axis: Axis, how: LinearSolve) -> Array:
    """Return the derivative of ``P v`` (axis 1) or ``P' v`` (axis 0) along a direction, for v (B, ., d) that stays."""
    moved, bins = motion(solved(problem), along, how), problem.C.shape[-2 if axis == 1 else -1]
    out = problem.xp.zeros((len(problem.a), bins, v.shape[-1]))
    for pairs, _, dP, _ in moved.plans():
        if axis == 1:
            out[pairs.problems, pairs.rows] += dP @ v[pairs.problems]
        else:
            out[pairs.problems] += problem.xp.swapaxes(dP, -1, -2) @ v[pairs.problems, pairs.rows]
    return out
