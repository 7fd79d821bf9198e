"""Starts for large clouds: solutions between the means of cells of points, coarse to fine, in eps and in points."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.solver.newton import ALONE
from cusink.solver.solution import Stage
from cusink.types import Array, HostArray

LOSS = 1e-2  # of the tolerance, that a sum may lack by pairs that are left out
CELL = 1.25  # eps of a level over the variance in its cells, at least: a plan is then smooth over them
APART = 10.0  # eps of the finest level over that of the points, up to which it is a start for them
ROUGH = 1e-2  # tolerance at a larger eps than that of the points
SHARE = 0.5  # of the tolerance, at eps itself
CHECK_EVERY = 5  # iterations at most, that take long beside a check

Potentials = tuple[Array, Array]


class Found(Protocol):
    """What a start needs of a solution."""

    @property
    def f(self) -> Array:
        """Potentials (1, n)."""

    @property
    def g(self) -> Array:
        """Potentials (1, m)."""

    @property
    def n_iter(self) -> HostArray:
        """Iterations (1,)."""


class CoarseStart(NamedTuple):
    """A large problem's cost, potentials from coarser ones, options, and what these took."""

    C: Cost[Any]
    init: Potentials
    options: Options
    stages: tuple[Stage, ...]


def coarse_start(
    solve: Callable[..., Found], C: Cost[Any], a: Array, b: Array, eps: float, options: Options
) -> CoarseStart | None:
    """Return how a large problem begins; None where coarser ones do not pay."""
    tol = options.tol
    if tol is None:
        return None
    C = C.with_loss(LOSS * tol)
    levels = C.levels(a, b)
    if not levels or CELL * levels[-1][1].variance > APART * eps:
        return None
    init: Potentials | None = None
    stages: list[Stage] = []
    for costs, level in levels:
        at = max(eps, CELL * level.variance)
        rough = replace(options, tol=max(tol, ROUGH) if at > eps else SHARE * tol)
        found = solve(costs, level.a, level.b, at, rough, init=init, restrict=False, together=ALONE)
        ((_, means),) = costs.plan_means(level.a, level.b, found.f, found.g, at)
        init = level.extended(found.f, found.g, means)
        stages.append(_stage(costs, at, found))
    while at > 4 * eps:
        at /= 4
        found = solve(C, a, b, at, replace(options, tol=max(tol, ROUGH)), init=init, restrict=False, together=ALONE)
        init = found.f, found.g
        stages.append(_stage(C, at, found))
    assert init is not None
    return CoarseStart(C, init, replace(options, check_every=min(options.check_every, CHECK_EVERY)), tuple(stages))


def _stage(C: Cost[Any], eps: float, found: Found) -> Stage:
    """Return what is told of a problem that was solved on the way."""
    n, m = C.shape[-2:]
    return Stage(n, m, eps, int(found.n_iter[0]))
