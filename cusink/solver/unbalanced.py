"""Unbalanced transport: marginals may differ from the weights, at a price. See docs/unbalanced.md.

`reach` is a pair of prices (rho_a, rho_b) in the unit of the cost, inf where a marginal is to be met. The optimum is

    f = kappa_a softmin(g)        g = kappa_b softmin(f)        kappa = rho / (rho + eps)

at which the marginals of the plan are ``a exp(-f / rho_a)`` and ``b exp(-g / rho_b)``.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.convergence.rules import NO_REACH
from cusink.costs.checks import stranded
from cusink.costs.cost import Cost
from cusink.costs.means import row_products
from cusink.costs.operators import Damped, DampedSteps, HostChecked
from cusink.deferred import cached_property
from cusink.types import Array, ArrayModule, Axis, HostArray, Method, Reach

MUCH_MORE = 40.0  # logarithm of a ratio x beside which x - 1 is x
LARGEST_EXPONENT = 350.0  # of a ratio: far off, but not out of range
MODERATE = 20.0  # size of exponents that leave any mass in range


class UnbalancedIteration(HostChecked):
    """Problems under way, see `cusink.costs.operators.Iteration`.

    The potentials are ``f + t`` and ``g - t``. After each g-update t takes the value that raises the dual objective
    most (Sejourne, Vialard and Peyre 2022): without it that direction converges like ``kappa_a kappa_b``, which for a
    large reach is hardly at all. The plan does not depend on t, which may be large: it is kept apart, in float64, and
    no digit of f and g is lost to it. Updates are over-relaxed such that they never lower the dual objective.

    `shift` (B,) receives the t of each problem that finishes.
    """

    def __init__(
        self,
        C: Cost[Any],
        a: Array,
        b: Array,
        eps: float,
        f: Array,
        g: Array,
        method: Method,
        *,
        reach: Reach,
        shift: Array,
    ) -> None:
        self.xp = xp = C.xp
        self.C, self.eps, self.reach, self.method = C, eps, reach, method
        self.shift, self.problems = shift, np.arange(len(a))
        # In NumPy as in the log domain of balanced problems: logits of 1e2 have few digits in float32. Elsewhere in the
        # dtype of the weights: potentials of another solve are in float64.
        dtype = np.float64 if xp is np else a.dtype
        a, b, f, g = (x.astype(dtype, copy=False) for x in (a, b, f, g))
        self.a, self.b = a, b
        with np.errstate(divide="ignore"):
            self.log_a, self.log_b = xp.log(a), xp.log(b)
        # Of bins with weight: an empty one may have a potential of 1e8, beside which f - t had no digits left.
        f, g = (self._of_weighted(xp.where(xp.isfinite(x), x, 0), w) for x, w in ((f, a), (g, b)))
        # By the lowest, where most mass is left: the mean may be that of bins far away, beside which no digits are.
        # Closer to 0 the potential whose price is lower: the marginal takes it over `reach`.
        of_f, of_g = (_lowest(xp, x, w) for x, w in ((f, a), (g, b)))
        t = (of_f / reach[0] - of_g / reach[1]) / (1 / reach[0] + 1 / reach[1])
        t = t[:, None].astype(a.dtype, copy=False)
        self.f, self.g = self._of_weighted(f - t, a), self._of_weighted(g + t, b)
        self.steps: DampedSteps = C.ops.damped_steps or ArraySteps(xp, bool(a.all() and b.all()))
        # Not the t of the start: by an update at one that is far too large, g would take its size, and lose digits.
        self.t = self.steps.translation(self.a, self.b, self.f, self.g, reach)[:, None].astype(np.float64)
        self.softmin = self._softmin_of(C)
        self.image_f, self.image_g = self.f, self.softmin(self.log_a + self.f / eps, 0)

    @cached_property
    def _wide(self) -> Cost[Any]:
        """The cost that all problems share, in float64."""
        return self.C.widened()

    def _softmin_of(self, C: Cost[Any]) -> Callable[[Array, Axis], Array]:
        if self.method == "log":
            return lambda logits, axis: C.softmin(logits, self.eps, axis)
        return C.repeated_softmin(self.eps)

    def _of_weighted(self, potential: Array, weights: Array) -> Array:
        """Return `potential` where there is weight, 0 elsewhere: a bin that nothing may reach has no finite one."""
        return self.xp.where(weights > 0, potential, potential.dtype.type(0))

    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations of every problem; return bounds (B,) on their errors."""
        xp, eps, (rho_a, rho_b) = self.xp, self.eps, self.reach
        excess = None if (omega == 1).all() else xp.asarray(omega - 1, self.a.dtype)[:, None]
        rows, columns = (self.a, self.log_a), (self.b, self.log_b)
        self.g, q = self.steps.update(self.g, self.image_g, self.t, -1, *columns, excess, eps, rho_b)
        self.t = self.steps.translation(self.a, self.b, self.f, self.g, self.reach)[:, None]
        start = Damped(self.f, self.g, self.t, q, self.image_f)
        done = self.steps.iterate(self.softmin, rows, columns, start, excess, eps, self.reach, count)
        self.f, self.g, self.t, p, self.image_f = done or self._iterate(start, excess, count)
        self.image_g = self.softmin(p, 0)
        error = marginal_error(xp, self.b, self.g, self.image_g, -self.t, eps, rho_b)
        if excess is not None:
            error += marginal_error(xp, self.a, self.f, self.image_f, self.t, eps, rho_a)
        return error

    def _iterate(self, start: Damped, excess: Array | None, count: int) -> Damped:
        """See `cusink.costs.operators.DampedSteps.iterate`."""
        eps, (rho_a, rho_b), (f, g, t, logits, image) = self.eps, self.reach, start
        for k in range(count):
            if k:
                image = self.softmin(logits, 0)
                g, logits = self.steps.update(g, image, t, -1, self.b, self.log_b, excess, eps, rho_b)
                t = self.steps.translation(self.a, self.b, f, g, self.reach)[:, None]
            image = self.softmin(logits, 1)
            f, logits = self.steps.update(f, image, t, 1, self.a, self.log_a, excess, eps, rho_a)
        return Damped(f, g, t, logits, image)

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update; fill in their shifts."""
        xp, eps, (rho_a, rho_b) = self.xp, self.eps, self.reach
        C, a, b, g, t = self.C.at(index), self.a[index], self.b[index], self.g[index], self.t[index]
        f = damped(self.image_f[index], t, eps, rho_a)
        p, q = self.log_a[index] + self._of_weighted(f, a) / eps, self.log_b[index] + g / eps
        image = (self.softmin if C.shared else self._softmin_of(C))(p, 0)
        error = marginal_error(xp, b, g, image, -t, eps, rho_b)
        self.shift[self.problems[index]] = t[:, 0]
        if C.dtype == np.float32:  # exponents carry roundings of all of them, each of which the cost would have
            wide = [x.astype(np.float64) for x in (a, self._of_weighted(f, a), b, g)]
            with np.errstate(divide="ignore"):
                p, q = xp.log(wide[0]) + wide[1] / eps, xp.log(wide[2]) + wide[3] / eps
            C = self._wide if self.C.shared else C.widened()
        cost = C.transport_cost(p, q, eps)
        return f, xp.where(b > 0, g, damped(image, -t, eps, rho_b)), cost, error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        for name in ("a", "b", "log_a", "log_b", "f", "g", "t", "image_f", "image_g", "problems"):
            setattr(self, name, getattr(self, name)[index])
        if not self.C.shared:
            self.C = self.C.at(index)
            self.softmin = self._softmin_of(self.C)


class ArraySteps:
    """`cusink.costs.operators.DampedSteps` by the operations of an array library.

    `all_filled` says that no bin of either side is without weight.
    """

    def __init__(self, xp: ArrayModule, all_filled: bool = False) -> None:
        self.xp, self.all_filled = xp, all_filled

    def update(
        self,
        potential: Array,
        image: Array,
        shift: Array,
        sign: int,
        weights: Array,
        log_weights: Array,
        excess: Array | None,
        eps: float,
        rho: float,
    ) -> tuple[Array, Array]:
        """Return the next potential (B, n) of a side, and its logits."""
        plain = damped(image, sign * shift, eps, rho)
        new = over_relaxed(self.xp, potential, plain, excess, eps, rho)
        if not self.all_filled:
            new = self.xp.where(weights > 0, new, new.dtype.type(0))
        logits = new / eps
        logits += log_weights
        return new, logits

    def translation(self, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> Array:
        """Return the shift t (B,) of the highest dual objective for ``f + t`` and ``g - t``."""
        return translation(self.xp, a, b, f, g, reach)

    def iterate(self, *_: Any) -> Damped | None:
        """Return None: the loop of the solver does as well."""
        return None


def partnered(C: Cost[Any], a: Array, b: Array) -> tuple[Array, Array]:
    """Return the weights without those of bins that `C` forbids all partners: these keep their mass."""
    alone = stranded(a, b, C.data, C.xp) if C.stored else None
    if alone is None:
        return a, b
    live_a, live_b = (C.xp.where(lone, 0, weights) for weights, lone in zip((a, b), alone, strict=True))
    return live_a, live_b


def damped(image: Array, shift: Array, eps: float | Array, rho: float) -> Array:
    """Return the update ``kappa (image + shift) - shift`` with ``kappa = rho / (rho + eps)``, of a softmin (B, n)."""
    kappa = 1 / (1 + eps / rho)
    return kappa * image - (shift * (kappa * eps / rho)).astype(image.dtype)


def over_relaxed(xp: ArrayModule, old: Array, plain: Array, excess: Array | None, eps: float, rho: float) -> Array:
    """Go from `old` to `plain` and `excess` (B, 1) = omega - 1 times as far beyond, to first order; None stands for 0.

    With ``d = plain - old`` it is ``plain + eps log(omega - (omega - 1) exp(-d / eps))`` upwards and
    ``plain - rho log(omega - (omega - 1) exp(d / rho))`` downwards. docs/unbalanced.md proves that this never lowers
    the dual objective.
    """
    if excess is None:
        return plain
    step = plain - old
    unit = xp.where(step > 0, old.dtype.type(-eps), old.dtype.type(min(rho, NO_REACH * eps)))
    step /= unit  # - |d| / eps or - |d| / rho
    xp.expm1(step, out=step)
    step *= -excess
    xp.log1p(step, out=step)
    step *= unit
    return xp.subtract(plain, step, out=step)


def translation(xp: ArrayModule, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> Array:
    """Return the t (B,) of the highest dual objective for ``f + t`` and ``g - t``: both marginals get one mass."""
    (sum_a, low_a), (sum_b, low_b) = (_mass(xp, *side) for side in ((a, f, reach[0]), (b, g, reach[1])))
    return (xp.log(sum_a) - xp.log(sum_b) - low_a + low_b) / (1 / reach[0] + 1 / reach[1])


def _lowest(xp: ArrayModule, potential: Array, weights: Array) -> Array:
    """Return the lowest potential (B,) of bins with weight; 0 where there is none."""
    lowest = xp.where(weights > 0, potential, xp.inf).min(axis=1)
    return xp.where(xp.isfinite(lowest), lowest, 0)


def _mass(xp: ArrayModule, weights: Array, potential: Array, rho: float) -> tuple[Array, Array]:
    """Return the mass ``sum_i a_i exp(-f_i / rho)`` as s and c (B,) of ``s exp(-c)``, which does not underflow."""
    scaled = potential.astype(np.float64, copy=False) / rho
    if xp is np and -MODERATE < scaled.min() and scaled.max() < MODERATE:  # as nearly always: nothing to take out
        return row_products(weights, np.exp(np.negative(scaled, out=scaled), out=scaled)), np.zeros(len(weights))
    low = xp.where(weights > 0, scaled, xp.inf).min(axis=1)
    scaled = xp.where(weights > 0, scaled - low[:, None], 0)
    return (weights * xp.exp(-scaled)).sum(axis=1), low


def marginal_error(
    xp: ArrayModule, weights: Array, potential: Array, image: Array, shift: Array, eps: float, rho: float
) -> Array:
    """Return the L1 distance (B,) of a marginal from ``a exp(-f / rho)``, relative to its mass.

    f is `potential` + `shift`, and `image` the softmin that `potential` is compared with.
    """
    potential, image = (xp.where(weights > 0, x, 0) for x in (potential, image))
    scaled = (potential / rho).astype(np.float64)
    excess = (potential - image).astype(np.float64) / eps + scaled + shift / rho
    fallen = xp.where(weights > 0, scaled - xp.where(weights > 0, scaled, xp.inf).min(axis=1, keepdims=True), 0)
    marginal = xp.exp(-fallen)
    # Where the plan has much more than the marginal, what it has: both factors may be far below the range of exp.
    large = excess > MUCH_MORE
    with np.errstate(divide="ignore"):
        logs = xp.log(weights.astype(np.float64)) + excess - fallen
    off = weights * marginal * xp.abs(xp.expm1(xp.where(large, 0, excess)))
    off = xp.where(large, xp.exp(xp.minimum(logs, LARGEST_EXPONENT)), off)
    with np.errstate(over="ignore"):
        error = off.sum(axis=1) / (weights * marginal).sum(axis=1)
    # `potential` is that of the marginal and the shift together, and has the digits of a number of this size.
    error += float(np.finfo(potential.dtype).eps) / rho * xp.abs(shift)[:, 0]
    return xp.minimum(error, math.exp(LARGEST_EXPONENT))
