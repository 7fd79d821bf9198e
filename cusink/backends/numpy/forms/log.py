"""Sinkhorn iterations in the log domain: one exp per problem, i and j in every half-step, right for any range."""

import numpy as np

from cusink.backends.numpy import reductions as dense


class LogDomain:
    """Problems as potentials in float64; the reductions run in the dtype of the weights.

    `reductions` has the operators `softmin` and `transport_cost` for this kind of cost.
    """

    def __init__(self, C, dtype, eps, reductions=dense):
        self.C, self.eps, self.dtype, self.reductions = C, eps, np.dtype(dtype), reductions
        self.problems = np.arange(0) if C.ndim == 3 else None  # which of the costs are still in use
        n, m = C.shape[-2:]
        self.a, self.b = np.empty((0, n), dtype), np.empty((0, m), dtype)
        self.f, self.g = np.empty((0, n)), np.empty((0, m))

    def fits(self, a, b, f, g):
        """Which problems can start here: all."""
        return np.ones(len(a), bool)

    def append(self, a, b, f, g):
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        if self.problems is not None:
            self.problems = np.arange(len(a))
        for name, new in (("a", a), ("b", b), ("f", f), ("g", g)):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, new.astype(old.dtype)]))

    def advance(self, omega, count):
        """Take `count` iterations; return which problems left the range: none."""
        C, a, b, eps, softmin = self.cost(), self.a, self.b, self.eps, self.reductions.softmin
        excess = omega[:, None] - 1
        for _ in range(count):
            self.g = relax_log(self.g, softmin(C, logits(a, self.f, eps), eps, axis=0), excess, eps)
            plain = softmin(C, logits(b, self.g, eps), eps, axis=1)
            self.f = relax_log(self.f, plain, excess, eps)
        self.error = error_log(C, a, b, self.f, self.g, plain, eps, self.reductions)
        return np.zeros(len(a), bool)

    def bound(self):
        """Bounds on the marginal errors after one more plain f-update; for omega = 1 they are the errors themselves."""
        return self.error

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        C = self.cost(index)
        return finish_log(C, self.a[index], self.b[index], self.g[index], self.eps, self.reductions)

    def keep(self, index):
        """Drop all problems but those at `index`."""
        if self.problems is not None:
            self.problems = self.problems[index]
        self.a, self.b, self.f, self.g = self.a[index], self.b[index], self.f[index], self.g[index]

    def cost(self, index=slice(None)):
        """The shared cost, or the costs of the problems at `index`."""
        return self.C if self.problems is None else self.C[self.problems[index]]


def logits(weights, potential, eps):
    """``log weights + potential / eps`` in the dtype of the weights; -inf for a zero weight."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights, dtype=np.float64)
    return (log_weights + potential / eps).astype(weights.dtype)


def relax_log(old, plain, excess, eps):
    """`cusink.backends.numpy.certificate.relax` for potentials."""
    backward = np.exp(np.minimum((old - plain) / eps, 700.0))
    return plain + eps * np.log(excess + np.maximum(1 - excess * backward, 0))


def marginal_error(weights, before, after, eps):
    """``sum_j w_j |1 - exp((before_j - after_j) / eps)|`` relative to the mass: a marginal's error without the plan."""
    ratio = np.exp(np.minimum((before - after) / eps, 700.0))
    return (weights * np.abs(1 - ratio)).sum(axis=1) / weights.sum(axis=1, dtype=np.float64)


def error_log(C, a, b, f, g, plain, eps, reductions=dense):
    """Bound (B,) on the marginal error after one more plain f-update, `plain` being the target of the last one."""
    after = reductions.softmin(C, logits(a, f, eps), eps, axis=0)
    return marginal_error(b, g, after, eps) + marginal_error(a, f, plain, eps)


def finish_log(C, a, b, g, eps, reductions=dense):
    """``(f, g, cost, error)`` after a plain f-update from g (B, m); a zero weight gets its own softmin as potential."""
    q = logits(b, g, eps)
    f = reductions.softmin(C, q, eps, axis=1)
    p = logits(a, f, eps)
    after = reductions.softmin(C, p, eps, axis=0)
    error = marginal_error(b, g, after, eps)
    return f, np.where(b > 0, g, after).astype(b.dtype), reductions.transport_cost(C, p, q, eps), error
