"""Conditional means under plans whose costs are made in blocks: each is a pass over these."""

import numpy as np

from cusink.backends.blocks import reductions
from cusink.costs.blockwise import InBlocks
from cusink.costs.logits import logits
from cusink.costs.means import Means
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, HostArray


def block_means(
    dense: Operators[Array], C: InBlocks, a: Array, b: Array, f: Array, g: Array, eps: float
) -> "BlockMeans":
    """Return the means of all problems, taken in float64."""
    xp, wide = dense.xp, C.astype(np.float64)
    sides = ((x.astype(np.float64), xp.where(xp.isfinite(h), h, 0)) for x, h in ((a, f), (b, g)))
    p, q = (logits(xp, weights, potential, eps) for weights, potential in sides)
    of_q = -reductions.softmin(dense, wide, q, eps, 1) / eps
    of_p = -reductions.softmin(dense, wide, p, eps, 0) / eps
    return BlockMeans(dense, wide, eps, p, q, of_q, of_p)


class BlockMeans(Means):
    """Logits p (B, n) and q (B, m), and the logarithms `of_q` (B, n) and `of_p` (B, m) of the sums over the others.

    With ``-of_q`` in the place of p every row of the plan has the sum 1, whether its bin has weight or not.
    """

    def __init__(
        self, dense: Operators[Array], C: InBlocks, eps: float, p: Array, q: Array, of_q: Array, of_p: Array
    ) -> None:
        self.dense, self.C, self.eps, self.p, self.q, self.of_q, self.of_p = dense, C, eps, p, q, of_q, of_p

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return the means of v given each bin of the other side, whether it has weight or not."""
        return reductions.apply_plan(self.dense, self.C, *self._given(axis), v.astype(np.float64), self.eps, axis)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the cost given each bin."""
        return reductions.mean_costs(self.dense, self.C, *self._given(axis), self.eps, axis)

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self.dense.xp.exp(self.p + self.of_q if axis == 1 else self.q + self.of_p)

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        xp = self.dense.xp
        out = xp.zeros(self.C.shape[-2:])
        for some, part, C in reductions.pieces(xp, self.C, 1):
            factor = rows[some, part, None] + xp.zeros_like(self.q)[some, None, :]
            if columns is not None:
                factor = factor + columns[some, None, :]
            if costs is not None:
                factor = factor + costs[some, None, None] * C
            plans = self.dense.plan(C, self.p[some, part], self.q[some], self.eps)
            out[part] += (plans * factor).sum(axis=0)
        return out

    def at(self, index: HostArray) -> "BlockMeans":
        """Return the means of the problems at `index`."""
        index = self.dense.xp.asarray(index)
        each = (x[index] for x in (self.p, self.q, self.of_q, self.of_p))
        return BlockMeans(self.dense, self.C.at(index), self.eps, *each)

    def _given(self, axis: Axis) -> tuple[Array, Array]:
        """Return logits of plans in which every bin of one side has the sum 1."""
        return (-self.of_q, self.q) if axis == 1 else (self.p, -self.of_p)
