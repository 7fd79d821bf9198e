"""The largest, the mean and the median cost of each problem, as units of eps."""

import math
from typing import Any

import numpy as np

from cusink.costs.blocks import blocks
from cusink.types import Eps, HostArray, Statistic

PAIRS = 1 << 22  # of bins whose costs are looked at where they are not stored; of more, evenly spaced bins
ENTRIES = 1 << 20  # of a block


def statistic(C: Any, name: Statistic) -> Eps:
    """Return a statistic of the finite costs of a `Cost`: a number for a shared one, else (B,).

    All pairs count the same, whatever the weights of their bins. Costs that are not stored are those of bins that are
    evenly spaced, in their order, such that there are at most `PAIRS` pairs.
    """
    if (known := C.known_statistic(name)) is not None:
        return float(known)
    size, (n, m) = 1 if C.shared else C.shape[0], C.shape[-2:]
    step = 1 if C.stored else max(1, math.ceil(math.sqrt(n * m / PAIRS)))
    if step > 1 and C.divisible:
        C, n, m = C.between(np.arange(0, n, step), np.arange(0, m, step)), -(-n // step), -(-m // step)
    inside = 1 if C.divisible else step
    found = _median(C, size, n, inside) if name == "median" else _extreme(C, size, n, m, inside, name)
    return float(found[0]) if C.shared else found


def _extreme(C: Any, size: int, n: int, m: int, step: int, name: Statistic) -> HostArray:
    """Return the largest or the mean cost (B,)."""
    xp = C.xp
    largest, total, count = xp.full(size, -xp.inf), xp.zeros(size), xp.zeros(size)
    for problems, rows in blocks(size, -(-n // step), m, ENTRIES):
        costs = _block(C, problems, rows, step)
        finite = xp.isfinite(costs)
        if name == "max":
            least = xp.where(finite, costs, -xp.inf).max(axis=(1, 2))
            largest[problems] = xp.maximum(largest[problems], least)
        else:
            total[problems] += xp.where(finite, costs, 0).sum(axis=(1, 2), dtype=np.float64)
            count[problems] += finite.sum(axis=(1, 2))
    out: HostArray = C.to_host(largest if name == "max" else total / xp.maximum(count, 1))
    return out


def _median(C: Any, size: int, n: int, step: int) -> HostArray:
    """Return the median cost (B,); NaN where all are infinite."""
    out = np.full(size, np.nan)
    for k in range(size):
        costs = C.to_host(_block(C, slice(k, k + 1), slice(0, -(-n // step)), step))
        finite = costs[np.isfinite(costs)]
        if finite.size:
            out[k] = np.median(finite.astype(np.float64))
    return out


def _block(C: Any, problems: slice, rows: slice, step: int) -> Any:
    """Return the costs (problems, rows, m) of every `step`-th row and column."""
    if step == 1:
        costs = C.block(problems, rows)
    else:
        costs = C.block(problems, step * np.arange(rows.start, rows.stop))[..., ::step]
    return costs[None] if C.shared else costs
