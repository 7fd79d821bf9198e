"""Distance matrices and nearest neighbours on many machines, with Dask; ``pip install 'dask[array]' distributed``.

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
from cusink.checks.scalars import flag, tolerance
from cusink.distributed import neighbours, tasks
from cusink.distributed.assembly import DTYPES, assembled, rectangle, triangle
from cusink.distributed.jobs import Chunks, Device, Job, LazyArray, Place, taken_here
from cusink.retrieval import checks
from cusink.retrieval.keywords import SolveKeywords
from cusink.retrieval.matrix import DistanceMatrix
from cusink.retrieval.pairs import Field
from cusink.retrieval.prices import prices_of
from cusink.solver.checks import options as check_options
from cusink.types import MatrixValue, Method, Overrelaxation, Tolerance


class DistributedKeywords(SolveKeywords, total=False):
    """The optional keywords of `distance_matrix`."""

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
    check: bool = True,
    device: Device = "cpu",
    client: Any = None,
) -> DistanceMatrix | LazyArray:
    """Return the Sinkhorn distances between all rows of A and all rows of B, lazily.

    Parameters
    ----------
    A : dask.array or array, shape (Q, n)
        Histograms, all of one mass, in chunks of rows. An array in memory is cut into chunks and becomes a part of the
        graph; large collections are better read by the workers, as `dask.array.from_zarr` does.
    B : dask.array or array, shape (D, m), or None
        Histograms of the same mass. None compares the rows of A with each other; with a symmetric cost each pair
        is then solved once.
    C : array, shape (n, m), or PointCloud, or Grid
        Cost between the bins. All tasks share one copy of it.
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
    blocks = triangle(job, left, right, solve) if job.symmetric else rectangle(job, left, right, solve)
    fields = {name: assembled(job, left, right, blocks, name) for name in names}
    return DistanceMatrix(**fields) if full_output else fields["distances"]


def nearest(
    A: Any,
    B: Any,
    C: Any,
    *,
    k: int,
    eps: float | RelativeEps,
    value: MatrixValue = "cost",
    prune: bool = True,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    reach: float | tuple[float | None, float | None] | None = None,
    normalise: bool = False,
    memory_limit: int | None = None,
    check: bool = True,
    device: Device = "cpu",
    client: Any = None,
) -> tuple[LazyArray, LazyArray]:
    """Return the k rows of B at the smallest Sinkhorn distance from each row of A, lazily.

    Parameters
    ----------
    A : dask.array or array, shape (Q, n)
        As for `distance_matrix`.
    B : dask.array or array, shape (D, m), or None
        As for `distance_matrix`. Each chunk of A looks for its neighbours in each chunk of B, and the nearest of all
        remain: fewer, larger chunks of B prune better.
    C : array, shape (n, m), or PointCloud, or Grid
        As for `distance_matrix`.
    k : int
        Neighbours wanted of each row.
    eps : float or RelativeEps
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        As for `cusink.nearest`.
    prune : bool
        As for `cusink.nearest`.
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
        Rows of B.

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
    The neighbours that `cusink.nearest` finds. Distances are the same up to rounding, and among the rows of A, where a
    pair may be solved from the other side, up to `tol`.

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
    flag("prune", prune)
    options = check_options(max_iter, tol, check_every, method, overrelaxation)
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
    k = checks.neighbours(k, job.shape[1], job.itself)
    left, right = Chunks.of(job.A), Chunks.of(job.B)
    look = dask.delayed(partial(neighbours.nearest_in_chunk, k=k, prune=prune, task=job.task), pure=False)
    merge = dask.delayed(partial(neighbours.merge_neighbours, k=k), pure=False)
    distances, indices = [], []
    for i, (a, row, size) in enumerate(left):
        near = merge(
            [
                look(a, None if job.itself and i == j else b, job.C, job.mass, Place(row, column))
                for j, (b, column, _) in enumerate(right)
            ]
        )
        distances.append(da.from_delayed(near["distances"], (size, k), meta=job.like(job.dtype)))
        indices.append(da.from_delayed(near["indices"], (size, k), meta=job.like(np.int64)))
    return da.concatenate(distances), da.concatenate(indices)
