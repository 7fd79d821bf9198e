"""How the pairs of two collections are cut into tiles, and how a tile is solved.

The cut follows from the problem and the memory limit alone, and no tile depends on another: in any order, on any
machine, a tile gets the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.checks.scalars import tile as fitting
from cusink.convergence.options import Options
from cusink.deferred import cached_property
from cusink.retrieval.blocks import blocks
from cusink.retrieval.budget import tile_share
from cusink.retrieval.pairs import Field, Pairs, Solved, debiased, labels
from cusink.retrieval.progress import progress_bar
from cusink.types import Array, HostArray, MatrixValue
from cusink.workers import asked_for, each

COLUMNS_PER_TILE = 1024  # pairs solved at once at most: more would leave the cache and gain nothing
ROWS_PER_TILE = 128
ROWS_PER_SQUARE = 32  # of a tile at least where a triangle stands for both, because tiles are square then
# Bytes of the pairs of a call up to which it is left to one thread unless somebody asks for more: its array operations
# are so short that threads wait for Python's interpreter lock. Of 6 MiB (64 bins, float32) two threads were 0.7 to 0.9
# times as fast as one, of 12 MiB (64 bins, float64) 1.2 to 1.3 times, and 0.96 while another process kept a core busy;
# of 20 MiB (576 bins) they were 1.7 times as fast, and 1.2 times. See docs/measurements/retrieval-cpu.md.
ONE_THREAD_BYTES = 12 << 20
TILE_BYTES = 1 << 30  # that all pairs of a tile would take at once: the work that may be lost when a run is killed


class HasSizes(Protocol):
    """The part of `Pairs` that says how to cut them."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def symmetric(self) -> bool:
        """Whether one triangle stands for both."""

    @property
    def pair_bytes(self) -> int:
        """Bytes that a pair takes while it is solved."""

    @property
    def shared_bytes(self) -> int:
        """Bytes that a row takes in addition, for any number of columns."""


class Sizes(NamedTuple):
    """The sizes of pairs that do not exist yet."""

    shape: tuple[int, int]
    symmetric: bool
    pair_bytes: int
    shared_bytes: int


def tile_shape(pairs: HasSizes, memory_limit: int | None) -> tuple[int, int]:
    """Return the rows and columns of a tile: a row with its columns is solved at once and must fit into the limit.

    The columns are a multiple of the rows where one triangle stands for both: its mirror image is whole tiles then.
    """
    if memory_limit is not None:
        # One pair at a time, if the shared arrays leave no room for it.
        rest = tile_share(memory_limit) - pairs.shared_bytes
        memory_limit = max(rest, min(memory_limit, pairs.pair_bytes))
    width: int = fitting(memory_limit, pairs.pair_bytes, COLUMNS_PER_TILE)
    row_bytes = min(width, max(1, pairs.shape[1])) * pairs.pair_bytes
    height = max(TILE_BYTES // row_bytes, ROWS_PER_SQUARE if pairs.symmetric else 1)
    height = min(height, ROWS_PER_TILE, width)
    return height, width // height * height if pairs.symmetric else width


def calls_at_once(pairs: Pairs, width: int, memory_limit: int | None) -> int | None:
    """Return how many threads may solve `width` pairs each at a time; None for any number."""
    if pairs.xp is not np:
        return 1  # a device is one worker
    call_bytes = min(width, pairs.shape[1]) * pairs.pair_bytes
    if call_bytes <= ONE_THREAD_BYTES and not asked_for():
        return 1
    if memory_limit is None:
        return None
    return max(1, tile_share(memory_limit) // (pairs.shared_bytes + call_bytes))


def rows_at_once(pairs: Pairs, columns: int, memory_limit: int | None) -> int:
    """Return how many rows are solved against so many columns in one call, as many as the memory takes."""
    rows = pairs.rows_per_call
    if rows > 1 and memory_limit is not None:
        rows = min(rows, (tile_share(memory_limit) - pairs.shared_bytes) // (columns * pairs.pair_bytes))
    return max(1, rows)


def tiles(pairs: HasSizes, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles to be solved as slices of rows and columns, one range of columns after the other.

    Where the pairs are symmetric, the tiles hold those on and above the diagonal, and the rest of a square on it.
    """
    count, total = pairs.shape
    for columns in blocks(total, width):
        for rows in blocks(columns.stop if pairs.symmetric else count, height):
            yield rows, slice(max(rows.start, columns.start) if pairs.symmetric else columns.start, columns.stop)


def pair_count(pairs: HasSizes, rows: slice | None = None, columns: slice | None = None) -> int:
    """Return how many pairs are to be solved, in all or in a tile."""
    if rows is None or columns is None:
        (height, width), on_diagonal = pairs.shape, pairs.symmetric
    else:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        on_diagonal = pairs.symmetric and rows.start == columns.start
    return height * width - (height * (height - 1) // 2 if on_diagonal else 0)


@dataclass(frozen=True)
class Misses:
    """How many pairs missed their tolerance, and the largest error among them."""

    count: int = 0
    worst: float = 0.0

    @classmethod
    def among(cls, error: HostArray, missed: HostArray) -> Self:
        """Count the pairs that `missed`."""
        count = int(np.count_nonzero(missed))
        return cls(count, float(error[missed].max()) if count else 0.0)

    @classmethod
    def total(cls, parts: Iterable["Misses"]) -> Self:
        """Return the sum of several."""
        parts = list(parts)
        return cls(sum(part.count for part in parts), max((part.worst for part in parts), default=0.0))


class SolvedTile(NamedTuple):
    """Arrays (rows, columns) of a tile by the names of fields."""

    fields: dict[Field, Array]
    misses: Misses


class Sink(Protocol):
    """Takes tiles in."""

    @property
    def names(self) -> tuple[Field, ...]:
        """The fields that it keeps."""

    @property
    def finished(self) -> Mapping[tuple[int, int], Misses]:
        """The misses of each finished tile, by its first row and column."""

    def write(self, rows: slice, columns: slice, tile: SolvedTile) -> None:
        """Keep a tile, and its mirror image where the matrix is symmetric."""


@dataclass(frozen=True, eq=False)
class PairValues:
    """One value of all pairs, to be computed by tiles.

    Of a divergence the terms of each item with itself are solved when they are first needed, `width` items at once,
    unless they are `given`, those of A and of B, or one of both.
    """

    pairs: Pairs
    value: MatrixValue
    options: Options
    width: int
    given: tuple[Solved | None, Solved | None] = (None, None)
    memory_limit: int | None = None

    def tile(
        self,
        rows: slice,
        columns: slice,
        names: tuple[Field, ...] = ("distances",),
        progress: Callable[[int], Any] | None = None,
    ) -> SolvedTile:
        """Solve a tile; of a square on the diagonal of a symmetric matrix only the upper triangle."""
        pairs, xp = self.pairs, self.pairs.xp
        shape = rows.stop - rows.start, columns.stop - columns.start
        dtypes = {"distances": pairs.dtype, "error": float, "n_iter": int, "converged": bool}
        fields = {name: xp.empty(shape, dtypes[name]) for name in names}
        square = pairs.symmetric and rows.start == columns.start

        def solve_rows(block: slice) -> Misses:
            part = slice(block.start if square else columns.start, columns.stop)
            solved = self.solve(block, part)
            for name, field in fields.items():
                found = narrowed(xp.asarray(getattr(solved, name)), field.dtype, xp)
                field[block.start - rows.start : block.stop - rows.start, part.start - columns.start :] = found
            if progress is not None:
                progress(pair_count(pairs, block, part))
            missed = np.zeros_like(solved.converged) if self.options.tol is None else ~solved.converged
            return Misses.among(solved.error, np.triu(missed) if square else missed)

        at_once = rows_at_once(pairs, shape[1], self.memory_limit)
        calls = [(block,) for block in blocks(shape[0], at_once, rows.start)]
        if self.value == "divergence":
            _ = self.self_terms, self.labels  # before threads need them
        misses = each(solve_rows, calls, calls_at_once(pairs, self.width, self.memory_limit))
        if square:
            upper = xp.arange(shape[0])[:, None] <= xp.arange(shape[0])
            for field in fields.values():
                field[:, : shape[0]] = xp.where(upper, field[:, : shape[0]], field[:, : shape[0]].T)
        return SolvedTile(fields, Misses.total(misses))

    def solve(self, rows: slice, columns: slice) -> Solved:
        """Solve at most `rows_per_call` rows against columns: arrays (rows, columns)."""
        if self.value != "divergence":
            return self.pairs.solve(rows, columns, self.value, self.options)
        solved = self.pairs.solve(rows, columns, "reg_cost", self.options)
        ours, theirs = self.self_terms
        labels = self.labels
        equal = labels[0][rows, None] == labels[1][columns]
        ours, theirs = Solved(*(x[rows, None] for x in ours)), Solved(*(x[columns] for x in theirs))
        masses = self.pairs.masses
        excess = None if masses is None else masses[0][rows, None] - masses[1][columns]
        return debiased(self.pairs, solved, ours, theirs, equal, excess)

    @cached_property
    def labels(self) -> tuple[HostArray, HostArray]:
        """Numbers of the items of A and of B, the same for equal ones."""
        return labels(self.pairs)

    @cached_property
    def self_terms(self) -> tuple[Solved, Solved]:
        """The items of A and of B, each with itself."""
        ours, theirs = self.given
        ours = self._self_terms(0) if ours is None else ours
        if theirs is None:
            theirs = ours if self.pairs.symmetric else self._self_terms(1)
        return ours, theirs

    def _self_terms(self, side: Literal[0, 1]) -> Solved:
        def solve(items: slice) -> Solved:
            return self.pairs.solve_selves(side, items, self.options)

        calls = [(items,) for items in blocks(self.pairs.shape[side], self.width)]
        parts = each(solve, calls, calls_at_once(self.pairs, self.width, self.memory_limit))
        distances, *host = zip(*parts, strict=True)
        return Solved(self.pairs.xp.concatenate(distances), *map(np.concatenate, host))


def solve_tiles(values: PairValues, tile: tuple[int, int], sink: Sink, progress: bool = False) -> None:
    """Solve the tiles, of the shape `tile`, that the sink has not finished."""
    pairs = values.pairs
    todo = [at for at in tiles(pairs, *tile) if (at[0].start, at[1].start) not in sink.finished]
    total, left = pair_count(pairs), sum(pair_count(pairs, *at) for at in todo)
    with progress_bar(total, total - left, progress) as bar:
        for rows, columns in todo:
            sink.write(rows, columns, values.tile(rows, columns, sink.names, bar.update))
