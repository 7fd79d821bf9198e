"""Cost matrices between points."""

import numpy as np

from cusink.checks.arrays import HALF, narrowed
from cusink.checks.scalars import one_of
from cusink.costs import checks
from cusink.costs.clouds import METRICS, Metric
from cusink.errors import one_call
from cusink.placement import on_device
from cusink.types import Array, ArrayModule

__all__ = [
    "cost_matrix",
    "cost_matrix_adjoint",
]


@on_device
def cost_matrix(x: Array, y: Array | None = None, metric: str = "sqeuclidean") -> Array:
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
    (x, y), xp, dtype = checks.points(x, y, metric)
    if xp is np:
        from scipy.spatial.distance import cdist

        try:
            cost = cdist(x, y, metric)
        except (ValueError, TypeError):
            known = ", ".join(repr(name) for name in METRICS)
            raise ValueError(
                f"'metric' must be {known} or another name known to scipy.spatial.distance.cdist; got {metric!r}"
            ) from None
    else:
        one_of("metric", metric, METRICS)
        cost = _pairwise(xp, x, y, metric)
    out = narrowed(cost, dtype, xp)
    if dtype.name not in HALF and xp.isinf(out).any():  # for half precision it warns
        raise ValueError(f"'x' and 'y' must be so near that costs are finite in {dtype}; got +inf. Scale the points")
    return out


@one_call
def cost_matrix_adjoint(
    x: Array, y: Array | None, grad_C: Array, metric: Metric = "sqeuclidean"
) -> tuple[Array, Array | None]:
    """Pull a gradient with respect to a cost matrix back to the points that it was made of.

    Parameters
    ----------
    x : array, shape (n, d) or (n,)
        Source points.
    y : array, shape (m, d) or (m,), or None
        Target points; None stands for `x`, as in `cusink.cost_matrix`.
    grad_C : array, shape (n, m)
        Derivative of the final loss by each entry of ``cost_matrix(x, y, metric)``, such as the `C` of
        `cusink.SinkhornGradients`.
    metric : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        What the cost is.

    Returns
    -------
    gx : array, shape of `x`
        Gradient by the source points; by the points as sources and as targets, if `y` is None.
    gy : array, shape of `y`, or None
        Gradient by the target points; None if `y` is.

    Raises
    ------
    TypeError
        Inputs of different libraries or dtypes.
    ValueError
        Points of different dimensions, a gradient of the wrong shape, or a metric without a gradient.

    Notes
    -----
    Where "euclidean" has no derivative, at points that coincide, zero is taken; so it is for "cityblock" in each
    coordinate that is equal. Memory is a few arrays of the size of `grad_C`.

    Examples
    --------
    >>> import cusink
    >>> x, y = [[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0]]
    >>> gx, gy = cusink.cost_matrix_adjoint(x, y, [[0.25], [0.75]])
    >>> gx
    array([[ 0. , -1. ],
           [ 1.5, -3. ]])
    """
    one_of("metric", metric, METRICS)
    (px, py), xp, dtype = checks.points(x, y, metric)
    grad_C = checks.cost_gradient(grad_C, px, py, x)
    gx, gy = _pairwise_adjoint(xp, px, py, grad_C, metric)
    if y is None:
        gx, gy = gx + gy, None
    flat = np.ndim(x) == 1
    gx = gx[:, 0] if flat else gx
    gy = gy[:, 0] if y is not None and np.ndim(y) == 1 else gy
    return narrowed(gx, dtype, xp), gy if gy is None else narrowed(gy, dtype, xp)


def _pairwise(xp: ArrayModule, x: Array, y: Array, metric: str) -> Array:
    """Return the costs (n, m) one coordinate at a time: no (n, m, d) array, and differences before squares."""
    if metric == "cosine":
        x, y = (p / xp.sqrt((p * p).sum(axis=1, keepdims=True)) for p in (x, y))
        return xp.clip(1 - x @ y.T, 0, 2)
    cost = xp.zeros((len(x), len(y)), x.dtype)
    for k in range(x.shape[1]):
        difference = x[:, None, k] - y[None, :, k]
        cost += xp.abs(difference) if metric == "cityblock" else difference * difference
    return xp.sqrt(cost) if metric == "euclidean" else cost


def _pairwise_adjoint(xp: ArrayModule, x: Array, y: Array, grad_C: Array, metric: str) -> tuple[Array, Array]:
    """Return the gradients (n, d) and (m, d), one coordinate at a time: differences before sums."""
    gx, gy = xp.empty_like(x), xp.empty_like(y)
    if metric == "cosine":
        norms = [xp.sqrt((p * p).sum(axis=1, keepdims=True)) for p in (x, y)]
        x, y = x / norms[0], y / norms[1]
        for unit, pull, norm, out in ((x, grad_C @ y, norms[0], gx), (y, grad_C.T @ x, norms[1], gy)):
            out[:] = (unit * (unit * pull).sum(axis=1, keepdims=True) - pull) / norm
        return gx, gy
    if metric == "euclidean":
        cost = _pairwise(xp, x, y, metric)
        grad_C = xp.where(cost > 0, grad_C / xp.where(cost > 0, cost, 1), 0)
    for k in range(x.shape[1]):
        slope = x[:, None, k] - y[None, :, k]
        slope = xp.sign(slope) if metric == "cityblock" else slope
        slope *= grad_C
        gx[:, k], gy[:, k] = slope.sum(axis=1), -slope.sum(axis=0)
    return (2 * gx, 2 * gy) if metric == "sqeuclidean" else (gx, gy)
