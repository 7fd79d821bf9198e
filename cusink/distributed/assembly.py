"""Assemble a lazy matrix from blocks, each a task."""

from collections.abc import Callable
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np

from cusink.distributed.jobs import Chunks, Delayed, LazyArray, Place
from cusink.retrieval.pairs import Field
from cusink.types import Array, ArrayModule

SolveBlock: TypeAlias = Callable[[int, int, Place, int, bool], Delayed]  # by the numbers of both chunks
Blocks: TypeAlias = list[list[Delayed]]  # by chunks of rows and of columns; each a dict of arrays by field

DTYPES: dict[Field, Any] = {"distances": None, "error": np.float64, "n_iter": np.int64, "converged": np.bool_}


def rectangle(left: Chunks, right: Chunks, solve: SolveBlock) -> Blocks:
    """Return the blocks of a matrix of two collections."""
    return [
        [solve(i, j, Place(row, column), 0, False) for j, (_, column, _) in enumerate(right)]
        for i, (_, row, _) in enumerate(left)
    ]


def triangle(left: Chunks, right: Chunks, width: int, solve: SolveBlock) -> Blocks:
    """Return the blocks of a symmetric matrix: the tiles on and above the diagonal are solved, the others mirrored.

    A tile of the rows from `row` on has the columns from ``max(row, column)`` on; all of it is above the diagonal
    unless it is a square.
    """
    tiles = {}
    for i, (_, row, _) in enumerate(left):
        for j, (_, column, _) in enumerate(right):
            if row < column + width:
                place, skip = Place(row, max(row, column)), max(row - column, 0)
                tiles[i, j] = solve(i, j, place, skip, row >= column)
    mirror = dask.delayed(mirror_block, pure=False)
    blocks: Blocks = []
    for i, (_, row, height) in enumerate(left):
        blocks.append([])
        for j, (_, column, _) in enumerate(right):
            pieces = []
            for k, (_, above, _) in enumerate(left):  # the rows that are the columns left of the block's own tile
                if column <= above < min(row, column + width):
                    start = row - max(above, right[row // width].start)
                    pieces.append((tiles[k, row // width], start, start + height))
            blocks[-1].append(mirror(pieces, tiles.get((i, j))) if pieces else tiles[i, j])
    return blocks


def assembled(like: ArrayModule, dtype: Any, left: Chunks, right: Chunks, blocks: Blocks, name: Field) -> LazyArray:
    """Return the lazy array of a field of blocks, of a library and, for distances, of a dtype."""
    meta = like.empty((0, 0), DTYPES[name] or dtype)
    return da.block(
        [
            [
                da.from_delayed(block[name], (rows, columns), meta=meta)
                for block, columns in zip(line, right.sizes, strict=True)
            ]
            for line, rows in zip(blocks, left.sizes, strict=True)
        ]
    )


def mirror_block(
    above: list[tuple[dict[Field, Array], int, int]], own: dict[Field, Array] | None
) -> dict[Field, Array]:
    """Assemble a block below the diagonal from tiles above it, each with a range of its columns, and its own tile."""
    return {
        name: np.concatenate(
            [tile[name][:, start:stop].T for tile, start, stop in above] + ([] if own is None else [own[name]]),
            axis=1,
        )
        for name in above[0][0]
    }
