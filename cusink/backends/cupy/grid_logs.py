"""Iterations between the cells of a grid on potentials, by the kernels of ``grid_logs.cu``: log-sum-exp by axis."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.grid_passes import Advanced, Finished, Pass, passes, replayed, run_cells, run_pass
from cusink.backends.cupy.launch import GRID_THREADS, TILE
from cusink.backends.cupy.run import LOG2_E, NULL
from cusink.backends.grid import reductions as grid
from cusink.backends.ranges import scaled_kernel
from cusink.convergence.marginals import LARGEST_STEP, marginal_error
from cusink.costs.cells import GridCosts
from cusink.costs.logits import logits
from cusink.types import Array, Axis, Reach

WIDE = np.dtype(np.float64)
PARTS = GRID_THREADS // 32  # of a mass in a tile: its warps


class Shift(NamedTuple):
    """The shift between both sides, and what the first pass of a half-step makes it of; see ``grid_damped_step``."""

    shift: Any  # (B,), float64; NULL where it is not made anew
    parts: tuple[Any, Any]  # (B, parts, 2) each: the masses of the marginals
    reach: Reach
    number: int  # of parts


UNMOVED = Shift(NULL, (NULL, NULL), (1.0, 1.0), 0)


@dataclass(frozen=True, eq=False)
class LogWorkspace:
    """The arrays of some problems, whose addresses CUDA graphs hold; all (B, n) or (B,), and float64."""

    a: Array
    b: Array
    f: Array
    g: Array
    p: Array  # logits of the rows
    q: Array
    plain: Array  # the f-update before it was over-relaxed
    after: Array  # the g-update after the last iteration
    excess: Array  # omega - 1
    error: Array
    inside: Array  # bool
    spare: tuple[Array, Array]  # what passes leave to the next
    graphs: dict[int, Any]  # by how many iterations they take; None where all kernels have been loaded

    @classmethod
    def of(cls, a: Array, b: Array) -> Self:
        """Return arrays for problems with weights a and b (B, n)."""
        a, b = (cp.ascontiguousarray(weights, dtype=WIDE) for weights in (a, b))
        f, g, p, q, plain, after, one, other = (cp.empty(a.shape, WIDE) for _ in range(8))
        excess, error, inside = cp.zeros(len(a)), cp.zeros(len(a)), cp.ones(len(a), bool)
        return cls(a, b, f, g, p, q, plain, after, excess, error, inside, (one, other), {})


class LineSoftmin:
    """The softmin of one cost and eps, for many calls: a launch for each axis, see ``grid_logs.cu``."""

    def __init__(self, C: GridCosts, eps: float) -> None:
        self.dtype = np.dtype(C.dtype)
        self.costs = [cost for cost in C.axes if len(cost) > 1] or list(C.axes[:1])
        self.kernels = [cp.asarray(scaled_kernel(dense.to_host(cost), self.dtype, eps, 0.0, 0)) for cost in self.costs]
        self.cells = tuple(map(len, self.costs))
        info, number = np.finfo(self.dtype), self.dtype.type
        unit = float(info.tiny) / float(info.eps)
        self.floors = [number(unit * (3 * cells + 1)) for cells in self.cells]
        self.rate, self.value_scale = number(LOG2_E / eps), number(-eps / LOG2_E)

    def __call__(self, logits: Array, axis: Axis) -> Array:  # noqa: ARG002 - the cost is symmetric
        """Return ``-eps log sum_j exp(logits_j - C_ij / eps)`` (B, n)."""
        x = cp.ascontiguousarray(logits, dtype=self.dtype)
        out, one, other = (cp.empty(x.shape, self.dtype) for _ in range(3))
        self.into(out, x, (one, other))
        return out

    def into(self, out: Array, logits: Array, spare: tuple[Array, Array]) -> None:
        """Write the same to `out`, with two more arrays (B, n) for what passes leave to the next."""
        x, scale, last = self._before_last(logits, spare)
        self._product(last, out, x, 0, scale, self.value_scale)

    def step(
        self, out: tuple[Array, Array, Any], logits: Array, side: tuple[Array, Array], eps: float, spare: Any
    ) -> None:
        """Move a potential to the softmin, or past it, and write its logits and the softmin (NULL: do not).

        `out` are those three, and `side` the weights (B, n) and the excess (B,).
        """
        x, scale, last = self._before_last(logits, spare)
        self._run("grid_log_step", last, out, (x, 0, side), scale, (self.value_scale, self.dtype.type(eps)))

    def damped_step(
        self,
        out: tuple[Array, Array, Any, Any],
        logits: Array,
        side: tuple[Array, ...],
        prices: tuple[float, ...],
        spare: tuple[Array, Array],
        shift: Shift,
    ) -> None:
        """Take a half-step with `reach`, see ``grid_damped_step``; before its last pass `shift` is made anew, if told.

        `out` are potential, logits, the softmin and the masses (NULL: do not); `side` the weights, their logarithms,
        the shift and the excess; `prices` sign, eps, rho and the unit of a step down.
        """
        x, scale, last = self._before_last(logits, spare, shift)
        scalars = (self.value_scale, *map(np.float64, prices), np.int64(shift.number))
        self._run("grid_damped_step", last, out, (x, 0, side), scale, scalars)

    def parts(self, B: int) -> int:
        """Return in how many parts ``grid_damped_step`` leaves a mass: 0 on a line, where no pass comes before it."""
        last = passes(self.cells, B)[-1]
        return PARTS * -(-last.cells // TILE) * -(-last.lines // TILE) if len(self.cells) > 1 else 0

    def _before_last(self, x: Array, spare: tuple[Array, Array], shift: Shift = UNMOVED) -> tuple[Array, float, Pass]:
        """Take all passes but the last over natural logits x: what is left, its unit in powers of 2, the last pass."""
        *before, last = passes(self.cells, len(x))
        scale = LOG2_E
        for k, (out, shape) in enumerate(zip(spare, before, strict=False)):
            axis = len(self.costs) - 1 - k
            self._product(shape, out, x, axis, scale, self.dtype.type(1), UNMOVED if k else shift)
            x, scale = out, 1.0
        return x, scale, last

    def _product(
        self, shape: Pass, out: Array, x: Array, axis: int, scale: float, value: Any, shift: Shift = UNMOVED
    ) -> None:
        made = (shift.shift, *shift.parts, *map(np.float64, shift.reach), np.int64(shift.number))
        self._run("grid_log_product", shape, (out,), (x, axis, ()), scale, (value, *made))

    def _run(
        self,
        operator: str,
        shape: Pass,
        outputs: tuple[Any, ...],
        inputs: tuple[Array, int, tuple[Array, ...]],
        scale: float,
        scalars: tuple[Any, ...],
    ) -> None:
        x, axis, side = inputs
        arrays = (*outputs, self.kernels[axis], self.costs[axis], x, *side)
        run_pass(operator, shape, self.dtype, *arrays, self.dtype.type(scale), self.rate, self.floors[axis], *scalars)


class AxisLogs:
    """Iterations as log-sum-exp along each axis, in float64; no problem leaves its range."""

    def __init__(self, C: GridCosts, eps: float) -> None:
        self.C, self.eps = C.astype(WIDE), eps
        self.softmin = LineSoftmin(self.C, eps)

    def workspace(self, a: Array, b: Array) -> LogWorkspace:
        """Return arrays for problems with weights a and b (B, n)."""
        return LogWorkspace.of(a, b)

    def advance(self, work: LogWorkspace, count: int) -> Advanced:
        """Take `count` iterations from the potentials in `work`, over-relaxed by the excess there."""
        replayed(work.graphs, count, lambda: self._iterate(work, count))
        return Advanced(work.f, work.g, work.error, work.inside)

    def _iterate(self, work: LogWorkspace, count: int) -> None:
        step, eps, spare = self.softmin.step, self.eps, work.spare
        run_cells("grid_logits", work.f, WIDE, work.p, work.a, work.f, np.float64(eps))
        for k in range(count):
            step((work.g, work.q, NULL), work.p, (work.b, work.excess), eps, spare)
            plain = work.plain if k + 1 == count else NULL
            step((work.f, work.p, plain), work.q, (work.a, work.excess), eps, spare)
        self.softmin.into(work.after, work.p, spare)
        self._measure(work.error, work.b, work.g, work.after, adds=False)
        self._measure(work.error, work.a, work.f, work.plain, adds=True)

    def finish(self, a: Array, b: Array, g: Array) -> Finished:
        """Take one plain f-update from g (B, n)."""
        eps = self.eps
        q = logits(cp, b, g, eps, WIDE)
        f = self.softmin(q, 1)
        p = logits(cp, a, f, eps, WIDE)
        after = self.softmin(p, 0)
        cost = grid.transport_cost(dense.OPERATORS, self.C, p, q, eps)
        error = marginal_error(cp, b, g, after, eps)
        return Finished(f, cp.where(b > 0, g, after), cost, error, cp.ones(len(a), bool))

    def _measure(self, error: Array, weights: Array, before: Array, after: Array, adds: bool) -> None:
        scalars = (np.float64(self.eps), np.float64(LARGEST_STEP["float64"]), np.int32(adds))
        run_cells("grid_log_error", weights, WIDE, error, weights, before, after, *scalars)
