"""Lower bounds on `cost` from regularised costs at two eps, pair by pair: theorem and proof in docs/retrieval.md.

``E(t) = min <P, t C> + eps KL(P | ab')`` is concave in t with the derivative `cost` at t = 1, so that
``cost >= (E(t) - E(1)) / (t - 1)`` for t > 1. Potentials bound E(t) from below. A plan with the marginals a and b
bounds E(1) from above: that of a few iterations, each of whose columns is cut down to its weight, and a product of
what rows and columns then lack. What rounding and underflow may add is taken off, which lets the first stage be in
float32. Problems are columns, of mass 1.
"""

import math
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.convergence.rules import overrelaxed
from cusink.types import Array, ArrayModule

STEEPEST = 150.0  # range of the costs over eps up to which most scalings stay in the range of float32
MOST_COSTS = 1 << 18  # entries of the cost
PAIRS_AT_ONCE = 384
OMEGA = 1.7  # over-relaxation
TINY = float(np.finfo(np.float32).tiny)
LARGEST_LOG = -math.log(TINY)  # of scalings in float32


class Stage(NamedTuple):
    """Iterations at eps, and then at ``eps / t``, after which pairs are looked at."""

    at_eps: int
    t: float
    at_smaller: int
    dtype: Any  # of the bounds; iterations are in float32, as they decide only how good a bound is

    @property
    def sensitivity(self) -> float:
        """By how much the bound may move with the marginals, over what the cost of a plan may."""
        return (self.t + 1) / (2 * (self.t - 1))


# Each is for pairs that the one before leaves open.
STAGES = Stage(8, 1.5, 1, np.float32), Stage(6, 1.2, 2, np.float64), Stage(8, 1.1, 2, np.float64)


class ConcavityBounds:
    """Bounds on the `cost` of pairs between bins with the costs C (n, m); `slack` as `bounds.slack` returns it."""

    def __init__(self, xp: ArrayModule, C: Array, eps: float, slack: float) -> None:
        self.xp, self.eps, self.slack, self.lowest = xp, eps, slack, float(C.min())
        C = (C.astype(np.float64) - self.lowest) / eps
        self.C = {dtype: C.astype(dtype) for dtype in (np.float32, np.float64)}
        self.K = {(t, dtype): self._kernel(t * C, dtype) for t in (1.0, *(x.t for x in STAGES)) for dtype in self.C}
        # Sums of positive numbers are right to so many roundings, their logarithms too, and those are at most so large;
        # a mass that is off by a rounding costs at most the range of the costs and of two logarithms.
        self.roundings = (sum(C.shape) + 32) * (float(C.max()) + 4 * LARGEST_LOG)

    def at(self, rows: Array) -> Self:
        """Return the bounds of problems that have no weight but in some rows of C."""
        out = object.__new__(type(self))
        C, K = ({key: array[rows] for key, array in x.items()} for x in (self.C, self.K))
        out.__dict__.update(self.__dict__, C=C, K=K)
        return out

    def _kernel(self, exponents: Array, dtype: Any) -> Array:
        K = self.xp.exp(-exponents)
        return self.xp.where(K < np.finfo(dtype).tiny, 0, K).astype(dtype)

    @np.errstate(all="ignore")  # infinities and NaN bound nothing
    def bounds(self, a: Array, b: Array, start: Array, enough: Array) -> Array:
        """Return bounds (K,) of problems a (K, n), b (K, m), from ``exp(g / eps)`` (K, m) on.

        A bound above `enough` (K,) is not improved further.
        """
        xp = self.xp
        mass = b.sum(axis=1, dtype=np.float64)
        wide = a / a.sum(axis=1, dtype=np.float64)[:, None], b / mass[:, None]
        a, b = (xp.ascontiguousarray(w.T.astype(np.float32)) for w in wide)
        U, V = None, start.T * b
        out, left = xp.full(len(mass), -xp.inf), xp.arange(len(mass))
        for stage in STAGES:
            U, V = self._iterate(1.0, a, b, U, V, stage.at_eps)
            exact = (a, b)
            if stage.dtype != np.float32:
                exact = xp.ascontiguousarray(wide[0][left].T), xp.ascontiguousarray(wide[1][left].T)
            bound = self._bound(stage, exact, V, (a, b))
            bound = mass[left] * (self.eps * bound + self.lowest) - stage.sensitivity * self.slack
            out[left] = xp.fmax(out[left], xp.where(xp.isfinite(bound), bound, -xp.inf))
            open_ = xp.flatnonzero(out[left] <= enough[left])
            if not len(open_):
                break
            left = left[open_]
            a, b, U, V = (x.take(open_, axis=1) for x in (a, b, U, V))
        return out

    def _bound(self, stage: Stage, weights: tuple[Array, Array], V: Array, narrow: tuple[Array, Array]) -> Array:
        """Return bounds (K,) over eps of problems with the scalings V (m, K); `narrow` are the weights in float32."""
        xp, t, (a, b) = self.xp, stage.t, weights
        above, log_V = self._above(a, b, V.astype(stage.dtype, copy=False))
        start = xp.exp((t * log_V).astype(np.float32)) * narrow[1]
        _, V = self._iterate(t, *narrow, None, start, stage.at_smaller)
        below = self._below(t, a, b, V.astype(stage.dtype, copy=False))
        rounding = float(np.finfo(stage.dtype).eps) / 2 * self.roundings * (1 + t)
        return ((below - above).astype(np.float64) - rounding) / (t - 1)

    def _iterate(self, t: float, a: Array, b: Array, U: Array | None, V: Array, count: int) -> tuple[Any, Array]:
        """Take over-relaxed iterations; without U the first update of the rows is plain."""
        xp, K = self.xp, self.K[t, np.float32]
        sums_a, sums_b, scratch_a, scratch_b = (xp.empty_like(x) for x in (a, b, a, b))
        for _ in range(count):
            plain = xp.divide(a, xp.matmul(K, V, out=sums_a), out=sums_a)
            U = plain.copy() if U is None else overrelaxed(xp, U, plain, OMEGA - 1, scratch=scratch_a, out=U)
            plain = xp.divide(b, xp.matmul(K.T, U, out=sums_b), out=sums_b)
            V = overrelaxed(xp, V, plain, OMEGA - 1, scratch=scratch_b, out=V)
        return U, V

    def _below(self, t: float, a: Array, b: Array, V: Array) -> Array:
        """Return lower bounds (K,) on E(t) over eps, from the scalings V (m, K)."""
        xp, K, tiny = self.xp, self.K[t, a.dtype.type], float(np.finfo(a.dtype).tiny)
        sums = xp.matmul(K, V)
        U = a / sums
        value = -_dot(xp, a, xp.log(sums, out=sums))
        sums = xp.matmul(K.T, U)
        sums += 2 * tiny * (U.sum(axis=0) + len(U))  # all that underflow may have taken
        return value - _dot(xp, b, xp.log(sums, out=sums))

    def _above(self, a: Array, b: Array, V: Array) -> tuple[Array, Array]:
        """Return upper bounds (K,) on E(1) over eps from the scalings V (m, K), and ``log(V / b)``, 0 where b is 0."""
        xp, K = self.xp, self.K[1.0, a.dtype.type]
        sums_a = xp.matmul(K, V)
        U = a / sums_a
        sums_b = xp.matmul(K.T, U)
        plain = xp.divide(b, sums_b)
        V = xp.minimum(V, plain, out=plain)  # no column exceeds its weight, and so no row does
        in_rows = xp.multiply(U, xp.matmul(K, V), out=U)
        in_columns = xp.multiply(V, sums_b, out=sums_b)
        empty = (b == 0).astype(b.dtype)
        inverse = 1 / (b + empty)
        V += empty
        log_V = xp.log(xp.multiply(V, inverse, out=V), out=V)
        value = _dot(xp, in_columns, log_V) - _dot(xp, in_rows, xp.log(sums_a, out=sums_a))
        no_row = xp.maximum(xp.subtract(a, in_rows, out=in_rows), 0, out=in_rows)
        no_column = xp.maximum(xp.subtract(b, in_columns, out=in_columns), 0, out=in_columns)
        lacking = xp.maximum(no_column.sum(axis=0), TINY)
        value += _dot(xp, no_row, xp.matmul(self.C[a.dtype.type], no_column)) / lacking
        # KL(Q | ab') of a sum Q of two plans of masses 1 - d and d is at most what it is of both against their shares
        # of ab'. That of the product has the means of logarithms, which are at most the logarithms of means.
        shares = _dot(xp, no_column, xp.multiply(inverse, no_column, out=inverse)) / lacking
        of_rows = no_row / (a + (a == 0))
        shares *= _dot(xp, no_row, of_rows) / lacking
        rest = xp.maximum(1 - lacking, TINY)
        value += lacking * xp.log(xp.maximum(shares, TINY) / lacking / lacking) - rest * xp.log(rest)
        return value, log_V


def _dot(xp: ArrayModule, x: Array, y: Array) -> Array:
    """Return the sums (K,) of ``x * y`` over columns."""
    return xp.einsum("ik,ik->k", x, y)
