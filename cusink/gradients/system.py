"""The marginal system behind every implicit gradient, solved by conjugate gradients over means under the plans.

With R the means over the partners of a row (``R_ij = P_ij / sum_j P_ij``) and S' those over the partners of a column,

    x + R y = h        S' x + y = k

has one solution up to a constant that moves between x and y. Written out, x_i + y_j is the least-squares fit, weighted
by the plan, of an array with the conditional means h and k. See docs/gradients.md. In unbalanced transport R and S'
have factors ``1 / (1 + slack)`` below 1, and the solution is unique, see docs/unbalanced.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.costs.means import Means
from cusink.deferred import cached_property
from cusink.errors import ConvergenceWarning, warn
from cusink.gradients.bins import Bins, largest
from cusink.gradients.chebyshev import chebyshev, chebyshev_steps
from cusink.gradients.parts import RightSide
from cusink.solver.problem import Problem
from cusink.types import Array, ArrayModule, Axis, HostArray

ROUNDS = 3  # of conjugate gradients, each from the residual that was really reached
CENTRED = 4  # steps of them after which rounding's share of the constants is taken out of the residual
NEAR_ONE = 2.0**20  # largest size of sides, and inverse of the smallest, whose squares need no other unit
LARGEST = 2.0**-20  # share of the largest number of a dtype that a solution may have
LEAST_ROUNDING = 0.25  # units of y that its residual is off, at the least
DRAFT = 1e-7  # relative residual down to which a first round is made in float32, where the means have that

IndexedMeans = tuple[HostArray, Means]  # numbers of problems, and their means


class MarginalSolution(NamedTuple):
    """x (B, n), y (B, m), and whether each problem reached the tolerance (B,), in NumPy."""

    x: Array
    y: Array
    converged: HostArray


@dataclass(frozen=True)
class LinearSolve:
    """Relative residual and iterations of the conjugate gradients; `slack` of the equations of rows and columns.

    `evenly` says that, with slack, the residual is to be small for light bins and for heavy ones beside them.
    """

    tol: float
    max_iter: int
    slack: tuple[float | Array, float | Array] = (0.0, 0.0)
    evenly: bool = False

    def at(self, index: HostArray) -> Self:
        """Return the same for some problems, where each has a slack (B, 1) of its own."""
        of_rows, of_columns = self.slack
        if isinstance(of_rows, float) or isinstance(of_columns, float):
            return self
        return replace(self, slack=(of_rows[index], of_columns[index]))

    def astype(self, dtype: Any) -> Self:
        """Return the same with the slack in another precision."""
        of_rows, of_columns = self.slack
        if isinstance(of_rows, float) or isinstance(of_columns, float):
            return self
        return replace(self, slack=(of_rows.astype(dtype), of_columns.astype(dtype)))


def solve_marginal_system(problem: Problem, right: RightSide, how: LinearSolve) -> MarginalSolution:
    """Solve the system for every problem, whose potentials must be finite."""
    return solve_marginal_systems(problem, [right], how)[0]


@np.errstate(over="ignore", invalid="ignore")  # potentials far from any solution have means without bound
def solve_marginal_systems(
    problem: Problem, rights: Sequence[RightSide], how: LinearSolve, prepared: Iterable[IndexedMeans] | None = None
) -> list[MarginalSolution]:
    """Solve the system for several right-hand sides one after the other, with means that are prepared once.

    `prepared` are those means, where the caller has kept them.
    """
    C, a, b = problem.C, problem.a, problem.b
    parts: list[list[tuple[HostArray, MarginalSolution]]] = [[] for _ in rights]
    for index, means in plan_means(problem) if prepared is None else prepared:
        for right, found in zip(rights, parts, strict=True):
            h, k = right(index, means)
            # The longer side is eliminated.
            axis: Axis = 1 if h.shape[1] < k.shape[1] else 0
            system = ReducedSystem(C.xp, C.to_host, means, axis, how.at(index))
            if axis == 1:
                y, x, converged = system.solve(k, h)
            else:
                x, y, converged = system.solve(h, k)
            if not converged.all():
                x, y = _with_room(C.xp, (x, y), (h, k), converged, problem.dtype)
            found.append((index, MarginalSolution(x, y, converged)))
    return [_joined(C.xp, a, b, found) for found in parts]


def _with_room(
    xp: ArrayModule, solution: tuple[Array, Array], sides: tuple[Array, Array], converged: HostArray, dtype: Any
) -> tuple[Array, Array]:
    """Return rough solutions, or the sides in place of those that are too large for `dtype`: gradients are finite."""
    x, y = solution
    most = LARGEST * float(np.finfo(np.result_type(dtype, np.float32)).max)
    room = ((xp.abs(x).max(axis=1) <= most) & (xp.abs(y).max(axis=1) <= most) | xp.asarray(converged))[:, None]
    return xp.where(room, x, sides[0]), xp.where(room, y, sides[1])


def _joined(xp: ArrayModule, a: Array, b: Array, parts: list[tuple[HostArray, MarginalSolution]]) -> MarginalSolution:
    """Return the solutions of all problems, in the dtype of their weights."""
    if len(parts) == 1:
        x, y, converged = parts[0][1]
        return MarginalSolution(x.astype(a.dtype, copy=False), y.astype(b.dtype, copy=False), converged)
    out = MarginalSolution(xp.empty_like(a), xp.empty_like(b), np.zeros(len(a), bool))
    for index, part in parts:
        for whole, some in zip(out, part, strict=True):
            whole[index] = some
    return out


def plan_means(problem: Problem) -> Iterable[IndexedMeans]:
    """Return the means under the plans of all problems, group by group."""
    return problem.C.plan_means(problem.a, problem.b, problem.f, problem.g, problem.eps)


def warn_rough(converged: HostArray, tol: float, max_iter: int) -> None:
    """Warn once if linear systems did not reach the tolerance."""
    if not converged.all():
        warn(
            f"the linear system of {np.count_nonzero(~converged)} of {len(converged)} problems did not reach "
            f"tol={tol:g} within max_iter={max_iter} iterations: their gradients are rough. Raise 'max_iter', or "
            "eps where parts of the plan hardly meet",
            ConvergenceWarning,
        )


@dataclass(frozen=True, eq=False)
class ReducedSystem:
    """The system of some problems with the unknown of one side eliminated.

    `axis` sums over the other side, whose unknown is eliminated: 0 where the rows are.
    """

    xp: ArrayModule
    to_host: Callable[[Array], HostArray]
    means: Means
    axis: Axis
    how: LinearSolve

    @property
    def other_axis(self) -> Axis:
        """The axis that sums over the own side."""
        return 0 if self.axis == 1 else 1

    @property
    def shares(self) -> tuple[float | Array, float | Array]:
        """Factors of R and S' in the equations of the other side and of the own one."""
        slack = self.how.slack if self.axis == 0 else self.how.slack[::-1]
        return 1 / (1 + slack[0]), 1 / (1 + slack[1])

    @property
    def share(self) -> float | Array:
        """The product of the `shares`."""
        return self.shares[0] * self.shares[1]

    @cached_property
    def slack(self) -> bool:
        """Whether the equations have slack."""
        return not all(isinstance(slack, float) and slack == 0 for slack in self.how.slack)

    @property
    def constant_eigenvalue(self) -> float | Array:
        """``1 - share * share``, without cancellation: the eigenvalue of the constants."""
        (first, second), (share, other) = self.how.slack, self.shares
        return (first + second + first * second) * share * other

    def solve(self, other: Array, own: Array) -> tuple[Array, Array, HostArray]:
        """Return the unknowns of the other and of the own side, and which problems converged."""
        # In a unit near their size, a power of two: squares of 1e-30 or of 1e20 are not numbers of float32.
        xp = self.xp
        other_bins, bins = sides = [Bins.of(xp, self.means.marginal(axis)) for axis in (self.other_axis, self.axis)]
        size = xp.sqrt(other_bins.dot(other, other) + bins.dot(own, own))
        if len(size) and float(size.min()) > 1 / NEAR_ONE:
            if float(xp.maximum(xp.abs(other).max(), xp.abs(own).max())) < NEAR_ONE:  # as nearly always
                return self._solve(other, own, size, *sides)
        unit = xp.maximum(largest(xp, other), largest(xp, own))[:, None]
        unit = xp.exp2(xp.round(xp.log2(xp.where((unit > 0) & (unit < np.inf), unit, 1))))
        other, own = other / unit, own / unit
        size = xp.sqrt(other_bins.dot(other, other) + bins.dot(own, own))
        x, y, converged = self._solve(other, own, size, *sides)
        x *= unit
        y *= unit
        return x, y, converged

    def _solve(
        self, other: Array, own: Array, size: Array, other_bins: Bins, bins: Bins
    ) -> tuple[Array, Array, HostArray]:
        """Solve the system for sides of `size` (B,), whose largest number is about 1."""
        xp, axis = self.xp, self.axis
        tol = max(self.how.tol, 32 * float(np.finfo(own.dtype).eps))
        target = tol * size
        y = xp.zeros(own.shape, own.dtype)
        draft = self._draft() if tol >= DRAFT else None
        for attempt in range(ROUNDS + 1):
            x = self._other_side(other, y) if attempt else other  # y = 0 at first
            residual = self.means.mean(x, axis)
            if self.slack:
                residual *= self.shares[1]
            xp.subtract(own, residual, out=residual)
            if attempt:
                residual -= y
            constant = bins.mean(residual)
            residual -= constant
            if self.slack:  # along the constants the system may be nearly singular
                y += constant / self.constant_eigenvalue
            reached = bins.dot(residual, residual)
            missed = np.flatnonzero(~self.to_host(reached <= target**2))
            if attempt == ROUNDS or not len(missed):
                break
            if draft is not None and not attempt:
                y += draft._correction(bins, residual, 0.5 * target)
                continue
            every = len(missed) == len(y)
            chosen = slice(None) if every else missed
            system = self if every else self.at(missed)
            some = bins if every else bins.at(missed)
            y[chosen] += _conjugate_gradients(system, some, some.masked(residual[chosen]), 0.5 * target[chosen])
        # Beside too large a y the sides are lost in rounding, and no residual tells anything: so it ends for potentials
        # of parts that do not meet, whose system has no solution.
        centred = y - bins.mean(y) if self.slack else y
        told = LEAST_ROUNDING * float(np.finfo(y.dtype).eps) * xp.sqrt(bins.dot(centred, centred)) <= target
        y += residual  # one fixed-point step: defines y on empty bins, smooths light ones
        if draft is None or self.slack:
            x = self._other_side(other, y)
        else:  # the rounding of this mean is that of a residual
            x = x - draft.means.mean(bins.masked(residual).astype(np.float32), self.other_axis)
        reached = (reached <= target**2) & told & xp.isfinite(size)
        if self.how.evenly and self.slack and bins.light:
            x, y, evenly = self._settled(bins, other_bins, other, own, x, y, tol)
            reached &= evenly
        return x, y, self.to_host(reached)

    def _settled(
        self, bins: Bins, other_bins: Bins, other: Array, own: Array, x: Array, y: Array, tol: float
    ) -> tuple[Array, Array, Array]:
        """Return solutions whose residual is small in every bin, however light, and in which problems (B,) it is.

        A weighted square does not see bins that only meet other light ones, where the unknowns of all bins are of one
        size; where they go with the inverse of the weights, as those of potentials do, it does not see heavy ones. So
        the residual is to be small at its largest, and in the sum of its sizes with weights. The spectrum of a system
        with slack is known, so that steps can be taken in which no weight counts.
        """
        xp, least = self.xp, self.constant_eigenvalue
        size, sums = xp.maximum(largest(xp, other), largest(xp, own)), bins.sizes(own) + other_bins.sizes(other)
        lowest = least if isinstance(least, float) else float(least.min())
        steps = min(self.how.max_iter, chebyshev_steps(lowest, tol))
        for attempt in range(ROUNDS + 1):
            residual = own - self.shares[1] * self.means.mean(x, self.axis) - y
            even = (largest(xp, residual) <= tol * size) & (bins.sizes(residual) <= tol * sums)
            if bool(even.all()) or attempt == ROUNDS:
                break
            y = y + chebyshev(lambda v: bins.masked(self.apply(v)), bins.masked(residual), least, steps)
            x = self._other_side(other, y)
            y = own - self.shares[1] * self.means.mean(x, self.axis)
            x = self._other_side(other, y)
        return x, y, even

    def _other_side(self, other: Array, y: Array) -> Array:
        """Return x, given y."""
        image = self.means.mean(y, self.other_axis)
        if self.slack:
            image *= self.shares[0]
        return self.xp.subtract(other, image, out=image)

    def _draft(self) -> Self | None:
        """Return the system in float32, if it is in float64 and its means can be."""
        means = self.means.in_float32()
        return None if means is None else replace(self, means=means, how=self.how.astype(np.float32))

    def _correction(self, bins: Bins, residual: Array, target: Array) -> Array:
        """Return about the solution of ``apply(y) = residual``, in the dtype of these means."""
        narrow = bins.astype(np.float32)
        found = _conjugate_gradients(self, narrow, bins.masked(residual).astype(np.float32), target.astype(np.float32))
        sound = self.xp.isfinite(found)
        return found if sound.all() else self.xp.where(sound.all(axis=1, keepdims=True), found, 0)

    def apply(self, y: Array) -> Array:
        """Return ``y - share^2 S' R y``."""
        both = self.means.smoothed(y, self.axis)
        if self.slack:
            both *= self.share
        return self.xp.subtract(y, both, out=both)

    def at(self, index: HostArray) -> Self:
        """Return the system of the problems at `index`."""
        return replace(self, means=self.means.at(index), how=self.how.at(index))


@np.errstate(divide="ignore")
def _conjugate_gradients(system: ReducedSystem, bins: Bins, residual: Array, target: Array) -> Array:
    """Solve ``system.apply(y) = residual`` to the norm `target` (B,), each problem for itself.

    For ``root * y``, with the roots of the weights, the matrix is symmetric: this is the system preconditioned by its
    diagonal, and no inner product has weights. A finished problem leaves the batch.
    """
    xp, share = system.xp, system.share
    root = xp.sqrt(bins.weights / bins.mass)
    least = float(np.finfo(root.dtype).tiny)
    inverse = 1 / xp.maximum(root, least)
    smoothing = system.means.rooted(system.axis, root, inverse)
    residual, bound = root * residual, (target / xp.sqrt(bins.mass[:, 0])) ** 2
    out = y = xp.zeros(root.shape, root.dtype)  # NumPy takes its time for zeros_like
    direction, scratch = residual.copy(), xp.empty_like(root)
    active, size = np.arange(len(root)), smoothing.inner(residual, residual)
    for step in range(system.how.max_iter):
        image = smoothing(direction)
        if system.slack:
            image *= share
        xp.subtract(direction, image, out=image)
        curvature = smoothing.inner(direction, image)
        sound = curvature > 0
        length = xp.where(sound, size / curvature, 0)[:, None]
        y += xp.multiply(length, direction, out=scratch)
        image *= length
        residual -= image
        if (step + 1) % CENTRED == 0:
            residual -= xp.multiply(smoothing.inner(root, residual)[:, None], root, out=scratch)
        residual = bins.masked(residual)
        previous, size = size, smoothing.inner(residual, residual)
        going = system.to_host(sound & (size > bound))
        count = np.count_nonzero(going)
        if not count:
            break
        direction *= (size / xp.maximum(previous, least))[:, None]
        direction += residual
        if 2 * count <= len(going):
            out[active] = y
            index = np.flatnonzero(going)
            active, smoothing, bins = active[index], smoothing.at(index), bins.at(index)
            share = share if isinstance(share, float) else share[index]
            y, residual, direction, root = (v[index] for v in (y, residual, direction, root))
            size, bound, scratch = size[index], bound[index], scratch[: len(index)]
    out[active] = y
    out *= inverse
    return out
