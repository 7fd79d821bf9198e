"""Checks of the arguments of the kernel products and norms, in the manner of `cusink.solver.checks`."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cusink.checks.arrays import finite, in_range, kind, narrowed, promoted, to_host, widened
from cusink.checks.scalars import one_of, positive_number, real, shown
from cusink.checks.weights import batch_size, same_mass, weight_values
from cusink.types import Array, ArrayModule

LOG_KERNELS = ("gaussian", "laplace", "energy", "exponential")
KERNELS = (*LOG_KERNELS, "distance")
LARGEST_POWER = 1023  # of 2 in float64
FAR = (
    2.0**30
)  # of a cloud's extent over that of its points with weight, beyond which squares of near ones may underflow
SIDES = {"a": "x", "b": "y", "log_b": "y", "grad": "x"}  # whose points these arrays have a number for


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightedPoints:
    """Checked points x (B, n, d) and y (B, m, d), and arrays with a number per point, in the dtype of the computation.

    `per_point` has them by the name of the argument: a and grad (B, n), b and log_b (B, m).
    """

    x: Array
    y: Array
    per_point: dict[str, Array]
    xp: ArrayModule
    dtype: Any  # of the user
    batched: bool
    flat: bool  # points on a line, given as numbers
    shapes: dict[str, tuple[int, ...]]
    unit: float = 1.0  # in which x and y are given, a power of two

    def in_own_unit(self) -> Self:
        """Return the same points in a unit in which they are at most about 1 apart."""
        ends = to_host(self.xp.stack([*self._ends(), *self._ends(with_weight=True)]))  # one copy from a device
        # Half of each: the whole may be out of range.
        extent, near = (float(some[1::2].max()) / 2 - float(some[::2].min()) / 2 for some in (ends[:4], ends[4:]))
        if self.x.dtype == np.float32 and extent > FAR * near:  # squares of near ones underflow
            return self.in_float64(slice(None)).in_own_unit()
        power = min(math.frexp(extent)[1] + 1, LARGEST_POWER)
        x, y = (self.xp.ldexp(p, -power) for p in (self.x, self.y))
        return replace(self, x=x, y=y, unit=2.0**power)

    def _ends(self, with_weight: bool = False) -> list[Array]:
        """Return the least and the largest coordinate of x, and of y; `with_weight`, but for points that have none."""
        xp, ends = self.xp, []
        for side, points in (("x", self.x), ("y", self.y)):
            low, high = points, points
            for name, nothing in (("a", 0), ("b", 0), ("log_b", -np.inf)) if with_weight else ():
                if SIDES[name] == side and name in self.per_point:
                    empty = (self.per_point[name] == nothing)[..., None]
                    low, high = xp.where(empty, xp.inf, points), xp.where(empty, -xp.inf, points)
            ends += [low.min(), high.max()]
        return ends

    def in_float64(self, problems: Array | slice) -> Self:
        """Return some problems, by a mask (B,), to be computed in float64."""
        x, y = (p[problems].astype(np.float64) for p in (self.x, self.y))
        per_point = {name: array[problems].astype(np.float64) for name, array in self.per_point.items()}
        return replace(self, x=x, y=y, per_point=per_point)

    def to_user(self, array: Array) -> Array:
        """Return a result (B, ...) in the user's dtype, without the batch axis if there was none."""
        return narrowed(array if self.batched else array[0], self.dtype, self.xp)

    def gradient(self, name: str, array: Array) -> Array:
        """Return the gradient of argument `name` in its shape, summed over the batch where all problems share it."""
        shape = self.shapes[name]
        if math.prod(shape) != array.size:
            array = array.sum(axis=0)
        return narrowed(array.reshape(shape), self.dtype, self.xp)


def kernel(name: object, scale: object, log: bool) -> float:
    """Check a kernel's name and its scale; return the scale."""
    allowed = LOG_KERNELS if log else KERNELS
    negative = "'distance' is negative and has no logarithm: take 'exponential'"
    hints = {"distance": negative, "laplacian": "The Laplacian exp(-r / scale) is called 'exponential' here"}
    hint = hints.get(name, "") if isinstance(name, str) else ""
    one_of("kernel", name, allowed, hint)
    return positive_number("scale", scale, "It is a length in the units of the points")


def weighted_points(x: Array, y: Array, per_point: dict[str, Array | None], positive: bool) -> WeightedPoints:
    """Check points, and by argument name arrays with a number per point; None stands for uniform weights.

    `positive` says that weights are non-negative and not all zero.
    """
    named = {"x": x, "y": y} | per_point
    converted, xp, dtype = promoted(**named)
    checked = dict(zip(named, converted, strict=True))
    flat = checked["x"] is not None and checked["x"].ndim == 1
    points = {name: _points(name, checked[name], xp) for name in ("x", "y")}
    if points["x"].shape[-1] != points["y"].shape[-1]:
        raise ValueError(
            f"'x' and 'y' must have the same number of coordinates; got shapes {checked['x'].shape} and "
            f"{checked['y'].shape}"
        )
    counts = {name: points[SIDES[name]].shape[-2] for name in per_point}
    for name, count in counts.items():
        _numbers(name, checked[name], count, checked[SIDES[name]].shape, xp)
    sizes = {name: len(p) for name, p in points.items() if p.ndim == 3}
    sizes |= {name: len(checked[name]) for name in per_point if checked[name] is not None and checked[name].ndim == 2}
    size = batch_size(sizes)
    full = {}
    for name, count in counts.items():
        if checked[name] is None:
            uniform = -math.log(count) if name == "log_b" else 1 / count
            checked[name] = xp.full(count, uniform, points["x"].dtype)
        full[name] = xp.ascontiguousarray(xp.broadcast_to(checked[name], (size, count)))
        if positive and name != "grad":
            weight_values(name, full[name], xp)
    x, y = (xp.ascontiguousarray(xp.broadcast_to(p, (size, *p.shape[-2:]))) for p in points.values())
    return WeightedPoints(
        x=x,
        y=y,
        per_point=full,
        xp=xp,
        dtype=dtype,
        batched=bool(sizes),
        flat=flat,
        shapes={name: array.shape for name, array in checked.items()},
    )


def scale_in_range(kernel: str, scale: float, dtype: Any) -> None:
    """Check that the square of a scale, and what slopes take of it, are numbers of the dtype of the computation."""
    limits, power = np.finfo(dtype), 2.5 if kernel == "energy" else 2.0  # whose slopes go with (r² + s²)^(-5/4)
    low, high = (float(end) ** (1 / power) for end in (limits.tiny, limits.max))
    if not low <= scale <= high:
        raise ValueError(
            f"'scale' must lie between {low:.2g} and {high:.2g} in {dtype} for {kernel!r}, so that no power of it "
            f"leaves the range; got {scale}. Change the unit of the points"
        )


def distances_in_range(kernel: str, scale: float, given: WeightedPoints) -> None:
    """Check that distances over the scale are numbers of the dtype of the computation, where the kernel has a unit."""
    limits, farthest = np.finfo(given.x.dtype), given.unit / scale
    if given.unit != 1 and not (
        farthest * math.sqrt(given.x.shape[-1]) <= float(limits.max)
        and (kernel != "distance" or farthest >= float(limits.tiny))
    ):
        raise ValueError(
            f"'scale' must be such that distances over it are numbers of {given.x.dtype}; got {scale} for points up to "
            f"{given.unit:.2g} apart. Take a scale nearer to the distances"
        )


def differences_in_range(given: WeightedPoints) -> None:
    """Check that differences of points are numbers of the dtype of the computation."""
    dtype = given.x.dtype
    most = float(np.finfo(dtype).max) / 2
    for name, points in (("x", given.x), ("y", given.y)):
        reach = max(float(points.max()), -float(points.min()))
        if reach > most:
            raise ValueError(
                f"'{name}' must be at most {most:.2g} in {dtype}, so that differences of points are numbers; got "
                f"{reach:.3g}. Change the unit"
            )


def log_likelihoods_in_range(logs: Array, given: WeightedPoints) -> None:
    """Check that the log likelihoods (B, m) of points y with weight are numbers."""
    if not bool((given.xp.isfinite(logs) | (given.per_point["b"] == 0)).all()):
        raise ValueError(
            f"'y' must lie so near to 'x', beside 'scale', that log likelihoods are numbers of {logs.dtype}; got -inf. "
            "Take a larger scale, or leave out the points that are far off"
        )


def equal_masses(given: WeightedPoints) -> None:
    """Check that weights a (B, n) and b (B, m) of any sign have equal sums, without which -r/s gives no norm."""
    xp, a, b = given.xp, given.per_point["a"], given.per_point["b"]
    first, second = (w.sum(axis=1, dtype=np.float64) for w in (a, b))
    size = sum(xp.abs(w).sum(axis=1, dtype=np.float64) for w in (a, b))
    same_mass(
        "the measures beside the kernel 'distance'",
        xp,
        size + (second - first),
        size,
        given.dtype,
        got=lambda row: f"got {float(first[row]):g} and {float(second[row]):g} in row {row}",
        advice="Divide the weights of each by their sum, or take another kernel",
    )


def cotangent(grad: Array, given: WeightedPoints) -> Array:
    """Check a gradient of shape () or (B,) with respect to a value; return it with a trailing axis, (B, 1)."""
    size = len(given.x)
    if grad is None:
        raise TypeError("'grad' must be a number or an array of the shape of the value; got None")
    number = None if isinstance(grad, given.xp.ndarray) else real(grad)
    if number is not None:
        with np.errstate(over="ignore"):
            grad = given.xp.asarray(number, given.x.dtype)
        in_range("grad", grad, given.xp)
        grad = grad.astype(given.dtype)
    grad, xp = widened("grad", grad, "x", _sample(given))
    allowed = [(), (size,)] if given.batched else [()]
    if grad.shape not in allowed:
        raise ValueError(f"'grad' must have shape {' or '.join(map(str, allowed))}, as the value; got {grad.shape}")
    in_range("grad", grad, xp)
    return xp.broadcast_to(grad, (size,))[:, None]


def field_points(field_at: Array, given: WeightedPoints) -> tuple[Array, tuple[int, ...]]:
    """Check the points of a wanted field; return them as (B, k, d), and the shape of the field."""
    points, xp = widened("field_at", field_at, "x", _sample(given))
    d = given.x.shape[-1]
    if points.ndim == 0 or 0 in points.shape or (not given.flat and points.shape[-1] != d):
        wanted = "a shape, with a point per number," if given.flat else f"shape (..., {d}), like 'x',"
        raise ValueError(f"'field_at' must have {wanted} and at least one point; got shape {points.shape}")
    finite("field_at", points, xp)
    shape = points.shape if given.flat else points.shape[:-1]
    points = xp.ldexp(points, -(math.frexp(given.unit)[1] - 1)) if given.unit != 1 else points
    points = xp.broadcast_to(points.reshape(1, -1, d), (len(given.x), math.prod(shape), d))
    return xp.ascontiguousarray(points), shape


def wanted(wrt: Collection[str] | None, names: tuple[str, ...]) -> frozenset[str]:
    """Check the names of the inputs whose gradients are wanted; None for all."""
    if wrt is None:
        return frozenset(names)
    rule = f"'wrt' must name some of {', '.join(map(repr, names))}, or be None for all"
    try:
        given = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    except TypeError:
        raise TypeError(f"{rule}; got {kind(wrt)}") from None
    if not all(isinstance(name, str) for name in given):
        raise TypeError(f"{rule}; got entries of {', '.join(sorted({kind(name) for name in given}))}")
    if not given or not set(given) <= set(names):
        raise ValueError(f"{rule}; got {shown(given)}")
    return frozenset(map(str, given))


def _sample(given: WeightedPoints) -> Array:
    """Return an array of the library and the dtype of the user."""
    return given.x[0, 0].astype(given.dtype)


def _points(name: str, points: Array | None, xp: ArrayModule) -> Array:
    """Return points as (n, d) or (B, n, d)."""
    if points is None:
        raise TypeError(f"'{name}' must be an array of points; got None")
    shape = points.shape
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim not in (2, 3) or 0 in shape:
        raise ValueError(
            f"'{name}' must have shape (points, d), (points,) or (B, points, d) with at least one point and one "
            f"coordinate; got {shape}"
        )
    finite(name, points, xp)
    return points


def one_per_point(name: str, given: tuple[int, ...], count: int, shape: tuple[int, ...]) -> None:
    """Check the shape of an array with a number for each of `count` points, which were given in `shape`."""
    if len(given) not in (1, 2) or given[-1] != count or given[0] == 0:
        raise ValueError(
            f"'{name}' must have shape ({count},) or (B, {count}), a number per point, to match '{SIDES[name]}' of "
            f"shape {shape}; got {given}"
        )


def _numbers(name: str, x: Array | None, count: int, shape: tuple[int, ...], xp: ArrayModule) -> None:
    """Check an array with a number for each of `count` points, which were given in `shape`."""
    if x is None:
        if name == "grad":
            raise TypeError("'grad' must be an array, the derivative by each entry of the result; got None")
        return
    one_per_point(name, x.shape, count, shape)
    if name != "log_b":
        in_range(name, x, xp)
    elif xp.isnan(x).any() or (x == xp.inf).any():
        found = "NaN" if xp.isnan(x).any() else "+inf"
        raise ValueError(f"'{name}' must hold log weights, finite or -inf (for a weight of zero); got {found}")
