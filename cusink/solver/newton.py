"""Newton's method for single problems that hardly converge, on the dual objective of the smaller side alone.

With the best f for each g, the dual objective ``F(g) = <a, f(g)> + <b, g>`` is concave. The plan then has the row sums
a; its column sums c give the gradient ``b - c``, and the Hessian is ``-L / eps`` with the Laplacian
``L = diag(c) - P' diag(1 / a) P`` of the graph whose edges join columns that share rows. A step takes a product and a
factorisation, of the order of ``n m**2``. Few are needed where iterations go on for thousands: a step crosses
the modes that join nearly separate parts of the plan at once. Only the start of the iterations depends on it: these
measure what it found.

M. Cuturi and G. Peyre, Semidual regularized optimal transport, SIAM Review 2018.
C. Brauer, C. Clason, D. Lorenz, B. Wirth, A Sinkhorn-Newton method for entropic optimal transport, 2017.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np

from cusink.costs.cost import Cost
from cusink.types import Array, ArrayModule, Axis

LARGEST_STEP = 20.0  # of a potential over eps: farther away, the plan has little to do with its quadratic model
LINEAR = 100.0  # steps longer than that are not made shorter as a whole
SUFFICIENT = 1e-4  # share of the predicted gain that a step must make
SHORTER = 4  # a step that gains too little is divided by this,
LENGTHS = 4  # so many times; then the ridge grows
OVERSHOOT = LENGTHS + 1  # evaluations beyond those that are allowed, at most: a step is not broken off
FIRST_RIDGE, RIDGES, LARGER = 1e-14, 7, 100  # times c, added to the diagonal of L; how it grows
QUADRATIC = 0.5  # factor by which a step lowers the error where it is close enough to the solution
NO_MASS = 1e-280  # of a column below which it stays where it is
LEAST_EXPONENT = -330.0  # of finite costs. Exponentials that underflow take three times as long; squares do not here
DIRECT, PACE = 8, 0.9  # evaluations from the potentials at hand; more if each lowers the error so far. Else, annealing
STAGE, ROUGH, PER_STAGE = 4, 1e-2, 20  # factor between two values of eps; tolerance and evaluations at the larger ones
EASY = 2  # largest values of eps that are left out: from there on any start will do
LAST = 100  # evaluations at the smallest eps
LARGEST = 1 << 20  # entries of a plan up to which some copies of it may be made
ALONE, BATCH, TILE = 1, 16, 256  # that share an iteration: one problem, those of a call, pairs of a distance matrix
MANY = 64  # problems of one cost from which on they are a tile
EVALUATIONS = 15  # that a problem takes, more or less


class Found(NamedTuple):
    """Potentials f (1, n) and g (1, m), the marginal error, the evaluations of the plan."""

    f: Array
    g: Array
    error: float
    taken: int


class Point(NamedTuple):
    """Where an ascent is: logits of the moving side, the best ones (n, 1) of the fixed side, objective over eps, error.

    `kernel` (n, m) is the plan with its rows divided by `row`.
    """

    logits: Array
    fixed: Array
    objective: float
    gradient: Array
    kernel: Array
    row: Array


class Semidual:
    """The dual objective of a problem by the logits ``log b + g / eps`` of its smaller side, the moving one.

    Bins without weight are left out: `exponents` are the costs over eps of the others, the fixed side's first.
    """

    def __init__(self, C: Cost[Any], a: Array, b: Array, eps: float) -> None:
        self.C, self.eps, self.xp = C, eps, C.xp
        self.axis: Axis = 1 if b.shape[1] <= a.shape[1] else 0
        fixed, moving = (a[0], b[0]) if self.axis == 1 else (b[0], a[0])
        rows, self.present = self.xp.flatnonzero(fixed), self.xp.flatnonzero(moving)
        costs = C.costs_of(0, slice(None))
        costs = costs if self.axis == 1 else costs.T
        if len(rows) < len(fixed) or len(self.present) < len(moving):
            costs = costs[rows[:, None], self.present]
        self.exponents = self.xp.ascontiguousarray(costs) / eps
        self.fixed, self.moving = fixed[rows], moving[self.present]
        self.log_moving = self.xp.log(self.moving)
        self.finite = bool(self.xp.isfinite(self.exponents.max()))

    def annealed(self, factor: float) -> "Semidual":
        """Return the objective at `factor` times eps."""
        out = copy.copy(self)
        out.eps, out.exponents = self.eps * factor, self.exponents / factor
        return out

    @np.errstate(invalid="ignore", divide="ignore")  # a row of nothing but forbidden pairs
    def at(self, logits: Array, near: Array | None = None) -> Point:
        """Return all that a step from there needs; `near` is the best of the fixed side at most `LARGEST_STEP` away."""
        xp, a = self.xp, self.fixed
        kernel = logits - self.exponents
        near = kernel.max(axis=1, keepdims=True) if near is None else near
        kernel -= near
        if self.finite:
            xp.maximum(kernel, LEAST_EXPONENT, out=kernel)
        xp.exp(kernel, out=kernel)
        sums = kernel @ xp.ones_like(logits)
        highest = near + xp.log(sums)[:, None]
        row = a / sums
        objective = self.moving @ logits - a @ highest[:, 0]
        return Point(logits, highest, float(objective), self.moving - row @ kernel, kernel, row)

    def direction(self, point: Point, ridge: float) -> Array:
        """Return Newton's step (m,); a `ridge` shortens it where parts of the plan come apart."""
        xp = self.xp
        half = point.kernel * (point.row / xp.sqrt(self.fixed))[:, None]
        edges = half.T @ half
        every = xp.arange(len(edges))
        edges[every, every] = 0
        # The diagonal of L as a sum of edges: a difference would lose the weak ones, which are what counts here.
        degree = edges.sum(axis=1)
        diagonal = degree + ridge * (self.moving - point.gradient)
        scale = 1 / xp.sqrt(xp.where(diagonal > NO_MASS, diagonal, 1))
        edges *= -scale[:, None]
        edges *= scale
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
        return float(abs(point.gradient).sum() / self.moving.sum())

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # potentials without digits give no sound step
    def ascend(self, start: Array, tol: float, most: int, pace: float = math.inf) -> tuple[Point, float, int]:
        """Return where at most `most` evaluations from the potential `start` lead, the error there, and their number.

        An error above `tol` says that the ascent got no farther, or that after `DIRECT` evaluations the error was more
        than `pace` for each of them allows.
        """
        point, taken, ridge, grown = self.at(self.log_moving + start / self.eps), 1, FIRST_RIDGE, 0
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
                point, taken = self._swept(point), taken + 1
                error = self.error(point)
        return point, error, taken

    def _farther(self, point: Point, step: Array, error: float) -> tuple[Point | None, float, int]:
        """Return a point in the direction `step` that gains enough or None, the share of the step, evaluations."""
        slope, farthest = float(step @ point.gradient), float(abs(step).max())
        if not (slope > 0 and math.isfinite(farthest)):
            return None, 0.0, 0
        length = min(1.0, LARGEST_STEP / farthest)
        noise = 1e-11 * (float(self.moving.sum()) + abs(point.objective))
        for taken in range(1, LENGTHS + 1):
            there = self.at(point.logits + length * step, point.fixed)
            gain = there.objective - point.objective
            closer = abs(gain) < noise and self.error(there) < error
            if gain >= SUFFICIENT * length * slope or closer:
                return there, length, taken
            length /= SHORTER
        return None, 0.0, LENGTHS

    def _swept(self, point: Point) -> Point:
        """Return where an iteration leads: it cannot lose, and gives each column of the plan its mass, however small.

        Of these a step of Newton's knows little while it is far from the solution.
        """
        step = self.xp.log(self.moving / (self.moving - point.gradient))
        there = self.at(point.logits + step.clip(-LARGEST_STEP, LARGEST_STEP), point.fixed)
        return there if there.objective >= point.objective else point

    def _best(self, point: Point, logits: Array) -> Array:
        """Return the potentials (1, n) of the fixed side that are best for `logits` (1, m), those of `point`."""
        if point.fixed.size == self.C.shape[-2:][1 - self.axis]:
            return -self.eps * point.fixed.T
        return self.C.softmin(logits, self.eps, self.axis)

    def potential(self, point: Point) -> Array:
        """Return the potential (m,) of the moving side."""
        return (point.logits - self.log_moving) * self.eps

    def potentials(self, point: Point, size: int) -> tuple[Array, Array]:
        """Return f (1, n) and g (1, m) of all bins: the moving one where it is, the fixed one the best for it."""
        moved = self.xp.zeros((1, size))
        logits = self.xp.full((1, size), -np.inf)
        moved[0, self.present], logits[0, self.present] = self.potential(point), point.logits
        best = self._best(point, logits)
        return (best, moved) if self.axis == 1 else (moved, best)


def _solution(xp: ArrayModule, matrix: Array, right: Array) -> Array:
    """Return the solution (m,) of a linear system that is positive definite but for rounding; NaN where it has none."""
    if xp is np:
        from scipy.linalg.lapack import dposv  # takes long to import

        _, found, failed = dposv(matrix.T, right)  # the transpose is in the order of Fortran
        if not failed:
            return found
    try:
        return xp.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return xp.full_like(right, np.nan)


def newton(
    C: Cost[Any], a: Array, b: Array, eps: float, start: tuple[Array, Array], tol: float, steepness: float, most: int
) -> Found:
    """Return potentials of one problem from the potentials `start`, after `most` evaluations, at most `OVERSHOOT` more.

    `error` may be above `tol`. The cost and the weights (1, n) and (1, m), of one mass, are in float64; `steepness` is
    the range of the costs over eps. Where `start` is too far away, eps is annealed.
    """
    dual = Semidual(C, a, b, eps)
    moving = start[dual.axis][0]
    point, error, taken = dual.ascend(moving[dual.present], tol, min(LAST, most), PACE)
    stages = max(0, math.ceil(math.log(max(steepness, 1), STAGE)) - EASY)
    if error > tol and taken + stages * PER_STAGE < most:
        potential = C.xp.zeros(len(dual.present))
        for stage in range(stages, -1, -1):
            goal, at_most = (ROUGH, PER_STAGE) if stage else (tol, min(LAST, most - taken))
            rough = dual.annealed(STAGE**stage)
            point, error, more = rough.ascend(potential, goal, at_most)
            potential, taken = rough.potential(point), taken + more
    return Found(*dual.potentials(point, len(moving)), error, taken)


def sharing(problems: int, shared: bool) -> int:
    """Return how many share an iteration, more or less: problems with one cost, or one each, are a product apart."""
    if problems == 1:
        return ALONE
    return TILE if shared and problems >= MANY else BATCH


def worth(n: int, m: int, together: int) -> float:
    """Return how many iterations of a problem take as long as `newton`, more or less, where `together` share each.

    Counted in units of 0.05 ns, as measured on one core: an iteration of a single problem waits for memory, a batch
    does not; an exponential and a call take their time too. `together` is one of three constants, so that among
    as many, more or less, no problem ends in another way because of others.
    """
    if n * m > LARGEST:
        return math.inf
    k = min(n, m)
    iteration = 4 * n * m * (1 + 3 / together) + 8e5 / together
    step = n * m * (0.54 * k + 200) + 0.7 * k**3 + 3e6
    return EVALUATIONS * step / iteration
