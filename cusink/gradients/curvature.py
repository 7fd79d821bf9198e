"""Products of Hessians of the values with directions: how the gradients of `cusink.gradients.adjoint` move.

With the levels L of all values and w of `cost`, and ``W = Z - x - y`` of the fit x, y of docs/gradients.md, the
gradients are ``L f - w eps x`` by a, ``P (L + w W)`` by C and ``<P Z, L - w + w W>`` by eps. Their derivatives need
df and dg, and

    dx + R dy = <R dZ + E db, W> + <R, dZ>        S'dx + dy = <S dZ + E'da, W> + <S, dZ>

from the same system. docs/second-order.md derives it, and what `reach` changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.cost import TangentBlock
from cusink.deferred import cached_property
from cusink.gradients.affine import Affine
from cusink.gradients.motion import Motion, Solved, motion, solved
from cusink.gradients.parts import Cotangents, Directions
from cusink.gradients.products import left_product, product_sums, right_product
from cusink.gradients.system import LinearSolve, warn_rough
from cusink.placement import on_device
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array, HostArray
from cusink.workers import one_blas_thread


class Fit(NamedTuple):
    """The fit x, y behind `cost`, how it moves, and the factor `weight` (B,) of ``W = of_ratio Z - x - y``.

    `of_a` and `of_b` are how the gradients by the weights move that go through the fit. `share` is the cotangent of the
    values behind it. In balanced transport this and `weight` are the cotangent of `cost`, and `of_ratio` is 1; with
    `reach` the cotangents are in the fit, `weight` is 1, and `entropic_cost` goes through it too.
    """

    x: Array
    y: Array
    dx: Array
    dy: Array
    weight: Array
    of_ratio: Array
    share: Array
    of_a: Array
    of_b: Array

    def residual(self, given: Solved) -> Affine:
        """Return the array ``weight W``."""
        fit = Affine(rows=self.x, columns=self.y)
        return given.log_ratio.times(self.of_ratio).minus(fit).times(self.weight)

    def residual_moved(self, moved: Motion) -> Affine:
        """Return how that array moves."""
        fit = Affine(rows=self.dx, columns=self.dy)
        return moved.log_ratio.times(self.of_ratio).minus(fit).times(self.weight)


class ThroughPlan(NamedTuple):
    """Derivatives of the gradients by a stored cost, by points, and by eps (B,)."""

    C: Array | None
    points: tuple[Array | None, Array | None]
    eps: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Curvature:
    """How the gradients of a solved problem move along a direction.

    `level` (B,) is the sum of the cotangents, `entropic` that of `entropic_cost` in balanced transport, where its
    entropy is that of the plan's ratio and of the weights; `entropy` is it with `reach`.
    """

    moved: Motion
    level: Array
    fit: Fit | None
    entropic: Array | None
    entropy: Array | None
    shown: Problem

    @property
    def priced(self) -> Array:
        """The cotangents (B,) but for those behind the fit: of values with the prices of the marginals in them."""
        return self.level if self.fit is None else self.level - self.fit.share

    def wrt_weights(self) -> tuple[Array, Array]:
        """Return the derivatives (B, n) and (B, m) of the gradients by the weights."""
        given, along, eps = self.moved.solved, self.moved.along, self.moved.solved.problem.eps_as(2)
        problem, xp, level = given.problem, given.problem.xp, self.priced[:, None]
        deps = None if along.eps is None else along.eps[:, None]
        out = []
        for k, (weights, change) in enumerate(zip((problem.a, problem.b), (self.moved.df, self.moved.dg), strict=True)):
            of = level * change
            if given.kept is not None and problem.reach is not None:
                kept, rho = given.kept[k], problem.reach[k]
                other, moves = (problem.b, problem.a)[k], (along.b, along.a)[k]
                of = level * change * kept * (1 + eps / rho)
                if deps is not None:
                    of = of + level * deps * (other.sum(axis=1, keepdims=True) - kept)
                if moves is not None:
                    of = of + level * eps * moves.sum(axis=1, keepdims=True)
            if self.fit is not None:
                of = of + (self.fit.of_a, self.fit.of_b)[k]
            if self.entropic is not None:
                some = weights > 0
                safe, moves = xp.where(some, weights, 1), along[k]
                if deps is not None:
                    of = of + self.entropic[:, None] * xp.where(some, deps * (xp.log(safe) + 1), 0)
                if moves is not None:
                    of = of + self.entropic[:, None] * xp.where(some, eps * moves / safe, 0)
            out.append(of)
        return given.by_weights(out[0], out[1])

    @cached_property
    @on_device
    def through_plan(self) -> ThroughPlan:
        """Derivatives of the gradients that need every pair, in one pass."""
        given, along, xp = self.moved.solved, self.moved.along, self.moved.solved.problem.xp
        C, of_eps = given.problem.C, xp.zeros(len(self.level))
        out = xp.zeros(C.shape) if C.stored else None
        weights, balanced = (given.problem.a, given.problem.b), given.kept is None
        sums = along.times(self.level, *weights) if balanced else (None, None)  # over rows and columns of the tangents
        # The threads of BLAS would wait for each other at every small product; numbers overflow that solve nothing.
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            points = C.points_curvature(self._blocks(out, of_eps), along.cost, sums)
        if given.kept is not None:
            masses = (given.problem.a.sum(axis=1), given.problem.b.sum(axis=1))
            for other, moves in ((masses[1], along.a), (masses[0], along.b)):
                if moves is not None:
                    of_eps += self.priced * other * moves.sum(axis=1)
        if self.entropic is not None:
            logs = (xp.log(xp.where(v > 0, v, 1)) + 1 for v in (given.problem.a, given.problem.b))
            of_eps += self.entropic * along.dot(*logs)
        shown = self.shown
        if out is not None:
            out = narrowed(out, shown.dtype, xp)
            out = (out[None] if shown.batch_of_one else out) if C.shared else out if shown.batched else out[0]
        return ThroughPlan(out, points, shown.to_user(of_eps))

    def _blocks(self, out: Array | None, of_eps: Array) -> Iterator[TangentBlock]:
        """Yield gradients by the costs and how they move; add them up in `out`, and in `of_eps` those by eps."""
        given, xp, priced = self.moved.solved, self.moved.solved.problem.xp, self.priced
        level = Affine(rows=xp.zeros_like(given.problem.a) + self.level[:, None])
        others = [] if self.fit is None else [level.plus(self.fit.residual(given)), self.fit.residual_moved(self.moved)]
        for pairs, P, dP, dZ in self.moved.plans(*others):
            problems, rows, Z = pairs.problems, pairs.rows, pairs.log_ratio
            if given.kept is not None:
                of_eps[problems] -= priced[problems] * dP.sum(axis=(1, 2))
            entropic = None if self.entropy is None else dP.copy()
            if self.fit is not None:
                share = self.fit.share[problems]
                of_eps[problems] -= share * (product_sums(dP, Z) + product_sums(P, dZ))
            gradient, tangent = P, dP  # in place: few arrays stay in the cache
            if self.fit is None:
                gradient *= self.level[problems, None, None]
                tangent *= self.level[problems, None, None]
            else:  # the gradient is ``P factor``, with ``level + w W`` of the W of `Fit`
                factor, change = pairs.others
                tangent *= factor
                change *= P
                tangent += change
                gradient *= factor
            of_eps[problems] += product_sums(tangent, Z) + product_sums(gradient, dZ)
            if self.entropy is not None:
                log_a, log_b = given.weight_logs
                logs = Z + (log_a[problems, rows, None] + 1) + log_b[problems, None, :]
                of_eps[problems] += self.entropy[problems] * product_sums(entropic, logs)
            if out is not None:
                if given.problem.C.shared:
                    out[rows] += tangent.sum(axis=0)
                else:
                    out[problems, rows] += tangent
            yield problems, rows, gradient, tangent


def _curvature_of(given: Solved, shown: Problem, values: Cotangents, along: Directions, how: LinearSolve) -> Curvature:
    """Return how the gradients for cotangents of the values move along a direction."""
    xp = given.problem.xp
    cotangents = [None if x is None else x.astype(np.float64) for x in values[:3]]
    level = sum((x for x in cotangents if x is not None), start=xp.zeros(len(given.problem.a)))
    entropic = None if given.kept is None else cotangents[2]
    if cotangents[0] is None and entropic is None:
        moved, fit = motion(given, along, how), None
    else:
        cost = xp.zeros(len(level)) if cotangents[0] is None else cotangents[0]
        moved = motion(given, along, how, given.behind_values(cost, entropic))
        fit, converged = _fit(moved, cost, how) if given.kept is None else _damped_fit(moved, cost, entropic, how)
        moved = replace(moved, converged=moved.converged & converged)
    balanced = cotangents[2] if given.kept is None else None
    return Curvature(moved=moved, level=level, fit=fit, entropic=balanced, entropy=entropic, shown=shown)


def _fit(moved: Motion, weight: Array, how: LinearSolve) -> tuple[Fit, HostArray]:
    """Return the fit behind `cost` and how it moves, and for which problems that was solved."""
    given, along, w = moved.solved, moved.along, weight[:, None]
    assert moved.fit is not None
    x, y, _ = moved.fit
    eps = given.problem.eps_as(2)
    deps: float | Array = 0.0 if along.eps is None else along.eps[:, None]
    h, k = _moved_sums(moved, None, None)
    ((dx, dy, converged),) = given.solve([given.sums(h, k)], how)
    of_a, of_b = w * (moved.df - eps * dx - deps * x), w * (moved.dg - eps * dy - deps * y)
    return Fit(x, y, dx, dy, weight, given.problem.xp.ones_like(weight), weight, of_a, of_b), converged


def _damped_fit(moved: Motion, cost: Array, entropic: Array | None, how: LinearSolve) -> tuple[Fit, HostArray]:
    """Return the same after a solve with `reach`, for cotangents (B,) of `cost` and `entropic_cost`.

    u, v are the fit, with slack, of ``H = cost C / eps + entropic (C / eps + log P + 1)``. Their equations are
    ``sum_j b_j E_ij (H_ij - u_i - v_j) = eps / rho_a k_i u_i`` with the fraction k that is kept, and those of columns;
    a takes ``eps (1 + eps / rho_a) k u``. Rows x and columns y are such that ``W = cost Z - x - y`` is ``u + v - H``.
    """
    given, eps_moves = moved.solved, moved.along.eps
    assert moved.fit is not None
    fit, sums = moved.fit[:2], _moved_sums(moved, cost, entropic)
    share = cost if entropic is None else cost + entropic
    problem, prices, changes = given.problem, given.problem.reach, (moved.df, moved.dg)
    assert given.kept is not None and prices is not None
    eps, deps = problem.eps_as(2), 0.0 if eps_moves is None else eps_moves[:, None]
    h, k = (
        total + kept * u * (eps / rho * change - deps) / rho
        for total, kept, u, change, rho in zip(sums, given.kept, fit, changes, prices, strict=True)
    )
    ((du, dv, converged),) = given.solve([given.sums(h, k)], how)
    sides = zip(given.kept, fit, (du, dv), (problem.f, problem.g), changes, prices, strict=True)
    shown, moves, of_weights = [], [], []
    for kept, u, by, potential, change, rho in sides:
        shown.append(share[:, None] * potential / eps - u)
        moves.append(share[:, None] * (change - potential / eps * deps) / eps - by)
        of_fit = deps * (1 + 2 * eps / rho) * u + eps * (1 + eps / rho) * (by - u * change / rho)
        of_weights.append(kept * of_fit)
    if entropic is not None:
        for k, (logs, of_logs) in enumerate(zip(given.weight_logs, _log_moves(moved), strict=True)):
            shown[k] = shown[k] + entropic[:, None] * (logs + (k == 0))
            moves[k] = moves[k] + entropic[:, None] * of_logs
    one = problem.xp.ones_like(cost)
    return Fit(shown[0], shown[1], moves[0], moves[1], one, cost, share, of_weights[0], of_weights[1]), converged


def _log_moves(moved: Motion) -> tuple[Array, Array]:
    """Return how the logarithms of the weights move, 0 in empty bins."""
    problem, xp, out = moved.solved.problem, moved.solved.problem.xp, []
    for weights, move in zip((problem.a, problem.b), moved.along[:2], strict=True):
        some = weights > 0
        out.append(xp.zeros_like(weights) if move is None else xp.where(some, move / xp.where(some, weights, 1), 0))
    return out[0], out[1]


@one_blas_thread()
def _moved_sums(moved: Motion, cost: Array | None, entropic: Array | None) -> tuple[Array, Array]:
    """Return the sums over rows and columns of how ``E (H - x - y)`` moves with the fit x and y of H held fixed.

    H is Z or, with `reach` and cotangents (B,) of values, that of `_damped_fit`.
    """
    given, along = moved.solved, moved.along
    problem, xp = given.problem, given.problem.xp
    assert moved.fit is not None
    dZ, (H, dH) = moved.log_ratio, _fitted(moved, cost, entropic)
    W = H.minus(Affine(rows=moved.fit.x, columns=moved.fit.y))
    weights_move = along.a is not None or along.b is not None
    h, k = xp.zeros_like(problem.a), xp.zeros_like(problem.b)
    for pairs in given.pairs(along, W, dZ, dH):
        problems, rows, E, (residual, M, change) = pairs.problems, pairs.rows, pairs.density, pairs.others
        M *= residual
        M += change
        M *= E
        h[problems, rows] += right_product(M, problem.b[problems])
        k[problems] += left_product(M, problem.a[problems, rows])
        if weights_move:
            residual *= E
        if along.b is not None:
            h[problems, rows] += right_product(residual, along.b[problems])
        if along.a is not None:
            k[problems] += left_product(residual, along.a[problems, rows])
    return h, k


def _fitted(moved: Motion, cost: Array | None, entropic: Array | None) -> tuple[Affine, Affine]:
    """Return the array H of `_moved_sums`, and how it moves."""
    given, eps = moved.solved, moved.solved.problem.eps_as(1)
    if cost is None:
        return given.log_ratio, moved.log_ratio
    potentials = Affine(rows=given.problem.f, columns=given.problem.g).times(1 / eps)  # C / eps + Z
    change = Affine(rows=moved.df, columns=moved.dg)
    if moved.along.eps is not None:
        change = change.minus(potentials.times(moved.along.eps))
    change = change.times(1 / eps)
    H, dH = (x.minus(y).times(cost) for x, y in ((potentials, given.log_ratio), (change, moved.log_ratio)))
    if entropic is not None:
        logs, logs_moved = (Affine(rows=x, columns=y) for x, y in (given.plan_logs, _log_moves(moved)))
        H, dH = H.plus(logs.times(entropic)), dH.plus(change.plus(logs_moved).times(entropic))
    return H, dH


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornCurvature(Summary):
    """How gradients of `cusink.sinkhorn_adjoint` move along a direction: the Hessian times that direction.

    `C`, `eps`, `x` and `y` are computed when one of them is first asked for.

    Attributes
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m)
        Of the gradients by the weights, projected as these are.
    converged : array of bool, shape () or (B,)
        Whether the linear systems of the problem were solved to the tolerance.
    """

    a: Array
    b: Array
    converged: Array
    _curvature: Curvature = field(repr=False)

    @property
    def C(self) -> Array | None:
        """Of the gradient by a stored cost, in its shape; summed over the batch for a shared one. None for others."""
        return self._curvature.through_plan.C

    @property
    def eps(self) -> Array:
        """Of the gradient by the regularisation: array of shape () or (B,), the share of each problem."""
        return self._curvature.through_plan.eps

    @property
    def x(self) -> Array | None:
        """Of the gradient by the source points of a `cusink.PointCloud`, in their shape; None for other costs."""
        return self._curvature.through_plan.points[0]

    @property
    def y(self) -> Array | None:
        """Of the gradient by the target points; None if the cloud was given as `x` alone, and for other costs."""
        return self._curvature.through_plan.points[1]


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def product(problem: Problem, values: Cotangents, along: Directions, how: LinearSolve) -> SinkhornCurvature:
    """Return the product of checked arguments."""
    moves = _curvature_of(solved(problem), problem, values, along, how)
    converged = moves.moved.converged
    warn_rough(converged, how.tol, how.max_iter)
    shown = problem.xp.asarray(converged)
    of_a, of_b = (problem.bins_to_user(x, side) for side, x in enumerate(moves.wrt_weights()))
    return SinkhornCurvature(a=of_a, b=of_b, converged=shown if problem.batched else shown[0], _curvature=moves)
