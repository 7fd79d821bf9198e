"""`cusink.PointCloud`: a cost between points that is never stored, as users pass it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from cusink.checks.arrays import arrays, finite, narrowed, owned, promoted
from cusink.checks.scalars import flag, one_of, positive_number
from cusink.costs.points import KERNEL_BYTES, PointCosts, directions
from cusink.placement import on_device
from cusink.types import Array, ArrayModule

__all__ = ["PointCloud"]

Metric: TypeAlias = Literal["sqeuclidean", "euclidean", "cityblock", "cosine"]
METRICS: tuple[Metric, ...] = ("sqeuclidean", "euclidean", "cityblock", "cosine")


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
    Distances are taken from differences, or about centres near the points, so that those far from the origin or from
    each other lose nothing; a cosine is half the squared distance of the points on the unit sphere.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.PointCloud([0.0, 1.0, 3.0], [0.5, 2.5])
    >>> result = cusink.sinkhorn(None, [0.5, 0.5], C, eps=0.1)
    >>> print(C.shape, result.f.shape, f"{result.cost:.4f}")
    (3, 2) (3,) 0.5833
    """

    @on_device
    def __init__(
        self, x: Any, y: Any = None, metric: Metric = "sqeuclidean", *, power: float = 1, tf32: bool = False
    ) -> None:
        given = _checked_points(x, y, metric, power, tf32)
        self.x, self.y, self.metric, self.power, self.tf32 = given.x, given.y, metric, given.power, given.tf32
        self.shape: tuple[int, ...] = (*self.x.shape[:-1], self.y.shape[-2])
        self.flat = given.flat  # which of x and y came as numbers; None for a y that was left out

    def __repr__(self) -> str:
        return f"PointCloud(shape={self.shape}, d={self.x.shape[-1]}, metric={self.metric!r}, power={self.power})"

    @on_device
    def dense(self) -> Array:
        """Return the cost as an array: memory of its size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            In the dtype of the points.
        """
        (x, y), xp, dtype = arrays(**{"C.x": self.x, "C.y": self.y})
        return narrowed(point_costs(xp, self, x, y).block(xp), dtype, xp)

    @on_device
    def mean(self) -> float:
        """Return the mean of the cost over all pairs of points, a common unit of `eps`.

        Returns
        -------
        float
            Over the batch too, if there is one.
        """
        (x, y), xp, _ = arrays(**{"C.x": self.x, "C.y": self.y})
        return point_costs(xp, self, x, y).astype(np.float64).mean(xp)


def mapped(cloud: PointCloud, function: Callable[[Array], Array]) -> PointCloud:
    """Return `cloud` between the points that a function makes of its own; one cloud on both sides stays one."""
    x = function(cloud.x)
    y = None if cloud.y is cloud.x else function(cloud.y)
    return PointCloud(x, y, cloud.metric, power=cloud.power, tf32=cloud.tf32)


def point_costs(xp: ArrayModule, cloud: PointCloud, x: Array, y: Array, memory_limit: int = KERNEL_BYTES) -> PointCosts:
    """Return the costs between the points x and y of a cloud, or for "cosine" between their directions."""
    factor, exponent, given = 1.0, 1.0, None
    norm: Literal["squared", "cityblock"] = "squared"
    x = owned(xp.ascontiguousarray(x), cloud.x, cloud.y)
    y = x if cloud.x is cloud.y else owned(xp.ascontiguousarray(y), cloud.x, cloud.y)
    if cloud.metric == "cosine":
        given = x, y
        x, y = directions(x, y, x.dtype)
        factor = 0.5**cloud.power
    elif cloud.metric == "cityblock":
        norm = "cityblock"
    elif cloud.metric == "euclidean":
        exponent = 0.5
    return PointCosts(
        x,
        y,
        norm,
        exponent=exponent * cloud.power,
        factor=factor,
        memory_limit=memory_limit,
        cloud=cloud,
        terms=1 if cloud.tf32 else 3,
        given=given,
    )


def extended_costs(xp: ArrayModule, costs: PointCosts, side: int, points: Any) -> PointCosts:
    """Return the costs between new points in the place of those of a side, and those of the other side."""
    cloud, name = costs.cloud, "xy"[side]
    assert isinstance(cloud, PointCloud)
    (new, _), _, _ = arrays(**{name: points, "the cloud": cloud.x[:0]})
    new, old = owned(new, points), (costs.given or (costs.x, costs.y))[1 - side]  # not those of the user, who may write
    made = PointCloud(*((new, old) if side == 0 else (old, new)), cloud.metric, power=cloud.power, tf32=cloud.tf32)
    of_old = bool(cloud.flat[0] if cloud.flat[1 - side] is None else cloud.flat[1 - side])
    made.flat = (bool(made.flat[0]), of_old) if side == 0 else (of_old, made.flat[1])
    x, y = made.x, made.y
    if costs.ndim == 2 and x.ndim == 3:  # of a batch of one
        if len(x) > 1:
            raise ValueError(f"'{name}' must have shape (k, d), for one shared cloud; got a batch of {len(x)}")
        x, y = x[0], y[0]
    return point_costs(xp, made, x, y, costs.memory_limit)


class _Points(NamedTuple):
    """Points (n, d) or (B, n, d) in their own dtype; y is x itself if it was not given."""

    x: Array
    y: Array
    flat: tuple[bool, bool | None]
    power: float
    tf32: bool


def _checked_points(x: Any, y: Any, metric: Any, power: Any, tf32: Any) -> _Points:
    """Check the arguments of `PointCloud`."""
    one_of("metric", metric, METRICS)
    power = positive_number("power", power)
    tf32 = flag("tf32", tf32)
    if x is None:
        raise TypeError("'x' must be an array of points; got None. Only 'y' may be None, for x itself")
    given = {"x": x} if y is None else {"x": x, "y": y}
    converted, xp, dtype = promoted(**given)
    shaped, flat = [], []
    for name, p in zip(given, converted, strict=True):
        flat.append(p.ndim == 1)
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim not in (2, 3) or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) or (B, points, d) with at least one point and one coordinate; "
                f"got {p.shape}"
            )
        finite(name, p, xp)
        if metric == "cosine" and not p.any(axis=-1).all():
            raise ValueError(f"'{name}' must hold no zero vector for metric 'cosine'; it has one")
        shaped.append(p)
    if len(shaped) == 1:
        x = shaped[0].astype(dtype, copy=False)
        return _Points(x, x, (flat[0], None), power, tf32)
    x, y = shaped
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    if x.ndim == 3 or y.ndim == 3:
        sizes = {len(p) for p in (x, y) if p.ndim == 3 and len(p) > 1}
        if len(sizes) > 1:
            raise ValueError(f"'x' and 'y' must have one batch size, or 1; got {x.shape} and {y.shape}")
        size = sizes.pop() if sizes else 1
        x, y = (xp.broadcast_to(p, (size, *p.shape[-2:])) for p in (x, y))
    return _Points(x.astype(dtype, copy=False), y.astype(dtype, copy=False), (flat[0], flat[1]), power, tf32)
