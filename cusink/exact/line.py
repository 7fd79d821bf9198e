"""Transport on the line: quantiles of one measure go to those of the other, whatever the convex cost."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cusink.calls import memory_advice
from cusink.exact import checks
from cusink.norms.checks import WeightedPoints, cotangent, wanted
from cusink.summary import Summary
from cusink.types import Array, ArrayModule

__all__ = [
    "LineGradients",
    "wasserstein_1d",
    "wasserstein_1d_adjoint",
]

ADVICE = "Pass fewer problems at once: memory is about twelve float64 arrays of the size of all points"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LineGradients(Summary):
    """Gradients of `cusink.wasserstein_1d` in the shapes of the inputs; None for one that was not asked for.

    Attributes
    ----------
    x, y : array, shape of `x` and of `y`
        With respect to the points.
    a, b : array, shape of `a` and of `b`
        With respect to the weights, projected to mean zero over the points of each problem. Finite for points without
        weight too.
    """

    x: Array = None
    a: Array = None
    y: Array = None
    b: Array = None


@memory_advice(ADVICE)
def wasserstein_1d(x: Array, a: Array | None, y: Array, b: Array | None, *, power: float = 1.0) -> Array:
    """Return the exact transport cost between measures on a line, for one pair or for many at once.

    Parameters
    ----------
    x : array, shape (n,) or (B, n)
        Points of the first measure, in any order.
    a : array, shape (n,) or (B, n), or None
        Their weights: non-negative, with a positive sum. Zeros are allowed. None for 1 / n each.
    y : array, shape (m,) or (B, m)
        Points of the second measure.
    b : array, shape (m,) or (B, m), or None
        Their weights, of the same sum as `a`; None for 1 / m each.
    power : float
        The cost of moving a unit of mass is ``|x - y| ** power``, with a power of at least 1.

    Returns
    -------
    array, shape () or (B,)
        ``min <P, C>`` over the plans with marginals a and b. For weights of sum 1 it is the Wasserstein distance to
        the power `power`: its root is the distance.

    Raises
    ------
    TypeError
        Inputs of different libraries or dtypes, or that are no numbers.
    ValueError
        Points or weights of the wrong shape, NaN, weights of different masses, a power below 1, or points so far apart
        that the cost leaves the range of the dtype.

    Notes
    -----
    ``integral of |F⁻¹(t) - G⁻¹(t)| ** power dt`` with the quantiles F⁻¹ and G⁻¹ of both measures, which is a sum over
    the n + m intervals between the steps of F and G. There is no regularisation and no iteration: work is that of
    sorting. It is computed in float64.

    References
    ----------
    F. Santambrogio, Optimal Transport for Applied Mathematicians, 2015, chapter 2.

    Examples
    --------
    >>> import cusink
    >>> cusink.wasserstein_1d([0.0, 1.0, 3.0], None, [5.0, 6.0, 8.0], None)
    np.float64(5.0)
    >>> cusink.wasserstein_1d([[0.0, 1.0], [0.0, 2.0]], [0.5, 0.5], [1.0], [1.0], power=2)
    array([0.5, 1. ])
    """
    power = checks.power_of_distance(power)
    given = checks.points_on_a_line(x, a, y, b, power)
    path = _Path.between(given)
    return given.to_user(path.moved(power).sum(axis=1))


@memory_advice(ADVICE)
def wasserstein_1d_adjoint(
    x: Array,
    a: Array | None,
    y: Array,
    b: Array | None,
    grad: Array = 1.0,
    *,
    power: float = 1.0,
    wrt: Collection[str] | None = None,
) -> LineGradients:
    """Pull a gradient of `cusink.wasserstein_1d` back to points and weights.

    Parameters
    ----------
    x, a, y, b : array
        As for `cusink.wasserstein_1d`.
    grad : float or array, shape () or (B,)
        Derivative of the final loss with respect to the result.
    power : float
        As for `cusink.wasserstein_1d`.
    wrt : sequence of {"x", "a", "y", "b"}, or None
        Inputs whose gradients are wanted; None for all.

    Returns
    -------
    LineGradients
        ``x``, ``a``, ``y`` and ``b``, summed over the batch where all problems share an input.

    Raises
    ------
    TypeError
        As `cusink.wasserstein_1d`.
    ValueError
        As `cusink.wasserstein_1d`, or a gradient of the wrong shape.

    Notes
    -----
    ``gx_i = grad sum_j P_ij power |x_i - y_j| ** (power - 1) sign(x_i - y_j)`` with the plan P between quantiles, and
    ``ga = grad f`` with the dual potential f that goes with it, for directions that keep both masses equal. The value
    has a kink where points of one side meet, where those of both meet with a power of 1, and where a step of one
    distribution function is as high as one of the other; what is returned there is one of its slopes.

    Examples
    --------
    >>> import cusink
    >>> cusink.wasserstein_1d_adjoint([0.0, 1.0, 3.0], None, [5.0, 6.0, 8.0], None, wrt="x").x.round(3)
    array([-0.333, -0.333, -0.333])
    """
    names, power = wanted(wrt, ("x", "a", "y", "b")), checks.power_of_distance(power)
    given = checks.points_on_a_line(x, a, y, b, power)
    grad, path, out = cotangent(grad, given), _Path.between(given), {}
    if names & {"x", "y"}:
        slope = power * path.moved(power - 1) * given.xp.sign(path.difference)
        out["x"], out["y"] = grad * path.onto("x", slope), -grad * path.onto("y", slope)
    if names & {"a", "b"}:
        f, g = path.potentials(abs(path.difference) ** power)
        out["a"], out["b"] = grad * (f - f.mean(axis=1)[:, None]), grad * (g - g.mean(axis=1)[:, None])
    return LineGradients(**{name: given.gradient(name, out[name]) for name in names})


@dataclass(frozen=True, eq=False, kw_only=True)
class _Path:
    """The plan between quantiles: a path through the pairs of sorted points, one step at each end of a quantile.

    Each step goes on to the next point of one side. A point without weight has a step of width zero.
    """

    xp: ArrayModule
    width: Array  # (B, n + m): the mass of each pair on the path
    difference: Array  # (B, n + m): x - y of the pair
    at: dict[str, Array]  # (B, n + m): which point of "x" and of "y" it has, in the order of the user
    order: dict[str, Array]  # (B, n), (B, m): the points from the left to the right
    steps: dict[str, Array]  # (B, n + m): true where the step after a pair is one of that side

    @classmethod
    def between(cls, given: WeightedPoints) -> "_Path":
        xp, order, points, weights = given.xp, {}, {}, []
        for side, name in (("x", "a"), ("y", "b")):
            all_points = getattr(given, side)[..., 0]
            order[side] = xp.argsort(all_points, axis=1)
            points[side] = xp.take_along_axis(all_points, order[side], axis=1)
            weights.append(xp.take_along_axis(given.per_point[name], order[side], axis=1))
        merged, width = _widths(xp, weights)
        steps = {"x": merged < weights[0].shape[1], "y": merged >= weights[0].shape[1]}
        at, values = {}, {}
        for side, step in steps.items():
            before = xp.cumsum(step, axis=1, dtype=np.int64) - step
            before = xp.minimum(before, points[side].shape[1] - 1)  # after the last quantile there is no mass left
            values[side] = xp.take_along_axis(points[side], before, axis=1)
            at[side] = xp.take_along_axis(order[side], before, axis=1)
        return cls(xp=xp, width=width, difference=values["x"] - values["y"], at=at, order=order, steps=steps)

    def moved(self, power: float) -> Array:
        """Return ``width * |difference| ** power``, which may be a number where the power alone is none."""
        xp, distance, number = self.xp, abs(self.difference), np.finfo(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            powers = distance**power
        lost = (powers < number.tiny) & (distance > 0) | xp.isinf(powers)
        if not bool(lost.any()):
            return self.width * powers
        with np.errstate(over="ignore"):  # what is no number is refused
            rooted = (self.width ** (1 / power) * distance) ** power
        return xp.where(lost, rooted, self.width * xp.where(lost, 0, powers))

    def onto(self, side: str, values: Array) -> Array:
        """Return the sums of values of the pairs over each point of a side, in the order of the user."""
        size, bins = self.order[side].shape
        flat = (self.at[side] + bins * self.xp.arange(size)[:, None]).ravel()
        return self.xp.bincount(flat, values.ravel(), size * bins).reshape(size, bins)

    def potentials(self, cost: Array) -> tuple[Array, Array]:
        """Return f (B, n) and g (B, m) with ``f_i + g_j = C_ij`` on the path, in the order of the user.

        As the cost is convex, that is enough for ``f_i + g_j <= C_ij`` everywhere. Each step changes one of both.
        """
        xp, out = self.xp, []
        change = xp.concatenate([xp.zeros_like(cost[:, :1]), cost[:, 1:] - cost[:, :-1]], axis=1)
        for side, first in (("x", 0), ("y", cost[:, :1])):
            step, order = self.steps[side], self.order[side]
            moved = xp.concatenate([xp.zeros_like(step[:, :1]), step[:, :-1]], axis=1)  # by the step before a pair
            along = xp.cumsum(xp.where(moved, change, 0), axis=1)[step].reshape(order.shape)
            out.append(xp.take_along_axis(along + first, xp.argsort(order, axis=1), axis=1))
        return out[0], out[1]


def _widths(xp: ArrayModule, weights: list[Array]) -> tuple[Array, Array]:
    """Return the order (B, n + m) of the ends of the quantiles of two sides, and the mass between each and the last.

    An end has the mass to its left or to its right, whichever is less: a little mass at either end keeps its digits.
    """
    left = xp.concatenate([xp.cumsum(w, axis=1) for w in weights], axis=1)
    mass, none = left[:, weights[0].shape[1] - 1, None], xp.zeros((len(left), 1))
    after = [xp.cumsum(w[:, :0:-1], axis=1)[:, ::-1] for w in weights]
    right = xp.concatenate([part for sums in after for part in (sums, none)], axis=1)
    upper = right < left
    with np.errstate(divide="ignore", over="ignore"):
        merged = xp.argsort(xp.where(upper, mass / right, -mass / left), axis=1)
    left, right, upper = (xp.take_along_axis(x, merged, axis=1) for x in (left, right, upper))
    before, behind = xp.concatenate([none, left[:, :-1]], axis=1), xp.concatenate([mass, right[:, :-1]], axis=1)
    crossing = xp.concatenate([none == 0, ~upper[:, :-1]], axis=1)
    width = xp.where(upper, xp.where(crossing, mass - before - right, behind - right), left - before)
    return merged, xp.maximum(width, 0)
