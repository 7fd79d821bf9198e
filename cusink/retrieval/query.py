"""A search for neighbours: the query, the result, and how many pairs it took."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cusink.convergence.options import Options
from cusink.retrieval.blocks import blocks
from cusink.retrieval.ranking import TopK
from cusink.retrieval.tiles import Misses
from cusink.types import HostArray, MatrixValue

PAIRS_BEFORE_PRUNING = 8  # of a row to be solved before any is ruled out, at least


@dataclass(frozen=True, kw_only=True)
class Query:
    """The k nearest are wanted; `excludes_self` where B is A and no item is its own neighbour.

    At most `solve_at_most` pairs of a row are to be solved, and with `candidates` (Q, D), a mask, these before others.
    With `rows` those of other rows are not looked for.
    """

    k: int
    value: MatrixValue
    options: Options
    excludes_self: bool
    memory_limit: int | None
    solve_at_most: int | None = None
    candidates: HostArray | None = None
    rows: slice | None = None

    def blocks(self, total: int, size: int) -> Iterator[slice]:
        """Yield blocks of the rows, of `total`, whose neighbours are wanted."""
        rows = slice(0, total) if self.rows is None else self.rows
        return blocks(rows.stop - rows.start, size, rows.start)

    @property
    def exact(self) -> bool:
        """Whether the answer is to be proved, whatever it takes."""
        return self.solve_at_most is None and self.candidates is None

    @property
    def first_pairs(self) -> int:
        """Pairs of a row to be solved before any is ruled out."""
        return max(self.k, PAIRS_BEFORE_PRUNING)


class Counts:
    """How many pairs were bounded, started and finished, and which of these missed the tolerance."""

    def __init__(self) -> None:
        self.bounded = self.started = self.finished = 0
        self.misses = Misses()

    def add(self, *, bounded: int = 0, started: int = 0, finished: int = 0, misses: Misses | None = None) -> None:
        """Count more pairs."""
        self.bounded += bounded
        self.started += started
        self.finished += finished
        self.misses = Misses.total([self.misses, misses or Misses()])

    def finish(self, error: HostArray, converged: HostArray) -> None:
        """Count solved pairs (K,)."""
        self.add(finished=len(error), misses=Misses.among(error, ~converged))


class Certificate:
    """For each row whether its k nearest are `proved`, and by how much at most the k-th could still be `undercut`.

    `floor` is the least value that a pair which was not solved may have, where that is not proved to exceed the k-th.
    """

    def __init__(self, rows: int) -> None:
        self.proved, self.undercut, self.floor = np.ones(rows, bool), np.zeros(rows), np.full(rows, np.inf)

    def look(self, rows: HostArray, floor: HostArray, kth: HostArray) -> None:
        """Compare the least value (rows,) that a pair not yet solved may have with that of the k-th neighbour."""
        self.floor[rows] = floor
        self.proved[rows] = proved = (floor > kth) | (floor == np.inf)
        with np.errstate(invalid="ignore"):
            gap = np.maximum(kth - floor, 0)
        self.undercut[rows] = np.where(proved, 0, np.where(np.isnan(gap), np.inf, gap))

    def take(self, rows: slice, other: "Certificate") -> None:
        """Take over what another one says of some rows."""
        for name in ("proved", "undercut", "floor"):
            getattr(self, name)[rows] = getattr(other, name)[rows]


class Found(NamedTuple):
    """The nearest columns of each row, the pairs that it took, and what is proved of them."""

    best: TopK
    counts: Counts
    certificate: Certificate
