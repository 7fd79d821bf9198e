"""Potentials and maps at points that a solve has not seen."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import in_range, narrowed
from cusink.costs.blocks import blocks
from cusink.deferred import cached_property
from cusink.placement import on_device
from cusink.solver.maps import conditional_means, map_values
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array, Axis

BLOCK_ENTRIES = 1 << 20  # of plans between new points and old ones, whose gradients are taken at a time

LEAST_DIGITS = 2.0**-10  # rounding of an exponent up to which a potential, its gradient and a map are made
MOST_ROUNDING = 100.0  # up to which they are made of points one partner of which has all


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornExtension(Summary):
    """The solution at new points of one side of a `cusink.PointCloud`; `SinkhornResult.at` returns it.

    Its derivatives are those of `cusink.extension_adjoint`.

    Attributes
    ----------
    points : array, shape (k, d) or (B, k, d)
        The new points.
    potential : array, shape (k,) or (B, k)
        The dual potential there.
    """

    points: Array
    problem: Problem = field(repr=False)  # between the new points, of weight 1, and the old ones of the other side
    axis: Axis = field(repr=False)

    @cached_property
    @on_device
    def potential(self) -> Array:
        """The potential there: one softmin of that of the other side, which at points of the solve is the result's."""
        problem, potential = self.problem, self._softmin
        if problem.shift is not None:
            potential = potential + (problem.shift if self.axis == 1 else -problem.shift)[:, None]
        return problem.to_user(self._kappa(2) * potential)

    @on_device
    def map(self) -> Array:
        """Return the images of the new points: means of the other side's points under their rows of the plan.

        Returns
        -------
        array, shape (k, d) or (B, k, d)
            The entropic map; for points that came as numbers, (k,) or (B, k).
        """
        points, flat = self.problem.C.user_points(self.axis)
        in_range(f"C.{'xy'[self.axis]}", points, self.problem.xp)
        found = self.problem.to_user(self._means(points if points.ndim == 3 else points[None]))
        return found[..., 0] if flat else found

    @one_call
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
        of_new = replace(self, problem=problem)._softmin / problem.eps_as(2)  # with the digits of the exponents below
        p, q = (p + of_new, q) if self.axis == 1 else (p, q + of_new)
        alone = C.shared or C.user_batch(1 - self.axis) != size
        groups = [slice(k, k + 1) for k in range(size)] if alone else [slice(0, size)]
        parts, total = [], xp.zeros((size, (n, m)[1 - self.axis]))
        for group in groups:  # gradients by shared points are sums over problems

            def plans(group: slice = group) -> Any:
                for some, rows in blocks(group.stop - group.start, n, m, BLOCK_ENTRIES):
                    problems = slice(group.start + some.start, group.start + some.stop)
                    costs = C.block(problems, rows)
                    exponents = p[problems, rows, None] + q[problems, None, :] - costs / problem.eps_as(3, problems)
                    shares = xp.exp(exponents)
                    if self.axis == 1:
                        total[problems, rows] = shares.sum(axis=-1)
                    else:
                        total[problems] += shares.sum(axis=-2)
                    yield problems, rows, shares

            gradient = C.points_adjoint(plans())[1 - self.axis]
            assert gradient is not None
            parts.append(gradient)
        points, flat = C.user_points(1 - self.axis)
        found = xp.concatenate(parts).reshape(total.shape + (() if flat else points.shape[-1:]))
        # Far away, where exponents lose digits, the shares do not add up to 1.
        found /= xp.where(total > 0, total, 1).reshape(total.shape + (1,) * (found.ndim - total.ndim))
        found = self._kappa(found.ndim) * found
        return narrowed(found if problem.batched else found[0], problem.dtype, xp)

    @cached_property
    def _softmin(self) -> Array:
        """The softmin (B, k), in float64."""
        return self.problem.C.softmin(self._logits(), self.problem.eps, self.axis).astype(np.float64)

    def _kappa(self, axes: int) -> float | Array:
        """Return by which numbers `reach` scales potentials, to multiply arrays (B, ...) of so many axes."""
        rho = np.inf if self.problem.reach is None else self.problem.reach[1 - self.axis]
        return 1.0 if rho == np.inf else rho / (rho + self.problem.eps_as(axes))

    def _logits(self) -> Array:
        return self.problem.logits()[self.axis].astype(self.problem.C.dtype)

    def _means(self, values: Array) -> Array:
        return conditional_means(self.problem.C, self._logits(), values, self.problem.eps, self.axis)


def extend(problem: Problem, points: Any, axis: Axis) -> SinkhornExtension:
    """Return the solution at new points of the side that is kept when `axis` of the plan is summed over."""
    xp, side = problem.xp, 1 - axis
    C = problem.C.extended(side, points)
    ones = xp.ones((len(problem.a), C.shape[side - 2]), problem.a.dtype)
    new = {"ab"[side]: ones, "fg"[side]: xp.zeros(ones.shape)}
    there = replace(problem, C=C, **new).in_one_dtype()
    extension = SinkhornExtension(points=C.user_points(side)[0], problem=there, axis=axis)
    _check_digits(extension)
    return extension


def _check_digits(extension: SinkhornExtension) -> None:
    """Refuse new points so far away that costs over eps, whose differences make the plan, have too few digits.

    Only where a bound on all costs lets some point be so far are potentials made: near their size are the costs of
    the pairs that count, however far off other points are.
    """
    problem, xp = extension.problem, extension.problem.xp
    most = LEAST_DIGITS / float(np.finfo(np.float64).eps) * problem.eps_as(2)
    least = most if isinstance(most, float) else float(most.min())
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if problem.C.largest() <= least:
            return
        rounding = LEAST_DIGITS * xp.abs(extension._softmin) / most
        partners = (extension._logits() > -np.inf).sum(axis=1)
        several = ((partners > 1) | (partners == 1) & ~xp.isfinite(extension._softmin).all(axis=1))[:, None]
        far = ~(rounding <= LEAST_DIGITS) & several  # NaN is far; one partner has all, whatever its cost
        some = far & (rounding <= MOST_ROUNDING)
        if bool(some.any()):
            far &= ~(some & _alone(extension, float(rounding[some].max())))
    if bool(far.any()):
        where, name = int(xp.argmax(far.any(axis=0))), "xy"[1 - extension.axis]
        at = int(xp.argmax(far[:, where]))
        least = most if isinstance(most, float) else float(most[at, 0])
        of_problem = f" of problem {at}" if len(far) > 1 else ""
        raise ValueError(
            f"'{name}' must have points so near to those of the other side that float64 has digits for the differences "
            f"of their costs: costs up to about {least:.2g} at this 'eps'; got a larger one at point {where}"
            f"{of_problem}. Leave out points so far away, or solve with a larger 'eps'"
        )


def _alone(extension: SinkhornExtension, rounding: float) -> Array:
    """Return the new points (B, k) one partner of which has all, with exponents that are off by so much."""
    problem, logits = extension.problem, extension._logits()
    # One partner has all if others are dearer by 2.3 * warmer * eps or more: they have exp(-2.3) of it at warmer * eps.
    warmer = max(16.0, 64 * rounding)
    alone = problem.C.c_transform(problem.eps_as(2) * logits, extension.axis)
    shared = problem.C.softmin(logits / warmer, problem.eps * warmer, extension.axis)
    few: Array = alone - shared < 0.1 * warmer * problem.eps_as(2)
    return few
