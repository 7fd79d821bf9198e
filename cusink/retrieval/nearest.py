"""The nearest neighbours of histograms: those that all distances would give, from few of them."""

from dataclasses import dataclass
from typing import Any

from cusink.checks.scalars import one_of, regularisation
from cusink.errors import memory_advice, warn_unconverged
from cusink.retrieval import checks
from cusink.retrieval.documents import search
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.pairs import pairs_of
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.ranking import Closest
from cusink.retrieval.search import Count, obstacle, search_all, search_pruned
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape
from cusink.solver import checks as solver_checks

__all__ = [
    "Neighbours",
    "nearest",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Neighbours:
    """Nearest neighbours, and what it took to find them.

    Attributes
    ----------
    distances : array, shape (Q, k)
        Ascending in each row.
    indices : array of int, shape (Q, k)
        Rows of B; equal distances come in the order of their indices.
    error : array, shape (Q, k)
        Marginal error of each of these pairs.
    converged : array of bool, shape (Q, k)
        Whether it reached the tolerance.
    bounded : int
        Pairs that were bounded from below, by iterations that many share.
    started : int
        Pairs for which iterations of their own were taken, for a closer bound or to solve them.
    finished : int
        Pairs that were solved.
    pruning : str
        "dual" where pairs were left out because a dual lower bound exceeds the distance of the k-th neighbour; "words"
        where, among documents, what single words have to pay does; else "none: " and the reason.
    """

    distances: Any
    indices: Any
    error: Any
    converged: Any
    bounded: int
    started: int
    finished: int
    pruning: str


@memory_advice("Pass a lower 'memory_limit', the bytes that may be used at a time")
def nearest(
    A,
    B,
    C,
    *,
    k,
    eps,
    value="cost",
    prune=True,
    max_iter=1000,
    tol=1e-6,
    check_every=10,
    method="auto",
    overrelaxation="auto",
    progress=False,
    memory_limit=None,
    full_output=False,
    on_empty="nan",
    check=True,
):
    """Return the k rows of B at the smallest Sinkhorn distance from each row of A.

    Parameters
    ----------
    A : array, shape (Q, n), scipy.sparse matrix or Measures
        Histograms, all of one mass, or documents and point clouds as for `cusink.distance_matrix`.
    B : array, shape (D, m), scipy.sparse matrix, Measures or None
        Histograms of the same mass to look among. None looks among the other rows of A: an item is no neighbour of
        itself.
    C : array, shape (n, m), PointCloud or Grid
        Cost between the bins.
    k : int
        Neighbours wanted of each row.
    eps : float
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        The distance, as for `cusink.distance_matrix`.
    prune : bool
        Leave out pairs whose lower bound shows that they are not among the nearest. False solves all pairs.
    max_iter, tol, check_every, method, overrelaxation
        As for `cusink.sinkhorn`.
    progress : bool
        Show a bar of the pairs decided (needs tqdm).
    memory_limit : int, optional
        Bytes that may be used at a time beyond input and output.
    full_output : bool
        Return `Neighbours`, which also tells errors and convergence, and how many pairs were solved.
    on_empty : {"nan", "raise"}
        What to do about documents without a word, as for `cusink.distance_matrix`; those with distance NaN come last.
    check : bool
        False skips the checks of the values of the input, for speed.

    Returns
    -------
    distances : array, shape (Q, k)
        Ascending in each row.
    indices : array of int, shape (Q, k)
        Rows of B. Equal distances come in the order of their indices. With `full_output`, `Neighbours` instead of both.

    Raises
    ------
    TypeError, ValueError
        As for `cusink.distance_matrix`; `k` below 1 or above the number of candidates.
    MemoryError
        Names `memory_limit`; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a pair that was solved did not reach `tol`.

    Notes
    -----
    The same as sorting ``distance_matrix(A, B, C, ...)``, stably, and taking the first k columns: a pair is left out
    only when what its distance cannot fall below, tolerance and rounding included, exceeds the distances of k others.
    The distances of the pairs that remain are those of the matrix up to rounding. docs/retrieval.md has the bounds and
    proofs, and what holds for pairs that do not converge. With ``tol=None``, forbidden pairs of bins or
    few candidates all pairs are solved; ``full_output=True`` tells.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> A = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]])
    >>> distances, indices = cusink.nearest(A[:1], A, C, k=2, eps=0.05)
    >>> indices
    array([[0, 1]])
    """
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    one_of("value", value, checks.ALL_VALUES)
    memory_limit = checks.memory_limit(memory_limit)
    regularisation(eps)
    eps, alone = float(eps), B is None  # a NumPy scalar would make float64 of float32 arrays
    pairs = pairs_of(A, B, C, eps=eps, check=check, memory_limit=memory_limit, on_empty=on_empty)
    if value == "divergence":
        checks.divergence(pairs.C)
    k = checks.neighbours(k, pairs.shape[1], alone)
    tile = tile_shape(pairs, memory_limit)
    values = PairValues(pairs, value, options, tile[1])
    documents, reason = isinstance(pairs, DocumentPairs), "not asked for"
    if prune and documents:
        reason = search.obstacle(pairs, k, value, options, alone, memory_limit)
    elif prune:
        reason = obstacle(pairs, k, options, memory_limit)
    with progress_bar(pair_count(pairs) if reason else pairs.shape[0] * pairs.shape[1], 0, progress) as bar:
        if reason:
            best, count = search_all(pairs, values, k, alone, tile, bar.update)
        elif documents:
            best, count = Closest(pairs.shape[0], k, pairs.shape[1]), Count()
            search.search_documents(pairs, options, k, alone, memory_limit, best, count, bar.update)
        else:
            best, count = search_pruned(pairs, values, k, alone, memory_limit, bar.update)
    if count.missed:
        warn_unconverged(count.missed, count.finished, count.worst, tol, max_iter)
    xp = pairs.ops.xp
    distances, indices = xp.asarray(best.values.astype(pairs.dtype)), xp.asarray(best.columns)
    if not full_output:
        return distances, indices
    return Neighbours(
        distances=distances,
        indices=indices,
        error=xp.asarray(best.error),
        converged=xp.asarray(best.converged),
        bounded=count.bounded,
        started=count.started,
        finished=count.finished,
        pruning=f"none: {reason}" if reason else "words" if documents else "dual",
    )
