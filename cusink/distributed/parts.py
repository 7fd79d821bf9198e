"""Parts of a collection, each an index, and a search that merges what is found in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import arrays, kind, promoted, to_host
from cusink.costs.kinds import named_arrays
from cusink.costs.measures import Measures
from cusink.distributed.jobs import Place, Task
from cusink.distributed.tasks import note_place, on_device
from cusink.retrieval import checks
from cusink.retrieval.collected import collect, is_wider, pairs_with
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.documents.corpus import DocumentCorpus
from cusink.retrieval.engine import find_on_devices
from cusink.retrieval.facts import Settings
from cusink.retrieval.masses import masses_of
from cusink.retrieval.neighbours import Neighbours, neighbours
from cusink.retrieval.query import Query
from cusink.retrieval.rows import parts_of
from cusink.retrieval.stored_index import in_common
from cusink.types import Array, HostArray
from cusink.workers import alone


@dataclass(frozen=True, kw_only=True)
class How:
    """How the parts are searched."""

    k: int
    prune: bool
    solve_at_most: int | None
    check: bool


@dataclass(frozen=True)
class FoundInPart:
    """The neighbours of all rows in a part, fewer than k if it has fewer items, and what is known of the other pairs.

    Where fewer have been looked at, `Neighbours.indices` is the number of items. `floor` (Q,) is the least value that a
    pair may have which was not solved.
    """

    near: Neighbours | None
    floor: HostArray


@alone
def part_of_chunk(
    B: Any,
    C: Any,
    mass: float | None,
    place: Place | None,
    dtype: Any,
    *,
    task: Task,
    make: Callable[..., Any],
    judged: Any = None,
) -> Any:
    """Return the index, which `make` makes, of a chunk of a collection, scaled to `mass`.

    Masses of arrays are judged by the dtype `judged`, that of the narrower of the collections.
    """
    B, C = on_device(task, B, C)
    if isinstance(B, np.ndarray) or not are_documents(B, None):
        B = _of_dtype(B, C, dtype)
    settings = Settings(
        eps=task.eps,
        value=task.value,
        options=task.options,
        memory_limit=task.memory_limit,
        on_empty="silent" if are_documents(B, None) else "nan",  # the call has spoken of them
        reach=task.reach,
        normalise=task.normalise,
        judged=None if judged is None or judged == dtype else str(judged),
    )
    check = task.check
    try:
        if check and mass is not None and settings.judged is not None:
            rows, xp, _ = arrays(B=B)
            masses = masses_of(task.normalise, task.reach)
            checks.normalised_rows("B", rows[0], mass, xp, check, np.dtype(settings.judged), masses=masses)
            check = False  # of values and masses; the call has checked the cost
        corpus = collect(B, C, settings, check, mass)
    except (TypeError, ValueError) as error:
        note_place(error, place)
        raise
    return make(corpus, C, settings)


def _of_dtype(B: Array, C: Any, dtype: Any) -> Array:
    """Return rows that give an index the dtype of the whole call."""
    _, _, own = promoted(B=B[:1], **named_arrays(C))
    return B if own == dtype else B.astype(dtype)


def facts_of(part: Any) -> tuple[int, dict[str, object]]:
    """Return the items of a part, and what all parts must have in common."""
    if not is_index(part):
        raise TypeError(f"'parts' must be cusink.Index or delayed calls that return one; got {kind(part)}")
    return len(part), in_common(part)


def is_index(part: object) -> bool:
    """Say whether this can be a part."""
    return all(hasattr(part, name) for name in ("search", "eps", "value", "tol", "reach", "dtype", "__len__"))


@alone
def search_part(
    A: Any, part: Any, size: int, how: How, candidates: HostArray | None = None, itself: bool = False
) -> FoundInPart:
    """Search one part for the neighbours of A, or `itself` for those of its own items.

    Of `candidates` (Q, c), numbers of items of the part, those that are negative or beyond its `size` are of no part.
    """
    _unchanged(part, size)
    k = min(how.k, size - itself)
    if k == 0:
        return FoundInPart(None, np.full(size, np.inf))
    if candidates is None:
        return FoundInPart(*_found(part, None if itself else A, k, how, None))
    inside = (candidates >= 0) & (candidates < size)
    looked = np.asarray(inside.any(axis=1))
    floor = np.full(len(looked), -np.inf)  # nothing is known of a part without candidates
    if not looked.any():
        return FoundInPart(None, floor)
    # Rows are filled up with one of their own candidates: taken twice, it is looked at once.
    own = np.take_along_axis(candidates, inside.argmax(axis=1)[:, None], axis=1)
    found, floor[looked] = _found(part, rows_of(A, looked), k, how, np.where(inside, candidates, own)[looked])
    return FoundInPart(spread(found, looked, size), floor)


def _unchanged(part: Any, size: int) -> None:
    """Check that a part still has as many items as the index knows of."""
    if len(part) != size:
        raise ValueError(
            f"'parts' must stay as they were when the index was made; a part of {size} items has {len(part)} now. Make "
            "another cusink.distributed.Index of them"
        )


@one_call
def _found(part: Any, A: Any, k: int, how: How, candidates: HostArray | None) -> tuple[Neighbours, HostArray]:
    corpus, settings = part._corpus, part._settings
    if is_wider(A, corpus):
        corpus, _, settings = part._in_float64()
    pairs = pairs_with(corpus, A, settings, how.check)
    query = Query(
        k=k,
        value=settings.value,
        options=settings.options,
        excludes_self=A is None,
        memory_limit=settings.memory_limit,
        solve_at_most=how.solve_at_most,
        candidates=candidates,
    )
    found, pruning = find_on_devices(pairs, corpus, query, how.prune, False, ())
    near = neighbours(found, pairs, settings.options, pruning, full_output=True)
    fields: dict[str, Any] = {name: to_host(x) if hasattr(x, "shape") else x for name, x in near.__dict__.items()}
    return Neighbours(**fields), found.certificate.floor


def rows_of(A: Any, chosen: HostArray) -> Any:
    """Return some rows of a collection of any kind."""
    if chosen.all():
        return A
    if isinstance(A, Measures):
        parts = [A[k : k + 1] for k in np.flatnonzero(chosen)]
        sizes = np.concatenate([np.diff(np.asarray(part.offsets)) for part in parts])
        weights, points = (np.concatenate([getattr(part, name) for part in parts]) for name in ("weights", "points"))
        return Measures(np.concatenate([[0], np.cumsum(sizes)]), weights, points)
    if are_documents(A, None):
        A = A.tocsr()
    return (A if hasattr(A, "shape") else np.asarray(A))[np.flatnonzero(chosen)]


def spread(found: Neighbours, rows: HostArray, nothing: int) -> Neighbours:
    """Return the neighbours of some `rows` as those of all, of which the others have none."""
    if rows.all():
        return found
    fields: dict[str, Any] = dict(found.__dict__)
    for name, empty in (("distances", np.inf), ("indices", nothing), ("error", np.inf), ("converged", False)):
        part = fields[name]
        fields[name] = np.full((len(rows), part.shape[1]), empty, part.dtype)
        fields[name][rows] = part
    for name, empty in (("proved", False), ("undercut", np.inf)):
        part, fields[name] = fields[name], np.full(len(rows), empty)
        fields[name][rows] = part
    return Neighbours(**fields)


def merged(found: list[FoundInPart], sizes: list[int], k: int) -> Neighbours:
    """Return the k nearest of the neighbours in all parts; equal distances come in the order of their indices."""
    firsts = np.cumsum([0, *sizes[:-1]])
    parts = [(part.near, size, first) for part, size, first in zip(found, sizes, firsts, strict=True) if part.near]
    fields = {
        name: np.concatenate([getattr(near, name) for near, _, _ in parts], axis=1)
        for name in ("distances", "error", "converged")
    }
    fields["indices"] = np.concatenate([near.indices + first for near, _, first in parts], axis=1)
    missing = np.concatenate([near.indices == size for near, size, _ in parts], axis=1)
    # Parts, and neighbours in them, come in order; values of NaN after all others, and what is missing last.
    order = np.lexsort((fields["distances"], missing), axis=1)[:, :k]
    best = {name: np.take_along_axis(x, order, axis=1) for name, x in fields.items()}
    kth, floor = best["distances"][:, -1].astype(float), np.min([part.floor for part in found], axis=0)
    proved = (floor > kth) | (floor == np.inf)
    with np.errstate(invalid="ignore"):
        short = np.maximum(kth - floor, 0)
    return Neighbours(
        **best,
        bounded=sum(near.bounded for near, _, _ in parts),
        started=sum(near.started for near, _, _ in parts),
        finished=sum(near.finished for near, _, _ in parts),
        pruning=parts[0][0].pruning,
        proved=proved,
        undercut=np.where(proved, 0, np.where(np.isnan(short), np.inf, short)),
    )


@alone
def items_of(part: Any) -> Any:
    """Return the items of an index as a collection that another index can be searched for."""
    corpus = part._corpus
    if isinstance(corpus, DocumentCorpus):
        if corpus.measures is not None:
            return corpus.measures
        from scipy import sparse

        rows = corpus.B
        shape = (len(rows), corpus.template.C.shape[-1])
        return sparse.csr_array((rows.weights.astype(part.dtype), rows.places, rows.offsets), shape=shape)
    weights = [rows.weights for rows in parts_of(corpus.B)]
    return weights[0] if len(weights) == 1 else corpus.template.xp.concatenate(weights)


@alone
def grown(part: Any, size: int, B: Any, check: bool) -> Any:
    """Return an index with further items, which leaves the one that was as it is."""
    _unchanged(part, size)
    more = type(part)._of(part._corpus, part._cost, part._settings)
    more.add(B, check=check)
    return more


@alone
def widened(part: Any, size: int) -> Any:
    """Return an index of float32 as one of float64, as items of float64 make the part that they are added to."""
    _unchanged(part, size)
    return type(part)._of(*part._in_float64())
