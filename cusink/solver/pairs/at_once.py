"""Pairs of clouds of unequal sizes solved together on a device, in one go, without a look before the end."""

from typing import cast

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import NEARLY_ALL
from cusink.costs.clouds import point_costs
from cusink.costs.points import PointCosts
from cusink.costs.ragged import RaggedPairs, RaggedRules, RaggedSolutions, SolveRagged
from cusink.solver.pairs import tiles
from cusink.solver.pairs.given import CheckedPairs
from cusink.types import HostArray, Reach

LARGEST_PAIR = 1 << 20  # of points: one block for each pair, and larger pairs are faster on the whole device
SINGLE_ABOVE = 1e-6  # tolerance below which float32 has too few digits for any pair


def solve_at_once(
    solve: SolveRagged[PointCosts],
    given: CheckedPairs,
    eps: HostArray,
    options: Options,
    reach: Reach | None,
    limit: int | None,
) -> RaggedSolutions | None:
    """Solve the pairs with an eps (K,) each by the operator `solve`; None where the device cannot.

    Pairs that have not converged, or are too large or too steep, are not `solved`. `limit` are bytes for stored costs.
    """
    costs, pairs = as_ragged(given, eps)
    rules = RaggedRules(
        tol=options.tol or 0,
        max_iter=options.max_iter,
        check_every=options.check_every,
        single=given.computing == "float32" and (options.tol or 0) >= SINGLE_ABOVE,
        largest_pair=LARGEST_PAIR,
        memory=limit,
        steepest=tiles.STEEPEST,
        carried=tiles.CARRIED * tiles.UNIT,
        of_exponents=2 * (costs.x.shape[1] + 4) * tiles.UNIT,
        nearly_all=NEARLY_ALL,
        reach=reach,
    )
    return solve(costs, pairs, rules)


def as_ragged(given: CheckedPairs, eps: HostArray) -> tuple[PointCosts, RaggedPairs]:
    """Return the costs between all points of both sides, and the pairs, in float64."""
    x, y = (side.points.astype(np.float64) for side in (given.A, given.B))
    a, b = (side.weights.astype(np.float64) for side in (given.A, given.B))
    costs = cast("PointCosts", point_costs(given.xp, given.cloud(x, y), x, y))  # as metrics with kernels have
    return costs, RaggedPairs(a, b, (given.A.offsets, given.B.offsets), np.ascontiguousarray(eps, np.float64))
