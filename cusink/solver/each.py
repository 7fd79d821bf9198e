"""Solve problems that have one eps, or one each."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.costs.each import costs_of, groups, per_problem
from cusink.solver.coarse import coarse_start
from cusink.solver.loop import Start, solve
from cusink.solver.solution import Callback, Solution, later
from cusink.solver.symmetric import SelfSolution, self_potentials
from cusink.solver.unbalanced import UnbalancedIteration, partnered
from cusink.types import Array, Eps, HostArray, Reach

Potentials = tuple[Array, Array]


@dataclass(frozen=True)
class HowToSolve:
    """Options, prices of the marginals, and what `solve` is told of the problems."""

    options: Options
    reach: Reach | None
    together: int  # problems that share an iteration, more or less
    spanned: bool = False  # whether the bins with weight say in which range the costs lie
    coarse: bool = False  # whether large problems begin from coarse ones, where these pay, and not from `init`
    judge: bool = False
    defer: bool = False  # whether potentials may be left for later


def solve_each(
    C: Cost[Any],
    a: Array,
    b: Array,
    eps: Eps,
    how: HowToSolve,
    *,
    init: Potentials | None = None,
    callback: Callback | None = None,
) -> tuple[Solution, Array | None]:
    """Solve checked problems; with prices return the shifts (B,) of the potentials too.

    Problems of equal eps are one batch. Balanced ones with stored costs of their own are one batch whatever their eps,
    in the unit of which their costs are taken.
    """
    if not isinstance(eps, np.ndarray):
        return _solve_one(C, a, b, eps, how, init, callback)
    if (eps == eps[0]).all():
        return _solve_one(C, a, b, float(eps[0]), how, init, callback)
    how = replace(how, defer=False)
    low, high = C.range()
    if not math.isfinite((high - low) / float(eps.min())):
        raise ValueError(
            f"'eps' must be such that C / eps is finite; got {eps.min():g} in a batch with costs of up to {high:g}"
        )
    if how.reach is None and (unit := C.widened().in_units_of(eps)) is not None:
        return _solve_in_units(unit, a, b, eps, how, init, callback), None
    out, shift = Solution.empty(C.xp, a, b), None if how.reach is None else C.xp.zeros(len(a))
    for value, at in groups(eps):
        start = None if init is None else (init[0][at], init[1][at])
        found, moved = _solve_one(costs_of(C, at), a[at], b[at], value, how, start, later(callback, out, at))
        out.put(at, found)
        out = out._replace(computed=found.computed)
        if shift is not None:
            shift[at] = moved
    return out, shift


def _solve_one(
    C: Cost[Any],
    a: Array,
    b: Array,
    eps: float,
    how: HowToSolve,
    init: Potentials | None,
    callback: Callback | None,
) -> tuple[Solution, Array | None]:
    """Solve problems of one eps."""
    start: Start | None = None
    shift: Array | None = None
    if how.reach is not None:
        shift = C.xp.zeros(len(a))
        start = functools.partial(UnbalancedIteration, reach=how.reach, shift=shift)
        a, b = partnered(C, a, b)
    span = C.span(a > 0, b > 0) if how.spanned else None
    begun, options = None, how.options
    if how.coarse and how.reach is None and options.method == "auto":
        begun = coarse_start(solve, C, a, b, eps, options)
    if begun is not None:
        C, init, options = begun[:3]
    found = solve(
        C,
        a,
        b,
        eps,
        options,
        init=init,
        callback=callback,
        start=start,
        span=span,
        costs_of=C.at if how.reach is None else None,
        judge=how.judge and begun is None,
        annealed=begun is not None,
        together=how.together,
        defer=how.defer,
    )
    if begun is not None:
        found = found._replace(stages=begun.stages)
    if shift is not None and init is not None and how.judge and options.max_iter > 1:
        far = np.flatnonzero(~found.converged & (found.n_iter == 1))
        if len(far):  # from the solution: they begin without `init`
            rest = replace(how, options=replace(options, max_iter=options.max_iter - 1))
            again = later(callback, found, far)
            cold, shift[far] = _solve_one(costs_of(C, far), a[far], b[far], eps, rest, None, again)
            found.put(far, cold._replace(n_iter=cold.n_iter + 1))
    return found, shift


def _solve_in_units(
    unit: Cost[Any],
    a: Array,
    b: Array,
    eps: HostArray,
    how: HowToSolve,
    init: Potentials | None,
    callback: Callback | None,
) -> Solution:
    """Solve problems whose costs in float64 are divided by their eps, with the eps 1."""
    dtype, scale = a.dtype, per_problem(unit.xp, eps, unit.xp.zeros((1, 1)))
    if dtype != np.float64:  # masses that were equal in float32 are so in float64
        a, b = a.astype(np.float64), b.astype(np.float64)
        b *= (a.sum(axis=1) / b.sum(axis=1))[:, None]
    init = None if init is None else (init[0] / scale, init[1] / scale)
    found, _ = _solve_one(unit, a, b, 1.0, how, init, callback)
    return found._replace(f=found.f * scale, g=found.g * scale, cost=(found.cost * scale[:, 0]).astype(dtype))


def self_potentials_each(
    C: Cost[Any], a: Array, eps: Eps, options: Options, rho: float, *, coarse: bool = False
) -> SelfSolution:
    """Solve ``OT_eps(a, a)`` as `self_potentials` does, for one eps or one each.

    A single large problem of given marginals may begin from `coarse` ones.
    """
    if isinstance(eps, np.ndarray) and len(eps) == 1:
        eps = float(eps[0])
    if not isinstance(eps, np.ndarray):
        single = coarse and len(a) == 1 and options.method == "auto"
        begun = _coarse_self_potentials(C, a, eps, options) if single else None
        return self_potentials(C, a, eps, options, rho) if begun is None else begun
    size = len(eps)
    a = a if len(a) == size else C.xp.ascontiguousarray(C.xp.broadcast_to(a, (size, a.shape[1])))
    parts = [(at, self_potentials(costs_of(C, at), a[at], value, options, rho)) for value, at in groups(eps)]
    out = SelfSolution(
        C.xp.empty_like(a), C.xp.empty(size), np.empty(size), np.empty(size, np.int64), np.empty(size, bool)
    )
    for at, part in parts:
        for target, result in zip(out[:5], part[:5], strict=True):
            target[at] = result
    return out


def _coarse_self_potentials(C: Cost[Any], a: Array, eps: float, options: Options) -> SelfSolution | None:
    """Solve ``OT_eps(a, a)`` of a large cloud from coarse to fine, symmetric on the way; None where that does not pay.

    What `self_potentials` says of its solution holds, but f is in float64.
    """
    begun = coarse_start(_with_itself, C, a, a, eps, options)
    if begun is None:
        return None
    found, filled = self_potentials(begun.C, a, eps, begun.options, start=begun.init[0]), a[0] > 0
    if not filled.all():
        rows, columns = (C.xp.flatnonzero(mask) for mask in (~filled, filled))
        logits = C.xp.log(a[:, columns].astype(np.float64)) + found.f[:, columns] / eps
        found.f[:, rows] = C.between(rows, columns).softmin(logits, eps, 1)
    return found._replace(stages=begun.stages)


def _with_itself(
    C: Cost[Any], a: Array, b: Array, eps: float, options: Options, *, init: Potentials | None, **_: Any
) -> SelfSolution:
    """Solve a problem on the way whose sides are one, as the loop of the solver does others."""
    del b
    return self_potentials(C, a, eps, options, start=None if init is None else init[0])
