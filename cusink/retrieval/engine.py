"""One search, whoever asks for it: it chooses how, by the kind of the pairs and by what may be left out."""

import dataclasses
from typing import TypeAlias

from cusink.retrieval import search
from cusink.retrieval.corpus import HistogramCorpus
from cusink.retrieval.documents import search as document_search
from cusink.retrieval.documents.corpus import DocumentCorpus
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.facts import solved_terms
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.query import Found, Query
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape
from cusink.workers import working

AnyPairs: TypeAlias = HistogramPairs | DocumentPairs
AnyCorpus: TypeAlias = HistogramCorpus | DocumentCorpus


def corpus_of(pairs: AnyPairs, query: Query) -> AnyCorpus:
    """Return what is to be known of the columns of pairs; nothing is computed yet."""
    value, options, limit = query.value, query.options, query.memory_limit
    if isinstance(pairs, DocumentPairs):
        return DocumentCorpus(template=pairs, value=value, options=options, memory_limit=limit)
    return HistogramCorpus(template=pairs, value=value, options=options, memory_limit=limit)


def prepare(corpus: AnyCorpus) -> None:
    """Find out now what searches will need of the columns."""
    query = Query(
        k=1,
        value=corpus.value,
        options=corpus.options,
        excludes_self=False,
        memory_limit=corpus.memory_limit,
        solve_at_most=1,
    )
    with working(None):
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
    return search.why_not_prune(pairs, query)


def _all(
    pairs: AnyPairs,
    corpus: AnyCorpus,
    query: Query,
    progress: search.Progress,
) -> Found:
    """Solve all pairs."""
    tile = tile_shape(pairs, query.memory_limit)
    theirs = solved_terms(corpus.terms, pairs.xp) if query.value == "divergence" else None
    given = theirs if pairs.A is pairs.B else None, theirs
    values = PairValues(pairs, query.value, query.options, tile[1], given, query.memory_limit)
    return search.search_all(values, query, tile, corpus.duplicates if len(corpus) else None, progress)
