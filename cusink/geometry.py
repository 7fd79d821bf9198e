"""Costs that are never stored: between points, and between the cells of a regular grid."""

import numpy as np

from cusink import _checks_geometry
from cusink._arrays import arrays, narrowed
from cusink._grid_costs import GridCosts
from cusink._point_costs import KEPT, PointCosts

__all__ = ["Grid", "PointCloud"]


class PointCloud:
    """The cost of moving a unit of mass between points, recreated from the points wherever it is needed.

    It takes the place of `C` in `cusink.sinkhorn` and the functions built on it, with memory for the points and
    not for all pairs of them. `cusink.sinkhorn_adjoint` then gives gradients by the points.

    Parameters
    ----------
    x : array, shape (n, d) or (n,), or (B, n, d)
        Source points; n numbers are n points on a line. With a batch axis each problem has its own.
    y : array, shape (m, d) or (m,), or (B, m, d), or None
        Target points; None stands for `x`.
    metric : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        As for `cusink.cost_matrix`.
    power : float
        The cost is the metric to this power.
    tf32 : bool
        On a GPU with tensor cores, for 16 coordinates or more in float32: multiply coordinates in plain tf32, which is
        faster and errs by up to a thousandth of the largest squared length. If False they keep the digits of a float.

    Attributes
    ----------
    x, y : array, shape (n, d) and (m, d), or with a batch axis
        The points, in their own dtype.
    metric, power, tf32
        As given.
    shape : tuple
        Of the cost, (n, m) or (B, n, m).

    Raises
    ------
    TypeError
        Points of different libraries or dtypes.
    ValueError
        Points of different dimensions, NaN or infinite coordinates, a metric that does not exist, or a power that is
        not positive.

    Notes
    -----
    The points are centred before any distance is taken, so that those far from the origin lose nothing; a cosine
    is half the squared distance of the points on the unit sphere.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.PointCloud([0.0, 1.0, 3.0], [0.5, 2.5])
    >>> result = cusink.sinkhorn(None, [0.5, 0.5], C, eps=0.1)
    >>> print(C.shape, result.f.shape, f"{result.cost:.4f}")
    (3, 2) (3,) 0.5833
    """

    def __init__(self, x, y=None, metric="sqeuclidean", *, power=1, tf32=False):
        given = _checks_geometry.point_cloud(x, y, metric, power, tf32)
        self.x, self.y, self.metric, self.power, self.tf32 = given.x, given.y, metric, power, tf32
        self.shape = (*self.x.shape[:-1], self.y.shape[-2])
        self.flat = given.flat  # which of x and y came as numbers; None for a y that was left out

    def __repr__(self):
        return f"PointCloud(shape={self.shape}, d={self.x.shape[-1]}, metric={self.metric!r}, power={self.power})"

    def dense(self):
        """Return the cost as an array: memory of its size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            In the dtype of the points.
        """
        (x, y), xp, dtype = arrays(**{"C.x": self.x, "C.y": self.y})
        return narrowed(_point_costs(xp, self, x, y, KEPT).block(xp), dtype, xp)

    def mean(self):
        """Return the mean of the cost over all pairs of points, a common unit of `eps`.

        Returns
        -------
        float
            Over the batch too, if there is one.
        """
        (x, y), xp, _ = arrays(**{"C.x": self.x, "C.y": self.y})
        return _point_costs(xp, self, x, y, KEPT).astype(np.float64).mean(xp)


class Grid:
    """The cost between the cells of a regular grid, as a sum over its axes: images and volumes as histograms.

    It takes the place of `C` in `cusink.sinkhorn` and the functions built on it. Histograms have one bin for each cell,
    in C order: ``image.reshape(-1)``. Every reduction over the N cells runs axis by axis, with work of ``N (n_1 + n_2 +
    ...)`` instead of ``N**2``.

    Parameters
    ----------
    shape : tuple of int
        Cells along each axis: one, two or three axes.
    metric : {"sqeuclidean", "cityblock"}
        Between the centres of cells; both are sums over the axes, which "euclidean" is not.
    spacing : float or tuple of float
        Distance between neighbouring cells, for all axes or for each.
    periodic : bool or tuple of bool
        Whether the last cell of an axis is the neighbour of its first.

    Attributes
    ----------
    cells, metric, spacing, periodic
        As given, the last two for each axis.
    shape : tuple
        Of the cost, (N, N).

    Raises
    ------
    TypeError, ValueError
        A shape, spacing or metric that is none.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> image = np.zeros((28, 28))
    >>> image[4, 4] = 1
    >>> moved = np.roll(image, (3, 4), axis=(0, 1))
    >>> grid = cusink.Grid((28, 28))
    >>> print(f"{cusink.sinkhorn(image.reshape(-1), moved.reshape(-1), grid, eps=1.0).cost:.4f}")
    25.0000
    """

    def __init__(self, shape, metric="sqeuclidean", *, spacing=1.0, periodic=False):
        given = _checks_geometry.grid(shape, metric, spacing, periodic)
        self.cells, self.spacing, self.periodic = given
        self.metric = metric
        count = int(np.prod(self.cells))
        self.shape = (count, count)

    def __repr__(self):
        return f"Grid({self.cells}, {self.metric!r}, spacing={self.spacing}, periodic={self.periodic})"

    def dense(self):
        """Return the cost as an array, in float64: memory of its size.

        Returns
        -------
        array, shape (N, N)
        """
        return _grid_costs(np, self, np.float64).block(np)

    def max(self):
        """Return the largest cost, a common unit of `eps`.

        Returns
        -------
        float
        """
        return _grid_costs(np, self, np.float64).largest(np)


def mapped(cloud, function):
    """`cloud` between the points that a function makes of its own; one cloud on both sides stays one."""
    x = function(cloud.x)
    y = None if cloud.y is cloud.x else function(cloud.y)
    return PointCloud(x, y, cloud.metric, power=cloud.power, tf32=cloud.tf32)


def arrays_of(C):
    """What of a cost is to be checked and converted together with the other arrays of a call, by name."""
    if isinstance(C, PointCloud):
        return {"C.x": C.x, "C.y": C.y}
    return {} if isinstance(C, Grid) else {"C": C}


def costs_of(C, xp, dtype, parts, memory_limit=KEPT):
    """The cost as the operators take it: an array, `PointCosts`, or `GridCosts`.

    `parts` are the arrays that `arrays_of` named, in the `dtype` of the computation; a kernel may take `memory_limit`
    bytes.
    """
    if isinstance(C, PointCloud):
        return _point_costs(xp, C, *parts, memory_limit)
    return _grid_costs(xp, C, dtype) if isinstance(C, Grid) else parts[0]


def _point_costs(xp, cloud, x, y, memory_limit):
    """Points that are centred, or for "cosine" on the unit sphere."""
    dtype, factor, norm, exponent = x.dtype, 1.0, "squared", 1.0
    if cloud.metric == "cosine":
        x, y = (p.astype(np.float64) for p in (x, y))
        x, y = ((p / xp.sqrt((p * p).sum(axis=-1, keepdims=True))).astype(dtype) for p in (x, y))
        factor = 0.5**cloud.power
    elif cloud.metric == "cityblock":
        norm = "cityblock"
    elif cloud.metric == "euclidean":
        exponent = 0.5
    # Subtracted in their own precision: near the centre that is exact, however far away it is.
    centre = x.mean(axis=-2, keepdims=True, dtype=np.float64).astype(dtype)
    centred = xp.ascontiguousarray(x - centre)
    other = centred if cloud.x is cloud.y else xp.ascontiguousarray(y - centre)
    return PointCosts(centred, other, norm, exponent * cloud.power, factor, memory_limit, cloud, 1 if cloud.tf32 else 3)


def points_adjoint(xp, cloud, gx, gy):
    """Gradients by the points of a cloud, in their shape, of those by the points as `costs_of` gives them.

    With one cloud on both sides, gx is by the points as sources and as targets, and gy is None.
    """
    out = []
    for given, flat, gradient in zip((cloud.x, cloud.y), cloud.flat, (gx, gy), strict=True):
        if cloud.metric == "cosine":
            given = given.astype(np.float64)
            norm = xp.sqrt((given * given).sum(axis=-1, keepdims=True))
            unit = given / norm
            gradient = (gradient - unit * (unit * gradient).sum(axis=-1, keepdims=True)) / norm
        out.append(gradient[..., 0] if flat else gradient)
    if cloud.x is cloud.y:
        total = out[0] + (out[1][..., 0] if cloud.flat[0] else out[1])
        return total.astype(cloud.x.dtype), None
    return tuple(x.astype(cloud.x.dtype) for x in out)


def _grid_costs(xp, grid, dtype):
    """An array for each axis."""
    axes = []
    for cells, spacing, periodic in zip(grid.cells, grid.spacing, grid.periodic, strict=True):
        steps = np.abs(np.arange(cells)[:, None] - np.arange(cells))
        distance = spacing * (np.minimum(steps, cells - steps) if periodic else steps).astype(np.float64)
        # What exceeds the dtype is refused by the checks.
        with np.errstate(over="ignore"):
            axes.append(xp.asarray(distance**2 if grid.metric == "sqeuclidean" else distance, dtype))
    return GridCosts(tuple(axes))
