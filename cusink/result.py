"""What a solve returns: potentials, values, and what can be made of them without solving again."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink import _checks
from cusink._arrays import narrowed
from cusink._ops import ops_for
from cusink._unbalanced_values import unbalanced_bounds, unbalanced_values

__all__ = ["Problem", "SinkhornResult", "values"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """The solved problem in the precision it was computed in: a, f (B, n); b, g (B, m); C (n, m) or (B, n, m).

    Of unbalanced transport, with prices `reach` (rho_a, rho_b), the potentials are ``f + shift`` and ``g - shift`` with
    `shift` (B,) in float64, and the plan is that of f and g, see `cusink._unbalanced`.
    """

    a: Any
    b: Any
    C: Any
    eps: float
    f: Any
    g: Any
    dtype: Any
    batched: bool
    reach: tuple[float, float] | None = None
    shift: Any = None
    batch_of_one: bool = False  # C came as (1, n, m)

    @classmethod
    def of(cls, given, eps, f, g, reach, shift):
        """The problem of checked arrays, `cusink._checks.Arrays`, with its potentials."""
        names = ("a", "b", "C", "dtype", "batched", "batch_of_one")
        return cls(**{name: getattr(given, name) for name in names}, eps=float(eps), f=f, g=g, reach=reach, shift=shift)

    def logits(self):
        """``p = log a + f / eps`` and ``q = log b + g / eps``, -inf where the weight is zero."""
        xp, sides = ops_for(self.C).xp, ((self.a, self.f), (self.b, self.g))
        with np.errstate(divide="ignore"):  # an empty bin that nothing may reach has the potential +inf
            return tuple(xp.log(w) + xp.where(w > 0, x, x.dtype.type(0)) / self.eps for w, x in sides)

    def potentials(self):
        """The dual potentials, which of unbalanced transport have the shift and are in float64."""
        if self.reach is None:
            return self.f, self.g
        return self.f + self.shift[:, None], self.g - self.shift[:, None]

    def outward(self, array):
        """`array` (B, ...) in the shape and the dtype of what the user passed."""
        array = narrowed(array, self.dtype, ops_for(array).xp)
        return array if self.batched else array[0]

    def rounding(self):
        """Bound (B,) on the relative error of entries of the plan, taken in the dtype of this problem."""
        ops, xp = ops_for(self.C), ops_for(self.C).xp
        sides = ((self.a, self.f), (self.b, self.g))
        exponent = sum(xp.where(w > 0, xp.abs(x), 0).max(axis=1) for w, x in sides) + max(
            map(abs, ops.cost_range(self.C))
        )
        return 8 * float(np.finfo(self.C.dtype.name).eps) * (1 + exponent / self.eps)


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
        v = _checks.vector(v, axis, problem)
        return problem.outward(ops_for(problem.C).apply_plan(problem.C, *problem.logits(), v, problem.eps, axis))

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
        lower = _dot(xp, a, f) + _dot(xp, b, g)

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


def values(xp, problem):
    """``reg_cost`` and ``entropic_cost`` (B,) of a solved problem, from its potentials."""
    if problem.reach is not None:
        return unbalanced_values(problem)
    a, b = problem.a, problem.b
    reg_cost = _dot(xp, a, problem.f) + _dot(xp, b, problem.g)
    return reg_cost, reg_cost - problem.eps * (_entropy(xp, a) + _entropy(xp, b))


def _entropy(xp, weights):
    """``-sum_i w_i log w_i`` (B,)."""
    log = xp.where(weights > 0, weights, 1)
    return -_dot(xp, weights, xp.log(log, out=log))


def _dot(xp, weights, values):
    """``sum_i weights_i values_i`` (B,), where a zero weight makes even an infinite value nothing."""
    if not xp.isfinite(values).all():
        values = xp.where(weights > 0, values, 0)
    return xp.einsum("bi,bi->b", weights.astype(np.float64, copy=False), values.astype(np.float64, copy=False))


def _shrink(xp, wanted, have):
    """Factors of at most 1 that bring marginals `have` down to `wanted`."""
    largest = xp.maximum(have, wanted)
    return xp.where(largest > 0, wanted / xp.where(largest > 0, largest, 1), 1)
