"""Documents and clouds of unequal sizes as data: offsets, places and weights."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.costs.cost import Cost
from cusink.types import ArrayModule, HostArray


@dataclass(frozen=True, eq=False)
class RaggedWeights:
    """A collection: item k has `weights` (N,) at the points `places` (N,), from offsets[k] to offsets[k + 1].

    No weight is zero and no item has a point twice.
    """

    offsets: HostArray
    weights: HostArray
    places: HostArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> HostArray:
        """How many points each item has."""
        return np.diff(self.offsets)

    def item(self, k: int) -> tuple[HostArray, HostArray]:
        """Return the weights and places of one item."""
        own = slice(self.offsets[k], self.offsets[k + 1])
        return self.weights[own], self.places[own]

    def content(self) -> tuple[Any, ...]:
        """Return a word for the kind, and the data, for fingerprints."""
        return "ragged", self.offsets, self.weights, self.places


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckedDocuments:
    """Checked collections A and B (the same object, where B was None) and the cost C between all their points."""

    A: RaggedWeights
    B: RaggedWeights
    C: Cost[Any]
    xp: ArrayModule
    dtype: Any


def is_sparse(x: object) -> bool:
    """Say whether `x` is a sparse array or matrix, of SciPy or of CuPy; imports neither."""
    sparse = sys.modules.get("scipy.sparse")
    return (sparse is not None and bool(sparse.issparse(x))) or is_sparse_on_device(x)


def is_sparse_on_device(x: object) -> bool:
    """Say whether `x` is a sparse matrix of CuPy; imports nothing."""
    return type(x).__module__.startswith("cupyx.scipy.sparse")
