"""Costs between points as operators take them: the points, never the costs."""

import dataclasses
import math
from typing import Any, Literal, Protocol, Self

import numpy as np

from cusink.types import Array, ArrayModule, Index

MEAN_ENTRIES = 1 << 20  # costs that are averaged at a time
KERNEL_BYTES = 1 << 30  # that a kernel may take if the caller sets no limit


class Cloud(Protocol):
    """The `cusink.PointCloud` that points came from."""

    x: Array
    y: Array
    flat: tuple[bool, bool | None]

    @property
    def metric(self) -> str:
        """Of the cloud."""


@dataclasses.dataclass(frozen=True, eq=False)
class PointCosts:
    """``C_ij = factor * s_ij ** exponent`` with s the squared Euclidean distance, or the city-block distance.

    `x` (n, d) or (B, n, d) and `y` (m, d) or (B, m, d), C-contiguous, of one dtype; both have a batch axis or neither.
    They are centred, so that no digit is lost far from the origin. An operator may keep a kernel of
    `memory_limit` bytes, and recreates the costs in blocks where it would be larger.
    """

    x: Array
    y: Array
    norm: Literal["squared", "cityblock"]
    exponent: float = 1.0
    factor: float = 1.0
    memory_limit: int = KERNEL_BYTES
    cloud: Cloud | None = None
    terms: int = 3  # of a product on tensor cores, see point_products.cuh: 1 for plain tf32

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``, of the cost that is not stored."""
        return (*self.x.shape[:-1], self.y.shape[-2])

    @property
    def ndim(self) -> int:
        """2 for a cost that all problems share, 3 for one each."""
        return int(self.x.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the points."""
        dtype: np.dtype[Any] = self.x.dtype
        return dtype

    @property
    def point_bytes(self) -> int:
        """Memory of the points."""
        return int(self.x.nbytes) + (0 if self.y is self.x else int(self.y.nbytes))

    def astype(self, dtype: Any) -> Self:
        """Return the same points in another precision."""
        x = self.x.astype(dtype)
        return dataclasses.replace(self, x=x, y=x if self.y is self.x else self.y.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own; else the shared one."""
        if self.ndim == 2:
            return self
        return dataclasses.replace(self, x=self.x[problems], y=self.y[problems])

    def take(self, rows: Index, columns: Index) -> Self:
        """Return the costs between some of the points."""
        return dataclasses.replace(self, x=self.x[..., rows, :], y=self.y[..., columns, :])

    def block(self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None)) -> Array:
        """Return the costs (n, m) or (B, n, m) of some problems and rows as an array: differences before squares."""
        x, y = (self.x, self.y) if self.ndim == 2 else (self.x[problems], self.y[problems])
        x = x[..., rows, :]
        out = xp.zeros((*x.shape[:-1], y.shape[-2]), self.dtype)
        for k in range(x.shape[-1]):
            difference = x[..., :, None, k] - y[..., None, :, k]
            out += xp.abs(difference) if self.norm == "cityblock" else difference * difference
        return self.of_distances(xp, out)

    def block_adjoint(
        self, xp: ArrayModule, gradient: Array, problems: Index = slice(None), rows: Index = slice(None)
    ) -> tuple[Array, Array]:
        """Pull the `gradient` of a `block` back to the points of its rows (n, d) and of all columns (m, d).

        Points that coincide get zero where the cost has no derivative, as in `cusink.cost_matrix_adjoint`.
        """
        x, y = (self.x, self.y) if self.ndim == 2 else (self.x[problems], self.y[problems])
        x = x[..., rows, :]
        if self.exponent != 1:
            s = dataclasses.replace(self, exponent=1.0, factor=1.0).block(xp, problems, rows)
            s = xp.where(s > 0, s, xp.inf if self.exponent < 1 else 0)
            gradient = gradient * xp.power(s, s.dtype.type(self.exponent - 1))
        gradient = gradient * gradient.dtype.type(self.factor * self.exponent)
        if self.norm == "squared":
            turned = xp.swapaxes(gradient, -1, -2)
            gx = gradient.sum(axis=-1)[..., None] * x - xp.matmul(gradient, y)
            gy = turned.sum(axis=-1)[..., None] * y - xp.matmul(turned, x)
            return 2 * gx, 2 * gy
        gx, gy = xp.empty_like(x), xp.empty_like(y)
        for k in range(x.shape[-1]):
            slope = xp.sign(x[..., :, None, k] - y[..., None, :, k]) * gradient
            gx[..., k], gy[..., k] = slope.sum(axis=-1), -slope.sum(axis=-2)
        return gx, gy

    def of_distances(self, xp: ArrayModule, s: Array) -> Array:
        """Return the costs of the distances `s`, which are overwritten."""
        if self.exponent == 0.5:
            xp.sqrt(s, out=s)
        elif self.exponent != 1:
            xp.power(s, s.dtype.type(self.exponent), out=s)
        if self.factor != 1:
            s *= s.dtype.type(self.factor)
        return s

    def mean(self, xp: ArrayModule) -> float:
        """Return the mean cost, over the problems too; of squared distances in one pass over the points."""
        if self.norm == "squared" and self.exponent == 1:
            squares = sum(float(xp.einsum("...ik,...ik->", p, p)) / p[..., 0].size for p in (self.x, self.y))
            between = float((self.x.mean(axis=-2) * self.y.mean(axis=-2)).sum(axis=-1).mean())
            return float(self.factor * (squares - 2 * between))
        total, height = 0.0, max(1, MEAN_ENTRIES // self.shape[-1])
        for problem in range(1 if self.ndim == 2 else len(self.x)):
            for start in range(0, self.shape[-2], height):
                rows = slice(start, start + height)
                total += float(self.block(xp, slice(problem, problem + 1), rows).sum())
        return total / math.prod(self.shape)

    def largest(self, xp: ArrayModule) -> float:
        """Return a bound that no cost exceeds."""
        with np.errstate(over="ignore"):  # inf is a bound
            own = self._size(xp, self.x)
            other = own if self.y is self.x else self._size(xp, self.y)
            s = own + other if self.norm == "cityblock" else (xp.sqrt(own) + xp.sqrt(other)) ** 2
            return float(self.factor * s.max() ** self.exponent)

    def _size(self, xp: ArrayModule, points: Array) -> Array:
        """Return the largest distance of points from the centre, in float64 without a copy of them in it."""
        if self.norm == "cityblock":
            return xp.abs(points).sum(axis=-1, dtype=np.float64).max(axis=-1)
        return xp.einsum("...ik,...ik->...i", points, points, dtype=np.float64).max(axis=-1)
