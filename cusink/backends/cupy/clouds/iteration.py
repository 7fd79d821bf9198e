"""Sinkhorn iterations and conditional means for costs between points, in CuPy."""

import math
from collections.abc import Iterator
from typing import Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import iteration as dense
from cusink.backends.cupy import limits
from cusink.backends.cupy.clouds import reductions
from cusink.backends.cupy.clouds.near import NearPoints
from cusink.backends.cupy.clouds.reductions import KernelArguments, apply_plan, cost_block
from cusink.backends.cupy.forms import LogForm
from cusink.backends.cupy.means import DenseMeans
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import LOG2_E, find_launch
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis, HostArray, Method


class Iteration(dense.Iteration):
    """Problems under way, on a stored cost where that fits and is faster, else on the points.

    Large clouds are sorted, and so is all of the state.
    """

    points: NearPoints | None = None

    def __init__(self, C: PointCosts, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> None:
        (n, m), shared = C.shape[-2:], C.ndim == 2
        stored = 2 * math.prod(C.shape) * a.dtype.itemsize  # bytes of the cost and its kernel
        fused = find_launch("iterate", len(a), n, m, a.dtype, shared_cost=shared) is not None
        matmul = shared and len(a) >= limits.LIMITS.stored_from and method != "log"
        if stored <= C.memory_limit and (fused or matmul):
            super().__init__(cost_block(C, slice(None), slice(None)), a, b, eps, f, g, method, C.memory_limit)
        elif NearPoints.pays(C):
            self.points = NearPoints.of(C, len(a))
            (a, b), (f, g) = self.points.sort(a, b), self.points.sort(f, g)
            self._start(NearForm(self.points, LOG2_E / float(eps)), a, b, eps, f, g)
        else:
            self._start(StreamedForm(KernelArguments.of(C), LOG2_E / float(eps)), a, b, eps, f, g)

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """See `cusink.backends.cupy.iteration.Iteration`."""
        f, g, cost, error = super().finish(index)
        return (*self.points.unsort(f, g), cost, error) if self.points else (f, g, cost, error)

    def omitted(self, index: HostArray) -> HostArray:
        """Return no loss. The share of pairs that launches leave out is NaN: nobody counts them."""
        return np.tile([0.0, math.nan if self.points else 0.0, 0.0], (len(index), 1))


class StreamedForm(LogForm):
    """The log-domain form with reductions over points: the cost is never in memory."""

    C: KernelArguments

    def __init__(self, C: KernelArguments, cost_scale: float) -> None:
        super().__init__(C, cost_scale)
        # Without a launch of its own a reduction makes blocks of the cost, which allocates.
        axes: tuple[Axis, Axis] = (0, 1)
        self.replayed = all(KernelArguments.of(C, axis).find_launch("softmin", 1) is not None for axis in axes)

    def log_sums(
        self,
        logits: Array,
        scales: Scales,
        axis: Axis,
        index: Array | None,  # noqa: ARG002 - None, as `select` takes the points themselves
        out: Array | None = None,
    ) -> Array:
        """See `cusink.backends.cupy.forms.Form`."""
        return reductions.log_sums(self.C, logits, scales, axis, out)

    def row_costs(self, p: Array, q: Array, index: Array | None) -> Array:  # noqa: ARG002
        """See `cusink.backends.cupy.forms.Form`."""
        return reductions.row_costs(self.C, p, q, self.cost_scale)

    def select(self, problems: Array) -> Self:
        """See `cusink.backends.cupy.forms.Form`."""
        return self if self.C.ndim == 2 else type(self)(self.C.at(problems), self.cost_scale)


class NearForm(StreamedForm):
    """The same between sorted points, without the pairs that do not count in a sum."""

    def __init__(self, points: NearPoints, cost_scale: float) -> None:
        super().__init__(points.costs, cost_scale)
        self.points = points

    def log_sums(
        self,
        logits: Array,
        scales: Scales,
        axis: Axis,
        index: Array | None,  # noqa: ARG002 - all problems share the points
        out: Array | None = None,
    ) -> Array:
        """See `cusink.backends.cupy.forms.Form`."""
        return self.points.log_sums(logits, scales, axis, out)


def plan_means(
    C: PointCosts, a: Array, b: Array, f: Array, g: Array, eps: float
) -> Iterator[tuple[HostArray, "PointMeans"]]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`: all problems at once."""
    f, g = (x.astype(a.dtype, copy=False) for x in (f, g))  # those of coarse levels are in float64
    yield np.arange(len(a)), PointMeans.of(KernelArguments.of(C), a, b, f, g, eps)


class PointMeans(DenseMeans):
    """Means of which each is a pass over the points."""

    apply_plan = staticmethod(apply_plan)
    C: KernelArguments

    def _costs(self, index: HostArray) -> KernelArguments:
        return self.C.at(cp.asarray(index))

    def _cost(self, problems: slice, rows: slice) -> Array:
        return self.C.block(problems, rows)
