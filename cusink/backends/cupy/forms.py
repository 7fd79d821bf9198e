"""The forms in which the iterations of a stored cost run on a GPU: fused, as products, in the log domain."""

import cupy as cp
import numpy as np

from cusink.backends.cupy.launch import configure
from cusink.backends.cupy.reductions import log_sums
from cusink.backends.cupy.run import NO_INDEX, device, run

SCALING, AUTO, LOG = 0, 1, 2  # as in scaling.cuh
METHODS = {"scaling": SCALING, "auto": AUTO, "log": LOG}
SHIFT = {np.dtype(np.float32): 44, np.dtype(np.float64): 476}  # Range::SHIFT in scaling.cuh


def choose_form(C, B, n, m, cost_scale, method, dtype):
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
        self.minimum = smallest(C)

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
        scalars = (np.float64(self.cost_scale), np.int32(method_of(self, count)), np.int32(count), np.int32(checks))
        sizes = (np.int64(n * m if own else 0), np.int64(B), np.int32(n), np.int32(m))
        inout = (state.u, state.p, state.v, state.q)
        run(launch, dtype, *inout, *outputs, *costs, *inputs, *rules, *scalars, *sizes)


class Products:
    """A matrix product with a shared K and one elementwise kernel per half-step.

    CuPy refuses cuBLAS inside a stream capture, so that these launches cannot become a CUDA graph.
    """

    def __init__(self, C, cost_scale, method):
        self.C, self.cost_scale, self.method = C, cost_scale, method
        self.minimum = smallest(C)
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
        method = method_of(self, count)
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


def method_of(form, count):
    """The multiplicative form alone may lose a problem, but what is handed out in the end (count 0) is measured."""
    return form.method if count else max(form.method, AUTO)


def smallest(C):
    """The smallest entry of each cost (costs,); 0 where all are forbidden."""
    smallest = C.reshape(-1, C.shape[-2] * C.shape[-1]).min(axis=1)
    return cp.where(cp.isfinite(smallest), smallest, C.dtype.type(0))
