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

from cusink._launch_cupy import configure
from cusink._overrelaxation import FIRST, LARGEST, STALLED
from cusink._reductions_cupy import LOG2_E, NO_INDEX, costs_of_rows, device, log_sums, run

SCALING, AUTO, LOG = 0, 1, 2  # as in scaling.cuh
METHODS = {"scaling": SCALING, "auto": AUTO, "log": LOG}
SHIFT = {np.dtype(np.float32): 44, np.dtype(np.float64): 476}  # Range::SHIFT in scaling.cuh


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
    """Problems under way, see `cusink._ops`."""

    log_sums, costs_of_rows = staticmethod(log_sums), staticmethod(costs_of_rows)

    def __init__(self, C, a, b, eps, f, g, method):
        C = cp.ascontiguousarray(C)
        (B, n), m, cost_scale = a.shape, b.shape[1], LOG2_E / float(eps)
        index = None if C.ndim == 2 else cp.arange(B, dtype=np.int64)
        self._start(C, a, b, eps, f, g, _form(C, B, n, m, cost_scale, method, a.dtype), index)

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


def _form(C, B, n, m, cost_scale, method, dtype):
    """The form that a problem's size and method ask for."""
    if configure("iterate", B, n, m, dtype.name, device(), shared_cost=C.ndim == 2) is not None:
        return Fused(C, cost_scale, METHODS[method])
    if C.ndim == 2 and method != "log":
        return Products(C, cost_scale, METHODS[method])
    return LogDomain(C, cost_scale)


class Fused:
    """All iterations in one launch, with K (or C, for method "log") in shared memory."""

    def __init__(self, C, cost_scale, method):
        self.C, self.cost_scale, self.method = C, cost_scale, method
        self.minimum = _smallest(C)

    def offsets(self, B, index):
        """What the rows' logits lack (B,): the shift of K and the smallest cost."""
        shift = self.minimum.astype(np.float64) * self.cost_scale
        if self.method != LOG:
            shift += SHIFT[self.C.dtype]
        return shift[index] if index is not None else cp.repeat(shift, B)

    def run(self, state, omega, count):
        """`count` iterations, or for 0 one plain f-update; return how far the marginals are off (B,), as mass."""
        deviation = cp.empty(len(omega), self.C.dtype)
        nothing = (NO_INDEX, NO_INDEX, NO_INDEX)  # to watch
        rules = (np.float64(0), np.float64(0), np.float64(0), np.float64(0), np.int32(0), np.int32(0), np.int32(0))
        self._launch(state, (deviation, *nothing), (omega, NO_INDEX), rules, count, 1)
        return deviation

    def run_watched(self, state, table, rules, count, checks):
        """Up to `checks` times `count` iterations, with the stopping test after each; return the deviations and the
        iterations taken (B,). `table` is the `Watch` of every problem, in iterate.cu.
        """
        B, dtype = len(table), self.C.dtype
        deviation, taken = cp.empty(B, dtype), cp.empty(B, np.int64)
        self._launch(state, (deviation, state.level, table, taken), (NO_INDEX, state.mass), rules, count, checks)
        return deviation, taken

    def _launch(self, state, outputs, inputs, rules, count, checks):
        (B, n, m), dtype, own = state.sizes, self.C.dtype, state.index is not None
        launch = configure("iterate", B, n, m, dtype.name, device(), shared_cost=not own)
        costs = (self.C, self.minimum, state.index if own else NO_INDEX, state.a, state.b)
        scalars = (np.float64(self.cost_scale), np.int32(_method(self, count)), np.int32(count), np.int32(checks))
        sizes = (np.int64(n * m if own else 0), np.int64(B), np.int32(n), np.int32(m))
        inout = (state.u, state.p, state.v, state.q)
        run(launch, dtype, *inout, *outputs, *costs, *inputs, *rules, *scalars, *sizes)


class Products:
    """A matrix product with a shared K and one elementwise kernel per half-step.

    CuPy refuses cuBLAS inside a stream capture, so that these launches cannot become a CUDA graph.
    """

    def __init__(self, C, cost_scale, method):
        self.C, self.cost_scale, self.method = C, cost_scale, method
        self.minimum = _smallest(C)
        self.K = cp.empty_like(C)
        launch = configure("scaled_kernel", 1, *C.shape, C.dtype.name, device())
        run(launch, C.dtype, self.K, C, self.minimum, np.float64(cost_scale), np.int64(C.size))

    offsets = Fused.offsets

    def run(self, state, omega, count):
        """See `Fused.run`."""
        (B, n, m), dtype = state.sizes, self.C.dtype
        T, S = cp.empty((B, n), dtype), cp.empty((B, m), dtype)
        rows = (state.u, state.p, cp.empty((B, -(-n // 32)), dtype), T, state.a, state.q)
        columns = (state.v, state.q, cp.empty((B, -(-m // 32)), dtype), S, state.b, state.p)
        method = _method(self, count)
        for _ in range(count):
            cp.dot(state.u, self.K, out=S)
            self._update(columns, omega, method, False, 0)
            cp.dot(state.v, self.K.T, out=T)
            self._update(rows, omega, method, False, 1)
        if count == 0:
            cp.dot(state.v, self.K.T, out=T)
            self._update(rows, omega, method, False, 1)
        cp.dot(state.u, self.K, out=S)
        self._update(columns, omega, method, True, 0)
        return rows[2].sum(axis=1) + columns[2].sum(axis=1)

    def _update(self, side, omega, method, measure, axis):
        n, m = self.C.shape
        launch = configure("scaling_update", len(omega), n, m, self.C.dtype.name, device(), axis=axis)
        kept = (m, 1, n, m) if axis else (1, m, m, n)  # strides of the kept and the summed index, and their ends
        scalars = (self.C.dtype.type(self.cost_scale), np.int32(method), np.int32(measure))
        sizes = map(np.int64, (*kept[:2], len(omega), *kept[2:]))
        run(launch, self.C.dtype, *side, self.C, self.minimum, omega, *scalars, *sizes)


class LogDomain:
    """A log-sum-exp reduction and one elementwise kernel per half-step, replayed as a CUDA graph once they repeat."""

    log_sums = staticmethod(log_sums)
    replayed = True  # False where a reduction allocates: a graph would write to memory that is others' by then

    def __init__(self, C, cost_scale):
        self.C, self.cost_scale = C, cost_scale
        self.state = self.graphs = None

    def offsets(self, B, index):
        """Nothing is taken out of the logits."""
        return cp.zeros(B, np.float64)

    def run(self, state, omega, count):
        """See `Fused.run`."""
        if state is not self.state:
            # A graph holds addresses: it lives as long as these arrays. The first run goes without, to load kernels.
            (B, n, m), dtype = state.sizes, self.C.dtype
            sums, partial = (cp.empty((B, n), dtype), cp.empty((B, m), dtype)), [(B, -(-size // 32)) for size in (n, m)]
            workspace = (omega.copy(), *sums, *(cp.empty(shape, dtype) for shape in partial))
            state.u.fill(0)  # the logits are all there is: no scaling may be taken for one
            state.v.fill(0)
            self._launches(state, workspace, count)
            if count:  # a state that only finishes is not met again
                self.state, self.workspace, self.graphs = state, workspace, {}
            return workspace[3].sum(axis=1) + workspace[4].sum(axis=1)
        workspace = self.workspace
        workspace[0][...] = omega
        if self.replayed:
            if count not in self.graphs:
                stream = cp.cuda.Stream(non_blocking=True)
                with stream:
                    stream.begin_capture()
                    self._launches(state, workspace, count)
                    self.graphs[count] = stream.end_capture()
            self.graphs[count].launch()
        else:
            self._launches(state, workspace, count)
        return workspace[3].sum(axis=1) + workspace[4].sum(axis=1)

    def _launches(self, state, workspace, count):
        omega, T, S, rows, columns = workspace
        for _ in range(count):
            self._half_step(state, omega, S, columns, False, 0)
            self._half_step(state, omega, T, rows, False, 1)
        if count == 0:
            self._half_step(state, omega, T, rows, False, 1)
        self._half_step(state, omega, S, columns, True, 0)

    def _half_step(self, state, omega, sums, deviation, measure, axis):
        (B, n, m), dtype = state.sizes, self.C.dtype
        logit, weights, other = (state.p, state.a, state.q) if axis else (state.q, state.b, state.p)
        self.log_sums(self.C, other, self.cost_scale, 1.0, 1.0, axis, state.index, out=sums)
        launch = configure("logit_update", B, n, m, dtype.name, device(), axis=axis)
        arguments = (logit, deviation, sums, weights, omega, np.int32(measure), np.int64(B), np.int64(n if axis else m))
        run(launch, dtype, *arguments)


def _method(form, count):
    """The multiplicative form alone may lose a problem, but what is handed out in the end (count 0) is measured."""
    return form.method if count else max(form.method, AUTO)


def _smallest(C):
    """The smallest entry of each cost (costs,); 0 where all are forbidden."""
    smallest = C.reshape(-1, C.shape[-2] * C.shape[-1]).min(axis=1)
    return cp.where(cp.isfinite(smallest), smallest, C.dtype.type(0))
