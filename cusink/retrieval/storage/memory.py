"""A distance matrix in memory."""

from collections.abc import Mapping
from typing import Any

from cusink.retrieval import checks
from cusink.retrieval.pairs import Field, Pairs
from cusink.retrieval.tiles import Misses, SolvedTile
from cusink.types import Array


class ArraySink:
    """Takes tiles in, as `TileStore` does, into arrays in memory; `inputs` by name must not share memory with `out`."""

    def __init__(self, pairs: Pairs, out: Array | None, full_output: bool, inputs: Mapping[str, Any]) -> None:
        xp = pairs.xp
        self.symmetric = pairs.symmetric
        self.finished: dict[tuple[int, int], Misses] = {}
        self.fields: dict[Field, Array] = {"distances": checks.output(out, pairs.shape, pairs.dtype, xp, inputs)}
        if full_output:
            self.fields["error"] = xp.empty(pairs.shape, float)
            self.fields["n_iter"] = xp.empty(pairs.shape, int)
            self.fields["converged"] = xp.empty(pairs.shape, bool)
        self.names: tuple[Field, ...] = tuple(self.fields)

    def write(self, rows: slice, columns: slice, tile: SolvedTile) -> None:
        """Keep a tile, and its mirror image where the matrix is symmetric."""
        for name, whole in self.fields.items():
            whole[rows, columns] = tile.fields[name]
            if self.symmetric:
                whole[columns, rows] = tile.fields[name].T
        self.finished[rows.start, columns.start] = tile.misses
