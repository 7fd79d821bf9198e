"""The pairs of two collections, whatever they hold."""

from cusink.retrieval import checks
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.documents.pairs import document_pairs
from cusink.retrieval.histograms import HistogramPairs

__all__ = [
    "pairs_of",
]


def pairs_of(A, B, C, *, eps, check, memory_limit=None, on_empty="nan", mass=None):
    """The checked pairs of all items of A with all items of B (None: of A) at the cost C.

    Histograms are brought to `mass`, or to that of the first one.
    """
    if are_documents(A, B):
        return document_pairs(A, B, C, eps=eps, check=check, memory_limit=memory_limit, on_empty=on_empty)
    kernel = None if memory_limit is None else memory_limit // 2  # what a cost that is not stored may take
    given = checks.histograms(A, B, C, eps=eps, check=check, memory_limit=kernel, mass=mass)
    return HistogramPairs(given.A, given.B, given.C, eps, given.dtype)
