"""Sinkhorn iterations of one document against many, each pair with a cost of its own, all kernels in the cache.

This module takes the place of the operators in `cusink.sinkhorn.solve`: only what that needs is here.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy as xp

from cusink.backends.numpy.certificate import relax
from cusink.backends.numpy.forms.log import error_log, finish_log, logits, relax_log
from cusink.backends.numpy.reductions import softmin
from cusink.backends.ranges import flush

__all__ = [
    "Iteration",
    "cost_range",
    "to_host",
    "xp",
]


def to_host(array):
    """Return `array`, which is NumPy's."""
    return array


GROUP_BYTES = 1 << 22  # of the kernels that are multiplied one after the other: they stay in the cache meanwhile
ALIKE, FEWEST = 1.5, 32  # how much the sizes in a group may differ, once it has this many pairs
FAR = 2.0**40  # a scaling by which a problem's potentials have moved so far that its kernel is better made anew


def cost_range(C):
    """Bounds of the costs, as numbers."""
    return C.span


class Iteration:
    """Problems under way, see `operators`, with `PairCosts`: groups of similar sizes, so that little is padded."""

    def __init__(self, C, a, b, eps, f, g, method):
        self.m = b.shape[1]
        C.buffers.restart()  # of an iteration that is over
        self.rows = list(groups_of(C.sizes, a.shape[1] * a.itemsize))
        self.groups = []
        for rows in self.rows:
            width = C.sizes[rows].max()
            costs = C.gather(rows)
            A = C.buffers.take(costs.shape, costs.dtype)
            self.groups.append(_Group(costs, A, a[rows], b[rows, :width], eps, f[rows], g[rows, :width]))

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return bounds (B,) on their errors."""
        error = np.empty(len(omega))

        def run(group, rows):
            error[rows] = group.advance(omega[rows], count)

        if len(self.groups) == 1:
            run(self.groups[0], self.rows[0])
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter in each operation
                list(pool.map(run, self.groups, self.rows))
        return error

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update; g is 0 where padded."""
        n, dtype = self.groups[0].a.shape[1], self.groups[0].a.dtype
        f, g = np.empty((len(index), n), dtype), np.zeros((len(index), self.m), dtype)
        cost, error = np.empty(len(index), dtype), np.empty(len(index))
        for group, (place, local) in zip(self.groups, self._places(index), strict=True):
            if len(place):
                f[place], part, cost[place], error[place] = group.finish(local)
                g[place, : part.shape[1]] = part
        return f, g, cost, error

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        left = []
        for group, (place, local) in zip(self.groups, self._places(index), strict=True):
            if len(place):
                if len(local) < len(group.a):
                    group.keep(local)
                left.append((group, place))
        self.groups, self.rows = [], []
        for part in _together([group for group, _ in left]):  # each group costs a round of calls
            self.groups.append(left[part[0]][0] if len(part) == 1 else joined([left[k][0] for k in part]))
            self.rows.append(np.concatenate([left[k][1] for k in part]))

    def _places(self, index):
        """For each group: which entries of `index` it holds, and the rows, ascending, that it holds them at."""
        wanted = np.full(sum(map(len, self.rows)), -1)
        wanted[index] = np.arange(len(index))
        places = []
        for rows in self.rows:
            place = wanted[rows]
            local = np.flatnonzero(place >= 0)
            places.append((place[local], local))
        return places


def groups_of(sizes, row_bytes):
    """Cut problems with these numbers of words into groups, index arrays, by size."""
    order = np.argsort(sizes, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        largest = sizes[order[stop]] if stop < len(order) else None
        full = largest is None or (stop + 1 - start) * largest * row_bytes > GROUP_BYTES
        if full or (stop - start >= FEWEST and largest > ALIKE * sizes[order[start]]):
            yield order[start:stop]
            start = stop


def _together(groups):
    """Cut groups, narrow ones first, into runs, lists of their numbers, that fit into one."""
    run, count = [], 0
    for k, group in enumerate(groups):
        count += len(group.a)
        if run and count * group.A[0].nbytes > GROUP_BYTES:
            yield run
            run, count = [], len(group.a)
        run.append(k)
    if run:
        yield run


def joined(groups):
    """One group of several, padded to the width of the last by the first word of each problem, without weight."""
    width = groups[-1].b.shape[1]
    whole = groups[0]
    for name in ("C", "A", "b", "g", "q"):
        parts = []
        for group in groups:
            part = group.C[group.rows] if name == "C" else getattr(group, name)
            missing = width - part.shape[1]
            if missing:
                again = np.repeat(part[:, :1], missing, axis=1)
                part = np.concatenate([part, np.zeros_like(again) if name in "bq" else again], axis=1)
            parts.append(part)
        setattr(whole, name, np.concatenate(parts))
    for name in ("a", "f", "p", "largest"):
        setattr(whole, name, np.concatenate([getattr(group, name) for group in groups]))
    whole.rows = np.arange(len(whole.a))
    whole.measure()
    return whole


class _Group:
    """Problems with kernels ``A = exp((f + g - C) / eps)`` (B, m, n), transposed as they were gathered.

    The kernels absorb potentials f, g and stay, while the scalings p (B, n) and q (B, m), weights included, move on: at
    a quarter of a microsecond per product of 40 by 70, to make them anew at each check would take longer than the
    iterations. Without a start g is the c-transform of f = 0: each column has 1 as its largest entry, and no sum can
    begin out of range, whatever C / eps. (A c-transform for f as well is a worse start: on documents it took twice the
    iterations.) Every sum is certified to have lost nothing; a problem in which one is not takes that half-step as
    log-sum-exp and absorbs again.
    """

    def __init__(self, C, A, a, b, eps, f, g):
        self.C, self.A, self.eps, self.a, self.b = C, A, eps, a, b
        self.rows = np.arange(len(a))  # of C, which is not copied when problems leave
        self.p, self.q = a.copy(), b.copy()
        self.f, self.g = f.astype(np.float64), g.astype(np.float64)
        self.largest = np.ones(len(a))  # entries of the kernels
        if f.any() or g.any():
            self._absorb(np.arange(len(a)))
        else:
            np.multiply(C, a.dtype.type(-1 / eps), out=A)
            side = A.max(axis=2, keepdims=True)
            A -= side
            self.g = -eps * side[:, :, 0].astype(np.float64)
            flush(np.exp(A, out=A))
        self.measure()

    def measure(self):
        """What the checks need of these problems."""
        info = np.finfo(self.a.dtype)
        self.tiny, self.ceiling = float(info.tiny), float(info.max) * float(info.eps)  # 1 / ceiling is a normal number
        self.losses = [k * self.tiny / float(info.eps) for k in (self.a.shape[1], self.b.shape[1])]
        self.heaviest = float(self.a.max(initial=0)), float(self.b.max(initial=0))
        self.most_A = float(self.largest.max(initial=1))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no check accepts them
    def advance(self, omega, count):
        """Take `count` iterations; return bounds (B,) on the errors after one more plain f-update."""
        a, b, A, p, q = self.a, self.b, self.A, self.p, self.q
        excess = (omega[:, None] - 1).astype(a.dtype)
        relaxed = bool(excess.any())
        T, S = np.empty_like(a), np.empty_like(b)
        buffer = np.empty(max(a.size, b.size), a.dtype)
        most = float(p.max(initial=0))  # a bound on the entries of p, or of q
        for step in range(count):
            np.matvec(A, p, out=S)
            most = 2 * self.heaviest[1] / self._certify(S, p, most, 0, excess)  # relaxed is at most twice the plain
            np.divide(b, S, out=S)
            if relaxed:
                relax(q, S, excess, buffer)
            else:
                q[...] = S
            np.vecmat(q, A, out=T)
            most = 2 * self.heaviest[0] / self._certify(T, q, most, 1, excess)
            if relaxed and step == count - 1:
                row_sums = T.copy()
            np.divide(a, T, out=T)
            if relaxed:
                relax(p, T, excess, buffer)
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
    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        dtype, eps, A, C = self.a.dtype, self.eps, self.A[index], self.C[self.rows[index]]
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
        f = (self.f[index] - eps * np.log(T, dtype=np.float64)).astype(dtype)
        _, g = self._potentials(index)
        lost = np.flatnonzero(~(sound & np.isfinite(cost)))
        if len(lost):
            own = np.ascontiguousarray(np.swapaxes(C[lost], 1, 2))
            f[lost], g[lost], cost[lost], error[lost] = finish_log(own, a[lost], b[lost], g[lost], eps)
        return f, g.astype(dtype), cost, error

    def keep(self, index):
        """Drop all problems but those at `index`."""
        for name in ("A", "rows", "a", "b", "f", "g", "p", "q", "largest"):
            setattr(self, name, getattr(self, name)[index])
        self.measure()

    def _absorb(self, rows):
        """Make the kernels of `rows` anew from their potentials."""
        # float64 first: f + g - C cancels, and (f + g - C) / eps in float32 would keep few digits.
        exponents = self.f[rows, None, :] + self.g[rows, :, None]
        exponents -= self.C[self.rows[rows]]
        exponents *= 1 / self.eps
        exponents[self.b[rows] == 0] = 0  # padding has no potential that follows, and must stay in range
        np.swapaxes(exponents, 1, 2)[self.a[rows] == 0] = 0
        self.largest[rows] = np.exp(np.clip(exponents.max(axis=(1, 2)), 0, 700))
        self.A[rows] = flush(np.exp(np.maximum(exponents, -1e4).astype(self.A.dtype)))
        self.p[rows], self.q[rows] = self.a[rows], self.b[rows]

    def _absorb_far(self):
        """Absorb the scalings of problems that have come far, before they leave the range.

        Where one side has become small the other is large: the kernels do not exceed `largest`.
        """
        limits = FAR * self.heaviest[0], FAR * self.heaviest[1]
        if self.p.max(initial=0) <= limits[0] and self.q.max(initial=0) <= limits[1]:
            return
        rows = np.flatnonzero((self.p.max(axis=1) > limits[0]) | (self.q.max(axis=1) > limits[1]))
        self.f[rows], self.g[rows] = self._potentials(rows)
        self._absorb(rows)
        self.measure()

    def _potentials(self, rows):
        """f, g (rows,) with what the scalings add to them; a word that is padding keeps what it has."""
        found = []
        for potential, scaling, weights in ((self.f, self.p, self.a), (self.g, self.q, self.b)):
            scaling, weights = scaling[rows], weights[rows]
            moved = np.divide(scaling, weights, out=np.ones(weights.shape), where=weights > 0)
            found.append(potential[rows] + self.eps * np.log(moved))
        return found

    def _certify(self, product, factor, most, axis, excess):
        """Take the half-step of the problems with a sum that is not certified as log-sum-exp; return the least sum.

        What a sum can lose is bounded as in `backends.numpy.certificate`: an entry of A, of the factor, or a product of
        them that underflowed. First for all problems at once, from `most`, a bound on the factor.
        """
        lowest = float(np.minimum.reduce(product, axis=None))
        highest = factor.shape[1] * most * self.most_A
        if lowest >= self.losses[axis] * (most + 1 + self.most_A) and highest <= self.ceiling:
            return lowest
        outside = np.flatnonzero(~self._sound(product, factor, self.largest, axis))
        if len(outside):
            self._log_step(outside, axis, excess)
            product[outside] = 1
        return float(product.min())

    def _sound(self, product, factor, largest, axis):
        """Problems in which every sum is certified and has a reciprocal."""
        floor = self.losses[axis] * (factor.max(axis=1).astype(np.float64) + 1 + largest)
        return (product.min(axis=1) >= floor) & (product.max(axis=1) <= self.ceiling)

    def _log_step(self, rows, axis, excess):
        """Update the potentials of one side of `rows` by log-sum-exp, over-relaxed, and absorb them."""
        f, g = self._potentials(rows)
        C, eps = np.ascontiguousarray(np.swapaxes(self.C[self.rows[rows]], 1, 2)), self.eps
        old, weights = (g, logits(self.a[rows], f, eps)) if axis == 0 else (f, logits(self.b[rows], g, eps))
        new = relax_log(old, softmin(C, weights, eps, axis), excess[rows].astype(np.float64), eps)
        self.f[rows], self.g[rows] = (f, new) if axis == 0 else (new, g)
        self._absorb(rows)
        self.measure()

    def _repair_errors(self, error):
        """Measure anew, by log-sum-exp, the errors that a product has overflowed for."""
        lost = np.flatnonzero(~np.isfinite(error))
        if len(lost):
            C = np.ascontiguousarray(np.swapaxes(self.C[self.rows[lost]], 1, 2))
            a, b, (f, g) = self.a[lost], self.b[lost], self._potentials(lost)
            plain = softmin(C, logits(b, g, self.eps), self.eps, axis=1)
            error[lost] = error_log(C, a, b, f, g, plain, self.eps)


def _distance(sums, scaling, weights):
    """``sum |scaling * sums - weights|`` of each problem; overwrites `sums`."""
    sums *= scaling
    sums -= weights
    return np.abs(sums, out=sums).sum(axis=1, dtype=np.float64)
