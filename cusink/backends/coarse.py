"""Coarse levels of two large clouds: the means of cells of neighbours, with their weights added up.

Each level has the means of runs of points of the next finer one. Potentials come back with their slopes, which for
squared distances are those of the means of the partners: ``grad f(x) = 2 (x - mean of y given x)``.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from cusink.backends.neighbours import nested
from cusink.costs.means import Means
from cusink.costs.points import PointCosts
from cusink.types import Array, ArrayModule, Axis, HostArray

MOST = 0.8  # of the cells, that have no more than the variance of a level


@dataclass(frozen=True)
class Sizes:
    """From how many `pairs` and `points` of either side on a problem has levels, and how they are made."""

    pairs: int
    points: int  # of a level that has no coarser one
    ratio: int  # of the points of two levels; a power of two
    least_run: int  # of points that may lie in any order


@dataclass(frozen=True, eq=False)
class Level:
    """One level, see `cusink.costs.operators.CoarseLevel`; `finer` are the points of the next finer one."""

    xp: ArrayModule
    costs: PointCosts
    a: Array
    b: Array
    variance: float
    finer: tuple[Array, Array]
    cells: tuple[Array, Array]  # of each finer point, its cell here

    def moved(self, xp: ArrayModule) -> Self:
        """Return the same in another array module."""
        x, y, a, b = (xp.asarray(v) for v in (self.costs.x, self.costs.y, self.a, self.b))
        finer, cells = (tuple(xp.asarray(v) for v in pair) for pair in (self.finer, self.cells))
        costs = replace(self.costs, x=x, y=y)
        return replace(self, xp=xp, costs=costs, a=a, b=b, finer=finer, cells=cells)

    def extended(self, f: Array, g: Array, means: Means) -> tuple[Array, Array]:
        """Return potentials (1, n) and (1, m) of the finer points."""
        xp, x, y = self.xp, self.costs.x, self.costs.y
        out = []
        sides: tuple[tuple[Axis, Array, Array, Array], ...] = (1, x, y, f), (0, y, x, g)
        for axis, own, other, potential in sides:
            partners = xp.stack([means.mean(along[None], axis)[0] for along in xp.ascontiguousarray(other.T)], axis=1)
            slope = 2 * self.costs.factor * (own.astype(np.float64) - partners)
            finer, cells = self.finer[1 - axis], self.cells[1 - axis]
            offset = finer.astype(np.float64) - own[cells]
            out.append((potential[0, cells] + xp.einsum("ik,ik->i", slope[cells], offset))[None])
        return out[0], out[1]


def levels(C: PointCosts, a: HostArray, b: HostArray, sizes: Sizes) -> list[Level]:
    """Return the levels of one problem between clouds, on the host, see `cusink.costs.operators.CoarseLevels`."""
    found: list[Level] = []
    if C.ndim == 3 or len(a) != 1 or C.norm != "squared" or C.exponent != 1:
        return []
    n, m = C.shape
    if n * m < sizes.pairs or min(n, m) < sizes.points:
        return []
    points, weights = [C.x, C.y], [a[0], b[0]]
    orders, variances = [nested(x, sizes.least_run) for x in points], [0.0, 0.0]
    while len(points[0]) * len(points[1]) > sizes.points**2:
        finer, cells, means = points, [], []
        for k, (x, w, order) in enumerate(zip(finer, weights, orders, strict=True)):
            cell = np.empty(len(x), np.intp)
            cell[order] = np.arange(len(x)) // sizes.ratio
            mean, total, inside = _means(x, w, cell)
            cells.append(cell)
            means.append(mean)
            weights[k], variances[k] = total, variances[k] + inside
        points, orders = means, [np.arange(len(x)) for x in means]
        x, y = points
        costs = replace(C, x=x, y=y, filled=None, given=None, cloud=None)
        side, other = weights[0][None], weights[1][None]
        found.append(Level(np, costs, side, other, max(variances), (finer[0], finer[1]), (cells[0], cells[1])))
    return found[::-1]


def _means(x: HostArray, w: HostArray, cell: HostArray) -> tuple[HostArray, HostArray, float]:
    """Return the means and weights of the cells of points x (n, d) with weights w (n,), and the variance in most."""
    count = int(cell.max()) + 1
    total = np.bincount(cell, w, count)
    share = np.where(total[cell] > 0, w, 1).astype(np.float64)
    share /= np.bincount(cell, share, count)[cell]
    mean = np.stack([np.bincount(cell, share * along, count) for along in x.T], axis=1)
    offset = x - mean[cell]
    # Of most cells: a few may reach from one cluster to another.
    variance = np.sort(np.bincount(cell, share * np.einsum("ik,ik->i", offset, offset), count))
    most = float(variance[min(int(MOST * count), count - 1)])
    return mean.astype(x.dtype), total.astype(w.dtype), most
