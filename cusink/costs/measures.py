"""Collections of weighted points: each item has its own support, of any size."""

import itertools
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import array_module, kind, one_array, promoted, to_host
from cusink.checks.foreign import remembering, taken
from cusink.types import Array, HostArray

Offsets = tuple[int, ...]  # item k has the points from offsets[k] to offsets[k + 1]


class Measures:
    """Weighted point clouds of unequal sizes, to be compared with each other.

    It takes the place of the histograms `A` and `B` in `cusink.distance_matrix`; the cost `C` is then the name of a
    metric.

    Parameters
    ----------
    offsets : array of int, shape (K + 1,)
        Item k has the points from ``offsets[k]`` up to, but not including, ``offsets[k + 1]``.
    weights : array, shape (N,), or None
        Non-negative weights of all points, item after item. None gives the points of an item equal weights of sum 1.
    points : array, shape (N, d) or (N,)
        All points, item after item.

    Attributes
    ----------
    offsets : array of int, shape (K + 1,)
        As given, in NumPy.
    weights : array, shape (N,)
        As given.
    points : array, shape (N, d)
        As given.

    Raises
    ------
    TypeError
        Arrays of different libraries or dtypes, or offsets that are no integers.
    ValueError
        Offsets that do not rise from 0 to N, negative weights, NaN or infinite numbers.

    Notes
    -----
    An item without points, or without weight, is empty: its distance to anything is NaN.

    Examples
    --------
    >>> import cusink
    >>> clouds = cusink.Measures([0, 2, 5], None, [0.0, 1.0, 2.0, 3.0, 4.0])
    >>> len(clouds)
    2
    >>> print(cusink.distance_matrix(clouds[:1], clouds[1:], "euclidean", eps=0.01).round(3))
    [[2.5]]
    """

    offsets: HostArray
    weights: Array
    points: Array
    origin = ""  # torch or jax, if the points came from there: so will results

    @remembering
    @one_call
    def __init__(self, offsets: Any, weights: Any, points: Any) -> None:
        self.offsets, self.weights, self.points = _checked(offsets, weights, points)

    @classmethod
    @one_call
    def of(cls, clouds: Sequence[Any], weights: Sequence[Any] | None = None) -> "Measures":
        """Join separate point clouds.

        Parameters
        ----------
        clouds : sequence of array, shape (n_k, d)
            The points of each item.
        weights : sequence of array, shape (n_k,), optional
            Their weights; equal weights of sum 1 if not given.

        Returns
        -------
        Measures
            An item for each cloud.
        """
        return cls(*_joined(clouds, weights))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @one_call
    def __getitem__(self, items: slice) -> "Measures":
        """Return the items of a slice."""
        if not isinstance(items, slice) or items.step not in (None, 1):
            raise TypeError(f"items of Measures are taken by slices with step 1, as in measures[3:5]; got {items!r}")
        start, stop, _ = items.indices(len(self))
        offsets = self.offsets[start : max(stop, start) + 1]
        points = slice(int(offsets[0]), int(offsets[-1]))
        return Measures(offsets - offsets[0], self.weights[points], self.points[points])

    def __repr__(self) -> str:
        return f"Measures({len(self)} items, {len(self.points)} points, d={self.points.shape[1]})"

    @one_call
    def normalised(self) -> "Measures":
        """Return the same measures, each divided by its sum.

        Returns
        -------
        Measures
            Empty items stay empty. Integer weights become float64.
        """
        total = sums(self.offsets, to_host(self.weights))
        sizes = np.diff(self.offsets)
        floating = self.weights.dtype if self.weights.dtype.kind == "f" else np.dtype(np.float64)
        factor = array_module(self.weights).asarray(np.repeat(1 / np.where(total > 0, total, 1), sizes))
        return Measures(self.offsets, (self.weights * factor).astype(floating), self.points)


def _checked(offsets: Any, weights: Any, points: Any) -> tuple[HostArray, Array, Array]:
    """Return offsets in NumPy, weights (N,) and points (N, d)."""
    if points is None:
        raise TypeError("'points' must be an array; got None")
    (weights, points), xp, _ = promoted(weights=_as_given(weights), points=_as_given(points))
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"'points' must have shape (N, d) or (N,); got {points.shape}")
    N = len(points)
    offsets = _known_offsets(offsets, N)
    if weights is None:
        sizes = np.diff(offsets)
        floating = points.dtype if points.dtype.kind == "f" else np.dtype(np.float64)
        weights = xp.asarray(np.repeat(1 / np.maximum(sizes, 1), sizes), floating)
    if weights.shape != (N,):
        raise ValueError(f"'weights' must have shape ({N},), one for each point; got {weights.shape}")
    if not xp.isfinite(weights).all() or (weights < 0).any():
        at = int((~(xp.isfinite(weights) & (weights >= 0))).argmax())
        raise ValueError(f"'weights' must be finite and non-negative; got {float(weights[at]):g} at [{at}]")
    if not xp.isfinite(points).all():
        at = int((~xp.isfinite(points)).any(axis=1).argmax())
        item = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"'points' must be finite; got NaN or infinity in point {at}, of item {item}. Leave out the points, such "
            "as words, that have no coordinates"
        )
    return offsets, weights, points


def _as_given(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, numbers.Number) else x


def _items(name: str, given: Any) -> list[Array]:
    """Return the arrays of a sequence."""
    try:
        items = list(given)
    except TypeError:
        raise TypeError(f"'{name}' must be a sequence of arrays, one for each item; got {kind(given)}") from None
    named = {f"{name}[{k}]": item for k, item in enumerate(items)}
    return [one_array(k, taken(k, item)) for k, item in named.items()]  # items of generators are seen here first


def _joined(clouds: Any, weights: Sequence[Any] | None) -> tuple[HostArray, Array, Array]:
    """Return offsets, weights and points of separate clouds."""
    if isinstance(clouds, np.ndarray) and clouds.ndim < 2:
        raise TypeError("'clouds' must be a sequence of arrays of points, one for each item; got one array")
    clouds = _items("clouds", clouds)
    if not clouds:
        raise ValueError("'clouds' must hold at least one array of points; got none")
    xp = array_module(clouds[0])
    for k, cloud in enumerate(clouds):
        if array_module(cloud) is not xp:
            raise TypeError(f"all inputs must share one library; 'clouds[0]' and 'clouds[{k}]' do not")
    clouds = [cloud[:, None] if cloud.ndim == 1 else cloud for cloud in clouds]
    items = None if weights is None else _items("weights", weights)
    offsets = np.array(offsets_of_clouds(clouds, items))
    return offsets, None if items is None else xp.concatenate(items), xp.concatenate(clouds)


def sums(offsets: HostArray, weights: HostArray) -> HostArray:
    """Return the sum (K,) of the weights of each item."""
    total, filled = np.zeros(len(offsets) - 1), np.diff(offsets) > 0
    if filled.any():
        total[filled] = np.add.reduceat(weights.astype(np.float64), offsets[:-1][filled])
    return total


def offsets_of_clouds(clouds: Sequence[Any], weights: Sequence[Any] | None) -> list[int]:
    """Check the shapes of clouds (n_k, d) and of their weights (n_k,), of any library; return the offsets."""
    shapes = [tuple(cloud.shape) for cloud in clouds]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        raise ValueError(
            f"'clouds' must be arrays (n, d) of one d; got shapes {sorted(set(shapes))[:4]}. An item without points is "
            "an array of shape (0, d)"
        )
    if weights is not None and [tuple(w.shape) for w in weights] != [shape[:1] for shape in shapes]:
        raise ValueError("'weights' must hold one array for each of 'clouds', with a weight for each of its points")
    return [0, *itertools.accumulate(shape[0] for shape in shapes)]


def offsets_of(offsets: Any, points: tuple[int, ...], weights: tuple[int, ...] | None) -> Offsets:
    """Check offsets and the shapes of the points (N, d) and weights (N,) of a collection; return the offsets."""
    if len(points) != 2 or points[1] == 0:
        raise ValueError(f"'points' must have shape (N, d) or (N,) with d >= 1; got {points}")
    if weights is not None and weights != points[:1]:
        raise ValueError(f"'weights' must have shape {points[:1]}, one for each point; got {weights}")
    if isinstance(offsets, (list, tuple)) and len(offsets) > 1 and all(type(k) is int for k in offsets):
        # In plain Python, which a compiler of traced code can follow.
        if offsets[0] == 0 and offsets[-1] == points[0] and all(x <= y for x, y in itertools.pairwise(offsets)):
            return tuple(offsets)
    return tuple(_known_offsets(offsets, points[0]).tolist())


def _known_offsets(given: Any, N: int) -> HostArray:
    """Check offsets into N points."""
    offsets = to_host(one_array("offsets", given))
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"'offsets' must be integers; got dtype {offsets.dtype}")
    offsets = offsets.astype(np.int64)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != N or (np.diff(offsets) < 0).any():
        ends = f"{offsets[0]} ... {offsets[-1]}" if offsets.ndim == 1 and len(offsets) else "none"
        raise ValueError(
            f"'offsets' must rise from 0 to the number of points, {N}, with one more entry than there are items; got "
            f"{ends} of shape {offsets.shape}. For clouds of sizes n they are numpy.concatenate([[0], numpy.cumsum(n)])"
        )
    return offsets
