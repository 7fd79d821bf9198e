"""Gradients of the values of pairs that were solved together on a device: one launch for all of them."""

from typing import Any

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.points import FAR_APART
from cusink.costs.pulled import to_points
from cusink.costs.ragged import RaggedFit, RaggedGradients
from cusink.gradients.system import ROUNDS, LinearSolve
from cusink.solver.pairs.at_once import LARGEST_PAIR, as_ragged
from cusink.solver.pairs.solve import SolvedPairs
from cusink.types import Array


def gradients_at_once(
    solved: SolvedPairs[Any], cotangents: dict[str, float | Array | None], how: LinearSolve
) -> RaggedGradients | None:
    """Return the gradients of values with cotangents, numbers or arrays (K,); None where batches are to be made."""
    given, together = solved.given, solved.together
    pull = solved.ops.adjoint_ragged
    if pull is None or together is None or not solved.balanced or not together.solved.any():
        return None
    xp, K = given.xp, given.count
    of_each = {name: xp.zeros(K) + (0 if x is None else x) for name, x in cotangents.items()}
    of_cost, of_entropic = of_each["grad_cost"], of_each["grad_entropic_cost"]
    level = of_cost + of_each["grad_reg_cost"] + of_entropic
    costs, pairs = as_ragged(given, np.broadcast_to(solved.eps, K))
    rules = RaggedFit(
        tol=how.tol,
        max_iter=how.max_iter,
        rounds=ROUNDS,
        single=given.computing == "float32",
        largest_pair=LARGEST_PAIR,
        memory=solved.memory_limit,
        apart=FAR_APART,
    )
    which, potentials = np.flatnonzero(together.solved), (together.f, together.g)
    found = pull(costs, pairs, which, potentials, (of_cost, level, of_entropic), rules)
    if found is None:
        return None
    x, y = found.x, found.y
    if costs.embedding is not None and costs.cloud is not None:
        x, y = to_points(xp, costs.embedding, costs.cloud, x, y)
    return RaggedGradients(*(narrowed(part, given.dtype, xp) for part in (found.a, found.b, x, y, found.eps)))
