"""Gradients of values and divergences of pairs that were solved together on a device: one launch for all of them."""

from typing import Any

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.points import FAR_APART
from cusink.costs.pulled import to_points
from cusink.costs.ragged import RaggedFit, RaggedGradients
from cusink.gradients.system import ROUNDS, LinearSolve
from cusink.solver.pairs.at_once import LARGEST_PAIR, as_ragged
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import by_problem
from cusink.solver.pairs.selves import with_selves
from cusink.solver.pairs.solve import SolvedPairs
from cusink.types import Array, HostArray


def gradients_at_once(
    solved: SolvedPairs[Any], cotangents: dict[str, float | Array | None], how: LinearSolve
) -> RaggedGradients | None:
    """Return the gradients of values with cotangents, numbers or arrays (K,); None where batches are to be made."""
    given, together = solved.given, solved.together
    if given.ground.factor is not None:  # by which batches have a gradient, too
        return None
    if solved.ops.adjoint_ragged is None or together is None or not together.solved.any():
        return None
    if not solved.balanced and cotangents["grad_entropic_cost"] is not None:
        return None
    xp, K = given.xp, given.count
    of_each = {name: xp.zeros(K) + (0 if x is None else x) for name, x in cotangents.items()}
    of_cost, of_entropic = of_each["grad_cost"], of_each["grad_entropic_cost"]
    level = of_cost + of_each["grad_reg_cost"] + of_entropic
    which, potentials = np.flatnonzero(together.solved), (together.f, together.g)
    eps = np.broadcast_to(solved.eps, K)
    return _pulled(solved, given, eps, which, potentials, together.shift, (of_cost, level, of_entropic), how, FAR_APART)


def divergence_gradients_at_once(
    solved: SolvedPairs[Any], grad: float | Array
) -> tuple[RaggedGradients, RaggedGradients, RaggedGradients] | None:
    """Return the gradients of divergences with a cotangent (K,): shares of the pairs and of both measures alone.

    None where batches are to be made.
    """
    given, together = solved.given, solved.together
    if given.ground.factor is not None:
        return None
    if solved.ops.adjoint_ragged is None or together is None or together.own is None:
        return None
    if not together.solved.any():
        return None
    xp, K, own = given.xp, given.count, together.own
    level, none = xp.zeros(K) + grad, xp.zeros(3 * K)
    level = xp.concatenate([level, -level / 2, -level / 2])
    which = np.flatnonzero(np.tile(together.solved, 3))
    potentials = (xp.concatenate([together.f, own.f, own.g]), xp.concatenate([together.g, own.f, own.g]))
    shift = None if together.shift is None else xp.concatenate([together.shift, none[K:]])
    eps, every = np.tile(np.broadcast_to(solved.eps, K), 3), with_selves(given, solved.balanced)
    # Without cotangents of the costs there is no system to solve.
    found = _pulled(solved, every, eps, which, potentials, shift, (none, level, none), LinearSolve(1.0, 1), 0.0)
    if found is None:
        return None
    weights, points = (by_problem(given.A, given.B, *each) for each in ((found.a, found.b), (found.x, found.y)))
    of_eps, of_reach = found.eps.reshape(3, K), [None] * 3 if found.reach is None else found.reach.reshape(3, K, 2)
    of_pair, of_a, of_b = (RaggedGradients(*weights[k], *points[k], of_eps[k], of_reach[k]) for k in range(3))
    return of_pair, of_a, of_b


def _pulled(
    solved: SolvedPairs[Any],
    given: CheckedPairs,
    eps: HostArray,
    which: HostArray,
    potentials: tuple[Array, Array],
    shift: Array | None,
    cotangents: tuple[Array, Array, Array],
    how: LinearSolve,
    apart: float,
) -> RaggedGradients | None:
    """Return gradients of the pairs `which` of those `given`, in the dtype of the user."""
    assert solved.ops.adjoint_ragged is not None
    costs, pairs = as_ragged(given, eps)
    rules = RaggedFit(
        tol=how.tol,
        max_iter=how.max_iter,
        rounds=ROUNDS,
        single=given.computing == "float32",
        largest_pair=LARGEST_PAIR,
        memory=solved.memory_limit,
        apart=apart,
        reach=solved.reach,
    )
    found = solved.ops.adjoint_ragged(costs, pairs, which, potentials, shift, cotangents, rules)
    if found is None:
        return None
    x, y = found.x, found.y
    if costs.embedding is not None and costs.cloud is not None:
        x, y = to_points(given.xp, costs.embedding, costs.cloud, x, y)
    every = (found.a, found.b, x, y, found.eps, found.reach)
    return RaggedGradients(*(None if part is None else narrowed(part, given.dtype, given.xp) for part in every))
