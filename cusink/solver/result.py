"""What a solve returns: potentials, values, and what can be made of them without solving again."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink.backends.operators import ops_for
from cusink.errors import one_call
from cusink.solver import checks
from cusink.solver.problem import Problem
from cusink.solver.values import unbalanced_bounds, weighted_sum

__all__ = [
    "SinkhornResult",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class SinkhornResult:
    """Solution of one problem, or of a batch.

    Attributes
    ----------
    f : array, shape (n,) or (B, n)
        Dual potential of the source, in the unit of the cost. Finite for empty bins too: the derivative of `reg_cost`
        with respect to their weight, up to a constant.
    g : array, shape (m,) or (B, m)
        Dual potential of the target.
    cost : array, shape () or (B,)
        Transport cost ``<P, C>``, also called E0 or the sharp Sinkhorn loss.
    reg_cost : array, shape () or (B,)
        ``<P, C> + eps KL(P | a b')``, which is ``<a, f> + <b, g>``; the value of GeomLoss and OTT. With `reach`, the
        whole objective of `cusink.sinkhorn`, prices of the marginals included.
    entropic_cost : array, shape () or (B,)
        ``<P, C> - eps H(P)``, Cuturi's and Viehmann's E-lambda.
    error : array, shape () or (B,)
        L1 error of the column marginal relative to the mass; the row marginal is met up to rounding. With `reach`,
        the distance is that from ``b exp(-g / rho_b)``, the marginal of the optimum.
    n_iter : array of int, shape () or (B,)
        Iterations taken.
    converged : array of bool, shape () or (B,)
        Whether `error` reached the tolerance.
    """

    f: Any
    g: Any
    cost: Any
    reg_cost: Any
    entropic_cost: Any
    error: Any
    n_iter: Any
    converged: Any
    problem: Problem = field(repr=False)

    @classmethod
    def of(cls, problem, every, n_iter, converged):
        """Result of the problem's values (B,) `every`, the host arrays among them taken to its library."""
        xp = ops_for(problem.C).xp
        every = {name: problem.outward(xp.asarray(value)) for name, value in every.items()}
        counts = (xp.asarray(x) if problem.batched else xp.asarray(x)[0] for x in (n_iter, converged))
        n_iter, converged = counts
        f, g = (problem.outward(x) for x in problem.potentials())
        return cls(f=f, g=g, n_iter=n_iter, converged=converged, problem=problem, **every)

    def plan(self):
        """Return the transport plan, shape (n, m) or (B, n, m): memory of that size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``.
        """
        problem = self.problem
        return problem.outward(ops_for(problem.C).plan(problem.C, *problem.logits(), problem.eps))

    def apply(self, v, axis):
        """Multiply the plan with vectors, without forming it.

        Parameters
        ----------
        v : array, shape (m,) or (B, m) for axis 1; (n,) or (B, n) for axis 0
            Vectors of any sign.
        axis : {0, 1}
            The axis of the plan to sum over: 1 gives ``P v``, 0 gives ``P' v``.

        Returns
        -------
        array, shape (n,) or (B, n) for axis 1; (m,) or (B, m) for axis 0
        """
        problem = self.problem
        v = checks.vector(v, axis, problem)
        return problem.outward(ops_for(problem.C).apply_plan(problem.C, *problem.logits(), v, problem.eps, axis))

    @one_call
    def bounds(self):
        """Enclose the cost of the unregularised problem.

        Returns
        -------
        lower, upper : array, shape () or (B,)
            Numbers between which ``min <P, C>`` over all plans lies, converged or not; with `reach` the minimum is
            that of ``<P, C> + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)``.

        Notes
        -----
        The lower bound is the dual value of potentials made feasible by two c-transforms. The upper bound is the cost
        of the plan made feasible by the rounding of Altschuler, Weed and Rigollet (NIPS 2017). Both are widened by
        what rounding can have done to them.
        """
        problem = self.problem
        if problem.reach is not None:
            return unbalanced_bounds(problem)
        ops, xp = ops_for(problem.C), ops_for(problem.C).xp
        # In float32 the entries of a plan are only known to some (C / eps) roundings: too few digits to certify with.
        problem = replace(problem, **{name: getattr(problem, name).astype(np.float64) for name in "abCfg"})
        a, b, C, eps = problem.a, problem.b, problem.C, problem.eps
        mass = a.sum(axis=1)
        g = xp.where(b > 0, problem.g, -xp.inf)
        f = ops.c_transform(C, g, axis=1)
        g = ops.c_transform(C, xp.where(a > 0, f, -xp.inf), axis=0)
        lower = weighted_sum(xp, a, f) + weighted_sum(xp, b, g)

        p, q = problem.logits()
        one = xp.ones_like(b)
        rows = ops.apply_plan(C, p, q, one, eps, axis=1)
        p = p + xp.log(_shrink(xp, a, rows))
        columns = ops.apply_plan(C, p, q, xp.ones_like(a), eps, axis=0)
        q = q + xp.log(_shrink(xp, b, columns))
        short_a = xp.maximum(a - ops.apply_plan(C, p, q, one, eps, axis=1), 0)
        short_b = xp.maximum(b - ops.apply_plan(C, p, q, xp.ones_like(a), eps, axis=0), 0)
        missing = xp.maximum(short_a.sum(axis=1), short_b.sum(axis=1))
        rest = ops.bilinear(C, short_a, short_b)
        rest = xp.where(missing > 0, rest / xp.where(missing > 0, missing, 1), 0)
        upper = ops.transport_cost(C, p, q, eps) + rest

        carried = xp.where(a > 0, xp.abs(f), 0).max(axis=1), xp.where(b > 0, xp.abs(g), 0).max(axis=1)
        slack = 8 * float(np.finfo(self.problem.C.dtype.name).eps) * mass * (carried[0] + carried[1])
        # Entries were taken anew after each scaling: what they then differ by is mass that is moved elsewhere.
        upper = upper + problem.rounding() * (xp.abs(upper) + mass * max(map(abs, ops.cost_range(C))))
        return problem.outward(lower - slack), problem.outward(upper + slack)


def _shrink(xp, wanted, have):
    """Factors of at most 1 that bring marginals `have` down to `wanted`."""
    largest = xp.maximum(have, wanted)
    return xp.where(largest > 0, wanted / xp.where(largest > 0, largest, 1), 1)
