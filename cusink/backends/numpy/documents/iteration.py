"""Sinkhorn iterations of one document against many, each pair with a cost of its own, all kernels in the cache."""

from collections.abc import Iterator, Sequence

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.documents.buffers import Buffers, Loan, PairCosts
from cusink.backends.numpy.documents.tiles import PairTile, join_tiles, start_tile
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.workers import run_all
from cusink.costs.operators import HostChecked
from cusink.types import HostArray, Method


class Iteration(HostChecked):
    """Problems under way, see `cusink.costs.operators`, with `PairCosts`.

    Problems of similar sizes form a tile, so that little of it is padding. The kernels of all tiles lie in memory of
    `buffers`, which nobody else gets while this object lives.
    """

    def __init__(
        self,
        C: PairCosts,
        a: HostArray,
        b: HostArray,
        eps: float,
        f: HostArray,
        g: HostArray,
        method: Method,
        buffers: Buffers,
    ) -> None:
        del method  # every problem falls back to log-sum-exp where it has to
        self.m = b.shape[1]
        self.loan = Loan(buffers)
        self.rows = list(cut_by_size(C.sizes, a.shape[1] * a.itemsize))
        self.tiles = []
        for rows in self.rows:
            width = C.sizes[rows].max()
            costs = C.gather(rows, self.loan)
            A = self.loan.take(costs.shape, costs.dtype)
            self.tiles.append(start_tile(costs, A, a[rows], b[rows, :width], eps, f[rows], g[rows, :width]))

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations of every problem; return bounds (B,) on their errors."""
        error = np.empty(len(omega))

        def run(tile: PairTile, rows: HostArray) -> None:
            error[rows] = tile.advance(omega[rows], count)

        run_all(run, self.tiles, self.rows)
        return error

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update; g is 0 where padded."""
        n, dtype = self.tiles[0].a.shape[1], self.tiles[0].a.dtype
        f, g = np.empty((len(index), n)), np.zeros((len(index), self.m))
        cost, error = np.empty(len(index), dtype), np.empty(len(index))
        for tile, (place, local) in zip(self.tiles, self._places(index), strict=True):
            if len(place):
                f[place], part, cost[place], error[place] = tile.finish(local)
                g[place, : part.shape[1]] = part
        return f, g, cost, error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`; they are numbered in its order from now on."""
        left = []
        for place, local in self._places(index):
            tile = self.tiles.pop(0)  # so that its memory is free once it is cut
            if len(place):
                left.append((tile.at(local) if len(local) < len(tile.a) else tile, place))
        self.rows = []
        for run in runs_of([tile for tile, _ in left]):  # each tile costs a round of calls
            self.tiles.append(left[run[0]][0] if len(run) == 1 else join_tiles([left[k][0] for k in run]))
            self.rows.append(np.concatenate([left[k][1] for k in run]))

    def _places(self, index: HostArray) -> list[tuple[HostArray, HostArray]]:
        """Return for each tile which entries of `index` it has, and its own numbers of them, ascending."""
        wanted = np.full(sum(map(len, self.rows)), -1)
        wanted[index] = np.arange(len(index))
        places = []
        for rows in self.rows:
            place = wanted[rows]
            local = np.flatnonzero(place >= 0)
            places.append((place[local], local))
        return places


def cut_by_size(sizes: HostArray, row_bytes: int) -> Iterator[HostArray]:
    """Cut problems with these numbers of words into tiles by size; yield index arrays."""
    order, most = np.argsort(sizes, kind="stable"), limits.LIMITS
    ascending = sizes[order].tolist()
    start = 0
    for stop, largest in enumerate(ascending):
        full = (stop + 1 - start) * largest * row_bytes > most.document_tile_bytes
        alike = largest <= most.document_size_ratio * ascending[start]
        if stop > start and (full or (stop - start >= most.document_tile_pairs and not alike)):
            yield order[start:stop]
            start = stop
    yield order[start:]


def runs_of(tiles: Sequence[PairTile]) -> Iterator[list[int]]:
    """Cut tiles, narrow ones first, into runs that fit into one tile; yield lists of their numbers."""
    run: list[int] = []
    count = 0
    for k, tile in enumerate(tiles):
        count += len(tile.a)
        if run and count * tile.A[0].nbytes > limits.LIMITS.document_tile_bytes:
            yield run
            run, count = [], len(tile.a)
        run.append(k)
    if run:
        yield run
