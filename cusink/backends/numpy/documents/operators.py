"""The operators of pairs of documents in NumPy: an iteration of their own, and for the rest those of stored costs."""

import functools
from collections.abc import Callable
from typing import Any

from cusink.backends.numpy import dense
from cusink.backends.numpy.documents.buffers import Buffers, PairCosts
from cusink.backends.numpy.documents.iteration import Iteration, cost_range
from cusink.costs.operators import Operators


def pair_operators(buffers: Buffers) -> Operators[PairCosts]:
    """Return the operators; their iterations take memory from `buffers`."""
    stored = dense.OPERATORS
    return Operators(
        xp=stored.xp,
        to_host=stored.to_host,
        softmin=_of_array(stored.softmin),
        repeated_softmin=_of_array(stored.repeated_softmin),
        plan=_of_array(stored.plan),
        apply_plan=_of_array(stored.apply_plan),
        transport_cost=_of_array(stored.transport_cost),
        c_transform=_of_array(stored.c_transform),
        cost_range=cost_range,
        cost_block=_of_array(stored.cost_block),
        bilinear=_of_array(stored.bilinear),
        iteration=functools.partial(Iteration, buffers=buffers),
        plan_means=_of_array(stored.plan_means),
    )


def _of_array(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator of stored costs as one of `PairCosts`."""
    return lambda C, *arguments, **named: operator(C.array(), *arguments, **named)
