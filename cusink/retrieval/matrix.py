"""Distances between all pairs of two collections of histograms."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flags, one_of, tolerance
from cusink.costs.kinds import with_arrays
from cusink.errors import warn_unconverged
from cusink.operand import eps_of_shared
from cusink.retrieval import checks
from cusink.retrieval.collections import check_collections
from cusink.retrieval.devices import check_devices, chosen, here, solve_on_devices
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.keywords import MatrixKeywords
from cusink.retrieval.pairs import Pairs
from cusink.retrieval.paths import is_path, output_path
from cusink.retrieval.prices import prices_of
from cusink.retrieval.storage.memory import ArraySink
from cusink.retrieval.tiles import Misses, PairValues, Sink, pair_count, solve_tiles, tile_shape, tiles
from cusink.solver.checks import options as check_options
from cusink.summary import Summary
from cusink.types import Array, HostArray, MatrixValue, Method, Overrelaxation, Tolerance
from cusink.workers import check_workers, working


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DistanceMatrix(Summary):
    """Distances of all pairs, and how each was solved.

    Attributes
    ----------
    distances : array, shape (Q, D)
        The distances.
    error : array, shape (Q, D)
        Marginal error of each pair.
    n_iter : array of int, shape (Q, D)
        Iterations that it took.
    converged : array of bool, shape (Q, D)
        Whether it reached the tolerance.
    """

    distances: Array
    error: Array
    n_iter: Array
    converged: Array


@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    out: str | os.PathLike[str],
    full_output: Literal[False] = ...,
    **keywords: Unpack[MatrixKeywords],
) -> HostArray | Any: ...  # numpy.memmap or zarr.Array
@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    out: Array | None = ...,
    full_output: Literal[False] = ...,
    **keywords: Unpack[MatrixKeywords],
) -> Array: ...
@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    out: Array | None = ...,
    full_output: Literal[True],
    **keywords: Unpack[MatrixKeywords],
) -> DistanceMatrix: ...
@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    out: Array | None = ...,
    full_output: bool,
    **keywords: Unpack[MatrixKeywords],
) -> DistanceMatrix | Array: ...
@memory_advice(
    "Pass a lower 'memory_limit', the bytes of a tile; a path as 'out' takes a result that exceeds the memory"
)
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    value: MatrixValue = "cost",
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    reach: float | tuple[float | None, float | None] | None = None,
    normalise: bool = False,
    out: Any = None,
    progress: bool = False,
    memory_limit: int | None = None,
    full_output: bool = False,
    on_empty: Literal["nan", "raise"] = "nan",
    check: bool = True,
    workers: int | None = None,
    devices: Sequence[int] | Literal["all"] | None = None,
) -> Any:
    """Return the Sinkhorn distances between all rows of A and all rows of B.

    Parameters
    ----------
    A : array, shape (Q, n), or sparse matrix, or Measures
        Histograms, all of one mass: the rows of an array, or beside a `cusink.Grid` images (Q, H, W) and volumes; or
        documents, the rows of a `scipy.sparse` matrix over a vocabulary; or point clouds of unequal sizes.
    B : array, shape (D, m), or sparse matrix, or Measures, or None
        Histograms of the same mass, unless `reach` or `normalise` is given. None compares the items of A with each
        other; with a symmetric cost each pair is then solved once.
    C : array, shape (n, m), or PointCloud, or Grid, or str, or Metric
        Cost between the bins or words; for `cusink.Measures` the name of a metric, or a `cusink.Metric`.
    eps : float or RelativeEps
        Regularisation in the unit of `C`; of a `cusink.RelativeEps` for histograms.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        Which value of `cusink.SinkhornResult` to return, or the Sinkhorn divergence: the `reg_cost` of a pair minus
        half the `reg_cost` of each of the two histograms with itself.
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
    out : array, shape (Q, D), or path, optional
        Where to write the distances: an array of the dtype of the histograms, or the name of a ``.npy`` file or a
        ``.zarr`` store for matrices that exceed the memory. A file or store outlasts a run that was stopped for any
        reason: the same call goes on with the tiles that are missing.
    progress : bool
        Show a bar of the pairs done (needs tqdm).
    memory_limit : int, optional
        Bytes that may be used at a time beyond input and output: tiles are made to fit. If not given, 1024 pairs.
    full_output : bool
        Return a `DistanceMatrix`, which also has error, iterations and convergence of every pair. Not for a path.
    on_empty : {"nan", "raise"}
        What to do about documents without a word: give NaN as their distances, with a warning, or raise an error.
    check : bool
        False skips the checks of the values of the input, for speed.
    workers : int, optional
        Threads that solve pairs, -1 for all cores that the process may use; None for what `cusink.set_workers` says,
        and else for as many as pay: one for short calls, see docs/retrieval.md, or all cores.
        Each may use `memory_limit` for itself only as far as all of them stay within it.
    devices : sequence of int, or "all", optional
        Numbers of the GPUs that share the tiles of CuPy histograms, or all that the process sees. Each keeps a copy of
        the input and may use `memory_limit` for itself. If not given, the device of the arrays; the result is there in
        any case.

    Returns
    -------
    array, shape (Q, D), or DistanceMatrix
        For a path a read-only `numpy.memmap` or `zarr.Array`.

    Raises
    ------
    TypeError
        As for `cusink.sinkhorn`.
    ValueError
        As for `cusink.sinkhorn`; and if `out` names a store of another job.
    OSError
        If the store cannot be written, with advice; no finished tile is lost.
    MemoryError
        Names `memory_limit`; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a pair did not reach `tol`.

    Notes
    -----
    A row of A is solved against many rows of B at a time. The bins that are empty in that row, or in all those of B,
    leave the problem, and so does each pair once it is done. No tile depends on another, so that the same call with
    the same `memory_limit` gives the same bytes in an array, a file or a store, interrupted or not, by any number of
    workers, and by any number of GPUs of one kind.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> A = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    >>> cusink.distance_matrix(A, None, C, eps=0.05).round(3)
    array([[0.011, 0.455],
           [0.455, 0.011]])
    """
    tol = tolerance(tol, A, B, C)
    flags(progress=progress, full_output=full_output)
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
    spread = _spread(chosen(wanted, pairs.xp), pairs, A, B, C, memory_limit, normalise)
    tile = tile_shape(pairs, memory_limit)
    values = PairValues(pairs, value, options, tile[1], memory_limit=memory_limit)
    if is_path(out):
        path = output_path(out, pairs.dtype, full_output)
        with working(workers):
            result, finished = _on_disk(values, tile, path, progress, spread)
    else:
        sink = ArraySink(pairs, out, full_output, {"A": A, "B": B, "C": C})
        with working(workers):
            spread(values, tile, sink, progress)
        result = DistanceMatrix(**sink.fields) if full_output else sink.fields["distances"]
        finished = sink.finished.values()
    misses = Misses.total(finished)
    if misses.count and options.tol is not None:
        warn_unconverged(misses.count, pair_count(pairs), misses.worst, options.tol, options.max_iter)
    return result


def _spread(
    devices: tuple[int, ...],
    pairs: HistogramPairs | DocumentPairs,
    A: Any,
    B: Any,
    C: Any,
    memory_limit: int | None,
    normalise: bool,
) -> Callable[[PairValues, tuple[int, int], Sink, bool], None]:
    """Return a function that solves tiles: on the device of the arrays, or on several."""
    if not devices:
        return solve_tiles
    if isinstance(pairs, DocumentPairs):
        raise ValueError("'devices' must be None for documents: histograms alone are shared out to GPUs. Leave it out")
    xp, eps = pairs.xp, pairs.eps

    def pairs_here() -> Pairs:
        given = (with_arrays(x, lambda array: here(array, xp)) for x in (A, B, C))
        return check_collections(
            *given, eps=eps, check=False, memory_limit=memory_limit, reach=pairs.reach, normalise=normalise
        )

    def solve(values: PairValues, tile: tuple[int, int], sink: Sink, progress: bool) -> None:
        solve_on_devices(values, tile, sink, devices, pairs_here, progress)

    return solve


def _on_disk(
    values: PairValues,
    tile: tuple[int, int],
    path: Path,
    progress: bool,
    spread: Callable[[PairValues, tuple[int, int], Sink, bool], None],
) -> tuple[HostArray | Any, Iterable[Misses]]:
    """Return the matrix in a store, opened for reading, and the misses of its tiles."""
    from cusink.retrieval.storage.ledger import manifest
    from cusink.retrieval.storage.store import TileStore

    pairs, count = values.pairs, sum(1 for _ in tiles(values.pairs, *tile))
    prices = None if pairs.reach is None else [rho if rho < math.inf else None for rho in pairs.reach]
    arguments = dataclasses.asdict(values.options) | {"reach": prices}
    job = manifest(pairs, tile, count, value=values.value, **arguments)
    with TileStore(path, job, pairs.to_host) as store:
        spread(values, tile, store, progress)
        return store.finish(), store.finished.values()
