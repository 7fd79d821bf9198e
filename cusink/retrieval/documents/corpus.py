"""What a search knows of the columns alone, where these have supports of their own; see `cusink.retrieval.corpus`."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.measures import Measures, sums
from cusink.costs.metric import Metric
from cusink.deferred import cached_property
from cusink.retrieval.documents.checks import check_more, check_pairs_of_measures, partners
from cusink.retrieval.documents.pairs import DocumentPairs, entropies_of
from cusink.retrieval.documents.supports import CheckedDocuments, RaggedWeights
from cusink.retrieval.documents.tiles import PaddedDocuments, Words
from cusink.retrieval.facts import DIGEST_BYTES, Digested, Facts, Settings, self_terms
from cusink.retrieval.tiles import tile_shape
from cusink.types import HostArray, MatrixValue


@dataclass(frozen=True, eq=False, kw_only=True)
class DocumentCorpus(Digested):
    """The columns of `template`, pairs with any rows, and the facts about them that searches for one value need.

    Of `Measures`, the columns as they came and the metric are kept too: their cost is made anew with each query.
    """

    template: DocumentPairs
    value: MatrixValue
    options: Options
    memory_limit: int | None
    measures: Measures | None = None
    metric: Metric | None = None
    before: Facts = Facts(0)

    @property
    def B(self) -> RaggedWeights:
        """The columns."""
        return self.template.B

    def __len__(self) -> int:
        return len(self.template.B)

    @cached_property
    def mass(self) -> float | None:
        """The mass of the items, None if all are empty."""
        mass = sums(self.B.offsets, self.B.weights)
        return next((float(one) for one in mass if one > 0), None)

    def with_rows(self, A: Any, check: bool, settings: Settings) -> DocumentPairs:
        """Return the pairs of rows as the user gave them, None for the columns themselves, with all columns."""
        C, B, t = self.template.C, self.B, self.template
        rules = (check, settings.on_empty, settings.normalise, settings.judged)
        if A is None:
            given = CheckedDocuments(A=B, B=B, C=C, xp=C.xp, dtype=t.dtype)
        elif self.measures is None:
            index = CheckedDocuments(A=B, B=B, C=C, xp=C.xp, dtype=t.dtype)
            own = check_more("A", A, index, 0, self.mass, *rules)
            given = dataclasses.replace(index, A=own)
        else:
            given = check_pairs_of_measures("A", A, self.measures, B, self.metric, self.mass, t.dtype, *rules)
        if check:
            partners(given.A, given.B, given.C)
        return DocumentPairs.of(given, t.eps, self.memory_limit)

    def facts(self) -> Facts:
        """Return what has been found so far."""
        return Facts(len(self), digests=self.__dict__.get("digests"), terms=self.__dict__.get("terms"))

    def followed_by(self, template: DocumentPairs, measures: Measures | None) -> Self:
        """Return the corpus of the columns of `template`, which begin with those of this one."""
        return dataclasses.replace(self, template=template, measures=measures, before=self.facts())

    def prepare(self, bounded: bool) -> None:
        """Find out now what searches need, those that are `bounded` or those that solve all pairs."""
        _ = self.duplicates
        if self.value == "divergence":
            _ = self.terms
        if bounded:
            _ = self.words, self.smallest
            if self.value == "entropic_cost":
                _ = self.entropies

    @cached_property
    def digests(self) -> HostArray:
        """Digests (D, 16) of the columns."""
        known = self.before.digests
        start = 0 if known is None else self.before.columns
        new = np.frombuffer(b"".join(self.template.digests(1, start)), np.uint8).reshape(-1, DIGEST_BYTES)
        return new if known is None else np.concatenate([known, new])

    @cached_property
    def entropies(self) -> HostArray:
        """The entropies (D,) of the columns, 0 for an empty one."""
        return entropies_of(self.B)

    @cached_property
    def terms(self) -> HostArray:
        """The columns, each with itself, as `self_terms` returns them."""
        known = self.before.terms
        start = 0 if known is None else self.before.columns
        if start == len(self) and known is not None:
            return known
        new = self_terms(self.template, 1, self.options, self.width, self.memory_limit, start)
        return new if known is None else np.concatenate([known, new])

    @property
    def width(self) -> int:
        """How many items are solved with themselves at once; each does so alone."""
        return tile_shape(self.template, self.memory_limit)[1]

    @cached_property
    def smallest(self) -> float:
        """The smallest weight of the columns."""
        return float(self.B.weights.min())

    @cached_property
    def kept(self) -> HostArray:
        """The columns that are not empty."""
        return np.flatnonzero(self.B.sizes)

    @cached_property
    def documents(self) -> PaddedDocuments:
        """The columns that are not empty, as arrays."""
        return PaddedDocuments.of(self.B, self.kept, self.template.C.shape[-1])

    @cached_property
    def words(self) -> Words:
        """The words of the columns."""
        places = np.searchsorted(self.documents.used, self.B.places)
        return Words(places, self.B.weights, self.B.offsets[self.kept])


def of_documents(
    given: CheckedDocuments,
    settings: Settings,
    measures: Measures | None,
    metric: Metric | None,
    facts: Facts | None = None,
) -> DocumentCorpus:
    """Return the corpus of checked documents, or of measures."""
    return DocumentCorpus(
        template=DocumentPairs.of(given, float(settings.eps), settings.memory_limit),
        value=settings.value,
        options=settings.options,
        memory_limit=settings.memory_limit,
        measures=measures,
        metric=metric,
        before=Facts(0) if facts is None else facts,
    )
