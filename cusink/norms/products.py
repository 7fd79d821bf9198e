"""Kernel products: sums of a radial kernel over weighted points, plain and in the log domain."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cusink.backends.profile import Profile
from cusink.calls import memory_advice
from cusink.norms import checks
from cusink.norms.checks import WeightedPoints
from cusink.norms.profiles import Kernel, LogKernel, backend, prepare
from cusink.types import Array
from cusink.workers import shares_out

__all__ = [
    "KernelGradients",
    "kernel_product",
    "kernel_product_adjoint",
    "kernel_product_log",
    "kernel_product_log_adjoint",
]


STEEP = 2.0**8  # of logarithms of sums, from which on shares in float32 are off by more than 2**-16
ADVICE = "Nothing of the size of all pairs is made: pass fewer points or problems at once"


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelGradients:
    """Gradients in the shapes of the inputs; None for an input that the function does not take or was not asked for.

    Attributes
    ----------
    x, y : array, shape of `x` and of `y`
        With respect to the points.
    a, b : array, shape of `a` and of `b`
        With respect to the weights, each free to change by itself; a zero weight has its gradient too.
    log_b : array, shape of `log_b`
        With respect to the log weights; zero where the log weight is -inf.
    """

    x: Array = None
    a: Array = None
    y: Array = None
    b: Array = None
    log_b: Array = None


@memory_advice(ADVICE)
@shares_out
def kernel_product(
    x: Array, y: Array, b: Array | None, kernel: Kernel = "gaussian", scale: float = 1.0, *, workers: int | None = None
) -> Array:
    """Return the sums ``sum_j k(x_i, y_j) b_j`` of a radial kernel over weighted points.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points at which the field is wanted; n numbers are n points on a line.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points of the measure whose field it is.
    b : array, shape (m,) or (B, m), or None
        Their weights, of any sign; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        exp(-r²/s²), exp(-sqrt(r² + s²)), (r² + s²)^(-1/4), exp(-r/s) or -r/s, with r = ``|x - y|`` and s = `scale`.
        The last two have a kink at r = 0; the fourth is also called Laplacian, the last is that of the energy distance.
    scale : float
        Length in the units of the points.
    workers : int, optional
        Threads, -1 for all cores that the process may use; None for what `cusink.set_workers` says.

    Returns
    -------
    array, shape (n,) or (B, n)
        The sum at each point of `x`.

    Raises
    ------
    TypeError
        Inputs of different libraries or dtypes.
    ValueError
        Points or weights of the wrong shape, NaN, a kernel that does not exist, a scale that is not positive.

    Notes
    -----
    Memory is O(n + m): pairs are formed block by block. For d ≤ 4 differences are formed before squares, so that points
    far from the origin lose no digits. For d ≥ 5 NumPy computes r from a matrix product, and from differences where
    that would have too few digits. Points of `y` with weight zero touch nothing.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product([0.0, 1.0], [0.0, 1.0, 2.0], [0.5, 0.25, 0.25]).round(3)
    array([0.597, 0.526])
    """
    del workers  # `shares_out` has read it
    given, profile = prepare(x, y, kernel, scale, b=b)
    return given.to_user(backend(given).kernel_sums(given.x, given.y, given.per_point["b"], profile))


@memory_advice(ADVICE)
@shares_out
def kernel_product_adjoint(
    x: Array,
    y: Array,
    b: Array | None,
    grad: Array,
    kernel: Kernel = "gaussian",
    scale: float = 1.0,
    *,
    wrt: Collection[str] | None = None,
    workers: int | None = None,
) -> KernelGradients:
    """Pull a gradient of the sums of `cusink.kernel_product` back to its points and weights.

    Parameters
    ----------
    x, y, b : array
        As for `cusink.kernel_product`.
    grad : array, shape (n,) or (B, n)
        Derivative of the final loss with respect to each entry of the result.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    wrt : sequence of {"x", "y", "b"}, or None
        Inputs whose gradients are wanted; None for all. Those of "y" and "b" share their work.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    KernelGradients
        ``x``, ``y`` and ``b``; summed over the batch for an input that all problems share.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`, or a gradient of the wrong shape.

    Notes
    -----
    ``gx_i = grad_i sum_j b_j ∇k(x_i - y_j)``, ``gy_j = b_j sum_i grad_i ∇k(y_j - x_i)``, ``gb_j = sum_i k(x_i, y_j)
    grad_i``, where ∇k is the gradient of the kernel as a function of the difference. Where points coincide at a kink,
    it counts as zero.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_adjoint([1.0], [0.0], [2.0], [1.0]).b.round(3)
    array([0.368])
    """
    del workers  # `shares_out` has read it
    names = checks.wanted(wrt, ("x", "y", "b"))
    given, profile = prepare(x, y, kernel, scale, b=b, grad=grad)
    return bilinear_adjoint(given, "grad", profile, 1, names)


@memory_advice(ADVICE)
@shares_out
def kernel_product_log(
    x: Array,
    y: Array,
    log_b: Array | None,
    kernel: LogKernel = "gaussian",
    scale: float = 1.0,
    *,
    workers: int | None = None,
) -> Array:
    """Return ``log(sum_j k(x_i, y_j) exp(log_b_j))``, right where the sum itself leaves the range.

    Parameters
    ----------
    x, y : array
        As for `cusink.kernel_product`.
    log_b : array, shape (m,) or (B, m), or None
        Logarithms of the weights; -inf is a weight of zero. None for weights of 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product`.
    scale : float
        As for `cusink.kernel_product`.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    array, shape (n,) or (B, n)
        -inf where every weight is zero.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`; log weights of NaN or +inf.

    Notes
    -----
    The largest term is factored out of each sum, in one pass. "distance" is negative and has no logarithm.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_log([100.0], [0.0, 1.0], [0.0, 0.0])  # exp of it is no longer a number
    array([-9801.])
    """
    del workers  # `shares_out` has read it
    given, profile = prepare(x, y, kernel, scale, log=True, log_b=log_b)
    return given.to_user(backend(given).kernel_log_sums(given.x, given.y, given.per_point["log_b"], profile))


@memory_advice(ADVICE)
@shares_out
def kernel_product_log_adjoint(
    x: Array,
    y: Array,
    log_b: Array | None,
    grad: Array,
    kernel: LogKernel = "gaussian",
    scale: float = 1.0,
    *,
    wrt: Collection[str] | None = None,
    workers: int | None = None,
) -> KernelGradients:
    """Pull a gradient of the result of `cusink.kernel_product_log` back to its points and log weights.

    Parameters
    ----------
    x, y, log_b : array
        As for `cusink.kernel_product_log`.
    grad : array, shape (n,) or (B, n)
        Derivative of the final loss with respect to each entry of the result.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product_log`.
    scale : float
        As for `cusink.kernel_product`.
    wrt : sequence of {"x", "y", "log_b"}, or None
        Inputs whose gradients are wanted; None for all.
    workers : int, optional
        Threads, as for `cusink.kernel_product`.

    Returns
    -------
    KernelGradients
        ``x``, ``y`` and ``log_b``; zero for a log weight of -inf and for its point.

    Raises
    ------
    ValueError
        As `cusink.kernel_product_log`, or a gradient of the wrong shape.

    Notes
    -----
    With the result L and ``W_ij = exp(log k(x_i, y_j) + log_b_j - L_i)``, whose rows sum to 1: ``glog_b_j = sum_i
    grad_i W_ij``, ``gx_i = grad_i sum_j W_ij ∇log k(x_i - y_j)`` and ``gy_j = sum_i grad_i W_ij ∇log k(y_j - x_i)``.
    Where points coincide, "exponential" has a kink; its slope there counts as zero.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_log_adjoint([0.0], [-1.0, 1.0], [0.0, 0.0], [1.0]).log_b
    array([0.5, 0.5])
    """
    del workers  # `shares_out` has read it
    names = checks.wanted(wrt, ("x", "y", "log_b"))
    given, profile = prepare(x, y, kernel, scale, log=True, log_b=log_b, grad=grad)
    given, log_sum = log_sums(given, profile, "x", "log_b")
    xp, ops = given.xp, backend(given)
    x, y, log_b, grad = given.x, given.y, given.per_point["log_b"], given.per_point["grad"]
    p = xp.where(xp.isneginf(log_sum), log_sum, -log_sum)  # an empty sum has no shares
    out = {}
    if "x" in names:
        slopes = ops.kernel_slopes(x, y, xp.ones_like(log_b), p, log_b, profile)[1]
        out["x"] = grad[..., None] * slopes
    if names & {"y", "log_b"}:
        out["log_b"], out["y"] = ops.kernel_slopes(y, x, grad, log_b, p, profile)
    return gradients(given, out, names)


def log_sums(given: WeightedPoints, profile: Profile, at: str, name: str) -> tuple[WeightedPoints, Array]:
    """Return logarithms of kernel sums at x or at y for shares, and the points in the precision that these need.

    `name` has the logarithms of the weights of the other points. A share is the exponential of a difference of numbers
    as large as these logarithms.
    """
    points = (given.x, given.y) if at == "x" else (given.y, given.x)
    sums = backend(given).kernel_log_sums(*points, given.per_point[name], profile)
    if given.x.dtype == np.float32 and bool((abs(sums) > STEEP).any()):  # -inf too, of squares that float32 has not
        return log_sums(given.in_float64(slice(None)), profile, at, name)
    return given, sums


def bilinear_adjoint(
    given: WeightedPoints, left: str, profile: Profile, grad: Array, names: frozenset[str]
) -> KernelGradients:
    """Return gradients of ``grad * sum_ij u_i k(x_i, y_j) b_j`` for x, u (the array called `left`), y and b."""
    ops, u, b, out = backend(given), given.per_point[left], given.per_point["b"], {}
    for points, weights, others, values, side, name in (
        (given.x, u, given.y, b, "x", left),
        (given.y, b, given.x, u, "y", "b"),
    ):
        if side in names:
            field, slopes = ops.kernel_slopes(points, others, values, None, None, profile)
            out[name], out[side] = grad * field, (grad * weights)[..., None] * slopes
        elif name in names:
            out[name] = grad * ops.kernel_sums(points, others, values, profile)
    return gradients(given, out, names)


def gradients(given: WeightedPoints, out: dict[str, Array], names: frozenset[str]) -> KernelGradients:
    """Return the gradients called `names`, each in the shape of its input."""
    return KernelGradients(**{name: given.gradient(name, out[name]) for name in names})
