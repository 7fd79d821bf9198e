"""The operators of costs that are made in blocks, in NumPy."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from cusink.backends.blocks import reductions as blocks
from cusink.backends.blocks.operators import block_operators
from cusink.backends.numpy import dense, iteration
from cusink.backends.numpy.forms.form import Form
from cusink.backends.numpy.forms.log import LogForm, LogReductions
from cusink.costs.blockwise import BlockCosts, InBlocks
from cusink.costs.operators import Operators
from cusink.types import HostArray, Method

ARRAYS = dense.OPERATORS
LOGS = LogReductions(functools.partial(blocks.softmin, ARRAYS), functools.partial(blocks.transport_cost, ARRAYS))


class Iteration(iteration.Iteration):
    """Problems under way: on a stored cost while they are, if it fits, else by log-sum-exp over blocks."""

    def _forms(self, C: InBlocks, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:
        return super()._forms(C.block(np), dtype, eps, method) if C.kept else [BlockLogForm(C, dtype, eps, LOGS)]


class BlockLogForm(LogForm):
    """Log-sum-exp over blocks of costs."""

    def cost(self, index: slice | HostArray = slice(None)) -> InBlocks:
        """Return the shared cost, or the costs of the problems at `index`."""
        C: InBlocks = self.C if self.problems is None else self.C.at(self.problems[index])
        return C


OPERATORS: Operators[BlockCosts] = block_operators(ARRAYS, Iteration)
