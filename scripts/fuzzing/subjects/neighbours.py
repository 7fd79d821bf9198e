"""`cusink.nearest` beside the sorted `cusink.distance_matrix`, and entries of both beside the optimum."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import claims, oracle
from fuzzing import draw as drawing
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import UNITS

VALUES = ("cost", "reg_cost", "entropic_cost", "divergence")
PARAMETERS = tuple(inspect.signature(cusink.nearest).parameters)
SHOW = """\
B = globals().get("B")
k = min(k, len(A) - 1 if B is None else len(B))
value = globals().get("value", "cost")
print(cusink.nearest(A, B, C, k=k, eps=eps, value=value, **options))
print(cusink.distance_matrix(A, B, C, eps=eps, value=value, **options))
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw two collections, with equal items among them."""
    dtype = drawing.dtype(rng, half=False)
    n, Q = int(rng.integers(1, 9)), int(rng.integers(1, 7))
    D = int(rng.choice([rng.integers(2, 12), 40]))
    value = str(rng.choice(VALUES))
    alone, square = rng.random() < 0.3, value == "divergence" or rng.random() < 0.5
    m = n if square or alone else int(rng.integers(1, 9))
    if square:
        x = np.sort(rng.random(n)) if rng.random() < 0.5 else np.arange(n)
        C = (x[:, None] - x) ** 2
    else:
        C = drawing.costs(rng, (n, m), dtype)
    A = drawing.weights(rng, D if alone else Q, n, dtype)
    if rng.random() < 0.4:
        A = A[rng.integers(min(4, len(A)), size=len(A))]
    arrays, axes = {"A": A, "C": C}, {"A": "Qn", "C": "nn" if square or alone else "nm"}
    if not alone:
        B = drawing.weights(rng, D, m, dtype)
        if rng.random() < 0.4:
            B = B[rng.integers(4, size=D)] if D > 4 else B
        if square and rng.random() < 0.4:
            B[: min(Q, D)] = A[: min(Q, D)]
        arrays["B"], axes["B"] = B, "Dn" if square else "Dm"
    options: dict[str, Any] = {
        "eps": float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-2, 0.5):.3g}"),
        "max_iter": 1000,
    }
    k = int(rng.integers(1, len(arrays.get("B", A)) + (not alone)))
    return Case(
        "neighbours",
        seed,
        arrays,
        axes,
        dtype,
        options,
        {"k": max(k, 1), "value": value},
        tuple(x for x in "AB" if x in arrays),
    )


def most(case: Case) -> int:
    """Return how many neighbours are asked for: no more than there are."""
    others = len(case.arrays["B"]) if "B" in case.arrays else len(case.arrays["A"]) - 1
    return max(1, min(case.extra["k"], others))


def check(case: Case) -> Seen:
    """Search, sort the whole matrix, and compare."""
    arrays = case.given()
    value, k = case.extra.get("value", "cost"), most(case)
    args = (arrays["A"], arrays.get("B"), arrays["C"])

    def call() -> tuple[Any, Any]:
        near = cusink.nearest(*args, k=k, value=value, full_output=True, **case.options)
        return near, cusink.distance_matrix(*args, value=value, full_output=True, **case.options)

    seen = observe(call, arrays, PARAMETERS)
    if seen.value is None or seen.value.value is None:
        return seen
    (near, full), unconverged, _ = seen.value
    settled = bool(full.converged.all() and near.converged.all())
    with np.errstate(all="ignore"):
        findings = list(_compared(case, near, full, settled))
        if not settled and not unconverged:
            findings.append(Finding(WRONG, "a warning where not converged", "none", "some did not converge"))
    return seen.having(findings, flagged=not settled)


def _compared(case: Case, near: Any, full: Any, settled: bool) -> Iterator[Finding]:
    exact, u = case.exact(), UNITS[case.dtype][0]
    A, B, C = exact["A"], exact.get("B", exact["A"]), exact["C"]
    alone, value, k = "B" not in exact, case.extra.get("value", "cost"), most(case)
    D, d = full.distances.astype(np.float64), near.distances.astype(np.float64)
    if not (np.isfinite(D).all() and np.isfinite(d).all()):
        yield Finding(NAN, "distances are finite", "finite numbers", str(D.tolist()))
        return
    if value == "divergence":
        yield from divergences(D, alone)
        if (d < 0).any():
            yield Finding(WRONG, "a divergence is not negative", ">= 0", f"{d.min():.3g}")
    if not settled:
        return
    mass = float(A[0].sum())
    unit = mass * (float(np.abs(C).max()) + case.options["eps"] * 10)
    error = float(max(full.error.max(), near.error.max()))
    slack = (64 * u + 2 * error) * unit
    masked = np.where(np.eye(*D.shape, dtype=bool), np.inf, D) if alone else D
    for row in range(len(d)):
        ids = near.indices[row]
        if len(set(ids.tolist())) < k or (alone and row in ids):
            yield Finding(WRONG, "neighbours are different items", str(ids.tolist()), f"{k} others of row {row}")
            return
        if (np.diff(d[row]) < 0).any():
            yield Finding(WRONG, "distances ascend", str(d[row].tolist()), "ascending")
            return
        wanted = np.sort(masked[row])[:k]
        if not (np.abs(d[row] - masked[row][ids]) <= slack).all() or not (np.abs(d[row] - wanted) <= slack).all():
            yield Finding(
                WRONG,
                "the neighbours are those of the sorted matrix",
                str(d[row].tolist()),
                f"{wanted.tolist()} within {slack:.1g}",
            )
            return
        for i, j in zip(range(k - 1), range(1, k), strict=True):
            if (B[ids[i]] == B[ids[j]]).all() and (d[row, i] != d[row, j] or ids[i] > ids[j]):
                yield Finding(
                    WRONG,
                    "equal items at one distance, in order",
                    f"{ids[i], ids[j]} at {d[row, i], d[row, j]}",
                    "equal, ascending",
                )
                return
    if value == "divergence":
        return
    rng = np.random.default_rng(case.seed)
    for _ in range(2):
        q, j = int(rng.integers(len(A))), int(rng.integers(len(B)))
        (problem,) = claims.problems(A[q], B[j], C, case.options["eps"])
        found = oracle.entry(problem, value, D[q, j], float(full.error[q, j]), u)
        if found is not None:
            yield found


def divergences(D: np.ndarray, alone: bool) -> Iterator[Finding]:
    """Yield what no matrix of divergences may be: negative, not zero on the diagonal, not symmetric."""
    if (D < 0).any():
        yield Finding(WRONG, "a divergence is not negative", ">= 0", f"{D.min():.3g}")
    if alone and np.diag(D).any():
        yield Finding(WRONG, "an item has divergence 0 from itself", "0", str(np.diag(D).tolist()))
    if alone and (D.T != D).any():
        yield Finding(WRONG, "divergences are symmetric", "D == D.T", f"off by {np.abs(D - D.T).max():.3g}")
