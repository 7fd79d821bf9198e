"""The property: what a result says of itself, computed again in float64. Imports nothing of cusink.

Conventions as in the package: ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``. A tolerance is a multiple of the
roundings of the result's dtype, plus the error that the result admits to.
"""

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from fuzzing.case import NAN, WRONG, Finding

ROUNDINGS = 64  # of a dtype that a sum over a small problem may be off by
UNITS = {
    "float64": (2.0**-52, 5e-324),
    "float32": (2.0**-23, 1.5e-45),
    "float16": (2.0**-10, 6e-8),
    "bfloat16": (2.0**-7, 1e-40),
}
DEFAULT_TOL = {"float64": 1e-6, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}


class Problem(NamedTuple):
    """One problem in float64; `b` has the mass of `a` unless `reach` is given.

    Each cost may be off by `noise`, relative to the largest, and by `floor`.
    """

    a: np.ndarray
    b: np.ndarray
    C: np.ndarray
    eps: float
    reach: tuple[float, float] | None = None
    noise: float = 0.0
    floor: float = 0.0


class Claimed(NamedTuple):
    """What a result says of one problem, in float64."""

    f: np.ndarray
    g: np.ndarray
    plan: np.ndarray
    cost: float
    reg_cost: float
    entropic_cost: float
    error: float
    n_iter: int
    converged: bool


def problems(a, b, C, eps, reach=None, noise=0.0, floor=0.0) -> list[Problem]:
    """Return the problems of a batch, each with arrays of its own; balanced ones with the mass of a."""
    B = max([len(x) for x, one in ((a, 1), (b, 1), (C, 2)) if x.ndim > one], default=1)
    a, b, C = (np.broadcast_to(x, (B, *x.shape[-one:])) for x, one in ((a, 1), (b, 1), (C, 2)))
    if reach is not None:
        rho = tuple(reach) if isinstance(reach, (tuple, list)) else (reach, reach)
        reach = (math.inf if rho[0] is None else rho[0], math.inf if rho[1] is None else rho[1])
        reach = None if reach == (math.inf, math.inf) else reach
    out = []
    for a_k, b_k, C_k, eps_k in zip(a, b, C, np.broadcast_to(eps, B), strict=True):
        b_k = b_k * (a_k.sum() / b_k.sum()) if reach is None else b_k
        out.append(Problem(a_k, b_k, C_k, float(eps_k), reach, noise, floor))
    return out


def log(x: np.ndarray) -> np.ndarray:
    """Return the logarithm, -inf of 0."""
    with np.errstate(divide="ignore"):
        return np.log(x)


def times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the product in which 0 times anything is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(x == 0, 0.0, x * y)


def solution(problem: Problem, claimed: Claimed, dtype: str, tol: float | None, max_iter: int) -> Iterator[Finding]:
    """Yield the claims of a solved problem that do not hold."""
    a, b, C, eps, reach, noise = problem[:6]
    u, least = UNITS[dtype]
    broken = list(_finite(problem, claimed))
    yield from broken
    error = claimed.error
    if broken or not math.isfinite(error):
        return
    mass = max(float(a.sum()), float(b.sum()))
    slack = allowance(problem, claimed, dtype, tol)
    P = claimed.plan
    rows, columns = a, b
    if reach is not None:
        with np.errstate(over="ignore"):
            rows, columns = (
                times(w, np.exp(-p / rho)) for w, p, rho in zip((a, b), (claimed.f, claimed.g), reach, strict=True)
            )
        shown = sum(
            u * float(np.abs(times(w, p)).sum()) / rho
            for w, p, rho in zip((rows, columns), claimed[:2], reach, strict=True)
        )
        mass = max(float(columns.sum()), float(rows.sum()), least)
        slack += shown / mass if math.isfinite(shown) else math.inf
    for side, sums, wanted in (("column", P.sum(axis=0), columns), ("row", P.sum(axis=1), rows)):
        off = float(np.abs(sums - wanted).sum()) / (mass if reach is not None else max(float(wanted.sum()), least))
        if error < 1 and not off <= error * (1 + 1e-3) + slack:  # else it says that the plan means nothing
            yield Finding(WRONG, f"{side} sums of the plan", f"error {error:.3g}", f"{off:.3g}")
    if tol is not None:
        if claimed.converged and not error <= tol * (1 + 4 * u):
            yield Finding(WRONG, "converged means error <= tol", f"converged, tol {tol:g}", f"error {error:.3g}")
        if not claimed.converged and error < tol * (1 - 4 * u) and claimed.n_iter < max_iter:
            yield Finding(WRONG, "error <= tol means converged", "not converged", f"error {error:.3g}, tol {tol:g}")
    if not 0 <= claimed.n_iter <= max_iter:
        yield Finding(WRONG, "n_iter <= max_iter", str(claimed.n_iter), f"max_iter {max_iter}")
    if error < 0.1:
        yield from _gibbs(problem, claimed, slack + error, dtype)
        yield from _values(problem, claimed, slack + error + noise, dtype)


def allowance(problem: Problem, claimed: Claimed, dtype: str, tol: float | None) -> float:
    """Return the relative error of a plan that need not be admitted to.

    It is roundings of the dtype, and those of exponents in float64 as long as these are far below `tol`. Points
    share the centre of their block with points without weight: for clouds, whose costs have noise, all count.
    """
    a, b, C, eps = problem[:4]
    P = claimed.plan
    i, j = np.nonzero(np.isfinite(C) if problem.noise else P > 1e-12 * P.max(initial=0))
    exponents = (np.abs(claimed.f[i]) + np.abs(claimed.g[j]) + np.abs(C[i, j])).max(initial=0) / eps
    u, least = UNITS[dtype]
    lost = a.size * b.size * least / max(float(P.sum()), least)
    return ROUNDINGS * u + lost + min(4 * 2.0**-52 * float(exponents), 0.1 * (tol or 1e-6))


def _finite(problem: Problem, claimed: Claimed) -> Iterator[Finding]:
    """Yield what is not finite and should be."""
    for name in ("cost", "reg_cost", "entropic_cost", "error"):
        value = getattr(claimed, name)
        if not math.isfinite(value) and not (name == "error" and value == math.inf and not claimed.converged):
            yield Finding(NAN, f"{name} is finite", str(value), "a finite number")
    if not np.isfinite(claimed.plan).all():
        yield Finding(NAN, "the plan is finite", str(claimed.plan.tolist()), "finite numbers")
    allowed = np.isfinite(problem.C)
    partners = (allowed & (problem.b > 0)).any(axis=1), (allowed & (problem.a > 0)[:, None]).any(axis=0)
    for name, potential, has in zip("fg", claimed[:2], partners, strict=True):
        if not np.isfinite(potential[has]).all() or np.isnan(potential).any():
            yield Finding(NAN, f"{name} is finite", str(potential.tolist()), "finite numbers")


def _gibbs(problem: Problem, claimed: Claimed, slack: float, dtype: str) -> Iterator[Finding]:
    """Yield what shows that the plan is not that of the potentials, or of any potentials."""
    a, b, C, eps, _, noise, floor = problem
    u, least = UNITS[dtype]
    P = claimed.plan
    i, j = np.nonzero(P > 1e-12 * P.max(initial=0))
    if not len(i):
        return
    carried = np.abs(C[i, j]).max() / eps
    shown = u * (np.abs(claimed.f[i]) + np.abs(claimed.g[j])) / eps + 4 * 2.0**-52 * carried + noise * carried
    shown += (floor + 2 * least) / eps  # potentials below the least number of the dtype are shown as 0
    digits = least / P[i, j]  # entries of the plan below its range have few
    Z = log(P[i, j]) - log(a[i]) - log(b[j])
    off = np.abs(Z - (claimed.f[i] + claimed.g[j] - C[i, j]) / eps) - 4 * shown - digits
    share = P[i, j] / P.sum()
    if float((share * off).sum()) > slack:
        k = int(np.argmax(share * off))
        yield Finding(
            WRONG,
            "the plan is that of f and g",
            f"log(P/ab) {Z[k]:.6g} at {i[k], j[k]}",
            f"{Z[k] - off[k]:.6g} within {slack:.1g}",
        )
    if len(i) > 400:
        return
    # Additive up to rounding, by least squares in the mean square of the plan: no gauge, and no digits of f and g.
    root, n = np.sqrt(share), len(a)
    system = np.zeros((len(i), n + len(b)))
    system[np.arange(len(i)), i] = system[np.arange(len(i)), n + j] = root
    right = root * (Z + C[i, j] / eps)
    rest = right - system @ np.linalg.lstsq(system, right, rcond=1e-13)[0]
    rms, rounding = float(np.sqrt((rest**2).sum())), 64 * 2.0**-52 * (carried + float(np.abs(Z).max()))
    if not rms <= slack + rounding + noise * carried + floor / eps + float(np.sqrt((share * digits**2).sum())):
        yield Finding(
            WRONG,
            "the plan is a b exp((f + g - C) / eps)",
            f"error {claimed.error:.3g}",
            f"log(P / ab) + C / eps is off a sum by {rms:.3g}",
        )


def _values(problem: Problem, claimed: Claimed, slack: float, dtype: str) -> Iterator[Finding]:
    """Yield the values that do not agree with the plan and the potentials."""
    a, b, C, eps, reach = problem[:5]
    P = claimed.plan
    u, least = UNITS[dtype]
    logs = np.where(P > 0, log(P), 0.0)
    ratio = np.where(P > 0, log(P) - log(a)[:, None] - log(b), 0.0)
    rows, columns = P.sum(axis=1), P.sum(axis=0)
    cost, heavy = float(times(P, C).sum()), float(times(P, np.abs(C)).sum())
    light = 4 * u * float(times(P, np.abs(C) * np.abs(logs)).sum())  # tiny entries are exponentials of large numbers
    kl = float((P * ratio).sum()) + (0.0 if reach is None else float(a.sum() * b.sum() - P.sum()))
    entropy = float((P * logs).sum())
    around = heavy + eps * float((P * (1 + np.abs(ratio) + np.abs(logs))).sum())
    around += eps * sum(float(np.abs(times(w, log(w))).sum()) for w in (a, b))
    # The value of the potentials is that of the plan where the marginals are met; else by these terms.
    gap, shown, unmet = 0.0, 0.0, 0.0
    f, g = (np.where(w > 0, p, 0.0) for w, p in zip((a, b), claimed[:2], strict=True))
    for weights, sums, potential, rho in zip(
        (a, b), (rows, columns), (f, g), reach or (math.inf, math.inf), strict=True
    ):
        if rho == math.inf:
            gap += float(((weights - sums) * (potential - f.mean() if potential is f else potential + f.mean())).sum())
            shown += u * float((np.abs(weights - sums) * np.abs(potential)).sum())
        else:
            with np.errstate(over="ignore"):
                met = weights * np.exp(-potential / rho)
            both = (sums > 0) & (weights > 0)
            priced = rho * (np.where(both, sums * (log(sums) - log(weights)), 0) - sums + weights)
            # By its logarithm: what is met may be below the least number where a bit of mass still comes.
            with np.errstate(invalid="ignore"):
                apart = np.where(both, log(sums) - log(weights) + potential / rho, 0)
            cost_of = rho * (sums * apart - sums + met)
            gap -= float(cost_of.sum())
            shown += u * float(((sums + met) * np.abs(potential)).sum()) + slack * float(
                np.abs(priced).sum() + rho * (sums + weights).sum()
            )
            kl += float(priced.sum()) / eps
    if reach is not None:  # what a marginal is off by may all be in the bin of the largest logarithm
        logs_of = (p[w > 0] + eps * log(w[w > 0]) for p, w in ((f, a), (g, b)))
        unmet = slack * float(P.sum()) * max(float(np.abs(x).max(initial=0)) for x in logs_of)
    if reach is not None and math.inf in reach:
        f_mass = float(P.sum())
        shown += slack * f_mass * float(np.abs(f).max() + np.abs(g).max())
    entropic = cost + eps * entropy
    if reach is None:  # by the marginals that were asked for, which those of the plan approach
        entropic = cost + eps * (kl + sum(float(times(w, log(w)).sum()) for w in (a, b))) + gap
    light += problem.floor * float(P.sum())
    # An entry below the range of the dtype is shown as a multiple of the least number. Logarithms are < 1024.
    low = (P < least / u) & np.isfinite(C)
    light += least * float((np.abs(C[low]) + 1024 * eps).sum())
    expected = {
        "cost": (cost, slack * heavy + light),
        "reg_cost": (cost + eps * kl + gap, slack * around + shown + light),
        "entropic_cost": (entropic, slack * around + shown + light + unmet),
    }
    for name, (value, allowed) in expected.items():
        claim = getattr(claimed, name)
        if not abs(claim - value) <= allowed + 2 * u * abs(value) + max(least, 1e-300):  # below that it is shown as 0
            yield Finding(WRONG, f"{name} is that of the plan", f"{claim:.9g}", f"{value:.9g} within {allowed:.1g}")


def exact_cost(problem: Problem) -> float | None:
    """Return the cost without regularisation: POT's where it is installed, else SciPy's; None if it cannot tell."""
    a, b, C = problem.a, problem.b, problem.C
    kept = np.ix_(a > 0, b > 0)
    a, b, C = a[a > 0], b[b > 0], C[kept]
    # The tolerances of linear programmes are absolute; costs of another size forbid their pairs.
    sizes = np.abs(C[np.isfinite(C) & (C != 0)])
    unit = float(np.median(sizes)) if sizes.size else 1.0
    C = C / unit
    if np.isfinite(C).all() and _pot() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer, log = _pot().emd2(a / a.sum(), b / b.sum(), np.ascontiguousarray(C), log=True)
        if log["warning"] is None:  # it finds some problems of one pair infeasible
            return float(answer * a.sum()) * unit
    allowed = np.isfinite(C)
    i, j = np.nonzero(allowed)
    A = np.zeros((len(a) + len(b), len(i)))
    A[i, np.arange(len(i))] = A[len(a) + j, np.arange(len(i))] = 1
    answer = linprog(C[i, j], A_eq=A, b_eq=np.r_[a, b] / a.sum(), method="highs")
    return float(answer.fun * a.sum()) * unit if answer.status == 0 else None


_POT: list = []


def _pot():
    """Return POT, None if it is not installed; without the libraries that it would look for."""
    if not _POT:
        import os

        for library in ("PYTORCH", "JAX", "TENSORFLOW", "CUPY"):
            os.environ.setdefault(f"POT_BACKEND_DISABLE_{library}", "1")
        try:
            import ot
        except ImportError:
            ot = None
        _POT.append(ot)
    return _POT[0]


def bounded(problem: Problem, lower: float, upper: float, u: float) -> Iterator[Finding]:
    """Yield it if bounds on the exact cost do not hold; of ordinary costs, of which the exact solvers are sure."""
    C = problem.C[np.isfinite(problem.C)]
    if not (lower <= upper):
        yield Finding(NAN if math.isnan(lower + upper) else WRONG, "lower <= upper", f"{lower:.9g}", f"{upper:.9g}")
        return
    if problem.reach is not None or not len(C) or np.ptp(C) > 1e6 * max(float(np.median(np.abs(C))), 1e-9):
        return
    exact = exact_cost(problem)
    if exact is None:
        return
    slack = float(problem.a.sum()) * (1e-7 * float(np.abs(C).max()) + problem.floor) + 2 * u * abs(exact)
    if not lower - slack <= exact <= upper + slack:
        yield Finding(WRONG, "bounds hold the exact cost", f"[{lower:.9g}, {upper:.9g}]", f"{exact:.9g}")
