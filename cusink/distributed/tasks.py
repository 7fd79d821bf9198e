"""The tasks of `cusink.distributed` that solve blocks of a matrix."""

import dataclasses
import math
import socket
from typing import Any, Literal

import numpy as np

from cusink.backends.devices import device_error, to_device
from cusink.distributed.jobs import Place, Task
from cusink.errors import warn_unconverged
from cusink.retrieval.collections import check_collections
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.pairs import Field, Solved
from cusink.retrieval.storage.memory import ArraySink
from cusink.retrieval.tiles import Misses, PairValues, pair_count, solve_tiles
from cusink.types import Array, HostArray
from cusink.workers import alone


@alone
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
    pairs = dataclasses.replace(pairs_of_chunks(a, b[skip:], C, mass, place, task), symmetric=diagonal)
    ours, theirs = terms
    given = (None, None) if ours is None or theirs is None else (_solved(pairs, ours), _solved(pairs, theirs[skip:]))
    values = PairValues(pairs, task.value, task.options, task.width, given)
    if diagonal:
        fields, misses = values.tile(slice(0, len(a)), slice(0, len(b) - skip), names)
    else:
        sink = ArraySink(pairs, None, len(names) > 1, {})
        solve_tiles(values, (len(a), task.width), sink)
        fields, misses = sink.fields, Misses.total(sink.finished.values())
    if misses.count and task.options.tol is not None:
        warn_unconverged(misses.count, pair_count(pairs), misses.worst, task.options.tol, task.options.max_iter)
    return {name: like_chunk(a, pairs, field) for name, field in fields.items()}


@alone
def self_terms(x: Array, C: Any, mass: float, *, side: Literal[0, 1], task: Task) -> HostArray:
    """Solve items of A (side 0) or B, each with itself: (items, 3), the value, its error, and whether it converged."""
    bins = C.shape[1 - side]
    other = np.full_like(x, (1 if math.isnan(mass) else mass) / bins, shape=(1, bins))
    a, b = (x, other) if side == 0 else (other, x)
    pairs = pairs_of_chunks(a, b, C, mass, None, task)
    solved = pairs.solve_selves(side, slice(0, len(x)), task.options)
    columns = pairs.to_host(solved.distances), solved.error, solved.converged
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _solved(pairs: HistogramPairs, terms: HostArray) -> Solved:
    """Return the result of `self_terms` as solved items."""
    none = np.zeros(len(terms), np.int64)
    return Solved(pairs.xp.asarray(terms[:, 0]), terms[:, 1], none, terms[:, 2] > 0)


def on_device(task: Task, *arrays: Any) -> tuple[Any, ...]:
    """Return arrays, or what holds some, on the device of the task."""
    if task.device == "cpu":
        return arrays
    problem = device_error()
    if problem is not None:
        raise RuntimeError(
            f"device='cuda': a worker on {socket.gethostname()} cannot use a GPU: {problem}. Give every worker an "
            "environment with CuPy and a GPU, or pass device='cpu'"
        )
    return tuple(to_device(*arrays))


def note_place(error: Exception, place: Place | None) -> None:
    """Let an error say which block of the matrix it is about."""
    if place is not None:
        error.add_note(f"In a block of the matrix: rows count from {place.row} of 'A' and from {place.column} of 'B'.")


def pairs_of_chunks(a: Array, b: Array | None, C: Any, mass: float, place: Place | None, task: Task) -> HistogramPairs:
    """Return the pairs of two chunks, b None for `a` itself, on the device of the task, all scaled to `mass`."""
    a, b, C = on_device(task, a, b, C)
    try:
        pairs = check_collections(
            a,
            b,
            C,
            eps=task.eps,
            check=task.check,
            memory_limit=task.memory_limit,
            mass=mass,
            reach=task.reach,
            normalise=task.normalise,
        )
    except (TypeError, ValueError) as error:
        note_place(error, place)
        raise
    assert isinstance(pairs, HistogramPairs)  # chunks are arrays
    return pairs


def like_chunk(a: Array, pairs: HistogramPairs, result: Array) -> Array:
    """Return a result in the library of the chunks."""
    return pairs.to_host(result) if isinstance(a, np.ndarray) else result
