"""Reductions for costs between points, in CuPy: CUDA kernels that recreate the costs as they need them.

Where the shared memory of a block cannot hold the coordinates of even a few points, blocks of the cost are made and
passed to the reductions for stored costs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import limits
from cusink.backends.cupy import reductions as dense
from cusink.backends.cupy.launch import Launch
from cusink.backends.cupy.point_parts import SplitPoints
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import LOG2_E, choose_launch, find_launch, run, sizes
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis, HostArray

NORMS = {"squared": 0, "cityblock": 1}  # as in point_reduction.cuh


@dataclass(frozen=True, eq=False)
class KernelArguments:
    """Costs between points as the CUDA kernels take them: the factor is in the points."""

    kept: Array  # (n, d) or (B, n, d), the points of the axis that is kept
    summed: Array  # (m, d) or (B, m, d), those of the axis that is summed over
    split: tuple[SplitPoints, SplitPoints] | None  # both, where products on tensor cores are faster
    norm: str
    exponent: float
    terms: int

    @classmethod
    def of(cls, C: "PointCosts | KernelArguments", axis: Axis = 1, products: bool = True) -> "KernelArguments":
        """Return the arguments for a sum over `axis`; those that are given are for axis 1.

        They are for products on tensor cores too, unless none will be asked for.
        """
        if isinstance(C, KernelArguments):
            split = C.split and C.split[::-1]
            return C if axis else cls(C.summed, C.kept, split, C.norm, C.exponent, C.terms)
        degree = C.exponent * (2 if C.norm == "squared" else 1)
        scale = C.dtype.type(C.factor ** (1 / degree))
        x, y = (C.x, C.y) if C.factor == 1 else (C.x * scale, C.y * scale)
        split, (n, d), m = None, x.shape[-2:], y.shape[-2]
        products = products and C.norm == "squared" and SplitPoints.has_room(x, y, C.memory_limit)
        if products and find_launch("apply_plan_products", 1, n, m, C.dtype, d=d):
            centred_x, centred_y = C.centred()
            one = SplitPoints.of(centred_x * scale)
            split = one, one if centred_y is centred_x else SplitPoints.of(centred_y * scale)
        return cls.of(cls(x, y, split, C.norm, C.exponent, C.terms), axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the cost that is not there: (n, m) or (B, n, m)."""
        return (*self.kept.shape[:-1], self.summed.shape[-2])

    @property
    def ndim(self) -> int:
        """2 if all problems share the points, else 3."""
        return int(self.kept.ndim)

    @property
    def dtype(self) -> Any:
        """The dtype of the points."""
        return self.kept.dtype

    def at(self, problems: Array) -> Self:
        """Return the costs of some problems, where each has its own; else the shared one."""
        if self.ndim == 2:
            return self
        kept, summed = self.kept[problems], self.summed[problems]
        split = self.split and (self.split[0].at(problems), self.split[1].at(problems))
        return type(self)(kept, summed, split, self.norm, self.exponent, self.terms)

    def find_launch(self, term: str, B: int, products: bool = True) -> Launch | None:
        """Return the launch of an operator, on tensor cores if that pays; None where the coordinates do not fit."""
        (n, m), d, launch = self.shape[-2:], self.kept.shape[-1], None
        if products and self.split:
            launch = find_launch(f"{term}_products", B, n, m, self.dtype, d=d)
        return launch or find_launch(f"{term}_points", B, n, m, self.dtype, d=d)

    def arrays(self, launch: Launch) -> tuple[Array, ...]:
        """Return the arrays of points that the kernel takes."""
        if self.split and launch.kernel.endswith("_products"):
            return *self.split[0], *self.split[1]
        return self.kept, self.summed

    def scalars(self, launch: Launch, B: int) -> tuple[Any, ...]:
        """Return the arguments that every kernel takes last."""
        d = self.kept.shape[-1]
        strides = (0 if self.ndim == 2 else size * d for size in self.shape[-2:])
        terms = (np.int32(self.terms),) if launch.kernel.endswith("_products") else ()
        return *terms, *self.metric(), *sizes(*strides, B, *self.shape[-2:])

    def block(self, problems: slice | HostArray, rows: slice | HostArray) -> Array:
        """Return the costs (rows, summed) of some kept points, or (problems, rows, summed)."""
        shared = self.ndim == 2
        kept, summed = (points if shared else points[problems] for points in (self.kept, self.summed))
        kept, summed = (cp.ascontiguousarray(points) for points in (kept[..., rows, :], summed))
        out = cp.empty((*kept.shape[:-1], summed.shape[-2]), self.dtype)
        costs, (n, m) = 1 if shared else len(kept), out.shape[-2:]
        launch = choose_launch("cost_points", costs, n, m, self.dtype)
        run(launch, self.dtype, out, kept, summed, *self.metric(), *sizes(costs, n, m))
        return out

    def blocks(self, B: int) -> Iterator[tuple[slice, slice, Array]]:
        """Yield slices of problems and kept points with their costs: blocks of limited size, or of one row."""
        (kept, summed), entries = self.shape[-2:], limits.LIMITS.block_entries
        row_step = max(1, min(kept, entries // summed))
        problem_step = B if self.ndim == 2 else max(1, entries // (row_step * summed))
        for row in range(0, kept, row_step):
            rows = slice(row, min(row + row_step, kept))
            for start in range(0, B, problem_step):
                problems = slice(start, min(start + problem_step, B))
                yield problems, rows, self.block(problems, rows)

    def metric(self) -> tuple[Any, ...]:
        """Return the arguments that say what is taken of the points."""
        return self.dtype.type(self.exponent), np.int32(NORMS[self.norm]), np.int32(self.kept.shape[-1])


Points = PointCosts | KernelArguments  # operators that are called many times are given the second


def softmin(C: Points, logits: Array, eps: float, axis: Axis) -> Array:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return log_sums(C, logits, Scales.softmin(eps), axis)


def repeated_softmin(C: PointCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`."""
    arguments = KernelArguments.of(C)
    return lambda logits, axis: softmin(arguments, logits, eps, axis)


def log_sums(C: Points, logits: Array, scales: Scales, axis: Axis, out: Array | None = None) -> Array:
    """Return scaled log-sum-exp in base 2, see `cusink.backends.cupy.reductions.Scales`."""
    arguments, logits = KernelArguments.of(C, axis), cp.ascontiguousarray(logits)
    B, dtype = len(logits), logits.dtype
    out = cp.empty((B, arguments.shape[-2]), dtype) if out is None else out
    launch = arguments.find_launch("softmin", B)
    if launch is None:
        for problems, rows, block in arguments.blocks(B):
            out[problems, rows] = dense.log_sums(block, logits[problems], scales, 1)
        return out
    factors = [dtype.type(scale) for scale in scales]
    run(launch, dtype, out, *arguments.arrays(launch), logits, *factors, *arguments.scalars(launch, B))
    return out


def apply_plan(C: Points, p: Array, q: Array, v: Array, eps: float, axis: Axis) -> Array:
    """Return ``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    arguments = KernelArguments.of(C, axis)
    p, q, v = map(cp.ascontiguousarray, (p, q, v))
    B, dtype, (kept, summed) = len(p), p.dtype, (p, q) if axis else (q, p)
    out = cp.empty_like(kept)
    launch = arguments.find_launch("apply_plan", B)
    if launch is None:
        for problems, rows, block in arguments.blocks(B):
            at = cp.ascontiguousarray(kept[problems, rows])
            out[problems, rows] = dense.apply_plan(block, at, summed[problems], v[problems], eps, 1)
        return out
    inputs = (*arguments.arrays(launch), kept, summed, v, dtype.type(LOG2_E / eps))
    run(launch, dtype, out, *inputs, *arguments.scalars(launch, B))
    return out


def transport_cost(C: Points, p: Array, q: Array, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    return row_costs(C, p, q, LOG2_E / eps).sum(axis=1)


def row_costs(C: Points, p: Array, q: Array, cost_scale: float) -> Array:
    """Return ``sum_j P_ij C_ij`` (B, n)."""
    arguments = KernelArguments.of(C, products=False)
    p, q = map(cp.ascontiguousarray, (p, q))
    B, dtype, out = len(p), p.dtype, cp.empty_like(p)
    launch = arguments.find_launch("transport_cost", B, products=False)
    if launch is None:
        for problems, rows, block in arguments.blocks(B):
            at = cp.ascontiguousarray(p[problems, rows])
            out[problems, rows] = dense.row_costs(block, at, q[problems], cost_scale)
        return out
    inputs = (*arguments.arrays(launch), p, q, dtype.type(cost_scale))
    run(launch, dtype, out, *inputs, *arguments.scalars(launch, B))
    return out


def c_transform(C: Points, potential: Array, axis: Axis) -> Array:
    """Return ``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    arguments, potential = KernelArguments.of(C, axis, products=False), cp.ascontiguousarray(potential)
    B, dtype = len(potential), potential.dtype
    out = cp.empty((B, arguments.shape[-2]), dtype)
    launch = arguments.find_launch("c_transform", B, products=False)
    if launch is None:
        for problems, rows, block in arguments.blocks(B):
            out[problems, rows] = dense.c_transform(block, potential[problems], 1)
        return out
    run(launch, dtype, out, *arguments.arrays(launch), potential, *arguments.scalars(launch, B))
    return out


def plan(C: Points, p: Array, q: Array, eps: float) -> Array:
    """Return the plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    return dense.plan(cost_block(C, slice(None), slice(None)), p, q, eps)


def bilinear(C: Points, x: Array, y: Array) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    out = cp.zeros(len(x), x.dtype)
    for problems, rows, block in KernelArguments.of(C, products=False).blocks(len(x)):
        out[problems] += dense.bilinear(block, cp.ascontiguousarray(x[problems, rows]), y[problems])
    return out


def cost_range(C: PointCosts) -> tuple[float, float]:
    """Return numbers between which all costs lie."""
    return 0.0, C.largest(cp)


def cost_block(C: Points, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m) as an array."""
    return KernelArguments.of(C, products=False).block(problems, rows)
