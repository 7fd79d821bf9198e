"""What the iterations between the cells of a grid share: the passes along its axes, their graphs, their results."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cusink.backends.cupy.forms import captured
from cusink.backends.cupy.run import choose_launch, run, sizes
from cusink.types import Array


class Advanced(NamedTuple):
    """Potentials (B, n), bounds on the errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    error: Array
    inside: Array


class Finished(NamedTuple):
    """Potentials (B, n), costs (B,), errors (B,), and which problems (B,) lost nothing."""

    f: Array
    g: Array
    cost: Array
    error: Array
    inside: Array


class Pass(NamedTuple):
    """A pass along one axis, as the ``Shape`` of ``grid_tiles.cuh``."""

    problems: int
    lines: int  # of each problem
    cells: int  # of each line
    out_problem: int  # where a sum goes, by its problem, cell and line
    out_cell: int
    out_line: int


def passes(cells: tuple[int, ...], B: int) -> list[Pass]:
    """Return the passes along the axes of a grid, the last axis first."""
    n = math.prod(cells)
    if len(cells) == 1:  # the axis stays where it is, and its problems are lines
        return [Pass(1, B, n, 0, 1, n)]
    return [Pass(B, n // count, count, n, n // count, 1) for count in reversed(cells)]


def run_pass(operator: str, shape: Pass, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Launch a kernel that makes products along an axis; its sizes come last."""
    launch = choose_launch(operator, shape.problems, shape.lines, shape.cells, dtype)
    run(launch, dtype, *arguments, *sizes(*shape))


def run_cells(operator: str, like: Array, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Launch a kernel over arrays (B, n) such as `like`; its sizes come last."""
    B, n = like.shape
    run(choose_launch(operator, B, n, 1, dtype), dtype, *arguments, *sizes(B, n))


def replayed(graphs: dict[int, Any], count: int, launch: Callable[[], None]) -> None:
    """Launch the kernels of `count` iterations: one by one at first, when they are loaded, later as a graph."""
    if count not in graphs:
        launch()
        graphs[count] = None
        return
    if graphs[count] is None:
        graphs[count] = captured(launch)
    graphs[count].launch()
