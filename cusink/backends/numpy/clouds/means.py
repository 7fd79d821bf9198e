"""Conditional means under plans between clouds in NumPy, prepared so that many can be taken."""

import numpy as np

from cusink.backends.numpy import means as dense
from cusink.backends.numpy.clouds.absorbed import SLACK
from cusink.backends.numpy.clouds.exponents import flat
from cusink.backends.numpy.clouds.kernel import PlanKernel
from cusink.backends.numpy.clouds.layout import SMALL, pairs_for
from cusink.backends.numpy.clouds.shared import CloudKernel
from cusink.backends.numpy.forms import own


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `backends.operators`; all the means of a group can be taken at once."""
    rest = np.arange(len(a))
    n, m = C.shape[-2:]
    if n * m <= SMALL:
        size = max(1, own.TILE_BYTES // (n * m * 8)) if C.ndim == 3 else len(a)
        for start in range(0, len(a), size):
            some = rest[start : start + size]
            for index, means in dense.plan_means(C.block(np, some), *(x[some] for x in (a, b, f, g)), eps):
                yield some[index], means
        return
    if C.ndim == 2 and len(a) > 1:
        for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
            rest = yield from dense.shared_means(CloudKernel(C, dtype, eps), rest, a, b, f, g)
    for k in rest:
        yield np.array([k]), CloudMeans(C, k, a[k], b[k], f[k], g[k], eps)


class CloudMeans:
    """One problem, with ``A = exp((f + g - C) / eps)`` and the sums T = A b and S = A' a, which are about 1.

    Vectors come and go with a batch axis, in the caller's order.
    """

    def __init__(self, C, problem, a, b, f, g, eps):
        self.pairs = pairs_for(C, problem)
        self.side = self.pairs.side(1)
        self.order = order, columns = self.side.order, self.side.columns
        self.a, self.b = a[order], b[columns]
        f, g = f[order].astype(np.float64), g[columns].astype(np.float64)
        empty = None if self.a.all() or self.b.all() else (self.a == 0, self.b == 0)
        rounding = float(np.finfo(a.dtype).eps)
        for least in (rounding * np.exp(-SLACK) / float(self.b.sum(dtype=np.float64)), 0.0):
            self.kernel = PlanKernel(self.side, f, g, eps, C.memory_limit, least, empty)
            self.T, self.S, *self.priced = self.kernel.priced_sums(self.b, lambda rows, _: self.a[rows], None)
            if min(self.T.min(), self.S.min()) >= np.exp(-SLACK):
                break  # what was left out of a sum is less than its rounding

    def mean(self, v, axis):
        """Means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            sums, _ = self.kernel.sums(self.b * v[0, self.order[1]], None, None)
        else:
            weights = self.a * v[0, self.order[0]]
            _, sums = self.kernel.sums(None, lambda rows, _: weights[rows], None)
        return self._outward(_ratio(sums, self.T if axis == 1 else self.S), axis)

    def mean_cost(self, axis):
        """Means of the cost given each bin."""
        return self._outward(_ratio(self.priced[1 - axis], self.T if axis == 1 else self.S), axis)

    def marginal(self, axis):
        """``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self._outward(self.a * self.T if axis == 1 else self.b * self.S, axis)

    def plan_sum(self, rows, columns, costs):
        """``P (rows_i + columns_j + cost C_ij)`` (n, m)."""
        out = np.zeros(self.side.shape, self.a.dtype)
        columns = np.zeros_like(self.b) if columns is None else columns[0, self.order[1]]

        def fill(blocks, work):
            for k in blocks:
                block = self.side.blocks[k]
                place = self.order[0][block]
                A, AC, some = self.kernel.priced(k, work)
                A, AC = flat(A, some.count), flat(AC, some.count)
                factor = rows[0, place][:, None] + some.of(columns)
                part = A * factor if costs is None else A * factor + costs[0] * AC
                out[np.ix_(place, some.of(self.order[1]))] = part * (self.a[block][:, None] * some.of(self.b))

        self.side.for_parts(fill)
        return out

    def at(self, index):
        """The means of the problems at `index` alone: this one."""
        return self

    def _outward(self, v, axis):
        """A vector in the caller's order, with a batch axis."""
        out = np.empty((1, len(v)), self.a.dtype)
        out[0, self.order[1 - axis]] = v
        return out


def _ratio(x, y):
    """``x / y``, 0 where y is: a bin that nothing may reach."""
    return np.divide(x, y, out=np.zeros_like(x), where=y > 0)
