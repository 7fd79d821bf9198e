"""Two searches for the nearest columns of each row: one solves all pairs, one those that no lower bound rules out."""

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.deferred import cached_property
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.bounding import Bounding
from cusink.retrieval.bounds import RowBounds, bytes_needed, entropies
from cusink.retrieval.budget import BOUND_BYTES, search_share
from cusink.retrieval.facts import Columns, equal_labels, solved_selves
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.pairs import Solved, debiased
from cusink.retrieval.query import Certificate, Counts, Found, Query
from cusink.retrieval.ranking import Duplicates, TopK, smallest_per_row
from cusink.retrieval.tiles import PairValues, calls_at_once, pair_count, tile_shape, tiles
from cusink.solver.prices import alike
from cusink.types import Array, HostArray

CUTS_PER_ROW = 16  # of the first pairs that are solved, at most
ROUND_GROWTH = 3  # times as many pairs of a row are solved in every further round
FIRST_ENCLOSED = 3  # times as many pairs of a row are bounded by concavity as are solved first,
ENCLOSED_GROWTH = 9  # times as many pairs of a row are bounded by concavity in every further round
TIGHTENED_SAMPLE = 512  # pairs that show how much tightening raises a bound
TIGHTENING_QUANTILE = 0.8  # tightening must rule out a pair in one of five cases to be worth its iterations

Progress = Callable[[int], Any]


class HistogramColumns(Columns, Protocol):
    """What is known of the columns of pairs."""

    @property
    def bins(self) -> HostArray:
        """The bins that columns have weight in."""

    @property
    def centres(self) -> Array:
        """The prototypes of the columns, on the bins in use."""


def search_all(
    values: PairValues, query: Query, tile: tuple[int, int], duplicates: Duplicates | None, progress: Progress
) -> Found:
    """Solve every pair, as `cusink.distance_matrix` does, in tiles of the shape `tile`.

    Where columns are equal, each has the values of the first of them.
    """
    pairs, counts, to_host = values.pairs, Counts(), values.pairs.to_host
    repeated: dict[int, list[HostArray]] = {}
    best = TopK(pairs.shape[0], query.k, pairs.shape[1])
    # An equal column comes with the first one's rows.
    rows_first = itertools.product(query.blocks(pairs.shape[0], tile[0]), blocks(pairs.shape[1], tile[1]))
    for rows, columns in tiles(pairs, *tile) if pairs.symmetric else rows_first:
        fields, misses = values.tile(rows, columns, ("distances", "error", "converged"), progress)
        block = [to_host(field) for field in fields.values()]
        if columns.start == 0:
            repeated.clear()
        if duplicates is not None and duplicates.any:
            duplicates.repeat(columns, block, repeated)
        _add_block(best, rows, columns, block, query.excludes_self)
        beyond = max(rows.stop, columns.start)
        if pairs.symmetric and beyond < columns.stop:
            mirrored = [field[:, beyond - columns.start :].T for field in block]
            _add_block(best, slice(beyond, columns.stop), rows, mirrored, query.excludes_self)
        counts.add(misses=misses)
    solved = pair_count(pairs) if query.rows is None else (query.rows.stop - query.rows.start) * pairs.shape[1]
    counts.add(started=solved, finished=solved)
    return Found(best, counts, Certificate(pairs.shape[0]))


def _add_block(best: TopK, rows: slice, columns: slice, block: list[HostArray], excludes_self: bool) -> None:
    """Add the values, errors and convergence (rows, columns) of a block of pairs."""
    at, to = (np.ravel(index) for index in np.mgrid[rows, columns])
    kept = at != to if excludes_self else slice(None)
    distances, error, converged = (np.ravel(field)[kept] for field in block)
    best.add(at[kept], to[kept], distances.astype(float), error, converged)


def search_pruned(pairs: HistogramPairs, corpus: HistogramColumns, query: Query, progress: Progress) -> Found:
    """Solve the pairs that can be among the k nearest of their row, or those of them that the query allows."""
    share = search_share(query.memory_limit)
    search = PrunedSearch(pairs, corpus, query, tile_shape(pairs, share)[1])
    least, row = bytes_needed(pairs, query.first_pairs)
    for rows in query.blocks(pairs.shape[0], max(1, ((share or BOUND_BYTES) - least) // row)):
        search.find(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * pairs.shape[1])
    return Found(search.best, search.counts, search.certificate)


def search_listed(pairs: HistogramPairs, corpus: HistogramColumns, query: Query, progress: Progress) -> Found:
    """Solve the candidates alone, where no bound tells anything about the other pairs."""
    search = PrunedSearch(pairs, corpus, query, tile_shape(pairs, search_share(query.memory_limit))[1])
    for rows in query.blocks(pairs.shape[0], ROWS_PER_BLOCK):
        search.solve_candidates(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * pairs.shape[1])
    return Found(search.best, search.counts, search.certificate)


class PrunedSearch:
    """The state that the searches for the neighbours of different rows share; `width` pairs are solved at once."""

    def __init__(self, pairs: HistogramPairs, corpus: HistogramColumns, query: Query, width: int) -> None:
        self.pairs, self.corpus, self.query, self.value = pairs, corpus, query, query.value
        self.best, self.counts = TopK(pairs.shape[0], query.k, pairs.shape[1]), Counts()
        self.certificate, self.duplicates = Certificate(pairs.shape[0]), corpus.duplicates
        solved = "reg_cost" if query.value == "divergence" else query.value
        at_once = calls_at_once(pairs, width, search_share(query.memory_limit))
        self.batches = PairBatches(pairs, solved, query.options, width, corpus.bins, at_once)
        self.itself = pairs.A is pairs.B
        self.self_terms = None
        if query.value == "divergence":
            self.self_terms = solved_selves(pairs, self.itself and alike(pairs.reach), corpus, query.options)

    @cached_property
    def offsets(self) -> tuple[HostArray, HostArray] | None:
        """Numbers (Q,) and (D,) to subtract from bounded values for distances; None for zeros."""
        if self.self_terms is not None:
            ours, theirs = self.self_terms
            return ours.distances / 2, theirs.distances / 2
        if self.value != "entropic_cost":
            return None
        eps, of_columns = self.pairs.eps, self.corpus.entropies
        return eps * (of_columns if self.itself else entropies(self.pairs.A, self.pairs.C)), eps * of_columns

    @cached_property
    def bounding(self) -> Bounding:
        """Makes the bounds of rows."""
        return Bounding(self.pairs, self.batches, self.corpus, self.query)

    @cached_property
    def labels(self) -> tuple[HostArray, HostArray]:
        """Numbers of the rows and of the columns, the same for equal items."""
        return equal_labels(self.pairs, self.itself, self.corpus)

    def find(self, rows: HostArray) -> None:
        """Find the neighbours of some rows, NumPy indices in order."""
        bounds = self.bounding.first(rows)
        self.counts.add(bounded=bounds.lower.size - (len(rows) if self.query.excludes_self else 0))
        if self.query.excludes_self:
            bounds.close(rows, rows)
        progress = _Rows(rows, bounds, self._allowed(rows), self._budget(rows))
        if bounds.by_concavity is None:
            self._solve_first(progress)
        self._solve_rest(progress)
        if progress.candidates is not None and self.query.solve_at_most is not None:
            progress.candidates = None
            self._solve_rest(progress)
        self.counts.add(started=int(progress.started.sum()))
        self.certificate.look(rows, self._floor(rows, bounds.lower).min(axis=1), self.best.values[rows, -1])

    def solve_candidates(self, rows: HostArray) -> None:
        """Solve all candidates of some rows, without bounds."""
        candidates = self._allowed(rows)
        assert candidates is not None
        at, columns = np.nonzero(candidates)
        self.counts.add(started=len(at))
        self._solve(None, rows[at], columns, candidates, rows[0])
        floor = np.where(candidates.sum(axis=1) < self.pairs.shape[1] - self.query.excludes_self, -np.inf, np.inf)
        self.certificate.look(rows, floor, self.best.values[rows, -1])

    def _allowed(self, rows: HostArray) -> HostArray | None:
        """Return a mask (rows, D) of the candidates, which a row itself is not."""
        if self.query.candidates is None:
            return None
        mask = np.zeros((len(rows), self.pairs.shape[1]), bool)
        np.put_along_axis(mask, self.query.candidates[rows], True, axis=1)
        if self.query.excludes_self:
            mask[np.arange(len(rows)), rows] = False
        return mask

    def _budget(self, rows: HostArray) -> HostArray:
        """Return how many pairs of each row may be solved."""
        most, mask = self.query.solve_at_most, self._allowed(rows)
        if most is None:
            return np.full(len(rows), self.pairs.shape[1]) if mask is None else mask.sum(axis=1)
        return np.full(len(rows), most)

    def _solve_first(self, progress: "_Rows") -> None:
        """Solve the pairs of each row with the lowest bounds, and let cuts come of them."""
        rows, bounds, candidates = progress.rows, progress.bounds, progress.candidates
        count = min(self.query.first_pairs, int(progress.left.min()))
        floor = self._floor(rows, bounds.lower)
        if candidates is not None:
            count = min(count, int(candidates.sum(axis=1).min()))
            floor = np.where(candidates, floor, np.inf)
        count = min(count, floor.shape[1] - self.query.excludes_self)
        columns = np.argpartition(floor, count - 1, axis=1)[:, :count]
        at, columns = np.repeat(np.arange(len(rows)), count), columns.ravel()
        potentials = self._spend(progress, at, columns, potentials=True)
        bounds.add(potentials.reshape(len(rows), count, -1)[:, :CUTS_PER_ROW])

    def _solve_rest(self, progress: "_Rows") -> None:
        """Solve pairs in rounds, the lowest bounds first, until none can be among the nearest or may be solved."""
        bounds, started, count = progress.bounds, progress.started, self.query.first_pairs
        if bounds.by_concavity is not None:
            return self._solve_enclosed(progress)
        reach = None
        while True:
            count *= ROUND_GROWTH
            at, columns, height = self._lowest(progress, count)
            if reach is None:  # how far tightening raises a bound, as seen on a sample
                some = slice(None, None, 1 + len(at) // TIGHTENED_SAMPLE)
                before = bounds.lower[at[some], columns[some]]
                bounds.tighten(at[some], columns[some])
                raised = bounds.lower[at[some], columns[some]] - before
                reach = float(np.quantile(raised, TIGHTENING_QUANTILE)) if len(at) else 0.0
                started[at[some], columns[some]] = True
            near = (height <= reach) & ~started[at, columns]
            bounds.tighten(at[near], columns[near])
            started[at[near], columns[near]] = True
            at, columns, _ = self._lowest(progress, np.minimum(count, progress.left))
            if not len(at):
                break
            self._spend(progress, at, columns)

    def _solve_enclosed(self, progress: "_Rows") -> None:
        """Do the same where bounds by concavity tell most pairs apart: they come before any pair is solved."""
        rows, bounds, started = progress.rows, progress.bounds, progress.started
        count = self.query.first_pairs
        looked_at = FIRST_ENCLOSED * count
        while True:
            at, columns, _ = self._lowest(progress, looked_at)
            if not len(at):
                break
            new = ~started[at, columns]
            bounds.enclose(at[new], columns[new], self.best.values[rows[at[new]], -1])
            started[at, columns] = True
            if not new.any():
                count *= ROUND_GROWTH
            at, columns, _ = self._lowest(progress, np.minimum(count, progress.left), started)
            self._spend(progress, at, columns)
            looked_at *= ENCLOSED_GROWTH

    def _lowest(
        self, progress: "_Rows", count: int | HostArray, among: HostArray | None = None
    ) -> tuple[HostArray, HostArray, HostArray]:
        """Of the pairs that may be among the nearest, choose the `count` lowest bounds of each row.

        Returns indices into `rows`, columns, and by how much the bound is below one that would rule the pair out. A
        mask `among` (rows, D) tells which pairs may be chosen.
        """
        rows = progress.rows
        floor, kth = self._floor(rows, progress.bounds.lower), self.best.values[rows, -1:]
        open_pairs = (floor <= kth) & (progress.left > 0)[:, None] & (floor < np.inf)
        if progress.candidates is not None:
            open_pairs &= progress.candidates
        if among is not None:
            open_pairs &= among
        at, columns = np.nonzero(open_pairs)
        at, columns = smallest_per_row(floor[at, columns], at, columns, count)
        return at, columns, kth[at, 0] - floor[at, columns]

    def _floor(self, rows: HostArray, lower: HostArray) -> HostArray:
        """Return values that the reported distances cannot fall below, in the precision of the report."""
        floor = lower - self.bounding.slack
        if self.offsets is not None:
            ours, theirs = self.offsets
            floor = floor - (ours[rows, None] + theirs)
        if self.value == "divergence" and (masses := self.pairs.masses) is not None:
            floor = floor + self.pairs.eps / 2 * (masses[0][rows, None] - masses[1]) ** 2
        with np.errstate(over="ignore"):
            return floor.astype(self.pairs.dtype).astype(np.float64)

    def _spend(self, progress: "_Rows", at: HostArray, columns: HostArray, potentials: bool = False) -> Array:
        """Solve pairs by indices into the rows in progress, which leaves fewer to be solved."""
        progress.started[at, columns] = True
        # With a budget other columns are looked at after the candidates: what equals a candidate is known by then.
        rows, candidates = progress.rows, progress.candidates if self.query.solve_at_most is None else None
        solved, f = self._solve(progress.bounds, rows[at], columns, candidates, rows[0], potentials)
        progress.left -= np.bincount(solved - rows[0], minlength=len(rows))
        return f

    def _solve(
        self,
        bounds: RowBounds | None,
        rows: HostArray,
        columns: HostArray,
        candidates: HostArray | None,
        first: int,
        potentials: bool = False,
    ) -> tuple[HostArray, Array]:
        """Solve pairs, add them, and close their bounds; return their rows, and the `potentials` (K, n) if wanted.

        A pair stands for those of its row with equal columns too, so that these get the very same distance. The mask
        of `candidates` begins with row `first`.
        """
        pairs, xp = self.pairs, self.pairs.xp
        key, back = np.unique(rows * pairs.shape[1] + self.duplicates.first[columns], return_inverse=True)
        rows, columns = np.divmod(key, pairs.shape[1])
        solved, f = self._values(rows, columns, potentials)
        self.counts.finish(solved.error, solved.converged)
        which, equal = self.duplicates.of(columns)
        kept = np.ones(len(which), bool)
        if self.query.excludes_self:
            kept = rows[which] != equal
        if candidates is not None:
            kept &= candidates[rows[which] - first, equal]
        which, equal = which[kept], equal[kept]
        self.best.add(rows[which], equal, solved.distances[which], solved.error[which], solved.converged[which])
        if bounds is not None:
            bounds.close(rows[which], equal)
        return rows, f[xp.asarray(back)] if potentials else None

    def _values(self, rows: HostArray, columns: HostArray, potentials: bool) -> tuple[Solved, Array]:
        """Return pairs in NumPy, distances in the precision of the report, and if wanted the rows' `potentials`."""
        pairs, xp = self.pairs, self.pairs.xp
        back: Any = slice(None)
        if pairs.symmetric:  # both orders are one pair, for which a matrix takes the one with the smaller row
            swapped = xp.asarray(rows > columns)[:, None]
            key, back = np.unique(
                np.minimum(rows, columns) * len(pairs.B) + np.maximum(rows, columns), return_inverse=True
            )
            rows, columns = np.divmod(key, len(pairs.B))
        batch = self.batches.solve(rows, columns, potentials)
        solved = Solved(batch.values, batch.error, np.zeros(len(rows), int), batch.converged)
        if self.self_terms is not None:
            ours, theirs = self.self_terms
            equal = self.labels[0][rows] == self.labels[1][columns]
            ours, theirs = Solved(*(x[rows] for x in ours)), Solved(*(x[columns] for x in theirs))
            masses = pairs.masses
            excess = None if masses is None else masses[0][rows] - masses[1][columns]
            solved = debiased(pairs, solved, ours, theirs, equal, excess)
        distances, f = narrowed(solved.distances, pairs.dtype, np).astype(np.float64), batch.f
        if pairs.symmetric and potentials:
            at = xp.asarray(back)
            f = xp.where(swapped, batch.g[at], f[at])
        return Solved(*(x[back] for x in (distances, *solved[1:]))), f


class _Rows:
    """Rows whose neighbours are being found: their bounds, which pairs may be solved, and how many `left` of each."""

    def __init__(self, rows: HostArray, bounds: RowBounds, candidates: HostArray | None, left: HostArray) -> None:
        self.rows, self.bounds, self.candidates, self.left = rows, bounds, candidates, left
        self.started = np.zeros(bounds.lower.shape, bool)
