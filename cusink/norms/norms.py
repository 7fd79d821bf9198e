"""Kernel norms of the difference of two measures, and their scalar products."""

from collections.abc import Collection
from typing import overload

import numpy as np

from cusink.backends.profile import Profile
from cusink.calls import memory_advice
from cusink.norms import checks
from cusink.norms.checks import WeightedPoints
from cusink.norms.products import ADVICE, KernelGradients, bilinear_adjoint, gradients
from cusink.norms.profiles import Kernel, backend, prepare, prepare_norm
from cusink.types import Array
from cusink.workers import shares_out

__all__ = ["kernel_distance", "kernel_distance_adjoint", "kernel_scalar_product", "kernel_scalar_product_adjoint"]

CANCELLED = 2.0**-13  # of the terms of a difference, below which float32 has left too few of its 24 digits


@memory_advice(ADVICE)
@shares_out
def kernel_scalar_product(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: Kernel = "gaussian",
    scale: float = 1.0,
    workers: int | None = None,
) -> Array:
    """Return the scalar product ``<mu, nu>_k = sum_ij a_i k(x_i, y_j) b_j`` of two measures.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points of the first measure mu.
    a : array, shape (n,) or (B, n), or None
        Their weights, of any sign; None for 1 / n each.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points of the second measure nu.
    b : array, shape (m,) or (B, m), or None
        Their weights; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    array, shape () or (B,)
        The scalar product of each pair.

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
    del workers  # `shares_out` has read it
    given, profile = prepare(x, y, kernel, scale, a=a, b=b)
    return given.to_user(_scalar_product(given, profile, "x", "y")[0])


@memory_advice(ADVICE)
@shares_out
def kernel_scalar_product_adjoint(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    grad: Array = 1.0,
    *,
    kernel: Kernel = "gaussian",
    scale: float = 1.0,
    wrt: Collection[str] | None = None,
    workers: int | None = None,
) -> KernelGradients:
    """Pull a gradient of `cusink.kernel_scalar_product` back to points and weights.

    Parameters
    ----------
    x, a, y, b : array
        As for `cusink.kernel_scalar_product`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss with respect to the result.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        Inputs whose gradients are wanted; None for all. Each side costs the same.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

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
    del workers  # `shares_out` has read it
    names = checks.wanted(wrt, ("x", "a", "y", "b"))
    given, profile = prepare(x, y, kernel, scale, a=a, b=b)
    return bilinear_adjoint(given, "a", profile, checks.cotangent(grad, given), names)


@overload
def kernel_distance(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: Kernel = ...,
    scale: float = ...,
    field_at: None = ...,
    workers: int | None = ...,
) -> Array: ...


@overload
def kernel_distance(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: Kernel = ...,
    scale: float = ...,
    field_at: Array,
    workers: int | None = ...,
) -> tuple[Array, Array]: ...


@memory_advice(ADVICE)
@shares_out
def kernel_distance(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    *,
    kernel: Kernel = "gaussian",
    scale: float = 1.0,
    field_at: Array | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Array]:
    """Return the squared norm ``|mu - nu|²_k`` of the difference of two measures.

    Parameters
    ----------
    x, a, y, b : array
        As for `cusink.kernel_scalar_product`.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    field_at : array, shape (..., d), or None
        Points at which the field ``k⋆(mu - nu)`` is wanted too, such as the cells of a grid; for points on a line
        (`x` of shape (n,)) an array of numbers.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    distance : array, shape () or (B,)
        Zero for equal measures, to the last bit if they are given as equal arrays.
    field : array, shape (...) or (B, ...)
        The field at each point of `field_at`; returned only if that is given.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`; masses that differ beside "distance".

    Notes
    -----
    ``<mu, mu>_k - 2 <mu, nu>_k + <nu, nu>_k``, without a factor 1/2 and without a square root; a value that rounding
    made negative is returned as zero. The terms cancel where measures are almost equal, or of groups far apart: where
    float32 leaves less than 2^-13 of them, they are computed anew in float64. A value of 1e-16 of them is noise.

    It is also called the squared maximum mean discrepancy. The masses may differ, but not with "distance", which is
    positive between equal ones alone. With that kernel and scale 1 it is the energy distance ``2 E|X - Y| - E|X - X'| -
    E|Y - Y'|``.

    References
    ----------
    J. Feydy, "Fitting a generative model using standard divergences between measures" (notebook), 2017.
    G. Székely and M. Rizzo, Energy statistics: a class of statistics based on distances, 2013.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_distance([0.0, 1.0], None, [0.0, 3.0], None, kernel="energy").round(4)
    np.float64(0.1656)
    """
    del workers  # `shares_out` has read it
    given, profile = prepare_norm(x, a, y, b, kernel, scale)
    distance = given.to_user(_distance(given, profile))
    if field_at is None:
        return distance
    points, shape = checks.field_points(field_at, given)
    return distance, given.to_user(_difference(given, profile, points)[0].reshape(-1, *shape))


@memory_advice(ADVICE)
@shares_out
def kernel_distance_adjoint(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    grad: Array = 1.0,
    *,
    kernel: Kernel = "gaussian",
    scale: float = 1.0,
    wrt: Collection[str] | None = None,
    workers: int | None = None,
) -> KernelGradients:
    """Pull a gradient of `cusink.kernel_distance` back to points and weights.

    Parameters
    ----------
    x, a, y, b : array
        As for `cusink.kernel_scalar_product`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss with respect to the distance.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        Inputs whose gradients are wanted; None for all. Each side costs the same.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

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
    del workers  # `shares_out` has read it
    names = checks.wanted(wrt, ("x", "a", "y", "b"))
    given, profile = prepare_norm(x, a, y, b, kernel, scale)
    grad, out = 2 * checks.cotangent(grad, given), {}
    for side, weights, sign in (("x", "a", 1), ("y", "b", -1)):
        if not names & {side, weights}:
            continue
        points: Array = getattr(given, side)
        field, *slopes = _difference(given, profile, points, slopes=side in names)
        out[weights] = sign * grad * field
        if slopes:
            out[side] = (sign * grad * given.per_point[weights])[..., None] * slopes[0]
    return gradients(given, out, names)


def _scalar_product(given: WeightedPoints, profile: Profile, left: str, right: str) -> tuple[Array, Array]:
    """Return ``<., .>_k`` (B,) in float64 of the measures on two sides, each "x" or "y", and the sum of its sizes."""
    measures = {"x": (given.x, given.per_point["a"]), "y": (given.y, given.per_point["b"])}
    points, weights = measures[left]
    terms = weights * backend(given).kernel_sums(points, *measures[right], profile)
    return terms.sum(axis=1, dtype=np.float64), given.xp.abs(terms).sum(axis=1, dtype=np.float64)


def _distance(given: WeightedPoints, profile: Profile) -> Array:
    """Return ``|mu - nu|²_k`` (B,)."""
    products = [_scalar_product(given, profile, *pair) for pair in ("xx", "xy", "yy")]
    (first, mixed, second), sizes = zip(*products, strict=True)
    distance = given.xp.maximum(first - mixed + (second - mixed), 0)
    lost = _lost(given, distance, *sizes)
    if lost is not None:
        distance[lost] = _distance(given.in_float64(lost), profile)
    return distance


def _difference(given: WeightedPoints, profile: Profile, points: Array, slopes: bool = False) -> tuple[Array, ...]:
    """Return ``k⋆(mu - nu)`` at points (B, k, d), and its gradients (B, k, d) too; zero if the measures are equal."""
    ops, fields, differences = backend(given), list[tuple[Array, ...]](), list[Array]()
    for others, weights in ((given.x, given.per_point["a"]), (given.y, given.per_point["b"])):
        if slopes:
            fields.append(ops.kernel_slopes(points, others, weights, None, None, profile))
        else:
            fields.append((ops.kernel_sums(points, others, weights, profile),))
    for terms in zip(*fields, strict=True):
        difference = terms[0] - terms[1]
        lost = _lost(given, difference, *terms)
        if lost is not None:
            wide = _difference(given.in_float64(lost), profile, points[lost].astype(np.float64), slopes)
            difference = difference.astype(np.float64)
            difference[lost] = wide[len(differences)]
        differences.append(difference)
    return tuple(differences)


def _lost(given: WeightedPoints, difference: Array, *terms: Array) -> Array | None:
    """Return the mask (B,) of problems of whose largest difference float32 has left few digits; None if of none."""
    if given.x.dtype == np.float64:
        return None
    xp = given.xp
    largest, *sizes = (xp.abs(array).reshape(len(array), -1).max(axis=1) for array in (difference, *terms))
    size = sum(sizes)
    lost = (size > 0) & ~(largest > CANCELLED * size)
    return lost if lost.any() else None
