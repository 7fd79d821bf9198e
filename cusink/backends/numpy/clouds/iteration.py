"""Sinkhorn iterations of problems between clouds in NumPy: which form runs which problem, see docs/point-clouds.md."""

import contextlib

import numpy as np

from cusink.backends.numpy import iteration as dense
from cusink.backends.numpy.clouds import reductions
from cusink.backends.numpy.clouds.absorbed import AbsorbedProblem
from cusink.backends.numpy.clouds.layout import SMALL, pairs_for
from cusink.backends.numpy.clouds.shared import CloudKernel
from cusink.backends.numpy.forms.log import LogDomain
from cusink.backends.numpy.forms.own import OwnKernel
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.workers import THREADED, threads


class Iteration(dense.Iteration):
    """Problems under way, see `cusink.backends.operators`."""

    def __init__(self, C, a, b, eps, f, g, method):
        self.alone = len(a) == 1
        super().__init__(C, a, b, eps, f, g, method)

    def _forms(self, C, dtype, eps, method):
        if method == "log":
            return [LogClouds(C, dtype, eps, reductions)]
        if C.shape[-2] * C.shape[-1] <= SMALL:
            return [Tiles(C, dtype, eps)] if C.ndim == 3 else super()._forms(C.block(np), dtype, eps, method)
        if C.ndim == 3 or self.alone:
            return [Absorbed(C, dtype, eps)]
        kernels = [CloudKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        return [*map(SharedKernel, kernels), *([Absorbed(C, dtype, eps)] if method == "auto" else [])]


class LogClouds(LogDomain):
    """Log-sum-exp over blocks of points."""

    def cost(self, index=slice(None)):
        """The shared cost, or the costs of the problems at `index`."""
        return self.C if self.problems is None else self.C.at(self.problems[index])


class Tiles(OwnKernel):
    """Many small problems with clouds of their own: costs as arrays for a tile of problems at a time."""

    def cost(self, index=slice(None)):
        """The costs of the problems at `index` as an array."""
        return self.C.block(np, self.problems[index])


class Absorbed:
    """Problems one after another, each with an `AbsorbedProblem`."""

    def __init__(self, C, dtype, eps):
        self.C, self.dtype, self.eps = C, np.dtype(dtype), eps
        self.problems = []

    def fits(self, a, b, f, g):
        """Which problems can start here: all."""
        return np.ones(len(a), bool)

    def append(self, a, b, f, g):
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        a, b = a.astype(self.dtype, copy=False), b.astype(self.dtype, copy=False)
        budget = self.C.memory_limit // max(1, len(a) + len(self.problems))
        self.problems += [
            AbsorbedProblem(pairs_for(self.C, k), a[k], b[k], f[k], g[k], self.eps, budget) for k in range(len(a))
        ]

    def advance(self, omega, count):
        """Take `count` iterations; return which problems left the range: none."""
        with self._pool() as pool:
            self.error = np.array(
                [problem.advance(float(w), count, pool) for problem, w in zip(self.problems, omega, strict=True)]
            )
        return np.zeros(len(omega), bool)

    def bound(self):
        """Bounds on the marginal errors after one more plain f-update; for omega = 1 they are the errors themselves."""
        return self.error

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        with self._pool() as pool:
            every = [self.problems[k].finish(pool) for k in index]
        return tuple(np.stack(x) for x in zip(*every, strict=True))

    def keep(self, index):
        """Drop all problems but those at `index`."""
        self.problems = [self.problems[k] for k in index]

    def _pool(self):
        n, m = self.C.shape[-2:]
        return threads() if n * m >= THREADED else contextlib.nullcontext()
