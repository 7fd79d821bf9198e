"""`cusink.Grid` held to the claims of its dense cost."""

from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import draw as drawing
from fuzzing import solving
from fuzzing.case import Case, Seen
from fuzzing.subjects.solver import extras

SHOW = (
    """\
cells = a.shape[batch:]
told = {name: globals()[name] for name in ("metric", "spacing", "periodic") if name in globals()}
C = cusink.Grid(cells, **told)
a, b = (w.reshape(*w.shape[:batch], -1) for w in (a, b))
costs = C.dense()
"""
    + solving.SHOW
)


def draw(rng: Generator, seed: int) -> Case:
    """Draw images and a call."""
    dtype = drawing.dtype(rng, half=False)
    dims = int(rng.integers(1, 4))
    cells = tuple(int(k) for k in rng.integers(1, (9, 5, 4)[dims - 1], size=dims))
    B = int(rng.choice([0, 1, 3]))
    a, b = (drawing.weights(rng, max(B, 1), int(np.prod(cells)), dtype).reshape(max(B, 1), *cells) for _ in range(2))
    extra: dict[str, Any] = {**extras(rng)}
    extra.pop("layout", None)
    extra.pop("overwrite", None)
    scale = 1.0
    if rng.random() < 0.5:
        extra["metric"] = str(rng.choice(["cityblock", "euclidean"]))
    if rng.random() < 0.3:
        extra["spacing"] = float(f"{10 ** (rng.uniform(-2, 2) * rng.choice([1, 1, 4])):.2g}")
        scale = extra["spacing"] ** (1 if "metric" in extra else 2)
    if rng.random() < 0.3:
        extra["periodic"] = True
    options: dict[str, Any] = {"eps": float(f"{scale * 10 ** rng.uniform(-2, 1):.3g}"), **drawing.options(rng, dtype)}
    equal: tuple[str, ...] = ("a", "b")
    if rng.random() < 0.15:
        options["reach"], equal = float(f"{scale * 10 ** rng.uniform(-1, 1):.2g}"), ()
        options.pop("method", None) if options.get("method") == "scaling" else None
    letters = "hwl"[:dims]
    arrays, axes = ({"a": a, "b": b}, f"B{letters}") if B else ({"a": a[0], "b": b[0]}, letters)
    return Case("grids", seed, arrays, dict.fromkeys("ab", axes), dtype, options, extra, equal)


def check(case: Case) -> Seen:
    """Solve, and hold the result to the claims with the dense cost."""
    cells = case.arrays["a"].shape[case.axes["a"].startswith("B") :]
    metric, spacing, periodic = (
        case.extra.get(k, default) for k, default in (("metric", "sqeuclidean"), ("spacing", 1.0), ("periodic", False))
    )
    costs = np.zeros((int(np.prod(cells)),) * 2)
    at = np.indices(cells).reshape(len(cells), -1)
    for axis, count in zip(at, cells, strict=True):
        apart = np.abs(axis[:, None] - axis).astype(float)
        apart = spacing * (np.minimum(apart, count - apart) if periodic else apart)
        costs += apart if metric == "cityblock" else apart**2
    if metric == "euclidean":
        costs **= 0.5
    flat = case.but(
        arrays={k: x.reshape(*x.shape[: x.ndim - len(cells)], -1) for k, x in case.arrays.items()},
        axes={k: "Bn" if case.axes[k].startswith("B") else "n" for k in case.arrays},
    )
    grid = cusink.Grid(cells, metric, spacing=spacing, periodic=periodic)
    return solving.check(flat, costs, lambda arrays: grid, noise=4 * np.finfo(case.dtype).eps)  # noqa: ARG005
