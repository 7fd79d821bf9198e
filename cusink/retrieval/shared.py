"""A search shared out to the GPUs of one process: each looks for some of the rows, among a copy of all columns."""

import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

from cusink.retrieval.blocks import blocks
from cusink.retrieval.corpus import HistogramCorpus
from cusink.retrieval.engine import AnyCorpus, AnyPairs, find, why_not_prune
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.query import Certificate, Counts, Found, Query
from cusink.retrieval.ranking import TopK
from cusink.types import ArrayModule
from cusink.workers import each, working

BLOCKS_PER_DEVICE = 2  # of rows, so that a fast device may take more


def find_on_devices(
    pairs: AnyPairs, corpus: AnyCorpus, query: Query, prune: bool, progress: bool, devices: tuple[int, ...]
) -> tuple[Found, str]:
    """Return what `cusink.retrieval.engine.find` does, on some devices, or for () on the one of the arrays."""
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
