"""Sinkhorn iterations as matrix products with one kernel that all problems share, certified entry by entry."""

import numpy as np

from cusink.backends.numpy.certificate import certified_within, in_range, relax
from cusink.backends.numpy.forms.kernel import log_scaled
from cusink.backends.ranges import HEADROOM, SCALING, flush


class SharedKernel:
    """Problems as scalings of one kernel, one problem per column, so that a factor per problem runs along the
    contiguous axis.

    The kernel ``K = 2**s exp((shift - C) / eps)`` is a `DenseKernel`, or something that has its methods. The
    exponents eu and ev (B,) keep ``U = a exp(f / eps) / 2**eu`` and ``V = b exp((g - shift) / eps) / 2**ev`` in range.
    A plain update is ``V = gamma b / (K' U)`` with ``gamma = 2**(s - eu - ev)``; scaling by powers of two
    changes no digit.
    """

    def __init__(self, kernel):
        self.kernel, self.C, self.eps, self.dtype = kernel, kernel.C, kernel.eps, kernel.dtype
        self.shift, self.s = kernel.shift, kernel.s
        self.top, self.headroom = (x[self.dtype.name] for x in (SCALING, HEADROOM))
        n, m = self.C.shape
        self.a, self.b, self.U, self.V = (np.empty((k, 0), self.dtype) for k in (n, m, n, m))
        self.eu, self.ev, self.smallest = np.empty(0), np.empty(0), np.empty(0)
        self.row_sums = self.work = None

    def fits(self, a, b, f, g):
        """Which problems can start here: those in which the scaling of no positive weight underflows."""
        tiny = float(np.finfo(self.dtype).tiny)
        fits = np.ones(len(a), bool)
        for weights, potential in ((a, f), (b, g)):
            if not potential.any() and weights.min(initial=1) >= tiny:
                continue
            empty = weights == 0
            log = np.log2(np.where(empty, 1, weights), dtype=np.float64) + potential / (self.eps * np.log(2))
            lowest, highest = (np.where(empty, none, log) for none in (np.inf, -np.inf))
            fits &= highest.max(axis=1) - lowest.min(axis=1) < self.top - np.log2(tiny) - 1
        return fits

    def append(self, a, b, f, g):
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        a, b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        U, eu = self._scaling(a, f.T if f.any() else None)
        V, ev = self._scaling(b, g.T - self.shift if g.any() else None)
        smallest = np.minimum(_smallest_weight(a), _smallest_weight(b))
        for name, new in {"a": a, "b": b, "smallest": smallest, "U": U, "V": V, "eu": eu, "ev": ev}.items():
            old = getattr(self, name)
            new = new.astype(old.dtype, copy=False)
            setattr(self, name, np.concatenate([old, new], axis=-1) if old.size else new)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, omega, count):
        """Take `count` iterations; return which problems left the range. These stay where they were."""
        kernel, a, b, smallest, outside = self.kernel, self.a, self.b, self.smallest, np.zeros(len(omega), bool)
        U, X, gamma_a, V, S, gamma_b, buffer = self._workspace()
        U[...], V[...], eu, ev = self.U, self.V, self.eu.copy(), self.ev.copy()
        excess = (omega - 1).astype(self.dtype)
        relaxed = bool(excess.any())
        tiny = float(np.finfo(self.dtype).tiny)
        tops, normal = self._numerators(a, b, smallest, eu, ev, gamma_a, gamma_b)
        largest, row_sums = np.inf, None
        no_a, no_b = _empty(a), _empty(b)
        loss_S, loss_X, lowest_of = kernel.loss(0), kernel.loss(1), np.minimum.reduce
        # What certifies a sum, whatever the factor lost.
        floor_S, floor_X = (loss.floor(self.dtype, self.headroom, True) for loss in (loss_S, loss_X))
        for step in range(2 * count):
            g_update, inside = step % 2 == 0, True
            if not largest <= self.headroom:
                largest = float((U if g_update else V).max(initial=0))
            if not largest <= self.headroom:
                self._rebalance(U, eu)
                self._rebalance(V, ev)
                tops, normal = self._numerators(a, b, smallest, eu, ev, gamma_a, gamma_b)
                largest = 2.0**self.top
            if g_update:
                kernel.product(U, 0, out=S)
                if no_b is not None:  # their sums do not matter, and would be the smallest
                    np.maximum(S, no_b, out=S)
                lowest = float(lowest_of(S, axis=None))
                if normal is not True or not (largest <= self.headroom and lowest >= floor_S):
                    inside = normal & in_range(S, certified_within(loss_S, S, U, a), b)
                largest = 2 * tops[1] / max(lowest, tiny)
                np.divide(gamma_b, S, out=S)
                if relaxed:
                    relax(V, S, excess, buffer)
                else:
                    V, S = S, V
            else:
                kernel.product(V, 1, out=X)
                if no_a is not None:
                    np.maximum(X, no_a, out=X)
                lowest = float(lowest_of(X, axis=None))
                if normal is not True or not (largest <= self.headroom and lowest >= floor_X):
                    inside = normal & in_range(X, certified_within(loss_X, X, V, b), a)
                largest = 2 * tops[0] / max(lowest, tiny)
                if relaxed and step == 2 * count - 1:
                    row_sums = X.copy()
                np.divide(gamma_a, X, out=X)
                if relaxed:
                    relax(U, X, excess, buffer)
                else:
                    U, X = X, U
            if inside is not True:  # from here on these columns go in circles, at no harm to the others
                outside |= ~inside
                U[:, ~inside], V[:, ~inside], eu[~inside], ev[~inside] = a[:, ~inside], b[:, ~inside], 0, 0
                tops, normal = self._numerators(a, b, smallest, eu, ev, gamma_a, gamma_b)
        # A scaling that underflowed was certified not to matter here, but it might where the problem goes on from here.
        outside |= ~(_normal(U, a, tiny) & _normal(V, b, tiny))
        if outside.any():
            for new, old in ((U, self.U), (V, self.V), (eu, self.eu), (ev, self.ev)):
                new[..., outside] = old[..., outside]
        self.work = [self.U, X, gamma_a, self.V, S, gamma_b, buffer]
        self.U, self.V, self.eu, self.ev = U, V, eu, ev
        self.row_sums = None
        if relaxed:  # U is past its plain update then, and `bound` has to tell by how much
            self.row_sums = row_sums
        return outside

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def bound(self):
        """Bounds on the marginal errors after one more plain f-update; for omega = 1 they are the errors themselves."""
        _, X, gamma_a, _, S, gamma_b, _ = self._workspace()
        self._numerators(self.a, self.b, self.smallest, self.eu, self.ev, gamma_a, gamma_b)
        self.kernel.product(self.U, 0, out=S)
        bound = _distance(self.V, S, gamma_b)
        if self.row_sums is not None:
            X[...] = self.row_sums
            bound += _distance(self.U, X, gamma_a)
        return bound / gamma_b.sum(axis=0, dtype=np.float64)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        every = len(index) == len(self.eu) and (index[1:] > index[:-1]).all()
        a, b, smallest, V, eu, ev = (
            x if every else x[..., index] for x in (self.a, self.b, self.smallest, self.V, self.eu, self.ev)
        )
        eps, kernel = self.eps, self.kernel
        if every:
            _, T, gamma_a, _, S, gamma_b, _ = self._workspace()
        else:
            T, gamma_a, S, gamma_b = (np.empty_like(x) for x in (a, a, b, b))
        _, normal = self._numerators(a, b, smallest, eu, ev, gamma_a, gamma_b)
        kernel.product(V, 1, out=T)
        sound_f = certified_within(kernel.loss(1), T, V, b)
        inside = np.ones(len(index), bool) & normal & in_range(T, sound_f, a)
        T[:, ~inside] = 1
        f = log_scaled(T, ev - self.s)
        f *= -eps
        U = np.divide(gamma_a, T, out=T)
        kernel.product(U, 0, out=S)
        sound_g = certified_within(kernel.loss(0), S, U, a)
        inside &= in_range(S, sound_g, b)
        gamma = np.exp2(self.s - eu - ev)
        carried = V > 0
        if carried.all():
            g = log_scaled(V / b, ev)
            g *= eps
            g += self.shift
        else:  # a weight of zero has the potential of its own softmin
            g = self.shift - eps * log_scaled(S, eu - self.s)
        error = _distance(V, S, gamma_b) / gamma_b.sum(axis=0, dtype=np.float64)
        cost = kernel.cost_product(U, 0, out=S)
        cost *= V
        cost = cost.sum(axis=0) / gamma * kernel.unit
        if sound_f is not True or sound_g is not True:
            kernel.repair(f, sound_f, (log_scaled(V, ev) + self.shift / eps).astype(T.dtype), axis=1)
            kernel.repair(g, sound_g | carried, log_scaled(U, eu).astype(T.dtype), axis=0)
        if not carried.all():
            ratio = np.divide(V, b, where=carried, out=np.ones_like(b))
            g = np.where(carried.T, eps * log_scaled(ratio, ev) + self.shift, g)
        lost = np.flatnonzero(~inside)
        if len(lost):
            a, b, _, start = self.state(index[lost])
            f[lost], g[lost], cost[lost], error[lost] = kernel.finish_log(a, b, start)
        return f, g, cost, error

    def keep(self, index):
        """Drop all problems but those at `index`."""
        for name in ("a", "b", "smallest", "U", "V", "eu", "ev", "row_sums"):
            if getattr(self, name) is not None:
                setattr(self, name, np.ascontiguousarray(getattr(self, name)[..., index]))

    def state(self, chosen):
        """``(a, b, f, g)`` of the problems `chosen`."""
        a, b = (np.ascontiguousarray(w[:, chosen].T) for w in (self.a, self.b))
        f = self.eps * _log_ratio(self.U[:, chosen].T, a, self.eu[chosen, None])
        g = self.eps * _log_ratio(self.V[:, chosen].T, b, self.ev[chosen, None]) + self.shift
        return a, b, f, g

    def _scaling(self, weights, potential):
        """``weights * exp(potential / eps)``, its largest entries at about ``2**top``, and the exponent that takes."""
        if potential is None:  # all zero; for the target all `shift`, which is nearer to where it leads
            return weights * 2.0**self.top, np.full(weights.shape[1], -float(self.top))
        log = np.log2(np.where(weights > 0, weights, 1), dtype=np.float64) + potential / (self.eps * np.log(2))
        exponent = np.ceil(np.where(weights > 0, log, -np.inf).max(axis=0)) - self.top
        return np.where(weights > 0, np.exp2(np.minimum(log - exponent, self.top)), 0), exponent

    def _rebalance(self, scaling, exponent):
        """Bring the largest entry of each column to about ``2**top``, in place; note the power of two in `exponent`."""
        _, shift = np.frexp(scaling.max(axis=0, initial=0))
        shift -= self.top
        scaling *= np.exp2(-shift).astype(scaling.dtype)
        flush(scaling)
        exponent += shift

    def _numerators(self, a, b, smallest, eu, ev, gamma_a, gamma_b):
        """Fill in ``gamma a``, ``gamma b``; return their largest entries, and the columns in which none underflows."""
        gamma = np.exp2(self.s - eu - ev)
        info = np.finfo(self.dtype)
        normal = (gamma * smallest >= float(info.tiny)) & (gamma <= float(info.max))
        gamma = gamma.astype(self.dtype)
        np.multiply(gamma, a, out=gamma_a)
        np.multiply(gamma, b, out=gamma_b)
        tops = float(gamma_a.max(initial=0)), float(gamma_b.max(initial=0))
        return tops, True if normal.all() else normal

    def _workspace(self):
        """Three arrays like U, three like V, and a buffer; kept, for to fetch memory costs more than to use it."""
        if self.work is None or self.work[0].shape != self.U.shape:
            self.work = [np.empty_like(x) for x in (self.U, self.U, self.U, self.V, self.V, self.V)]
            self.work.append(np.empty(max(self.U.size, self.V.size), self.dtype))
        return self.work


def _distance(scaling, sums, numerators):
    """``sum |scaling * sums - numerators|`` of each column; overwrites `sums`."""
    sums *= scaling
    sums -= numerators
    return np.abs(sums, out=sums).sum(axis=0)


def _empty(weights):
    """1 where a weight is zero, else 0; None where there is none."""
    return None if weights.min(initial=1) > 0 else (weights == 0).astype(weights.dtype)


def _smallest_weight(weights):
    """The smallest positive weight of each column."""
    smallest = weights.min(axis=0)
    return smallest if smallest.all() else np.where(weights > 0, weights, np.inf).min(axis=0)


def _normal(scaling, weights, tiny):
    """Columns in which every positive weight has a finite scaling that has not underflowed."""
    if scaling.min(initial=1) >= tiny and scaling.max(initial=1) < np.inf:
        return np.ones(scaling.shape[1], bool)
    return (((scaling >= tiny) & (scaling < np.inf)) | (weights == 0)).all(axis=0)


def _log_ratio(scaling, weights, exponent):
    """``log(scaling * 2**exponent / weights)`` (B, n), 0 where the weight is zero."""
    positive = weights > 0
    tiny = np.finfo(scaling.dtype).tiny  # reached only in problems that are stuck
    scaling, weights = (np.where(positive, x, 1).astype(np.float64) for x in (np.maximum(scaling, tiny), weights))
    return np.where(positive, np.log(scaling / weights) + exponent * np.log(2), 0.0)
