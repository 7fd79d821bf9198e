"""Conditional means under plans, prepared so that many can be taken: a matrix product each, where that is certified.

A system with the plan as its matrix is solved by taking means again and again. Problems that share a cost take theirs
as one product with the kernel of all (`SharedMeans`) where every sum is certified to have lost nothing; the others,
and problems with a cost each, in tiles of a few problems whose kernels exist while the tile does (`TileMeans`).
"""

import numpy as np

from cusink.backends.numpy.certificate import certified_within
from cusink.backends.numpy.forms.kernel import DenseKernel
from cusink.backends.numpy.forms.own import TILE_BYTES
from cusink.backends.numpy.forms.shared import SharedKernel


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `backends.operators`; all the means of a group can be taken at once."""
    rest = np.arange(len(a))
    if C.ndim == 2:
        for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
            rest = yield from shared_means(DenseKernel(C, dtype, eps), rest, a, b, f, g)
    yield from tile_means(C, rest, a, b, f, g, eps)


def tile_means(C, rest, a, b, f, g, eps):
    """Iterate over ``(index, means)`` of the problems at `rest`, whatever their range."""
    size = max(1, TILE_BYTES // (C.shape[-2] * C.shape[-1] * 8))
    for start in range(0, len(rest), size):
        index = rest[start : start + size]
        yield index, _tile(C if C.ndim == 2 else C[index], *(x[index] for x in (a, b, f, g)), eps)


def shared_means(kernel, rest, a, b, f, g):
    """Iterate over ``(index, means)`` of those of the problems at `rest` that are in the range of a kernel of all.

    Returns the others.
    """
    if not len(rest):
        return rest
    means, inside = _shared(kernel, *(x[rest].astype(kernel.dtype, copy=False) for x in (a, b, f, g)))
    if inside.all():
        yield rest, means
    elif inside.any():
        yield rest[inside], means.at(np.flatnonzero(inside))
    return rest[~inside]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
def _shared(kernel, a, b, f, g):
    """Means of problems that share one kernel, and which of the problems (B,) are in its range."""
    f, g = (np.where(np.isfinite(x), x, 0) for x in (f, g))  # a bin that nothing may reach has no finite potential
    problems = SharedKernel(kernel)
    problems.append(a, b, f, g)
    U, V = (np.ascontiguousarray(x.T) for x in (problems.U, problems.V))
    means = SharedMeans(kernel, a, U, V, kernel.product_of_rows(V, 1), kernel.product_of_rows(U, 0))
    inside = np.ones(len(a), bool)
    for sums, factor, weights, axis in ((means.T, V, b, 1), (means.S, U, a, 0)):
        sound = certified_within(kernel.loss(axis), sums.T, factor.T, weights.T)
        inside &= True if sound is True else sound.all(axis=0)
    return means, inside


class SharedMeans:
    """Problems as scalings U (B, n) and V (B, m) of one kernel K (n, m), with the sums T = K V and S = K' U."""

    def __init__(self, kernel, a, U, V, T, S):
        self.kernel, self.a, self.U, self.V, self.T, self.S = kernel, a, U, V, T, S

    def mean(self, v, axis):
        """Means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            out = self.kernel.product_of_rows(self.V * v, 1)
            out /= self.T
        else:
            out = self.kernel.product_of_rows(self.U * v, 0)
            out /= self.S
        return out

    def mean_cost(self, axis):
        """Means of the cost given each bin."""
        factor, sums = (self.V, self.T) if axis == 1 else (self.U, self.S)
        return self.kernel.unit * (self.kernel.cost_product(factor.T, axis).T / sums)

    def marginal(self, axis):
        """``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        row_sums = self._per_scaling() * self.T
        return row_sums if axis == 1 else self.V * self.kernel.product_of_rows(self._per_scaling(), 0)

    def plan_sum(self, rows, columns, costs):
        """``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        K, scaled = self.kernel.K, self._per_scaling()
        out = (scaled * rows).T @ self.V
        if columns is not None:
            out += scaled.T @ (self.V * columns)
        if costs is not None:
            out += ((scaled * costs[:, None]).T @ self.V) * np.where(K > 0, self.kernel.costs, 0)
        out *= K
        return out

    def at(self, index):
        """The means of the problems at `index` alone."""
        return SharedMeans(self.kernel, *(x[index] for x in (self.a, self.U, self.V, self.T, self.S)))

    def _per_scaling(self):
        """Factors (B, n) that make ``factor_i K_ij V_j`` the plan, whose rows are right up to rounding."""
        return self.a / self.T


@np.errstate(over="ignore")
def _tile(C, a, b, f, g, eps):
    """Means of a few problems, with ``A = exp((f + g - C) / eps)`` for each; in float64, for A may be 1 / weight."""
    a, b, f, g = (x.astype(np.float64) for x in (a, b, f, g))
    f, g = (np.where(np.isfinite(x), x, 0) for x in (f, g))
    A = (f[:, :, None] + g[:, None, :] - C) / eps
    if not (a.all() and b.all()):
        A[(a == 0)[:, :, None] & (b == 0)[:, None, :]] = -np.inf  # carries nothing, and may be as large as it likes
    np.exp(A, out=A)
    return TileMeans(A, C, a, b, np.matvec(A, b), np.vecmat(a, A))


class TileMeans:
    """Problems with a kernel A (T, n, m) each, and the sums T = A b and S = A' a, which are about 1."""

    def __init__(self, A, C, a, b, T, S):
        self.A, self.C, self.a, self.b, self.T, self.S = A, C, a, b, T, S

    def mean(self, v, axis):
        """Means of v given each bin of the other side, whether it has weight or not."""
        if axis == 1:
            return _ratio(np.matvec(self.A, self.b * v), self.T)
        return _ratio(np.vecmat(self.a * v, self.A), self.S)

    def mean_cost(self, axis):
        """Means of the cost given each bin."""
        AC = self.A * np.where(np.isposinf(self.C), 0, self.C)
        return _ratio(np.matvec(AC, self.b), self.T) if axis == 1 else _ratio(np.vecmat(self.a, AC), self.S)

    def marginal(self, axis):
        """``P 1`` (axis 1) or ``P' 1`` (axis 0)."""
        return self.a * self.T if axis == 1 else self.b * self.S

    def plan_sum(self, rows, columns, costs):
        """``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""
        out = np.zeros(self.A.shape[1:])
        for k, A in enumerate(self.A):
            factor = rows[k, :, None] if columns is None else rows[k, :, None] + columns[k]
            if costs is not None:
                C = self.C if self.C.ndim == 2 else self.C[k]
                factor = factor + costs[k] * np.where(np.isposinf(C), 0, C)
            out += self.a[k, :, None] * (A * self.b[k]) * factor
        return out

    def at(self, index):
        """The means of the problems at `index` alone."""
        C = self.C if self.C.ndim == 2 else self.C[index]
        return TileMeans(self.A[index], C, *(x[index] for x in (self.a, self.b, self.T, self.S)))


def _ratio(x, y):
    """``x / y``, 0 where y is: a bin that nothing may reach."""
    return np.divide(x, y, out=np.zeros_like(x), where=y > 0)
