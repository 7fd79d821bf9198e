"""The gauge of potentials: a constant may move from f to g without a change of the plan."""

from collections.abc import Iterable, Iterator

import numpy as np

from cusink.costs.blocks import blocks
from cusink.costs.cost import Solvable
from cusink.types import Array, ArrayModule, HostArray

DIGITS = 2e6  # size of potentials over eps from which on the islands of a plan get gauges of their own
DIGITS_IF_STEEP = 100  # the same for the potentials that are returned, where C / eps is large
NEGLIGIBLE = -100.0  # exponent of an entry that carries no mass
BLOCK_ENTRIES = 1 << 18  # of a plan that are looked at at once


def in_gauge(C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array]:
    """Return potentials f (B, n) and g (B, m) in float64 with equal sums over the bins that have weight.

    A constant of any size would cost digits of ``f + g``. Islands of the plan, between which no mass moves, each have a
    constant of their own; where the potentials are too large for their digits, these are equalised too. `f` and `g` may
    be overwritten.
    """
    f, g, _ = sized(C, a, b, f, g, eps)
    return f, g


def sized(C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return potentials `in_gauge`, and their `size`."""
    xp = C.xp
    f, g = f.astype(np.float64, copy=False), g.astype(np.float64, copy=False)
    used = [_used(w) for w in (a, b)]
    (sum_f, count_f), (sum_g, count_g) = (_sum(xp, *side) for side in zip(used, (f, g), strict=True))
    constant = (sum_g - sum_f) / (count_f + count_g)
    f += constant
    g -= constant
    largest = [_largest(xp, *side) for side in zip(used, (f, g), strict=True)]
    if float(max(x.max() for x in largest)) / eps > DIGITS:  # as in hardly any call
        equalise(C, a, b, f, g, eps, DIGITS)
        return f, g, size(xp, a, b, f, g)
    return f, g, largest[0] + largest[1]


@np.errstate(over="ignore", invalid="ignore")  # of the largest numbers there are
def centred(
    xp: ArrayModule, a: Array, b: Array, start: tuple[Array, Array], most: float
) -> tuple[tuple[Array, Array], bool]:
    """Return a start, without the constant between f and g if it is larger than `most`; and whether it still is."""
    if bool((size(xp, a, b, *start) <= most).all()):
        return start, False
    f, g = start
    constant = mean(xp, b, g) / 2 - mean(xp, a, f) / 2
    moved = (f + constant).astype(f.dtype), (g - constant).astype(g.dtype)
    return moved, not bool((size(xp, a, b, *moved) <= most).all())


def mean(xp: ArrayModule, weights: Array, potential: Array) -> Array:
    """Return the mean (B, 1) of a potential over the bins that have weight, in float64."""
    used = (weights > 0) & xp.isfinite(potential)
    # A sum of shares is a number where that of the potential is none.
    shares = xp.where(used, potential.astype(np.float64), 0) / xp.maximum(used.sum(axis=1, keepdims=True), 1)
    return shares.sum(axis=1, keepdims=True)


def equalise(C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float, above: float) -> None:
    """Give f and g equal sums in each island of the problems whose potentials are larger than `above` times eps."""
    for row in np.flatnonzero(C.to_host(size(C.xp, a, b, f, g)) / eps > above):
        f[row], g[row] = _by_island(C, int(row), a[row], b[row], f[row], g[row], eps)


def size(xp: ArrayModule, a: Array, b: Array, f: Array, g: Array) -> Array:
    """Return the largest ``|f_i| + |g_j|`` (B,) of bins with weight."""
    sides = ((a, f), (b, g))
    return sum((_largest(xp, _used(w), x) for w, x in sides), start=xp.zeros(len(a)))


def _used(weights: Array) -> Array | None:
    """Return a mask of the bins with weight; None where all have some."""
    used = weights > 0
    return None if used.all() else used


def _largest(xp: ArrayModule, used: Array | None, potential: Array) -> Array:
    """Return the largest size (B,) of the potential of a used bin, None for all bins."""
    if used is not None:
        potential = xp.where(used, potential, 0)
    return xp.abs(potential).max(axis=1)


def _by_island(C: Solvable, problem: int, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array]:
    """Return the potentials of one problem with equal sums in each island, where that connects no islands.

    A bin with weight that is an island alone has lost its partners to rounding: there, they stay what they are.
    """
    a, b = C.to_host(a), C.to_host(b)
    f, g = (C.to_host(x).astype(np.float64) for x in (f, g))
    rows, columns = np.flatnonzero(a > 0), np.flatnonzero(b > 0)

    def connected(x: HostArray, y: HostArray) -> Iterator[tuple[slice, HostArray]]:
        for _, block in blocks(1, len(rows), len(b), BLOCK_ENTRIES):
            first = rows[block.start]
            costs = C.to_host(C.costs_of(problem, slice(first, rows[block.stop - 1] + 1)))
            exponents = x[block, None] + y - costs[np.ix_(rows[block] - first, columns)]
            yield block, exponents > NEGLIGIBLE * eps

    x, y = f[rows], g[columns]
    of_rows, of_columns = islands(connected(x, y), len(rows), len(columns))
    if len(np.setxor1d(of_rows, of_columns)):
        return C.xp.asarray(f), C.xp.asarray(g)
    count = len(rows) + len(columns)
    sizes = np.bincount(of_columns, minlength=count) + np.bincount(of_rows, minlength=count)
    surplus: HostArray = np.bincount(of_columns, y, count) - np.bincount(of_rows, x, count)
    constants = surplus / np.maximum(sizes, 1)
    x, y = x + constants[of_rows], y - constants[of_columns]
    if not any((edges & (of_rows[block, None] != of_columns)).any() for block, edges in connected(x, y)):
        f[rows], g[columns] = x, y
    return C.xp.asarray(f), C.xp.asarray(g)


def islands(edges: Iterable[tuple[slice, HostArray]], rows: int, columns: int) -> tuple[HostArray, HostArray]:
    """Return the numbers of the islands of rows and columns, given which pairs are connected, in blocks of rows."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    island = np.arange(rows + columns)  # of each bin, the number of one of its bins
    for block, connected in edges:
        at, to = np.nonzero(connected)
        pairs = island[block.start + at], island[rows + to]
        graph = csr_array((np.ones(len(at), bool), pairs), (len(island), len(island)))
        _, label = connected_components(graph, directed=False)
        _, first = np.unique(label, return_index=True)
        island = first[label[island]]
    return island[:rows], island[rows:]


def _sum(xp: ArrayModule, used: Array | None, potential: Array) -> tuple[Array, Array]:
    """Return the sum over the used bins, None for all, and their number, (B, 1) or 1 number."""
    if used is None:
        return potential.sum(axis=1, keepdims=True), float(potential.shape[1])
    return xp.where(used, potential, 0).sum(axis=1, keepdims=True), used.sum(axis=1, keepdims=True)
