"""Two searches for the nearest columns of each row: one solves all pairs, one those that no lower bound rules out."""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.bounds import COLUMNS_PER_PROTOTYPE, RowBounds, bytes_needed, entropies, prototypes, slack
from cusink.retrieval.budget import BOUND_BYTES, search_share
from cusink.retrieval.pairs import PairsOnBins, Solved, debiased
from cusink.retrieval.query import Counts, Found, Query
from cusink.retrieval.ranking import Duplicates, TopK, smallest_per_row
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape, tiles
from cusink.types import Array, HostArray

CUTS_PER_ROW = 16  # of the first pairs that are solved, at most
ROUND_GROWTH = 3  # times as many pairs of a row are solved in every further round
TIGHTENED_SAMPLE = 512  # pairs that show how much tightening raises a bound
TIGHTENING_QUANTILE = 0.8  # tightening must rule out a pair in one of five cases to be worth its iterations

Progress = Callable[[int], Any]


def why_not_prune(pairs: PairsOnBins, query: Query) -> str | None:
    """Return why no pair can be left out, or None if some may."""
    if query.options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    if pairs.shape[1] < max(2 * COLUMNS_PER_PROTOTYPE, 4 * query.first_pairs):
        return "k is not small beside the number of candidates, or they are too few"
    if pairs.C.stored and not pairs.xp.isfinite(pairs.C.data).all():
        return "with forbidden pairs (+inf) in C, the tolerance bounds no value"
    share = search_share(query.memory_limit)
    if share is not None and share < sum(bytes_needed(pairs, query.first_pairs)):
        return "the bounds of a row exceed 'memory_limit'"
    return None


def search_all(
    values: PairValues, query: Query, tile: tuple[int, int], duplicates: Duplicates | None, progress: Progress
) -> Found:
    """Solve every pair, as `cusink.distance_matrix` does, in tiles of the shape `tile`.

    Where columns are equal, each has the values of the first of them.
    """
    pairs, counts, to_host = values.pairs, Counts(), values.pairs.to_host
    repeated: dict[int, list[HostArray]] = {}
    best = TopK(pairs.shape[0], query.k, pairs.shape[1])
    rows_first = itertools.product(*map(blocks, pairs.shape, tile))  # an equal column comes with the first one's rows
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
    counts.add(started=pair_count(pairs), finished=pair_count(pairs))
    return Found(best, counts)


def _add_block(best: TopK, rows: slice, columns: slice, block: list[HostArray], excludes_self: bool) -> None:
    """Add the values, errors and convergence (rows, columns) of a block of pairs."""
    at, to = (np.ravel(index) for index in np.mgrid[rows, columns])
    kept = at != to if excludes_self else slice(None)
    distances, error, converged = (np.ravel(field)[kept] for field in block)
    best.add(at[kept], to[kept], distances.astype(float), error, converged)


def search_pruned(values: PairValues, pairs: PairsOnBins, query: Query, progress: Progress) -> Found:
    """Solve the pairs that can be among the k nearest of their row; `values` are those of `pairs`."""
    share = search_share(query.memory_limit)
    search = PrunedSearch(values, pairs, query, tile_shape(pairs, share)[1])
    least, row = bytes_needed(pairs, query.first_pairs)
    for rows in blocks(pairs.shape[0], max(1, ((share or BOUND_BYTES) - least) // row)):
        search.find(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * pairs.shape[1])
    return Found(search.best, search.counts)


class PrunedSearch:
    """The state that the searches for the neighbours of different rows share; `width` pairs are solved at once."""

    def __init__(self, values: PairValues, pairs: PairsOnBins, query: Query, width: int) -> None:
        self.pairs, self.query, self.value = pairs, query, values.value
        self.best, self.counts = TopK(pairs.shape[0], query.k, pairs.shape[1]), Counts()
        solved = "reg_cost" if values.value == "divergence" else values.value
        self.batches = PairBatches(pairs, solved, values.options, width)
        self.centres, self.duplicates = prototypes(pairs, self.batches), Duplicates(pairs)
        self.labels = values.labels if values.value == "divergence" else None
        self.self_terms = [_on_host(pairs, x) for x in values.self_terms] if values.value == "divergence" else None
        self.offsets = self._offsets(0), self._offsets(1)
        mass = float(pairs.B[:1].sum(dtype=np.float64))
        read = (pairs.B[rows] for rows in blocks(len(pairs.B), ROWS_PER_BLOCK))
        smallest_weight = min(float(w[w > 0].min()) for w in read)
        tol = values.options.tol
        assert tol is not None  # see `why_not_prune`
        self.slack = slack(pairs, tol, mass, smallest_weight)

    def find(self, rows: HostArray) -> None:
        """Find the neighbours of some rows, NumPy indices in order."""
        bounds = RowBounds(self.pairs, self.batches, rows, self.centres, self.value == "cost")
        excludes_self, count = self.query.excludes_self, self.query.first_pairs
        self.counts.add(bounded=bounds.lower.size - (len(rows) if excludes_self else 0))
        if excludes_self:
            bounds.close(rows, rows)
        columns = np.argpartition(self._floor(rows, bounds.lower), count - 1, axis=1)[:, :count]
        at, columns = np.repeat(np.arange(len(rows)), count), columns.ravel()
        started = np.zeros(bounds.lower.shape, bool)
        potentials = self._solve(bounds, rows[at], columns, potentials=True)
        bounds.add(potentials.reshape(len(rows), count, -1)[:, :CUTS_PER_ROW])
        reach = None
        while True:
            started[at, columns] = True
            count *= ROUND_GROWTH
            at, columns, height = self._lowest(rows, bounds.lower, count)
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
            at, columns, _ = self._lowest(rows, bounds.lower, count)
            if not len(at):
                break
            self._solve(bounds, rows[at], columns)
        self.counts.add(started=int(started.sum()))

    def _lowest(self, rows: HostArray, lower: HostArray, count: int) -> tuple[HostArray, HostArray, HostArray]:
        """Of the pairs that may be among the nearest, choose the `count` lowest bounds of each row.

        Returns indices into `rows`, columns, and by how much the bound is below one that would rule the pair out.
        """
        floor = self._floor(rows, lower)
        at, columns = np.nonzero(floor <= self.best.values[rows, -1:])
        at, columns = smallest_per_row(floor[at, columns], at, columns, count)
        return at, columns, self.best.values[rows[at], -1] - floor[at, columns]

    def _floor(self, rows: HostArray, lower: HostArray) -> HostArray:
        """Return values that the reported distances cannot fall below, in the precision of the report."""
        ours, theirs = self.offsets
        floor = lower - self.slack
        if ours is not None:
            floor = floor - (ours[rows, None] + theirs)
        with np.errstate(over="ignore"):
            return floor.astype(self.pairs.dtype).astype(np.float64)

    def _offsets(self, side: Literal[0, 1]) -> HostArray | None:
        """Return the numbers (Q,) or (D,) to subtract from bounded values for distances; None for zeros."""
        if self.self_terms is not None:
            return np.asarray(self.self_terms[side].distances / 2)
        return self.pairs.eps * entropies(self.pairs, side) if self.value == "entropic_cost" else None

    def _solve(self, bounds: RowBounds, rows: HostArray, columns: HostArray, potentials: bool = False) -> Array:
        """Solve pairs, add them, and close their bounds; return the `potentials` (K, n) of the rows if wanted.

        A pair stands for those of its row with equal columns too, so that these get the very same distance.
        """
        pairs, xp = self.pairs, self.pairs.xp
        key, back = np.unique(rows * pairs.shape[1] + self.duplicates.first[columns], return_inverse=True)
        rows, columns = np.divmod(key, pairs.shape[1])
        solved, f = self._values(rows, columns, potentials)
        self.counts.finish(solved.error, solved.converged)
        which, equal = self.duplicates.of(columns)
        if self.query.excludes_self:
            which, equal = which[rows[which] != equal], equal[rows[which] != equal]
        self.best.add(rows[which], equal, solved.distances[which], solved.error[which], solved.converged[which])
        bounds.close(rows[which], equal)
        return f[xp.asarray(back)] if potentials else None

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
        if self.self_terms is not None and self.labels is not None:
            ours, theirs = self.self_terms
            equal = self.labels[0][rows] == self.labels[1][columns]
            ours, theirs = Solved(*(x[rows] for x in ours)), Solved(*(x[columns] for x in theirs))
            solved = debiased(pairs, solved, ours, theirs, equal)
        distances, f = narrowed(solved.distances, pairs.dtype, np).astype(np.float64), batch.f
        if pairs.symmetric and potentials:
            at = xp.asarray(back)
            f = xp.where(swapped, batch.g[at], f[at])
        return Solved(*(x[back] for x in (distances, *solved[1:]))), f


def _on_host(pairs: PairsOnBins, solved: Solved) -> Solved:
    return solved._replace(distances=pairs.to_host(solved.distances))
