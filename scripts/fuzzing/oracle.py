"""The optimum of small problems in float64, from the tests' oracle, with how far from it an answer may be."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import reference

from fuzzing.case import NAN, WRONG, Finding
from fuzzing.claims import ROUNDINGS, UNITS, Claimed, Problem


class Optimum(NamedTuple):
    """Potentials, plan and values at the optimum, up to a marginal `error`.

    `contraction` is that of the plain iteration there, 0 fast and 1 never.
    """

    f: np.ndarray
    g: np.ndarray
    plan: np.ndarray
    values: reference.Values
    contraction: float
    error: float


def optimum(problem: Problem) -> Optimum | None:
    """Return the optimum of a balanced problem; None where the oracle does not reach it."""
    a, b, C, eps = problem[:4]
    finite = C[np.isfinite(C)]
    if problem.reach is not None or C.size > 120 or not len(finite) or not (a.any() and b.any()):
        return None
    least = min(float(w[w > 0].min() / w.sum()) for w in (a, b))
    if least < 1e-30 or not 1e-30 < a.sum() < 1e30:
        return None
    ordinary = np.abs(C) <= 100 * np.median(np.abs(finite)) + eps
    if np.ptp(finite) > 1e5 * eps:  # what is far above the rest is as good as forbidden, if the potentials say so
        C = np.where(ordinary, C, np.inf)
        if not ordinary.any() or np.ptp(C[ordinary]) > 1e5 * eps:
            return None
    with np.errstate(all="ignore"):
        found = reference.solve(a, b, C, eps)
        if not found.error < 1e-11 or not np.isfinite(found.f).all() or not np.isfinite(found.g).all():
            return None
        P = reference.plan(a, b, C, eps, found.f, found.g)
        if C is not problem.C:
            top = (found.f[:, None] + found.g - problem.C)[np.isinf(C)].max(initial=-np.inf)
            if top > -800 * eps:
                return None
        core = P[np.ix_(a > 0, b > 0)]
        core = core / np.sqrt(core.sum(axis=1))[:, None] / np.sqrt(core.sum(axis=0))
        second = np.linalg.svd(core, compute_uv=False)[1:2]
    return Optimum(found.f, found.g, P, reference.values(P, a, b, C, eps), float((second**2).sum()), found.error)


def value(problem: Problem, claimed: Claimed, dtype: str, best: Optimum) -> Iterator[Finding]:
    """Yield it if the regularised cost is farther from the optimum than the admitted marginal error explains."""
    u = UNITS[dtype][0]
    a, b = problem.a > 0, problem.b > 0
    spread = max(float(np.ptp(x[w])) for x, w in ((best.f, a), (best.g, b), (claimed.f, a), (claimed.g, b)))
    C = problem.C[np.isfinite(problem.C)]
    allowed = float(problem.a.sum()) * (
        2 * min(claimed.error, 1e300) * spread  # of one pair it may be anything, and the spread is 0
        + (ROUNDINGS * u + problem.noise) * (float(np.abs(C).max()) + spread + problem.eps)
        + problem.floor
    )
    allowed += ROUNDINGS * u * abs(best.values.reg_cost)  # of a tiny mass it is mostly eps times its logarithm
    allowed += float(problem.a.sum()) * 2 * best.error * (float(np.abs(C).max()) + spread)
    if not abs(claimed.reg_cost - best.values.reg_cost) <= allowed + 1e-300:
        yield Finding(
            WRONG,
            "reg_cost is that of the optimum",
            f"{claimed.reg_cost:.9g}",
            f"{best.values.reg_cost:.9g} within {allowed:.1g}",
        )


def plain_iterations(problem: Problem, tol: float, check_every: int, most: int) -> int | None:
    """Return after how many plain iterations a loop in float64 sees an error of `tol`; None if not by `most`.

    None too where the rounding of exponents, of which a plan carries several, may be larger: what the loop sees is not
    the error.
    """
    a, b, C, eps = problem[:4]
    if 2.0**-49 * float(np.abs(C[np.isfinite(C)]).max(initial=0)) / eps > tol:
        return None
    f = np.zeros(len(a))
    with np.errstate(all="ignore"):
        for k in range(1, most + 1):
            g = reference.softmin(C, f, a, eps, axis=0)
            f = reference.softmin(C, g, b, eps, axis=1)
            if k % check_every == 0:
                error = reference.marginal_error(reference.plan(a, b, C, eps, f, g), b)
                if not math.isfinite(error):
                    return None
                if error <= tol:
                    return k
    return None


def entry(problem: Problem, name: str, value: float, error: float, u: float) -> Finding | None:
    """Return a finding if a distance is not the value at the optimum, within its marginal error and conditioning."""
    best = optimum(problem)
    if best is None or best.contraction > 1 - 1e-4:
        return None
    a, b, C, eps = problem[:4]
    logs = max(float(np.abs(np.log(w[w > 0])).max()) for w in (a, b))
    spread = float(np.ptp(best.f[a > 0]) + np.ptp(best.g[b > 0])) + eps * (1 + logs)
    finite = float(np.abs(C[np.isfinite(C)]).max())
    off = 8 * (error + ROUNDINGS * u) / (1 - best.contraction)
    allowed = float(a.sum()) * (off * spread + (ROUNDINGS * u + problem.noise) * finite + problem.floor)
    wanted = getattr(best.values, name)
    if abs(value - wanted) <= allowed + 1e-300:
        return None
    return Finding(
        NAN if math.isnan(value) else WRONG,
        f"{name} is that of the optimum",
        f"{value:.9g}",
        f"{wanted:.9g} within {allowed:.1g}",
    )


def unbalanced_value(problem: Problem, name: str) -> float:
    """Return a value of the optimum of unbalanced transport, by damped iterations in float64."""
    a, b, C, eps, reach = problem[:5]
    assert reach is not None
    damping = [1.0 if rho == math.inf else rho / (rho + eps) for rho in reach]
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(20_000):
        g = damping[1] * reference.softmin(C, f, a, eps, axis=0)
        new = damping[0] * reference.softmin(C, g, b, eps, axis=1)
        if np.abs(new - f).max() <= 1e-15 * (np.abs(f).max() + eps):
            break
        f = new
    P = reference.plan(a, b, C, eps, f, g)
    if name == "cost":
        return reference.transport_cost(P, C)
    value = reference.transport_cost(P, C) + eps * (reference.kl_to_product(P, a, b) - P.sum() + a.sum() * b.sum())
    for sums, weights, rho in ((P.sum(axis=1), a, reach[0]), (P.sum(axis=0), b, reach[1])):
        if rho < math.inf:
            kept = weights > 0
            value += rho * float(xlogy(sums[kept], sums[kept] / weights[kept]).sum() - sums.sum() + weights.sum())
    return value
