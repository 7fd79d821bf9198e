"""Make the checked pairs of two collections of any kind."""

from typing import Any

from cusink.checks.scalars import flags, one_of
from cusink.retrieval import checks
from cusink.retrieval.budget import kernel_share
from cusink.retrieval.documents.checks import are_documents, check_documents
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.histograms import HistogramPairs
from cusink.retrieval.masses import masses_of, without_reach
from cusink.solver.checks import reach_in_range
from cusink.types import Reach

ON_EMPTY = ("nan", "raise")


def check_collections(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float,
    check: bool,
    memory_limit: int | None = None,
    on_empty: str = "nan",
    mass: float | None = None,
    reach: Reach | None = None,
    normalise: bool = False,
) -> HistogramPairs | DocumentPairs:
    """Return the pairs of all items of A with all items of B (None: of A) at the cost C.

    Histograms are scaled to `mass`, or to the mass of the first one; to 1 if it is to `normalise`, and with `reach` not
    at all.
    """
    flags(check=check, normalise=normalise)
    one_of("on_empty", on_empty, ON_EMPTY)
    if are_documents(A, B):
        without_reach(reach)
        documents = check_documents(A, B, C, eps=eps, check=check, on_empty=on_empty, normalise=normalise)
        return DocumentPairs.of(documents, float(eps), memory_limit)  # a NumPy scalar would make float64 of float32
    kernel = kernel_share(memory_limit)
    masses = masses_of(normalise, reach)
    histograms = checks.histograms(
        A, B, C, eps=eps, check=check, memory_limit=kernel, mass=mass, masses=masses, reach=reach
    )
    if reach is not None:
        reach_in_range(reach, histograms.C.dtype.name)
    return HistogramPairs.of(histograms, float(eps), reach)
