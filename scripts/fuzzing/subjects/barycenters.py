"""`cusink.barycenter` beside iterated projections in float64."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import draw as drawing
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import DEFAULT_TOL, UNITS, log
from fuzzing.oracle import reference

PARAMETERS = tuple(inspect.signature(cusink.barycenter).parameters)
SHOW = """\
result = cusink.barycenter(A, C, globals().get("weights"), eps=eps, **options)
print(result, result.barycenter.sum(axis=-1))
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw histograms, a cost and weights."""
    dtype = drawing.dtype(rng, half=False)
    K, n, B = int(rng.integers(1, 5)), int(rng.integers(1, 8)), int(rng.choice([0, 0, 2]))
    debiased = rng.random() < 0.3
    m = n if debiased or rng.random() < 0.5 else int(rng.integers(1, 8))
    C = (
        (np.linspace(0, 1, n)[:, None] - np.linspace(0, 1, m)) ** 2
        if debiased or rng.random() < 0.5
        else drawing.costs(rng, (n, m), dtype)
    )
    A = drawing.weights(rng, max(B, 1) * K, n, dtype).reshape(max(B, 1), K, n)
    arrays, axes = {"A": A if B else A[0], "C": C}, {"A": "BKn" if B else "Kn", "C": "nn" if n == m else "nm"}
    if rng.random() < 0.5:
        arrays["weights"], axes["weights"] = rng.integers(0, 4, size=K) + 1.0, "K"
        if rng.random() < 0.3 and K > 1:
            arrays["weights"][0] = 0
    options: dict[str, Any] = {
        "eps": float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-2, 0.5):.3g}"),
        "max_iter": 1000,
    }
    if debiased:
        options |= {"debiased": True, "tol": 1e-4}
    elif rng.random() < 0.3:
        options["overrelaxation"] = [None, 1.5, 1.9][int(rng.integers(3))]
    return Case("barycenters", seed, arrays, axes, dtype, options, {}, ("A",))


def check(case: Case) -> Seen:
    """Take the barycenter."""
    arrays = case.given()
    call = lambda: cusink.barycenter(arrays["A"], arrays["C"], arrays.get("weights"), **case.options)  # noqa: E731
    seen = observe(call, arrays, PARAMETERS)
    if seen.value is None or seen.value.value is None:
        return seen
    result, unconverged, _ = seen.value
    settled = bool(np.all(result.converged))
    with np.errstate(all="ignore"):
        findings = list(_compared(case, result))
    if not settled and not unconverged:
        findings.append(Finding(WRONG, "a warning where not converged", "none", str(result.converged)))
    return seen.having(findings, flagged=not settled)


def _compared(case: Case, result: Any) -> Iterator[Finding]:
    exact, u, tol = case.exact(), UNITS[case.dtype][0], case.options.get("tol", DEFAULT_TOL[case.dtype])
    A, C = exact["A"].reshape(-1, *exact["A"].shape[-2:]), exact["C"]
    w = exact.get("weights", np.ones(A.shape[1]))
    w = w / w.sum()
    P = np.asarray(result.barycenter, dtype=np.float64).reshape(len(A), -1)
    error, converged = np.atleast_1d(result.error), np.atleast_1d(result.converged)
    if not np.isfinite(P).all() or not np.isfinite(error).all():
        said = f"{P.tolist()}, error {error.tolist()}"
        yield Finding(NAN, "the barycenter and its error are finite", said, "finite numbers")
        return
    for p, a, e, done in zip(P, A, error, converged, strict=True):
        mass = float(a[0].sum())
        if (p < 0).any():
            yield Finding(WRONG, "a barycenter is not negative", ">= 0", str(p.tolist()))
        if not abs(p.sum() - mass) <= (64 * u + 2 * float(e)) * mass:
            yield Finding(WRONG, "a barycenter has the mass of the histograms", f"{mass:.9g}", f"{p.sum():.9g}")
        if done != (e <= tol * (1 + 4 * u)) and (done or e < tol * (1 - 4 * u)):
            yield Finding(WRONG, "converged means error <= tol", f"{done}, tol {tol:g}", f"error {e:.3g}")
        if not done or case.options.get("debiased") or C.size > 60 or np.ptp(C) > 20 * case.options["eps"]:
            continue
        wanted, contraction = projections(a / mass, C, w, case.options["eps"])
        if wanted is None:
            continue
        off, allowed = float(np.abs(p / mass - wanted).sum()), 16 * (float(e) + 64 * u) / (1 - contraction)
        if not off <= allowed:
            yield Finding(
                WRONG,
                "the barycenter is that of iterated projections",
                f"error {e:.3g}",
                f"off by {off:.3g}, within {allowed:.1g}",
            )
        elif case.dtype == "float64" and contraction < 0.9:
            yield from _slopes(case, a / mass, C, w)


def _slopes(case: Case, A: np.ndarray, C: np.ndarray, w: np.ndarray) -> Iterator[Finding]:
    """Compare gradients of one function of the barycenter with differences of iterated projections."""
    rng, eps = np.random.default_rng(case.seed), case.options["eps"]
    r = rng.normal(size=C.shape[1])
    tight = {"tol": 1e-12, "max_iter": 20_000, "eps": eps}
    grads = cusink.barycenter_adjoint(cusink.barycenter(A, C, w, **tight), grad_barycenter=r, tol=1e-11)
    filled, unit = A > 0, max(float(np.ptp(C)), eps)
    dA = rng.normal(size=A.shape) * filled
    dA -= filled * dA.sum(axis=1, keepdims=True) / filled.sum(axis=1, keepdims=True)
    dA *= A.min(axis=1, where=filled, initial=1.0, keepdims=True)
    dw = rng.normal(size=w.shape) * w
    dC = rng.normal(size=C.shape) * min(eps, unit)

    def value(t: float, *moves: Any) -> float:
        moved = [x + t * move for x, move in zip((A, C, w), moves, strict=True)]
        p, _ = projections(moved[0], moved[1], moved[2] / moved[2].sum(), eps)
        return float("nan") if p is None else float(p @ r)

    for name, moves, found in (
        ("A", (dA, 0, 0), (grads.A * dA).sum()),
        ("C", (0, dC, 0), (grads.C * dC).sum()),
        ("weights", (0, 0, dw), (grads.weights * dw).sum()),
    ):
        # At two steps, so that the third derivative, which may be large, leaves the difference.
        wide, narrow = ((value(step, *moves) - value(-step, *moves)) / (2 * step) for step in (1e-4, 5e-5))
        slope = (4 * narrow - wide) / 3
        if np.isfinite(slope) and not abs(found - slope) <= 1e-6 * (1 + abs(slope)):
            yield Finding(WRONG, f"the gradient by {name} is the slope", f"{slope:.9g}", f"{float(found):.9g}")


def projections(A: np.ndarray, C: np.ndarray, w: np.ndarray, eps: float) -> tuple[np.ndarray | None, float]:
    """Return the barycenter by iterated projections, and how far each brought the error down; None where too slow."""
    v = np.zeros((len(A), C.shape[1]))
    p, steps = np.full(C.shape[1], 1 / C.shape[1]), [1.0]
    for _ in range(3000):
        u = log(A) - reference.logsumexp(v[:, None, :] - C / eps, axis=2)
        columns = reference.logsumexp(u[:, :, None] - C / eps, axis=1)
        new = w @ columns
        v = new - columns
        steps.append(float(np.abs(np.exp(new) - p).sum()))
        p = np.exp(new)
        if steps[-1] < 1e-13:
            ratios = [b / a for a, b in zip(steps[1:-1], steps[2:], strict=True) if a > 1e-11]
            return p / p.sum(), min(max(ratios[len(ratios) // 2 :], default=0.0), 0.9999)
    return None, 1.0
