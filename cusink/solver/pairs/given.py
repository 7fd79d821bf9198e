"""Two collections of measures that are compared pair by pair, once they are checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.checks.arrays import array_module, to_host
from cusink.costs.clouds import PointCloud
from cusink.costs.ground import Ground
from cusink.costs.measures import sums
from cusink.deferred import cached_property
from cusink.solver.pairs.ragged import Side
from cusink.types import Array, ArrayModule, HostArray


@dataclass(frozen=True, eq=False)
class CheckedPairs:
    """Both sides, of as many items, and the metric between their points."""

    A: Side
    B: Side
    ground: Ground
    dtype: Any

    @property
    def xp(self) -> ArrayModule:
        """The library of the arrays; no field, as no pickle holds a module."""
        xp: ArrayModule = array_module(self.A.weights)
        return xp

    def cloud(self, x: Array, y: Array | None) -> PointCloud:
        """Return the cost between points, of one cloud to itself for a y that is None."""
        return PointCloud(x, y, **self.ground.keywords)

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self.A.sizes)

    @cached_property
    def masses(self) -> tuple[HostArray, HostArray]:
        """The masses (K,) of the measures of both sides, in float64."""
        with np.errstate(over="ignore"):
            of_a, of_b = (sums(side.offsets, to_host(side.weights)) for side in (self.A, self.B))
        return of_a, of_b

    def clouds(self) -> Iterator[PointCloud]:
        """Yield the costs of each pair."""
        for k in range(self.count):
            x, y = (side.points[side.item(k)] for side in (self.A, self.B))
            yield self.cloud(x, y)

    @property
    def computing(self) -> str:
        """The name of the dtype of the computation."""
        return "float64" if self.dtype == np.float64 else "float32"
