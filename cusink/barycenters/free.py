"""Barycenters of clouds whose points are free to move: each goes to the mean of where its mass would go."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.barycenters.checks import FreeProblem, free_problem
from cusink.barycenters.free_result import Found, FreeBarycenter, Start
from cusink.barycenters.solves import Solves, solve_all
from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, positive_bytes, positive_integer, positive_number
from cusink.costs.blockwise import check_stored_row
from cusink.costs.clouds import PointCloud
from cusink.costs.measures import Measures
from cusink.errors import ConvergenceWarning, warn
from cusink.operand import eps_of_shared
from cusink.solver import checks
from cusink.types import Array, ArrayModule, Tolerance
from cusink.workers import shares_out

__all__ = [
    "free_barycenter",
]

FASTER = 8.0  # by which a length changes from step to step at most
STEEPEST = 5.0  # logarithm of the most that a weight changes in a step
SHORTEST = 2.0**-30  # step at which no shorter one is tried
ROUNDING = 64.0  # by how many roundings of its terms the objective may seem to rise


@memory_advice("Pass 'memory_limit', or fewer points")
@shares_out
def free_barycenter(
    measures: Measures,
    weights: Array | None = None,
    *,
    x: Array,
    a: Array | None = None,
    eps: float | RelativeEps,
    debiased: bool = False,
    free_weights: bool = False,
    reach: float | tuple[float | None, float | None] | None = None,
    max_iter: int = 100,
    tol: float = 1e-3,
    solver_tol: Tolerance = "auto",
    normalise: bool = False,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> FreeBarycenter:
    """Find the points with the least weighted sum of transport costs to K clouds, for squared distances.

    Parameters
    ----------
    measures : Measures
        The K clouds, of any sizes and, unless `reach` is given, of the mass of `a`.
    weights : array, shape (K,), optional
        How much each cloud counts, in any unit: non-negative, and only their ratios matter. If not given, all count
        the same.
    x : array, shape (n, d) or (n,)
        Points to start from: the barycenter has as many.
    a : array, shape (n,), optional
        Their weights, which stay unless `free_weights` is true, when they are a start. If not given, 1 / n each.
    eps : float or RelativeEps
        Regularisation in the unit of squared distances. A `cusink.RelativeEps` is a share of those between `x` and the
        points of all clouds at the start: it stays while points move.
    debiased : bool
        Whether to minimise the Sinkhorn divergence, which undoes the shrinking towards means that eps causes.
    free_weights : bool
        Whether the weights of the barycenter are found too: of their mass, or with `reach` of any mass. A point that
        starts with the weight 0 keeps it.
    reach : float, or pair of float or None, optional
        Lets mass stay behind, as for `cusink.sinkhorn`: outliers then count for little. The first of a pair is for
        the barycenter. One number where it is debiased.
    max_iter : int
        Steps at most; each solves a problem for every cloud, from the potentials of the step before.
    tol : float
        `shift` at which to stop; with `free_weights` that of `weights_gap` too.
    solver_tol : "auto", float or None
        Marginal error of these problems, as `tol` of `cusink.sinkhorn`.
    normalise : bool
        Divide the weights of each cloud, and `a`, by their sum; gradients are then those by the normalised weights.
    memory_limit : int, optional
        As for `cusink.sinkhorn`.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    FreeBarycenter
        The points, their weights, and how far the last step went.

    Raises
    ------
    TypeError
        An input of the wrong kind, library or dtype.
    ValueError
        An input of the wrong shape or with forbidden values.

    Warns
    -----
    ConvergenceWarning
        If points still moved by more than `tol`, weights were further from the best, or a problem did not reach
        `solver_tol`.

    Notes
    -----
    Of given plans ``P_k``, the points with the least ``sum_k w_k <P_k, |x - y_k|²>`` are the means
    ``x_i = sum_k w_k (P_k y_k)_i / sum_k w_k (P_k 1)_i``. A step solves for the plans and goes there, so that the
    objective, the `reg_cost` of `cusink.sinkhorn`, never rises. Debiased, points go by the gradient of the divergence
    with the same step length, ``x_i + sum_k w_k T_k(x_i) - T_x(x_i)`` with the means T under the plans to the clouds
    and to x itself. As the objective is not convex in the points, what is found is a local minimum near the start.
    `cusink.free_barycenter_adjoint` gives gradients through it.

    Free weights go down by mirror steps, ``a_i exp(-t (h_i - mean of h))`` with the gradient h of the objective by
    them, while points move; where the objective would rise, both steps are shortened. It is convex in the weights, so
    that ``sum_i a_i (h_i - min h)`` bounds what better ones could gain. All is computed in float64. An objective that
    is not debiased gathers the mass on few points.

    References
    ----------
    M. Cuturi and A. Doucet, Fast computation of Wasserstein barycenters, ICML 2014, algorithm 2.
    G. Luise et al., Sinkhorn barycenters with free support via Frank-Wolfe algorithm, NeurIPS 2019.

    Examples
    --------
    >>> import cusink
    >>> clouds = cusink.Measures.of([[0.0, 1.0], [4.0, 5.0, 6.0]])
    >>> found = cusink.free_barycenter(clouds, x=[2.0, 3.0], eps=1e-3)
    >>> print(found.points.round(3).ravel(), found.converged)
    [2.167 3.333] True
    """
    del workers  # `shares_out` has read it
    given = free_problem(measures, weights, x, a, balanced=reach is None, normalise=flag("normalise", normalise))
    eps = eps_of_shared(eps, PointCloud(given.x, given.points), "the squared distances of 'x' and 'measures'")
    eps, tol, max_iter = (
        positive_number("eps", eps),
        positive_number("tol", tol),
        positive_integer("max_iter", max_iter),
    )
    if not (solver_tol is None or (isinstance(solver_tol, str) and solver_tol == "auto")):
        solver_tol = positive_number("solver_tol", solver_tol, wanted="'auto', a number or None")
    debiased, free_weights = flag("debiased", debiased), flag("free_weights", free_weights)
    prices = checks.reach(reach)
    if debiased and prices is not None and prices[0] != prices[1]:
        raise ValueError(
            "'reach' must be one number for a debiased barycenter, as divergences at unlike prices are not least at "
            f"equal measures; got {reach}. Pass debiased=False, or one number"
        )
    if memory_limit is not None:
        check_stored_row(positive_bytes(memory_limit), max(len(given.x), int(np.diff(measures.offsets).max())))
    options: dict[str, Any] = {"eps": eps, "reach": reach, "tol": solver_tol, "memory_limit": memory_limit}
    found = Found(
        given=given.in_float64() if free_weights else given,
        x=given.x,
        a=given.a,
        starts=None,
        debiased=debiased,
        fixed=not free_weights,
        options=options | {"reach": None if prices is None else reach},
    )
    return _with_free_weights(found, tol, max_iter) if free_weights else _with_fixed_weights(found, tol, max_iter)


def _with_fixed_weights(found: Found, tol: float, max_iter: int) -> FreeBarycenter:
    """Move points until they rest."""
    given, points, starts = found.given, found.x, found.starts
    done, shift = 0, np.inf
    while done < max_iter and shift > tol:
        solves = _solved(found, points, given.a, starts)
        step, starts = solves.pulls().step, solves.starts
        points = points + step
        shift = _length(given, step, given.a)
        done += 1
    return _result(replace(found, x=points, starts=starts), shift, 0.0, done, tol, max_iter)


def _with_free_weights(found: Found, tol: float, max_iter: int) -> FreeBarycenter:
    """Move points and weights together until both rest, by steps after which the objective has not risen."""
    given, xp, free_mass = found.given, found.given.xp, found.options["reach"] is not None
    unit = given.spread**2  # of the objective, and of its gradient by weights
    points, a, starts, trial = given.x, given.a, found.starts, (given.x, given.a)
    best, length, part = np.inf, 1.0, 1.0  # of the steps of weights and of points
    step, slopes = xp.zeros_like(points), xp.zeros_like(a)
    done, shift, gap = 0, np.inf, np.inf
    while done < max_iter and part >= SHORTEST:
        solves = _solved(found, *trial, starts)
        done += 1
        value = solves.objective()
        if value > best + _slack(solves, unit):
            length, part = length / 4, part / 2
        else:
            before, by_before = a, slopes
            (points, a), best, starts = trial, min(value, best), solves.starts
            step, slopes = solves.pulls().step, solves.by_weights() / unit
            if not free_mass:
                slopes = slopes - (a * slopes).sum() / a.sum()
            least = float(xp.where(a > 0, slopes, np.inf).min())
            gap = float((a * slopes).sum() / a.sum()) - (min(least, 0.0) if free_mass else least)
            shift = _length(given, step, a)
            if shift <= tol and gap <= tol:
                break
            part = min(1.0, 2 * part)
            length = _next_length(xp, (before, a), slopes - by_before, length) if done > 1 else length
        trial = (points + part * step, _mirrored(xp, a, length * slopes, free_mass))
    moved = replace(found, x=points, a=a, starts=starts)
    return _result(moved, shift, gap, done, tol, max_iter)


def _next_length(xp: ArrayModule, weights: tuple[Array, Array], bent: Array, length: float) -> float:
    """Return the length of a mirror step by the secant rule of Barzilai and Borwein, near that of the last one.

    `bent` is how the gradient has changed between both `weights`.
    """
    some = (weights[0] > 0) & (weights[1] > 0)
    moved = xp.where(some, xp.log(xp.where(some, weights[1], 1) / xp.where(some, weights[0], 1)), 0)
    square, product = (float((weights[1] * moved * other).sum()) for other in (moved, bent))
    return min(max(square / product, length / FASTER), length * FASTER) if product > 0 else length * FASTER


def _mirrored(xp: ArrayModule, a: Array, change: Array, free_mass: bool) -> Array:
    """Return weights times ``exp(-change)``, of the mass that they had unless that is free."""
    most = float(xp.where(a > 0, xp.abs(change), 0).max())
    moved = a * xp.exp(-change * min(1.0, STEEPEST / most) if most > 0 else -change)
    return moved if free_mass else moved * (a.sum() / moved.sum())


def _slack(solves: Solves, unit: float) -> float:
    """Return by how much the objective may be off: by rounding, and by mass on the wrong side of all clouds."""
    rounding, mass = ROUNDING * float(np.finfo(float).eps), unit * float(solves.a.sum())
    out = 0.0
    for share, result in solves.shared:
        out += abs(share) * (rounding * abs(float(result.reg_cost)) + float(result.error) * mass)
    return out


def _length(given: FreeProblem, step: Array, a: Array) -> float:
    """Return the length of a step relative to the spread of the clouds."""
    square = float((a[:, None] * step**2).sum() / a.sum())
    return math.sqrt(square) / given.spread


def _solved(found: Found, x: Array, a: Array, starts: list[Start] | None) -> Solves:
    return solve_all(found.given, x, a, starts=starts, debiased=found.debiased, options=found.options)


def _result(found: Found, shift: float, gap: float, done: int, tol: float, max_iter: int) -> FreeBarycenter:
    """Return the barycenter, and warn if it is none yet."""
    given, converged = found.given, shift <= tol and gap <= tol
    if not converged:
        rest = (
            f"points still moved by {shift:.2g} of the spread of the clouds"
            if shift > tol
            else f"weights were still {gap:.2g} from the best"
        )
        spent = (
            f"max_iter={max_iter} steps. Raise 'max_iter'"
            if done == max_iter
            else (f"{done} steps, where the objective falls no more by its digits. Lower 'solver_tol'")
        )
        warn(f"{rest}, more than tol={tol:g}, after {spent} or accept a larger 'tol'.", ConvergenceWarning)
    return FreeBarycenter(
        points=given.to_user(found.x),
        weights=given.to_user(found.a),
        shift=shift,
        weights_gap=gap,
        n_iter=done,
        converged=converged,
        found=found,
    )
