"""One call of `cusink.sinkhorn`, all that its result offers, and the claims on it: for costs of any kind."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cusink
from fuzzing import claims, oracle
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import DEFAULT_TOL, UNITS, Claimed, Problem

PARAMETERS = (*inspect.signature(cusink.sinkhorn).parameters, "x", "y")
NUMBERS = ("cost", "reg_cost", "entropic_cost", "error", "n_iter", "converged")

SHOW = """\
result = cusink.sinkhorn(a, b, C, eps=eps, **options)
print(result)
P = result.plan().astype(float)
print("plan", P.tolist())
print("mass of the plan", P.sum(axis=(-2, -1)), "column sums", P.sum(axis=-2).tolist(), "claimed error", result.error)
print("<P, C>", np.where(P > 0, P * costs, 0).sum(axis=(-2, -1)), "claimed cost", result.cost)
"""


def laid_out(x: np.ndarray, layout: str) -> Any:
    """Return an array in another layout of memory, or as a tensor of the same."""
    if layout == "F":
        return np.asfortranarray(x)
    if layout == "strided":
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if layout == "readonly":
        x.flags.writeable = False
    if layout == "torch" and x.dtype.name != "bfloat16":
        import torch

        return torch.from_numpy(x)
    return x


def solve(
    case: Case, arrays: dict[str, np.ndarray], cost: Callable[[], Any], vector: np.ndarray | None
) -> dict[str, Any]:
    """Call, and return all that the result offers as arrays of NumPy."""
    options = dict(case.options)
    if "eps" in arrays:
        options["eps"] = arrays["eps"]
    if "f0" in arrays:
        options["init"] = (arrays["f0"], arrays["g0"])
    C = cost()
    result = cusink.sinkhorn(arrays.get("a"), arrays.get("b"), C, **options)
    found = {name: np.asarray(getattr(result, name)) for name in (*NUMBERS, "f", "g")}
    found["plan"] = np.asarray(result.plan())
    if case.extra.get("bounds"):
        found["bounds"] = tuple(np.asarray(x) for x in result.bounds())
    if vector is not None:
        found["apply"] = np.asarray(result.apply(vector, 1))
    if case.extra.get("again"):
        keep = dict(options, init=(result.f, result.g))
        found["again"] = np.asarray(cusink.sinkhorn(arrays.get("a"), arrays.get("b"), C, **keep).error)
    if case.extra.get("overwrite"):
        for x in arrays.values():
            x[...] = 0
        found["later"] = np.asarray(result.plan())
    return found


def check(
    case: Case, costs: np.ndarray, cost: Callable[[dict[str, np.ndarray]], Any], noise: float = 0.0, floor: float = 0.0
) -> Seen:
    """Solve a case with `cost(arrays)`, which is `costs` in float64, and hold the result to its claims."""
    arrays = {name: laid_out(x, case.extra.get("layout", "")) for name, x in case.given().items()}
    vector = None
    if case.extra.get("apply"):
        vector = np.cos(np.arange(costs.shape[-1])).astype(next(iter(case.given().values())).dtype)
    inputs = {} if case.extra.get("overwrite") else {name: np.asarray(x) for name, x in arrays.items()}
    seen = observe(lambda: solve(case, arrays, lambda: cost(arrays), vector), inputs, PARAMETERS)
    if seen.value is None or seen.value.value is None:
        return seen
    found, unconverged, announced = seen.value
    if announced:  # half precision that is out of range says so
        return seen.having([], flagged=True)
    exact = case.exact()
    sides = [
        np.asarray(exact[k]).reshape(*exact[k].shape[: case.axes[k].startswith("B")], -1) if k in exact else None
        for k in "ab"
    ]
    sides = [np.full(n, 1 / n) if x is None else x for x, n in zip(sides, costs.shape[-2:], strict=True)]
    each = claims.problems(*sides, costs, case.eps, case.options.get("reach"), noise, floor)
    with np.errstate(all="ignore"):
        findings = list(_findings(case, found, each, unconverged, vector))
    return seen.having(findings, flagged=not found["converged"].all())


def of_problem(found: dict[str, Any], k: int, size: int) -> Claimed:
    """Return what a result says of problem `k`."""
    one = {
        name: (x.astype(np.float64) if x.ndim == full - 1 else x[k].astype(np.float64))
        for name, x, full in (
            ("f", found["f"], 2),
            ("g", found["g"], 2),
            ("plan", found["plan"], 3),
            *((name, found[name], 1) for name in NUMBERS),
        )
    }
    numbers = {name: float(one[name]) for name in NUMBERS}
    return Claimed(
        one["f"],
        one["g"],
        one["plan"],
        *(numbers[n] for n in NUMBERS[:4]),
        int(numbers["n_iter"]),
        bool(numbers["converged"]),
    )


def _findings(
    case: Case, found: dict[str, Any], each: list[Problem], unconverged: bool, vector: np.ndarray | None
) -> Iterator[Finding]:
    tol, max_iter = case.options.get("tol", DEFAULT_TOL[case.dtype]), case.options.get("max_iter", 1000)
    u = UNITS[case.dtype][0]
    if tol is not None and not found["converged"].all() and not unconverged:
        yield Finding(WRONG, "a warning where not converged", "none", str(found["converged"]))
    if "later" in found and found["later"].tobytes() != found["plan"].tobytes():
        yield Finding(WRONG, "no view of the inputs is kept", "the same plan", "another one after the inputs changed")
    wild = case.options.get("method") == "scaling"  # leaves the range, from large potentials too, and says so
    for k, problem in enumerate(each):
        claimed = of_problem(found, k, len(each))
        if wild and not claimed.converged:
            continue
        yield from claims.solution(problem, claimed, case.dtype, tol, max_iter)
        P = claimed.plan
        if "bounds" in found:
            lower, upper = (float(x if x.ndim == 0 else x[k]) for x in found["bounds"])
            yield from claims.bounded(problem, lower, upper, u)
        if vector is not None and np.isfinite(P).all():
            product = np.atleast_2d(found["apply"])[k].astype(np.float64)
            v = vector.astype(np.float64)
            own = claims.allowance(problem, claimed, case.dtype, tol) + claimed.error
            tiny = 4 * u * np.abs(np.where(P > 0, claims.log(P), 0))  # exponentials of large numbers
            slack = (P * (own + tiny)) @ abs(v) + P.size * UNITS[case.dtype][1]
            if np.isnan(product).any() or (claimed.error < 0.1 and (abs(product - P @ v) > slack).any()):
                yield Finding(NAN if np.isnan(product).any() else WRONG, "apply is plan @ v", str(product), str(P @ v))
        if "again" in found and claimed.converged and tol is not None and case.dtype == "float64" and not wild:
            error = float(np.atleast_1d(found["again"])[k])
            if not error <= tol * (1 + 4 * u):
                yield Finding(WRONG, "its own potentials are a start that converges", "error <= tol", f"{error:.3g}")
        if case.extra.get("optimum") and claimed.converged:
            best = oracle.optimum(problem)
            if best is not None:
                yield from oracle.value(problem, claimed, case.dtype, best)
        if (
            case.extra.get("plain")
            and tol is not None
            and problem.reach is None
            and "overrelaxation" not in case.options
        ):
            every = case.options.get("check_every", 10)
            plain = oracle.plain_iterations(problem, tol, every, min(max_iter, 400))
            if plain is not None and claimed.n_iter > -(-(2 * plain + 10) // every) * every:
                yield Finding(
                    WRONG, "no more than twice the plain iterations and ten", f"{claimed.n_iter}", f"{plain} plain ones"
                )
