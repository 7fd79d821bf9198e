"""Memory that large arrays of one call leave to those of the next."""

import numpy as np

MOST_KEPT = 1 << 24  # bytes of them
_kept = 0  # by this process so far


def keep_heap(size: int) -> None:
    """Let malloc keep the memory of arrays of `size` bytes for the next call, in place of giving it back to the system.

    glibc gives it back where twice the largest block that was ever freed is free, and the pages of the next arrays
    are faulted in one by one. A block that nobody touches costs little, and none is needed that is no larger than those
    before it. Where the user's environment says what malloc gives back (``MALLOC_TRIM_THRESHOLD_``), that stands.
    """
    global _kept
    if (size := min(size, MOST_KEPT)) > _kept:
        np.empty(size, np.uint8)
        _kept = size
