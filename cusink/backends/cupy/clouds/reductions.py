"""Reductions for costs between points, in CuPy: kernels that recreate the costs as they need them.

Where a device's shared memory cannot hold the coordinates of even a few points, blocks of the cost are made and
handed to the kernels for stored costs.
"""

import dataclasses
from typing import Any

import cupy as cp
import numpy as np

from cusink.backends.cupy import reductions as dense
from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.run import LOG2_E, device, run
from cusink.costs.points import PointCosts

NORMS = {"squared": 0, "cityblock": 1}  # as in point_reduction.cuh
BLOCK = 1 << 24  # entries of a block of costs


@dataclasses.dataclass(frozen=True, eq=False)
class Folded(PointCosts):
    """Costs with the factor in the points, as the kernels take them, and the squared lengths of the points."""

    norms: Any = None

    def at(self, problems):
        """The costs of some problems, where each has its own; else the shared one."""
        if self.ndim == 2:
            return self
        norms = tuple(norm[problems] for norm in self.norms)
        return dataclasses.replace(self, x=self.x[problems], y=self.y[problems], norms=norms)


def folded(C):
    """The same costs as `Folded`."""
    if isinstance(C, Folded):
        return C
    degree = C.exponent * (2 if C.norm == "squared" else 1)
    scale = C.dtype.type(C.factor ** (1 / degree))
    x, y = (C.x, C.y) if C.factor == 1 else (C.x * scale, C.y * scale)
    norms = tuple((points * points).sum(axis=-1) for points in (x, y))
    return Folded(x, y, C.norm, C.exponent, 1.0, C.memory_limit, C.cloud, C.terms, norms)


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows)."""
    return log_sums(C, logits, LOG2_E / eps, LOG2_E, -eps / LOG2_E, axis)


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`."""
    C = folded(C)
    return lambda logits, axis: softmin(C, logits, eps, axis)


def log_sums(C, logits, cost_scale, logit_scale, value_scale, axis, index=None, out=None):
    """``value_scale * log2(sum_j exp2(logit_scale * logits_j - cost_scale * C_ij))``; `index` must be None."""
    sides = Sides(C, axis)
    logits = cp.ascontiguousarray(logits)
    out = cp.empty((len(logits), sides.sizes[0]), logits.dtype) if out is None else out
    launch, points = sides.configure("softmin", len(logits))
    if launch is None:
        scales = (cost_scale, logit_scale, value_scale)
        for problems, rows, block in sides.blocks(len(logits)):
            out[problems, rows] = dense.log_sums(block, logits[problems], *scales, 1)
        return out
    scales = [logits.dtype.type(scale) for scale in (cost_scale, logit_scale, value_scale)]
    run(launch, logits.dtype, out, *points, logits, *scales, *sides.scalars(launch, len(logits)))
    return out


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    sides = Sides(C, axis)
    p, q, v = map(cp.ascontiguousarray, (p, q, v))
    kept, summed = (p, q) if axis else (q, p)
    out = cp.empty_like(kept)
    launch, points = sides.configure("apply_plan", len(p))
    if launch is None:
        for problems, rows, block in sides.blocks(len(p)):
            at = cp.ascontiguousarray(kept[problems, rows])
            out[problems, rows] = dense.apply_plan(block, at, summed[problems], v[problems], eps, 1)
        return out
    scalars = (p.dtype.type(LOG2_E / eps), *sides.scalars(launch, len(p)))
    run(launch, p.dtype, out, *points, kept, summed, v, *scalars)
    return out


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    return costs_of_rows(C, p, q, LOG2_E / eps).sum(axis=1)


def costs_of_rows(C, p, q, cost_scale, index=None):
    """``sum_j P_ij C_ij`` (B, n); `index` must be None."""
    sides = Sides(C, 1)
    p, q = map(cp.ascontiguousarray, (p, q))
    out = cp.empty_like(p)
    launch, points = sides.configure("transport_cost", len(p), False)
    if launch is None:
        for problems, rows, block in sides.blocks(len(p)):
            at = cp.ascontiguousarray(p[problems, rows])
            out[problems, rows] = dense.costs_of_rows(block, at, q[problems], cost_scale)
        return out
    run(launch, p.dtype, out, *points, p, q, p.dtype.type(cost_scale), *sides.scalars(launch, len(p)))
    return out


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""
    sides = Sides(C, axis)
    potential = cp.ascontiguousarray(potential)
    out = cp.empty((len(potential), sides.sizes[0]), potential.dtype)
    launch, points = sides.configure("c_transform", len(potential), False)
    if launch is None:
        for problems, rows, block in sides.blocks(len(potential)):
            out[problems, rows] = dense.c_transform(block, potential[problems], 1)
        return out
    run(launch, potential.dtype, out, *points, potential, *sides.scalars(launch, len(potential)))
    return out


def plan(C, p, q, eps):
    """Plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    return dense.plan(cost_block(C, slice(None), slice(None)), p, q, eps)


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, m)."""
    out = cp.zeros(C.shape[-2:], p.dtype)
    for problems, rows, block in Sides(C, 1).blocks(len(p)):
        part = cp.ascontiguousarray(p[problems, rows])
        out[rows] += dense.plan_sum(block, part, q[problems], weights[problems], eps)
    return out


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    out = cp.zeros(len(x), x.dtype)
    for problems, rows, block in Sides(C, 1).blocks(len(x)):
        out[problems] += dense.bilinear(block, cp.ascontiguousarray(x[problems, rows]), y[problems])
    return out


def cost_range(C):
    """Bounds of the costs, as numbers."""
    return 0.0, C.largest(cp)


def cost_block(C, problems, rows):
    """Costs (rows, m) or (problems, rows, m) as an array."""
    return Sides(C, 1).block(problems, rows)


class Sides:
    """A cost as the kernels take it: the points kept and those summed over, and the scalars that say the metric."""

    def __init__(self, C, axis):
        C = folded(C)
        self.points, self.norms = ((C.x, C.y), C.norms) if axis else ((C.y, C.x), C.norms[::-1])
        self.shared, self.d, self.dtype, self.terms = C.ndim == 2, C.x.shape[-1], C.dtype, np.int32(C.terms)
        self.sizes = tuple(points.shape[-2] for points in self.points)
        self.metric = (self.dtype.type(C.exponent), np.int32(NORMS[C.norm]), np.int32(self.d))

    def configure(self, operator, B, products=True):
        """The launch of an operator, None where the coordinates do not fit, and the arrays of points that it takes."""
        sizes = (B, *self.sizes, self.dtype.name, device())
        if products and self.metric[1] == NORMS["squared"]:
            launch = configure(f"{operator}_products", *sizes, d=self.d)
            if launch is not None:
                return launch, (*self.points, *self.norms)
        return configure(f"{operator}_points", *sizes, d=self.d), self.points

    def scalars(self, launch, B):
        """What every kernel takes last."""
        strides = (0 if self.shared else points.shape[-2] * self.d for points in self.points)
        terms = (self.terms,) if launch.kernel.endswith("_products") else ()
        return *terms, *self.metric, *map(np.int64, (*strides, B, *self.sizes))

    def block(self, problems, rows):
        """Costs (rows, summed) of some kept points, or (problems, rows, summed)."""
        x, y = self.points if self.shared else (points[problems] for points in self.points)
        x, y = (cp.ascontiguousarray(points) for points in (x[..., rows, :], y))
        out = cp.empty((*x.shape[:-1], y.shape[-2]), self.dtype)
        costs = 1 if self.shared else len(x)
        sizes = (costs, x.shape[-2], y.shape[-2])
        launch = configure("cost_points", *sizes, self.dtype.name, device())
        run(launch, self.dtype, out, x, y, *self.metric, *map(np.int64, sizes))
        return out

    def blocks(self, B):
        """Slices of problems and kept points, and their block of costs: of bounded size, or of one row."""
        kept, summed = self.sizes
        row_step = max(1, min(kept, BLOCK // summed))
        problem_step = B if self.shared else max(1, BLOCK // (row_step * summed))
        for row in range(0, kept, row_step):
            rows = slice(row, min(row + row_step, kept))
            for start in range(0, B, problem_step):
                problems = slice(start, min(start + problem_step, B))
                yield problems, rows, self.block(problems, rows)
