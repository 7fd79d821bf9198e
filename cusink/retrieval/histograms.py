"""Pairs of histograms on common bins: one row against many columns at a time, on a device several rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.deferred import cached_property
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.checks import CheckedHistograms, Histograms
from cusink.retrieval.pairs import Solved, SolvedProblems, digest
from cusink.retrieval.unbalanced import HowToPair, mirrored
from cusink.solver.problem import Problem
from cusink.solver.symmetric import of_free_masses, self_potentials
from cusink.solver.values import values
from cusink.types import Array, ArrayModule, HostArray, Reach, Value

ARRAYS_PER_PROBLEM = 12  # arrays (n,) and (m,) that a problem takes while it is solved
# Problems that a device gets in one call where a row has fewer columns: tiles of products and waves of blocks are full,
# and each call waits for the host. The processor solves one row at a time, its workers several.
PROBLEMS_PER_CALL = 2048
LEAST_FILLED = 0.75  # share of the bins in use that rows solved together fill; others leave out more bins when alone
COSTS_PER_ROW = 6  # copies of the cost that a row takes: the bins in use, its kernels, and work on them


def memory(C: Cost[Any]) -> tuple[int, int]:
    """Return `pair_bytes` and `shared_bytes` of `Pairs` for a cost."""
    return ARRAYS_PER_PROBLEM * sum(C.shape) * C.dtype.itemsize, C.row_bytes(COSTS_PER_ROW)


@dataclass(frozen=True, eq=False, kw_only=True)
class HistogramPairs:
    """`PairsOnBins` that leave out the bins a row does not use."""

    A: Histograms
    B: Histograms
    C: Cost[Any]
    eps: float
    dtype: Any
    span: tuple[float, float]
    symmetric: bool
    pair_bytes: int
    shared_bytes: int
    reach: Reach | None = None

    @classmethod
    def of(cls, given: CheckedHistograms, eps: float, reach: Reach | None = None) -> Self:
        """Return the pairs of checked histograms."""
        C = given.C
        pair_bytes, shared_bytes = memory(C)
        return cls(
            A=given.A,
            B=given.B,
            C=C,
            eps=eps,
            dtype=given.dtype,
            span=C.range(),
            symmetric=given.A is given.B and mirrored(C, reach),
            pair_bytes=pair_bytes * (1 if reach is None else 2),
            shared_bytes=shared_bytes,
            reach=reach,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Items of A and of B."""
        return len(self.A), len(self.B)

    @property
    def xp(self) -> ArrayModule:
        """The array module."""
        return self.C.xp

    @property
    def rows_per_call(self) -> int:
        """How many rows `solve` takes at most."""
        return 1 if self.xp is np else -(-PROBLEMS_PER_CALL // max(1, len(self.B)))

    def to_host(self, array: Array) -> HostArray:
        """Return an array of this library as a NumPy array."""
        return self.C.to_host(array)

    def solve(self, rows: slice, columns: slice, value: Value, options: Options) -> Solved:
        """Solve rows against columns; see `Pairs`."""
        xp = self.xp
        A, B, C = self.A[rows], self.B[columns], self.C
        shape = len(A), len(B)
        # Empty bins leave the problem, where the cost can be had without them.
        if C.divisible:
            filled = A > 0
            used, reached = xp.flatnonzero(filled.any(axis=0)), xp.flatnonzero((B > 0).any(axis=0))
            if shape[0] > 1 and int(xp.count_nonzero(filled)) < LEAST_FILLED * shape[0] * len(used):
                alone = [self.solve(slice(k, k + 1), columns, value, options) for k in range(rows.start, rows.stop)]
                distances, *host = zip(*alone, strict=True)
                return Solved(xp.concatenate(distances), *map(np.concatenate, host))
            C = C.between(used, reached)
            A, B = (x[:, bins] if len(bins) < x.shape[1] else x for x, bins in ((A, used), (B, reached)))
        a, b = (
            xp.ascontiguousarray(xp.broadcast_to(x, (*shape, x.shape[-1])).reshape(-1, x.shape[-1]))
            for x in (A[:, None], B[None])
        )
        found = self.solve_problems(a, b, C, value, options, potentials=False)
        return Solved(*(field.reshape(shape) for field in found.pairs))

    def solve_problems(
        self, a: Array, b: Array, C: Cost[Any], value: Value, options: Options, potentials: bool = True
    ) -> SolvedProblems:
        """Solve problems a (K, n), b (K, m) on some bins; see `PairsOnBins`."""
        how = HowToPair(self.eps, self.span, self.reach)
        found, shift = how.solve(C, a, b, options, potentials=potentials or value != "cost")
        distances = found.cost
        if value != "cost":
            problem = Problem(
                a=a,
                b=b,
                C=C,
                eps=self.eps,
                f=found.f,
                g=found.g,
                dtype=a.dtype,
                batched=True,
                reach=self.reach,
                shift=shift,
            )
            reg_cost, entropic_cost = values(problem)
            distances = reg_cost if value == "reg_cost" else entropic_cost
        f, g = (found.f, found.g) if shift is None else (found.f + shift[:, None], found.g - shift[:, None])
        return SolvedProblems(Solved(distances, found.error, found.n_iter, found.converged), f, g)

    def solve_selves(self, side: Literal[0, 1], items: slice, options: Options) -> Solved:
        """Solve items of one side, each with itself; see `Pairs`."""
        xp, C = self.xp, self.C.own(side)
        weights = (self.A, self.B)[side][items]
        if C.divisible:
            used = xp.flatnonzero((weights > 0).any(axis=0))
            weights, C = xp.ascontiguousarray(weights[:, used]), C.between(used, used)
        rho = math.inf if self.reach is None else self.reach[side]
        own = self_potentials(C, weights, self.eps, options, rho)
        value = own.reg_cost
        if self.reach is not None and rho == math.inf:
            value = of_free_masses(weights, value, self.eps)
        return Solved(value, own.error, own.n_iter, own.converged)

    @property
    def mass(self) -> float:
        """The mass of the items."""
        if not len(self.A):
            return 0.0
        return float(self.A[:1].sum(dtype=np.float64)) if self.masses is None else float(self.masses[0].max())

    @cached_property
    def masses(self) -> tuple[HostArray, HostArray] | None:
        """The masses of the items of A and of B, where these may differ."""
        if self.reach is None:
            return None
        ours = masses_of_rows(self.A, self.to_host)
        return ours, ours if self.B is self.A else masses_of_rows(self.B, self.to_host)

    def digests(self, side: Literal[0, 1]) -> list[bytes]:
        """Return a digest of each item; see `Pairs`."""
        return digests_of((self.A, self.B)[side], self.to_host)

    def content(self) -> dict[str, Any]:
        """Return the inputs by name, for fingerprints; see `Pairs`."""
        return {
            "A": self.A.content(),
            "B": None if self.B is self.A else self.B.content(),
            "C": self.C.data,
        }


def masses_of_rows(rows: Histograms, to_host: Callable[[Array], HostArray]) -> HostArray:
    """Return the mass of each row."""
    parts = (rows[block] for block in blocks(len(rows), ROWS_PER_BLOCK))
    return np.concatenate([to_host(part.sum(axis=1, dtype=np.float64)) for part in parts])


def digests_of(rows: Histograms, to_host: Callable[[Array], HostArray], first: int = 0) -> list[bytes]:
    """Return a digest of each row from `first` on."""
    read = (to_host(rows[block]) for block in blocks(len(rows) - first, ROWS_PER_BLOCK, first))
    return [digest(weights) for block in read for weights in block]
