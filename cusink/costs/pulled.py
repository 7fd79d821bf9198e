"""Gradients with respect to the points of a cloud, in the shapes that the user passed."""

from cusink.checks.arrays import narrowed
from cusink.costs.directions import unit_tangent
from cusink.costs.points import Cloud
from cusink.types import Array, ArrayModule


def to_points(xp: ArrayModule, cloud: Cloud, gx: Array, gy: Array) -> list[Array]:
    """Return the gradients with respect to the points of a cloud, given those by the points or their directions."""
    out = []
    for given, gradient in zip((cloud.x, cloud.y), (gx, gy), strict=True):
        gradient = gradient[None] if gradient.ndim < given.ndim else gradient  # a batch of one
        out.append(unit_tangent(xp, given, gradient) if cloud.metric == "cosine" else gradient)
    return out


def to_user_points(xp: ArrayModule, cloud: Cloud, gradients: list[Array]) -> tuple[Array, Array | None]:
    """Return the gradients in the shapes that the user passed.

    With one cloud on both sides the first is that of the points as sources and as targets, and the second is None.
    """
    out = [g[..., 0] if flat else g for g, flat in zip(gradients, cloud.flat, strict=True)]
    if cloud.x is cloud.y:
        total = out[0] + (out[1][..., 0] if cloud.flat[0] else out[1])
        return narrowed(total, cloud.x.dtype, xp), None
    return narrowed(out[0], cloud.x.dtype, xp), narrowed(out[1], cloud.x.dtype, xp)
