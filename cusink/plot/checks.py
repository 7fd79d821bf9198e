"""Checks of the arguments of `cusink.plot`: they come out as float64 arrays of NumPy."""

import math

import numpy as np

from cusink.checks.arrays import to_host
from cusink.solver.result import SinkhornResult


def plan(P):
    """The plan (n, m) on the host, of an array or of the result of one problem."""
    if isinstance(P, SinkhornResult):
        if P.problem.batched:
            raise TypeError(
                f"'P' must be the result of one problem; got one of {len(P.problem.f)}. Pass one plan: result.plan()[k]"
            )
        P = P.plan()
    P = host("P", P)
    if P.ndim != 2 or 0 in P.shape:
        raise ValueError(f"'P' must be a matrix (n, m) with at least one entry; got shape {P.shape}")
    return P


def positions(name, positions, count):
    """Positions (count,) of bins, their numbers by default."""
    if positions is None:
        return np.arange(float(count))
    positions = host(name, positions)
    if positions.shape != (count,):
        raise ValueError(f"'{name}' must have shape ({count},) to match the plan; got {positions.shape}")
    if (np.diff(positions) <= 0).any():
        raise ValueError(f"'{name}' must increase. Sort it, and the plan with it")
    return positions


def points(name, points, count):
    """Points (count, 2)."""
    points = host(name, points)
    if points.shape != (count, 2):
        raise ValueError(
            f"'{name}' must have shape ({count}, 2), points of the plane, to match the plan; got {points.shape}"
        )
    return points


def images(name, images, shape):
    """Images (count, height, width) of darkness, or (count, height, width, channels) of colours, from 0 to 1."""
    images = host(name, images)
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        shape = (side, side) if shape is None else tuple(shape)
        if len(shape) != 2 or math.prod(shape) != images.shape[1]:
            raise ValueError(
                f"'{name}' has rows of {images.shape[1]} numbers, which are no image of shape {shape}. "
                "Pass shape=(height, width)"
            )
        images = images.reshape(-1, *shape)
    if 0 in images.shape or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (3, 4))):
        raise ValueError(
            f"'{name}' must have shape (count, height, width), (count, height, width, 3 or 4) or (count, cells); "
            f"got {images.shape}"
        )
    if images.ndim == 4:
        return np.clip(images, 0, 1)
    # Each on its own scale, so that thin and bold writing are equally dark.
    top = images.max(axis=(1, 2), keepdims=True)
    return images / np.where(top > 0, top, 1)


def neighbours(indices, distances, queries, corpus):
    """Indices (queries, k) into the corpus and, where given, distances of the same shape."""
    indices = np.asarray(to_host(indices))
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


def labels(name, values, length):
    """`values` as they are, if there are `length` of them."""
    if values is not None and len(values) != length:
        raise ValueError(f"'{name}' must have length {length}, one for each image; got {len(values)}")
    return values


def history(history):
    """Iterations (T,) and errors (T, B) of what a callback collected, NaN where an error is not finite.

    Checks with no finite error at all are left out.
    """
    history = list(history)
    if not history:
        raise ValueError("'history' must hold at least one (iteration, error); got none. Collect what callback gets")
    errors = [np.ravel(to_host(error)).astype(np.float64) for _, error in history]
    sizes = sorted({len(error) for error in errors})
    if len(sizes) > 1 or sizes[0] == 0:
        raise ValueError(f"'history' must hold the errors of the same problems at each check; got {sizes} of them")
    errors = np.array(errors)
    finite = np.isfinite(errors)
    some = finite.any(axis=1)
    iterations = np.array([iteration for iteration, _ in history])
    return iterations[some], np.where(finite, errors, np.nan)[some]


def host(name, array):
    """`array` as finite float64 numbers of NumPy."""
    array = np.asarray(to_host(array), np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"'{name}' must be finite; got NaN or infinity")
    return array
