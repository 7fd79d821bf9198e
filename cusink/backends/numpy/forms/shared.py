"""Sinkhorn iterations as matrix products with one kernel that all problems share, certified entry by entry."""

from typing import Literal

import numpy as np

from cusink.backends.numpy.certificate import certified, in_range
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.kernel import Kernel, log_scaled
from cusink.backends.numpy.forms.scalings import (
    LastUpdate,
    Numerators,
    Room,
    Workspace,
    both,
    distance,
    empty_bins,
    log2_ratio,
    log_quotient,
    log_ratio,
    normal_columns,
    smallest_weight,
)
from cusink.backends.ranges import SCALING_EXPONENT, SCALING_LIMIT, flush
from cusink.convergence.rules import overrelaxed
from cusink.costs.operators import Measured
from cusink.types import HostArray


class SharedKernel:
    """Problems as scalings of one `Kernel`, a problem per column: a factor per problem runs along the contiguous axis.

    The exponents eu and ev (B,) keep ``U = a exp(f / eps) / 2**eu`` and ``V = b exp((g - shift) / eps) / 2**ev`` in
    range. A plain update is ``V = gamma b / (K' U)`` with ``gamma = 2**(s - eu - ev)``; scaling by powers of two
    changes no digit.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.C, self.eps, self.dtype = kernel, kernel.C, kernel.eps, kernel.dtype
        self.shift, self.s = kernel.shift, kernel.s
        self.top, self.limit = SCALING_EXPONENT[self.dtype.name], SCALING_LIMIT[self.dtype.name]
        self.tiny = float(np.finfo(self.dtype).tiny)
        self.reach = self.top - np.log2(self.tiny) - 1  # of logarithms to base 2 that scalings may span
        n, m = self.bins = (int(self.C.shape[0]), int(self.C.shape[1]))
        self.a, self.b, self.U, self.V = (np.empty((k, 0), self.dtype) for k in (n, m, n, m))
        self.eu, self.ev, self.smallest = np.empty(0), np.empty(0), np.empty(0)
        self.row_sums: HostArray | None = None
        self.work: Workspace | None = None
        self.room = Room(self.dtype)
        self.without_weight: tuple[HostArray | None, HostArray | None] | None = (
            None  # `empty_bins`, once they are known
        )
        self.numerators: Numerators | None = None  # of the problems under way, if they are in the workspace

    def can_start(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> HostArray:
        """Return which problems can start here: those in which the scaling of no positive weight underflows."""
        fits = np.ones(len(a), bool)
        for weights, potential in ((a, f), (b, g)):
            if not potential.any():
                least = weights if weights.min(initial=1) >= self.tiny else np.where(weights > 0, weights, np.inf)
                if not log2_ratio(weights.max(initial=1), least.min(initial=1)) < self.reach:
                    fits &= log2_ratio(weights.max(axis=1), least.min(axis=1)) < self.reach
                continue
            empty = weights == 0
            log = np.log2(np.where(empty, 1, weights), dtype=np.float64) + potential / (self.eps * np.log(2))
            lowest, highest = (np.where(empty, none, log) for none in (np.inf, -np.inf))
            fits &= highest.max(axis=1) - lowest.min(axis=1) < self.reach
        return fits

    def append(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> None:
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        count, none_yet = len(a), not self.eu.size
        if none_yet:
            given, self.work = self.room.begun(self.bins, count)
        else:
            given = [np.empty((bins, count), self.dtype) for bins in (*self.bins, *self.bins)]
        new_a, new_b, U, V = given
        new_a[...], new_b[...] = a.T, b.T
        eu = self._scaling(new_a, f.T if f.any() else None, U)
        ev = self._scaling(new_b, g.T - self.shift if g.any() else None, V)
        smallest = np.minimum(smallest_weight(new_a), smallest_weight(new_b)).astype(np.float64)
        self.numerators = self.without_weight = None
        every = {"a": new_a, "b": new_b, "smallest": smallest, "U": U, "V": V, "eu": eu, "ev": ev}
        for name, new in every.items():
            setattr(self, name, new if none_yet else np.concatenate([getattr(self, name), new], axis=-1))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems (B,) left the range. These stay where they were."""
        kernel, a, b, outside = self.kernel, self.a, self.b, np.zeros(len(omega), bool)
        work = self._workspace()
        U, X, gamma_a, V, S, gamma_b, scratch_U, scratch_V = work
        U[...], V[...], eu, ev = self.U, self.V, self.eu.copy(), self.ev.copy()
        excess = (omega - 1).astype(self.dtype)
        relaxed = bool(excess.any())
        if relaxed and (excess == excess[0]).all():
            excess = excess[:1]  # one number is faster than a row
        tops = self._own_numerators(work)
        largest, row_sums = np.inf, None
        if self.without_weight is None:
            self.without_weight = empty_bins(a), empty_bins(b)
        no_a, no_b = self.without_weight
        bound_S, bound_X, lowest_of = kernel.underflow_bound(0), kernel.underflow_bound(1), np.minimum.reduce
        # A sum above this is certified, even if an entry of the factor underflowed.
        floor_S, floor_X = (float(bound.floor(self.dtype, self.limit, True)) for bound in (bound_S, bound_X))
        for step in range(2 * count):
            g_update = step % 2 == 0
            inside: HostArray | Literal[True] = True
            if not largest <= self.limit:
                largest = float((U if g_update else V).max(initial=0))
            if not largest <= self.limit:
                self._rebalance(U, eu)
                self._rebalance(V, ev)
                tops = self._fill_numerators(a, b, self.smallest, eu, ev, gamma_a, gamma_b)
                largest = 2.0**self.top
            if g_update:
                kernel.product(U, 0, out=S)
                lowest = float(lowest_of(S, axis=None))
                if no_b is not None and not (lowest >= floor_S and 2 * tops.largest_b <= self.limit * lowest):
                    np.maximum(S, no_b, out=S)  # the sums of empty bins do not count
                    lowest = float(lowest_of(S, axis=None))
                if tops.normal is not True or not (largest <= self.limit and lowest >= floor_S):
                    inside = both(tops.normal, in_range(S, certified(bound_S, S, U, a), b))
                largest = 2 * tops.largest_b / max(lowest, self.tiny)  # relaxed is at most twice the plain update
                np.divide(gamma_b, S, out=S)
                if relaxed:
                    overrelaxed(np, V, S, excess, scratch=scratch_V, out=V)
                else:
                    V, S = S, V
            else:
                kernel.product(V, 1, out=X)
                lowest = float(lowest_of(X, axis=None))
                if no_a is not None and not (lowest >= floor_X and 2 * tops.largest_a <= self.limit * lowest):
                    np.maximum(X, no_a, out=X)
                    lowest = float(lowest_of(X, axis=None))
                if tops.normal is not True or not (largest <= self.limit and lowest >= floor_X):
                    inside = both(tops.normal, in_range(X, certified(bound_X, X, V, b), a))
                largest = 2 * tops.largest_a / max(lowest, self.tiny)
                if relaxed and step == 2 * count - 1:
                    row_sums = X.copy()
                np.divide(gamma_a, X, out=X)
                if relaxed:
                    overrelaxed(np, U, X, excess, scratch=scratch_U, out=U)
                else:
                    U, X = X, U
            if inside is not True:  # reset the failed columns to a harmless state; the next form repeats them
                outside |= ~inside
                U[:, ~inside], V[:, ~inside], eu[~inside], ev[~inside] = a[:, ~inside], b[:, ~inside], 0, 0
                tops = self._fill_numerators(a, b, self.smallest, eu, ev, gamma_a, gamma_b)
        # A scaling that underflowed was certified not to count here, but it might in the iterations that follow.
        outside |= ~(normal_columns(U, a, self.tiny) & normal_columns(V, b, self.tiny))
        if outside.any():
            for new, old in ((U, self.U), (V, self.V), (eu, self.eu), (ev, self.ev)):
                new[..., outside] = old[..., outside]
        self.work = work._replace(U=self.U, row_sums=X, V=self.V, column_sums=S)
        self.U, self.V, self.eu, self.ev = U, V, eu, ev
        self.numerators = None if outside.any() else tops
        self.row_sums = row_sums  # of over-relaxed problems, whose U is past its plain update: `bound` measures how far
        return outside

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def bound(self) -> HostArray:
        """Return bounds (B,) on the marginal errors after one more plain f-update, for omega = 1 the errors."""
        work = self._workspace()
        self._own_numerators(work)
        self.kernel.product(self.U, 0, out=work.column_sums)
        bound = distance(self.V, work.column_sums, work.gamma_b)
        if self.row_sums is not None:
            work.row_sums[...] = self.row_sums
            bound += distance(self.U, work.row_sums, work.gamma_a)
        total: HostArray = bound / work.gamma_b.sum(axis=0, dtype=np.float64)
        return total

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        last = self._last_update(index)
        a, b, smallest, V, T, S, gamma_a, gamma_b, eu, ev, inside, sound_f = last
        eps, kernel = self.eps, self.kernel
        if not inside.all():
            T[:, ~inside] = 1
        f = log_scaled(T, ev - self.s)
        f *= -eps
        U = np.divide(gamma_a, T, out=T)
        kernel.product(U, 0, out=S)
        sound_g = certified(kernel.underflow_bound(0), S, U, a)
        inside &= in_range(S, sound_g, b)
        carried = V > 0
        if carried.all():
            g = log_quotient(V, b, ev)
            g *= eps
            g += self.shift
        else:  # a weight of zero has the potential of its own softmin
            g = self.shift - eps * log_scaled(S, eu - self.s)
        light, plain = None, g
        if self._may_be_light(smallest):
            light = self._light(V, S, gamma_b) & sound_g
            plain = self.shift - eps * log_scaled(S, eu - self.s)
            V = np.where(light, gamma_b / S, V)
        cost, error = self._cost_and_error(last, U, V)
        if sound_f is not True or sound_g is not True:
            kernel.repair(f, sound_f, (log_scaled(V, ev) + self.shift / eps).astype(T.dtype), axis=1)
            kernel.repair(g, sound_g | carried, log_scaled(U, eu).astype(T.dtype), axis=0)
        if not carried.all():
            quotient = log_quotient(np.where(carried, V, 1), np.where(carried, b, 1), ev)
            g = np.where(carried.T, eps * quotient + self.shift, g)
        if light is not None:  # no error tells whether over-relaxed g converged there; plain ones do not move the plan
            g = np.where(light.T, plain, g)
        lost = np.flatnonzero(~inside)
        if len(lost):
            a, b, _, start = self.state(index[lost])
            f[lost], g[lost], cost[lost], error[lost] = kernel.finish_log(a, b, start)
        return f, g, cost, error

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def measure(self, index: HostArray) -> Measured | None:
        """Return ``(size, cost, error)`` as if by `finish`; None where that needs the potentials."""
        last = self._last_update(index)
        a, _, smallest, V, T, S, gamma_a, _, _, _, inside, sound_f = last
        if sound_f is not True or not inside.all() or self._may_be_light(smallest):
            return None
        U = np.divide(gamma_a, T, out=T)
        self.kernel.product(U, 0, out=S)
        if certified(self.kernel.underflow_bound(0), S, U, a) is not True:
            return None
        cost, error = self._cost_and_error(last, U, V)
        # T and V are normal numbers, and the exponent ev cancels in f + g, whose mean is that of f plus that of g.
        spans = 6 * np.finfo(self.dtype).maxexp + self.s + 2 - 2 * np.log2(smallest)
        return self.eps * np.log(2) * spans + abs(self.shift), cost, error

    def _last_update(self, index: HostArray) -> LastUpdate:
        """Return the problems at `index` with the sums T of a plain f-update."""
        every = len(index) == len(self.eu) and (index[1:] > index[:-1]).all()
        a, b, smallest, V, eu, ev = (
            x if every else x[..., index] for x in (self.a, self.b, self.smallest, self.V, self.eu, self.ev)
        )
        if every:
            work = self._workspace()
            T, gamma_a, S, gamma_b = work.row_sums, work.gamma_a, work.column_sums, work.gamma_b
            normal = self._own_numerators(work).normal
        else:
            T, gamma_a, S, gamma_b = (np.empty_like(x) for x in (a, a, b, b))
            normal = self._fill_numerators(a, b, smallest, eu, ev, gamma_a, gamma_b).normal
        self.kernel.product(V, 1, out=T)
        sound = certified(self.kernel.underflow_bound(1), T, V, b)
        inside = np.ones(len(index), bool) & normal & in_range(T, sound, a)
        return LastUpdate(a, b, smallest, V, T, S, gamma_a, gamma_b, eu, ev, inside, sound)

    def _cost_and_error(self, last: LastUpdate, U: HostArray, V: HostArray) -> tuple[HostArray, HostArray]:
        """Return transport cost and marginal error (B,) of the plan of U and V, whose column sums are in ``last.S``."""
        S, gamma = last.S, np.exp2(self.s - last.eu - last.ev)
        error = distance(V, S, last.gamma_b) / last.gamma_b.sum(axis=0, dtype=np.float64)
        weighted = self.kernel.cost_product(U, 0, out=S)
        weighted *= V
        return weighted.sum(axis=0) / gamma * self.kernel.unit, error

    def _may_be_light(self, smallest: HostArray) -> bool:
        """Return whether a bin may have so little weight that over-relaxation leaves its potential open."""
        return self.row_sums is not None and smallest.min(initial=1) < 2 * float(np.finfo(self.dtype).eps)

    def _light(self, V: HostArray, sums: HostArray, gamma_b: HostArray) -> HostArray:
        """Return the bins (m, B) that have weight, but less than rounding of the mass, in the plan too."""
        least = float(np.finfo(self.dtype).eps) / len(V) * gamma_b.sum(axis=0)
        light: HostArray = (V > 0) & (gamma_b < least) & (V * sums < least)
        return light

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        self.numerators = self.without_weight = None
        for name in ("a", "b", "smallest", "U", "V", "eu", "ev", "row_sums"):
            if getattr(self, name) is not None:
                setattr(self, name, np.ascontiguousarray(getattr(self, name)[..., index]))
        if self.room.is_large_for(self.bins, len(index)):
            self.work, self.room = None, Room(self.dtype)

    def state(self, chosen: HostArray) -> Finished:
        """Return ``(a, b, f, g)`` of the problems `chosen`."""
        a, b = (np.ascontiguousarray(w[:, chosen].T) for w in (self.a, self.b))
        f = self.eps * log_ratio(self.U[:, chosen].T, a, self.eu[chosen, None])
        g = self.eps * log_ratio(self.V[:, chosen].T, b, self.ev[chosen, None]) + self.shift
        return a, b, f, g

    def _scaling(self, weights: HostArray, potential: HostArray | None, out: HostArray) -> HostArray:
        """Fill `out` with ``weights * exp(potential / eps) / 2**exponent``, its largest entries at about ``2**top``.

        Return the exponent (B,).
        """
        if potential is None:  # 0; for the target `shift`, which is nearer to where the iteration goes
            np.multiply(weights, 2.0**self.top, out=out)
            return np.full(weights.shape[1], -float(self.top))
        log = np.log2(np.where(weights > 0, weights, 1), dtype=np.float64) + potential / (self.eps * np.log(2))
        exponent: HostArray = np.ceil(np.where(weights > 0, log, -np.inf).max(axis=0)) - self.top
        out[...] = np.where(weights > 0, np.exp2(np.minimum(log - exponent, self.top)), 0)
        return exponent

    def _rebalance(self, scaling: HostArray, exponent: HostArray) -> None:
        """Scale the largest entry of each column to about ``2**top``, in place; add the power of two to `exponent`."""
        _, shift = np.frexp(scaling.max(axis=0, initial=0))
        shift -= self.top
        scaling *= np.exp2(-shift).astype(scaling.dtype)
        flush(scaling)
        exponent += shift

    def _own_numerators(self, work: Workspace) -> Numerators:
        """Return the numerators of the problems under way, which are in their workspace then."""
        if self.numerators is None:
            self.numerators = self._fill_numerators(
                self.a, self.b, self.smallest, self.eu, self.ev, work.gamma_a, work.gamma_b
            )
        return self.numerators

    def _fill_numerators(
        self,
        a: HostArray,
        b: HostArray,
        smallest: HostArray,
        eu: HostArray,
        ev: HostArray,
        gamma_a: HostArray,
        gamma_b: HostArray,
    ) -> Numerators:
        """Fill in ``gamma a`` and ``gamma b``."""
        gamma = np.exp2(self.s - eu - ev)
        normal = (gamma * smallest >= self.tiny) & (gamma <= float(np.finfo(self.dtype).max))
        gamma = gamma.astype(self.dtype)
        np.multiply(gamma, a, out=gamma_a)
        np.multiply(gamma, b, out=gamma_b)
        tops = float(gamma_a.max(initial=0)), float(gamma_b.max(initial=0))
        return Numerators(*tops, True if normal.all() else normal)

    def _workspace(self) -> Workspace:
        """Return the workspace for the problems under way."""
        if self.work is None or self.work.U.shape != self.U.shape:
            self.work, self.numerators = self.room.workspace(self.bins, len(self.eu)), None
        return self.work
