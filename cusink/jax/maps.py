"""Maps of transport problems between arrays of JAX, and potentials and maps at new points."""

from typing import Any

import jax

from cusink.bridges.maps import AtNewPoints, BarycentricMap
from cusink.bridges.options import before_images, new_points_shape, values_as_images, values_at
from cusink.checks.regularisation import RelativeEps
from cusink.jax.arrays import array
from cusink.jax.clouds import PointCloud
from cusink.jax.costs import cost_arrays
from cusink.jax.grids import Grids
from cusink.jax.options import solver_options
from cusink.jax.primitives import outputs_of
from cusink.jax.problems import LossProblem
from cusink.solver.checks import plan_axis
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Axis

__all__ = ["barycentric_map", "entropic_map", "potential_at"]


def barycentric_map(
    a: jax.Array | None,
    b: jax.Array | None,
    C: "jax.Array | PointCloud | Grids",
    eps: float | jax.Array | RelativeEps,
    values: jax.Array,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Average values under the rows of a plan, differentiable once in all arrays; the plan is not formed.

    Parameters
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    values : array, shape (m, d) or (B, m, d) for axis 1; (n, d) or (B, n, d) for axis 0
        What is mapped to, such as the target points.
    axis : {1, 0}
        The axis of the plan to sum over: 1 gives a mean for each source bin, 0 for each target bin.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    array, shape (n, d) or (B, n, d) for axis 1; (m, d) or (B, m, d) for axis 0
        The means, see `cusink.SinkhornResult.barycentric_map`. Gradients are those of `cusink.barycentric_map_adjoint`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for values of the wrong shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, barycentric_map
    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]])
    >>> barycentric_map(None, None, PointCloud(x, y), 0.1, y).round(2).tolist()
    [[2.0], [3.0]]
    """
    axis = plan_axis(axis)
    if values is None:
        raise TypeError("'values' must be an array; got None")
    problem = LossProblem(a, b, C, eps, solver_options(sinkhorn, options), {"values": values}, normalise)
    values_at(tuple(problem.inputs["values"].shape), problem.bins[axis])
    (means,) = outputs_of(BarycentricMap(problem.kind, problem.options, axis), problem.inputs)
    return values_as_images(problem.narrowed(means), problem.of_values)


def entropic_map(
    a: jax.Array | None,
    b: jax.Array | None,
    C: PointCloud,
    eps: float | jax.Array | RelativeEps,
    points: jax.Array,
    values: jax.Array | None = None,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Map new points by the entropic map of a transport problem, differentiable once in all arrays.

    Parameters
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : PointCloud
        The clouds that the map is fitted to.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of the cost.
    points : array, shape (k, d) or (B, k, d), or (k,) on a line
        New source points or, for axis 0, new target points.
    values : array, shape (m, e) or (B, m, e), optional
        What is mapped to in the place of the target points; for axis 0 (n, e) or (B, n, e).
    axis : {1, 0}
        1 maps new source points to the target, 0 new target points to the source.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    array, shape (k, d) or (B, k, d)
        The images, see `cusink.SinkhornResult.at`. Gradients are those of `cusink.extension_adjoint`, and of
        `cusink.sinkhorn_adjoint` through the potential.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, for a cost that is no cloud, and for points or values of the wrong shape.

    References
    ----------
    A.-A. Pooladian and J. Niles-Weed, Entropic estimation of optimal transport maps, 2021.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, entropic_map
    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]])
    >>> bool(2.0 < entropic_map(None, None, PointCloud(x, y), 0.1, jnp.array([[0.2]]))[0, 0] < 2.1)
    True
    """
    return _at_new_points("map", a, b, C, eps, points, values, axis, normalise, options)


def potential_at(
    a: jax.Array | None,
    b: jax.Array | None,
    C: PointCloud,
    eps: float | jax.Array | RelativeEps,
    points: jax.Array,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Dual potential of a transport problem at new points, differentiable once in all arrays.

    Parameters
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : PointCloud
        The clouds of the problem.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of the cost.
    points : array, shape (k, d) or (B, k, d), or (k,) on a line
        New source points or, for axis 0, new target points.
    axis : {1, 0}
        1 for the potential f of new source points, 0 for g of new target points.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    array, shape (k,) or (B, k)
        The potential, see `cusink.SinkhornResult.at`; that of `sinkhorn_potentials` at points of the cloud.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, for a cost that is no cloud, and for points of the wrong shape.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, potential_at
    >>> cloud = PointCloud(jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]]))
    >>> jax.grad(lambda new: potential_at(None, None, cloud, 0.5, new).sum())(jnp.array([[0.5]])).round(2).tolist()
    [[-4.0]]
    """
    return _at_new_points("potential", a, b, C, eps, points, None, axis, normalise, options)


def _at_new_points(
    output: Any, a: Any, b: Any, C: Any, eps: Any, points: Any, values: Any, axis: Any, normalise: bool, options: Any
) -> jax.Array:
    """Return the potential or the map at new points."""
    axis = plan_axis(axis)
    points = array("points", points)
    points = points[:, None] if points.ndim == 1 else points
    if output == "map" and values is None:
        values = before_images(cost_arrays(C)[1], axis)
    named = {"points": points} if values is None else {"points": points, "values": array("values", values)}
    problem = LossProblem(a, b, C, eps, solver_options(sinkhorn, options), named, normalise)
    given = problem.inputs
    new_points_shape(given["points"].shape, problem.kind, given["x"].shape[-1] if "x" in given else 0)
    if values is not None:
        values_at(given["values"].shape, problem.bins[axis])
    work = AtNewPoints(problem.kind, problem.options, output, axis, values is not None)
    (there,) = outputs_of(work, given)
    return problem.narrowed(there)
