"""Documents on the CPU: some against many, every pair with its costs gathered from one array for all of them."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cusink.backends.numpy.documents.buffers import Buffers, PairCosts
from cusink.backends.numpy.documents.costs import costs_between
from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.costs.operators import Iteration
from cusink.operand import dense_cost
from cusink.retrieval.documents.supports import RaggedWeights
from cusink.solver.loop import solve
from cusink.solver.values import weighted_sum
from cusink.types import Array, ArrayModule, HostArray, Method


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


class Words(NamedTuple):
    """The words of all documents one after the other: their places (N,) and weights (N,), and `starts` (D,)."""

    places: HostArray
    weights: HostArray
    starts: HostArray


@dataclass(frozen=True, eq=False)
class Queries:
    """Items as `weights` (Q, n), 0 beyond their sizes, and `costs` (Q, words, n) to the words of `PaddedDocuments`."""

    weights: HostArray
    costs: HostArray

    @classmethod
    def of(cls, items: list[tuple[HostArray, HostArray]], columns: PaddedDocuments, C: Cost[Any]) -> "Queries":
        """Return items, each (weights (n,), places (n,))."""
        longest = max(len(places) for _, places in items)
        weights = np.zeros((len(items), longest), items[0][0].dtype)
        costs = np.empty((len(items), len(columns.used), longest), weights.dtype)
        for k, (own, places) in enumerate(items):
            weights[k, : len(places)] = own
            costs[k, :, : len(places)] = costs_between(C.data, places, columns.used)
            costs[k, :, len(places) :] = costs[k, :, :1]
        return cls(weights, costs)


class Setting(NamedTuple):
    """The regularisation, numbers that enclose the costs of the collection, and memory that calls share."""

    eps: float
    span: tuple[float, float]
    buffers: Buffers


@dataclass(frozen=True, eq=False)
class DocumentCost:
    """`PairCosts` as the loop of the solver takes them, see `cusink.costs.cost.Solvable`, and memory for kernels."""

    stored: ClassVar[bool] = False  # pair by pair
    costs: PairCosts
    buffers: Buffers
    xp: ArrayModule = np

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        return self.costs.dtype

    def to_host(self, array: HostArray) -> HostArray:
        """Return the array, which is on the host."""
        return array

    def range(self) -> tuple[float, float]:
        """Return numbers between which all costs of the collection lie."""
        return self.costs.span

    def at(self, problems: HostArray) -> "DocumentCost":
        """Return the costs of some pairs."""
        return replace(self, costs=self.costs.at(problems))

    def costs_of(self, problem: int, rows: slice) -> Array:
        """Return the costs (rows, m) of one pair, with padding."""
        return self.costs.array()[problem, rows]

    def without(self, above: float) -> None:
        """Return None: costs of a collection are finite."""
        del above

    def exponent_rounding(self) -> float:
        """Return the rounding of float64, in which exponents are taken."""
        return float(np.finfo("float64").eps) / 2

    def widened(self) -> "DocumentCost":
        """Return the same costs: their kernels have the dtype of the weights."""
        return self

    def iteration(self, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> Iteration:
        """Put problems under way."""
        from cusink.backends.numpy.documents import iteration

        return iteration.Iteration(self.costs, a, b, eps, f, g, method, self.buffers)


def solve_listed(
    queries: Queries, columns: PaddedDocuments, i: HostArray, j: HostArray, setting: Setting, options: Options
) -> DocumentSolutions:
    """Solve the pairs of queries i (K,) with documents j (K,): arrays (K,)."""
    count, words, longest = queries.costs.shape
    index = columns.index[j] + (i * words)[:, None]
    block = queries.costs.reshape(-1, longest)
    costs = PairCosts(block, index, columns.sizes[j], setting.span)
    a, b = queries.weights[i], columns.weights[j]
    # Method "log" has no use for the kernels of pairs.
    C = dense_cost(costs.array()) if options.method == "log" else DocumentCost(costs, setting.buffers)
    found = solve(C, a, b, setting.eps, options, span=setting.span)
    reg_cost = weighted_sum(np, a, found.f) + weighted_sum(np, b, found.g)
    return DocumentSolutions(found.cost, reg_cost, found.error, found.n_iter, found.converged)
