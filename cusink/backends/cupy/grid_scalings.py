"""Iterations between the cells of a grid on scalings, by the kernels of ``grid.cu``: from potentials to potentials.

From the second time on, what is done to the same problems is one CUDA graph.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.forms import captured
from cusink.backends.cupy.run import NULL, choose_launch, run, sizes
from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.ranges import SCALING_EXPONENT
from cusink.costs.cells import GridCosts
from cusink.costs.logits import logits
from cusink.types import Array

LOG2_E = 1 / np.log(2)


class Advanced(NamedTuple):
    """Potentials (B, n), bounds on the errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    error: Array
    inside: Array


class Finished(NamedTuple):
    """Potentials (B, n), costs (B,), errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    cost: Array
    error: Array
    inside: Array


class Side(NamedTuple):
    """One side of the problems: weights (B, n) and the scalings ``x * 2**exponent``, see ``grid.cu``."""

    weights: Array  # (B, n)
    x: Array  # (B, n)
    exponent: Array  # (B,), float64
    largest: Array  # (B,), float64: of x
    lost: Array  # (B,), int32: whether an x has underflowed

    @classmethod
    def of(cls, weights: Array, dtype: Any) -> Self:
        """Return a side whose scalings are 0, with no digit of a plain update in them."""
        B = len(weights)
        weights = cp.ascontiguousarray(weights, dtype=dtype)
        return cls(weights, cp.zeros_like(weights), cp.zeros(B), cp.zeros(B), cp.zeros(B, np.int32))

    @property
    def scale(self) -> tuple[Array, Array, Array]:
        """What a kernel that has sums over this side needs to know of it."""
        return self.exponent, self.largest, self.lost


@dataclass(frozen=True, eq=False)
class Workspace:
    """The arrays of some problems, whose addresses CUDA graphs hold."""

    rows: Side
    columns: Side
    f: Array  # (B, n), float64
    g: Array  # (B, n), float64
    excess: Array  # (B,), omega - 1
    sums: Array  # (B, n)
    scratch: Array  # (B, n)
    error: Array  # (B,), float64
    inside: Array  # (B,), int32
    graphs: dict[int, Any]  # by how many iterations they take; None where all kernels have been loaded

    @classmethod
    def of(cls, a: Array, b: Array, dtype: Any) -> Self:
        """Return arrays for problems with weights a and b (B, n)."""
        rows, columns = Side.of(a, dtype), Side.of(b, dtype)
        f, g = (cp.empty(a.shape, np.float64) for _ in "fg")
        sums, scratch = (cp.empty(a.shape, dtype) for _ in "sx")
        B = len(a)
        return cls(rows, columns, f, g, cp.zeros(B, dtype), sums, scratch, cp.zeros(B), cp.ones(B, np.int32), {})


class AxisScalings:
    """Iterations as products with one small matrix for each axis, certified as in docs/grid.md."""

    def __init__(self, C: GridCosts, dtype: Any, eps: float) -> None:
        self.C, self.dtype, self.eps = C.astype(dtype), np.dtype(dtype), eps
        self.kernel = GridKernel(dense.OPERATORS, C, dtype, eps)
        info, lost = np.finfo(self.dtype), self.kernel.underflow_bound(0)
        unit, limit = float(info.tiny) / float(info.eps), float(info.max) / lost.gain
        bound = (unit, lost.of_kernel, lost.of_products, lost.of_factor, limit)
        self.bound = tuple(map(np.float64, bound))
        self.s, self.top = np.int32(self.kernel.s), np.int32(SCALING_EXPONENT[self.dtype.name])
        self.span = np.int32(-int(info.minexp) - 6)

    def advance(self, work: Workspace, count: int) -> Advanced:
        """Take `count` iterations from the potentials in `work`, over-relaxed by the excess there."""
        if count not in work.graphs:
            self._iterate(work, count)
            work.graphs[count] = None
        else:
            if work.graphs[count] is None:
                work.graphs[count] = captured(lambda: self._iterate(work, count))
            work.graphs[count].launch()
        return Advanced(work.f, work.g, work.error, work.inside)

    def _iterate(self, work: Workspace, count: int) -> None:
        rows, columns = work.rows, work.columns
        self._start(rows, work.f, work, begins=True)
        self._start(columns, work.g, work, begins=False)
        for k in range(count):
            self._product(rows.x, work.sums, work.scratch)
            self._update(columns, rows, work, NULL)
            self._product(columns.x, work.sums, work.scratch)
            self._update(rows, columns, work, work.error if k + 1 == count else NULL)
        self._product(rows.x, work.sums, work.scratch)
        self._measure(columns, rows, work)
        self._potentials(rows, work.f, NULL, columns)
        self._potentials(columns, work.g, NULL, rows)

    def finish(self, a: Array, b: Array, g: Array) -> Finished:
        """Take one plain f-update from g (B, n)."""
        work = Workspace.of(a, b, self.dtype)
        rows, columns = work.rows, work.columns
        work.g[...] = g
        self._start(columns, work.g, work, begins=True)
        self._product(columns.x, work.sums, work.scratch)
        self._update(rows, columns, work, NULL)
        self._potentials(rows, work.f, work.sums, columns)
        self._product(rows.x, work.sums, work.scratch)
        self._measure(columns, rows, work)
        self._potentials(columns, work.g, work.sums, rows)
        with_cost = (self._cost_product(rows.x).astype(np.float64) * columns.x).sum(axis=1)
        cost = with_cost * (self.kernel.unit * cp.exp2(rows.exponent + columns.exponent - self.kernel.s))
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

    def _product(self, x: Array, out: Array, scratch: Array) -> None:
        """Write ``K x`` to `out`; neither may be `scratch`."""
        passes = len(self.kernel.axes)
        for k, K in enumerate(reversed(self.kernel.axes)):
            target = scratch if (passes - k) % 2 == 0 else out
            self._along(K, x, target)
            x = target

    def _cost_product(self, x: Array) -> Array:
        """Return the product with ``K * C / unit`` for K, see `cusink.backends.grid.reductions.log_cost_sums`."""
        with_cost: Array = None
        for K, KC in zip(reversed(self.kernel.axes), reversed(self.kernel.cost_factors), strict=True):
            here = self._along(KC, x, cp.empty_like(x))
            with_cost = here if with_cost is None else here + self._along(K, with_cost, cp.empty_like(x))
            x = self._along(K, x, cp.empty_like(x))
        return with_cost

    def _along(self, K: Array, x: Array, out: Array) -> Array:
        """Write the product with K along the last axis of x (B, n) to `out`, in which that axis is the first."""
        (B, n), cells = x.shape, len(K)
        lines = n // cells
        # A single axis stays where it is, and its problems are lines.
        shape = (B, lines, cells, n, lines, 1) if lines > 1 else (1, B, cells, 0, 1, n)
        launch = choose_launch("grid_product", shape[0], shape[1], shape[2], self.dtype)
        run(launch, self.dtype, out, K, x, *sizes(*shape))
        return out

    def _start(self, side: Side, potential: Array, work: Workspace, begins: bool) -> None:
        B, n = side.x.shape
        outputs = (side.x, *side.scale, work.inside)
        scalars = (np.float64(LOG2_E / self.eps), self.top, np.int32(begins))
        launch = choose_launch("start_grid", B, n, 1, self.dtype)
        run(launch, self.dtype, *outputs, side.weights, potential, *scalars, *sizes(B, n))

    def _update(self, side: Side, factor: Side, work: Workspace, error: Any) -> None:
        B, n = side.x.shape
        outputs = (side.x, *side.scale, work.inside, error)
        inputs = (work.sums, side.weights, *factor.scale, work.excess)
        launch = choose_launch("grid_update", B, n, 1, self.dtype)
        run(launch, self.dtype, *outputs, *inputs, *self.bound, self.s, self.top, self.span, *sizes(B, n))

    def _measure(self, side: Side, factor: Side, work: Workspace) -> None:
        B, n = side.x.shape
        inputs = (work.sums, side.x, side.weights, side.exponent, side.lost, *factor.scale)
        launch = choose_launch("grid_error", B, n, 1, self.dtype)
        run(launch, self.dtype, work.error, work.inside, *inputs, *self.bound, self.s, *sizes(B, n))

    def _potentials(self, side: Side, out: Array, sums: Any, factor: Side) -> None:
        B, n = side.x.shape
        inputs = (side.x, side.weights, side.exponent, sums, *factor.scale, np.float64(self.eps))
        launch = choose_launch("grid_potentials", B, n, 1, self.dtype)
        run(launch, self.dtype, out, *inputs, *self.bound, self.s, *sizes(B, n))
