"""A distributed call, checked as far as it can be without reading the collections."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import dask
import dask.array as da
import numpy as np

from cusink.checks.arrays import arrays, kind, promoted
from cusink.checks.foreign import taken
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, one_of, regularisation, shown
from cusink.convergence.options import Options
from cusink.costs.checks import cost_values
from cusink.costs.images import Cells, in_bins
from cusink.costs.kinds import cells_of, named_arrays
from cusink.costs.metric import is_metric
from cusink.operand import eps_of_shared, operand
from cusink.retrieval import checks
from cusink.retrieval.budget import kernel_share
from cusink.retrieval.checks import ROWS
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.histograms import memory
from cusink.retrieval.masses import Masses, masses_of, wanted_mass
from cusink.retrieval.tiles import Sizes, tile_shape
from cusink.retrieval.unbalanced import mirrored
from cusink.solver.checks import reach_in_range
from cusink.types import Array, ArrayModule, MatrixValue, Reach

LazyArray: TypeAlias = Any  # dask.array.Array, which is not typed
Delayed: TypeAlias = Any  # a result of dask.delayed

Device = Literal["cpu", "cuda"]

COSTS_HELD = 4  # of a client, the last ones
_HELD: dict[Any, deque[Any]] = {}  # by client

CHUNK_ROWS = {"A": 128, "B": 1 << 15}  # of a collection that comes without chunks


@dataclass(frozen=True, kw_only=True)
class Task:
    """The arguments that all tasks of a call share; `width` items are solved at once."""

    eps: float
    value: MatrixValue
    options: Options
    width: int
    memory_limit: int | None
    check: bool
    device: Device
    reach: Reach | None = None
    normalise: bool = False


class Place(NamedTuple):
    """The first row and column of a block in the matrix."""

    row: int
    column: int


class Chunk(NamedTuple):
    """Some rows of a collection, and where they are in it."""

    rows: Delayed
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class Chunks:
    """A collection in chunks of rows."""

    chunks: list[Chunk]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, x: LazyArray) -> Self:
        """Return the chunks of a dask.array with all bins in one chunk."""
        if 0 in x.chunks[0] and len(x):  # of a selection by a mask, say
            x = x.rechunk((tuple(size for size in x.chunks[0] if size), -1))
        sizes = x.chunks[0]
        starts = np.cumsum((0, *sizes[:-1])).tolist()
        return cls([Chunk(*at) for at in zip(x.to_delayed()[:, 0].tolist(), starts, sizes, strict=True)], sizes)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __getitem__(self, k: int) -> Chunk:
        return self.chunks[k]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """The collections, B the same as A for `itself`, and what all tasks share."""

    A: LazyArray
    B: LazyArray
    itself: bool
    symmetric: bool
    xp: ArrayModule
    dtype: Any
    tile: tuple[int, int]
    C: Delayed
    mass: Delayed
    task: Task

    @classmethod
    def of(
        cls,
        A: Any,
        B: Any,
        C: Any,
        client: Any,
        *,
        eps: float | RelativeEps,
        value: MatrixValue,
        options: Options,
        limit: int | None,
        check: bool,
        device: Device,
        reach: Reach | None,
        normalise: bool,
    ) -> Self:
        """Check the arguments of a call."""
        eps = regularisation(eps_of_shared(eps, C))
        flag("check", check)
        check_client(client)
        one_of("value", value, checks.ALL_VALUES)
        one_of("device", device, get_args(Device))
        limit = checks.memory_limit(limit)
        if A is None:
            raise TypeError("'A' must be an array of histograms; got None. Only 'B' may be None, for A against itself")
        if is_metric(C):
            raise TypeError(
                f"'C' must be an array of costs, a cusink.PointCloud or a cusink.Grid; got the metric {shown(C)}, "
                f"which goes with 'A' and 'B' that are cusink.Measures, and 'A' is {kind(A)}. cusink.cost_matrix makes "
                "costs from points"
            )
        itself = B is None
        cells = cells_of(C)
        A = _collection("A", A, cells)
        B = A if itself else _collection("B", B, cells)
        metas = {name: np.empty_like(x._meta, shape=(0, x.shape[1])) for name, x in (("A", A), ("B", B))}
        (_, _, *parts), xp, dtype = promoted(**metas, **named_arrays(C))
        costs = operand(C, xp, dtype, parts, kernel_share(limit), batch=False)
        checks.shapes(A, None if itself else B, costs)
        if check and costs.stored:
            cost_values(costs.data, xp)
        if value == "divergence":
            checks.divergence(costs)
        if reach is not None:
            reach_in_range(reach, costs.dtype.name)
        mirrors = itself and mirrored(costs, reach)
        tile = tile_shape(Sizes((len(A), len(B)), mirrors, *memory(costs)), limit)
        C = xp.asarray(C) if costs.stored else C
        task = Task(
            eps=eps,
            value=value,
            options=options,
            width=tile[1],
            memory_limit=limit,
            check=check,
            device=device,
            reach=reach,
            normalise=normalise,
        )
        masses = masses_of(normalise, reach)
        return cls(
            A=A,
            B=B,
            itself=itself,
            symmetric=mirrors,
            xp=xp,
            dtype=dtype,
            tile=tile,
            C=held(client, C),
            mass=dask.delayed(first_mass, pure=False)(A[:1].to_delayed()[0, 0], masses),
            task=task,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Items of A and of B."""
        return len(self.A), len(self.B)

    def cut(self) -> tuple[Chunks, Chunks]:
        """Return rows and columns of a matrix in chunks that hold whole tiles, or of a symmetric one are tiles."""
        height, width = self.tile
        if self.symmetric:
            return Chunks.of(self.A.rechunk((height, -1))), Chunks.of(self.B.rechunk((width, -1)))
        return Chunks.of(self.A), Chunks.of(_in_multiples(self.B, width))


def taken_here(**named: Any) -> tuple[Any, ...]:
    """Return arrays of other libraries as NumPy's or CuPy's, but collections of Dask, 'A' and 'B', as they are.

    A cost of Dask is computed: all tasks share one, and checks and tiles depend on it.
    """
    lazy = [name for name in ("A", "B") if isinstance(named.get(name), da.Array)]
    return tuple(x if name in lazy else taken(name, x) for name, x in named.items())


def check_client(client: Any) -> None:
    """Check that a client is one of Dask, and open."""
    if client is None:
        return
    if isinstance(client, type) or not hasattr(client, "submit"):
        raise TypeError(f"'client' must be a dask.distributed.Client or None; got {kind(client)}")
    if getattr(client, "status", "running") == "closed":
        raise ValueError("'client' must be open; got one that has been closed. Make another")


def held(client: Any, x: Any) -> Any:
    """Return an object that all tasks of a call share: a part of the graph, or sent to the cluster of a client."""
    return dask.delayed(x, pure=False, traverse=False) if client is None else _kept(client, x)


def _kept(client: Any, C: Any) -> Any:
    """Return a future of a cost that is sent to a cluster, held for a while.

    Dask may take notice that nobody holds it any more before it has read the graph of a temporary array that needs it.
    """
    for other in list(_HELD):
        if getattr(other, "status", "running") == "closed":
            _HELD.pop(other, None)
    future = sent(client, C)
    _HELD.setdefault(client, deque(maxlen=COSTS_HELD)).append(future)
    return future


def sent(client: Any, x: Any) -> Any:
    """Return a future of an object that is sent to a cluster.

    It is the result of a task, which another worker does again: what is scattered to a worker is lost with it.
    """
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1PB"}):
        return client.submit(_itself, x, pure=False)


def _itself(x: Any) -> Any:
    return x


def first_mass(a: Array, masses: Masses = "equal") -> float:
    """Return the mass that all rows are scaled to, given the first; NaN for none."""
    (a,), _, _ = arrays(A=a)
    return wanted_mass(a[:1], masses)


def _collection(name: str, x: Any, cells: Cells) -> LazyArray:
    """Return a collection as a dask.array with all bins in one chunk."""
    rows = getattr(x, "_meta", x)
    if are_documents(rows, None):
        raise TypeError(
            f"'{name}' must be an array of histograms; got {kind(rows)} in a dask.array. Documents are taken as one "
            "scipy.sparse matrix or cusink.Measures, or as cusink.distributed.Index of parts that workers load"
        )
    if not isinstance(x, da.Array):
        _, xp, _ = arrays(**{name: x})
        x, _ = in_bins(name, xp.asarray(x), cells, ROWS)  # in its own dtype: the result's depends on the cost too
        if x.ndim == 2 and 0 not in x.shape:
            x = da.from_array(x, chunks=(CHUNK_ROWS[name], -1))
    elif x.ndim > 2 and cells is not None and not np.isnan(x.shape[0]):
        x, _ = in_bins(name, x.rechunk(dict.fromkeys(range(1, x.ndim), -1)), cells, ROWS)
    if x.ndim != 2 or 0 in x.shape:
        hint = ". A single histogram is A[None, :]" if x.ndim == 1 else ""
        raise ValueError(f"'{name}' must have shape (Q, n), one histogram per row; got {x.shape}{hint}")
    if np.isnan(x.shape[0]):
        raise ValueError(f"'{name}' must have chunks of known sizes; call {name}.compute_chunk_sizes() first")
    return x.rechunk({1: -1})


def _in_multiples(x: LazyArray, width: int) -> LazyArray:
    """Return `x` in chunks of multiples of `width` rows, close to its own."""
    starts = np.cumsum((0, *x.chunks[0][:-1]))
    if not (starts % width).any():
        return x
    return x.rechunk((max(round(max(x.chunks[0]) / width), 1) * width, -1))
