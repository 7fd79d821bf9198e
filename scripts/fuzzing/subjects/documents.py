"""Sparse rows and `cusink.Measures` beside the optimum of each pair: empty documents, shared words, points."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
from numpy.random import Generator
from scipy.spatial.distance import cdist

import cusink
from fuzzing import claims, oracle
from fuzzing import draw as drawing
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import DEFAULT_TOL, UNITS
from fuzzing.subjects.neighbours import PARAMETERS, VALUES, divergences, most

EMPTY = r"exceeds the range|empty|without"
SHOW = """\
import scipy.sparse
value, B = globals().get("value", "cost"), globals().get("B")
k = min(k, len(A) - 1 if B is None else len(B))

def documents(A):
    if A is None or not globals().get("measures"):
        return None if A is None else scipy.sparse.csr_array(A)
    return cusink.Measures.of([x[w > 0] for w in A], [w[w > 0] for w in A])

if "C" not in globals():
    C = "sqeuclidean" if globals().get("measures") else cusink.PointCloud(x)
print(cusink.distance_matrix(documents(A), documents(B), C, eps=eps, value=value, **options))
print(cusink.nearest(documents(A), documents(B), C, k=k, eps=eps, value=value, **options))
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw two collections of documents over one vocabulary."""
    dtype = drawing.dtype(rng, half=False)
    n, Q, D, d = int(rng.integers(2, 12)), int(rng.integers(1, 6)), int(rng.choice([2, 5, 40])), int(rng.integers(1, 4))
    value = str(rng.choice(VALUES))
    kind = str(rng.choice(["C", "cloud", "measures"]))

    def rows(count: int) -> np.ndarray:
        A = rng.integers(1, 5, size=(count, n)) * (rng.random((count, n)) < 0.4).astype(float)
        A[np.arange(count), rng.integers(n, size=count)] += 1
        A /= A.sum(axis=1, keepdims=True)
        if rng.random() < 0.15:
            A[rng.integers(count)] = 0
        return A

    arrays, axes = {"A": rows(Q)}, {"A": "Qn"}
    if rng.random() < 0.7:
        arrays["B"], axes["B"] = rows(D), "Dn"
        if rng.random() < 0.3:
            arrays["B"] = arrays["B"][rng.integers(2, size=D)]
    x = rng.integers(0, 5, size=(n, d)).astype(float) if rng.random() < 0.3 else rng.normal(size=(n, d))
    if kind == "C":
        arrays["C"], axes["C"] = cdist(x, x, "sqeuclidean"), "nn"
    else:
        arrays["x"], axes["x"] = x, "nd"
    options = {"eps": float(f"{d * 10 ** rng.uniform(-2, 0.5):.3g}"), "max_iter": 1000}
    extra: dict[str, Any] = {"value": value, "k": int(rng.integers(1, 4))}
    if kind == "measures":
        extra["measures"] = True
    return Case("documents", seed, arrays, axes, dtype, options, extra)


def check(case: Case) -> Seen:
    """Compare the collections, and look for neighbours."""
    arrays = case.given()
    x, measures = arrays.get("x"), "measures" in case.extra

    def documents(name: str) -> Any:
        A = arrays.get(name)
        if A is None or not measures:
            return None if A is None else scipy.sparse.csr_array(A)
        return cusink.Measures.of([x[w > 0] for w in A], [w[w > 0] for w in A])

    def call() -> tuple[Any, Any]:
        C = arrays["C"] if "C" in arrays else "sqeuclidean" if measures else cusink.PointCloud(x)
        A, B, value = documents("A"), documents("B"), case.extra.get("value", "cost")
        full = cusink.distance_matrix(A, B, C, value=value, full_output=True, **case.options)
        return full, cusink.nearest(A, B, C, k=most(case), value=value, full_output=True, **case.options)

    seen = observe(call, arrays, PARAMETERS, EMPTY)
    if seen.value is None or seen.value.value is None:
        return seen
    (full, near), unconverged, _ = seen.value
    empty = tuple(~arrays.get(name, arrays["A"]).any(axis=1) for name in "AB")
    solved = ~(empty[0][:, None] | empty[1])
    settled = bool(full.converged[solved].all())
    with np.errstate(all="ignore"):
        findings = list(_compared(case, full, near, solved, settled))
    if not settled and not unconverged:
        findings.append(Finding(WRONG, "a warning where not converged", "none", "some did not converge"))
    return seen.having(findings, flagged=not settled)


def _compared(case: Case, full: Any, near: Any, solved: np.ndarray, settled: bool) -> Iterator[Finding]:
    exact, u = case.exact(), UNITS[case.dtype][0]
    A, B = exact["A"], exact.get("B", exact["A"])
    C = exact["C"] if "C" in exact else cdist(exact["x"], exact["x"], "sqeuclidean")
    D, value, k = full.distances.astype(np.float64), case.extra.get("value", "cost"), most(case)
    alone = "B" not in exact
    if not np.isnan(D[~solved]).all():
        yield Finding(WRONG, "an empty document is at distance NaN", "NaN", str(D[~solved].tolist()))
    if not np.isfinite(D[solved]).all():
        yield Finding(NAN, "distances are finite", "finite numbers", str(D.tolist()))
        return
    if value == "divergence":
        kept = solved.any(axis=1)
        yield from divergences(D[kept][:, kept] if alone else D[solved], alone)
    if not settled:
        return
    masked = np.where(np.eye(*D.shape, dtype=bool) & alone, np.inf, D)
    unit = float(np.abs(C).max()) + 10 * case.options["eps"]
    # A neighbour was solved on its own, and may stop elsewhere within tol than the pair of the matrix did.
    error = max(float(full.error[solved].max(initial=0)), case.options.get("tol", DEFAULT_TOL[case.dtype]))
    slack = (64 * u + 2 * error) * unit
    for row in np.flatnonzero(solved.any(axis=1)):
        wanted, d = np.sort(masked[row])[:k], near.distances[row].astype(np.float64)
        if not (np.isfinite(wanted) == np.isfinite(d)).all() or (np.abs(wanted - d) > slack).any():
            yield Finding(
                WRONG,
                "the neighbours are those of the sorted matrix",
                str(d.tolist()),
                f"{wanted.tolist()} within {slack:.1g}",
            )
            return
    pairs = np.argwhere(solved)
    rng = np.random.default_rng(case.seed)
    for q, j in pairs[rng.permutation(len(pairs))[:2]]:
        if value == "divergence":
            continue
        (problem,) = claims.problems(A[q], B[j], C, case.options["eps"], noise=0.0 if "C" in exact else 32 * u)
        found = oracle.entry(problem, value, float(D[q, j]), float(full.error[q, j]), u)
        if found is not None:
            yield found
