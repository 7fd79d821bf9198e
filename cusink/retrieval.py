"""Distances between all pairs of two collections of histograms."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink import _checks
from cusink._ops import memory_advice
from cusink._pairs import pairs_of
from cusink._tiles import pair_count, strips, tile_shape, tiles
from cusink.sinkhorn import warn_unconverged

__all__ = ["DistanceMatrix", "distance_matrix"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DistanceMatrix:
    """Arrays (Q, D): the `distances`, and of each pair its `error`, its `n_iter`, and whether it `converged`."""

    distances: Any
    error: Any
    n_iter: Any
    converged: Any


@memory_advice(
    "Pass a lower 'memory_limit', the bytes of a tile; a numpy.memmap as 'out' holds a result that exceeds the memory"
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
    check=True,
):
    """Return the Sinkhorn distances between all rows of A and all rows of B.

    Parameters
    ----------
    A : array, shape (Q, n)
        Histograms, all of one mass.
    B : array, shape (D, m), or None
        Histograms of the same mass. None compares the rows of A with each other; with a symmetric cost each pair
        is then solved once.
    C : array, shape (n, m)
        Cost between the bins.
    eps : float
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost"}
        Which value of `cusink.SinkhornResult` to return.
    max_iter, tol, check_every, method, overrelaxation
        As for `cusink.sinkhorn`.
    out : array, shape (Q, D), optional
        Where to write the distances: an array of the dtype of the histograms, or a `numpy.memmap` for matrices that
        exceed the memory.
    progress : bool
        Show a bar of the pairs done (needs tqdm).
    memory_limit : int, optional
        Bytes that may be used at a time beyond input and output: tiles are made to fit. If not given, 1024 pairs.
    full_output : bool
        Return a `DistanceMatrix`, which also tells error, iterations and convergence of every pair.
    check : bool
        False skips the checks of the values of the input, for speed.

    Returns
    -------
    array, shape (Q, D), or DistanceMatrix

    Raises
    ------
    TypeError, ValueError
        As for `cusink.sinkhorn`.
    MemoryError
        Names `memory_limit`; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a pair did not reach `tol`.

    Notes
    -----
    A row of A meets a tile of rows of B at a time. The empty bins of the one and the bins that are empty in all of
    the tile leave the problem. Pairs that are done leave the tile.

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
    inputs = {"A": A, "B": B, "C": C}
    pairs = pairs_of(A, B, C, eps=eps, check=check)
    options = _checks.options(max_iter, tol, check_every, method, overrelaxation)
    _checks.one_of("value", value, _checks.VALUES)
    xp = pairs.ops.xp
    out = _checks.output(out, pairs.shape, pairs.dtype, xp, inputs)
    results = {"distances": out}
    if full_output:
        results |= {
            "error": xp.empty(out.shape),
            "n_iter": xp.empty(out.shape, int),
            "converged": xp.empty(out.shape, bool),
        }
    height, width = tile_shape(pairs, memory_limit)
    total = pair_count(pairs)
    missed, worst = 0, 0.0
    with _bar(total, progress) as bar:
        for rows, columns in tiles(pairs, height, width):
            for row, part in strips(pairs, rows, columns):
                solved = pairs.solve(row, part, value, options)
                for name, whole in results.items():
                    whole[row, part] = xp.asarray(solved[name])
                    if pairs.symmetric:
                        whole[part, row] = whole[row, part]
                if tol is not None and not solved["converged"].all():
                    missed += np.count_nonzero(~solved["converged"])
                    worst = max(worst, solved["error"][~solved["converged"]].max())
                bar.update(part.stop - part.start)
    if missed:
        warn_unconverged(missed, total, worst, tol, max_iter)
    return DistanceMatrix(**results) if full_output else out


def _bar(total, progress):
    """A progress bar over `total` pairs, or nothing that answers to the same calls."""
    if not progress:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "'progress=True' needs tqdm; install it with pip install tqdm, or leave 'progress' out"
        ) from None
    return tqdm(total=total, unit=" pairs", unit_scale=True)


class _NoBar:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, pairs):
        pass
