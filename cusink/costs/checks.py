"""Rules for costs: entries, partners, points and gradients."""

import math
from typing import Any

import numpy as np

from cusink.checks.arrays import HALF, arrays, finite, in_range, kind, largest, promoted
from cusink.checks.weights import first_index
from cusink.types import Array, ArrayModule, Reach

ENTRIES = 1 << 16  # that are looked at at once


def points(x: Any, y: Any, metric: str) -> tuple[list[Array], ArrayModule, Any]:
    """Check the points (n, d) and (m, d) of `cusink.cost_matrix`; y None for x."""
    if not isinstance(metric, str):
        raise TypeError(f"'metric' must be the name of a metric; got {kind(metric)}. A usual one is 'sqeuclidean'")
    if x is None:
        raise TypeError("'x' must be an array of points; got None. Only 'y' may be None, for x itself")
    (x, y), xp, dtype = promoted(x=x, y=y)
    shaped = []
    for name, p in (("x", x), ("y", x if y is None else y)):
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim != 2 or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) with at least one point and one coordinate; got {p.shape}"
            )
        finite(name, p, xp)
        if metric == "cosine" and not p.any(axis=1).all():
            raise ValueError(
                f"'{name}' must hold no zero vector for metric 'cosine'; got row {int((~p.any(axis=1)).argmax())}"
            )
        shaped.append(p)
    if shaped[0].shape[1] != shaped[1].shape[1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    return shaped, xp, dtype


def cost_values(C: Array, xp: ArrayModule) -> None:
    """Check the entries of a cost: no NaN, no -inf; +inf is a forbidden pair."""
    if not xp.isfinite(C.min()):  # which is NaN, if one is
        what = "NaN" if xp.isnan(C).any() else "-inf" if xp.isneginf(C).any() else "+inf alone"
        raise ValueError(
            f"'C' must hold finite costs, and +inf only for forbidden pairs; got {what}. Check how the cost was made"
        )
    costs_in_range("C", C, xp)


def costs_in_range(name: str, C: Array, xp: ArrayModule) -> None:
    """Check that finite costs are so far from the end of the range of their dtype that sums do not leave it."""
    most, rows = largest(C.dtype.name), max(1, ENTRIES * len(C) // C.size)
    parts = (C[start : start + rows] for start in range(0, len(C), rows))  # without an array of the size of C
    if float(C.min()) < -most or (float(C.max()) > most and any((xp.isfinite(p) & (p > most)).any() for p in parts)):
        raise ValueError(
            f"'{name}' must hold costs of at most {most:.2g} in {C.dtype}; got more. Forbid a pair with +inf, or "
            "change the unit"
        )


def refuse_far(beyond: Array, dtype: np.dtype[Any]) -> None:
    """Refuse points some costs of which are `beyond` the range of their dtype; of half precision a warning says so."""
    if dtype.name not in HALF and bool(beyond.any()):
        raise ValueError(f"'x' and 'y' must be so near that costs are finite in {dtype}; got +inf. Scale the points")


def squares_in_range(names: str, clouds: list[Array], xp: ArrayModule) -> None:
    """Check that squared distances between points (., d) of some clouds have room in their dtype."""
    dtype, d = clouds[0].dtype.name, clouds[0].shape[-1]
    low, high = (xp.stack(ends) for ends in zip(*((p.min(axis=0), p.max(axis=0)) for p in clouds), strict=True))
    half = float((high.max(axis=0) / 2 - low.min(axis=0) / 2).max())  # as the whole may leave the range
    if 4 * d * half * half > largest(dtype):
        raise ValueError(
            f"{names} must hold points so near that squared distances are at most {largest(dtype):.2g} in {dtype}; got "
            f"points {2 * half:.3g} apart. Scale the points"
        )


def partners(a: Array, b: Array, C: Array, xp: ArrayModule, reach: Reach | None = None) -> None:
    """Check that every bin with weight may send some of it to a bin with weight.

    With prices `reach` that is asked for where a marginal is to be met, and of one bin elsewhere.
    """
    alone = stranded(a, b, C, xp)
    if alone is None:
        return
    for name, lone, rho in zip("ab", alone, reach or (math.inf,) * 2, strict=True):
        if rho == math.inf and (at := first_index(lone)) is not None:
            problem, index = at
            line = "row" if name == "a" else "column"
            raise ValueError(
                f"'C' must allow every bin with weight a partner with weight; in problem {problem}, {line} {index} of "
                f"'C' is forbidden (+inf) wherever the other side has weight, and '{name}' has weight there. "
                "Allow a pair, or empty the bin"
            )
    if (at := first_index((alone[0] | (a == 0)).all(axis=1, keepdims=True))) is not None:
        raise ValueError(
            f"'C' must allow a pair of bins that both have weight; in problem {at[0]} all are forbidden (+inf). "
            "Allow one"
        )


def stranded(a: Array, b: Array, C: Array, xp: ArrayModule) -> tuple[Array, Array] | None:
    """Return which bins (B, n) and (B, m) with weight `C` forbids all partners with weight; None without +inf."""
    allowed = xp.isfinite(C)
    if allowed.all():
        return None
    sides = ((a, b, allowed), (b, a, xp.swapaxes(allowed, -1, -2)))
    of_a, of_b = ((weights > 0) & ~_reached(others, pairs, xp) for weights, others, pairs in sides)
    return of_a, of_b


@np.errstate(invalid="ignore")  # BLAS may compute with what lies on its stack, and leave that out of the product
def _reached(others: Array, pairs: Array, xp: ArrayModule) -> Array:
    """Return the bins (B, n) with a partner that `pairs` (n, m) or (B, n, m) allow and `others` (B, m) give weight."""
    count = xp.matmul((others > 0)[:, None, :].astype(others.dtype), xp.swapaxes(pairs, -1, -2).astype(others.dtype))
    return count[:, 0, :] > 0


def cost_gradient(grad_C: Any, x: Array, y: Array, like: Any) -> Array:
    """Check the gradient of a cost between points x (n, d) and y (m, d) in the library and dtype of `like`."""
    (grad_C, _), xp, _ = arrays(grad_C=grad_C, x=like)
    if grad_C is None or grad_C.shape != (len(x), len(y)):
        got = kind(None) if grad_C is None else grad_C.shape
        raise ValueError(f"'grad_C' must have shape {(len(x), len(y))} to match these points; got {got}")
    in_range("grad_C", grad_C, xp)
    return xp.ascontiguousarray(grad_C)
