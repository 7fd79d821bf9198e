"""The cost between the cells of a regular grid as data for the operators: one small cost for each axis."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class GridCosts:
    """``C_ij = sum_k axes[k][i_k, j_k]`` for cells i and j of a grid, numbered in C order.

    `axes` are symmetric arrays (n_k, n_k) of one dtype, from 0 up.
    """

    axes: tuple[Any, ...]

    @property
    def cells(self):
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def shape(self):
        """Of the cost that is not there: (n, n)."""
        cells = 1
        for axis in self.axes:
            cells *= len(axis)
        return (cells, cells)

    @property
    def ndim(self):
        return 2

    @property
    def dtype(self):
        return self.axes[0].dtype

    def astype(self, dtype):
        """The same grid in another precision."""
        return GridCosts(tuple(axis.astype(dtype) for axis in self.axes))

    def at(self, problems):
        """The costs of some problems: all share them."""
        return self

    def block(self, xp, problems=slice(None), rows=slice(None)):
        """Costs (rows, n) of some rows as an array."""
        of_rows = xp.unravel_index(xp.arange(self.shape[0])[rows], self.cells)
        out = xp.zeros((len(of_rows[0]), *self.cells), self.dtype)
        for k, (axis, cells) in enumerate(zip(self.axes, of_rows, strict=True)):
            out += axis[cells].reshape(len(cells), *(len(axis) if other == k else 1 for other in range(len(self.axes))))
        return out.reshape(len(of_rows[0]), -1)

    def largest(self, xp):
        """The largest cost."""
        return sum(float(axis.max()) for axis in self.axes)
