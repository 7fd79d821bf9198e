"""`cusink.PointCloud` held to the claims of its dense cost in float64: far points, empty ones, towns, powers."""

from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.spatial.distance import cdist

import cusink
from fuzzing import draw as drawing
from fuzzing import solving
from fuzzing.case import Case, Seen
from fuzzing.claims import UNITS
from fuzzing.subjects.solver import extras

METRICS = ("sqeuclidean", "euclidean", "cityblock", "cosine")
SHOW = """\
metric, power = globals().get("metric", "sqeuclidean"), globals().get("power", 1)
C = cusink.PointCloud(x, globals().get("y"), metric, power=power)
exact = [p.astype(float) for p in (x, globals().get("y", x))]
costs = cusink.cost_matrix(*exact, metric) ** power
""" + solving.SHOW.replace("sinkhorn(a, b,", 'sinkhorn(globals().get("a"), globals().get("b"),')


def draw(rng: Generator, seed: int) -> Case:
    """Draw points and a call."""
    dtype = drawing.dtype(rng, half=False)
    n, m, d = drawing.size(rng), drawing.size(rng), int(rng.choice([1, 2, 3, 20]))
    B = int(rng.choice([0, 0, 0, 2, 3]))
    own = B > 0 and rng.random() < 0.3
    rows = max(B, 1)
    metric = str(rng.choice(METRICS, p=[0.5, 0.2, 0.2, 0.1]))
    d = max(d, 2) if metric == "cosine" else d  # on a line all directions are one
    x, y = rng.random((rows if own else 1, n, d)), rng.random((rows if own else 1, m, d))
    a, b = drawing.weights(rng, rows, n, dtype), drawing.weights(rng, rows, m, dtype)
    kind = rng.choice(["plain", "plain", "shifted", "far", "towns", "scaled", "same"])
    scale = float(d)
    if kind == "shifted" and metric != "cosine":  # between nearly parallel vectors 1 - cos has few digits
        x, y = x + 100, y + 100
    elif kind == "far" and metric != "cosine":  # one point far away on each side, mostly of weight 0
        far = 10.0 ** rng.uniform(1, 5)
        x[:, -1], y[:, -1] = far, far
        for w in (a, b):
            if rng.random() < 0.7 and w.shape[1] > 1:
                w[:, 0] += w[:, -1] + 1e-3
                w[:, -1] = 0
                w /= w.sum(axis=1, keepdims=True)
    elif kind == "towns" and metric != "cosine":
        for p in (x, y):
            p[:, p.shape[1] // 2 :] += 10.0 ** rng.uniform(1, 3)
    elif kind == "scaled":
        factor = 10.0 ** (rng.uniform(-3, 3) * rng.choice([1, 1, 3]))
        x, y, scale = (
            x * factor,
            y * factor,
            scale * (factor if metric in METRICS[1:3] else factor**2 if metric != "cosine" else 1),
        )
    if metric == "cosine":
        x, y, scale = x + 0.1, y + 0.1, 0.3
    extra: dict[str, Any] = {**extras(rng)}
    if metric != "sqeuclidean":
        extra["metric"] = metric
    if rng.random() < 0.15:
        extra["power"] = float(rng.choice([0.5, 2.0]))
        scale **= extra["power"]
    options: dict[str, Any] = {
        "eps": float(f"{scale * 10 ** rng.uniform(-2.5, 0.5):.3g}"),
        **drawing.options(rng, dtype),
    }
    equal: tuple[str, ...] = ("a", "b")
    if rng.random() < 0.15:
        options["reach"], equal = float(f"{scale * 10 ** rng.uniform(-1, 1):.2g}"), ()
        options.pop("method", None) if options.get("method") == "scaling" else None
    if rng.random() < 0.1:
        options["memory_limit"] = 8 * max(n, m)
    arrays = {"a": a, "b": b, "x": x, "y": y}
    axes = {"a": "Bn", "b": "Bm", "x": "Bnd", "y": "Bmd"}
    if kind == "same":
        arrays, axes = {"a": a, "b": drawing.weights(rng, rows, n, dtype), "x": x}, {"a": "Bn", "b": "Bn", "x": "Bnd"}
    if rng.random() < 0.1 and not own:
        arrays = {k: v for k, v in arrays.items() if k not in "ab"}
        equal = ()
    flat = {k for k in arrays if (k in "xy" and not own) or B == 0}
    arrays = {k: v[0] if k in flat else v for k, v in arrays.items()}
    axes = {k: axes[k].lstrip("B") if k in flat else axes[k] for k in arrays}
    return Case("clouds", seed, arrays, axes, dtype, options, extra, equal if "a" in arrays else ())


def check(case: Case) -> Seen:
    """Solve, and hold the result to the claims with the dense cost."""
    exact, metric, power = case.exact(), case.extra.get("metric", "sqeuclidean"), case.extra.get("power", 1.0)
    x, y = exact["x"], exact.get("y", exact["x"])
    with np.errstate(all="ignore"):
        bare = (
            cdist(x, y, metric) if x.ndim == 2 else np.stack([cdist(p, q, metric) for p, q in zip(x, y, strict=True)])
        )
        costs = np.maximum(bare, 0) ** power
    u = UNITS[case.dtype][0]
    noise = 16 * u * (1 + power)  # of distances between points in this dtype
    floor = 0.0
    if metric == "cosine":  # 1 - cos is off by roundings of 1: its powers by most at 0 or at the largest
        largest = float(bare.max())
        floor = max((16 * u) ** power, (largest + 16 * u) ** power - largest**power)

    def cost(arrays: dict[str, np.ndarray]) -> cusink.PointCloud:
        return cusink.PointCloud(arrays["x"], arrays.get("y"), metric, power=power)

    return solving.check(case, costs, cost, noise, floor)
