"""Conditional means under plans between the cells of a grid, by log-sum-exp along one axis at a time."""

from cusink.backends.grid import reductions as grid
from cusink.costs.cells import GridCosts
from cusink.costs.logits import logits
from cusink.costs.means import Means
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, HostArray


def log_means(dense: Operators[Array], C: GridCosts, eps: float, a: Array, b: Array, f: Array, g: Array) -> "LogMeans":
    """Return the `LogMeans` of all problems."""
    p, q = (logits(dense.xp, weights, potential, eps) for weights, potential in ((a, f), (b, g)))
    of_q, of_p = (-1 / eps * grid.softmin(dense, C, summed, eps) for summed in (q, p))
    return LogMeans(dense, C, eps, p, q, of_q, of_p)


class LogMeans(Means):
    """Logits p and q (B, n) of problems, and the logarithms of the sums over the other side."""

    def __init__(
        self, dense: Operators[Array], C: GridCosts, eps: float, p: Array, q: Array, of_q: Array, of_p: Array
    ) -> None:
        self.dense, self.C, self.eps, self.p, self.q, self.of_q, self.of_p = dense, C, eps, p, q, of_q, of_p

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return the means of v given each bin of the other side, whether it has weight or not."""
        summed, sums = (self.q, self.of_q) if axis == 1 else (self.p, self.of_p)
        plus, minus = grid.log_products(self.dense, self.C, summed, v, self.eps)
        xp = self.dense.xp
        return xp.exp(plus - sums) - xp.exp(minus - sums)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the cost given each bin."""
        summed, sums = (self.q, self.of_q) if axis == 1 else (self.p, self.of_p)
        return self.dense.xp.exp(grid.log_cost_sums(self.dense, self.C, summed, self.eps) - sums)

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self.dense.xp.exp(self.p + self.of_q if axis == 1 else self.q + self.of_p)

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, n)."""
        xp, C = self.dense.xp, self.C.block(self.dense.xp)
        out = xp.zeros_like(C)
        for k in range(len(self.p)):
            factor = rows[k, :, None]
            if columns is not None:
                factor = factor + columns[k]
            if costs is not None:
                factor = factor + costs[k] * C
            out += self.dense.plan(C, self.p[k : k + 1], self.q[k : k + 1], self.eps)[0] * factor
        return out

    def at(self, index: HostArray) -> "LogMeans":
        """Return the means of the problems at `index`."""
        return LogMeans(self.dense, self.C, self.eps, *(x[index] for x in (self.p, self.q, self.of_q, self.of_p)))
