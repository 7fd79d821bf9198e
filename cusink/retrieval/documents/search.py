"""The nearest documents: lower bounds from the nearest words, in time linear in the words of the collection.

For any plan P with row sums a and column sums b', and so for the plan whose `cost` is reported:

- a word i of the query pays at least its cost to the nearest word of the document, ``min_j C_ij``, for all of a_i: the
  relaxed word mover's distance. Only the words of the document matter, not how much of each P takes.
- a word j of the document can send no more than a_i to any word i of the query: it pays at least as much as filling
  these in the order of their costs does, which is convex in b'_j (Atasu and Mittelholzer 2019). Here b' may differ from
  b, by the marginal error in total; so may the sum, by half of that times the range of the costs at most.

Both use costs that are allowed (finite) alone: where a word of the document runs out of words that it may be filled
from, the last of them takes the rest.

The regularised cost of a plan exceeds its `cost` by ``eps KL(P | ab')``, at least ``-eps M log M`` for a mass M, and
the other values differ from it by numbers that do not depend on the plan: the same bounds serve for all of them.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.deferred import cached_property
from cusink.retrieval.blocks import blocks
from cusink.retrieval.bounds import MOST_SLACK
from cusink.retrieval.budget import BOUND_BYTES, search_share
from cusink.retrieval.documents.pairs import ROWS_PER_CALL, DocumentPairs, entropies_of
from cusink.retrieval.documents.tiles import DocumentSolutions, PaddedDocuments, Queries, Words, solve_listed
from cusink.retrieval.facts import Columns, equal_labels, solved_selves
from cusink.retrieval.pairs import Solved, debiased
from cusink.retrieval.query import Certificate, Counts, Found, Query
from cusink.retrieval.ranking import TopK, smallest_per_row
from cusink.types import HostArray

WORDS_TO_FILL = 3  # of the query, for a word of a document to be spread over; the last of them takes the rest
ROUND_GROWTH = 3  # times as many pairs of a row are solved in every further round, where their number is limited


class DocumentColumns(Columns, Protocol):
    """What is known of the columns of pairs."""

    @property
    def kept(self) -> HostArray:
        """The columns that are not empty."""

    @property
    def documents(self) -> PaddedDocuments:
        """The columns that are not empty, as arrays."""

    @property
    def words(self) -> Words:
        """The words of the columns."""


def why_not_prune(pairs: DocumentPairs, query: Query) -> str | None:
    """Return why no pair can be left out, or None if some may."""
    if not pairs.on_host:
        return "documents on a device are all solved at once"
    if query.options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    filled = np.count_nonzero(pairs.B.sizes) - query.excludes_self
    if filled < (2 * query.first_pairs if query.exact else 1):
        return "k is not small beside the number of candidates"
    share = search_share(query.memory_limit, pairs.point_bytes)
    if share is not None and share < _row_bytes(pairs):
        return "the bounds of a row exceed 'memory_limit'"
    return None


def _row_bytes(pairs: DocumentPairs) -> int:
    """Return the bytes of the bounds of one row: the costs to all words, and to the words of all documents."""
    longest, words = int(pairs.A.sizes.max()), len(pairs.B.places)
    return pairs.A.weights.itemsize * max(1, longest) * 3 * (words + min(words, int(pairs.C.shape[-1])))


def search_documents(
    pairs: DocumentPairs, corpus: DocumentColumns, query: Query, bounded: bool, progress: Callable[[int], Any]
) -> Found:
    """Solve the pairs that can be among the k nearest of their row, or if they are not `bounded` all candidates."""
    search = _Search(pairs, corpus, query, bounded)
    for rows in blocks(len(pairs.A), max(1, min(ROWS_PER_CALL, search.share // max(1, _row_bytes(pairs))))):
        search.find(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * len(pairs.B))
    return Found(search.best, search.counts, search.certificate)


class _Search:
    """The state that the searches for the neighbours of different rows share."""

    def __init__(self, pairs: DocumentPairs, corpus: DocumentColumns, query: Query, bounded: bool) -> None:
        self.pairs, self.corpus, self.query, self.bounded = pairs, corpus, query, bounded
        self.best, self.counts = TopK(len(pairs.A), query.k, len(pairs.B)), Counts()
        self.certificate, self.kept = Certificate(len(pairs.A)), corpus.kept
        share = search_share(query.memory_limit, pairs.point_bytes)
        self.share = BOUND_BYTES if share is None else share

    def find(self, rows: HostArray) -> None:
        """Find the neighbours of some rows, NumPy indices in order."""
        pairs, query = self.pairs, self.query
        filled = rows[pairs.A.sizes[rows] > 0]
        allowed = np.ones((len(rows), len(pairs.B)), bool)
        if query.candidates is not None:
            allowed[:] = False
            np.put_along_axis(allowed, query.candidates[rows], True, axis=1)
        if query.excludes_self:
            allowed[np.arange(len(rows)), rows] = False
        # Nothing has a distance to an empty row, nor a row to an empty column: they are decided at once, and come last.
        nothing = allowed & ((pairs.A.sizes[rows] == 0)[:, None] | (pairs.B.sizes == 0))
        at, columns = np.nonzero(nothing)
        if query.exact:  # the first of an empty row alone, as no more can be among the nearest
            first = (pairs.A.sizes[rows[at]] == 0) & (np.cumsum(nothing, axis=1)[at, columns] <= query.k)
            at, columns = at[first], columns[first]
        none = np.full(len(columns), np.nan)
        self.best.add(rows[at], columns, none, none, np.ones(len(columns), bool))
        if len(filled):
            self._find(filled, allowed[pairs.A.sizes[rows] > 0][:, self.kept])

    def _find(self, rows: HostArray, allowed: HostArray) -> None:
        """Find the neighbours of some rows that are not empty, at first among the allowed (rows, documents)."""
        pairs, query = self.pairs, self.query
        itself = self.kept == rows[:, None] if query.excludes_self else np.zeros_like(allowed)
        queries = None
        if pairs.on_host:
            queries = Queries.of([pairs.A.item(row) for row in rows], self.corpus.documents, pairs.C)
        lower = np.full(allowed.shape, -np.inf)
        if self.bounded and queries is not None:
            lower = self._bounds(queries, rows)
            self.counts.add(bounded=int(np.isfinite(np.where(itself, np.inf, lower)).sum()))
        lower[itself] = np.inf
        left = self._budget(allowed)
        self._rounds(queries, rows, lower, allowed, left)
        if query.candidates is not None and query.solve_at_most is not None:
            self._rounds(queries, rows, lower, np.ones_like(allowed), left)
        self.certificate.look(rows, np.min(lower, axis=1, initial=np.inf), self.best.values[rows, -1])

    def _budget(self, allowed: HostArray) -> HostArray:
        """Return how many pairs of each row may be solved."""
        if self.query.solve_at_most is None:
            return np.asarray(np.count_nonzero(allowed, axis=1))
        return np.full(len(allowed), self.query.solve_at_most)

    def _rounds(
        self, queries: Queries | None, rows: HostArray, lower: HostArray, allowed: HostArray, left: HostArray
    ) -> None:
        """Solve pairs that are allowed, those with the least bounds first, and close their bounds.

        All whose bound is not above the k-th value found after the first pairs follow at once, or in rounds where their
        number is limited.
        """
        count = self.query.first_pairs
        while True:
            kth = self.best.values[rows, -1:]
            undecided = (lower < np.inf) & ((lower <= kth) | np.isnan(kth))
            i, j = np.nonzero(undecided & allowed & (left > 0)[:, None])
            i, j = smallest_per_row(lower[i, j], i, j, np.minimum(left, count))
            if not len(i):
                return
            self._solve(queries, rows, i, j)
            lower[i, j] = np.inf
            left -= np.bincount(i, minlength=len(rows))
            count = count * ROUND_GROWTH if self.query.solve_at_most is not None else lower.shape[1]

    def _solve(self, queries: Queries | None, rows: HostArray, i: HostArray, j: HostArray) -> None:
        """Solve pairs of queries i (K,), which are `rows`, with documents j (K,), and add them."""
        pairs, options = self.pairs, self.query.options
        for block in blocks(len(i), max(1, self.share // pairs.pair_bytes)):
            row, column = rows[i[block]], self.kept[j[block]]
            if queries is None:
                found = pairs.on_device(0, 1, row, column, pairs.C, options)
            else:
                found = solve_listed(queries, self.corpus.documents, i[block], j[block], pairs.setting, options)
            solved = self._values(found, row, column)
            # In the precision of the report, or distances that it makes equal would not be in the order of columns.
            distances = narrowed(solved.distances, pairs.dtype, np).astype(float)
            self.best.add(row, column, distances, solved.error, solved.converged)
            self.counts.add(started=len(row))
            self.counts.finish(solved.error, solved.converged)

    def _values(self, found: DocumentSolutions, rows: HostArray, columns: HostArray) -> Solved:
        """Return solved pairs (K,) with the wanted value as distances."""
        value, pairs = self.query.value, self.pairs
        distances = found.cost if value == "cost" else found.reg_cost
        if value == "entropic_cost":
            distances = distances - self.offsets[0][rows] - self.offsets[1][columns]
        solved = Solved(distances, found.error, found.n_iter, found.converged)
        if value != "divergence":
            return solved
        ours, theirs = self.self_terms
        equal = self.labels[0][rows] == self.labels[1][columns]
        ours, theirs = Solved(*(x[rows] for x in ours)), Solved(*(x[columns] for x in theirs))
        return debiased(pairs, solved, ours, theirs, equal)

    @cached_property
    def self_terms(self) -> tuple[Solved, Solved]:
        """The rows and the columns, each with itself."""
        return solved_selves(self.pairs, self.pairs.A is self.pairs.B, self.corpus, self.query.options)

    @cached_property
    def labels(self) -> tuple[HostArray, HostArray]:
        """Numbers of the rows and of the columns, the same for equal items."""
        return equal_labels(self.pairs, self.pairs.A is self.pairs.B, self.corpus)

    @cached_property
    def offsets(self) -> tuple[HostArray, HostArray]:
        """Numbers (Q,) and (D,) to subtract from the regularised cost for distances."""
        if self.query.value == "divergence":
            ours, theirs = self.self_terms
            return ours.distances / 2, theirs.distances / 2
        if self.query.value != "entropic_cost":
            return np.zeros(len(self.pairs.A)), np.zeros(len(self.pairs.B))
        return self.pairs.eps * entropies_of(self.pairs.A), self.pairs.eps * self.corpus.entropies

    def _bounds(self, queries: Queries, rows: HostArray) -> HostArray:
        """Return lower bounds (rows, documents) on the reported values: tolerance and rounding are taken off."""
        low, high = self.pairs.span
        mass = float(queries.weights[0].sum(dtype=np.float64))
        unit, eps, span = float(np.finfo(queries.costs.dtype).eps), self.pairs.eps, high - low
        rounding = 64 * unit * mass * max(abs(low), abs(high))
        tol = self.query.options.tol
        assert tol is not None  # see `why_not_prune`
        slack = min(tol / 2 * mass * span, MOST_SLACK)
        if self.query.value != "cost":
            # See docs/retrieval.md, under "Tolerance": for `reg_cost` the potentials enter, too.
            widest = eps * (1 + math.log(mass / self.corpus.smallest))
            slack = min(slack + mass * (tol * (span / 2 + widest) + eps * math.log(mass)), MOST_SLACK)
            rounding += 64 * unit * mass * (span + widest + eps * abs(math.log(mass)) + span * span / (16 * eps))
        lower = np.empty((len(rows), len(self.kept)))
        for k, n in enumerate(self.pairs.A.sizes[rows]):
            ours, theirs = lower_bounds(queries.weights[k, :n], queries.costs[k, :, :n], self.corpus.words)
            if self.query.value == "cost":
                np.maximum(ours, theirs - slack, out=lower[k])
            else:
                np.maximum(ours, theirs, out=lower[k])
                lower[k] -= slack + self.offsets[0][rows[k]] + self.offsets[1][self.kept]
        lower -= rounding
        with np.errstate(over="ignore"):
            return lower.astype(self.pairs.dtype).astype(np.float64)  # as the distances, which are rounded


def lower_bounds(a: HostArray, costs: HostArray, words: Words) -> tuple[HostArray, HostArray]:
    """Return two bounds (D,) on the cost of moving a query a (n,) to each document, at `costs` (words, n) of its words.

    The first bound holds for any weights of the words of a document, the second for these.
    """
    ours = np.minimum.reduceat(costs[words.places], words.starts, axis=0).astype(np.float64) @ a.astype(np.float64)
    work, every = costs.copy(), np.arange(len(costs))
    left, paid = words.weights.astype(np.float64), np.zeros(len(words.weights))
    price = np.zeros(len(words.weights), costs.dtype)
    for step in range(min(WORDS_TO_FILL, len(a))):
        word = work.argmin(axis=1)
        least = work[every, word][words.places]
        price = np.where(least < np.inf, least, price)  # all others are forbidden: the last one takes the rest
        last = step + 1 == min(WORDS_TO_FILL, len(a))
        taken = left if last else np.minimum(left, a[word][words.places])
        paid += taken * price
        left = left - taken
        work[every, word] = np.inf
    return ours, np.add.reduceat(paid, words.starts)
