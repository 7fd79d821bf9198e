"""One eps for each problem: operators take one number, so that problems of equal eps are taken together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cusink.costs.means import Means, Smoothing
from cusink.types import Array, ArrayModule, Axis, HostArray

Operator = Callable[..., Array]  # of a cost, a number eps, and arrays (B, ...)


def costs_of(C: Any, problems: HostArray) -> Any:
    """Return the costs of some problems; of a single one as a shared cost, which is faster."""
    return C.at(int(problems[0])) if len(problems) == 1 else C.at(problems)


def groups(eps: HostArray) -> Iterator[tuple[float, HostArray]]:
    """Iterate over the values of eps (B,) and the problems that have each."""
    values, which = np.unique(eps, return_inverse=True)
    for k, value in enumerate(values):
        yield float(value), np.flatnonzero(which == k)


def apply_each(C: Any, eps: HostArray, operator: Operator, *arrays: Array, linear: bool = False) -> Array:
    """Return ``operator(C, eps, *arrays)`` (B, ...) of problems with an eps (B,) each.

    `linear` says that the result is in the unit of eps.
    """
    unit = C.in_units_of(eps)
    if unit is not None:
        out = operator(unit, 1.0, *arrays)
        return out * per_problem(C.xp, eps, out) if linear else out
    parts = [(index, operator(costs_of(C, index), value, *(x[index] for x in arrays))) for value, index in groups(eps)]
    out = C.xp.empty((len(eps), *parts[0][1].shape[1:]), parts[0][1].dtype)
    for index, part in parts:
        out[index] = part
    return out


def per_problem(xp: ArrayModule, eps: HostArray, like: Array) -> Array:
    """Return eps (B,) as an array that multiplies `like` (B, ...)."""
    return xp.asarray(eps, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def means_each(C: Any, a: Array, b: Array, f: Array, g: Array, eps: HostArray) -> Iterator[tuple[HostArray, Any]]:
    """Iterate over problems with an eps (B,) each and the means under their plans, as `Cost.plan_means` does."""
    unit = C.in_units_of(eps)
    if unit is not None:
        by_eps = per_problem(C.xp, eps, f)
        for index, means in unit.plan_means(a, b, f / by_eps, g / by_eps, 1.0):
            yield index, MeansInUnits(means, by_eps[index])
        return
    for value, at in groups(eps):
        for index, means in costs_of(C, at).plan_means(a[at], b[at], f[at], g[at], value):
            yield at[index], means


@dataclass(frozen=True, eq=False)
class MeansInUnits(Means):
    """Means under the plans of problems whose costs have been divided by their `eps` (B, 1)."""

    means: Means
    eps: Array

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return the means of a vector."""
        return self.means.mean(v, axis)

    def smoothed(self, v: Array, axis: Axis) -> Array:
        """Return the means over `axis` of the means of v over the other one."""
        return self.means.smoothed(v, axis)

    def rooted(self, axis: Axis, root: Array, inverse: Array) -> Smoothing:
        """Return the symmetric form of `smoothed`."""
        return self.means.rooted(axis, root, inverse)

    def mean_cost(self, axis: Axis) -> Array:
        """Return the means of the costs, in their own unit."""
        return self.means.mean_cost(axis) * self.eps

    def marginal(self, axis: Axis) -> Array:
        """Return a marginal of the plans."""
        return self.means.marginal(axis)

    def plan_sum(self, rows: Array, columns: Array | None, costs: Array | None) -> Array:
        """Raise: problems with costs of their own have no sum that is wanted."""
        raise NotImplementedError

    def at(self, index: HostArray) -> Self:
        """Return the means of the problems at `index`."""
        return type(self)(self.means.at(index), self.eps[index])

    def in_float32(self) -> Self | None:
        """Return about the same means in float32, if there are such."""
        narrow = self.means.in_float32()
        return None if narrow is None else type(self)(narrow, self.eps)
