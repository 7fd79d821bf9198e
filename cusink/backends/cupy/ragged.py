"""Pairs of clouds of unequal sizes on a GPU: all iterations of all pairs in one launch, and all gradients in another.

The first is one of ``ragged.cu``, or of ``ragged_unbalanced.cu`` where marginals have a price. Pairs for which float32
has too few digits go into a second one, in float64. The host waits for nothing but the outcome.
"""

from typing import Any

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
    STEPS,
    rounding_level,
)
from cusink.costs.points import PointCosts
from cusink.costs.ragged import RaggedFit, RaggedGradients, RaggedPairs, RaggedRules, RaggedSolutions
from cusink.types import Array, HostArray

MOST_ITERATIONS = 500  # a pair that takes more is better looked at in between
TOO_FEW_DIGITS, SOLVED = 0, 1  # as in ragged.cu


def solve_ragged(C: PointCosts, pairs: RaggedPairs, rules: RaggedRules) -> RaggedSolutions | None:
    """Return solutions of pairs, see `cusink.costs.ragged.SolveRagged`."""
    if not _has_kernel(C):
        return None
    K, kernel = len(pairs.eps), "ragged" if rules.reach is None else "ragged_unbalanced"
    f, g, values = cp.empty(C.x.shape[0]), cp.empty(C.y.shape[0]), cp.empty((6 if rules.reach is None else 7, K))
    outcome = cp.zeros((2, K), np.int64)
    outputs, inputs = (f, g, values, outcome), _inputs(C, pairs)
    left, solved = np.arange(K), None
    for dtype in map(np.dtype, ("float32", "float64") if rules.single else ("float64",)):
        n, m = (np.diff(offsets)[left] for offsets in pairs.offsets)
        launches = ragged_launches(n, m, dtype.name, device(), rules.largest_pair, rules.memory, kernel)
        if not launches:
            break
        scalars = _rules(C, rules, dtype)
        for launch in launches:
            _launch(launch, left[launch.pairs], dtype, outputs, inputs, scalars, C, pairs.offsets, K)
        tried = left[np.concatenate([launch.pairs for launch in launches])]
        state = cp.asnumpy(outcome[1])
        left, solved = tried[state[tried] == TOO_FEW_DIGITS], state == SOLVED
    if solved is None:
        return None
    cost, reg_cost, entropy, error, mass, spread, *shift = values
    known = cost, reg_cost, entropy, error, mass, spread, outcome[0], solved
    return RaggedSolutions(f, g, *known, shift[0] if shift else None)


def adjoint_ragged(
    C: PointCosts,
    pairs: RaggedPairs,
    which: HostArray,
    potentials: tuple[Array, Array],
    shift: Array | None,
    cotangents: tuple[Array, Array, Array],
    rules: RaggedFit,
) -> RaggedGradients | None:
    """Return gradients of pairs, see `cusink.costs.ragged.PullRagged`."""
    if not _has_kernel(C):
        return None
    K, solved = len(pairs.eps), cp.zeros(len(pairs.eps), np.int64)
    (a, b), (x, y) = (cp.empty(z.shape[:1]) for z in (C.x, C.y)), (cp.empty(z.shape) for z in (C.x, C.y))
    made = RaggedGradients(a, b, x, y, cp.empty(K), cp.empty((K, 2)))
    inputs = (*_inputs(C, pairs), *potentials, cp.zeros(K) if shift is None else shift, *cotangents)
    apart = rules.apart if C.norm == "squared" and C.exponent == 1 else 0.0
    for dtype in map(np.dtype, ("float32", "float64") if rules.single else ("float64",)):
        n, m = (np.diff(offsets)[which] for offsets in pairs.offsets)
        launches = ragged_launches(n, m, dtype.name, device(), rules.largest_pair, rules.memory, "ragged_adjoint")
        if sum(len(launch.pairs) for launch in launches) < len(which):
            return None
        tol = max(rules.tol, 32 * float(np.finfo(dtype).eps))
        prices = (np.inf, np.inf) if rules.reach is None else rules.reach
        numbers, counts = (C.factor, *prices, tol, apart), (rules.max_iter, rules.rounds)
        scalars = (*_kind(C), *map(np.float64, numbers), *map(np.int32, counts))
        for launch in launches:
            _launch(launch, which[launch.pairs], dtype, (*made, solved), inputs, scalars, C, pairs.offsets)
        which = which[cp.asnumpy(solved)[which] != SOLVED]
        if not len(which):
            return made._replace(reach=None) if rules.reach is None else made
    return None


def _has_kernel(C: PointCosts) -> bool:
    """Return whether the kernels know the cost."""
    return C.exponent == 1 or (C.exponent == 0.5 and C.norm == "squared")


def _inputs(C: PointCosts, pairs: RaggedPairs) -> tuple[Array, ...]:
    """Return what all kernels take: eps, points with coordinates side by side, and weights."""
    x, y = (cp.ascontiguousarray(points.T) for points in (C.x, C.y))
    return cp.asarray(pairs.eps), x, y, pairs.a, pairs.b


def _kind(C: PointCosts) -> tuple[np.int32, ...]:
    """Return which costs they are."""
    return np.int32(C.norm == "cityblock"), np.int32(C.exponent == 0.5)


def _rules(C: PointCosts, rules: RaggedRules, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return the scalars of a solve."""
    begin_steep = FIRST_OMEGA_IF_STEEP if rules.check_every >= LEAST_OBSERVED else 1.0
    numbers = (
        *(C.factor, rules.tol, rules.steepest, rules.carried, rules.of_exponents),
        *(rounding_level(dtype, 0.0), PROGRESS, begin_steep, FIRST_OMEGA, FIRST_OMEGA_IF_STEEP),
        *(RELAX_ABOVE, RELAX_LATER_ABOVE, rules.nearly_all, PLAIN_IF_ONE_BIN, LARGEST_OMEGA, *STEPS),
        *(() if rules.reach is None else (*rules.reach, NO_REACH)),
    )
    counts = STALLED_CHECKS, LEAST_OBSERVED, min(rules.max_iter, MOST_ITERATIONS), rules.check_every
    return *_kind(C), *map(np.float64, numbers), *map(np.int32, counts)


def _launch(
    chosen: RaggedLaunch,
    which: HostArray,
    dtype: np.dtype[Any],
    outputs: tuple[Array, ...],
    inputs: tuple[Array, ...],
    scalars: tuple[Any, ...],
    C: PointCosts,
    offsets: tuple[HostArray, HostArray],
    *counts: int,
) -> None:
    """Launch a kernel for the pairs `which` (P,); `counts` are further sizes that it takes."""
    (rows, n), (columns, m) = ((side[which], np.diff(side)[which]) for side in offsets)
    table = cp.asarray(np.stack([which, rows, n, columns, m, chosen.tiles], axis=1).astype(np.int64))
    scratch = cp.empty(chosen.scratch, dtype) if chosen.scratch else NULL
    last = sizes(len(which), *counts, C.x.shape[0], *C.y.shape)
    run(chosen.launch, dtype, *outputs, scratch, table, *inputs, *scalars, *last)
