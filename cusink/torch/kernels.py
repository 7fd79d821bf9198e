"""Kernel distances and likelihoods between tensors."""

from typing import Any

import torch

from cusink.bridges.measures import KernelWork
from cusink.bridges.options import Reduction, point_shape, reduced
from cusink.norms import checks
from cusink.torch.arrays import HALF, checked, in_floats, in_one_dtype, one_tensor
from cusink.torch.operators import apply

__all__ = ["kernel_distance", "kernel_neg_log_likelihood"]


def kernel_distance(
    x: torch.Tensor,
    a: torch.Tensor | None,
    y: torch.Tensor,
    b: torch.Tensor | None,
    *,
    kernel: str = "gaussian",
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Squared kernel distance of weighted points, differentiable once in points and weights.

    Parameters
    ----------
    x : tensor, shape (n, d), (n,) or (B, n, d)
        Points of the first measure.
    a : tensor, shape (n,) or (B, n), or None
        Their weights, of any sign; None for 1 / n each.
    y : tensor, shape (m, d), (m,) or (B, m, d)
        Points of the second measure.
    b : tensor, shape (m,) or (B, m), or None
        Their weights; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_distance`.
    scale : float
        Length in the units of the points.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the distances of a batch, or one for each pair.

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)
        The distance, see `cusink.kernel_distance`; under autocast, which may mix dtypes, in float32.

    Raises
    ------
    TypeError, ValueError
        As `cusink.kernel_distance` does, and for tensors of different devices.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import kernel_distance
    >>> x, y = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])
    >>> kernel_distance(x, None, y, None, kernel="energy").round(decimals=4)
    tensor(0.1656)
    """
    return reduced(_kernel("distance", x, a, y, b, kernel, scale), reduction)


def kernel_neg_log_likelihood(
    x: torch.Tensor,
    a: torch.Tensor | None,
    y: torch.Tensor,
    b: torch.Tensor | None,
    *,
    kernel: str = "gaussian",
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Negative log likelihood of a sample y, b under the density of points x, a, differentiable once.

    Parameters
    ----------
    x : tensor, shape (n, d), (n,) or (B, n, d)
        Points of the model.
    a : tensor, shape (n,) or (B, n), or None
        Their weights, non-negative; None for 1 / n each.
    y : tensor, shape (m, d), (m,) or (B, m, d)
        Points of the sample.
    b : tensor, shape (m,) or (B, m), or None
        Their weights, non-negative; None for 1 / m each.
    kernel : {"gaussian", "laplace", "energy", "exponential"}
        As for `cusink.kernel_neg_log_likelihood`.
    scale : float
        Length in the units of the points.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the values of a batch, or one for each sample.

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)
        The value, see `cusink.kernel_neg_log_likelihood`; under autocast, which may mix dtypes, in float32.

    Raises
    ------
    TypeError, ValueError
        As `cusink.kernel_neg_log_likelihood` does, and for tensors of different devices.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import kernel_neg_log_likelihood
    >>> x, y = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0])
    >>> kernel_neg_log_likelihood(x, None, y, None, scale=0.5).round(decimals=4)
    tensor(0.6931)
    """
    return reduced(_kernel("likelihood", x, a, y, b, kernel, scale), reduction)


def _kernel(function: Any, x: Any, a: Any, y: Any, b: Any, kernel: str, scale: float) -> torch.Tensor:
    """Return the values () or (B,) of a kernel function."""
    scale = checks.kernel(kernel, scale, function == "likelihood")
    for name, given in (("x", x), ("y", y)):
        one_tensor(name, given)
        if not given.ndim:
            raise ValueError(f"'{name}' must have shape (n,) or (n, d), or a batch axis before these; got ()")
    checked(x=x, a=a, y=y, b=b)
    autocast = torch.is_autocast_enabled(x.device.type)
    if not autocast or not any(t is not None and t.dtype in HALF for t in (x, a, y, b)):
        x, a, y, b = in_one_dtype(x=x, a=a, y=y, b=b).values()
    dtype = next((t.dtype for t in (x, a, y, b) if t is not None and t.is_floating_point()), torch.float64)
    half = any(t is not None and t.dtype in HALF for t in (x, a, y, b))
    if half:
        x, a, y, b = (None if t is None else t.float() for t in (x, a, y, b))
    x, a, y, b = in_floats(torch.float32 if half else dtype, x=x, a=a, y=y, b=b).values()
    points = {name: p.unsqueeze(-1) if p.ndim == 1 else p for name, p in (("x", x), ("y", y))}
    for name, given in points.items():
        point_shape(name, tuple(given.shape))
    weights = {"a": (a, x), "b": (b, y)}
    named = dict(points)
    for name, (w, p) in weights.items():
        count = p.shape[-2 if p.ndim > 1 else -1]
        named[name] = torch.full((count,), 1 / count, dtype=p.dtype, device=p.device) if w is None else w
    (value,) = apply(KernelWork(function, kernel, scale), named)
    return value.to(dtype) if dtype in HALF and not autocast else value
