"""The shares of `memory_limit` and their uses; None, for no limit, stays None."""

BOUND_BYTES = 1 << 28  # that the bounds of a search take if there is no limit


def kernel_share(memory_limit: int | None) -> int | None:
    """Return the bytes that the Gibbs kernel of a cost that is not stored may take: half; pairs take the rest."""
    return None if memory_limit is None else memory_limit // 2


def search_share(memory_limit: int | None, resident: int = 0) -> int | None:
    """Return the bytes that the bounds of a search may take; the pairs that it solves take as many.

    `resident` bytes are taken already.
    """
    return None if memory_limit is None else (memory_limit - resident) // 2


def tile_share(memory_limit: int) -> int:
    """Return the bytes that the arrays of a tile may take: allocators hold on to freed memory, a quarter is theirs."""
    return memory_limit - memory_limit // 4
