"""The tasks of `cusink.distributed`: blocks of a matrix, and neighbours among a chunk of a collection."""

import dataclasses
import socket
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from cusink.backends.devices import device_error, to_device
from cusink.checks.arrays import arrays
from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.costs.kinds import kind_of, with_arrays
from cusink.errors import warn_unconverged
from cusink.retrieval.collections import check_collections
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.nearest import nearest
from cusink.retrieval.pairs import Field, Solved
from cusink.retrieval.storage.memory import ArraySink
from cusink.retrieval.tiles import Misses, PairValues, pair_count, solve_tiles
from cusink.types import Array, HostArray, MatrixValue

Device = Literal["cpu", "cuda"]


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


class Place(NamedTuple):
    """The first row and column of a block in the matrix."""

    row: int
    column: int


def first_mass(a: Array) -> float:
    """Return the mass of the first row of a chunk, to which all others are scaled."""
    (a,), _, _ = arrays(A=a)
    return float(a[0].sum(dtype=np.float64))


def solve_block(
    a: Array,
    b: Array,
    C: Any,
    mass: float,
    terms: tuple[HostArray | None, HostArray | None],
    place: Place,
    skip: int = 0,
    diagonal: bool = False,
    *,
    names: tuple[Field, ...],
    task: Task,
) -> dict[Field, Array]:
    """Solve a chunk of A against a chunk of B without its first `skip` rows.

    `terms` are the `self_terms` of both chunks for a divergence. On the diagonal of a symmetric matrix the block is a
    tile, of which one triangle is solved.
    """
    pairs = dataclasses.replace(_pairs(a, b[skip:], C, mass, place, task), symmetric=diagonal)
    ours, theirs = terms
    given = None if ours is None or theirs is None else (_solved(pairs, ours), _solved(pairs, theirs[skip:]))
    values = PairValues(pairs, task.value, task.options, task.width, given)
    if diagonal:
        fields, misses = values.tile(slice(0, len(a)), slice(0, len(b) - skip), names)
    else:
        sink = ArraySink(pairs, None, len(names) > 1, {})
        solve_tiles(values, (len(a), task.width), sink)
        fields, misses = sink.fields, Misses.total(sink.finished.values())
    if misses.count and task.options.tol is not None:
        warn_unconverged(misses.count, pair_count(pairs), misses.worst, task.options.tol, task.options.max_iter)
    return {name: _like(a, pairs, field) for name, field in fields.items()}


def mirror_block(
    above: list[tuple[dict[Field, Array], int, int]], own: dict[Field, Array] | None
) -> dict[Field, Array]:
    """Assemble a block below the diagonal from tiles above it, each with a range of its columns, and its own tile."""
    return {
        name: np.concatenate(
            [tile[name][:, start:stop].T for tile, start, stop in above] + ([] if own is None else [own[name]]),
            axis=1,
        )
        for name in above[0][0]
    }


def self_terms(x: Array, C: Any, mass: float, *, side: Literal[0, 1], task: Task) -> HostArray:
    """Solve items of A (side 0) or B, each with itself: (items, 3), the value, its error, and whether it converged."""
    other = np.full_like(x, mass / C.shape[1 - side], shape=(1, C.shape[1 - side]))
    a, b = (x, other) if side == 0 else (other, x)
    pairs = _pairs(a, b, C, mass, None, task)
    solved = pairs.solve_selves(side, slice(0, len(x)), task.options)
    columns = pairs.to_host(solved.distances), solved.error, solved.converged
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _solved(pairs: HistogramPairs, terms: HostArray) -> Solved:
    """Return the result of `self_terms` as solved items."""
    none = np.zeros(len(terms), np.int64)
    return Solved(pairs.xp.asarray(terms[:, 0]), terms[:, 1], none, terms[:, 2] > 0)


def nearest_in_chunk(
    a: Array, b: Array | None, C: Any, mass: float, place: Place, *, k: int, prune: bool, task: Task
) -> dict[str, Array]:
    """Return the k nearest in a chunk, or in `a` itself for None: arrays (rows, k), or fewer if the chunk has."""
    pairs = _pairs(a, a if b is None else b, C, mass, place, task)
    k = min(k, pairs.shape[1] - (b is None))
    if k == 0:
        return {"distances": np.empty((len(a), 0), pairs.dtype), "indices": np.empty((len(a), 0), np.int64)}
    if task.device == "cuda":
        (C,) = to_device(C)
    # Scaled to one mass, so that it does not matter which chunks meet.
    A, B = pairs.A[:], None if b is None else pairs.B[:]
    distances, indices = nearest(
        A,
        B,
        _in_dtype(C, pairs.C),
        k=k,
        eps=task.eps,
        value=task.value,
        prune=prune,
        memory_limit=task.memory_limit,
        check=False,
        **dataclasses.asdict(task.options),
    )
    return {
        "distances": _like(a, pairs, distances.astype(pairs.dtype)),
        "indices": _like(a, pairs, indices) + place.column,
    }


def _in_dtype(C: Any, cost: Cost[Any]) -> Any:
    """Return a cost as the user gives it in the dtype of the computation; `cost` is its operand."""
    if kind_of(C) == "dense":
        return cost.data
    return with_arrays(C, lambda points: points.astype(cost.dtype, copy=False))


def merge_neighbours(found: list[dict[str, Array]], *, k: int) -> dict[str, Array]:
    """Return the k nearest of the neighbours in all chunks; equal distances come in the order of their indices."""
    distances, indices = (np.concatenate([part[name] for part in found], axis=1) for name in ("distances", "indices"))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # chunks, and neighbours in them, come in order
    return {name: np.take_along_axis(x, order, axis=1) for name, x in (("distances", distances), ("indices", indices))}


def _pairs(a: Array, b: Array, C: Any, mass: float, place: Place | None, task: Task) -> HistogramPairs:
    """Return the pairs of two chunks, on the device of the task, all scaled to `mass`."""
    if task.device == "cuda":
        problem = device_error()
        if problem is not None:
            raise RuntimeError(
                f"device='cuda': a worker on {socket.gethostname()} cannot use a GPU: {problem}. Give every worker an "
                "environment with CuPy and a GPU, or pass device='cpu'"
            )
        a, b, C = to_device(a, b, C)
    try:
        pairs = check_collections(a, b, C, eps=task.eps, check=task.check, memory_limit=task.memory_limit, mass=mass)
    except (TypeError, ValueError) as error:
        if place is not None:
            error.add_note(
                f"In a block of the matrix: rows count from {place.row} of 'A' and from {place.column} of 'B'."
            )
        raise
    assert isinstance(pairs, HistogramPairs)  # chunks are arrays
    return pairs


def _like(a: Array, pairs: HistogramPairs, result: Array) -> Array:
    """Return a result in the library of the chunks."""
    return pairs.to_host(result) if isinstance(a, np.ndarray) else result
