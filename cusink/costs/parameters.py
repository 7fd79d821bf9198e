"""Gradients with respect to the parameters of a metric: the factor of "mahalanobis" and the table of labels."""

from collections.abc import Iterable

import numpy as np

from cusink.costs.between import BetweenPoints
from cusink.costs.blockwise import BlockCosts
from cusink.costs.embeddings import Linear
from cusink.types import Array, ArrayModule


def parameter_gradients(
    xp: ArrayModule, costs: BetweenPoints, gradients: Iterable[tuple[slice, slice, Array]]
) -> dict[str, Array]:
    """Return the gradients by the parameters' names, given those of all costs in blocks (problems, rows, m)."""
    out = nothing_yet(xp, costs)
    if not out:
        return out
    for problems, rows, gradient in gradients:
        gradient = gradient.sum(axis=0) if costs.ndim == 2 else gradient
        pulled = costs.block_adjoint(xp, gradient, problems, rows) if "factor" in out else None
        add_block(xp, costs, out, problems, rows, gradient, pulled)
    return out


def nothing_yet(xp: ArrayModule, costs: BetweenPoints) -> dict[str, Array]:
    """Return gradients of zero by the names of the parameters, of which most metrics have none."""
    out: dict[str, Array] = {}
    if isinstance(costs.embedding, Linear):
        out["factor"] = xp.zeros(costs.embedding.factor.shape)
    if isinstance(costs, BlockCosts) and costs.table is not None:
        out["table"] = xp.zeros(costs.table.shape)
    return out


def add_block(
    xp: ArrayModule,
    costs: BetweenPoints,
    out: dict[str, Array],
    problems: slice,
    rows: slice,
    gradient: Array,
    pulled: tuple[Array, Array] | None,
) -> None:
    """Add what falls on the parameters of the `gradient` of a block of costs, and of what it `pulled` on its points."""
    if isinstance(costs, BlockCosts) and costs.table is not None:
        out["table"] += costs.table_adjoint(xp, gradient, problems, rows)
    if isinstance(costs.embedding, Linear) and costs.given is not None and pulled is not None:
        given = costs.given if costs.ndim == 2 else (costs.given[0][problems], costs.given[1][problems])
        x, y = (points.astype(np.float64) for points in (given[0][..., rows, :], given[1]))
        centre = x.mean(axis=-2, keepdims=True)  # a gradient does not change when all points move
        for points, part in zip((x, y), pulled, strict=True):
            out["factor"] += costs.embedding.factor_adjoint(points - centre, part.astype(np.float64))
