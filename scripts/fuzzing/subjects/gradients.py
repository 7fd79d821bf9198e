"""`cusink.sinkhorn_adjoint` beside the dense linear system at the optimum and, with `reach`, differences in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import claims, oracle
from fuzzing import draw as drawing
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import UNITS, Problem
from fuzzing.oracle import reference

VALUES = ("cost", "reg_cost", "entropic_cost")
SHOW = """\
result = cusink.sinkhorn(a, b, C, eps=eps, **options)
cotangents = {name: value for name, value in globals().items() if name.startswith("grad_")}
grads = cusink.sinkhorn_adjoint(result, **cotangents, tol=globals().get("tol", 1e-6))
print(result, grads.a, grads.b, grads.C, grads.eps, sep="\\n")
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw a solve, and what its outputs are worth."""
    dtype = drawing.dtype(rng, half=False)
    n, m, B = (int(rng.integers(low, 7)) for low in (1, 1, -2))
    B = max(B, 0) if B < 4 else 0
    rows, own = max(B, 1), B > 0 and rng.random() < 0.3
    C = drawing.costs(rng, (B, n, m) if own else (n, m), dtype)
    a, b = drawing.weights(rng, rows, n, dtype), drawing.weights(rng, rows, m, dtype)
    eps = float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-1.7, 0.7):.3g}")
    options: dict[str, Any] = {"eps": eps, "max_iter": 20_000, "tol": 1e-11 if dtype == "float64" else 1e-6}
    equal: tuple[str, ...] = ("a", "b")
    names = [str(rng.choice([*VALUES, "f", "g"])) for _ in range(int(rng.integers(1, 3)))]
    if rng.random() < 0.25:
        options["reach"] = float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-1, 1):.2g}")
        names, equal = [str(rng.choice(VALUES[:2]))], ()
    arrays, axes = {"a": a, "b": b, "C": C}, {"a": "Bn", "b": "Bm", "C": "Bnm" if own else "nm"}
    for name in set(names):
        arrays[f"grad_{name}"] = np.round(rng.normal(size=(rows, *({"f": (n,), "g": (m,)}.get(name, ())))), 2)
        axes[f"grad_{name}"] = "B" + {"f": "n", "g": "m"}.get(name, "")
    if B == 0:
        arrays = {k: x[0] if axes[k][0] == "B" else x for k, x in arrays.items()}
        axes = {k: x.lstrip("B") for k, x in axes.items()}
    drawing.each_eps(rng, options, arrays, axes, B)
    return Case("gradients", seed, arrays, axes, dtype, options, {"tol": 1e-9 if dtype == "float64" else 1e-6}, equal)


def _call(case: Case, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = case.options | ({"eps": arrays["eps"]} if "eps" in arrays else {})
    result = cusink.sinkhorn(arrays["a"], arrays["b"], arrays["C"], **options)
    given = {name: x for name, x in arrays.items() if name.startswith("grad_")}
    grads = cusink.sinkhorn_adjoint(result, **given, tol=case.extra.get("tol", 1e-6))
    found = {name: np.asarray(getattr(grads, name)) for name in ("a", "b", "C", "eps", "converged")}
    return found | {"error": np.asarray(result.error), "solved": np.asarray(result.converged)}


def check(case: Case) -> Seen:
    """Solve and differentiate."""
    arrays = case.given()
    names = ("a", "b", "C", "eps", "reach", *(name for name in arrays if name.startswith("grad_")))
    seen = observe(lambda: _call(case, arrays), arrays, names)
    if seen.value is None or seen.value.value is None:
        return seen
    found, unconverged, _ = seen.value
    settled = bool(found["converged"].all() and found["solved"].all())
    findings = (
        []
        if settled or unconverged
        else [Finding(WRONG, "a warning where not converged", "none", str(found["converged"]))]
    )
    solved = bool((found["error"] < 1).all())  # or the potentials are none of the problem
    for name in ("a", "b", "C", "eps"):
        if solved and not np.isfinite(found[name]).all():
            findings.append(
                Finding(NAN, f"the gradient by {name} is finite", str(found[name].tolist()), "finite numbers")
            )
    if settled and not findings:
        with np.errstate(all="ignore"):
            findings = list(_compared(case, found))
    return seen.having(findings, flagged=not settled)


def _compared(case: Case, found: dict[str, np.ndarray]) -> Iterator[Finding]:
    exact = case.exact()
    each = claims.problems(exact["a"], exact["b"], exact["C"], case.eps, case.options.get("reach"))
    cotangents = [
        {
            name[5:]: np.atleast_1d(x)[k] if name[5:] in VALUES else np.atleast_2d(x)[k]
            for name, x in exact.items()
            if name[:5] == "grad_"
        }
        for k in range(len(each))
    ]
    if each[0].reach is not None:
        yield from _differences(case, found, each, cotangents)
        return
    u = UNITS[case.dtype][0]
    shared, of_cost, off_cost = exact["C"].ndim == 2, 0.0, 0.0
    for k, (problem, given) in enumerate(zip(each, cotangents, strict=True)):
        best = oracle.optimum(problem)
        if best is None:
            return
        error = float(np.atleast_1d(found["error"])[k]) + case.extra.get("tol", 1e-6) + 64 * u
        off = 16 * error / max(1 - best.contraction, 1e-9)
        # The dense system holds exp((f + g - C) / eps), which at light and empty bins may be large. Its rounding is
        # the oracle's own: between two bins without weight the envelope is exact and the dense system is not.
        largest = float(np.exp(min(max((best.f[:, None] + best.g - problem.C).max() / problem.eps, 0.0), 100.0)))
        off += oracle.ROUNDINGS * 2.0**-52 * largest
        if off > 1e-2:
            return
        C = np.where(best.f[:, None] + best.g - problem.C > -800 * problem.eps, problem.C, np.inf)
        J = reference.jacobian(problem.a, problem.b, C, problem.eps, best.f, best.g)
        wanted = {
            name: sum(np.atleast_1d(ct) @ J[out][name] for out, ct in given.items()) for name in ("a", "b", "C", "eps")
        }
        wanted |= {name: wanted[name] - wanted[name].mean() for name in "ab"}
        size = max(float(np.abs(ct).max()) for ct in given.values())
        spread = float(np.ptp(C[np.isfinite(C)])) + problem.eps
        least = min(float(w[w > 0].min()) for w in (problem.a, problem.b)) if {"f", "g"} & set(given) else 1.0
        scale = {"a": spread, "b": spread, "C": spread / problem.eps, "eps": (spread / problem.eps) ** 2}
        for name in ("a", "b", "eps"):
            claim = found[name][k] if found["error"].ndim else found[name]
            allowed = off * (float(np.abs(wanted[name]).max()) / least + size * scale[name])
            kept = _told(problem, name, error)
            claim, right = (np.asarray(x, np.float64) for x in (claim, wanted[name]))
            claim, right = (x if kept is None else x[kept] - x[kept].mean() for x in (claim, right))
            yield from _apart(f"the gradient by {name}", claim, right, allowed)
        allowed = off * (float(np.abs(wanted["C"]).max()) / least + size * scale["C"])
        of_cost, off_cost = (of_cost + wanted["C"], off_cost + allowed) if shared else (wanted["C"], allowed)
        if not shared or k == len(each) - 1:
            yield from _apart("the gradient by C", found["C"] if shared else found["C"][k], of_cost, off_cost)


def _told(problem: Problem, name: str, error: float) -> np.ndarray | None:
    """Return the bins whose potentials a marginal error tells; None for all, where it tells those of every bin."""
    least = 1e3 * error * float(problem.a.sum())
    if name == "eps" or not any(((w > 0) & (w < least)).any() for w in (problem.a, problem.b)):
        return None
    return np.flatnonzero((problem.a if name == "a" else problem.b) >= least)


def _apart(name: str, claim: np.ndarray, wanted: np.ndarray, allowed: float) -> Iterator[Finding]:
    claim = np.asarray(claim, dtype=np.float64).reshape(np.shape(wanted))
    if not np.abs(claim - wanted).max() <= allowed:
        yield Finding(
            WRONG,
            f"{name} is that of the dense system",
            str(claim.tolist()),
            f"{np.asarray(wanted).tolist()} within {allowed:.1g}",
        )


def _differences(
    case: Case, found: dict[str, np.ndarray], each: list[Problem], cotangents: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Compare the derivative along one direction of all inputs, of the first problem alone."""
    if len(each) > 1:
        return
    problem, ((name, ct),) = each[0], cotangents[0].items()
    if (
        problem.C.size > 36
        or np.ptp(problem.C) > 1e3 * problem.eps
        or min(w[w > 0].min() / w.sum() for w in problem[:2]) < 1e-8
    ):
        return
    rng = np.random.default_rng(case.seed)
    moves = [w * rng.uniform(-1, 1, w.shape) for w in (problem.a, problem.b)]
    moves += [problem.eps * rng.uniform(-1, 1, problem.C.shape), problem.eps * rng.uniform(-1, 1)]

    def at(t: float) -> float:
        a, b, C, eps = (x + t * dx for x, dx in zip(problem[:4], moves, strict=True))
        return float(np.atleast_1d(ct)[0]) * oracle.unbalanced_value(problem._replace(a=a, b=b, C=C, eps=eps), name)

    wanted = reference.derivative(at, 1e-3)
    terms = [
        np.asarray(found[k], dtype=np.float64).reshape(np.shape(dx)) * dx
        for k, dx in zip(("a", "b", "C", "eps"), moves, strict=True)
    ]
    claim, size = sum(float(x.sum()) for x in terms), sum(float(np.abs(x).sum()) for x in terms)
    allowed = (1e-4 + 1e4 * UNITS[case.dtype][0]) * (size + abs(at(0.0)))
    if not abs(claim - wanted) <= allowed:
        yield Finding(
            WRONG,
            f"the derivative of {name} is that of differences",
            f"{claim:.9g}",
            f"{wanted:.9g} within {allowed:.1g}",
        )
