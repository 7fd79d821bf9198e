"""From the points of the data to those of the user, in the shapes that came, and back: gradients and moves."""

from typing import Any, NamedTuple

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.between import BetweenPoints, Cloud, Embedding
from cusink.types import Array, ArrayModule


class PointMoves(NamedTuple):
    """How points move: those of the user, and those of the data, which may be images."""

    given: tuple[Array, Array]
    data: tuple[Array, Array]


def to_points(xp: ArrayModule, embedding: Embedding | None, cloud: Cloud, gx: Array, gy: Array) -> list[Array]:
    """Return the gradients with respect to the points of a cloud, given those by the points or their images."""
    out = []
    for given, gradient in zip((cloud.x, cloud.y), (gx, gy), strict=True):
        gradient = gradient[None] if gradient.ndim < given.ndim else gradient  # a batch of one
        out.append(gradient if embedding is None else embedding.pulled(xp, given.astype(np.float64), gradient))
    return out


def as_given(gradient: Array, batch: int | None) -> Array:
    """Return a gradient (B, n, d) by points that came with a batch axis of that size: summed where they are shared."""
    if gradient.ndim < 3 or batch == len(gradient):
        return gradient
    total: Array = gradient.sum(axis=0, keepdims=batch is not None)
    return total


def to_user_points(xp: ArrayModule, cloud: Cloud, gradients: list[Array]) -> tuple[Array, Array | None]:
    """Return the gradients in the shapes that the user passed.

    With one cloud on both sides the first is that of the points as sources and as targets, and the second is None.
    """
    out = [as_given(g, batch) for g, batch in zip(gradients, cloud.batches, strict=True)]
    out = [g[..., 0] if flat else g for g, flat in zip(out, cloud.flat, strict=True)]
    if cloud.x is cloud.y:
        total = out[0] + (out[1][..., 0] if cloud.flat[0] else out[1])
        return narrowed(total, cloud.x.dtype, xp), None
    return narrowed(out[0], cloud.x.dtype, xp), narrowed(out[1], cloud.x.dtype, xp)


def plan_adjoint(
    C: Any, level: float, a: Array, b: Array, f: Array, g: Array, eps: float
) -> tuple[Array, Array | None] | None:
    """Return the gradients of ``level <P, C>`` by the user's points for a plan that stays, as `PullPlan` says."""
    pull = C.ops.pull_plan
    found = None if pull is None else pull(C.data, a, b, f, g, eps)
    if found is None:
        return None
    cloud = C.data.cloud
    return to_user_points(C.xp, cloud, to_points(C.xp, C.data.embedding, cloud, *(level * x for x in found)))


def image_moves(xp: ArrayModule, costs: BetweenPoints, x: Array, y: Array) -> tuple[Array, Array]:
    """Return how the points of the data move with those of the user."""
    cloud, embedding, moves = costs.cloud, costs.embedding, [x, y]
    assert cloud is not None
    if embedding is not None:
        sides = zip((cloud.x, cloud.y), moves, strict=True)
        moves = [embedding.tangent(xp, points.astype(np.float64), move) for points, move in sides]
    if costs.ndim < cloud.x.ndim:  # a batch of one
        moves = [move[0] for move in moves]
    return moves[0], moves[1]


def add_curvature(
    xp: ArrayModule,
    embedding: Embedding,
    cloud: Cloud,
    out: list[Array],
    gradients: list[Array],
    moves: tuple[Array, Array],
) -> None:
    """Add to `out`, for both sides, by how much `to_points` of `gradients` that stay changes while points move."""
    for k, points in enumerate((cloud.x, cloud.y)):
        gradient = gradients[k][(None,) * (points.ndim - gradients[k].ndim)]  # of a batch of one
        out[k] = out[k] + embedding.curvature(xp, points.astype(np.float64), gradient, moves[k])
