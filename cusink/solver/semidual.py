"""The dual objective of a problem by the potential of its smaller side alone, and the way up it.

With the best f for each g, the dual objective ``F(g) = <a, f(g)> + <b, g>`` is concave. The plan then has the row sums
a; its column sums c give the gradient ``b - c``, and the Hessian is ``-L / eps`` with the Laplacian
``L = diag(c) - P' diag(1 / a) P`` of the graph whose edges join columns that share rows. A step takes a product and a
factorisation, of the order of ``n m**2``. Few are needed where iterations go on for thousands: a step crosses
the modes that join nearly separate parts of the plan at once.

M. Cuturi and G. Peyre, Semidual regularized optimal transport, SIAM Review 2018.
C. Brauer, C. Clason, D. Lorenz, B. Wirth, A Sinkhorn-Newton method for entropic optimal transport, 2017.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np

from cusink.costs.cost import Cost
from cusink.costs.exponentials import exp_from
from cusink.types import Array, ArrayModule, Axis

LARGEST_STEP = 20.0  # of a potential over eps: farther away, the plan has little to do with its quadratic model
LINEAR = 100.0  # steps longer than that are not made shorter as a whole
SUFFICIENT = 1e-4  # share of the predicted gain that a step must make
SHORTER, LENGTHS = 4, 4  # by what a step that gains too little is divided, and how often; then the ridge grows
STRAIGHT, LONGER = 0.9999, 4  # share of the predicted gain from which on a step is made longer, and by what factor
OVERSHOOT = 2 * LENGTHS + 1  # evaluations beyond those that are allowed, at most: a step is not broken off
FIRST_RIDGE, RIDGES, LARGER = 1e-14, 7, 100  # times c, added to the diagonal of L; how it grows
CLOSE = 1e-2  # error from which on annealing leads farther away, and steps square it
QUADRATIC = 0.5  # factor by which a step lowers the error where it is close enough to the solution
NO_MASS = 1e-280  # of a column below which it stays where it is
LEAST_EXPONENT = -330.0  # of finite costs. Exponentials that underflow take three times as long; squares do not here
CUT_OFF = 1e-100  # of the mass: below it, what exponentials were cut off to counts
LEAST_COST = 1e-87  # of the mass, over eps: what a million of them make by exponents of 2e6
REACH = 150.0  # logits that moved less since exponentials were taken scale them: squares of edges stay in range
FARTHEST = 2e43  # factors of a row and a column make less of the mass: an entry that was cut off stays below `CUT_OFF`
DIRECT = 8  # evaluations that an ascent has before its pace counts


class Kernel(NamedTuple):
    """Exponentials (n, m) of ``origin - C / eps - near``, with logits `origin` (m,) and the size `near` (n, 1)."""

    entries: Array
    origin: Array
    near: Array


class Point(NamedTuple):
    """Where an ascent is: logits of the moving side, the best ones (n, 1) of the fixed side, objective over eps, error.

    The plan is the kernel with its rows times `row` and its columns times `scale`.
    """

    logits: Array
    fixed: Array
    objective: float
    gradient: Array
    row: Array
    scale: Array
    kernel: Kernel


class Semidual:
    """The dual objective of a problem by the logits ``log b + g / eps`` of its smaller side, the moving one.

    Bins without weight are left out: `exponents` are the costs over eps of the others, the fixed side's first.
    """

    def __init__(self, C: Cost[Any], a: Array, b: Array, eps: float) -> None:
        self.C, self.eps, self.xp = C, eps, C.xp
        self.axis: Axis = 1 if b.shape[1] < a.shape[1] else 0
        fixed, moving = (a[0], b[0]) if self.axis == 1 else (b[0], a[0])
        self.rows, self.present = rows, _ = self.xp.flatnonzero(fixed), self.xp.flatnonzero(moving)
        costs = C.costs_of(0, slice(None))
        costs = costs if self.axis == 1 else costs.T
        if len(rows) < len(fixed) or len(self.present) < len(moving):
            costs = costs[rows[:, None], self.present]
        self.exponents = self.xp.ascontiguousarray(costs) / eps
        self.fixed, self.moving = fixed[rows], moving[self.present]
        self.log_moving, self.mass = self.xp.log(self.moving), float(self.moving.sum())
        self.finite = bool(self.xp.isfinite(self.exponents.max()))

    def annealed(self, factor: float) -> "Semidual":
        """Return the objective at `factor` times eps."""
        out = copy.copy(self)
        out.eps, out.exponents = self.eps * factor, self.exponents / factor
        return out

    @np.errstate(invalid="ignore", divide="ignore")  # a row of nothing but forbidden pairs
    def at(self, logits: Array, before: Kernel | None = None) -> Point:
        """Return all that a step from there needs.

        Where the logits moved little since, the exponentials of `before` are scaled: a product with them takes a tenth
        of the time that they take.
        """
        xp, a = self.xp, self.fixed
        kernel = None
        if before is not None and float(abs(moved := logits - before.origin).max()) <= REACH:  # and no NaN
            scale = xp.exp(moved)
            sums = before.entries @ scale
            row = a / sums
            kernel = before if self._in_range(row, scale) else None
        if kernel is None:
            kernel, scale = self._kernel(logits), xp.ones_like(logits)
            sums = kernel.entries @ scale
            row = a / sums
        highest = kernel.near + xp.log(sums)[:, None]
        objective = self.moving @ logits - a @ highest[:, 0]
        gradient = self.moving - scale * (row @ kernel.entries)
        return Point(logits, highest, float(objective), gradient, row, scale, kernel)

    def _in_range(self, row: Array, scale: Array) -> bool:
        """Return whether scalings of a kernel leave what was cut off of it as small as it has to be."""
        largest = float(row.max()) * float(scale.max())  # or NaN
        return 0 < float(scale.min()) and largest <= FARTHEST * self.mass

    def _kernel(self, logits: Array, cut: bool = True) -> Kernel:
        """Return exponentials whose largest in each row is 1; with `cut`, none is so small that it is slow."""
        xp = self.xp
        entries = logits - self.exponents
        near = entries.max(axis=1, keepdims=True)
        entries -= near
        few = self.finite and cut
        return Kernel(exp_from(xp, entries, LEAST_EXPONENT) if few else xp.exp(entries, out=entries), logits, near)

    def direction(self, point: Point, ridge: float) -> Array:
        """Return Newton's step (m,); a `ridge` shortens it where parts of the plan come apart."""
        xp = self.xp
        half = point.kernel.entries * (point.row / xp.sqrt(self.fixed))[:, None]
        edges = half.T @ half  # but for `scale` on either side
        every = xp.arange(len(edges))
        edges[every, every] = 0
        # The diagonal of L as a sum of edges: a difference would lose the weak ones, which are what counts here.
        degree = point.scale * (edges @ point.scale)
        diagonal = degree + ridge * (self.moving - point.gradient)
        scale = 1 / xp.sqrt(xp.where(diagonal > NO_MASS, diagonal, 1))
        edges *= -(scale * point.scale)[:, None]
        edges *= scale * point.scale
        constant = xp.sqrt(diagonal / diagonal.sum())  # a constant in g changes nothing
        edges += constant[:, None] * constant
        edges[every, every] += 1
        step = scale * _solution(xp, edges, scale * point.gradient)
        return step - step.mean()

    def bent(self, step: Array) -> Array:
        """Return a direction (m,) that gains like `step`, made for exponentials where that goes too far for a line.

        Between parts that exchange a mass w where d is missing, a step is d / w and the way to go about its logarithm.
        Made shorter as a whole, one such part would keep all others where they are. Any function that rises, entry by
        entry, leaves an ascent an ascent, as L is a Laplacian; zero is where most of the mass stays.
        """
        xp = self.xp
        if not LINEAR < float(abs(step).max()) < math.inf:
            return step
        order = xp.argsort(step)
        mass = xp.cumsum(self.moving[order])
        bent = xp.arcsinh(step - step[order[xp.searchsorted(mass, mass[-1:] / 2)]])
        return bent - bent.mean()

    def error(self, point: Point) -> float:
        """Return the marginal error."""
        return float(abs(point.gradient).sum()) / self.mass

    def log_plan(self, point: Point) -> Array:
        """Return logarithms (n, m) of the entries of the plan."""
        out = point.logits - self.exponents
        out += self.xp.log(self.fixed)[:, None] - point.fixed
        return out

    def begun(self, potential: Array) -> Point:
        """Return the point of a potential (m,)."""
        return self.at(self.log_moving + potential / self.eps)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # where scalings leave their range
    def first(self) -> Point:
        """Return the point that the first half-step of an iteration from nothing leads to, as g is updated first."""
        xp, kernel = self.xp, self._kernel(self.log_moving)
        if self.axis == 0:
            return self.at(self.log_moving, kernel)
        highest = float(kernel.near.max())
        row = self.fixed * xp.exp(kernel.near - highest)[:, 0]
        scale = self.moving / (row @ kernel.entries)
        if self._in_range(row, scale):
            return self.at(self.log_moving + xp.log(scale) - highest, kernel)
        return self.at(self.log_moving - self._sums(xp.log(self.fixed)[:, None]))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # potentials without digits give no sound step
    def ascend(self, start: Point, tol: float, most: int, pace: float = math.inf) -> tuple[Point, float, int]:
        """Return where at most `most` evaluations from `start` on lead, the error there, and their number.

        The start counts as one. An error above `tol` says that the ascent got no farther, or that after `DIRECT`
        evaluations the error was more than `pace` for each of them allows.
        """
        point, taken, ridge, grown = start, 1, FIRST_RIDGE, 0
        first = error = self.error(point)
        while error > tol and taken < most:  # and no NaN
            if taken >= DIRECT and error > first * pace**taken:
                break
            better, length, more = self._farther(point, self.bent(self.direction(point, ridge)), error)
            taken += more
            if better is None:
                grown += 1
                if grown == RIDGES:
                    break
                ridge = max(ridge * LARGER, 1e-12)
                continue
            before, point, error, grown = error, better, self.error(better), 0
            ridge = max(ridge / 10, FIRST_RIDGE) if length == 1 else ridge
            if error > max(tol, QUADRATIC * before):
                point, more = self.swept(point, 1)
                error, taken = self.error(point), taken + more
        return point, error, taken

    def _farther(self, point: Point, step: Array, error: float) -> tuple[Point | None, float, int]:
        """Return a point in the direction `step` that gains enough or None, the share of the step, evaluations."""
        slope, farthest = float(step @ point.gradient), float(abs(step).max())
        if not (slope > 0 and math.isfinite(farthest)):
            return None, 0.0, 0
        length = min(1.0, LARGEST_STEP / farthest)
        noise = 1e-11 * (self.mass + abs(point.objective))
        for taken in range(1, LENGTHS + 1):
            there = self.at(point.logits + length * step, point.kernel)
            gain = there.objective - point.objective
            closer = abs(gain) < noise and self.error(there) < error
            if gain >= SUFFICIENT * length * slope or closer:
                return self._beyond(point, step, there, length, taken)
            length /= SHORTER
        return None, 0.0, LENGTHS

    def _beyond(self, point: Point, step: Array, there: Point, length: float, taken: int) -> tuple[Point, float, int]:
        """Return a point farther in the direction `step` than `there`, as long as that gains nearly what is promised.

        So it does where parts of the plan have to move against each other by many eps before any mass is exchanged.
        """
        slope, most = float(step @ point.gradient), taken + LENGTHS
        while taken < most and there.objective - point.objective >= STRAIGHT * length * slope:
            farther = self.at(point.logits + LONGER * length * step, point.kernel)
            taken += 1
            if not farther.objective > there.objective:
                break
            there, length = farther, LONGER * length
        return there, length, taken

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # where scalings leave their range
    def swept(self, point: Point, count: int) -> tuple[Point, int]:
        """Return where `count` iterations lead, or one where scalings do not reach as far, and how many they were.

        They cannot lose, and give each column of the plan its mass, however small: of these a step of Newton's knows
        little while it is far from the solution.
        """
        xp, kernel, row = self.xp, point.kernel, point.row
        for taken in range(count):
            scale = self.moving / (row @ kernel.entries)
            if taken < count - 1:
                row = self.fixed / (kernel.entries @ scale)
        reached = self._in_range(row, scale)
        there = self.at(kernel.origin + xp.log(scale) if reached else self._updated(point), kernel)
        return there if there.objective >= point.objective else point, count if reached else 1

    def _sums(self, logits: Array) -> Array:
        """Return logarithms (m,) of the sums of ``exp(logits - C / eps)`` over the fixed side's `logits` (n, 1)."""
        entries = logits - self.exponents
        largest = entries.max(axis=0)
        entries -= largest
        taken = exp_from(self.xp, entries, LEAST_EXPONENT) if self.finite else self.xp.exp(entries, out=entries)
        return largest + self.xp.log(taken.sum(axis=0))

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # far from a solution
    def ended(self, point: Point) -> tuple[Point, float]:
        """Return the point as iterations end: with f the best for its g, so that the rows are right; and the error.

        Where f is the moving side that is an update of f, after which `Point.fixed` is no longer the best. Where g is,
        it is an update of bins with hardly any weight, whose potentials the error does not tell.
        """
        xp, kernel, row = self.xp, point.kernel, point.row
        if self.axis == 1:
            share = max(self.error(point), float(np.finfo(float).eps)) / len(self.moving)
            light = self.moving < share * self.mass
            if bool(light.any()):
                point = self.at(xp.where(light, self._updated(point), point.logits), kernel)
            return point, self.error(point)
        sums = row @ kernel.entries  # not by the gradient, from which hardly any weight cannot be told
        if float(sums.min()) > CUT_OFF * float(row.sum()):
            scale = self.moving / sums
            logits = point.logits + xp.log(scale / point.scale)
        else:
            logits = self._updated(point)
            kernel, scale = self._kernel(logits), xp.ones_like(logits)
            row = self.fixed * xp.exp(kernel.near - point.fixed)[:, 0]
        there = point._replace(logits=logits, row=row, scale=scale, kernel=kernel)
        return there, float(abs(row * (kernel.entries @ scale) - self.fixed).sum() / self.fixed.sum())

    def _updated(self, point: Point) -> Array:
        """Return the logits (m,) of the moving side that are best for the fixed side's at `point`."""
        return self.log_moving - self._sums(self.xp.log(self.fixed)[:, None] - point.fixed)

    def _best(self, point: Point, logits: Array) -> Array:
        """Return the potentials (1, n) of the fixed side: those of `point`; the best for `logits` (1, m) elsewhere."""
        if point.fixed.size == self.C.shape[-2:][1 - self.axis]:
            return -self.eps * point.fixed.T
        out = self.C.softmin(logits, self.eps, self.axis)
        out[0, self.rows] = -self.eps * point.fixed[:, 0]
        return out

    def potential(self, point: Point) -> Array:
        """Return the potential (m,) of the moving side."""
        return (point.logits - self.log_moving) * self.eps

    def potentials(self, point: Point, size: int) -> tuple[Array, Array]:
        """Return f (1, n) and g (1, m) of all bins: the moving one where it is, the fixed one the best for it.

        Of the moving side, a bin without weight, of so many bins in all, has the best for those of the fixed side.
        """
        moved = self.xp.zeros((1, size))
        logits = self.xp.full((1, size), -np.inf)
        moved[0, self.present], logits[0, self.present] = self.potential(point), point.logits
        best = self._best(point, logits)
        if len(self.present) < size:
            logits = self.xp.full(best.shape, -np.inf)
            logits[0, self.rows] = self.xp.log(self.fixed) + best[0, self.rows] / self.eps
            over: Axis = 1 if self.axis == 0 else 0
            moved = self.C.softmin(logits, self.eps, over)
            moved[0, self.present] = self.potential(point)
        return (best, moved) if self.axis == 1 else (moved, best)

    def cost(self, point: Point) -> float:
        """Return the transport cost ``sum_ij P_ij C_ij``."""
        entries = point.kernel.entries
        exponents = self.exponents if self.finite else self.xp.where(entries > 0, self.exponents, 0)
        found = float(point.row @ ((entries * exponents) @ point.scale))
        if self.finite and abs(found) < LEAST_COST * self.mass:
            entries = self._kernel(point.kernel.origin, cut=False).entries
            found = float(point.row @ ((entries * exponents) @ point.scale))
        return found * self.eps


def _solution(xp: ArrayModule, matrix: Array, right: Array) -> Array:
    """Return the solution (m,) of a linear system that is positive definite but for rounding; NaN where it has none."""
    if xp is np:
        from scipy.linalg.lapack import dposv  # takes long to import

        _, found, failed = dposv(matrix.T, right, lower=1)  # the transpose is in the order of Fortran
        if not failed:
            return found
    try:
        return xp.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return xp.full_like(right, np.nan)
