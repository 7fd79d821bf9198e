"""Costs between points that are functions of the user: what they are given, and what they must return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cusink.types import Array, ArrayModule

CostFunction = Callable[[Any, Any], Any]  # of points (n, d) and (m, d): costs (n, m)
CostGradient = Callable[[Any, Any, Any], tuple[Any, Any]]  # of points and a gradient (n, m): gradients (n, d), (m, d)


@dataclass(frozen=True)
class Given:
    """A function of the user, whose answers are checked, and its gradient, if there is one."""

    function: CostFunction
    gradient: CostGradient | None
    symmetric: ClassVar[None] = None
    twice: ClassVar[bool] = False

    def costs(self, xp: ArrayModule, x: Array, y: Array) -> Array:
        """See `Formula`."""
        if x.ndim == 3:
            return xp.stack([self.costs(xp, *points) for points in zip(x, y, strict=True)])
        return self._checked_costs(xp, x, y, self.function(lent(xp, x), lent(xp, y)))

    @staticmethod
    def _checked_costs(xp: ArrayModule, x: Array, y: Array, found: Any) -> Array:
        _check_form("metric", found, (len(x), len(y)), xp)
        _check_finite("metric", found, xp)
        if not bool((found >= 0).all()):  # NaN too
            if bool(xp.isnan(found).any()):
                raise ValueError("'metric' must return costs that are numbers; got NaN")
            least = f"{float(found.min()):g}"
            raise ValueError(f"'metric' must return costs of at least 0; got {least}. Add a constant to all costs")
        return found

    def adjoint(self, xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """See `Formula`."""
        if self.gradient is None:
            raise ValueError(
                "'gradient' must be given with a 'metric' that is a function, for gradients with respect to points; "
                "got None. It takes points x, y and the gradient (n, m) of their costs, and returns those of x and y"
            )
        if x.ndim == 3:
            each = [self.adjoint(xp, *parts) for parts in zip(gradient, x, y, strict=True)]
            return xp.stack([gx for gx, _ in each]), xp.stack([gy for _, gy in each])
        own = gradient.astype(x.dtype)  # which the function may write to
        found = _checked_pair(xp, x, y, self.gradient(lent(xp, x), lent(xp, y), own))
        for part in found:
            _check_finite("gradient", part, xp)
        return found

    def try_out(self, xp: ArrayModule, x: Array, y: Array) -> None:
        """Call the functions with a few points, to see that they return what they should."""
        rule, count = "must be a name, or a function of points x and y", f"{len(x)} and {len(y)} of them"
        self._checked_costs(xp, x, y, _called("metric", rule, count, self.function, lent(xp, x), lent(xp, y)))
        if self.gradient is None:
            return
        rule = "must be a function of points x and y and of the gradient (n, m) of their costs"
        ones = xp.ones((len(x), len(y)), x.dtype)
        with np.errstate(all="ignore"):  # what it is at these points matters where it is asked for
            found = _called("gradient", rule, count, self.gradient, lent(xp, x), lent(xp, y), ones)
        _checked_pair(xp, x, y, found)

    def tangent(self, xp: ArrayModule, x: Array, y: Array, moves: tuple[Array, Array]) -> Array:
        """Raise: directions of its points are refused."""
        raise NotImplementedError

    def curvature(
        self, xp: ArrayModule, gradient: Array, tangent: Array, x: Array, y: Array, moves: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """See `Formula`; its points stay."""
        del gradient, moves
        return self.adjoint(xp, tangent, x, y)


def lent(xp: ArrayModule, points: Array) -> Array:
    """Return points that a function of the user cannot change: read-only in NumPy, a copy elsewhere."""
    if xp is not np:
        return points.copy()
    view = points.view()
    view.flags.writeable = False
    return view


def _called(name: str, rule: str, count: str, function: Callable[..., Any], *given: Array) -> Any:
    """Return what a function of the user makes of a few points."""
    try:
        return function(*given)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TypeError(f"'{name}' {rule}; called with {count} it raised {reason}") from error


def _checked_pair(xp: ArrayModule, x: Array, y: Array, found: Any) -> tuple[Array, Array]:
    """Check that a gradient of the user is one for each side."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"'gradient' must return a pair, the gradients of x and of y; got {type(found).__name__}")
    for part, points in zip(found, (x, y), strict=True):
        _check_form("gradient", part, points.shape, xp)
    return found[0], found[1]


def _check_form(name: str, found: Any, shape: tuple[int, ...], xp: ArrayModule) -> None:
    """Check that a function of the user returned an array of real numbers of a shape."""
    given = getattr(found, "shape", None)
    if given is None or not isinstance(found, xp.ndarray):
        raise TypeError(f"'{name}' must return a {xp.__name__} array, as its points are; got {type(found).__name__}")
    if isinstance(found, np.ma.MaskedArray):
        raise TypeError(f"'{name}' must return an array without a mask; got numpy.ma.MaskedArray. Fill it first")
    if tuple(given) != shape:
        raise ValueError(f"'{name}' must return shape {shape} for these points; got {tuple(given)}")
    if found.dtype.kind not in "fiub":
        raise TypeError(f"'{name}' must return real numbers; got dtype {found.dtype}")


def _check_finite(name: str, found: Array, xp: ArrayModule) -> None:
    """Check that a function of the user returned numbers; that costs are no NaN is seen where their sign is."""
    if found.dtype.kind == "f" and bool(xp.isinf(found).any()):
        raise ValueError(f"'{name}' must return finite numbers; got an infinite one")
    if name == "gradient" and found.dtype.kind == "f" and bool(xp.isnan(found).any()):
        raise ValueError("'gradient' must return finite numbers; got NaN")
