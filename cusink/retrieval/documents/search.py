"""The nearest documents: lower bounds from the nearest words, in time linear in the words of the collection.

For any plan P with row sums a and column sums b', and so for the plan whose `cost` is reported:

- a word i of the query pays at least its cost to the nearest word of the document, ``min_j C_ij``, for all of a_i: the
  relaxed word mover's distance. Only the words of the document matter, not how much of each P takes.
- a word j of the document can send no more than a_i to any word i of the query: it pays at least as much as filling
  these in the order of their costs does, which is convex in b'_j (Atasu and Mittelholzer 2019). Here b' may differ from
  b, by the marginal error in total; so may the sum, by half of that times the range of the costs at most.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cusink.retrieval.blocks import blocks
from cusink.retrieval.budget import BOUND_BYTES, search_share
from cusink.retrieval.documents.pairs import ROWS_PER_CALL, DocumentPairs
from cusink.retrieval.documents.tiles import PaddedDocuments, Queries, solve_listed
from cusink.retrieval.query import Counts, Found, Query
from cusink.retrieval.ranking import TopK, smallest_per_row
from cusink.types import HostArray

WORDS_TO_FILL = 3  # of the query, for a word of a document to be spread over; the last of them takes the rest


def why_not_prune(pairs: DocumentPairs, query: Query) -> str | None:
    """Return why no pair can be left out, or None if some may."""
    if query.value != "cost":
        return f"no lower bound is known for value='{query.value}' of documents"
    if not pairs.on_host:
        return "documents on a device are all solved at once"
    if query.options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    if not np.isfinite(pairs.span).all() or (pairs.C.stored and not np.isfinite(pairs.C.data.max())):
        return "with forbidden pairs (+inf) in C, the tolerance bounds no value"
    if np.count_nonzero(pairs.B.sizes) - query.excludes_self < 2 * query.first_pairs:
        return "k is not small beside the number of candidates"
    share = search_share(query.memory_limit, pairs.point_bytes)
    if share is not None and share < _row_bytes(pairs):
        return "the bounds of a row exceed 'memory_limit'"
    return None


def _row_bytes(pairs: DocumentPairs) -> int:
    """Return the bytes of the bounds of one row: the costs to all words, and to the words of all documents."""
    longest, words = int(pairs.A.sizes.max()), len(pairs.B.places)
    return pairs.A.weights.itemsize * max(1, longest) * 3 * (words + min(words, int(pairs.C.shape[-1])))


class Words(NamedTuple):
    """The words of all documents one after the other: their places (N,) and weights (N,), and `starts` (D,)."""

    places: HostArray
    weights: HostArray
    starts: HostArray


def search_documents(pairs: DocumentPairs, query: Query, progress: Callable[[int], Any]) -> Found:
    """Solve the pairs that can be among the k nearest of their row."""
    search = _Search(pairs, query)
    for rows in blocks(len(pairs.A), max(1, min(ROWS_PER_CALL, search.share // _row_bytes(pairs)))):
        search.find(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * len(pairs.B))
    return Found(search.best, search.counts)


class _Search:
    """The state that the searches for the neighbours of different rows share."""

    def __init__(self, pairs: DocumentPairs, query: Query) -> None:
        self.pairs, self.query = pairs, query
        self.best, self.counts = TopK(len(pairs.A), query.k, len(pairs.B)), Counts()
        self.kept = np.flatnonzero(pairs.B.sizes)
        self.documents = PaddedDocuments.of(pairs.B, self.kept, pairs.C.shape[-1])
        places = np.searchsorted(self.documents.used, pairs.B.places)
        self.words = Words(places, pairs.B.weights, pairs.B.offsets[self.kept])
        share = search_share(query.memory_limit, pairs.point_bytes)
        self.share = BOUND_BYTES if share is None else share

    def find(self, rows: HostArray) -> None:
        """Find the neighbours of some rows, NumPy indices in order."""
        pairs, query = self.pairs, self.query
        filled = rows[pairs.A.sizes[rows] > 0]
        for row in rows[pairs.A.sizes[rows] == 0]:
            columns = np.delete(np.arange(len(pairs.B)), [row] if query.excludes_self else [])[: query.k]
            none = np.full(len(columns), np.nan)
            self.best.add(np.full(len(columns), row), columns, none, none, np.ones(len(columns), bool))
        if not len(filled):
            return
        queries = Queries.of([pairs.A.item(row) for row in filled], self.documents, pairs.C)
        lower = self._bounds(queries, filled)
        if query.excludes_self:
            lower[self.kept == filled[:, None]] = np.inf
        self.counts.add(bounded=int(np.isfinite(lower).sum()))
        # Those with the least bounds first, then all whose bound is not above the k-th value found.
        i, j = np.nonzero(np.isfinite(lower))
        first = smallest_per_row(lower[i, j], i, j, query.first_pairs)
        self._solve(queries, filled, *first)
        lower[first] = np.inf
        self._solve(queries, filled, *np.nonzero(np.isfinite(lower) & (lower <= self.best.values[filled, -1:])))

    def _solve(self, queries: Queries, rows: HostArray, i: HostArray, j: HostArray) -> None:
        """Solve pairs of queries i (K,), which are `rows`, with documents j (K,), and add them."""
        for block in blocks(len(i), max(1, self.share // self.pairs.pair_bytes)):
            solved = solve_listed(queries, self.documents, i[block], j[block], self.pairs.setting, self.query.options)
            cost = solved.cost.astype(float)
            self.best.add(rows[i[block]], self.kept[j[block]], cost, solved.error, solved.converged)
            self.counts.add(started=len(cost))
            self.counts.finish(solved.error, solved.converged)

    def _bounds(self, queries: Queries, rows: HostArray) -> HostArray:
        """Return lower bounds (rows, documents) on `cost`, less the effect of tolerance and rounding."""
        low, high = self.pairs.span
        mass = float(queries.weights[0].sum(dtype=np.float64))
        rounding = 64 * float(np.finfo(queries.costs.dtype).eps) * mass * max(abs(low), abs(high))
        tol = self.query.options.tol
        assert tol is not None  # see `why_not_prune`
        slack = tol / 2 * mass * (high - low)
        lower = np.empty((len(rows), len(self.kept)))
        for k, n in enumerate(self.pairs.A.sizes[rows]):
            ours, theirs = lower_bounds(queries.weights[k, :n], queries.costs[k, :, :n], self.words)
            np.maximum(ours, theirs - slack, out=lower[k])
        return lower - rounding


def lower_bounds(a: HostArray, costs: HostArray, words: Words) -> tuple[HostArray, HostArray]:
    """Return two bounds (D,) on the cost of moving a query a (n,) to each document, at `costs` (words, n) of its words.

    The first bound holds for any weights of the words of a document, the second for these.
    """
    ours = np.minimum.reduceat(costs[words.places], words.starts, axis=0).astype(np.float64) @ a.astype(np.float64)
    work, every = costs.copy(), np.arange(len(costs))
    left, paid = words.weights.astype(np.float64), np.zeros(len(words.weights))
    for step in range(min(WORDS_TO_FILL, len(a))):
        word = work.argmin(axis=1)
        price = work[every, word][words.places]
        last = step + 1 == min(WORDS_TO_FILL, len(a))
        taken = left if last else np.minimum(left, a[word][words.places])
        paid += taken * price
        left = left - taken
        work[every, word] = np.inf
    return ours, np.add.reduceat(paid, words.starts)
