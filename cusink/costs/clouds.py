"""`cusink.PointCloud`: a cost between points that is never stored, as users pass it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import (
    arrays,
    finite,
    finite_entries,
    kind,
    narrowed,
    one_array,
    owned,
    promoted,
    to_host,
    widened,
)
from cusink.checks.foreign import InTheirWords, remembering
from cusink.checks.scalars import flag, one_of, positive_number
from cusink.costs.between import KERNEL_BYTES, BetweenPoints
from cusink.costs.checks import refuse_far
from cusink.costs.functions import CostFunction, CostGradient, Given
from cusink.costs.ground import CLOUD_METRICS, CloudMetric, Ground
from cusink.costs.wanted import check_points, check_targets, checked_labels
from cusink.types import Array, ArrayModule, HostArray

__all__ = ["PointCloud"]

SampleMetric: TypeAlias = Literal["sqeuclidean", "euclidean", "cityblock", "cosine"]  # known wherever a name is taken
METRICS: tuple[SampleMetric, ...] = get_args(SampleMetric)
LARGEST_P = 16.0  # beyond, float64 holds no powers of differences of 1e-16 of the largest


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
    metric : str or function
        "sqeuclidean", "euclidean", "cityblock", "cosine", "minkowski", "mahalanobis", "hellinger", "kl" or "haversine",
        see docs/point-clouds.md for their formulas. Or a function of points (n, d) and (m, d) that returns their costs
        (n, m), finite and at least 0: it is called with some of the points at a time, in the dtype of the computation,
        and never with all pairs at once where these do not fit into `memory_limit`. It cannot write to its points.
    power : float
        The cost is the metric to this power; 1 for a function.
    tf32 : bool
        On a GPU with fast tensor cores, for 16 coordinates or more in float32: multiply coordinates of 11 bits, as many
        as tf32 has, which is faster and errs by up to a thousandth of the largest squared length. If False they keep
        the digits of a float.
    p : float, optional
        Of "minkowski", at most 16; 2 if not given. With ``power=p`` the cost is ``sum_k |x_k - y_k| ** p``.
    radius : float, optional
        Of the sphere of "haversine"; 1 if not given.
    factor : array, shape (d, k), optional
        Of "mahalanobis": distances are ``|(x - y) L|``, for the matrix ``L L'`` of rank k or less.
    labels : array of int, shape (n,) or (B, n), or a pair with those of y, shape (m,) or (B, m), optional
        Labels of the points, from 0 up; one array for one cloud.
    table : array, shape (L, M), optional
        Costs of labels, at least 0: ``table[label of x_i, label of y_j]`` is added to the cost of a pair.
    gradient : function, optional
        Of a metric that is a function: takes points x (n, d), y (m, d) and the gradient (n, m) of a loss by their
        costs, and returns those by x and by y. It is tried with the same few points as the metric, before any work.
        Without it there are no gradients by points.

    Attributes
    ----------
    x, y : array, shape (n, d) and (m, d), or with a batch axis
        The points, in their own dtype.
    metric, power, tf32
        As given.
    labels : pair of array of int, or None
        Of x and y, in NumPy.
    shape : tuple
        Of the cost, (n, m) or (B, n, m).

    Raises
    ------
    TypeError
        Points of different libraries or dtypes, labels that are no integers, a function that returns no array.
    ValueError
        Points of different dimensions, NaN or infinite coordinates, a metric that does not exist, or a power that is
        not positive. Points that a metric does not take: zero vectors for "cosine", negative ones for "hellinger" and
        "kl", zeros in y for "kl", latitudes beyond a quarter turn for "haversine". Labels outside the table, parameters
        of another metric, a function whose costs have the wrong shape, are negative or not finite.

    Notes
    -----
    Distances are taken from differences, or about centres near the points, so that those far from the origin or from
    each other lose nothing; a cosine is half the squared distance of the points on the unit sphere.

    "kl" and a table that is not symmetric make a cost that is not: it has no Sinkhorn divergence. Where a cost has no
    derivative, as between points that coincide, zero is taken. docs/point-clouds.md says which metrics have CUDA
    kernels and large clouds of their own, and which are made in blocks by array operations.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.PointCloud([0.0, 1.0, 3.0], [0.5, 2.5])
    >>> result = cusink.sinkhorn(None, [0.5, 0.5], C, eps=0.1)
    >>> print(C.shape, result.f.shape, f"{result.cost:.4f}")
    (3, 2) (3,) 0.5833
    """

    origin = ""  # torch or jax, if the points came from there: so will results

    @remembering
    @one_call
    def __init__(
        self,
        x: Any,
        y: Any = None,
        metric: CloudMetric | CostFunction = "sqeuclidean",
        *,
        power: float = 1,
        tf32: bool = False,
        p: float | None = None,
        radius: float | None = None,
        factor: Any = None,
        labels: Any = None,
        table: Any = None,
        gradient: CostGradient | None = None,
    ) -> None:
        parameters = {"power": power, "tf32": tf32, "p": p, "radius": radius, "factor": factor, "table": table}
        self.ground = checked_ground({"metric": metric, "gradient": gradient} | parameters)
        given = _checked_points(x, y, self.ground)
        self.x, self.y, self.metric, self.power, self.tf32 = (
            given.x,
            given.y,
            metric.function if isinstance(metric, InTheirWords) else metric,
            self.ground.power,
            self.ground.tf32,
        )
        self.labels: tuple[HostArray, HostArray] | None = checked_labels(self.ground.table, labels, self.x, self.y)
        self.shape: tuple[int, ...] = (*self.x.shape[:-1], self.y.shape[-2])
        self.flat = given.flat  # which of x and y came as numbers; None for a y that was left out
        self.batches = given.batches
        if callable(metric):
            _try(self.ground, self.x, self.y)

    def __repr__(self) -> str:
        metric = getattr(self.metric, "__name__", "function") if callable(self.metric) else repr(self.metric)
        return f"PointCloud(shape={self.shape}, d={self.x.shape[-1]}, metric={metric}, power={self.power})"

    @one_call
    def dense(self) -> Array:
        """Return the cost as an array: memory of its size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            In the dtype of the points.
        """
        (x, y), xp, dtype = arrays(**{"C.x": self.x, "C.y": self.y})
        with np.errstate(over="ignore", invalid="ignore"):
            made = any_costs(xp, self, x, y).block(xp)
        cost = narrowed(made, dtype, xp)
        refuse_far(~xp.isfinite(cost), cost.dtype)
        return cost

    @one_call
    def mean(self) -> float:
        """Return the mean of the cost over all pairs of points, a common unit of `eps`.

        Returns
        -------
        float
            Over the batch too, if there is one.
        """
        (x, y), xp, _ = arrays(**{"C.x": self.x, "C.y": self.y})
        with np.errstate(over="ignore", invalid="ignore"):
            mean = any_costs(xp, self, x, y, np.float64).mean(xp)
        refuse_far(np.asarray(not np.isfinite(mean)), np.dtype(np.float64))
        return mean

    def _costs_with(self, xp: ArrayModule, costs: BetweenPoints, side: int, points: Any) -> BetweenPoints:
        """Return the costs between new points in the place of those of a side, and those of the other side."""
        name = "xy"[side]
        if self.labels is not None:
            raise ValueError(f"'{name}' must be points with labels for this cloud, and new points have none")
        new, _ = widened(name, points, "the cloud", self.x[:0])
        new, old = owned(new, points), (costs.given or (costs.x, costs.y))[1 - side]  # not the user's, who may write
        made = like(self, *((new, old) if side == 0 else (old, new)))
        of_old = bool(self.flat[0] if self.flat[1 - side] is None else self.flat[1 - side])
        made.flat = (bool(made.flat[0]), of_old) if side == 0 else (of_old, made.flat[1])
        made.batches = (made.batches[0], self.batches[1]) if side == 0 else (self.batches[0], made.batches[1])
        x, y = made.x, made.y
        if costs.ndim == 2 and x.ndim == 3:  # of a batch of one
            if len(x) > 1:
                raise ValueError(f"'{name}' must have shape (k, d), for one shared cloud; got a batch of {len(x)}")
            x, y = x[0], y[0]
        return point_costs(xp, made, x, y, costs.memory_limit)


def like(cloud: PointCloud, x: Any, y: Any, labels: Any = None) -> PointCloud:
    """Return the cost between other points in the metric of a `cloud`; with `labels` as `PointCloud` takes them."""
    return PointCloud(x, y, labels=labels, **cloud.ground.keywords)


def mapped(cloud: PointCloud, function: Callable[[Array], Array]) -> PointCloud:
    """Return `cloud` between the points that a function makes of its own; one cloud on both sides stays one."""
    x = function(cloud.x)
    if cloud.y is cloud.x:
        return like(cloud, x, None, cloud.labels and cloud.labels[0])
    return like(cloud, x, function(cloud.y), cloud.labels)


def sides_of(cloud: PointCloud) -> tuple[PointCloud, PointCloud]:
    """Return the clouds of the sources and of the targets to themselves."""
    of_x, of_y = cloud.labels or (None, None)
    sides = like(cloud, cloud.x, None, of_x), like(cloud, cloud.y, None, of_y)
    sides[0].batches, sides[1].batches = ((size, size) for size in cloud.batches)
    return sides


def point_costs(
    xp: ArrayModule, cloud: PointCloud, x: Array, y: Array, memory_limit: int = KERNEL_BYTES
) -> BetweenPoints:
    """Return the costs between the points x and y of a cloud, or between their images."""
    x = owned(xp.ascontiguousarray(x), cloud.x, cloud.y)
    y = x if cloud.x is cloud.y else owned(xp.ascontiguousarray(y), cloud.x, cloud.y)
    return cloud.ground.costs(xp, x, y, cloud.labels, memory_limit, cloud)


def any_costs(xp: ArrayModule, cloud: PointCloud, x: Array, y: Array, dtype: Any = None) -> BetweenPoints:
    """Return costs to look at, in a `dtype` if given: as `point_costs`, but where squares have no room by a formula."""
    costs = point_costs(xp, cloud, x, y)
    costs = costs if dtype is None else costs.astype(dtype)
    if costs.squares_fit(xp):
        return costs
    x, y = costs.given or (costs.x, costs.y)
    made = cloud.ground.costs(xp, x, y, cloud.labels, cloud=cloud, by_formula=True)
    return made if dtype is None else made.astype(dtype)


def _try(ground: Ground, x: Array, y: Array) -> None:
    """Call the functions of the user with a few points."""
    (x, y), xp, _ = arrays(**{"C.x": x, "C.y": y})
    formula = ground.formula()
    assert isinstance(formula, Given)
    formula.try_out(xp, *(xp.ascontiguousarray(p if p.ndim == 2 else p[0]) for p in (x[..., :2, :], y[..., :3, :])))


class _Points(NamedTuple):
    """Points (n, d) or (B, n, d) in their own dtype; y is x itself if it was not given."""

    x: Array
    y: Array
    flat: tuple[bool, bool | None]
    batches: tuple[int | None, int | None]  # sizes of the batch axes that x and y came with


def _checked_points(x: Any, y: Any, ground: Ground) -> _Points:
    """Check the points of `PointCloud`."""
    if x is None:
        raise TypeError("'x' must be an array of points; got None. Only 'y' may be None, for x itself")
    given = {"x": x} if y is None else {"x": x, "y": y}
    converted, xp, dtype = promoted(**given)
    shaped, flat, batches = [], [], []
    for name, p in zip(given, converted, strict=True):
        flat.append(p.ndim == 1)
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim not in (2, 3) or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) or (B, points, d) with at least one point and one coordinate; "
                f"got {p.shape}"
            )
        finite(name, p, xp)
        check_points(ground.metric, ground.factor, name, p)
        shaped.append(p)
        batches.append(len(p) if p.ndim == 3 else None)
    check_targets(ground.metric, "x" if len(shaped) == 1 else "y", shaped[-1])
    if len(shaped) == 1:
        x = shaped[0].astype(dtype, copy=False)
        return _Points(x, x, (flat[0], None), (batches[0], batches[0]))
    x, y = shaped
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    if x.ndim == 3 or y.ndim == 3:
        sizes = {len(p) for p in (x, y) if p.ndim == 3 and len(p) > 1}
        if len(sizes) > 1:
            raise ValueError(f"'x' and 'y' must have one batch size, or 1; got {x.shape} and {y.shape}")
        size = sizes.pop() if sizes else 1
        x, y = (xp.broadcast_to(p, (size, *p.shape[-2:])) for p in (x, y))
    x, y = (p.astype(dtype, copy=False) for p in (x, y))
    return _Points(x, y, (flat[0], flat[1]), (batches[0], batches[1]))


def checked_ground(given: dict[str, Any]) -> Ground:
    """Check a metric and its parameters."""
    metric = given["metric"]
    if not callable(metric):
        one_of("metric", metric, CLOUD_METRICS, "Or a function of x (n, d) and y (m, d) that returns costs (n, m)")
    power, tf32 = positive_number("power", given["power"]), flag("tf32", given["tf32"])
    for name, owner in (("p", "minkowski"), ("radius", "haversine"), ("factor", "mahalanobis")):
        if given[name] is not None and metric != owner:
            raise ValueError(f"'{name}' must be None unless 'metric' is '{owner}'; got {kind(given[name])}")
    if given["gradient"] is not None and not (callable(metric) and callable(given["gradient"])):
        raise TypeError(
            "'gradient' must be a function, and go with a 'metric' that is one: other metrics know theirs; got "
            f"{kind(given['gradient'])}"
        )
    if callable(metric) and power != 1:
        raise ValueError(f"'power' must be 1 for a 'metric' that is a function; got {power:g}. Let it return the power")
    p, radius = given["p"], given["radius"]
    if p is not None and (p := positive_number("p", p)) > LARGEST_P:
        raise ValueError(
            f"'p' must be at most {LARGEST_P:g}, as powers of differences leave the range of float64; got {p:g}"
        )
    return Ground(
        metric=metric,
        power=power,
        tf32=tf32,
        p=p,
        radius=None if radius is None else positive_number("radius", radius),
        factor=_matrix("factor", given["factor"]) if metric == "mahalanobis" else None,
        table=None if given["table"] is None else _matrix("table", given["table"]),
        gradient=given["gradient"],
    )


def _matrix(name: str, given: Any) -> HostArray:
    """Check a matrix that belongs to a metric."""
    if given is None:
        raise ValueError(
            "'factor' must be given for metric 'mahalanobis': a matrix L (d, k) that makes distances |(x - y) L|; got "
            "None. For a covariance it is numpy.linalg.cholesky(numpy.linalg.inv(covariance))"
        )
    found = to_host(one_array(name, given)).astype(np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"'{name}' must have two axes, neither of them empty; got shape {found.shape}")
    finite_entries(name, found, np)
    if name == "table" and (found < 0).any():
        raise ValueError(f"'table' must hold costs of at least 0; got {float(found.min()):g}. Add a constant to all")
    return found
