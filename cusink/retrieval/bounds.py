"""Lower bounds on a value of many pairs of histograms, from dual potentials: theorems and proofs in docs/retrieval.md.

Potentials f of a row give, by one more reduction over its bins, potentials g for which ``<a, f> + <b, g>`` bounds the
value from below *whatever b is*: a cut. One matrix product bounds a row against all columns by many cuts. They come
from problems between the row and a few prototypes of the columns, and from pairs that have been solved. What they leave
undecided is tightened pair by pair, by a few iterations that start from the best cut.
"""

import math

import numpy as np

from cusink.retrieval.tiles import ROWS, parts

__all__ = [
    "RowBounds",
    "bytes_needed",
    "entropies",
    "prototypes",
    "slack",
]


PROTOTYPES = 32  # that a row is solved against, at most
GROUP = 16  # columns that each stands for, at least
SAMPLE = 64  # columns looked at for each of them, at most
ROUNDS = 5  # of k-means
COARSE = {True: 16, False: 8}  # iterations for a prototype: for the transport cost, for the other values
FINE = 2  # iterations for a pair
BLOCK = 1 << 20  # bounds computed at once


class RowBounds:
    """Bounds on the values of some rows of `pairs`, NumPy indices one after the other, with all columns.

    ``lower`` (rows, D), in NumPy, is the best bound of each pair so far: of the transport cost if `sharp`, else of the
    regularised cost.
    """

    def __init__(self, pairs, batches, rows, centres, sharp):
        self.pairs, self.batches, self.sharp, self.first = pairs, batches, sharp, rows[0]
        self.ops, self.xp, self.eps = pairs.ops, pairs.ops.xp, pairs.eps
        self.bins = self.xp.asarray(np.flatnonzero(batches.support[rows].any(axis=0)))
        self.C = pairs.C.between(self.bins, batches.columns)
        self.softmin = self.C.repeated_softmin(pairs.eps)
        self.a = self.xp.ascontiguousarray(pairs.A[self.xp.asarray(rows)][:, self.bins])
        self.lower = np.full((len(rows), pairs.shape[1]), -np.inf)
        self.g = self.xp.empty((len(rows), 0, self.C.shape[1]), self.C.dtype)
        self.constant = self.xp.empty((len(rows), 0))
        self._add(self._against(centres))

    def add(self, potentials):
        """Cuts from the potentials (rows, K, n) of K solved pairs of each row."""
        self._add(potentials[..., self.bins])

    def tighten(self, rows, columns):
        """Raise the bounds of single pairs, by NumPy indices: ordered rows of these, and columns."""
        for part in parts(len(rows), self.batches.width):
            self._tighten(rows[part], columns[part])

    def _against(self, centres):
        """Potentials (rows, R, bins) after a few iterations of the rows with each of the centres (R, columns)."""
        xp, eps = self.xp, self.eps
        log_a, log_b = _log(xp, self.a.repeat(len(centres), axis=0)), _log(xp, xp.tile(centres, (len(self.a), 1)))
        f = xp.zeros_like(log_a)
        for _ in range(COARSE[self.sharp]):
            g = self.softmin(log_a + f / eps, 0)
            f = self.softmin(log_b + g / eps, 1)
        return f.reshape(len(self.a), len(centres), -1)

    def _add(self, f):
        """Cuts from potentials f (rows, K, bins)."""
        count, size = f.shape[1:]
        a, f = self.a.repeat(count, axis=0), self.xp.ascontiguousarray(f).reshape(-1, size)
        g = self._complete(a, f).reshape(len(self.a), count, -1)
        constant = _dot(self.xp, a, f).reshape(len(self.a), count)
        for columns in parts(self.pairs.shape[1], ROWS):
            turned = self.pairs.B[columns][:, self.batches.columns].T
            for rows in parts(len(g), max(1, BLOCK // (count * turned.shape[1]))):
                bounds = self.xp.matmul(g[rows].reshape(-1, g.shape[2]), turned)
                bounds = bounds.reshape(-1, count, turned.shape[1])
                bounds += constant[rows, :, None].astype(bounds.dtype)
                bounds = self.ops.to_host(bounds.max(axis=1))
                np.maximum(self.lower[rows, columns], bounds, out=self.lower[rows, columns])
        self.g = self.xp.concatenate([self.g, g], axis=1)
        self.constant = self.xp.concatenate([self.constant, constant], axis=1)

    def _complete(self, a, f):
        """The potentials g (K, columns) of a cut."""
        if self.sharp:
            return self.C.c_transform(self.xp.where(a > 0, f, -self.xp.inf), 0)
        return self.softmin(_log(self.xp, a) + f / self.eps, 0)

    def _tighten(self, rows, columns):
        xp, eps = self.xp, self.eps
        b = xp.ascontiguousarray(self.pairs.B[xp.asarray(columns)][:, self.batches.columns])
        a, g = self.a[xp.asarray(rows)], xp.empty_like(b)
        unique, first = np.unique(rows, return_index=True)
        for row, start, stop in zip(unique, first, [*first[1:], len(rows)], strict=True):
            best = (xp.matmul(b[start:stop], self.g[row].T) + self.constant[row]).argmax(axis=1)
            g[start:stop] = self.g[row][best]
        log_a, log_b = _log(xp, a), _log(xp, b)
        for _ in range(FINE):
            f = self.softmin(log_b + g / eps, 1)
            g = self.softmin(log_a + f / eps, 0)
        if self.sharp:
            f = self.C.c_transform(xp.where(b > 0, g, -xp.inf), 1)
            g = self._complete(a, f)
        bounds = self.ops.to_host(_dot(xp, a, f) + _dot(xp, b, g))
        self.lower[rows, columns] = np.maximum(self.lower[rows, columns], bounds)


def prototypes(pairs, batches):
    """Centres (R, columns), on the bins in use, of groups of items of B that are alike: k-means on a sample."""
    xp, documents = pairs.ops.xp, pairs.shape[1]
    count = min(PROTOTYPES, documents // GROUP)
    sample = np.unique(np.linspace(0, documents - 1, min(documents, SAMPLE * count)).astype(int))
    items = pairs.B[xp.asarray(sample)][:, batches.columns]
    centres = items[xp.asarray(np.linspace(0, len(sample) - 1, count).astype(int))]
    for _ in range(ROUNDS):
        group = ((centres * centres).sum(axis=1) / 2 - xp.matmul(items, centres.T)).argmin(axis=1)
        member = (group == xp.arange(count)[:, None]).astype(items.dtype)
        size = member.sum(axis=1, keepdims=True)
        centres = xp.where(size > 0, xp.matmul(member, items) / xp.maximum(size, 1), centres)
    return xp.ascontiguousarray(centres)


def entropies(pairs, side):
    """``-sum_i w_i log w_i`` of all items of A (side 0) or B (side 1), in NumPy."""
    xp, items = pairs.ops.xp, (pairs.A, pairs.B)[side]
    blocks = (items[part] for part in parts(len(items), ROWS))
    return np.concatenate([-pairs.ops.to_host(_dot(xp, w, xp.log(xp.where(w > 0, w, 1)))) for w in blocks])


def slack(pairs, tol, mass, smallest):
    """What the tolerance and rounding can make a reported value fall below its lower bound, at most.

    `smallest` is the smallest positive weight of the columns.
    """
    low, high = pairs.span
    eps, bins, unit = pairs.eps, sum(pairs.C.shape), float(np.finfo(pairs.C.dtype.name).eps) / 2
    span, size = high - low, 4 * max(abs(low), abs(high)) + 2 * eps * abs(math.log(mass))
    rounding = unit * ((bins + 32) * (size + eps) + 4 * span * span / eps)
    return mass * (tol * (span + eps * (1 + math.log(mass / smallest))) + rounding)


def bytes_needed(pairs, solved):
    """What the bounds take at least, and what those of one row with cuts from `solved` pairs add."""
    items, itemsize = min(ROWS, pairs.shape[1]), pairs.C.dtype.itemsize
    cuts = min(PROTOTYPES, pairs.shape[1] // GROUP) + solved
    return 4 * items * pairs.C.shape[1] * itemsize, 48 * pairs.shape[1] + 8 * cuts * sum(pairs.C.shape) * itemsize


def _log(xp, weights):
    with np.errstate(divide="ignore"):
        return xp.log(weights)


def _dot(xp, weights, values):
    """``sum_i weights_i values_i`` (K,) in float64."""
    return xp.einsum("bi,bi->b", weights.astype(np.float64, copy=False), values.astype(np.float64, copy=False))
