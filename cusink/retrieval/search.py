"""Two searches for the nearest columns of each row: one solves all pairs, one those that no lower bound rules out."""

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.bounds import GROUP, RowBounds, bytes_needed, entropies, prototypes, slack
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.ranking import Closest, Twins, smallest
from cusink.retrieval.tiles import ROWS, pair_count, parts, tile_shape, tiles

__all__ = [
    "Count",
    "obstacle",
    "search_all",
    "search_pruned",
]


MEMORY = 1 << 28  # bytes that bounds may take at a time if no limit is given
FIRST = 8  # pairs of a row to be solved before any is ruled out, at least
CUTS = 16  # taken from these, at most
GROWTH = 3  # times as many pairs of a row are solved in every further round
TRIED = 512  # pairs that show what a closer look is good for
LIKELY = 0.8  # a closer look must rule out a pair in one of five cases to be worth it


class Count:
    """How many pairs were bounded, started and finished, and how many of these missed the tolerance, by how much."""

    def __init__(self):
        self.bounded = self.started = self.finished = self.missed = 0
        self.worst = 0.0

    def finish(self, error, missed):
        """Take in the errors (K,) of pairs that were solved, and which of them missed the tolerance."""
        self.finished += len(error)
        self.missed += np.count_nonzero(missed)
        self.worst = max(self.worst, error[missed].max(initial=0))


def obstacle(pairs, k, options, memory_limit):
    """Why no pair can be left out, or None if some may."""
    if not isinstance(pairs, HistogramPairs):
        return "no lower bound is known for such collections"
    if options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    if pairs.shape[1] < max(2 * GROUP, 4 * max(k, FIRST)):
        return "k is not small beside the number of candidates, or they are too few"
    if pairs.C.stored and not pairs.ops.xp.isfinite(pairs.C.data).all():
        return "with forbidden pairs (+inf) in C, the tolerance bounds no value"
    if memory_limit is not None and memory_limit // 2 < sum(bytes_needed(pairs, max(k, FIRST))):
        return "the bounds of a row exceed 'memory_limit'"
    return None


def search_all(pairs, values, k, alone, tile, progress):
    """Solve every pair, as `cusink.distance_matrix` does; return `Closest` and `Count`."""
    best, count, to_host = Closest(pairs.shape[0], k, pairs.shape[1]), Count(), pairs.ops.to_host
    names = ("distances", "error", "converged")
    for rows, columns in tiles(pairs, *tile):
        solved, missed, worst = values.tile(rows, columns, names, progress)
        block = [to_host(solved[name]) for name in names]
        _take_block(best, rows, columns, block, alone)
        beyond = max(rows.stop, columns.start)
        if pairs.symmetric and beyond < columns.stop:
            mirrored = [x[:, beyond - columns.start :].T for x in block]
            _take_block(best, slice(beyond, columns.stop), rows, mirrored, alone)
        count.missed, count.worst = count.missed + missed, max(count.worst, worst)
    count.started = count.finished = pair_count(pairs)
    return best, count


def _take_block(best, rows, columns, block, alone):
    """Take in the values, errors and convergence (rows, columns) of a block of pairs."""
    at, to = (np.ravel(x) for x in np.mgrid[rows, columns])
    kept = at != to if alone else slice(None)
    distances, error, converged = (np.ravel(x)[kept] for x in block)
    best.take(at[kept], to[kept], distances.astype(float), error, converged)


def search_pruned(pairs, values, k, alone, memory_limit, progress):
    """Solve the pairs that can be among the k nearest of their row; return `Closest` and `Count`."""
    half = None if memory_limit is None else memory_limit // 2  # for bounds, and for solving
    search = Search(pairs, values, k, alone, half)
    least, row = bytes_needed(pairs, max(k, FIRST))
    step = max(1, ((half or MEMORY) - least) // row)
    for rows in parts(pairs.shape[0], step):
        search.rows(np.arange(rows.start, rows.stop))
        progress((rows.stop - rows.start) * pairs.shape[1])
    return search.best, search.count


class Search:
    """What the searches for the neighbours of different rows share."""

    def __init__(self, pairs, values, k, alone, memory_limit):
        self.pairs, self.k, self.alone, self.value = pairs, k, alone, values.value
        self.best, self.count = Closest(pairs.shape[0], k, pairs.shape[1]), Count()
        solved = "reg_cost" if self.value == "divergence" else self.value
        self.batches = PairBatches(pairs, solved, values.options, tile_shape(pairs, memory_limit)[1])
        self.centres = prototypes(pairs, self.batches)
        self.selves = values.selves if self.value == "divergence" else None
        self.terms, self.twins = self._terms(), Twins(pairs)
        mass = float(pairs.B[:1].sum(dtype=np.float64))
        blocks = (pairs.B[part] for part in parts(len(pairs.B), ROWS))
        smallest_weight = min(float(w[w > 0].min()) for w in blocks)
        self.slack = slack(pairs, values.options.tol, mass, smallest_weight)

    def rows(self, rows):
        """Find the neighbours of some rows, NumPy indices in order."""
        bounds = RowBounds(self.pairs, self.batches, rows, self.centres, self.value == "cost")
        self.count.bounded += bounds.lower.size - (len(rows) if self.alone else 0)
        if self.alone:
            bounds.lower[np.arange(len(rows)), rows] = np.inf
        take = max(self.k, FIRST)
        columns = np.argpartition(self._floor(rows, bounds.lower), take - 1, axis=1)[:, :take]
        at, columns = np.repeat(np.arange(len(rows)), take), columns.ravel()
        started = np.zeros(bounds.lower.shape, bool)
        bounds.add(self._solve(bounds, rows[at], columns, True).reshape(len(rows), take, -1)[:, :CUTS])
        reach = None
        while True:
            started[at, columns] = True
            take *= GROWTH
            at, columns, height = self._lowest(rows, bounds.lower, take)
            if reach is None:  # what a closer look raises a bound by, seen in some of them
                some = slice(None, None, 1 + len(at) // TRIED)
                before = bounds.lower[at[some], columns[some]]
                bounds.tighten(at[some], columns[some])
                reach = np.quantile(bounds.lower[at[some], columns[some]] - before, LIKELY) if len(at) else 0
                started[at[some], columns[some]] = True
            near = (height <= reach) & ~started[at, columns]
            bounds.tighten(at[near], columns[near])
            started[at[near], columns[near]] = True
            at, columns, _ = self._lowest(rows, bounds.lower, take)
            if not len(at):
                break
            self._solve(bounds, rows[at], columns)
        self.count.started += np.count_nonzero(started)

    def _lowest(self, rows, lower, count):
        """Of the pairs that may be among the nearest, the `count` lowest bounds of each row.

        Returns indices into `rows`, columns, and by how much the bound is below what would rule the pair out.
        """
        floor = self._floor(rows, lower)
        at, columns = np.nonzero(floor <= self.best.values[rows, -1:])
        at, columns = smallest(floor[at, columns], at, columns, count)
        return at, columns, self.best.values[rows[at], -1] - floor[at, columns]

    def _floor(self, rows, lower):
        """What the reported distances cannot fall below, in the precision in which they are reported."""
        ours, theirs = self.terms
        floor = lower - self.slack
        if ours is not None:
            floor = floor - (ours[rows, None] + theirs)
        with np.errstate(over="ignore"):
            return floor.astype(self.pairs.dtype).astype(np.float64)

    def _terms(self):
        """Numbers (Q,) and (D,) that are taken off what is bounded to give the distance, or (None, None)."""
        if self.value == "divergence":
            return tuple(self.pairs.ops.to_host(side["distances"]) / 2 for side in self.selves)
        if self.value == "entropic_cost":
            return tuple(self.pairs.eps * entropies(self.pairs, side) for side in (0, 1))
        return None, None

    def _solve(self, bounds, rows, columns, potentials=False):
        """Solve pairs, take them in, and close them in `bounds`; return the `potentials` (K, n) of the rows if wanted.

        A pair stands for those of its row with equal columns too, so that these get the very same distance.
        """
        pairs, xp = self.pairs, self.pairs.ops.xp
        key, back = np.unique(rows * pairs.shape[1] + self.twins.first[columns], return_inverse=True)
        rows, columns = np.divmod(key, pairs.shape[1])
        found, error, converged, f = self._values(rows, columns, potentials)
        self.count.finish(error, ~converged)
        which, equal = self.twins.of(columns)
        if self.alone:
            which, equal = which[rows[which] != equal], equal[rows[which] != equal]
        self.best.take(rows[which], equal, found[which], error[which], converged[which])
        bounds.lower[rows[which] - bounds.first, equal] = np.inf
        return f[xp.asarray(back)] if potentials else None

    def _values(self, rows, columns, potentials):
        """Distances, errors and convergence of pairs in NumPy, and if wanted the `potentials` of the rows."""
        pairs, back = self.pairs, slice(None)
        if pairs.symmetric:  # both orders are one pair, for which a matrix takes the one with the smaller row
            swapped = pairs.ops.xp.asarray(rows > columns)[:, None]
            key, back = np.unique(
                np.minimum(rows, columns) * len(pairs.B) + np.maximum(rows, columns), return_inverse=True
            )
            rows, columns = np.divmod(key, len(pairs.B))
        solved = self.batches.solve(rows, columns, potentials)
        found, error, converged = solved.values, solved.error, solved.converged
        if self.value == "divergence":
            ours, theirs = self._of_selves(0, rows), self._of_selves(1, columns)
            found = found - (ours["distances"] + theirs["distances"]) / 2
            error = np.maximum(np.maximum(ours["error"], theirs["error"]), error)
            converged = ours["converged"] & theirs["converged"] & converged
        found, f = narrowed(found, pairs.dtype, np).astype(np.float64), solved.f
        if pairs.symmetric and potentials:
            at = pairs.ops.xp.asarray(back)
            f = pairs.ops.xp.where(swapped, solved.g[at], f[at])
        return found[back], error[back], converged[back], f

    def _of_selves(self, side, items):
        """What solving items against themselves gave."""
        return {name: self.pairs.ops.to_host(x)[items] for name, x in self.selves[side].items()}
