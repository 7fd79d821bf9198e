"""Documents on the CPU: some against many, every pair with its costs cut out of one block for all of them."""

from dataclasses import dataclass

import numpy as np

from cusink.backends.numpy.documents.buffers import PairCosts
from cusink.backends.numpy.documents.costs import costs_between
from cusink.backends.numpy.documents.iteration import Iteration
from cusink.operand import dense_cost
from cusink.solver.loop import solve
from cusink.solver.symmetric import self_potentials
from cusink.solver.values import weighted_sum

__all__ = [
    "Padded",
    "Queries",
    "padded",
    "queries_of",
    "solve_listed",
    "solve_self",
]


@dataclass(frozen=True, eq=False)
class Padded:
    """Documents as arrays (D, m): `weights`, 0 beyond the `sizes`, and `index` into the points `used` by all of them.

    Beyond its size a document's index repeats its first point.
    """

    used: np.ndarray
    index: np.ndarray
    weights: np.ndarray
    sizes: np.ndarray


def padded(side, items, points):
    """The `items`, an index array of a `Supports`, none of them empty; `points` is how many there are in all."""
    sizes = side.sizes[items]
    step = np.arange(sizes.max())
    inside = step < sizes[:, None]
    entries = side.offsets[items][:, None] + np.where(inside, step, 0)
    places = side.places[entries]
    mask = np.zeros(points, bool)
    mask[places] = True
    used = np.flatnonzero(mask)
    position = np.empty(points, np.int64)
    position[used] = np.arange(len(used))
    return Padded(used, position[places], np.where(inside, side.weights[entries], 0), sizes)


@dataclass(frozen=True, eq=False)
class Queries:
    """Items as `weights` (Q, n), 0 beyond their sizes, with `costs` (Q, words, n) to the words that `Padded` uses."""

    weights: np.ndarray
    costs: np.ndarray


def queries_of(items, documents, C):
    """`Queries` of items, each (weights (n,), places (n,)), for `Padded` documents."""
    longest = max(len(places) for _, places in items)
    weights = np.zeros((len(items), longest), items[0][0].dtype)
    costs = np.empty((len(items), len(documents.used), longest), weights.dtype)
    for k, (own, places) in enumerate(items):
        weights[k, : len(places)] = own
        costs[k, :, : len(places)] = costs_between(C.data, places, documents.used)
        costs[k, :, len(places) :] = costs[k, :, :1]
    return Queries(weights, costs)


def solve_listed(queries, documents, i, j, span, buffers, eps, options):
    """Solve the pairs of `Queries` i (K,) with `Padded` documents j (K,); a dict of arrays (K,).

    `span` encloses the costs of the collection; `buffers` is memory that calls share.
    """
    count, words, longest = queries.costs.shape
    index = documents.index[j] + (i * words)[:, None]
    costs = PairCosts(queries.costs.reshape(-1, longest), index, documents.sizes[j], span, buffers)
    a, b = queries.weights[i], documents.weights[j]
    f, g, cost, error, n_iter, converged = solve_pairs(a, b, costs, eps, options)
    reg_cost = weighted_sum(np, a, f) + weighted_sum(np, b, g)
    return {"cost": cost, "reg_cost": reg_cost, "error": error, "n_iter": n_iter, "converged": converged}


def solve_self(weights, places, C, eps, options):
    """Solve one item against itself; a dict of arrays (1,)."""
    block = dense_cost(costs_between(C.data, places, places))
    _, reg_cost, error, n_iter, converged = self_potentials(block, weights[None], eps, options)
    return {"reg_cost": reg_cost, "error": error, "n_iter": n_iter, "converged": converged}


@dataclass(frozen=True, eq=False)
class DocumentCost:
    """`PairCosts` as the solver's loop takes them, see `cusink.costs.cost.Solvable`."""

    costs: PairCosts
    xp = np

    @property
    def dtype(self):
        """Of the computation."""
        return self.costs.dtype

    @staticmethod
    def to_host(array):
        """Return `array`, which is NumPy's."""
        return array

    def range(self):
        """Return numbers between which all costs of the collection lie."""
        return self.costs.span

    def iteration(self, a, b, eps, f, g, method):
        """Put problems under way."""
        return Iteration(self.costs, a, b, eps, f, g, method)


def solve_pairs(a, b, costs, eps, options):
    """Solve problems a (D, n), b (D, m) with `PairCosts`; method "log" has no use for their kernels."""
    if options.method != "log":
        return solve(DocumentCost(costs), a, b, eps, options)
    costs.buffers.restart()  # of the pairs before
    C = np.ascontiguousarray(np.swapaxes(costs.gather(np.arange(len(a))), 1, 2))
    return solve(dense_cost(C), a, b, eps, options)
