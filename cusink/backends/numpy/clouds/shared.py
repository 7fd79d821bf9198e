"""The kernel between two clouds that many problems share, in the place of `backends.numpy.forms.shared.DenseKernel`."""

import functools

import numpy as np

from cusink.backends.numpy.clouds import reductions
from cusink.backends.numpy.clouds.exponents import Exponents, flat
from cusink.backends.numpy.clouds.layout import pairs_for
from cusink.backends.numpy.forms.log import finish_log
from cusink.backends.ranges import KERNEL, Loss, flush

SLAB = 1 << 22  # entries that are made at a time where the kernel is not kept


class CloudKernel:
    """``K = 2**s exp(-C / eps)`` (n, m), kept if it takes no more than half the memory limit, else made in slabs.

    Problems are columns: every slab serves all of them.
    """

    shift = 0.0

    def __init__(self, C, dtype, eps):
        self.C, self.eps, self.dtype = C, eps, np.dtype(dtype)
        self.s = KERNEL[self.dtype.name]
        cast = C if C.dtype == self.dtype else C.astype(self.dtype)
        self.side = pairs_for(cast, 0).side(1)
        n, m = self.side.shape
        self.kept = n * m * self.dtype.itemsize <= C.memory_limit // 2
        self.exponents = Exponents(self.side, np.zeros(m), 1 / eps, np.full(n, self.s * np.log(2)))
        self.order = self.side.order, self.side.columns

    def product(self, factor, axis, out=None):
        """``K factor`` (axis 1) or ``K' factor`` (axis 0)."""
        return self._product(factor, axis, out, self._slabs())

    def product_of_rows(self, factor, axis):
        """As `product` with problems as rows."""
        return np.ascontiguousarray(self.product(factor.T, axis).T)

    def cost_product(self, factor, axis, out=None):
        """As `product` with ``K * C / unit`` in the place of K."""
        return self._product(factor, axis, out, self._priced_slabs())

    def loss(self, axis):
        """What `product` may lose."""
        return Loss.of_product(self.C.shape[axis], 2.0**self.s)

    def repair(self, potential, sound, logits, axis):
        """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin."""
        if np.all(sound):
            return
        pairs = pairs_for(self.C, 0)
        for k in np.flatnonzero(~sound.all(axis=0)):
            side = pairs.side(axis, ~sound[:, k])
            potential[k, side.order] = reductions.softmin_of(side, logits[k][side.columns], self.eps)

    def finish_log(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, reductions)

    @property
    def unit(self):
        """The unit of `cost_product`."""
        return self.C.largest(np) or 1.0

    @property
    def K(self):
        """The kernel (n, m) as an array."""
        out = np.empty(self.side.shape, self.dtype)
        for rows, slab in self._slabs():
            out[np.ix_(self.order[0][rows], self.order[1])] = slab
        return out

    @property
    def costs(self):
        """The cost (n, m) as an array."""
        return self.C.block(np)

    def _product(self, factor, axis, out, slabs):
        n, m = self.side.shape
        kept, summed = self.order if axis == 1 else self.order[::-1]
        factor = np.ascontiguousarray(factor[summed], self.dtype)
        sums = np.zeros((n if axis == 1 else m, factor.shape[1]), self.dtype)
        for rows, slab in slabs:
            if axis == 1:
                np.matmul(slab, factor, out=sums[rows])
            else:
                sums += np.matmul(slab.T, factor[rows])
        out = np.empty_like(sums) if out is None else out
        out[kept] = sums
        return out

    def _slabs(self):
        """Slices of rows, and K for them (rows, m)."""
        if not self.kept:
            return self._made(self._block)
        return [(slice(0, self.side.shape[0]), self._whole)]

    def _priced_slabs(self):
        """The same for ``K * C / unit``."""
        factor = self.dtype.type(self.eps / self.unit)

        def block(k, work):
            exponents, _ = self.exponents.block(k, work)
            K = np.exp(exponents, out=work.second(exponents.shape[1], self.side.all))
            np.subtract(self.dtype.type(self.s * np.log(2)), exponents, out=exponents)
            exponents *= factor
            exponents *= flush(K)
            return exponents

        return self._made(block)

    @functools.cached_property
    def _whole(self):
        n, m = self.side.shape
        [(_, whole)] = self._made(self._block, entries=(n + self.side.rows) * m)
        return whole

    def _block(self, k, work):
        block, _ = self.exponents.block(k, work)
        return flush(np.exp(block, out=block))

    def _made(self, block, entries=SLAB):
        """Slabs of blocks, one after another in one place; a thread for each part of a slab."""
        side = self.side
        count = max(1, entries // (side.rows * side.shape[1]))
        out = np.empty((min(count * side.rows, side.shape[0]), side.shape[1]), self.dtype)
        for first in range(0, len(side.blocks), count):
            chosen = range(first, min(first + count, len(side.blocks)))
            start = side.blocks[first].start

            def fill(blocks, work, start=start):
                for k in blocks:
                    rows = side.blocks[k]
                    out[rows.start - start : rows.stop - start] = flat(block(k, work), side.shape[1])

            side.for_parts(fill, blocks=chosen)
            stop = side.blocks[chosen[-1]].stop
            yield slice(start, stop), out[: stop - start]
