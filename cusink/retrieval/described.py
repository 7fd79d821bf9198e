"""What an index says of itself."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.checks.foreign import library_of
from cusink.retrieval.facts import Settings
from cusink.types import MatrixValue, Reach


def of_library(init: Callable[..., None]) -> Callable[..., None]:
    """Let an index remember the library of its items, which are the queries of a search without others."""

    @functools.wraps(init)
    def wrapped(self: "Described", *args: Any, **keywords: Any) -> None:
        init(self, *args, **keywords)
        self._library = library_of((*args, *keywords.values()))

    return wrapped


class Described:
    """The items of an index and what it is for."""

    _corpus: Any  # of histograms or of documents
    _cost: Any  # as the user passed it
    _settings: Settings
    _library = ""  # torch or jax, if the items came from there
    _wide: tuple[Any, tuple[Any, Any, Settings]] | None = None  # a corpus, and what `_in_float64` found for it

    def __len__(self) -> int:
        return len(self._corpus)

    def __repr__(self) -> str:
        return f"Index({len(self)} items, {self.value!r}, eps={self.eps:g}, {self.dtype})"

    @property
    def eps(self) -> float:
        """The regularisation."""
        return float(self._settings.eps)

    @property
    def value(self) -> MatrixValue:
        """Which distance it is."""
        return self._settings.value

    @property
    def tol(self) -> float | None:
        """The marginal error at which a pair stops."""
        return self._settings.options.tol

    @property
    def dtype(self) -> Any:
        """The dtype of the items."""
        return np.dtype(self._corpus.template.dtype)

    @property
    def reach(self) -> Reach | None:
        """The prices of both marginals, inf where one is met; None where both are."""
        return self._settings.reach
