"""What searches keep of the columns alone, and the terms of a divergence that items have with themselves."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from cusink.convergence.options import Options
from cusink.deferred import cached_property
from cusink.retrieval.blocks import blocks
from cusink.retrieval.pairs import Pairs, Solved
from cusink.retrieval.ranking import Duplicates
from cusink.retrieval.tiles import calls_at_once
from cusink.types import HostArray, MatrixValue, Reach
from cusink.workers import each

DIGEST_BYTES = 16


class Columns(Protocol):
    """What is known of the columns of pairs of any kind; `HistogramCorpus` and `DocumentCorpus` find it."""

    @property
    def duplicates(self) -> Duplicates:
        """Which columns are equal."""

    @property
    def position(self) -> dict[bytes, int]:
        """The first column of each digest."""

    @property
    def terms(self) -> HostArray:
        """The columns, each with itself, as `self_terms` returns them."""

    @property
    def entropies(self) -> HostArray:
        """The entropies (D,) of the columns."""

    @property
    def smallest(self) -> float:
        """The smallest positive weight of the columns."""

    @property
    def memory_limit(self) -> int | None:
        """Bytes that may be used at a time."""

    @property
    def width(self) -> int:
        """How many items are solved with themselves at once."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an index is for."""

    eps: float
    value: MatrixValue
    options: Options
    memory_limit: int | None
    on_empty: str
    reach: Reach | None = None
    normalise: bool = False
    auto: bool = False  # whether the tolerance was left to the dtype
    judged: str | None = None  # the dtype that masses are judged by, where it is not that of the items


class Facts(NamedTuple):
    """What was found about the first `columns`, in NumPy; None where nobody asked."""

    columns: int
    digests: HostArray | None = None  # (columns, 16) of bytes
    bins: HostArray | None = None
    smallest: float | None = None
    entropies: HostArray | None = None
    terms: HostArray | None = None  # (columns, 3), see `self_terms`
    centres: HostArray | None = None


class Digested(ABC):
    """Columns that are told apart by digests."""

    @property
    @abstractmethod
    def digests(self) -> HostArray:
        """Digests (D, 16) of the columns."""

    @cached_property
    def duplicates(self) -> Duplicates:
        """Which columns are equal."""
        return Duplicates(self.digests)

    @cached_property
    def position(self) -> dict[bytes, int]:
        """The first column of each digest."""
        positions: dict[bytes, int] = {}
        for column, key in enumerate(map(bytes, self.digests)):
            positions.setdefault(key, column)
        return positions


def self_terms(
    pairs: Pairs, side: Literal[0, 1], options: Options, width: int, memory_limit: int | None, first: int = 0
) -> HostArray:
    """Solve items of a side from `first` on, each with itself: (items, 3), value, error and whether it converged."""

    def solve(items: slice) -> HostArray:
        solved = pairs.solve_selves(side, items, options)
        return np.stack([pairs.to_host(solved.distances), solved.error, solved.converged], axis=1)

    calls = [(items,) for items in blocks(pairs.shape[side] - first, width, first)]
    return np.concatenate(each(solve, calls, calls_at_once(pairs, width, memory_limit))).astype(np.float64)


def solved_terms(terms: HostArray, xp: Any = np) -> Solved:
    """Return the result of `self_terms` as solved items, distances in the library `xp`."""
    return Solved(xp.asarray(terms[:, 0]), terms[:, 1], np.zeros(len(terms), np.int64), terms[:, 2] > 0)


def solved_selves(pairs: Pairs, itself: bool, columns: Columns, options: Options) -> tuple[Solved, Solved]:
    """Return the rows, which are the columns if `itself`, and the columns, each with itself, in NumPy."""
    theirs = solved_terms(columns.terms)
    return theirs if itself else solved_terms(
        self_terms(pairs, 0, options, columns.width, columns.memory_limit)
    ), theirs


def equal_labels(pairs: Pairs, itself: bool, columns: Columns) -> tuple[HostArray, HostArray]:
    """Return numbers of the rows, which are the columns if `itself`, and of the columns, the same for equal items."""
    theirs = columns.duplicates.first
    ours = theirs if itself else np.array([columns.position.get(x, -1) for x in pairs.digests(0)], int)
    return ours, theirs
