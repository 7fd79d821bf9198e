"""Cost matrices between points."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import HALF, arrays, in_range, kind, narrowed
from cusink.checks.scalars import one_of
from cusink.costs import checks
from cusink.costs.blocks import blocks
from cusink.costs.clouds import METRICS, PointCloud, any_costs
from cusink.costs.directions import directions
from cusink.costs.functions import CostFunction, CostGradient
from cusink.costs.ground import CLOUD_METRICS, CloudMetric
from cusink.costs.parameters import add_block, nothing_yet
from cusink.costs.powers import NormPower, every_square_fits
from cusink.costs.pulled import to_points, to_user_points
from cusink.summary import Summary
from cusink.types import Array, ArrayModule

__all__ = [
    "CostGradients",
    "cost_matrix",
    "cost_matrix_adjoint",
]

ADJOINT_ENTRIES = 1 << 18  # of a gradient of costs that are pulled back at a time


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CostGradients(Summary):
    """Gradients of ``sum(grad_C * C)`` by what `cusink.cost_matrix` made `C` of.

    It unpacks as the pair ``gx, gy = ...`` of `x` and `y`.

    Attributes
    ----------
    x : array, shape of `x`
        By the source points; by the points as sources and as targets, if `y` is None.
    y : array, shape of `y`, or None
        By the target points; None if `y` is.
    metric : dict of array
        By the parameters of the metric, by name: "factor" (d, k) and "table" (L, M). In float64, summed over the batch.
        Empty for other metrics.
    """

    x: Array
    y: Array | None
    metric: dict[str, Array] = field(repr=False)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.x, self.y))

    def __getitem__(self, side: int) -> Array:
        return (self.x, self.y)[side]

    def __len__(self) -> int:
        return 2


@one_call
def cost_matrix(
    x: Array,
    y: Array | None = None,
    metric: str | CostFunction = "sqeuclidean",
    *,
    power: float = 1,
    p: float | None = None,
    radius: float | None = None,
    factor: Array | None = None,
    labels: Any = None,
    table: Array | None = None,
    gradient: CostGradient | None = None,
) -> Array:
    """Return the cost of moving a unit of mass between points.

    Parameters
    ----------
    x : array, shape (n, d) or (n,), or (B, n, d)
        Source points; n numbers are n points on a line.
    y : array, shape (m, d) or (m,), or (B, m, d), or None
        Target points; None stands for `x`.
    metric : str or function
        One that `cusink.PointCloud` takes; with NumPy, for points without a batch axis, any other name that
        `scipy.spatial.distance.cdist` knows, too.
    power, p, radius, factor, labels, table, gradient : optional
        As for `cusink.PointCloud`.

    Returns
    -------
    array, shape (n, m) or (B, n, m)
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
    given: dict[str, Any] = {"p": p, "radius": radius, "factor": factor, "labels": labels, "table": table}
    if _of_cloud(x, y, metric, power, given | {"gradient": gradient}):
        return PointCloud(x, y, cast(Any, metric), power=power, gradient=gradient, **given).dense()
    (x, y), xp, dtype = checks.points(x, y, cast(str, metric))
    if metric == "euclidean" and not every_square_fits(xp, x, y, np.float64 if xp is np else x.dtype):
        with np.errstate(over="ignore", invalid="ignore"):
            cost = NormPower(2.0).costs(xp, x, y)
    elif xp is np:
        from scipy.spatial.distance import cdist

        if metric == "cosine":  # of which it squares the lengths
            x, y = (directions(xp, p.astype(np.float64))[0] for p in (x, y))
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # of variances, which it takes by NumPy
                cost = cdist(x, y, metric)
        except (ValueError, TypeError):
            known = ", ".join(repr(name) for name in METRICS)
            raise ValueError(
                f"'metric' must be {known} or another name known to scipy.spatial.distance.cdist; got {metric!r}"
            ) from None
    else:
        one_of("metric", metric, METRICS)
        cost = _pairwise(xp, x, y, cast(str, metric))
    cost = narrowed(cost, dtype, xp)
    checks.refuse_far(~xp.isfinite(cost), cost.dtype)
    return cost


@one_call
def cost_matrix_adjoint(
    x: Array,
    y: Array | None,
    grad_C: Array,
    metric: CloudMetric | CostFunction = "sqeuclidean",
    *,
    power: float = 1,
    p: float | None = None,
    radius: float | None = None,
    factor: Array | None = None,
    labels: Any = None,
    table: Array | None = None,
    gradient: CostGradient | None = None,
) -> CostGradients:
    """Pull a gradient with respect to a cost matrix back to the points and parameters that it was made of.

    Parameters
    ----------
    x : array, shape (n, d) or (n,), or (B, n, d)
        Source points.
    y : array, shape (m, d) or (m,), or (B, m, d), or None
        Target points; None stands for `x`, as in `cusink.cost_matrix`.
    grad_C : array, shape (n, m) or (B, n, m)
        Derivative of the final loss by each entry of ``cost_matrix(x, y, metric)``, such as the `C` of
        `cusink.SinkhornGradients`.
    metric : str or function
        What the cost is: a metric that `cusink.PointCloud` takes.
    power, p, radius, factor, labels, table, gradient : optional
        As for `cusink.PointCloud`.

    Returns
    -------
    CostGradients
        Gradients x and y, which ``gx, gy = ...`` unpacks; metric, by a `factor` and by a `table`.

    Raises
    ------
    TypeError
        Inputs of different libraries or dtypes.
    ValueError
        Points of different dimensions, a gradient of the wrong shape, or a metric without a gradient. Points so far
        apart that gradients are no numbers of their dtype.

    Notes
    -----
    Where "euclidean" has no derivative, at points that coincide, zero is taken; so it is for "cityblock" in each
    coordinate that is equal, and for other metrics as docs/point-clouds.md says. Memory is a few arrays of the size of
    `grad_C`.

    Examples
    --------
    >>> import cusink
    >>> x, y = [[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0]]
    >>> gx, gy = cusink.cost_matrix_adjoint(x, y, [[0.25], [0.75]])
    >>> gx
    array([[ 0. , -1. ],
           [ 1.5, -3. ]])
    >>> cusink.cost_matrix_adjoint(x, y, [[0.25], [0.75]], labels=([0, 1], [0]), table=[[0.0], [1.0]]).metric["table"]
    array([[0.25],
           [0.75]])
    """
    given: dict[str, Any] = {"p": p, "radius": radius, "factor": factor, "labels": labels, "table": table}
    parametric = isinstance(metric, str) and metric in ("minkowski", "mahalanobis")
    if _of_cloud(x, y, metric, power, given | {"gradient": gradient}) or parametric:
        return _cloud_adjoint(PointCloud(x, y, metric, power=power, gradient=gradient, **given), grad_C)
    one_of("metric", metric, CLOUD_METRICS)
    (px, py), xp, dtype = checks.points(x, y, cast(str, metric))
    grad_C = checks.cost_gradient(grad_C, px, py, x)
    with np.errstate(over="ignore", invalid="ignore"):
        gx, gy = _pairwise_adjoint(xp, px, py, grad_C, cast(str, metric))
        if y is None:
            gx, gy = gx + gy, None
    flat = np.ndim(x) == 1
    gx = gx[:, 0] if flat else gx
    gy = gy[:, 0] if y is not None and np.ndim(y) == 1 else gy
    return _gradients(xp, narrowed(gx, dtype, xp), gy if gy is None else narrowed(gy, dtype, xp), {})


def _gradients(xp: ArrayModule, x: Array, y: Array | None, metric: dict[str, Array]) -> CostGradients:
    """Return gradients that are numbers of their dtype; of half precision a warning says where they are not."""
    for part in (x, y, *metric.values()):
        if part is not None and part.dtype.name not in HALF and not bool(xp.isfinite(part).all()):
            raise ValueError(
                f"'x' and 'y' must be so near, and 'grad_C' so small, that gradients are finite in {part.dtype}; got "
                "infinite ones. Scale the points"
            )
    return CostGradients(x=x, y=y, metric=metric)


def _of_cloud(x: Any, y: Any, metric: Any, power: Any, given: dict[str, Any]) -> bool:
    """Whether a cost is to be made as that of a `PointCloud`, and not by differences of all points or by SciPy."""
    plain = type(power) in (int, float) and power == 1  # of any other number `PointCloud` says what is wrong
    more = any(value is not None for value in given.values()) or not plain
    new = callable(metric) or (isinstance(metric, str) and metric in ("hellinger", "kl", "haversine"))
    return more or new or 3 in (_axes(x), _axes(y))


def _axes(points: Any) -> int:
    """Return the number of axes of points, of lists too; 0 for what has none."""
    try:
        return int(getattr(points, "ndim", None) or np.ndim(points))
    except Exception:
        return 0  # lists of unequal lengths, or a class of the user: the checks say so


def _cloud_adjoint(cloud: PointCloud, grad_C: Any) -> CostGradients:
    """Pull the gradient (n, m) or (B, n, m) of the costs of a cloud back, in blocks."""
    (x, y, gradient), xp, _ = arrays(x=cloud.x, y=cloud.y, grad_C=grad_C)
    if gradient is None or gradient.shape != cloud.shape:
        got = kind(None) if gradient is None else gradient.shape
        raise ValueError(f"'grad_C' must have shape {cloud.shape} to match these points; got {got}")
    in_range("grad_C", gradient, xp)
    costs = any_costs(xp, cloud, x, y)
    gx, gy = (xp.zeros(points.shape, np.float64) for points in (costs.x, costs.y))
    metric = nothing_yet(xp, costs)
    size, (n, m) = 1 if costs.ndim == 2 else len(x), costs.shape[-2:]
    with np.errstate(over="ignore", invalid="ignore"):
        for problems, rows in blocks(size, n, m, ADJOINT_ENTRIES):
            at, every = ((rows,), ()) if costs.ndim == 2 else ((problems, rows), (problems,))
            of_rows, of_columns = costs.block_adjoint(xp, gradient[at], problems, rows)
            gx[at] += of_rows
            gy[every] += of_columns
            add_block(xp, costs, metric, problems, rows, gradient[at], (of_rows, of_columns))
        of_x, of_y = to_user_points(xp, cloud, to_points(xp, costs.embedding, cloud, gx, gy))
    return _gradients(xp, of_x, of_y, metric)


def _pairwise(xp: ArrayModule, x: Array, y: Array, metric: str) -> Array:
    """Return the costs (n, m) one coordinate at a time: no (n, m, d) array, and differences before squares."""
    if metric == "cosine":
        (x, _), (y, _) = directions(xp, x), directions(xp, y)
        return xp.clip(1 - x @ y.T, 0, 2)
    cost = xp.zeros((len(x), len(y)), x.dtype)
    for k in range(x.shape[1]):
        difference = x[:, None, k] - y[None, :, k]
        cost += xp.abs(difference) if metric == "cityblock" else difference * difference
    return xp.sqrt(cost) if metric == "euclidean" else cost


def _pairwise_adjoint(xp: ArrayModule, x: Array, y: Array, grad_C: Array, metric: str) -> tuple[Array, Array]:
    """Return the gradients (n, d) and (m, d), one coordinate at a time: differences before sums.

    On the host those of float32 are taken in float64 where squares of differences leave the range.
    """
    if xp is np and not every_square_fits(xp, x, y, x.dtype):
        x, y, grad_C = (z.astype(np.float64, copy=False) for z in (x, y, grad_C))
    gx, gy = xp.empty_like(x), xp.empty_like(y)
    if metric == "cosine":
        (x, of_x), (y, of_y) = directions(xp, x), directions(xp, y)
        for unit, pull, norm, out in ((x, grad_C @ y, of_x, gx), (y, grad_C.T @ x, of_y, gy)):
            out[:] = (unit * (unit * pull).sum(axis=1, keepdims=True) - pull) / norm
        return gx, gy
    if metric == "euclidean" and not every_square_fits(xp, x, y, x.dtype):
        return NormPower(2.0).adjoint(xp, grad_C, x, y)
    if metric == "euclidean":
        cost = _pairwise(xp, x, y, metric)
        grad_C = xp.where(cost > 0, grad_C / xp.where(cost > 0, cost, 1), 0)
    for k in range(x.shape[1]):
        slope = x[:, None, k] - y[None, :, k]
        slope = xp.sign(slope) if metric == "cityblock" else slope
        slope *= grad_C
        gx[:, k], gy[:, k] = slope.sum(axis=1), -slope.sum(axis=0)
    return (2 * gx, 2 * gy) if metric == "sqeuclidean" else (gx, gy)
