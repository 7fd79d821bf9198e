"""`cusink.sinkhorn` with stored costs: dtypes, batches, methods, forbidden pairs, masses, starts, reach."""

from collections.abc import Mapping
from typing import Any

from numpy.random import Generator

from fuzzing import draw as drawing
from fuzzing import solving
from fuzzing.case import Case, Seen

SHOW = "costs = C.astype(float)\n" + solving.SHOW


def draw(rng: Generator, seed: int) -> Case:
    """Draw a call."""
    dtype = drawing.dtype(rng)
    n, m = drawing.size(rng), drawing.size(rng)
    B = int(rng.choice([0, 0, 1, 2, 4]))
    own = B > 0 and rng.random() < 0.3
    C = drawing.costs(rng, (B, n, m) if own else (n, m), dtype)
    rows = max(B, 1)
    a, b = drawing.weights(rng, rows, n, dtype), drawing.weights(rng, rows, m, dtype)
    options: dict[str, Any] = {"eps": drawing.regularisation(rng, drawing.scale_of(C)), **drawing.options(rng, dtype)}
    equal: tuple[str, ...] = ("a", "b")
    if rng.random() < 0.2:
        rho = drawing.scale_of(C) * 10 ** rng.uniform(-1.5, 1.5)
        options["reach"] = float(f"{rho:.2g}") if rng.random() < 0.7 else (None, float(f"{rho:.2g}"))
        options.pop("method", None) if options.get("method") == "scaling" else None
        equal = ()
        b = b * rng.choice([1, 0.5, 2])
    elif rng.random() < 0.2 and not own and dtype != "float16":
        C, a, b = drawing.forbid(rng, C, rows)
    if dtype != "float16" and rng.random() < 0.15:
        mass = 10.0 ** rng.uniform(-1, 1, size=1)[0] ** 3 * 10.0 ** rng.choice([-20, -8, 0, 8])
        a, b = a * mass, b * mass
    arrays, axes = {"a": a, "b": b, "C": C}, {"a": "Bn", "b": "Bm", "C": "Bnm" if own else "nm"}
    if rng.random() < 0.15:
        size = drawing.scale_of(C) * rng.choice([0, 0.1, 3])
        arrays |= {"f0": size * rng.normal(size=(rows, n)), "g0": size * rng.normal(size=(rows, m))}
        axes |= {"f0": "Bn", "g0": "Bm"}
    if B == 0:
        arrays = {k: x[0] if axes[k][0] == "B" else x for k, x in arrays.items()}
        axes = {k: x.lstrip("B") for k, x in axes.items()}
    extra = extras(rng)
    if dtype != "float16":
        drawing.each_eps(rng, options, arrays, axes, B)
    return Case("solver", seed, arrays, axes, dtype, options, extra, equal)


def extras(rng: Generator) -> Mapping[str, Any]:
    """Draw what else is looked at."""
    odds = {"bounds": 0.3, "apply": 0.2, "optimum": 0.3, "plain": 0.1, "again": 0.1, "overwrite": 0.03}
    extra: dict[str, Any] = {name: True for name, share in odds.items() if rng.random() < share}
    if rng.random() < 0.2:
        layouts = ["torch"] if "overwrite" in extra else ["F", "strided", "readonly", "torch"]
        extra["layout"] = str(rng.choice(layouts))
    return extra


def check(case: Case) -> Seen:
    """Solve, and hold the result to its claims."""
    return solving.check(case, case.exact()["C"], lambda arrays: arrays["C"])
