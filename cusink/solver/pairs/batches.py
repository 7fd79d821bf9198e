"""Which pairs of unequal sizes are solved together: batches in which padding costs less than further calls would."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cusink.types import HostArray

CALL_PAIRS = 30_000  # pairs of points that take about as long to solve as a call of its own
BATCH_BYTES = 1 << 25  # of one array of costs of a batch, if the caller sets no limit
COPIES = 8  # of such an array that solving takes at most
TILE_PAIRS = 1 << 18  # of points, whose kernels in float64 stay in a cache while they are iterated with
LARGEST_PAIR = 1 << 21  # of points, above which a pair is not solved together with others


class Batch(NamedTuple):
    """The numbers of pairs that are solved together, and the largest sizes of their two sides."""

    pairs: HostArray
    n: int
    m: int


def batches(
    sizes: tuple[HostArray, HostArray], itemsize: int, memory_limit: int | None = None, among: HostArray | None = None
) -> list[Batch]:
    """Divide pairs with these numbers of points (K,), all or those `among` (K,) them, into batches.

    They take few calls and little padding.
    Pairs of two measures of one size stay among such pairs, where equal measures remain equal arrays.
    """
    most = BATCH_BYTES if memory_limit is None else memory_limit // COPIES
    square = sizes[0] == sizes[1]
    some = np.ones(len(square), bool) if among is None else among
    out: list[Batch] = []
    for group in (np.flatnonzero(square & some), np.flatnonzero(~square & some)):
        if len(group):
            out += _divided(group, sizes, max(1, most // itemsize))
    return out


def tiles_of(sizes: tuple[HostArray, HostArray], pairs: HostArray, memory_limit: int | None = None) -> list[Batch]:
    """Divide some of the pairs with these numbers of points (K,) into tiles; those that are too large are in none."""
    most = 8 * LARGEST_PAIR if memory_limit is None else memory_limit // COPIES
    pairs = pairs[sizes[0][pairs] * sizes[1][pairs] * 8 <= min(most, 8 * LARGEST_PAIR)]
    return list(_divided(pairs, sizes, max(1, min(TILE_PAIRS, most // 8)))) if len(pairs) else []


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
