"""Kernel products: sums of a kernel over weighted points, plain and in the log domain."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cusink.checks.arrays import array_module
from cusink.errors import memory_advice
from cusink.norms import checks

__all__ = [
    "KernelGradients",
    "kernel_product",
    "kernel_product_adjoint",
    "kernel_product_log",
    "kernel_product_log_adjoint",
]


ADVICE = "Nothing of the size of all pairs is made: pass fewer points or problems at once"


class Profile(NamedTuple):
    """A kernel as a function of q = |x - y|^2: log k is rate * q, rate * sqrt(q + shift) or rate * log(q + shift).

    By the form "linear", "root" or "log". Its gradient by x is ``slope * (x - y)`` divided by 1, sqrt(q + shift) or
    q + shift.
    """

    form: str
    rate: float
    shift: float
    slope: float


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelGradients:
    """Gradients in the shapes of the inputs; None for what the function does not take or was not asked for.

    Attributes
    ----------
    x, y : array, shape of `x` and of `y`
        By the points.
    a, b : array, shape of `a` and of `b`
        By the weights, each free to change by itself; a zero weight has a gradient as any other has.
    log_b : array, shape of `log_b`
        By the log weights; zero where the log weight is -inf.
    """

    x: Any = None
    a: Any = None
    y: Any = None
    b: Any = None
    log_b: Any = None


@memory_advice(ADVICE)
def kernel_product(x, y, b, kernel="gaussian", scale=1.0):
    """Return the sums ``sum_j k(x_i, y_j) b_j`` of a kernel over weighted points.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points at which the field is wanted; n numbers are n points on a line.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points that make the field.
    b : array, shape (m,) or (B, m), or None
        Their weights, of any sign; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy"}
        exp(-r²/s²), exp(-sqrt(r² + s²)) or (r² + s²)^(-1/4), with r = |x - y| and s = `scale`.
    scale : float
        Length in the units of the points.

    Returns
    -------
    array, shape (n,) or (B, n)

    Raises
    ------
    TypeError
        Inputs of different libraries or dtypes.
    ValueError
        Points or weights of the wrong shape, NaN, a kernel that does not exist, a scale that is not positive.

    Notes
    -----
    Memory is O(n + m): pairs are made as they are summed. With d ≤ 4 differences are taken before squares, so that
    points far from the origin lose nothing.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product([0.0, 1.0], [0.0, 1.0, 2.0], [0.5, 0.25, 0.25]).round(3)
    array([0.597, 0.526])
    """
    measures, profile = prepare(x, y, kernel, scale, b=(b, "y"))
    return measures.outward(backend(measures).kernel_sums(measures.x, measures.y, measures.numbers["b"], profile))


@memory_advice(ADVICE)
def kernel_product_adjoint(x, y, b, grad, kernel="gaussian", scale=1.0, *, wrt=None):
    """Pull a gradient by the sums of `cusink.kernel_product` back to its points and weights.

    Parameters
    ----------
    x, y, b, kernel, scale
        As for `cusink.kernel_product`.
    grad : array, shape (n,) or (B, n)
        Derivative of the final loss by each entry of the result.
    wrt : sequence of {"x", "y", "b"}, or None
        By what gradients are wanted; None for all. Those of "y" and "b" share their work.

    Returns
    -------
    KernelGradients
        ``x``, ``y`` and ``b``; summed over the batch for what all problems share.

    Raises
    ------
    ValueError
        As `cusink.kernel_product`, or a gradient of the wrong shape.

    Notes
    -----
    ``gx_i = grad_i sum_j b_j ∇k(x_i - y_j)``, ``gy_j = b_j sum_i grad_i ∇k(y_j - x_i)``, ``gb_j = sum_i k(x_i, y_j)
    grad_i``, where ∇k is the gradient of the kernel as a function of the difference.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_adjoint([1.0], [0.0], [2.0], [1.0]).b.round(3)
    array([0.368])
    """
    wrt = checks.wanted(wrt, ("x", "y", "b"))
    measures, profile = prepare(x, y, kernel, scale, b=(b, "y"), grad=(grad, "x"))
    return KernelGradients(**bilinear_adjoint(measures, "grad", profile, 1, wrt))


@memory_advice(ADVICE)
def kernel_product_log(x, y, log_b, kernel="gaussian", scale=1.0):
    """Return ``log(sum_j k(x_i, y_j) exp(log_b_j))``, right where the sum itself leaves the range.

    Parameters
    ----------
    x, y, scale
        As for `cusink.kernel_product`.
    log_b : array, shape (m,) or (B, m), or None
        Logarithms of the weights; -inf is a weight of zero. None for weights of 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_product`; "exponential" is exp(-r/s).

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
    The largest term is taken out of each sum, in one pass. "exponential" has a kink at r = 0. With d ≥ 5 NumPy takes r
    from a matrix product, and there points nearer to each other than 4e-8 of the cloud's radius count as equal.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_log([100.0], [0.0, 1.0], [0.0, 0.0])  # exp of it is no longer a number
    array([-9801.])
    """
    measures, profile = prepare(x, y, kernel, scale, log=True, log_b=(log_b, "y"))
    return measures.outward(
        backend(measures).kernel_log_sums(measures.x, measures.y, measures.numbers["log_b"], profile)
    )


@memory_advice(ADVICE)
def kernel_product_log_adjoint(x, y, log_b, grad, kernel="gaussian", scale=1.0, *, wrt=None):
    """Pull a gradient by the result of `cusink.kernel_product_log` back to its points and log weights.

    Parameters
    ----------
    x, y, log_b, kernel, scale
        As for `cusink.kernel_product_log`.
    grad : array, shape (n,) or (B, n)
        Derivative of the final loss by each entry of the result.
    wrt : sequence of {"x", "y", "log_b"}, or None
        By what gradients are wanted; None for all.

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
    Where points coincide, "exponential" has a kink, whose slope is taken as zero.

    Examples
    --------
    >>> import cusink
    >>> cusink.kernel_product_log_adjoint([0.0], [-1.0, 1.0], [0.0, 0.0], [1.0]).log_b
    array([0.5, 0.5])
    """
    wrt = checks.wanted(wrt, ("x", "y", "log_b"))
    measures, profile = prepare(x, y, kernel, scale, log=True, log_b=(log_b, "y"), grad=(grad, "x"))
    xp, ops = measures.xp, backend(measures)
    x, y, log_b, grad = measures.x, measures.y, measures.numbers["log_b"], measures.numbers["grad"]
    log_sum = ops.kernel_log_sums(x, y, log_b, profile)
    p = xp.where(xp.isneginf(log_sum), log_sum, -log_sum)  # an empty sum has no shares
    out = {}
    if "x" in wrt:
        slopes = ops.kernel_slopes(x, y, xp.ones_like(log_b), p, log_b, profile)[1]
        out["x"] = grad[..., None] * slopes
    if wrt & {"y", "log_b"}:
        out["log_b"], out["y"] = ops.kernel_slopes(y, x, grad, log_b, p, profile)
    return gradients(measures, out, wrt)


def prepare(x, y, kernel, scale, log=False, **per_point):
    """Checked measures, and the profile of the kernel."""
    checks.kernel(kernel, scale, log)
    measures = checks.measures(x, y, log="log_b" in per_point, positive=log and "a" in per_point, **per_point)
    checks.scale_of(scale, measures.x.dtype)
    return measures, profile(kernel, scale)


def profile(kernel, scale):
    """The `Profile` of a kernel by its name."""
    s = float(scale)
    return {
        "gaussian": Profile("linear", -1 / s**2, 0.0, -2 / s**2),
        "laplace": Profile("root", -1.0, s**2, -1.0),
        "energy": Profile("log", -0.25, s**2, -0.5),
        "exponential": Profile("root", -1 / s, 0.0, -1 / s),
    }[kernel]


def backend(measures):
    """The module with the sums that fit the arrays."""
    if array_module(measures.x) is np:
        from cusink.backends.numpy import sums

        return sums
    from cusink.backends.cupy import sums

    return sums


def bilinear_adjoint(measures, left, profile, grad, wrt):
    """Gradients of ``grad * sum_ij u_i k(x_i, y_j) b_j`` by x, u (the numbers called `left`), y and b."""
    ops, u, b, out = backend(measures), measures.numbers[left], measures.numbers["b"], {}
    for points, weights, others, values, side, name in (
        (measures.x, u, measures.y, b, "x", left),
        (measures.y, b, measures.x, u, "y", "b"),
    ):
        if side in wrt:
            sums, slopes = ops.kernel_slopes(points, others, values, None, None, profile)
            out[name], out[side] = grad * sums, (grad * weights)[..., None] * slopes
        elif name in wrt:
            out[name] = grad * ops.kernel_sums(points, others, values, profile)
    return {name: measures.gradient(name, out[name]) for name in wrt}


def gradients(measures, out, wrt):
    return KernelGradients(**{name: measures.gradient(name, out[name]) for name in wrt})
