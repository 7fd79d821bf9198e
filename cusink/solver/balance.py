"""Where parts of a plan that hardly exchange mass stand to each other.

Any potential between two such parts meets the marginals to rounding, in a wide interval. The solution is one of them:
what leaves a part comes back to it, so that the masses between parts, however small, are in balance. They are balanced
as a matrix is by a diagonal one (Osborne 1960), of numbers that may be ``exp(-10000)``. Such a sum is its largest term,
more or less; balanced at every scale (Schneider and Schneider 1991), these tell the potentials.

E. E. Osborne, On pre-conditioning of matrices, J. ACM 1960.
H. Schneider and M. H. Schneider, Max-balancing weighted directed graphs and matrix scaling, Math. Oper. Res. 1991.
"""

import numpy as np

from cusink.types import HostArray

STEPS = 12  # from rows to columns and back, before all parts are looked for
CROSSING = 1e-3  # share of the smaller of two bins' masses below which they may be in different parts,
KNOWN = 10  # times the error: what moves between them if it is more than that is known
SURPLUS = 1e-13  # of a mass that rounding explains. A part that has more needs other parts, which tells where it is
SWEEPS = 20  # over all parts, before those that are tied most closely become one
FARTHEST = 1e8  # logarithms of masses between parts beyond which rounding of costs would move potentials
EVEN = 0.02  # difference of the most that enters and that leaves, of its logarithm, that needs no more sweeps
ROUNDS = 100  # of that, at most: 23 for 269 parts are the most that hard problems took
FEW = 3  # parts that are gone through one by one
TIED = 0.25  # of the logarithm of the most that leaves a part: what is within that of it counts as much


def offsets(exponents: HostArray, a: HostArray, b: HostArray, error: float) -> HostArray | None:
    """Return by how much columns (m,) move over eps, and their rows the other way; None where all is one part.

    `exponents` are logarithms (n, m) of the entries of a plan with the positive weights `a` and `b`, up to an `error`
    relative to their mass.
    """
    n, known = len(a), np.log(max(KNOWN * error, SURPLUS) * a.sum())
    least_of_row, least_of_column = (np.minimum(np.log(w) + np.log(CROSSING), known) for w in (a, b))
    edges = (exponents >= least_of_row[:, None]) | (exponents >= least_of_column)
    if _soon_whole(edges):
        return None
    part = _exchanging(edges)
    rows, columns, parts = part[:n], part[n:], int(part.max()) + 1
    if parts == 1:
        return None
    crossing = _largest(exponents.astype(np.float32), rows, columns, parts)
    while parts > 1:
        given, taken = np.bincount(rows, a, parts), np.bincount(columns, b, parts)
        nearest = np.maximum(crossing, crossing.T)
        np.fill_diagonal(nearest, -np.inf)
        uneven = (abs(given - taken) > SURPLUS * np.maximum(given, taken)) & (nearest.max(axis=1) > -np.inf)
        if not uneven.any():
            break
        edges = np.zeros((parts, parts), bool)
        edges[uneven, nearest[uneven].argmax(axis=1)] = True
        part = _components(edges | edges.T)
        rows, columns, parts = part[rows], part[columns], int(part.max()) + 1
        crossing = _largest(crossing, part, part, parts)
    if parts == 1:
        return None
    moved = _mutual(crossing)
    return (_balanced(crossing) if moved is None else moved)[columns]


def evened(pairs: HostArray, a: HostArray, b: HostArray) -> HostArray:
    """Return by what factor (m,) weights b have the masses of a in each island of bins with weight.

    `pairs` (n, m) says which may exchange mass.
    """
    part = _exchanging(pairs & (a > 0)[:, None] & (b > 0))
    given, taken = (
        np.bincount(part[at], w, part.max() + 1) for at, w in ((slice(len(a)), a), (slice(len(a), None), b))
    )
    met = (given > 0) & (taken > 0)
    out: HostArray = np.where(met, given / np.where(met, taken, 1), 1)[part[len(a) :]]
    return out


def _mutual(crossing: HostArray) -> HostArray | None:
    """Return offsets (parts,) with which any two parts give each other equally much; None where there are none.

    Then as much leaves any set of parts as enters. So it is of the same points on both sides, in any order, and
    wherever else the way back costs what the way there does.
    """
    np.fill_diagonal(crossing, -1.0)
    if not crossing.min() >= -FARTHEST:
        return None
    apart = crossing - crossing.T
    offset = apart.mean(axis=1) / 2
    apart -= 2 * offset[:, None]
    apart += 2 * offset
    found: HostArray = offset
    return found if (abs(apart) <= -EVEN / 2 * (crossing + crossing.T)).all() else None


def _balanced(crossing: HostArray) -> HostArray:
    """Return offsets (parts,) that balance logarithms of masses from one part to another; the diagonal is ignored.

    Each part goes half of the way to where as much leaves it as enters, all at once: no largest number grows by
    that. Sweeps move parts, not groups of parts that are tied to each other more closely than to others. Therefore
    those on a circle along which each passes on the most that leaves it, or nearly, become one, until none do.
    """
    offset, part = np.zeros(len(crossing)), np.arange(len(crossing))
    for _ in range(ROUNDS):
        np.fill_diagonal(crossing, -np.inf)
        moved = np.zeros_like(crossing[0])
        for _ in range(SWEEPS):
            leaving, entering = crossing.max(axis=1), crossing.max(axis=0)
            apart = np.subtract(leaving, entering, out=np.zeros_like(moved), where=leaving + entering > -np.inf)
            if not (abs(apart) > -EVEN * leaving).any():
                break
            moved += apart / 4
            crossing += apart / 4
            crossing -= (apart / 4)[:, None]
        offset += moved[part]
        least = crossing.max(axis=1)
        least += TIED * np.minimum(least, 0)
        joined = _components((crossing >= least[:, None]) & (crossing > -np.inf))
        parts = int(joined.max()) + 1
        if parts in (1, len(crossing)):
            break
        part, crossing = joined[part], _largest(crossing, joined, joined, parts)
    return offset


def _largest(entries: HostArray, rows: HostArray, columns: HostArray, parts: int) -> HostArray:
    """Return the largest entries (parts, parts) of rows and columns by part; -inf where there is none."""
    for part in (rows, columns):
        order, sizes = np.argsort(part, kind="stable"), np.bincount(part, minlength=parts)
        by_size = np.argsort(-sizes, kind="stable")
        starts, sizes = (np.cumsum(sizes) - sizes)[by_size], sizes[by_size]
        largest = entries.take(order[np.minimum(starts, len(part) - 1)], axis=0)  # of another part, if there is none
        largest[np.count_nonzero(sizes) :] = -np.inf
        # Not by `maximum.reduceat`, which goes through single entries: the second of all parts at once, the third, ...
        taken, larger = 1, np.count_nonzero(sizes > 1)
        while larger > FEW:
            some = largest[:larger]
            np.maximum(some, entries.take(order[starts[:larger] + taken], axis=0), out=some)
            taken += 1
            larger = np.count_nonzero(sizes > taken)
        for of in range(larger):
            others = order[starts[of] + taken : starts[of] + sizes[of]]
            np.maximum(largest[of], entries.take(others, axis=0).max(axis=0), out=largest[of])
        back = np.empty_like(by_size)
        back[by_size] = np.arange(parts)
        entries = np.ascontiguousarray(largest.take(back, axis=0).T)
    return entries


def _soon_whole(edges: HostArray) -> bool:
    """Return whether few steps along `edges` (n, m) lead from the first row to all columns, and all rows have edges."""
    joined = edges.astype(np.float32)  # of which products are faster than `any` of what is chosen
    columns, reached = joined[0], 0
    for _ in range(STEPS):
        columns = np.minimum(np.minimum(joined @ columns, 1) @ joined, 1)
        if (now := int(np.count_nonzero(columns))) == reached:
            break
        reached = now
    return reached == len(columns) and bool(edges.any(axis=1).all())


def _exchanging(edges: HostArray) -> HostArray:
    """Return the components (n + m,) of rows and columns with `edges` (n, m) between them."""
    n, m = edges.shape
    there, back = np.flatnonzero(edges), np.flatnonzero(edges.T)
    ends = np.searchsorted(there, m * np.arange(n)), len(there) + np.searchsorted(back, n * np.arange(m + 1))
    # Both ways, as of a graph with edges of one way the weak components take ten times as long.
    return _strong(np.concatenate([n + there % m, back % n]), np.concatenate(ends))


def _components(edges: HostArray) -> HostArray:
    """Return the strongly connected components (n,) of a graph with `edges` (n, n), from its rows to its columns."""
    n = len(edges)
    at = np.flatnonzero(edges)
    return _strong(at % n, np.searchsorted(at, n * np.arange(n + 1)))


def _strong(to: HostArray, ends: HostArray) -> HostArray:
    """Return the strongly connected components (n,) of nodes with edges `to` others, up to `ends` (n + 1,)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    nodes = len(ends) - 1
    graph = csr_array((np.ones(len(to)), to, ends), shape=(nodes, nodes))
    out: HostArray = connected_components(graph, connection="strong")[1]
    return out
