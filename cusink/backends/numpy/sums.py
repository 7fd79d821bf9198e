"""Sums of a radial kernel over all pairs of points, in NumPy: in blocks that stay in the cache and are never kept.

Arrays have a batch axis and one dtype: points x (B, n, d) and y (B, m, d), numbers per point (B, n) or (B, m). A
`Profile` gives the kernel.

Up to four coordinates, differences are taken before squares, in the dtype of the points: that is exact far from the
origin, and as fast as the alternative. From five on ``|x|^2 + |y|^2 - 2 x y`` is one matrix product of centred points,
in float64 for both dtypes, and the error of q is about 1e-16 of the squared diameter of the cloud.

Sums within a block are in the dtype of the points, sums of blocks in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.distances import fill_distances
from cusink.backends.numpy.workers import cores, run_all
from cusink.backends.profile import Profile
from cusink.types import HostArray

DIFFERENCE_DIMENSIONS = 4  # at most, in which differences are taken coordinate by coordinate


def kernel_sums(x: HostArray, y: HostArray, v: HostArray, profile: Profile) -> HostArray:
    """Return ``sum_j k(x_i, y_j) v_j`` (B, n)."""
    out = np.empty(x.shape[:2], x.dtype)
    for problem, (points, sources, value) in enumerate(zip(x, y, v, strict=True)):
        pairs = PointPairs(points, sources, profile)

        def sum_rows(
            rows: slice,
            memory: Memory,
            pairs: PointPairs = pairs,
            value: HostArray = value,
            problem: int = problem,
        ) -> None:
            total: Any = np.float64(0)
            for columns in pairs.columns():
                total = total + np.vecdot(_kernel(pairs.base(rows, columns, memory), profile), value[columns])
            out[problem, rows] = total

        _for_blocks(pairs, sum_rows)
    return out


def kernel_log_sums(x: HostArray, y: HostArray, q: HostArray, profile: Profile) -> HostArray:
    """Return ``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    out = np.empty(x.shape[:2], x.dtype)
    lowest = np.finfo(x.dtype).min  # not -inf: -inf - lowest is -inf, and never NaN
    for problem, (points, sources, logit) in enumerate(zip(x, y, q, strict=True)):
        pairs = PointPairs(points, sources, profile)

        def sum_rows(
            rows: slice,
            memory: Memory,
            pairs: PointPairs = pairs,
            logit: HostArray = logit,
            problem: int = problem,
        ) -> None:
            maximum: Any = lowest
            total: Any = 0
            for columns in pairs.columns():
                term = _log_kernel(pairs.base(rows, columns, memory), profile)
                term += logit[columns]
                highest = np.maximum(maximum, term.max(axis=1))
                term -= highest[:, None]
                np.exp(term, out=term)
                total = total * np.exp(maximum - highest).astype(np.float64) + term.sum(axis=1)
                maximum = highest
            out[problem, rows] = maximum + np.log(total)

        _for_blocks(pairs, sum_rows)
    return out


def kernel_slopes(
    x: HostArray, y: HostArray, v: HostArray, p: HostArray | None, q: HostArray | None, profile: Profile
) -> tuple[HostArray, HostArray]:
    """Return ``sum_j w_ij`` (B, n) and ``sum_j w_ij grad_x log k(x_i, y_j)`` (B, n, d).

    The weights are ``w_ij = k exp(p_i + q_j) v_j``. `p` and `q` are both None for zeros: these are then the kernel sums
    and their gradients with respect to x. Where points coincide and the kernel has a kink, its slope is zero.
    """
    sums, slopes = np.empty(x.shape[:2], x.dtype), np.empty_like(x)
    for problem, (points, sources, value) in enumerate(zip(x, y, v, strict=True)):
        pairs = PointPairs(points, sources, profile)
        logits = None if p is None or q is None else (p[problem], q[problem])

        def sum_rows(
            rows: slice,
            memory: Memory,
            pairs: PointPairs = pairs,
            value: HostArray = value,
            logits: tuple[HostArray, HostArray] | None = logits,
            problem: int = problem,
        ) -> None:
            total: Any = np.float64(0)
            slope: Any = np.float64(0)
            for columns in pairs.columns():
                base = pairs.base(rows, columns, memory)
                if profile.form == "distance":
                    term = memory.take(1, base.shape)
                    term[...] = value[columns]
                    total = total + profile.rate * np.vecdot(base, term)
                else:
                    term = _log_kernel(base, profile, memory.take(1, base.shape))
                    if logits is not None:
                        term += logits[1][columns]
                        term += logits[0][rows, None]
                    np.exp(term, out=term)
                    term *= value[columns]
                    total = total + term.sum(axis=1)
                if profile.form != "linear":
                    # Where the base is 0, so is the difference.
                    np.divide(term, base, out=term, where=True if profile.shift else base != 0)
                slope = slope + pairs.differences(term, rows, columns, memory)
            sums[problem, rows] = total
            slopes[problem, rows] = profile.slope * slope

        _for_blocks(pairs, sum_rows)
    return sums, slopes


class Memory:
    """The work arrays of one thread; a block of any shape is contiguous in them."""

    def __init__(self, entries: int, dtype: np.dtype[Any]) -> None:
        self.arrays = [np.empty(entries, dtype) for _ in range(2)]
        self.entries = entries
        self.product: HostArray | None = None

    def take(self, number: int, shape: tuple[int, ...]) -> HostArray:
        """Return an uninitialised block in array 0 or 1."""
        return self.arrays[number][: shape[0] * shape[1]].reshape(shape)

    def wide(self, shape: tuple[int, ...]) -> HostArray:
        """Return an uninitialised block in float64."""
        if self.product is None:
            self.product = np.empty(self.entries)
        return self.product[: shape[0] * shape[1]].reshape(shape)


class PointPairs:
    """The pairs of x (n, d) with y (m, d), a block at a time."""

    def __init__(self, x: HostArray, y: HostArray, profile: Profile) -> None:
        (self.n, self.d), self.m, self.dtype, self.profile = x.shape, len(y), x.dtype, profile
        self.direct = self.d <= DIFFERENCE_DIMENSIONS
        if self.direct:
            self.x, self.y = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)
            return
        centre = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
        x, y = x - centre, y - centre
        squares = [np.vecdot(points, points) for points in (x, y)]
        # |x|^2 + |y|^2 - 2 x y of a block is one product of these, and x (sum F) - F y another.
        self.left = np.column_stack([x, squares[0], np.ones(self.n)])
        self.right = np.ascontiguousarray(np.column_stack([-2 * y, np.ones(self.m), squares[1]]).T)
        self.x, self.y = x, np.column_stack([y, np.ones(self.m)])
        # Points nearer than this cannot be told from equal ones; for a kernel with a kink they count as equal.
        largest = squares[0].max() + squares[1].max()
        kink = profile.form == "distance" or (profile.form == "root" and profile.shift == 0)
        self.floor = 8 * np.finfo(np.float64).eps * largest if kink else 0

    def rows(self) -> list[slice]:
        """Return the rows of each block."""
        size = max(1, limits.LIMITS.sum_block_entries // min(self.m, limits.LIMITS.sum_block_columns))
        return [slice(first, min(first + size, self.n)) for first in range(0, self.n, size)]

    def columns(self) -> list[slice]:
        """Return the columns of each block."""
        size = limits.LIMITS.sum_block_columns
        return [slice(first, min(first + size, self.m)) for first in range(0, self.m, size)]

    def base(self, rows: slice, columns: slice, memory: Memory) -> HostArray:
        """Return q, sqrt(q + shift), q + shift or sqrt(q) of a block, by the form; in the first array of `memory`."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = memory.take(0, shape)
        if self.direct:
            fill_distances(self.x[:, rows, None], self.y[:, columns], out, memory.take(1, shape))
        else:
            wide = memory.wide(shape)
            np.matmul(self.left[rows], self.right[:, columns], out=wide)
            if self.floor:
                wide *= wide > self.floor
            np.maximum(wide, 0, out=out, casting="same_kind")
        if self.profile.form != "linear":
            if self.profile.shift:
                out += self.dtype.type(self.profile.shift)
            if self.profile.form != "log":
                np.sqrt(out, out=out)
        return out

    def differences(self, factors: HostArray, rows: slice, columns: slice, memory: Memory) -> HostArray:
        """Return ``sum_j factors_ij (x_i - y_j)`` (rows, d) of a block."""
        if not self.direct:
            wide = memory.wide(factors.shape)
            wide[:] = factors
            sums = wide @ self.y[columns]
            slopes: HostArray = self.x[rows] * sums[:, -1:] - sums[:, :-1]
            return slopes
        out = np.empty((len(factors), self.d), factors.dtype)
        difference = memory.take(0, factors.shape)
        for k in range(self.d):
            np.subtract(self.x[k, rows, None], self.y[k, columns], out=difference)
            out[:, k] = np.vecdot(factors, difference)
        return out


def _for_blocks(pairs: PointPairs, work: Callable[[slice, Memory], None]) -> None:
    """Call ``work(rows, memory)`` for all blocks of rows, on all cores if there is enough to do."""
    blocks, sizes = pairs.rows(), limits.LIMITS
    workers = min(cores(), len(blocks)) if pairs.n * pairs.m >= sizes.threaded_pairs else 1

    def run(first: int) -> None:
        memory = Memory((blocks[0].stop - blocks[0].start) * min(pairs.m, sizes.sum_block_columns), pairs.dtype)
        with np.errstate(all="ignore"):  # exp underflows by design, and far points may have an infinite q
            for rows in blocks[first::workers]:
                work(rows, memory)

    run_all(run, range(workers))


def _log_kernel(base: HostArray, profile: Profile, out: HostArray | None = None) -> HostArray:
    """Return log k of a `PointPairs.base`, in its place unless there is another."""
    out = base if out is None else out
    if profile.form == "log":
        base = np.log(base, out=out)
    np.multiply(base, base.dtype.type(profile.rate), out=out)
    return out


def _kernel(base: HostArray, profile: Profile) -> HostArray:
    """Return k of a `PointPairs.base`, in its place."""
    if profile.form == "distance":
        base *= base.dtype.type(profile.rate)
        return base
    if profile.form == "log" and profile.rate == -0.25:
        np.sqrt(base, out=base)
        np.sqrt(base, out=base)
        return np.reciprocal(base, out=base)
    _log_kernel(base, profile)
    return np.exp(base, out=base)
