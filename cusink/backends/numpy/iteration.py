"""Sinkhorn iterations of many problems in NumPy: each problem in the fastest form that is certified for it.

`SharedKernel` serves all problems with one matrix product per half-step. A problem that leaves its range goes back to
where it stood and on to `OwnKernel`, which holds a kernel for each problem and falls back to log-sum-exp where that
fails too. `LogDomain` is log-sum-exp throughout.
"""

import numpy as np

from cusink.backends.numpy.forms.kernel import DenseKernel
from cusink.backends.numpy.forms.log import LogDomain
from cusink.backends.numpy.forms.own import OwnKernel
from cusink.backends.numpy.forms.shared import SharedKernel

RETREAT = 25  # iterations that a problem repeats at most when it leaves the range of a form


class Iteration:
    """Problems under way, see `operators`: the fastest form first, each followed by one that reaches further."""

    def __init__(self, C, a, b, eps, f, g, method):
        self.dtype = a.dtype
        self.forms = self._forms(C, a.dtype, eps, method)
        self.rows, left = [], np.arange(len(a))
        for form in self.forms:
            fits = form.fits(a[left], b[left], f[left], g[left]) if self.rows else form.fits(a, b, f, g)
            rows, left = left[fits], left[~fits]
            form.append(*((a, b, f, g) if len(rows) == len(a) else (x[rows] for x in (a, b, f, g))))
            self.rows.append(rows)
        self.stuck = np.zeros(len(a), bool)  # out of the range of the last form; stays where it is
        if len(left):
            self.stuck[left] = True
            self.forms[-1].append(a[left], b[left], f[left], g[left])
            self.rows[-1] = np.concatenate([self.rows[-1], left])

    def _forms(self, C, dtype, eps, method):
        """The forms that a problem may go through, in this order."""
        if method == "log":
            return [LogDomain(C, dtype, eps)]
        if C.ndim == 3:
            return [OwnKernel(C, dtype, eps)]
        # What leaves the range of float32 is mostly well within that of float64, at half the speed of one product.
        kernels = [DenseKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        return [*map(SharedKernel, kernels), *([OwnKernel(C, np.float64, eps)] if method == "auto" else [])]

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return bounds (B,) on their errors, inf for one out of range."""
        for start in range(0, count, RETREAT):
            self._advance(omega, min(RETREAT, count - start))
        error = np.full(len(omega), np.inf)
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows):
                error[rows] = form.bound()
        error[self.stuck] = np.inf
        return error

    def _advance(self, omega, count):
        """As `advance`, for so few iterations that a problem that leaves the range of a form may well repeat them."""
        for k, form in enumerate(self.forms):
            rows = self.rows[k]
            if len(rows):
                outside = form.advance(omega[rows], count)
                if outside.any():
                    if k + 1 < len(self.forms):
                        self.forms[k + 1].append(*form.state(outside))
                        self.rows[k + 1] = np.concatenate([self.rows[k + 1], rows[outside]])
                        form.keep(np.flatnonzero(~outside))
                        self.rows[k] = rows[~outside]
                    else:
                        self.stuck[rows[outside]] = True

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows) == len(self.stuck):  # as most often
                f, g, cost, error = form.finish(np.argsort(rows)[index])
                return *(x.astype(self.dtype, order="C", copy=False) for x in (f, g, cost)), error
        n, m = self.forms[0].C.shape[-2:]
        f, g = np.empty((len(index), n), self.dtype), np.empty((len(index), m), self.dtype)
        cost, error = np.empty(len(index), self.dtype), np.empty(len(index))
        for form, (place, local) in zip(self.forms, self._places(index), strict=True):
            if len(place):
                f[place], g[place], cost[place], error[place] = form.finish(local)
        return f, g, cost, error

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        for k, (place, local) in enumerate(self._places(index)):
            self.forms[k].keep(local)
            self.rows[k] = place
        self.stuck = self.stuck[index]

    def _places(self, index):
        """For each form: which entries of `index` it holds, and the rows it holds them at."""
        total = sum(map(len, self.rows))
        places = []
        for rows in self.rows:
            local = np.full(total, -1)
            local[rows] = np.arange(len(rows))
            local = local[index]
            places.append((np.flatnonzero(local >= 0), local[local >= 0]))
        return places
