"""Nearest neighbours on many machines: each chunk of a collection is an index, in which all chunks of rows look."""

import dataclasses
from functools import partial
from typing import Any, Literal, Unpack, overload

import dask
import dask.array as da
import numpy as np

from cusink.checks.arrays import weights_dtype
from cusink.checks.foreign import taken
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, flags, one_of, tolerance
from cusink.distributed.documents import Documents
from cusink.distributed.jobs import CHUNK_ROWS, Chunks, Device, Job, LazyArray, Place, held, taken_here
from cusink.distributed.parts import FoundInPart, How, merged, part_of_chunk, search_part
from cusink.distributed.tasks import note_place, on_device
from cusink.retrieval import checks
from cusink.retrieval.collections import ON_EMPTY
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.index import Index
from cusink.retrieval.keywords import SolveKeywords
from cusink.retrieval.neighbours import Neighbours
from cusink.retrieval.prices import prices_of
from cusink.solver.checks import options as check_options
from cusink.types import Array, HostArray, MatrixValue, Method, Overrelaxation, Tolerance
from cusink.workers import alone

DTYPES: dict[str, Any] = {"distances": None, "indices": np.int64, "error": float, "converged": bool}
OF_ROWS: dict[str, Any] = {"proved": bool, "undercut": float}
COUNTS = ("bounded", "started", "finished")


class NearestKeywords(SolveKeywords, total=False):
    """The optional keywords of `nearest`."""

    prune: bool
    solve_at_most: int | None
    candidates: Any
    on_empty: Literal["nan", "raise"]
    device: Device
    client: Any


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
) -> tuple[LazyArray, LazyArray]: ...
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
) -> tuple[LazyArray, LazyArray] | Neighbours: ...
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
    memory_limit: int | None = None,
    full_output: bool = False,
    on_empty: Literal["nan", "raise"] = "nan",
    check: bool = True,
    device: Device = "cpu",
    client: Any = None,
) -> tuple[LazyArray, LazyArray] | Neighbours:
    """Return the k rows of B at the smallest Sinkhorn distance from each row of A, lazily.

    Parameters
    ----------
    A : dask.array or array, shape (Q, n), scipy.sparse matrix or Measures
        As for `distance_matrix`.
    B : dask.array or array, shape (D, m), scipy.sparse matrix, Measures or None
        As for `distance_matrix`. Each chunk is made an index, in which each chunk of A looks for its neighbours, and
        the nearest of all remain: fewer, larger chunks of B prune better. Documents are cut into chunks as arrays are.
    C : array, shape (n, m), or PointCloud, or Grid, or str or Metric
        As for `distance_matrix`.
    k : int
        Neighbours wanted of each row.
    eps : float or RelativeEps
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        As for `cusink.nearest`.
    prune : bool
        As for `cusink.nearest`.
    solve_at_most : int, optional
        Pairs of a row to be solved at most in each chunk of B.
    candidates : array of int, shape (Q, c), optional
        Rows of B to be looked at for each row of A, as for `cusink.nearest`, in memory. A chunk of B without candidates
        of a row is not searched for it. Not where B is None.
    max_iter : int
        As for `cusink.sinkhorn`.
    tol : "auto", float or None
        As for `cusink.sinkhorn`.
    check_every : int
        As for `cusink.sinkhorn`.
    method : {"auto", "log", "scaling"}
        As for `cusink.sinkhorn`.
    overrelaxation : {"auto"} or float or None
        As for `cusink.sinkhorn`.
    reach : float, or pair of float or None, optional
        Price of marginals that differ, as for `cusink.distance_matrix`.
    normalise : bool
        Divide each histogram by its sum.
    memory_limit : int, optional
        As for `distance_matrix`.
    full_output : bool
        Return `cusink.Neighbours` of lazy arrays, with counts and `pruning` that are lazy too:
        ``dask.compute(vars(near))`` computes all of them at once.
    on_empty : {"nan", "raise"}
        As for `distance_matrix`.
    check : bool
        False skips the checks of the values of the input, for speed.
    device : {"cpu", "cuda"}
        As for `distance_matrix`.
    client : dask.distributed.Client, optional
        As for `distance_matrix`.

    Returns
    -------
    distances : dask.array, shape (Q, k)
        Ascending in each row.
    indices : dask.array of int, shape (Q, k)
        Rows of B. With `full_output`, `cusink.Neighbours` instead of both.

    Raises
    ------
    TypeError
        As for `distance_matrix`.
    ValueError
        As for `distance_matrix` and `cusink.nearest`.
    RuntimeError
        As for `distance_matrix`.

    Notes
    -----
    The neighbours that `cusink.nearest` finds, and its bytes where B is one chunk, A another, and none is None. With
    more of them distances are the same up to rounding, and among the rows of A, where a pair may be solved from the
    other side, up to `tol`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cusink, cusink.distributed
    >>> A = da.from_array(np.eye(4), chunks=(2, 4))
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> distances, indices = cusink.distributed.nearest(A, None, C, k=1, eps=0.05)
    >>> indices.compute().ravel().tolist()
    [1, 0, 1, 2]
    """
    A, B, C, eps, reach = taken_here(A=A, B=B, C=C, eps=eps, reach=reach)
    tol = tolerance(tol, A, B, C)
    flags(prune=prune, full_output=full_output)
    options = check_options(max_iter, tol, check_every, method, overrelaxation)
    one_of("on_empty", on_empty, ON_EMPTY)
    given: dict[str, Any] = {
        "eps": eps,
        "value": value,
        "options": options,
        "limit": memory_limit,
        "check": check,
        "device": device,
        "reach": prices_of(reach, method, value),
        "normalise": flag("normalise", normalise),
    }
    if are_documents(A, B):
        documents = Documents.of(A, B, C, client, on_empty=on_empty, **given)
        left = documents.chunks(CHUNK_ROWS["A"], 0)
        right = left if B is None else documents.chunks(CHUNK_ROWS["B"], 1)
        shape, mass, xp = documents.pairs.shape, documents.mass, documents.pairs.xp
        task = dataclasses.replace(documents.task, check=False)  # all of them have been checked, in their own dtypes
        dtype, judged, cost = documents.pairs.dtype, None, held(client, C)
    else:
        job = Job.of(A, B, C, client, **given)
        left, right, shape, task, mass, xp = Chunks.of(job.A), Chunks.of(job.B), job.shape, job.task, job.mass, job.xp
        dtype, judged, cost = job.dtype, weights_dtype(job.dtype, job.A, job.B), job.C
    itself = B is None
    k = checks.neighbours(k, shape[1], itself)
    how = How(k=k, prune=prune, solve_at_most=checks.solve_at_most(solve_at_most, k), check=task.check)
    if candidates is not None:
        if itself:
            raise ValueError(
                "'candidates' must be None where 'B' is: pass A as 'B' too, and leave each row out of its own "
                "candidates"
            )
        candidates = checks.candidates(taken("candidates", candidates), shape, k, False)
    make = dask.delayed(partial(part_of_chunk, task=task, make=Index._of, judged=judged), pure=False)
    look = dask.delayed(partial(look_in_chunk, task=task, how=how), pure=False)
    merge = dask.delayed(partial(merge_chunks, sizes=list(right.sizes), k=k), pure=False)
    parts = [make(b, cost, mass, Place(0, column), dtype) for b, column, _ in right]
    rows = []
    for i, (a, row, size) in enumerate(left):
        own = None if candidates is None else candidates[row : row + size]
        found = [
            look(
                a,
                parts[j],
                count,
                None if own is None else dask.delayed(own - column, pure=False, traverse=False),
                itself and i == j,
                Place(row, column),
            )
            for j, (_, column, count) in enumerate(right)
        ]
        rows.append((size, merge(found)))

    def lazy(name: str, of: Any, *wide: int) -> LazyArray:
        meta = xp.empty((0,) * (1 + len(wide)), of or dtype)
        return da.concatenate([da.from_delayed(near[name], (size, *wide), meta=meta) for size, near in rows])

    distances, indices = lazy("distances", None, k), lazy("indices", np.int64, k)
    if not full_output:
        return distances, indices
    total = dask.delayed(_total, pure=False)
    fields: dict[str, Any] = {name: lazy(name, of, k) for name, of in DTYPES.items() if of in (float, bool)}
    fields |= {name: lazy(name, of) for name, of in OF_ROWS.items()}
    # Arrays too: Dask computes arrays and other objects together in an order of its own.
    fields |= {name: da.from_delayed(total([near[name] for _, near in rows]), (), dtype=np.int64) for name in COUNTS}
    pruning = da.from_delayed(rows[0][1]["pruning"], (), dtype=object)
    return Neighbours(distances=distances, indices=indices, pruning=pruning, **fields)


@alone
def look_in_chunk(
    a: Any,
    part: Any,
    size: int,
    candidates: HostArray | None,
    itself: bool,
    place: Place,
    *,
    task: Any,
    how: How,
) -> tuple[FoundInPart, bool]:
    """Return what a chunk of rows finds in a part, and whether these rows are on a device."""
    (own,) = on_device(task, a)
    try:
        found = search_part(own, part, size, how, candidates, itself)
    except (TypeError, ValueError) as error:
        note_place(error, place)
        raise
    return found, not (isinstance(a, np.ndarray) or are_documents(a, None))


def merge_chunks(found: list[tuple[FoundInPart, bool]], *, sizes: list[int], k: int) -> dict[str, Array]:
    """Return the fields of the k nearest in all chunks, in the library of the rows."""
    near: dict[str, Any] = dict(merged([part for part, _ in found], sizes, k).__dict__)
    if found[0][1]:
        import cupy

        near |= {name: cupy.asarray(near[name]) for name in (*DTYPES, *OF_ROWS)}
    return near


def _total(counts: list[int]) -> int:
    return sum(counts)
