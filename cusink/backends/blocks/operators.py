"""The operators of costs that are made in blocks, by those of stored costs of a library."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from cusink.backends.blocks import reductions
from cusink.backends.blocks.means import block_means
from cusink.costs.blockwise import InBlocks
from cusink.costs.operators import DampedSteps, Operators, StartIteration
from cusink.types import Array, Axis, HostArray

Data = TypeVar("Data", bound=InBlocks)


def block_operators(
    dense: Operators[Array],
    iteration: StartIteration[Data],
    damped_steps: DampedSteps | None = None,
) -> Operators[Data]:
    """Return the operators, given those `dense` of stored costs and what puts problems under way."""
    return Operators(
        xp=dense.xp,
        to_host=dense.to_host,
        softmin=functools.partial(reductions.softmin, dense),
        repeated_softmin=functools.partial(_repeated_softmin, dense),
        plan=functools.partial(reductions.plan, dense),
        apply_plan=functools.partial(reductions.apply_plan, dense),
        transport_cost=functools.partial(reductions.transport_cost, dense),
        c_transform=functools.partial(reductions.c_transform, dense),
        cost_range=reductions.cost_range,
        cost_block=functools.partial(reductions.cost_block, dense.xp),
        bilinear=functools.partial(reductions.bilinear, dense),
        iteration=iteration,
        plan_means=functools.partial(_plan_means, dense),
        damped_steps=damped_steps,
    )


def _repeated_softmin(dense: Operators[Array], C: InBlocks, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`, prepared for many calls."""
    if C.kept:
        return dense.repeated_softmin(C.block(dense.xp), eps)
    return lambda logits, axis: reductions.softmin(dense, C, logits, eps, axis)


def _plan_means(
    dense: Operators[Array], C: InBlocks, a: Array, b: Array, f: Array, g: Array, eps: float
) -> Iterator[tuple[HostArray, Any]]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    if C.kept:
        yield from dense.plan_means(C.block(dense.xp), a, b, f, g, eps)
    else:
        yield np.arange(len(a)), block_means(dense, C, a, b, f, g, eps)
