"""Gradient flows: points that move down the gradient of a loss to other points, by steps after which it is lower."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps
from cusink.costs.clouds import PointCloud
from cusink.divergence.adjoint import sinkhorn_divergence_adjoint
from cusink.divergence.forward import sinkhorn_divergence
from cusink.errors import ConvergenceWarning, warn
from cusink.flows import checks
from cusink.flows.checks import FlowProblem
from cusink.norms.norms import kernel_distance, kernel_distance_adjoint
from cusink.summary import Summary
from cusink.types import Array, HostArray, Tolerance
from cusink.workers import shares_out

__all__ = [
    "Flow",
    "gradient_flow",
]

Loss: TypeAlias = Literal["sinkhorn", "gaussian", "laplace", "energy", "exponential", "distance"]
Callback: TypeAlias = Callable[[int, Array, float], None]
FARTHEST = 1.0  # that a point moves in a step, in extents of both clouds: nothing lies further
LONGER = 1.25  # a step after one that lowered the loss
SHORTEST = 2.0**-20  # of the step that was asked for, and of an extent that a point moves; no shorter one is tried


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Flow(Summary):
    """Where a flow has come.

    Attributes
    ----------
    points : array, shape (n, d) or (n,)
        The points, in the shape of those that they started from.
    losses : array, shape (n_iter + 1,)
        The loss at the start and after each step, in NumPy: it never rises.
    shift : float
        How far a full step down the gradient would go from here, as a root of a weighted mean square, relative to the
        spread of y.
    step : float
        The step that was taken last.
    n_iter : int
        Steps taken.
    n_shortened : int
        How often a step was tried that would have raised the loss, and was not taken.
    converged : bool
        Whether `shift` reached the tolerance; False if none was given.
    """

    points: Array
    losses: HostArray
    shift: float
    step: float
    n_iter: int
    n_shortened: int
    converged: bool


@memory_advice("Pass 'memory_limit', or fewer points")
@shares_out
def gradient_flow(
    x: Array,
    y: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    loss: Loss = "sinkhorn",
    eps: float | RelativeEps | None = None,
    scale: float | None = None,
    reach: float | tuple[float | None, float | None] | None = None,
    step: float = 0.25,
    momentum: float = 0.0,
    max_iter: int = 100,
    tol: float | None = None,
    solver_tol: Tolerance = "auto",
    memory_limit: int | None = None,
    callback: Callback | None = None,
    workers: int | None = None,
) -> Flow:
    """Move points down the gradient of a loss between them and others.

    Parameters
    ----------
    x : array, shape (n, d) or (n,)
        Points to start from.
    y : array, shape (m, d) or (m,)
        Points to go to.
    a : array, shape (n,), optional
        Weights of x, which stay; 1 / n each if not given. A point without weight does not move.
    b : array, shape (m,), optional
        Weights of y; 1 / m each if not given.
    loss : {"sinkhorn", "gaussian", "laplace", "energy", "exponential", "distance"}
        `cusink.sinkhorn_divergence` of squared distances, or `cusink.kernel_distance` with this kernel.
    eps : float or RelativeEps, optional
        Regularisation of "sinkhorn" in the unit of squared distances, which needs it. A `cusink.RelativeEps` is a share
        of those between x and y at the start: it stays while points move.
    scale : float, optional
        Length of the kernel, as for `cusink.kernel_product`; 1 if not given.
    reach : float, or pair of float or None, optional
        Of "sinkhorn", as for `cusink.sinkhorn_divergence`: outliers then pull little, and masses may differ.
    step : float
        Longest step in time: points move by ``-step / a_i`` times the gradient. With "sinkhorn", 0.5 goes to the mean
        of where the mass of a point goes.
    momentum : float
        Share of the last move that is added to the next, in [0, 1).
    max_iter : int
        Steps at most.
    tol : float, optional
        `shift` at which to stop. None takes `max_iter` steps, as long as one lowers the loss: the picture of a flow at
        a time.
    solver_tol : "auto", float or None
        Marginal error of the problems of "sinkhorn", as `tol` of `cusink.sinkhorn_divergence`.
    memory_limit : int, optional
        As for `cusink.sinkhorn_divergence`.
    callback : function, optional
        Called as ``callback(steps, points, loss)`` at the start and after each step; the flow keeps no path.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    Flow
        The points, the losses on the way, and how steps went.

    Raises
    ------
    TypeError
        An input of the wrong kind, library or dtype.
    ValueError
        An input of the wrong shape or with forbidden values, an option of another loss.
    MemoryError
        With what to change.

    Warns
    -----
    ConvergenceWarning
        If `tol` was given and not reached, or if a problem of "sinkhorn" did not converge.

    Notes
    -----
    It is the explicit scheme of ``dx_i/dt = -(1 / a_i) dL/dx_i``, the gradient flow of L in the space of measures with
    the distances of Wasserstein, for n particles. A step that would not lower the loss is not taken: momentum is
    forgotten, and half of the step tried. Nor is one in which a point would go further than all points reach. After a
    step that lowered it the next is a quarter longer, up to `step`.
    Gradients of "gaussian", "laplace" and "exponential" vanish where points are many `scale` from y, so that a long
    step may leave points stranded there; "energy" pulls from further away, "distance" and "sinkhorn" from anywhere.
    Memory is that of the loss and of three clouds.

    References
    ----------
    J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019.
    M. Arbel et al., Maximum mean discrepancy gradient flow, NeurIPS 2019.

    Examples
    --------
    >>> import cusink
    >>> flow = cusink.gradient_flow([0.0, 1.0], [4.0, 6.0], eps=0.1, step=0.5, max_iter=5)
    >>> print(flow.points.round(2), flow.n_iter)
    [4. 6.] 2
    """
    del workers  # `shares_out` has read it
    given = checks.flow_problem(x, y, a, b, reach=reach, loss=loss)
    how = checks.options(
        loss, given, eps=eps, scale=scale, reach=reach, solver_tol=solver_tol, memory_limit=memory_limit
    )
    steps = checks.steps(step, momentum, max_iter, tol, callback)
    points, current, moved = given.x, _of_points(loss, given, given.x, how), None
    velocity = _velocity(given, current)
    losses, length, taken, shortened = [current.value], steps.step, 0.0, 0
    shift = given.length(velocity) * steps.step
    _tell(callback, given, points, losses)
    while len(losses) <= steps.max_iter and shift > max(steps.tol, 0.0):
        # In a unit of coordinates in which they are small, the step that was asked for goes far beyond all points.
        farthest = length * float(abs(velocity).max())
        if length < SHORTEST * steps.step and not farthest >= SHORTEST * given.extent:
            break
        move = -length * velocity if moved is None else steps.momentum * moved - length * velocity
        near = float(abs(move).max()) <= FARTHEST * given.extent  # and no infinity
        tried = _of_points(loss, given, points + move, how) if near else None
        if tried is None or not tried.value < losses[-1]:
            shortened += 1
            length, moved = (length / 2 if moved is None else length), None
            continue
        points, velocity = points + move, _velocity(given, tried)
        moved = move if steps.momentum > 0 else None
        losses.append(tried.value)
        shift = given.length(velocity) * steps.step
        taken, length = length, min(LONGER * length, steps.step)
        _tell(callback, given, points, losses)
    converged = steps.tol >= 0 and shift <= steps.tol
    _warn(steps, shift, len(losses) - 1, converged)
    return Flow(
        points=given.to_user(points),
        losses=np.array(losses),
        shift=shift,
        step=taken,
        n_iter=len(losses) - 1,
        n_shortened=shortened,
        converged=converged,
    )


def _tell(callback: Callback | None, given: FlowProblem, points: Array, losses: list[float]) -> None:
    if callback is not None:
        callback(len(losses) - 1, given.to_user(points), losses[-1])


@dataclass(frozen=True, eq=False)
class _Loss:
    """A loss at some points, with its gradient (n, d) by them when it is asked for."""

    value: float
    gradient: Callable[[], Array]


def _of_points(loss: Loss, given: FlowProblem, x: Array, how: dict[str, Any]) -> _Loss:
    """Return the loss of points x."""
    a, y, b = given.a, given.y, given.b
    if loss == "sinkhorn":
        solved = sinkhorn_divergence(a, b, PointCloud(x, y), **how)
        return _Loss(float(solved.divergence), lambda: sinkhorn_divergence_adjoint(solved).x)
    distance = float(kernel_distance(x, a, y, b, kernel=loss, **how))
    return _Loss(distance, lambda: kernel_distance_adjoint(x, a, y, b, kernel=loss, wrt="x", **how).x)


def _velocity(given: FlowProblem, current: _Loss) -> Array:
    """Return the gradient (n, d) by each unit of mass, 0 for points without any."""
    some = given.a[:, None] > 0
    return given.xp.where(some, current.gradient() / given.xp.where(some, given.a[:, None], 1), 0)


def _warn(steps: checks.Steps, shift: float, done: int, converged: bool) -> None:
    """Warn of a flow that did not come to rest, or stands still."""
    if converged or steps.tol < 0:
        return
    if done < steps.max_iter:
        warn(
            f"no step lowers the loss after {done} of them, of which the next would move points by {shift:.2g} of the "
            "spread of 'y': its digits are used up. Lower 'solver_tol', raise 'eps' or pass float64 arrays",
            ConvergenceWarning,
        )
    else:
        warn(
            f"points still moved by {shift:.2g} of the spread of 'y', more than tol={steps.tol:g}, after max_iter="
            f"{steps.max_iter} steps. Raise 'max_iter' or 'step', or accept a larger 'tol'",
            ConvergenceWarning,
        )
