"""Losses between tensors."""

from functools import partial
from typing import Any

import torch

from cusink.bridges.measures import Divergence, PairDivergences
from cusink.bridges.options import (
    Gradient,
    LossOptions,
    Reduction,
    reduced,
    values_as_images,
    values_at,
)
from cusink.bridges.transport import Applied, PairValues, Potentials, ValueOf
from cusink.checks.regularisation import RelativeEps
from cusink.costs.images import as_images
from cusink.solver.checks import plan_axis
from cusink.solver.pairs.checks import unused
from cusink.torch.arrays import on_known_device, one_tensor
from cusink.torch.clouds import PointCloud
from cusink.torch.grids import Grids
from cusink.torch.measures import Measures, are_measures, problem_of_pairs
from cusink.torch.operators import apply, eps_in_units
from cusink.torch.options import solver_options
from cusink.torch.problems import LossProblem
from cusink.types import Axis, Value

__all__ = [
    "apply_plan",
    "sinkhorn_divergence",
    "sinkhorn_loss",
    "sinkhorn_potentials",
]


class Problem(LossProblem):
    """A problem whose eps may be relative to its costs."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        if "reach" in self.inputs:
            on_known_device("reach", self.inputs["reach"])

    @property
    def bins(self) -> tuple[int, int]:
        """Bins of both sides."""
        return self.kind.bins({name: tuple(self.inputs[name].shape) for name in self.kind.names})

    def in_units(self, eps: RelativeEps, named: dict[str, Any]) -> Any:
        """Return eps in the unit of the costs among named tensors."""
        return eps_in_units(eps, self.kind, named)


def sinkhorn_loss(
    a: torch.Tensor | Measures | None,
    b: torch.Tensor | Measures | None,
    C: "torch.Tensor | PointCloud | Grids | str",
    eps: float | torch.Tensor | RelativeEps,
    *,
    value: Value = "cost",
    gradient: Gradient = "exact",
    reduction: Reduction = "mean",
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Wasserstein loss between pairs of measures, differentiable twice in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a : tensor, shape (n,) or (B, n), or Measures, or None
        Source weights, such as the output of a softmax. None stands for uniform weights. Beside a `cusink.Grid` also
        images, shape (H, W) or (B, H, W), and volumes; gradients have the shape and the dtype of each input.
        `cusink.torch.Measures` are K clouds of unequal sizes.
    b : tensor, shape (m,) or (B, m), or Measures, or None
        Target weights, of the same sum as `a` unless `reach` is given.
    C : tensor, shape (n, m) or (B, n, m), or PointCloud, or a Grid, or str, or Metric
        Cost, shared by all pairs or one for each. Of a `cusink.torch.PointCloud` the points are differentiable. For
        `cusink.torch.Measures` it is the name of a metric, or a `cusink.Metric`; `eps` may then have shape (K,), there
        are K losses, and they can be differentiated once.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`, for all pairs or for each, or relative to the costs of each: then no
        gradient goes through the statistic.
    value : {"cost", "reg_cost", "entropic_cost"}
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does: backward needs no
        solve, and is off by what the entropy weighs. The two differ for ``value="cost"`` alone.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn`. `tol` is also the tolerance
        of the linear system behind the exact gradient of `cost` (1e-6 if it is None).
        `reach` may be a tensor, one price or one for each marginal, which then have gradients.

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)
        The loss, in the dtype of `C` or, under autocast, in float32.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for tensors of different devices.
    RuntimeError
        If the gradient is differentiated more often than once.
    NotImplementedError
        If the gradient by a `reach` that is a tensor is differentiated.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    The gradients for `a` and `b` have mean zero: weights vary on the simplex. With `reach` masses may vary and nothing
    is projected. float16 and bfloat16 are computed in float32; under autocast,
    where tensors may mix both, the loss is float32. ``torch.func`` and ``torch.compile`` compose with it.

    References
    ----------
    C. Frogner et al., Learning with a Wasserstein loss, NIPS 2015.
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, 2018.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import sinkhorn_loss
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> target, C = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]])
    >>> sinkhorn_loss(logits.softmax(dim=1), target, C, eps=0.1).backward()
    >>> bool(logits.grad[0, 0] < 0 < logits.grad[0, 2])
    True
    """
    given = LossOptions(value, gradient, reduction, solver_options("sinkhorn_loss", options))
    if are_measures(a, b):
        of = partial(PairValues, value=value, gradient=gradient)
        (losses,) = apply(*problem_of_pairs(a, b, C, eps, normalise, of, options=given.solver))
        return reduced(losses, reduction)
    problem = Problem(a, b, C, eps, given.solver, {}, normalise)
    (losses,) = apply(ValueOf(problem.kind, problem.options, value, gradient), problem.inputs)
    return problem.narrowed(reduced(losses, reduction))


def sinkhorn_divergence(
    a: torch.Tensor | Measures | None,
    b: torch.Tensor | Measures | None,
    C: "torch.Tensor | PointCloud | Grids | str",
    eps: float | torch.Tensor | RelativeEps,
    *,
    C_aa: torch.Tensor | None = None,
    C_bb: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Sinkhorn divergence between pairs of measures, differentiable twice in all tensors.

    Parameters
    ----------
    a, b : tensor, shape (n,) or (B, n); (m,) or (B, m), or Measures, or None
        Weights; None stands for uniform ones. `cusink.torch.Measures` are K clouds of unequal sizes.
    C : tensor, shape (n, m) or (B, n, m), or PointCloud, or a Grid, or str, or Metric
        Cost, as for `cusink.sinkhorn_divergence`. For `cusink.torch.Measures` it is the name of a metric, or a
        `cusink.Metric`; `eps` may then have shape (K,), there are K divergences, and they can be differentiated once.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    C_aa, C_bb : tensor, shape (n, n) or (B, n, n); (m, m) or (B, m, m), optional
        Costs within each side, where `C` is a tensor between different bins.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the divergences of a batch, or one for each pair.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        `max_iter`, `tol`, `reach` and the other options of `cusink.sinkhorn_divergence`. `reach` may be a tensor, one
        price or one for each side, which then have gradients.

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)
        The divergence.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn_divergence` does, and for tensors of different devices.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    The gradient needs no linear system, and is exact at the optimum.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import PointCloud, sinkhorn_divergence
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> sinkhorn_divergence(None, None, PointCloud(x, x.detach() + 2), eps=0.1).backward()
    >>> x.grad.squeeze().round(decimals=2)
    tensor([-2., -2.])
    """
    own = {"C_aa": C_aa, "C_bb": C_bb}
    given = tuple(options.items())
    if are_measures(a, b):
        unused(**own)
        (losses,) = apply(*problem_of_pairs(a, b, C, eps, normalise, PairDivergences, options=given))
        return reduced(losses, reduction)
    problem = Problem(a, b, C, eps, given, own, normalise)
    if (C_aa is None) != (C_bb is None):
        raise ValueError("'C_aa' and 'C_bb' must both be given, or neither; got one")
    (losses,) = apply(Divergence(problem.kind, problem.options, C_aa is not None), problem.inputs)
    return problem.narrowed(reduced(losses, reduction))


def sinkhorn_potentials(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    C: "torch.Tensor | PointCloud | Grids",
    eps: float | torch.Tensor | RelativeEps,
    normalise: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dual potentials f and g of transport problems, differentiable once in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a, b : tensor, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : tensor, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`.

    Returns
    -------
    f : tensor, shape (n,) or (B, n)
        Potential of the source.
    g : tensor, shape (m,) or (B, m)
        Potential of the target.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for tensors of different devices.

    Notes
    -----
    A constant may move between f and g; where all bins have weight their sums are equal, and derivatives are those of
    these potentials.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import sinkhorn_potentials
    >>> f, g = sinkhorn_potentials(None, None, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.5)
    >>> f.shape, g.shape
    (torch.Size([2]), torch.Size([2]))
    """
    given = solver_options("sinkhorn_potentials", options)
    problem = Problem(a, b, C, eps, given, {}, normalise)
    f, g = apply(Potentials(problem.kind, problem.options), problem.inputs)
    f, g = (as_images(problem.narrowed(x), cells) for x, cells in zip((f, g), problem.images, strict=True))
    return f, g


def apply_plan(
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
    """Plan of a transport problem times values, differentiable once in all tensors; the plan is not formed.

    Parameters
    ----------
    a : tensor, shape (n,) or (B, n), or None
        Source weights; None stands for uniform ones.
    b : tensor, shape (m,) or (B, m), or None
        Target weights.
    C : tensor, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    values : tensor, shape (m, d) or (B, m, d) for axis 1; (n, d) or (B, n, d) for axis 0
        What is transported, such as the target points; divided by `a` the result is then the barycentric map.
    axis : {1, 0}
        The axis of the plan to sum over: 1 gives ``P v``, 0 gives ``P' v``.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`.

    Returns
    -------
    tensor, shape (n, d) or (B, n, d) for axis 1; (m, d) or (B, m, d) for axis 0
        The products.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for values of the wrong shape.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import PointCloud, apply_plan
    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    >>> (2 * apply_plan(None, None, PointCloud(x, y), 0.1, y)).squeeze().round(decimals=2)
    tensor([2., 3.])
    """
    axis = plan_axis(axis)
    one_tensor("values", values)
    given = solver_options("apply_plan", options)
    problem = Problem(a, b, C, eps, given, {}, normalise, values)
    values_at(tuple(problem.inputs["values"].shape), problem.bins[axis])
    (applied,) = apply(Applied(problem.kind, problem.options, axis), problem.inputs)
    return values_as_images(problem.narrowed(applied), problem.of_values)
