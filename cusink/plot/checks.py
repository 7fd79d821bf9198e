"""Checks of the arguments of `cusink.plot`: they come out as float64 arrays of NumPy."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cusink.checks.arrays import in_range, kind, one_array, to_host
from cusink.checks.foreign import taken
from cusink.checks.scalars import integer, real, shown
from cusink.solver.result import SinkhornResult
from cusink.types import Array, HostArray

SMALLEST = 1e-100


def plan(P: Array | SinkhornResult) -> HostArray:
    """Return the plan (n, m) on the host, of an array or of the result of one problem."""
    if isinstance(P, SinkhornResult):
        if P.problem.batched:
            raise TypeError(
                f"'P' must be the result of one problem; got one of {len(P.problem.f)}. Pass one plan: result.plan()[k]"
            )
        P = P.plan()
    plan = host("P", P)
    if plan.ndim != 2 or 0 in plan.shape:
        raise ValueError(f"'P' must be a matrix (n, m) with at least one entry; got shape {plan.shape}")
    return plan


def positions(name: str, positions: Array | None, count: int) -> HostArray:
    """Return the positions (count,) of bins, their numbers by default."""
    if positions is None:
        return np.arange(float(count))
    found = host(name, positions)
    if found.shape != (count,):
        raise ValueError(f"'{name}' must have shape ({count},) to match the plan; got {found.shape}")
    if (np.diff(found) <= 0).any():
        raise ValueError(f"'{name}' must increase. Sort it, and the plan with it")
    return found


def points(name: str, points: Array, count: int) -> HostArray:
    """Return points (count, 2) on the host."""
    found = host(name, points)
    if found.shape != (count, 2):
        raise ValueError(
            f"'{name}' must have shape ({count}, 2), points of the plane, to match the plan; got {found.shape}"
        )
    return found


def images(name: str, given: Array, shape: tuple[int, int] | None) -> HostArray:
    """Return images (count, height, width) of darkness, or (count, height, width, channels) of colours, from 0 to 1."""
    images = host(name, given)
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        size = (side, side) if shape is None else _size(shape)
        if math.prod(size) != images.shape[1]:
            raise ValueError(
                f"'{name}' has rows of {images.shape[1]} numbers, which are no image of shape {size}. "
                "Pass shape=(height, width)"
            )
        images = images.reshape(-1, *size)
    if 0 in images.shape or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (3, 4))):
        raise ValueError(
            f"'{name}' must have shape (count, height, width), (count, height, width, 3 or 4) or (count, cells); "
            f"got {images.shape}"
        )
    if images.ndim == 4:
        return images.clip(0, 1)
    # Each on its own scale, so that thin and bold writing are equally dark.
    top = images.max(axis=(1, 2), keepdims=True)
    shares: HostArray = images / np.where(top > 0, top, 1)
    return shares


def _size(shape: Any) -> tuple[int, int]:
    """Check the size of images that came as rows of numbers."""
    sides = [integer(side) for side in shape] if isinstance(shape, (tuple, list)) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None or min(sides[0], sides[1]) < 1:
        raise ValueError(f"'shape' must be a pair (height, width) of positive integers; got {shown(shape)}")
    return sides[0], sides[1]


def neighbours(
    indices: Array, distances: Array | None, queries: int, corpus: int
) -> tuple[HostArray, HostArray | None]:
    """Return indices (queries, k) into the corpus and, where given, distances of the same shape."""
    indices = numbers("indices", indices)
    if indices.ndim != 2 or 0 in indices.shape or len(indices) != queries or indices.dtype.kind not in "iu":
        raise ValueError(
            f"'indices' must be whole numbers of shape ({queries}, k), a row for each query; "
            f"got {indices.dtype} of shape {indices.shape}"
        )
    if indices.min() < 0 or indices.max() >= corpus:
        raise ValueError(f"'indices' must be from 0 to {corpus - 1}; got {indices.min()} to {indices.max()}")
    distances = None if distances is None else host("distances", distances)
    if distances is not None and distances.shape != indices.shape:
        raise ValueError(f"'distances' must have shape {indices.shape}, that of 'indices'; got {distances.shape}")
    return indices, distances


def labels(name: str, values: Any, length: int) -> list[Any] | None:
    """Return the labels of `length` images as a list."""
    if values is None:
        return None
    try:
        entries = [] if isinstance(values, str) else list(values)
    except Exception:  # by a class of the user, anything
        raise TypeError(f"'{name}' must be a sequence, with one entry for each image; got {kind(values)}") from None
    if any(hasattr(entry, "__len__") and not isinstance(entry, (str, tuple)) for entry in entries):
        raise TypeError(f"'{name}' must be a sequence of words or numbers; got one of arrays or containers")
    if len(entries) != length:
        raise ValueError(f"'{name}' must have length {length}, one for each image; got {len(entries)}")
    return entries


def history(history: Iterable[tuple[int, Array]]) -> tuple[HostArray, HostArray]:
    """Return the iterations (T,) and errors (T, B) that a callback collected, NaN where an error is not finite.

    Checks with no finite error at all are left out.
    """
    try:
        checks = [(iteration, error) for iteration, error in history]
    except (TypeError, ValueError):
        raise TypeError(
            f"'history' must be a sequence of pairs (iteration, error); got {kind(history)}. Collect what callback gets"
        ) from None
    if not checks:
        raise ValueError("'history' must hold at least one (iteration, error); got none. Collect what callback gets")
    rows = [np.ravel(numbers("history", taken("history", error))).astype(np.float64) for _, error in checks]
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1 or sizes[0] == 0:
        raise ValueError(f"'history' must hold the errors of the same problems at each check; got {sizes} of them")
    errors = np.array(rows)
    finite = np.isfinite(errors)
    some = finite.any(axis=1)
    if any(real(iteration) is None for iteration, _ in checks):
        raise TypeError("'history' must have a number of iterations first in each pair. Collect what callback gets")
    iterations = np.array([real(iteration) for iteration, _ in checks])
    return iterations[some], np.where(finite, errors, np.nan)[some]


def host(name: str, array: Array) -> HostArray:
    """Return `array` as finite float64 numbers of NumPy."""
    found = numbers(name, array).astype(np.float64)
    in_range(name, found, np)
    return found


def numbers(name: str, array: Array) -> HostArray:
    """Return `array` as real numbers of NumPy in their own dtype."""
    if array is None:
        raise TypeError(f"'{name}' must be an array; got None")
    return to_host(one_array(name, array))


def number(name: str, value: Any, *, zero: bool = True) -> float:
    """Check a number that can be drawn with, positive or, where `zero` allows it, zero."""
    found = real(value)
    if found is None:
        raise TypeError(f"'{name}' must be a number; got {kind(value)}")
    if not (SMALLEST <= found <= 1 / SMALLEST or (zero and found == 0)):
        rule = f"{'zero, or ' if zero else ''}between {SMALLEST:g} and {1 / SMALLEST:g}"
        raise ValueError(f"'{name}' must be {rule}; got {shown(value)}")
    return found


def axes(ax: Any) -> None:
    """Check the axes to draw into."""
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"'ax' must be matplotlib Axes or None; got {kind(ax)}")
