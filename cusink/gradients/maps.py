"""Gradients of barycentric maps, by their values and by all inputs of the solve.

A mean ``T_i = sum_j P_ij v_j / sum_j P_ij`` has the derivative ``G_i . (v_j - T_i) / sum_j P_ij`` by an entry of the
plan, for a cotangent G: a matrix that is thin, and which goes the way of `cusink.gradients.through_plan`. Its products
with the rows of the plan are zero, and those with the columns are taken of shares, in which no weight divides.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import narrowed
from cusink.gradients import checks
from cusink.gradients.adjoint import SinkhornGradients
from cusink.gradients.blocks import BlockTerms
from cusink.gradients.first_bits import largest_shares
from cusink.gradients.motion import solved
from cusink.gradients.parts import Directions
from cusink.gradients.potentials import sided_terms
from cusink.gradients.shares import Shares, shares
from cusink.gradients.system import LinearSolve, warn_rough
from cusink.gradients.through_plan import product_terms
from cusink.solver.checks import plan_axis
from cusink.solver.maps import map_values
from cusink.solver.problem import Problem
from cusink.solver.result import SinkhornResult
from cusink.types import Array, Axis, HostArray
from cusink.workers import shares_out

__all__ = [
    "MapGradients",
    "barycentric_map_adjoint",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MapGradients(SinkhornGradients):
    """Gradients of ``sum(grad_map * map)`` by the inputs of `cusink.sinkhorn`, and by the values that were mapped.

    Attributes
    ----------
    a, b, converged : array
        As in `cusink.SinkhornGradients`, with the values held fixed; so are `C`, `eps`, `reach`, `x`, `y` and `metric`.
    values : array, shape of `values`
        By the values, with the plan as it is; summed over the batch for values that its problems share.
    """

    values: Array


@one_call
@shares_out
def barycentric_map_adjoint(
    result: SinkhornResult,
    values: Array,
    grad_map: Array,
    *,
    axis: Axis = 1,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> MapGradients:
    """Pull the gradient with respect to a barycentric map back to values and inputs of the solve.

    Parameters
    ----------
    result : SinkhornResult
        What `cusink.sinkhorn` returned.
    values : array, shape (m,) or (m, d) or (B, m, d) for axis 1; (n,) or (n, d) or (B, n, d) for axis 0
        The values that were mapped.
    grad_map : array, shape of the map
        Derivative of the final loss by the map.
    axis : {0, 1}
        The axis of the plan that was summed over.
    tol : float
        Relative residual, weighted by the plan, to which the linear system is solved.
    max_iter : int
        Iterations of conjugate gradients at most.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    MapGradients
        The gradients by the values, and those of `cusink.SinkhornGradients` with the values held fixed. Of a map to the
        points y of a cloud, that by y is the sum of both.

    Raises
    ------
    TypeError
        A result of another kind, an array of another library or dtype than the result.
    ValueError
        An array of the wrong shape, or with values that are not finite.

    Warns
    -----
    ConvergenceWarning
        If the solve had not converged, or the linear system did not reach `tol`.

    Notes
    -----
    With the shares ``S_ij = P_ij / sum_j P_ij`` and the map ``T = S v`` the values take ``S' G``, and the logarithm
    of an entry of the plan takes ``N_ij = S_ij G_i . (v_j - T_i)``, whose rows have sum zero. With the solution of

        x + R y = 0        S'x + y = sum_i N_ij / (eps b_j)

    a takes ``eps x``, b ``eps y`` and C ``P (x + y) - N / eps``. Everything is computed in float64, in blocks of the
    plan: memory is O(n + m). docs/gradients.md derives it.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> x, y = np.array([0.0, 1.0]), np.array([0.5, 2.0])
    >>> result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.5)
    >>> grads = cusink.barycentric_map_adjoint(result, y, np.array([1.0, 0.0]))
    >>> print(grads.values.round(3), grads.x.round(3))
    [0.953 0.047] [ 0.203 -0.203]
    """
    del workers  # `shares_out` has read it
    checks.instance("result", result, SinkhornResult, "cusink.sinkhorn")
    tol, max_iter = checks.linear_solve(tol, max_iter)
    problem, axis = result.problem, plan_axis(axis)
    mapped, flat = map_values(values, axis, problem)
    size, kept, d = len(problem.a), problem.C.shape[-1 - axis], mapped.shape[-1]
    cells = problem.images[1 - axis]
    shape = (*((size,) if problem.batched else ()), *(cells or (kept,)), *(() if flat else (d,)))
    grad_map = checks.cotangent("grad_map", grad_map, shape, "the map of 'values'", result.f).reshape(size, kept, d)
    checks.warn_unconverged(result.converged, result.error)
    terms, of_values, converged = _terms(problem, axis, mapped, grad_map, LinearSolve(tol, max_iter))
    warn_rough(converged, tol, max_iter)
    if len(mapped) == 1:
        of_values = of_values.sum(axis=0)
    shown = problem.xp.asarray(converged)
    return MapGradients(
        a=problem.bins_to_user(terms.wrt_a(), 0),
        b=problem.bins_to_user(terms.wrt_b(), 1),
        converged=shown if problem.batched else shown[0],
        values=narrowed(of_values, problem.dtype, problem.xp).reshape(np.shape(values)),
        _terms=terms,
    )


def _terms(
    problem: Problem, axis: Axis, values: Array, cotangent: Array, how: LinearSolve
) -> tuple[BlockTerms, Array, HostArray]:
    """Return the terms of a map, the gradients (B, bins, d) by its values, and which systems were solved (B,)."""
    given, of = solved(problem), shares(problem, axis, values, cotangent)
    xp = given.problem.xp
    sums = [xp.zeros_like(given.problem.a), xp.zeros_like(given.problem.b)]
    for pairs in of.pairs(Directions()):
        pulled = of.pulled(pairs)
        if axis == 1:
            sums[1][pairs.problems] += pulled.sum(axis=1)
        else:
            sums[0][pairs.problems, pairs.rows] += pulled.sum(axis=2)
    most = largest_shares(xp, values, cotangent)
    of_rows, of_columns = (xp.clip(x, -most, most) for x in sums)
    if not given.far:
        product, even = partial(_product, of), replace(how, evenly=True)
        terms, converged = product_terms(problem, given, product, (of_rows, of_columns), even)
        return terms, of.of_values, converged
    # The logarithm of a share moves with that of the other side's weight, and with its potential over eps.
    eps = given.problem.eps_as(2)
    u, v = given.problem.a * of_rows / eps, given.problem.b * of_columns / eps
    far, converged = sided_terms(problem, given, u, v, how, partial(_direct, of), (of_rows, of_columns))
    return far, of.of_values, converged


def _product(of: Shares, problems: slice, rows: slice, _: Array | None = None) -> Array:
    """Return a block of the shares times their derivatives; the plan is not needed."""
    pairs = of.block(problems, rows)
    return of.weighted(pairs, of.pulled(pairs))


def _direct(of: Shares, problems: slice, rows: slice) -> Array:
    """Return a block of what the costs take of the shares besides the potentials."""
    return -_product(of, problems, rows) / of.given.problem.eps_as(3, problems)
