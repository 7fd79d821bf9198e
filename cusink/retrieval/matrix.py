"""Distances between all pairs of two collections of histograms."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from cusink.checks.scalars import one_of
from cusink.errors import memory_advice, warn_unconverged
from cusink.retrieval import checks
from cusink.retrieval.pairs import pairs_of
from cusink.retrieval.storage.memory import Arrays
from cusink.retrieval.tiles import PairValues, pair_count, solve_tiles, tile_shape, tiles
from cusink.solver import checks as solver_checks

__all__ = [
    "DistanceMatrix",
    "distance_matrix",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class DistanceMatrix:
    """Arrays (Q, D): the `distances`, and of each pair its `error`, its `n_iter`, and whether it `converged`."""

    distances: Any
    error: Any
    n_iter: Any
    converged: Any


@memory_advice(
    "Pass a lower 'memory_limit', the bytes of a tile; a path as 'out' takes a result that exceeds the memory"
)
def distance_matrix(
    A,
    B,
    C,
    *,
    eps,
    value="cost",
    max_iter=1000,
    tol=1e-6,
    check_every=10,
    method="auto",
    overrelaxation="auto",
    out=None,
    progress=False,
    memory_limit=None,
    full_output=False,
    on_empty="nan",
    check=True,
):
    """Return the Sinkhorn distances between all rows of A and all rows of B.

    Parameters
    ----------
    A : array, shape (Q, n), or sparse matrix, or Measures
        Histograms, all of one mass: the rows of an array; or documents, the rows of a `scipy.sparse` matrix over a
        vocabulary; or point clouds of unequal sizes.
    B : array, shape (D, m), or sparse matrix, or Measures, or None
        Histograms of the same mass. None compares the items of A with each other; with a symmetric cost each pair
        is then solved once.
    C : array, shape (n, m), or PointCloud, or Grid
        Cost between the bins or words.
    eps : float
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        Which value of `cusink.SinkhornResult` to return, or the Sinkhorn divergence: the `reg_cost` of a pair less half
        of that of each of the two histograms with itself.
    max_iter, tol, check_every, method, overrelaxation
        As for `cusink.sinkhorn`.
    out : array, shape (Q, D), or path, optional
        Where to write the distances: an array of the dtype of the histograms, or the name of a ``.npy`` file or a
        ``.zarr`` store for matrices that exceed the memory. A file or store outlasts a run that was stopped, by
        whatever: the same call goes on with what is missing.
    progress : bool
        Show a bar of the pairs done (needs tqdm).
    memory_limit : int, optional
        Bytes that may be used at a time beyond input and output: tiles are made to fit. If not given, 1024 pairs.
    full_output : bool
        Return a `DistanceMatrix`, which also tells error, iterations and convergence of every pair. Not for a path.
    on_empty : {"nan", "raise"}
        What to do about documents without a word: their distances are NaN, with a warning, or it is an error.
    check : bool
        False skips the checks of the values of the input, for speed.

    Returns
    -------
    array, shape (Q, D), or DistanceMatrix
        For a path a read-only `numpy.memmap` or `zarr.Array`.

    Raises
    ------
    TypeError, ValueError
        As for `cusink.sinkhorn`; and ValueError if `out` names a store of another job.
    OSError
        If the store cannot be written, with what to do; no finished tile is lost.
    MemoryError
        Names `memory_limit`; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a pair did not reach `tol`.

    Notes
    -----
    A row of A meets a tile of rows of B at a time. The empty bins of the one and the bins that are empty in all of
    the tile leave the problem. Pairs that are done leave the tile. No tile depends on another, so that the same call
    with the same `memory_limit` gives the same bytes into an array, a file or a store, interrupted or not.

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
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    one_of("value", value, checks.ALL_VALUES)
    memory_limit = checks.memory_limit(memory_limit)
    pairs = pairs_of(A, B, C, eps=eps, check=check, memory_limit=memory_limit, on_empty=on_empty)
    if value == "divergence":
        checks.divergence(pairs.C)
    tile = tile_shape(pairs, memory_limit)
    on_disk = checks.is_path(out)
    if on_disk:
        from cusink.retrieval.storage.ledger import manifest
        from cusink.retrieval.storage.store import TileStore

        path = checks.output_path(out, pairs.dtype, full_output)
        count = sum(1 for _ in tiles(pairs, *tile))
        job = manifest(pairs, tile, count, value=value, **dataclasses.asdict(options))
        sink = TileStore(path, job, pairs.ops.to_host)
    else:
        sink = Arrays(pairs, out, full_output, {"A": A, "B": B, "C": C})
    values = PairValues(pairs, value, options, tile[1])
    with sink:
        solve_tiles(values, tile, sink, progress)
        result = sink.finish()
    missed, worst = zip(*sink.finished.values(), strict=True)
    if any(missed):
        warn_unconverged(sum(missed), pair_count(pairs), max(worst), tol, max_iter)
    if on_disk:
        return result
    return DistanceMatrix(**result) if full_output else result["distances"]
