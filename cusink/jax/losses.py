"""Losses between arrays of JAX."""

from functools import partial
from typing import Any

import jax

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
from cusink.divergence.forward import sinkhorn_divergence as divergence_solver
from cusink.jax.clouds import PointCloud
from cusink.jax.grids import Grids
from cusink.jax.measures import Measures, are_measures, problem_of_pairs
from cusink.jax.options import solver_options
from cusink.jax.primitives import outputs_of
from cusink.jax.problems import LossProblem
from cusink.solver.checks import plan_axis
from cusink.solver.pairs.checks import unused
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Axis, Value

__all__ = ["apply_plan", "sinkhorn_divergence", "sinkhorn_loss", "sinkhorn_potentials"]


def sinkhorn_loss(
    a: jax.Array | Measures | None,
    b: jax.Array | Measures | None,
    C: "jax.Array | PointCloud | Grids | str",
    eps: float | jax.Array | RelativeEps,
    *,
    value: Value = "cost",
    gradient: Gradient = "exact",
    reduction: Reduction = "mean",
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Wasserstein loss between pairs of measures, differentiable twice in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a : array, shape (n,) or (B, n), or Measures, or None
        Source weights, such as the output of a softmax. None stands for uniform weights. Beside a `cusink.Grid` also
        images, shape (H, W) or (B, H, W), and volumes; gradients have the shape and the dtype of each input.
        `cusink.jax.Measures` are K clouds of unequal sizes.
    b : array, shape (m,) or (B, m), or Measures, or None
        Target weights, of the same sum as `a` unless `reach` is given.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or a Grid, or str, or Metric
        Cost, shared by all pairs or one for each. Of a `cusink.jax.PointCloud` the points are differentiable. For
        `cusink.jax.Measures` it is the name of a metric, or a `cusink.Metric`; `eps` may then have shape (K,), there
        are K losses, and they can be differentiated once.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`, for all pairs or for each, or relative to the costs of each: then no
        gradient goes through the statistic.
    value : {"cost", "reg_cost", "entropic_cost"}
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn` but `init` and `callback`.
        `tol` is also the tolerance of the linear system behind the exact gradient of `cost` (1e-6 if it is None).
        `reach` may be an array, one price or one for each marginal, which then have gradients.

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)
        The loss, in the dtype of `C`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does. Under ``jit`` JAX wraps those that depend on values.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    ``vmap`` over single problems is one call of the solver. Under ``jit`` on a GPU the arrays travel to the host and
    are solved there. The gradients for `a` and `b` have mean zero: weights vary on the simplex. With `reach` masses may
    vary and nothing is projected. Second derivatives are those of ``hessian``,
    ``jacfwd`` or ``grad`` of a gradient; by `reach` there are none. float16 and bfloat16 are computed in
    float32. Lists and whole numbers follow the arrays that they come with, and have the default float of JAX where
    there are none.

    References
    ----------
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, 2018.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import sinkhorn_loss
    >>> target, C = jnp.array([0.0, 0.0, 1.0]), jnp.array([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]])
    >>> slope = jax.grad(lambda logits: sinkhorn_loss(jax.nn.softmax(logits), target, C, eps=0.1))(jnp.zeros(3))
    >>> bool(slope[2] < 0 < slope[0])
    True
    """
    given = LossOptions(value, gradient, reduction, solver_options(sinkhorn, options))
    if are_measures(a, b):
        of = partial(PairValues, value=value, gradient=gradient)
        (losses,) = outputs_of(*problem_of_pairs(a, b, C, eps, normalise, of, options=given.solver))
        return reduced(losses, reduction)
    problem = LossProblem(a, b, C, eps, given.solver, {}, normalise)
    (losses,) = outputs_of(ValueOf(problem.kind, problem.options, value, gradient), problem.inputs)
    return problem.narrowed(reduced(losses, reduction))


def sinkhorn_divergence(
    a: jax.Array | Measures | None,
    b: jax.Array | Measures | None,
    C: "jax.Array | PointCloud | Grids | str",
    eps: float | jax.Array | RelativeEps,
    *,
    C_aa: jax.Array | None = None,
    C_bb: jax.Array | None = None,
    reduction: Reduction = "mean",
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Sinkhorn divergence between pairs of measures, differentiable twice in all arrays.

    Parameters
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m), or Measures, or None
        Weights; None stands for uniform ones. `cusink.jax.Measures` are K clouds of unequal sizes.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or a Grid, or str, or Metric
        Cost, as for `cusink.sinkhorn_divergence`. For `cusink.jax.Measures` it is the name of a metric, or a
        `cusink.Metric`; `eps` may then have shape (K,), there are K divergences, and they can be differentiated once.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    C_aa, C_bb : array, shape (n, n) or (B, n, n); (m, m) or (B, m, m), optional
        Costs within each side, where `C` is a tensor between different bins.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the divergences of a batch, or one for each pair.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        `max_iter`, `tol`, `reach` and the other options of `cusink.sinkhorn_divergence`. `reach` may be an array, one
        price or one for each side, which then have gradients.

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)
        The divergence.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn_divergence` does, and for arrays of different dtypes.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    The gradient needs no linear system, and is exact at the optimum.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, sinkhorn_divergence
    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]])
    >>> jax.grad(lambda x: sinkhorn_divergence(None, None, PointCloud(x, y), eps=0.1))(x).round(2).tolist()
    [[-2.0], [-2.0]]
    """
    given = solver_options(divergence_solver, options)
    if are_measures(a, b):
        unused(C_aa=C_aa, C_bb=C_bb)
        (losses,) = outputs_of(*problem_of_pairs(a, b, C, eps, normalise, PairDivergences, options=given))
        return reduced(losses, reduction)
    if (C_aa is None) != (C_bb is None):
        raise ValueError("'C_aa' and 'C_bb' must both be given, or neither; got one")
    problem = LossProblem(a, b, C, eps, given, {"C_aa": C_aa, "C_bb": C_bb}, normalise)
    (losses,) = outputs_of(Divergence(problem.kind, problem.options, C_aa is not None), problem.inputs)
    return problem.narrowed(reduced(losses, reduction))


def sinkhorn_potentials(
    a: jax.Array | None,
    b: jax.Array | None,
    C: "jax.Array | PointCloud | Grids",
    eps: float | jax.Array | RelativeEps,
    normalise: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Dual potentials f and g of transport problems, differentiable once in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a, b : array, shape (n,) or (B, n); (m,) or (B, m), or None
        Weights; None stands for uniform ones.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`.

    Returns
    -------
    f : array, shape (n,) or (B, n)
        Potential of the source.
    g : array, shape (m,) or (B, m)
        Potential of the target.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for arrays of different dtypes.

    Notes
    -----
    A constant may move between f and g; where all bins have weight their sums are equal, and derivatives are those of
    these potentials.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import sinkhorn_potentials
    >>> f, g = sinkhorn_potentials(None, None, jnp.array([[0.0, 1.0], [1.0, 0.0]]), eps=0.5)
    >>> f.shape, g.shape
    ((2,), (2,))
    """
    given = solver_options(sinkhorn, options)
    problem = LossProblem(a, b, C, eps, given, {}, normalise)
    f, g = outputs_of(Potentials(problem.kind, problem.options), problem.inputs)
    f, g = (as_images(problem.narrowed(x), cells) for x, cells in zip((f, g), problem.images, strict=True))
    return f, g


def apply_plan(
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
    """Plan of a transport problem times values, differentiable once in all arrays; the plan is not formed.

    Parameters
    ----------
    a : array, shape (n,) or (B, n), or None
        Source weights; None stands for uniform ones.
    b : array, shape (m,) or (B, m), or None
        Target weights.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or a Grid
        Cost, as for `sinkhorn_loss`.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    values : array, shape (m, d) or (B, m, d) for axis 1; (n, d) or (B, n, d) for axis 0
        What is transported, such as the target points; divided by `a` the result is then the barycentric map.
    axis : {1, 0}
        The axis of the plan to sum over: 1 gives ``P v``, 0 gives ``P' v``.
    normalise : bool
        Divide the weights by their sums. Gradients are those by the weights as they are, through the division.
    **options
        Options of `cusink.sinkhorn`.

    Returns
    -------
    array, shape (n, d) or (B, n, d) for axis 1; (m, d) or (B, m, d) for axis 0
        The products.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for values of the wrong shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import PointCloud, apply_plan
    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]])
    >>> (2 * apply_plan(None, None, PointCloud(x, y), 0.1, y)).round(2).tolist()
    [[2.0], [3.0]]
    """
    axis = plan_axis(axis)
    if values is None:
        raise TypeError("'values' must be an array; got None")
    given = solver_options(sinkhorn, options)
    problem = LossProblem(a, b, C, eps, given, {"values": values}, normalise)
    values_at(tuple(problem.inputs["values"].shape), problem.bins[axis])
    (applied,) = outputs_of(Applied(problem.kind, problem.options, axis), problem.inputs)
    return values_as_images(problem.narrowed(applied), problem.of_values)
