"""`cusink.sinkhorn` of two `cusink.Measures`: each pair held to the claims of its dense cost in float64."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.spatial.distance import cdist

import cusink
from fuzzing import claims, oracle
from fuzzing import draw as drawing
from fuzzing.case import WRONG, Case, Finding, Seen, observe
from fuzzing.claims import DEFAULT_TOL, UNITS, Claimed, Problem

METRICS = ("sqeuclidean", "euclidean", "cityblock")
PARAMETERS = (*inspect.signature(cusink.sinkhorn).parameters, "x", "y", "weights", "points")
SHOW = """\
A, B = (
    cusink.Measures.of([p[v > 0] for v, p in zip(w, points)], [v[v > 0] for v in w]) for w, points in ((a, x), (b, y))
)
pairs = cusink.sinkhorn(A, B, globals().get("metric", "sqeuclidean"), eps=eps, **options)
print(pairs)
for k in range(len(pairs)):
    P = pairs[k].plan().astype(float)
    print(k, "column sums", P.sum(axis=0).tolist(), "claimed error", pairs.error[k], "cost", pairs.cost[k])
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw pairs of clouds: the points without weight are left out, which makes them ragged."""
    dtype = drawing.dtype(rng, half=False)
    K, n, m, d = int(rng.integers(1, 7)), drawing.size(rng), drawing.size(rng), int(rng.choice([1, 2, 3]))
    metric = str(rng.choice(METRICS, p=[0.6, 0.2, 0.2]))
    x, y = rng.random((K, n, d)), rng.random((K, m, d))
    a, b = drawing.weights(rng, K, n, dtype), drawing.weights(rng, K, m, dtype)
    for w in (a, b):
        for row in w:
            most = int(rng.integers(1, len(row) + 1))
            row[most:] = 0
            row[0] += 1e-3
            row /= row.sum()
    if rng.random() < 0.2:  # one pair is far away from itself
        y[0] += 10.0 ** rng.uniform(0, 2)
    options: dict[str, Any] = {"eps": float(f"{d * 10 ** rng.uniform(-2.5, 0.5):.3g}"), **drawing.options(rng, dtype)}
    equal: tuple[str, ...] = ("a", "b")
    if rng.random() < 0.2:
        options["reach"], equal = float(f"{d * 10 ** rng.uniform(-1, 1):.2g}"), ()
        options.pop("method", None) if options.get("method") == "scaling" else None
    if rng.random() < 0.2:
        options["memory_limit"] = int(rng.choice([8 * max(n, m), 16 * max(n, m), 100_000]))
    extra = {"metric": metric} if metric != "sqeuclidean" else {}
    axes = {"a": "Bn", "b": "Bm", "x": "Bnd", "y": "Bmd"}
    return Case("pairs", seed, {"a": a, "b": b, "x": x, "y": y}, axes, dtype, options, extra, equal)


def _measures(weights: np.ndarray, points: np.ndarray) -> cusink.Measures:
    return cusink.Measures.of([p[w > 0] for w, p in zip(weights, points, strict=True)], [w[w > 0] for w in weights])


def check(case: Case) -> Seen:
    """Solve, and hold each pair to its claims."""
    arrays, metric = case.given(), case.extra.get("metric", "sqeuclidean")

    def call() -> Any:
        A, B = _measures(arrays["a"], arrays["x"]), _measures(arrays["b"], arrays["y"])
        pairs = cusink.sinkhorn(A, B, metric, **case.options)
        return A, B, pairs, [pairs[k] for k in range(len(pairs))]

    seen = observe(call, arrays, PARAMETERS)
    if seen.value is None or seen.value.value is None:
        return seen
    (A, B, pairs, each), unconverged, _ = seen.value
    exact, findings = case.exact(), []
    if case.options.get("tol", 1) is not None and not pairs.converged.all() and not unconverged:
        findings.append(Finding(WRONG, "a warning where not converged", "none", str(pairs.converged)))
    for k, one in enumerate(each):
        (a, x), (b, y) = ((exact[w][k][arrays[w][k] > 0], exact[p][k][arrays[w][k] > 0]) for w, p in ("ax", "by"))
        noise = 32 * UNITS[case.dtype][0]  # of distances between points in this dtype
        problem, *_ = claims.problems(a, b, cdist(x, y, metric), case.options["eps"], case.options.get("reach"), noise)
        f, g = (v[s.offsets[k] : s.offsets[k + 1]].astype(np.float64) for v, s in ((pairs.f, A), (pairs.g, B)))
        numbers = (float(getattr(pairs, name)[k]) for name in ("cost", "reg_cost", "entropic_cost", "error"))
        claimed = Claimed(f, g, one.plan().astype(np.float64), *numbers, int(pairs.n_iter[k]), bool(pairs.converged[k]))
        with np.errstate(all="ignore"):
            findings += _of_pair(case, problem, claimed)
    return seen.having(findings, flagged=not pairs.converged.all())


def _of_pair(case: Case, problem: Problem, claimed: Claimed) -> Iterator[Finding]:
    tol, max_iter = case.options.get("tol", DEFAULT_TOL[case.dtype]), case.options.get("max_iter", 1000)
    if case.options.get("method") == "scaling" and not claimed.converged:
        return  # it leaves the floating-point range, and says so by not converging
    yield from claims.solution(problem, claimed, case.dtype, tol, max_iter)
    best = oracle.optimum(problem) if claimed.converged and problem.reach is None else None
    if best is not None:
        yield from oracle.value(problem, claimed, case.dtype, best)
