"""The kernel between two clouds that many problems share: a `Kernel` like `DenseKernel`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds import reductions
from cusink.backends.numpy.clouds.exponents import Exponents, flat
from cusink.backends.numpy.clouds.layout import Workspace, sorted_clouds
from cusink.backends.numpy.forms.form import Finished
from cusink.backends.numpy.forms.log import LogReductions, finish_log
from cusink.backends.ranges import KERNEL_EXPONENT, UnderflowBound, flush
from cusink.costs.points import PointCosts
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray

Tile = tuple[slice, HostArray]  # rows of the kernel, and the kernel for them (rows, m)

UNLIFTED = {"float32": 30.0, "float64": 300.0}  # largest exponents of a kernel that is far from underflow as it is

CLOUDS = LogReductions(reductions.softmin, reductions.transport_cost)


class CloudKernel:
    """``K = 2**s exp(-C / eps)`` (n, m), kept if it takes at most half the memory limit, else made in tiles of rows.

    Problems are columns: every tile serves all of them.
    """

    shift: float = 0.0

    def __init__(self, C: PointCosts, dtype: Any, eps: float) -> None:
        self.C, self.eps, self.dtype = C, eps, np.dtype(dtype)
        # A lift that is added to exponents costs their last digits: only kernels that need it have one.
        self.s = KERNEL_EXPONENT[self.dtype.name] if C.largest(np) > UNLIFTED[self.dtype.name] * eps else 0
        cast = C if C.dtype == self.dtype else C.astype(self.dtype)
        self.side = sorted_clouds(cast, 0).side(1)
        n, m = self.side.shape
        self.kept = n * m * self.dtype.itemsize <= C.memory_limit // 2
        self.exponents = Exponents(self.side, np.zeros(m), 1 / eps, np.full(n, self.s * np.log(2)))
        self.order = self.side.order, self.side.columns

    def in_float32(self) -> "CloudKernel":
        """Return about the same kernel in float32."""
        return CloudKernel(self.C, np.float32, self.eps)

    def product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return ``K factor`` (axis 1) or ``K' factor`` (axis 0)."""
        return self._product(factor, axis, out, self._tiles())

    def product_of_rows(self, factor: HostArray, axis: Axis) -> HostArray:
        """Return the `product` with problems as rows."""
        return np.ascontiguousarray(self.product(factor.T, axis).T)

    def cost_product(self, factor: HostArray, axis: Axis, out: HostArray | None = None) -> HostArray:
        """Return the `product` with ``K * C / unit`` for K."""
        return self._product(factor, axis, out, self._cost_tiles())

    def underflow_bound(self, axis: Axis) -> UnderflowBound:
        """Return what `product` may lose."""
        return UnderflowBound.of_product(self.C.shape[axis], 2.0**self.s)

    def repair(self, potential: HostArray, sound: HostArray | Literal[True], logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin."""
        if sound is True or sound.all():
            return
        clouds = sorted_clouds(self.C, 0)
        for k in np.flatnonzero(~sound.all(axis=0)):
            side = clouds.side(axis, ~sound[:, k])
            potential[k, side.order] = reductions.softmin_of(side, logits[k][side.columns], self.eps)

    def finish_log(self, a: HostArray, b: HostArray, g: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` after a plain f-update as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, CLOUDS)

    @property
    def unit(self) -> float:
        """The unit of `cost_product`."""
        return self.C.largest(np) or 1.0

    @property
    def K(self) -> HostArray:  # noqa: N802
        """The kernel (n, m) as an array."""
        out = np.empty(self.side.shape, self.dtype)
        for rows, tile in self._tiles():
            out[np.ix_(self.order[0][rows], self.order[1])] = tile
        return out

    @property
    def costs(self) -> Array:
        """The cost (n, m) as an array."""
        return self.C.block(np)

    def _product(self, factor: HostArray, axis: Axis, out: HostArray | None, tiles: Iterable[Tile]) -> HostArray:
        """Return the product of a matrix that comes as tiles of rows."""
        n, m = self.side.shape
        kept, summed = self.order if axis == 1 else self.order[::-1]
        factor = np.ascontiguousarray(factor[summed], self.dtype)
        sums = np.zeros((n if axis == 1 else m, factor.shape[1]), self.dtype)
        for rows, tile in tiles:
            if axis == 1:
                np.matmul(tile, factor, out=sums[rows])
            else:
                sums += np.matmul(tile.T, factor[rows])
        out = np.empty_like(sums) if out is None else out
        out[kept] = sums
        return out

    def _tiles(self) -> Iterable[Tile]:
        """Return the tiles of K."""
        if not self.kept:
            return self._make(self._block, limits.LIMITS.cloud_kernel_entries)
        return [(slice(0, self.side.shape[0]), self._whole)]

    def _cost_tiles(self) -> Iterable[Tile]:
        """Return the tiles of ``K * C / unit``."""
        factor = self.dtype.type(self.eps / self.unit)

        def block(k: int, work: Workspace) -> HostArray:
            exponents, _ = self.exponents.block(k, work)
            K = np.exp(exponents, out=work.second(exponents.shape[1], self.side.all))
            np.subtract(self.dtype.type(self.s * np.log(2)), exponents, out=exponents)
            exponents *= factor
            exponents *= flush(K)
            return exponents

        return self._make(block, limits.LIMITS.cloud_kernel_entries)

    @cached_property
    def _whole(self) -> HostArray:
        n, m = self.side.shape
        [(_, whole)] = self._make(self._block, entries=(n + self.side.rows) * m)
        return whole

    def _block(self, k: int, work: Workspace) -> HostArray:
        block, _ = self.exponents.block(k, work)
        return flush(np.exp(block, out=block))

    def _make(self, block: Callable[[int, Workspace], HostArray], entries: int) -> Iterator[Tile]:
        """Iterate over tiles of about so many entries, made of blocks on all cores; each overwrites the one before."""
        side = self.side
        count = max(1, entries // (side.rows * side.shape[1]))
        out = np.empty((min(count * side.rows, side.shape[0]), side.shape[1]), self.dtype)
        for first in range(0, len(side.blocks), count):
            chosen = range(first, min(first + count, len(side.blocks)))
            start = side.blocks[first].start

            def fill(blocks: Sequence[int], work: Workspace, start: int = start) -> None:
                for k in blocks:
                    rows = side.blocks[k]
                    out[rows.start - start : rows.stop - start] = flat(block(k, work), side.shape[1])

            side.for_blocks(fill, blocks=chosen)
            stop = side.blocks[chosen[-1]].stop
            yield slice(start, stop), out[: stop - start]
