"""Lower bounds on a value of many pairs of histograms, from dual potentials: theorems and proofs in docs/retrieval.md.

Potentials f of a row give, by one more reduction over its bins, potentials g for which ``<a, f> + <b, g>`` bounds the
value from below *for any b*: a cut. One matrix product bounds a row against all columns by many cuts. They come from
problems between the row and a few prototypes of the columns, and from pairs that have been solved. Pairs that they
leave undecided are tightened one by one, with a few iterations that start from the best cut.
"""

import math
from typing import Any

import numpy as np

from cusink.costs.cost import Cost
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.concavity import MOST_COSTS, PAIRS_AT_ONCE, STEEPEST, ConcavityBounds
from cusink.retrieval.pairs import PairsOnBins, Rows
from cusink.types import Array, ArrayModule, HostArray, MatrixValue
from cusink.workers import each

MOST_PROTOTYPES = 32  # that a row is solved against
COLUMNS_PER_PROTOTYPE = 16  # at least
SAMPLED_PER_PROTOTYPE = 64  # columns, at most
KMEANS_ROUNDS = 5
ROWS_PER_PROTOTYPES = 16  # that are iterated against all prototypes at once: a share of a thread
PROTOTYPE_ITERATIONS = {False: 8, True: 16}  # more where the transport cost alone rules pairs out
TIGHTENING_ITERATIONS = 2
MOST_SLACK = 1e300  # with which the bound of a closed pair, inf, stays inf
BLOCK_BOUNDS = 1 << 20  # bounds computed at once


class RowBounds:
    """Bounds on the values of some rows of `pairs`, successive NumPy indices, with all columns.

    ``lower`` (rows, D), in NumPy, is the best bound of each pair so far: of the transport cost if `sharp`, else of the
    regularised cost; inf for pairs that are closed. Where the range of the costs does not bound that of potentials, as
    beside forbidden pairs, each bound allows for columns of a reported plan that have `missed` so much mass in sum: by
    its own potentials, and if not `sharp` by as much again for those of the plan.
    """

    def __init__(
        self,
        pairs: PairsOnBins,
        batches: PairBatches,
        rows: HostArray,
        centres: Array,
        sharp: bool,
        slack: float = math.inf,
        missed: float = 0.0,
    ) -> None:
        self.pairs, self.batches, self.sharp, self.first = pairs, batches, sharp, rows[0]
        self.missed = missed
        self.xp, self.eps = pairs.xp, pairs.eps
        self.bins = self.xp.asarray(np.flatnonzero(batches.support[rows].any(axis=0)))
        self.C = pairs.C.between(self.bins, batches.columns)
        self.softmin = self.C.repeated_softmin(pairs.eps)
        self.a = self.xp.ascontiguousarray(pairs.A[self.xp.asarray(rows)][:, self.bins])
        self.lower = np.full((len(rows), pairs.shape[1]), -np.inf)
        # Cuts: what their values gain by the weights b; of equal masses these are the potentials g.
        self.slopes = self.xp.empty((len(rows), 0, self.C.shape[1]), self.C.dtype)
        self.constant = self.xp.empty((len(rows), 0))
        self.by_concavity = None
        if sharp and slack < math.inf and self._gentle():
            costs = self.C.costs_of(0, slice(0, self.C.shape[0]))
            self.by_concavity = ConcavityBounds(self.xp, costs, pairs.eps, slack)
        # Cuts of the regularised cost over eps, in float32, and their exponentials: `enclose` starts from these.
        self.starts = self.scalings = self.slopes.astype(np.float32)
        self._add(self._against(centres))

    def add(self, potentials: Array) -> None:
        """Add cuts from the potentials (rows, K, n) of K solved pairs of each row."""
        self._add(potentials[..., self.bins])

    def close(self, rows: HostArray, columns: HostArray) -> None:
        """Take out pairs that need no bound any more, by indices of `pairs`."""
        self.lower[rows - self.first, columns] = np.inf

    def tighten(self, rows: HostArray, columns: HostArray) -> None:
        """Raise the bounds of single pairs, by NumPy indices: ordered rows of these bounds, and columns."""
        calls = [(rows[block], columns[block]) for block in blocks(len(rows), self.batches.width)]
        each(self._tighten, calls, self.batches.at_once)

    def enclose(self, rows: HostArray, columns: HostArray, enough: HostArray) -> None:
        """Raise the bounds of single pairs by concavity, as `tighten` does; what exceeds `enough` (K,) will do."""
        at_once = min(PAIRS_AT_ONCE, self.batches.width)
        groups = [(batch, bins) for batch, bins in self.batches.groups(rows + self.first, at_once)]
        each(self._enclose, [(rows[x], columns[x], enough[x], bins) for x, bins in groups], self.batches.at_once)

    def _gentle(self) -> bool:
        low, high = self.pairs.span
        return (high - low) <= STEEPEST * self.eps and math.prod(self.C.shape) <= MOST_COSTS

    def _enclose(self, rows: HostArray, columns: HostArray, enough: HostArray, bins: HostArray) -> None:
        xp = self.xp
        assert self.by_concavity is not None
        at = xp.asarray(np.flatnonzero(bins[self.C.to_host(self.bins)]))
        b = self.pairs.B[xp.asarray(columns)][:, self.batches.columns]
        a = self.a[xp.asarray(rows)][:, at]
        start = self._best(self.starts, self.constant / self.eps, rows, b.astype(np.float32), self.scalings)
        bounds = self.by_concavity.at(at).bounds(a, b, start, xp.asarray(enough))
        self.lower[rows, columns] = np.maximum(self.lower[rows, columns], self.C.to_host(bounds))

    @np.errstate(invalid="ignore")  # as in `prototypes`
    def _best(self, slopes: Array, constant: Array, rows: HostArray, b: Array, chosen: Array) -> Array:
        """Return for each pair, with b (pairs, columns), what is `chosen` (rows, K, ...) for the highest of its cuts.

        Their `slopes` are (rows, K, columns), their `constant` (rows, K).
        """
        xp, out = self.xp, self.xp.empty((len(b), chosen.shape[2]), chosen.dtype)
        unique, first = np.unique(rows, return_index=True)
        for row, start, stop in zip(unique, first, [*first[1:], len(rows)], strict=True):
            best = (xp.matmul(b[start:stop], slopes[row].T) + constant[row]).argmax(axis=1)
            out[start:stop] = chosen[row][best]
        return out

    def _against(self, centres: Array) -> Array:
        """Return potentials (rows, R, bins) after a few iterations of the rows with each centre (R, columns)."""
        xp = self.xp
        out = xp.empty((len(self.a), len(centres), self.a.shape[1]), self.C.dtype)

        def iterate(rows: slice) -> None:
            a, b = self.a[rows].repeat(len(centres), axis=0), xp.tile(centres, (rows.stop - rows.start, 1))
            count = PROTOTYPE_ITERATIONS[self.sharp and self.by_concavity is None]
            out[rows] = self._iterated(a, b, xp.zeros_like(a), count).reshape(-1, len(centres), a.shape[1])

        size = len(self.a) if xp is not np else ROWS_PER_PROTOTYPES
        each(iterate, [(rows,) for rows in blocks(len(self.a), size)], self.batches.at_once)
        return out

    def _iterated(self, a: Array, b: Array, f: Array, count: int) -> Array:
        """Return the potentials f (K, bins) of pairs after some more iterations."""
        log_a, log_b = _log(self.xp, a), _log(self.xp, b)
        for _ in range(count):
            g = self.softmin(log_a + f / self.eps, 0)
            f = self.softmin(log_b + g / self.eps, 1)
        return f

    def _add(self, f: Array) -> None:
        """Add cuts from potentials f (rows, K, bins)."""
        count, size = f.shape[1:]
        a, f = self.a.repeat(count, axis=0), self.xp.ascontiguousarray(f).reshape(-1, size)
        constant, slopes = self._cut(a, f)
        constant, slopes = constant.reshape(len(self.a), count), slopes.reshape(len(self.a), count, -1)
        on_all = slopes
        if slopes.shape[2] < self.pairs.C.shape[1]:  # columns are read with the bins that none of them uses
            on_all = self.xp.zeros((*slopes.shape[:2], self.pairs.C.shape[1]), slopes.dtype)
            on_all[..., self.batches.columns] = slopes

        def bound(rows: slice, columns: slice) -> None:
            bounds = self.pairs.B.products(on_all[rows].reshape(-1, on_all.shape[2]), columns)
            bounds = bounds.reshape(-1, count, columns.stop - columns.start)
            bounds += constant[rows, :, None].astype(bounds.dtype)
            bounds = self.C.to_host(bounds.max(axis=1))
            np.fmax(self.lower[rows, columns], bounds, out=self.lower[rows, columns])

        calls = [
            (rows, columns)
            for columns in blocks(self.pairs.shape[1], ROWS_PER_BLOCK)
            for rows in blocks(len(slopes), max(1, BLOCK_BOUNDS // (count * (columns.stop - columns.start))))
        ]
        each(bound, calls, self.batches.at_once)
        self.slopes = self.xp.concatenate([self.slopes, slopes], axis=1)
        self.constant = self.xp.concatenate([self.constant, constant], axis=1)
        if self.by_concavity is not None:
            starts = self.softmin(_log(self.xp, a) + f / self.eps, 0) / self.eps
            starts = starts.astype(np.float32).reshape(slopes.shape)
            self.starts = self.xp.concatenate([self.starts, starts], axis=1)
            self.scalings = self.xp.exp(self.starts - self.starts.max(axis=2, keepdims=True))

    def _cut(self, a: Array, f: Array) -> tuple[Array, Array]:
        """Return cuts: constants (K,), and slopes (K, columns) by the weights b."""
        g = self._complete(a, f)
        return _dot(self.xp, a, f) - self._allowance(g), g

    def _allowance(self, g: Array) -> Array | float:
        """Return how far the value of a plan whose columns miss their sums may be below a bound with g (K, columns)."""
        missed = self.missed / 2 if self.sharp else self.missed
        return missed * (g.max(axis=1) - g.min(axis=1)) if missed else 0.0

    def _complete(self, a: Array, f: Array) -> Array:
        """Return the potentials g (K, columns) of a cut."""
        if self.sharp:
            return self.C.c_transform(self.xp.where(a > 0, f, -self.xp.inf), 0)
        return self.softmin(_log(self.xp, a) + f / self.eps, 0)

    def _tighten(self, rows: HostArray, columns: HostArray) -> None:
        xp, eps = self.xp, self.eps
        b = xp.ascontiguousarray(self.pairs.B[xp.asarray(columns)][:, self.batches.columns])
        a, g = self.a[xp.asarray(rows)], self._best(self.slopes, self.constant, rows, b, self.slopes)
        log_a, log_b = _log(xp, a), _log(xp, b)
        for _ in range(TIGHTENING_ITERATIONS):
            f = self.softmin(log_b + g / eps, 1)
            g = self.softmin(log_a + f / eps, 0)
        if self.sharp:
            f = self.C.c_transform(xp.where(b > 0, g, -xp.inf), 1)
            g = self._complete(a, f)
        bounds = self.C.to_host(_dot(xp, a, f) + _dot(xp, b, g) - self._allowance(g))
        self.lower[rows, columns] = np.fmax(self.lower[rows, columns], bounds)


def has_forbidden(pairs: PairsOnBins) -> bool:
    """Whether the cost forbids pairs of bins."""
    return pairs.C.stored and not bool(pairs.xp.isfinite(pairs.C.data).all())


def why_not_bounded(pairs: PairsOnBins, value: MatrixValue) -> str | None:
    """Return why no bound holds for a value that meets its tolerance, or None if one does."""
    if pairs.reach is not None and value not in ("reg_cost", "divergence"):
        return "with 'reach', what is transported may be little, and 'reg_cost' and 'divergence' alone have a bound"
    if has_forbidden(pairs) and pairs.reach is not None:
        return "with forbidden pairs (+inf) in C and 'reach', the tolerance bounds no value"
    return None


@np.errstate(invalid="ignore")  # BLAS may compute with what lies on its stack, and leave that out of the product
def prototypes(B: Rows, columns: Array, xp: ArrayModule) -> Array:
    """Return centres (R, columns), on the bins in use, of clusters of B: k-means on a sample."""
    total = len(B)
    count = max(1, min(MOST_PROTOTYPES, total // COLUMNS_PER_PROTOTYPE))
    sample = np.unique(np.linspace(0, total - 1, min(total, SAMPLED_PER_PROTOTYPE * count)).astype(int))
    items = B[xp.asarray(sample)][:, columns]
    centres = items[xp.asarray(np.linspace(0, len(sample) - 1, count).astype(int))]
    for _ in range(KMEANS_ROUNDS):
        cluster = ((centres * centres).sum(axis=1) / 2 - xp.matmul(items, centres.T)).argmin(axis=1)
        member = (cluster == xp.arange(count)[:, None]).astype(items.dtype)
        size = member.sum(axis=1, keepdims=True)
        centres = xp.where(size > 0, xp.matmul(member, items) / xp.maximum(size, 1), centres)
    return xp.ascontiguousarray(centres)


def entropies(items: Rows, C: Cost[Any], first: int = 0) -> HostArray:
    """Return ``-sum_i w_i log w_i`` of all items from `first` on, in NumPy."""
    xp = C.xp
    read = (items[rows] for rows in blocks(len(items) - first, ROWS_PER_BLOCK, first))
    return np.concatenate([-C.to_host(_dot(xp, w, xp.log(xp.where(w > 0, w, 1)))) for w in read])


def slack(pairs: PairsOnBins, tol: float, mass: float, smallest: float, bounded: bool = True) -> float:
    """Return the most that tolerance and rounding can make a reported value fall below its lower bound.

    `smallest` is the smallest positive weight of the columns. Where the range of the costs has not `bounded` that of
    potentials, the bounds allow for these themselves.
    """
    low, high = pairs.span
    eps, bins, unit = pairs.eps, sum(pairs.C.shape), float(np.finfo(pairs.C.dtype).eps) / 2
    span, size = high - low, 4 * max(abs(low), abs(high)) + 2 * eps * abs(math.log(mass))
    rounding = unit * ((bins + 32) * (size + eps) + 4 * span * span / eps)
    of_potentials = span if bounded else 0.0
    return min(mass * (tol * (of_potentials + eps * (1 + math.log(mass / smallest))) + rounding), MOST_SLACK)


def bytes_needed(pairs: PairsOnBins, solved: int) -> tuple[int, int]:
    """Return the least bytes that bounds take, and those that a row with cuts from `solved` pairs adds."""
    items, itemsize = min(ROWS_PER_BLOCK, pairs.shape[1]), pairs.C.dtype.itemsize
    cuts = min(MOST_PROTOTYPES, pairs.shape[1] // COLUMNS_PER_PROTOTYPE) + solved
    return 4 * items * pairs.C.shape[1] * itemsize, 48 * pairs.shape[1] + 8 * cuts * sum(pairs.C.shape) * itemsize


def _log(xp: ArrayModule, weights: Array) -> Array:
    with np.errstate(divide="ignore"):
        return xp.log(weights)


def _dot(xp: ArrayModule, weights: Array, values: Array) -> Array:
    """Return ``sum_i weights_i values_i`` (K,) in float64."""
    return xp.einsum("bi,bi->b", weights.astype(np.float64, copy=False), values.astype(np.float64, copy=False))
