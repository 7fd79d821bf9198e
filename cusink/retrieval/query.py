"""A search for neighbours: the query, the result, and how many pairs it took."""

from dataclasses import dataclass
from typing import NamedTuple

from cusink.convergence.options import Options
from cusink.retrieval.ranking import TopK
from cusink.retrieval.tiles import Misses
from cusink.types import HostArray, MatrixValue

PAIRS_BEFORE_PRUNING = 8  # of a row to be solved before any is ruled out, at least


@dataclass(frozen=True, kw_only=True)
class Query:
    """The k nearest are wanted; `excludes_self` where B is A and no item is its own neighbour."""

    k: int
    value: MatrixValue
    options: Options
    excludes_self: bool
    memory_limit: int | None

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


class Found(NamedTuple):
    """The nearest columns of each row, and the pairs that it took."""

    best: TopK
    counts: Counts
