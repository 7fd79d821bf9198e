"""How the pairs of two collections are cut into tiles, and what a tile holds.

The cut follows from the problem and the memory limit alone, and no tile from another: whoever solves a tile, in
whatever order, gets the same bytes.
"""

import functools
from typing import NamedTuple

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.checks.scalars import tile
from cusink.retrieval.progress import progress_bar

__all__ = [
    "PairValues",
    "Sizes",
    "pair_count",
    "parts",
    "solve_tiles",
    "tile_shape",
    "tiles",
]

ROWS = 4096  # items looked at together: a collection may be larger than the memory

WIDTH = 1024  # pairs solved at once at most: more would leave the cache and gain nothing
HEIGHT = 128  # rows of a tile at most
WORK = 1 << 30  # bytes that all pairs of a tile would take at once: what may be lost when a run is killed
SMALL = 32  # rows of a tile at least where a triangle stands for both, for tiles are square then


def parts(count, size):
    """Slices of at most `size` that cover ``range(count)``."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class Sizes(NamedTuple):
    """What `tile_shape` asks of pairs, for pairs that are not there."""

    shape: tuple[int, int]
    symmetric: bool
    pair_bytes: int
    shared_bytes: int


def tile_shape(pairs, memory_limit):
    """Rows and columns of a tile: a row with its columns is solved at once and must fit into the limit.

    The columns are a multiple of the rows where one triangle stands for both: its mirror image is whole tiles then.
    """
    if memory_limit is not None:
        # A quarter is for what the allocator keeps of freed arrays. One pair at a time, if what all share is too much.
        rest = memory_limit - memory_limit // 4 - pairs.shared_bytes
        memory_limit = max(rest, min(memory_limit, pairs.pair_bytes))
    width = tile(memory_limit, pairs.pair_bytes, WIDTH)
    height = max(WORK // (width * pairs.pair_bytes), SMALL if pairs.symmetric else 1)
    height = min(height, HEIGHT, width)
    return height, width // height * height if pairs.symmetric else width


def tiles(pairs, height, width):
    """Yield the tiles to be solved as slices of rows and columns, columns by columns.

    Where the pairs are symmetric, the tiles hold those on and above the diagonal, and what lies below in a square.
    """
    queries, documents = pairs.shape
    for start in range(0, documents, width):
        stop = min(start + width, documents)
        for row in range(0, stop if pairs.symmetric else queries, height):
            yield slice(row, min(row + height, queries)), slice(max(row, start) if pairs.symmetric else start, stop)


def pair_count(pairs, rows=None, columns=None):
    """How many pairs are to be solved, in all or in a tile."""
    queries, documents = pairs.shape if rows is None else (rows.stop - rows.start, columns.stop - columns.start)
    on_diagonal = pairs.symmetric and (rows is None or rows.start == columns.start)
    return queries * documents - (queries * (queries - 1) // 2 if on_diagonal else 0)


class PairValues:
    """One value of all pairs, a tile or a row at a time; a divergence takes the terms of each item with itself off."""

    def __init__(self, pairs, value, options, width):
        self.pairs, self.value, self.options, self.width = pairs, value, options, width

    def tile(self, rows, columns, names=("distances",), progress=None):
        """Solve a tile: a dict of arrays (rows, columns), how many pairs missed their tolerance, the worst error."""
        xp = self.pairs.ops.xp
        dtypes = {"distances": self.pairs.dtype, "error": float, "n_iter": int, "converged": bool}
        shape = rows.stop - rows.start, columns.stop - columns.start
        tile = {name: xp.empty(shape, dtypes[name]) for name in names}
        square = self.pairs.symmetric and rows.start == columns.start
        missed, worst = 0, 0.0
        for row in range(rows.start, rows.stop):
            part = slice(row if square else columns.start, columns.stop)
            solved = self.strip(row, part)
            for name, block in tile.items():
                block[row - rows.start, part.start - columns.start :] = narrowed(
                    xp.asarray(solved[name]), block.dtype, xp
                )
            if self.options.tol is not None and not solved["converged"].all():
                missed += np.count_nonzero(~solved["converged"])
                worst = max(worst, solved["error"][~solved["converged"]].max())
            if progress is not None:
                progress(part.stop - part.start)
        if square:
            upper = xp.arange(shape[0])[:, None] <= xp.arange(shape[0])
            for block in tile.values():
                block[:, : shape[0]] = xp.where(upper, block[:, : shape[0]], block[:, : shape[0]].T)
        return tile, missed, worst

    def strip(self, row, columns):
        """Solve a row against columns, a slice or an index array; a dict of arrays (columns,)."""
        if self.value != "divergence":
            return self.pairs.solve(row, columns, self.value, self.options)
        solved = self.pairs.solve(row, columns, "reg_cost", self.options)
        ours, theirs = (
            {name: x[at] for name, x in side.items()} for side, at in zip(self.selves, (row, columns), strict=True)
        )
        return {
            "distances": solved["distances"] - (ours["distances"] + theirs["distances"]) / 2,
            "error": np.maximum(np.maximum(ours["error"], theirs["error"]), solved["error"]),
            "n_iter": solved["n_iter"],
            "converged": ours["converged"] & theirs["converged"] & solved["converged"],
        }

    @functools.cached_property
    def selves(self):
        """Each item of both sides against itself: two dicts of arrays."""
        first = self._selves(0)
        return first, first if self.pairs.symmetric else self._selves(1)

    def _selves(self, side):
        count, xp = self.pairs.shape[side], self.pairs.ops.xp
        parts = [
            self.pairs.solve_selves(side, slice(start, min(start + self.width, count)), self.options)
            for start in range(0, count, self.width)
        ]
        return {
            name: (xp if name == "distances" else np).concatenate([part[name] for part in parts]) for name in parts[0]
        }


def solve_tiles(values, tile, sink, progress=False):
    """Solve the tiles of `PairValues` that a sink, which takes them in, has not finished."""
    pairs = values.pairs
    todo = [at for at in tiles(pairs, *tile) if (at[0].start, at[1].start) not in sink.finished]
    total, left = pair_count(pairs), sum(pair_count(pairs, *at) for at in todo)
    with progress_bar(total, total - left, progress) as bar:
        for rows, columns in todo:
            sink.write(rows, columns, *values.tile(rows, columns, sink.names, bar.update))
