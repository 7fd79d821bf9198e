"""Blocks of rows: a collection may be larger than the memory, so it is read a block at a time."""

from collections.abc import Iterator

ROWS_PER_BLOCK = 4096


def blocks(count: int, size: int, first: int = 0) -> Iterator[slice]:
    """Yield slices of at most `size` that cover ``range(first, first + count)``."""
    stop = first + count
    return (slice(start, min(start + size, stop)) for start in range(first, stop, size))
