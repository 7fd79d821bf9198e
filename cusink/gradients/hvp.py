"""Products of the Hessian of a value with a direction, from the solution alone."""

from cusink.calls import one_call
from cusink.gradients import checks
from cusink.gradients.checks import warn_unconverged
from cusink.gradients.curvature import SinkhornCurvature, product
from cusink.gradients.system import LinearSolve
from cusink.solver.result import SinkhornResult
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "SinkhornCurvature",
    "sinkhorn_hvp",
]


@one_call
@shares_out
def sinkhorn_hvp(
    result: SinkhornResult,
    *,
    grad_cost: Array | float | None = None,
    grad_reg_cost: Array | float | None = None,
    grad_entropic_cost: Array | float | None = None,
    da: Array | None = None,
    db: Array | None = None,
    dC: Array | None = None,
    deps: Array | float | None = None,
    dx: Array | None = None,
    dy: Array | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> SinkhornCurvature:
    """Multiply the Hessian of ``sum(cotangent * value)`` with a direction of the inputs.

    Parameters
    ----------
    result : SinkhornResult
        What `cusink.sinkhorn` returned.
    grad_cost, grad_reg_cost, grad_entropic_cost : array, shape () or (B,), or float, optional
        Derivative of the final loss by these values, as for `cusink.sinkhorn_adjoint`. At least one must be given.
    da : array, shape (n,) or (B, n), optional
        How the source weights move. In balanced transport the part that changes the mass is left out.
    db : array, shape (m,) or (B, m), optional
        How the target weights move.
    dC : array, shape (n, m) or (B, n, m), optional
        How a stored cost moves.
    deps : float or array, shape () or (B,), optional
        How the regularisation moves.
    dx : array, shape of the source points, optional
        How the points of a `cusink.PointCloud` move; of one that was given as `x` alone, on both sides.
    dy : array, shape of the target points, optional
        How the target points move.
    tol : float
        Relative residual, weighted by the plan, to which the linear systems are solved.
    max_iter : int
        Iterations of conjugate gradients at most, in each of them.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    SinkhornCurvature
        How the gradients a, b, C, eps move, and x and y for a `cusink.PointCloud`.

    Raises
    ------
    TypeError
        A result of another kind, an array of another library or dtype than the result.
    ValueError
        An array of the wrong shape or with values that are not finite, a direction that the cost does not have, no
        direction or cotangent at all.

    Warns
    -----
    ConvergenceWarning
        If the solve had not converged, or a linear system did not reach `tol`.

    Notes
    -----
    For `reg_cost` one linear system is solved, for `cost` three, and with `reach` for `entropic_cost` too, all of one
    matrix; the plan is gone through up to three times, in blocks, and none is kept: memory is O(n + m). Everything
    is computed in float64, but for steps of the systems whose residual is. docs/second-order.md derives the formulas.

    The Hessian is that of the value as a function of all inputs together, and symmetric. Where a metric has no second
    derivative, at points that coincide, its part is zero.

    Examples
    --------
    >>> import cusink
    >>> cloud = cusink.PointCloud([0.0, 1.0], [2.0, 4.0])
    >>> result = cusink.sinkhorn(None, None, cloud, eps=0.5)
    >>> print(cusink.sinkhorn_hvp(result, grad_reg_cost=1.0, dx=[1.0, 0.0]).x.round(2))
    [0.86 0.14]
    """
    del workers  # `shares_out` has read it
    checks.instance("result", result, SinkhornResult, "cusink.sinkhorn")
    tol, max_iter = checks.linear_solve(tol, max_iter)
    problem = result.problem
    values = checks.cotangents(
        problem,
        result.f,
        values={"grad_cost": grad_cost, "grad_reg_cost": grad_reg_cost, "grad_entropic_cost": grad_entropic_cost},
        potentials={},
    )
    along = checks.directions(problem, result.f, {"da": da, "db": db, "deps": deps}, {"dC": dC, "dx": dx, "dy": dy})
    warn_unconverged(result.converged, result.error)
    return product(problem, values, along, LinearSolve(tol, max_iter))
