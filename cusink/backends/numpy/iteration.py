"""Sinkhorn iterations of many problems in NumPy: each problem in the fastest form that is certified for it.

`SharedKernel` serves all problems with one matrix product per half-step. A problem that leaves its range goes back to
where it stood and on to `OwnKernel`, which holds a kernel for each problem and falls back to log-sum-exp where that
fails too. `LogForm` is log-sum-exp throughout.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cusink.backends.numpy.forms.form import Finished, Form
from cusink.backends.numpy.forms.kernel import DenseKernel
from cusink.backends.numpy.forms.log import LogForm
from cusink.backends.numpy.forms.own import OwnKernel
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.ranges import REPEATED_ITERATIONS
from cusink.costs.operators import HostChecked, Measured
from cusink.types import Array, HostArray, Method, Order
from cusink.workers import blas_has_threads

BEYOND = 1e30  # bound on an error that is out of range


class Iteration(HostChecked):
    """Problems under way, see `cusink.costs.operators`: the fastest form first, then forms that reach further."""

    def __init__(
        self, C: Array, a: HostArray, b: HostArray, eps: float, f: HostArray, g: HostArray, method: Method
    ) -> None:
        self.dtype = a.dtype
        self.forms = self._forms(C, a.dtype, eps, method)
        self.rows: list[HostArray] = []  # of each form: the numbers of its problems
        left = np.arange(len(a))
        for form in self.forms:
            if not len(left):
                self.rows.append(left)
                continue
            fits = form.can_start(a[left], b[left], f[left], g[left]) if self.rows else form.can_start(a, b, f, g)
            rows, left = left[fits], left[~fits]
            form.append(*((a, b, f, g) if len(rows) == len(a) else (x[rows] for x in (a, b, f, g))))
            self.rows.append(rows)
        self.stuck = np.zeros(len(a), bool)  # out of the range of the last form; stays where it is
        if len(left):
            self.stuck[left] = True
            self.forms[-1].append(a[left], b[left], f[left], g[left])
            self.rows[-1] = np.concatenate([self.rows[-1], left])

    def _forms(self, C: Any, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:
        """Return the forms that a problem may go through, in this order."""
        if method == "log":
            return [LogForm(C, dtype, eps)]
        if C.ndim == 3:
            return [OwnKernel(C, dtype, eps)]
        # A problem that leaves the range of float32 is mostly well within that of float64, at half the speed.
        kernels = [DenseKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        # The threads of OpenBLAS share out products of rows evenly, and hardly those of columns. On a single thread the
        # products take the same time, and a factor per problem is faster by columns.
        order: Order = "F" if blas_has_threads() else "C"
        shared = [SharedKernel(kernel, order) for kernel in kernels]
        return [*shared, *([OwnKernel(C, np.float64, eps)] if method == "auto" else [])]

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations of every problem; return bounds (B,) on their errors, inf for one out of range."""
        left = count
        while left > 0:
            some = min(left, max(REPEATED_ITERATIONS, self._unwatched()))
            self._advance(omega, some)
            left -= some
        error = np.full(len(omega), np.inf)
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows):
                error[rows] = form.bound()
        if not np.isfinite(error).all():  # a product overflowed that only the bound needs: the problem may go on
            error = np.nan_to_num(error, nan=BEYOND, posinf=BEYOND)
        error[self.stuck] = np.inf
        return error

    def _advance(self, omega: HostArray, count: int) -> None:
        """Take so few iterations that a problem that leaves the range of a form can repeat them in the next one."""
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

    def _unwatched(self) -> int:
        """Return how many plain iterations are known to leave all problems in the range of the form they are in."""
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows) == len(self.stuck) and isinstance(form, SharedKernel):
                return form.unwatched
        return 0

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows) == len(self.stuck):  # the usual case: one form has all problems
                f, g, cost, error = form.finish(np.argsort(rows)[index])
                return f, g, cost.astype(self.dtype, copy=False), error
        n, m = self.forms[0].C.shape[-2:]
        f, g = np.empty((len(index), n)), np.empty((len(index), m))
        cost, error = np.empty(len(index), self.dtype), np.empty(len(index))
        for form, (place, local) in zip(self.forms, self._places(index), strict=True):
            if len(place):
                f[place], g[place], cost[place], error[place] = form.finish(local)
        return f, g, cost, error

    def measure(self, index: HostArray, keep: bool = False) -> Measured | None:
        """Return cost and error as if by `finish`; None where they need the potentials."""
        for form, rows in zip(self.forms, self.rows, strict=True):
            if len(rows) == len(self.stuck) and isinstance(form, SharedKernel) and not self.stuck.any():
                measured = form.measure(np.argsort(rows)[index], keep)
                return measured and measured._replace(cost=measured.cost.astype(self.dtype, copy=False))
        return None

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        for k, (place, local) in enumerate(self._places(index)):
            self.forms[k].keep(local)
            self.rows[k] = place
        self.stuck = self.stuck[index]

    def _places(self, index: HostArray) -> list[tuple[HostArray, HostArray]]:
        """Return for each form which entries of `index` it has, and its own numbers of them."""
        total = sum(map(len, self.rows))
        places = []
        for rows in self.rows:
            local = np.full(total, -1)
            local[rows] = np.arange(len(rows))
            local = local[index]
            places.append((np.flatnonzero(local >= 0), local[local >= 0]))
        return places
