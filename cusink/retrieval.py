"""Distances between all pairs of two collections of histograms."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink import _checks
from cusink._ops import memory_advice, ops_for
from cusink.result import Problem, values
from cusink.sinkhorn import solve, warn_unconverged

__all__ = ["DistanceMatrix", "distance_matrix"]

ARRAYS = 12  # of a problem's size, that one problem takes while it is solved
TILE = 1024  # problems solved at once at most: more would leave the cache and gain nothing


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
    given = _checks.histograms(A, B, C, eps=eps, check=check)
    options = _checks.options(max_iter, tol, check_every, method, overrelaxation)
    _checks.one_of("value", value, _checks.VALUES)
    A, B, C = given.a, given.b, given.C
    ops, xp = ops_for(C), ops_for(C).xp
    out = _checks.output(out, (len(A), len(B)), given.dtype, xp, inputs)
    half = A is B and _checks.symmetric(C)
    results = {"distances": out}
    if full_output:
        results |= {
            "error": xp.empty(out.shape),
            "n_iter": xp.empty(out.shape, int),
            "converged": xp.empty(out.shape, bool),
        }
    total = len(A) * (len(A) + 1) // 2 if half else out.size
    missed, worst = 0, 0.0
    tile = _checks.tile(memory_limit, ARRAYS * (C.shape[0] + C.shape[1]) * A.itemsize, TILE)
    with _bar(total, progress) as bar:
        for start in range(0, len(B), tile):
            stop = min(start + tile, len(B))
            for row in range(stop if half else len(A)):
                first = max(row, start) if half else start
                solved = _one_against_many(ops, A[row], B[first:stop], C, eps, value, options)
                for name, whole in results.items():
                    whole[row, first:stop] = xp.asarray(solved[name])
                    if half:
                        whole[first:stop, row] = whole[row, first:stop]
                if tol is not None and not solved["converged"].all():
                    missed += np.count_nonzero(~solved["converged"])
                    worst = max(worst, solved["error"][~solved["converged"]].max())
                bar.update(stop - first)
    if missed:
        warn_unconverged(missed, total, worst, tol, max_iter)
    return DistanceMatrix(**results) if full_output else out


def _one_against_many(ops, a, B, C, eps, value, options):
    """Solve one histogram a (n,) against B (D, m) on the bins that are not empty; a dict of arrays (D,)."""
    xp = ops.xp
    rows, columns = xp.flatnonzero(a > 0), xp.flatnonzero((B > 0).any(axis=0))
    if len(columns) < B.shape[1]:
        B, C = B[:, columns], C[:, columns]
    if len(rows) < len(a):
        a, C = a[rows], C[rows]
    a = xp.ascontiguousarray(xp.broadcast_to(a, (len(B), len(a))))
    B, C = xp.ascontiguousarray(B), xp.ascontiguousarray(C)
    f, g, cost, error, n_iter, converged = solve(ops, a, B, C, eps, None, **options)
    if value != "cost":
        problem = Problem(a=a, b=B, C=C, eps=eps, f=f, g=g, dtype=a.dtype, batched=True)
        cost = dict(zip(("reg_cost", "entropic_cost"), values(xp, problem), strict=True))[value]
    return {"distances": cost, "error": error, "n_iter": n_iter, "converged": converged}


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
