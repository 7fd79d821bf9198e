"""Gradients of the points of a free barycenter, from the point where it came to rest: no step is stored or repeated."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cusink.barycenters.checks import Cloud
from cusink.barycenters.free_result import FreeBarycenter
from cusink.barycenters.solves import Solves, solve_all
from cusink.calls import memory_advice
from cusink.errors import ConvergenceWarning, deferred_warnings, warn
from cusink.gradients import checks
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.gradients.curvature import SinkhornCurvature
from cusink.gradients.hvp import sinkhorn_hvp
from cusink.gradients.system import warn_rough
from cusink.summary import Summary
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "FreeBarycenterGradients",
    "free_barycenter_adjoint",
]

FINER = 0.01  # tolerance of what a system is made of, relative to its own
FINEST = 1e-12


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FreeBarycenterGradients(Summary):
    """Gradients of ``sum(grad_points * points)`` by the inputs of `cusink.free_barycenter`.

    Attributes
    ----------
    y : array, shape (N, d)
        By the points of the measures; 0 for those of a measure without a share.
    b : array, shape (N,)
        By their weights; in balanced transport projected to mean zero over each measure.
    weights : array, shape (K,)
        By the shares. Only their ratios matter, so that the product with them is zero. An item without mass has 0.
    a : array, shape (n,)
        By the weights of the barycenter; in balanced transport projected to mean zero.
    eps : array, shape ()
        By the regularisation.
    converged : bool
        Whether the linear system was solved to the tolerance.
    """

    y: Array
    b: Array
    weights: Array
    a: Array
    eps: Array
    converged: bool


@memory_advice("Pass 'memory_limit' to cusink.free_barycenter, or fewer points")
@shares_out
def free_barycenter_adjoint(
    result: FreeBarycenter,
    *,
    grad_points: Array,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> FreeBarycenterGradients:
    """Pull a gradient with respect to the points of a free barycenter back to the inputs.

    Parameters
    ----------
    result : FreeBarycenter
        What `cusink.free_barycenter` returned, with weights that were fixed.
    grad_points : array, shape (n, d)
        Derivative of the final loss by the points, in the dtype of the result.
    tol : float
        Relative residual to which the linear system is solved.
    max_iter : int
        Iterations of conjugate gradients at most, and in each those of the systems of the plans.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    FreeBarycenterGradients
        By points and weights of the measures, by shares, by the weights of the barycenter and by eps.

    Raises
    ------
    TypeError
        A result of another kind, a gradient of another library or dtype than the result.
    ValueError
        A gradient of the wrong shape or with values that are not finite; a result with `free_weights`.
    MemoryError
        With what to change.

    Warns
    -----
    ConvergenceWarning
        If the barycenter had not come to rest, a problem did not converge, or the linear system did not reach `tol`.

    Notes
    -----
    At rest the gradient ``G(x, inputs)`` of the objective by the points is zero, so that ``H dx = -dG`` with the
    Hessian H of the objective. With ``H l = grad_points`` every input takes ``-<l, dG>``, which is how its own gradient
    moves while the points move along l: products of Hessians of `cusink.sinkhorn_hvp`, for H itself too, and no matrix
    or plan is stored. Everything is computed in float64, from problems solved anew where the points came to rest.

    The gradient is that of the local minimum that was found, and off by about the last `shift` over how fast steps
    converge: give `cusink.free_barycenter` a small `tol` and `solver_tol`. Where points came to rest is the same for
    starts nearby, so that `x` has no gradient; a point without weight stays at its start and adds none.

    Of weights that are free there is none: their best ones are rarely unique, as points may share a place.

    References
    ----------
    S. Krantz and H. Parks, The implicit function theorem, 2002, chapter 3.

    Examples
    --------
    >>> import cusink
    >>> clouds = cusink.Measures.of([[0.0, 1.0], [4.0, 5.0]])
    >>> found = cusink.free_barycenter(clouds, [0.5, 0.5], x=[2.0, 3.0], eps=1e-3, tol=1e-9)
    >>> grads = cusink.free_barycenter_adjoint(found, grad_points=[[1.0], [0.0]])
    >>> print(grads.y.round(3).ravel(), grads.weights.round(3))
    [0.5 0.  0.5 0. ] [-2.  2.]
    """
    del workers  # `shares_out` has read it
    checks.instance("result", result, FreeBarycenter, "cusink.free_barycenter")
    tol, max_iter = checks.linear_solve(tol, max_iter)
    gradient = checks.cotangent("grad_points", grad_points, result.points.shape, "the points", result.points)
    found, given = result.found, result.found.given.in_float64()
    if not found.fixed:
        raise ValueError(
            "'result' must be of weights that are fixed; got one of free_weights=True, whose points may share a place. "
            "Solve again with a=result.weights and x=result.points"
        )
    if not result.converged:
        warn(
            f"points still moved by {result.shift:.2g} of the spread of the clouds: gradients are off by as much or "
            "more, relative to their size. Raise 'max_iter' of cusink.free_barycenter",
            ConvergenceWarning,
        )
    x, a = found.x.astype(np.float64), found.a.astype(np.float64)
    finer = max(FINER * tol, FINEST)
    options = found.options | {"tol": finer}
    starts = found.starts and [start and tuple(p.astype(np.float64) for p in start) for start in found.starts]
    solves = solve_all(given, x, a, starts=starts, debiased=found.debiased, options=options)
    hessian = _Hessian(solves, finer, max_iter)
    direction, reached = _solve(hessian, gradient, tol, max_iter)
    warn_rough(np.array([reached]), tol, max_iter)
    xp, (N, K) = given.xp, given.sizes
    of_points, of_masses = xp.zeros((N, x.shape[1])), xp.zeros(N)
    of_a, of_eps, by_share = xp.zeros_like(a), 0.0, np.zeros(K)
    for k, (share, curvature) in enumerate(hessian.products(direction)):
        of_eps -= share * float(curvature.eps)
        of_a -= share * curvature.a
        if k == len(given.clouds):
            of_a -= share * curvature.b
            continue
        cloud = given.clouds[k]
        of_points[cloud.part] -= share * _some(curvature.y)
        of_masses[cloud.part] -= share * curvature.b
    for cloud, pull in _pulls(solves, options):
        by_share[cloud.item] = -float((direction * pull).sum())
    mean = sum(cloud.share * by_share[cloud.item] for cloud in given.clouds)
    with_mass = [cloud.item for cloud in (*given.clouds, *given.others)]
    by_share[with_mass] -= mean
    return FreeBarycenterGradients(
        y=given.to_user(of_points),
        b=given.to_user(of_masses),
        weights=given.to_user(xp.asarray(by_share / given.total)),
        a=given.to_user(of_a),
        eps=given.to_user(xp.asarray(of_eps)),
        converged=reached,
    )


@dataclass(frozen=True, eq=False)
class _Hessian:
    """The Hessian of the objective by points, from products with those of the problems."""

    solves: Solves
    tol: float
    max_iter: int

    def products(self, direction: Array) -> list[tuple[float, SinkhornCurvature]]:
        """Return the share of each problem, and how its gradients move while the points do."""
        options: dict[str, Any] = {"grad_reg_cost": 1.0, "dx": direction, "tol": self.tol, "max_iter": self.max_iter}
        return [(share, sinkhorn_hvp(result, **options)) for share, result in self.solves.shared]

    def times(self, direction: Array) -> tuple[Array, bool]:
        """Return the product with a direction (n, d), and whether all systems behind it were solved."""
        with deferred_warnings([]):  # of one system at the end
            parts = self.products(direction)
        image = self.solves.given.xp.zeros_like(direction)
        for share, curvature in parts:
            image += share * _some(curvature.x)
        return image, all(bool(part.converged) for _, part in parts)


def _some(array: Array | None) -> Array:
    """Return an array that clouds have."""
    assert array is not None
    return array


def _solve(hessian: _Hessian, right: Array, tol: float, max_iter: int) -> tuple[Array, bool]:
    """Solve by conjugate gradients, preconditioned by the part of the Hessian for plans that stay; 0 without mass.

    That part is the length of steps, so that eigenvalues lie in (0, 2) where steps converge.
    """
    xp, mass = hessian.solves.given.xp, 2 * hessian.solves.pulls().mass[:, None]
    weight = xp.where(mass > 0, 1 / xp.where(mass > 0, mass, 1), 0)
    residual = xp.where(mass > 0, right, 0)
    out, direction = xp.zeros_like(residual), weight * residual
    size = float((weight * residual**2).sum())
    target, sound = tol**2 * size, True
    for _ in range(max_iter):
        if size <= target:
            break
        image, solved = hessian.times(direction)
        image = xp.where(mass > 0, image, 0)
        curvature = float((direction * image).sum())
        sound = sound and solved
        if not curvature > 0:  # no minimum
            return out, False
        length = size / curvature
        out, residual = out + length * direction, residual - length * image
        previous, size = size, float((weight * residual**2).sum())
        direction = weight * residual + size / previous * direction
    return out, sound and size <= target


def _pulls(solves: Solves, options: dict[str, Any]) -> list[tuple[Cloud, Array]]:
    """Return the gradients by the points of the cost to each cloud with mass, of those without a share too."""
    given, pairs = solves.given, list(zip(solves.given.clouds, solves.clouds, strict=True))
    if given.others:
        mass = float(solves.a.sum())
        others = [
            cloud._replace(weights=cloud.weights * (mass / float(cloud.weights.sum()))) if solves.balanced else cloud
            for cloud in given.others
        ]
        problem = replace(given, clouds=others, others=[])
        more = solve_all(problem, solves.x, solves.a, starts=None, debiased=False, options=options)
        pairs += list(zip(others, more.clouds, strict=True))
    return [(cloud, sinkhorn_adjoint(result, grad_reg_cost=1.0).x) for cloud, result in pairs]
