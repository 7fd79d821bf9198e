"""Pairs of histograms on common bins, solved one row against many columns at a time."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from cusink.backends.operators import ops_for
from cusink.convergence.options import Options
from cusink.costs.grid import GridCosts
from cusink.costs.operand import between, symmetric
from cusink.costs.points import PointCosts
from cusink.retrieval.checks import CheckedHistograms, NormalisedRows
from cusink.retrieval.pairs import Solved
from cusink.solver.loop import solve
from cusink.solver.problem import Problem
from cusink.solver.symmetric import self_potentials
from cusink.solver.values import values
from cusink.types import Array, Value

ARRAYS_PER_PROBLEM = 12  # arrays (n,) and (m,) that a problem takes while it is solved
COSTS_PER_ROW = 6  # copies of the cost that a row takes: the bins in use, its kernels, and work on them


def memory(C: Any, itemsize: int) -> tuple[int, int]:
    """Return `pair_bytes` and `shared_bytes` of `Pairs` for a cost."""
    n, m = C.shape
    stored = COSTS_PER_ROW * n * m * itemsize
    if isinstance(C, PointCosts):
        stored = min(stored, C.memory_limit) + C.point_bytes
    return ARRAYS_PER_PROBLEM * (n + m) * itemsize, 0 if isinstance(C, GridCosts) else stored


class SolvedProblems(NamedTuple):
    """Solved pairs (K,) with their potentials f (K, n) and g (K, m)."""

    pairs: Solved
    f: Array
    g: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class HistogramPairs:
    """`Pairs` of histograms A (Q, n) and B (D, m); `span` are numbers between which the costs C (n, m) lie."""

    A: NormalisedRows
    B: NormalisedRows
    C: Any
    eps: float
    ops: Any
    dtype: Any
    span: tuple[float, float]
    symmetric: bool
    pair_bytes: int
    shared_bytes: int
    rows_per_call: int = 1

    @classmethod
    def of(cls, given: CheckedHistograms, eps: float) -> Self:
        """Return the pairs of checked histograms."""
        C, ops = given.C, ops_for(given.C)
        pair_bytes, shared_bytes = memory(C, C.dtype.itemsize)
        return cls(
            A=given.A,
            B=given.B,
            C=C,
            eps=eps,
            ops=ops,
            dtype=given.dtype,
            span=ops.cost_range(C),
            symmetric=given.A is given.B and symmetric(C),
            pair_bytes=pair_bytes,
            shared_bytes=shared_bytes,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Items of A and of B."""
        return len(self.A), len(self.B)

    def solve(self, rows: slice, columns: slice, value: Value, options: Options) -> Solved:
        """Solve one row, a slice of length 1, against columns; see `Pairs`."""
        xp = self.ops.xp
        a, B, C = self.A[rows.start], self.B[columns], self.C
        # Empty bins leave the problem, where the cost can be had without them.
        if not isinstance(C, GridCosts):
            used, reached = xp.flatnonzero(a > 0), xp.flatnonzero((B > 0).any(axis=0))
            C = between(xp, C, used, reached)
            B = B[:, reached] if len(reached) < B.shape[1] else B
            a = a[used] if len(used) < len(a) else a
        a = xp.ascontiguousarray(xp.broadcast_to(a, (len(B), len(a))))
        solved, _, _ = self.solve_problems(a, xp.ascontiguousarray(B), C, value, options)
        return Solved(*(field[None] for field in solved))

    def solve_problems(self, a: Array, b: Array, C: Any, value: Value, options: Options) -> SolvedProblems:
        """Solve problems a (K, n), b (K, m) on some bins, with the cost C between them."""
        keywords = dataclasses.asdict(options)
        f, g, cost, error, n_iter, converged = solve(self.ops, a, b, C, self.eps, None, span=self.span, **keywords)
        if value != "cost":
            problem = Problem(a=a, b=b, C=C, eps=self.eps, f=f, g=g, dtype=a.dtype, batched=True)
            reg_cost, entropic_cost = values(self.ops.xp, problem)
            cost = reg_cost if value == "reg_cost" else entropic_cost
        return SolvedProblems(Solved(cost, error, n_iter, converged), f, g)

    def solve_selves(self, side: Literal[0, 1], items: slice, options: Options) -> Solved:
        """Solve items of one side, each with itself; see `Pairs`."""
        xp, C = self.ops.xp, self.C
        weights = (self.A, self.B)[side][items]
        if isinstance(C, PointCosts):
            points = (C.x, C.y)[side]
            C = dataclasses.replace(C, x=points, y=points)
        if not isinstance(C, GridCosts):
            used = xp.flatnonzero((weights > 0).any(axis=0))
            weights, C = xp.ascontiguousarray(weights[:, used]), between(xp, C, used, used)
        limits = {"max_iter": options.max_iter, "tol": options.tol}
        _, reg_cost, error, n_iter, converged = self_potentials(self.ops, weights, C, self.eps, **limits)
        return Solved(reg_cost, error, n_iter, converged)

    def content(self) -> dict[str, Any]:
        """Return the inputs by name, for fingerprints; see `Pairs`."""
        return {
            "A": self.A.content(),
            "B": None if self.B is self.A else self.B.content(),
            "C": self.C,
        }
