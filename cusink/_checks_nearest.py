"""Checks of the arguments of `cusink.nearest`."""

import numbers

from cusink._arrays import kind

__all__ = ["neighbours"]


def neighbours(k, documents, alone):
    """How many neighbours are wanted: `k`, of `documents` items, or of those but one that looks for the others."""
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"'k' must be an integer; got {kind(k)}")
    if k < 1:
        raise ValueError(f"'k' must be at least 1; got {k}")
    most = documents - 1 if alone else documents
    if k > most:
        where = f"the other rows of 'A', of which there are {most}" if alone else f"the rows of 'B', {documents}"
        raise ValueError(f"'k' must be at most the number of neighbours there are: {where}; got {k}. Ask for fewer")
    return int(k)
