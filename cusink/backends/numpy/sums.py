"""Sums of a radial kernel over all pairs of points, in NumPy: in blocks that stay in the cache and are never kept.

Arrays have a batch axis and one dtype: points x (B, n, d) and y (B, m, d), numbers per point (B, n) or (B, m). A
`Profile` gives the kernel; `cusink.backends.numpy.pairs` makes the pairs. Points y without weight are left out: however
far off they lie, they cost no other point a digit.

Sums within a block are in the dtype of the points, a few terms for each of the lanes of a vector; sums of blocks are in
float64.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.backends.numpy import limits
from cusink.backends.numpy.pairs import Memory, PointPairs
from cusink.backends.numpy.workers import run_all
from cusink.backends.profile import Profile
from cusink.backends.spare import Spare
from cusink.types import HostArray


def kernel_sums(x: HostArray, y: HostArray, v: HostArray, profile: Profile) -> HostArray:
    """Return ``sum_j k(x_i, y_j) v_j`` (B, n)."""
    out = np.empty(x.shape[:2], x.dtype)
    for problem, (points, sources, value) in enumerate(zip(x, y, v, strict=True)):
        sources, value = _with_weight(value != 0, sources, value)
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
            out[problem, pairs.places(rows)] = total

        _for_blocks(pairs, sum_rows)
    return out


def kernel_log_sums(x: HostArray, y: HostArray, q: HostArray, profile: Profile) -> HostArray:
    """Return ``log(sum_j k(x_i, y_j) exp(q_j))`` (B, n); -inf where every term is zero."""
    out = np.empty(x.shape[:2], x.dtype)
    lowest = np.finfo(x.dtype).min  # not -inf: -inf - lowest is -inf, and never NaN
    for problem, (points, sources, logit) in enumerate(zip(x, y, q, strict=True)):
        sources, logit = _with_weight(logit != -np.inf, sources, logit)
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
            out[problem, pairs.places(rows)] = maximum + np.log(total)

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
        logits = None if p is None or q is None else (p[problem], q[problem])
        mask = value != 0
        if logits is not None:
            mask &= logits[1] != -np.inf
            logits = logits[0], *_with_weight(mask, logits[1])
        sources, value = _with_weight(mask, sources, value)
        pairs = PointPairs(points, sources, profile)

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
                        term += logits[0][pairs.places(rows), None]
                    np.exp(term, out=term)
                    term *= value[columns]
                    total = total + term.sum(axis=1)
                if profile.form != "linear":
                    # Where the base is 0, so is the difference.
                    np.divide(term, base, out=term, where=True if profile.shift else base != 0)
                slope = slope + pairs.differences(term, rows, columns, memory)
            sums[problem, pairs.places(rows)] = total
            slopes[problem, pairs.places(rows)] = profile.slope * slope

        _for_blocks(pairs, sum_rows)
    return sums, slopes


def _for_blocks(pairs: PointPairs, work: Callable[[slice, Memory], None]) -> None:
    """Call ``work(rows, memory)`` for all blocks of rows, on all cores if there is enough to do."""
    blocks, sizes = pairs.rows(), limits.LIMITS
    entries = (blocks[0].stop - blocks[0].start) * min(pairs.m, sizes.sum_block_columns)
    memories = Spare(functools.partial(Memory, entries, pairs.dtype))

    def run(rows: slice) -> None:
        # exp underflows by design, and far points may have an infinite q
        with memories.borrow() as memory, np.errstate(all="ignore"):
            work(rows, memory)

    if pairs.n * pairs.m >= sizes.threaded_pairs:
        run_all(run, blocks)
    else:
        for rows in blocks:
            run(rows)


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


def _with_weight(mask: HostArray, *arrays: HostArray) -> tuple[HostArray, ...]:
    """Return the entries of arrays over the points y at which these have weight."""
    return arrays if mask.all() else tuple(array[mask] for array in arrays)
