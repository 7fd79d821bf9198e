"""Grids whose distances between cells are inputs of a work, one array for each axis that has one."""

from typing import Any

from cusink.bridges.works import SPACING, Inputs
from cusink.checks.arrays import array_module, to_host
from cusink.costs.cells import Spacing
from cusink.costs.grid import checked_axes
from cusink.types import Array

GIVEN = "given"  # in the place of a spacing, or of a `reach`, that is an input


def axes_of(shape: Any, metric: str, spacing: Any, periodic: Any, of: Any) -> tuple[Any, dict[str, Any]]:
    """Return checked axes of a grid, and by name the spacings that are arrays of a library, instances of `of`."""
    if isinstance(spacing, of):
        if spacing.shape not in ((), (1,)):
            raise ValueError(
                "'spacing' must be one number for all axes, or a tuple with one entry for each; got shape "
                f"{tuple(spacing.shape)}"
            )
        numbers: Any = 1.0
    elif isinstance(spacing, (tuple, list)):
        numbers = tuple(1.0 if isinstance(x, of) else x for x in spacing)
    else:
        numbers = spacing
    axes = checked_axes(shape, metric, numbers, periodic)
    each = spacing if isinstance(spacing, (tuple, list)) else (spacing,) * len(axes.cells)
    own: dict[str, Any] = {}
    known: list[Any] = []
    for k, (x, plain, count, around) in enumerate(zip(each, axes.spacing, axes.cells, axes.periodic, strict=True)):
        if not isinstance(x, of):
            known.append(plain)
            continue
        if around:
            raise ValueError(
                f"'periodic' must be False along axis {k}, whose spacing has a gradient here. Pass a number as its "
                "spacing"
            )
        if tuple(x.shape) not in {(), (1,), (count - 1,)}:
            raise ValueError(
                f"'spacing' must have one number, or {count - 1} distances between neighbours, for axis {k} of {count} "
                f"cells; got shape {tuple(x.shape)}"
            )
        own[f"{SPACING}{k}"] = x
        known.append(GIVEN)
    return axes._replace(spacing=tuple(known)), own


def spacing_with(known: tuple[Spacing | str, ...], given: Inputs) -> tuple[Spacing, ...]:
    """Return the spacing of each axis as `cusink.Grid` takes it, numbers in the place of inputs."""
    return tuple(
        tuple(to_host(given[f"{SPACING}{k}"]).tolist()) if isinstance(x, str) else x for k, x in enumerate(known)
    )


def spacing_gradient(of_positions: tuple[Array, ...] | None, name: str, given: Inputs) -> Array:
    """Return the gradient by the distances between cells, given those by their positions: each moves all beyond it."""
    assert of_positions is not None
    moved = of_positions[int(name.removeprefix(SPACING))]
    xp, dtype = array_module(moved), given[name].dtype
    out: Array = moved[:0:-1].cumsum(dtype=float)[::-1]
    return xp.ascontiguousarray(out).astype(dtype)
