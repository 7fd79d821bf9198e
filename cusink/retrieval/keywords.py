"""The optional keywords that the overloads of `distance_matrix`, `nearest` and `Index.search` have in common."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from cusink.types import MatrixValue, Method, Overrelaxation, Tolerance


class SolveKeywords(TypedDict, total=False):
    """How pairs are solved, on one machine or on many."""

    value: MatrixValue
    max_iter: int
    tol: Tolerance
    check_every: int
    method: Method
    overrelaxation: Overrelaxation
    reach: float | tuple[float | None, float | None] | None
    normalise: bool
    memory_limit: int | None
    check: bool


class RetrievalKeywords(SolveKeywords, total=False):
    """The same, and the keywords that only one machine offers."""

    progress: bool
    on_empty: Literal["nan", "raise"]
    workers: int | None


class MatrixKeywords(RetrievalKeywords, total=False):
    """The same, and those of a matrix."""

    devices: Sequence[int] | Literal["all"] | None


class SearchKeywords(TypedDict, total=False):
    """How an index is searched."""

    prune: bool
    solve_at_most: int | None
    candidates: Any
    progress: bool
    check: bool
    workers: int | None
    devices: Sequence[int] | Literal["all"] | None
