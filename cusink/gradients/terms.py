"""What the gradients of a solve are made of: weights, costs, points and regularisation, block by block of the plans."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.backends.operators import ops_for
from cusink.checks.arrays import narrowed
from cusink.costs.grid import GridCosts
from cusink.costs.points import PointCosts, points_adjoint
from cusink.solver.problem import Problem

BLOCK = 1 << 20  # entries of a block of plans, where a gradient needs the plan entry by entry


@dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """What the gradients are made of, with a batch axis: the solved problem, cotangents, and the additive fit x, y."""

    problem: Problem
    level: Any
    grad_cost: Any
    grad_entropic_cost: Any
    grad_f: Any
    grad_g: Any
    x: Any
    y: Any

    def by_a(self):
        """Gradient (B, n) by the source weights, of mean zero."""
        return self._by_weights(self.problem.a, self.problem.f, self.x)

    def by_b(self):
        """Gradient (B, m) by the target weights, of mean zero."""
        return self._by_weights(self.problem.b, self.problem.g, self.y)

    def _by_weights(self, weights, potential, fit):
        xp = ops_for(weights).xp
        with np.errstate(invalid="ignore"):
            out = self.level[:, None] * potential
        if fit is not None:
            out -= self.problem.eps * fit
        if self.grad_entropic_cost is not None:
            entropy = xp.where(weights > 0, xp.log(xp.where(weights > 0, weights, 1)) + 1, 0)
            out += self.grad_entropic_cost[:, None] * (self.problem.eps * entropy)
        mean = out.mean(axis=1, keepdims=True)
        if not xp.isfinite(mean).all():  # a bin that C forbids all partners has no finite potential
            reached = xp.isfinite(potential)
            out = xp.where(reached, out, 0)
            mean = xp.where(reached, out.sum(axis=1, keepdims=True) / reached.sum(axis=1, keepdims=True), 0)
        out -= mean
        return out

    def by_cost(self):
        """Gradient by the cost: (n, m) or (1, n, m), summed over the batch, or (B, n, m)."""
        problem = self.problem
        ops, C = ops_for(problem.C), problem.C
        if isinstance(C, (PointCosts, GridCosts)):
            return None
        shared = C.ndim == 2
        if shared and self.grad_f is None:
            out = self._by_shared_cost(ops)
        else:
            out = ops.xp.zeros_like(C)
            for problems, rows in self._blocks():
                part = self._block(problems, rows)[0]
                if shared:
                    out[rows] += part.sum(axis=0)
                else:
                    out[problems, rows] = part
        out = narrowed(out, problem.dtype, ops.xp)
        if shared:
            return out[None] if problem.batch_of_one else out
        return out if problem.batched else out[0]

    def by_points(self):
        """Gradients by the points of a cloud, (n, d) and (m, d), summed over the batch, or (B, n, d) and (B, m, d)."""
        C = self.problem.C
        if not isinstance(C, PointCosts):
            return None, None
        xp = ops_for(C).xp
        gx, gy = (xp.zeros(points.shape, np.float64) for points in (C.x, C.y))
        for problems, rows in self._blocks():
            gradient = self._block(problems, rows)[0]
            if C.ndim == 2:
                by_rows, by_columns = C.block_adjoint(xp, gradient.sum(axis=0), rows=rows)
                gx[rows] += by_rows
                gy += by_columns
            else:
                by_rows, by_columns = C.block_adjoint(xp, gradient, problems, rows)
                gx[problems, rows] += by_rows
                gy[problems] += by_columns
        if C.ndim < C.cloud.x.ndim:  # a batch of one
            gx, gy = gx[None], gy[None]
        return points_adjoint(xp, C.cloud, gx, gy)

    def by_eps(self):
        """Gradient by the regularisation, (B,) or ()."""
        problem = self.problem
        xp = ops_for(problem.C).xp
        out = xp.zeros(len(problem.a), np.float64)
        for problems, rows in self._blocks():
            gradient, log_ratio, direct = self._block(problems, rows)
            out[problems] += ((gradient - direct) * log_ratio).sum(axis=(1, 2), dtype=np.float64)
        if self.grad_entropic_cost is not None:
            for weights in (problem.a, problem.b):
                logs = xp.log(xp.where(weights > 0, weights, 1))
                out += self.grad_entropic_cost * (weights * logs).sum(axis=1, dtype=np.float64)
        return problem.outward(out)

    def _by_shared_cost(self, ops):
        """As `by_cost`: ``sum_b P_b`` times level, plus ``grad_cost (f + g - C) / eps - x - y``."""
        xp, problem, w = ops.xp, self.problem, self.grad_cost
        C, eps, a, b = problem.C, problem.eps, problem.a, problem.b
        f, g = finite(xp, problem.f), finite(xp, problem.g)
        rows, columns, costs = self.level[:, None] + xp.zeros_like(a), None, None
        if w is not None:
            rows += w[:, None] * f / eps - self.x
            columns, costs = w[:, None] * g / eps - self.y, -w / eps
        out = xp.zeros_like(C)
        for index, means in ops.plan_means(C, a, b, f, g, eps):
            out += means.plan_sum(*(v if v is None else v[index] for v in (rows, columns, costs)))
        return out

    def _block(self, problems, rows):
        """Of a block of plans: the gradient by the cost, ``log(P / a b')``, and the part ``grad_cost P`` of the first.

        The rest of the first changes the plan and not its price, and is what a change of eps works through.
        """
        problem, eps = self.problem, self.problem.eps
        ops, xp = ops_for(problem.a), ops_for(problem.a).xp  # of blocks of the cost, which are arrays
        f, g = finite(xp, problem.f)[problems, rows], finite(xp, problem.g)[problems]
        with np.errstate(divide="ignore"):
            p, q = xp.log(problem.a[problems, rows]) + f / eps, xp.log(problem.b[problems]) + g / eps
        C = ops_for(problem.C).cost_block(problem.C, problems, rows)
        plan = ops.plan(C, p, q, eps)
        log_ratio = (f[:, :, None] + g[:, None, :] - finite(xp, C)) / eps
        direct, factor = 0, self.level[problems, None, None]
        if self.grad_cost is not None:
            w = self.grad_cost[problems, None, None]
            direct, factor = w * plan, factor + w * log_ratio
        if self.x is not None:
            factor = factor - self.x[problems, rows, None] - self.y[problems, None, :]
        gradient = plan * factor
        if self.grad_f is not None:
            gradient += ops.plan(C, f / eps, q, eps) * self.grad_f[problems, rows, None]
            gradient += ops.plan(C, p, g / eps, eps) * self.grad_g[problems, None, :]
        return gradient, log_ratio, direct

    def _blocks(self):
        """Slices of problems and of rows such that one block holds at most `BLOCK` entries, or one row."""
        (problems, n), m = self.problem.a.shape, self.problem.b.shape[1]
        row_step = max(1, min(n, BLOCK // m))
        problem_step = max(1, BLOCK // (row_step * m))
        for start in range(0, problems, problem_step):
            for row in range(0, n, row_step):
                yield slice(start, min(start + problem_step, problems)), slice(row, min(row + row_step, n))


def finite(xp, x, instead=0):
    """`x` with `instead` for the +inf of a forbidden pair, or of a bin that has no other."""
    forbidden = xp.isposinf(x)
    return xp.where(forbidden, x.dtype.type(instead), x) if forbidden.any() else x


def unweighted(ops, C, f, g, eps, grad_f, grad_g):
    """``E grad_g`` and ``E' grad_f`` with ``E = P / (a b')``, which between two empty bins may leave the range."""
    xp = ops.xp
    largest = float(np.finfo(f.dtype.name).max) ** 0.5
    with np.errstate(over="ignore", invalid="ignore"):
        h = ops.apply_plan(C, f / eps, g / eps, grad_g, eps, 1)
        k = ops.apply_plan(C, f / eps, g / eps, grad_f, eps, 0)
    return tuple(xp.clip(xp.nan_to_num(x), -largest, largest) for x in (h, k))
