"""The tasks of `cusink.distributed` that find neighbours among a chunk of a collection."""

from typing import Any

import numpy as np

from cusink.distributed.jobs import Place, Task
from cusink.distributed.tasks import like_chunk, pairs_of_chunks
from cusink.retrieval.engine import corpus_of, find
from cusink.retrieval.neighbours import neighbours
from cusink.retrieval.query import Query
from cusink.types import Array
from cusink.workers import alone


@alone
def nearest_in_chunk(
    a: Array, b: Array | None, C: Any, mass: float, place: Place, *, k: int, prune: bool, task: Task
) -> dict[str, Array]:
    """Return the k nearest in a chunk, or in `a` itself for None: arrays (rows, k), or fewer if the chunk has."""
    pairs = pairs_of_chunks(a, b, C, mass, place, task)
    k = min(k, pairs.shape[1] - (b is None))
    if k == 0:
        return {"distances": np.empty((len(a), 0), pairs.dtype), "indices": np.empty((len(a), 0), np.int64)}
    query = Query(k=k, value=task.value, options=task.options, excludes_self=b is None, memory_limit=task.memory_limit)
    found, pruning = find(pairs, corpus_of(pairs, query), query, prune, False)
    near = neighbours(found, pairs, task.options, pruning, full_output=True)
    return {
        "distances": like_chunk(a, pairs, near.distances),
        "indices": like_chunk(a, pairs, near.indices) + place.column,
    }


def merge_neighbours(found: list[dict[str, Array]], *, k: int) -> dict[str, Array]:
    """Return the k nearest of the neighbours in all chunks; equal distances come in the order of their indices."""
    distances, indices = (np.concatenate([part[name] for part in found], axis=1) for name in ("distances", "indices"))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # chunks, and neighbours in them, come in order
    return {name: np.take_along_axis(x, order, axis=1) for name, x in (("distances", distances), ("indices", indices))}
