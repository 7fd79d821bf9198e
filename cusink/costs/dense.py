"""Stored costs: arrays."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from cusink.costs.cost import Cost, Index
from cusink.types import Array


@dataclass(frozen=True, eq=False)
class DenseCost(Cost[Array]):
    """An array (n, m) or (B, n, m) of costs; +inf forbids a pair."""

    stored: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def symmetric(self) -> bool:
        """Whether the array equals its transpose."""
        C = self.data
        return bool(C.shape[0] == C.shape[1]) and bool((C == C.T).all())

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own."""
        return self if self.shared else replace(self, data=self.data[problems])

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some bins; without a copy, where these are all."""
        C = self.data[:, columns] if len(columns) < self.shape[1] else self.data
        return replace(self, data=self.xp.ascontiguousarray(C[rows] if len(rows) < len(C) else C))

    def own(self, side: int) -> Self:
        """Return the cost itself, which is between bins that both sides share."""
        del side
        return self

    def row_bytes(self, copies: int) -> int:
        """Return the size of that many copies."""
        return copies * int(self.data.size) * self.dtype.itemsize
