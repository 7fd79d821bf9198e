"""Histograms that came one collection after the other, read as if they were one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.checks.arrays import array_module, to_host
from cusink.retrieval.blocks import ROWS_PER_BLOCK
from cusink.retrieval.checks import Histograms, NormalisedRows
from cusink.types import Array, HostArray


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """The rows of all `parts`; `starts` (parts + 1,) are their first rows, and the number of rows."""

    parts: tuple[NormalisedRows, ...]
    starts: HostArray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, items: Any) -> Array:
        if isinstance(items, slice):
            return self._joined([part[own] for part, own in self._cut(items)], 0)
        if np.ndim(items) == 0:
            part = int(np.searchsorted(self.starts, items, side="right")) - 1
            return self.parts[part][items - self.starts[part]]
        xp = array_module(self.parts[0].weights)
        items = to_host(items)
        owner = np.searchsorted(self.starts, items, side="right") - 1
        out = xp.empty((len(items), self.parts[0].weights.shape[1]), self.parts[0].weights.dtype)
        for part in np.unique(owner):
            at = np.flatnonzero(owner == part)
            out[xp.asarray(at)] = self.parts[part][xp.asarray(items[at] - self.starts[part])]
        return out

    def products(self, vectors: Array, items: slice) -> Array:
        """Return the products (K, items) of vectors (K, n) with some rows."""
        return self._joined([part.products(vectors, own) for part, own in self._cut(items)], 1)

    def content(self) -> tuple[Any, ...]:
        """Return a word for the kind, and the data, for fingerprints."""
        return ("joined", *(part.content() for part in self.parts))

    def _cut(self, items: slice) -> Iterator[tuple[NormalisedRows, slice]]:
        """Yield the parts that have some of the `items`, and which of its rows these are."""
        start, stop, _ = items.indices(len(self))
        for part, first, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            if first < stop and start < end:
                yield part, slice(max(start - int(first), 0), min(stop, int(end)) - int(first))

    def _joined(self, arrays: list[Array], axis: int) -> Array:
        return arrays[0] if len(arrays) == 1 else array_module(arrays[0]).concatenate(arrays, axis=axis)


def parts_of(rows: Histograms) -> tuple[NormalisedRows, ...]:
    """Return the arrays that rows consist of."""
    return (rows,) if isinstance(rows, NormalisedRows) else rows.parts if isinstance(rows, JoinedRows) else ()


def joined(rows: Histograms, added: NormalisedRows) -> Histograms:
    """Return rows and those `added` to them. Small parts become one, so that many small additions cost little."""
    *parts, last = parts_of(rows)
    if len(last) + len(added) <= ROWS_PER_BLOCK:
        xp = array_module(last.weights)
        weights = xp.concatenate([last.weights, added.weights])
        last = NormalisedRows(weights, xp.concatenate([last.factors, added.factors]))
        both = (*parts, last)
    else:
        both = (*parts, last, added)
    if len(both) == 1:
        return both[0]
    return JoinedRows(both, np.concatenate([[0], np.cumsum([len(part) for part in both])]))
