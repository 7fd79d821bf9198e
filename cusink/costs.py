"""Cost matrices between points."""

import numpy as np
from scipy.spatial.distance import cdist

from cusink import _checks

__all__ = ["cost_matrix"]

METRICS = ("sqeuclidean", "euclidean", "cityblock", "cosine")


def cost_matrix(x, y=None, metric="sqeuclidean"):
    """Return the cost of moving a unit of mass between points.

    Parameters
    ----------
    x : array, shape (n, d) or (n,)
        Source points; n numbers are n points on a line.
    y : array, shape (m, d) or (m,), or None
        Target points; None stands for `x`.
    metric : str
        "sqeuclidean", "euclidean", "cityblock" or "cosine"; with NumPy any name that `scipy.spatial.distance.cdist`
        knows.

    Returns
    -------
    array, shape (n, m)
        In the dtype of the points.

    Raises
    ------
    TypeError
        Points of different libraries or dtypes.
    ValueError
        Points of different dimensions, NaN or infinite coordinates, or a metric that does not exist.

    Notes
    -----
    With NumPy the differences are taken in float64 by SciPy, so that points far from the origin lose nothing.

    Examples
    --------
    >>> import cusink
    >>> cusink.cost_matrix([0.0, 1.0, 3.0])
    array([[0., 1., 9.],
           [1., 0., 4.],
           [9., 4., 0.]])
    """
    (x, y), xp, dtype = _checks.points(x, y, metric)
    if xp is np:
        try:
            cost = cdist(x, y, metric)
        except (ValueError, TypeError):
            known = ", ".join(repr(name) for name in METRICS)
            raise ValueError(
                f"'metric' must be {known} or another name known to scipy.spatial.distance.cdist; got {metric!r}"
            ) from None
    else:
        _checks.one_of("metric", metric, METRICS)
        cost = _pairwise(xp, x, y, metric)
    return cost.astype(dtype)


def _pairwise(xp, x, y, metric):
    """Costs (n, m) one coordinate at a time: no (n, m, d) array, and differences before squares."""
    if metric == "cosine":
        x, y = (p / xp.sqrt((p * p).sum(axis=1, keepdims=True)) for p in (x, y))
        return xp.clip(1 - x @ y.T, 0, 2)
    cost = xp.zeros((len(x), len(y)), x.dtype)
    for k in range(x.shape[1]):
        difference = x[:, None, k] - y[None, :, k]
        cost += xp.abs(difference) if metric == "cityblock" else difference * difference
    return xp.sqrt(cost) if metric == "euclidean" else cost
