"""Gradients of functions of a barycenter, from its solution alone: no iteration is stored and none is repeated."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink.barycenters.barycenter import Barycenter
from cusink.barycenters.solved import SolvedBarycenter
from cusink.barycenters.terms import BarycenterTerms, pulled
from cusink.calls import memory_advice, one_call
from cusink.checks.arrays import in_range, owned, widened
from cusink.deferred import cached_property
from cusink.gradients import checks
from cusink.gradients.system import LinearSolve, warn_rough
from cusink.summary import Summary
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "BarycenterGradients",
    "barycenter_adjoint",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BarycenterGradients(Summary):
    """Gradients of ``sum(grad_barycenter * barycenter)`` by the inputs of `cusink.barycenter`.

    All but `A` are computed when they are first asked for.

    Attributes
    ----------
    A : array, shape (K, n) or (B, K, n)
        By the histograms of each problem, each projected to mean zero over its bins. Finite for empty bins too, where
        it is the one-sided derivative.
    converged : array of bool, shape () or (B,)
        Whether the linear system of the problem was solved to the tolerance.
    """

    A: Array
    converged: Array
    _terms: BarycenterTerms = field(repr=False)

    @cached_property
    @one_call
    def weights(self) -> Array:
        """By the weights of each problem: array of shape (K,) or (B, K).

        Only ratios of weights matter, so that its product with the weights is zero. The plan of a histogram without
        weight, which the barycenter does not need, is solved for it.
        """
        return self._terms.given.to_user(self._terms.wrt_weights())

    @cached_property
    @one_call
    def C(self) -> Array | None:
        """By the cost: array of shape (n, m), summed over the batch. None for a cost that is not stored."""
        return self._terms.wrt_cost()

    @cached_property
    @one_call
    def eps(self) -> Array:
        """By the regularisation: array of shape () or (B,), the share of each problem."""
        return self._terms.given.to_user(self._terms.pulled.of_eps)

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
        """By the parameters of the metric of a `cusink.PointCloud`, by name, see `cusink.SinkhornGradients`."""
        return self._terms.wrt_metric()

    @property
    def x(self) -> Array | None:
        """By the source points of a `cusink.PointCloud`, in their shape, summed over the batch; None for other costs.

        By the points as sources and as targets, if the cloud was given as `x` alone.
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


@memory_advice("Take the gradients of fewer barycenters at a time: solve a part of the batch per call")
@shares_out
def barycenter_adjoint(
    result: Barycenter,
    *,
    grad_barycenter: Array,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> BarycenterGradients:
    """Pull a gradient with respect to barycenters back to the inputs of `cusink.barycenter`.

    Parameters
    ----------
    result : Barycenter
        What `cusink.barycenter` returned.
    grad_barycenter : array, shape (m,) or (B, m)
        Derivative of the final loss by each bin of the barycenters, in the dtype of the result.
    tol : float
        Relative residual to which the linear system is solved.
    max_iter : int
        Iterations of MINRES at most. One costs as much as one of `cusink.barycenter`.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    BarycenterGradients
        Gradients A, weights, C, eps, and converged; x, y and metric for a `cusink.PointCloud`.

    Raises
    ------
    TypeError
        A result of another kind, a gradient of another library or dtype than the result.
    ValueError
        A gradient of the wrong shape or with values that are not finite.
    MemoryError
        With what to change.

    Warns
    -----
    ConvergenceWarning
        If the barycenter had not converged, or the linear system did not reach `tol`.

    Notes
    -----
    The equations that the barycenter p solves are differentiated, see docs/barycenters.md: no iteration is stored.
    They hold at the optimum, and the gradients are off by about the error of the result, divided by how fast its
    iteration converges. Debiased barycenters of a large eps undo a blur, and so do their gradients: give both calls a
    small `tol` and many iterations there.

    Histograms vary on the simplex: their masses are one and stay so. Everything is computed in float64. Memory is that
    of about ten arrays (B, K, n + m), and of kernels (n, m): one, or where costs are steep up to K.

    References
    ----------
    N. Bonneel et al., Wasserstein barycentric coordinates: histogram regression using optimal transport, 2016.

    Examples
    --------
    >>> import cusink
    >>> A = [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]
    >>> result = cusink.barycenter(A, cusink.Grid(3), [0.5, 0.5], eps=0.5, tol=1e-9)
    >>> grads = cusink.barycenter_adjoint(result, grad_barycenter=[0.0, 1.0, 2.0])  # of the mean of the bins
    >>> print(grads.weights.round(3))
    [-0.477  0.477]
    """
    del workers  # `shares_out` has read it
    checks.instance("result", result, Barycenter, "cusink.barycenter")
    tol, max_iter = checks.linear_solve(tol, max_iter)
    problem = result.problem
    gradient = _checked(grad_barycenter, problem, result.barycenter)
    checks.warn_unconverged(result.converged, result.error)
    given, unit = problem.in_float64().in_unit()
    found = pulled(given, gradient * unit[:, None], LinearSolve(tol, max_iter))
    warn_rough(found.converged, tol, max_iter)
    converged = problem.xp.asarray(found.converged)
    return BarycenterGradients(
        A=problem.bins_to_user(found.of_histograms / unit[:, None, None]),
        converged=converged if problem.batched else converged[0],
        _terms=BarycenterTerms(given, found),
    )


def _checked(grad: Any, problem: SolvedBarycenter, barycenter: Array) -> Array:
    """Check the gradient by barycenters; return it as (B, m) in float64."""
    if grad is None:
        raise TypeError("'grad_barycenter' must be an array of the shape of the barycenter; got None")
    given, xp = widened("grad_barycenter", grad, "result", barycenter)
    if given.shape != barycenter.shape:
        raise ValueError(f"'grad_barycenter' must have shape {barycenter.shape} to match the result; got {given.shape}")
    in_range("grad_barycenter", given, xp)
    return owned(given.astype(np.float64), grad).reshape(problem.log_p.shape)
