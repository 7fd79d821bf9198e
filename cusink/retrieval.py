"""Distances between all pairs of two collections of histograms."""

from dataclasses import dataclass
from typing import Any

from cusink import _checks, _checks_retrieval
from cusink._ledger import manifest
from cusink._ops import memory_advice
from cusink._pairs import pairs_of
from cusink._stores import TileStore
from cusink._tiles import PairValues, pair_count, tile_shape, tiles
from cusink.sinkhorn import warn_unconverged

__all__ = ["Arrays", "DistanceMatrix", "distance_matrix", "solve_tiles"]


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
    options = _checks.options(max_iter, tol, check_every, method, overrelaxation)
    _checks.one_of("value", value, _checks_retrieval.VALUES)
    memory_limit = _checks_retrieval.memory_limit(memory_limit)
    pairs = pairs_of(A, B, C, eps=eps, check=check, memory_limit=memory_limit, on_empty=on_empty)
    if value == "divergence":
        _checks_retrieval.divergence(pairs.C)
    tile = tile_shape(pairs, memory_limit)
    if _checks_retrieval.is_path(out):
        path = _checks_retrieval.output_path(out, pairs.dtype, full_output)
        count = sum(1 for _ in tiles(pairs, *tile))
        job = manifest(pairs, tile, count, value=value, **{k: v for k, v in options.items() if k != "callback"})
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
    return result


def solve_tiles(values, tile, sink, progress=False):
    """Solve the tiles of `PairValues` that a sink, which takes them in, has not finished."""
    pairs = values.pairs
    todo = [at for at in tiles(pairs, *tile) if (at[0].start, at[1].start) not in sink.finished]
    total, left = pair_count(pairs), sum(pair_count(pairs, *at) for at in todo)
    with progress_bar(total, total - left, progress) as bar:
        for rows, columns in todo:
            sink.write(rows, columns, *values.tile(rows, columns, sink.names, bar.update))


class Arrays:
    """Takes tiles in, as `TileStore` does, into arrays in memory."""

    def __init__(self, pairs, out, full_output, inputs):
        xp = pairs.ops.xp
        self.symmetric, self.finished = pairs.symmetric, {}
        self.results = {"distances": _checks.output(out, pairs.shape, pairs.dtype, xp, inputs)}
        if full_output:
            for name, dtype in (("error", float), ("n_iter", int), ("converged", bool)):
                self.results[name] = xp.empty(pairs.shape, dtype)
        self.names = tuple(self.results)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, rows, columns, solved, missed, worst):
        for name, whole in self.results.items():
            whole[rows, columns] = solved[name]
            if self.symmetric:
                whole[columns, rows] = solved[name].T
        self.finished[rows.start, columns.start] = missed, worst

    def finish(self):
        return DistanceMatrix(**self.results) if len(self.results) > 1 else self.results["distances"]


def progress_bar(total, done, progress):
    """A progress bar over `total` pairs, some of them done, or nothing that answers to the same calls."""
    if not progress:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "'progress=True' needs tqdm; install it with pip install tqdm, or leave 'progress' out"
        ) from None
    return tqdm(total=total, initial=done, unit=" pairs", unit_scale=True)


class _NoBar:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, pairs):
        pass
