"""Checks of the arguments of `cusink.gradient_flow`."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cusink.checks.arrays import kind, narrowed, weights_dtype
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import one_of, positive_integer, positive_number, real, regularisation, shown
from cusink.checks.weights import same_mass
from cusink.costs.checks import squares_in_range
from cusink.costs.clouds import PointCloud
from cusink.norms.checks import KERNELS, weighted_points
from cusink.operand import eps_of_shared
from cusink.types import Array, ArrayModule

NEVER = -1.0  # a tolerance that no shift reaches


@dataclass(frozen=True, eq=False, kw_only=True)
class FlowProblem:
    """Points x (n, d), y (m, d) with weights a (n,), b (m,), and the `spread` of y that lengths are measured by.

    `extent` is the longest side of the box around all points.
    """

    x: Array
    y: Array
    a: Array
    b: Array
    spread: float
    extent: float
    shape: tuple[int, ...]  # of x as it came
    dtype: Any  # of the user
    xp: ArrayModule

    def to_user(self, points: Array) -> Array:
        """Return a copy of points in the shape and the dtype of the user."""
        return narrowed(points.reshape(self.shape).copy(), self.dtype, self.xp)

    def length(self, moves: Array) -> float:
        """Return the root of the weighted mean square of moves (n, d), relative to the spread."""
        return math.sqrt(float((self.a[:, None] * moves**2).sum() / self.a.sum())) / self.spread


class Steps(NamedTuple):
    """How long steps are, and how many."""

    step: float
    momentum: float
    max_iter: int
    tol: float


def flow_problem(x: Any, y: Any, a: Any, b: Any, *, loss: Any, reach: Any) -> FlowProblem:
    """Check points and weights; masses must be equal for balanced transport."""
    one_of("loss", loss, ("sinkhorn", *KERNELS))
    given = weighted_points(x, y, {"a": a, "b": b}, positive=True)
    axes = {"x": 2, "y": 2, "a": 1, "b": 1}
    for name, most in axes.items():
        if len(given.shapes[name]) > most:
            raise ValueError(
                f"'{name}' must have no batch axis, as a flow is of one cloud; got shape {given.shapes[name]}. Call "
                "once for each"
            )
    xp, first, second = given.xp, given.per_point["a"], given.per_point["b"]
    if loss == "distance" or (loss == "sinkhorn" and reach is None):
        mass, other = (w.sum(axis=1, dtype=np.float64) for w in (first, second))
        same_mass(
            "'a' and 'b'",
            xp,
            other,
            mass,
            weights_dtype(given.dtype, a, b),
            got=lambda _: f"got {float(mass[0]):g} and {float(other[0]):g}",
            advice="Divide each by its sum" + (", or pass a 'reach'" if loss == "sinkhorn" else ""),
        )
    y, share = given.y[0].astype(np.float64), second[0] / second[0].sum(dtype=np.float64)
    centre = share @ y
    every = xp.concatenate([given.x[0].astype(np.float64), y])
    if loss == "sinkhorn":
        squares_in_range("'x' and 'y'", [given.x[0], given.y[0]], xp)
    unit = float(xp.abs(y - centre).max()) or 1.0  # squares of 1e160 are no numbers
    return FlowProblem(
        x=given.x[0],
        y=given.y[0],
        a=first[0],
        b=second[0],
        spread=unit * math.sqrt(float(share @ (((y - centre) / unit) ** 2).sum(axis=1))) or 1.0,
        extent=float((every.max(axis=0) - every.min(axis=0)).max()),
        shape=given.shapes["x"],
        dtype=given.dtype,
        xp=xp,
    )


def options(
    loss: str, given: FlowProblem, *, eps: Any, scale: Any, reach: Any, solver_tol: Any, memory_limit: Any
) -> dict[str, Any]:
    """Check what belongs to a loss; return the options of the function that computes it."""
    others = {"scale": scale} if loss == "sinkhorn" else {"eps": eps, "reach": reach, "memory_limit": memory_limit}
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"'{name}' must be None with loss '{loss}', which has none; got {shown(value)}")
    if loss != "sinkhorn":
        if not (isinstance(solver_tol, str) and solver_tol == "auto"):
            raise ValueError(
                f"'solver_tol' must be 'auto' with loss '{loss}', which solves nothing; got {shown(solver_tol)}"
            )
        return {} if scale is None else {"scale": positive_number("scale", scale)}
    if eps is None:
        raise TypeError(
            "'eps' must be a number with loss 'sinkhorn'; got None. A hundredth of squared distances is small"
        )
    if not (solver_tol is None or (isinstance(solver_tol, str) and solver_tol == "auto")):
        solver_tol = positive_number("solver_tol", solver_tol, wanted="'auto', a number or None")
    if isinstance(eps, RelativeEps):  # of the start, so that all steps lower one loss
        eps = eps_of_shared(eps, PointCloud(given.x, given.y), "the squared distances of 'x' and 'y'")
    return {"eps": regularisation(eps), "reach": reach, "tol": solver_tol, "memory_limit": memory_limit}


def steps(step: Any, momentum: Any, max_iter: Any, tol: Any, callback: Any) -> Steps:
    """Check how steps are taken."""
    if callback is not None and not callable(callback):
        raise TypeError(f"'callback' must be callable as callback(steps, points, loss); got {kind(callback)}")
    number = real(momentum)
    if number is None:
        raise TypeError(f"'momentum' must be a number in [0, 1); got {kind(momentum)}")
    if not 0 <= number < 1:
        raise ValueError(f"'momentum' must be a number in [0, 1); got {shown(momentum)}. 0.5 to 0.9 are usual ones")
    least = NEVER if tol is None else positive_number("tol", tol, wanted="a number or None")
    return Steps(positive_number("step", step), number, positive_integer("max_iter", max_iter), least)
