"""Conditional means under plans on CuPy: each one a pass over the cost, and no more memory than the vectors."""

from collections.abc import Iterator
from typing import Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import limits
from cusink.backends.cupy.reductions import apply_plan, plan, plan_sum
from cusink.costs.means import Means
from cusink.types import Array, Axis, HostArray


def plan_means(
    C: Array, a: Array, b: Array, f: Array, g: Array, eps: float
) -> Iterator[tuple[HostArray, "DenseMeans"]]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`: all problems at once."""
    yield np.arange(len(a)), DenseMeans.of(C, a, b, f, g, eps)


class DenseMeans(Means):
    """Logits p (B, n) and q (B, m), potentials over eps f and g, and the sums T and S, which are about 1."""

    apply_plan = staticmethod(apply_plan)

    def __init__(
        self, C: Array, eps: float, p: Array, q: Array, f: Array, g: Array, sums: tuple[Array, Array] | None = None
    ) -> None:
        self.C, self.eps, self.p, self.q, self.f, self.g = C, eps, p, q, f, g
        if sums is None:
            T = self.apply_plan(C, f, q, cp.ones_like(q), eps, 1)
            sums = T, self.apply_plan(C, p, g, cp.ones_like(p), eps, 0)
        self.T, self.S = sums

    @classmethod
    def of(cls, C: Array, a: Array, b: Array, f: Array, g: Array, eps: float) -> Self:
        """Return the means for weights a (B, n) and b (B, m) and potentials f and g."""
        f, g = (cp.where(cp.isfinite(x), x, 0) / x.dtype.type(eps) for x in (f, g))
        with np.errstate(divide="ignore"):
            p, q = cp.log(a) + f, cp.log(b) + g
        return cls(C, eps, p, q, f, g)

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return the means of v given each bin of the other side, which may have no weight."""
        if axis == 1:
            return _ratio(self.apply_plan(self.C, self.f, self.q, v, self.eps, 1), self.T)
        return _ratio(self.apply_plan(self.C, self.p, self.g, v, self.eps, 0), self.S)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the cost given each bin."""
        p, q = (self.f, self.q) if axis == 1 else (self.p, self.g)
        out = cp.zeros_like(self.T if axis == 1 else self.S)
        for problems, rows in self._blocks():
            C = self._cost(problems, rows)
            share = plan(C, p[problems, rows], q[problems], self.eps) * cp.where(cp.isposinf(C), 0, C)
            if axis == 1:
                out[problems, rows] = share.sum(axis=2)
            else:
                out[problems] += share.sum(axis=1)
        return _ratio(out, self.T if axis == 1 else self.S)

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return cp.exp(self.p - self.f) * self.T if axis == 1 else cp.exp(self.q - self.g) * self.S

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        out = cp.zeros(self.C.shape[-2:], self.p.dtype)
        if self.C.ndim == 2:  # then a block of rows is for all problems
            step = max(1, limits.LIMITS.block_entries // out.shape[1])
            for block in (slice(row, row + step) for row in range(0, len(out), step)):
                C, p, w = self._cost(slice(None), block), self.p[:, block], rows[:, block]
                out[block] = plan_sum(C, p, self.q, w, columns, costs, self.eps)
            return out
        for problems, block in self._blocks():
            factor = rows[problems, block, None]
            if columns is not None:
                factor = factor + columns[problems, None, :]
            C = self._cost(problems, block)
            if costs is not None:
                factor = factor + costs[problems, None, None] * cp.where(cp.isposinf(C), 0, C)
            out[block] += (plan(C, self.p[problems, block], self.q[problems], self.eps) * factor).sum(axis=0)
        return out

    def at(self, index: HostArray) -> Self:
        """Return the means of the problems at `index`."""
        p, q, f, g, T, S = (x[index] for x in (self.p, self.q, self.f, self.g, self.T, self.S))
        return type(self)(self._costs(index), self.eps, p, q, f, g, (T, S))

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield slices of problems and of rows, for blocks of limited size or of one row."""
        (B, n), m, entries = self.p.shape, self.q.shape[1], limits.LIMITS.block_entries
        row_step = max(1, min(n, entries // m))
        problem_step = max(1, entries // (row_step * m))
        for start in range(0, B, problem_step):
            for row in range(0, n, row_step):
                yield slice(start, start + problem_step), slice(row, row + row_step)

    def _costs(self, index: HostArray) -> Array:
        return self.C if self.C.ndim == 2 else self.C[index]

    def _cost(self, problems: slice, rows: slice) -> Array:
        return self.C[rows] if self.C.ndim == 2 else self.C[problems, rows]


def _ratio(x: Array, y: Array) -> Array:
    """Return ``x / y``, and 0 for a bin that no mass may reach."""
    return cp.where(y > 0, x / cp.where(y > 0, y, 1), 0)
