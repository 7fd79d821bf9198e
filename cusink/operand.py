"""Make the operand of a call: the cost, checked and converted, with the operators of its kind and library."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cusink.checks.arrays import array_module, arrays, is_half, largest
from cusink.checks.regularisation import RelativeEps, in_units
from cusink.checks.scalars import positive_bytes
from cusink.connection import doors_of
from cusink.costs.blockwise import check_stored_row
from cusink.costs.checks import cost_values
from cusink.costs.cost import Cost
from cusink.costs.kinds import Kind, data_of, named_arrays, operators_for
from cusink.costs.metric import is_metric
from cusink.costs.on_grids import EuclideanCost, GridCost
from cusink.costs.operands import DenseCost, PointCost
from cusink.costs.operators import Operators
from cusink.costs.statistics import statistic
from cusink.types import Array, ArrayModule, Eps

OPERANDS: dict[Kind, Any] = {
    "dense": DenseCost,
    "points": PointCost,
    "blocks": PointCost,
    "grid": GridCost,
    "cells": EuclideanCost,
}


def operators(kind: Kind, xp: ArrayModule) -> Operators[Any]:
    """Return the operators of a kind of cost in an array library."""
    found: Operators[Any] = doors_of(xp.__name__)[kind]
    return found


def dense_cost(C: Array) -> DenseCost:
    """Return a checked array of costs as an operand."""
    return DenseCost(C, operators("dense", array_module(C)))


def operand(
    C: Any,
    xp: ArrayModule,
    dtype: Any,
    parts: list[Array],
    memory_limit: int | None = None,
    batch: bool = True,
    weighted: tuple[Array, Array] | None = None,
    weights_follow: bool = False,
) -> Cost[Any]:
    """Return the operand of a cost, whose shape and range are checked.

    Parameters
    ----------
    C : array, PointCloud or Grid
        As the user passed it.
    xp, dtype, parts
        The library, the dtype of the user, and the arrays of `cusink.costs.kinds.named_arrays` as
        `cusink.checks.arrays.arrays` returns them.
    memory_limit : int, optional
        Bytes that the kernel of a cloud may take.
    batch : bool
        Whether each problem may have a cost of its own.
    weighted : (array, array), optional
        Masks, shape (n,) or (B, n) and (m,) or (B, m), of the bins that have weight: points without any do not decide
        how large the costs of a cloud are, or about which point its squares are taken.
    weights_follow : bool
        Whether the caller has masks later, and calls `with_room` then.

    Returns
    -------
    Cost
    """
    kind = operators_for(C)
    computing = np.dtype(np.float32) if is_half(dtype) else dtype
    limit = {} if memory_limit is None else {"memory_limit": positive_bytes(memory_limit)}
    data = data_of(C, xp, computing, parts, **limit)
    check_shape(data, batch)
    cost: Cost[Any] = OPERANDS[kind](data, operators(kind, xp))
    if not cost.stored and cost.largest() > largest(cost.dtype.name):
        raise ValueError(f"'C' must hold finite costs; the largest exceed the range of {cost.dtype}. Scale the points")
    cost = cost if weighted is None else cost.weighted(*weighted)
    return cost if weights_follow else with_room(cost)


def with_row(cost: Cost[Any], memory_limit: int | None) -> Cost[Any]:
    """Return a cost, if the limit of a call holds a row of it, where it is between points."""
    if memory_limit is not None and cost.kind == "points":
        check_stored_row(positive_bytes(memory_limit), max(cost.shape[-2:]))
    return cost


def with_room(cost: Cost[Any]) -> Cost[Any]:
    """Return a cost, if the squared distances between points with weight have room in its dtype."""
    if not cost.squares_fit():
        raise ValueError(
            f"'C' must hold points whose squared distances have room in {cost.dtype}, as its costs are powers of them; "
            "these are too far apart, or too near. Scale the points, or use float64"
        )
    return cost


def eps_of_each(eps: Eps | RelativeEps, costs: Iterable[Any]) -> Eps:
    """Return a `RelativeEps` as numbers in the units of costs, one of each problem, and what else came as it is."""
    if not isinstance(eps, RelativeEps):
        return eps
    return in_units(eps, np.array([_statistic(C, eps) for C in costs]))


def _statistic(C: Any, eps: RelativeEps) -> float:
    """Return the statistic of a cost, as users pass it, that eps is relative to."""
    parts, xp, dtype = arrays(**named_arrays(C))
    cost = operand(C, xp, dtype, parts, batch=False)
    size = float(statistic(cost, eps.of))
    if cost.stored and not size > 0:
        cost_values(cost.data, xp)  # which says what is wrong with them, if something is
    return size


def eps_of_shared(eps: Any, C: Any, name: str = "'C'") -> Any:
    """Return a `RelativeEps` as a number in the unit of a cost that all pairs share, and what else came as it is."""
    if not isinstance(eps, RelativeEps):
        return eps
    if is_metric(C):
        raise ValueError(
            "'eps' must be a number in retrieval of cusink.Measures, as a share of the costs would be another for a "
            f"part, for other queries and after more items; got {eps}. Take one number for all, such as "
            "a share of cusink.PointCloud(sample, None, metric).mean() of a sample of points"
        )
    return in_units(eps, _statistic(C, eps), name)


def check_shape(C: Any, batch: bool = True) -> None:
    """Check the shape of a cost."""
    wanted = "(n, m) or (B, n, m)" if batch else "(n, m)"
    if C is None:
        raise TypeError("'C' must be an array of costs; got None. cusink.cost_matrix makes one from points")
    if C.ndim not in ((2, 3) if batch else (2,)):
        raise ValueError(f"'C' must have shape {wanted}; got {tuple(C.shape)}")
    if 0 in C.shape:
        raise ValueError(f"'C' must have at least one row and one column; got shape {tuple(C.shape)}")
