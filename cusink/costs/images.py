"""Histograms that are images or volumes: arrays of the shape of a `cusink.Grid` in the place of its bins."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

Cells: TypeAlias = tuple[int, ...] | None  # of a histogram that came as an image; None for bins in a row

AXES = ("", "B, ", "B, K, ")  # that stand before the bins


def in_bins(name: str, x: Any, cells: Cells, axes: Sequence[str] = AXES[:2]) -> tuple[Any, Cells]:
    """Return an array of any library with its bins along one axis, and the `cells` if it came as images.

    `axes` are the names of those that may stand before the bins; None stays None. Where a shape could be read both
    ways, as (1, n) beside a grid of 1 x n cells, the bins are the last axis.
    """
    if cells is None or x is None:
        return x, None
    shape, bins = tuple(x.shape), math.prod(cells)
    leading = {head.count(",") for head in axes}
    if len(shape) - 1 in leading and shape[-1] == bins:
        return x, None
    before = len(shape) - len(cells)
    if before in leading and shape[before:] == cells:
        return x.reshape(*shape[:before], bins), cells
    image = ", ".join(map(str, cells))
    wanted = " or ".join(f"({head}{image})" for head in axes)
    raise ValueError(
        f"'{name}' must have shape {wanted} to match C, a Grid of {cells} cells, or {bins} bins in the place of these; "
        f"got {shape}"
    )


def as_images(x: Any, cells: Cells) -> Any:
    """Return an array (..., bins) with `cells` in the place of its last axis."""
    return x if cells is None else x.reshape(*x.shape[:-1], *cells)
