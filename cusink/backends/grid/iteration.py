"""Sinkhorn iterations between the cells of a grid with no state but potentials, for an array library on a device.

Some iterations at a time start from float64 potentials and end with them. In between they run on scalings, whose sums
are all checked without a transfer to the host; the problems in which a check failed repeat the iterations from the same
potentials in the next form: scalings in float64, then log-sum-exp along each axis.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.ranges import REPEATED_ITERATIONS, SCALING_EXPONENT
from cusink.convergence.marginals import marginal_error
from cusink.convergence.rules import overrelaxed, overrelaxed_log
from cusink.costs.grid import GridCosts
from cusink.costs.logits import logits
from cusink.costs.operators import HostChecked, Operators
from cusink.types import Array, HostArray, Method

LIFT_EXPONENT = 64  # keeps ``weights / sums`` away from underflow


class Advanced(NamedTuple):
    """Potentials (B, n), bounds on the errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    error: Array
    inside: Array


class Finished(NamedTuple):
    """Potentials (B, n), costs (B,), errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    cost: Array
    error: Array
    inside: Array


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledSide:
    """One side of the problems, as columns: weights, 1 where one is zero, and the scalings ``x * 2**exponent``."""

    weights: Array  # (n, B)
    empty: Array  # (n, B)
    x: Array  # (n, B)
    exponent: Array  # (B,)


class GridIteration(HostChecked):
    """Problems under way, see `cusink.costs.operators`; `dense` are the operators for arrays."""

    def __init__(
        self,
        dense: Operators[Array],
        C: GridCosts,
        a: Array,
        b: Array,
        eps: float,
        f: Array,
        g: Array,
        method: Method,
    ) -> None:
        self.dense, self.xp, self.C, self.eps, self.dtype = dense, dense.xp, C, float(eps), np.dtype(a.dtype)
        zero, tiny = self.dtype.type(0), np.finfo(self.dtype).tiny  # a device may read smaller weights as zero
        self.a, self.b = (self.xp.where(weights < tiny, zero, weights) for weights in (a, b))
        self.f, self.g = (x.astype(np.float64) for x in (f, g))
        self.forms: list[AxisScalings | AxisLogs] = []
        wide = np.dtype(np.float64)
        if method != "log":
            self.forms += [AxisScalings(dense, C, dtype, self.eps) for dtype in dict.fromkeys((self.dtype, wide))]
        if method != "scaling":
            self.forms.append(AxisLogs(dense, C, np.float64, self.eps))
        self.level = np.zeros(len(a), int)  # the form of each problem; len(forms) for one that is out of all ranges

    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations of every problem; return bounds (B,) on their errors, inf for one out of range."""
        xp, error, excess = self.xp, self.xp.full(len(self.a), np.inf), self.xp.asarray(omega)[:, None] - 1
        for start in range(0, count, REPEATED_ITERATIONS):
            some = min(REPEATED_ITERATIONS, count - start)
            for k, form in enumerate(self.forms):
                at = np.flatnonzero(self.level == k)
                if len(at):
                    chosen = xp.asarray(at)
                    a, b, f, g, past = (x[chosen] for x in (self.a, self.b, self.f, self.g, excess))
                    *results, inside = form.advance(a, b, f, g, past, some)
                    inside = self.dense.to_host(inside)
                    _put((self.f, self.g, error), chosen, results, xp.asarray(np.flatnonzero(inside)))
                    self.level[at[~inside]] += 1
        return xp.where(xp.asarray(self.level == len(self.forms)), np.inf, error)

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        xp, shape = self.xp, (len(index), self.C.shape[0])
        f, g, cost = xp.empty(shape), xp.empty(shape), xp.empty(len(index), self.dtype)
        error = xp.empty(len(index), np.float64)
        level = self.level[index]
        for k, form in enumerate([*self.forms, AxisLogs(self.dense, self.C, np.float64, self.eps)]):
            places = np.flatnonzero(level == k)
            if len(places):
                chosen = xp.asarray(index[places])
                *results, inside = form.finish(*(x[chosen] for x in (self.a, self.b, self.g)))
                inside = self.dense.to_host(inside)
                _put((f, g, cost, error), xp.asarray(places), results, xp.asarray(np.flatnonzero(inside)))
                level[places[~inside]] += 1
        return f, g, cost, error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        self.level, chosen = self.level[index], self.xp.asarray(index)
        self.a, self.b, self.f, self.g = (x[chosen] for x in (self.a, self.b, self.f, self.g))


class AxisScalings:
    """Iterations as products with a `GridKernel`, certified as in `cusink.backends.numpy.certificate`."""

    def __init__(self, dense: Operators[Array], C: GridCosts, dtype: Any, eps: float) -> None:
        self.dense, self.xp, self.C, self.dtype, self.eps = dense, dense.xp, C.astype(dtype), np.dtype(dtype), eps
        self.kernel = GridKernel(dense, C, dtype, eps)
        self.lost = self.kernel.underflow_bound(0)
        info = np.finfo(self.dtype)
        self.tiny, self.top, self.span = float(info.tiny), SCALING_EXPONENT[self.dtype.name], -int(info.minexp) - 6
        self.limit = float(info.max) / self.lost.gain

    @np.errstate(all="ignore")  # infinities and NaN: no certificate accepts them
    def advance(self, a: Array, b: Array, f: Array, g: Array, excess: Array, count: int) -> Advanced:
        """Take `count` iterations, over-relaxed by `excess` (B, 1)."""
        excess = excess.T.astype(self.dtype)
        rows, columns = self._side(a, f), self._side(b, g)
        inside = self._normal(rows) & self._normal(columns)
        for _ in range(count):
            sums, sound = self._sums(rows, columns)
            inside &= sound
            columns = self._updated(columns, rows, sums, excess)
            sums, sound = self._sums(columns, rows)
            inside &= sound
            rows = self._updated(rows, columns, sums, excess)
        error = self.xp.where(excess[0] > 0, self._distance(rows, columns, sums), 0)
        sums, sound = self._sums(rows, columns)
        error += self._distance(columns, rows, sums)
        inside &= sound & self._normal(rows) & self._normal(columns)
        error = error / b.sum(axis=1, dtype=np.float64)
        return Advanced(self._potential(rows), self._potential(columns), error, inside)

    @np.errstate(all="ignore")
    def finish(self, a: Array, b: Array, g: Array) -> Finished:
        """Take one plain f-update from g (B, n)."""
        xp, kernel = self.xp, self.kernel
        rows, columns = self._side(a, 0 * a), self._side(b, g)
        sums = kernel.product(columns.x, 1)
        f, sound_f = self._softmin(columns, sums)
        inside = self._normal(columns) & (sound_f | (rows.empty > 0)).all(axis=0)
        rows = self._updated(rows, columns, xp.maximum(sums, rows.empty), None)
        sums = kernel.product(rows.x, 0)
        after, sound_g = self._softmin(rows, sums)
        inside &= self._normal(rows) & (sound_g | (columns.empty > 0)).all(axis=0)
        error = self._distance(columns, rows, sums) / b.sum(axis=1, dtype=np.float64)
        with_cost = kernel.cost_product(rows.x, 0).astype(np.float64) * columns.x
        cost = with_cost.sum(axis=0) * (kernel.unit * self._unit_of_plan(rows, columns))
        f = self._repair(f, sound_f, b, g)
        after = self._repair(after, sound_g | (columns.empty == 0), a, f)
        return Finished(f, xp.where(b > 0, g, after), cost, error, inside)

    def _sums(self, factor: ScaledSide, side: ScaledSide) -> tuple[Array, Array]:
        """Return the sums over `factor` (n, B), at least 1 for an empty bin of `side`.

        Also return the problems (B,) in which all sums are certified.
        """
        sums = self.xp.maximum(self.kernel.product(factor.x, 0), side.empty)
        return sums, (sums >= self._floor(factor)).all(axis=0)

    def _floor(self, factor: ScaledSide) -> Array:
        """Return the least certified sum over `factor` (B,), +inf where a sum may overflow."""
        largest = factor.x.max(axis=0).astype(np.float64)
        flushed = ((factor.x < self.tiny) & (factor.empty == 0)).any(axis=0)
        return self.xp.where(largest <= self.limit, self.lost.floor(self.dtype, largest, flushed), np.inf)

    def _updated(self, side: ScaledSide, factor: ScaledSide, sums: Array, excess: Array | None) -> ScaledSide:
        """Return `side` with its scalings moved to ``weights / sums``, or past it for a positive `excess`."""
        xp = self.xp
        new = side.weights * self.dtype.type(2.0**LIFT_EXPONENT) / sums
        exponent = self.kernel.s - LIFT_EXPONENT - factor.exponent
        if excess is not None:
            new = overrelaxed(xp, side.x * self._power(side.exponent - exponent), new, excess)
        _, shift = xp.frexp(new.max(axis=0))
        shift = shift - self.top
        return dataclasses.replace(side, x=new * self._power(-shift), exponent=exponent + shift)

    def _power(self, exponent: Array) -> Array:
        """Return ``2**exponent``, or the nearest power that the dtype holds."""
        return self.xp.exp2(self.xp.clip(exponent, -self.span, self.span)).astype(self.dtype)

    def _side(self, weights: Array, potential: Array) -> ScaledSide:
        """Return the side with ``weights * exp(potential / eps)``, its largest entries at about ``2**top``."""
        xp = self.xp
        weights, potential = weights.T, potential.T
        logs = xp.log2(weights.astype(np.float64)) + potential * (1 / (self.eps * np.log(2)))
        exponent = xp.ceil(logs.max(axis=0)) - self.top
        weights = xp.ascontiguousarray(weights, dtype=self.dtype)
        x = xp.exp2(logs - exponent).astype(self.dtype)
        return ScaledSide(weights, (weights == 0).astype(self.dtype), x, exponent)

    def _normal(self, side: ScaledSide) -> Array:
        """Return the problems (B,) in which every positive weight has a finite scaling that has not underflowed."""
        return (((side.x >= self.tiny) & (side.x < np.inf)) | (side.empty > 0)).all(axis=0)

    def _potential(self, side: ScaledSide) -> Array:
        """Return the potentials (B, n) of the scalings, 0 for an empty bin."""
        ratio = self.xp.where(side.empty > 0, 1, side.x.astype(np.float64) / side.weights)
        logs = self.xp.where(side.empty > 0, 0, self.xp.log(ratio) + side.exponent * np.log(2))
        return self.xp.ascontiguousarray((self.eps * logs).T)

    def _softmin(self, factor: ScaledSide, sums: Array) -> tuple[Array, Array]:
        """Return the potentials (B, n) from sums over `factor`, and which of them (n, B) are certified."""
        sound = sums >= self._floor(factor)
        logs = self.xp.log(sums.astype(np.float64)) + (factor.exponent - self.kernel.s) * np.log(2)
        return self.xp.ascontiguousarray((-self.eps * logs).T), sound

    def _repair(self, potential: Array, sound: Array, weights: Array, other: Array) -> Array:
        """Return `potential` (B, n), by log-sum-exp where it is not `sound` (n, B)."""
        if sound.all():
            return potential
        summed = logits(self.xp, weights, other, self.eps, self.dtype)
        return self.xp.where(sound.T, potential, grid.softmin(self.dense, self.C, summed, self.eps))

    def _unit_of_plan(self, rows: ScaledSide, columns: ScaledSide) -> Array:
        """Return the factors (B,) with which ``rows.x K columns.x`` is the plan."""
        return self.xp.exp2(rows.exponent + columns.exponent - self.kernel.s)

    def _distance(self, side: ScaledSide, factor: ScaledSide, sums: Array) -> Array:
        """Return how far the marginals of `side` are off (B,), as mass."""
        mass = side.x.astype(np.float64) * sums * self._unit_of_plan(side, factor)
        return self.xp.abs(mass - side.weights).sum(axis=0)


class AxisLogs:
    """Iterations as log-sum-exp along each axis, in one dtype; no problem leaves its range."""

    def __init__(self, dense: Operators[Array], C: GridCosts, dtype: Any, eps: float) -> None:
        self.dense, self.xp, self.C, self.dtype, self.eps = dense, dense.xp, C.astype(dtype), np.dtype(dtype), eps

    def advance(self, a: Array, b: Array, f: Array, g: Array, excess: Array, count: int) -> Advanced:
        """Take `count` iterations, over-relaxed by `excess` (B, 1)."""
        xp, eps = self.xp, self.eps
        for _ in range(count):
            g = overrelaxed_log(xp, g, self._softmin(a, f), excess, eps)
            plain = self._softmin(b, g)
            f = overrelaxed_log(xp, f, plain, excess, eps)
        error = marginal_error(xp, b, g, self._softmin(a, f), eps) + marginal_error(xp, a, f, plain, eps)
        return Advanced(f, g, error, xp.ones(len(a), bool))

    def finish(self, a: Array, b: Array, g: Array) -> Finished:
        """Take one plain f-update from g (B, n), in float64, as the plan is computed."""
        if self.dtype != np.float64:
            return AxisLogs(self.dense, self.C, np.float64, self.eps).finish(a, b, g)
        f = self._softmin(b, g)
        after = self._softmin(a, f)
        cost = grid.transport_cost(self.dense, self.C, self._logits(a, f), self._logits(b, g), self.eps)
        error = marginal_error(self.xp, b, g, after, self.eps)
        return Finished(f, self.xp.where(b > 0, g, after), cost, error, self.xp.ones(len(a), bool))

    def _softmin(self, weights: Array, potential: Array) -> Array:
        return grid.softmin(self.dense, self.C, self._logits(weights, potential), self.eps)

    def _logits(self, weights: Array, potential: Array) -> Array:
        return logits(self.xp, weights, potential, self.eps, self.dtype)


def _put(targets: Iterable[Array], chosen: Array, results: Iterable[Array], kept: Array) -> None:
    """Assign ``target[chosen[kept]] = result[kept]`` for each of them."""
    if len(kept):
        for target, result in zip(targets, results, strict=True):
            target[chosen[kept]] = result[kept].astype(target.dtype)
