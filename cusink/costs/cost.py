"""The operand of a call: a checked cost together with the operators of its kind and library."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, Self

import numpy as np

from cusink.connection import doors_of
from cusink.costs.at_once import AtOnce, AtOnceRules
from cusink.costs.each import apply_each, means_each
from cusink.costs.means import Means
from cusink.costs.moves import refuse_directions
from cusink.costs.operators import CoarseLevel, Data, Iteration, Operators
from cusink.deferred import cached_property
from cusink.types import Array, ArrayModule, Axis, Eps, HostArray, Index, Method, Statistic

GradientBlock = tuple[slice, slice, Array]  # problems, rows, and the gradient (problems, rows, m) of their costs
TangentBlock = tuple[slice, slice, Array, Array]  # the same, and how that gradient moves
KnownSums = tuple[Array | None, Array | None]  # over rows (B, n) and columns (B, m) of such a gradient


class Solvable(Protocol):
    """What the solver's loop needs of a cost; documents offer no more."""

    @property
    def xp(self) -> ArrayModule:
        """The array module."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""

    @property
    def stored(self) -> bool:
        """Whether an array holds all costs."""

    def to_host(self, array: Array) -> HostArray:
        """Return an array of this library as a NumPy array."""

    def range(self) -> tuple[float, float]:
        """Return numbers between which all finite costs lie."""

    def at(self, problems: HostArray) -> Self:
        """Return the costs of some problems; one that all share is itself."""

    def costs_of(self, problem: int, rows: slice) -> Array:
        """Return the costs (rows, m) of one problem."""

    def without(self, above: float) -> Self | None:
        """Return the cost with +inf for the pairs that cost more than `above`; None if it cannot hold that."""

    def exponent_rounding(self) -> float:
        """Return the relative rounding of an exponent ``(f + g - C) / eps`` in an iteration."""

    def widened(self) -> Self:
        """Return the cost in the largest precision that its iterations can have."""

    def iteration(self, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> Iteration:
        """Put problems under way."""


@dataclass(frozen=True, eq=False)
class Cost(ABC, Generic[Data]):
    """A cost (n, m), or (B, n, m) with one for each problem, as the solver takes it.

    It is made once per call, see `cusink.operand`. The operators are methods here, whose meaning
    `cusink.costs.operators` states.
    """

    data: Data
    ops: Operators[Data]

    kind: ClassVar[str]  # the word by which `cusink.connection` finds the operators
    stored: ClassVar[bool] = False  # whether `data` is an array of the costs themselves
    divisible: ClassVar[bool] = True  # whether `between` leaves bins out

    def __getstate__(self) -> tuple[Data, str]:
        return self.data, self.xp.__name__  # operators hold modules, which cannot be pickled

    def __setstate__(self, state: tuple[Data, str]) -> None:
        data, library = state
        self.__dict__.update(data=data, ops=doors_of(library)[self.kind])

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of the computation: float32 or float64."""

    @property
    def cheap_blocks(self) -> bool:
        """Whether a `block` takes hardly longer than the exponentials of its entries."""
        return True

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether the cost is symmetric; for points, whether both sides are one cloud."""

    @abstractmethod
    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""

    @abstractmethod
    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own; else the shared one."""

    @abstractmethod
    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some bins of a shared cost, or itself where it is not divisible."""

    @abstractmethod
    def own(self, side: int) -> Self:
        """Return the cost of side 0 (rows) or 1 (columns) to itself."""

    @property
    def has_own(self) -> bool:
        """Whether `own` is a cost of each side to itself."""
        return self.symmetric

    @abstractmethod
    def row_bytes(self, copies: int) -> int:
        """Return the memory of a row of pairs, for work that would take some copies of a stored cost."""

    def weighted(self, x: Array, y: Array) -> Self:
        """Return the same cost with masks (n,) or (B, n) and (m,) or (B, m) of the bins that have weight."""
        del x, y
        return self

    def squares_fit(self) -> bool:
        """Whether the dtype has room for squared distances, if the costs are powers of such."""
        return True

    def extended(self, side: int, points: Any) -> Self:
        """Return the cost between new points in the place of those of side 0 (rows) or 1 (columns)."""
        del side, points
        raise ValueError("'C' must be a cusink.PointCloud for new points; other costs know their own bins alone")

    def user_batch(self, side: int) -> int | None:
        """Return the size of the batch axis that the points of a side came with; as `user_points`."""
        raise NotImplementedError

    def user_points(self, side: int) -> tuple[Array, bool]:
        """Return points as they came, with an axis of coordinates, and if they were numbers; if `extended` exists."""
        raise NotImplementedError

    def points_adjoint(
        self, blocks: Iterable[GradientBlock], sums: KnownSums = (None, None)
    ) -> tuple[Array | None, Array | None]:
        """Pull the gradient of all costs, in blocks, back to the points of a cloud; (None, None) for other costs.

        `sums` are those over rows (B, n) and columns (B, m) of the gradient, where they are known: between clouds that
        are far apart, what those of the blocks lack is not multiplied by the distance.
        """
        del blocks, sums
        return None, None

    def axes_adjoint(self, blocks: Iterable[GradientBlock]) -> tuple[Array, ...] | None:
        """Pull the gradient of all costs, in blocks, back to the positions of the cells of a grid; None for others."""
        del blocks
        return None

    def metric_adjoint(self, blocks: Iterable[GradientBlock]) -> dict[str, Array]:
        """Pull the gradient of all costs, in blocks, back to the parameters of a metric; none for other costs."""
        del blocks
        return {}

    def direction(self, given: dict[str, Array | None]) -> Any:
        """Return a direction dC, or dx and dy of points, as `block_tangent` takes it; None if none is given."""
        refuse_directions(given, f"a cost of shape {self.shape}, which has no parameters")
        return None

    def block_tangent(self, direction: Any, problems: slice, rows: slice) -> Array:
        """Return the derivative of a `block` along a direction."""
        raise NotImplementedError

    def tangent_factors(self, direction: Any) -> tuple[Array, Array] | None:
        """Return thin matrices (n, r) and (m, r), or some of each problem, of which `block_tangent` is the product.

        None where there are none.
        """
        factors = getattr(self.data, "tangent_factors", None)
        return None if factors is None or direction is None else factors(self.xp, direction.data)

    def factors(self) -> tuple[Array, Array] | None:
        """Return thin matrices (n, r) and (m, r), or some of each problem, in float64, whose product are the costs.

        None where there are none. Costs far below the largest ones lose digits by them.
        """
        factors = getattr(self.data, "factors", None)
        return None if factors is None else factors(self.xp)

    def affine_tangent(self, direction: Any) -> tuple[Array, Array] | None:
        """Return rows (n,) or (B, n) and columns whose sum is most of `block_tangent`; None where that is not large."""
        del direction
        return None

    def points_curvature(
        self, blocks: Iterable[TangentBlock], direction: Any, sums: KnownSums = (None, None)
    ) -> tuple[Array | None, Array | None]:
        """Return the derivative of `points_adjoint` along a direction, or None, in which the gradient moves too.

        `sums` are how its sums move.
        """
        del direction, sums
        for _ in blocks:  # whoever makes them adds up more than points need
            pass
        return None, None

    @property
    def ndim(self) -> int:
        """2 for a cost that all problems share, 3 for one each."""
        return len(self.shape)

    @property
    def shared(self) -> bool:
        """Whether all problems have this cost."""
        return self.ndim == 2

    @property
    def xp(self) -> ArrayModule:
        """The array module."""
        return self.ops.xp

    def to_host(self, array: Array) -> HostArray:
        """Return an array of this library as a NumPy array."""
        return self.ops.to_host(array)

    def kept(self) -> "Cost[Any]":
        """Return the costs between points as an array in float64, where they may be kept; else the cost itself."""
        return self

    def in_units_of(self, eps: HostArray) -> "Cost[Any] | None":
        """Return stored costs divided by an eps (B,) each; None where they are shared, or cannot be stored."""
        del eps
        return None

    def softmin(self, logits: Array, eps: Eps, axis: Axis) -> Array:
        """Return the soft minimum over `axis`."""
        if isinstance(eps, np.ndarray):
            return apply_each(self, eps, lambda C, eps, q: C.softmin(q, eps, axis), logits, linear=True)
        return self.ops.softmin(self.data, logits, eps, axis)

    def repeated_softmin(self, eps: float) -> Callable[[Array, Axis], Array]:
        """Return `softmin` as a function of logits and axis, prepared for many calls."""
        return self.ops.repeated_softmin(self.data, eps)

    def plan(self, p: Array, q: Array, eps: Eps) -> Array:
        """Return the plans (B, n, m) of logits."""
        if isinstance(eps, np.ndarray):
            return apply_each(self, eps, lambda C, eps, p, q: C.plan(p, q, eps), p, q)
        return self.ops.plan(self.data, p, q, eps)

    def apply_plan(self, p: Array, q: Array, v: Array, eps: Eps, axis: Axis) -> Array:
        """Multiply the plans of logits with vectors."""
        if isinstance(eps, np.ndarray):
            return apply_each(self, eps, lambda C, eps, p, q, v: C.apply_plan(p, q, v, eps, axis), p, q, v)
        return self.ops.apply_plan(self.data, p, q, v, eps, axis)

    def transport_cost(self, p: Array, q: Array, eps: Eps) -> Array:
        """Return ``<P, C>`` (B,)."""
        if isinstance(eps, np.ndarray):
            return apply_each(self, eps, lambda C, eps, p, q: C.transport_cost(p, q, eps), p, q, linear=True)
        return self.ops.transport_cost(self.data, p, q, eps)

    def c_transform(self, potential: Array, axis: Axis) -> Array:
        """Return the minimum of ``C - potential`` over `axis`."""
        return self.ops.c_transform(self.data, potential, axis)

    def range(self) -> tuple[float, float]:
        """Return numbers between which all finite costs lie."""
        return self._range

    @cached_property
    def _range(self) -> tuple[float, float]:
        return self.ops.cost_range(self.data)

    def span(self, x: Array, y: Array) -> tuple[float, float]:
        """Return numbers between which the costs of bins with weight lie, given masks (B, n) and (B, m)."""
        del x, y
        return self.range()

    def known_statistic(self, name: Statistic) -> float | None:
        """Return a statistic of the costs if it is known without looking at them."""
        del name
        return None

    def largest(self) -> float:
        """Return a number that no finite cost exceeds in size."""
        return max(map(abs, self.range()))

    def block(self, problems: slice, rows: slice) -> Array:
        """Return the costs of some rows as an array (rows, m) or (problems, rows, m)."""
        return self.ops.cost_block(self.data, problems, rows)

    def bilinear(self, x: Array, y: Array) -> Array:
        """Return ``x' C y`` (B,)."""
        return self.ops.bilinear(self.data, x, y)

    def costs_of(self, problem: int, rows: slice) -> Array:
        """Return the costs (rows, m) of one problem."""
        block = self.block(slice(problem, problem + 1), rows)
        return block if self.shared else block[0]

    def without(self, above: float) -> Self | None:
        """Return the cost with +inf for the pairs that cost more than `above`; None if it cannot hold that."""
        del above
        return None

    def exponent_rounding(self) -> float:
        """Return the relative rounding of an exponent ``(f + g - C) / eps`` in an iteration."""
        return float(np.finfo(self.dtype).eps) / 2

    def widened(self) -> Self:
        """Return the cost in float64."""
        return self.astype(np.float64)

    def iteration(self, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> Iteration:
        """Put problems under way."""
        return self.ops.iteration(self.data, a, b, eps, f, g, method)

    def solve_at_once(self, a: Array | None, b: Array | None, B: int, eps: float, rules: AtOnceRules) -> AtOnce | None:
        """Return solutions of B problems whose weights nobody has looked at; None where that is not to be had."""
        solve = self.ops.solve_at_once
        return None if solve is None else solve(self.data, a, b, B, eps, rules)

    def levels(self, a: Array, b: Array) -> "list[tuple[Self, CoarseLevel[Data]]]":
        """Return coarse levels of a problem with weights a (1, n) and b (1, m), coarsest first, and their costs."""
        if self.ops.levels is None:
            return []
        return [(replace(self, data=level.costs), level) for level in self.ops.levels(self.data, a, b)]

    def with_loss(self, loss: float) -> Self:
        """Return the cost, of a large cloud with leave to leave out this share of a sum and to count it as error."""
        del loss
        return self

    def plan_means(self, a: Array, b: Array, f: Array, g: Array, eps: Eps) -> Iterator[tuple[HostArray, Means]]:
        """Iterate over groups of problems and the means under their plans."""
        if isinstance(eps, np.ndarray):
            return means_each(self, a, b, f, g, eps)
        return self.ops.plan_means(self.data, a, b, f, g, eps)
