"""Potentials and maps at points that a solve has not seen."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.blocks import blocks
from cusink.placement import on_device
from cusink.solver.maps import conditional_means, map_values
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array, Axis

BLOCK_ENTRIES = 1 << 20  # of plans between new points and old ones, whose gradients are taken at a time


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornExtension(Summary):
    """The solution at new points of one side of a `cusink.PointCloud`; `SinkhornResult.at` returns it.

    Attributes
    ----------
    potential : array, shape (k,) or (B, k)
        The dual potential there: one softmin over the points of the other side, which at the points of the solve is
        the potential of the result.
    """

    potential: Array
    problem: Problem = field(repr=False)  # between the new points, of weight 1, and the old ones of the other side
    softmin: Array = field(repr=False)  # (B, k)
    axis: Axis = field(repr=False)
    kappa: float = field(repr=False)  # by which `reach` scales the potential

    @on_device
    def map(self) -> Array:
        """Return the images of the new points: means of the other side's points under their rows of the plan.

        Returns
        -------
        array, shape (k, d) or (B, k, d)
            The entropic map; for points that came as numbers, (k,) or (B, k).
        """
        points, flat = self.problem.C.user_points(self.axis)
        found = self.problem.to_user(self._means(points if points.ndim == 3 else points[None]))
        return found[..., 0] if flat else found

    @on_device
    def barycentric_map(self, values: Array) -> Array:
        """Return the means of values of the other side's points under the new points' rows of the plan.

        Parameters
        ----------
        values : array, shape (m,) or (m, d) or (B, m, d)
            One value, or d of them, for each point of the other side.

        Returns
        -------
        array, shape (k,) or (k, d), or with a batch axis
            The means.
        """
        checked, flat = map_values(values, self.axis, self.problem)
        found = self.problem.to_user(self._means(checked))
        return found[..., 0] if flat else found

    @on_device
    def gradient(self) -> Array:
        """Return the gradient of the potential with respect to the new points.

        Returns
        -------
        array, shape (k, d) or (B, k, d)
            For squared Euclidean costs and balanced transport, twice the new points minus their images under `map`;
            for points that came as numbers, (k,) or (B, k).
        """
        problem = self.problem.in_float64()
        C, xp = problem.C, problem.xp
        size, (n, m) = len(problem.a), C.shape[-2:]
        p, q = problem.logits()
        groups = [slice(k, k + 1) for k in range(size)] if C.shared else [slice(0, size)]
        parts = []
        for group in groups:  # a shared cloud sums over its problems

            def plans(group: slice = group) -> Any:
                for some, rows in blocks(group.stop - group.start, n, m, BLOCK_ENTRIES):
                    problems = slice(group.start + some.start, group.start + some.stop)
                    costs = C.block(problems, rows)
                    exponents = p[problems, rows, None] + q[problems, None, :] - costs / problem.eps
                    yield problems, rows, xp.exp(exponents)

            gradient = C.points_adjoint(plans())[1 - self.axis]
            assert gradient is not None
            parts.append(gradient)
        found = self.kappa * (xp.stack(parts) if C.shared else parts[0])
        return narrowed(found if problem.batched else found[0], problem.dtype, xp)

    def _means(self, values: Array) -> Array:
        problem = self.problem
        logits = problem.logits()[self.axis].astype(problem.C.dtype)
        return conditional_means(problem.C, logits, self.softmin, values, problem.eps, self.axis)


def extend(problem: Problem, points: Any, axis: Axis) -> SinkhornExtension:
    """Return the solution at new points of the side that is kept when `axis` of the plan is summed over."""
    xp, eps, side = problem.xp, problem.eps, 1 - axis
    C = problem.C.extended(side, points)
    ones = xp.ones((len(problem.a), C.shape[side - 2]), problem.a.dtype)
    zeros = xp.zeros(ones.shape)
    new = {"a": ones, "f": zeros} if axis == 1 else {"b": ones, "g": zeros}
    there = replace(problem, C=C, **new).in_one_dtype()
    softmin = there.C.softmin(there.logits()[axis].astype(there.C.dtype), eps, axis).astype(np.float64)
    there = replace(there, **{("f" if axis == 1 else "g"): softmin.astype(there.f.dtype)})
    kappa, potential = 1.0, softmin
    if problem.reach is not None and problem.shift is not None:
        rho = problem.reach[side]
        kappa = 1.0 if rho == np.inf else rho / (rho + eps)
        potential = kappa * (softmin + (problem.shift if axis == 1 else -problem.shift)[:, None])
    return SinkhornExtension(
        potential=problem.to_user(potential), problem=there, softmin=softmin, axis=axis, kappa=kappa
    )
