"""Barycenters of clouds whose points are free to move: each goes to the mean of where its mass would go."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.barycenters.checks import free_problem
from cusink.checks.scalars import flag, positive_integer, positive_number
from cusink.costs.clouds import PointCloud
from cusink.costs.measures import Measures
from cusink.errors import ConvergenceWarning, memory_advice, warn
from cusink.solver.result import SinkhornResult
from cusink.solver.sinkhorn import sinkhorn
from cusink.summary import Summary
from cusink.types import Array, Tolerance

__all__ = [
    "FreeBarycenter",
    "free_barycenter",
]

Start = tuple[Array, Array] | None  # potentials of the last step


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FreeBarycenter(Summary):
    """Barycenter of clouds, as a cloud.

    Attributes
    ----------
    points : array, shape (n, d)
        Where the points have come to rest.
    weights : array, shape (n,)
        Their weights, as they were given.
    shift : float
        How far points moved in the last step, as a root of a weighted mean square, relative to the spread of all clouds
        about their mean.
    n_iter : int
        Steps taken.
    converged : bool
        Whether `shift` reached the tolerance.
    """

    points: Array
    weights: Array
    shift: float
    n_iter: int
    converged: bool


@memory_advice("Pass 'memory_limit', or fewer points")
def free_barycenter(
    measures: Measures,
    weights: Array | None = None,
    *,
    x: Array,
    a: Array | None = None,
    eps: float,
    debiased: bool = False,
    reach: float | tuple[float | None, float | None] | None = None,
    max_iter: int = 100,
    tol: float = 1e-3,
    solver_tol: Tolerance = "auto",
    memory_limit: int | None = None,
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
        Their weights, which stay. If not given, 1 / n each.
    eps : float
        Regularisation in the unit of squared distances.
    debiased : bool
        Whether to minimise the Sinkhorn divergence, which undoes the shrinking towards means that eps causes.
    reach : float, or pair of float or None, optional
        Lets mass stay behind, as for `cusink.sinkhorn`: outliers then count for little. The first of a pair is for
        the barycenter.
    max_iter : int
        Steps at most; each solves a problem for every cloud, from the potentials of the step before.
    tol : float
        `shift` at which to stop.
    solver_tol : "auto", float or None
        Marginal error of these problems, as `tol` of `cusink.sinkhorn`.
    memory_limit : int, optional
        As for `cusink.sinkhorn`.

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
        If points still moved by more than `tol`, or a problem did not reach `solver_tol`.

    Notes
    -----
    Of given plans ``P_k``, the points with the least ``sum_k w_k <P_k, |x - y_k|²>`` are the means
    ``x_i = sum_k w_k (P_k y_k)_i / sum_k w_k (P_k 1)_i``. A step solves for the plans and goes there, so that the
    objective, the `reg_cost` of `cusink.sinkhorn`, never rises. Debiased, points go by the gradient of the divergence
    with the same step length, ``x_i + sum_k w_k T_k(x_i) - T_x(x_i)`` with the means T under the plans to the clouds
    and to x itself. As the objective is not convex in the points, what is found is a local minimum near the start.
    There is no gradient through it.

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
    given = free_problem(measures, weights, x, a, balanced=reach is None)
    eps, tol, max_iter = (
        positive_number("eps", eps),
        positive_number("tol", tol),
        positive_integer("max_iter", max_iter),
    )
    if not (solver_tol is None or (isinstance(solver_tol, str) and solver_tol == "auto")):
        solver_tol = positive_number("solver_tol", solver_tol, wanted="'auto', a number or None")
    options: dict[str, Any] = {"eps": eps, "reach": reach, "tol": solver_tol, "memory_limit": memory_limit}
    xp, points, debiased = given.xp, given.x, flag("debiased", debiased)
    starts: list[Start] = [None] * (len(given.clouds) + 1)
    done, shift = 0, np.inf
    while done < max_iter and shift > tol:
        pull, total = xp.zeros_like(points), xp.zeros_like(given.a)
        for k, (share, y, b) in enumerate(given.clouds):
            result = sinkhorn(given.a, b, PointCloud(points, y), init=starts[k], **options)
            starts[k] = result.f, result.g
            mass, means = _rows(result, given.a, y, reach is None)
            pull += share * mass[:, None] * (means - points)
            total += share * mass
        if debiased:
            result = sinkhorn(given.a, given.a, PointCloud(points), init=starts[-1], **options)
            starts[-1] = result.f, result.g
            mass, means = _rows(result, given.a, points, reach is None)
            pull -= mass[:, None] * (means - points)
        step = pull / xp.where(total > 0, total, 1)[:, None]  # points without mass stay
        points = points + step
        shift = float((given.a[:, None] * step**2).sum() / given.a.sum()) ** 0.5 / given.spread
        done += 1
    if shift > tol:
        warn(
            f"points still moved by {shift:.2g} of the spread of the clouds, more than tol={tol:g}, after max_iter="
            f"{max_iter} steps. Raise 'max_iter' or accept a larger 'tol'.",
            ConvergenceWarning,
        )
    return FreeBarycenter(
        points=given.to_user(points), weights=given.to_user(given.a), shift=shift, n_iter=done, converged=shift <= tol
    )


def _rows(result: SinkhornResult, a: Array, values: Array, balanced: bool) -> tuple[Any, Any]:
    """Return the mass (n,) of the rows of a plan, and the means (n, d) of values under them."""
    xp = result.problem.xp
    mass = a if balanced else result.apply(xp.ones_like(values[:, 0]), axis=1)
    return mass, result.barycentric_map(values, axis=1)
