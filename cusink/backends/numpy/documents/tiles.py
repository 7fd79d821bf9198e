"""Pairs of documents of similar sizes, with a kernel each, as one array."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.log import error_log, finish_log
from cusink.backends.numpy.reductions import softmin
from cusink.backends.ranges import flush
from cusink.convergence.rules import overrelaxed, overrelaxed_log
from cusink.costs.logits import logits
from cusink.types import Axis, HostArray

FAR = 2.0**40  # a scaling by which potentials have moved so far that the kernel absorbs them


class Extent(NamedTuple):
    """Bounds on the numbers of a tile, for the certificate of its sums."""

    lost: tuple[float, float]  # what a sum over one side can lose, per unit of the entries, over the machine epsilon
    heaviest: tuple[float, float]  # weights
    largest: float  # entry of a kernel


@dataclasses.dataclass(eq=False)
class PairTile:
    """Problems with kernels ``A = exp((f + g - C) / eps)`` (B, m, n), transposed as they were gathered.

    The kernels absorb potentials f, g and stay, while the scalings p (B, n) and q (B, m), weights included, move on: at
    a quarter of a microsecond per product of 40 by 70, to make them again at each check would take longer than the
    iterations. Every sum is certified to have lost nothing; a problem in which one is not takes that half-step as
    log-sum-exp and absorbs again.
    """

    C: HostArray
    A: HostArray
    eps: float
    a: HostArray
    b: HostArray
    f: HostArray  # absorbed, in float64
    g: HostArray
    p: HostArray
    q: HostArray
    largest: HostArray  # entries of the kernels (B,)
    rows: HostArray  # of C, which is not copied when problems leave

    def __post_init__(self) -> None:
        """Measure what the checks need of these problems."""
        self.ceiling = float(np.finfo(self.a.dtype).max) * float(np.finfo(self.a.dtype).eps)  # has a normal reciprocal
        self._measure()

    def _measure(self) -> None:
        info = np.finfo(self.a.dtype)
        lost_row, lost_column = (k * float(info.tiny) / float(info.eps) for k in (self.a.shape[1], self.b.shape[1]))
        heaviest = float(self.a.max(initial=0)), float(self.b.max(initial=0))
        self.extent = Extent((lost_row, lost_column), heaviest, float(self.largest.max(initial=1)))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no check accepts them
    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return bounds (B,) on the errors after one more plain f-update."""
        a, b, A, p, q = self.a, self.b, self.A, self.p, self.q
        excess = (omega[:, None] - 1).astype(a.dtype)
        relaxed = bool(excess.any())
        T, S = np.empty_like(a), np.empty_like(b)
        buffer = np.empty(max(a.size, b.size), a.dtype)
        scratch_p, scratch_q = (buffer[: x.size].reshape(x.shape) for x in (a, b))
        most = float(p.max(initial=0))  # a bound on the entries of p, or of q
        for step in range(count):
            np.matvec(A, p, out=S)
            lowest = self._certify(S, p, most, 0, excess)
            most = 2 * self.extent.heaviest[1] / lowest  # relaxed is at most twice the plain update
            np.divide(b, S, out=S)
            if relaxed:
                overrelaxed(np, q, S, excess, scratch=scratch_q, out=q)
            else:
                q[...] = S
            np.vecmat(q, A, out=T)
            lowest = self._certify(T, q, most, 1, excess)
            most = 2 * self.extent.heaviest[0] / lowest
            if relaxed and step == count - 1:
                row_sums = T.copy()
            np.divide(a, T, out=T)
            if relaxed:
                overrelaxed(np, p, T, excess, scratch=scratch_p, out=p)
            else:
                p[...] = T
        np.matvec(A, p, out=S)
        error = _distance(S, q, b)
        if relaxed:  # p is past its plain update, by as much as this
            error += _distance(row_sums, p, a)
        error /= b.sum(axis=1, dtype=np.float64)
        self._repair_errors(error)
        self._absorb_far()
        return error

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        eps, A, C = self.eps, self.A[index], self.C[self.rows[index]]
        a, b, q, largest = self.a[index], self.b[index], self.q[index], self.largest[index]
        T = np.vecmat(q, A)
        p = a / T
        S = np.matvec(A, p)
        sound = self._sound(T, q, largest, 1) & self._sound(S, p, largest, 0)
        error = _distance(S, q, b) / b.sum(axis=1, dtype=np.float64)
        forbidden = A == 0  # there the cost may be inf
        A *= C
        if not np.isfinite(A).all():
            A[forbidden] = 0
        cost = np.vecdot(q, np.matvec(A, p))
        f = self.f[index] - eps * np.log(T, dtype=np.float64)
        g = self._potentials(index)[1]
        lost = np.flatnonzero(~(sound & np.isfinite(cost)))
        if len(lost):
            own = np.ascontiguousarray(np.swapaxes(C[lost], 1, 2))
            f[lost], g[lost], cost[lost], error[lost] = finish_log(own, a[lost], b[lost], g[lost], eps)
        return f, g, cost, error

    def at(self, index: HostArray) -> "PairTile":
        """Return the tile of the problems at `index`."""
        names = ("A", "rows", "a", "b", "f", "g", "p", "q", "largest")
        return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in names})

    def absorb(self, rows: HostArray) -> None:
        """Make the kernels of `rows` from their potentials, with no scalings left."""
        # float64 first: f + g - C cancels, and (f + g - C) / eps in float32 would keep few digits.
        exponents: HostArray = self.f[rows, None, :] + self.g[rows, :, None]
        exponents -= self.C[self.rows[rows]]
        exponents *= 1 / self.eps
        exponents[self.b[rows] == 0] = 0  # the potentials of padding do not follow, and it must stay in range
        np.swapaxes(exponents, 1, 2)[self.a[rows] == 0] = 0
        self.largest[rows] = np.exp(np.clip(exponents.max(axis=(1, 2)), 0, 700))
        with np.errstate(over="ignore"):  # of a start without digits: sums that are not certified are taken anew
            self.A[rows] = flush(np.exp(np.maximum(exponents, -1e4).astype(self.A.dtype)))
        self.p[rows], self.q[rows] = self.a[rows], self.b[rows]
        self._measure()

    def _absorb_far(self) -> None:
        """Absorb the scalings of problems that have come far, before they leave the range.

        Where one side has become small the other is large: the kernels do not exceed `largest`.
        """
        limits = FAR * self.extent.heaviest[0], FAR * self.extent.heaviest[1]
        if self.p.max(initial=0) <= limits[0] and self.q.max(initial=0) <= limits[1]:
            return
        rows = np.flatnonzero((self.p.max(axis=1) > limits[0]) | (self.q.max(axis=1) > limits[1]))
        self.f[rows], self.g[rows] = self._potentials(rows)
        self.absorb(rows)

    def _potentials(self, rows: HostArray) -> tuple[HostArray, HostArray]:
        """Return f, g (rows,) with the scalings; those of padding stay as they are."""

        def moved(potential: HostArray, scaling: HostArray, weights: HostArray) -> HostArray:
            factor = np.divide(scaling, weights, out=np.ones(weights.shape), where=weights > 0)
            out: HostArray = potential + self.eps * np.log(factor)
            return out

        return (
            moved(self.f[rows], self.p[rows], self.a[rows]),
            moved(self.g[rows], self.q[rows], self.b[rows]),
        )

    def _certify(self, product: HostArray, factor: HostArray, most: float, axis: Axis, excess: HostArray) -> float:
        """Take the half-step of problems with a sum that is not certified as log-sum-exp; return the smallest sum.

        What a sum can lose is bounded as in `cusink.backends.numpy.certificate`: an entry of A or of the factor, or a
        product of them, that underflowed. First for all problems at once, from `most`, a bound on the factor.
        """
        lowest = float(np.minimum.reduce(product, axis=None))
        highest = factor.shape[1] * most * self.extent.largest
        if lowest >= self.extent.lost[axis] * (most + 1 + self.extent.largest) and highest <= self.ceiling:
            return lowest
        outside = np.flatnonzero(~self._sound(product, factor, self.largest, axis))
        if len(outside):
            self._log_step(outside, axis, excess)
            product[outside] = 1
        return float(product.min())

    def _sound(self, product: HostArray, factor: HostArray, largest: HostArray, axis: Axis) -> HostArray:
        """Return the problems (B,) in which every sum is certified and has a reciprocal."""
        floor = self.extent.lost[axis] * (factor.max(axis=1).astype(np.float64) + 1 + largest)
        sound: HostArray = (product.min(axis=1) >= floor) & (product.max(axis=1) <= self.ceiling)
        return sound

    def _log_step(self, rows: HostArray, axis: Axis, excess: HostArray) -> None:
        """Update the potentials of one side of `rows` by log-sum-exp, over-relaxed, and absorb them."""
        (f, g), eps = self._potentials(rows), self.eps
        old, summed = (g, logits(np, self.a[rows], f, eps)) if axis == 0 else (f, logits(np, self.b[rows], g, eps))
        plain = softmin(self._costs(rows), summed, eps, axis)
        new = overrelaxed_log(np, old, plain, excess[rows].astype(np.float64), eps)
        self.f[rows], self.g[rows] = (f, new) if axis == 0 else (new, g)
        self.absorb(rows)

    def _repair_errors(self, error: HostArray) -> None:
        """Measure by log-sum-exp the errors for which a product has overflowed."""
        lost = np.flatnonzero(~np.isfinite(error))
        if len(lost):
            C, a, b, (f, g) = self._costs(lost), self.a[lost], self.b[lost], self._potentials(lost)
            plain = softmin(C, logits(np, b, g, self.eps), self.eps, axis=1)
            error[lost] = error_log(C, a, b, f, g, plain, self.eps)

    def _costs(self, rows: HostArray) -> HostArray:
        """Return the costs (rows, n, m)."""
        return np.ascontiguousarray(np.swapaxes(self.C[self.rows[rows]], 1, 2))


def start_tile(
    C: HostArray, A: HostArray, a: HostArray, b: HostArray, eps: float, f: HostArray, g: HostArray
) -> PairTile:
    """Return problems that start from the potentials f (B, n) and g (B, m); their kernels are made in A.

    Without a start g is the c-transform of f = 0: each column has 1 as its largest entry, and no sum can
    begin out of range, for any C / eps. (A c-transform for f as well is a worse start: on documents it took twice the
    iterations.)
    """
    every = np.arange(len(a))
    f, g = f.astype(np.float64), g.astype(np.float64)
    warm = bool(f.any() or g.any())
    if not warm:
        np.multiply(C, a.dtype.type(-1 / eps), out=A)
        top = A.max(axis=2, keepdims=True)
        A -= top
        g = -eps * top[:, :, 0].astype(np.float64)
        flush(np.exp(A, out=A))
    tile = PairTile(C, A, eps, a, b, f, g, a.copy(), b.copy(), np.ones(len(a)), every)
    if warm:
        tile.absorb(every)
    return tile


def join_tiles(tiles: Sequence[PairTile]) -> PairTile:
    """Return one tile of several, padded to the width of the last by each problem's first word, without weight."""
    width = tiles[-1].b.shape[1]

    def together(parts: list[HostArray], weights: bool = False) -> HostArray:
        padded = []
        for part in parts:
            missing = width - part.shape[1]
            if missing:
                more = np.repeat(part[:, :1], missing, axis=1)
                part = np.concatenate([part, np.zeros_like(more) if weights else more], axis=1)
            padded.append(part)
        return np.concatenate(padded)

    rest = {name: np.concatenate([getattr(tile, name) for tile in tiles]) for name in ("a", "f", "p", "largest")}
    return PairTile(
        C=together([tile.C[tile.rows] for tile in tiles]),
        A=together([tile.A for tile in tiles]),
        eps=tiles[0].eps,
        b=together([tile.b for tile in tiles], weights=True),
        g=together([tile.g for tile in tiles]),
        q=together([tile.q for tile in tiles], weights=True),
        rows=np.arange(len(rest["a"])),
        **rest,
    )


def _distance(sums: HostArray, scaling: HostArray, weights: HostArray) -> HostArray:
    """Return ``sum |scaling * sums - weights|`` of each problem; overwrite `sums`."""
    sums *= scaling
    sums -= weights
    distance: HostArray = np.abs(sums, out=sums).sum(axis=1, dtype=np.float64)
    return distance
