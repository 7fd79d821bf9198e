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

import math
from typing import Any, NamedTuple

import numpy as np

from cusink.costs.cost import Cost
from cusink.types import Array, Axis

LARGEST_STEP = 20.0  # of a potential over eps: farther away, the plan has little to do with its quadratic model
SUFFICIENT = 1e-4  # share of the predicted gain that a step must make
SHORTER = 4  # a step that gains too little is divided by this,
LENGTHS = 4  # so many times; then the ridge grows
FIRST_RIDGE, RIDGES, LARGER = 1e-14, 7, 100  # times c, added to the diagonal of L; how it grows
NO_MASS = 1e-280  # of a column below which it stays where it is
DIRECT = 15  # evaluations from the potentials at hand, before eps is annealed
STAGE, ROUGH, PER_STAGE = 4, 1e-3, 20  # factor between two values of eps; tolerance and evaluations at the larger ones
LAST = 100  # evaluations at the smallest eps
LARGEST = 1 << 20  # entries of a plan up to which some copies of it may be made
TOGETHER = 16  # problems from which on an iteration of one takes as little as it can
EVALUATIONS = 30  # that a problem takes, more or less


class Found(NamedTuple):
    """Potentials f (1, n) and g (1, m), the marginal error, the evaluations of the plan."""

    f: Array
    g: Array
    error: float
    taken: int


class Point(NamedTuple):
    """Where an ascent is: logits of the moving side, objective over eps, gradient, plan with the fixed side first."""

    logits: Array
    objective: float
    gradient: Array
    plan: Array


class Semidual:
    """The dual objective of a problem by the logits ``log b + g / eps`` of its smaller side, the moving one."""

    def __init__(self, C: Cost[Any], a: Array, b: Array, eps: float) -> None:
        self.C, self.eps, self.xp = C, eps, C.xp
        self.axis: Axis = 1 if b.shape[1] <= a.shape[1] else 0
        self.fixed, self.moving = (a, b) if self.axis == 1 else (b, a)
        with np.errstate(divide="ignore"):
            self.log_fixed, self.log_moving = self.xp.log(self.fixed), self.xp.log(self.moving)

    @np.errstate(invalid="ignore")  # a weight of zero times its logarithm
    def at(self, logits: Array) -> Point:
        """Return all that a step from there needs."""
        xp, a = self.xp, self.fixed
        best = xp.where(a > 0, self.C.softmin(logits, self.eps, self.axis) / self.eps, 0)
        fixed = self.log_fixed + best
        p, q = (fixed, logits) if self.axis == 1 else (logits, fixed)
        plan = self.C.plan(p, q, self.eps)[0]
        plan = plan if self.axis == 1 else plan.T
        objective = (a * best).sum() + xp.where(self.moving > 0, self.moving * logits, 0).sum()
        return Point(logits, float(objective), self.moving[0] - plan.sum(axis=0), plan)

    def direction(self, point: Point, ridge: float) -> Array:
        """Return Newton's step (m,); a `ridge` shortens it where parts of the plan come apart."""
        xp, plan, weights = self.xp, point.plan, self.fixed[0]
        edges = plan.T @ (plan / xp.where(weights > 0, weights, 1)[:, None])
        every = xp.arange(len(edges))
        edges[every, every] = 0
        # The diagonal of L as a sum of edges: a difference would lose the weak ones, which are what counts here.
        degree = edges.sum(axis=1)
        diagonal = degree + ridge * plan.sum(axis=0)
        scale = 1 / xp.sqrt(xp.where(diagonal > NO_MASS, diagonal, 1))
        system = edges * -scale[:, None] * scale
        constant = xp.sqrt(diagonal / diagonal.sum())  # a constant in g changes nothing
        system += constant[:, None] * constant
        system[every, every] += 1
        try:
            step = scale * xp.linalg.solve(system, scale * point.gradient)
        except np.linalg.LinAlgError:
            step = xp.full_like(scale, np.nan)
        return step - xp.median(step[self.moving[0] > 0])

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # potentials without digits give no sound step
    def ascend(self, start: Array, tol: float, most: int) -> tuple[Point, float, int]:
        """Return where at most `most` evaluations from the potential `start` lead, the error there, and their number.

        An error above `tol` says that the ascent got no farther.
        """
        point, taken, ridge, grown = self.at(self.log_moving + start / self.eps), 1, FIRST_RIDGE, 0
        mass = float(self.moving.sum())
        while True:
            error = float(abs(point.gradient).sum()) / mass
            if not error > tol or taken >= most:  # or NaN
                return point, error, taken
            step = self.direction(point, ridge)
            slope, farthest = float(step @ point.gradient), float(abs(step).max())
            better = None
            if slope > 0 and math.isfinite(farthest):
                length = min(1.0, LARGEST_STEP / farthest)
                for _ in range(LENGTHS):
                    there, taken = self.at(point.logits + length * step), taken + 1
                    gain = there.objective - point.objective
                    noise = 1e-11 * (mass + abs(point.objective))
                    closer = abs(gain) < noise and float(abs(there.gradient).sum()) < error * mass
                    if gain >= SUFFICIENT * length * slope or closer:
                        better = there
                        break
                    length /= SHORTER
            if better is None:
                grown += 1
                if grown == RIDGES:
                    return point, error, taken
                ridge = max(ridge * LARGER, 1e-12)
            else:
                point, grown = better, 0
                ridge = max(ridge / 10, FIRST_RIDGE) if length == 1 else ridge

    @np.errstate(invalid="ignore")  # the difference of two logarithms of zero
    def potentials(self, point: Point) -> tuple[Array, Array]:
        """Return f (1, n) and g (1, m): the moving one where it is, the fixed one the best for it."""
        moved = self.xp.where(self.moving > 0, (point.logits - self.log_moving) * self.eps, 0)
        best = self.C.softmin(point.logits, self.eps, self.axis)
        return (best, moved) if self.axis == 1 else (moved, best)


def newton(
    C: Cost[Any], a: Array, b: Array, eps: float, start: tuple[Array, Array], tol: float, steepness: float, most: int
) -> Found:
    """Return potentials of one problem from the potentials `start`, after at most `most` evaluations or a few more.

    `error` may be above `tol`. The cost and the weights (1, n) and (1, m), of one mass, are in float64; `steepness` is
    the range of the costs over eps. Where `start` is too far away, eps is annealed.
    """
    dual = Semidual(C, a, b, eps)
    moving = start[dual.axis]
    point, error, taken = dual.ascend(moving, tol, min(DIRECT, most))
    stages = math.ceil(math.log(max(steepness, 1), STAGE))
    if error > tol and taken + stages * PER_STAGE < most:
        moving = C.xp.zeros_like(moving)
        for stage in range(stages, -1, -1):
            dual = Semidual(C, a, b, eps * STAGE**stage)
            goal, at_most = (ROUGH, PER_STAGE) if stage else (tol, min(LAST, most - taken))
            point, error, more = dual.ascend(moving, goal, at_most)
            moving, taken = dual.potentials(point)[dual.axis], taken + more
    return Found(*dual.potentials(point), error, taken)


def worth(n: int, m: int, many: bool) -> float:
    """Return how many iterations of a problem take as long as `newton`, more or less: a large batch, or one alone.

    Counted in operations, as measured on a CPU: an iteration of a single problem waits for memory, a batch does not; an
    exponential and a call take their time too. It does not depend on how many problems there are, so that no problem
    ends in another way because of others.
    """
    if n * m > LARGEST:
        return math.inf
    problems = TOGETHER if many else 1
    iteration = 4 * n * m * (1 + 5 / problems) + 3e5 / problems
    step = 1.5 * (n * m * (min(n, m) + 400) + min(n, m) ** 3) + 2e6
    return EVALUATIONS * step / iteration
