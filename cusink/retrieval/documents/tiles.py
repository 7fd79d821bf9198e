"""Documents on the CPU: some against many, every pair with its costs gathered from one array for all of them."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cusink.backends.numpy import dense
from cusink.backends.numpy.documents import iteration
from cusink.backends.numpy.documents.buffers import Buffers, PairCosts
from cusink.backends.numpy.documents.costs import costs_between
from cusink.convergence.options import Options
from cusink.retrieval.documents.supports import RaggedWeights
from cusink.solver.loop import solve
from cusink.solver.problem import Problem
from cusink.solver.symmetric import self_potentials
from cusink.solver.values import values
from cusink.types import HostArray


class DocumentSolutions(NamedTuple):
    """Solved pairs in NumPy, arrays of one shape."""

    cost: HostArray
    reg_cost: HostArray
    error: HostArray
    n_iter: HostArray
    converged: HostArray

    @classmethod
    def empty(cls, *shape: int) -> "DocumentSolutions":
        """Return the result of pairs of which none can be solved."""
        cost, reg_cost, error = np.full((3, *shape), np.nan)
        return cls(cost, reg_cost, error, np.zeros(shape, np.int64), np.ones(shape, bool))


@dataclass(frozen=True, eq=False)
class PaddedDocuments:
    """Documents as arrays (D, m): `weights`, 0 beyond the `sizes`, and `index` into the points `used` by all of them.

    Beyond its size a document's index repeats its first point.
    """

    used: HostArray
    index: HostArray
    weights: HostArray
    sizes: HostArray

    @classmethod
    def of(cls, side: RaggedWeights, items: HostArray, points: int) -> "PaddedDocuments":
        """Return the `items`, an index array, none of them empty; `points` is the number of points in all."""
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
        return cls(used, position[places], np.where(inside, side.weights[entries], 0), sizes)


@dataclass(frozen=True, eq=False)
class Queries:
    """Items as `weights` (Q, n), 0 beyond their sizes, and `costs` (Q, words, n) to the words of `PaddedDocuments`."""

    weights: HostArray
    costs: HostArray

    @classmethod
    def of(cls, items: list[tuple[HostArray, HostArray]], columns: PaddedDocuments, C: Any) -> "Queries":
        """Return items, each (weights (n,), places (n,))."""
        longest = max(len(places) for _, places in items)
        weights = np.zeros((len(items), longest), items[0][0].dtype)
        costs = np.empty((len(items), len(columns.used), longest), weights.dtype)
        for k, (own, places) in enumerate(items):
            weights[k, : len(places)] = own
            costs[k, :, : len(places)] = costs_between(C, places, columns.used)
            costs[k, :, len(places) :] = costs[k, :, :1]
        return cls(weights, costs)


class Setting(NamedTuple):
    """The regularisation, numbers that enclose the costs of the collection, and memory that calls share."""

    eps: float
    span: tuple[float, float]
    buffers: Buffers


def solve_listed(
    queries: Queries, columns: PaddedDocuments, i: HostArray, j: HostArray, setting: Setting, options: Options
) -> DocumentSolutions:
    """Solve the pairs of queries i (K,) with documents j (K,): arrays (K,)."""
    count, words, longest = queries.costs.shape
    index = columns.index[j] + (i * words)[:, None]
    block = queries.costs.reshape(-1, longest)
    costs = PairCosts(block, index, columns.sizes[j], setting.span, setting.buffers)
    a, b = queries.weights[i], columns.weights[j]
    f, g, cost, error, n_iter, converged = _solve(a, b, costs, setting.eps, options)
    problem = Problem(a=a, b=b, C=costs, eps=setting.eps, f=f, g=g, dtype=a.dtype, batched=True)
    reg_cost, _ = values(np, problem)
    return DocumentSolutions(cost, reg_cost, error, n_iter, converged)


def solve_self(weights: HostArray, places: HostArray, C: Any, eps: float, options: Options) -> DocumentSolutions:
    """Solve one item with itself: arrays (1,), without `cost`."""
    block = costs_between(C, places, places)
    limits = {"max_iter": options.max_iter, "tol": options.tol}
    _, reg_cost, error, n_iter, converged = self_potentials(dense, weights[None], block, eps, **limits)
    return DocumentSolutions(np.full(1, np.nan), reg_cost, error, n_iter, converged)


# In place of the operators of a stored cost: only what the loop needs.
_OPERATORS = SimpleNamespace(xp=np, to_host=np.asarray, cost_range=iteration.cost_range, Iteration=iteration.Iteration)


def _solve(a: HostArray, b: HostArray, costs: PairCosts, eps: float, options: Options) -> Any:
    """Solve problems a (D, n), b (D, m) with `PairCosts`; method "log" has no use for their kernels."""
    keywords = dataclasses.asdict(options)
    if options.method != "log":
        return solve(_OPERATORS, a, b, costs, eps, None, **keywords)
    costs.buffers.restart()  # the pairs before are solved
    C = np.ascontiguousarray(np.swapaxes(costs.gather(np.arange(len(a))), 1, 2))
    return solve(dense, a, b, C, eps, None, **keywords)
