"""One pair out of many that were solved together, as a problem without padding."""

from cusink.costs.clouds import PointCloud
from cusink.solver import checks
from cusink.solver.pairs.checks import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.solver.problem import Problem


def alone(given: CheckedPairs, sides: tuple[Side, Side], k: int, solved: Problem, row: int) -> Problem:
    """Return pair k of two sides, which are one for a self-term, as a problem: `row` of `solved`, alone."""
    own = [side.item(k) for side in sides]
    (a, x), (b, y) = ((side.weights[at], side.points[at]) for side, at in zip(sides, own, strict=True))
    cloud = PointCloud(x, None if sides[0] is sides[1] else y, given.metric)
    problem = checks.problem(a, b, cloud, eps=solved.eps, check=False, reach=solved.reach)
    f, g = solved.f[row : row + 1, : len(a)], solved.g[row : row + 1, : len(b)]
    shift = None if solved.shift is None else solved.shift[row : row + 1]
    return Problem.of(problem, solved.eps, f, g, solved.reach, shift)
