"""Solve pairs of measures of unequal sizes: batches of padded problems, of whose padding nothing is returned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from cusink.checks.arrays import to_host
from cusink.checks.scalars import positive_bytes
from cusink.costs.clouds import PointCloud
from cusink.errors import ConvergenceWarning, deferred_warnings, warn, warn_if_unconverged
from cusink.solver.pairs.batches import Batch, batches
from cusink.solver.pairs.checks import CheckedPairs
from cusink.solver.pairs.ragged import Side, flat, in_order, rows, weight_rows
from cusink.types import Array

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class SolvedPairs(Generic[R]):
    """Checked pairs, and the result of each batch of them."""

    given: CheckedPairs
    parts: tuple[tuple[Batch, R], ...]

    @classmethod
    def of(cls, given: CheckedPairs, call: Callable[..., R], memory_limit: int | None) -> "SolvedPairs[R]":
        """Solve all batches: `call` takes weights (P, n) and (P, m) and a cloud between points (P, n, d), (P, m, d)."""
        limit = None if memory_limit is None else positive_bytes(memory_limit)
        warned: list[tuple[str, type[Warning]]] = []
        parts = []
        for batch in batches((given.A.sizes, given.B.sizes), _itemsize(given.dtype), limit):
            sides = (given.A, batch.n), (given.B, batch.m)
            weights = [weight_rows(given.xp, side, batch.pairs, width) for side, width in sides]
            x, y = (rows(given.xp, side, side.points, batch.pairs, width) for side, width in sides)
            with deferred_warnings(warned):
                parts.append((batch, call(*weights, PointCloud(x, y, given.metric))))
        for message, category in dict.fromkeys(warned):
            if category is not ConvergenceWarning:  # which is given once, for all pairs
                warn(message, category)
        return cls(given, tuple(parts))

    def values(self, name: str) -> Array:
        """Return an attribute (P,) of the results for all pairs (K,)."""
        parts = ((batch.pairs, getattr(result, name)) for batch, result in self.parts)
        return in_order(self.given.xp, parts, self.given.count)

    def flat(self, name: str, side: Side) -> Array:
        """Return an attribute (P, n) of the results for all points (N,) of a side, item after item."""
        return flat(self.given.xp, side, ((batch.pairs, getattr(result, name)) for batch, result in self.parts))

    def place(self, k: int) -> tuple[int, R, int]:
        """Return the number of a pair, which may count from the end, the result it is in, and its row there."""
        count = self.given.count
        if not -count <= k < count:
            raise IndexError(f"the number of a pair must be from {-count} to {count - 1}; got {k}")
        k %= count
        result, row = next(
            (result, int(np.flatnonzero(batch.pairs == k)[0])) for batch, result in self.parts if k in batch.pairs
        )
        return k, result, row


def warn_of_pairs(converged: Array, error: Array, tol: float | None, max_iter: int) -> None:
    """Emit one `ConvergenceWarning` if some of the pairs (K,) missed `tol`."""
    warn_if_unconverged(to_host(converged), to_host(error), tol, max_iter)


def _itemsize(dtype: Any) -> int:
    """Return the bytes of a number in the dtype of the computation."""
    return 8 if dtype == np.float64 else 4
