"""What metrics ask of points, and tables of their labels."""

import math
from typing import Any

import numpy as np

from cusink.checks.arrays import kind, one_array, to_host
from cusink.types import Array, HostArray

QUARTER_TURN = math.pi / 2 * (1 + 2.0**-22)  # in float32 too


def check_points(metric: Any, factor: HostArray | None, name: str, p: Array) -> None:
    """Check what a metric asks of the points (..., d) of a side."""
    d = p.shape[-1]
    if metric == "cosine" and not p.any(axis=-1).all():
        raise ValueError(f"'{name}' must hold no zero vector for metric 'cosine'; it has one")
    if metric in ("hellinger", "kl") and not bool((p >= 0).all()):
        raise ValueError(f"'{name}' must be non-negative for metric '{metric}'; got {float(p.min()):g}")
    if metric == "haversine":
        if d != 2:
            raise ValueError(f"'{name}' must hold pairs of latitude and longitude for metric 'haversine'; got d = {d}")
        if not bool((abs(p[..., 0]) <= QUARTER_TURN).all()):
            raise ValueError(
                f"'{name}' must have latitudes in [-pi/2, pi/2], in radians, before longitudes, for metric "
                f"'haversine'; got {float(abs(p[..., 0]).max()):g}. numpy.radians converts degrees"
            )
    if factor is not None and len(factor) != d:
        raise ValueError(f"'factor' must have a row for each of the {d} coordinates; got shape {factor.shape}")


def check_targets(metric: Any, name: str, y: Array) -> None:
    """Check what a metric asks of the points that others are compared with."""
    if metric == "kl" and not bool((y > 0).all()):
        raise ValueError(
            f"'{name}' must be positive for metric 'kl', as rows are divided by it; it holds 0. Add a small number to "
            "all of it, or leave the coordinate out"
        )


def checked_labels(table: HostArray | None, labels: Any, x: Array, y: Array) -> tuple[HostArray, HostArray] | None:
    """Check the labels of points (n, d) or (B, n, d); those of one cloud are one array."""
    if (labels is None) != (table is None):
        missing, there = ("labels", "table") if labels is None else ("table", "labels")
        raise ValueError(f"'{missing}' must be given with '{there}'; got None")
    if labels is None or table is None:
        return None
    if x is not y and (not isinstance(labels, (tuple, list)) or len(labels) != 2):
        raise TypeError(
            f"'labels' must be a pair of arrays, the labels of the points x and of y; got {kind(labels)}. Only for one "
            "cloud it is an array"
        )
    out = []
    for k, (points, given) in enumerate(((x, labels),) if x is y else zip((x, y), labels, strict=True)):
        name = "labels" if x is y else f"labels[{k}]"
        found = to_host(one_array(name, given))
        if found.dtype.kind not in "iu":
            raise TypeError(f"'{name}' must be integers; got dtype {found.dtype}")
        shape = tuple(points.shape[:-1])
        if found.shape not in (shape, shape[-1:]):
            raise ValueError(f"'{name}' must have shape {shape}, a label for each point; got {found.shape}")
        for count in table.shape if x is y else table.shape[k : k + 1]:
            if int(found.min()) < 0 or int(found.max()) >= count:
                wrong = int(found.min()) if int(found.min()) < 0 else int(found.max())
                raise ValueError(f"'{name}' must lie from 0 to {count - 1}, as 'table' has {count}; got {wrong}")
        out.append(np.ascontiguousarray(np.broadcast_to(found.astype(np.int64), shape)))
    return out[0], out[-1]
