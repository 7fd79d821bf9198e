"""Sinkhorn iterations in the log domain: one exp per problem, i and j in every half-step, right for any range."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cusink.backends.numpy import reductions as dense
from cusink.backends.numpy.forms.form import Finished
from cusink.convergence.marginals import marginal_error
from cusink.convergence.rules import overrelaxed_log
from cusink.costs.logits import logits
from cusink.types import Array, Axis, HostArray


class LogReductions(NamedTuple):
    """The reductions of one kind of cost that an iteration in the log domain is made of."""

    softmin: Callable[[Array, HostArray, float, Axis], HostArray]  # of a cost, logits, eps and axis
    transport_cost: Callable[[Array, HostArray, HostArray, float], HostArray]  # of a cost, logits and eps


DENSE = LogReductions(dense.softmin, dense.transport_cost)


class LogForm:
    """Problems as potentials in float64, in which the reductions run too: an exponent has the digits of C / eps."""

    def __init__(self, C: Array, dtype: Any, eps: float, reductions: LogReductions = DENSE) -> None:
        self.C, self.eps, self.dtype, self.reductions = C, eps, np.dtype(dtype), reductions
        self.problems = np.arange(0) if C.ndim == 3 else None  # which of the costs are still in use
        n, m = C.shape[-2:]
        self.a: HostArray = np.empty((0, n), dtype)
        self.b: HostArray = np.empty((0, m), dtype)
        self.f: HostArray = np.empty((0, n))
        self.g: HostArray = np.empty((0, m))
        self.error: HostArray = np.empty(0)

    def can_start(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> HostArray:
        """Return which problems can start here: all."""
        del b, f, g
        return np.ones(len(a), bool)

    def append(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> None:
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        if self.problems is not None:
            self.problems = np.arange(len(a))
        for name, new in (("a", a), ("b", b), ("f", f), ("g", g)):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, new.astype(old.dtype)]))

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems left the range: none."""
        C, a, b, eps, softmin = self.cost(), self.a, self.b, self.eps, self.reductions.softmin
        excess = omega[:, None] - 1
        for _ in range(count):
            after = softmin(C, logits(np, a, self.f, eps, np.float64), eps, 0)
            self.g = overrelaxed_log(np, self.g, after, excess, eps)
            plain = softmin(C, logits(np, b, self.g, eps, np.float64), eps, 1)
            self.f = overrelaxed_log(np, self.f, plain, excess, eps)
        self.error = error_log(C, a, b, self.f, self.g, plain, eps, self.reductions)
        return np.zeros(len(a), bool)

    def bound(self) -> HostArray:
        """Return bounds on the marginal errors after one more plain f-update, for omega = 1 the errors."""
        return self.error

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        C = self.cost(index)
        return finish_log(C, self.a[index], self.b[index], self.g[index], self.eps, self.reductions)

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        if self.problems is not None:
            self.problems = self.problems[index]
        self.a, self.b, self.f, self.g = self.a[index], self.b[index], self.f[index], self.g[index]

    def state(self, chosen: HostArray) -> Finished:
        """Return ``(a, b, f, g)`` of the problems `chosen`."""
        return self.a[chosen], self.b[chosen], self.f[chosen], self.g[chosen]

    def cost(self, index: slice | HostArray = slice(None)) -> Array:
        """Return the shared cost, or the costs of the problems at `index`."""
        return self.C if self.problems is None else chosen_costs(self.C, self.problems[index])


def chosen_costs(C: Array, problems: HostArray) -> Array:
    """Return the costs of some problems: of those that follow each other without a copy."""
    if len(problems) and (np.diff(problems) == 1).all():
        return C[problems[0] : problems[-1] + 1]
    return C[problems]


def error_log(
    C: Array,
    a: HostArray,
    b: HostArray,
    f: HostArray,
    g: HostArray,
    plain: HostArray,
    eps: float,
    reductions: LogReductions = DENSE,
) -> HostArray:
    """Return bounds (B,) on the marginal errors after one more plain f-update.

    `plain` is the potential that the last plain f-update would have given.
    """
    after = reductions.softmin(C, logits(np, a, f, eps, np.float64), eps, 0)
    error: HostArray = marginal_error(np, b, g, after, eps) + marginal_error(np, a, f, plain, eps)
    return error


def finish_log(
    C: Array, a: HostArray, b: HostArray, g: HostArray, eps: float, reductions: LogReductions = DENSE
) -> Finished:
    """Return ``(f, g, cost, error)`` after a plain f-update from g (B, m).

    A zero weight gets its own softmin as potential.
    """
    q = logits(np, b, g, eps, np.float64)
    f = reductions.softmin(C, q, eps, 1)
    p = logits(np, a, f, eps, np.float64)
    after = reductions.softmin(C, p, eps, 0)
    error = marginal_error(np, b, g, after, eps)
    return f, np.where(b > 0, g, after), reductions.transport_cost(C, p, q, eps), error
