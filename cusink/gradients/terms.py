"""The terms of the gradients of a solve: weights, costs, points and regularisation, block by block of the plans."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.blocks import blocks
from cusink.costs.cost import GradientBlock
from cusink.costs.logits import logits
from cusink.costs.pulled import plan_adjoint
from cusink.deferred import cached_property
from cusink.gradients.first_bits import in_range
from cusink.gradients.parts import replace_inf
from cusink.operand import dense_cost
from cusink.solver.problem import Problem
from cusink.types import Array

BLOCK_ENTRIES = 1 << 17  # of a block of plans, where a gradient needs the plan entry by entry
SUM_COPIES = 6  # of a sum of plans, while it is made
SUM_COPIES_STORED = 9  # in float64, where the costs are stored meanwhile
COPIES_PER_BLOCK = 16  # of float64 that a block takes at most, and what the allocator keeps of them


class PlanBlock(NamedTuple):
    """A block (problems, rows, m) of plans.

    gradient : the gradient with respect to the cost.
    log_ratio : ``log(P / a b')``, where it is asked for or used.
    direct : the part ``grad_cost P`` of the gradient. The rest is the part through the plan, which is all that a
        change of eps acts on.
    """

    gradient: Array
    log_ratio: Array | None
    direct: Array | float


@dataclass(frozen=True, eq=False, kw_only=True)
class GradientTerms:
    """The solved problem, cotangents, and the solution x (B, n), y (B, m) of the marginal system.

    `level` (B,) is the sum of the cotangents of the three values. Gradients by weights need the potentials as they are;
    what needs entries of the plan has the problem `in_one_dtype`.
    """

    problem: Problem
    level: Array
    grad_cost: Array | None = None
    grad_entropic_cost: Array | None = None
    grad_f: Array | None = None
    grad_g: Array | None = None
    x: Array | None = None
    y: Array | None = None

    @cached_property
    def in_one_dtype(self) -> Problem:
        """The problem in the precision in which entries of its plan are taken."""
        problem = self.problem
        return problem if problem.f.dtype == problem.C.dtype else problem.in_one_dtype()

    def wrt_a(self) -> Array:
        """Return the gradient (B, n) with respect to the source weights, of mean zero."""
        return self._wrt_weights(self.problem.a, self.problem.f, self.x)

    def wrt_b(self) -> Array:
        """Return the gradient (B, m) with respect to the target weights, of mean zero."""
        return self._wrt_weights(self.problem.b, self.problem.g, self.y)

    @np.errstate(invalid="ignore")
    def _wrt_weights(self, weights: Array, potential: Array, fit: Array | None) -> Array:
        xp, out = self.problem.xp, potential
        if not bool((self.level == 1).all()):
            wide = np.promote_types(self.level.dtype, out.dtype)  # NumPy takes its time to mix dtypes
            out = self.level.astype(wide, copy=False)[:, None] * out
        if fit is not None:
            out = out - self.problem.eps_as(2) * fit
        if self.grad_entropic_cost is not None:
            entropy = xp.where(weights > 0, xp.log(xp.where(weights > 0, weights, 1)) + 1, 0)
            out = out + self.grad_entropic_cost[:, None] * (self.problem.eps_as(2) * entropy)
        mean = out.mean(axis=1, keepdims=True)
        if not xp.isfinite(mean).all():  # a bin that C forbids all partners has no finite potential
            reached = xp.isfinite(potential)
            out = xp.where(reached, out, 0)
            mean = xp.where(reached, out.sum(axis=1, keepdims=True) / reached.sum(axis=1, keepdims=True), 0)
        return out - mean

    def wrt_cost(self) -> Array | None:
        """Return the gradient with respect to a stored cost.

        It is (n, m) or (1, n, m), summed over the batch, or (B, n, m).
        """
        problem, C = self.in_one_dtype, self.in_one_dtype.C
        if not C.stored:
            return None
        if C.shared and self.grad_f is None:
            out = self._wrt_shared_cost()
        else:
            out = C.xp.zeros(C.shape, C.dtype)
            for problems, rows in self._blocks():
                part = self._block(problems, rows).gradient
                if C.shared:
                    out[rows] += part.sum(axis=0)
                else:
                    out[problems, rows] = part
        out = narrowed(out, problem.dtype, C.xp)
        if C.shared:
            return out[None] if problem.batch_of_one else out
        return out if problem.batched else out[0]

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud, (None, None) for other costs.

        They are (n, d) and (m, d), summed over the batch, or (B, n, d) and (B, m, d).
        """
        found = self._of_pairs_that_count()
        if found is not None:
            return found
        return self.in_one_dtype.C.points_adjoint(self._summed() if self._summable else self._gradients())

    def _of_pairs_that_count(self) -> tuple[Array, Array | None] | None:
        """Return `wrt_points` of one large problem whose gradient by the costs is its plan; None for others."""
        parts = (self.grad_cost, self.grad_f, self.x, self.problem.reach)
        if len(self.level) != 1 or any(part is not None for part in parts):
            return None
        problem = self.problem.in_float64()
        of_plan = problem.a, problem.b, problem.f, problem.g, float(np.max(problem.eps))
        return plan_adjoint(problem.C, float(self.level[0]), *of_plan)

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """Return the gradients (n_k,) with respect to the positions of the cells of a grid, summed over the batch."""
        found = self.in_one_dtype.C.axes_adjoint(self._gradients())
        return found if found is None else tuple(narrowed(x, self.problem.dtype, self.problem.xp) for x in found)

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of a metric, summed over the batch."""
        return self.in_one_dtype.C.metric_adjoint(self._gradients())

    def _gradients(self) -> Iterator[GradientBlock]:
        """Yield the gradients with respect to the costs."""
        for problems, rows in self._blocks():
            yield problems, rows, self._block(problems, rows).gradient

    @property
    def _summable(self) -> bool:
        """Whether problems share a cloud, and the sum of their gradients by its costs may be made at once."""
        C, limit = self.in_one_dtype.C, getattr(self.in_one_dtype.C.data, "memory_limit", 0)
        copies = 8 * SUM_COPIES_STORED if getattr(C.data, "kept", False) else SUM_COPIES * np.dtype(C.dtype).itemsize
        fits = copies * C.shape[-2] * C.shape[-1] <= limit
        return C.shared and len(self.problem.a) > 1 and fits and self.grad_f is None

    def _summed(self) -> Iterator[GradientBlock]:
        """Yield the sum over the problems of the gradients with respect to the costs: products, and one kernel."""
        total = self._wrt_shared_cost()
        n, m = total.shape
        for _, rows in blocks(1, n, m, BLOCK_ENTRIES):
            yield slice(0, 1), rows, total[None, rows]

    @np.errstate(over="ignore", invalid="ignore")
    def wrt_eps(self) -> Array:
        """Return the gradient with respect to the regularisation, (B,) or ()."""
        problem, xp = self.problem, self.problem.xp
        out = xp.zeros(len(problem.a), np.float64)
        for problems, rows in self._blocks():
            gradient, log_ratio, direct = self._block(problems, rows, with_log_ratio=True)
            out[problems] += ((gradient - direct) * log_ratio).sum(axis=(1, 2), dtype=np.float64)
        if self.grad_entropic_cost is not None:
            for weights in (problem.a, problem.b):
                logs = xp.log(xp.where(weights > 0, weights, 1))
                out += self.grad_entropic_cost * (weights * logs).sum(axis=1, dtype=np.float64)
        return problem.to_user(out)

    def wrt_reach(self) -> Array | None:
        """Return the gradient (B, 2) or (2,) with respect to the prices of both marginals; None where these are met."""
        return None

    def _wrt_shared_cost(self) -> Array:
        """Return ``sum_b P_b`` times ``level``, plus ``grad_cost (f + g - C) / eps - x - y``."""
        problem, w, xp = self.in_one_dtype, self.grad_cost, self.problem.xp
        C, eps, a, b = problem.C, problem.eps_as(2), problem.a, problem.b
        f, g = replace_inf(xp, problem.f), replace_inf(xp, problem.g)
        rows, columns, costs = self.level[:, None] + xp.zeros_like(a), None, None
        if w is not None:
            rows += w[:, None] * f / eps - self.x
            columns, costs = w[:, None] * g / eps - self.y, -w / problem.eps_as(1)
        out = xp.zeros(C.shape, C.dtype)
        for index, means in C.plan_means(a, b, f, g, problem.eps):
            of_columns, of_costs = (None if v is None else v[index] for v in (columns, costs))
            out += means.plan_sum(rows[index], of_columns, of_costs)
        return out

    @np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
    def _block(self, problems: slice, rows: slice, with_log_ratio: bool = False) -> PlanBlock:
        problem, xp = self.in_one_dtype, self.problem.xp
        eps = problem.eps_as(2, problems)
        f, g = replace_inf(xp, problem.f)[problems, rows], replace_inf(xp, problem.g)[problems]
        p, q = logits(xp, problem.a[problems, rows], f, eps), logits(xp, problem.b[problems], g, eps)
        costs = problem.C.block(problems, rows)
        C = dense_cost(costs)
        each = problem.eps_of(problems)
        plan = C.plan(p, q, each)
        log_ratio = None
        if with_log_ratio or self.grad_cost is not None:
            log_ratio = (f[:, :, None] + g[:, None, :] - replace_inf(xp, costs)) / problem.eps_as(3, problems)
        direct, factor = 0, self.level[problems, None, None]
        if self.grad_cost is not None:
            w = self.grad_cost[problems, None, None]
            direct, factor = w * plan, factor + w * log_ratio
        if self.x is not None and self.y is not None:
            factor = factor - self.x[problems, rows, None] - self.y[problems, None, :]
        gradient = plan if self.grad_cost is None else plan * factor
        if self.grad_cost is None:
            gradient *= factor
        if self.grad_f is not None and self.grad_g is not None:
            of_f, of_g = C.plan(f / eps, q, each), C.plan(p, g / eps, each)  # may overflow at a bin without weight
            gradient += in_range(xp, of_f, problem.dtype) * self.grad_f[problems, rows, None]
            gradient += in_range(xp, of_g, problem.dtype) * self.grad_g[problems, None, :]
        return PlanBlock(gradient, log_ratio, direct)

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        (problems, n), m = self.problem.a.shape, self.problem.b.shape[1]
        limit = getattr(self.problem.C.data, "memory_limit", None)  # of costs that are not stored
        entries = BLOCK_ENTRIES if limit is None else min(BLOCK_ENTRIES, limit // (8 * COPIES_PER_BLOCK))
        return blocks(problems, n, m, entries)


def apply_density(problem: Problem, grad_f: Array, grad_g: Array) -> tuple[Array, Array]:
    """Return ``E grad_g`` and ``E' grad_f`` with the density ``E = P / (a b')``.

    Between two empty bins it may leave the range, and is clipped: where gradients are large, in a unit of theirs.
    """
    xp, C, eps, f, g = problem.xp, problem.C, problem.eps_as(2), problem.f, problem.g
    grad_f, grad_g = (x.astype(C.dtype, copy=False) for x in (grad_f, grad_g))  # a kernel takes all in one dtype
    size = xp.maximum(xp.abs(grad_f).max(axis=1), xp.abs(grad_g).max(axis=1))[:, None]
    unit = xp.exp2(xp.ceil(xp.log2(xp.maximum(size, 1))))
    grad_f, grad_g = grad_f / unit, grad_g / unit
    with np.errstate(over="ignore", invalid="ignore"):
        h = C.apply_plan(f / eps, g / eps, grad_g, problem.eps, 1)
        k = C.apply_plan(f / eps, g / eps, grad_f, problem.eps, 0)
    h, k = (in_range(xp, xp.nan_to_num(x), problem.dtype) for x in (h, k))
    if not bool((unit > 1).any()):
        return h, k
    most = float(np.finfo(h.dtype).max)
    with np.errstate(over="ignore"):
        return xp.clip(h * unit, -most, most), xp.clip(k * unit, -most, most)
