"""Iterations of unbalanced transport between the cells of a grid, whose updates are in the last pass of a softmin."""

from collections.abc import Callable

import cupy as cp
import numpy as np

from cusink.backends.cupy.grid_logs import LineSoftmin, Shift
from cusink.backends.cupy.run import NULL
from cusink.backends.cupy.unbalanced import KernelSteps, step_down, translate
from cusink.costs.operators import Damped
from cusink.types import Array, Axis, Reach


class GridSteps(KernelSteps):
    """`cusink.costs.operators.DampedSteps` by the kernels of ``unbalanced.cu`` and ``grid_logs.cu``."""

    def iterate(
        self,
        softmin: Callable[[Array, Axis], Array],
        rows: tuple[Array, Array],
        columns: tuple[Array, Array],
        start: Damped,
        excess: Array | None,
        eps: float,
        reach: Reach,
        count: int,
    ) -> Damped | None:
        """Take `count` iterations: a launch for each pass, and one for the shift where a line has a single pass."""
        if not isinstance(softmin, LineSoftmin):
            return None
        rows, columns = (tuple(map(cp.ascontiguousarray, side)) for side in (rows, columns))
        f, g, t = (cp.array(x) for x in (start.f, start.g, start.t))
        p, q, image, *spare = (cp.empty_like(f) for _ in range(5))
        q[...] = start.logits
        past, parts = NULL if excess is None else cp.ascontiguousarray(excess), softmin.parts(len(f))
        of_a, of_b = (cp.empty((len(f), parts, 2), np.float64) if parts else NULL for _ in "ab")
        moved = Shift(t, (of_a, of_b), reach, parts)
        still = moved._replace(shift=NULL)
        up, down = ((sign, eps, rho, step_down(eps, rho)) for sign, rho in zip((1, -1), reach, strict=True))
        for k in range(count):
            if k:
                softmin.damped_step((g, q, NULL, of_b), p, (*columns, t, past), down, (spare[0], spare[1]), still)
                if not parts:
                    translate(t, rows[0], columns[0], f, g, reach)
            kept, shift = image if k + 1 == count else NULL, moved if k and parts else still
            softmin.damped_step((f, p, kept, of_a), q, (*rows, t, past), up, (spare[0], spare[1]), shift)
        return Damped(f, g, t, p, image)


GRID_STEPS = GridSteps()
