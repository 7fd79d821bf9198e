"""The nearest neighbours of histograms: those that all distances would give, from few of them."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flags, one_of, tolerance
from cusink.operand import eps_of_shared
from cusink.retrieval import checks
from cusink.retrieval.collections import check_collections
from cusink.retrieval.devices import check_devices, chosen
from cusink.retrieval.engine import corpus_of, find_on_devices
from cusink.retrieval.keywords import RetrievalKeywords
from cusink.retrieval.neighbours import Neighbours, neighbours
from cusink.retrieval.prices import prices_of
from cusink.retrieval.query import Query
from cusink.solver.checks import options as check_options
from cusink.types import Array, MatrixValue, Method, Overrelaxation, Tolerance
from cusink.workers import check_workers, working


class NearestKeywords(RetrievalKeywords, total=False):
    """The optional keywords of `nearest`."""

    prune: bool
    solve_at_most: int | None
    candidates: Any
    devices: Sequence[int] | Literal["all"] | None


@overload
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float | RelativeEps,
    full_output: Literal[False] = ...,
    **keywords: Unpack[NearestKeywords],
) -> tuple[Array, Array]: ...
@overload
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float | RelativeEps,
    full_output: Literal[True],
    **keywords: Unpack[NearestKeywords],
) -> Neighbours: ...
@overload
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float | RelativeEps,
    full_output: bool,
    **keywords: Unpack[NearestKeywords],
) -> tuple[Array, Array] | Neighbours: ...
@memory_advice("Pass a lower 'memory_limit', the bytes that may be used at a time")
def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float | RelativeEps,
    value: MatrixValue = "cost",
    prune: bool = True,
    solve_at_most: int | None = None,
    candidates: Any = None,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    reach: float | tuple[float | None, float | None] | None = None,
    normalise: bool = False,
    progress: bool = False,
    memory_limit: int | None = None,
    full_output: bool = False,
    on_empty: Literal["nan", "raise"] = "nan",
    check: bool = True,
    workers: int | None = None,
    devices: Sequence[int] | Literal["all"] | None = None,
) -> tuple[Array, Array] | Neighbours:
    """Return the k rows of B at the smallest Sinkhorn distance from each row of A.

    Parameters
    ----------
    A : array, shape (Q, n), scipy.sparse matrix or Measures
        Histograms, all of one mass, or images, documents and point clouds as for `cusink.distance_matrix`.
    B : array, shape (D, m), scipy.sparse matrix, Measures or None
        Histograms of the same mass to look among. None looks among the other rows of A: an item is no neighbour of
        itself.
    C : array, shape (n, m), PointCloud or Grid, or str or Metric
        Cost between the bins; for `cusink.Measures` the name of a metric, or a `cusink.Metric`.
    k : int
        Neighbours wanted of each row.
    eps : float or RelativeEps
        Regularisation in the unit of `C`; of a `cusink.RelativeEps` for histograms.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        The distance, as for `cusink.distance_matrix`.
    prune : bool
        Leave out pairs whose lower bound shows that they are not among the nearest. False solves all pairs.
    solve_at_most : int, optional
        Pairs of a row to be solved at most, those with the lowest bounds first. `Neighbours.proved` then says which
        rows have their k nearest for certain, and `Neighbours.undercut` how much nearer an unsolved pair could be.
    candidates : array of int, shape (Q, c), optional
        Rows of B to be looked at for each row of A, such as a vector database proposes; at least k different ones.
        Others are solved only if `solve_at_most` leaves room, after the candidates.
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
    reach : float, or pair of float or None, optional
        Lets the marginals of a plan differ from both histograms, which may then have different masses, at this price in
        the unit of `C`, as for `cusink.sinkhorn`. Of two, the first is that of A, in self-terms too. Not for documents.
    normalise : bool
        Divide each item by its sum. An item that is all zero has no distance: an error among histograms, and among
        documents what `on_empty` says.
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
    workers : int, optional
        Threads, as for `cusink.distance_matrix`.
    devices : sequence of int, or "all", optional
        Numbers of the GPUs that share the rows of CuPy histograms, as for `cusink.distance_matrix`.

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
        As for `cusink.distance_matrix`; if `k` is below 1 or above the number of rows to look among; and for candidates
        that are no rows of B, or a `solve_at_most` below k or without a bound that tells which pairs to solve.
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
    proofs, also for pairs that do not converge. With ``tol=None``, few candidates, or forbidden pairs beside `reach`,
    all pairs are solved; `Neighbours.pruning` says so.

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
    memory_limit, workers = checks.memory_limit(memory_limit), check_workers(workers)
    wanted, number = check_devices(devices), eps_of_shared(eps, C)
    prices = prices_of(reach, method, value)
    pairs = check_collections(
        A,
        B,
        C,
        eps=number,
        check=check,
        memory_limit=memory_limit,
        on_empty=on_empty,
        reach=prices,
        normalise=normalise,
    )
    if value == "divergence":
        checks.divergence(pairs.C)
    shared = chosen(wanted, pairs.xp)
    k = checks.neighbours(k, pairs.shape[1], B is None)
    solve_at_most = checks.solve_at_most(solve_at_most, k)
    if candidates is not None:
        candidates = checks.candidates(candidates, pairs.shape, k, B is None)
    query = Query(
        k=k,
        value=value,
        options=options,
        excludes_self=B is None,
        memory_limit=memory_limit,
        solve_at_most=solve_at_most,
        candidates=candidates,
    )
    with working(workers):
        found, pruning = find_on_devices(pairs, corpus_of(pairs, query), query, prune, progress, shared)
    return neighbours(found, pairs, options, pruning, full_output)
