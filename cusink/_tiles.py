"""How the pairs of two collections are cut into tiles.

The cut follows from the problem and the memory limit alone, and no tile from another: whoever solves a tile, in
whatever order, gets the same bytes.
"""

from cusink import _checks

__all__ = ["pair_count", "strips", "tile_shape", "tiles"]

WIDTH = 1024  # pairs solved at once at most: more would leave the cache and gain nothing
HEIGHT = 128  # rows of a tile at most
WORK = 1 << 30  # bytes that all pairs of a tile would take at once: what may be lost when a run is killed


def tile_shape(pairs, memory_limit):
    """Rows and columns of a tile: a row with its columns is solved at once and must fit into the limit.

    The columns are a multiple of the rows where one triangle stands for both: its mirror image is whole tiles then.
    """
    spare = memory_limit
    if memory_limit is not None and isinstance(memory_limit, int):
        spare = max(memory_limit - pairs.shared_bytes, min(memory_limit, pairs.pair_bytes))
    width = _checks.tile(spare, pairs.pair_bytes, WIDTH)
    height = max(WORK // (width * pairs.pair_bytes), 32 if pairs.symmetric else 1)
    height = min(height, HEIGHT, width)
    return height, width // height * height if pairs.symmetric else width


def tiles(pairs, height, width):
    """Yield the tiles to be solved as slices of rows and columns, columns by columns."""
    queries, documents = pairs.shape
    for start in range(0, documents, width):
        columns = slice(start, min(start + width, documents))
        for row in range(0, columns.stop if pairs.symmetric else queries, height):
            yield slice(row, min(row + height, queries)), columns


def strips(pairs, rows, columns):
    """Yield each row of a tile with the slice of columns it is to be solved against."""
    for row in range(rows.start, rows.stop):
        first = max(row, columns.start) if pairs.symmetric else columns.start
        if first < columns.stop:
            yield row, slice(first, columns.stop)


def pair_count(pairs):
    """How many pairs are to be solved."""
    queries, documents = pairs.shape
    return queries * (queries + 1) // 2 if pairs.symmetric else queries * documents
