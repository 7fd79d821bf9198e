"""Blocks of the kernel as products of two thin factors, where points lie so densely that few terms are enough.

With ``u = x_i - c`` about the middle c of the rows, ``e = y_j - c`` and ``d = e - e0`` about the middle of the columns,

    (f_i + g_j - |x_i - y_j|**2) / eps = r_i + q_j + 2 u d / eps,

where r and q belong to one index each. The exponential of the last term, of at most Z in size, is a polynomial in
``2 u d / eps``: a sum of products of monomials of u and of d. It is fitted so that its relative error on [-Z, Z] is
about as small as its degree allows, so that every entry, and every sum of non-negative terms, errs by as little.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from cusink.backends.numpy.clouds.layout import CloudSide, Workspace
from cusink.types import HostArray

LARGEST_DEGREE = 24
GRID = 400  # points of [-Z, Z] at which the error of a polynomial is looked at
HALVINGS = 14  # by which the reach of a polynomial is found
CARRIED = 8  # roundings of an entry, relative to the sum of the sizes of its terms
PAYS = {4: 1.5, 8: 0.75}  # by bytes of a number: terms over rows of a block, up to which they are faster than entries


class Polynomial(NamedTuple):
    """A polynomial close to exp on [-reach, reach]: coefficients of the powers, and a dtype with digits enough."""

    reach: float
    coefficients: HostArray
    dtype: np.dtype[Any] = np.dtype(float)


@functools.cache
def polynomial(share: float, degree: int) -> Polynomial:
    """Return the polynomial of a degree with a relative error of at most `share`, as far as it reaches."""
    low, high = 0.0, float(LARGEST_DEGREE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _fit(degree, middle)[1] <= share else (low, middle)
    return Polynomial(low, _fit(degree, low)[0])


def cheapest(share: float, reach: float, d: int, rows: int, dtype: np.dtype[Any]) -> Polynomial | None:
    """Return the polynomial with the fewest terms that reaches far enough; None where entries take less time.

    The terms of an entry ``exp(z)``, with -reach <= z, add up to ``exp(reach)`` in size: what they cancel costs digits.
    """
    if reach > LARGEST_DEGREE:
        return None
    for precision in dict.fromkeys((dtype, np.dtype(float))):
        if CARRIED * float(np.finfo(precision).eps) * math.exp(2 * reach) > share / 2:
            continue
        for degree in range(1, LARGEST_DEGREE + 1):
            if math.comb(d + degree, d) > PAYS[precision.itemsize] * rows:
                break
            found = polynomial(share / 2, degree)
            if found.reach >= reach:
                return found._replace(dtype=precision)
    return None


def _fit(degree: int, reach: float) -> tuple[HostArray, float]:
    """Return coefficients and a bound on the relative error on [-reach, reach]."""
    nodes = np.cos(np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree))
    # Weighted by exp(-x) the squares are those of relative errors; about evenly spread at Chebyshev's nodes.
    powers = nodes[:, None] ** np.arange(degree + 1)
    weight = np.exp(-reach * nodes)
    fitted = np.linalg.lstsq(powers * weight[:, None], np.ones(len(nodes)), rcond=None)[0]
    grid = np.linspace(-1, 1, GRID + 1)
    values = (grid[:, None] ** np.arange(degree + 1)) @ fitted * np.exp(-reach * grid)
    # Between two points of the grid the relative error moves by no more than its slope allows, seen here in steps.
    worst = float(np.abs(values - 1).max() + np.abs(np.diff(values)).max())
    return fitted / max(reach, 1e-300) ** np.arange(degree + 1), worst


@functools.cache
def monomials(d: int, degree: int) -> tuple[tuple[tuple[int, ...], int, int], ...]:
    """Return (exponents, number of a monomial before it, coordinate to multiply that with) of all but the first."""
    numbers: dict[tuple[int, ...], int] = {(0,) * d: 0}
    out = []
    for total in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(d), total):
            powers = tuple(chosen.count(k) for k in range(d))
            last = chosen[-1]
            before = tuple(p - (k == last) for k, p in enumerate(powers))
            numbers[powers] = len(numbers)
            out.append((powers, numbers[before], last))
    return tuple(out)


class Expanded:
    """Block k of A with its columns at `index`, as factors (terms, rows) and (terms, columns).

    `middle` is that of the columns; the second factor lies in `work`.
    """

    def __init__(
        self,
        side: CloudSide,
        k: int,
        index: HostArray,
        middle: HostArray,
        polynomial: Polynomial,
        potentials: tuple[HostArray, HostArray],
        eps: float,
        work: Workspace,
    ) -> None:
        rows, dtype, d = side.blocks[k], polynomial.dtype, side.x.shape[1]
        scale = side.costs.factor / eps
        x = side.x[rows].astype(np.float64)
        centre = (x.min(axis=0) + x.max(axis=0)) / 2
        self.index, self.u = index, (x - centre).T
        self.e = side.y.take(index, axis=1).astype(np.float64) - centre[:, None]
        offset = middle - centre
        radius = math.sqrt(float(np.einsum("ki,ki->i", self.u, self.u).max())) or 1.0
        row = potentials[0][rows] / eps - scale * np.einsum("ki,ki->i", self.u, self.u) + 2 * scale * (offset @ self.u)
        self.squares = np.einsum("kj,kj->j", self.e, self.e)
        column = potentials[1].take(index) / eps - scale * self.squares
        top = float(column.max())
        self.factor = np.exp(row + top)
        degree = len(polynomial.coefficients) - 1
        table = monomials(d, degree)
        self.right = work.flat(len(table) + 1, len(index), dtype)
        lowest = math.log(float(np.finfo(dtype).tiny))  # smaller numbers are slow, and their entries do not count
        np.exp(np.maximum(column - top, lowest), out=self.right[0], casting="same_kind")
        along = ((self.e - offset[:, None]) * (2 * scale * radius)).astype(dtype)
        left = np.ones((len(table) + 1, x.shape[0]))
        unit, weights = self.u / radius, np.ones(len(table) + 1)
        weights[0] = polynomial.coefficients[0]
        for number, (powers, before, coordinate) in enumerate(table, 1):
            np.multiply(self.right[before], along[coordinate], out=self.right[number])
            np.multiply(left[before], unit[coordinate], out=left[number])
            total = sum(powers)
            ways = math.factorial(total) // math.prod(map(math.factorial, powers))
            weights[number] = polynomial.coefficients[total] * ways
        self.left = left * weights[:, None] * self.factor

    def row_sums(self, q: HostArray) -> HostArray:
        """Return ``A q`` (rows,) of q (columns,)."""
        sums: HostArray = np.matvec(self.right, q.astype(self.right.dtype, copy=False)).astype(np.float64) @ self.left
        return sums

    def column_sums(self, p: HostArray) -> HostArray:
        """Return ``A' p`` (columns,) of p (rows,)."""
        sums: HostArray = np.vecmat((self.left @ p).astype(self.right.dtype), self.right)
        return sums

    def cost_sums(self, q: HostArray) -> tuple[HostArray, HostArray]:
        """Return ``A q`` and the same with the squared distances times A, (rows,) each, of q (columns,)."""
        sums = self.row_sums(q)
        squares = np.einsum("ki,ki->i", self.u, self.u) * sums + self.row_sums(q * self.squares)
        for u, e in zip(self.u, self.e, strict=True):
            squares -= 2 * u * self.row_sums(q * e)
        return sums, squares
