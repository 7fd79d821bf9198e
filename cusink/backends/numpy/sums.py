"""Sums of a kernel over all pairs of points, in NumPy: pairs are made in blocks that stay in cache, and never kept.

Arrays have a batch axis and one dtype: points x (B, n, d) and y (B, m, d), numbers per point (B, n) or (B, m). What the
kernel is, its `profile` says (`cusink.kernel_products.Profile`):

    "linear"   log k = rate * q                 q = |x - y|^2
    "root"     log k = rate * sqrt(q + shift)
    "log"      log k = rate * log(q + shift)

Up to four coordinates, differences are taken before squares, in the dtype of the points: that is exact far from the
origin, and as fast as the alternative. From five on ``|x|^2 + |y|^2 - 2 x y`` is one matrix product of centred points,
in float64 whatever the dtype, and the error of q is about 1e-16 of the squared diameter of the cloud.

Sums within a block are in the dtype of the points, sums of blocks in float64.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

DIFFERENCES = 4  # most coordinates that are taken one by one
COLUMNS, ENTRIES = 4096, 1 << 16  # of a block: long rows, and two or three arrays that fit into the cache of a core
THREADED_FROM = 1 << 21  # pairs that take longer than starting threads


def kernel_sums(x, y, v, profile):
    """``sum_j k(x_i, y_j) v_j`` (B, n)."""
    out = np.empty(x.shape[:2], x.dtype)
    for problem, (points, sources, value) in enumerate(zip(x, y, v, strict=True)):
        pairs = Pairs(points, sources, profile)

        def rows_done(rows, memory, pairs=pairs, value=value, problem=problem):
            total = np.float64(0)
            for columns in pairs.columns():
                total = total + np.vecdot(_kernel(pairs.base(rows, columns, memory), profile), value[columns])
            out[problem, rows] = total

        _each_block(pairs, rows_done)
    return out


def kernel_log_sums(x, y, q, profile):
    """``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    out = np.empty(x.shape[:2], x.dtype)
    lowest = np.finfo(x.dtype).min  # not -inf: -inf - lowest is -inf, and never NaN
    for problem, (points, sources, logit) in enumerate(zip(x, y, q, strict=True)):
        pairs = Pairs(points, sources, profile)

        def rows_done(rows, memory, pairs=pairs, logit=logit, problem=problem):
            maximum, total = lowest, 0
            for columns in pairs.columns():
                term = _log_kernel(pairs.base(rows, columns, memory), profile)
                term += logit[columns]
                highest = np.maximum(maximum, term.max(axis=1))
                term -= highest[:, None]
                np.exp(term, out=term)
                total = total * np.exp(maximum - highest).astype(np.float64) + term.sum(axis=1)
                maximum = highest
            out[problem, rows] = maximum + np.log(total)

        _each_block(pairs, rows_done)
    return out


def kernel_slopes(x, y, v, p, q, profile):
    """``sum_j w_ij`` (B, n) and ``sum_j w_ij grad_x log k(x_i, y_j)`` (B, n, d) with ``w_ij = k exp(p_i + q_j) v_j``.

    `p` and `q` are both None for zeros: then these are the kernel sums and their gradients by x. Where points coincide
    and the kernel has a kink, its slope is zero.
    """
    sums, slopes = np.empty(x.shape[:2], x.dtype), np.empty_like(x)
    for problem, (points, sources, value) in enumerate(zip(x, y, v, strict=True)):
        pairs = Pairs(points, sources, profile)
        logits = None if p is None else (p[problem], q[problem])

        def rows_done(rows, memory, pairs=pairs, value=value, logits=logits, problem=problem):
            total = slope = np.float64(0)
            for columns in pairs.columns():
                base = pairs.base(rows, columns, memory)
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

        _each_block(pairs, rows_done)
    return sums, slopes


class Pairs:
    """The pairs of x (n, d) with y (m, d), a block at a time."""

    def __init__(self, x, y, profile):
        (self.n, self.d), self.m, self.dtype, self.profile = x.shape, len(y), x.dtype, profile
        self.direct = self.d <= DIFFERENCES
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
        # Nearer points than this cannot be told from equal ones; a kernel with a kink takes them as equal.
        largest = squares[0].max() + squares[1].max()
        self.floor = 8 * np.finfo(np.float64).eps * largest if profile.shift == 0 and profile.form == "root" else 0

    def rows(self):
        size = max(1, ENTRIES // min(self.m, COLUMNS))
        return [slice(first, min(first + size, self.n)) for first in range(0, self.n, size)]

    def columns(self):
        return [slice(first, min(first + COLUMNS, self.m)) for first in range(0, self.m, COLUMNS)]

    def base(self, rows, columns, memory):
        """q, sqrt(q + shift) or q + shift of a block, by the form of the profile; in the first array of `memory`."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = memory.take(0, shape)
        if self.direct:
            other = memory.take(1, shape)
            for k in range(self.d):
                difference = other if k else out
                np.subtract(self.x[k, rows, None], self.y[k, columns], out=difference)
                difference *= difference
                if k:
                    out += other
        else:
            wide = memory.wide(shape)
            np.matmul(self.left[rows], self.right[:, columns], out=wide)
            if self.floor:
                wide *= wide > self.floor
            np.maximum(wide, 0, out=out, casting="same_kind")
        if self.profile.form != "linear":
            if self.profile.shift:
                out += self.dtype.type(self.profile.shift)
            if self.profile.form == "root":
                np.sqrt(out, out=out)
        return out

    def differences(self, factors, rows, columns, memory):
        """``sum_j factors_ij (x_i - y_j)`` (rows, d) of a block."""
        if not self.direct:
            wide = memory.wide(factors.shape)
            wide[:] = factors
            sums = wide @ self.y[columns]
            return self.x[rows] * sums[:, -1:] - sums[:, :-1]
        out = np.empty((len(factors), self.d), factors.dtype)
        difference = memory.take(0, factors.shape)
        for k in range(self.d):
            np.subtract(self.x[k, rows, None], self.y[k, columns], out=difference)
            out[:, k] = np.vecdot(factors, difference)
        return out


class Memory:
    """The work arrays of one thread; a block of any shape is contiguous in them."""

    def __init__(self, entries, dtype):
        self.arrays = [np.empty(entries, dtype) for _ in range(2)]
        self.entries, self.product = entries, None

    def take(self, number, shape):
        return self.arrays[number][: shape[0] * shape[1]].reshape(shape)

    def wide(self, shape):
        if self.product is None:
            self.product = np.empty(self.entries)
        return self.product[: shape[0] * shape[1]].reshape(shape)


def _each_block(pairs, work):
    """Call ``work(rows, memory)`` for all blocks of rows, on all cores if there is enough to do."""
    blocks = pairs.rows()
    workers = min(os.cpu_count() or 1, len(blocks)) if pairs.n * pairs.m >= THREADED_FROM else 1

    def share(first):
        memory = Memory((blocks[0].stop - blocks[0].start) * min(pairs.m, COLUMNS), pairs.dtype)
        with np.errstate(all="ignore"):  # exp underflows by design, and far points may have an infinite q
            for rows in blocks[first::workers]:
                work(rows, memory)

    if workers == 1:
        share(0)
        return
    with ThreadPoolExecutor(workers) as pool:  # NumPy lets go of the interpreter inside each operation
        list(pool.map(share, range(workers)))


def _log_kernel(base, profile, out=None):
    """Log k of what `Pairs.base` gives, in its place unless there is another."""
    out = base if out is None else out
    if profile.form == "log":
        base = np.log(base, out=out)
    return np.multiply(base, base.dtype.type(profile.rate), out=out)


def _kernel(base, profile):
    """K of what `Pairs.base` gives, in its place."""
    if profile.form == "log" and profile.rate == -0.25:
        np.sqrt(base, out=base)
        np.sqrt(base, out=base)
        return np.reciprocal(base, out=base)
    _log_kernel(base, profile)
    return np.exp(base, out=base)
