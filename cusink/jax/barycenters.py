"""Barycenters of histograms that are arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp

from cusink.barycenters.barycenter import barycenter as barycenter_solver
from cusink.bridges.barycenters import BarycenterOf, check_shapes
from cusink.bridges.options import mass_ratio, of_sum_one
from cusink.checks.arrays import HALF
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.costs.images import as_images, in_bins
from cusink.jax.arrays import floating, in_one_dtype, regularisation
from cusink.jax.clouds import PointCloud
from cusink.jax.costs import as_the_metric_sees, cost_arrays
from cusink.jax.grids import Grids
from cusink.jax.options import solver_options
from cusink.jax.primitives import outputs_of
from cusink.jax.problems import relative
from cusink.operand import check_shape

__all__ = ["barycenter"]


def barycenter(
    A: jax.Array,
    C: "jax.Array | PointCloud | Grids",
    weights: jax.Array | None = None,
    *,
    eps: float | jax.Array | RelativeEps,
    debiased: bool = False,
    normalise: bool = False,
    **options: Any,
) -> jax.Array:
    """Histogram that is nearest to K given ones, differentiable once, backwards, in `A`, `C`, `weights` and `eps`.

    Parameters
    ----------
    A : array, shape (K, n) or (B, K, n)
        Histograms, of one mass; beside a `cusink.Grid` also images, shape (K, H, W) or (B, K, H, W).
    C : array, shape (n, m), or PointCloud, or a Grid
        Cost. Of a `cusink.jax.PointCloud` the points are differentiable.
    weights : array, shape (K,) or (B, K), optional
        How much each histogram counts, such as the output of a softmax. If not given, all count the same.
    eps : float or array, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    debiased : bool
        As for `cusink.barycenter`.
    normalise : bool
        Divide each histogram by its sum; gradients are those by `A` as it is.
    **options
        `max_iter`, `tol` and the other options of `cusink.barycenter`. `tol` is also the tolerance of the linear system
        behind the gradients (1e-6 if it is None).

    Returns
    -------
    array, shape (m,) or (B, m)
        The barycenter, in the dtype of `A`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.barycenter` does. Under ``jit`` JAX wraps those that depend on values.
    NotImplementedError
        If it is differentiated forwards, or twice.

    Warns
    -----
    ConvergenceWarning
        If a barycenter did not reach `tol`.

    Notes
    -----
    The gradients are those of `cusink.barycenter_adjoint`: that by `A` has mean zero over the bins of a histogram.
    ``vmap`` over histograms and weights is one call of the solver; over costs it is one for each.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink import Grid
    >>> from cusink.jax import barycenter
    >>> A = jnp.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    >>> slope = jax.grad(lambda w: barycenter(A, Grid(3), w, eps=0.5) @ jnp.arange(3.0))(jnp.array([0.5, 0.5]))
    >>> bool(slope[0] < 0 < slope[1])
    True
    """
    if A is None:
        raise TypeError("'A' must be an array of histograms; got None")
    solver = solver_options(barycenter_solver, options)
    kind, costs = cost_arrays(C)
    named: dict[str, Any] = {"A": A, "weights": weights, **costs}
    single = str(getattr(A, "dtype", "")) == "float32"
    named = dict(zip(named, floating(**named), strict=True))
    named["A"], image = in_bins("A", named["A"], kind.image, ("K, ", "B, K, "))
    if kind.kind == "dense":
        check_shape(named["C"], batch=False)
    dtype = in_one_dtype(named)
    if dtype.name in HALF:
        named = {name: x if x is None else x.astype(jnp.float32) for name, x in named.items()}
    named = as_the_metric_sees(named)
    A = named["A"]
    if flag("normalise", normalise):
        named["A"] = of_sum_one(jnp, A)
    elif dtype.name in HALF or (single and dtype == jnp.float64):
        of = "bfloat16" if dtype.name in HALF else "float32"
        named["A"] = A * jax.lax.stop_gradient(mass_ratio(jnp, A[..., :1, :], A, of))
    eps = relative(eps, kind, named) if isinstance(eps, RelativeEps) else eps
    price = regularisation(eps, named["A"].dtype)
    bins, given = kind.bins({name: named[name].shape for name in kind.names}), named["weights"]
    check_shapes(named["A"].shape, None if given is None else given.shape, price.shape, bins)
    if given is None:
        count = named["A"].shape[-2]
        named["weights"] = jnp.full(count, 1 / count, named["A"].dtype)
    work = BarycenterOf(kind, solver, flag("debiased", debiased))
    (out,) = outputs_of(work, named | {"eps": price})
    return as_images(out.astype(dtype), image)
