"""Costs between points, never stored: what users pass, and the data that operators take."""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.checks.arrays import arrays, kind, narrowed

__all__ = [
    "PointCloud",
]


MEAN_BLOCK = 1 << 20  # costs that are averaged at a time
KEPT = 1 << 30  # bytes that a kernel may take if the caller sets no limit

METRICS = ("sqeuclidean", "euclidean", "cityblock", "cosine")


@dataclasses.dataclass(frozen=True, eq=False)
class PointCosts:
    """``C_ij = factor * s_ij ** exponent`` with s the squared Euclidean distance, or the city-block distance.

    `x` (n, d) or (B, n, d) and `y` (m, d) or (B, m, d), C-contiguous, of one dtype; both have a batch axis or neither.
    They are centred, so that no digit is lost far from the origin. An operator may keep a kernel of
    `memory_limit` bytes, and recreates the costs in blocks where it would be larger.
    """

    x: Any
    y: Any
    norm: str  # "squared" or "cityblock"
    exponent: float = 1.0
    factor: float = 1.0
    memory_limit: int = KEPT
    cloud: Any = None  # the PointCloud that the points came from
    terms: int = 3  # of a product on tensor cores, see point_products.cuh: 1 for plain tf32

    @property
    def shape(self):
        """Of the cost that is not there: (n, m) or (B, n, m)."""
        return (*self.x.shape[:-1], self.y.shape[-2])

    @property
    def ndim(self):
        return self.x.ndim

    @property
    def dtype(self):
        return self.x.dtype

    @property
    def point_bytes(self):
        """What the points take."""
        return self.x.nbytes + (0 if self.y is self.x else self.y.nbytes)

    def astype(self, dtype):
        """The same points in another precision."""
        return dataclasses.replace(self, x=self.x.astype(dtype), y=self.y.astype(dtype))

    def at(self, problems):
        """The costs of some problems, where each has its own; else the shared one."""
        if self.ndim == 2:
            return self
        return dataclasses.replace(self, x=self.x[problems], y=self.y[problems])

    def take(self, rows, columns):
        """The costs between some of the points."""
        return dataclasses.replace(self, x=self.x[..., rows, :], y=self.y[..., columns, :])

    def block(self, xp, problems=slice(None), rows=slice(None)):
        """Costs (n, m) or (B, n, m) of some problems and rows as an array: differences before squares."""
        x, y = (self.x, self.y) if self.ndim == 2 else (self.x[problems], self.y[problems])
        x = x[..., rows, :]
        out = xp.zeros((*x.shape[:-1], y.shape[-2]), self.dtype)
        for k in range(x.shape[-1]):
            difference = x[..., :, None, k] - y[..., None, :, k]
            out += xp.abs(difference) if self.norm == "cityblock" else difference * difference
        return self.of_distances(xp, out)

    def block_adjoint(self, xp, gradient, problems=slice(None), rows=slice(None)):
        """Pull the `gradient` by a `block` back to the points of its rows (n, d) and to all columns' (m, d).

        Points that coincide take zero where the cost has no derivative, as `cusink.cost_matrix_adjoint` does.
        """
        x, y = (self.x, self.y) if self.ndim == 2 else (self.x[problems], self.y[problems])
        x = x[..., rows, :]
        if self.exponent != 1:
            s = dataclasses.replace(self, exponent=1.0, factor=1.0).block(xp, problems, rows)
            s = xp.where(s > 0, s, xp.inf if self.exponent < 1 else 0)
            gradient = gradient * xp.power(s, s.dtype.type(self.exponent - 1))
        gradient = gradient * gradient.dtype.type(self.factor * self.exponent)
        if self.norm == "squared":
            turned = xp.swapaxes(gradient, -1, -2)
            gx = gradient.sum(axis=-1)[..., None] * x - xp.matmul(gradient, y)
            gy = turned.sum(axis=-1)[..., None] * y - xp.matmul(turned, x)
            return 2 * gx, 2 * gy
        gx, gy = xp.empty_like(x), xp.empty_like(y)
        for k in range(x.shape[-1]):
            slope = xp.sign(x[..., :, None, k] - y[..., None, :, k]) * gradient
            gx[..., k], gy[..., k] = slope.sum(axis=-1), -slope.sum(axis=-2)
        return gx, gy

    def of_distances(self, xp, s):
        """Costs of the distances `s`, which are overwritten."""
        if self.exponent == 0.5:
            xp.sqrt(s, out=s)
        elif self.exponent != 1:
            xp.power(s, s.dtype.type(self.exponent), out=s)
        if self.factor != 1:
            s *= s.dtype.type(self.factor)
        return s

    def mean(self, xp):
        """The mean cost, over the problems too; of squared distances in one pass over the points."""
        if self.norm == "squared" and self.exponent == 1:
            squares = sum(float(xp.einsum("...ik,...ik->", p, p)) / p[..., 0].size for p in (self.x, self.y))
            between = float((self.x.mean(axis=-2) * self.y.mean(axis=-2)).sum(axis=-1).mean())
            return self.factor * (squares - 2 * between)
        total, height = 0.0, max(1, MEAN_BLOCK // self.shape[-1])
        for problem in range(1 if self.ndim == 2 else len(self.x)):
            for start in range(0, self.shape[-2], height):
                rows = slice(start, start + height)
                total += float(self.block(xp, slice(problem, problem + 1), rows).sum())
        return total / math.prod(self.shape)

    def largest(self, xp):
        """A bound that no cost exceeds."""
        with np.errstate(over="ignore"):  # inf is a bound
            own = self._size(xp, self.x)
            other = own if self.y is self.x else self._size(xp, self.y)
            s = own + other if self.norm == "cityblock" else (xp.sqrt(own) + xp.sqrt(other)) ** 2
            return self.factor * float(s.max() ** self.exponent)

    def _size(self, xp, points):
        """The largest distance of points from the centre, in float64, without a copy of them in it."""
        if self.norm == "cityblock":
            return xp.abs(points).sum(axis=-1, dtype=np.float64).max(axis=-1)
        return xp.einsum("...ik,...ik->...i", points, points, dtype=np.float64).max(axis=-1)


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
        given = checked_points(x, y, metric, power, tf32)
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
        return narrowed(point_costs(xp, self, x, y, KEPT).block(xp), dtype, xp)

    def mean(self):
        """Return the mean of the cost over all pairs of points, a common unit of `eps`.

        Returns
        -------
        float
            Over the batch too, if there is one.
        """
        (x, y), xp, _ = arrays(**{"C.x": self.x, "C.y": self.y})
        return point_costs(xp, self, x, y, KEPT).astype(np.float64).mean(xp)


def mapped(cloud, function):
    """`cloud` between the points that a function makes of its own; one cloud on both sides stays one."""
    x = function(cloud.x)
    y = None if cloud.y is cloud.x else function(cloud.y)
    return PointCloud(x, y, cloud.metric, power=cloud.power, tf32=cloud.tf32)


def point_costs(xp, cloud, x, y, memory_limit):
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
        return narrowed(total, cloud.x.dtype, xp), None
    return tuple(narrowed(x, cloud.x.dtype, xp) for x in out)


@dataclass(frozen=True, eq=False)
class Points:
    """Points (n, d) or (B, n, d) in their own dtype; y is x itself if it was not given."""

    x: Any
    y: Any
    flat: tuple[bool, bool | None]


def checked_points(x, y, metric, power, tf32):
    """Points of a call of `cusink.PointCloud`."""
    if metric not in METRICS:
        raise ValueError(f"'metric' must be one of {', '.join(map(repr, METRICS))}; got {metric!r}")
    if isinstance(power, bool) or not isinstance(power, numbers.Real):
        raise TypeError(f"'power' must be a number; got {kind(power)}")
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"'power' must be positive and finite; got {power}")
    if tf32 not in (True, False):
        raise TypeError(f"'tf32' must be True or False; got {tf32!r}")
    if x is None:
        raise TypeError("'x' must be an array of points; got None. Only 'y' may be None, for x itself")
    given = {"x": x} if y is None else {"x": x, "y": y}
    converted, xp, dtype = arrays(**given)
    shaped, flat = [], []
    for name, p in zip(given, converted, strict=True):
        flat.append(p.ndim == 1)
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim not in (2, 3) or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) or (B, points, d) with at least one point and one coordinate; "
                f"got {p.shape}"
            )
        if not xp.isfinite(p).all():
            raise ValueError(f"'{name}' must be finite; got NaN or infinity")
        if metric == "cosine" and not p.any(axis=-1).all():
            raise ValueError(f"'{name}' must hold no zero vector for metric 'cosine'; it has one")
        shaped.append(p)
    if len(shaped) == 1:
        x = shaped[0].astype(dtype, copy=False)
        return Points(x, x, (flat[0], None))
    x, y = shaped
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    if x.ndim == 3 or y.ndim == 3:
        sizes = {len(p) for p in (x, y) if p.ndim == 3 and len(p) > 1}
        if len(sizes) > 1:
            raise ValueError(f"'x' and 'y' must have one batch size, or 1; got {x.shape} and {y.shape}")
        size = sizes.pop() if sizes else 1
        x, y = (xp.broadcast_to(p, (size, *p.shape[-2:])) for p in (x, y))
    return Points(x.astype(dtype, copy=False), y.astype(dtype, copy=False), tuple(flat))
