"""The claims of a result, recomputed in float64 from what it returns. Imports nothing of cusink.

A call ends in one of three ways: refused with a clear TypeError or ValueError before any work; flagged, with
``converged`` False and a ConvergenceWarning that tells why; or right. `attempt` makes the call and tells which,
`assert_claims_hold` checks what a result says of itself, and `assert_values` what others know of it.
"""

import warnings
from typing import NamedTuple

import numpy as np
import reference

ROUNDINGS = 8  # of the stated dtype, that a sum or an entry may be off
SUMMED = 64  # roundings of a sum over a plan of at most a few thousand entries


class Outcome(NamedTuple):
    """What came of a call: a result or the error that refused it, and the ConvergenceWarnings (text)."""

    result: object
    refused: Exception | None
    flags: list


def attempt(function, *args, **options):
    """Call; only a TypeError or ValueError may refuse it, and only a ConvergenceWarning may be given."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            result, refused = function(*args, **options), None
        except (TypeError, ValueError) as error:
            result, refused = None, error
    assert refused is None or str(refused), f"{type(refused).__name__} without a text"
    strange = [w for w in given if w.category.__name__ != "ConvergenceWarning"]
    assert not strange, f"{strange[0].category.__name__}: {strange[0].message}"
    return Outcome(result, refused, [str(w.message) for w in given])


class Claim(NamedTuple):
    """A claim about one problem that does not hold: a sentence with numbers."""

    problem: int
    text: str

    def __str__(self):
        return f"problem {self.problem}: {self.text}"


def assert_claims_hold(result, a, b, C, eps, *, tol="auto", reach=None, flags=(), exact=None):
    """Check all claims of a result; `C` is the dense cost, in the digits that were passed or more.

    `flags` are the ConvergenceWarnings of the call, and `exact` the cost (B,) without regularisation, if it is known.
    """
    if tol == "auto":
        tol = 1e-6 if np.asarray(result.cost).dtype == np.float64 else 1e-5
    failed = list(_broken(result, a, b, C, eps, tol, reach, exact))
    converged = np.ravel(np.asarray(result.converged))
    if tol is not None and bool(converged.all()) == bool(flags):
        failed.append(f"converged is {converged} but the warnings are {list(flags)}")
    assert not failed, "\n".join(map(str, failed))


def _broken(result, a, b, C, eps, tol, reach, exact):
    """Yield every claim that does not hold."""
    f, g, cost, reg_cost, entropic_cost, error, converged = (
        np.asarray(getattr(result, name))
        for name in ("f", "g", "cost", "reg_cost", "entropic_cost", "error", "converged")
    )
    unit = float(np.finfo(f.dtype).eps)
    P = np.asarray(result.plan())
    rows = np.asarray(result.apply(np.ones(g.shape[-1], f.dtype), axis=1))
    columns = np.asarray(result.apply(np.ones(f.shape[-1], f.dtype), axis=0))
    low, high = map(np.asarray, result.bounds())
    size = 1 if f.ndim == 1 else len(f)
    many = {"f": f, "g": g, "P": P, "rows": rows, "columns": columns}
    numbers = {"cost": cost, "reg_cost": reg_cost, "entropic_cost": entropic_cost, "error": error, "low": low}
    numbers |= {"high": high, "converged": converged}
    if exact is not None:
        numbers["exact"] = np.broadcast_to(exact, np.shape(cost))
    a, b, C = (np.asarray(x, np.float64) for x in (a, b, C))
    for k in range(size):
        single = {name: (x if f.ndim == 1 else x[k]).astype(np.float64) for name, x in many.items()}
        single |= {name: float(x if x.ndim == 0 else x[k]) for name, x in numbers.items()}
        weights = [x if x.ndim == 1 else x[k if len(x) > 1 else 0] for x in (a, b)]
        costs = C if C.ndim == 2 else C[k if len(C) > 1 else 0]
        for text in _broken_in_one(single, *weights, costs, eps, tol, reach, unit):
            yield Claim(k, text)


def _broken_in_one(s, a, b, C, eps, tol, reach, unit):
    """Yield the broken claims of one problem, whose results by name are `s`, in float64; `unit` is of its dtype."""
    infinite = [name for name, x in s.items() if not np.isfinite(x).all()]
    if infinite:
        yield "not finite: " + ", ".join(f"{name} {s[name]}" for name in infinite)
    for name, weights in (("f", a), ("g", b)):
        s[name] = np.where((weights == 0) & ~np.isfinite(s[name]), 0, s[name])
    if any(not np.isfinite(s[name]).all() for name in infinite):
        return
    P, f, g, error = s["P"], s["f"], s["g"], s["error"]
    mass = a.sum()
    if reach is None:
        b = b * (mass / b.sum())
    if (P < 0).any():
        yield f"the plan has {P.min()}"
        return
    # The largest cost and logarithm that count say what rounding can do to exponents in the stated dtype.
    carried = P > 1e-9 * P.max() / P.size
    used = float(np.abs(C[carried]).max(initial=0))
    logs = max(np.abs(np.log(w[w > 0] / w.sum())).max() for w in (a, b))
    double = min(ROUNDINGS * float(np.finfo(float).eps) * (used / eps + logs), 1e-10)  # of exponents in float64
    rounding = min(ROUNDINGS * unit * (used / eps + logs), error + double) + SUMMED * unit
    if np.isposinf(C[P > 0]).any():
        yield "the plan has mass on a forbidden pair"

    # The plan is that of the potentials, as far as the digits that they are shown in tell.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exponents = (f[:, None] + g[None, :] - C) / eps
        shown = np.exp(np.log(a)[:, None] + np.log(b)[None, :] + exponents)
        digits = unit * (ROUNDINGS + 2 * (np.abs(f)[:, None] + np.abs(g)[None, :] + np.abs(C)) / eps) + rounding
        off = np.abs(P - shown) > np.where(digits < 0.5, 2 * digits, np.inf) * np.maximum(P, shown) + 1e-35 * mass
    if off.any():
        i, j = np.argwhere(off)[0]
        yield f"plan[{i}, {j}] is {P[i, j]:.9g}, the potentials say {shown[i, j]:.9g}"

    # The error is that of the plan that is returned.
    wanted = _wanted(a, b, f, g, reach)
    for name, marginal, weights, rho in zip("ab", (P.sum(1), P.sum(0)), wanted, reach or (np.inf,) * 2, strict=True):
        true = np.abs(marginal - weights).sum() / weights.sum()
        known = ROUNDINGS * unit * (1 + np.abs(f if name == "a" else g).max() / rho)
        known += double
        if not true <= 1.001 * error + known:
            yield f"error {error:.3g}, but the marginal {name} of the plan is off by {true:.3g}"
    if tol is not None and bool(s["converged"]) != (error <= tol):
        yield f"converged is {bool(s['converged'])} at error {error:.3g} and tol {tol:.3g}"
    for name, marginal in (("rows", P.sum(1)), ("columns", P.sum(0))):
        if not (np.abs(s[name] - marginal) <= rounding * marginal + 1e-35 * mass).all():
            yield f"apply gives {name} {s[name]}, the plan {marginal}"

    # No constant moves between f and g but what the costs and the masses call for.
    if reach is None:
        mean_f, mean_g = a @ f / mass, b @ g / mass
        spread = sum(np.ptp(x[w > 0]) for x, w in ((f, a), (g, b)))
        usual = float(np.median(np.abs(C[np.isfinite(C)])))
        natural = 4 * (abs(mean_f + mean_g) + spread + used + usual + eps * (1 + abs(np.log(mass))))
        if not abs(mean_f - mean_g) <= natural:
            yield f"a gauge of {abs(mean_f - mean_g):.3g} in f and g, where {natural:.3g} says all there is to say"

    # The values are those of the plan.
    total = P.sum()
    cost = reference.transport_cost(P, C)
    per_unit = max(used, eps)
    if not abs(s["cost"] - cost) <= rounding * total * per_unit:
        yield f"cost {s['cost']:.9g}, but <P, C> is {cost:.9g}"
    kl, entropy = reference.kl_to_product(P, a, b), reference.entropy(P)
    open_error = error + rounding  # what the marginals leave open of values that are taken from the potentials
    spread = sum(np.ptp(x[w > 0]) for x, w in ((f, a), (g, b))) + per_unit + eps * (1 + abs(np.log(mass)) + logs)
    if reach is None:
        reg_cost, entropic_cost = cost + eps * kl, cost - eps * entropy
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            reg_cost = cost + eps * (kl - total + a.sum() * b.sum())
        for marginal, weights, rho in zip((P.sum(1), P.sum(0)), (a, b), reach, strict=True):
            if rho < np.inf:
                reg_cost += rho * generalised_kl(marginal, weights)
                spread += rho * open_error
        entropic_cost = cost - eps * entropy
    for name, value in (("reg_cost", reg_cost), ("entropic_cost", entropic_cost)):
        slack = open_error * max(total, mass) * spread + SUMMED * unit * abs(value)
        if not abs(s[name] - value) <= slack:
            yield f"{name} {s[name]:.9g}, but that of the plan is {value:.9g}"
    yield from _broken_bounds(s, rounding * total * per_unit)


def _broken_bounds(s, slack):
    """Yield what is wrong with the bounds of one problem on the cost without regularisation."""
    if not s["low"] <= s["high"] + slack:
        yield f"bounds {s['low']:.9g} and {s['high']:.9g}"
    if "exact" in s and not s["low"] - slack <= s["exact"] <= s["high"] + slack:
        yield f"bounds {s['low']:.9g} and {s['high']:.9g}, but the exact cost is {s['exact']:.9g}"


def _wanted(a, b, f, g, reach):
    """Return the marginals that the optimum has: a and b, or with prices those that the potentials ask for."""
    if reach is None:
        return a, b
    return tuple(w * np.exp(-x / rho) for w, x, rho in zip((a, b), (f, g), reach, strict=True))


def generalised_kl(p, q):
    """``sum p log(p / q) - p + q``."""
    carried = p > 0
    return float((p[carried] * np.log(p[carried] / q[carried])).sum() - p.sum() + q.sum())


def assert_values(outcome, rtol, may_flag=False, **known):
    """Check values of a result, by name, against the right ones; with `may_flag` a flagged result may have others."""
    assert outcome.refused is None, repr(outcome.refused)
    converged = np.asarray(outcome.result.converged)
    assert may_flag or converged.all(), f"not converged: error {outcome.result.error}; {outcome.flags}"
    for name, value in known.items():
        found = np.asarray(getattr(outcome.result, name), np.float64)
        value = np.broadcast_to(value, found.shape)
        if found.ndim:
            found, value = found[converged], value[converged]
        elif not converged:
            continue
        np.testing.assert_allclose(found, value, rtol=rtol, atol=rtol * 1e-3, err_msg=name)


def unbalanced(a, b, C, eps, reach):
    """Return the plan and the objective of transport with prices `reach` of the marginals, by plain iterations.

    A bin that the cost allows no partner with weight keeps its mass.
    """
    a, b, C = (np.asarray(x, np.float64) for x in (a, b, C))
    allowed = np.isfinite(C) & (a > 0)[:, None] & (b > 0)[None, :]
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    core = a[rows], b[columns], C[np.ix_(rows, columns)]
    kappa = [1.0 if rho == np.inf else rho / (rho + eps) for rho in reach]
    f, change = np.zeros(len(rows)), np.inf
    while change > 1e-14:
        g = kappa[1] * reference.softmin(core[2], f, core[0], eps, axis=0)
        new = kappa[0] * reference.softmin(core[2], g, core[1], eps, axis=1)
        change, f = np.abs(new - f).max() / max(1.0, np.abs(new).max()), new
    P = np.zeros(C.shape)
    P[np.ix_(rows, columns)] = reference.plan(*core, eps, f, g)
    value = reference.transport_cost(P, C) + eps * generalised_kl(P.ravel(), np.outer(a, b).ravel())
    for rho, marginal, weights in zip(reach, (P.sum(1), P.sum(0)), (a, b), strict=True):
        value += rho * generalised_kl(marginal, weights) if rho < np.inf else 0.0
    return P, value


def of_one_mass(a, b):
    """Return weights in float64, b scaled to the mass of a, as the package does within its tolerance."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a, b * (a.sum() / b.sum())


def optimum(a, b, C, eps):
    """Return the values at the optimum, of weights in any dtype, and of costs so steep that the oracle ends early."""
    a, b = of_one_mass(a, b)
    C = np.asarray(C, np.float64)
    spread = np.ptp(C[np.isfinite(C)]) / eps
    solution = reference.solve(a, b, C, eps, tol=1e-13 if spread < 1e4 else 1e-8)
    assert solution.error < 1e-7, f"the oracle did not converge: marginal error {solution.error}"
    return reference.values(reference.plan(a, b, C, eps, solution.f, solution.g), a, b, C, eps)


def divergence(a, b, C, eps):
    """Return ``OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2`` of the oracle."""
    a, b = of_one_mass(a, b)
    of_pair, of_a, of_b = (reference.optimum(p, q, C, eps).reg_cost for p, q in ((a, b), (a, a), (b, b)))
    return of_pair - of_a / 2 - of_b / 2


def gradient(value, weights, step=1e-3):
    """Return the gradient of ``value(weights)`` on the simplex, of mean zero, by centred differences.

    A bin takes the mass of the heaviest one; all weights must be above twice the step.
    """
    weights = np.asarray(weights, np.float64)
    heaviest = int(weights.argmax())
    out = np.zeros(len(weights))
    for i in range(len(weights)):
        if i != heaviest:
            direction = np.zeros(len(weights))
            direction[i], direction[heaviest] = 1.0, -1.0
            out[i] = reference.derivative(lambda t, d=direction: value(weights + t * d), step)
    return out - out.mean()


def iterations_by_halving(a, b, C, eps, tol=1e-6, each=20, most=200_000):
    """Return how many plain iterations it takes where eps is halved every `each` of them from the range of the costs.

    The yardstick for annealing: what anybody would write by hand. The error is looked at in every iteration.
    """
    a, b, C = (np.asarray(x, np.float64) for x in (a, b, C))
    finite = C[np.isfinite(C)]
    step, f, count = max(float(np.ptp(finite)), eps), np.zeros(len(a)), 0
    while step > eps:
        f = reference.sinkhorn(a, b, C, step, each, f=f).f
        step, count = step / 2, count + each
    while count < most:
        solution = reference.sinkhorn(a, b, C, eps, 1, f=f)
        f, count = solution.f, count + 1
        if solution.error <= tol:
            break
    return count
