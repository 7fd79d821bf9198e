"""Costs of losses between arrays of JAX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cusink.bridges.options import CostKind, grid_or_refuse, images


def cost_arrays(C: Any) -> tuple[CostKind, dict[str, Any]]:
    """Return the kind of a cost and its arrays by name."""
    if isinstance(getattr(C, "kind", None), CostKind):  # a `PointCloud` or a `Grid` of arrays of JAX
        return C.kind, C.arrays
    kind = grid_or_refuse(C, "an array, a cusink.jax.PointCloud or a cusink.Grid", "cusink.jax.PointCloud(x, y)")
    return (CostKind(), {"C": C}) if kind is None else (kind, {})


def as_the_metric_sees(named: dict[str, Any]) -> dict[str, Any]:
    """Return arrays of one dtype by name, with points as images under the factor of "mahalanobis" if there is one."""
    return images(named, jax.lax.stop_gradient, partial(jnp.matmul, precision="highest"))
