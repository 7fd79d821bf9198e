"""Conditional means under plans, prepared so that many can be taken: a matrix product each, where that is certified.

The solution of a system with the plan as its matrix takes means many times. Problems that share a cost take theirs as
one product with a common kernel (`SharedMeans`) where every sum is certified to have lost nothing; the others, and
problems with a cost each, in tiles of a few problems whose kernels exist while the tile does (`TileMeans`).
"""

import math
from collections.abc import Generator, Iterator
from typing import Literal

import numpy as np

from cusink.backends import stored
from cusink.backends.numpy import limits
from cusink.backends.numpy.certificate import certified
from cusink.backends.numpy.forms.kernel import DenseKernel, Kernel
from cusink.backends.ranges import SCALING_EXPONENT, flush
from cusink.costs.heap import keep_heap
from cusink.costs.means import Means, Smoothing
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray

IndexedMeans = tuple[HostArray, Means]  # numbers of problems, and their means

ARRAYS_OF_A_SOLVE = 12  # of the weights' size, twice which malloc is to keep
NEAR_ONE = 2.0**20  # largest size, and inverse of the smallest, of what a plan is multiplied with as it is
MOST_TURNED = 1 << 18  # bytes of a kernel whose transpose is copied, for products that read it row by row
MODERATE = 300.0  # size of exponents that need no unit of their own
SMALL_EXPONENT, SMALL_WEIGHT = -600.0, 1e-40  # whose exponential times which is no denormal


def plan_means(
    C: HostArray, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[IndexedMeans]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    rest = np.arange(len(a))
    if C.ndim == 2:
        for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
            rest = yield from shared_means(DenseKernel(C, dtype, eps), rest, a, b, f, g)
    yield from tile_means(C, rest, a, b, f, g, eps)


def tile_means(
    C: HostArray, rest: HostArray, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[IndexedMeans]:
    """Iterate over ``(index, means)`` of the problems at `rest`, for any range of costs."""
    size = max(1, limits.LIMITS.kernel_tile_bytes // (C.shape[-2] * C.shape[-1] * 8))
    for start in range(0, len(rest), size):
        index = rest[start : start + size]
        yield index, _tile(stored.select(C, index), a[index], b[index], f[index], g[index], eps)


def shared_means(
    kernel: Kernel, rest: HostArray, a: HostArray, b: HostArray, f: HostArray, g: HostArray
) -> Generator[IndexedMeans, None, HostArray]:
    """Iterate over ``(index, means)`` of those problems at `rest` that are in the range of their common kernel.

    Returns the others.
    """
    if not len(rest):
        return rest
    some = (a, b, f, g) if len(rest) == len(a) else tuple(x[rest] for x in (a, b, f, g))
    means, inside = _shared(kernel, *(x.astype(kernel.dtype, copy=False) for x in some))
    if inside.all():
        yield rest, means
    elif inside.any():
        yield rest[inside], means.at(np.flatnonzero(inside))
    return rest[~inside]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
def _shared(kernel: Kernel, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> tuple["SharedMeans", HostArray]:
    """Return means of problems that share one kernel, and which of the problems (B,) are in its range."""
    keep_heap(ARRAYS_OF_A_SOLVE * (a.size + b.size) * 8)
    U, V = (_scaling(weights, potential, kernel) for weights, potential in ((a, f), (b, g)))
    means = SharedMeans(kernel, a, U, V, kernel.product_of_rows(V, 1), kernel.product_of_rows(U, 0))
    inside = np.ones(len(a), bool)
    for sound in means.certificates(a, b):
        inside &= True if sound is True else sound.all(axis=0)
    return means, inside


def _scaling(weights: HostArray, potential: HostArray, kernel: Kernel) -> HostArray:
    """Return ``weights * exp(potential / eps)`` (B, n), each row in a unit in which its largest entry is in range."""
    logs = np.divide(potential, kernel.eps, dtype=np.float64)
    lowest = logs.min()
    if not -MODERATE < lowest <= logs.max() < MODERATE:
        if not np.isfinite(logs).all():
            logs[~np.isfinite(logs)] = 0  # a bin that no mass can reach has no finite potential
        if weights.all():
            logs -= logs.max(axis=1, keepdims=True)
        else:  # bins without weight may have any potential
            logs -= np.where(weights > 0, logs, -np.inf).max(axis=1, keepdims=True)
            np.minimum(logs, 0, out=logs)
        lowest = logs.min()
    exponent, least = SCALING_EXPONENT[kernel.dtype.name], weights.min() or weights.min(where=weights > 0, initial=1)
    if lowest < SMALL_EXPONENT or least < SMALL_WEIGHT:  # denormals have lost digits, which no unit gives back
        logs += np.log(np.where(weights > 0, weights, 1), dtype=np.float64)
        logs -= np.where(weights > 0, logs, -np.inf).max(axis=1, keepdims=True)
        logs += (exponent - 1) * np.log(2)
        scaling: HostArray = np.where(weights > 0, np.exp(logs, out=logs), 0)
    else:
        scaling = np.exp(logs, out=logs)
        scaling *= weights
        _, largest = np.frexp(scaling.max(axis=1, keepdims=True))
        scaling *= np.exp2(exponent - largest.astype(float))
    return flush(scaling.astype(kernel.dtype, copy=False))


class SharedMeans(Means):
    """Problems as scalings U (B, n) and V (B, m) of one kernel K (n, m), with the sums T = K V and S = K' U."""

    def __init__(self, kernel: Kernel, a: HostArray, U: HostArray, V: HostArray, T: HostArray, S: HostArray) -> None:
        self.kernel, self.a, self.U, self.V, self.T, self.S = kernel, a, U, V, T, S
        self.scratch: dict[Axis, HostArray] = {}  # room for the factor of a product

    def certificates(self, a: HostArray, b: HostArray) -> Iterator[HostArray | Literal[True]]:
        """Iterate over which sums T (n, B) and S (m, B) lost nothing, given the weights; True for all of them."""
        sides: tuple[tuple[HostArray, HostArray, HostArray, Axis], ...] = (self.T, self.V, b, 1), (self.S, self.U, a, 0)
        for sums, factor, weights, axis in sides:
            yield certified(self.kernel.underflow_bound(axis), sums.T, factor.T, weights.T)

    def mean(self, v: HostArray, axis: Axis) -> Array:
        """Return the means of v given each bin of the other side, whether it has weight or not."""
        out = self._product(v, axis)
        out /= self.T if axis == 1 else self.S
        return out

    def _product(self, v: HostArray, axis: Axis) -> HostArray:
        """Return ``K (V v)`` or ``K' (U v)``."""
        factor = self.V if axis == 1 else self.U
        if axis not in self.scratch:
            self.scratch[axis] = np.empty_like(factor)
        return self.kernel.product_of_rows(np.multiply(factor, v, out=self.scratch[axis], casting="same_kind"), axis)

    def rooted(self, axis: Axis, root: HostArray, inverse: HostArray) -> Smoothing:
        """Return what takes v to ``root * smoothed(inverse * v)``, for an array as kernel with factors made once."""
        if not isinstance(self.kernel, DenseKernel):
            return super().rooted(axis, root, inverse)
        own, other, sums, of_own = (self.V, self.U, self.T, self.S) if axis == 0 else (self.U, self.V, self.S, self.T)
        K, info = self.kernel.K, np.finfo(sums.dtype)
        turned = K.T if len(own) == 1 or K.nbytes > MOST_TURNED else np.ascontiguousarray(K.T)
        between: tuple[HostArray, ...] = (other / sums,)
        if not info.tiny <= between[0].min() <= between[0].max() <= info.max:  # or other is 0
            between = 1 / sums, other
        return DenseSmoothing((turned, K) if axis == 0 else (K, turned), own * inverse, between, flush(root / of_own))

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the cost given each bin."""
        factor, sums = (self.V, self.T) if axis == 1 else (self.U, self.S)
        out = np.empty_like(sums)
        self.kernel.cost_product(factor.T, axis, out=out.T)
        out /= sums
        out *= self.kernel.unit
        return out

    def mean_less_cost(self, v: HostArray, eps: Array | float, axis: Axis) -> Array:
        """Return the means of v less those of the cost over eps."""
        factor, sums = (self.V, self.T) if axis == 1 else (self.U, self.S)
        out, costs = self._product(v, axis), np.empty_like(sums)
        self.kernel.cost_product(factor.T, axis, out=costs.T)
        costs *= self.kernel.unit / eps
        out -= costs
        out /= sums
        return out

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        if axis == 1:
            return self.a
        sums = self.V * self.S  # those of the plan in some unit, which has the mass of the rows
        total = np.vecdot(self.V, self.S)[:, None]
        sums /= np.where(total > 0, total, 1)
        sums *= self.a.sum(axis=1, keepdims=True)  # of which little may be left: not divided by any unit
        return sums

    @np.errstate(invalid="ignore")  # as in the products of `DenseKernel`
    def plan_sum(self, rows: HostArray, columns: HostArray | None, costs: HostArray | None) -> HostArray:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        unit = _unit(rows, columns, None if costs is None else costs * self.kernel.unit)
        if unit != 1:  # factors have little room below themselves
            scaled = (None if x is None else x / x.dtype.type(unit) for x in (columns, costs))
            total: HostArray = self.plan_sum(rows / rows.dtype.type(unit), *scaled)
            total *= total.dtype.type(unit)
            return total
        K, factors = self.kernel.K, self._row_factors()
        out: HostArray = (factors * rows).T @ self.V
        if columns is not None:
            out += factors.T @ (self.V * columns)
        if costs is not None:
            unit = self.kernel.unit
            out += ((factors * (costs * unit)[:, None]).T @ self.V) * np.where(K > 0, self.kernel.costs / unit, 0)
        out *= K
        return out

    def at(self, index: HostArray) -> "SharedMeans":
        """Return the means of the problems at `index`."""
        return SharedMeans(self.kernel, *(x[index] for x in (self.a, self.U, self.V, self.T, self.S)))

    def in_float32(self) -> "SharedMeans | None":
        """Return the same means in float32; None if they are in it, or a sum of theirs would leave its range."""
        return self._narrow

    @cached_property
    def _narrow(self) -> "SharedMeans | None":
        if self.kernel.dtype == np.float32:
            return None
        kernel = self.kernel.in_float32()
        of_scaling = 2.0 ** (SCALING_EXPONENT["float32"] - SCALING_EXPONENT["float64"])
        of_sums = of_scaling * 2.0 ** (kernel.s - self.kernel.s)
        U, V = (flush((x * of_scaling).astype(np.float32)) for x in (self.U, self.V))
        T, S = ((x * of_sums).astype(np.float32) for x in (self.T, self.S))
        means = SharedMeans(kernel, self.a.astype(np.float32), U, V, T, S)
        return means if all(sound is True for sound in means.certificates(self.U, self.V)) else None

    def _row_factors(self) -> HostArray:
        """Return factors (B, n) with which ``factor_i K_ij V_j`` is the plan; its row sums are a up to rounding."""
        factors: HostArray = self.a / self.T
        return factors


class DenseSmoothing(Smoothing):
    """``after * ((between * ((before * v) K_1)) K_2)`` of one array and its transpose, with problems as rows."""

    def __init__(
        self,
        K: tuple[HostArray, HostArray],
        before: HostArray,
        between: tuple[HostArray, ...],
        after: HostArray,
    ) -> None:
        self.K, self.before, self.between, self.after = K, before, between, after
        self.own, self.other = np.empty_like(before), np.empty_like(between[0])

    @np.errstate(invalid="ignore")  # as in the products of `DenseKernel`
    def __call__(self, v: HostArray) -> HostArray:
        """Return the products with v, in memory that the next call uses again."""
        np.matmul(np.multiply(self.before, v, out=self.own), self.K[0], out=self.other)
        for factor in self.between:
            self.other *= factor
        np.matmul(self.other, self.K[1], out=self.own)
        self.own *= self.after
        return self.own

    def inner(self, x: HostArray, y: HostArray) -> HostArray:
        """Return the inner products (B,) of rows."""
        products: HostArray = np.vecdot(x, y)  # which CuPy has not
        return products

    def at(self, index: HostArray) -> "DenseSmoothing":
        """Return the same for the problems at `index`."""
        between = tuple(x[index] for x in self.between)
        return DenseSmoothing(self.K, self.before[index], between, self.after[index])


def _unit(*given: HostArray | None) -> float:
    """Return a power of two near the largest number of some arrays, 1 where that is near 1."""
    size = max((float(np.abs(x).max()) for x in given if x is not None and x.size), default=1.0)
    if size == 0 or 1 / NEAR_ONE <= size <= NEAR_ONE or not np.isfinite(size):
        return 1.0
    return 2.0 ** max(math.frexp(size)[1] - 1, -126)  # a number of float32


@np.errstate(over="ignore")
def _tile(C: HostArray, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float) -> "TileMeans":
    """Return the means of a few problems, with ``A = exp((f + g - C) / eps)`` for each.

    They are taken in float64: A may be 1 / weight.
    """
    a, b, f, g = (x.astype(np.float64) for x in (a, b, f, g))
    f, g = (np.where(np.isfinite(x), x, 0) for x in (f, g))
    A = (f[:, :, None] + g[:, None, :] - C) / eps
    if not (a.all() and b.all()):
        A[(a == 0)[:, :, None] & (b == 0)[:, None, :]] = -np.inf  # carries nothing, and may be a number of any size
        # Means given an empty bin do not depend on its potential, which with `reach` may be of any size, too.
        for empty, axis in (((b == 0)[:, None, :], 1), ((a == 0)[:, :, None], 2)):
            top = A.max(axis=axis, keepdims=True)
            A -= np.where(empty & np.isfinite(top), top, 0)
    np.exp(A, out=A)
    return TileMeans(A, C, a, b, np.matvec(A, b), np.vecmat(a, A))


class TileMeans(Means):
    """Problems with a kernel A (T, n, m) each, and the sums T = A b and S = A' a, which are about 1."""

    def __init__(self, A: HostArray, C: HostArray, a: HostArray, b: HostArray, T: HostArray, S: HostArray) -> None:
        self.A, self.C, self.a, self.b, self.T, self.S = A, C, a, b, T, S

    def mean(self, v: HostArray, axis: Axis) -> Array:
        """Return the means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            return stored.ratio(np, np.matvec(self.A, self.b * v), self.T)
        return stored.ratio(np, np.vecmat(self.a * v, self.A), self.S)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the cost given each bin."""
        AC = self.A * stored.replace_inf(np, self.C)
        if axis == 1:
            return stored.ratio(np, np.matvec(AC, self.b), self.T)
        return stored.ratio(np, np.vecmat(self.a, AC), self.S)

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self.a * self.T if axis == 1 else self.b * self.S

    def plan_sum(self, rows: HostArray, columns: HostArray | None, costs: HostArray | None) -> HostArray:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        out = np.zeros(self.A.shape[1:])
        for k, A in enumerate(self.A):
            factor = rows[k, :, None] if columns is None else rows[k, :, None] + columns[k]
            if costs is not None:
                factor = factor + costs[k] * stored.replace_inf(np, self.C if self.C.ndim == 2 else self.C[k])
            out += self.a[k, :, None] * (A * self.b[k]) * factor
        return out

    def at(self, index: HostArray) -> "TileMeans":
        """Return the means of the problems at `index`."""
        C = stored.select(self.C, index)
        return TileMeans(self.A[index], C, *(x[index] for x in (self.a, self.b, self.T, self.S)))
