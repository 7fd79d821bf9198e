"""Conditional means under plans between clouds in NumPy, prepared so that many can be taken."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np

from cusink.backends import stored
from cusink.backends.numpy import limits
from cusink.backends.numpy import means as dense
from cusink.backends.numpy.clouds.absorbed import LOG_SLACK
from cusink.backends.numpy.clouds.exponents import Exponents, costs, exp_shifted, flat, row_sums
from cusink.backends.numpy.clouds.kernel import CostSums, PlanKernel
from cusink.backends.numpy.clouds.layout import CloudSide, Workspace, extended, sorted_clouds
from cusink.backends.numpy.clouds.reductions import each_row
from cusink.backends.numpy.clouds.shared import CloudKernel
from cusink.costs.means import Means
from cusink.costs.points import PointCosts
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray


def plan_means(
    C: PointCosts, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[dense.IndexedMeans]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    rest = np.arange(len(a))
    n, m = C.shape[-2:]
    if n * m <= limits.LIMITS.cloud_array_pairs:
        size = max(1, limits.LIMITS.kernel_tile_bytes // (n * m * 8)) if C.ndim == 3 else len(a)
        for start in range(0, len(a), size):
            some = rest[start : start + size]
            for index, means in dense.plan_means(C.block(np, some), a[some], b[some], f[some], g[some], eps):
                yield some[index], means
        return
    if C.ndim == 2 and len(a) > 1:
        for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
            rest = yield from dense.shared_means(CloudKernel(C, dtype, eps), rest, a, b, f, g)
    for k in rest:
        yield np.array([k]), CloudMeans(C, int(k), a[k], b[k], f[k], g[k], eps)


class CloudMeans(Means):
    """One problem, with ``A = exp((f + g - C) / eps)`` and the sums T = A b and S = A' a, which are about 1.

    A is between the bins with weight. The others have `EmptyMeans`. Vectors come and go with a batch axis, in the
    caller's order.
    """

    def __init__(
        self, C: PointCosts, problem: int, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
    ) -> None:
        clouds, filled = sorted_clouds(C, problem), (a > 0, b > 0)
        self.sizes, self.side = (len(a), len(b)), clouds.side(1, *filled)
        self.order = order, columns = self.side.order, self.side.columns
        self.a, self.b = a[order], b[columns]
        f, g = f.astype(np.float64), g.astype(np.float64)
        rounding = float(np.finfo(a.dtype).eps)
        for least in (rounding * np.exp(-LOG_SLACK) / float(self.b.sum(dtype=np.float64)), 0.0):
            self.kernel = PlanKernel(self.side, f[order], g[columns], eps, C.memory_limit, least)
            self.sums = self.kernel.cost_sums(self.b, lambda rows, _: self.a[rows], keep=True)
            if min(self.sums.T.min(), self.sums.S.min()) >= np.exp(-LOG_SLACK):
                break  # the columns left out of a sum are less than its rounding
        self.empty: dict[Axis, EmptyMeans] = {}
        sides: tuple[tuple[Axis, HostArray, HostArray], ...] = (1, b, g), (0, a, f)
        for axis, weights, potential in sides:
            if not filled[1 - axis].all():
                side = clouds.side(axis, ~filled[1 - axis], filled[axis])
                logits = np.log(weights[side.columns], dtype=np.float64) + potential[side.columns] / eps
                self.empty[axis] = EmptyMeans(side, logits, eps, C.memory_limit // 4)

    def mean(self, v: HostArray, axis: Axis) -> HostArray:
        """Return the means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            sums = self.kernel.row_sums(self.b * v[0, self.order[1]])
        else:
            sums = self.kernel.column_sums(self.a * v[0, self.order[0]])
        out = self._to_caller(self._ratio(sums, axis), axis)
        if axis in self.empty:
            empty = self.empty[axis]
            out[0, empty.side.order] = empty.mean(v[0, empty.side.columns])
        return out

    def smoothed(self, v: HostArray, axis: Axis) -> HostArray:
        """Return the means over `axis` of the means of v over the other one, and 0 for bins without weight."""
        if axis == 1:
            return self.mean(self.mean(v, 0), 1)
        rates = stored.ratio(np, self.a, self.sums.T)  # one pass over the kernel serves both means
        _, sums = self.kernel.sums(self.b * v[0, self.order[1]], lambda rows, sums: rates[rows] * sums)
        return self._to_caller(self._ratio(sums, 0), 0)

    def mean_cost(self, axis: Axis) -> HostArray:
        """Return the means of the cost given each bin."""
        out = self._to_caller(self._ratio(self.sums.TC if axis == 1 else self.sums.SC, axis), axis)
        if axis in self.empty:
            out[0, self.empty[axis].side.order] = self.empty[axis].mean_cost()
        return out

    def marginal(self, axis: Axis) -> HostArray:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self._to_caller(self.a * self.sums.T if axis == 1 else self.b * self.sums.S, axis)

    def plan_sum(self, rows: HostArray, columns: HostArray | None, costs: HostArray | None) -> HostArray:
        """Return ``P (rows_i + columns_j + cost C_ij)`` (n, m)."""
        out = np.zeros(self.sizes, self.a.dtype)
        of_columns = np.zeros_like(self.b) if columns is None else columns[0, self.order[1]]

        def fill(blocks: Sequence[int], work: Workspace) -> None:
            for k in blocks:
                block = self.side.blocks[k]
                place = self.order[0][block]
                A, AC, some = self.kernel.with_costs(k, work)
                A, AC = flat(A, some.count), flat(AC, some.count)
                factor = rows[0, place][:, None] + some.of(of_columns)
                part = A * factor if costs is None else A * factor + costs[0] * AC
                out[np.ix_(place, some.of(self.order[1]))] = part * (self.a[block][:, None] * some.of(self.b))

        self.side.for_blocks(fill)
        return out

    def at(self, index: HostArray) -> "CloudMeans":
        """Return the means of the problems at `index`: this one."""
        del index
        return self

    def in_float32(self) -> "CloudMeans | None":
        """Return about the same means in float32, where the whole kernel is kept."""
        return self._narrow

    @cached_property
    def _narrow(self) -> "CloudMeans | None":
        kernel = self.kernel.in_float32()
        if kernel is None:
            return None
        out = copy.copy(self)
        out.kernel, out.sums = kernel, CostSums(*(x.astype(np.float32) for x in self.sums))
        out.a, out.b = self.a.astype(np.float32), self.b.astype(np.float32)
        return out

    def _ratio(self, sums: HostArray, axis: Axis) -> Array:
        return stored.ratio(np, sums, self.sums.T if axis == 1 else self.sums.S)

    def _to_caller(self, v: HostArray, axis: Axis) -> HostArray:
        """Return a vector of the bins with weight in the caller's order, with a batch axis, and 0 for the others."""
        out = np.zeros((1, self.sizes[1 - axis]), self.a.dtype)
        out[0, self.order[1 - axis]] = v
        return out


class EmptyMeans:
    """Means given bins without weight, the rows of a `side`, under the plan that a first bit of weight would take.

    Logits and vectors are in the order of the side. A potential of these bins is not needed: as they may lie
    anywhere, it may be of any size. The shares of the columns in each row are kept where they fit into `budget` bytes.
    """

    def __init__(self, side: CloudSide, logits: HostArray, eps: float, budget: int) -> None:
        self.side, self.exponents = side, Exponents(side, logits, 1 / eps)
        self.shares: HostArray | None = None
        if side.shape[0] * side.shape[1] * side.dtype.itemsize <= budget:
            self.shares = np.empty(side.shape, side.dtype)
            self._fill(self.shares)

    def mean(self, v: HostArray) -> HostArray:
        """Return the means (rows,) of v."""
        if self.shares is not None:
            means: HostArray = np.matvec(self.shares, v.astype(self.side.dtype, copy=False))
            return means
        tiles = self.side.all.tiled(extended(v.astype(self.side.dtype, copy=False)))
        return each_row(self.side, lambda k, work: row_sums(self._shares(k, work), tiles))

    def mean_cost(self) -> HostArray:
        """Return the means of the cost."""
        side = self.side

        def means(k: int, work: Workspace) -> HostArray:
            shares = self._shares(k, work).copy()
            out: HostArray = np.einsum("trw,trw->r", shares, costs(side, side.blocks[k], work, exact=True))
            return out

        return each_row(side, means)

    def _shares(self, k: int, work: Workspace) -> HostArray:
        """Return the shares of the columns in the rows of block k."""
        block, _ = self.exponents.block(k, work)
        exp_shifted(block)
        block /= block.sum(axis=(0, 2))[:, None]
        return block

    def _fill(self, shares: HostArray) -> None:
        def fill(blocks: Sequence[int], work: Workspace) -> None:
            for k in blocks:
                shares[self.side.blocks[k]] = flat(self._shares(k, work), self.side.shape[1])

        self.side.for_blocks(fill)
