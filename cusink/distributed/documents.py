"""A distributed call for documents or point clouds, which are in memory: they are checked at once, and sent whole."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, get_args

import dask
import dask.array as da
import numpy as np

from cusink.checks.arrays import array_module, is_half, kind
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, one_of
from cusink.convergence.options import Options
from cusink.costs.measures import Measures, sums
from cusink.distributed.assembly import Blocks, assembled, rectangle, triangle
from cusink.distributed.jobs import Chunk, Chunks, Delayed, Device, LazyArray, Place, Task, check_client, held
from cusink.errors import warn_unconverged
from cusink.operand import eps_of_shared
from cusink.retrieval import checks
from cusink.retrieval.blocks import blocks
from cusink.retrieval.collections import check_collections
from cusink.retrieval.documents.checks import are_documents
from cusink.retrieval.documents.pairs import DocumentPairs
from cusink.retrieval.pairs import Field, Solved
from cusink.retrieval.tiles import PairValues, pair_count, tile_shape
from cusink.types import Array, MatrixValue, Reach
from cusink.workers import alone


@dataclass(frozen=True, eq=False, kw_only=True)
class Documents:
    """The collections, B None for A itself, their checked pairs, and what all tasks share."""

    A: Any
    B: Any
    C: Any
    pairs: DocumentPairs
    task: Task
    client: Any

    @classmethod
    def of(
        cls,
        A: Any,
        B: Any,
        C: Any,
        client: Any,
        *,
        eps: float | RelativeEps,
        value: MatrixValue,
        options: Options,
        limit: int | None,
        check: bool,
        device: Device,
        reach: Reach | None,
        normalise: bool,
        on_empty: str,
    ) -> Self:
        """Check the arguments of a call."""
        for name, x in (("A", A), ("B", B)):
            if isinstance(x, da.Array):
                raise TypeError(
                    f"'{name}' must be {'sparse rows' if are_documents(A, B) else 'documents'} in memory or "
                    f"cusink.Measures, as the other collection is; got {kind(x)}"
                )
        flag("check", check)
        check_client(client)
        one_of("value", value, checks.ALL_VALUES)
        one_of("device", device, get_args(Device))
        if device == "cuda":
            raise ValueError(
                "device='cuda' must be left out for documents, which are solved where their cost is; pass the cost, or "
                "the points of cusink.Measures, as CuPy arrays to cusink.distance_matrix"
            )
        limit, number = checks.memory_limit(limit), eps_of_shared(eps, C)
        pairs = check_collections(
            A,
            B,
            C,
            eps=number,
            check=check,
            memory_limit=limit,
            on_empty=on_empty,
            reach=reach,
            normalise=normalise,
        )
        assert isinstance(pairs, DocumentPairs)
        if value == "divergence":
            checks.divergence(pairs.C)
        task = Task(
            eps=float(number),
            value=value,
            options=options,
            width=tile_shape(pairs, limit)[1],
            memory_limit=limit,
            check=check,
            device=device,
            normalise=normalise,
        )
        return cls(A=A, B=B, C=C, pairs=pairs, task=task, client=client)

    def matrix(self, names: tuple[Field, ...]) -> dict[str, LazyArray]:
        """Return the lazy arrays of a matrix by the names of fields, in the tiles that one machine would cut."""
        pairs, task = self.pairs, self.task
        height, width = tile_shape(pairs, task.memory_limit)
        whole, terms = held(self.client, pairs), None
        if task.value == "divergence":
            terms = dask.delayed(_both_terms, pure=False)(*(list(self._terms(whole, side)) for side in self._sides()))
        solve = dask.delayed(partial(solve_tile, names=names, task=task), pure=False)
        left, right = cut(pairs.shape[0], height), cut(pairs.shape[1], width)

        def block(i: int, j: int, place: Place, skip: int, diagonal: bool) -> Delayed:
            del skip, diagonal  # which follow from the place
            rows = slice(place.row, place.row + left[i].size)
            return solve(whole, rows, slice(place.column, right[j].start + right[j].size), terms)

        lazy: Blocks = triangle(left, right, width, block) if pairs.symmetric else rectangle(left, right, block)
        return {name: assembled(pairs.xp, pairs.dtype, left, right, lazy, name) for name in names}

    @property
    def mass(self) -> float | None:
        """The mass that all items are scaled to, that of the first one with weight; None if there is none."""
        sides = self.pairs.A, self.pairs.B
        every = (float(mass) for side in sides for mass in sums(side.offsets, side.weights) if mass > 0)
        return 1.0 if self.task.normalise else next(every, None)

    def chunks(self, size: int, side: Literal[0, 1]) -> Chunks:
        """Return one side in chunks of rows, all in the dtype of the call."""
        x = self.A if side == 0 or self.B is None else self.B
        x = _of_dtype(x if isinstance(x, Measures) else x.tocsr(), self.pairs.dtype)
        chunks = cut(self.pairs.shape[side], size)
        cuts = [(dask.delayed(x[at : at + n], pure=False, traverse=False), at, n) for _, at, n in chunks]
        return Chunks([Chunk(*each) for each in cuts], chunks.sizes)

    def _sides(self) -> tuple[Literal[0, 1], ...]:
        return (0,) if self.pairs.symmetric else (0, 1)

    def _terms(self, whole: Delayed, side: Literal[0, 1]) -> Iterator[Delayed]:
        """Yield the terms of a side with itself, in the batches in which one machine would solve them."""
        solve = dask.delayed(partial(solve_terms, side=side, task=self.task), pure=False)
        for items in blocks(self.pairs.shape[side], self.task.width):
            yield solve(whole, items)


def _of_dtype(x: Any, dtype: Any) -> Any:
    """Return documents or measures in a dtype, whose entries for one word are summed in their own before."""
    if is_half(dtype):  # which nothing but whole numbers may be beside
        return x
    if isinstance(x, Measures):
        if x.weights.dtype == x.points.dtype == dtype:
            return x
        return Measures(x.offsets, x.weights.astype(dtype), x.points.astype(dtype))
    if x.dtype == dtype:
        return x
    x = x.astype(np.float64) if x.dtype.kind in "biu" else x.copy()
    x.sum_duplicates()
    return x.astype(dtype)


def cut(total: int, size: int) -> Chunks:
    """Return the chunks of a collection that stays whole."""
    chunks = [Chunk(None, rows.start, rows.stop - rows.start) for rows in blocks(total, size)]
    return Chunks(chunks, tuple(chunk.size for chunk in chunks))


@alone
def solve_tile(
    pairs: DocumentPairs,
    rows: slice,
    columns: slice,
    terms: tuple[Solved, Solved] | None,
    *,
    names: tuple[Field, ...],
    task: Task,
) -> dict[Field, Array]:
    """Solve a tile of the matrix of all pairs."""
    own = dataclasses.replace(pairs)  # with memory of its own
    values = PairValues(own, task.value, task.options, task.width, terms or (None, None), task.memory_limit)
    tile = values.tile(rows, columns, names)
    misses = tile.misses
    if misses.count and task.options.tol is not None:
        count = pair_count(own, rows, columns)
        warn_unconverged(misses.count, count, misses.worst, task.options.tol, task.options.max_iter)
    return dict(tile.fields)


@alone
def solve_terms(pairs: DocumentPairs, items: slice, *, side: Literal[0, 1], task: Task) -> Solved:
    """Solve some items of a side, each with itself."""
    return dataclasses.replace(pairs).solve_selves(side, items, task.options)


def _both_terms(*sides: list[Solved]) -> tuple[Solved, Solved]:
    joined = [Solved(*map(_joined, zip(*parts, strict=True))) for parts in sides]
    return joined[0], joined[-1]


def _joined(parts: tuple[Array, ...]) -> Array:
    return array_module(parts[0]).concatenate(parts)
