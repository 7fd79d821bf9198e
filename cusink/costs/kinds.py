"""The kinds of cost that users pass: an array, a `cusink.PointCloud` or a `cusink.Grid`."""

from typing import Any, Literal, TypeAlias

from cusink.costs.between import KERNEL_BYTES
from cusink.costs.cells import EuclideanCosts, GridCosts
from cusink.costs.clouds import PointCloud, mapped, point_costs
from cusink.costs.grid import Grid, data_of_grid
from cusink.costs.images import Cells
from cusink.types import Array, ArrayModule

Kind: TypeAlias = Literal["dense", "points", "blocks", "grid", "cells"]


def kind_of(C: Any) -> Kind:
    """Return the kind of a cost as users pass it."""
    if isinstance(C, PointCloud):
        return "points" if C.ground.has_kernels else "blocks"
    return "grid" if isinstance(C, Grid) else "dense"


def operators_for(C: Any) -> Kind:
    """Return the word by which the operators of a cost are found: those of a grid that is no sum are of their own."""
    return "cells" if isinstance(C, Grid) and not C.is_sum else kind_of(C)


def cells_of(C: Any) -> Cells:
    """Return the shape that histograms may have beside a cost, or its data: that of a grid of several axes, or None."""
    return C.cells if isinstance(C, (Grid, GridCosts, EuclideanCosts)) and len(C.cells) > 1 else None


def named_arrays(C: Any) -> dict[str, Any]:
    """Return the arrays inside a cost, by argument name, to be checked with the other arrays of a call."""
    if isinstance(C, PointCloud):
        return {"C.x": C.x, "C.y": C.y}
    return {} if isinstance(C, Grid) else {"C": C}


def data_of(C: Any, xp: ArrayModule, dtype: Any, parts: list[Array], memory_limit: int = KERNEL_BYTES) -> Any:
    """Return a cost as operators take it: an array, `PointCosts`, `BlockCosts`, `GridCosts` or `EuclideanCosts`.

    `parts` are the arrays of `named_arrays`, converted to `dtype`; a kernel may take `memory_limit` bytes.
    """
    if isinstance(C, PointCloud):
        x, y = parts
        return point_costs(xp, C, x, y, memory_limit)
    return data_of_grid(xp, C, dtype, memory_limit) if isinstance(C, Grid) else parts[0]


def with_arrays(C: Any, function: Any) -> Any:
    """Return a cost with `function` of each of its arrays."""
    if isinstance(C, PointCloud):
        return mapped(C, function)
    return C if isinstance(C, Grid) else function(C)


def one_cloud(C: Any) -> bool:
    """Whether a cost is a cloud to itself."""
    return isinstance(C, PointCloud) and C.x is C.y
