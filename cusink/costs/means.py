"""Means under the plans of some problems."""

from typing import Protocol, Self

from cusink.types import Array, Axis, HostArray


class Means(Protocol):
    """Means of vectors under the plans of some problems, to be taken many times."""

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return ``sum_j P_ij v_j / sum_j P_ij`` (axis 1, v (B, m)) or ``sum_i P_ij v_i / sum_i P_ij`` (axis 0).

        For a bin of weight zero it is the limit.
        """

    def smoothed(self, v: Array, axis: Axis) -> Array:
        """Return `mean` over `axis` of the `mean` of v over the other one, for bins with weight."""
        return self.mean(self.mean(v, 0 if axis == 1 else 1), axis)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the mean of the costs in the place of v."""

    def marginal(self, axis: Axis) -> Array:
        """Return ``P 1`` or ``P' 1``."""

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Return ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m)."""

    def at(self, index: HostArray) -> Self:
        """Return the means of the problems at `index`."""

    def in_float32(self) -> "Means | None":
        """Return about the same means in float32, where these take less time; None if they are in it or leave it."""
        return None
