"""Log-sum-exp between large clouds on a device, which leaves out what provably does not count: ``near_tiles.cuh``."""

from dataclasses import dataclass
from typing import Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import limits
from cusink.backends.cupy.clouds import near_launch
from cusink.backends.cupy.clouds.curve import along_curve
from cusink.backends.cupy.clouds.reductions import KernelArguments
from cusink.backends.cupy.launch import TILE, Launch
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import device, run, sizes
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis


@dataclass(frozen=True, eq=False)
class Side:
    """Points of one side in an order that puts neighbours together, and what is known of each tile of them."""

    order: Array  # (size,), the places of the points in the order of the caller
    place: Array  # (size,), the places of the caller's points in this order
    boxes: Array  # (2, d, tiles)
    bounds: Array  # (B, 1 + d, tiles), made anew for each sum

    @classmethod
    def of(cls, points: Array, order: Array, B: int) -> Self:
        """Return the side of points (size, d) that are in this order."""
        (size, d), dtype = points.shape, points.dtype
        tiles = -(-size // TILE)
        boxes = cp.empty((2, d, tiles), dtype)
        run(_launch("tile_boxes", 1, points, points), dtype, boxes, points, np.int32(d), *sizes(size))
        return cls(order, cp.argsort(order), boxes, cp.empty((B, 1 + d, tiles), dtype))


@dataclass(frozen=True, eq=False)
class NearPoints:
    """Two clouds that all problems share, in orders that put neighbours together."""

    costs: KernelArguments  # of points in these orders
    sides: tuple[Side, Side]

    @staticmethod
    def pays(C: PointCosts) -> bool:
        """Return whether pairs that do not count are so many that it is worth looking for them."""
        n, m = C.shape[-2:]
        return C.ndim == 2 and C.x.shape[-1] <= near_launch.MOST_NEAR and n * m >= limits.LIMITS.near_pairs

    @classmethod
    def of(cls, C: PointCosts, B: int) -> Self:
        """Return what is made once for `B` problems."""
        given = KernelArguments.of(C, products=False)
        order = along_curve(given.kept)
        orders = order, order if C.y is C.x else along_curve(given.summed)
        x, y = (cp.ascontiguousarray(p[o]) for p, o in zip((given.kept, given.summed), orders, strict=True))
        costs = KernelArguments(x, y, None, given.norm, given.exponent, given.terms)
        return cls(costs, (Side.of(x, orders[0], B), Side.of(y, orders[1], B)))

    def sort(self, of_x: Array, of_y: Array) -> tuple[Array, Array]:
        """Return arrays (B, n) and (B, m) in the orders of the points."""
        return of_x[:, self.sides[0].order], of_y[:, self.sides[1].order]

    def unsort(self, of_x: Array, of_y: Array) -> tuple[Array, Array]:
        """Return arrays (B, n) and (B, m) in the orders of the caller."""
        return of_x[:, self.sides[0].place], of_y[:, self.sides[1].place]

    def log_sums(self, logits: Array, scales: Scales, axis: Axis, out: Array | None = None) -> Array:
        """Return `cusink.backends.cupy.clouds.reductions.log_sums` of points and logits in these orders.

        A sum lacks less than a rounding of it.
        """
        arguments, side = KernelArguments.of(self.costs, axis), self.sides[axis]
        logits = cp.ascontiguousarray(logits)
        B, dtype, (kept, summed) = len(logits), logits.dtype, arguments.shape
        out = cp.empty((B, kept), dtype) if out is None else out
        cost_scale, logit_scale, value_scale = (dtype.type(scale) for scale in scales)
        metric, points = arguments.metric(), arguments.summed
        launch = _launch("tile_bounds", B, arguments.kept, points)
        run(launch, dtype, side.bounds, points, side.boxes, logits, logit_scale, *metric, *sizes(B, summed))
        launch = _launch("softmin_near", B, arguments.kept, points)
        inputs = (arguments.kept, points, logits, side.bounds, side.boxes)
        run(launch, dtype, out, *inputs, cost_scale, logit_scale, value_scale, *metric, *sizes(B, kept, summed))
        return out


def _launch(operator: str, B: int, kept: Array, summed: Array) -> Launch:
    """Return a launch on the current device, for points (kept, d) and (summed, d)."""
    d, dtype = summed.shape[1], summed.dtype.name
    return near_launch.configure(operator, B, len(kept), len(summed), dtype, device(), d)
