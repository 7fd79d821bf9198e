"""Inner products with the weights of the bins of a side, of many problems."""

from dataclasses import dataclass, replace
from typing import Any, Self

from cusink.costs.means import row_products
from cusink.types import Array, ArrayModule, HostArray

LIGHT = 1e-4  # share of the largest weight below which a weighted residual tells little of a bin


def largest(xp: ArrayModule, x: Array) -> Array:
    """Return the largest size (B,) of an entry of each row."""
    return xp.abs(x).max(axis=1)


@dataclass(frozen=True, eq=False)
class Bins:
    """Inner products with the `weights` (B, bins) of a side, in which bins without weight do not count.

    `filled` is None where all bins have weight, `mass` (B, 1) are the sums of the weights.
    """

    xp: ArrayModule
    weights: Array
    filled: Array | None
    mass: Array

    @classmethod
    def of(cls, xp: ArrayModule, weights: Array) -> Self:
        """Return the inner products with weights."""
        mass = weights.sum(axis=1, keepdims=True)
        mass = xp.where(mass > 0, mass, 1)  # 0 of a plan that underflows, where all mass stays behind
        return cls(xp, weights, None if bool((weights > 0).all()) else weights > 0, mass)

    @property
    def light(self) -> bool:
        """Whether a bin with weight has less than the share `LIGHT` of the largest weight of its problem."""
        least = self.xp.where(self.weights > 0, self.weights, self.xp.inf).min(axis=1)
        return bool((least < LIGHT * self.weights.max(axis=1)).any())

    def at(self, index: HostArray) -> Self:
        """Return those of the problems at `index`."""
        filled = None if self.filled is None else self.filled[index]
        return replace(self, weights=self.weights[index], filled=filled, mass=self.mass[index])

    def astype(self, dtype: Any) -> Self:
        """Return the same in another precision."""
        return replace(self, weights=self.weights.astype(dtype), mass=self.mass.astype(dtype))

    def masked(self, x: Array) -> Array:
        """Return x with 0 for bins without weight."""
        return x if self.filled is None else self.xp.where(self.filled, x, 0)

    def dot(self, x: Array, y: Array) -> Array:
        """Return ``sum_j weights_j x_j y_j`` (B,)."""
        return row_products(self.masked(self.weights * x), y)

    def sizes(self, x: Array) -> Array:
        """Return ``sum_j weights_j |x_j|`` (B,)."""
        return self.masked(self.weights * self.xp.abs(x)).sum(axis=1)

    def mean(self, x: Array) -> Array:
        """Return weighted means (B, 1)."""
        return row_products(self.weights, x)[:, None] / self.mass
