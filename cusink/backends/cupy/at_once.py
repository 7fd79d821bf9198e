"""Small problems solved at once: three launches and one copy to the host, which looks at the outcome alone.

``begin_at_once`` weighs the input and starts the problems, ``iterate`` takes all iterations and makes all checks, and
``end_at_once`` makes what a result holds. Nothing waits in between.
"""

from typing import Any

import cupy as cp
import numpy as np

from cusink.backends.cupy.forms import LOG, METHODS, SHIFT
from cusink.backends.cupy.run import LOG2_E, NULL, choose_launch, device, find_launch, run, sizes
from cusink.backends.cupy.stopping import StopRules
from cusink.convergence.rules import (
    FIRST_OMEGA,
    FIRST_OMEGA_IF_STEEP,
    LARGEST_OMEGA,
    LEAST_OBSERVED,
    PLAIN_IF_ONE_BIN,
    PROGRESS,
    RELAX_ABOVE,
    RELAX_LATER_ABOVE,
    STALLED_CHECKS,
    rounding_level,
)
from cusink.costs.at_once import FACTS, AdjointAtOnce, AtOnce, AtOnceRules, Facts, FitRules, SolvedArrays
from cusink.types import Array

MOST_ITERATIONS = 500  # with a tolerance: a problem that takes more is better looked at in between
WAVES = 4  # of blocks: of more problems, those that share a cost are faster some to a block
BLOCKS = 2  # of iterate to a multiprocessor


def solve_at_once(C: Array, a: Array | None, b: Array | None, B: int, eps: float, rules: AtOnceRules) -> AtOnce | None:
    """Return the solutions of B problems, see `cusink.costs.at_once.AtOnce`; None where they are too large or many.

    C (n, m) or (B, n, m), a (n,), (1, n) or (B, n), b likewise, or None for uniform weights.
    """
    (n, m), dtype = C.shape[-2:], C.dtype
    method = METHODS[rules.method]
    launch = find_launch("iterate", B, n, m, dtype, shared_cost=False, log=method == LOG)
    if launch is None or B > WAVES * BLOCKS * device().multiprocessors:
        return None
    C = cp.ascontiguousarray(C)
    a, b = (None if w is None else cp.ascontiguousarray(w) for w in (a, b))
    strides = [np.int64(bins if w is not None and w.size > bins else 0) for w, bins in ((a, n), (b, m))]
    cost_stride = np.int64(n * m if C.ndim == 3 else 0)
    shape = (*strides, cost_stride, *sizes(B, n, m))
    count, checks = rules.max_iter, 1
    if rules.tol is not None:
        count = min(rules.check_every, rules.max_iter)
        checks = max(1, min(rules.max_iter, MOST_ITERATIONS) // count)
    tol = np.float64(-1.0 if rules.tol is None else rules.tol)
    rounding = (tol, np.float64(rules.carried), np.float64(rules.of_exponents))
    scales = (np.float64(eps), np.float64(LOG2_E / float(eps)))

    kept_a, kept_b, kept_C = cp.empty((B, n), dtype), cp.empty((B, m), dtype), cp.empty(C.shape, dtype)
    rows, columns = cp.empty((3, B, n), dtype), cp.empty((3, B, m), dtype)
    (wa, u, p), (wb, v, q) = rows, columns
    minimum, omega, deviation = cp.empty((3, B), dtype)
    gauge, mass = cp.empty((2, B))
    states, own_rules, facts, taken = cp.empty((B, 8)), cp.empty((B, 3)), cp.empty((B, FACTS)), cp.empty(B, np.int64)
    started = (kept_a, kept_b, kept_C, wa, wb, u, p, v, q, minimum, omega, gauge, mass, states, own_rules, facts)
    inputs = tuple(NULL if w is None else w for w in (a, b))
    begin = choose_launch("begin_at_once", B, n, m, dtype)
    shift = np.float64(0 if method == LOG else SHIFT[dtype])
    run(begin, dtype, *started, *inputs, C, *scales, *rounding, *_omegas(rules, dtype), shift, *shape)

    stop = StopRules(
        *(tol, np.float64(0), np.float64(PROGRESS), np.float64(0), np.float64(LARGEST_OMEGA)),
        *(np.int32(STALLED_CHECKS), np.int32(rules.omega is None), np.int32(LEAST_OBSERVED)),
    )
    inout = (u, p, v, q, deviation, gauge, states, taken)
    counts = map(np.int32, (method, count, checks, 0))
    given = (C, minimum, NULL, wa, wb, NULL, mass, own_rules)
    run(launch, dtype, *inout, *given, *stop, scales[1], *counts, cost_stride, np.int64(B), np.int32(n), np.int32(m))

    f, g = cp.empty((B, n)), cp.empty((B, m))
    same = dtype == np.float64
    shown = (f, g) if same else (cp.empty((B, n), dtype), cp.empty((B, m), dtype))
    cost, reg_cost, entropic_cost, error = cp.empty((4, B), dtype)
    n_iter, converged = cp.empty(B, np.int64), cp.empty(-(-B // 4), np.int32)
    made = (f, g, *shown, cost, reg_cost, entropic_cost, error, n_iter, converged, facts)
    solved = (kept_a, kept_b, C, wa, wb, v, q, deviation, gauge, mass, taken)
    end = choose_launch("end_at_once", B, n, m, dtype)
    run(end, dtype, *made, *solved, *scales, *rounding, cost_stride, *sizes(B, n, m))
    values = (cost, reg_cost, entropic_cost, error, n_iter, converged.view(np.bool_)[:B])
    return AtOnce(kept_a, kept_b, kept_C, f, g, *shown, *values, Facts(*cp.asnumpy(facts).T))


def adjoint_at_once(
    C: Array, given: SolvedArrays, cotangents: tuple[float | Array, float | Array], eps: float, rules: FitRules
) -> AdjointAtOnce | None:
    """Return the gradients of values of B problems, see `cusink.costs.at_once.AdjointAtOnce`; None if too large."""
    a, b, f, g, solved = map(cp.ascontiguousarray, given)
    (B, n), m, dtype = a.shape, b.shape[1], C.dtype
    launch = find_launch("adjoint_at_once", B, n, m, dtype)
    if launch is None or B > WAVES * BLOCKS * device().multiprocessors:
        return None
    x, y, of_a, of_b = (cp.empty((B, bins), dtype) for bins in (n, m, n, m))
    own = C.ndim == 3
    of_C = cp.empty(C.shape, dtype) if own or B == 1 else None
    of_eps, facts = cp.empty(B, dtype), cp.empty((B, 3))
    converged = cp.empty(-(-B // 4), np.int32)
    made = (of_a, of_b, NULL if of_C is None else of_C, x, y, of_eps, converged, facts)
    numbers = [np.float64(value if isinstance(value, float) else 0) for value in cotangents]
    arrays = [NULL if isinstance(value, float) else cp.ascontiguousarray(value) for value in cotangents]
    tol = np.float64(max(rules.tol, 32 * float(np.finfo(dtype).eps)))
    scalars = (
        *numbers,
        np.float64(eps),
        np.float64(LOG2_E / eps),
        tol,
        np.int32(rules.max_iter),
        np.int32(rules.rounds),
    )
    shape = (np.int64(n * m if own else 0), np.int64(B), np.int32(n), np.int32(m))
    inputs = (a, b, f, g, cp.ascontiguousarray(C), solved.view(np.int8), *arrays)
    run(launch, dtype, *made, *inputs, *scalars, *shape)
    return AdjointAtOnce(of_a, of_b, of_C, of_eps, x, y, converged.view(np.bool_)[:B], *cp.asnumpy(facts).T)


def _omegas(rules: AtOnceRules, dtype: np.dtype[Any]) -> tuple[np.float64, ...]:
    """Return the level of rounding for costs of no size, and the rules by which omega is first chosen."""
    begin_steep = FIRST_OMEGA_IF_STEEP if rules.check_every >= LEAST_OBSERVED else 1.0
    numbers = (rounding_level(dtype, 0.0), rules.omega or 0.0, begin_steep, FIRST_OMEGA, FIRST_OMEGA_IF_STEEP)
    limits = (RELAX_ABOVE, RELAX_LATER_ABOVE, rules.nearly_all, PLAIN_IF_ONE_BIN)
    return tuple(map(np.float64, (*numbers, *limits)))
