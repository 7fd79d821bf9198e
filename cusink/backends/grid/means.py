"""Conditional means under plans between the cells of a grid, by log-sum-exp along one axis at a time."""

import numpy as np

from cusink.backends.grid import reductions as grid


def log_means(dense, C, eps, a, b, f, g):
    """`LogMeans` of all problems."""
    xp = dense.xp
    with np.errstate(divide="ignore"):
        p, q = xp.log(a) + f / eps, xp.log(b) + g / eps
    sums = (-1 / eps * grid.softmin(dense, C, logits, eps) for logits in (q, p))
    return LogMeans(dense, C, eps, p, q, *sums)


class LogMeans:
    """Logits p and q (B, n) of problems, and the logarithms of the sums over the other side, see `operators`."""

    def __init__(self, dense, C, eps, p, q, of_q, of_p):
        self.dense, self.C, self.eps, self.p, self.q, self.of_q, self.of_p = dense, C, eps, p, q, of_q, of_p

    def mean(self, v, axis):
        """Means of v given each bin of the other side, whether it has weight or not."""
        logits, sums = (self.q, self.of_q) if axis == 1 else (self.p, self.of_p)
        plus, minus = grid.log_products(self.dense, self.C, logits, v, self.eps)
        xp = self.dense.xp
        return xp.exp(plus - sums) - xp.exp(minus - sums)

    def mean_cost(self, axis):
        """Means of the cost given each bin."""
        logits, sums = (self.q, self.of_q) if axis == 1 else (self.p, self.of_p)
        return self.dense.xp.exp(grid.log_priced(self.dense, self.C, logits, self.eps) - sums)

    def marginal(self, axis):
        """``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self.dense.xp.exp(self.p + self.of_q if axis == 1 else self.q + self.of_p)

    def plan_sum(self, rows, columns, costs):
        """``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, n)."""
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

    def at(self, index):
        """The means of the problems at `index` alone."""
        return LogMeans(self.dense, self.C, self.eps, *(x[index] for x in (self.p, self.q, self.of_q, self.of_p)))
