"""Pairs that were solved, as problems: one without padding, or a batch with it."""

from dataclasses import replace

import numpy as np

from cusink.checks.arrays import arrays
from cusink.checks.weights import equal_mass
from cusink.costs.clouds import PointCloud
from cusink.costs.kinds import named_arrays
from cusink.operand import operand
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.solver.problem import Problem
from cusink.types import Array, Eps, Reach


def alone(given: CheckedPairs, sides: tuple[Side, Side], k: int, solved: Problem, row: int) -> Problem:
    """Return pair k of two sides, which are one for a self-term, as a problem: `row` of `solved`, alone."""
    x, y = (side.points[side.item(k)] for side in sides)
    cloud = given.cloud(x, None if sides[0] is sides[1] else y)
    parts, xp, dtype = arrays(**named_arrays(cloud))
    a, f = (values[row : row + 1, : len(x)] for values in (solved.a, solved.f))
    b, g = (values[row : row + 1, : len(y)] for values in (solved.b, solved.g))
    C = operand(cloud, xp, dtype, parts, weighted=(a > 0, b > 0))
    eps = float(solved.eps[row]) if isinstance(solved.eps, np.ndarray) else solved.eps
    shift = None if solved.shift is None else solved.shift[row : row + 1]
    return replace(solved, a=a, b=b, C=C, eps=eps, f=f, g=g, shift=shift, batched=False, batch_of_one=False)


def padded(
    weights: tuple[Array, Array],
    cloud: PointCloud,
    eps: Eps,
    potentials: tuple[Array, Array],
    reach: Reach | None,
    shift: Array | None,
) -> Problem:
    """Return a batch of padded problems with their potentials (P, n) and (P, m).

    The masses of a are those of b, but where marginals have the prices `reach`.
    """
    parts, xp, dtype = arrays(**named_arrays(cloud))
    C = operand(cloud, xp, dtype, parts, weights_follow=True)
    a, b = (w.astype(C.dtype, copy=False) for w in weights)
    if reach is None:
        b = equal_mass(a, b, xp, False, dtype)
    C, (f, g) = C.weighted(a > 0, b > 0), potentials
    return Problem(a=a, b=b, C=C, eps=eps, f=f, g=g, dtype=dtype, batched=True, reach=reach, shift=shift)
