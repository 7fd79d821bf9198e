"""Sinkhorn iterations of many problems on a GPU: in one launch, as matrix products, or as log-sum-exp reductions.

All forms keep the same state (`cusink.backends.cupy.state`), so that problems start, finish and leave in one way:

`FusedForm`    small problems: all iterations in one launch of ``iterate.cu``, the kernel or the cost in shared memory;
`MatmulForm`   larger problems that share a cost: a matrix product and one elementwise CUDA kernel per half-step, which
               recomputes the entries that fail the range check as log-sum-exp;
`SplitForm`    the same on tensor cores, with the update in the launch of the product, where a device has fast ones;
`LogForm`      the rest: a cost per problem has to be read in every half-step, which takes longer than its exponentials.
"""

import math

import cupy as cp
import numpy as np

from cusink.backends.cupy.forms import Form, FusedForm, LogForm, MatmulForm, StoredForm
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import LOG2_E, find_launch
from cusink.backends.cupy.split_form import SplitForm
from cusink.backends.cupy.state import State
from cusink.backends.cupy.stopping import StopRules, from_table, to_table
from cusink.convergence.rules import StopState
from cusink.types import Array, HostArray, Method


class Iteration:
    """Problems under way with a stored cost, see `cusink.costs.operators`."""

    def __init__(
        self,
        C: Array,
        a: Array,
        b: Array,
        eps: float,
        f: Array,
        g: Array,
        method: Method,
        memory: float = math.inf,
    ) -> None:
        C = cp.ascontiguousarray(C)
        (B, n), m = a.shape, b.shape[1]
        form = choose_form(C, B, n, m, LOG2_E / float(eps), method, memory)
        self._start(form, a, b, eps, f, g, None if C.ndim == 2 else cp.arange(B, dtype=np.int64))

    def _start(
        self, form: Form, a: Array, b: Array, eps: float, f: Array, g: Array, index: Array | None = None
    ) -> None:
        """Put the problems under way in a form; `index` (B,) says which of several costs each one has."""
        self.form, self.eps, self.cost_scale = form, float(eps), LOG2_E / float(eps)
        self.state = State.start(a, b, f, g, self.cost_scale, form.offsets(len(a), index), index)
        self.stops_itself = isinstance(form, FusedForm)

    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations of every problem; return bounds (B,) on the marginal errors."""
        deviation = self.form.run(self.state, self._device(omega), count)
        # Not earlier: before the first iteration v has any size, and balancing u against it would take u out of range.
        self.state.balance()
        return deviation / self.state.mass

    def measure(self, index: HostArray, keep: bool = False) -> None:
        """Return None: all is computed by `finish`."""

    def advance_until_converged(
        self, state: StopState, tol: float, count: int, checks: int
    ) -> tuple[StopState, HostArray, HostArray, HostArray]:
        """Take `count` iterations, check, and choose omega, up to `checks` times in one launch.

        Returns the state after the last check, and for each problem the bound on its marginal error, the iterations
        taken, and whether it stopped (B,).
        """
        assert isinstance(self.form, FusedForm)
        rules, earlier_checks, table = StopRules.of(state, tol), state.relaxation.checks, to_table(state)
        taken = self.form.run_until_converged(self.state, table, rules, earlier_checks, count, checks)
        state, bound, stopped = from_table(table, state, checks)
        return state, bound, cp.asnumpy(taken), stopped

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        chosen = cp.asarray(index)
        state, form = self.state.select(chosen), self.form.select(chosen)
        error = form.run(state, cp.ones(len(index), state.a.dtype), 0) / state.mass
        p, q = state.natural_logits()
        scales = Scales.softmin(self.eps)
        plain_f = form.log_sums(q, scales, 1, state.index)
        plain_g = form.log_sums(p, scales, 0, state.index)
        f, g = state.potentials(plain_f, plain_g, self.cost_scale)
        return f, g, form.row_costs(p, q, state.index).sum(axis=1), error

    def omitted(self, index: HostArray) -> HostArray:
        """Return zeros, see `cusink.costs.operators.Iteration`: all pairs are looked at."""
        return np.zeros((len(index), 3))

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`, which are then numbered in its order."""
        chosen = cp.asarray(index)
        self.state, self.form = self.state.select(chosen), self.form.select(chosen)

    def _device(self, omega: HostArray) -> Array:
        return cp.ascontiguousarray(cp.asarray(omega), dtype=self.state.a.dtype)


def choose_form(C: Array, B: int, n: int, m: int, cost_scale: float, method: Method, memory: float) -> StoredForm:
    """Return the form that fits the sizes, the method and the bytes of `memory` for cost and kernel."""
    if find_launch("iterate", B, n, m, C.dtype, shared_cost=C.ndim == 2, log=method == "log") is not None:
        return FusedForm(C, B, cost_scale, method)
    if C.ndim == 2 and method != "log":
        return (SplitForm if SplitForm.pays(C, B, method, memory) else MatmulForm)(C, cost_scale, method)
    return LogForm(C, cost_scale)
