"""What a search knows of the columns alone: found once, and kept while rows come and go.

Everything here is a function of the columns, however they were put together: in one call, by additions, or read back
from files. A search that starts from it therefore finds the same.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np

from cusink.convergence.options import Options
from cusink.deferred import cached_property
from cusink.retrieval.batches import bins_in_use
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.bounds import entropies, prototypes
from cusink.retrieval.checks import CheckedCorpus, CheckedHistograms, Histograms
from cusink.retrieval.facts import DIGEST_BYTES, Digested, Facts, Settings, self_terms
from cusink.retrieval.histograms import HistogramPairs, digests_of
from cusink.retrieval.masses import Masses
from cusink.retrieval.tiles import tile_shape
from cusink.retrieval.unbalanced import mirrored
from cusink.types import Array, HostArray, MatrixValue


@dataclass(frozen=True, eq=False, kw_only=True)
class HistogramCorpus(Digested):
    """The columns of `template`, pairs with any rows, and the facts about them that searches for one value need."""

    template: HistogramPairs
    value: MatrixValue
    options: Options
    memory_limit: int | None
    mass: float = 1.0  # that items to come are scaled to
    masses: Masses = "equal"
    before: Facts = Facts(0)

    @property
    def B(self) -> Histograms:
        """The columns."""
        return self.template.B

    def __len__(self) -> int:
        return len(self.template.B)

    def with_rows(self, A: Histograms | None) -> HistogramPairs:
        """Return the pairs of rows, None for the columns themselves, with all columns."""
        if A is None:
            symmetric = mirrored(self.template.C, self.template.reach)
            return dataclasses.replace(self.template, A=self.B, symmetric=symmetric)
        return dataclasses.replace(self.template, A=A, symmetric=False)

    def with_columns(self, B: Histograms) -> Self:
        """Return the corpus of columns that begin with those of this one."""
        return dataclasses.replace(self, template=dataclasses.replace(self.template, B=B), before=self.facts())

    def facts(self) -> Facts:
        """Return what has been found so far."""
        found = self.__dict__  # where cached properties are
        return Facts(
            len(self),
            found.get("digests"),
            found.get("bins"),
            found.get("smallest"),
            found.get("entropies"),
            found.get("terms"),
            self.template.to_host(found["centres"]) if "centres" in found else None,
        )

    def prepare(self, bounded: bool) -> None:
        """Find out now what searches need, those that are `bounded` or those that solve all pairs."""
        _ = self.duplicates
        if self.value == "divergence":
            _ = self.terms
        if bounded:
            _ = self.centres, self.smallest
            if self.value == "entropic_cost":
                _ = self.entropies

    @cached_property
    def digests(self) -> HostArray:
        """Digests (D, 16) of the columns."""
        start, known = self._known(self.before.digests)
        if start == len(self):
            return known
        new = np.frombuffer(b"".join(digests_of(self.B, self.template.to_host, start)), np.uint8)
        return np.concatenate([known.astype(np.uint8).reshape(-1, DIGEST_BYTES), new.reshape(-1, DIGEST_BYTES)])

    @cached_property
    def bins(self) -> HostArray:
        """The bins that columns have weight in."""
        start, known = self._known(self.before.bins)
        if start == len(self):
            return known
        return np.union1d(known, bins_in_use(self.B, self.template.C, start)).astype(np.int64)

    @cached_property
    def smallest(self) -> float:
        """The smallest positive weight of the columns."""
        start, known = self.before.columns, self.before.smallest
        if known is None:
            start, known = 0, np.inf
        read = (self.B[rows] for rows in blocks(len(self) - start, ROWS_PER_BLOCK, start))
        return min([known, *(float(w[w > 0].min()) for w in read)])

    @cached_property
    def entropies(self) -> HostArray:
        """The entropies (D,) of the columns."""
        start, known = self._known(self.before.entropies)
        if start == len(self):
            return known
        return np.concatenate([known, entropies(self.B, self.template.C, start)])

    @cached_property
    def terms(self) -> HostArray:
        """The columns, each with itself, as `self_terms` returns them."""
        start, known = self._known(self.before.terms)
        if start == len(self):
            return known
        # In the batches of a corpus that came at once: an item depends on its batch as far as `tol` lets it.
        start = start // self.width * self.width
        found = self_terms(self.with_rows(None), 1, self.options, self.width, self.memory_limit, start)
        return np.concatenate([known[:start].reshape(-1, 3), found])

    @cached_property
    def centres(self) -> Array:
        """The prototypes of the columns, on the bins in use."""
        xp, known = self.template.xp, self.before.centres
        if known is not None and self.before.columns == len(self):
            return xp.asarray(known)
        return prototypes(self.B, xp.asarray(self.bins), xp)

    @property
    def width(self) -> int:
        """How many items are solved with themselves at once."""
        return tile_shape(self.with_rows(self.B), self.memory_limit)[1]

    def _known(self, fact: HostArray | None) -> tuple[int, HostArray]:
        return (0, np.empty(0)) if fact is None else (self.before.columns, fact)


def of_histograms(given: CheckedCorpus, settings: Settings, facts: Facts | None = None) -> HistogramCorpus:
    """Return the corpus of checked histograms."""
    both = CheckedHistograms(given.B, given.B, given.C, given.dtype)
    return HistogramCorpus(
        template=HistogramPairs.of(both, float(settings.eps), settings.reach),
        value=settings.value,
        options=settings.options,
        memory_limit=settings.memory_limit,
        mass=given.mass,
        masses=given.masses,
        before=Facts(0) if facts is None else facts,
    )
