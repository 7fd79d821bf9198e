"""Derivatives of the Sinkhorn divergence and of its gradients along a direction, from its solved problems alone."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.divergence import checks
from cusink.divergence.result import SinkhornDivergence
from cusink.gradients import checks as gradients_checks
from cusink.gradients.curvature import SinkhornCurvature, product
from cusink.gradients.envelope import reg_cost_tangent
from cusink.gradients.parts import Cotangents, Directions
from cusink.gradients.system import LinearSolve
from cusink.summary import Summary
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "DivergenceCurvature",
    "sinkhorn_divergence_hvp",
    "sinkhorn_divergence_jvp",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DivergenceCurvature(Summary):
    """How gradients of `cusink.sinkhorn_divergence_adjoint` move along a direction: the Hessian times that direction.

    All but `a` and `b` are computed when one of them is first asked for.

    Attributes
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m)
        Of the gradients by the weights.
    converged : array of bool, shape () or (B,)
        Whether the linear systems of all three problems were solved to the tolerance.
    """

    a: Array
    b: Array
    converged: Array
    _products: tuple[SinkhornCurvature, SinkhornCurvature, SinkhornCurvature] = field(repr=False)
    _of_masses: Array | float = field(repr=False)
    _own_costs: bool = field(repr=False)

    @property
    def eps(self) -> Array:
        """Of the gradient by the regularisation: array of shape () or (B,), the share of each problem."""
        return sum(part.eps for part in self._products) + self._of_masses

    @property
    def C(self) -> Array | None:
        """Of the gradient by a stored cost, in its shape; without `C_aa` and `C_bb` that in all three problems."""
        pair, of_aa, of_bb = (part.C for part in self._products)
        if pair is None or of_aa is None or of_bb is None or self._own_costs:
            return pair
        return pair + of_aa + of_bb

    @property
    def C_aa(self) -> Array | None:
        """Of the gradient by the cost between the bins of `a`, if it was given; None else."""
        return self._products[1].C if self._own_costs else None

    @property
    def C_bb(self) -> Array | None:
        """Of the gradient by the cost between the bins of `b`, if it was given; None else."""
        return self._products[2].C if self._own_costs else None

    @property
    def x(self) -> Array | None:
        """Of the gradient by the source points of a `cusink.PointCloud`, in their shape; None for other costs."""
        return self._points[0]

    @property
    def y(self) -> Array | None:
        """Of the gradient by the target points; None if the cloud was given as `x` alone, and for other costs."""
        return self._points[1]

    @property
    def _points(self) -> tuple[Array | None, Array | None]:
        pair, of_aa, of_bb = self._products
        if pair.x is None or of_aa.x is None or of_bb.x is None:
            return None, None
        if pair.y is None:
            return pair.x + of_aa.x.reshape(pair.x.shape) + of_bb.x.reshape(pair.x.shape), None
        return pair.x + of_aa.x.reshape(pair.x.shape), pair.y + of_bb.x.reshape(pair.y.shape)


@one_call
def sinkhorn_divergence_jvp(
    result: SinkhornDivergence,
    *,
    da: Array | None = None,
    db: Array | None = None,
    dC: Array | None = None,
    deps: Array | float | None = None,
    dx: Array | None = None,
    dy: Array | None = None,
    dC_aa: Array | None = None,
    dC_bb: Array | None = None,
) -> Array:
    """Differentiate the divergence along a direction of the inputs of `cusink.sinkhorn_divergence`.

    Parameters
    ----------
    result : SinkhornDivergence
        What `cusink.sinkhorn_divergence` returned.
    da, db : array, shape (n,) or (B, n); (m,) or (B, m), optional
        How the weights move. In balanced transport the part that changes the mass is left out.
    dC : array, shape (n, m) or (B, n, m), optional
        How a stored cost moves; without `C_aa` and `C_bb` it must stay symmetric.
    deps : float or array, shape () or (B,), optional
        How the regularisation moves.
    dx, dy : array, shape of the points, optional
        How the points of a `cusink.PointCloud` move; of one that was given as `x` alone, only `dx`.
    dC_aa, dC_bb : array, shape of `C_aa` and `C_bb`, optional
        How these costs move, if they were given.

    Returns
    -------
    array, shape () or (B,)
        The derivative of each divergence.

    Raises
    ------
    TypeError
        A result of another kind, an array of another library or dtype.
    ValueError
        An array of the wrong shape or with values that are not finite, a direction that the costs do not have.

    Notes
    -----
    The product of the gradient of each pair with the direction: no linear system is solved, memory is O(n + m).

    Examples
    --------
    >>> import cusink
    >>> cloud = cusink.PointCloud([0.0, 1.0], [2.0, 3.0])
    >>> result = cusink.sinkhorn_divergence(None, None, cloud, eps=0.1)
    >>> print(f"{cusink.sinkhorn_divergence_jvp(result, dx=[1.0, 1.0]):.3f}")
    -4.000
    """
    gradients_checks.instance("result", result, SinkhornDivergence, "cusink.sinkhorn_divergence")
    moves = {"da": da, "db": db, "dC": dC, "deps": deps, "dx": dx, "dy": dy, "dC_aa": dC_aa, "dC_bb": dC_bb}
    directions = directions_of(result, moves)
    out: Any = 0
    for share, problem, along in zip((1, -0.5, -0.5), result.problems, directions, strict=True):
        out = out + share * reg_cost_tangent(problem, along)
    cross = result.problems[0]
    if cross.reach is not None:
        excess, moved = _excess(result, directions[0])
        out = out + cross.eps_as(1) * excess * moved
        if directions[0].eps is not None:
            out = out + directions[0].eps * excess**2 / 2
    return cross.to_user(out)


@one_call
@shares_out
def sinkhorn_divergence_hvp(
    result: SinkhornDivergence,
    *,
    grad: Array | float = 1.0,
    da: Array | None = None,
    db: Array | None = None,
    dC: Array | None = None,
    deps: Array | float | None = None,
    dx: Array | None = None,
    dy: Array | None = None,
    dC_aa: Array | None = None,
    dC_bb: Array | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    workers: int | None = None,
) -> DivergenceCurvature:
    """Multiply the Hessian of ``sum(grad * divergence)`` with a direction of the inputs.

    Parameters
    ----------
    result : SinkhornDivergence
        What `cusink.sinkhorn_divergence` returned.
    grad : array, shape () or (B,), or float
        Derivative of the final loss by each divergence; a number is for every pair.
    da, db : array, shape (n,) or (B, n); (m,) or (B, m), optional
        How the weights move. In balanced transport the part that changes the mass is left out.
    dC : array, shape (n, m) or (B, n, m), optional
        How a stored cost moves; without `C_aa` and `C_bb` it must stay symmetric.
    deps : float or array, shape () or (B,), optional
        How the regularisation moves.
    dx, dy : array, shape of the points, optional
        How the points of a `cusink.PointCloud` move; of one that was given as `x` alone, only `dx`.
    dC_aa, dC_bb : array, shape of `C_aa` and `C_bb`, optional
        How these costs move, if they were given.
    tol : float
        Relative residual, weighted by the plan, to which the linear systems are solved.
    max_iter : int
        Iterations of conjugate gradients at most, in each of them.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    DivergenceCurvature
        How the gradients a, b, eps, C move, and x and y for a `cusink.PointCloud`.

    Raises
    ------
    TypeError
        A result of another kind, an array of another library or dtype.
    ValueError
        An array of the wrong shape or with values that are not finite, a direction that the costs do not have.

    Warns
    -----
    ConvergenceWarning
        If a linear system did not reach `tol`.

    Notes
    -----
    The sum of three Hessians of `reg_cost`, see `cusink.sinkhorn_hvp`: one linear system each, memory O(n + m).

    Examples
    --------
    >>> import cusink
    >>> cloud = cusink.PointCloud([0.0, 1.0], [2.0, 3.0])
    >>> result = cusink.sinkhorn_divergence(None, None, cloud, eps=0.1)
    >>> cusink.sinkhorn_divergence_hvp(result, dx=[1.0, 1.0]).x.round(2)
    array([1., 1.])
    """
    del workers  # `shares_out` has read it
    gradients_checks.instance("result", result, SinkhornDivergence, "cusink.sinkhorn_divergence")
    how = LinearSolve(*gradients_checks.linear_solve(tol, max_iter))
    cross, own = result.problems[0], result.own_costs
    grad = checks.cotangent(grad, cross, result.f)
    moves = {"da": da, "db": db, "dC": dC, "deps": deps, "dx": dx, "dy": dy, "dC_aa": dC_aa, "dC_bb": dC_bb}
    directions = directions_of(result, moves)
    pair, of_aa, of_bb = (
        product(problem, Cotangents(reg_cost=share * grad), along, how)
        for problem, share, along in zip(result.problems, (1, -0.5, -0.5), directions, strict=True)
    )
    of_a, of_b = pair.a + of_aa.a + of_aa.b, pair.b + of_bb.a + of_bb.b
    of_masses: Array | float = 0
    if cross.reach is not None:
        of_a, of_b, of_masses = _of_masses(result, grad, directions[0], of_a, of_b)
    return DivergenceCurvature(
        a=of_a,
        b=of_b,
        converged=pair.converged & of_aa.converged & of_bb.converged,
        _products=(pair, of_aa, of_bb),
        _of_masses=of_masses,
        _own_costs=own,
    )


def directions_of(result: SinkhornDivergence, moves: dict[str, Any]) -> list[Directions]:
    """Return checked directions of the three problems, given those of the inputs by name."""
    own, cloud = result.own_costs, {"dx": moves["dx"], "dy": moves["dy"]}
    checks.own_directions(own, moves["dC_aa"], moves["dC_bb"])
    one_cloud = result.problems[0].C.symmetric
    name_aa, name_bb = ("dC_aa", "dC_bb") if own else ("dC", "dC")
    costs = (
        {"dC": moves["dC"]} | cloud,
        {name_aa: moves[name_aa], "dx": moves["dx"], "dy": None},
        {name_bb: moves[name_bb], "dx": moves["dx" if one_cloud else "dy"], "dy": None},
    )
    any_given, out = any(x is not None for x in moves.values()), []
    sides = (("da", "db"), ("da", "da"), ("db", "db"))
    for problem, (left, right), of_costs in zip(result.problems, sides, costs, strict=True):
        inputs = {"da": moves[left], "db": moves[right], "deps": moves["deps"]}
        if any_given and all(x is None for x in (inputs | of_costs).values()):
            out.append(Directions())
        else:
            out.append(gradients_checks.directions(problem, result.f, inputs, of_costs))
    return out


def _excess(result: SinkhornDivergence, along: Directions) -> tuple[Array, Array]:
    """Return by how much the mass of a exceeds that of b, and how that moves (B,)."""
    cross = result.problems[0]
    excess = cross.a.sum(axis=1, dtype=np.float64) - cross.b.sum(axis=1, dtype=np.float64)
    moved = cross.xp.zeros(len(cross.a))
    for sign, direction in ((1, along.a), (-1, along.b)):
        if direction is not None:
            moved = moved + sign * direction.sum(axis=1)
    return excess, moved


def _of_masses(
    result: SinkhornDivergence, grad: Array, along: Directions, of_a: Array, of_b: Array
) -> tuple[Array, Array, Array]:
    """Return both gradients' changes and that by eps with the share of ``eps / 2 (mass_a - mass_b)**2``."""
    cross, (excess, moved) = result.problems[0], _excess(result, along)
    step = grad * cross.eps_as(1) * moved
    if along.eps is not None:
        step = step + grad * along.eps * excess
    by_a, by_b = (
        cross.bins_to_user(cross.xp.broadcast_to(step[:, None], weights.shape), side)
        for side, weights in enumerate((cross.a, cross.b))
    )
    return of_a + by_a, of_b - by_b, cross.to_user(grad * excess * moved)
