"""Sinkhorn iterations as matrix products with one kernel that all problems share, certified entry by entry."""

import math
from typing import Literal

import numpy as np

from cusink.backends.numpy.certificate import certified, in_range
from cusink.backends.numpy.forms.ended import Ended, Unit
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.kernel import Kernel, log_scaled
from cusink.backends.numpy.forms.scalings import (
    LastUpdate,
    Measure,
    Numerators,
    Room,
    Workspace,
    begin,
    both,
    distance,
    empty_bins,
    fill_numerators,
    log2_ratio,
    log_ratio,
    normal_columns,
    rebalance,
    smallest_weight,
    taken,
)
from cusink.backends.numpy.forms.sides import Outlook, Side, fill_more, unwatched
from cusink.backends.ranges import SCALING_EXPONENT, SCALING_LIMIT
from cusink.convergence.rules import overrelaxed_quotient
from cusink.costs.operators import Measured
from cusink.types import HostArray, Order


class SharedKernel:
    """Problems as scalings of one `Kernel`, a problem per column.

    In memory a factor per problem runs along the contiguous axis; in the `order` "F" the numbers of a problem do.

    The exponents eu and ev (B,) keep ``U = a exp(f / eps) / 2**eu`` and ``V = b exp((g - shift) / eps) / 2**ev`` in
    range. A plain update is ``V = gamma b / (K' U)`` with ``gamma = 2**(s - eu - ev)``; scaling by powers of two
    changes no digit.
    """

    def __init__(self, kernel: Kernel, order: Order = "C") -> None:
        self.kernel, self.C, self.eps, self.dtype = kernel, kernel.C, kernel.eps, kernel.dtype
        self.shift, self.s = kernel.shift, kernel.s
        self.top, self.limit = SCALING_EXPONENT[self.dtype.name], SCALING_LIMIT[self.dtype.name]
        self.tiny = float(np.finfo(self.dtype).tiny)
        self.reach = self.top - np.log2(self.tiny) - 1  # of logarithms to base 2 that scalings may span
        n, m = self.bins = (int(self.C.shape[0]), int(self.C.shape[1]))
        self.a, self.b, self.U, self.V = (np.empty((k, 0), self.dtype) for k in (n, m, n, m))
        self.eu, self.ev, self.smallest = np.empty(0), np.empty(0), np.empty(0)
        self.relaxed = False
        self.row_sums: HostArray | None = None  # of the last update of U
        self.sums_are_kept = False  # whether all of them are as the product gave them
        self.measured: Measure | None = None  # of plain problems, if `bound` has looked at them
        self.outlook = Outlook()
        self.work: Workspace | None = None
        self.room = Room(self.dtype, order)
        self.without_weight: tuple[HostArray | None, HostArray | None] | None = None  # once they are known
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
            given = [np.empty((bins, count), self.dtype, self.room.order) for bins in (*self.bins, *self.bins)]
        new_a, new_b, U, V = given
        new_a[...], new_b[...] = a.T, b.T
        eu = begin(U, new_a, f.T if f.any() else None, self.eps, self.top)
        # A potential of 0 becomes `shift` for the target, which is nearer to where the iteration goes.
        ev = begin(V, new_b, g.T - self.shift if g.any() else None, self.eps, self.top)
        smallest = np.minimum(smallest_weight(new_a), smallest_weight(new_b)).astype(np.float64)
        self.numerators = self.without_weight = self.row_sums = self.measured = None
        self.outlook = Outlook()
        every = {"a": new_a, "b": new_b, "smallest": smallest, "U": U, "V": V, "eu": eu, "ev": ev}
        for name, new in every.items():
            setattr(self, name, new if none_yet else np.concatenate([getattr(self, name), new], axis=-1))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems (B,) left the range. These stay where they were."""
        product, limit, work, outside = self.kernel.product, self.limit, self._workspace(), np.zeros(len(omega), bool)
        U, V, self.row_sums, self.measured = work.U, work.V, None, None
        U[...], V[...], eu, ev = self.U, self.V, self.eu.copy(), self.ev.copy()
        excess = (omega - 1).astype(self.dtype)
        self.relaxed = relaxed = bool(excess.any())
        if (excess == excess[0]).all():
            excess = excess[:1]  # one number is faster than a row
        share = excess / (1 + excess)
        tops, sides = self._own_numerators(work), self._sides(work)
        fill_more(sides, excess)
        largest, lowest_of, raised = np.inf, np.minimum.reduce, False
        lowest = [0.0, 0.0]  # of the sums of both sides; 0 where they are not as they came, or not all above the floor
        start, watched, due = self.outlook if not relaxed else Outlook()  # the next looks, and looks ahead
        if relaxed or sides[1].empty is not None:
            due = math.inf
        for step in range(2 * count):
            side, now, last = sides[step % 2], start + step // 2, step == 2 * count - 1
            axis, ahead = side.axis, step % 2 == 1 and now >= due and not last and lowest[0] > 0
            sums = work.last_sums if last else side.room if relaxed or ahead else side.scaling
            if now < watched:  # plain iterations that are known to stay in range
                np.divide(side.gamma, product(side.factor, axis, out=sums), out=side.scaling)
                continue
            inside: HostArray | Literal[True] = True
            if not largest <= limit:
                largest = float(side.factor.max(initial=0))
            if not largest <= limit:
                rebalance(U, eu, self.top)
                rebalance(V, ev, self.top)
                tops = self._refilled(sides, excess, eu, ev)
                largest, lowest, ahead = 2.0**self.top, [0.0, 0.0], False
            product(side.factor, axis, out=sums)
            top, low = tops.largest[axis], float(lowest_of(sums, axis=None))
            lowest[axis] = low
            if side.empty is not None and not (low >= side.floor and 2 * top <= limit * low):
                np.maximum(sums, side.empty, out=sums)  # the sums of empty bins do not count
                low, lowest[axis], raised = float(lowest_of(sums, axis=None)), 0.0, last
            if tops.normal is not True or not (largest <= limit and low >= side.floor):
                lowest[axis] = 0.0
                if tops.normal is not True or not side.certain(low, largest, limit):
                    sound = certified(side.bound, sums, side.factor, side.factor_weights)
                    inside = both(tops.normal, in_range(sums, sound, side.weights))
            largest = 2 * top / max(low, self.tiny)  # relaxed is at most twice the plain update
            if relaxed:
                overrelaxed_quotient(np, side.scaling, side.more, sums, excess, share, side.room, side.scratch)
            else:
                np.divide(side.gamma, sums, out=sums if ahead else side.scaling)
            if ahead:
                drift = side.drift(sums)
                side.scaling[...] = sums
                free, largest = unwatched(sides, lowest, limit, drift)
                watched, due = now + 1 + free, max(now + 1 + free, 2 * now + 1)
            if inside is not True:  # reset the failed columns to a harmless state; the next form repeats them
                outside |= ~inside
                U[:, ~inside], V[:, ~inside], eu[~inside], ev[~inside] = self.a[:, ~inside], self.b[:, ~inside], 0, 0
                tops = self._refilled(sides, excess, eu, ev)
        # A scaling that underflowed was certified not to count here, but it might in the iterations that follow.
        outside |= ~(normal_columns(U, self.a, self.tiny) & normal_columns(V, self.b, self.tiny))
        self.row_sums, self.sums_are_kept = work.last_sums, not (raised or outside.any())
        if outside.any():
            for new, old in ((U, self.U), (V, self.V), (eu, self.eu), (ev, self.ev)):
                new[..., outside] = old[..., outside]
        self.work = work._replace(U=self.U, V=self.V)
        self.U, self.V, self.eu, self.ev = U, V, eu, ev
        self.numerators = None if outside.any() else tops
        self.outlook = Outlook() if relaxed or outside.any() else Outlook(start + count, watched, due)
        return outside

    @property
    def unwatched(self) -> int:
        """How many plain iterations are known to stay in range from here on."""
        return max(0, self.outlook.watched - self.outlook.done)

    def _sides(self, work: Workspace) -> tuple[Side, Side]:
        """Return both sides of the problems under way, the one that is updated first before the other."""
        if self.without_weight is None:
            self.without_weight = empty_bins(self.a), empty_bins(self.b)
        (no_a, no_b), a, b, bound = self.without_weight, self.a, self.b, self.kernel.underflow_bound
        # A sum above the floor is certified, even if an entry of the factor underflowed.
        bounds = [(bound(axis), float(bound(axis).floor(self.dtype, self.limit, True))) for axis in (0, 1)]
        U, X, _, gamma_a, more_a, V, S, gamma_b, more_b, scratch_U, scratch_V = work
        return (
            Side(0, U, a, V, b, gamma_b, more_b, S, scratch_V, no_b, *bounds[0]),
            Side(1, V, b, U, a, gamma_a, more_a, X, scratch_U, no_a, *bounds[1]),
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def bound(self) -> HostArray:
        """Return bounds (B,) on the marginal errors after one more plain f-update, for omega = 1 the errors."""
        work = self._workspace()
        self._own_numerators(work)
        S, total = work.column_sums, work.gamma_b.sum(axis=0, dtype=np.float64)
        self.kernel.product(self.U, 0, out=S)
        bound = distance(self.V, S, work.gamma_b, out=work.scratch_columns)
        if self.relaxed and self.row_sums is not None:
            bound += distance(self.U, self.row_sums, work.gamma_a, out=work.scratch_rows)
        elif self.sums_are_kept and self.row_sums is not None:
            self.measured = Measure(self.U, S, bound / total)
        error: HostArray = bound / total if self.measured is None else self.measured.error
        return error

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        last = self._last_update(index)
        a, b, smallest, V, T, S, _, gamma_b, eu, ev, inside, sound_f, *_ = last
        eps, kernel, unit = self.eps, self.kernel, self._unit
        if not inside.all():
            T[:, ~inside] = 1
        f = unit.of_sums(T, ev)
        U = self._plain_update(last)
        sound_g = certified(kernel.underflow_bound(0), S, U, a)
        inside &= in_range(S, sound_g, b)
        carried = V > 0
        # A weight of zero has the potential of its own softmin.
        g = unit.of_scaling(V, b, ev, None) if carried.all() else unit.of_columns(S, eu)
        light, plain = None, g
        if self._may_be_light(smallest):
            light = self._light(V, S, gamma_b) & sound_g
            plain = unit.of_columns(S, eu)
            V = np.where(light, gamma_b / S, V)
        cost, error = self._cost_and_error(last, U, V)
        if sound_f is not True or sound_g is not True:
            kernel.repair(f, sound_f, (log_scaled(V, ev) + self.shift / eps).astype(T.dtype), axis=1)
            kernel.repair(g, sound_g | carried, log_scaled(U, eu).astype(T.dtype), axis=0)
        if not carried.all():
            g = np.where(carried.T, unit.of_scaling(V, b, ev, carried), g)
        if light is not None:  # no error tells whether over-relaxed g converged there; plain ones do not move the plan
            g = np.where(light.T, plain, g)
        lost = np.flatnonzero(~inside)
        if len(lost):
            a, b, _, start = self.state(index[lost])
            f[lost], g[lost], cost[lost], error[lost] = kernel.finish_log(a, b, start)
        return f, g, cost, error

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def measure(self, index: HostArray, keep: bool = False) -> Measured | None:
        """Return cost and error as if by `finish`, and potentials to be had later, if they are to `keep`; or None."""
        last = self._last_update(index)
        if last.sound is not True or not last.inside.all() or self._may_be_light(last.smallest):
            return None
        T = last.T.copy(order="K") if keep else last.T
        U = self._plain_update(last)
        if certified(self.kernel.underflow_bound(0), last.S, U, last.a) is not True:
            return None
        potentials = Ended.kept(self._unit, last, T).potentials if keep else None
        cost, error = self._cost_and_error(last, U, last.V)
        # T and V are normal numbers, and the exponent ev cancels in f + g, whose mean is that of f plus that of g.
        spans = 6 * np.finfo(self.dtype).maxexp + self.s + 2 - 2 * np.log2(last.smallest)
        return Measured(self.eps * np.log(2) * spans + abs(self.shift), cost, error, potentials)

    @property
    def _unit(self) -> Unit:
        return Unit(self.eps, self.shift, self.s)

    def _last_update(self, index: HostArray) -> LastUpdate:
        """Return the problems at `index` with the sums T of a plain f-update."""
        every = len(index) == len(self.eu) and (index[1:] > index[:-1]).all()
        a, b, smallest, V, eu, ev = (
            x if every else taken(x, index) for x in (self.a, self.b, self.smallest, self.V, self.eu, self.ev)
        )
        if every:
            work = self._workspace()
            T, gamma_a, S, gamma_b, room = work[1], work.gamma_a, work.column_sums, work.gamma_b, work.scratch_columns
            normal = self._own_numerators(work).normal
        else:
            T, gamma_a, S, gamma_b = (np.empty_like(x) for x in (a, a, b, b))
            normal, room = fill_numerators(self.s, a, b, smallest, eu, ev, gamma_a, gamma_b).normal, S
        if self.row_sums is not None and self.sums_are_kept:
            T[...] = self.row_sums if every else taken(self.row_sums, index)
        else:
            self.kernel.product(V, 1, out=T)
        known = self.measured
        if known is not None and not every:
            known = Measure(*(taken(x, index) for x in known))
        sound = certified(self.kernel.underflow_bound(1), T, V, b)
        inside = np.ones(len(index), bool) & normal & in_range(T, sound, a)
        S = S if known is None else known.S
        return LastUpdate(a, b, smallest, V, T, S, gamma_a, gamma_b, eu, ev, inside, sound, room, known)

    def _plain_update(self, last: LastUpdate) -> HostArray:
        """Return the scaling of a after a plain update; the column sums are in ``last.S`` then."""
        if last.known is not None:
            return last.known.U
        U = np.divide(last.gamma_a, last.T, out=last.T)
        self.kernel.product(U, 0, out=last.S)
        return U

    def _cost_and_error(self, last: LastUpdate, U: HostArray, V: HostArray) -> tuple[HostArray, HostArray]:
        """Return transport cost and marginal error (B,) of the plan of U and V, whose column sums are in ``last.S``."""
        gamma = np.exp2(self.s - last.eu - last.ev)
        if last.known is None:
            error = distance(V, last.S, last.gamma_b, out=last.room) / last.gamma_b.sum(axis=0, dtype=np.float64)
        else:
            error = last.known.error
        weighted = self.kernel.cost_product(U, 0, out=last.room)
        weighted *= V
        return weighted.sum(axis=0) / gamma * self.kernel.unit, error

    def _may_be_light(self, smallest: HostArray) -> bool:
        """Return whether a bin may have so little weight that over-relaxation leaves its potential open."""
        return self.relaxed and smallest.min(initial=1) < 2 * float(np.finfo(self.dtype).eps)

    def _light(self, V: HostArray, sums: HostArray, gamma_b: HostArray) -> HostArray:
        """Return the bins (m, B) that have weight, but less than rounding of the mass, in the plan too."""
        least = float(np.finfo(self.dtype).eps) / len(V) * gamma_b.sum(axis=0)
        light: HostArray = (V > 0) & (gamma_b < least) & (V * sums < least)
        return light

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        self.numerators = self.without_weight = self.measured = None
        self.outlook = Outlook()
        for name in ("a", "b", "smallest", "U", "V", "eu", "ev", "row_sums"):
            if getattr(self, name) is not None:
                setattr(self, name, taken(getattr(self, name), index))
        if self.room.is_large_for(self.bins, len(index)):
            self.work, self.room = None, Room(self.dtype, self.room.order)

    def state(self, chosen: HostArray) -> Finished:
        """Return ``(a, b, f, g)`` of the problems `chosen`."""
        a, b = (np.ascontiguousarray(w[:, chosen].T) for w in (self.a, self.b))
        f = self.eps * log_ratio(self.U[:, chosen].T, a, self.eu[chosen, None])
        g = self.eps * log_ratio(self.V[:, chosen].T, b, self.ev[chosen, None]) + self.shift
        return a, b, f, g

    def _own_numerators(self, work: Workspace) -> Numerators:
        """Return the numerators of the problems under way, which are in their workspace then."""
        if self.numerators is None:
            ends = work.gamma_a, work.gamma_b
            self.numerators = fill_numerators(self.s, self.a, self.b, self.smallest, self.eu, self.ev, *ends)
        return self.numerators

    def _refilled(self, sides: tuple[Side, Side], excess: HostArray, eu: HostArray, ev: HostArray) -> Numerators:
        """Fill in the numerators anew, for other exponents."""
        tops = fill_numerators(self.s, self.a, self.b, self.smallest, eu, ev, sides[1].gamma, sides[0].gamma)
        fill_more(sides, excess)
        return tops

    def _workspace(self) -> Workspace:
        """Return the workspace for the problems under way."""
        if self.work is None or self.work.U.shape != self.U.shape:
            self.work, self.numerators = self.room.workspace(self.bins, len(self.eu)), None
        return self.work
