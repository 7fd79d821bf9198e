"""Assemble a lazy matrix from blocks, each a task."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import dask
import dask.array as da
import numpy as np

from cusink.distributed import tasks
from cusink.distributed.jobs import Chunks, Delayed, Job, LazyArray, Place
from cusink.retrieval.pairs import Field
from cusink.types import ArrayModule

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
    mirror = dask.delayed(tasks.mirror_block, pure=False)
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


def terms_of(job: Job, side: Literal[0, 1], chunks: Chunks) -> list[Delayed]:
    """Return the terms of a divergence of the items of a side with themselves, by chunks; else None for each."""
    if job.task.value != "divergence":
        return [None] * len(chunks.sizes)
    # Solved in the batches in which one machine would, whatever the chunks are.
    whole = Chunks.of((job.A, job.B)[side].rechunk((job.tile[1], -1)))
    solve = dask.delayed(partial(tasks.self_terms, side=side, task=job.task), pure=False)
    batches = [
        da.from_delayed(solve(items, job.C, job.mass), (size, 3), meta=np.empty((0, 0))) for items, _, size in whole
    ]
    terms: list[Delayed] = da.concatenate(batches).rechunk((chunks.sizes, -1)).to_delayed()[:, 0].tolist()
    return terms
