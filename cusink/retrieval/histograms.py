"""Pairs of two collections, solved a row against many columns at a time: what a distance matrix is made of."""

import dataclasses

from cusink.backends.operators import ops_for
from cusink.costs.grid import GridCosts
from cusink.costs.operand import between, symmetric
from cusink.costs.points import PointCosts
from cusink.solver.loop import solve
from cusink.solver.problem import Problem
from cusink.solver.symmetric import self_potentials
from cusink.solver.values import values

__all__ = [
    "HistogramPairs",
    "memory",
]


ARRAYS = 12  # of a problem's size, that one problem takes while it is solved
COPIES = 6  # of the cost, that a row against many takes: the bins in use, its kernels, and work on them


def memory(C, itemsize):
    """The bytes of `HistogramPairs.pair_bytes` and `shared_bytes` for a cost."""
    n, m = C.shape
    stored = COPIES * n * m * itemsize
    if isinstance(C, PointCosts):
        stored = min(stored, C.memory_limit) + C.point_bytes
    return ARRAYS * (n + m) * itemsize, 0 if isinstance(C, GridCosts) else stored


class HistogramPairs:
    """`Rows` of A (Q, n) with those of B (D, m) at a cost C (n, m); where B is A, each with each.

    Every kind of pairs has these attributes:

    shape : (Q, D)
    C, eps, ops : cost, regularisation and operators of the computation
    span : numbers between which the costs lie
    dtype : of the user, which the distances get
    symmetric : whether the pair (j, i) has the distances of the pair (i, j), both from one collection
    pair_bytes : what one pair takes while it is solved
    shared_bytes : what a row takes, however many columns it is solved against
    """

    def __init__(self, A, B, C, eps, dtype):
        self.A, self.B, self.C, self.eps, self.dtype = A, B, C, eps, dtype
        self.ops = ops_for(C)
        self.span = self.ops.cost_range(C)
        self.shape = (len(A), len(B))
        self.symmetric = A is B and symmetric(C)
        self.pair_bytes, self.shared_bytes = memory(C, C.dtype.itemsize)

    def solve(self, row, columns, value, options):
        """Solve one row against `columns`, a slice or an index array; a dict of arrays (len(columns),).

        `options` are keywords of `cusink.sinkhorn.solve`. A result may depend on the columns it is solved beside by as
        much as `tol` allows, and on nothing else.
        """
        xp = self.ops.xp
        a, B, C = self.A[row], self.B[columns], self.C
        # Empty bins leave the problem, where the cost can be had without them.
        if not isinstance(C, GridCosts):
            rows, used = xp.flatnonzero(a > 0), xp.flatnonzero((B > 0).any(axis=0))
            C = between(xp, C, rows, used)
            B = B[:, used] if len(used) < B.shape[1] else B
            a = a[rows] if len(rows) < len(a) else a
        a = xp.ascontiguousarray(xp.broadcast_to(a, (len(B), len(a))))
        return self.solve_problems(a, xp.ascontiguousarray(B), C, value, options)

    def solve_problems(self, a, b, C, value, options):
        """Solve problems a (K, n), b (K, m) on some bins, with the cost C between them; as `solve`, and f and g."""
        f, g, cost, error, n_iter, converged = solve(self.ops, a, b, C, self.eps, None, span=self.span, **options)
        if value != "cost":
            problem = Problem(a=a, b=b, C=C, eps=self.eps, f=f, g=g, dtype=a.dtype, batched=True)
            cost = dict(zip(("reg_cost", "entropic_cost"), values(self.ops.xp, problem), strict=True))[value]
        return {"distances": cost, "error": error, "n_iter": n_iter, "converged": converged, "f": f, "g": g}

    def solve_selves(self, side, items, options):
        """Solve items, a slice, of A (side 0) or B (side 1) each against itself; a dict as from `solve`, `reg_cost`."""
        xp, C = self.ops.xp, self.C
        weights = (self.A, self.B)[side][items]
        if isinstance(C, PointCosts):
            points = (C.x, C.y)[side]
            C = dataclasses.replace(C, x=points, y=points)
        if not isinstance(C, GridCosts):
            used = xp.flatnonzero((weights > 0).any(axis=0))
            weights, C = xp.ascontiguousarray(weights[:, used]), between(xp, C, used, used)
        options = {name: options[name] for name in ("max_iter", "tol")}
        _, reg_cost, error, n_iter, converged = self_potentials(self.ops, weights, C, self.eps, **options)
        return {"distances": reg_cost, "error": error, "n_iter": n_iter, "converged": converged}

    def content(self):
        """What the distances depend on beside the options, by name, for a fingerprint; B is None where it is A."""
        return {"A": self.A, "B": None if self.B is self.A else self.B, "C": self.C}
