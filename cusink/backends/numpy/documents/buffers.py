"""The kernels of pairs of documents, and the memory they reuse."""

from dataclasses import dataclass

import numpy as np

__all__ = [
    "PairCosts",
]


@dataclass(frozen=True, eq=False)
class PairCosts:
    """Costs (B, n, m) as a block (words, n) of which each pair has some rows, those at ``index[k, :sizes[k]]``.

    The rest of `index` (B, m), and of a row of the block, repeats an entry: what is padded is like what is there, but
    without weight. `span` encloses all costs of the collection, not of these pairs alone: it decides how a problem is
    started, which must not depend on what it is solved beside.
    """

    block: np.ndarray
    index: np.ndarray
    sizes: np.ndarray
    span: tuple[float, float]
    buffers: "Buffers"

    @property
    def dtype(self):
        return self.block.dtype

    def gather(self, problems):
        """Costs (problems, words, n) of some problems, as many words as the longest of them has."""
        index = self.index[problems, : self.sizes[problems].max()]
        out = self.buffers.take((*index.shape, self.block.shape[1]), self.dtype)
        return self.block.take(index, axis=0, out=out, mode="clip")  # any other mode goes through memory of its own


class Buffers:
    """Memory that one iteration after another uses: to fetch it anew takes ten times as long as to fill it."""

    def __init__(self):
        self.free, self.taken = [], []

    def restart(self):
        """Whatever was taken is free again."""
        self.free, self.taken = self.free + self.taken, []

    def take(self, shape, dtype):
        """An array, not initialised; where none is large enough, in place of the largest one that is free."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.free.sort(key=len)
        fits = [k for k, buffer in enumerate(self.free) if len(buffer) >= size]
        buffer = self.free.pop(fits[0] if fits else -1) if self.free else b""
        if len(buffer) < size:
            del buffer
            buffer = np.empty(size, np.uint8)
        self.taken.append(buffer)
        return buffer[:size].view(dtype).reshape(shape)
