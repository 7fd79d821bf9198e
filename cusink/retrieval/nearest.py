"""The nearest neighbours of histograms: those that all distances would give, from few of them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Unpack, overload

from cusink.checks.scalars import flags, one_of, tolerance
from cusink.errors import memory_advice, warn_unconverged
from cusink.retrieval import checks, search
from cusink.retrieval.collections import check_collections
from cusink.retrieval.documents import search as document_search
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.keywords import RetrievalKeywords
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.query import Found, Query
from cusink.retrieval.ranking import Duplicates
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape
from cusink.solver.checks import options as check_options
from cusink.summary import Summary
from cusink.types import Array, MatrixValue, Method, Overrelaxation, Tolerance


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Neighbours(Summary):
    """Nearest neighbours, and how many pairs it took to find them.

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
        where, among documents, a bound from the costs of single words does; else "none: " and the reason.
    """

    distances: Array
    indices: Array
    error: Array
    converged: Array
    bounded: int
    started: int
    finished: int
    pruning: str


class NearestKeywords(RetrievalKeywords, total=False):
    """The optional keywords of `nearest`."""

    prune: bool


@overload
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float,
    full_output: Literal[False] = ...,
    **keywords: Unpack[NearestKeywords],
) -> tuple[Array, Array]: ...
@overload
def nearest(
    A: Any, B: Any, C: Any, *, k: int, eps: float, full_output: Literal[True], **keywords: Unpack[NearestKeywords]
) -> Neighbours: ...
@overload
def nearest(
    A: Any, B: Any, C: Any, *, k: int, eps: float, full_output: bool, **keywords: Unpack[NearestKeywords]
) -> tuple[Array, Array] | Neighbours: ...
@memory_advice("Pass a lower 'memory_limit', the bytes that may be used at a time")
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float,
    value: MatrixValue = "cost",
    prune: bool = True,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    progress: bool = False,
    memory_limit: int | None = None,
    full_output: bool = False,
    on_empty: Literal["nan", "raise"] = "nan",
    check: bool = True,
) -> tuple[Array, Array] | Neighbours:
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
    max_iter : int
        Iterations at most, as for `cusink.sinkhorn`.
    tol : "auto", float or None
        L1 marginal error at which a pair stops, as for `cusink.sinkhorn`.
    check_every : int
        Iterations between checks.
    method : {"auto", "log", "scaling"}
        As for `cusink.sinkhorn`.
    overrelaxation : {"auto"} or float or None
        As for `cusink.sinkhorn`.
    progress : bool
        Show a bar of the pairs decided (needs tqdm).
    memory_limit : int, optional
        Bytes that may be used at a time beyond input and output.
    full_output : bool
        Return `Neighbours`, which also has errors and convergence, and how many pairs were solved.
    on_empty : {"nan", "raise"}
        What to do about documents without a word, as for `cusink.distance_matrix`; distances of NaN come last.
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
    TypeError
        As for `cusink.distance_matrix`.
    ValueError
        As for `cusink.distance_matrix`; and if `k` is below 1 or above the number of candidates.
    MemoryError
        Names `memory_limit`; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a pair that was solved did not reach `tol`.

    Notes
    -----
    The same as sorting ``distance_matrix(A, B, C, ...)``, stably, and taking the first k columns: a pair is left out
    only when a lower bound on its distance, tolerance and rounding included, exceeds the distances of k others.
    The distances of the pairs that remain are those of the matrix up to rounding. docs/retrieval.md has the bounds and
    proofs, also for pairs that do not converge. With ``tol=None``, forbidden pairs of bins or few candidates all pairs
    are solved; `Neighbours.pruning` says so.

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
    tol = tolerance(tol, A, B, C)
    flags(prune=prune, progress=progress, full_output=full_output)
    options = check_options(max_iter, tol, check_every, method, overrelaxation)
    one_of("value", value, checks.ALL_VALUES)
    memory_limit = checks.memory_limit(memory_limit)
    pairs = check_collections(A, B, C, eps=eps, check=check, memory_limit=memory_limit, on_empty=on_empty)
    if value == "divergence":
        checks.divergence(pairs.C)
    k = checks.neighbours(k, pairs.shape[1], B is None)
    query = Query(k=k, value=value, options=options, excludes_self=B is None, memory_limit=memory_limit)
    (best, counts), pruning = _find(pairs, query, prune, progress)
    if counts.misses.count and options.tol is not None:
        warn_unconverged(counts.misses.count, counts.finished, counts.misses.worst, options.tol, options.max_iter)
    xp = pairs.xp
    distances, indices = xp.asarray(best.values.astype(pairs.dtype)), xp.asarray(best.columns)
    if not full_output:
        return distances, indices
    return Neighbours(
        distances=distances,
        indices=indices,
        error=xp.asarray(best.error),
        converged=xp.asarray(best.converged),
        bounded=counts.bounded,
        started=counts.started,
        finished=counts.finished,
        pruning=pruning,
    )


def _find(pairs: HistogramPairs | DocumentPairs, query: Query, prune: bool, progress: bool) -> tuple[Found, str]:
    """Return the neighbours, and which pairs were left out: the text of `Neighbours.pruning`."""
    reason = _why_not_prune(pairs, query) if prune else "not asked for"
    duplicates = Duplicates(pairs) if reason and pairs.shape[1] else None
    if duplicates is not None and duplicates.any and pairs.symmetric:
        pairs = dataclasses.replace(pairs, symmetric=False)  # equal columns would be solved in two roles
    tile = tile_shape(pairs, query.memory_limit)
    values = PairValues(pairs, query.value, query.options, tile[1])
    with progress_bar(pair_count(pairs) if reason else pairs.shape[0] * pairs.shape[1], 0, progress) as bar:
        if reason:
            return search.search_all(values, query, tile, duplicates, bar.update), f"none: {reason}"
        if isinstance(pairs, DocumentPairs):
            return document_search.search_documents(pairs, query, bar.update), "words"
        return search.search_pruned(values, pairs, query, bar.update), "dual"


def _why_not_prune(pairs: HistogramPairs | DocumentPairs, query: Query) -> str | None:
    if isinstance(pairs, DocumentPairs):
        return document_search.why_not_prune(pairs, query)
    return search.why_not_prune(pairs, query)
