"""The nearest documents: lower bounds from the nearest words, in time linear in the words of the collection.

For any plan P with row sums a and column sums b', and so for what `cost` is computed from:

- a word i of the query pays at least its cost to the nearest word of the document, ``min_j C_ij``, for all of a_i: the
  relaxed word mover's distance. Only the words of the document matter, not how much of each P takes.
- a word j of the document can send no more than a_i to any word i of the query: it pays at least what filling these in
  the order of their costs does, which is convex in b'_j (Atasu and Mittelholzer 2019). Here b' may differ from b, by
  the marginal error in total; so may the sum, by half of that times the range of the costs at most.
"""

import numpy as np

from cusink.retrieval.documents import tiles
from cusink.retrieval.documents.pairs import TOGETHER
from cusink.retrieval.ranking import smallest

__all__ = [
    "lower_bounds",
    "obstacle",
    "search_documents",
]


STEPS = 3  # words of the query that a word of a document is spread over; the last of them takes what is left
FIRST = 8  # pairs of a row to be solved before any is ruled out, at least
WORK = 1 << 28  # bytes that pairs may take at once if no limit is given


def obstacle(pairs, k, value, options, alone, memory_limit):
    """Why no pair can be left out, or None if some may."""
    if value != "cost":
        return f"no lower bound is known for value='{value}' of documents"
    if not pairs.on_host:
        return "documents on a device are all solved at once"
    if options.tol is None:
        return "with tol=None values are those of unfinished iterations, which no bound holds for"
    if not np.isfinite(pairs.span).all() or (pairs.dense and not np.isfinite(pairs.C.data).all()):
        return "with forbidden pairs (+inf) in C, the tolerance bounds no value"
    if np.count_nonzero(pairs.B.sizes) - alone < 2 * max(k, FIRST):
        return "k is not small beside the number of candidates"
    if memory_limit is not None and _for_bounds(pairs, memory_limit) < _row_bytes(pairs):
        return "the bounds of a row exceed 'memory_limit'"
    return None


def _for_bounds(pairs, memory_limit):
    """What the bounds may take of the limit; the pairs that are solved may take as much again."""
    return WORK if memory_limit is None else (memory_limit - pairs.point_bytes) // 2


def _row_bytes(pairs):
    """What the bounds of one row take: the costs to all words, and to the words of all documents."""
    longest = int(pairs.A.sizes.max())
    return pairs.A.weights.itemsize * longest * 3 * (len(pairs.B.places) + min(len(pairs.B.places), pairs.C.shape[-1]))


def search_documents(pairs, options, k, alone, memory_limit, best, count, progress):
    """Solve the pairs that can be among the k nearest of their row; take them into `best`, a `Closest`, and `count`."""
    kept = np.flatnonzero(pairs.B.sizes)
    documents = tiles.padded(pairs.B, kept, pairs.C.shape[-1])
    entries = np.searchsorted(documents.used, pairs.B.places), pairs.B.weights, pairs.B.offsets[kept]
    half = _for_bounds(pairs, memory_limit)
    step = max(1, min(TOGETHER, half // _row_bytes(pairs)))
    for start in range(0, len(pairs.A), step):
        rows = np.arange(start, min(start + step, len(pairs.A)))
        filled = rows[pairs.A.sizes[rows] > 0]
        for row in rows[pairs.A.sizes[rows] == 0]:
            columns = np.delete(np.arange(len(pairs.B)), [row] if alone else [])[:k]
            none = np.full(len(columns), np.nan)
            best.take(np.full(len(columns), row), columns, none, none, np.ones(len(columns), bool))
        if len(filled):
            queries = tiles.queries_of([pairs.A.item(row) for row in filled], documents, pairs.C)
            lower = _bounds_of(pairs, queries, filled, entries, options.tol)
            if alone:
                lower[kept == filled[:, None]] = np.inf
            count.bounded += np.count_nonzero(np.isfinite(lower))
            _search_rows(pairs, queries, documents, filled, kept, lower, options, k, half, best, count)
        progress(len(rows) * len(pairs.B))


def _search_rows(pairs, queries, documents, rows, kept, lower, options, k, half, best, count):
    """Solve the pairs with the least bounds, then all whose bound is not above the k-th value found."""

    def solve(i, j):
        step = max(1, half // pairs.pair_bytes)
        for start in range(0, len(i), step):
            part = slice(start, start + step)
            shared = pairs.span, pairs.buffers
            solved = tiles.solve_listed(queries, documents, i[part], j[part], *shared, pairs.eps, options)
            best.take(rows[i[part]], kept[j[part]], solved["cost"].astype(float), solved["error"], solved["converged"])
            count.started += len(i[part])
            count.finish(solved["error"], ~solved["converged"])
        lower[i, j] = np.inf

    i, j = np.nonzero(np.isfinite(lower))
    solve(*smallest(lower[i, j], i, j, max(k, FIRST)))
    solve(*np.nonzero(np.isfinite(lower) & (lower <= best.values[rows, -1:])))


def _bounds_of(pairs, queries, rows, entries, tol):
    """Lower bounds (rows, documents) on `cost`, with what the tolerance and rounding may take off."""
    reach = max(abs(x) for x in pairs.span)
    mass = float(queries.weights[0].sum(dtype=np.float64))
    rounding = 64 * float(np.finfo(queries.costs.dtype).eps) * mass * reach
    slack = tol / 2 * mass * (pairs.span[1] - pairs.span[0])
    lower = np.empty((len(rows), len(entries[2])))
    for k, row in enumerate(rows):
        n = int(pairs.A.sizes[row])
        ours, theirs = lower_bounds(queries.weights[k, :n], queries.costs[k, :, :n], *entries)
        np.maximum(ours, theirs - slack, out=lower[k])
    return lower - rounding


def lower_bounds(a, costs, places, weights, starts):
    """Two bounds (D,) on the cost of moving a query a (n,) to each document, at `costs` (words, n) of its words.

    A document has the words ``places`` and ``weights`` from its entry of `starts` on. The first bound holds for any
    weights of its words, the second for these.
    """
    ours = np.minimum.reduceat(costs[places], starts, axis=0).astype(np.float64) @ a.astype(np.float64)
    work, every = costs.copy(), np.arange(len(costs))
    left, paid = weights.astype(np.float64), np.zeros(len(weights))
    for step in range(min(STEPS, len(a))):
        word = work.argmin(axis=1)
        price = work[every, word][places]
        last = step + 1 == min(STEPS, len(a))
        taken = left if last else np.minimum(left, a[word][places])
        paid += taken * price
        left = left - taken
        work[every, word] = np.inf
    return ours, np.add.reduceat(paid, starts)
