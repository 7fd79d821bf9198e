"""Sinkhorn iterations between the cells of a grid with no state but potentials.

Some iterations at a time start from float64 potentials and end with them. In between they run on scalings, whose sums
are all checked without a transfer to the host; the problems in which a check failed repeat the iterations from the same
potentials in the next form: scalings in float64, then log-sum-exp along each axis.
"""

from collections.abc import Iterable
from typing import Any

import cupy as cp
import numpy as np

from cusink.backends.cupy import dense
from cusink.backends.cupy.grid_logs import AxisLogs, LogWorkspace
from cusink.backends.cupy.grid_passes import Advanced
from cusink.backends.cupy.grid_scalings import AxisScalings, Workspace
from cusink.backends.ranges import REPEATED_ITERATIONS
from cusink.costs.cells import GridCosts
from cusink.costs.operators import HostChecked
from cusink.types import Array, HostArray, Method


class GridIteration(HostChecked):
    """Problems under way, see `cusink.costs.operators`."""

    def __init__(self, C: GridCosts, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> None:
        self.C, self.eps, self.dtype = C, float(eps), np.dtype(a.dtype)
        zero, tiny = self.dtype.type(0), np.finfo(self.dtype).tiny  # a device may read smaller weights as zero
        self.a, self.b = (cp.where(weights < tiny, zero, weights) for weights in (a, b))
        self.f, self.g = (x.astype(np.float64) for x in (f, g))
        self.forms: list[AxisScalings | AxisLogs] = []
        wide = np.dtype(np.float64)
        if method != "log":
            self.forms += [AxisScalings(C, dtype, self.eps) for dtype in dict.fromkeys((self.dtype, wide))]
        if method != "scaling":
            self.forms.append(AxisLogs(C, self.eps))
        self.level = np.zeros(len(a), int)  # the form of each problem; len(forms) for one that is out of all ranges
        self.work: dict[int, tuple[HostArray, Workspace | LogWorkspace]] = {}  # of each form, and for which problems

    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations of every problem; return bounds (B,) on their errors, inf for one out of range."""
        error = cp.empty(len(self.a))
        for start in range(0, count, REPEATED_ITERATIONS):
            some = min(REPEATED_ITERATIONS, count - start)
            for k, form in enumerate(self.forms):
                at = np.flatnonzero(self.level == k)
                if len(at):
                    *results, inside = self._advance(k, form, at, omega[at] - 1, some)
                    kept = dense.to_host(inside).astype(bool)
                    _put((self.f, self.g, error), at, results, kept)
                    self.level[at[~kept]] += 1
        lost = self.level == len(self.forms)
        return cp.where(cp.asarray(lost), np.inf, error) if lost.any() else error

    def _advance(self, k: int, form: AxisScalings | AxisLogs, at: HostArray, excess: HostArray, count: int) -> Advanced:
        if k not in self.work or not np.array_equal(self.work[k][0], at):
            self.work[k] = at, form.workspace(*self._some(at, self.a, self.b))
        work: Any = self.work[k][1]
        work.f[...], work.g[...] = self._some(at, self.f, self.g)
        work.excess[...] = cp.asarray(excess)
        return form.advance(work, count)

    def _some(self, at: HostArray, *arrays: Array) -> list[Array]:
        """Return the problems at sorted indices."""
        if len(at) == len(self.a):
            return list(arrays)
        chosen = cp.asarray(at)
        return [x[chosen] for x in arrays]

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        shape = (len(index), self.C.shape[0])
        f, g, cost = cp.empty(shape), cp.empty(shape), cp.empty(len(index), self.dtype)
        error = cp.empty(len(index), np.float64)
        level = self.level[index]
        for k, form in enumerate([*self.forms, AxisLogs(self.C, self.eps)]):
            places = np.flatnonzero(level == k)
            if len(places):
                chosen = cp.asarray(index[places])
                *results, inside = form.finish(*(x[chosen] for x in (self.a, self.b, self.g)))
                kept = dense.to_host(inside).astype(bool)
                _put((f, g, cost, error), places, results, kept)
                level[places[~kept]] += 1
        return f, g, cost, error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        self.level, chosen, self.work = self.level[index], cp.asarray(index), {}
        self.a, self.b, self.f, self.g = (x[chosen] for x in (self.a, self.b, self.f, self.g))


def _put(targets: Iterable[Array], at: HostArray, results: Iterable[Array], kept: HostArray) -> None:
    """Assign ``target[at[kept]] = result[kept]`` for each of them."""
    if not kept.any():
        return
    everything = kept.all()
    some = None if everything else cp.asarray(np.flatnonzero(kept))
    for target, result in zip(targets, results, strict=True):
        where = slice(None) if everything and len(at) == len(target) else cp.asarray(at[kept])
        target[where] = result if some is None else result[some]
