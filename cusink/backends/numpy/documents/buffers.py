"""The costs of pairs of documents, and the memory of their kernels."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cusink.types import HostArray


class Buffers:
    """Memory for one iteration after another: to fetch it takes ten times as long as to fill it.

    An iteration takes arrays through a `Loan`, which owns them until it is gone.
    """

    def __init__(self) -> None:
        self.free: list[HostArray] = []


class Loan:
    """Arrays of some `Buffers` for one iteration, returned when the loan is no longer referenced."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers, self._taken = buffers, list[HostArray]()

    def take(self, shape: tuple[int, ...], dtype: Any) -> HostArray:
        """Return an uninitialised array; where none is large enough, one is made in place of the largest free one."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free, buffer = self._buffers.free, None
        by_size = sorted((len(one) < size, abs(len(one) - size), k) for k, one in enumerate(free))
        if by_size:  # the smallest that is large enough, else the largest
            with contextlib.suppress(IndexError):  # another thread took it
                buffer = free.pop(by_size[0][2])
        if buffer is None or len(buffer) < size:
            buffer = None  # before the larger one is made
            buffer = np.empty(size, np.uint8)
        self._taken.append(buffer)
        array: HostArray = buffer[:size].view(dtype)
        return array.reshape(shape)

    def __del__(self) -> None:
        self._buffers.free += self._taken


@dataclass(frozen=True, eq=False)
class PairCosts:
    """Costs (B, n, m) as a block (words, n) of which each pair has some rows, those at ``index[k, :sizes[k]]``.

    The rest of `index` (B, m), and of a row of the block, repeats an entry: padding is like other entries, but
    without weight. `span` encloses all costs of the collection, not of these pairs alone: it decides how a problem is
    started, which must not depend on the other problems of a batch.
    """

    block: HostArray
    index: HostArray
    sizes: HostArray
    span: tuple[float, float]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the costs."""
        return self.block.dtype

    def at(self, problems: HostArray) -> "PairCosts":
        """Return the costs of some pairs."""
        return replace(self, index=self.index[problems], sizes=self.sizes[problems])

    def array(self) -> HostArray:
        """Return the costs (B, n, m), with padding."""
        return np.ascontiguousarray(np.swapaxes(self.block.take(self.index, axis=0), 1, 2))

    def gather(self, problems: HostArray, loan: Loan | None = None) -> HostArray:
        """Return the costs (problems, words, n) of some problems, as many words as the longest of them has."""
        index = self.index[problems, : self.sizes[problems].max()]
        shape = *index.shape, self.block.shape[1]
        out = np.empty(shape, self.dtype) if loan is None else loan.take(shape, self.dtype)
        return self.block.take(index, axis=0, out=out, mode="clip")  # any other mode takes memory of its own
