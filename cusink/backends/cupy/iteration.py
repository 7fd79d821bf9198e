"""Sinkhorn iterations of many problems on a GPU: in one launch, as matrix products, or as log-sum-exp reductions.

All three keep the same state (see ``kernels/scaling.cuh``), so that problems start, finish and leave in one way:

`Fused`    small problems: all iterations in one launch of ``iterate.cu``, the kernel or the cost in shared memory;
`Products` larger problems that share a cost: a matrix product and one elementwise kernel per half-step, which
           recomputes the entries that fail the range check as log-sum-exp;
`LogDomain` the rest: with a cost per problem its bytes, which have to be read anyway, hide the exponentials.
"""

import dataclasses

import cupy as cp
import numpy as np

from cusink.backends.cupy.forms import Fused, choose_form
from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.reductions import costs_of_rows, log_sums
from cusink.backends.cupy.run import LOG2_E, device, run
from cusink.backends.relaxation import FIRST, LARGEST, STALLED


@dataclasses.dataclass
class State:
    """Problems as scalings and base-2 logits of both sides; `level` is the gauge, `offset` what the rows lack.

    `mass` is kept, so that a check does not have to sum the weights again.
    """

    a: cp.ndarray
    b: cp.ndarray
    u: cp.ndarray
    p: cp.ndarray
    v: cp.ndarray
    q: cp.ndarray
    level: cp.ndarray
    offset: cp.ndarray
    mass: cp.ndarray
    index: cp.ndarray | None  # which of the costs each problem has; None for a shared cost

    def take(self, chosen):
        """The problems at `chosen`, copied."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return State(
            **{name: None if part is None else cp.ascontiguousarray(part[chosen]) for name, part in parts.items()}
        )

    @property
    def sizes(self):
        """``(B, n, m)``."""
        return (*self.a.shape, self.b.shape[1])


class Iteration:
    """Problems under way, see `cusink.backends.operators`."""

    log_sums, costs_of_rows = staticmethod(log_sums), staticmethod(costs_of_rows)

    def __init__(self, C, a, b, eps, f, g, method):
        C = cp.ascontiguousarray(C)
        (B, n), m, cost_scale = a.shape, b.shape[1], LOG2_E / float(eps)
        index = None if C.ndim == 2 else cp.arange(B, dtype=np.int64)
        self._start(C, a, b, eps, f, g, choose_form(C, B, n, m, cost_scale, method, a.dtype), index)

    def _start(self, C, a, b, eps, f, g, form, index):
        """Take up the problems in a form; `index` says which of the costs each has, None for a shared one."""
        self.C, self.form, self.eps, self.cost_scale = C, form, float(eps), LOG2_E / float(eps)
        a, b, f, g = map(cp.ascontiguousarray, (a, b, f, g))
        (B, n), m, self.dtype = a.shape, b.shape[1], a.dtype
        # The kernels know no subnormals: such a weight is an empty bin in the logits, and so it must be in the sums.
        a, b = (cp.where(weights < np.finfo(self.dtype).tiny, self.dtype.type(0), weights) for weights in (a, b))
        offset = self.form.offsets(B, index)
        u, p, v, q = (cp.empty_like(x) for x in (a, a, b, b))
        level, mass = cp.empty(B, np.float64), b.sum(axis=1, dtype=np.float64)
        self.state = State(a, b, u, p, v, q, level, offset, mass, index)
        launch = configure("start_scalings", B, n, m, self.dtype.name, device())
        start = (u, p, v, q, level, a, b, f, g, offset, np.float64(self.cost_scale))
        run(launch, self.dtype, *start, *map(np.int64, (B, n, m)))

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return bounds (B,) on the marginal errors."""
        state = self.state
        omega = cp.ascontiguousarray(cp.asarray(omega), dtype=self.dtype)
        deviation = self.form.run(state, omega, count)
        # Only now: before the first iteration v is any start, and balancing u against it would take u out of range.
        balance = configure("balance_scalings", *state.sizes, self.dtype.name, device())
        parts = (state.u, state.p, state.v, state.q, state.level)
        run(balance, self.dtype, *parts, *map(np.int64, state.sizes))
        return deviation / state.mass

    @property
    def watched(self):
        """`advance_watched`, or None where a launch is not all iterations of a problem."""
        return self.advance_watched if isinstance(self.form, Fused) else None

    def advance_watched(self, relaxation, rounding, tol, count, checks):
        """As `checks` calls of `advance`, each followed by the stopping test and a new omega, in one launch.

        Returns the bounds, the iterations taken and who may stop (B,), in NumPy, and brings `relaxation` and `rounding`
        up to date.
        """
        state = self.state
        columns = (relaxation.omega, relaxation.error, rounding.best, rounding.checks, np.zeros(len(state.a)))
        table = cp.asarray(np.stack(columns, axis=1))
        first = 0.0 if relaxation.steep else FIRST
        numbers = map(np.float64, (tol, rounding.level, first, LARGEST))
        counts = map(np.int32, (relaxation.adaptive, relaxation.checks, STALLED))
        deviation, taken = self.form.run_watched(state, table, (*numbers, *counts), count, checks)
        table, taken = cp.asnumpy(table), cp.asnumpy(taken)
        relaxation.omega, relaxation.error, rounding.best = (table[:, k].copy() for k in range(3))
        rounding.checks = table[:, 3].astype(np.int64)
        relaxation.checks += checks
        return relaxation.error, taken, table[:, 4] != 0

    def finish(self, index):
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        state = self.state.take(cp.asarray(index))
        B, n, m = state.sizes
        omega = cp.ones(B, self.dtype)
        error = self.form.run(state, omega, 0) / state.mass
        rows, columns = state.offset + state.level, -state.level
        p, q = self._logits(state.p, rows), self._logits(state.q, columns)
        # A zero weight has no scaling: its potential is the softmin of the others.
        scales = (self.cost_scale, LOG2_E, -self.eps / LOG2_E)
        plain_f = self.log_sums(self.C, q, *scales, 1, state.index)
        plain_g = self.log_sums(self.C, p, *scales, 0, state.index)
        f = self._potentials(state.u, state.p, state.a, plain_f, rows)
        g = self._potentials(state.v, state.q, state.b, plain_g, columns)
        cost = self.costs_of_rows(self.C, p, q, self.cost_scale, state.index).sum(axis=1)
        return f, g, cost, error

    def keep(self, index):
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        self.state = self.state.take(cp.asarray(index))

    def _logits(self, logit, constant):
        out = cp.empty_like(logit)
        launch = configure("read_logits", *logit.shape, 1, self.dtype.name, device())
        run(launch, self.dtype, out, logit, constant, *map(np.int64, logit.shape))
        return out

    def _potentials(self, scaling, logit, weights, plain, constant):
        out = cp.empty_like(logit)
        launch = configure("read_potentials", *logit.shape, 1, self.dtype.name, device())
        inputs = (scaling, logit, weights, plain, constant, np.float64(self.cost_scale))
        run(launch, self.dtype, out, *inputs, *map(np.int64, logit.shape))
        return out
