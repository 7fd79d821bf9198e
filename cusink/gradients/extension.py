"""Gradients of potentials, their fields and maps at new points, by these points and by what they were made of."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import narrowed
from cusink.costs.cost import GradientBlock
from cusink.costs.pulled import as_given
from cusink.gradients import checks
from cusink.gradients.field import Field, field_gradients
from cusink.gradients.parts import Directions
from cusink.gradients.shares import Shares, shares
from cusink.solver.extension import SinkhornExtension
from cusink.solver.maps import map_values
from cusink.summary import Summary
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "ExtensionGradients",
    "extension_adjoint",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ExtensionGradients(Summary):
    """Gradients of a potential, its field and a map at new points, each with all else held fixed.

    Attributes
    ----------
    points : array, shape of the new points
        By the new points; summed over the batch for points that its problems share, as are `partners` and `values`.
    potential : array, shape (m,) or (B, m)
        By the potential of the other side: g for new source points, f for new target points. Pass it to
        `cusink.sinkhorn_adjoint` to reach the inputs of the solve.
    weights : array, shape (m,) or (B, m)
        By the weights of the other side.
    partners : array, shape of the points of the other side
        By the points of the other side, as places and as what is mapped to.
    eps : array, shape () or (B,)
        By the regularisation.
    reach : array, shape (2,) or (B, 2), or None
        By both prices of the marginals, 0 for that of the other side; None for balanced transport.
    values : array, shape of `values`, or None
        By the values, where these were given.
    """

    points: Array
    potential: Array
    weights: Array
    partners: Array
    eps: Array
    reach: Array | None
    values: Array | None


@one_call
@shares_out
def extension_adjoint(
    extension: SinkhornExtension,
    *,
    grad_potential: Array | None = None,
    grad_map: Array | None = None,
    grad_gradient: Array | None = None,
    values: Array | None = None,
    workers: int | None = None,
) -> ExtensionGradients:
    """Pull gradients by potentials, their fields and maps at new points back to these and to the solution.

    Parameters
    ----------
    extension : SinkhornExtension
        What `cusink.SinkhornResult.at` returned.
    grad_potential : array, shape of ``extension.potential``, optional
        Derivative of the final loss by the potential at the new points.
    grad_map : array, shape of ``extension.map()``, or of ``extension.barycentric_map(values)``, optional
        Derivative of the final loss by the map.
    grad_gradient : array, shape of ``extension.gradient()``, optional
        Derivative of the final loss by the gradient of the potential. At least one of the three must be given; they
        add up.
    values : array, shape (m,) or (m, d) or (B, m, d), optional
        The values that were mapped; the points of the other side if none are given.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    ExtensionGradients
        The gradients by the new points, and by the potential, the weights, the points and the eps they were made of.

    Raises
    ------
    TypeError
        An extension of another kind, an array of another library or dtype.
    ValueError
        An array of the wrong shape or with values that are not finite, no derivative, values without `grad_map`, or
        `grad_gradient` for a metric that is a function, whose second derivative is not known.

    Notes
    -----
    Let ``p_ij`` be the shares of the other side's points j in the row of a new point i. Its potential is
    ``-kappa eps log sum_j b_j exp((g_j - C_ij) / eps)``, with kappa = 1 in balanced transport, and its map
    ``T_i = sum_j p_ij v_j``. For cotangents u of the potential and G of the map, and

        Q_ij = p_ij (kappa u_i - G_i . (v_j - T_i) / eps)

    C takes Q, and from it the points; ``g_j`` takes ``-sum_i Q_ij``, ``b_j`` takes ``-eps sum_i Q_ij / b_j``. No linear
    system is solved. The scalar product of the field with a cotangent is the slope of the potential along it: its
    gradients are those of the potential, moved, with ``dQ_ij = Q_ij (sum_k p_ik dC_ik - dC_ij) / eps``. Everything is
    computed in float64, in blocks.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> result = cusink.sinkhorn(None, None, cusink.PointCloud([0.0, 1.0], [0.5, 2.0]), eps=0.5)
    >>> grads = cusink.extension_adjoint(result.at([0.4]), grad_map=np.array([1.0]))
    >>> print(grads.points.round(3), grads.potential.round(3))
    [2.059] [-0.686  0.686]
    """
    del workers  # `shares_out` has read it
    checks.instance("extension", extension, SinkhornExtension, "SinkhornResult.at")
    if grad_potential is None and grad_map is None and grad_gradient is None:
        raise ValueError("at least one of 'grad_potential', 'grad_map', 'grad_gradient' must be given; got none")
    if values is not None and grad_map is None:
        raise ValueError("'values' must come with 'grad_map', the derivative by their map; got them without")
    problem, axis = extension.problem, extension.axis
    size, kept = len(problem.a), problem.C.shape[-1 - axis]
    if values is None:
        mapped, flat = problem.C.user_points(axis)
        mapped = mapped if mapped.ndim == 3 else mapped[None]
    else:
        mapped, flat = map_values(values, axis, problem)
    shape = ((size,) if problem.batched else ()) + (kept,)
    of_map = problem.xp.zeros((size, kept, mapped.shape[-1]))
    of_potential = problem.xp.zeros((size, kept))
    if grad_potential is not None:
        of_potential = checks.cotangent("grad_potential", grad_potential, shape, "the potential", extension.points)
        of_potential = of_potential.reshape(size, kept)
    if grad_map is not None:
        shape += () if flat else mapped.shape[-1:]
        of_what = "the map" if values is None else "the map of 'values'"
        of_map = checks.cotangent("grad_map", grad_map, shape, of_what, extension.points).reshape(of_map.shape)
    of = shares(problem, axis, mapped.astype(np.float64), of_map)
    field = None if grad_gradient is None else _field(extension, of, grad_gradient)
    return _gradients(extension, of, of_potential, len(mapped), values, field)


def _field(extension: SinkhornExtension, of: Shares, cotangent: Array) -> Field:
    """Return what the field gives, for its checked cotangent."""
    problem, side = extension.problem, 1 - extension.axis
    if not problem.C.data.movable:
        raise ValueError(
            "'grad_gradient' must be None for a 'metric' that is a function, of which only the gradient is known; got "
            "an array"
        )
    points, flat = problem.C.user_points(side)
    shape = points.shape[-2:-1] if flat else points.shape[-2:]
    whole = ((len(problem.a),) if problem.batched else ()) + shape
    cotangent = checks.cotangent("grad_gradient", cotangent, whole, "the gradient", extension.points)
    return field_gradients(of, _price(extension), cotangent.reshape(len(problem.a), *shape))


def _price(extension: SinkhornExtension) -> float:
    """Return the price of the marginal of the side with new points, inf where it is met."""
    reach = extension.problem.reach
    return np.inf if reach is None else reach[1 - extension.axis]


def _gradients(
    extension: SinkhornExtension, of: Shares, of_potential: Array, own: int, values: Array | None, field: Field | None
) -> ExtensionGradients:
    """Return the gradients for a cotangent (B, kept) of the potential; `own` is 1 for values that problems share."""
    shown, problem, axis, xp = extension.problem, of.given.problem, of.axis, of.given.problem.xp
    level, of_eps, of_reach = of_potential, xp.zeros(len(of_potential)), xp.zeros((len(of_potential), 2))
    if (rho := _price(extension)) != np.inf:
        softmin, eps = of.softmin, problem.eps_as(2)
        if shown.shift is not None:
            softmin = softmin + (shown.shift if axis == 1 else -shown.shift)[:, None]
        level = of_potential * (rho / (rho + eps))
        of_eps -= (level * softmin / (rho + eps)).sum(axis=1)
        of_reach[:, 1 - axis] = (of_potential * softmin * (eps / (rho + eps) / (rho + eps))).sum(axis=1)
    sums = xp.zeros(of.weights.shape)

    def blocks() -> Iterator[GradientBlock]:
        for pairs in of.pairs(Directions()):
            at, rows = pairs.problems, pairs.rows
            gradient = pairs.density * (level[at, rows, None] if axis == 1 else level[at, None, :])
            gradient -= of.pulled(pairs) / problem.eps_as(3, at)
            if axis == 1:
                sums[at] += gradient.sum(axis=1)
            else:
                sums[at, rows] += gradient.sum(axis=2)
            gradient = of.weighted(pairs, gradient)
            of_eps[at] += (gradient * pairs.log_ratio).sum(axis=(1, 2))
            yield at, rows, gradient

    pulled = problem.C.points_adjoint(blocks(), (level, None) if axis == 1 else (None, level))
    points, partners = pulled[1 - axis], pulled[axis]
    assert points is not None and partners is not None
    if field is not None:
        points, partners, sums = points + field.points, partners + field.partners, sums + field.sums
        of_eps, of_reach[:, 1 - axis] = of_eps + field.eps, of_reach[:, 1 - axis] + field.price
    of_values = of.of_values.sum(axis=0) if own == 1 else of.of_values
    if values is None:
        of_mapped = as_given(of.of_values, problem.C.user_batch(axis))
        partners = partners + of_mapped.reshape(partners.shape)
    return ExtensionGradients(
        points=points,
        potential=shown.to_user(-of.weights * sums),
        weights=shown.to_user(-problem.eps_as(2) * sums),
        partners=narrowed(partners, shown.dtype, xp),
        eps=shown.to_user(of_eps),
        reach=None if shown.reach is None else shown.to_user(of_reach),
        values=None if values is None else narrowed(of_values, shown.dtype, xp).reshape(np.shape(values)),
    )
