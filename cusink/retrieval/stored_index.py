"""An index as a folder of arrays, and back."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cusink.backends.devices import cupy_module
from cusink.checks.arrays import kind, to_host
from cusink.convergence.options import Options
from cusink.costs.clouds import PointCloud
from cusink.costs.grid import Grid
from cusink.costs.kinds import kind_of, named_arrays
from cusink.costs.measures import Measures
from cusink.costs.metric import Metric, metric_of
from cusink.operand import operand
from cusink.retrieval import checks
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.budget import kernel_share
from cusink.retrieval.corpus import HistogramCorpus, of_histograms
from cusink.retrieval.described import Described
from cusink.retrieval.documents.checks import check_corpus
from cusink.retrieval.documents.corpus import DocumentCorpus, of_documents
from cusink.retrieval.documents.supports import CheckedDocuments, RaggedWeights
from cusink.retrieval.facts import Facts, Settings
from cusink.retrieval.masses import masses_of
from cusink.retrieval.paths import is_path, usable_path
from cusink.retrieval.rows import parts_of
from cusink.retrieval.storage.folder import Parts, canonical, read_folder, write_folder
from cusink.retrieval.storage.ledger import fingerprint
from cusink.solver.checks import reach as prices
from cusink.types import HostArray
from cusink.version import __version__

AnyCorpus: TypeAlias = HistogramCorpus | DocumentCorpus
FACTS = ("digests", "bins", "entropies", "terms", "centres")  # that are arrays
MATRICES = ("factor", "table")  # that belong to a metric


def save(path: object, corpus: AnyCorpus, C: Any, settings: Settings, overwrite: bool) -> None:
    """Write an index of the cost `C`, as the user passed it."""
    write_folder(_folder(path), *_packed(corpus, C, settings), overwrite)


def load(path: object, mmap: bool, verify: bool, xp: Any) -> tuple[AnyCorpus, Any, Settings]:
    """Return the corpus, the cost and the settings of an index, with arrays of the library `xp`."""
    return unpacked(*read_folder(_folder(path), mmap, verify), xp)


def in_common(index: Described) -> dict[str, object]:
    """Return what indexes must have in common for their distances to be compared, by name."""
    named = {name: getattr(index, name) for name in ("value", "eps", "tol", "reach")}
    cost = _word_for(index._cost, index._corpus)
    return named | {"normalise": index._settings.normalise, "dtype": str(index.dtype), "cost": cost}


def _folder(path: object) -> Path:
    if not is_path(path):
        raise TypeError(f"'path' must be the name of a folder; got {kind(path)}")
    return usable_path("path", path)


def in_memory(corpus: AnyCorpus, C: Any, settings: Settings) -> tuple[dict[str, Any], dict[str, HostArray]]:
    """Return an index as a description and arrays in NumPy, as `unpacked` takes them."""
    description, arrays = _packed(corpus, C, settings)
    return description, {name: np.concatenate(list(parts.blocks)) for name, parts in arrays.items()}


def out_of_memory(
    of: Callable[..., Described],
    description: dict[str, Any],
    arrays: dict[str, HostArray],
    device: str,
    library: str = "",
) -> Described:
    """Return the index of what `in_memory` gave, made by `of`, on a device and for a library."""
    index = of(*unpacked(description, arrays, np if device == "cpu" else cupy_module()))
    index._library = library
    return index


def _packed(corpus: AnyCorpus, C: Any, settings: Settings) -> tuple[dict[str, Any], dict[str, Parts]]:
    """Return what describes an index, in JSON's types, and its arrays by name."""
    dtype = np.dtype(corpus.template.dtype)
    if dtype.name not in checks.DTYPES_ON_DISK:
        raise TypeError(
            f"an index on disk holds {', '.join(checks.DTYPES_ON_DISK)}; this one has {dtype}. Build it of float32"
        )
    facts = corpus.facts()
    arrays = _items(corpus) | {name: _whole(getattr(facts, name)) for name in FACTS if getattr(facts, name) is not None}
    cost: Any = C
    if not isinstance(C, str):
        cost, of_cost = _described(C, corpus)
        arrays |= of_cost
    description = {
        "cusink": __version__,
        "kind": _kind(corpus),
        "items": len(corpus),
        "dtype": dtype.name,
        "cost": cost,
        "eps": settings.eps,
        "value": settings.value,
        "options": dataclasses.asdict(settings.options),
        "memory_limit": settings.memory_limit,
        "on_empty": settings.on_empty,
        "reach": None if settings.reach is None else [rho if rho < math.inf else None for rho in settings.reach],
        "normalise": settings.normalise,
        "auto": settings.auto,
        "judged": settings.judged,
        "mass": corpus.mass if corpus.mass == corpus.mass else None,
        "smallest": facts.smallest,
    }
    return description, arrays


def unpacked(given: dict[str, Any], arrays: dict[str, HostArray], xp: Any) -> tuple[AnyCorpus, Any, Settings]:
    """Return the corpus, the cost and the settings of an index from what describes it, with arrays of `xp`."""
    settings = Settings(
        eps=given["eps"],
        value=given["value"],
        options=Options(**given["options"]),
        memory_limit=given["memory_limit"],
        on_empty=given["on_empty"],
        reach=prices(given["reach"]),
        normalise=given["normalise"],
        auto=given.get("auto", False),
        judged=given.get("judged"),
    )
    facts = Facts(
        given["items"], smallest=given["smallest"], **{name: arrays[name] for name in FACTS if name in arrays}
    )
    if given["kind"] == "measures":
        own = (xp.asarray(arrays[name]) for name in ("weights", "points"))
        measures = Measures(arrays["offsets"], *own)
        C = _metric(given["cost"], arrays)
        documents = check_corpus(measures, C, eps=settings.eps, check=False, on_empty="silent")
        return of_documents(documents, settings, measures, metric_of(C), facts), C, settings
    C = _restored(given["cost"], arrays, xp)
    dtype = np.dtype(given["dtype"])
    parts = [x.astype(np.float32 if dtype.name == "float16" else dtype, copy=False) for x in named_arrays(C).values()]
    limit = kernel_share(settings.memory_limit)
    cost = operand(C, xp, dtype, parts, limit if given["kind"] == "histograms" else None, batch=False)
    if given["kind"] == "sparse":
        items = RaggedWeights(*(arrays[name] for name in ("offsets", "weights", "places")))
        documents = CheckedDocuments(A=items, B=items, C=cost, xp=xp, dtype=dtype)
        return of_documents(documents, settings, None, None, facts), C, settings
    rows = checks.NormalisedRows(xp.asarray(arrays["weights"]), xp.asarray(arrays["factors"]))
    mass = math.nan if given["mass"] is None else given["mass"]
    masses = masses_of(settings.normalise, settings.reach)
    return of_histograms(checks.CheckedCorpus(rows, cost, dtype, mass, masses), settings, facts), C, settings


def _kind(corpus: AnyCorpus) -> str:
    if not isinstance(corpus, DocumentCorpus):
        return "histograms"
    return "sparse" if corpus.measures is None else "measures"


def _whole(array: Any) -> Parts:
    array = to_host(array)
    return Parts([array], array.shape, array.dtype)


def _items(corpus: AnyCorpus) -> dict[str, Parts]:
    """Return the arrays that the items consist of."""
    if isinstance(corpus, DocumentCorpus):
        own = corpus.B if corpus.measures is None else corpus.measures
        names = ("offsets", "weights", "places" if corpus.measures is None else "points")
        return {name: _whole(getattr(own, name)) for name in names}
    parts, first = parts_of(corpus.B), parts_of(corpus.B)[0]

    def read(name: str) -> Iterator[HostArray]:
        for part in parts:
            array = getattr(part, name)
            yield from (to_host(array[rows]) for rows in blocks(len(array), ROWS_PER_BLOCK))

    shape = (len(corpus), int(first.weights.shape[1]))
    return {
        "weights": Parts(read("weights"), shape, first.weights.dtype),
        "factors": Parts(read("factors"), shape[:1], first.factors.dtype),
    }


def _described(C: Any, corpus: AnyCorpus) -> tuple[dict[str, Any], dict[str, Parts]]:
    """Return a cost in JSON's types, and its arrays."""
    if isinstance(C, Metric):
        factor = C.ground.factor
        return {"kind": "metric", "name": C.name} | C.options, {} if factor is None else {"factor": _whole(factor)}
    kind = "dense" if corpus.template.C.stored else kind_of(C)  # a grid of documents is an array, too
    if kind == "grid":
        names = ("cells", "metric", "spacing", "periodic")
        return {"kind": kind} | {name: getattr(C, name) for name in names}, {}
    if kind in ("points", "blocks"):
        if callable(C.metric):
            raise TypeError("'C' must have a metric with a name for an index that is saved; got one that is a function")
        one = C.x is C.y
        arrays = {"x": _whole(C.x)} | ({} if one else {"y": _whole(C.y)})
        arrays |= {name: _whole(getattr(C.ground, name)) for name in MATRICES if getattr(C.ground, name) is not None}
        if C.labels is not None:
            arrays |= {f"labels_{side}": _whole(own) for side, own in zip("xy", C.labels, strict=True)}
        words = {"metric": C.metric, "power": C.power, "tf32": C.tf32, "p": C.ground.p, "radius": C.ground.radius}
        return {"kind": kind, "one": one} | words, arrays
    return {"kind": kind}, {"C": _whole(corpus.template.C.data)}


def _word_for(C: Any, corpus: AnyCorpus) -> str | None:
    """Return a word that equal costs share, for a cost as the user passed it; None where its metric is a function."""
    if isinstance(C, str):
        C = metric_of(C)
    if isinstance(C, Metric) and repr(C) == f"Metric({C.name!r})":  # no option is set: its name says all
        return C.name
    if callable(getattr(C, "metric", None)):
        return None
    description, parts = _described(C, corpus)
    arrays = {name: next(iter(part.blocks)) for name, part in parts.items()}
    if description.pop("one", False):  # one cloud for both sides has the costs of two equal ones
        arrays["y"] = arrays["x"]
    description.pop("tf32", None)
    word = fingerprint((canonical(description), *(x for item in sorted(arrays.items()) for x in item)))
    assert word is not None
    return word[:8]


def _metric(cost: Any, arrays: dict[str, HostArray]) -> Any:
    """Return the metric of measures as the user passed it."""
    if isinstance(cost, str):
        return cost
    return Metric(cost["name"], factor=arrays.get("factor"), **{name: cost[name] for name in ("power", "p", "radius")})


def _restored(cost: dict[str, Any], arrays: dict[str, HostArray], xp: Any) -> Any:
    """Return a cost as the user passed it."""
    if cost["kind"] == "grid":
        axes = (tuple(cost[name]) for name in ("cells", "spacing", "periodic"))
        cells, spacing, periodic = axes
        return Grid(cells, cost["metric"], spacing=spacing, periodic=periodic)
    if cost["kind"] in ("points", "blocks"):
        x = xp.asarray(arrays["x"])
        y = None if cost["one"] else xp.asarray(arrays["y"])
        labels = [arrays.get(f"labels_{side}") for side in "xy"]
        given = {name: cost.get(name) for name in ("p", "radius")} | {name: arrays.get(name) for name in MATRICES}
        given["labels"] = None if labels[0] is None else labels[0] if cost["one"] else labels
        return PointCloud(x, y, cost["metric"], power=cost["power"], tf32=cost["tf32"], **given)
    return xp.asarray(arrays["C"])
