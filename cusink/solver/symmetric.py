"""Transport of measures to themselves, whose two potentials are one: the terms that a divergence subtracts."""

import math
from typing import Any, NamedTuple

import numpy as np

from cusink.convergence.marginals import marginal_error as balanced_error
from cusink.convergence.options import Options
from cusink.convergence.rules import STEPS, StallDetector
from cusink.costs.cost import Cost
from cusink.solver.near import near_softmin
from cusink.solver.prices import price
from cusink.solver.solution import Stage
from cusink.solver.unbalanced import damped, marginal_error
from cusink.types import Array, ArrayModule, HostArray


class SelfSolution(NamedTuple):
    """Solutions of problems whose two sides are one.

    f : (B, n), the potential ``f = kappa softmin(f)`` with ``kappa = rho / (rho + eps)``, of empty bins too.
    reg_cost : (B,), in float64, as accurate as the square of `error`.
    error, n_iter, converged : (B,) in NumPy; `error` is that of an iterate worse than f.
    omitted, stages : as those of `cusink.solver.solution.Solution`, of one problem that began from a start.
    """

    f: Array
    reg_cost: Array
    error: HostArray
    n_iter: HostArray
    converged: HostArray
    omitted: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stages: tuple[Stage, ...] = ()

    @property
    def g(self) -> Array:
        """The other potential, which is f."""
        return self.f


def self_potentials(
    C: Cost[Any], a: Array, eps: float, options: Options, rho: float = math.inf, start: Array | None = None
) -> SelfSolution:
    """Solve ``OT_eps(a, a)`` of checked weights a (B, n) at a symmetric cost.

    Of the options, `max_iter` counts iterations with one softmin each, and `tol` is the marginal error at which a
    problem stops, or None. `rho` is the price of both marginals. From a `start` (1, n) in float64, near the potential
    of one balanced problem, pairs of large clouds are left out that do not count; the potential is then in float64,
    and where there is no weight, that of the start.
    """
    xp, tol, max_iter = C.xp, options.tol, options.max_iter
    near = None if start is None else near_softmin(C, a, a, eps, many=True)
    softmin = C.repeated_softmin(eps)
    with np.errstate(divide="ignore"):
        log_a = xp.log(a)
    first = xp.zeros_like(a) if start is None else start
    out, reg_cost = xp.empty_like(first), xp.empty(len(a), np.float64)
    error, n_iter = np.full(len(a), np.inf), np.zeros(len(a), np.int64)
    stall = StallDetector.start(len(a), a.dtype, C.largest() / eps)
    active, f, still = np.arange(len(a)), first, xp.zeros((1, 1))
    for done in range(1, max_iter + 1):
        image = softmin(log_a + f / eps, 1) if near is None else near(f, f)
        if rho == math.inf:
            reached = C.to_host(balanced_error(xp, a, f, image, eps)) + (0.0 if near is None else near.lost)
        else:
            reached = C.to_host(marginal_error(xp, a, f, image, still, eps, rho))
        image = damped(image, still, eps, rho)
        difference = xp.where(a > 0, image - f, 0)
        over = np.full(len(active), done == max_iter)
        if tol is not None:
            stall = stall.observe(reached)
            over |= (reached <= tol) | stall.stalled
        if over.any():
            index = np.flatnonzero(over)
            at = active[index]
            out[at] = xp.where(a > 0, f + difference / 2, image)[index]
            error[at], n_iter[at] = reached[index], done
            reg_cost[at] = _self_value(xp, a[index], f[index], image[index], eps, rho)
            if over.all():
                break
            index = np.flatnonzero(~over)
            active, a, log_a, f, difference = active[index], a[index], log_a[index], f[index], difference[index]
            stall = stall.select(index)
            if not C.shared:
                C = C.at(index)
                softmin = C.repeated_softmin(eps)
        # A start from coarse levels is off by a constant for the most part, of which half a step leaves nothing.
        step = 0.5 if start is not None and done == 1 else STEPS[done % len(STEPS)]
        f = f + f.dtype.type(step) * difference
    converged = error <= (math.inf if tol is None else tol)
    return SelfSolution(out, reg_cost, error, n_iter, converged, *(() if near is None else (near.omitted(),)))


def of_free_masses(a: Array, reg_cost: Array, eps: float | Array) -> Array:
    """Return values (B,) of balanced problems as those of unbalanced ones whose two marginals are to be met.

    ``KL(P | a a')`` has the product of the masses in it there, see docs/unbalanced.md.
    """
    mass = a.sum(axis=1, dtype=np.float64)
    return reg_cost + eps * (mass**2 - mass)


def _self_value(xp: ArrayModule, a: Array, f: Array, g: Array, eps: float, rho: float) -> Array:
    """Return the dual value (B,) of a measure with itself, of potentials f and g of which g is the best for f."""
    a, f, g = (x.astype(np.float64) for x in (a, *(xp.where(a > 0, x, 0) for x in (f, g))))
    out = price(xp, a, f, rho) + price(xp, a, g, rho)
    if rho == math.inf:
        return out
    return out + eps * (a.sum(axis=1) ** 2 - (a * xp.exp(-g / rho)).sum(axis=1))
