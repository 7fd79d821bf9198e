"""The iterations of a barycenter, and of its debiased form."""

from typing import Any

import numpy as np

from cusink.convergence.rules import overrelaxed_step
from cusink.costs.cost import Cost
from cusink.types import Array, ArrayModule, Axis, HostArray


class BarycenterIteration:
    """Problems under way: logarithms u (B, K, n) and v (B, K, m) of the scalings of K plans each.

    The u-update makes the rows of the plans right. The v-update gives all K plans one column marginal p, the weighted
    geometric mean of those they have, times d if the barycenter is debiased. A column that a histogram which counts has
    no allowed pair with gets no mass: there p and v are -inf.
    """

    def __init__(self, C: Cost[Any], A: Array, weights: Array, eps: float, debiased: bool) -> None:
        self.xp, self.eps, self.forbids = C.xp, eps, C.stored and not bool(C.xp.isfinite(C.data).all())
        xp = self.xp
        self.reduce = C.repeated_softmin(eps)
        # In a unit near their mass, a power of two: float32 has no room for errors in the unit of a large mass.
        mass = A[:, 0].sum(axis=1, dtype=np.float64)
        self.unit = xp.ldexp(xp.ones_like(mass), xp.rint(xp.log2(mass)).astype(np.int32))
        self.A = A = (A / self.unit[:, None, None]).astype(A.dtype, copy=False)
        self.weights, self.mass = weights[:, :, None], mass / self.unit
        with np.errstate(divide="ignore"):
            self.log_A = xp.log(A)
        self.v = xp.zeros((*A.shape[:2], C.shape[1]), A.dtype)
        self.u = self.plain_u = self._rows()
        self.p = xp.zeros((len(A), C.shape[1]), A.dtype)
        self.debiasing = Debiasing(xp, len(A), C.shape[1], A.dtype) if debiased else None

    def _rows(self) -> Array:
        """Return the u that makes the rows right."""
        sums = self._log_sums(self.v, 1)
        # Only histograms of weight 0 have rows without a partner.
        return self.log_A + (self.xp.where(self.xp.isfinite(sums), sums, 0) if self.forbids else sums)

    def _log_sums(self, logits: Array, axis: Axis) -> Array:
        """Return minus the logarithm of the products of the kernel with scalings (B, K, .)."""
        flat = self.reduce(logits.reshape(-1, logits.shape[-1]), axis)
        flat /= self.eps
        return flat.reshape(*logits.shape[:-1], -1)

    # Infinities of both signs meet where pairs are forbidden. What has no digits may leave the range: a large error.
    @np.errstate(invalid="ignore", over="ignore")
    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations of every problem; return their errors (B,)."""
        xp = self.xp
        excess = None if (omega == 1).all() else xp.asarray(omega - 1, self.A.dtype)[:, None, None]
        for _ in range(count):
            self.u = over_relaxed(xp, self.u, self.plain_u, excess)
            sums = self._log_sums(self.u, 0)
            weighted = xp.where(self.weights > 0, self.weights * sums, 0) if self.forbids else self.weights * sums
            self.p = -weighted.sum(axis=1)
            if self.debiasing is not None:
                self.p += self.debiasing.d
            plain = self.p[:, None] + sums
            if self.forbids:
                plain = xp.where(xp.isfinite(plain), plain, -xp.inf)
            self.v = jointly_over_relaxed(xp, self.v, plain, excess, self.weights)
            if self.debiasing is not None:
                self.debiasing.advance(self.p, self._log_sums(self.debiasing.d, 1))
            self.plain_u = self._rows()
        return self._error(plain)

    def _error(self, plain_v: Array) -> Array:
        """Return the largest error (B,) of a row marginal, of a column marginal, and of what d is to solve."""
        xp = self.xp
        p = xp.exp(self.p)
        counted = self.weights[:, :, 0] > 0
        with np.errstate(invalid="ignore", over="ignore"):
            rows = xp.where(self.A > 0, self.A * xp.abs(xp.expm1(self.u - self.plain_u)), 0).sum(axis=2)
            columns = xp.where(p[:, None] > 0, p[:, None] * xp.abs(xp.expm1(self.v - plain_v)), 0).sum(axis=2)
            error = xp.where(counted, rows + columns, 0).max(axis=1)
            if self.debiasing is not None:
                off = xp.where(p > 0, p * xp.abs(xp.expm1(self.debiasing.excess)), 0)
                error = xp.maximum(error, off.sum(axis=1))
        most = float(np.finfo(error.dtype).max) ** 0.5
        error = xp.where(error <= most, error, most)  # NaN is one, too
        return error.astype(np.float64) / self.mass

    def logarithms(self, index: HostArray) -> Array:
        """Return logarithms (., m) of the barycenters at `index`, with the mass of their histograms."""
        xp, p = self.xp, self.p[index].astype(np.float64)
        highest = p.max(axis=1, keepdims=True)
        mass = self.unit[index] * (self.mass[index] / xp.exp(p - highest).sum(axis=1))
        return p - highest + xp.log(mass)[:, None]

    def scalings(self, index: HostArray) -> tuple[Array, Array | None]:
        """Return logarithms of the scalings of the columns, and of d if there is one, of the problems at `index`."""
        if self.debiasing is None:
            return self.v[index], None
        of_unit = (self.xp.log(self.unit[index]) / 2).astype(self.v.dtype)
        return self.v[index], self.debiasing.d[index] + of_unit[:, None]

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        for name in ("A", "log_A", "weights", "unit", "mass", "u", "v", "plain_u", "p"):
            setattr(self, name, getattr(self, name)[index])
        if self.debiasing is not None:
            self.debiasing.keep(index)


class Debiasing:
    """Logarithms d (B, m) of the scalings of ``OT(p, p)``, which solve ``d K d = p``, K the kernel.

    Janati's iteration averages d with ``p / (K d)``. Where the kernel blurs a lot, that undoes the blur ever more
    slowly, hence Nesterov's momentum, which begins anew for each problem whose residual has risen.
    """

    def __init__(self, xp: ArrayModule, problems: int, bins: int, dtype: Any) -> None:
        self.xp = xp
        self.d = self.averaged = xp.zeros((problems, bins), dtype)
        self.age, self.residual = xp.zeros(problems), xp.full(problems, xp.inf)
        self.excess = xp.zeros((problems, bins), dtype)  # log of d K d / p

    def advance(self, p: Array, image: Array) -> None:
        """Take a step, given log p and minus the logarithm of the sums ``K d``."""
        xp = self.xp
        self.excess = self.d - p - image
        residual = (xp.exp(p) * xp.abs(self.excess)).sum(axis=1)
        self.age = xp.where(residual > self.residual, 0, self.age) + 1
        momentum = ((self.age - 1) / (self.age + 2)).astype(p.dtype)[:, None]
        averaged = self.d - self.excess / 2
        self.d = averaged + momentum * (averaged - self.averaged)
        self.averaged, self.residual = averaged, residual

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        for name in ("d", "averaged", "age", "residual", "excess"):
            setattr(self, name, getattr(self, name)[index])


def over_relaxed(xp: ArrayModule, old: Array, plain: Array, excess: Array | None) -> Array:
    """Go from `old` to `plain` and beyond, see docs/method.md: it never lowers the dual objective."""
    if excess is None:
        return plain
    with np.errstate(invalid="ignore", divide="ignore"):
        step = xp.where(plain > -xp.inf, plain - old, 0)
        return plain + overrelaxed_step(xp, step, excess, 1)


def jointly_over_relaxed(xp: ArrayModule, old: Array, plain: Array, excess: Array | None, weights: Array) -> Array:
    """Go from `old` to `plain` and beyond, in those columns where that does not lower the dual objective.

    The update of column j minimises ``sum_k w_k exp(v_k - sums_k)`` with ``sum_k w_k v_k`` held fixed. Relative to its
    minimum that is ``sum_k w_k exp(-step_k)`` before, and ``sum_k w_k exp((omega - 1) step_k)`` beyond.
    """
    if excess is None:
        return plain
    with np.errstate(invalid="ignore"):
        step = xp.where(plain > -xp.inf, plain - old, 0)
    step -= (weights * step).sum(axis=1, keepdims=True)  # what d has changed in between is no step of the update
    with np.errstate(over="ignore", invalid="ignore"):  # of a histogram whose weight is 0
        before = (weights * xp.exp(-step)).sum(axis=1, keepdims=True)
        beyond = (weights * xp.exp(excess * step)).sum(axis=1, keepdims=True)
    return plain + xp.where(beyond <= before, excess, 0) * step
