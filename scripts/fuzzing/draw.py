"""Problems at random, each from one integer: mostly small, and often at the edge of what a dtype can carry."""

from typing import Any

import numpy as np
from numpy.random import Generator

LARGEST = {"float64": 1e300, "float32": 1e37, "float16": 3e4, "bfloat16": 1e37}
DIGITS = {"float64": 16, "float32": 7, "float16": 3, "bfloat16": 2}


def size(rng: Generator, largest: int = 8) -> int:
    """Draw a number of bins: small ones mostly, 1 and large ones too."""
    return int(rng.choice([1, 2, 3, rng.integers(2, largest + 1), rng.integers(2, largest + 1), 5 * largest]))


def dtype(rng: Generator, half: bool = True) -> str:
    """Draw a dtype."""
    return str(rng.choice(["float64", "float32", "float16"], p=[0.5, 0.45, 0.05] if half else [0.5, 0.5, 0]))


def weights(rng: Generator, rows: int, bins: int, dtype: str = "float64") -> np.ndarray:
    """Draw weights (rows, bins) of sum 1: even, uneven, with empty bins, over many decades."""
    kind = rng.choice(["gamma", "even", "empty", "decades", "counts", "spike"])
    if dtype in ("float16", "bfloat16") or kind == "counts":  # sums of sixty-fourths are exact
        return rng.multinomial(64, np.full(bins, 1 / bins), size=rows) / 64
    w = rng.gamma(1.0, size=(rows, bins)) + 1e-3
    if kind == "even":
        w[:] = 1
    elif kind == "empty":
        w[rng.random(w.shape) < rng.choice([0.3, 0.7])] = 0
    elif kind == "decades":
        w = 10.0 ** rng.uniform(rng.choice([-8, -30, -44 if dtype == "float32" else -300]), 0, size=w.shape)
    elif kind == "spike":
        w = np.full(w.shape, rng.choice([0, 1e-12, 1e-6]))
    w[:, rng.integers(bins)] += 1.0 if kind in ("spike", "decades") else 0.1
    return w / w.sum(axis=1, keepdims=True)


def costs(rng: Generator, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    """Draw costs: random, ties, of points, a large number for forbidden pairs, over decades, shifted, in any unit."""
    kind = rng.choice(["random", "ties", "line", "large", "decades", "shifted", "equal", "random"])
    C = rng.random(shape)
    if kind == "ties":
        C = rng.integers(0, 4, size=shape).astype(float)
    elif kind == "line":
        x, y = (np.linspace(0, 1, k) for k in shape[-2:])
        C = np.broadcast_to((x[:, None] - y) ** 2, shape).copy()
    elif kind == "large":
        top = np.log10(LARGEST[dtype]) / 3
        C[rng.random(shape) < rng.choice([0.1, 0.3])] = 10.0 ** rng.uniform(min(3, top), min(top, 20))
    elif kind == "decades":
        C = 10.0 ** rng.uniform(-6, 3, size=shape)
    elif kind == "shifted":
        C += rng.choice([-1.0, 3.0, -3.0, 100.0])
    elif kind == "equal":
        C[:] = C.flat[0]
    if kind != "large" and dtype in ("float64", "float32") and rng.random() < 0.1:
        C *= unit(rng)
    return C


def unit(rng: Generator) -> float:
    """Draw the unit of a cost: far from 1, yet with room for its squares in float64."""
    return float(f"{10.0 ** rng.uniform(-18, 18):.2g}")


def scale_of(C: np.ndarray) -> float:
    """Return the ordinary size of costs, whatever stands for forbidden pairs."""
    size = float(np.median(np.abs(C[np.isfinite(C)]))) if np.isfinite(C).any() else 1.0
    return size if size > 0 else 1.0


def regularisation(rng: Generator, scale: float) -> float:
    """Draw eps: from large beside the costs to a millionth of them."""
    return float(f"{scale * 10 ** rng.uniform(rng.choice([-2, -2, -4, -6]), 1):.3g}")


def each_eps(rng: Generator, options: dict[str, Any], arrays: dict[str, Any], axes: dict[str, str], B: int) -> None:
    """Draw for some batches an eps for each problem, in place of the number among the options."""
    if B > 1 and rng.random() < 0.25:
        eps = options.pop("eps")
        arrays["eps"] = np.array([float(f"{eps * 10 ** rng.uniform(0, 1.5):.3g}") for _ in range(B)])
        axes["eps"] = "B"


def forbid(rng: Generator, C: np.ndarray, B: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forbid pairs by +inf; return the costs and weights (B, n), (B, m) for which there is a plan."""
    n, m = C.shape[-2:]
    mask = rng.random((n, m)) < rng.choice([0.2, 0.5])
    if mask.all():
        mask.flat[rng.integers(mask.size)] = False
    C = np.where(mask, np.inf, C)
    P = rng.gamma(1.0, size=(B, n, m)) * ~mask
    P *= (rng.random((B, n, 1)) > 0.2) & (rng.random((B, 1, m)) > 0.2) | (P.sum(axis=(1, 2), keepdims=True) == 0)
    P[P.sum(axis=(1, 2)) == 0] = ~mask
    P /= P.sum(axis=(1, 2), keepdims=True)
    return C, P.sum(axis=2), P.sum(axis=1)


def options(rng: Generator, dtype: str, methods: tuple[str, ...] = ("log", "scaling")) -> dict[str, Any]:
    """Draw options of the solver; one call in three has none."""
    choices = {
        "max_iter": [1, 7, 100, 300, 3000],
        "tol": [None, 1e-3, 1e-4, 1e-9 if dtype == "float64" else 1e-5],
        "check_every": [1, 3, 50],
        "method": list(methods),
        "overrelaxation": [None, 1.0, 1.5, 1.9, 1.99],
    }
    if rng.random() < 1 / 3:
        return {}
    return {
        name: values[int(rng.integers(len(values)))]
        for name, values in choices.items()
        if values and rng.random() < 0.25
    }
