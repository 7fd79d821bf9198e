"""Bounds as close as asked for: a linear programme over the pairs that the potentials do not rule out.

The potentials of a regularised solve are close to those of the problem without regularisation: nearly all of its
optimal plan lies on pairs whose reduced cost ``C - f - g`` is among the smallest. A linear programme over a few such
pairs for each bin is small and sparse. Its plan is feasible for the whole problem; its potentials become so by two
c-transforms. Where they show that pairs are missing, those are added and the programme is solved again, so that in the
end both bounds meet.
"""

from typing import Any, NamedTuple

import numpy as np

from cusink.errors import ConvergenceWarning, warn
from cusink.solver.bounds import outwards
from cusink.solver.problem import Problem
from cusink.types import Array, HostArray

PAIRS_PER_BIN = 3  # of the first programme
ROUNDS = 30  # programmes at most; each adds at least one pair, and nearly always the first or the second is the last
INFEASIBLE = 2  # as `scipy.optimize.linprog` has it
TOLERANCE = 1e-9  # for weights and reduced costs of mean 1


class Interval(NamedTuple):
    """Numbers between which the minimum lies, and how far rounding moves each of them."""

    lower: float = -np.inf
    upper: float = np.inf
    rounding: float = 0.0

    def relative(self) -> float:
        """Return the gap over the larger bound; 0 where the cost cannot be told from 0."""
        width = self.upper - self.lower
        if self.lower <= 0 <= self.upper and width <= 4 * self.rounding:
            return 0.0
        largest = max(abs(self.lower), abs(self.upper))
        return width / largest if largest < np.inf else np.inf


def proved_bounds(problem: Problem, gap: float) -> tuple[Array, Array]:
    """Return numbers (B,) between which the minima lie, within the relative `gap`; warn of those that are not."""
    xp, host = problem.xp, problem.C.to_host
    C, a, b, g = problem.C.astype(np.float64), host(problem.a), host(problem.b), host(problem.g)
    found, costs = [], None
    for k in range(len(a)):
        if costs is None or not C.shared:
            costs = host(C.costs_of(k, slice(0, C.shape[-2])))
        rows, columns = np.flatnonzero(a[k]), np.flatnonzero(b[k])
        part = costs if len(rows) == len(a[k]) and len(columns) == len(b[k]) else costs[np.ix_(rows, columns)]
        first, second, potential = (x.astype(np.float64) for x in (a[k, rows], b[k, columns], g[k, columns]))
        interval = _solve(first, second, part, potential, gap, problem.C.dtype.name)
        if interval is None:
            raise ValueError(
                f"'C' must allow a plan between 'a' and 'b' for 'gap' to be proved; problem {k} has none. Forbid fewer "
                "pairs with +inf, or leave mass behind with 'reach' in the place of 'gap'"
            )
        found.append(interval)
    lower, upper = (xp.asarray([getattr(each, side) for each in found]) for side in ("lower", "upper"))
    gaps = _gaps(problem, lower, upper, found)
    if (gaps > gap).any():
        warn(
            f"{(gaps > gap).sum()} of {len(gaps)} problems did not reach gap={gap:g}; the largest relative gap is "
            f"{gaps.max():.2g}, to which rounding leads. Pass float64 arrays, or accept a larger 'gap'.",
            ConvergenceWarning,
        )
    return lower, upper


@np.errstate(over="ignore")  # half precision may not hold them
def _gaps(problem: Problem, lower: Array, upper: Array, found: list[Interval]) -> HostArray:
    """Return the relative gaps (B,) of the bounds that the user gets, in the dtype of his arrays."""
    told = (outwards(problem, bound, sign) for bound, sign in ((lower, -1), (upper, 1)))
    rounded = (problem.C.to_host(bound.astype(problem.dtype).astype(bound.dtype)) for bound in told)
    gaps = []
    for low, high, each in zip(*rounded, found, strict=True):
        rounding = max(each.rounding, each.lower - low, high - each.upper)
        gaps.append(Interval(float(low), float(high), float(rounding)).relative())
    return np.array(gaps)


def _solve(a: HostArray, b: HostArray, C: HostArray, g: HostArray, gap: float, dtype: str) -> Interval | None:
    """Return bounds of one problem without empty bins, from potentials g (m,); None if it has no plan at all."""
    rounding, mass, mean = 8 * float(np.finfo(dtype).eps), float(a.sum()), len(a) / float(a.sum())
    allowed = np.isfinite(C)
    b = b * (mass / b.sum())
    f, g = _feasible(C, g if np.isfinite(g).all() else np.zeros_like(g))
    reduced = C - f[:, None]
    reduced -= g
    count, most = PAIRS_PER_BIN * (len(a) + len(b)), int(allowed.sum())
    pairs = np.union1d(_least(reduced, min(count, most)), _northwest(a, b))
    pairs = pairs[allowed.ravel()[pairs]]
    interval = Interval()
    for _ in range(ROUNDS):
        solved = _programme(a * mean, b * mean, reduced.ravel()[pairs], pairs)
        if solved is None and len(pairs) == most:
            return None
        if solved is None:  # pairs are forbidden, and those at hand do not connect all bins
            pairs = np.union1d(pairs, _least(reduced, min(4 * len(pairs), most)))
            continue
        plan, new_f, new_g = solved
        upper = _cost_of_rounded(a, b, C, plan / mean, pairs)
        missing = reduced - new_f[:, None]
        missing -= new_g
        new_f, new_g = _feasible(C, g + new_g)
        slack = rounding * mass * (abs(new_f).max() + abs(new_g).max())
        lower = max(interval.lower, float(a @ new_f + b @ new_g) - slack)
        upper = min(interval.upper, upper + slack)
        interval = Interval(min(lower, upper), upper, slack)
        more = np.setdiff1d(_least(missing, min(count, int((missing < 0).sum()))), pairs)
        if interval.relative() <= gap or not len(more):
            break
        pairs = np.union1d(pairs, more)
    return interval


def _feasible(C: HostArray, g: HostArray) -> tuple[HostArray, HostArray]:
    """Return potentials with ``f_i + g_j <= C_ij``, the largest that two c-transforms of g make."""
    f = (C - g).min(axis=1)
    return f, (C - f[:, None]).min(axis=0)


def _least(values: HostArray, count: int) -> HostArray:
    """Return the places of the `count` smallest values, in the flat array."""
    flat = values.ravel()
    return np.argpartition(flat, count - 1)[:count] if count < len(flat) else np.arange(len(flat))


def _northwest(a: HostArray, b: HostArray) -> HostArray:
    """Return the pairs of a plan that fills rows and columns in their order: with them a programme has a solution."""
    ends_a, ends_b = a.cumsum(), b.cumsum()
    starts = np.concatenate([[0.0], ends_a[:-1], ends_b[:-1]])
    rows, columns = (np.searchsorted(ends, starts, side="right") for ends in (ends_a, ends_b))
    return np.minimum(rows, len(a) - 1) * len(b) + np.minimum(columns, len(b) - 1)


def _programme(
    a: HostArray, b: HostArray, costs: HostArray, pairs: HostArray
) -> tuple[HostArray, HostArray, HostArray] | None:
    """Return the cheapest plan (pairs,) and its potentials (n,) and (m,); None if these pairs allow no plan."""
    from scipy.optimize import linprog  # takes long to import
    from scipy.sparse import csc_array

    n, m, count = len(a), len(b), len(pairs)
    unit = float(costs.mean()) or 1.0
    ends = np.stack([pairs // m, n + pairs % m], axis=1).ravel()
    matrix = csc_array((np.ones(2 * count), ends, np.arange(0, 2 * count + 1, 2)), shape=(n + m, count))
    weights, close = np.concatenate([a, b]), dict[str, Any](presolve=False)
    close |= {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE}
    for options in (close, {}):  # by its own settings HiGHS solves what it could not as closely
        found = linprog(costs / unit, A_eq=matrix, b_eq=weights, method="highs-ds", options=options)
        if found.status == INFEASIBLE:
            return None
        if found.x is not None:
            break
    else:
        raise RuntimeError(f"HiGHS gave up a linear programme of {n + m} bins and {count} pairs: {found.message}")
    potentials = found.eqlin.marginals * unit
    return np.maximum(found.x, 0), potentials[:n], potentials[n:]


def _cost_of_rounded(a: HostArray, b: HostArray, C: HostArray, plan: HostArray, pairs: HostArray) -> float:
    """Return the cost of a plan whose marginals are made right: excess is cut, what is missing is sent anywhere."""
    rows, columns = np.divmod(pairs, len(b))
    for at, wanted in ((rows, a), (columns, b)):
        have = np.bincount(at, plan, len(wanted))
        plan = plan * np.where(have > wanted, wanted / np.where(have > 0, have, 1), 1)[at]
    short_a = np.maximum(a - np.bincount(rows, plan, len(a)), 0)
    short_b = np.maximum(b - np.bincount(columns, plan, len(b)), 0)
    costs = C.ravel()[pairs]
    missing = max(short_a.sum(), short_b.sum())
    if missing <= len(pairs) * np.finfo(float).eps * a.sum():  # rounding of the sums, which +inf must not multiply
        rest = missing * abs(costs).max()
    else:
        left, right = np.flatnonzero(short_a), np.flatnonzero(short_b)
        rest = float(short_a[left] @ C[np.ix_(left, right)] @ (short_b[right] / missing))
    return float(plan @ costs + rest)
