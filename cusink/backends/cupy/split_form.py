"""The form in which many problems share a large cost on a device with fast tensor cores: ``split_step.cu``."""

from typing import NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.backends.cupy.forms import MatmulForm
from cusink.backends.cupy.launch import PARTS, SPLIT_THREADS, SPLIT_TILE, padded, split_tiles
from cusink.backends.cupy.run import choose_launch, find_launch, run, sizes
from cusink.backends.cupy.state import State
from cusink.types import Array, Axis, Method

MOST_REPAIRED = 1 / 256  # of the entries, above which products in float are faster
LOOKS = 10  # iterations from one look at how many were repaired to the next, within a call
MOST_BYTES = 4 << 30  # of a cost and its kernel, which is kept three times


class Parts(NamedTuple):
    """Non-negative numbers (rows, summed) as two of half precision, see ``half_parts.cuh``."""

    halves: Array  # (padded, blocks, 64)
    scales: Array  # (blocks, padded)

    @classmethod
    def empty(cls, rows: int, summed: int) -> Self:
        """Return arrays for such numbers."""
        blocks, whole = -(-summed // PARTS), padded(rows)
        return cls(cp.empty((whole, blocks, 2 * PARTS), np.float16), cp.empty((blocks, whole), np.float32))

    @property
    def padded(self) -> int:
        """Rows, whole tiles of them; those that are no numbers hold anything."""
        return int(self.scales.shape[1])


class Side(NamedTuple):
    """What a half-step changes: the scalings of a side, twice, and what it leaves for the host."""

    scaling: Array  # (B, kept)
    logit: Array  # (B, kept)
    parts: Parts  # (B, kept)
    deviation: Array  # (B, kept / 32)
    repaired: Array  # (blocks, 8), int32
    sums: Array  # (blocks, SPLIT_TILE), float32: of tiles whose update is under way

    @classmethod
    def of(cls, scaling: Array, logit: Array, blocks: int) -> Self:
        """Return the side of these scalings; no parts are written yet."""
        B, kept = scaling.shape
        deviation, repaired = cp.empty((B, -(-kept // PARTS)), scaling.dtype), (blocks, SPLIT_THREADS // 32)
        sums = cp.empty((blocks, SPLIT_TILE), np.float32)
        return cls(scaling, logit, Parts.empty(B, kept), deviation, cp.empty(repaired, np.int32), sums)


class SplitForm(MatmulForm):
    """A product with a shared K on tensor cores and the update of what it gives, in one launch per half-step.

    Numbers are two of half precision each, and products are as good as in float; entries whose sum they cannot certify
    are log-sum-exp. Errors are measured by products in float, as in `MatmulForm`, to which a run changes where it
    does not pay: few problems, another dtype, many entries that are not certified.
    """

    def __init__(self, C: Array, cost_scale: float, method: Method) -> None:
        super().__init__(C, cost_scale, method)
        self.kernels: tuple[Parts, Parts] | None = (self._split_kernel(0), self._split_kernel(1))  # by axis summed over
        self.unread: tuple[Array, float] | None = None  # how many were repaired at the end of the last call, and may be
        self.looked = False

    @staticmethod
    def pays(C: Array, B: int, method: Method, memory: float = MOST_BYTES) -> bool:
        """Whether a device is faster with this form than with `MatmulForm`, and has the memory for it."""
        n, m = C.shape
        launches = (find_launch("split_step", B, n, m, C.dtype, axis=axis) for axis in (0, 1))
        return (
            method == "auto"
            and 4 * C.nbytes <= min(memory, MOST_BYTES)
            and all(launch is not None for launch in launches)
        )

    def run(self, state: State, omega: Array, count: int) -> Array:
        """See `Form`."""
        if count and self.unread is not None and int(self.unread[0]) > self.unread[1]:  # known by now: nothing waits
            self.kernels = None
        if count == 0 or self.kernels is None or not self.pays(self.C, len(omega), "auto"):
            return super().run(state, omega, count)
        B, n, m = state.sizes
        rows, columns = (
            Side.of(scaling, logit, choose_launch("split_step", B, n, m, self.C.dtype, axis=axis).grid)
            for scaling, logit, axis in ((state.u, state.p, 1), (state.v, state.q, 0))
        )
        launch = choose_launch("split_scalings", B, n, m, self.C.dtype, axis=0)
        run(launch, self.C.dtype, *rows.parts, state.u, *sizes(B, n, rows.parts.padded))
        for k in range(count):
            last = k + 1 == count  # a step that measures stores logits with all digits, which values are made of
            self._split_step(columns, rows, state.b, omega, 0, measured=last)
            self._split_step(rows, columns, state.a, omega, 1, measured=last)
            self.unread = rows.repaired.sum() + columns.repaired.sum(), MOST_REPAIRED * B * (n + m)
            if not self.looked or (k and k % LOOKS == 0):
                self.looked = True
                if int(self.unread[0]) > self.unread[1] and k + 1 < count:
                    self.kernels = None
                    return super().run(state, omega, count - k - 1)
        return rows.deviation.sum(axis=1) + self.measured(state, omega, self.method_of(count))

    def _split_kernel(self, axis: Axis) -> Parts:
        (n, m), (*strides, kept, summed) = self.C.shape, self.layout(axis)
        parts = Parts.empty(kept, summed)
        launch = choose_launch("split_kernel", 1, n, m, self.C.dtype, axis=axis)
        scalars = np.float64(self.cost_scale), *sizes(*strides, kept, summed, parts.padded)
        run(launch, self.C.dtype, *parts, self.C, self.minimum, *scalars)
        return parts

    def _split_step(
        self, side: Side, other: Side, weights: Array, omega: Array, axis: Axis, measured: bool = False
    ) -> None:
        assert self.kernels is not None
        (n, m), (*strides, kept, summed), B = self.C.shape, self.layout(axis), len(omega)
        launch, kernel = choose_launch("split_step", B, n, m, self.C.dtype, axis=axis), self.kernels[axis]
        outputs = (side.scaling, side.logit, *side.parts, side.deviation, side.repaired, side.sums)
        inputs = (*other.parts, *kernel, weights, other.logit, self.C, self.minimum, omega)
        shape = sizes(*strides, B, kept, summed, side.parts.padded, kernel.padded, split_tiles(B, kept), int(measured))
        run(launch, self.C.dtype, *outputs, *inputs, self.C.dtype.type(self.cost_scale), *shape)
