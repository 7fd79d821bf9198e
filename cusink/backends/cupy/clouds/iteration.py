"""Sinkhorn iterations and conditional means for costs between points, in CuPy."""

import math

import cupy as cp
import numpy as np

from cusink.backends.cupy import forms, means
from cusink.backends.cupy import iteration as dense
from cusink.backends.cupy.clouds.reductions import Sides, apply_plan, cost_block, costs_of_rows, folded, log_sums
from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.run import LOG2_E, device

MANY = 4  # problems from which on products with a kept kernel beat exponentials that are taken anew


class Iteration:
    """Problems under way, on a stored cost where that fits and is faster, else on the points."""

    def __init__(self, C, a, b, eps, f, g, method):
        sizes, shared = (len(a), *C.shape[-2:]), C.ndim == 2
        stored = 2 * math.prod(C.shape) * a.dtype.itemsize  # the cost and its kernel
        fused = configure("iterate", *sizes, a.dtype.name, device(), shared_cost=shared) is not None
        products = shared and len(a) >= MANY and method != "log"
        if stored <= C.memory_limit and (fused or products):
            self.problems = dense.Iteration(cost_block(C, slice(None), slice(None)), a, b, eps, f, g, method)
        else:
            self.problems = Streamed(folded(C), a, b, eps, f, g)

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return bounds (B,) on the marginal errors."""
        return self.problems.advance(omega, count)

    @property
    def watched(self):
        """As that of the stored cost, where there is one."""
        return self.problems.watched

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        return self.problems.finish(index)

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        self.problems.keep(index)


class Reductions(forms.LogDomain):
    """The log-domain form with reductions over points."""

    log_sums = staticmethod(log_sums)

    def __init__(self, C, cost_scale):
        super().__init__(C, cost_scale)
        # Without a launch of its own a reduction makes blocks of the cost on the way.
        self.replayed = all(Sides(C, axis).configure("softmin", 1)[0] is not None for axis in (0, 1))


class Streamed(dense.Iteration):
    """Problems in the log domain that never have a cost in memory."""

    log_sums = staticmethod(log_sums)

    def __init__(self, C, a, b, eps, f, g):
        self._start(C, a, b, eps, f, g, Reductions(C, LOG2_E / float(eps)), None)
        self.whole, self.places = C, np.arange(len(a))

    @staticmethod
    def costs_of_rows(C, p, q, cost_scale, index):
        """The costs of the rows of the problems in hand."""
        return costs_of_rows(C, p, q, cost_scale)

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        if self.C.ndim == 2:
            return super().finish(index)
        ours, form = self.C, self.form
        self.C = self.whole.at(cp.asarray(self.places[index]))
        self.form = Reductions(self.C, self.cost_scale)
        try:
            return super().finish(index)
        finally:
            self.C, self.form = ours, form

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        super().keep(index)
        if self.C.ndim == 3:
            self.places = self.places[index]
            self.C = self.whole.at(cp.asarray(self.places))
            self.form = Reductions(self.C, self.cost_scale)


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `cusink.backends.operators`: all problems at once."""
    yield np.arange(len(a)), Means.of(folded(C), a, b, f, g, eps)


class Means(means.Means):
    """Means of which each is a pass over the points."""

    apply_plan = staticmethod(apply_plan)

    def _costs(self, index):
        return self.C.at(cp.asarray(index))

    def _cost(self, problems, rows):
        return cost_block(self.C, problems, rows)
