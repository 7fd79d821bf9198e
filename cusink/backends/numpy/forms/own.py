"""Sinkhorn iterations with a kernel for each problem, which absorbs the problem's potentials (Schmitzer 2019)."""

import os

import numpy as np

from cusink.backends.numpy.certificate import certified, relax, repair
from cusink.backends.numpy.forms.log import LogDomain, error_log, finish_log, logits, relax_log
from cusink.backends.numpy.reductions import softmin

TILE_BYTES = 1 << 20  # the kernels of one tile stay in a core's second-level cache


class OwnKernel(LogDomain):
    """Problems as float64 potentials, which a tile of problems absorbs into ``A = exp((f + g - C) / eps)`` while it
    runs.

    Near the solution all sums with A are about 1, whatever the range of C / eps; A itself is at most 1 / weight.
    Where a product cannot be certified all the same, the problem takes that half-step as log-sum-exp and absorbs
    again. At most a tile of kernels exists at a time, never one for every problem.
    """

    def advance(self, omega, count):
        """Take `count` iterations; return which problems left the range: none."""
        self.error = np.empty(len(omega))

        def run(rows):
            tile = _Tile(self, rows)
            self.error[rows] = tile.advance(omega[rows], count)
            self.f[rows], self.g[rows] = tile.potentials()

        self._for_tiles(run, np.arange(len(omega)))
        return np.zeros(len(omega), bool)

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        dtype = self.a.dtype
        f, g = np.empty((len(index), self.a.shape[1]), dtype), np.empty((len(index), self.b.shape[1]), dtype)
        cost, error = np.empty(len(index), dtype), np.empty(len(index))

        def run(places):
            f[places], g[places], cost[places], error[places] = _Tile(self, index[places]).finish()

        self._for_tiles(run, np.arange(len(index)))
        return f, g, cost, error

    def _for_tiles(self, run, rows):
        kernel_bytes = max(1, self.C.shape[-1] * self.C.shape[-2] * self.a.itemsize)
        size = max(1, TILE_BYTES // kernel_bytes)
        tiles = [rows[start : start + size] for start in range(0, len(rows), size)]
        if len(tiles) < 2:
            for tile in tiles:
                run(tile)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter inside each operation
            list(pool.map(run, tiles))


class _Tile:
    """A few problems, their kernels A (T, n, m), and the scalings u, v by which the potentials have moved since."""

    def __init__(self, form, rows):
        self.C, self.eps = form.cost(rows), form.eps
        self.a, self.b, self.f, self.g = form.a[rows], form.b[rows], form.f[rows], form.g[rows]
        self.no_a, self.no_b = (None if w.all() else w == 0 for w in (self.a, self.b))
        self.A = np.empty((len(rows), *self.C.shape[-2:]), self.a.dtype)
        self.capped = np.zeros(len(rows), bool)
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        self._absorb(slice(None))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, omega, count):
        a, b, u, v, A = self.a, self.b, self.u, self.v, self.A
        excess = (omega[:, None] - 1).astype(a.dtype)
        buffer = np.empty(max(a.size, b.size), a.dtype)
        S, T = np.empty_like(b), np.empty_like(a)
        for _ in range(count):
            p = a * u
            np.vecmat(p, A, out=S)
            self._step(S, p, self.no_b, 0, excess)
            np.divide(1, S, out=S)
            relax(v, S, excess, buffer)
            q = b * v
            np.matvec(A, q, out=T)
            self._step(T, q, self.no_a, 1, excess)
            row_sums = T.copy()
            np.divide(1, T, out=T)
            relax(u, T, excess, buffer)
        p = a * u
        mass = b.sum(axis=1, dtype=np.float64)
        error = (np.abs(b * v * np.vecmat(p, A) - b).sum(axis=1) + np.abs(p * row_sums - a).sum(axis=1)) / mass
        lost = np.flatnonzero(~np.isfinite(error))  # the scalings are sound, but this product of them overflowed
        if len(lost):
            C = self.C if self.C.ndim == 2 else self.C[lost]
            f, g = (x[lost] for x in self.potentials())
            plain = softmin(C, logits(b[lost], g, self.eps), self.eps, axis=1)
            error[lost] = error_log(C, a[lost], b[lost], f, g, plain, self.eps)
        return error

    def potentials(self):
        return self.f + self.eps * np.log(self.u, dtype=np.float64), self.g + self.eps * np.log(
            self.v, dtype=np.float64
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self):
        a, b, eps = self.a, self.b, self.eps
        T = np.matvec(self.A, b)
        inside = _in_range(T, self._certified(T, b, self.no_b), self.no_a)
        p = a / T
        S = np.vecmat(p, self.A)
        inside &= _in_range(S, self._certified(S, p, self.no_a), self.no_b)
        error = np.abs(b * S - b).sum(axis=1) / b.sum(axis=1, dtype=np.float64)
        f = self.f - eps * np.log(T, dtype=np.float64)
        g = self.g.copy()
        if self.no_a is not None:
            repair(f, ~self.no_a.T, self.C, logits(b, self.g, eps), eps, axis=1)
        if self.no_b is not None:
            repair(g, ~self.no_b.T, self.C, logits(a, f, eps), eps, axis=0)
        if self.no_a is not None:
            self.A[self.no_a] = 0  # what carries nothing may be as large as a number can be
        if self.no_b is not None:
            np.swapaxes(self.A, 1, 2)[self.no_b] = 0
        self.A *= b[:, None, :]
        self.A *= p[:, :, None]
        self.A *= np.where(np.isposinf(self.C), 0, self.C)
        cost = self.A.sum(axis=(1, 2))
        f, g = f.astype(a.dtype), g.astype(b.dtype)
        lost = np.flatnonzero(~inside)
        if len(lost):
            C = self.C if self.C.ndim == 2 else self.C[lost]
            f[lost], g[lost], cost[lost], error[lost] = finish_log(C, a[lost], b[lost], self.g[lost], eps)
        return f, g, cost, error

    def _step(self, product, factor, empty, axis, excess):
        """Make `product` the sums of this half-step: 1 for an empty bin and for a problem that took log-sum-exp."""
        sound = self._certified(product, factor, self.no_a if axis == 0 else self.no_b)
        outside = np.flatnonzero(~_in_range(product, sound, empty))
        if len(outside):
            C = self.C if self.C.ndim == 2 else self.C[outside]
            f, g = (x[outside] for x in self.potentials())
            old, weights = (
                (g, logits(self.a[outside], f, self.eps)) if axis == 0 else (f, logits(self.b[outside], g, self.eps))
            )
            new = relax_log(old, softmin(C, weights, self.eps, axis), excess[outside], self.eps)
            self.f[outside], self.g[outside] = (f, new) if axis == 0 else (new, g)
            self.u[outside] = self.v[outside] = 1
            self._absorb(outside)
            product[outside] = 1

    def _absorb(self, rows):
        """Make the kernels of `rows` anew from their potentials."""
        # float64 first: f + g - C cancels, and (f + g - C) / eps in float32 would keep few digits.
        exponents = self.f[rows, :, None] + self.g[rows, None, :]
        exponents -= self.C if self.C.ndim == 2 else self.C[rows]
        exponents *= 1 / self.eps
        # After a half-step A is at most 1 / weight where both weights are positive; before, the cap may hit there too.
        info = np.finfo(self.A.dtype)
        cap = np.log(float(info.max)) - 1
        self.capped[rows] = False
        if exponents.max(initial=0) > cap:
            carry = (self.a[rows, :, None] > 0) & (self.b[rows, None, :] > 0)
            self.capped[rows] = ((exponents > cap) & carry).any(axis=(1, 2))
            np.minimum(exponents, cap, out=exponents)
        exponents[exponents < np.log(float(info.tiny))] = -np.inf
        self.A[rows] = np.exp(exponents.astype(self.A.dtype))

    def _certified(self, product, factor, empty):
        """Entries of `product` (T, rows) that are certified; A is at most 1 / weight, no product exceeds its sum."""
        weights = np.ones_like(factor) if empty is None else ~empty
        sound = certified(product.T, factor.T, weights.T, largest_K=1.0)
        tiny, largest = np.finfo(factor.dtype).tiny, np.finfo(factor.dtype).max
        sound = product.T <= largest if sound is True else sound & (product.T <= largest)
        return sound & ~(self.capped | ((factor < tiny) & (weights > 0)).any(axis=1))


def _in_range(product, sound, empty):
    """Problems in which every entry that carries weight is certified; the entries that carry none are set to 1."""
    if empty is not None:
        product[empty] = 1
    sound = sound.T if empty is None else sound.T | empty
    inside = sound.all(axis=1)
    product[~inside] = 1
    return inside
