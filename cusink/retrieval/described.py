"""What an index says of itself."""

from typing import Any

import numpy as np

from cusink.retrieval.facts import Settings
from cusink.types import MatrixValue, Reach


class Described:
    """The items of an index and what it is for."""

    _corpus: Any  # of histograms or of documents
    _cost: Any  # as the user passed it
    _settings: Settings

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
