"""One pair out of many that were solved together, as a problem without padding."""

from dataclasses import replace

import numpy as np

from cusink.checks.arrays import arrays
from cusink.costs.clouds import PointCloud
from cusink.costs.kinds import named_arrays
from cusink.operand import operand
from cusink.solver.pairs.checks import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.solver.problem import Problem


def alone(given: CheckedPairs, sides: tuple[Side, Side], k: int, solved: Problem, row: int) -> Problem:
    """Return pair k of two sides, which are one for a self-term, as a problem: `row` of `solved`, alone."""
    x, y = (side.points[side.item(k)] for side in sides)
    cloud = PointCloud(x, None if sides[0] is sides[1] else y, given.metric)
    parts, xp, dtype = arrays(**named_arrays(cloud))
    a, f = (values[row : row + 1, : len(x)] for values in (solved.a, solved.f))
    b, g = (values[row : row + 1, : len(y)] for values in (solved.b, solved.g))
    C = operand(cloud, xp, dtype, parts).weighted(a > 0, b > 0)
    eps = float(solved.eps[row]) if isinstance(solved.eps, np.ndarray) else solved.eps
    shift = None if solved.shift is None else solved.shift[row : row + 1]
    return replace(solved, a=a, b=b, C=C, eps=eps, f=f, g=g, shift=shift, batched=False, batch_of_one=False)
