"""Means under the plans of some problems, and the symmetric form of means of means."""

from dataclasses import dataclass
from typing import Protocol, Self

from cusink.types import Array, Axis, HostArray


def row_products(x: Array, y: Array) -> Array:
    """Return the inner products (B,) of the rows of two arrays."""
    products: Array = x[:, None, :] @ y[:, :, None]
    return products[:, 0, 0]


class Smoothing(Protocol):
    """A symmetric matrix for each of some problems, that of `Means.rooted`."""

    def __call__(self, v: Array) -> Array:
        """Return the products with v, in memory that the next call may use again."""

    def inner(self, x: Array, y: Array) -> Array:
        """Return the inner products (B,) of rows."""
        return row_products(x, y)

    def at(self, index: HostArray) -> Self:
        """Return the matrices of the problems at `index`."""


class Means(Protocol):
    """Means of vectors under the plans of some problems, to be taken many times."""

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return ``sum_j P_ij v_j / sum_j P_ij`` (axis 1, v (B, m)) or ``sum_i P_ij v_i / sum_i P_ij`` (axis 0).

        For a bin of weight zero it is the limit.
        """

    def smoothed(self, v: Array, axis: Axis) -> Array:
        """Return `mean` over `axis` of the `mean` of v over the other one, for bins with weight."""
        return self.mean(self.mean(v, 0 if axis == 1 else 1), axis)

    def rooted(self, axis: Axis, root: Array, inverse: Array) -> Smoothing:
        """Return what takes v to ``root * smoothed(inverse * v)``, a symmetric matrix.

        `root` are the roots of the `marginal` of the bins of v over its mass, so that none is above 1. `inverse` is
        finite for empty bins, too.
        """
        return Rooted(self, axis, root, inverse)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the mean of the costs in the place of v."""

    def mean_less_cost(self, v: Array, eps: Array | float, axis: Axis) -> Array:
        """Return `mean` less `mean_cost` over eps, which is a number or (B, 1)."""
        return self.mean(v, axis) - self.mean_cost(axis) / eps

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` or ``P' 1``."""

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""

    def at(self, index: HostArray) -> Self:
        """Return the means of the problems at `index`."""

    def in_float32(self) -> "Means | None":
        """Return about the same means in float32, where these take less time; None if they are in it or leave it."""
        return None


@dataclass(frozen=True, eq=False)
class Rooted(Smoothing):
    """The `Smoothing` of any means."""

    means: Means
    axis: Axis
    root: Array
    inverse: Array

    def __call__(self, v: Array) -> Array:
        """Return the products with v."""
        out = self.means.smoothed(self.inverse * v, self.axis)
        out *= self.root
        return out

    def at(self, index: HostArray) -> Self:
        """Return the matrices of the problems at `index`."""
        return type(self)(self.means.at(index), self.axis, self.root[index], self.inverse[index])
