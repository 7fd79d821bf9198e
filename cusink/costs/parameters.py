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
    out: dict[str, Array] = {}
    embedding = costs.embedding
    table = costs.table if isinstance(costs, BlockCosts) else None
    linear = embedding if isinstance(embedding, Linear) else None
    if linear is not None:
        out["factor"] = xp.zeros(linear.factor.shape)
    if table is not None:
        out["table"] = xp.zeros(table.shape)
    if not out:
        return out
    for problems, rows, gradient in gradients:
        gradient = gradient.sum(axis=0) if costs.ndim == 2 else gradient
        if isinstance(costs, BlockCosts) and table is not None:
            out["table"] += costs.table_adjoint(xp, gradient, problems, rows)
        if linear is not None:
            assert costs.given is not None
            given = costs.given if costs.ndim == 2 else (costs.given[0][problems], costs.given[1][problems])
            x, y = (points.astype(np.float64) for points in (given[0][..., rows, :], given[1]))
            centre = x.mean(axis=-2, keepdims=True)  # a gradient does not change when all points move
            for points, part in zip((x, y), costs.block_adjoint(xp, gradient, problems, rows), strict=True):
                out["factor"] += linear.factor_adjoint(points - centre, part.astype(np.float64))
    return out
