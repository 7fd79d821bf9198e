"""The tasks of `cusink.distributed` that find neighbours among a chunk of a collection."""

import dataclasses
from typing import Any

import numpy as np

from cusink.backends.devices import to_device
from cusink.costs.cost import Cost
from cusink.costs.kinds import kind_of, with_arrays
from cusink.distributed.jobs import Place, Task
from cusink.distributed.tasks import like_chunk, pairs_of_chunks
from cusink.retrieval.nearest import nearest
from cusink.types import Array


def nearest_in_chunk(
    a: Array, b: Array | None, C: Any, mass: float, place: Place, *, k: int, prune: bool, task: Task
) -> dict[str, Array]:
    """Return the k nearest in a chunk, or in `a` itself for None: arrays (rows, k), or fewer if the chunk has."""
    pairs = pairs_of_chunks(a, a if b is None else b, C, mass, place, task)
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
        "distances": like_chunk(a, pairs, distances.astype(pairs.dtype)),
        "indices": like_chunk(a, pairs, indices) + place.column,
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
