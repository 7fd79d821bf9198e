"""Collections of weighted points: each item has its own support, of any size."""

import numpy as np

from cusink.retrieval.documents import checks, supports

__all__ = [
    "Measures",
]


class Measures:
    """Weighted point clouds of unequal sizes, to be compared with each other.

    It takes the place of the histograms `A` and `B` in `cusink.distance_matrix`; the cost `C` is then the name of a
    metric.

    Parameters
    ----------
    offsets : array of int, shape (K + 1,)
        Item k has the points from ``offsets[k]`` up to, but not including, ``offsets[k + 1]``.
    weights : array, shape (N,), or None
        Non-negative weights of all points, item after item. None gives the points of an item equal weights of sum 1.
    points : array, shape (N, d) or (N,)
        All points, item after item.

    Attributes
    ----------
    offsets, weights, points
        As given, the points as (N, d).

    Raises
    ------
    TypeError
        Arrays of different libraries or dtypes, or offsets that are no integers.
    ValueError
        Offsets that do not rise from 0 to N, negative weights, NaN or infinite numbers.

    Notes
    -----
    An item without points, or without weight, is empty: its distance to anything is NaN.

    Examples
    --------
    >>> import cusink
    >>> clouds = cusink.Measures([0, 2, 5], None, [0.0, 1.0, 2.0, 3.0, 4.0])
    >>> len(clouds)
    2
    >>> print(cusink.distance_matrix(clouds[:1], clouds[1:], "euclidean", eps=0.01).round(3))
    [[2.5]]
    """

    def __init__(self, offsets, weights, points):
        self.offsets, self.weights, self.points = checks.measures(offsets, weights, points)

    @classmethod
    def of(cls, clouds, weights=None):
        """Join separate point clouds.

        Parameters
        ----------
        clouds : sequence of array, shape (n_k, d)
            The points of each item.
        weights : sequence of array, shape (n_k,), optional
            Their weights; equal weights of sum 1 if not given.

        Returns
        -------
        Measures
        """
        return cls(*checks.joined(clouds, weights))

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, items):
        """Return the items of a slice."""
        if not isinstance(items, slice) or items.step not in (None, 1):
            raise TypeError(f"items of Measures are taken by slices with step 1, as in measures[3:5]; got {items!r}")
        start, stop, _ = items.indices(len(self))
        offsets = self.offsets[start : max(stop, start) + 1]
        points = slice(int(offsets[0]), int(offsets[-1]))
        return Measures(offsets - offsets[0], self.weights[points], self.points[points])

    def __repr__(self):
        return f"Measures({len(self)} items, {len(self.points)} points, d={self.points.shape[1]})"

    def normalised(self):
        """Return the same measures, each divided by its sum.

        Returns
        -------
        Measures
            Empty items stay empty. Integer weights become float64.
        """
        sums = supports.sums(self.offsets, self.weights)
        sizes = np.diff(self.offsets)
        floating = self.weights.dtype if self.weights.dtype.kind == "f" else np.dtype(np.float64)
        xp = supports.library_of(self.weights)
        factor = xp.asarray(np.repeat(1 / np.where(sums > 0, sums, 1), sizes))
        return Measures(self.offsets, (self.weights * factor).astype(floating), self.points)
