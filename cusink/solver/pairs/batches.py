"""Which pairs of unequal sizes are solved together: batches in which padding costs less than further calls would."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cusink.types import HostArray

CALL_PAIRS = 30_000  # pairs of points that take about as long to solve as a call of its own
BATCH_BYTES = 1 << 25  # of one array of costs of a batch, if the caller sets no limit
COPIES = 8  # of such an array that solving takes at most


class Batch(NamedTuple):
    """The numbers of pairs that are solved together, and the largest sizes of their two sides."""

    pairs: HostArray
    n: int
    m: int


def batches(sizes: tuple[HostArray, HostArray], itemsize: int, memory_limit: int | None = None) -> list[Batch]:
    """Divide pairs with these numbers of points (K,) into batches that take few calls and little padding.

    Pairs of two measures of one size stay among such pairs, where equal measures remain equal arrays.
    """
    most = BATCH_BYTES if memory_limit is None else memory_limit // COPIES
    square = sizes[0] == sizes[1]
    out: list[Batch] = []
    for group in (np.flatnonzero(square), np.flatnonzero(~square)):
        if len(group):
            out += _divided(group, sizes, max(1, most // itemsize))
    return out


def _divided(group: HostArray, sizes: tuple[HostArray, HostArray], entries: int) -> Iterator[Batch]:
    """Cut a group in two where that saves most, while it saves more than a call or the group is too large."""
    n, m = (side[group] for side in sizes)
    batch = Batch(group, int(n.max()), int(m.max()))
    whole = len(group) * batch.n * batch.m
    if len(group) > 1:
        cuts = [_best_cut(one, other) for one, other in ((n, m), (m, n))]
        taken, order, at = min(cuts, key=lambda cut: cut[0])
        if whole - taken > CALL_PAIRS or whole > entries:
            yield from _divided(group[order[:at]], sizes, entries)
            yield from _divided(group[order[at:]], sizes, entries)
            return
    yield batch


def _best_cut(sizes: HostArray, others: HostArray) -> tuple[int, HostArray, int]:
    """Return the pairs of points that a cut by `sizes` leaves, the order it is made in, and where it is."""
    order = np.lexsort((others, sizes))
    sizes, others = sizes[order], others[order]
    count = np.arange(1, len(order))
    below = np.maximum.accumulate(others)[:-1]
    above = np.maximum.accumulate(others[::-1])[::-1][1:]
    taken = count * sizes[:-1] * below + (len(order) - count) * sizes[-1] * above
    at = len(order) // 2 - 1 if (taken == taken[0]).all() else int(taken.argmin())  # halves, where no cut is better
    return int(taken[at]), order, at + 1
