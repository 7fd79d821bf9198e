"""Documents and clouds of unequal sizes as data: offsets, places and weights."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "is_measures",
    "is_sparse",
    "sums",
]


@dataclass(frozen=True, eq=False)
class Supports:
    """A collection: item k has `weights` (N,) at the points `places` (N,), from offsets[k] to offsets[k + 1].

    No weight is zero and no item has a point twice.
    """

    offsets: np.ndarray
    weights: np.ndarray
    places: np.ndarray

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def sizes(self):
        """How many points each item has."""
        return np.diff(self.offsets)

    def item(self, k):
        """Weights and places of one."""
        part = slice(self.offsets[k], self.offsets[k + 1])
        return self.weights[part], self.places[part]


@dataclass(frozen=True, eq=False, kw_only=True)
class Documents:
    """Checked collections A and B (the same object, where B was None) and the cost C between all their points."""

    A: Supports
    B: Supports
    C: Any
    xp: Any
    dtype: Any


def is_sparse(x):
    """Whether `x` is a sparse array or matrix, of SciPy or of CuPy; imports neither."""
    sparse = sys.modules.get("scipy.sparse")
    return (sparse is not None and sparse.issparse(x)) or is_on_device(x)


def is_measures(x):
    """Whether `x` is `cusink.Measures`, told by what it has, for that class stands above this module."""
    return all(hasattr(x, name) for name in ("offsets", "weights", "points", "normalised"))


def sums(offsets, weights):
    """The sum of the weights of each item, on the host, whatever else is in the collection."""
    total, filled = np.zeros(len(offsets) - 1), np.diff(offsets) > 0
    if filled.any():
        total[filled] = np.add.reduceat(host_array(weights).astype(np.float64), offsets[:-1][filled])
    return total


def library_of(x):
    """NumPy, or the CuPy that `x` proves to be loaded."""
    return sys.modules["cupy"] if is_cupy(x) else np


def is_cupy(x):
    cupy = sys.modules.get("cupy")
    return cupy is not None and not isinstance(x, np.ndarray) and isinstance(x, cupy.ndarray)


def is_on_device(x):
    return type(x).__module__.startswith("cupyx.scipy.sparse")


def host_array(x):
    return x.get() if is_cupy(x) else np.asarray(x)
