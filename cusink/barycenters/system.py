"""The linear system behind the gradients of a barycenter, see docs/barycenters.md.

With R_k and S_k' the means over the partners of a row and of a column of the k-th plan, ``M_k = 1 - S_k' R_k``, and Q
the means under the plan of ``OT(p, p)``, it is one of these two for x (B, K, m):

    x of weighted mean zero over k,  M_k x_k - mean_l M_l x_l = h_k
    M_k x_k - (1 + Q) mean_l x_l = h_k                                  debiased

Both are self-adjoint in the inner product ``sum_k w_k sum_j p_j x_kj y_kj``, the second indefinite: MINRES solves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cusink.costs.means import Means
from cusink.gradients.system import ROUNDS, LinearSolve
from cusink.types import Array, ArrayModule, Axis, HostArray

ROUNDING = 256 * float(np.finfo(float).eps)  # relative, of the left side of the system


@dataclass(frozen=True, eq=False)
class JointMeans:
    """Means under the K plans of each of some problems; `groups` number these plans across the problems.

    `sizes` are the bins of rows and of columns.
    """

    xp: ArrayModule
    groups: Sequence[tuple[HostArray, Means]]
    plans: int
    sizes: tuple[int, int]

    def mean(self, v: Array, axis: Axis) -> Array:
        """Return the means (B, K, .) of v (B, K, .) given each bin of the other side."""
        flat = v.reshape(-1, v.shape[-1])
        if len(self.groups) == 1:
            out = self.groups[0][1].mean(flat, axis)
        else:
            out = self.xp.empty((len(flat), self.sizes[1 - axis]))
            for index, means in self.groups:
                out[index] = means.mean(flat[index], axis)
        return out.reshape(*v.shape[:-1], -1)

    def mean_costs(self, rows: Array, columns: Array) -> Array:
        """Return ``sum_ij P_ij C_ij (rows_i + columns_j)`` (B, K) of arrays (B, K, n) and (B, K, m)."""
        out = self.xp.empty(rows.shape[0] * rows.shape[1])
        for index, means in self.groups:
            of_rows, of_columns = (x.reshape(-1, x.shape[-1])[index] for x in (rows, columns))
            out[index] = (means.marginal(1) * means.mean_cost(1) * of_rows).sum(axis=1)
            out[index] += (means.marginal(0) * means.mean_cost(0) * of_columns).sum(axis=1)
        return out.reshape(rows.shape[:2])

    def at(self, problems: HostArray) -> Self:
        """Return the means of the problems at `problems`."""
        place = np.full(1 + max(int(index.max()) for index, _ in self.groups) // self.plans, -1)
        place[problems] = np.arange(len(problems))
        groups = []
        for index, means in self.groups:
            at = place[index // self.plans]
            keep = np.flatnonzero(at >= 0)
            if len(keep):
                groups.append((at[keep] * self.plans + index[keep] % self.plans, means.at(keep)))
        return replace(self, groups=groups)


@dataclass(frozen=True, eq=False)
class JointSystem:
    """The system of some problems: means under the plans, and under those of ``OT(p, p)`` if these are debiased.

    `weights` (B, K, 1) have sum 1, and `p` (B, 1, m) are the barycenters.
    """

    xp: ArrayModule
    to_host: Any
    plans: JointMeans
    own: JointMeans | None
    weights: Array
    p: Array

    def mean(self, x: Array) -> Array:
        """Return the weighted mean (B, 1, m) over the plans."""
        return (self.weights * x).sum(axis=1, keepdims=True)

    def unmixed(self, x: Array) -> Array:
        """Return ``M_k x_k``."""
        return x - self.plans.mean(self.plans.mean(x, 1), 0)

    def blurred(self, x: Array) -> Array:
        """Return ``(1 + Q) x`` of x (B, 1, m)."""
        assert self.own is not None
        return x + self.own.mean(x, 1)

    def apply(self, x: Array) -> Array:
        """Return the left side of the system."""
        image = self.unmixed(x)
        common = self.mean(image) if self.own is None else self.blurred(self.mean(x))
        return self.restricted(image - common)

    def restricted(self, x: Array) -> Array:
        """Return x without what the system does not see: constants, bins without mass, plans without weight."""
        xp, mass = self.xp, self.p.sum(axis=2, keepdims=True)
        x = x - (self.p * x).sum(axis=2, keepdims=True) / mass
        return xp.where((self.p > 0) & (self.weights > 0), x, 0)

    def dot(self, x: Array, y: Array) -> Array:
        """Return inner products (B,)."""
        return (self.weights[:, :, 0] * (self.p * x * y).sum(axis=2)).sum(axis=1)

    def at(self, problems: HostArray) -> Self:
        """Return the system of the problems at `problems`."""
        own = None if self.own is None else self.own.at(problems)
        weights, p = self.weights[problems], self.p[problems]
        return replace(self, plans=self.plans.at(problems), own=own, weights=weights, p=p)

    def solve(self, right: Array, source: Array, how: LinearSolve) -> tuple[Array, HostArray]:
        """Return x (B, K, m), and which problems reached the tolerance, or the rounding of what `right` was made of.

        The right side may be a difference that is nothing but the rounding of its `source` (B, K, m).
        """
        right = self.restricted(right)
        rounding = ROUNDING * self.xp.sqrt(self.dot(source, source))
        target = self.xp.maximum(how.tol * self.xp.sqrt(self.dot(right, right)), rounding)
        x = self.xp.zeros_like(right)
        for attempt in range(ROUNDS + 1):
            residual = right - self.apply(x)
            missed = np.flatnonzero(~self.to_host(self.dot(residual, residual) <= target**2))
            if attempt == ROUNDS or not len(missed):
                break
            system = self if len(missed) == len(x) else self.at(missed)
            x[missed] += _minres(system, residual[missed], 0.5 * target[missed], how.max_iter)
        solved = np.ones(len(x), bool)
        solved[missed] = False
        return x, solved


def _minres(system: JointSystem, right: Array, target: Array, max_iter: int) -> Array:
    """Solve ``system.apply(x) = right`` to the norm `target` (B,), each problem for itself, by Lanczos vectors v.

    C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, 1975. A finished problem
    leaves the batch.
    """
    xp = system.xp
    out, active = xp.zeros_like(right), np.arange(len(right))
    size = xp.sqrt(system.dot(right, right))
    x, before, w_before, w = (xp.zeros_like(right) for _ in range(4))
    v = _scaled(xp, right, size)
    left, beta = size, xp.zeros_like(size)
    c_before, c, s_before, s = xp.ones_like(size), xp.ones_like(size), xp.zeros_like(size), xp.zeros_like(size)
    for _ in range(max_iter):
        image = system.apply(v)
        alpha = system.dot(v, image)
        image = image - _times(alpha, v) - _times(beta, before)
        following = xp.sqrt(system.dot(image, image))
        turned = c * alpha - c_before * s * beta
        length = xp.hypot(turned, following)
        second, third = s * alpha + c_before * c * beta, s_before * beta
        direction = _scaled(xp, v - _times(third, w_before) - _times(second, w), length)
        safe = xp.where(length > 0, length, 1)
        c_before, c, s_before, s = c, turned / safe, s, following / safe
        x = x + _times(c * left, direction)
        left = -s * left
        before, v, beta = v, _scaled(xp, image, following), following
        w_before, w = w, direction
        going = system.to_host((xp.abs(left) > target) & (following > 0))
        if not going.any():
            break
        if 2 * np.count_nonzero(going) <= len(going):
            out[active[~going]] = x[~going]
            index = np.flatnonzero(going)
            active, system = active[index], system.at(index)
            x, v, before, w, w_before = (y[index] for y in (x, v, before, w, w_before))
            left, beta, target = (y[index] for y in (left, beta, target))
            c_before, c, s_before, s = (y[index] for y in (c_before, c, s_before, s))
    out[active] = x
    return out


def _times(factors: Array, x: Array) -> Array:
    return factors[:, None, None] * x


def _scaled(xp: ArrayModule, x: Array, length: Array) -> Array:
    """Return ``x / length``, and 0 where that is 0."""
    return xp.where(length > 0, 1 / xp.where(length > 0, length, 1), 0)[:, None, None] * x
