"""The forms in which the iterations of a stored cost run on a GPU: fused, as matrix products, in the log domain."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy import reductions
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import NULL, choose_launch, device, run, sizes
from cusink.backends.cupy.state import State
from cusink.backends.cupy.stopping import NO_RULES, StopRules
from cusink.types import Array, Axis, Method

SCALING, AUTO, LOG = 0, 1, 2  # as in scaling.cuh
METHODS = {"scaling": SCALING, "auto": AUTO, "log": LOG}
REPLAYED = 10  # iterations of a graph in a run that is not repeated
STEEP = {np.dtype(np.float32): 128, np.dtype(np.float64): 1280}  # powers of 2 that a K with fixed scalings holds
SHIFT = {np.dtype(np.float32): 44, np.dtype(np.float64): 476}  # Range::SHIFT in scaling.cuh


class Form(Protocol):
    """A way to iterate; it holds the cost, and `State` holds the problems."""

    def offsets(self, B: int, index: Array | None) -> Array:
        """Return the constants (B,) that the form subtracts from the logits of the rows."""

    def run(self, state: State, omega: Array, count: int) -> Array:
        """Take `count` iterations, or for 0 one plain f-update; return the marginal errors (B,), as mass."""

    def log_sums(self, logits: Array, scales: Scales, axis: Axis, index: Array | None) -> Array:
        """Return `reductions.log_sums` for the cost."""

    def row_costs(self, p: Array, q: Array, index: Array | None) -> Array:
        """Return `reductions.row_costs` for the cost."""

    def select(self, problems: Array) -> Self:
        """Return the form for some of the problems."""


class StoredForm:
    """The cost (n, m) or (costs, n, m) as an array."""

    def __init__(self, C: Array, cost_scale: float) -> None:
        self.C, self.cost_scale = C, cost_scale

    def offsets(self, B: int, index: Array | None) -> Array:  # noqa: ARG002 - other forms need it
        """See `Form`."""
        return cp.zeros(B, np.float64)

    def run(self, state: State, omega: Array, count: int) -> Array:
        """See `Form`."""
        raise NotImplementedError

    def log_sums(
        self, logits: Array, scales: Scales, axis: Axis, index: Array | None, out: Array | None = None
    ) -> Array:
        """See `Form`."""
        return reductions.log_sums(self.C, logits, scales, axis, index, out)

    def row_costs(self, p: Array, q: Array, index: Array | None) -> Array:
        """See `Form`."""
        return reductions.row_costs(self.C, p, q, self.cost_scale, index)

    def select(self, problems: Array) -> Self:  # noqa: ARG002 - the state says which cost a problem has
        """See `Form`."""
        return self


class ScalingForm(StoredForm):
    """A form with scalings, and with the smallest cost and the shift of K in the logits of the rows."""

    def __init__(self, C: Array, cost_scale: float, method: Method) -> None:
        super().__init__(C, cost_scale)
        self.method = METHODS[method]
        smallest = C.reshape(-1, C.shape[-2] * C.shape[-1]).min(axis=1)
        self.minimum = cp.where(cp.isfinite(smallest), smallest, C.dtype.type(0))  # (costs,)

    def offsets(self, B: int, index: Array | None) -> Array:
        """See `Form`."""
        offset = self.minimum.astype(np.float64) * self.cost_scale
        if self.method != LOG:
            offset += SHIFT[self.C.dtype]
        return offset[index] if index is not None else cp.repeat(offset, B)

    def method_of(self, count: int) -> np.int32:
        """Return the method of a run. The last f-update (count 0) must not lose a problem, as scalings alone may."""
        return np.int32(self.method if count else max(self.method, AUTO))


class FusedForm(ScalingForm):
    """All iterations in one launch, with K (or C, for method "log") in shared memory.

    Where costs differ by so much that a K shared by the problems of a block would not hold them, a block has one
    problem, whose potentials its K can absorb.
    """

    def __init__(self, C: Array, B: int, cost_scale: float, method: Method) -> None:
        super().__init__(C, cost_scale, method)
        self.apart = C.ndim == 3
        if not self.apart and method != "log" and B > device().multiprocessors:  # else a block has one anyway
            spread = cp.where(cp.isfinite(C), C - self.minimum, 0).max()
            self.apart = float(spread) * cost_scale > STEEP[C.dtype]

    def run(self, state: State, omega: Array, count: int) -> Array:
        """See `Form`."""
        deviation = cp.empty(len(omega), self.C.dtype)
        self._launch(state, (deviation, NULL, NULL, NULL), (omega, NULL, NULL), NO_RULES, (count, 1, 0))
        return deviation

    def run_until_converged(
        self, state: State, table: Array, rules: StopRules, earlier_checks: int, count: int, checks: int
    ) -> Array:
        """Take `count` iterations and check, up to `checks` times; return the iterations taken (B,).

        `table` (B, 8) holds the ``StopState`` of ``convergence.cuh`` of every problem, and is brought up to date.
        """
        B = len(table)
        deviation, taken = cp.empty(B, self.C.dtype), cp.empty(B, np.int64)
        outputs, inputs = (deviation, state.level, table, taken), (NULL, state.mass, NULL)
        self._launch(state, outputs, inputs, rules, (count, checks, earlier_checks))
        return taken

    def _launch(
        self,
        state: State,
        outputs: tuple[Any, ...],
        inputs: tuple[Any, ...],
        rules: StopRules,
        counts: tuple[int, int, int],
    ) -> None:
        (B, n, m), dtype, own = state.sizes, self.C.dtype, state.index is not None
        count, checks, earlier_checks = map(np.int32, counts)
        log = self.method == LOG
        launch = choose_launch("iterate", B, n, m, dtype, shared_cost=not self.apart, log=log)
        costs = (self.C, self.minimum, state.index if own else NULL, state.a, state.b)
        scalars = (np.float64(self.cost_scale), self.method_of(counts[0]), count, checks, earlier_checks)
        shape = (np.int64(n * m if own else 0), np.int64(B), np.int32(n), np.int32(m))
        inout = (state.u, state.p, state.v, state.q)
        run(launch, dtype, *inout, *outputs, *costs, *inputs, *rules, *scalars, *shape)


class HalfStep(NamedTuple):
    """Arrays of ``scaling_update``: a half-step changes the first three and reads the others."""

    scaling: Array  # (B, kept)
    logit: Array  # (B, kept)
    deviation: Array  # (B, kept / 32)
    sums: Array  # (B, kept)
    weights: Array  # (B, kept)
    other_logit: Array  # (B, summed)


class MatmulForm(ScalingForm):
    """A matrix product with a shared K and one elementwise CUDA kernel per half-step.

    CuPy refuses cuBLAS inside a stream capture, so that these launches cannot become a CUDA graph.
    """

    def __init__(self, C: Array, cost_scale: float, method: Method) -> None:
        super().__init__(C, cost_scale, method)
        self.K, (n, m) = cp.empty_like(C), C.shape
        launch = choose_launch("scaled_kernel", 1, n, m, C.dtype)
        run(launch, C.dtype, self.K, C, self.minimum, np.float64(cost_scale), np.int64(C.size))

    def run(self, state: State, omega: Array, count: int) -> Array:
        """See `Form`."""
        (B, n, m), dtype = state.sizes, self.C.dtype
        T, S = cp.empty((B, n), dtype), cp.empty((B, m), dtype)
        row_deviation, column_deviation = (cp.empty((B, -(-size // 32)), dtype) for size in (n, m))
        rows = HalfStep(state.u, state.p, row_deviation, T, state.a, state.q)
        columns = HalfStep(state.v, state.q, column_deviation, S, state.b, state.p)
        method = self.method_of(count)
        for _ in range(count):
            cp.dot(state.u, self.K, out=S)
            self._update(columns, omega, method, False, 0)
            cp.dot(state.v, self.K.T, out=T)
            self._update(rows, omega, method, False, 1)
        if count == 0:
            cp.dot(state.v, self.K.T, out=T)
            self._update(rows, omega, method, False, 1)
        return row_deviation.sum(axis=1) + self.measured(state, omega, method)

    def measured(self, state: State, omega: Array, method: np.int32) -> Array:
        """Return how far the columns are from what they have to be (B,), as mass, by a product in float."""
        B, _, m = state.sizes
        deviation, S = cp.empty((B, -(-m // 32)), self.C.dtype), cp.empty((B, m), self.C.dtype)
        cp.dot(state.u, self.K, out=S)
        columns = HalfStep(state.v, state.q, deviation, S, state.b, state.p)
        self._update(columns, omega, method, True, 0)
        return deviation.sum(axis=1)

    def layout(self, axis: Axis) -> tuple[int, int, int, int]:
        """Return the strides of the kept and the summed index in the cost, and their ends."""
        n, m = self.C.shape
        return (m, 1, n, m) if axis else (1, m, m, n)

    def _update(self, side: HalfStep, omega: Array, method: np.int32, measure: bool, axis: Axis) -> None:
        n, m = self.C.shape
        launch = choose_launch("scaling_update", len(omega), n, m, self.C.dtype, axis=axis)
        kept = self.layout(axis)
        scalars = (self.C.dtype.type(self.cost_scale), method, np.int32(measure))
        shape = sizes(*kept[:2], len(omega), *kept[2:])
        run(launch, self.C.dtype, *side, self.C, self.minimum, omega, *scalars, *shape)


def captured(launch: Callable[[], None]) -> Any:
    """Return the CUDA graph of the kernels that `launch` launches, which must all be loaded; it allocates nothing."""
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            launch()
        except BaseException:
            with contextlib.suppress(Exception):  # what the capture itself has to say is of no use
                stream.end_capture()  # nobody can wait for the device before
            raise
        return stream.end_capture()


class Workspace(NamedTuple):
    """Arrays of `LogForm` whose addresses a CUDA graph holds."""

    omega: Array  # (B,)
    T: Array  # (B, n), log-sums
    S: Array  # (B, m)
    row_deviation: Array  # (B, n / 32)
    column_deviation: Array  # (B, m / 32)

    def deviation(self) -> Array:
        """Return the marginal errors (B,), as mass."""
        return self.row_deviation.sum(axis=1) + self.column_deviation.sum(axis=1)


class LogForm(StoredForm):
    """A log-sum-exp reduction and one elementwise CUDA kernel per half-step, replayed as a CUDA graph.

    The graph belongs to the arrays of one state and is captured in the second run, when all kernels are loaded; in a
    first run of many iterations, after some of them.
    """

    replayed = True  # False where a reduction allocates: a graph would write to memory that is no longer its own

    def __init__(self, C: Array, cost_scale: float) -> None:
        super().__init__(C, cost_scale)
        self.captured: tuple[State, Workspace] | None = None
        self.graphs: dict[int, Any] = {}
        self.part: Any = None  # the graph of some iterations of the first run

    def run(self, state: State, omega: Array, count: int) -> Array:
        """See `Form`."""
        if self.captured is None or self.captured[0] is not state:
            workspace = self._first_run(state, omega, count)
            if count:  # a state that only finishes does not come back
                self.captured, self.graphs = (state, workspace), {}
            return workspace.deviation()
        workspace = self.captured[1]
        workspace.omega[...] = omega
        if self.replayed:
            if count not in self.graphs:
                self.graphs[count] = captured(lambda: self._half_steps(state, workspace, count))
            self.graphs[count].launch()
        else:
            self._half_steps(state, workspace, count)
        return workspace.deviation()

    def _first_run(self, state: State, omega: Array, count: int) -> Workspace:
        (B, n, m), dtype = state.sizes, omega.dtype
        shapes = ((B, n), (B, m), (B, -(-n // 32)), (B, -(-m // 32)))
        workspace = Workspace(omega.copy(), *(cp.empty(shape, dtype) for shape in shapes))
        state.u.fill(0)  # this form keeps logits alone: nothing may read an old scaling
        state.v.fill(0)
        if self.replayed and count > 2 * REPLAYED:
            self._iterations(state, workspace, REPLAYED)
            self.part = captured(lambda: self._iterations(state, workspace, REPLAYED))
            while count > 2 * REPLAYED:
                self.part.launch()
                count -= REPLAYED
            count -= REPLAYED
        self._half_steps(state, workspace, count)
        return workspace

    def _half_steps(self, state: State, workspace: Workspace, count: int) -> None:
        self._iterations(state, workspace, count)
        if count == 0:
            self._half_step(state, workspace, False, 1)
        self._half_step(state, workspace, True, 0)

    def _iterations(self, state: State, workspace: Workspace, count: int) -> None:
        for _ in range(count):
            self._half_step(state, workspace, False, 0)
            self._half_step(state, workspace, False, 1)

    def _half_step(self, state: State, workspace: Workspace, measure: bool, axis: Axis) -> None:
        (B, n, m), (omega, T, S, row_deviation, column_deviation) = state.sizes, workspace
        logit, weights, other = (state.p, state.a, state.q) if axis else (state.q, state.b, state.p)
        sums, deviation = (T, row_deviation) if axis else (S, column_deviation)
        self.log_sums(other, Scales(self.cost_scale, 1.0, 1.0), axis, state.index, out=sums)
        launch = choose_launch("logit_update", B, n, m, omega.dtype, axis=axis)
        inputs = (sums, weights, omega, np.int32(measure))
        run(launch, omega.dtype, logit, deviation, *inputs, *sizes(B, n if axis else m))
