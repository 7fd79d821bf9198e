"""Gradients of what a solve returned, from its solution alone: no iteration is stored and none is repeated."""

from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import to_host
from cusink.deferred import cached_property
from cusink.errors import deferred_warnings
from cusink.gradients import checks
from cusink.gradients.at_once import adjoint_at_once
from cusink.gradients.balanced import balanced_terms
from cusink.gradients.pairs import PairTerms, PerPair, wrt_weights
from cusink.gradients.parts import Terms
from cusink.gradients.potentials import leaves_range, potential_terms
from cusink.gradients.ragged import gradients_at_once
from cusink.gradients.system import LinearSolve, warn_rough
from cusink.gradients.through_plan import SumOfTerms, entropic_terms, plan_terms
from cusink.gradients.unbalanced import unbalanced_terms
from cusink.solver.pairs.checks import unused
from cusink.solver.pairs.ragged import in_order
from cusink.solver.result import SinkhornPairs, SinkhornResult
from cusink.summary import Summary
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "SinkhornGradients",
    "sinkhorn_adjoint",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornGradients(Summary):
    """Gradients of ``sum(cotangent * output)`` by the inputs of `cusink.sinkhorn`.

    `C`, `eps`, `reach`, `x`, `y` and `metric` are computed when they are first asked for: until then they cost nothing.

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

    a: Array
    b: Array
    converged: Array
    _terms: Terms = field(repr=False)

    @cached_property
    @one_call
    def C(self) -> Array | None:
        """By the cost: array of shape (n, m), summed over the batch, for a shared cost; (B, n, m) else.

        None for a `cusink.PointCloud` or `cusink.Grid`, which has no stored cost.
        """
        return self._terms.wrt_cost()

    @cached_property
    @one_call
    def eps(self) -> Array:
        """By the regularisation: array of shape () or (B,), the share of each problem."""
        return self._terms.wrt_eps()

    @cached_property
    @one_call
    def axes(self) -> tuple[Array, ...] | None:
        """By the positions of the cells along each axis of a `cusink.Grid`: arrays of shape (n_k,), one for each axis.

        Summed over the batch. None for other costs.
        """
        return self._terms.wrt_axes()

    @cached_property
    @one_call
    def metric(self) -> dict[str, Array]:
        """By the parameters of the metric of a `cusink.PointCloud`, by name: "factor" (d, k) and "table" (L, M).

        In float64, summed over the batch. Empty for other metrics and other costs.
        """
        return self._terms.wrt_metric()

    @cached_property
    @one_call
    def reach(self) -> Array | None:
        """By both prices of the marginals: array of shape (2,) or (B, 2), 0 for a marginal that is met.

        Of one number for both, the gradient is their sum. None for balanced transport.
        """
        return self._terms.wrt_reach()

    @property
    def x(self) -> Array | None:
        """By the source points of a `cusink.PointCloud`, in their shape; summed over the batch for a shared cloud.

        By the points as sources and as targets, if the cloud was given as `x` alone. None for other costs.
        """
        return self._points[0]

    @property
    def y(self) -> Array | None:
        """By the target points of a `cusink.PointCloud`; None if it was given as `x` alone, and for other costs."""
        return self._points[1]

    @cached_property
    @one_call
    def _points(self) -> tuple[Array | None, Array | None]:
        return self._terms.wrt_points()


@one_call
@shares_out
def sinkhorn_adjoint(
    result: SinkhornResult | SinkhornPairs,
    *,
    grad_cost: Array | float | None = None,
    grad_reg_cost: Array | float | None = None,
    grad_entropic_cost: Array | float | None = None,
    grad_f: Array | None = None,
    grad_g: Array | None = None,
    grad_plan: Array | tuple[Array, Array] | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> SinkhornGradients:
    """Pull gradients with respect to the outputs of `cusink.sinkhorn` back to its inputs.

    Parameters
    ----------
    result : SinkhornResult or SinkhornPairs
        What `cusink.sinkhorn` returned. Gradients of pairs of `cusink.Measures` have the shapes of their weights and
        points: (N,) and (N, d).
    grad_cost, grad_reg_cost, grad_entropic_cost : array, shape () or (B,), or float, optional
        Derivative of the final loss by these values, in the dtype of the result; a number is for every problem. At
        least one of the six gradients must be given; they add up. Only these three are for pairs of `cusink.Measures`.
    grad_f : array, shape (n,) or (B, n), optional
        Derivative of the loss by the potential `f`.
    grad_g : array, shape (m,) or (B, m), optional
        Derivative of the loss by the potential `g`.
    grad_plan : array, shape (n, m) or (B, n, m), or pair of arrays, optional
        Derivative of the loss by the entries of the plan. A pair (U, V) of shapes (n, r) and (m, r), or with a batch
        axis, stands for ``U V'`` and is never multiplied out: after ``result.apply(v, 1)`` with a derivative w of the
        result it is ``(w[..., None], v[..., None])``.
    tol : float
        Relative residual, weighted by the plan, to which the linear system behind `grad_cost`, `grad_f`, `grad_g` and
        `grad_plan` is solved; about 4e-6 at least in float32.
    max_iter : int
        Iterations of conjugate gradients at most, of which there are about as many as over-relaxed ones in the solve.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    SinkhornGradients
        Gradients a, b, C, eps, and converged; x, y and metric for a `cusink.PointCloud`; axes for a
        `cusink.Grid`; reach after a solve with `reach`.

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
    ``sum(f) = sum(g)`` over bins with weight. An empty bin has the derivative by a first bit of weight; that of
    `entropic_cost` is -inf, for x log x has it, and only the part of `reg_cost` is given. A bin that cannot take
    weight, because C forbids it all partners, has 0, or with `reach` the price of all its mass.

    After a solve with `reach` the masses may change, and gradients for a and b are not projected; all are exact there
    too, see docs/unbalanced.md.

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
    del workers  # `shares_out` has read it
    tol, max_iter = checks.linear_solve(tol, max_iter)
    if isinstance(result, SinkhornPairs):
        unused(grad_f=grad_f, grad_g=grad_g, grad_plan=grad_plan)
        values = {"grad_cost": grad_cost, "grad_reg_cost": grad_reg_cost, "grad_entropic_cost": grad_entropic_cost}
        return _of_pairs(result, values, tol, max_iter)
    checks.instance("result", result, SinkhornResult, "cusink.sinkhorn")
    problem, C, how = result.problem, result.problem.C, LinearSolve(tol, max_iter)
    if all(x is None for x in (grad_entropic_cost, grad_f, grad_g, grad_plan)):
        at_once = adjoint_at_once(problem, result.converged, grad_cost, grad_reg_cost, how)
        if at_once is not None:
            converged = at_once.found.converged
            return SinkhornGradients(
                a=problem.bins_to_user(at_once.wrt_a(), 0),
                b=problem.bins_to_user(at_once.wrt_b(), 1),
                converged=converged if problem.batched else converged[0],
                _terms=at_once,
            )
    matrix = checks.plan_cotangent(problem, result.f, grad_plan)
    given = checks.cotangents(
        problem,
        result.f,
        values={"grad_cost": grad_cost, "grad_reg_cost": grad_reg_cost, "grad_entropic_cost": grad_entropic_cost},
        potentials={"grad_f": grad_f, "grad_g": grad_g},
        more={"grad_plan": grad_plan},
    )
    checks.warn_unconverged(result.converged, result.error)
    parts: list[tuple[Any, Any]] = []
    if problem.reach is not None and given.entropic_cost is not None:
        parts.append(entropic_terms(problem, given.entropic_cost, how))
        given = given._replace(entropic_cost=None)
    if given.f is not None and given.g is not None and leaves_range(problem):
        parts.append(potential_terms(problem, given.f, given.g, how))
        given = given._replace(f=None, g=None)
    if matrix is not None:
        parts.append(plan_terms(problem, matrix, how))
    if any(x is not None for x in given):
        if problem.reach is None:
            parts.append(balanced_terms(problem, given, how))
        else:
            parts.append(unbalanced_terms(problem.in_one_dtype(), given, how))
    terms = SumOfTerms(tuple(part for part, _ in parts)) if len(parts) > 1 else parts[0][0]
    converged = np.logical_and.reduce([solved for _, solved in parts])
    warn_rough(converged, tol, max_iter)
    return SinkhornGradients(
        a=problem.bins_to_user(terms.wrt_a(), 0),
        b=problem.bins_to_user(terms.wrt_b(), 1),
        converged=C.xp.asarray(converged) if problem.batched else C.xp.asarray(converged)[0],
        _terms=terms,
    )


def _of_pairs(result: SinkhornPairs, values: dict[str, Any], tol: float, max_iter: int) -> SinkhornGradients:
    """Return the gradients of pairs of measures: by all weights and all points, item after item."""
    solved, given = result.solved, result.solved.given
    derivatives, xp = PerPair(given, result.f, values), given.xp
    known = gradients_at_once(solved, {name: derivatives.every(name) for name in values}, LinearSolve(tol, max_iter))
    chosen = solved.parts if known is None else solved.others
    with deferred_warnings([]):  # of all pairs at once, below
        every = [
            (batch, sinkhorn_adjoint(part, **derivatives.of(batch), tol=tol, max_iter=max_iter))
            for batch, part in chosen
        ]
    checks.warn_unconverged(result.converged, result.error)
    all_solved = None if known is None else xp.asarray(np.ones(given.count, bool))
    converged = in_order(xp, ((batch.pairs, part.converged) for batch, part in every), given.count, all_solved)
    warn_rough(to_host(converged), tol, max_iter)
    a, b = (
        wrt_weights(
            given,
            side,
            [(batch, getattr(part, name)) for batch, part in every],
            solved.balanced,
            None if known is None else getattr(known, name),
        )
        for name, side in (("a", given.A), ("b", given.B))
    )
    parts = [(batch, part._terms) for batch, part in every]
    terms = PairTerms(given, (given.A, given.B), partial(list, parts), partial(copy, known))  # which pickle
    return SinkhornGradients(a=a, b=b, converged=converged, _terms=terms)
