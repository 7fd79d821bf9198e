"""Sinkhorn iterations with a kernel for each problem, which absorbs the problem's potentials (Schmitzer 2019)."""

from collections.abc import Sequence

import numpy as np

from cusink.backends import stored
from cusink.backends.numpy import limits
from cusink.backends.numpy.certificate import certified, repair
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.log import LogForm, error_log, finish_log
from cusink.backends.numpy.reductions import softmin
from cusink.backends.numpy.workers import run_all
from cusink.backends.ranges import UnderflowBound
from cusink.convergence.rules import overrelaxed, overrelaxed_log
from cusink.costs.heap import keep_heap
from cusink.costs.logits import logits
from cusink.types import Axis, HostArray

ARRAYS_OF_KERNELS = 8  # of their size, twice which malloc is to keep


class OwnKernel(LogForm):
    """Problems as float64 potentials, which the kernels ``A = exp((f + g - C) / eps)`` of a running tile absorb.

    Near the solution all sums with A are about 1 for any range of C / eps; A itself is at most 1 / weight.
    Where a product cannot be certified nevertheless, the problem takes that half-step as log-sum-exp and absorbs its
    potentials again. Where the kernels of all problems are more than `Limits.own_kernel_bytes`, at most a tile of them
    exists at a time.
    """

    kept: "Sequence[tuple[HostArray, _Tile]]" = ()  # tiles whose kernels stay, and the problems in them

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems left the range: none."""
        error = self.error = np.empty(len(omega))
        kept, keeping = self.kept, self._keeps_kernels(len(omega))
        if keeping and not kept:
            keep_heap(ARRAYS_OF_KERNELS * self._kernel_bytes(len(omega)))

        def run(rows: HostArray, tile: _Tile | None) -> _Tile | None:
            tile = tile or _Tile(self, rows)
            error[rows] = tile.advance(omega[rows], count)
            self.f[rows], self.g[rows] = tile.potentials()
            return tile if keeping else None

        every = [rows for rows, _ in kept] if kept else self._tiles(len(omega))
        tiles = run_all(run, every, [tile for _, tile in kept] if kept else [None] * len(every))
        self.kept = [(rows, tile) for rows, tile in zip(every, tiles, strict=True) if tile is not None]
        return np.zeros(len(omega), bool)

    def append(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> None:
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        super().append(a, b, f, g)
        self.kept = []

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        place = np.full(len(self.a), -1)
        place[index] = np.arange(len(index))
        super().keep(index)
        kept = []
        for rows, tile in self.kept:
            inside = np.flatnonzero(place[rows] >= 0)
            if len(inside):
                tile.keep(inside)
                kept.append((place[rows[inside]], tile))
        self.kept = kept

    def _keeps_kernels(self, problems: int) -> bool:
        """Return whether the kernels of so many problems may stay from one call to the next."""
        return self._kernel_bytes(problems) <= limits.LIMITS.own_kernel_bytes

    def _kernel_bytes(self, problems: int) -> int:
        """Return the bytes of the kernels of so many problems."""
        return int(problems * self.C.shape[-1] * self.C.shape[-2] * self.a.itemsize)

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        dtype = self.a.dtype
        f, g = np.empty((len(index), self.a.shape[1])), np.empty((len(index), self.b.shape[1]))
        cost, error = np.empty(len(index), dtype), np.empty(len(index))

        def run(places: HostArray) -> None:
            f[places], g[places], cost[places], error[places] = _Tile(self, index[places]).finish()

        run_all(run, self._tiles(len(index)))
        return f, g, cost, error

    def _tiles(self, problems: int) -> list[HostArray]:
        """Cut so many problems into index arrays."""
        size = max(1, limits.LIMITS.kernel_tile_bytes // max(1, self._kernel_bytes(1)))
        every = np.arange(problems)
        return [every[start : start + size] for start in range(0, problems, size)]


class _Tile:
    """A few problems, their kernels A (T, n, m), and the scalings u, v by which the potentials have moved since."""

    def __init__(self, form: OwnKernel, rows: HostArray) -> None:
        self.C, self.eps = form.cost(rows), form.eps
        self.a, self.b, self.f, self.g = form.a[rows], form.b[rows], form.f[rows], form.g[rows]
        self.no_a, self.no_b = (None if w.all() else w == 0 for w in (self.a, self.b))
        self.A = np.empty((len(rows), *self.C.shape[-2:]), self.a.dtype)
        self.capped = np.zeros(len(rows), bool)
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        self._absorb(slice(None))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return bounds (T,) on the marginal errors after one more plain f-update."""
        a, b, u, v, A = self.a, self.b, self.u, self.v, self.A
        excess = (omega[:, None] - 1).astype(a.dtype)
        S, T = np.empty_like(b), np.empty_like(a)
        buffer = np.empty(max(a.size, b.size), a.dtype)
        scratch_v, scratch_u = (buffer[: x.size].reshape(x.shape) for x in (b, a))
        for _ in range(count):
            p = a * u
            np.vecmat(p, A, out=S)
            self._certify(S, p, 0, excess)
            np.divide(1, S, out=S)
            overrelaxed(np, v, S, excess, scratch=scratch_v, out=v)
            q = b * v
            np.matvec(A, q, out=T)
            self._certify(T, q, 1, excess)
            row_sums = T.copy()
            np.divide(1, T, out=T)
            overrelaxed(np, u, T, excess, scratch=scratch_u, out=u)
        p = a * u
        mass = b.sum(axis=1, dtype=np.float64)
        error: HostArray = np.abs(b * v * np.vecmat(p, A) - b).sum(axis=1) + np.abs(p * row_sums - a).sum(axis=1)
        error = error / mass
        lost = np.flatnonzero(~np.isfinite(error))  # the scalings are sound, but this product of them overflowed
        if len(lost):
            C = stored.select(self.C, lost)
            f, g = (x[lost] for x in self.potentials())
            plain = softmin(C, logits(np, b[lost], g, self.eps, np.float64), self.eps, axis=1)
            error[lost] = error_log(C, a[lost], b[lost], f, g, plain, self.eps)
        return error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`, which rise."""
        if len(index) == len(self.a):
            return
        self.C = stored.select(self.C, index)
        for name in ("a", "b", "f", "g", "no_a", "no_b", "A", "capped", "u", "v"):
            values = getattr(self, name)
            setattr(self, name, None if values is None else values[index])

    def potentials(self) -> tuple[HostArray, HostArray]:
        """Return f (T, n) and g (T, m) with the scalings."""
        f = self.f + self.eps * np.log(self.u, dtype=np.float64)
        return f, self.g + self.eps * np.log(self.v, dtype=np.float64)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self) -> Finished:
        """Return ``(f, g, cost, error)`` after one plain f-update. The kernels are overwritten."""
        a, b, eps = self.a, self.b, self.eps
        T = np.matvec(self.A, b)
        inside = _in_range(T, self._sound(T, b, self.no_b), self.no_a)
        p = a / T
        S = np.vecmat(p, self.A)
        inside &= _in_range(S, self._sound(S, p, self.no_a), self.no_b)
        error = np.abs(b * S - b).sum(axis=1) / b.sum(axis=1, dtype=np.float64)
        f = self.f - eps * np.log(T, dtype=np.float64)
        g = self.g.copy()
        if self.no_a is not None:
            repair(f, ~self.no_a.T, self.C, logits(np, b, self.g, eps, np.float64), eps, axis=1)
        if self.no_b is not None:
            repair(g, ~self.no_b.T, self.C, logits(np, a, f, eps, np.float64), eps, axis=0)
        if self.no_a is not None:
            self.A[self.no_a] = 0  # a row without weight may hold numbers of any size
        if self.no_b is not None:
            np.swapaxes(self.A, 1, 2)[self.no_b] = 0
        self.A *= b[:, None, :]
        self.A *= p[:, :, None]
        self.A *= stored.replace_inf(np, self.C)
        cost = self.A.sum(axis=(1, 2))
        lost = np.flatnonzero(~inside | (np.abs(cost) < self._least_cost(p, f, g)))
        if len(lost):
            f[lost], g[lost], cost[lost], error[lost] = finish_log(
                stored.select(self.C, lost), a[lost], b[lost], self.g[lost], eps
            )
        return f, g, cost, error

    def _least_cost(self, p: HostArray, f: HostArray, g: HostArray) -> HostArray:
        """Return the costs (T,) above which what rounds to zero near the smallest number of the dtype does not count.

        A pair has lost no more than that number times its weights, and costs ``f + g - eps log A``: none that has kept
        its entry, or has just lost it, costs more than at the smallest one.
        """
        info, pairs = np.finfo(self.A.dtype), self.A[0].size
        carries_a, carries_b = (True if no is None else ~no for no in (self.no_a, self.no_b))
        largest = f.max(axis=1, where=carries_a, initial=-np.inf) + g.max(axis=1, where=carries_b, initial=-np.inf)
        largest -= self.eps * np.log(float(info.tiny))
        weight = p.sum(axis=1, where=carries_a, dtype=np.float64) * self.b.sum(axis=1, dtype=np.float64)
        subnormal = pairs * float(info.smallest_subnormal)  # of masses, and of these times their costs
        least: HostArray = (weight * float(info.tiny) + subnormal) * np.abs(largest) + subnormal
        least /= float(info.eps)
        return least

    def _certify(self, product: HostArray, factor: HostArray, axis: Axis, excess: HostArray) -> None:
        """Make `product` the sums of this half-step: 1 for an empty bin and for a problem that took log-sum-exp."""
        no_factor, empty = (self.no_a, self.no_b) if axis == 0 else (self.no_b, self.no_a)
        if self._all_sound(product, factor, no_factor):
            if empty is not None:
                product[empty] = 1
            return
        outside = np.flatnonzero(~_in_range(product, self._sound(product, factor, no_factor), empty))
        if len(outside):
            self._log_step(outside, axis, excess[outside])
            product[outside] = 1

    def _all_sound(self, product: HostArray, factor: HostArray, no_factor: HostArray | None) -> bool:
        """Return whether extremes alone certify all entries of `product`, as in nearly all steps; see `_sound`."""
        info = np.finfo(factor.dtype)
        bound = UnderflowBound.of_product(factor.shape[1], 1.0)
        smallest = factor.min() if no_factor is None else factor.min(where=~no_factor, initial=np.inf)
        largest = float(factor.max())
        return bool(
            smallest >= info.tiny
            and largest <= float(info.max) / bound.gain
            and product.min() >= bound.floor(factor.dtype, largest, False)
            and product.max() <= info.max
            and not self.capped.any()
        )

    def _log_step(self, rows: HostArray, axis: Axis, excess: HostArray) -> None:
        """Update the potentials of one side of `rows` by log-sum-exp, over-relaxed, and absorb them."""
        f, g = (x[rows] for x in self.potentials())
        old, summed = (
            (g, logits(np, self.a[rows], f, self.eps, np.float64))
            if axis == 0
            else (f, logits(np, self.b[rows], g, self.eps, np.float64))
        )
        plain = softmin(stored.select(self.C, rows), summed, self.eps, axis)
        new = overrelaxed_log(np, old, plain, excess, self.eps)
        self.f[rows], self.g[rows] = (f, new) if axis == 0 else (new, g)
        self.u[rows] = self.v[rows] = 1
        self._absorb(rows)

    def _absorb(self, rows: slice | HostArray) -> None:
        """Make the kernels of `rows` from their potentials, of so few at a time that exponents stay in the cache."""
        (_, n, m), index = self.A.shape, np.arange(len(self.A))[rows]
        step = max(1, limits.LIMITS.dense_block_entries // (n * m))
        for start in range(0, len(index), step):
            few = index[start : start + step]
            self._absorb_few(slice(few[0], few[-1] + 1) if isinstance(rows, slice) else few)

    def _absorb_few(self, rows: slice | HostArray) -> None:
        # float64 first: f + g - C cancels, and (f + g - C) / eps in float32 would keep few digits.
        f, g = (stored.replace_inf(np, x[rows]) for x in (self.f, self.g))  # of bins that no weight can reach
        exponents: HostArray = f[:, :, None] + g[:, None, :]
        exponents -= stored.select(self.C, rows)
        exponents *= 1 / self.eps
        # After a half-step A is at most 1 / weight where both weights are positive; before, the cap may hit there too.
        info = np.finfo(self.A.dtype)
        cap = np.log(float(info.max)) - 1
        self.capped[rows] = False
        if exponents.max(initial=0) > cap:
            carry = (self.a[rows, :, None] > 0) & (self.b[rows, None, :] > 0)
            self.capped[rows] = ((exponents > cap) & carry).any(axis=(1, 2))
            np.minimum(exponents, cap, out=exponents)
        least = np.log(float(info.tiny))
        if exponents.min(initial=0) < least:
            exponents[exponents < least] = -np.inf
        narrow = exponents.astype(self.A.dtype, copy=False)
        self.A[rows] = np.exp(narrow, out=self.A[rows] if isinstance(rows, slice) else narrow)

    def _sound(self, product: HostArray, factor: HostArray, empty: HostArray | None) -> HostArray:
        """Return which entries (rows, T) of `product` (T, rows) are certified; `empty` are the empty bins of `factor`.

        A is at most 1 / weight, so that no product of it with a weight exceeds its sum.
        """
        weights = np.ones_like(factor) if empty is None else ~empty
        bound = UnderflowBound.of_product(factor.shape[1], 1.0)
        sound = certified(bound, product.T, factor.T, weights.T)
        tiny, largest = np.finfo(factor.dtype).tiny, np.finfo(factor.dtype).max
        finite = np.less_equal(product.T, largest)
        entries: HostArray = (finite if sound is True else sound & finite) & ~(
            self.capped | ((factor < tiny) & (weights > 0)).any(axis=1)
        )
        return entries


def _in_range(product: HostArray, sound: HostArray, empty: HostArray | None) -> HostArray:
    """Return the problems (T,) in which every entry of `product` (T, rows) that carries weight is `sound`.

    Entries of empty bins, and all of the other problems, are set to 1.
    """
    if empty is not None:
        product[empty] = 1
    entries = sound.T if empty is None else np.logical_or(sound.T, empty)
    inside: HostArray = np.all(entries, axis=1)
    product[~inside] = 1
    return inside
