"""Distance matrices on many machines, with Dask; ``pip install 'dask[array]' distributed``.

Collections are `dask.array` in chunks of rows, results are lazy `dask.array`; Dask's threads or a ``dask.distributed``
cluster do the work. Each task solves a block of the matrix with the tiles that one machine would have cut, so that
the result has the same bytes.
"""

from functools import partial
from typing import Any, Literal, Unpack, overload

import dask
import dask.array as da
import numpy as np

from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, one_of, tolerance
from cusink.distributed import tasks
from cusink.distributed.assembly import DTYPES, assembled, rectangle, triangle
from cusink.distributed.documents import Documents
from cusink.distributed.jobs import Chunks, Delayed, Device, Job, LazyArray, taken_here
from cusink.retrieval.collections import ON_EMPTY
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.keywords import SolveKeywords
from cusink.retrieval.matrix import DistanceMatrix
from cusink.retrieval.pairs import Field
from cusink.retrieval.prices import prices_of
from cusink.solver.checks import options as check_options
from cusink.types import MatrixValue, Method, Overrelaxation, Tolerance


class DistributedKeywords(SolveKeywords, total=False):
    """The optional keywords of `distance_matrix`."""

    on_empty: Literal["nan", "raise"]
    device: Device
    client: Any


@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    full_output: Literal[False] = ...,
    **keywords: Unpack[DistributedKeywords],
) -> LazyArray: ...
@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    full_output: Literal[True],
    **keywords: Unpack[DistributedKeywords],
) -> DistanceMatrix: ...
@overload
def distance_matrix(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float | RelativeEps,
    full_output: bool,
    **keywords: Unpack[DistributedKeywords],
) -> DistanceMatrix | LazyArray: ...
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
    memory_limit: int | None = None,
    full_output: bool = False,
    on_empty: Literal["nan", "raise"] = "nan",
    check: bool = True,
    device: Device = "cpu",
    client: Any = None,
) -> DistanceMatrix | LazyArray:
    """Return the Sinkhorn distances between all rows of A and all rows of B, lazily.

    Parameters
    ----------
    A : dask.array or array, shape (Q, n), scipy.sparse matrix or Measures
        Histograms, all of one mass, in chunks of rows. An array in memory is cut into chunks and becomes a part of the
        graph; large collections are better read by the workers, as `dask.array.from_zarr` does. Documents and point
        clouds are in memory: each worker gets all of them, and solves some rows.
    B : dask.array or array, shape (D, m), scipy.sparse matrix, Measures or None
        Histograms of the same mass, or documents and point clouds where A is such. None compares the rows of A
        with each other; with a symmetric cost each pair is then solved once.
    C : array, shape (n, m), or PointCloud, or Grid, or str or Metric
        Cost between the bins; for `cusink.Measures` the name of a metric, or a `cusink.Metric`. All tasks share
        one copy of it.
    eps : float or RelativeEps
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        As for `cusink.distance_matrix`.
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
        Bytes that a task may use at a time beyond its chunks, as for `cusink.distance_matrix`.
    full_output : bool
        Return a `cusink.DistanceMatrix` of lazy arrays, which also has error, iterations and convergence.
    on_empty : {"nan", "raise"}
        What to do about documents without a word, as for `cusink.distance_matrix`.
    check : bool
        False skips the checks of the values of the input, for speed.
    device : {"cpu", "cuda"}
        "cuda" lets every task run on the GPU of its worker, and is an error on a worker that has none.
    client : dask.distributed.Client, optional
        Sends the cost to its cluster now, once, instead of as a part of each graph.

    Returns
    -------
    dask.array, shape (Q, D), or DistanceMatrix
        With the chunks of A, and columns in multiples of a tile.

    Raises
    ------
    TypeError
        As for `cusink.distance_matrix`.
    ValueError
        As for `cusink.distance_matrix`: shapes and options are checked by this call, values by the task that reads
        them.
    RuntimeError
        By a task for ``device="cuda"`` on a worker that cannot use a GPU.

    Notes
    -----
    The same bytes as ``cusink.distance_matrix(A, B, C, ...)`` with the same `memory_limit`, on machines with equal
    NumPy and BLAS. If a worker is lost, Dask repeats its tasks.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cusink, cusink.distributed
    >>> A = np.random.default_rng(0).dirichlet(np.ones(4), size=6)
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> D = cusink.distributed.distance_matrix(da.from_array(A, chunks=(3, 4)), None, C, eps=0.05)
    >>> bool((D.compute() == cusink.distance_matrix(A, None, C, eps=0.05)).all())
    True
    """
    A, B, C, eps, reach = taken_here(A=A, B=B, C=C, eps=eps, reach=reach)
    tol = tolerance(tol, A, B, C)
    flag("full_output", full_output)
    options = check_options(max_iter, tol, check_every, method, overrelaxation)
    one_of("on_empty", on_empty, ON_EMPTY)
    if are_documents(A, B):
        given = Documents.of(
            A,
            B,
            C,
            client,
            eps=eps,
            value=value,
            options=options,
            limit=memory_limit,
            check=check,
            device=device,
            reach=prices_of(reach, method, value),
            normalise=flag("normalise", normalise),
            on_empty=on_empty,
        )
        lazy = given.matrix(tuple(DTYPES) if full_output else ("distances",))
        return DistanceMatrix(**lazy) if full_output else lazy["distances"]
    job = Job.of(
        A,
        B,
        C,
        client,
        eps=eps,
        value=value,
        options=options,
        limit=memory_limit,
        check=check,
        device=device,
        reach=prices_of(reach, method, value),
        normalise=flag("normalise", normalise),
    )
    names: tuple[Field, ...] = tuple(DTYPES) if full_output else ("distances",)
    solve = dask.delayed(partial(tasks.solve_block, names=names, task=job.task), pure=False)
    left, right = job.cut()
    ours, theirs = _terms(job, 0, left), _terms(job, 1, right)

    def block(i: int, j: int, *at: Any) -> Delayed:
        return solve(left[i].rows, right[j].rows, job.C, job.mass, (ours[i], theirs[j]), *at)

    blocks = triangle(left, right, job.tile[1], block) if job.symmetric else rectangle(left, right, block)
    fields = {name: assembled(job.xp, job.dtype, left, right, blocks, name) for name in names}
    return DistanceMatrix(**fields) if full_output else fields["distances"]


def _terms(job: Job, side: Literal[0, 1], chunks: Chunks) -> list[Delayed]:
    """Return the terms of a divergence of the items of a side with themselves, by chunks; else None for each."""
    if job.task.value != "divergence":
        return [None] * len(chunks.sizes)
    # Solved in the batches in which one machine would, whatever the chunks are.
    whole = Chunks.of((job.A, job.B)[side].rechunk((job.tile[1], -1)))
    solve = dask.delayed(partial(tasks.self_terms, side=side, task=job.task), pure=False)
    batches = [
        da.from_delayed(solve(items, job.C, job.mass), (size, 3), meta=np.empty((0, 0))) for items, _, size in whole
    ]
    terms: list[Delayed] = da.concatenate(batches).rechunk((chunks.sizes, -1)).to_delayed()[:, 0].tolist()
    return terms
