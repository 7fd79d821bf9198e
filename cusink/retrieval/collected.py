"""The items of an index: they are taken in, added to, and made into pairs with what is looked for."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from cusink.checks.arrays import array_module, kind, to_host
from cusink.checks.scalars import flag, one_of, regularisation, tolerance
from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.costs.kinds import named_arrays, with_arrays
from cusink.costs.measures import Measures, sums
from cusink.costs.metric import is_metric, metric_of
from cusink.costs.metric import kept as own_metric
from cusink.operand import operand
from cusink.retrieval import checks
from cusink.retrieval.budget import kernel_share
from cusink.retrieval.collections import ON_EMPTY
from cusink.retrieval.corpus import HistogramCorpus, of_histograms
from cusink.retrieval.documents.checks import (
    are_documents,
    check_corpus,
    check_more,
    check_pairs_of_measures,
)
from cusink.retrieval.documents.corpus import DocumentCorpus, of_documents
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.documents.supports import CheckedDocuments, RaggedWeights
from cusink.retrieval.facts import Settings
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.masses import masses_of, without_reach
from cusink.retrieval.partners import partners
from cusink.retrieval.rows import joined, parts_of
from cusink.types import Array, HostArray, Reach

AnyPairs: TypeAlias = HistogramPairs | DocumentPairs
AnyCorpus: TypeAlias = HistogramCorpus | DocumentCorpus
WIDE = np.dtype(np.float64)


def check_settings(
    eps: float,
    value: Any,
    options: Options,
    memory_limit: int | None,
    on_empty: Any,
    reach: Reach | None,
    normalise: bool,
    auto: bool,
) -> Settings:
    """Return what an index is for, checked."""
    one_of("value", value, checks.ALL_VALUES)
    one_of("on_empty", on_empty, ON_EMPTY)
    return Settings(
        eps=regularisation(eps),
        value=value,
        options=options,
        memory_limit=checks.memory_limit(memory_limit),
        on_empty=on_empty,
        reach=reach,
        normalise=flag("normalise", normalise),
        auto=auto,
    )


def collect(B: Any, C: Any, settings: Settings, check: bool, mass: float | None = None) -> AnyCorpus:
    """Return the corpus of items as the user passes them, who may change them afterwards.

    They are scaled to `mass`, if it is given, and else to that of the first one.
    """
    if are_documents(B, None):
        if settings.normalise and isinstance(B, Measures):
            B = B.normalised()
        measures = Measures(*map(own, (B.offsets, B.weights, B.points))) if isinstance(B, Measures) else None
        without_reach(settings.reach)
        rules: dict[str, Any] = {"on_empty": settings.on_empty, "normalise": settings.normalise, "first": mass}
        given = check_corpus(B, C, eps=settings.eps, check=check, **rules)
        return of_documents(given, settings, measures, None if measures is None else own_metric(metric_of(C)))
    limit = kernel_share(settings.memory_limit)
    masses = masses_of(settings.normalise, settings.reach)
    histograms = checks.corpus(B, C, eps=settings.eps, check=check, memory_limit=limit, masses=masses, mass=mass)
    rows = histograms.B
    assert isinstance(rows, checks.NormalisedRows)
    return of_histograms(dataclasses.replace(histograms, B=kept(rows), C=_kept_cost(histograms.C)), settings)


def pairs_with(corpus: AnyCorpus, A: Any, settings: Settings, check: bool) -> AnyPairs:
    """Return the pairs of queries as the user passes them, None for the items themselves, with all items."""
    if A is None and corpus.template.C.shape[0] != corpus.template.C.shape[1]:
        raise ValueError(
            f"'A' must be given with a 'C' that is not square; got None, and 'C' of shape {corpus.template.C.shape}"
        )
    if isinstance(corpus, DocumentCorpus):
        return corpus.with_rows(A, check, settings)
    if A is None:
        rows = None
    else:
        if are_documents(A, None):
            raise TypeError(f"'A' must be an array of histograms like the items of the index; got {kind(A)}")
        rows = checks.rows_like("A", A, _checked(corpus), 0, check, settings.judged)
    pairs = corpus.with_rows(rows)
    if check:
        partners(pairs.A, pairs.B, pairs.C, pairs.reach)
    return pairs


def grown(corpus: AnyCorpus, B: Any, settings: Settings, check: bool) -> AnyCorpus:
    """Return the corpus of its items and of more, as the user passes them."""
    if isinstance(corpus, HistogramCorpus):
        if are_documents(B, None):
            raise TypeError(f"'B' must be an array of histograms like the items of the index; got {kind(B)}")
        rows = kept(checks.rows_like("B", B, _checked(corpus), 1, check, settings.judged))
        return corpus.with_columns(joined(corpus.B, rows))
    template, rules = corpus.template, (check, settings.on_empty, settings.normalise, settings.judged)
    both = CheckedDocuments(A=corpus.B, B=corpus.B, C=template.C, xp=template.C.xp, dtype=template.dtype)
    if corpus.measures is None:
        items = check_more("B", B, both, 1, corpus.mass, *rules)
        every = _followed(corpus.B, items)
        both = dataclasses.replace(both, A=every, B=every)
        return corpus.followed_by(DocumentPairs.of(both, template.eps, settings.memory_limit), None)
    metric, old = corpus.metric, corpus.measures
    check_pairs_of_measures("B", B, old, corpus.B, metric, corpus.mass, template.dtype, *rules)
    measures = _joined_measures(old, B.normalised() if settings.normalise else B)
    both = check_corpus(measures, metric, eps=settings.eps, check=False, on_empty="silent")
    return corpus.followed_by(DocumentPairs.of(both, template.eps, settings.memory_limit), measures)


def own(array: Array) -> Array:
    """Return a copy of an array that its owner may write to, and any other array itself."""
    flags = getattr(array, "flags", None)
    return array.copy() if getattr(flags, "writeable", True) else array


def kept(rows: checks.NormalisedRows) -> checks.NormalisedRows:
    """Return rows that nobody else may write to."""
    return checks.NormalisedRows(own(rows.weights), rows.factors)


def _kept_cost(C: Cost[Any]) -> Cost[Any]:
    return dataclasses.replace(C, data=own(C.data)) if C.stored else C


def _checked(corpus: HistogramCorpus) -> checks.CheckedCorpus:
    return checks.CheckedCorpus(corpus.B, corpus.template.C, corpus.template.dtype, corpus.mass, corpus.masses)


def _followed(items: RaggedWeights, more: RaggedWeights) -> RaggedWeights:
    """Return the items of two collections."""
    return RaggedWeights(
        np.concatenate([items.offsets, items.offsets[-1] + more.offsets[1:]]),
        np.concatenate([items.weights, more.weights]),
        np.concatenate([items.places, more.places]),
    )


def _joined_measures(items: Measures, more: Measures) -> Measures:
    xp = array_module(items.points)
    offsets = np.concatenate([items.offsets, items.offsets[-1] + to_host(more.offsets)[1:]])
    weights = xp.concatenate([items.weights, more.weights])
    return Measures(offsets, weights, xp.concatenate([items.points, more.points]))


def is_wider(x: Any, corpus: AnyCorpus) -> bool:
    """Return whether what the user passes is in float64, and the items in float32."""
    if corpus.template.dtype != np.float32:
        return False
    parts = (x.weights, x.points) if isinstance(x, Measures) else (x,)
    return any(str(getattr(part, "dtype", "")) == WIDE.name for part in parts)  # NumPy takes None for its name, too


def in_float64(corpus: AnyCorpus, C: Any, settings: Settings) -> tuple[AnyCorpus, Any, Settings]:
    """Return the items, the cost and the settings of an index of float32 as those of one of float64.

    Masses are judged as those of float32 still, whose digits they have. A tolerance that was left to the dtype is that
    of float64.
    """
    options = settings.options
    if settings.auto:
        options = dataclasses.replace(options, tol=tolerance("auto", np.empty(0)))
    settings = dataclasses.replace(settings, options=options, judged=str(corpus.template.dtype))
    if not is_metric(C):
        C = corpus.template.C.data if corpus.template.C.stored else C
        C = with_arrays(C, lambda array: array.astype(WIDE))
    if not isinstance(corpus, DocumentCorpus):
        return collect(_rows(corpus.B), C, settings, check=False), C, settings
    if corpus.measures is not None:
        own = (array.astype(WIDE) for array in (corpus.measures.weights, corpus.measures.points))
        return collect(Measures(corpus.measures.offsets, *own), C, settings, check=False), C, settings
    xp, items = corpus.template.xp, RaggedWeights(corpus.B.offsets, _of_one_mass(corpus), corpus.B.places)
    cost = operand(C, xp, WIDE, list(named_arrays(C).values()), batch=False)
    given = CheckedDocuments(A=items, B=items, C=cost, xp=xp, dtype=WIDE)
    return of_documents(given, settings, None, None), C, settings


def _rows(rows: Any) -> Array:
    """Return the weights of histograms in float64; nobody writes to them, so that they need no copy."""
    parts = parts_of(rows)
    xp = array_module(parts[0].weights)
    weights = xp.concatenate([part.weights for part in parts], dtype=WIDE)
    if xp is np:
        weights.flags.writeable = False
    return weights


def _of_one_mass(corpus: DocumentCorpus) -> HostArray:
    """Return the weights of documents, which have the mass of the index to the digits of float64."""
    weights = corpus.B.weights.astype(WIDE)
    mass = sums(corpus.B.offsets, weights)
    wanted = 1.0 if corpus.mass is None else corpus.mass
    return weights * np.repeat(wanted / np.where(mass > 0, mass, 1), corpus.B.sizes)
