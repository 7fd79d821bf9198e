"""Pairs of two collections, solved a row against many columns at a time: the parts of a distance matrix."""

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


def memory(C):
    """The bytes of `HistogramPairs.pair_bytes` and `shared_bytes` for a cost."""
    return ARRAYS * sum(C.shape) * C.dtype.itemsize, C.row_bytes(COPIES)


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
        self.ops = C.ops
        self.span = C.range()
        self.shape = (len(A), len(B))
        self.symmetric = A is B and C.symmetric
        self.pair_bytes, self.shared_bytes = memory(C)

    def solve(self, row, columns, value, options):
        """Solve one row against `columns`, a slice or an index array; a dict of arrays (len(columns),).

        `options` are keywords of `cusink.sinkhorn.solve`. A result may depend on the columns it is solved beside by as
        much as `tol` allows, and on nothing else.
        """
        xp = self.ops.xp
        a, B, C = self.A[row], self.B[columns], self.C
        # Empty bins leave the problem, where the cost can be had without them.
        if C.divisible:
            rows, used = xp.flatnonzero(a > 0), xp.flatnonzero((B > 0).any(axis=0))
            C = C.between(rows, used)
            B = B[:, used] if len(used) < B.shape[1] else B
            a = a[rows] if len(rows) < len(a) else a
        a = xp.ascontiguousarray(xp.broadcast_to(a, (len(B), len(a))))
        return self.solve_problems(a, xp.ascontiguousarray(B), C, value, options)

    def solve_problems(self, a, b, C, value, options):
        """Solve problems a (K, n), b (K, m) on some bins, with the cost C between them; as `solve`, and f and g."""
        found = solve(C, a, b, self.eps, options, span=self.span)
        distances = found.cost
        if value != "cost":
            problem = Problem(a=a, b=b, C=C, eps=self.eps, f=found.f, g=found.g, dtype=a.dtype, batched=True)
            distances = dict(zip(("reg_cost", "entropic_cost"), values(problem), strict=True))[value]
        rest = {name: getattr(found, name) for name in ("error", "n_iter", "converged", "f", "g")}
        return {"distances": distances, **rest}

    def solve_selves(self, side, items, options):
        """Solve items, a slice, of A (side 0) or B (side 1) each against itself; a dict as from `solve`, `reg_cost`."""
        xp, C = self.ops.xp, self.C.own(side)
        weights = (self.A, self.B)[side][items]
        if C.divisible:
            used = xp.flatnonzero((weights > 0).any(axis=0))
            weights, C = xp.ascontiguousarray(weights[:, used]), C.between(used, used)
        own = self_potentials(C, weights, self.eps, options)
        return {"distances": own.reg_cost, "error": own.error, "n_iter": own.n_iter, "converged": own.converged}

    def content(self):
        """What the distances depend on beside the options, by name, for a fingerprint; B is None where it is A."""
        return {"A": self.A, "B": None if self.B is self.A else self.B, "C": self.C.data}
