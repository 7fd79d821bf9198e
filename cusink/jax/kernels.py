"""Kernel distances and likelihoods between arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp

from cusink.bridges.measures import KernelWork
from cusink.bridges.options import Reduction, point_shape, reduced
from cusink.checks.arrays import HALF
from cusink.checks.weights import batch_size
from cusink.jax.arrays import floating, in_one_dtype
from cusink.jax.primitives import outputs_of
from cusink.norms import checks

__all__ = ["kernel_distance", "kernel_neg_log_likelihood"]


def kernel_distance(
    x: jax.Array,
    a: jax.Array | None,
    y: jax.Array,
    b: jax.Array | None,
    *,
    kernel: str = "gaussian",
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Squared kernel distance of weighted points, differentiable once in points and weights.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points of the first measure.
    a : array, shape (n,) or (B, n), or None
        Their weights, of any sign; None for 1 / n each.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points of the second measure.
    b : array, shape (m,) or (B, m), or None
        Their weights; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_distance`.
    scale : float
        Length in the units of the points.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the distances of a batch, or one for each pair.

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)
        The distance, see `cusink.kernel_distance`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.kernel_distance` does, and for arrays of different dtypes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import kernel_distance
    >>> x, y = jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0])
    >>> print(f"{kernel_distance(x, None, y, None, kernel='energy'):.4f}")
    0.1656
    """
    return reduced(_kernel("distance", x, a, y, b, kernel, scale), reduction)


def kernel_neg_log_likelihood(
    x: jax.Array,
    a: jax.Array | None,
    y: jax.Array,
    b: jax.Array | None,
    *,
    kernel: str = "gaussian",
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log likelihood of a sample y, b under the density of points x, a, differentiable once.

    Parameters
    ----------
    x : array, shape (n, d), (n,) or (B, n, d)
        Points of the model.
    a : array, shape (n,) or (B, n), or None
        Their weights, non-negative; None for 1 / n each.
    y : array, shape (m, d), (m,) or (B, m, d)
        Points of the sample.
    b : array, shape (m,) or (B, m), or None
        Their weights, non-negative; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_neg_log_likelihood`.
    scale : float
        Length in the units of the points.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the values of a batch, or one for each sample.

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)
        The value, see `cusink.kernel_neg_log_likelihood`.

    Raises
    ------
    TypeError, ValueError
        As `cusink.kernel_neg_log_likelihood` does, and for arrays of different dtypes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from cusink.jax import kernel_neg_log_likelihood
    >>> x, y = jnp.array([0.0, 2.0]), jnp.array([0.0, 0.0])
    >>> print(f"{kernel_neg_log_likelihood(x, None, y, None, scale=0.5):.4f}")
    0.6931
    """
    return reduced(_kernel("likelihood", x, a, y, b, kernel, scale), reduction)


def _kernel(function: Any, x: Any, a: Any, y: Any, b: Any, kernel: str, scale: float) -> jax.Array:
    """Return the values () or (B,) of a kernel function."""
    scale = checks.kernel(kernel, scale, function == "likelihood")
    for name, points in (("x", x), ("y", y)):
        if points is None:
            raise TypeError(f"'{name}' must be an array of points; got None")
    x, a, y, b = floating(x=x, a=a, y=y, b=b)
    dtype = in_one_dtype({"x": x, "a": a, "y": y, "b": b})
    x, y = (p[:, None] if p.ndim == 1 else p for p in (x, y))
    for name, points in (("x", x), ("y", y)):
        point_shape(name, points.shape)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got shapes {x.shape} and {y.shape}")
    for name, w, points in (("a", a, x), ("b", b, y)):
        if w is not None:
            checks.one_per_point(name, w.shape, points.shape[-2], points.shape)
    a, b = (jnp.full(p.shape[-2], 1 / p.shape[-2], dtype) if w is None else w for w, p in ((a, x), (b, y)))
    named = {"x": x, "a": a, "y": y, "b": b}
    batch_size({name: len(v) for name, v in named.items() if v.ndim > (2 if name in ("x", "y") else 1)})
    if dtype.name in HALF:
        named = {name: v.astype(jnp.float32) for name, v in named.items()}
    (value,) = outputs_of(KernelWork(function, kernel, scale), named)
    return value.astype(dtype)
