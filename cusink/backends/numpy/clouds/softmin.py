"""Log-sum-exp reductions between clouds, prepared for many calls that differ little from each other.

A kernel ``A = exp((f + g - C) / eps)`` that has absorbed potentials near those of a call turns it into a product: with
logits ``g / eps + log v`` the softmin is ``f - eps log(A v)``. Where sums are not certified they are taken anew as
log-sum-exp, and the next call starts from a kernel that has absorbed what came out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds import reductions
from cusink.backends.numpy.clouds.kernel import PlanKernel
from cusink.backends.numpy.clouds.layout import SortedClouds, costs_kept, sorted_clouds
from cusink.backends.numpy.clouds.reductions import softmin_of
from cusink.backends.numpy.clouds.shared import CloudKernel
from cusink.backends.numpy.softmin import PRODUCT_PROBLEMS, KernelSoftmin, costs_by_products
from cusink.backends.numpy.softmin import repeated_softmin as repeated_dense
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis, HostArray

DIRECT_SHARE = 0.1  # of the sums that are not certified, from which a kernel has absorbed too little


def repeated_softmin(C: PointCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`; small clouds become an array."""
    pairs = C.shape[-2] * C.shape[-1]
    if pairs <= limits.LIMITS.cloud_array_pairs and (C.ndim == 2 or costs_kept(C)):
        return repeated_dense(C.block(np), eps)
    return SharedSoftmin(C, eps) if C.ndim == 2 else AbsorbedSoftmin(C, eps)


def softmin(C: PointCosts, logits: HostArray, eps: float, axis: Axis) -> HostArray:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n); of small clouds a few problems at a time.

    Costs and kernels of these stay in the cache, where memory for all would have to be fetched.
    """
    n, m = C.shape[-2:]
    if C.ndim == 2 or n * m > limits.LIMITS.cloud_array_pairs:
        return reductions.softmin(C, logits, eps, axis)
    size = max(1, limits.LIMITS.kernel_tile_bytes // (n * m * 8))
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    return np.concatenate([repeated_dense(C.block(np, some), eps)(logits[some], axis) for some in parts])


def transport_cost(C: PointCosts, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return ``sum_ij P_ij C_ij`` (B,): of many problems between the same clouds by products with their kernel."""
    if C.ndim == 3 or len(p) < PRODUCT_PROBLEMS:
        return reductions.transport_cost(C, p, q, eps)
    return costs_by_products(
        lambda dtype: CloudKernel(C, dtype, eps), p, q, lambda p, q: reductions.transport_cost(C, p, q, eps)
    )


class SharedSoftmin:
    """The softmin of problems between the same clouds: products with one kernel for all, in float64 at last.

    Where too many sums leave its range, and for one problem alone, each has a kernel of its own from then on.
    """

    def __init__(self, C: PointCosts, eps: float) -> None:
        self.C, self.eps = C, eps
        self.left: list[Any] | None = None  # precisions that were not given up
        self.kernel: KernelSoftmin | None = None
        self.absorbed = AbsorbedSoftmin(C, eps)

    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (B, rows) of logits (B, summed)."""
        if self.left is None:
            self.left = [] if len(logits) == 1 else [*dict.fromkeys((self.C.dtype, np.dtype(np.float64)))]
        while self.left:
            if self.kernel is None:
                self.kernel = KernelSoftmin(CloudKernel(self.C, self.left[0], self.eps))
            out = self.kernel.by_product(logits, axis)
            if out is not None:
                return out
            self.left.pop(0)
            self.kernel = None
        return self.absorbed(logits, axis)


class AbsorbedSoftmin:
    """The softmin of each problem by a kernel of its own; the memory limit is for all kernels together."""

    def __init__(self, C: PointCosts, eps: float) -> None:
        self.C, self.eps = C, eps
        self.problems: list[ProblemSoftmin] = []

    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (B, rows) of logits (B, summed)."""
        if len(self.problems) != len(logits):  # some have left: nothing is known of the others' places
            budget = self.C.memory_limit // len(logits)
            self.problems = [ProblemSoftmin(sorted_clouds(self.C, k), self.eps, budget) for k in range(len(logits))]
        out = np.empty((len(logits), self.C.shape[-2 if axis == 1 else -1]), logits.dtype)
        for k, problem in enumerate(self.problems):
            out[k] = problem(logits[k], axis)
        return out


class ProblemSoftmin:
    """The softmin between two clouds; the potentials that its kernel absorbed are in the caller's order."""

    def __init__(self, clouds: SortedClouds, eps: float, budget: int) -> None:
        self.clouds, self.eps, self.budget = clouds, eps, budget
        self.absorbed: tuple[HostArray, HostArray] | None = None
        self.kernel: PlanKernel | None = None

    def __call__(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin (rows,) of logits (summed,)."""
        if self.absorbed is None:
            return self._direct(logits, axis)
        own, other = self.absorbed if axis == 1 else self.absorbed[::-1]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            factor = np.exp(logits - other / self.eps).astype(self.clouds.points[0].dtype)
            sums = self._sums(factor, axis)
            sound = certified(sums, factor, logits)
            if np.count_nonzero(sound) < (1 - DIRECT_SHARE) * len(sound):
                return self._direct(logits, axis)
            out: HostArray = own - self.eps * np.log(sums, dtype=np.float64)
        if not sound.all():
            side = self.clouds.side(axis, ~sound)
            out[side.order] = softmin_of(side, logits[side.columns], self.eps)
        return out

    def _direct(self, logits: HostArray, axis: Axis) -> HostArray:
        """Return the softmin as log-sum-exp; the kernel of the next call absorbs it."""
        side = self.clouds.side(axis)
        out = np.empty(side.shape[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            out[side.order] = softmin_of(side, logits[side.columns], self.eps)
        reached, weighed = np.isfinite(out), np.isfinite(logits)
        if reached.all() and weighed.any():
            # A bin without weight has no part in this sum; in those of the other side it is repaired.
            given = np.where(weighed, logits, logits[weighed].min()).astype(np.float64) * self.eps
            self.absorbed, self.kernel = ((out, given) if axis == 1 else (given, out)), None
        return out

    def _sums(self, factor: HostArray, axis: Axis) -> HostArray:
        """Return the sums over the other side, in the caller's order."""
        side = self.clouds.side(1)
        if self.kernel is None:
            assert self.absorbed is not None
            f, g = self.absorbed
            self.kernel = PlanKernel(side, f[side.order], g[side.columns], self.eps, self.budget)
        n, m = side.shape
        kept, summed = (side.order, side.columns) if axis == 1 else (side.columns, side.order)
        factor, out = factor[summed], np.empty(n if axis == 1 else m, factor.dtype)
        take = self.kernel.row_sums if axis == 1 else self.kernel.column_sums
        out[kept] = take(factor)
        return out


def certified(sums: HostArray, factor: HostArray, logits: HostArray) -> HostArray:
    """Return which sums (..., rows) have lost no more than rounding, see `StabilisedProblem._certified`."""
    info = np.finfo(factor.dtype)
    tiny, total = float(info.tiny), factor.sum(axis=-1, keepdims=True, dtype=np.float64)
    lost = ((factor < tiny) & (logits > -np.inf)).any(axis=-1, keepdims=True) | ~(total <= info.max)
    floor = (tiny * total + tiny * factor.shape[-1]) / float(info.eps)
    sound: HostArray = (sums >= floor) & (sums <= info.max) & ~lost
    return sound
