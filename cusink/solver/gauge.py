"""The gauge of potentials: a constant may move from f to g without a change of the plan."""

from typing import Any

import numpy as np

from cusink.costs.cost import Solvable
from cusink.types import Array, ArrayModule

DIGITS = 2e6  # size of potentials over eps from which on the islands of a plan get gauges of their own
NEGLIGIBLE = -100.0  # exponent of an entry that carries no mass


def in_gauge(C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array]:
    """Return potentials f (B, n) and g (B, m) in float64 with equal sums over the bins that have weight.

    A constant of any size would cost digits of ``f + g``. Islands of the plan, between which no mass moves, each have a
    constant of their own; where the potentials are too large for their digits, these are equalised too. `f` and `g` may
    be overwritten.
    """
    xp = C.xp
    f, g = f.astype(np.float64, copy=False), g.astype(np.float64, copy=False)
    (sum_f, count_f), (sum_g, count_g) = (_sum(xp, w > 0, x) for w, x in ((a, f), (b, g)))
    constant = (sum_g - sum_f) / (count_f + count_g)
    f += constant
    g -= constant
    if C.stored and float(max(abs(x).max() for x in (f, g))) / eps > DIGITS:  # as in hardly any call
        for row in np.flatnonzero(C.to_host(size(xp, a, b, f, g)) / eps > DIGITS):
            f[row], g[row] = _by_island(C, C.costs_of(int(row)), a[row], b[row], f[row], g[row], eps)
    return f, g


def size(xp: ArrayModule, a: Array, b: Array, f: Array, g: Array) -> Array:
    """Return the largest ``|f_i| + |g_j|`` (B,) of bins with weight."""
    sides = ((a, f), (b, g))
    return sum((_largest(xp, w > 0, x) for w, x in sides), start=xp.zeros(len(a)))


def _largest(xp: ArrayModule, used: Array, potential: Array) -> Array:
    """Return the largest size (B,) of the potential of a used bin."""
    if not used.all():
        potential = xp.where(used, potential, 0)
    return xp.maximum(potential.max(axis=1), -potential.min(axis=1))


def _by_island(C: Solvable, costs: Array, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array]:
    """Return the potentials of one problem with equal sums in each island, where that connects no islands."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    costs, a, b, f, g = (C.to_host(x).astype(np.float64) for x in (costs, a, b, f, g))
    rows, columns = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    costs = costs[np.ix_(rows, columns)]

    def connected(x: Any, y: Any) -> Any:
        with np.errstate(invalid="ignore", over="ignore"):
            return (x[:, None] + y - costs) / eps > NEGLIGIBLE

    x, y = f[rows], g[columns]
    edges = connected(x, y)
    graph = np.zeros((len(rows) + len(columns),) * 2, bool)
    graph[: len(rows), len(rows) :] = edges
    count, island = connected_components(csr_array(graph), directed=False)
    of_rows, of_columns = island[: len(rows)], island[len(rows) :]
    sizes = np.bincount(island, minlength=count)
    constants = (np.bincount(of_columns, y, count) - np.bincount(of_rows, x, count)) / sizes
    x, y = x + constants[of_rows], y - constants[of_columns]
    apart = of_rows[:, None] != of_columns
    if not (connected(x, y) & apart).any():
        f[rows], g[columns] = x, y
    return C.xp.asarray(f), C.xp.asarray(g)


def _sum(xp: ArrayModule, used: Array, potential: Array) -> tuple[Array, Array]:
    """Return the sum over the used bins and their number, (B, 1) each."""
    if used.all():
        return potential.sum(axis=1, keepdims=True), xp.full((len(used), 1), float(used.shape[1]))
    return xp.where(used, potential, 0).sum(axis=1, keepdims=True), used.sum(axis=1, keepdims=True)
