"""The operators of costs that are made in blocks, for CuPy arrays: array operations make a block, kernels reduce it."""

from typing import Any, Self

import cupy as cp

from cusink.backends.blocks import reductions as blocks
from cusink.backends.blocks.operators import block_operators
from cusink.backends.cupy import dense, iteration, reductions
from cusink.backends.cupy.forms import LogForm
from cusink.backends.cupy.reductions import Scales
from cusink.backends.cupy.run import LOG2_E
from cusink.backends.cupy.unbalanced import STEPS
from cusink.costs.blockwise import BlockCosts, InBlocks
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, Method

ARRAYS = dense.OPERATORS


class Iteration(iteration.Iteration):
    """Problems under way: on a stored cost while they are, if it fits, else by log-sum-exp over blocks."""

    def __init__(self, C: InBlocks, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> None:
        if C.kept:
            super().__init__(C.block(cp), a, b, eps, f, g, method)
        else:
            self._start(BlockLogForm(C, LOG2_E / float(eps)), a, b, eps, f, g)


class BlockLogForm(LogForm):
    """The log-domain form with reductions over blocks, which are new arrays: it is never replayed as a graph."""

    C: Any  # InBlocks, where its base has an array
    replayed = False

    def log_sums(
        self,
        logits: Array,
        scales: Scales,
        axis: Axis,
        index: Array | None,  # noqa: ARG002 - None, as `select` takes the points themselves
        out: Array | None = None,
    ) -> Array:
        """See `cusink.backends.cupy.forms.Form`."""

        def summed(some: slice, _: slice, costs: Array) -> Array:
            return reductions.log_sums(costs, logits[some], scales, axis)

        found = blocks.over_pieces(cp, self.C, axis, logits, summed)
        if out is None:
            return found
        out[...] = found
        return out

    def row_costs(self, p: Array, q: Array, index: Array | None) -> Array:  # noqa: ARG002
        """See `cusink.backends.cupy.forms.Form`."""

        def summed(some: slice, rows: slice, costs: Array) -> Array:
            return reductions.row_costs(costs, p[some, rows], q[some], self.cost_scale)

        return blocks.over_pieces(cp, self.C, 1, p, summed)

    def select(self, problems: Array) -> Self:
        """See `cusink.backends.cupy.forms.Form`."""
        return self if self.C.ndim == 2 else type(self)(self.C.at(problems), self.cost_scale)


OPERATORS: Operators[BlockCosts] = block_operators(ARRAYS, Iteration, STEPS)
