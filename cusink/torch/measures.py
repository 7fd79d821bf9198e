"""`cusink.torch.Measures`: clouds of unequal sizes that are tensors."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cusink.bridges.options import factor_shape, reach_parts, with_reach_as_numbers
from cusink.bridges.pairs import PairWork, no_arrays, pair_work
from cusink.checks.arrays import kind
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.costs.measures import offsets_of, offsets_of_clouds
from cusink.costs.metric import metric_of
from cusink.torch.arrays import HALF, checked, in_floats, in_one_dtype, one_tensor, regularisation
from cusink.torch.costs import as_the_metric_sees

__all__ = ["Measures"]


class Measures:
    """Weighted point clouds of unequal sizes, compared pair by pair; losses are differentiable in points and weights.

    Two of them take the place of `a` and `b` in `sinkhorn_loss` and `sinkhorn_divergence`; `C` is then the name of a
    metric, or a `cusink.Metric`, and there is one loss for each pair.

    Parameters
    ----------
    offsets : sequence of int, shape (K + 1,)
        Item k has the points from ``offsets[k]`` up to, but not including, ``offsets[k + 1]``.
    weights : tensor, shape (N,), or None
        Non-negative weights of all points, item after item. None gives the points of an item equal weights of sum 1.
    points : tensor, shape (N, d) or (N,)
        All points, item after item.

    Raises
    ------
    TypeError
        What is no tensor of real numbers, half precision, offsets that are no integers.
    ValueError
        Shapes that do not fit, offsets that do not rise from 0 to N.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import Measures, sinkhorn_divergence
    >>> x = [torch.tensor([[0.0], [1.0]], requires_grad=True), torch.zeros(3, 1, requires_grad=True)]
    >>> y = [torch.tensor([[2.0], [3.0]]), torch.ones(1, 1)]
    >>> loss = sinkhorn_divergence(Measures.of(x), Measures.of(y), "sqeuclidean", eps=0.1, reduction="none")
    >>> loss
    tensor([4., 1.], grad_fn=<SolveBackward>)
    >>> loss.sum().backward()
    >>> x[0].grad.squeeze().round(decimals=2)
    tensor([-2., -2.])
    """

    def __init__(self, offsets: Any, weights: torch.Tensor | None, points: torch.Tensor) -> None:
        one_tensor("points", points)
        checked(weights=weights, points=points)
        self.points = points.unsqueeze(-1) if points.ndim == 1 else points
        if isinstance(offsets, torch.Tensor):
            checked(offsets=offsets)
            offsets = offsets.tolist()
        self.offsets = offsets_of(offsets, tuple(self.points.shape), None if weights is None else tuple(weights.shape))
        if points.dtype in HALF or (weights is not None and weights.dtype in HALF):
            raise TypeError("'points' and 'weights' must not be of half precision; convert them with .float()")
        floating = next((x.dtype for x in (weights, points) if x is not None and x.is_floating_point()), torch.float64)
        named = in_one_dtype(weights=weights, points=self.points)
        weights, self.points = in_floats(floating, **named).values()
        if weights is None:
            sizes = [end - start for start, end in itertools.pairwise(self.offsets)]
            equal = [1 / size for size in sizes for _ in range(size)]
            weights = torch.as_tensor(equal, dtype=self.points.dtype, device=self.points.device)
        self.weights = weights.to(self.points.dtype)

    @classmethod
    def of(cls, clouds: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] | None = None) -> "Measures":
        """Join separate clouds.

        Parameters
        ----------
        clouds : sequence of tensor, shape (n_k, d)
            The points of each item.
        weights : sequence of tensor, shape (n_k,), optional
            Their weights; equal weights of sum 1 if not given.

        Returns
        -------
        Measures
            An item for each cloud, through which gradients reach the tensors.
        """
        clouds = [cloud[:, None] if cloud.ndim == 1 else cloud for cloud in _tensors("clouds", clouds)]
        weights = None if weights is None else _tensors("weights", weights)
        offsets = offsets_of_clouds(clouds, weights)
        return cls(offsets, None if weights is None else torch.cat(weights), torch.cat(clouds))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Measures({len(self)} items, {len(self.points)} points, d={self.points.shape[1]})"


def _tensors(name: str, given: Any) -> list[torch.Tensor]:
    """Return the tensors of a sequence."""
    if isinstance(given, torch.Tensor) or not isinstance(given, Sequence) or not given:
        raise TypeError(f"'{name}' must be a sequence of tensors, one for each item; got {kind(given)}")
    for k, x in enumerate(given):
        one_tensor(f"{name}[{k}]", x)
    checked(**{f"{name}[{k}]": x for k, x in enumerate(given)})
    return list(given)


def are_measures(a: Any, b: Any) -> bool:
    """Say whether one side is a collection of measures; those of NumPy arrays are refused."""
    no_arrays(a, b, "cusink.torch.Measures")
    return isinstance(a, Measures) or isinstance(b, Measures)


def _of_sum_one(given: Measures) -> torch.Tensor:
    """Return weights (N,) of which those of each item have the sum 1; an item without weight keeps its zeros."""
    weights, device = given.weights, given.weights.device
    sizes = [end - start for start, end in itertools.pairwise(given.offsets)]
    item = torch.as_tensor([k for k, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64, device=device)
    mass = weights.new_zeros(len(given)).index_add(0, item, weights)
    return weights / torch.where(mass == 0, 1, mass)[item]


def problem_of_pairs(
    a: Any,
    b: Any,
    C: Any,
    eps: float | torch.Tensor | RelativeEps,
    normalise: bool,
    of: Callable[..., PairWork],
    **options: Any,
) -> tuple[PairWork, dict[str, torch.Tensor]]:
    """Return the work over pairs of measures, and its inputs."""
    flag("normalise", normalise)
    if isinstance(eps, RelativeEps):
        raise TypeError("'eps' must be a number, or a tensor of one for each pair, for Measures; got a RelativeEps")
    number = regularisation(eps)
    slopes: tuple[str, ...] = ("a", "x", "b", "y") if torch.is_grad_enabled() else ()
    if slopes and isinstance(eps, torch.Tensor):
        slopes = (*slopes, "eps_of_pairs")
    if reach_parts(options["options"], torch.Tensor):
        raise TypeError("'reach' must hold numbers for Measures, which give no gradient by it; got a tensor")
    options |= {"options": with_reach_as_numbers(options["options"])}
    work = pair_work(a, b, C, of, slopes, **options)
    if number.ndim and len(number) != len(a):
        raise ValueError(
            f"'eps' must be a number, or a tensor of one for each of the {len(a)} pairs; got shape "
            f"{tuple(number.shape)}"
        )
    of_a, of_b = (_of_sum_one(side) if normalise else side.weights for side in (a, b))
    named = {"a": of_a, "x": a.points, "b": of_b, "y": b.points}
    factor = metric_of(C).factor
    if factor is not None:
        named["factor"] = torch.as_tensor(factor, dtype=a.points.dtype, device=a.points.device)
        factor_shape(tuple(named["factor"].shape), {"a": a.points, "b": b.points})
    checked(**named)
    return work, as_the_metric_sees(in_one_dtype(**named)) | {"eps_of_pairs": number.expand(len(a))}
