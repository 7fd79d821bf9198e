"""The likelihood of weighted points under a kernel density."""

from collections.abc import Collection
from dataclasses import replace
from typing import overload

import numpy as np

from cusink.calls import memory_advice
from cusink.norms import checks
from cusink.norms.products import ADVICE, KernelGradients, gradients, log_sums
from cusink.norms.profiles import LogKernel, backend, prepare
from cusink.types import Array, ArrayModule
from cusink.workers import shares_out

__all__ = [
    "kernel_neg_log_likelihood",
    "kernel_neg_log_likelihood_adjoint",
]


@overload
def kernel_neg_log_likelihood(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: LogKernel = ...,
    scale: float = ...,
    field_at: None = ...,
    workers: int | None = ...,
) -> Array: ...


@overload
def kernel_neg_log_likelihood(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: LogKernel = ...,
    scale: float = ...,
    field_at: Array,
    workers: int | None = ...,
) -> tuple[Array, Array]: ...


@memory_advice(ADVICE)
@shares_out
def kernel_neg_log_likelihood(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: LogKernel = "gaussian",
    scale: float = 1.0,
    field_at: Array | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Array]:
    """Return the negative log likelihood ``-sum_j b_j log(sum_i a_i k(y_j, x_i))`` of a sample.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points of the model mu.
    a : array, shape (n,) or (B, n), or None
        Their weights, non-negative and not all zero; None for 1 / n each.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points of the sample.
    b : array, shape (m,) or (B, m), or None
        Their weights, like `a`; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product_log`.
    scale : float
        Length in the units of the points.
    field_at : array, shape (..., d), or None
        Points at which the log density ``log(k⋆mu)`` is wanted too, as for `cusink.kernel_distance`.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    value : array, shape () or (B,)
        The negative log likelihood of each sample.
    field : array, shape (...) or (B, ...)
        The field at each point of `field_at`; returned only if that is given.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`; negative weights, or none that is positive; points so far from all of `x` that their
        log likelihood is no number.

    Notes
    -----
    The kernel is not divided by its integral, so that the value is a log likelihood up to a constant that depends on
    the kernel, its scale and d.

    References
    ----------
    J. Feydy, "Fitting a generative model using standard divergences between measures" (notebook), 2017.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_neg_log_likelihood([0.0, 2.0], None, [0.0, 0.0], None, scale=0.5).round(4)
    np.float64(0.6931)
    """
    del workers  # `shares_out` has read it
    given, profile = prepare(x, y, kernel, scale, log=True, a=a, b=b)
    xp, ops, b = given.xp, backend(given), given.per_point["b"]
    log_a = _log(xp, given.per_point["a"])
    logs = ops.kernel_log_sums(given.y, given.x, log_a, profile)
    checks.log_likelihoods_in_range(logs, given)
    terms = b * xp.where(b > 0, logs, 0)
    value = given.to_user(-terms.sum(axis=1, dtype=np.float64))
    if field_at is None:
        return value
    points, shape = checks.field_points(field_at, given)
    return value, given.to_user(ops.kernel_log_sums(points, given.x, log_a, profile).reshape(-1, *shape))


@memory_advice(ADVICE)
@shares_out
def kernel_neg_log_likelihood_adjoint(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    grad: Array = 1.0,
    *,
    kernel: LogKernel = "gaussian",
    scale: float = 1.0,
    wrt: Collection[str] | None = None,
    workers: int | None = None,
) -> KernelGradients:
    """Pull a gradient of `cusink.kernel_neg_log_likelihood` back to points and weights.

    Parameters
    ----------
    x, a, y, b : array
        As for `cusink.kernel_neg_log_likelihood`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss with respect to the value.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product_log`.
    scale : float
        As for `cusink.kernel_product`.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        Inputs whose gradients are wanted; None for all.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    KernelGradients
        ``x``, ``a``, ``y`` and ``b``. A weight of zero has its true gradient, which may be large.

    Raises
    ------
    ValueError
        As `cusink.kernel_neg_log_likelihood`, or a gradient of the wrong shape.

    Notes
    -----
    With ``L_j = log(sum_i a_i k(y_j, x_i))`` and ``w_ij = b_j k(x_i, y_j) exp(-L_j)``: ``ga_i = -grad sum_j w_ij``,
    ``gx_i = -grad a_i sum_j w_ij ∇log k(x_i - y_j)``, ``gb_j = -grad L_j`` and ``gy_j = -grad sum_i a_i w_ij ∇log k(y_j
    - x_i)``.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_neg_log_likelihood_adjoint([0.0, 2.0], None, [1.0], [1.0], wrt="a").a
    array([-1., -1.])
    """
    del workers  # `shares_out` has read it
    names = checks.wanted(wrt, ("x", "a", "y", "b"))
    given, profile = prepare(x, y, kernel, scale, log=True, a=a, b=b)
    grad = -checks.cotangent(grad, given)
    given = replace(given, per_point=given.per_point | {"log_a": _log(given.xp, given.per_point["a"])})
    given, density = log_sums(given, profile, "y", "log_a")
    checks.log_likelihoods_in_range(density, given)
    xp, ops, x, y = given.xp, backend(given), given.x, given.y
    a, b, log_a = (given.per_point[name] for name in ("a", "b", "log_a"))
    out = {"b": grad * density}
    if names & {"x", "a"}:
        # Multiplied by a the shares stay at most 1; for a = 0 the share itself is the gradient.
        some = a > 0
        sampled = xp.where(b > 0, -density, -xp.inf)
        shares, slopes = ops.kernel_slopes(x, y, b, xp.where(some, log_a, 0), sampled, profile)
        out["a"] = grad * xp.where(some, shares / xp.where(some, a, 1), shares)
        out["x"] = grad[..., None] * xp.where(some[..., None], slopes, 0)
    if "y" in names:
        slopes = ops.kernel_slopes(y, x, xp.ones_like(a), -density, log_a, profile)[1]
        out["y"] = (grad * b)[..., None] * slopes
    return gradients(given, out, names)


def _log(xp: ArrayModule, weights: Array) -> Array:
    with np.errstate(divide="ignore"):
        return xp.log(weights)
