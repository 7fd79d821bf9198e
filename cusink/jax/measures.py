"""`cusink.jax.Measures`: clouds of unequal sizes that are arrays of JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cusink.bridges.options import factor_shape, reach_parts
from cusink.bridges.pairs import PairWork, no_arrays, pair_work
from cusink.checks.arrays import HALF, kind
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.costs.measures import offsets_of, offsets_of_clouds
from cusink.costs.metric import metric_of
from cusink.jax.arrays import array, floating, regularisation
from cusink.jax.costs import as_the_metric_sees

__all__ = ["Measures"]


class Measures:
    """Weighted point clouds of unequal sizes, compared pair by pair; losses are differentiable in points and weights.

    Two of them take the place of `a` and `b` in `sinkhorn_loss` and `sinkhorn_divergence`; `C` is then the name of a
    metric, or a `cusink.Metric`, and there is one loss for each pair. Under ``jit`` make them inside, of points that
    are traced and offsets that are not.

    Parameters
    ----------
    offsets : sequence of int, shape (K + 1,)
        Item k has the points from ``offsets[k]`` up to, but not including, ``offsets[k + 1]``.
    weights : array, shape (N,), or None
        Non-negative weights of all points, item after item. None gives the points of an item equal weights of sum 1.
    points : array, shape (N, d) or (N,)
        All points, item after item.

    Raises
    ------
    TypeError
        What is no array of real numbers, half precision, offsets that are no integers.
    ValueError
        Shapes that do not fit, offsets that do not rise from 0 to N.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import Measures, sinkhorn_divergence
    >>> y = Measures.of([jnp.array([[2.0], [3.0]]), jnp.ones((1, 1))])
    >>> def loss(x):
    ...     return sinkhorn_divergence(Measures.of(x), y, "sqeuclidean", eps=0.1, reduction="sum")
    >>> slopes = jax.grad(loss)([jnp.array([[0.0], [1.0]]), jnp.zeros((3, 1))])
    >>> slopes[0].round(2).tolist()
    [[-2.0], [-2.0]]
    """

    def __init__(self, offsets: Any, weights: jax.Array | None, points: jax.Array) -> None:
        if points is None:
            raise TypeError("'points' must be an array; got None")
        points, weights = floating(points=points, weights=weights)
        points = points[:, None] if points.ndim == 1 else points
        self.offsets = offsets_of(offsets, tuple(points.shape), None if weights is None else tuple(weights.shape))
        if points.dtype.name in HALF or (weights is not None and weights.dtype.name in HALF):
            raise TypeError(
                "'points' and 'weights' must not be of half precision; convert them with .astype(jax.numpy.float32)"
            )
        if weights is None:
            sizes = np.diff(self.offsets)
            weights = jnp.asarray(np.repeat(1 / np.maximum(sizes, 1), sizes), points.dtype)
        if weights.dtype != points.dtype:
            raise TypeError(
                f"all arrays must share one dtype; 'weights' is {weights.dtype} and 'points' {points.dtype}"
            )
        self.points, self.weights = points, weights

    @classmethod
    def of(cls, clouds: Sequence[jax.Array], weights: Sequence[jax.Array] | None = None) -> "Measures":
        """Join separate clouds.

        Parameters
        ----------
        clouds : sequence of array, shape (n_k, d)
            The points of each item.
        weights : sequence of array, shape (n_k,), optional
            Their weights; equal weights of sum 1 if not given.

        Returns
        -------
        Measures
            An item for each cloud, through which gradients reach the arrays.
        """
        clouds = [cloud[:, None] if cloud.ndim == 1 else cloud for cloud in _arrays("clouds", clouds)]
        weights = None if weights is None else _arrays("weights", weights)
        offsets = offsets_of_clouds(clouds, weights)
        return cls(offsets, None if weights is None else jnp.concatenate(weights), jnp.concatenate(clouds))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Measures({len(self)} items, {len(self.points)} points, d={self.points.shape[1]})"


def _arrays(name: str, given: Any) -> list[jax.Array]:
    """Return the arrays of a sequence."""
    if not isinstance(given, Sequence) or not given:
        raise TypeError(f"'{name}' must be a sequence of arrays, one for each item; got {kind(given)}")
    return [array(f"{name}[{k}]", x) for k, x in enumerate(given)]


def are_measures(a: Any, b: Any) -> bool:
    """Say whether one side is a collection of measures; those of NumPy arrays are refused."""
    no_arrays(a, b, "cusink.jax.Measures")
    return isinstance(a, Measures) or isinstance(b, Measures)


def _of_sum_one(given: Measures) -> jax.Array:
    """Return weights (N,) of which those of each item have the sum 1; an item without weight keeps its zeros."""
    item = np.repeat(np.arange(len(given)), np.diff(given.offsets))
    mass = jnp.zeros(len(given), given.weights.dtype).at[item].add(given.weights)
    return given.weights / jnp.where(mass == 0, 1, mass)[item]


def problem_of_pairs(
    a: Any,
    b: Any,
    C: Any,
    eps: float | jax.Array | RelativeEps,
    normalise: bool,
    of: Callable[..., PairWork],
    **options: Any,
) -> tuple[PairWork, dict[str, jax.Array]]:
    """Return the work over pairs of measures, and its inputs."""
    flag("normalise", normalise)
    if isinstance(eps, RelativeEps):
        raise TypeError("'eps' must be a number, or an array of one for each pair, for Measures; got a RelativeEps")
    slopes: tuple[str, ...] = ("a", "x", "b", "y")
    if isinstance(eps, jax.Array):
        slopes = (*slopes, "eps_of_pairs")
    if reach_parts(options["options"], (jax.Array, np.ndarray)):
        raise TypeError("'reach' must hold numbers for Measures, which give no gradient by it; got an array of JAX")
    work = pair_work(a, b, C, of, slopes, **options)
    if a.points.dtype != b.points.dtype:
        raise TypeError(f"all arrays must share one dtype; 'a' is {a.points.dtype} and 'b' {b.points.dtype}")
    number = regularisation(eps, a.points.dtype)
    if number.ndim and len(number) != len(a):
        raise ValueError(
            f"'eps' must be a number, or an array of one for each of the {len(a)} pairs; got shape {number.shape}"
        )
    of_a, of_b = (_of_sum_one(side) if normalise else side.weights for side in (a, b))
    named = {"a": of_a, "x": a.points, "b": of_b, "y": b.points}
    factor = metric_of(C).factor
    if factor is not None:
        named["factor"] = jnp.asarray(factor, a.points.dtype)
        factor_shape(named["factor"].shape, {"a": a.points, "b": b.points})
    return work, as_the_metric_sees(named) | {"eps_of_pairs": jnp.broadcast_to(number, (len(a),))}
