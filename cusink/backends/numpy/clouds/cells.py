"""Which columns of a side a block of rows can have mass with, from boxes: most pairs of points are never looked at.

Columns come in cells, runs of neighbours. For a block I of rows and a cell J no exponent ``(f_i + g_j - C_ij) / eps``
exceeds what the largest potentials and the distance of their boxes allow. Where potentials are steep that says little;
for squared distances slopes s and t are taken out first. With ``x_i = c_I + u``, ``y_j = c_J + v``, ``D = c_I - c_J``

    f_i + g_j - |x_i - y_j|**2 <= max_I (f - s u) + max_J (g - t v) - D**2 + max_u (s - 2 D) u + max_v (t + 2 D) v,

and the last two are sums over coordinates, of half the width of a box each.
"""

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.layout import CloudSide, Columns
from cusink.types import HostArray

ROUNDING = 2.0**-40  # of the terms of a bound in float64, larger than which are the potentials where it decides
RIDGE = 1e-9  # relative, of fits to points on a line or in one place


class ColumnCells:
    """The cells of the columns of a side, and bounds on the exponents between them and its blocks of rows.

    `f` (n,) and `g` (m,) are in the order of the side.
    """

    def __init__(self, side: CloudSide, f: HostArray, g: HostArray, eps: float) -> None:
        self.side, self.eps, m = side, eps, side.shape[1]
        self.size = max(limits.LIMITS.cloud_cell_points, 1 << (max(1, m // limits.LIMITS.cloud_cells) - 1).bit_length())
        self.rows, self.columns = Boxes(side.x, f, side.rows), Boxes(side.y.T, g, self.size)
        self.slack = ROUNDING * float(np.abs(f).max() + np.abs(g).max())

    def near(self, k: int, exponent: float) -> HostArray:
        """Return the numbers of the cells in which block k may have an exponent above `exponent`."""
        level, rows, columns = exponent * self.eps - self.slack, self.rows, self.columns
        offset = rows.centre[k] - columns.centre
        gap = np.maximum(np.abs(offset) - (rows.half[k] + columns.half), 0)
        distance = gap.sum(axis=1) if self.side.costs.norm == "cityblock" else np.einsum("ck,ck->c", gap, gap)
        bound = rows.highest[k] + columns.highest - self.side.costs.of_distances(np, distance)
        ids: HostArray = np.flatnonzero(bound > level)
        if self.side.squared:
            factor, offset = self.side.costs.factor, offset[ids]
            bound = rows.level[k] + columns.level[ids] - factor * np.einsum("ck,ck->c", offset, offset)
            offset *= 2 * factor
            bound += np.abs(rows.slope[k] - offset) @ rows.half[k]
            bound += np.einsum("ck,ck->c", np.abs(columns.slope[ids] + offset), columns.half[ids])
            ids = ids[bound > level]
        return ids.astype(np.int32)

    def above(self, block: HostArray, ids: HostArray, exponent: float) -> HostArray:
        """Return which of the cells `ids` have an entry above `exponent` in a block (tiles, rows, width) of theirs."""
        if not len(ids):
            return ids
        highest = block.max(axis=1).reshape(-1)[: self.of(ids).count]
        found: HostArray = ids[np.maximum.reduceat(highest, np.arange(len(ids)) * self.size) > exponent]
        return found

    def around(self, ids: HostArray) -> tuple[HostArray, float]:
        """Return the middle (d,) of the cells `ids`, and how far from it their points may be."""
        centre, half = self.columns.centre[ids], self.columns.half[ids]
        middle = ((centre - half).min(axis=0) + (centre + half).max(axis=0)) / 2
        far = np.abs(centre - middle) + half
        return middle, float(np.sqrt(np.einsum("ck,ck->c", far, far).max()))

    def of(self, ids: HostArray) -> Columns:
        """Return the columns of some cells."""
        if len(ids) == len(self.columns.level):
            return self.side.all
        return Columns(self.side.shape[1], self.side.tile_columns, self.index(ids))

    def index(self, ids: HostArray) -> HostArray:
        """Return the numbers of the columns of some cells."""
        total = self.side.shape[1]
        index = (ids[:, None] * np.int32(self.size) + np.arange(self.size, dtype=np.int32)).reshape(-1)
        if len(ids) and index[-1] >= total:
            index = index[: np.searchsorted(index, total)]
        return index


class Boxes:
    """Runs of `size` points each: the boxes around them, and a potential on them.

    `centre`, `half` (boxes, d); `highest` (boxes,), the largest potential; `slope` (boxes, d), with which it rises
    about the centre, and `level`, the largest of the rest.
    """

    def __init__(self, x: HostArray, potential: HostArray, size: int) -> None:
        count = -(-len(x) // size)
        every = np.minimum(np.arange(count * size), len(x) - 1).reshape(count, size)
        points, values = x[every].astype(np.float64), potential[every].astype(np.float64)
        low, high = points.min(axis=1), points.max(axis=1)
        self.centre, self.half = (low + high) / 2, (high - low) / 2
        self.highest = values.max(axis=1)
        points -= self.centre[:, None]
        self.slope = _slopes(points, values)
        self.level = (values - np.matvec(points, self.slope)).max(axis=1)


def _slopes(points: HostArray, values: HostArray) -> HostArray:
    """Return slopes (boxes, d) of values (boxes, size) at points (boxes, size, d) by least squares."""
    points = points - points.mean(axis=1, keepdims=True)
    moments = np.swapaxes(points, 1, 2) @ points
    d = moments.shape[-1]
    trace = np.einsum("ckk->c", moments)
    ridge = RIDGE * trace + (trace == 0)
    moments += ridge[:, None, None] * np.eye(d)
    right = np.einsum("csk,cs->ck", points, values - values.mean(axis=1, keepdims=True))
    slopes: HostArray = np.linalg.solve(moments, right[:, :, None])[:, :, 0]
    return slopes
