"""Derivatives of what a solve returned along a direction of its inputs, from its solution alone."""

from dataclasses import dataclass

import numpy as np

from cusink.calls import one_call
from cusink.gradients import checks
from cusink.gradients.checks import warn_unconverged
from cusink.gradients.envelope import both_sides, plan_sums, reg_cost_along
from cusink.gradients.motion import Motion, motion, solved
from cusink.gradients.system import LinearSolve, warn_rough
from cusink.solver.problem import Problem
from cusink.solver.result import SinkhornResult
from cusink.summary import Summary
from cusink.types import Array, ArrayModule
from cusink.workers import shares_out

__all__ = [
    "SinkhornTangents",
    "sinkhorn_jvp",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornTangents(Summary):
    """Derivatives of the outputs of `cusink.sinkhorn` along a direction of its inputs.

    Attributes
    ----------
    f, g : array, shape (n,) or (B, n); (m,) or (B, m)
        Of the potentials, whose sums over the bins with weight stay equal.
    cost, reg_cost, entropic_cost : array, shape () or (B,)
        Of the values.
    converged : array of bool, shape () or (B,)
        Whether the linear system of the problem was solved to the tolerance.
    """

    f: Array
    g: Array
    cost: Array
    reg_cost: Array
    entropic_cost: Array
    converged: Array


@one_call
@shares_out
def sinkhorn_jvp(
    result: SinkhornResult,
    *,
    da: Array | None = None,
    db: Array | None = None,
    dC: Array | None = None,
    deps: Array | float | None = None,
    dx: Array | None = None,
    dy: Array | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> SinkhornTangents:
    """Differentiate the outputs of `cusink.sinkhorn` along a direction of its inputs.

    Parameters
    ----------
    result : SinkhornResult
        What `cusink.sinkhorn` returned.
    da : array, shape (n,) or (B, n), optional
        How the source weights move. In balanced transport the part that changes the mass is left out.
    db : array, shape (m,) or (B, m), optional
        How the target weights move.
    dC : array, shape (n, m) or (B, n, m), optional
        How a stored cost moves; entries of forbidden pairs count nothing.
    deps : float or array, shape () or (B,), optional
        How the regularisation moves.
    dx : array, shape of the source points, optional
        How the points of a `cusink.PointCloud` move; of one that was given as `x` alone, on both sides.
    dy : array, shape of the target points, optional
        How the target points move.
    tol : float
        Relative residual, weighted by the plan, to which the linear system is solved.
    max_iter : int
        Iterations of conjugate gradients at most.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    SinkhornTangents
        Derivatives of f, g, cost, reg_cost, entropic_cost; and converged.

    Raises
    ------
    TypeError
        A result of another kind, a direction of another library or dtype than the result.
    ValueError
        A direction of the wrong shape or with values that are not finite, or that the cost does not have; none at all.

    Warns
    -----
    ConvergenceWarning
        If the solve had not converged, or the linear system did not reach `tol`.

    Notes
    -----
    The product of the Jacobian with a vector, where `cusink.sinkhorn_adjoint` is that of its transpose. One linear
    system is solved, for all directions together, and the plan is gone through up to twice in blocks: memory is
    O(n + m). Everything is computed in float64. docs/second-order.md derives the formulas.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.cost_matrix([0.0, 1.0, 3.0])
    >>> result = cusink.sinkhorn([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], C, eps=0.5, tol=1e-9)
    >>> print(f"{cusink.sinkhorn_jvp(result, da=[-1.0, 1.0, 0.0]).cost:.3f}")
    -2.981
    """
    del workers  # `shares_out` has read it
    checks.instance("result", result, SinkhornResult, "cusink.sinkhorn")
    tol, max_iter = checks.linear_solve(tol, max_iter)
    along = checks.directions(
        result.problem, result.f, {"da": da, "db": db, "deps": deps}, {"dC": dC, "dx": dx, "dy": dy}
    )
    warn_unconverged(result.converged, result.error)
    moved = motion(solved(result.problem), along, LinearSolve(tol, max_iter))
    warn_rough(moved.converged, tol, max_iter)
    return _tangents(result.problem, moved)


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def _tangents(shown: Problem, moved: Motion) -> SinkhornTangents:
    """Return the derivatives in the shape and dtype of the user, whose problem is `shown`."""
    given, along = moved.solved, moved.along
    problem, xp, eps = given.problem, given.problem.xp, given.problem.eps_as(1)
    sums = plan_sums(moved)
    deps = 0 if along.eps is None else along.eps
    marginals, of_a, of_b = both_sides(moved)
    entropy, entropy_moved = sums.log_ratio, sums.moved
    cost = sums.of_costs - eps * sums.moved  # C = f + g - eps Z
    for (marginal, marginal_moved, weights), potential in zip(marginals, (problem.f, problem.g), strict=True):
        cost = cost + (marginal_moved * potential).sum(axis=1)
        some = weights > 0  # the entropy of an empty bin is left out
        logs = xp.log(xp.where(some, weights, 1))
        entropy = entropy + (marginal * logs).sum(axis=1)
        entropy_moved = entropy_moved + (marginal_moved * (logs + some if given.kept is None else logs)).sum(axis=1)
    if given.kept is not None:
        entropy_moved = entropy_moved + marginals[0][1].sum(axis=1)
    f, g = gauged(xp, problem, *(xp.where(at, x, 0) for at, x in zip(given.reached, (moved.df, moved.dg), strict=True)))
    converged = xp.asarray(moved.converged)
    return SinkhornTangents(
        f=shown.bins_to_user(f, 0),
        g=shown.bins_to_user(g, 1),
        cost=shown.to_user(cost),
        reg_cost=shown.to_user(reg_cost_along(moved, sums, of_a, of_b)),
        entropic_cost=shown.to_user(cost + entropy * deps + eps * entropy_moved),
        converged=converged if shown.batched else converged[0],
    )


def gauged(xp: ArrayModule, problem: Problem, df: Array, dg: Array) -> tuple[Array, Array]:
    """Return changes of potentials whose sums over the bins with weight are equal; with `reach`, as they are."""
    if problem.reach is not None:
        return df, dg
    used = [weights > 0 for weights in (problem.a, problem.b)]
    of_f, of_g = (xp.where(at, x, 0).sum(axis=1) for at, x in zip(used, (df, dg), strict=True))
    lead = ((of_f - of_g) / sum(at.sum(axis=1) for at in used))[:, None]
    return df - lead, dg + lead
