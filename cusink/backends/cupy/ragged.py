"""Pairs of clouds of unequal sizes on a GPU: all iterations of all pairs in one launch.

It is one of ``ragged.cu``, or of ``ragged_unbalanced.cu`` where marginals have a price. Pairs for which float32 has too
few digits go into a second one, in float64. The host waits for nothing but the outcome.
"""

import cupy as cp
import numpy as np

from cusink.backends.cupy.ragged_launch import RaggedLaunch, ragged_launches
from cusink.backends.cupy.run import NULL, device, run, sizes
from cusink.convergence.rules import (
    FIRST_OMEGA,
    FIRST_OMEGA_IF_STEEP,
    LARGEST_OMEGA,
    LEAST_OBSERVED,
    NO_REACH,
    PLAIN_IF_ONE_BIN,
    PROGRESS,
    RELAX_ABOVE,
    RELAX_LATER_ABOVE,
    STALLED_CHECKS,
    rounding_level,
)
from cusink.costs.points import PointCosts
from cusink.costs.ragged import RaggedPairs, RaggedRules, RaggedSolutions
from cusink.types import Array, HostArray

MOST_ITERATIONS = 500  # a pair that takes more is better looked at in between
TOO_FEW_DIGITS, SOLVED = 0, 1  # as in ragged.cu


def solve_ragged(C: PointCosts, pairs: RaggedPairs, rules: RaggedRules) -> RaggedSolutions | None:
    """Return solutions of pairs, see `cusink.costs.ragged.SolveRagged`."""
    if C.exponent not in (0.5, 1) or (C.exponent == 0.5 and C.norm == "cityblock"):
        return None
    K, unbalanced = len(pairs.eps), rules.reach is not None
    x, y = (cp.ascontiguousarray(points.T) for points in (C.x, C.y))
    eps, f, g, values = (
        cp.asarray(pairs.eps),
        cp.empty(C.x.shape[0]),
        cp.empty(C.y.shape[0]),
        cp.empty((6 if unbalanced else 5, K)),
    )
    outcome = cp.zeros((2, K), np.int64)
    arrays = (f, g, values, outcome), (eps, x, y, pairs.a, pairs.b)
    left, solved = np.arange(K), None
    for dtype in map(np.dtype, ("float32", "float64") if rules.single else ("float64",)):
        n, m = (np.diff(offsets)[left] for offsets in pairs.offsets)
        launches = ragged_launches(n, m, dtype.name, device(), rules.largest_pair, rules.memory, unbalanced)
        if not launches:
            break
        for launch in launches:
            _launch(launch, left[launch.pairs], dtype, arrays, C, pairs.offsets, rules)
        tried = left[np.concatenate([launch.pairs for launch in launches])]
        state = cp.asnumpy(outcome[1])
        left, solved = tried[state[tried] == TOO_FEW_DIGITS], state == SOLVED
    if solved is None:
        return None
    cost, reg_cost, entropy, error, mass, *shift = values
    return RaggedSolutions(f, g, cost, reg_cost, entropy, error, mass, outcome[0], solved, shift[0] if shift else None)


def _launch(
    chosen: RaggedLaunch,
    pairs: HostArray,
    dtype: np.dtype[np.floating],
    arrays: tuple[tuple[Array, ...], tuple[Array, ...]],
    C: PointCosts,
    offsets: tuple[HostArray, HostArray],
    rules: RaggedRules,
) -> None:
    """Launch the kernel for some of the pairs."""
    (rows, n), (columns, m) = ((side[pairs], np.diff(side)[pairs]) for side in offsets)
    table = cp.asarray(np.stack([pairs, rows, n, columns, m, chosen.tiles], axis=1).astype(np.int64))
    scratch = cp.empty(chosen.scratch, dtype) if chosen.scratch else NULL
    outputs, inputs = arrays
    begin_steep = FIRST_OMEGA_IF_STEEP if rules.check_every >= LEAST_OBSERVED else 1.0
    numbers = (
        *(C.factor, rules.tol, rules.steepest, rules.carried, rules.of_exponents),
        *(rounding_level(dtype, 0.0), PROGRESS, begin_steep, FIRST_OMEGA, FIRST_OMEGA_IF_STEEP),
        *(RELAX_ABOVE, RELAX_LATER_ABOVE, rules.nearly_all, PLAIN_IF_ONE_BIN, LARGEST_OMEGA),
    )
    prices = () if rules.reach is None else (*rules.reach, NO_REACH)
    counts = STALLED_CHECKS, LEAST_OBSERVED, min(rules.max_iter, MOST_ITERATIONS), rules.check_every
    run(
        chosen.launch,
        dtype,
        *(*outputs, scratch, table, *inputs),
        *map(np.int32, (C.norm == "cityblock", C.exponent == 0.5)),
        *map(np.float64, (*numbers, *prices)),
        *map(np.int32, counts),
        *sizes(len(pairs), len(inputs[0]), *C.x.shape[:1], *C.y.shape),
    )
