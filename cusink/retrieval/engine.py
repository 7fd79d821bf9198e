"""One search, whoever asks for it: it chooses how, by the kind of the pairs and by what may be left out."""

import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from cusink.retrieval import bounding, search
from cusink.retrieval.blocks import blocks
from cusink.retrieval.corpus import HistogramCorpus
from cusink.retrieval.documents import search as document_search
from cusink.retrieval.documents.corpus import DocumentCorpus
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.facts import solved_terms
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.query import Certificate, Counts, Found, Query
from cusink.retrieval.ranking import TopK
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape
from cusink.solver.prices import alike
from cusink.types import ArrayModule
from cusink.workers import each, working

BLOCKS_PER_DEVICE = 2  # of rows, so that a fast device may take more

AnyPairs: TypeAlias = HistogramPairs | DocumentPairs
AnyCorpus: TypeAlias = HistogramCorpus | DocumentCorpus


def corpus_of(pairs: AnyPairs, query: Query) -> AnyCorpus:
    """Return what is to be known of the columns of pairs; nothing is computed yet."""
    value, options, limit = query.value, query.options, query.memory_limit
    if isinstance(pairs, DocumentPairs):
        return DocumentCorpus(template=pairs, value=value, options=options, memory_limit=limit)
    return HistogramCorpus(template=pairs, value=value, options=options, memory_limit=limit)


def prepare(corpus: AnyCorpus, workers: int | None = None) -> None:
    """Find out now what searches will need of the columns, on so many threads."""
    query = Query(
        k=1,
        value=corpus.value,
        options=corpus.options,
        excludes_self=False,
        memory_limit=corpus.memory_limit,
        solve_at_most=1,
    )
    with working(workers):
        corpus.prepare(bounded=why_not_prune(corpus.template, query) is None)


def find(
    pairs: AnyPairs,
    corpus: AnyCorpus,
    query: Query,
    prune: bool,
    progress: bool,
) -> tuple[Found, str]:
    """Return the neighbours, and which pairs were left out: the text of `Neighbours.pruning`."""
    reason = why_not_prune(pairs, query) if prune else "not asked for"
    limited = query.candidates is not None
    if query.solve_at_most is not None and reason:
        if query.solve_at_most < pairs.shape[1]:
            raise ValueError(
                "'solve_at_most' must leave room for all pairs where no lower bound says which of them matter: "
                f"{pairs.shape[1]} for each row; got {query.solve_at_most}. There is no bound here: {reason}"
            )
        query = dataclasses.replace(query, solve_at_most=None)
    if reason and not limited:
        # Equal columns would be solved in two roles, were one triangle to stand for both.
        if pairs.symmetric and (corpus.duplicates.any or query.rows is not None):
            pairs = dataclasses.replace(pairs, symmetric=False)
    total = pair_count(pairs) if reason and not limited else pairs.shape[0] * pairs.shape[1]
    with progress_bar(total, 0, progress) as bar:
        if isinstance(pairs, DocumentPairs) and isinstance(corpus, DocumentCorpus) and (limited or not reason):
            found = document_search.search_documents(pairs, corpus, query, not reason, bar.update)
            return found, f"none: {reason}" if reason else "words"
        if isinstance(pairs, HistogramPairs) and isinstance(corpus, HistogramCorpus) and (limited or not reason):
            look = search.search_listed if reason else search.search_pruned
            return look(pairs, corpus, query, bar.update), f"none: {reason}" if reason else "dual"
        return _all(pairs, corpus, query, bar.update), f"none: {reason}"


def why_not_prune(pairs: AnyPairs, query: Query) -> str | None:
    """Return why no pair can be left out, or None if some may."""
    if isinstance(pairs, DocumentPairs):
        return document_search.why_not_prune(pairs, query)
    return bounding.why_not_prune(pairs, query)


def _all(
    pairs: AnyPairs,
    corpus: AnyCorpus,
    query: Query,
    progress: search.Progress,
) -> Found:
    """Solve all pairs."""
    tile = tile_shape(pairs, query.memory_limit)
    theirs = solved_terms(corpus.terms, pairs.xp) if query.value == "divergence" else None
    given = theirs if pairs.A is pairs.B and alike(pairs.reach) else None, theirs
    values = PairValues(pairs, query.value, query.options, tile[1], given, query.memory_limit)
    return search.search_all(values, query, tile, corpus.duplicates if len(corpus) else None, progress)


def find_on_devices(
    pairs: AnyPairs, corpus: AnyCorpus, query: Query, prune: bool, progress: bool, devices: tuple[int, ...]
) -> tuple[Found, str]:
    """Return what `find` does, on some devices, or for () on the one of the arrays."""
    if not devices:
        return find(pairs, corpus, query, prune, progress)
    if not (isinstance(pairs, HistogramPairs) and isinstance(corpus, HistogramCorpus)):
        raise ValueError("'devices' must be None for documents: histograms alone are shared out to GPUs. Leave it out")
    xp, own = pairs.xp, pairs.xp.cuda.Device()
    corpus.prepare(bounded=prune and why_not_prune(pairs, query) is None)
    facts, (height, width) = corpus.facts(), pairs.shape
    todo = list(blocks(height, max(1, -(-height // (BLOCKS_PER_DEVICE * len(devices))))))
    own.synchronize()  # other streams read what the caller's may still be writing
    best, counts, certificate, reasons = TopK(height, query.k, width), Counts(), Certificate(height), {""}
    numbers, failed, merging = itertools.count(), threading.Event(), threading.Lock()

    def serve(device: int, update: Callable[[int], Any]) -> None:
        with xp.cuda.Device(device), xp.cuda.Stream(non_blocking=True) as stream:
            mine, theirs = pairs, corpus
            if device != own.id:
                seen: dict[int, Any] = {}
                mine = brought(pairs, xp, seen)
                theirs = dataclasses.replace(corpus, template=brought(corpus.template, xp, seen), before=facts)
            while not failed.is_set() and (k := next(numbers)) < len(todo):
                found, why = find(mine, theirs, dataclasses.replace(query, rows=todo[k]), prune, False)
                stream.synchronize()
                with merging:
                    best.take(todo[k], found.best)
                    counts.add(
                        bounded=found.counts.bounded,
                        started=found.counts.started,
                        finished=found.counts.finished,
                        misses=found.counts.misses,
                    )
                    certificate.take(todo[k], found.certificate)
                    reasons.add(why)
                    update((todo[k].stop - todo[k].start) * width)

    def serve_or_stop(device: int) -> None:
        try:
            serve(device, bar.update)
        except BaseException:
            failed.set()
            raise

    with progress_bar(height * width, 0, progress) as bar, working(len(devices)):
        each(serve_or_stop, [(device,) for device in devices])
    return Found(best, counts, certificate), max(reasons)


def brought(x: Any, xp: ArrayModule, seen: dict[int, Any]) -> Any:
    """Return a copy on the current device of an array, or of what holds arrays; anything else as it is.

    What is one object stays one: `seen` has the copies by the identity of what they were made of.
    """
    if id(x) in seen:
        return seen[id(x)]
    out = x
    if isinstance(x, xp.ndarray):
        out = x.copy()
    elif isinstance(x, tuple):
        parts = [brought(part, xp, seen) for part in x]
        out = type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        given = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
        copies = {name: brought(part, xp, seen) for name, part in given.items()}
        moved = any(copies[name] is not part for name, part in given.items())
        out = dataclasses.replace(x, **copies) if moved else x
    seen[id(x)] = out
    return out
