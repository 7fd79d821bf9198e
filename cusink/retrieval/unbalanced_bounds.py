"""Lower bounds on values of many pairs whose marginals may differ from the weights: see docs/retrieval.md.

Potentials f of a row, with the best potentials g for them, give a number below the `reg_cost` of the row with *any* b
that is linear in b, as in balanced transport.
"""

import math
from typing import NamedTuple

import numpy as np

from cusink.retrieval.batches import PairBatches
from cusink.retrieval.bounds import MOST_SLACK, TIGHTENING_ITERATIONS, RowBounds
from cusink.retrieval.pairs import PairsOnBins
from cusink.solver.prices import price
from cusink.solver.unbalanced import damped, translation
from cusink.types import Array, HostArray, Reach


class Margins(NamedTuple):
    """By how much a reported value may be below a bound: in all, and for each unit of the potentials of the bound.

    `rounding` is the relative error of sums, and `mass` the largest of the columns.
    """

    slack: float
    by_potential: float
    rounding: float
    mass: float


def margins(pairs: PairsOnBins, tol: float, smallest: float) -> Margins:
    """Return what bounds allow for; `smallest` is the smallest positive weight of the columns."""
    assert pairs.reach is not None and pairs.masses is not None
    (low, high), eps, (rho_a, rho_b) = pairs.span, pairs.eps, pairs.reach
    logs = [np.log(mass) for mass in pairs.masses]
    (least_a, most_a), (least_b, most_b) = ((float(x.min()), float(x.max())) for x in logs)
    span, ratio = high - low, max(most_a - least_b, most_b - least_a, 0.0)
    size = max(abs(low), abs(high)) + 4 * span + min(rho_a, rho_b) * ratio
    size += 2 * eps * sum(max(abs(least), abs(most)) for least, most in ((least_a, most_a), (least_b, most_b)))
    if rho_a == math.inf or rho_b == math.inf:
        log_mass = most_a if rho_a == math.inf else most_b
    else:
        prices = eps + rho_a + rho_b
        log_mass = (eps * (most_a + most_b) + rho_a * most_a + rho_b * most_b - low + tol * size) / prices
    carried = math.exp(min(log_mass, 600.0))
    unit, bins = float(np.finfo(pairs.C.dtype).eps) / 2, sum(pairs.C.shape)
    rounding = unit * ((bins + 32) * (size + eps) + 4 * span * span / eps)
    of_bins = eps * (1 + max(log_mass - math.log(smallest), 0.0) + size / rho_b)
    heaviest = max(carried, math.exp(most_a), math.exp(most_b))
    slack = carried * tol * (size + of_bins) + heaviest * rounding
    return Margins(min(slack, MOST_SLACK), carried * tol, unit * (bins + 32), math.exp(most_b))


class UnbalancedBounds(RowBounds):
    """`RowBounds` on the `reg_cost` of pairs with `reach`."""

    potentials: Array = None  # (rows, K, bins), from which the cuts were made

    def __init__(
        self, pairs: PairsOnBins, batches: PairBatches, rows: HostArray, centres: Array, allowed: Margins
    ) -> None:
        assert pairs.reach is not None
        self.reach: Reach = pairs.reach
        self.allowed = allowed
        super().__init__(pairs, batches, rows, centres, sharp=False)

    def _iterated(self, a: Array, b: Array, f: Array, count: int) -> Array:
        """Return the potentials f (K, bins) of pairs after some more iterations."""
        xp, eps, (rho_a, rho_b) = self.xp, self.eps, self.reach
        still = xp.zeros((1, 1))
        with np.errstate(divide="ignore"):
            log_a, log_b = xp.log(a), xp.log(b)
        for _ in range(count):
            g = damped(self.softmin(log_a + f / eps, 0), still, eps, rho_b)
            t = translation(xp, a, b, f, g, self.reach)[:, None].astype(g.dtype)
            f = damped(self.softmin(log_b + (g - t) / eps, 1), still, eps, rho_a)
        return f

    def _cut(self, a: Array, f: Array) -> tuple[Array, Array]:
        """Return cuts: constants (K,), and slopes (K, columns) by the weights b."""
        xp, eps, (rho_a, rho_b) = self.xp, self.eps, self.reach
        with np.errstate(divide="ignore"):
            log_a = xp.log(a)
        g = damped(self.softmin(log_a + f / eps, 0), xp.zeros((1, 1)), eps, rho_b)
        wide, f = g.astype(np.float64), f.astype(np.float64)
        mass = a.sum(axis=1, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            gain = wide if rho_b == math.inf else -(rho_b + eps) * xp.expm1(-wide / rho_b)
            slopes = gain + (eps * (mass - 1))[:, None]
            constant = price(xp, a.astype(np.float64), f, rho_a)
            steep = xp.abs(slopes).max(axis=1) * self.allowed.mass + xp.abs(constant)
            constant -= self.allowed.by_potential * xp.abs(wide).max(axis=1) + self.allowed.rounding * steep
            narrow = slopes.astype(g.dtype)
        useless = ~(xp.isfinite(constant) & xp.isfinite(narrow).all(axis=1))
        return xp.where(useless, -np.inf, constant), xp.where(useless[:, None], 0, narrow).astype(g.dtype)

    def _tighten(self, rows: HostArray, columns: HostArray) -> None:
        xp = self.xp
        b = xp.ascontiguousarray(self.pairs.B[xp.asarray(columns)][:, self.batches.columns])
        a, f = self.a[xp.asarray(rows)], self._best(self.slopes, self.constant, rows, b, self.potentials)
        constant, slopes = self._cut(a, self._iterated(a, b, f, TIGHTENING_ITERATIONS))
        bounds = self.C.to_host((b * slopes.astype(np.float64)).sum(axis=1) + constant)
        self.lower[rows, columns] = np.fmax(self.lower[rows, columns], bounds)

    def _add(self, f: Array) -> None:
        self.potentials = f if self.potentials is None else self.xp.concatenate([self.potentials, f], axis=1)
        super()._add(f)
