"""Divergences between weighted points that are made of kernel products: kernel norms and likelihoods."""

import numpy as np

from cusink.errors import memory_advice
from cusink.norms import checks
from cusink.norms.products import ADVICE, KernelGradients, backend, bilinear_adjoint, gradients, prepare

__all__ = [
    "kernel_distance",
    "kernel_distance_adjoint",
    "kernel_neg_log_likelihood",
    "kernel_neg_log_likelihood_adjoint",
    "kernel_scalar_product",
    "kernel_scalar_product_adjoint",
]


@memory_advice(ADVICE)
def kernel_scalar_product(x, a, y, b, *, kernel="gaussian", scale=1.0):
    """Return the scalar product ``<mu, nu>_k = sum_ij a_i k(x_i, y_j) b_j`` of two measures.

    Parameters
    ----------
    x, a : array, shape (n, d), (n,) or (B, n, d), and array, shape (n,) or (B, n), or None
        Points and weights of the first measure. Weights may have any sign; None for 1 / n each.
    y, b : array, shape (m, d), (m,) or (B, m, d), and array, shape (m,) or (B, m), or None
        Points and weights of the second.
    kernel, scale
        As for `cusink.kernel_product`.

    Returns
    -------
    array, shape () or (B,)

    Raises
    ------
    ValueError
        As `cusink.kernel_product`.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_scalar_product([0.0, 1.0], [0.5, 0.5], [0.0], [1.0]).round(3)
    np.float64(0.684)
    """
    measures, profile = prepare(x, y, kernel, scale, a=(a, "x"), b=(b, "y"))
    return measures.outward(_scalar_product(measures, profile, "x", "y"))


@memory_advice(ADVICE)
def kernel_scalar_product_adjoint(x, a, y, b, grad=1.0, *, kernel="gaussian", scale=1.0, wrt=None):
    """Pull a gradient by `cusink.kernel_scalar_product` back to points and weights.

    Parameters
    ----------
    x, a, y, b, kernel, scale
        As for `cusink.kernel_scalar_product`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss by the result.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        By what gradients are wanted; None for all. Each side costs the same.

    Returns
    -------
    KernelGradients
        ``x``, ``a``, ``y`` and ``b``.

    Raises
    ------
    ValueError
        As `cusink.kernel_scalar_product`, or a gradient of the wrong shape.

    Notes
    -----
    ``ga = grad k⋆nu`` at x, and ``gx_i = grad a_i ∇(k⋆nu)(x_i)``; y and b by symmetry.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_scalar_product_adjoint([0.0, 1.0], None, [0.0], [1.0], wrt="a").a.round(3)
    array([1.   , 0.368])
    """
    wrt = checks.wanted(wrt, ("x", "a", "y", "b"))
    measures, profile = prepare(x, y, kernel, scale, a=(a, "x"), b=(b, "y"))
    return KernelGradients(**bilinear_adjoint(measures, "a", profile, checks.factor("grad", grad, measures), wrt))


@memory_advice(ADVICE)
def kernel_distance(x, a, y, b, *, kernel="gaussian", scale=1.0, field_at=None):
    """Return the squared norm ``|mu - nu|²_k`` of the difference of two measures.

    Parameters
    ----------
    x, a, y, b, kernel, scale
        As for `cusink.kernel_scalar_product`.
    field_at : array, shape (..., d), or None
        Points at which the field ``k⋆(mu - nu)`` is wanted too, such as the cells of a grid; with points on a line
        (`x` of shape (n,)) an array of numbers.

    Returns
    -------
    distance : array, shape () or (B,)
        Zero for equal measures, to the last bit if they are given as equal arrays.
    field : array, shape (...) or (B, ...)
        Only if `field_at` is given.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`.

    Notes
    -----
    ``<mu, mu>_k - 2 <mu, nu>_k + <nu, nu>_k``, without a factor 1/2 and without a square root; what falls below zero by
    rounding is returned as zero. It is also called the squared maximum mean discrepancy. The masses need not be equal.

    References
    ----------
    J. Feydy, "Fitting a generative model using standard divergences between measures" (notebook), 2017.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_distance([0.0, 1.0], None, [0.0, 3.0], None, kernel="energy").round(4)
    np.float64(0.1656)
    """
    measures, profile = prepare(x, y, kernel, scale, a=(a, "x"), b=(b, "y"))
    first, mixed, second = (_scalar_product(measures, profile, *pair) for pair in ("xx", "xy", "yy"))
    distance = measures.outward(measures.xp.maximum(first - mixed + (second - mixed), 0))
    if field_at is None:
        return distance
    points, shape = checks.field_points(field_at, measures)
    return distance, _shaped(measures, _difference(measures, profile, points)[0], shape)


@memory_advice(ADVICE)
def kernel_distance_adjoint(x, a, y, b, grad=1.0, *, kernel="gaussian", scale=1.0, wrt=None):
    """Pull a gradient by `cusink.kernel_distance` back to points and weights.

    Parameters
    ----------
    x, a, y, b, kernel, scale
        As for `cusink.kernel_scalar_product`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss by the distance.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        By what gradients are wanted; None for all. Each side costs the same.

    Returns
    -------
    KernelGradients
        ``x``, ``a``, ``y`` and ``b``.

    Raises
    ------
    ValueError
        As `cusink.kernel_distance`, or a gradient of the wrong shape.

    Notes
    -----
    With the field ``h = k⋆(mu - nu)``: ``ga_i = 2 grad h(x_i)``, ``gx_i = 2 grad a_i ∇h(x_i)``, ``gb_j = -2 grad
    h(y_j)`` and ``gy_j = -2 grad b_j ∇h(y_j)``.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_distance_adjoint([1.0], [1.0], [0.0], [1.0], wrt="x").x.round(3)  # away from y it grows
    array([1.472])
    """
    wrt = checks.wanted(wrt, ("x", "a", "y", "b"))
    measures, profile = prepare(x, y, kernel, scale, a=(a, "x"), b=(b, "y"))
    grad, out = 2 * checks.factor("grad", grad, measures), {}
    for side, weights, sign in (("x", "a", 1), ("y", "b", -1)):
        if not wrt & {side, weights}:
            continue
        field, slopes = _difference(measures, profile, getattr(measures, side), slopes=side in wrt)
        out[weights] = sign * grad * field
        if side in wrt:
            out[side] = (sign * grad * measures.numbers[weights])[..., None] * slopes
    return gradients(measures, out, wrt)


@memory_advice(ADVICE)
def kernel_neg_log_likelihood(x, a, y, b, *, kernel="gaussian", scale=1.0, field_at=None):
    """Return ``-sum_j b_j log(sum_i a_i k(y_j, x_i))``, how unlikely a sample is under a model.

    Parameters
    ----------
    x, a : array, shape (n, d), (n,) or (B, n, d), and array, shape (n,) or (B, n), or None
        Points and weights of the model. Weights are non-negative and not all zero; None for 1 / n each.
    y, b : array, shape (m, d), (m,) or (B, m, d), and array, shape (m,) or (B, m), or None
        Points and weights of the sample.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product_log`.
    scale : float
        Length in the units of the points.
    field_at : array, shape (..., d), or None
        Points at which the log density ``log(k⋆mu)`` is wanted too, as for `cusink.kernel_distance`.

    Returns
    -------
    value : array, shape () or (B,)
    field : array, shape (...) or (B, ...)
        Only if `field_at` is given.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`; negative weights, or none that is positive.

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
    measures, profile = prepare(x, y, kernel, scale, log=True, a=(a, "x"), b=(b, "y"))
    xp, ops, b = measures.xp, backend(measures), measures.numbers["b"]
    log_a = _log(xp, measures.numbers["a"])
    terms = xp.where(b > 0, b * ops.kernel_log_sums(measures.y, measures.x, log_a, profile), 0)
    value = measures.outward(-terms.sum(axis=1, dtype=np.float64))
    if field_at is None:
        return value
    points, shape = checks.field_points(field_at, measures)
    return value, _shaped(measures, ops.kernel_log_sums(points, measures.x, log_a, profile), shape)


@memory_advice(ADVICE)
def kernel_neg_log_likelihood_adjoint(x, a, y, b, grad=1.0, *, kernel="gaussian", scale=1.0, wrt=None):
    """Pull a gradient by `cusink.kernel_neg_log_likelihood` back to points and weights.

    Parameters
    ----------
    x, a, y, b, kernel, scale
        As for `cusink.kernel_neg_log_likelihood`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss by the value.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        By what gradients are wanted; None for all.

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
    wrt = checks.wanted(wrt, ("x", "a", "y", "b"))
    measures, profile = prepare(x, y, kernel, scale, log=True, a=(a, "x"), b=(b, "y"))
    xp, ops, x, y = measures.xp, backend(measures), measures.x, measures.y
    a, b = measures.numbers["a"], measures.numbers["b"]
    log_a = _log(xp, a)
    grad, density = -checks.factor("grad", grad, measures), ops.kernel_log_sums(y, x, log_a, profile)
    out = {"b": grad * density}
    if wrt & {"x", "a"}:
        # With its weight each share is at most 1; where there is none, the shares are what the gradient by it is.
        some = a > 0
        sampled = xp.where(b > 0, -density, -xp.inf)
        shares, slopes = ops.kernel_slopes(x, y, b, xp.where(some, log_a, 0), sampled, profile)
        out["a"] = grad * xp.where(some, shares / xp.where(some, a, 1), shares)
        out["x"] = grad[..., None] * xp.where(some[..., None], slopes, 0)
    if "y" in wrt:
        slopes = ops.kernel_slopes(y, x, xp.ones_like(a), -density, log_a, profile)[1]
        out["y"] = (grad * b)[..., None] * slopes
    return gradients(measures, out, wrt)


def _scalar_product(measures, profile, left, right):
    """``<., .>_k`` (B,) in float64 of the measures on two sides, each "x" or "y"."""
    (points, weights), (others, values) = (
        (measures.x, measures.numbers["a"]) if side == "x" else (measures.y, measures.numbers["b"])
        for side in (left, right)
    )
    return (weights * backend(measures).kernel_sums(points, others, values, profile)).sum(axis=1, dtype=np.float64)


def _difference(measures, profile, points, slopes=False):
    """``k⋆(mu - nu)`` at points (B, k, d), and its gradients (B, k, d) or None; both zero if the measures are equal."""
    ops, a, b = backend(measures), measures.numbers["a"], measures.numbers["b"]
    if not slopes:
        sums = (ops.kernel_sums(points, *measure, profile) for measure in ((measures.x, a), (measures.y, b)))
        return next(sums) - next(sums), None
    first, second = (
        ops.kernel_slopes(points, *measure, None, None, profile) for measure in ((measures.x, a), (measures.y, b))
    )
    return first[0] - second[0], first[1] - second[1]


def _shaped(measures, field, shape):
    """A field (B, k) in the shape of the points that it was asked at."""
    return measures.outward(field.reshape(len(field), *shape))


def _log(xp, weights):
    with np.errstate(divide="ignore"):
        return xp.log(weights)
