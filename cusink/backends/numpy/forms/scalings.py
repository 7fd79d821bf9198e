"""The arrays of problems whose scalings are columns, and reductions of them."""

import itertools
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from cusink.backends.numpy.forms.kernel import log_scaled
from cusink.backends.ranges import flush
from cusink.types import HostArray, Order

MORE, LESS = 4, 3  # the room to what is used of it: the rest is never fetched, but makes the piece a larger one


class Workspace(NamedTuple):
    """Arrays like U (n, B) and like V (m, B). They are kept: to fetch memory takes longer than to use it.

    ``more`` is omega times ``gamma``, of problems that are over-relaxed; `last_sums` are the sums of the last update.
    """

    U: HostArray
    row_sums: HostArray
    last_sums: HostArray
    gamma_a: HostArray
    more_a: HostArray
    V: HostArray
    column_sums: HostArray
    gamma_b: HostArray
    more_b: HostArray
    scratch_rows: HostArray
    scratch_columns: HostArray


class Room:
    """The memory of scalings and of the work with them, in one piece; problems that go on work in the room of all.

    To fetch memory takes longer than to use it. The allocator of Linux keeps freed memory for the next call while it is
    at most twice the largest piece that was ever freed, which is this one.

    In the `order` "F" the numbers of a problem lie together.
    """

    def __init__(self, dtype: Any, order: Order) -> None:
        self._memory, self.order = np.empty(0, dtype), order

    def begun(self, bins: tuple[int, int], problems: int) -> tuple[list[HostArray], Workspace]:
        """Return arrays for a, b, U and V of problems, and their workspace."""
        states = [(count, problems) for count in bins] * 2
        arrays = self._divided([*states, *_shapes(bins, problems)])
        return arrays[:4], Workspace._make(arrays[4:])

    def workspace(self, bins: tuple[int, int], problems: int) -> Workspace:
        """Return the workspace of problems whose a, b, U and V lie elsewhere by now."""
        return Workspace._make(self._divided(_shapes(bins, problems)))

    def is_large_for(self, bins: tuple[int, int], problems: int) -> bool:
        """Return whether the workspace of so many problems is a small part of this."""
        return 4 * MORE * _total(_shapes(bins, problems)) < LESS * self._memory.size

    def _divided(self, shapes: list[tuple[int, int]]) -> list[HostArray]:
        """Return arrays of these shapes; the last two lie on each other."""
        total = _total(shapes)
        if self._memory.size < total:
            self._memory = np.empty(MORE * total // LESS, self._memory.dtype)
        sizes = [math.prod(shape) for shape in shapes]
        starts = list(itertools.accumulate(sizes[:-2], initial=0))
        parts = zip(shapes, sizes, [*starts, starts[-1]], strict=True)
        return [self._memory[start : start + size].reshape(shape, order=self.order) for shape, size, start in parts]


def _shapes(bins: tuple[int, int], problems: int) -> list[tuple[int, int]]:
    """Return the shapes of the arrays of a workspace. The scratches come last: never both are in use."""
    n, m = bins
    return [(n, problems)] * 5 + [(m, problems)] * 4 + [(n, problems), (m, problems)]


def _total(shapes: list[tuple[int, int]]) -> int:
    """Return how many numbers the arrays of these shapes take, the last two in one place."""
    *sizes, rows, columns = map(math.prod, shapes)
    return sum(sizes) + max(rows, columns)


class Numerators(NamedTuple):
    """The largest entries of ``gamma b`` and ``gamma a``, and the columns (B,) in which none underflows."""

    largest: tuple[float, float]  # by the axis of the kernel that an update sums over
    normal: HostArray | Literal[True]


class LastUpdate(NamedTuple):
    """Problems at their last update: weights, scaling of b, sums T (n, B), room S (m, B), numerators, exponents.

    Also which problems are `inside` the range, which sums are `sound`, room for more work (m, B), and what is `known`
    of plain problems.
    """

    a: HostArray
    b: HostArray
    smallest: HostArray
    V: HostArray
    T: HostArray
    S: HostArray
    gamma_a: HostArray
    gamma_b: HostArray
    eu: HostArray
    ev: HostArray
    inside: HostArray
    sound: HostArray | Literal[True]
    room: HostArray
    known: "Measure | None"


class Measure(NamedTuple):
    """Problems as they are after a plain update of both sides: scaling of a, column sums, marginal errors (B,)."""

    U: HostArray
    S: HostArray
    error: HostArray


def fill_numerators(
    s: int,
    a: HostArray,
    b: HostArray,
    smallest: HostArray,
    eu: HostArray,
    ev: HostArray,
    gamma_a: HostArray,
    gamma_b: HostArray,
) -> Numerators:
    """Fill in ``gamma a`` and ``gamma b`` of a kernel with the factor ``2**s``."""
    limits, gamma = np.finfo(a.dtype), np.exp2(s - eu - ev)
    normal = (gamma * smallest >= float(limits.tiny)) & (gamma <= float(limits.max) / 2)
    gamma = gamma.astype(a.dtype)
    np.multiply(gamma, a, out=gamma_a)
    np.multiply(gamma, b, out=gamma_b)
    tops = float(gamma_b.max(initial=0)), float(gamma_a.max(initial=0))
    return Numerators(tops, True if normal.all() else normal)


def begin(out: HostArray, weights: HostArray, potential: HostArray | None, eps: float, top: int) -> HostArray:
    """Fill `out` with ``weights * exp(potential / eps) / 2**exponent``, its largest entries at about ``2**top``.

    Return the exponent (B,). The potential None is 0.
    """
    if potential is None:
        np.multiply(weights, 2.0**top, out=out)
        return np.full(weights.shape[1], -float(top))
    log = np.log2(np.where(weights > 0, weights, 1), dtype=np.float64) + potential / (eps * np.log(2))
    exponent: HostArray = np.ceil(np.where(weights > 0, log, -np.inf).max(axis=0)) - top
    out[...] = np.where(weights > 0, np.exp2(np.minimum(log - exponent, top)), 0)
    return exponent


def rebalance(scaling: HostArray, exponent: HostArray, top: int) -> None:
    """Scale the largest entry of each column to about ``2**top``, in place; add the power of two to `exponent`."""
    _, shift = np.frexp(scaling.max(axis=0, initial=0))
    shift -= top
    scaling *= np.exp2(-shift).astype(scaling.dtype)
    flush(scaling)
    exponent += shift


def taken(array: HostArray, problems: HostArray) -> HostArray:
    """Return the entries or the columns of `problems`, in memory as they lie there."""
    return array.take(problems, -1) if array.flags.c_contiguous else array.T.take(problems, 0).T


def both(one: HostArray | Literal[True], other: HostArray | Literal[True]) -> HostArray | Literal[True]:
    """Return the columns that are in both; True stands for all."""
    return other if one is True else one if other is True else one & other


def distance(scaling: HostArray, sums: HostArray, numerators: HostArray, out: HostArray) -> HostArray:
    """Return ``sum |scaling * sums - numerators|`` of each column; overwrite `out`, which may be `sums`."""
    np.multiply(sums, scaling, out=out)
    out -= numerators
    total: HostArray = np.abs(out, out=out).sum(axis=0)
    return total


def empty_bins(weights: HostArray) -> HostArray | None:
    """Return 1 where a weight is zero and 0 elsewhere; None where no weight is zero."""
    return None if weights.min(initial=1) > 0 else (weights == 0).astype(weights.dtype)


def smallest_weight(weights: HostArray) -> HostArray:
    """Return the smallest positive weight of each column."""
    smallest: HostArray = weights.min(axis=0)
    if not smallest.all():
        smallest = np.where(weights > 0, weights, np.inf).min(axis=0)
    return smallest


def normal_columns(scaling: HostArray, weights: HostArray, tiny: float) -> HostArray:
    """Return the columns in which every positive weight has a finite scaling that has not underflowed."""
    if scaling.min(initial=1) >= tiny and scaling.max(initial=1) < np.inf:
        return np.ones(scaling.shape[1], bool)
    normal: HostArray = (((scaling >= tiny) & (scaling < np.inf)) | (weights == 0)).all(axis=0)
    return normal


def log2_ratio(most: Any, least: Any) -> Any:
    """Return ``log2(most / least)`` of positive numbers, in float64."""
    return np.log2(most, dtype=np.float64) - np.log2(least, dtype=np.float64)


def log_ratio(scaling: HostArray, weights: HostArray, exponent: HostArray) -> HostArray:
    """Return ``log(scaling * 2**exponent / weights)`` (B, n), 0 where the weight is zero."""
    positive = weights > 0
    tiny = np.finfo(scaling.dtype).tiny  # reached only in problems that no form can go on with
    scaling, weights = (np.where(positive, x, 1).astype(np.float64) for x in (np.maximum(scaling, tiny), weights))
    return np.where(positive, np.log(scaling) - np.log(weights) + exponent * np.log(2), 0.0)


def log_quotient(scaling: HostArray, weights: HostArray, exponent: HostArray) -> HostArray:
    """Return ``log(scaling * 2**exponent / weights)`` of columns, transposed, in float64."""
    with np.errstate(over="ignore"):
        quotient = scaling / weights
    if quotient.max(initial=0) < np.inf:
        return log_scaled(quotient, exponent)
    return log_scaled(scaling, exponent) - np.log(weights.T, dtype=np.float64)
