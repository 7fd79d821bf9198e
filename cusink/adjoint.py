"""Gradients of what a solve returned, from its solution alone: no iteration is stored and none is repeated."""

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink import _checks_adjoint
from cusink._additive_fit import additive_fit
from cusink._grid_costs import GridCosts
from cusink._ops import ops_for
from cusink._point_costs import PointCosts
from cusink.geometry import points_adjoint
from cusink.result import Problem, SinkhornResult
from cusink.sinkhorn import ConvergenceWarning

__all__ = ["SinkhornGradients", "sinkhorn_adjoint"]

BLOCK = 1 << 20  # entries of a block of plans, where a gradient needs the plan entry by entry


@dataclass(frozen=True, eq=False, kw_only=True)
class SinkhornGradients:
    """Gradients of ``sum(cotangent * output)`` by the inputs of `cusink.sinkhorn`.

    `C`, `eps`, `x` and `y` are computed when they are first asked for: until then they cost nothing.

    Attributes
    ----------
    a : array, shape (n,) or (B, n)
        By the source weights of each problem, projected to mean zero over the bins. Finite for empty bins too, where
        it is the one-sided derivative.
    b : array, shape (m,) or (B, m)
        By the target weights.
    converged : array of bool, shape () or (B,)
        Whether the linear system of the problem was solved to the tolerance; True where there was none to solve.
    """

    a: Any
    b: Any
    converged: Any
    _terms: Any = field(repr=False)

    @functools.cached_property
    def C(self):
        """By the cost: array of shape (n, m), summed over the batch, for a shared cost; (B, n, m) else.

        None for a `cusink.PointCloud` or `cusink.Grid`, which has no stored cost.
        """
        return self._terms.by_cost()

    @functools.cached_property
    def eps(self):
        """By the regularisation: array of shape () or (B,), the share of each problem."""
        return self._terms.by_eps()

    @property
    def x(self):
        """By the source points of a `cusink.PointCloud`, in their shape; summed over the batch for a shared cloud.

        By the points as sources and as targets, if the cloud was given as `x` alone. None for other costs.
        """
        return self._points[0]

    @property
    def y(self):
        """By the target points of a `cusink.PointCloud`; None if it was given as `x` alone, and for other costs."""
        return self._points[1]

    @functools.cached_property
    def _points(self):
        return self._terms.by_points()


def sinkhorn_adjoint(
    result,
    *,
    grad_cost=None,
    grad_reg_cost=None,
    grad_entropic_cost=None,
    grad_f=None,
    grad_g=None,
    tol=1e-6,
    max_iter=1000,
):
    """Pull gradients with respect to the outputs of `cusink.sinkhorn` back to its inputs.

    Parameters
    ----------
    result : SinkhornResult
        What `cusink.sinkhorn` returned.
    grad_cost, grad_reg_cost, grad_entropic_cost : array, shape () or (B,), or float, optional
        Derivative of the final loss by these values, in the dtype of the result; a number is for every problem. At
        least one of the five gradients must be given; they add up.
    grad_f : array, shape (n,) or (B, n), optional
        Derivative of the loss by the potential `f`.
    grad_g : array, shape (m,) or (B, m), optional
        Derivative of the loss by the potential `g`.
    tol : float
        Relative residual, weighted by the plan, to which the linear system behind `grad_cost`, `grad_f` and `grad_g`
        is solved; about 4e-6 at least in float32.
    max_iter : int
        Iterations of conjugate gradients at most, of which there are about as many as over-relaxed ones in the solve.

    Returns
    -------
    SinkhornGradients
        a, b, C, eps and converged; x and y for a `cusink.PointCloud`.

    Raises
    ------
    TypeError
        A result of another kind, a gradient of another library or dtype than the result.
    ValueError
        A gradient of the wrong shape or with values that are not finite; none at all.

    Warns
    -----
    ConvergenceWarning
        If the solve had not converged, or the linear system did not reach `tol`.

    Notes
    -----
    The gradient of `reg_cost` is the envelope theorem's: a takes ``f`` and b takes ``g``, C the plan, eps
    ``KL(P | a b')``; nothing is solved. That of `cost` is exact too: with ``X_i + Y_j`` the additive function nearest
    to C in the mean square of the plan, a takes X, b takes Y, and C takes ``P (1 + (X_i + Y_j - C) / eps)``.

    Weights vary on the simplex, so that gradients for a and b are defined up to a constant, chosen for mean zero.
    `f` and `g` are defined up to a constant that moves between them; `grad_f` and `grad_g` are taken of those with
    ``sum(f) = sum(g)``. An empty bin has the derivative by a first bit of weight; that of `entropic_cost` is -inf,
    for x log x has it, and only the part of `reg_cost` is given. A bin that cannot take weight, because C forbids it
    all partners, has 0.

    Memory is that of the gradients and about ten arrays of the size of `a` and `b`; with `C` that of a block of plans.
    docs/gradients.md derives the formulas.

    References
    ----------
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, 2018.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.cost_matrix([0.0, 1.0, 3.0])
    >>> result = cusink.sinkhorn([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], C, eps=0.5, tol=1e-9)
    >>> grads = cusink.sinkhorn_adjoint(result, grad_cost=1.0)
    >>> print(grads.a.round(3), grads.C.shape)
    [ 3.333  0.352 -3.685] (3, 3)
    """
    _checks_adjoint.instance("result", result, SinkhornResult, "cusink.sinkhorn")
    _checks_adjoint.linear_solve(tol, max_iter)
    problem = result.problem
    given = _checks_adjoint.cotangents(
        problem,
        result.f,
        values={"grad_cost": grad_cost, "grad_reg_cost": grad_reg_cost, "grad_entropic_cost": grad_entropic_cost},
        potentials={"grad_f": grad_f, "grad_g": grad_g},
    )
    ops = ops_for(problem.C)
    _warn_unconverged(ops, result)
    grad_cost, grad_reg_cost, grad_entropic_cost, grad_f, grad_g = given
    level = sum((x for x in given[:3] if x is not None), start=ops.xp.zeros(len(problem.a), problem.a.dtype))
    if grad_f is not None:  # of the potentials with sum(f) = sum(g)
        lead = (grad_f.sum(axis=1, keepdims=True) - grad_g.sum(axis=1, keepdims=True)) / (
            grad_f.shape[1] + grad_g.shape[1]
        )
        grad_f, grad_g = grad_f - lead, grad_g + lead
    x = y = None
    converged = np.ones(len(problem.a), bool)
    if grad_cost is not None or grad_f is not None:
        x, y, converged = _fit(ops, problem, grad_cost, grad_f, grad_g, tol, max_iter)
        if not converged.all():
            warnings.warn(
                f"the linear system of {np.count_nonzero(~converged)} of {len(converged)} problems did not reach "
                f"tol={tol:g} within max_iter={max_iter} iterations: their gradients are rough. Raise 'max_iter'",
                ConvergenceWarning,
                stacklevel=2,
            )
    terms = Terms(
        problem=problem,
        level=level,
        grad_cost=grad_cost,
        grad_entropic_cost=grad_entropic_cost,
        grad_f=grad_f,
        grad_g=grad_g,
        x=x,
        y=y,
    )
    return SinkhornGradients(
        a=problem.outward(terms.by_weights(problem.a, problem.f, x)),
        b=problem.outward(terms.by_weights(problem.b, problem.g, y)),
        converged=ops.xp.asarray(converged) if problem.batched else ops.xp.asarray(converged)[0],
        _terms=terms,
    )


def _fit(ops, problem, grad_cost, grad_f, grad_g, tol, max_iter):
    """The additive array x_i + y_j by which the potentials part of all gradients goes, and who converged."""
    xp, C, eps = ops.xp, problem.C, problem.eps
    a, b, f, g = problem.a, problem.b, _finite(xp, problem.f), _finite(xp, problem.g)
    h, k = xp.zeros_like(a), xp.zeros_like(b)
    if grad_f is not None:
        h, k = _unweighted(ops, C, f, g, eps, grad_f, grad_g)

    def right(index, means):
        if grad_cost is None:
            return h[index], k[index]
        # The means of log(P / a b') = (f + g - C) / eps.
        every = len(index) == len(a)
        w, f_, g_, h_, k_ = (v if every else v[index] for v in (grad_cost[:, None], f, g, h, k))
        rows = (f_ + means.mean(g_, 1) - means.mean_cost(1)) / eps
        columns = (g_ + means.mean(f_, 0) - means.mean_cost(0)) / eps
        return (w * rows + h_).astype(a.dtype), (w * columns + k_).astype(b.dtype)

    return additive_fit(ops, C, a, b, f, g, eps, right, tol, max_iter)


def _unweighted(ops, C, f, g, eps, grad_f, grad_g):
    """``E grad_g`` and ``E' grad_f`` with ``E = P / (a b')``, which between two empty bins may leave the range."""
    xp = ops.xp
    largest = float(np.finfo(f.dtype.name).max) ** 0.5
    with np.errstate(over="ignore", invalid="ignore"):
        h = ops.apply_plan(C, f / eps, g / eps, grad_g, eps, 1)
        k = ops.apply_plan(C, f / eps, g / eps, grad_f, eps, 0)
    return tuple(xp.clip(xp.nan_to_num(x), -largest, largest) for x in (h, k))


@dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """What the gradients are made of, with a batch axis: the solved problem, cotangents, and the additive fit x, y."""

    problem: Problem
    level: Any
    grad_cost: Any
    grad_entropic_cost: Any
    grad_f: Any
    grad_g: Any
    x: Any
    y: Any

    def by_weights(self, weights, potential, fit):
        """Gradient (B, n) by the weights of one side, of mean zero."""
        xp = ops_for(weights).xp
        with np.errstate(invalid="ignore"):
            out = self.level[:, None] * potential
        if fit is not None:
            out -= self.problem.eps * fit
        if self.grad_entropic_cost is not None:
            entropy = xp.where(weights > 0, xp.log(xp.where(weights > 0, weights, 1)) + 1, 0)
            out += self.grad_entropic_cost[:, None] * (self.problem.eps * entropy)
        mean = out.mean(axis=1, keepdims=True)
        if not xp.isfinite(mean).all():  # a bin that C forbids all partners has no finite potential
            reached = xp.isfinite(potential)
            out = xp.where(reached, out, 0)
            mean = xp.where(reached, out.sum(axis=1, keepdims=True) / reached.sum(axis=1, keepdims=True), 0)
        out -= mean
        return out

    def by_cost(self):
        """Gradient by the cost: (n, m), summed over the batch, or (B, n, m)."""
        problem = self.problem
        ops, C = ops_for(problem.C), problem.C
        if isinstance(C, (PointCosts, GridCosts)):
            return None
        shared = C.ndim == 2
        if shared and self.grad_f is None:
            out = self._by_shared_cost(ops)
        else:
            out = ops.xp.zeros_like(C)
            for problems, rows in self._blocks():
                part = self._block(problems, rows)[0]
                if shared:
                    out[rows] += part.sum(axis=0)
                else:
                    out[problems, rows] = part
        out = out if out.dtype == problem.dtype else out.astype(problem.dtype)
        return out if shared or problem.batched else out[0]

    def by_points(self):
        """Gradients by the points of a cloud, (n, d) and (m, d), summed over the batch, or (B, n, d) and (B, m, d)."""
        C = self.problem.C
        if not isinstance(C, PointCosts):
            return None, None
        xp = ops_for(C).xp
        gx, gy = (xp.zeros(points.shape, np.float64) for points in (C.x, C.y))
        for problems, rows in self._blocks():
            gradient = self._block(problems, rows)[0]
            if C.ndim == 2:
                by_rows, by_columns = C.block_adjoint(xp, gradient.sum(axis=0), rows=rows)
                gx[rows] += by_rows
                gy += by_columns
            else:
                by_rows, by_columns = C.block_adjoint(xp, gradient, problems, rows)
                gx[problems, rows] += by_rows
                gy[problems] += by_columns
        if C.ndim < C.cloud.x.ndim:  # a batch of one
            gx, gy = gx[None], gy[None]
        return points_adjoint(xp, C.cloud, gx, gy)

    def by_eps(self):
        """Gradient by the regularisation, (B,) or ()."""
        problem = self.problem
        xp = ops_for(problem.C).xp
        out = xp.zeros(len(problem.a), np.float64)
        for problems, rows in self._blocks():
            gradient, log_ratio, direct = self._block(problems, rows)
            out[problems] += ((gradient - direct) * log_ratio).sum(axis=(1, 2), dtype=np.float64)
        if self.grad_entropic_cost is not None:
            for weights in (problem.a, problem.b):
                logs = xp.log(xp.where(weights > 0, weights, 1))
                out += self.grad_entropic_cost * (weights * logs).sum(axis=1, dtype=np.float64)
        return problem.outward(out)

    def _by_shared_cost(self, ops):
        """As `by_cost`: ``sum_b P_b`` times level, plus ``grad_cost (f + g - C) / eps - x - y``."""
        xp, problem, w = ops.xp, self.problem, self.grad_cost
        C, eps, a, b = problem.C, problem.eps, problem.a, problem.b
        f, g = _finite(xp, problem.f), _finite(xp, problem.g)
        rows, columns, costs = self.level[:, None] + xp.zeros_like(a), None, None
        if w is not None:
            rows += w[:, None] * f / eps - self.x
            columns, costs = w[:, None] * g / eps - self.y, -w / eps
        out = xp.zeros_like(C)
        for index, means in ops.plan_means(C, a, b, f, g, eps):
            out += means.plan_sum(*(v if v is None else v[index] for v in (rows, columns, costs)))
        return out

    def _block(self, problems, rows):
        """Of a block of plans: the gradient by the cost, ``log(P / a b')``, and the part ``grad_cost P`` of the first.

        The rest of the first changes the plan and not its price, and is what a change of eps works through.
        """
        problem, eps = self.problem, self.problem.eps
        ops, xp = ops_for(problem.a), ops_for(problem.a).xp  # of blocks of the cost, which are arrays
        f, g = _finite(xp, problem.f)[problems, rows], _finite(xp, problem.g)[problems]
        with np.errstate(divide="ignore"):
            p, q = xp.log(problem.a[problems, rows]) + f / eps, xp.log(problem.b[problems]) + g / eps
        C = ops_for(problem.C).cost_block(problem.C, problems, rows)
        plan = ops.plan(C, p, q, eps)
        log_ratio = (f[:, :, None] + g[:, None, :] - _finite(xp, C)) / eps
        direct, factor = 0, self.level[problems, None, None]
        if self.grad_cost is not None:
            w = self.grad_cost[problems, None, None]
            direct, factor = w * plan, factor + w * log_ratio
        if self.x is not None:
            factor = factor - self.x[problems, rows, None] - self.y[problems, None, :]
        gradient = plan * factor
        if self.grad_f is not None:
            gradient += ops.plan(C, f / eps, q, eps) * self.grad_f[problems, rows, None]
            gradient += ops.plan(C, p, g / eps, eps) * self.grad_g[problems, None, :]
        return gradient, log_ratio, direct

    def _blocks(self):
        """Slices of problems and of rows such that one block holds at most `BLOCK` entries, or one row."""
        (problems, n), m = self.problem.a.shape, self.problem.b.shape[1]
        row_step = max(1, min(n, BLOCK // m))
        problem_step = max(1, BLOCK // (row_step * m))
        for start in range(0, problems, problem_step):
            for row in range(0, n, row_step):
                yield slice(start, min(start + problem_step, problems)), slice(row, min(row + row_step, n))


def _finite(xp, x, instead=0):
    """`x` with `instead` for the +inf of a forbidden pair, or of a bin that has no other."""
    forbidden = xp.isposinf(x)
    return xp.where(forbidden, x.dtype.type(instead), x) if forbidden.any() else x


def _warn_unconverged(ops, result):
    """Warn once if the solve had not converged."""
    missed = ~np.atleast_1d(ops.to_host(result.converged))
    if missed.any():
        worst = np.atleast_1d(ops.to_host(result.error))[missed].max()
        warnings.warn(
            f"{np.count_nonzero(missed)} of {len(missed)} problems had not converged; the largest marginal error is "
            f"{float(worst):.2g}, and their gradients are off by about as much, relative to their size, or more "
            "where the iteration converges slowly. Solve with a larger 'max_iter'",
            ConvergenceWarning,
            stacklevel=3,
        )
