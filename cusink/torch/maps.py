"""Maps of transport problems between tensors, and potentials and maps at new points."""

from typing import Any

import torch

from cusink.bridges.maps import AtNewPoints, BarycentricMap
from cusink.bridges.options import before_images, new_points_shape, values_as_images, values_at
from cusink.checks.regularisation import RelativeEps
from cusink.solver.checks import plan_axis
from cusink.torch.arrays import one_tensor
from cusink.torch.clouds import PointCloud
from cusink.torch.costs import cost_tensors
from cusink.torch.grids import Grids
from cusink.torch.losses import Problem
from cusink.torch.operators import apply
from cusink.torch.options import solver_options
from cusink.types import Axis

__all__ = ["barycentric_map", "entropic_map", "potential_at"]


def barycentric_map(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    C: "torch.Tensor | PointCloud | Grids",
    eps: float | torch.Tensor | RelativeEps,
    values: torch.Tensor,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Average values under the rows of a plan, differentiable once in all tensors; the plan is not formed.

    Parameters
    ----------
    a, b : tensor, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : tensor, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    values : tensor, shape (m, d) or (B, m, d) for axis 1; (n, d) or (B, n, d) for axis 0
        What is mapped to, such as the target points.
    axis : {1, 0}
        The axis of the plan to sum over: 1 gives a mean for each source bin, 0 for each target bin.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    tensor, shape (n, d) or (B, n, d) for axis 1; (m, d) or (B, m, d) for axis 0
        The means, see `cusink.SinkhornResult.barycentric_map`. Gradients are those of `cusink.barycentric_map_adjoint`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for values of the wrong shape.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import PointCloud, barycentric_map
    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    >>> barycentric_map(None, None, PointCloud(x, y), 0.1, y).squeeze().round(decimals=2)
    tensor([2., 3.])
    """
    axis = plan_axis(axis)
    one_tensor("values", values)
    given = solver_options("barycentric_map", options)
    problem = Problem(a, b, C, eps, given, {}, normalise, values)
    values_at(tuple(problem.inputs["values"].shape), problem.bins[axis])
    (means,) = apply(BarycentricMap(problem.kind, problem.options, axis), problem.inputs)
    return values_as_images(problem.narrowed(means), problem.of_values)


def entropic_map(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    C: PointCloud,
    eps: float | torch.Tensor | RelativeEps,
    points: torch.Tensor,
    values: torch.Tensor | None = None,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Map new points by the entropic map of a transport problem, differentiable once in all tensors.

    Parameters
    ----------
    a, b : tensor, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : PointCloud
        The clouds that the map is fitted to.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of the cost.
    points : tensor, shape (k, d) or (B, k, d), or (k,) on a line
        New source points or, for axis 0, new target points.
    values : tensor, shape (m, e) or (B, m, e), optional
        What is mapped to in the place of the target points; for axis 0 (n, e) or (B, n, e).
    axis : {1, 0}
        1 maps new source points to the target, 0 new target points to the source.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    tensor, shape (k, d) or (B, k, d)
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
    >>> import torch
    >>> from cusink.torch import PointCloud, entropic_map
    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    >>> entropic_map(None, None, PointCloud(x, y), 0.1, torch.tensor([[0.2]])).round(decimals=2)
    tensor([[2.]])
    """
    return _at_new_points("map", a, b, C, eps, points, values, axis, normalise, options)


def potential_at(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    C: PointCloud,
    eps: float | torch.Tensor | RelativeEps,
    points: torch.Tensor,
    *,
    axis: Axis = 1,
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Dual potential of a transport problem at new points, differentiable once in all tensors.

    Parameters
    ----------
    a, b : tensor, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : PointCloud
        The clouds of the problem.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of the cost.
    points : tensor, shape (k, d) or (B, k, d), or (k,) on a line
        New source points or, for axis 0, new target points.
    axis : {1, 0}
        1 for the potential f of new source points, 0 for g of new target points.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`; `reach` as for `sinkhorn_loss`.

    Returns
    -------
    tensor, shape (k,) or (B, k)
        The potential, see `cusink.SinkhornResult.at`; that of `sinkhorn_potentials` at points of the cloud.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, for a cost that is no cloud, and for points of the wrong shape.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import PointCloud, potential_at
    >>> cloud = PointCloud(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]]))
    >>> new = torch.tensor([[0.5]], requires_grad=True)
    >>> potential_at(None, None, cloud, 0.5, new).sum().backward()
    >>> new.grad.round(decimals=2)
    tensor([[-4.]])
    """
    return _at_new_points("potential", a, b, C, eps, points, None, axis, normalise, options)


def _at_new_points(
    output: Any, a: Any, b: Any, C: Any, eps: Any, points: Any, values: Any, axis: Any, normalise: bool, options: Any
) -> torch.Tensor:
    """Return the potential or the map at new points."""
    axis = plan_axis(axis)
    one_tensor("points", points)
    points = points.unsqueeze(-1) if points.ndim == 1 else points
    if values is not None:
        one_tensor("values", values)
    elif output == "map":
        values = before_images(cost_tensors(C)[1], axis)
    known = solver_options("entropic_map" if output == "map" else "potential_at", options)
    problem = Problem(a, b, C, eps, known, {"points": points}, normalise, values)
    given = problem.inputs
    new_points_shape(tuple(given["points"].shape), problem.kind, given["x"].shape[-1] if "x" in given else 0)
    if values is not None:
        values_at(tuple(values.shape), problem.bins[axis])
    work = AtNewPoints(problem.kind, problem.options, output, axis, values is not None)
    (there,) = apply(work, given)
    return problem.narrowed(there)
