"""Iterations between the cells of a grid on scalings, by the kernels of ``grid.cu``: from potentials to potentials.

From the second time on, what is done to the same problems is one CUDA graph.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.grid_passes import Advanced, Finished, Pass, passes, replayed, run_cells, run_pass
from cusink.backends.cupy.run import LOG2_E, NULL
from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.ranges import SCALING_EXPONENT
from cusink.costs.cells import GridCosts
from cusink.costs.logits import logits
from cusink.types import Array


class Slot(NamedTuple):
    """What is known of the scalings of a side, see ``grid.cu``."""

    exponent: Array  # (B,), float64
    high: Array  # (B,)
    low: Array  # (B,)


class Side(NamedTuple):
    """One side of the problems: weights (B, n), and the scalings ``x * 2**exponent`` with two slots in turn."""

    weights: Array  # (B, n)
    x: Array  # (B, n)
    slots: tuple[Slot, Slot]

    @classmethod
    def of(cls, weights: Array, dtype: Any) -> Self:
        """Return a side whose scalings are 0, with no digit of a plain update in them."""
        B, weights = len(weights), cp.ascontiguousarray(weights, dtype=dtype)
        slots = [Slot(cp.zeros(B), cp.zeros(B, dtype), cp.full(B, np.inf, dtype)) for _ in range(2)]
        return cls(weights, cp.zeros_like(weights), (slots[0], slots[1]))


@dataclass(frozen=True, eq=False)
class Workspace:
    """The arrays of some problems, whose addresses CUDA graphs hold."""

    rows: Side
    columns: Side
    f: Array  # (B, n), float64
    g: Array  # (B, n), float64
    excess: Array  # (B,), omega - 1
    spare: tuple[Array, Array]  # (B, n) each: what passes leave to the next
    row_sums: Array  # (B, n), over the columns
    error: Array  # (B,), float64
    scale: Array  # (B,), float64
    inside: Array  # (B,), int32
    graphs: dict[int, Any]  # by how many iterations they take; None where all kernels have been loaded

    @classmethod
    def of(cls, a: Array, b: Array, dtype: Any) -> Self:
        """Return arrays for problems with weights a and b (B, n)."""
        B, (rows, columns) = len(a), (Side.of(weights, dtype) for weights in (a, b))
        f, g = (cp.empty(a.shape, np.float64) for _ in "fg")
        one, other, sums = (cp.empty(a.shape, dtype) for _ in "xys")
        excess, error, scale, inside = cp.zeros(B, dtype), cp.zeros(B), cp.zeros(B), cp.ones(B, np.int32)
        return cls(rows, columns, f, g, excess, (one, other), sums, error, scale, inside, {})


class AxisScalings:
    """Iterations as products with one small matrix for each axis, certified as in docs/grid.md."""

    def __init__(self, C: GridCosts, dtype: Any, eps: float) -> None:
        self.C, self.dtype, self.eps = C.astype(dtype), np.dtype(dtype), eps
        self.kernel = GridKernel(dense.OPERATORS, C, dtype, eps)
        self.cells = tuple(map(len, self.kernel.costs_of_axes))
        info, lost = np.finfo(self.dtype), self.kernel.underflow_bound(0)
        unit, limit = float(info.tiny) / float(info.eps), float(info.max) / lost.gain
        bound = (unit, lost.of_kernel, lost.of_products, lost.of_factor, limit)
        self.top = np.int32(SCALING_EXPONENT[self.dtype.name])
        self.size = self.top, np.int32(-int(info.minexp) - 6)
        self.bound = *map(np.float64, bound), np.int32(self.kernel.s), *self.size

    def workspace(self, a: Array, b: Array) -> Workspace:
        """Return arrays for problems with weights a and b (B, n)."""
        return Workspace.of(a, b, self.dtype)

    def advance(self, work: Workspace, count: int) -> Advanced:
        """Take `count` iterations from the potentials in `work`, over-relaxed by the excess there."""
        replayed(work.graphs, count, lambda: self._iterate(work, count))
        return Advanced(work.f, work.g, work.error, work.inside)

    def _iterate(self, work: Workspace, count: int) -> None:
        rows, columns = work.rows, work.columns
        self._start(rows, work.f, work, begins=True)
        self._start(columns, work.g, work, begins=False)
        for k in range(count):
            before, now = k % 2, (k + 1) % 2  # slots
            self._half_step(columns, now, rows, before, work, NULL)
            self._half_step(rows, now, columns, now, work, work.row_sums if k + 1 == count else NULL)
        last = count % 2
        at_rows, at_columns = rows.slots[last], columns.slots[last]
        self._measure(rows, at_rows, at_columns, work.row_sums, work.excess, work)
        sums = self._product(rows.x, at_rows, work.spare)
        self._measure(columns, at_columns, at_rows, sums, NULL, work)
        self._potentials(rows, at_rows, work.f, NULL, at_columns)
        self._potentials(columns, at_columns, work.g, NULL, at_rows)

    def finish(self, a: Array, b: Array, g: Array) -> Finished:
        """Take one plain f-update from g (B, n)."""
        work = Workspace.of(a, b, self.dtype)
        rows, columns = work.rows, work.columns
        work.g[...] = g
        self._start(columns, work.g, work, begins=True)
        self._half_step(rows, 1, columns, 0, work, work.row_sums)
        at_rows, at_columns = rows.slots[1], columns.slots[0]
        self._potentials(rows, at_rows, work.f, work.row_sums, at_columns)
        sums = self._product(rows.x, at_rows, work.spare)
        self._measure(columns, at_columns, at_rows, sums, NULL, work)
        self._potentials(columns, at_columns, work.g, sums, at_rows)
        with_cost = (self._cost_product(rows.x, at_rows).astype(np.float64) * columns.x).sum(axis=1)
        cost = with_cost * (self.kernel.unit * work.scale)
        f = self._repaired(work.f, b, g)
        after = self._repaired(work.g, a, f)
        return Finished(f, cp.where(b > 0, g, after), cost, work.error, work.inside)

    def _repaired(self, potential: Array, weights: Array, other: Array) -> Array:
        """Return `potential` (B, n), by log-sum-exp where it is NaN: there a sum was not certified."""
        wrong = cp.isnan(potential)
        if not wrong.any():
            return potential
        summed = logits(cp, weights, other, self.eps, self.dtype)
        return cp.where(wrong, grid.softmin(dense.OPERATORS, self.C, summed, self.eps), potential)

    def _half_step(self, side: Side, now: int, factor: Side, at: int, work: Workspace, kept_sums: Any) -> None:
        """Update a side, whose next slot is number `now`, by the sums over a factor in its slot `at`."""
        slot, other, spare = side.slots[now], factor.slots[at], factor.slots[1 - at]
        *before, last = passes(self.cells, len(side.x))
        x, high = factor.x, other.high
        for target, K, shape in zip(work.spare, reversed(self.kernel.axes[1:]), before, strict=False):
            x, high = self._along(K, x, high, target, shape), NULL
        outputs = (side.x, *slot, work.inside, spare.high, spare.low, kept_sums)
        inputs = (self.kernel.axes[0], x, high, side.weights, side.slots[1 - now].exponent, *other, work.excess)
        run_pass("grid_half_step", last, self.dtype, *outputs, *inputs, *self.bound)

    def _product(self, x: Array, slot: Slot, spare: tuple[Array, Array]) -> Array:
        """Return ``K x`` in one of the spare arrays, x brought to size."""
        high, shapes = slot.high, passes(self.cells, len(x))
        for k, (K, shape) in enumerate(zip(reversed(self.kernel.axes), shapes, strict=True)):
            x, high = self._along(K, x, high, spare[k % 2], shape), NULL
        return x

    def _cost_product(self, x: Array, slot: Slot) -> Array:
        """Return the product with ``K * C / unit`` for K, see `cusink.backends.grid.reductions.log_cost_sums`."""
        with_cost, high = None, slot.high
        axes = zip(self.kernel.axes, self.kernel.cost_factors, strict=True)
        for (K, KC), shape in zip(reversed(list(axes)), passes(self.cells, len(x)), strict=True):
            here = self._along(KC, x, high, cp.empty_like(x), shape)
            if with_cost is not None:
                here += self._along(K, with_cost, NULL, cp.empty_like(x), shape)
            x, high, with_cost = self._along(K, x, high, cp.empty_like(x), shape), NULL, here
        return with_cost

    def _along(self, K: Array, x: Array, high: Any, out: Array, shape: Pass) -> Array:
        """Write the product along one axis of x, brought to size where it has a `high` (B,), to `out`."""
        run_pass("grid_product", shape, self.dtype, out, K, x, high, *self.size)
        return out

    def _start(self, side: Side, potential: Array, work: Workspace, begins: bool) -> None:
        slot, spare = side.slots
        outputs = (side.x, *slot, spare.high, spare.low, work.inside)
        scalars = (np.float64(LOG2_E / self.eps), self.top, np.int32(begins))
        run_cells("start_grid", side.x, self.dtype, *outputs, side.weights, potential, *scalars)

    def _measure(self, side: Side, slot: Slot, factor: Slot, sums: Array, excess: Any, work: Workspace) -> None:
        """Set the error to that of an over-relaxed side; or, with no excess, add that of a side."""
        outputs = (work.error, work.inside, work.scale if excess is NULL else NULL)
        inputs = (sums, side.x, side.weights, *slot, *factor, excess)
        run_cells("grid_error", side.x, self.dtype, *outputs, *inputs, *self.bound)

    def _potentials(self, side: Side, slot: Slot, out: Array, sums: Any, factor: Slot) -> None:
        inputs = (side.x, side.weights, slot.exponent, sums, *factor, np.float64(self.eps))
        run_cells("grid_potentials", side.x, self.dtype, out, *inputs, *self.bound)
