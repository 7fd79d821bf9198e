"""Conditional means under plans on CuPy: each one a pass over the cost, and no more memory than the vectors."""

import cupy as cp
import numpy as np

from cusink.backends.cupy.reductions import apply_plan, plan

BLOCK = 1 << 24  # entries of a block of plans, where a sum needs the plan itself


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink.backends.operators`: all problems at once."""
    yield np.arange(len(a)), Means.of(C, a, b, f, g, eps)


class Means:
    """Logits p (B, n) and q (B, m), potentials over eps f and g, and the sums T and S, which are about 1."""

    apply_plan = staticmethod(apply_plan)

    def __init__(self, C, eps, p, q, f, g, T, S):
        self.C, self.eps, self.p, self.q, self.f, self.g, self.T, self.S = C, eps, p, q, f, g, T, S

    @classmethod
    def of(cls, C, a, b, f, g, eps):
        """Of weights and potentials."""
        f, g = (cp.where(cp.isfinite(x), x, 0) / x.dtype.type(eps) for x in (f, g))
        with np.errstate(divide="ignore"):
            p, q = cp.log(a) + f, cp.log(b) + g
        T = cls.apply_plan(C, f, q, cp.ones_like(b), eps, 1)
        S = cls.apply_plan(C, p, g, cp.ones_like(a), eps, 0)
        return cls(C, eps, p, q, f, g, T, S)

    def mean(self, v, axis):
        """Means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            return _ratio(self.apply_plan(self.C, self.f, self.q, v, self.eps, 1), self.T)
        return _ratio(self.apply_plan(self.C, self.p, self.g, v, self.eps, 0), self.S)

    def mean_cost(self, axis):
        """Means of the cost given each bin."""
        p, q = (self.f, self.q) if axis == 1 else (self.p, self.g)
        out = cp.zeros_like(self.T if axis == 1 else self.S)
        for problems, rows in self._blocks():
            C = self._cost(problems, rows)
            part = plan(C, p[problems, rows], q[problems], self.eps) * cp.where(cp.isposinf(C), 0, C)
            if axis == 1:
                out[problems, rows] = part.sum(axis=2)
            else:
                out[problems] += part.sum(axis=1)
        return _ratio(out, self.T if axis == 1 else self.S)

    def marginal(self, axis):
        """``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return cp.exp(self.p - self.f) * self.T if axis == 1 else cp.exp(self.q - self.g) * self.S

    def plan_sum(self, rows, columns, costs):
        """``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        out = cp.zeros(self.C.shape[-2:], self.p.dtype)
        for problems, block in self._blocks():
            factor = rows[problems, block, None]
            if columns is not None:
                factor = factor + columns[problems, None, :]
            C = self._cost(problems, block)
            if costs is not None:
                factor = factor + costs[problems, None, None] * cp.where(cp.isposinf(C), 0, C)
            out[block] += (plan(C, self.p[problems, block], self.q[problems], self.eps) * factor).sum(axis=0)
        return out

    def at(self, index):
        """The means of the problems at `index` alone."""
        return type(self)(
            self._costs(index), self.eps, *(x[index] for x in (self.p, self.q, self.f, self.g, self.T, self.S))
        )

    def _blocks(self):
        """Slices of problems and of rows such that one block holds at most `BLOCK` entries, or one row."""
        (B, n), m = self.p.shape, self.q.shape[1]
        row_step = max(1, min(n, BLOCK // m))
        problem_step = max(1, BLOCK // (row_step * m))
        for start in range(0, B, problem_step):
            for row in range(0, n, row_step):
                yield slice(start, start + problem_step), slice(row, row + row_step)

    def _costs(self, index):
        return self.C if self.C.ndim == 2 else self.C[index]

    def _cost(self, problems, rows):
        return self.C[rows] if self.C.ndim == 2 else self.C[problems, rows]


def _ratio(x, y):
    """``x / y``, 0 where y is: a bin that nothing may reach."""
    return cp.where(y > 0, x / cp.where(y > 0, y, 1), 0)
