"""Sinkhorn iterations between the cells of a grid with no state but potentials, for an array library on a device.

A chunk of iterations starts from float64 potentials and ends with them. In between it runs on scalings, whose every sum
is checked without a word to the host; the problems in which one failed take the chunk once more, from the same
potentials, in the next form: scalings in float64, then log-sum-exp along each axis.
"""

import dataclasses
from typing import Any

import numpy as np

from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.ranges import SCALING

CHUNK = 25  # iterations that a problem repeats at most
LIFT = 64  # binary exponent that keeps ``weights / sums`` away from underflow


class GridIteration:
    """Problems under way, see `cusink.backends.operators`; `dense` is the module of the operators for arrays."""

    def __init__(self, dense, C, a, b, eps, f, g, method):
        self.dense, self.xp, self.C, self.eps, self.dtype = dense, dense.xp, C, float(eps), np.dtype(a.dtype)
        zero, tiny = self.dtype.type(0), np.finfo(self.dtype).tiny  # a device may take what is smaller for zero
        self.a, self.b = (self.xp.where(weights < tiny, zero, weights) for weights in (a, b))
        self.f, self.g = (x.astype(np.float64) for x in (f, g))
        self.forms, wide = [], np.dtype(np.float64)
        if method != "log":
            self.forms += [Scalings(dense, C, dtype, self.eps) for dtype in dict.fromkeys((self.dtype, wide))]
        if method != "scaling":
            self.forms.append(Logs(dense, C, self.dtype if method == "log" else wide, self.eps))
        self.level = np.zeros(len(a), int)  # the form of each problem; len(forms) for one that is out of all ranges

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return bounds (B,) on their errors, inf for one out of range."""
        xp, error, excess = self.xp, self.xp.full(len(self.a), np.inf), self.xp.asarray(omega)[:, None] - 1
        for start in range(0, count, CHUNK):
            for k, form in enumerate(self.forms):
                at = np.flatnonzero(self.level == k)
                if len(at):
                    chosen = xp.asarray(at)
                    parts = (x[chosen] for x in (self.a, self.b, self.f, self.g, excess))
                    *results, inside = form.advance(*parts, min(CHUNK, count - start))
                    inside = self.dense.to_host(inside)
                    _put((self.f, self.g, error), chosen, results, xp.asarray(np.flatnonzero(inside)))
                    self.level[at[~inside]] += 1
        return xp.where(xp.asarray(self.level == len(self.forms)), np.inf, error)

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        xp, shape = self.xp, (len(index), self.C.shape[0])
        out = xp.empty(shape, self.dtype), xp.empty(shape, self.dtype), xp.empty(len(index), self.dtype)
        out += (xp.empty(len(index), np.float64),)
        level = self.level[index]
        for k, form in enumerate([*self.forms, Logs(self.dense, self.C, self.dtype, self.eps)]):
            places = np.flatnonzero(level == k)
            if len(places):
                chosen = xp.asarray(index[places])
                *results, inside = form.finish(*(x[chosen] for x in (self.a, self.b, self.g)))
                inside = self.dense.to_host(inside)
                _put(out, xp.asarray(places), results, xp.asarray(np.flatnonzero(inside)))
                level[places[~inside]] += 1
        return out

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        self.level, chosen = self.level[index], self.xp.asarray(index)
        self.a, self.b, self.f, self.g = (x[chosen] for x in (self.a, self.b, self.f, self.g))


@dataclasses.dataclass
class Side:
    """One side of the problems, as columns: weights, 1 where one is zero, and the scalings ``x * 2**exponent``."""

    weights: Any
    empty: Any
    x: Any
    exponent: Any


class Scalings:
    """Iterations as products with a `GridKernel`, certified as in `cusink.backends.numpy.certificate`."""

    def __init__(self, dense, C, dtype, eps):
        self.dense, self.xp, self.C, self.dtype, self.eps = dense, dense.xp, C.astype(dtype), np.dtype(dtype), eps
        self.kernel = GridKernel(dense, C, dtype, eps)
        info = np.finfo(self.dtype)
        self.tiny, self.top, self.span = float(info.tiny), SCALING[self.dtype.name], -info.minexp - 6
        self.limit = float(info.max) / self.kernel.loss(0).gain

    @np.errstate(all="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, a, b, f, g, excess, count):
        """Take `count` iterations; return f, g, bounds on the errors, and which problems (B,) lost nothing."""
        excess = excess.T.astype(self.dtype)
        rows, columns = self._side(a, f), self._side(b, g)
        inside = self._normal(rows) & self._normal(columns)
        for _ in range(count):
            sums, sound = self._sums(rows, columns)
            inside &= sound
            self._update(columns, rows, sums, excess)
            sums, sound = self._sums(columns, rows)
            inside &= sound
            self._update(rows, columns, sums, excess)
        error = self.xp.where(excess[0] > 0, self._distance(rows, columns, sums), 0)
        sums, sound = self._sums(rows, columns)
        error += self._distance(columns, rows, sums)
        inside &= sound & self._normal(rows) & self._normal(columns)
        return self._potential(rows), self._potential(columns), error / b.sum(axis=1, dtype=np.float64), inside

    @np.errstate(all="ignore")
    def finish(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, and which problems (B,) lost nothing."""
        xp, kernel = self.xp, self.kernel
        rows, columns = self._side(a, 0 * a), self._side(b, g)
        sums = kernel.product(columns.x, 1)
        f, sound_f = self._softmin(columns, sums)
        inside = self._normal(columns) & (sound_f | (rows.empty > 0)).all(axis=0)
        self._update(rows, columns, xp.maximum(sums, rows.empty), None)
        sums = kernel.product(rows.x, 0)
        after, sound_g = self._softmin(rows, sums)
        inside &= self._normal(rows) & (sound_g | (columns.empty > 0)).all(axis=0)
        error = self._distance(columns, rows, sums) / b.sum(axis=1, dtype=np.float64)
        priced = kernel.cost_product(rows.x, 0).astype(np.float64) * columns.x
        cost = priced.sum(axis=0) * (kernel.unit * self._unit_of_plan(rows, columns))
        f = self._repair(f, sound_f, b, g)
        after = self._repair(after, sound_g | (columns.empty == 0), a, f)
        return f, xp.where(b > 0, g, after), cost, error, inside

    def _sums(self, factor, side):
        """The sums over `factor` for each bin of `side`, 1 at least for an empty one, and in which problems all are
        certified.
        """
        sums = self.xp.maximum(self.kernel.product(factor.x, 0), side.empty)
        return sums, (sums >= self._floor(factor)).all(axis=0)

    def _floor(self, factor):
        """What certifies a sum over `factor` (B,), +inf for one that may overflow."""
        largest = factor.x.max(axis=0).astype(np.float64)
        flushed = ((factor.x < self.tiny) & (factor.empty == 0)).any(axis=0)
        return self.xp.where(largest <= self.limit, self.kernel.loss(0).floor(self.dtype, largest, flushed), np.inf)

    def _update(self, side, factor, sums, excess):
        """Move the scalings of `side` to, or for a positive `excess` past, ``weights / sums``."""
        xp = self.xp
        new, exponent = side.weights * self.dtype.type(2.0**LIFT) / sums, self.kernel.s - LIFT - factor.exponent
        if excess is not None:  # as cusink.backends.numpy.certificate.relax
            old = side.x * self._power(side.exponent - exponent)
            new = excess * new + xp.maximum(new - excess * old, 0)
        _, shift = xp.frexp(new.max(axis=0))
        shift = shift - self.top
        side.x, side.exponent = new * self._power(-shift), exponent + shift

    def _power(self, exponent):
        """``2**exponent``, or as much of it as the dtype holds."""
        return self.xp.exp2(self.xp.clip(exponent, -self.span, self.span)).astype(self.dtype)

    def _side(self, weights, potential):
        """A side with ``weights * exp(potential / eps)``, its largest entries at about ``2**top``."""
        xp = self.xp
        weights, potential = weights.T, potential.T
        logs = xp.log2(weights.astype(np.float64)) + potential * (1 / (self.eps * np.log(2)))
        exponent = xp.ceil(logs.max(axis=0)) - self.top
        weights = xp.ascontiguousarray(weights, dtype=self.dtype)
        return Side(weights, (weights == 0).astype(self.dtype), xp.exp2(logs - exponent).astype(self.dtype), exponent)

    def _normal(self, side):
        """Problems in which every positive weight has a finite scaling that has not underflowed."""
        return (((side.x >= self.tiny) & (side.x < np.inf)) | (side.empty > 0)).all(axis=0)

    def _potential(self, side):
        """Potentials (B, n) of the scalings, 0 for an empty bin."""
        ratio = self.xp.where(side.empty > 0, 1, side.x.astype(np.float64) / side.weights)
        logs = self.xp.where(side.empty > 0, 0, self.xp.log(ratio) + side.exponent * np.log(2))
        return self.xp.ascontiguousarray((self.eps * logs).T)

    def _softmin(self, factor, sums):
        """Potentials (B, n) from sums over `factor`, and which of them (n, B) are certified."""
        sound = sums >= self._floor(factor)
        logs = self.xp.log(sums.astype(np.float64)) + (factor.exponent - self.kernel.s) * np.log(2)
        return self.xp.ascontiguousarray((-self.eps * logs).T), sound

    def _repair(self, potential, sound, weights, other):
        """`potential` (B, n) with what is not `sound` (n, B) by log-sum-exp."""
        if sound.all():
            return potential
        right = grid.softmin(self.dense, self.C, logits(self.xp, weights, other, self.eps, self.dtype), self.eps)
        return self.xp.where(sound.T, potential, right)

    def _unit_of_plan(self, rows, columns):
        """What ``rows.x K columns.x`` has to be multiplied with to be the plan (B,)."""
        return self.xp.exp2(rows.exponent + columns.exponent - self.kernel.s)

    def _distance(self, side, factor, sums):
        """How far the marginals of `side` are off (B,), as mass."""
        mass = side.x.astype(np.float64) * sums * self._unit_of_plan(side, factor)
        return self.xp.abs(mass - side.weights).sum(axis=0)


class Logs:
    """Iterations as log-sum-exp along each axis, in one dtype; no problem leaves its range."""

    def __init__(self, dense, C, dtype, eps):
        self.dense, self.xp, self.C, self.dtype, self.eps = dense, dense.xp, C.astype(dtype), np.dtype(dtype), eps

    def advance(self, a, b, f, g, excess, count):
        """Take `count` iterations; return f, g, bounds on the errors, and which problems (B,) lost nothing: all."""
        for _ in range(count):
            g = self._relax(g, self._softmin(a, f), excess)
            plain = self._softmin(b, g)
            f = self._relax(f, plain, excess)
        error = self._error(b, g, self._softmin(a, f)) + self._error(a, f, plain)
        return f, g, error, self.xp.ones(len(a), bool)

    def finish(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, and that no problem lost anything."""
        f = self._softmin(b, g)
        after = self._softmin(a, f)
        p, q = self._logits(a, f), self._logits(b, g)
        cost = grid.transport_cost(self.dense, self.C, p, q, self.eps)
        return f, self.xp.where(b > 0, g, after), cost, self._error(b, g, after), self.xp.ones(len(a), bool)

    def _softmin(self, weights, potential):
        return grid.softmin(self.dense, self.C, self._logits(weights, potential), self.eps)

    def _logits(self, weights, potential):
        return logits(self.xp, weights, potential, self.eps, self.dtype)

    def _relax(self, old, plain, excess):
        """As `cusink.backends.numpy.forms.log.relax_log`."""
        xp = self.xp
        backward = xp.exp(xp.minimum((old - plain) / self.eps, 700.0))
        return plain + self.eps * xp.log(excess + xp.maximum(1 - excess * backward, 0))

    def _error(self, weights, before, after):
        """``sum_j w_j |1 - exp((before_j - after_j) / eps)|`` relative to the mass."""
        ratio = self.xp.exp(self.xp.minimum((before - after) / self.eps, 700.0))
        return (weights * self.xp.abs(1 - ratio)).sum(axis=1) / weights.sum(axis=1, dtype=np.float64)


def logits(xp, weights, potential, eps, dtype):
    """``log weights + potential / eps`` in `dtype`; -inf for a zero weight."""
    with np.errstate(divide="ignore"):
        return (xp.log(weights.astype(np.float64)) + potential / eps).astype(dtype)


def _put(targets, chosen, results, kept):
    """``target[chosen[kept]] = result[kept]`` for each of them."""
    if len(kept):
        for target, result in zip(targets, results, strict=True):
            target[chosen[kept]] = result[kept].astype(target.dtype)
