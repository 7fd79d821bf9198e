"""The operators of costs that are made in blocks, in NumPy."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cusink.backends.blocks import reductions as blocks
from cusink.backends.blocks.means import block_means
from cusink.backends.numpy import dense, iteration
from cusink.backends.numpy.forms.form import Form
from cusink.backends.numpy.forms.log import LogForm, LogReductions
from cusink.backends.numpy.means import IndexedMeans
from cusink.costs.blockwise import BlockCosts
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, HostArray, Method

ARRAYS = dense.OPERATORS
LOGS = LogReductions(functools.partial(blocks.softmin, ARRAYS), functools.partial(blocks.transport_cost, ARRAYS))


class Iteration(iteration.Iteration):
    """Problems under way: on a stored cost while they are, if it fits, else by log-sum-exp over blocks."""

    def _forms(self, C: BlockCosts, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:
        return super()._forms(C.block(np), dtype, eps, method) if C.kept else [BlockLogForm(C, dtype, eps, LOGS)]


class BlockLogForm(LogForm):
    """Log-sum-exp over blocks of costs."""

    def cost(self, index: slice | HostArray = slice(None)) -> BlockCosts:
        """Return the shared cost, or the costs of the problems at `index`."""
        C: BlockCosts = self.C if self.problems is None else self.C.at(self.problems[index])
        return C


def repeated_softmin(C: BlockCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`, prepared for many calls."""
    if C.kept:
        return ARRAYS.repeated_softmin(C.block(np), eps)
    return lambda logits, axis: blocks.softmin(ARRAYS, C, logits, eps, axis)


def plan_means(
    C: BlockCosts, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[IndexedMeans]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    if C.kept:
        yield from ARRAYS.plan_means(C.block(np), a, b, f, g, eps)
    else:
        yield np.arange(len(a)), block_means(ARRAYS, C, a, b, f, g, eps)


OPERATORS: Operators[BlockCosts] = Operators(
    xp=np,
    to_host=dense.to_host,
    softmin=functools.partial(blocks.softmin, ARRAYS),
    repeated_softmin=repeated_softmin,
    plan=functools.partial(blocks.plan, ARRAYS),
    apply_plan=functools.partial(blocks.apply_plan, ARRAYS),
    transport_cost=functools.partial(blocks.transport_cost, ARRAYS),
    c_transform=functools.partial(blocks.c_transform, ARRAYS),
    cost_range=blocks.cost_range,
    cost_block=functools.partial(blocks.cost_block, np),
    bilinear=functools.partial(blocks.bilinear, ARRAYS),
    iteration=Iteration,
    plan_means=plan_means,
)
