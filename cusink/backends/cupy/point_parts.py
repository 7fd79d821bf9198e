"""Points as products on tensor cores take them, made once for all launches that read them: ``point_products.cuh``."""

import math
from typing import NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy.launch import PARTS, padded
from cusink.backends.cupy.run import choose_launch, run, sizes
from cusink.types import Array

MOST_PARTS = 16 << 20  # bytes of the parts of points that are always allowed,
LIKE_POINTS = 2.5  # and times the bytes of the points


class SplitPoints(NamedTuple):
    """Points of one side about the origin, as products on tensor cores take them: see ``point_products.cuh``."""

    points: Array  # (size, d) or (B, size, d)
    lengths: Array  # squared, (size,) or (B, size)
    halves: Array  # (padded, blocks, 64) or (B, padded, blocks, 64)
    scales: Array  # (blocks, padded) or (B, blocks, padded)

    @staticmethod
    def has_room(x: Array, y: Array, memory_limit: int) -> bool:
        """Return whether the parts of points (size, d) or (B, size, d) may be made.

        Each problem has whole tiles of its own, which for many small clouds are many times the points.
        """
        shapes = x.shape, y.shape
        parts = sum(math.prod(own) * padded(size) * -(-d // PARTS) * (4 * PARTS + 4) for *own, size, d in shapes)
        return bool(parts <= max(memory_limit, MOST_PARTS, LIKE_POINTS * (x.nbytes + y.nbytes)))

    @classmethod
    def of(cls, points: Array) -> Self:
        """Return what is made once of points about the origin."""
        points = cp.ascontiguousarray(points)
        *own, size, d = points.shape
        B, blocks, rows = own[0] if own else 1, -(-d // PARTS), padded(size)
        halves = cp.empty((*own, rows, blocks, 2 * PARTS), np.float16)
        scales = cp.empty((*own, blocks, rows), np.float32)
        launch = choose_launch("split_points", B, size, d, points.dtype)
        run(launch, points.dtype, halves, scales, points, *sizes(B, size, rows), np.int32(d))
        return cls(points, (points * points).sum(axis=-1), halves, scales)

    def at(self, problems: Array) -> Self:
        """Return those of some problems."""
        return type(self)(*(array[problems] for array in self))
