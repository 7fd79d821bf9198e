"""Distance matrices and nearest neighbours on many machines, with Dask; ``pip install 'cusink[distributed]'``.

Collections are `dask.array` in chunks of rows, results are lazy `dask.array`; Dask's threads or a ``dask.distributed``
cluster do the work. Each task solves a block of the matrix with the tiles that one machine would have cut, so that
the result has the same bytes.
"""

from functools import partial

import dask
import dask.array as da
import numpy as np

from cusink.checks.arrays import arrays, kind
from cusink.checks.scalars import one_of, regularisation
from cusink.costs.checks import cost_values
from cusink.costs.kinds import named_arrays
from cusink.distributed import tasks
from cusink.operand import operand
from cusink.retrieval import checks as retrieval_checks
from cusink.retrieval.documents.supports import is_measures, is_sparse
from cusink.retrieval.histograms import memory
from cusink.retrieval.matrix import DistanceMatrix
from cusink.retrieval.tiles import Sizes, tile_shape
from cusink.solver import checks as solver_checks

__all__ = [
    "distance_matrix",
    "nearest",
]


DEVICES = ("cpu", "cuda")
FIELDS = {"distances": None, "error": np.float64, "n_iter": np.int64, "converged": np.bool_}
ROWS = {"A": 128, "B": 1 << 15}  # of a chunk of what comes without chunks


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
    memory_limit=None,
    full_output=False,
    check=True,
    device="cpu",
    client=None,
):
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
    eps, value, max_iter, tol, check_every, method, overrelaxation, check
        As for `cusink.distance_matrix`.
    memory_limit : int, optional
        Bytes that a task may use at a time beyond its chunks, as for `cusink.distance_matrix`.
    full_output : bool
        Return a `cusink.DistanceMatrix` of lazy arrays, which also tells error, iterations and convergence.
    device : {"cpu", "cuda"}
        "cuda" lets every task run on the GPU of its worker, and is an error on a worker that has none.
    client : dask.distributed.Client, optional
        Sends the cost to all workers now, instead of with the first task that needs it.

    Returns
    -------
    dask.array, shape (Q, D), or DistanceMatrix
        With the chunks of A, and columns in multiples of a tile.

    Raises
    ------
    TypeError, ValueError
        As for `cusink.distance_matrix`: for shapes, kinds and options by this call, for values by the task that
        meets them.
    RuntimeError
        By a task for ``device="cuda"`` on a worker that cannot use a GPU.

    Notes
    -----
    The same bytes as ``cusink.distance_matrix(A, B, C, ...)`` with the same `memory_limit`, on machines with equal
    NumPy and BLAS. A worker that is lost takes nothing with it: its tasks are repeated.

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
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    job = Job(A, B, C, eps, value, memory_limit, check, device, client)
    if job.symmetric:
        job.cut(job.A.rechunk((job.tile[0], -1)), job.B.rechunk((job.tile[1], -1)))
    else:
        job.cut(job.A, _in_multiples(job.B, job.tile[1]))
    names = tuple(FIELDS) if full_output else ("distances",)
    job.task |= {"value": value, "options": options, "width": job.tile[1]}
    solve = dask.delayed(partial(tasks.solve_block, names=names, **job.task), pure=False)
    blocks = _triangle(job, solve) if job.symmetric else _rectangle(job, solve)
    fields = {name: _assembled(job, blocks, name) for name in names}
    return DistanceMatrix(**fields) if full_output else fields["distances"]


def nearest(
    A,
    B,
    C,
    *,
    k,
    eps,
    value="cost",
    prune=True,
    max_iter=1000,
    tol=1e-6,
    check_every=10,
    method="auto",
    overrelaxation="auto",
    memory_limit=None,
    check=True,
    device="cpu",
    client=None,
):
    """Return the k rows of B at the smallest Sinkhorn distance from each row of A, lazily.

    Parameters
    ----------
    A, B, C, memory_limit, device, client
        As for `distance_matrix`. Each chunk of A looks for its neighbours in each chunk of B, and the nearest of all
        remain: fewer, larger chunks of B prune better.
    k, eps, value, prune, max_iter, tol, check_every, method, overrelaxation, check
        As for `cusink.nearest`.

    Returns
    -------
    distances : dask.array, shape (Q, k)
        Ascending in each row.
    indices : dask.array of int, shape (Q, k)
        Rows of B.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `distance_matrix` and `cusink.nearest`.

    Notes
    -----
    The neighbours that `cusink.nearest` finds. Distances are the same up to rounding, and among the rows of A, where a
    pair may be solved from the other side, up to `tol`.
    """
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    job = Job(A, B, C, eps, value, memory_limit, check, device, client)
    k = retrieval_checks.neighbours(k, job.shape[1], job.itself)
    job.cut(job.A, job.A if job.itself else job.B)
    options |= {"value": value, "prune": prune}
    task = dask.delayed(partial(tasks.look, k=k, options=options, **job.task), pure=False)
    merge = dask.delayed(partial(tasks.merge, k=k), pure=False)
    found = {"distances": [], "indices": []}
    for i, a in enumerate(job.left):
        near = merge(
            [
                task(a, None if job.itself and i == j else b, job.C, job.mass, (job.rows[i], job.columns[j]))
                for j, b in enumerate(job.right)
            ]
        )
        for (name, parts), dtype in zip(found.items(), (job.dtype, np.int64), strict=True):
            parts.append(da.from_delayed(near[name], (job.A.chunks[0][i], k), meta=job.like(dtype)))
    return tuple(da.concatenate(parts) for parts in found.values())


class Job:
    """A call, checked as far as it can be without reading the collections, and what its tasks share."""

    def __init__(self, A, B, C, eps, value, memory_limit, check, device, client):
        regularisation(eps)
        one_of("value", value, retrieval_checks.ALL_VALUES)
        one_of("device", device, DEVICES)
        memory_limit = retrieval_checks.memory_limit(memory_limit)
        if A is None:
            raise TypeError("'A' must be an array of histograms; got None. Only 'B' may be None, for A against itself")
        self.itself, self.value = B is None, value
        self.A = _collection("A", A)
        self.B = self.A if self.itself else _collection("B", B)
        metas = {name: np.empty_like(x._meta, shape=(0, x.shape[1])) for name, x in (("A", self.A), ("B", self.B))}
        (_, _, *parts), self.xp, self.dtype = arrays(**metas, **named_arrays(C))
        kernel = None if memory_limit is None else memory_limit // 2
        costs = operand(C, self.xp, self.dtype, parts, kernel, batch=False)
        retrieval_checks.shapes(self.A, None if self.itself else self.B, costs)
        if check and costs.stored:
            cost_values(costs.data, self.xp)
        if value == "divergence":
            retrieval_checks.divergence(costs)
        self.shape, self.symmetric = (len(self.A), len(self.B)), self.itself and costs.symmetric
        sizes = Sizes(self.shape, self.symmetric, *memory(costs))
        self.tile = tile_shape(sizes, memory_limit)
        C = self.xp.asarray(C) if costs.stored else C
        self.C = dask.delayed(C, pure=False, traverse=False) if client is None else client.scatter(C, broadcast=True)
        self.mass = dask.delayed(tasks.first_mass, pure=False)(self.A[:1].to_delayed()[0, 0])
        self.task = {"eps": eps, "memory_limit": memory_limit, "check": check, "device": device}

    def cut(self, A, B):
        """Settle the chunks of rows: `left` and `right` are the delayed ones, from the rows `rows` and `columns` on."""
        self.A, self.B = A, B
        (self.left, self.rows), (self.right, self.columns) = (
            (x.to_delayed()[:, 0].tolist(), np.cumsum((0, *x.chunks[0][:-1])).tolist()) for x in (A, B)
        )

    def like(self, dtype):
        """An empty array of the library of the result."""
        return self.xp.empty((0, 0), dtype)

    def terms(self, side):
        """Of a divergence, the delayed terms of the items of a side with themselves, by the chunks of that side."""
        x = (self.A, self.B)[side]
        if self.value != "divergence":
            return [None] * x.numblocks[0]
        # Solved in the parts in which one machine would, whatever the chunks are.
        whole = x.rechunk((self.tile[1], -1))
        task = dask.delayed(partial(tasks.self_terms, side=side, **self.task), pure=False)
        parts = [
            da.from_delayed(task(block, self.C, self.mass), (rows, 3), meta=np.empty((0, 0)))
            for block, rows in zip(whole.to_delayed()[:, 0].tolist(), whole.chunks[0], strict=True)
        ]
        return da.concatenate(parts).rechunk((x.chunks[0], -1)).to_delayed()[:, 0].tolist()


def _collection(name, x):
    """A collection as a dask.array with all bins in one chunk."""
    rows = getattr(x, "_meta", x)
    if is_sparse(rows) or is_measures(rows):
        raise TypeError(
            f"'{name}' must be an array of histograms; got {kind(rows)}. Documents are compared by "
            "cusink.distance_matrix and cusink.nearest, without Dask; sparse rows can be made dense with .toarray()"
        )
    if not isinstance(x, da.Array):
        _, xp, _ = arrays(**{name: x})
        x = xp.asarray(x)  # in its own dtype, for that of the result is settled with the cost
        if x.ndim == 2 and 0 not in x.shape:
            x = da.from_array(x, chunks=(ROWS[name], -1))
    if x.ndim != 2 or 0 in x.shape:
        hint = ". A single histogram is A[None, :]" if x.ndim == 1 else ""
        raise ValueError(f"'{name}' must have shape (Q, n), one histogram per row; got {x.shape}{hint}")
    if np.isnan(x.shape[0]):
        raise ValueError(f"'{name}' must have chunks of known sizes; call {name}.compute_chunk_sizes() first")
    return x.rechunk({1: -1})


def _in_multiples(x, width):
    """Chunks of multiples of `width` rows, near to what they are."""
    starts = np.cumsum((0, *x.chunks[0][:-1]))
    if not (starts % width).any():
        return x
    return x.rechunk((max(round(max(x.chunks[0]) / width), 1) * width, -1))


def _rectangle(job, solve):
    """The blocks of a matrix of two collections: rows of delayed dicts."""
    right = list(zip(job.right, job.terms(1), job.columns, strict=True))
    return [
        [solve(a, b, job.C, job.mass, ours, theirs, (row, column)) for b, theirs, column in right]
        for a, ours, row in zip(job.left, job.terms(0), job.rows, strict=True)
    ]


def _triangle(job, solve):
    """The blocks of a symmetric matrix: the tiles on and above the diagonal are solved, the others their mirror images.

    A tile of the rows from `row` on has the columns from ``max(row, column)`` on; all of it is above the diagonal but
    for a square.
    """
    ours, theirs, width = job.terms(0), job.terms(1), job.tile[1]
    tiles = {}
    for i, row in enumerate(job.rows):
        for j, column in enumerate(job.columns):
            if row < column + width:
                at, skip = (row, max(row, column)), max(row - column, 0)
                tiles[i, j] = solve(
                    job.left[i], job.right[j], job.C, job.mass, ours[i], theirs[j], at, skip, row >= column
                )
    stitch = dask.delayed(tasks.stitch, pure=False)
    blocks = []
    for i, (row, height) in enumerate(zip(job.rows, job.A.chunks[0], strict=True)):
        blocks.append([])
        for j, column in enumerate(job.columns):
            pieces = []
            for k, above in enumerate(job.rows):  # the rows that are the columns left of the block's own tile
                if column <= above < min(row, column + width):
                    start = row - max(above, job.columns[row // width])
                    pieces.append((tiles[k, row // width], start, start + height))
            blocks[-1].append(stitch(pieces, tiles.get((i, j))) if pieces else tiles[i, j])
    return blocks


def _assembled(job, blocks, name):
    """One lazy array of a field of blocks, which are rows of delayed dicts."""
    meta = job.like(FIELDS[name] or job.dtype)
    return da.block(
        [
            [
                da.from_delayed(block[name], (rows, columns), meta=meta)
                for block, columns in zip(line, job.B.chunks[0], strict=True)
            ]
            for line, rows in zip(blocks, job.A.chunks[0], strict=True)
        ]
    )
