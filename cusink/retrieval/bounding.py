"""Which lower bounds a search takes, and by how much a reported value may fall below them."""

import math
from typing import Protocol

import numpy as np

from cusink.retrieval.batches import PairBatches
from cusink.retrieval.bounds import (
    COLUMNS_PER_PROTOTYPE,
    RowBounds,
    bytes_needed,
    has_forbidden,
    slack,
    why_not_bounded,
)
from cusink.retrieval.budget import search_share
from cusink.retrieval.pairs import PairsOnBins
from cusink.retrieval.query import Query
from cusink.retrieval.unbalanced_bounds import UnbalancedBounds, margins
from cusink.types import Array, HostArray


def why_not_prune(pairs: PairsOnBins, query: Query) -> str | None:
    """Return why no pair can be left out, or None if some may."""
    if query.options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    if query.exact and pairs.shape[1] < max(2 * COLUMNS_PER_PROTOTYPE, 4 * query.first_pairs):
        return "k is not small beside the number of candidates, or they are too few"
    if (reason := why_not_bounded(pairs, query.value)) is not None:
        return reason
    share = search_share(query.memory_limit)
    if share is not None and share < sum(bytes_needed(pairs, query.first_pairs)):
        return "the bounds of a row exceed 'memory_limit'"
    return None


class Bounded(Protocol):
    """What bounds need to know of the columns of pairs."""

    @property
    def smallest(self) -> float:
        """The smallest positive weight of the columns."""

    @property
    def centres(self) -> Array:
        """The prototypes of the columns, on the bins in use."""


class Bounding:
    """Makes bounds for the values that a query asks for, of pairs that meet its tolerance.

    No reported value is below a bound less `slack`, beside forbidden pairs no true one (see docs/retrieval.md).
    """

    def __init__(self, pairs: PairsOnBins, batches: PairBatches, corpus: Bounded, query: Query) -> None:
        tol = query.options.tol
        assert tol is not None  # see `why_not_prune`
        self.pairs, self.batches, self.corpus, self.sharp = pairs, batches, corpus, query.value == "cost"
        # Beside forbidden pairs the range of the costs does not bound that of potentials: each bound allows for itself.
        self.missed = tol * pairs.mass if has_forbidden(pairs) else 0.0
        self.margins = None if pairs.reach is None else margins(pairs, tol, corpus.smallest)
        if self.margins is not None:
            self.slack = self.margins.slack
        else:
            mass = float(pairs.B[:1].sum(dtype=np.float64))
            forbids = self.missed > 0
            of_columns = 0.0 if forbids and self.sharp else tol  # bounds of `cost` know no other potentials than theirs
            self.slack = slack(pairs, of_columns, mass, corpus.smallest, bounded=not forbids)

    def first(self, rows: HostArray) -> RowBounds:
        """Return the bounds that some rows begin with."""
        given = self.pairs, self.batches, rows, self.corpus.centres
        if self.margins is not None:
            return UnbalancedBounds(*given, self.margins)
        slack = math.inf if self.missed else self.slack  # what bounds of `cost` by concavity have to allow for
        return RowBounds(*given, self.sharp, slack, self.missed)
