"""`cusink.sinkhorn_divergence`: not negative, zero of equal measures, gradients too; beside three optima."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.spatial.distance import cdist

import cusink
from fuzzing import claims, oracle
from fuzzing import draw as drawing
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import UNITS

PARAMETERS = (*inspect.signature(cusink.sinkhorn_divergence).parameters, "x", "y")
SHOW = """\
C = cusink.PointCloud(x) if globals().get("cloud") else cusink.cost_matrix(x)
result = cusink.sinkhorn_divergence(a, b, C, eps=eps, **options)
grads = cusink.sinkhorn_divergence_adjoint(result, grad=np.ones_like(result.divergence))
print(result, grads.a, grads.b, sep="\\n")
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw two measures on the same points, often the same measure."""
    dtype = drawing.dtype(rng, half=False)
    n, d, B = int(rng.integers(1, 9)), int(rng.integers(1, 4)), int(rng.choice([0, 0, 1, 3]))
    rows = max(B, 1)
    x = rng.normal(size=(n, d)) * 10 ** rng.choice([0, 0, 2])
    if rng.random() < 0.15:
        x[-1] = 10.0 ** rng.uniform(1, 5)
    a, b = drawing.weights(rng, rows, n, dtype), drawing.weights(rng, rows, n, dtype)
    if rng.random() < 0.3:
        b = a.copy()
    elif rng.random() < 0.3:
        b = a + 1e-3 * (b - a)
    scale = drawing.scale_of(cdist(x, x, "sqeuclidean"))
    options: dict[str, Any] = {"eps": drawing.regularisation(rng, scale), **drawing.options(rng, dtype)}
    equal: tuple[str, ...] = ("a", "b")
    if rng.random() < 0.2:
        options["reach"], equal = float(f"{scale * 10 ** rng.uniform(-1, 1):.2g}"), ()
        options.pop("method", None) if options.get("method") == "scaling" else None
    extra = {"cloud": True} if rng.random() < 0.4 else {}
    arrays, axes = {"a": a, "b": b, "x": x}, {"a": "Bn", "b": "Bn", "x": "nd"}
    if B == 0:
        arrays, axes = {"a": a[0], "b": b[0], "x": x}, {"a": "n", "b": "n", "x": "nd"}
    return Case("divergence", seed, arrays, axes, dtype, options, extra, equal)


def check(case: Case) -> Seen:
    """Take the divergence and its gradient."""
    arrays = case.given()
    x = arrays["x"]

    def call() -> tuple[Any, Any]:
        C = cusink.PointCloud(x) if case.extra.get("cloud") else cdist(x, x, "sqeuclidean").astype(x.dtype)
        result = cusink.sinkhorn_divergence(arrays["a"], arrays["b"], C, **case.options)
        return result, cusink.sinkhorn_divergence_adjoint(result, grad=np.ones_like(result.divergence))

    seen = observe(call, arrays, PARAMETERS)
    if seen.value is None or seen.value.value is None:
        return seen
    (result, grads), unconverged, _ = seen.value
    settled = bool(np.all(result.converged))
    with np.errstate(all="ignore"):
        findings = list(_compared(case, result, grads))
    if case.options.get("tol", 1) is not None and not settled and not unconverged:
        findings.append(Finding(WRONG, "a warning where not converged", "none", str(result.converged)))
    return seen.having(findings, flagged=not settled)


def _compared(case: Case, result: Any, grads: Any) -> Iterator[Finding]:
    exact, u = case.exact(), UNITS[case.dtype][0]
    costs = cdist(exact["x"], exact["x"], "sqeuclidean")
    if not case.extra.get("cloud"):
        costs = costs.astype(case.dtype).astype(np.float64)
    S, error, converged = (np.atleast_1d(np.asarray(v)) for v in (result.divergence, result.error, result.converged))
    by_a, by_b = (np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (grads.a, grads.b))
    wild = case.options.get("method") == "scaling"
    pairs = claims.problems(
        exact["a"],
        exact["b"],
        costs,
        case.options["eps"],
        case.options.get("reach"),
        32 * u if case.extra.get("cloud") else 0.0,
    )
    a, b = np.atleast_2d(exact["a"]), np.atleast_2d(exact["b"])
    for k, problem in enumerate(pairs):
        if wild and not converged[k]:
            continue
        for name, x in (("the divergence", S[k]), ("the gradient by a", by_a[k]), ("the gradient by b", by_b[k])):
            if not np.isfinite(x).all():
                yield Finding(NAN, f"{name} is finite", str(x), "finite numbers")
                return
        if S[k] < 0 and converged[k]:
            yield Finding(WRONG, "a divergence is not negative", f"{S[k]:.3g}", ">= 0")
        same = (a[k] == b[k]).all()
        if same and S[k] != 0:
            yield Finding(WRONG, "equal measures have divergence 0", f"{S[k]:.3g}", "0")
        if same and converged[k] and (np.abs(by_a[k]).max() > 0 or np.abs(by_b[k]).max() > 0):
            yield Finding(WRONG, "the gradient is 0 at equal measures", str(by_a[k].tolist()), "0")
        if not converged[k] or problem.reach is not None or same:
            continue
        optima = [
            oracle.optimum(problem._replace(a=p, b=q))
            for p, q in ((problem.a, problem.b), (problem.a,) * 2, (problem.b,) * 2)
        ]
        if any(best is None for best in optima):
            continue
        between, of_a, of_b = (best.values.reg_cost for best in optima)
        wanted = between - (of_a + of_b) / 2
        spread = max(
            float(np.ptp(best.f[w > 0])) for best, w in zip(optima, (problem.a, problem.a, problem.b), strict=True)
        )
        size = float(a[k].sum()) * (spread + problem.eps + float(costs.max()))
        allowed = (4 * float(error[k]) + 64 * 2.0**-52 + problem.noise) * size + 8 * u * abs(wanted)
        if not abs(float(S[k]) - wanted) <= allowed:
            yield Finding(
                WRONG, "the divergence is that of the three optima", f"{S[k]:.9g}", f"{wanted:.9g} within {allowed:.1g}"
            )
