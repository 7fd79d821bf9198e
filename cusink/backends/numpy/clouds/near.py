"""Soft minima and gradients of one problem between large clouds, from potentials that are known and pairs that count.

As in `StabilisedProblem` a kernel holds the potentials, and is made anew where they have moved away from it.
"""

from collections.abc import Sequence

import numpy as np

from cusink.backends.numpy.clouds.absorbed import LOG_SLACK, LOG_SLACK_IF_LOST
from cusink.backends.numpy.clouds.kernel import PlanKernel
from cusink.backends.numpy.clouds.layout import Workspace, extended, sorted_clouds
from cusink.backends.numpy.clouds.reductions import softmin_of
from cusink.costs.points import PointCosts
from cusink.types import HostArray

MOVED = 2.0  # eps by which potentials may move before a kernel absorbs them


class NearSoftmin:
    """See `cusink.costs.operators.NearSoftmin`; vectors within are in the order of the side, and of bins with weight.

    Without a loss in the costs what is left out is below rounding. Sums that are not certified are taken of all pairs.
    """

    def __init__(self, C: PointCosts, a: HostArray, b: HostArray, eps: float, budget: int) -> None:
        self.clouds, self.eps, self.budget = sorted_clouds(C, 0), eps, budget
        self.filled = a[0] > 0, b[0] > 0
        self.side = self.clouds.side(1, *self.filled)
        self.a, self.b = a[0][self.side.order], b[0][self.side.columns]
        self.loss = C.loss if self.clouds.celled else 0.0
        self.kernel: PlanKernel | None = None
        self.lost = 0.0

    def __call__(self, f: HostArray, g: HostArray) -> HostArray:
        """Return the softmin (1, n) over columns with logits ``log b + g / eps``; f (1, n) is near it."""
        eps, side, full = self.eps, self.side, f.astype(np.float64)
        f, g = full[0, side.order], g[0, side.columns].astype(np.float64)
        kernel = self.kernel
        if kernel is None or not self._serves(kernel, f, g):
            self.kernel = None  # so that there is never memory for two
            slack = LOG_SLACK_IF_LOST if self.loss else LOG_SLACK
            mass = float(self.b.sum(dtype=np.float64))
            least = max(float(np.finfo(side.dtype).eps), self.loss) * np.exp(-slack) / mass
            self.kernel = kernel = PlanKernel(side, f, g, eps, self.budget, least, self.loss)
        q = (self.b * np.exp((g - kernel.g) / eps)).astype(side.dtype)
        sums = kernel.row_sums(q)
        sound = self._certified(kernel, sums, q)
        with np.errstate(divide="ignore", invalid="ignore"):  # of sums that are not certified
            own = kernel.f - eps * np.log(sums, dtype=np.float64)
        if not sound.all():
            own[~sound] = self._of_all_pairs(~sound, g)
        self.lost = self._lost(kernel, f, float(q.sum(dtype=np.float64)))
        full[0, side.order] = own
        return full

    def omitted(self) -> tuple[float, float, float]:
        """Return what the last call went without."""
        return self.lost, *((0.0, 0.0) if self.kernel is None else self.kernel.shares())

    def _serves(self, kernel: PlanKernel, f: HostArray, g: HostArray) -> bool:
        """Return whether the potentials are near those that the kernel has absorbed."""
        moved = max(float(np.abs(f - kernel.f).max()), float(np.abs(g - kernel.g).max()))
        return moved <= MOVED * self.eps

    def _certified(self, kernel: PlanKernel, sums: HostArray, q: HostArray) -> HostArray:
        """Return which sums have lost no more than rounding, or the share that is counted as loss."""
        info = np.finfo(self.side.dtype)
        tiny, total = float(info.tiny), float(q.sum(dtype=np.float64))
        share = max(float(info.eps), self.loss)
        floor = tiny * (total + len(q)) / float(info.eps) + kernel.least * total / share
        sound: HostArray = (sums >= floor) & (sums <= info.max) & bool(q.min() >= tiny)
        return sound

    def _of_all_pairs(self, rows: HostArray, g: HostArray) -> HostArray:
        """Return the softmin of some rows, given by a mask."""
        chosen = np.zeros(len(self.filled[0]), bool)
        chosen[self.side.order[rows]] = True
        side = self.clouds.side(1, chosen, self.filled[1])
        out = np.empty(len(chosen))
        out[side.order] = softmin_of(side, np.log(self.b, dtype=np.float64) + g / self.eps, self.eps)
        found: HostArray = out[self.side.order[rows]]
        return found

    def _lost(self, kernel: PlanKernel, f: HostArray, total: float) -> float:
        """Return what both marginals of the plan of f and g may lack by the pairs left out, relative to the mass."""
        if not self.loss:
            return 0.0
        p, mass = self.a * np.exp((f - kernel.f) / self.eps), float(self.a.sum(dtype=np.float64))
        lost = float(kernel.least * p.sum(dtype=np.float64)) * total / mass
        return 2 * (lost + (kernel.share * 2 if kernel.inexact else 0))


def near_softmin(C: PointCosts, a: HostArray, b: HostArray, eps: float, many: bool) -> NearSoftmin | None:
    """Return the softmin of one problem between large clouds, see `cusink.costs.operators.StartNearSoftmin`."""
    if C.ndim == 3 or len(a) != 1 or not sorted_clouds(C, 0).celled:
        return None
    return NearSoftmin(C, a, b, eps, C.memory_limit if many else 0)


def pull_plan(
    C: PointCosts, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> tuple[HostArray, HostArray] | None:
    """Return the gradients by the points of the costs of a plan that stays, see `cusink.costs.operators.PullPlan`."""
    if C.ndim == 3 or len(a) != 1 or C.norm != "squared" or C.exponent != 1 or not sorted_clouds(C, 0).celled:
        return None
    side = sorted_clouds(C, 0).side(1, a[0] > 0, b[0] > 0)
    order, columns = side.order, side.columns
    p, q = a[0, order], extended(b[0, columns])
    least = float(np.finfo(side.dtype).eps) * np.exp(-LOG_SLACK) / float(q.sum(dtype=np.float64))
    f, g = (v.astype(np.float64) for v in (f[0, order], g[0, columns]))
    kernel = PlanKernel(side, f, g, eps, 0, least)
    ones = np.ones((side.shape[0], 1), side.dtype), np.ones((1, side.shape[1]), side.dtype)
    rows_of, columns_of = np.hstack([side.x, ones[0]]), [extended(v) for v in np.vstack([side.y, ones[1]])]
    of_rows = np.empty_like(rows_of)

    def run(blocks: Sequence[int], work: Workspace) -> HostArray:
        of_columns = np.zeros((len(columns_of), len(q)))
        for k in blocks:
            rows = side.blocks[k]
            P, _, some = kernel.with_costs(k, work)
            P *= p[rows][:, None]
            P *= some.tiled(q)[:, None, :]
            of_rows[rows] = (P @ np.stack([some.tiled(v) for v in columns_of], axis=-1)).sum(axis=0)
            for out, tiles in zip(of_columns, np.moveaxis(rows_of[rows].T @ P, 1, 0), strict=True):
                some.add(out, tiles)
        return of_columns

    of_columns = sum(side.for_blocks(run), np.zeros((1, 1)))[:, :-1].T
    sums = of_rows[:, -1:], of_columns[:, -1:]
    if min(float((sums[0][:, 0] / p).min()), float((sums[1][:, 0] / q[:-1]).min())) < np.exp(-LOG_SLACK):
        return None  # what is left out may be more than rounding
    out = np.zeros_like(C.x), np.zeros_like(C.y)
    out[0][order] = 2 * C.factor * (sums[0] * side.x - of_rows[:, :-1])
    out[1][columns] = 2 * C.factor * (sums[1] * side.y.T - of_columns[:, :-1])
    return out
