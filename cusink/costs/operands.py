"""The operands: one for each kind of cost."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from cusink.connection import doors_of
from cusink.costs.between import BetweenPoints
from cusink.costs.blocks import blocks
from cusink.costs.cost import Cost, GradientBlock, KnownSums, TangentBlock
from cusink.costs.each import per_problem
from cusink.costs.moves import like, refuse_directions
from cusink.costs.parameters import parameter_gradients
from cusink.costs.pulled import PointMoves, add_curvature, image_moves, to_points, to_user_points
from cusink.types import Array, HostArray, Index

SYMMETRY_ENTRIES = 1 << 16  # compared at a time
COPIES_IN_UNITS = 6  # of the costs that their work takes where they are stored


@dataclass(frozen=True, eq=False)
class DenseCost(Cost[Array]):
    """An array (n, m) or (B, n, m) of costs; +inf forbids a pair."""

    kind: ClassVar[str] = "dense"
    stored: ClassVar[bool] = True
    roundings: float = 1.0  # that an exponent is off by, those of a cost that was made of points among them

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def symmetric(self) -> bool:
        """Whether the array equals its transpose."""
        C = self.data
        return bool(C.shape[0] == C.shape[1]) and all(
            bool((C[rows] == C[:, rows].T).all()) for _, rows in blocks(1, len(C), len(C), SYMMETRY_ENTRIES)
        )

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype, copy=False))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own."""
        return self if self.shared else replace(self, data=self.data[problems])

    def in_units_of(self, eps: HostArray) -> Self | None:
        """Return costs divided by an eps (B,) each; None where they are shared."""
        if self.shared:
            return None
        with np.errstate(over="ignore"):  # a cost so far above eps forbids its pair
            return replace(self, data=self.data / per_problem(self.xp, eps, self.data))

    def without(self, above: float) -> Self:
        """Return the cost with +inf for the pairs that cost more than `above`."""
        return replace(self, data=self.xp.where(self.data > above, self.data.dtype.type(np.inf), self.data))

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some bins; without a copy, where these are all."""
        C = self.data[:, columns] if len(columns) < self.shape[1] else self.data
        return replace(self, data=self.xp.ascontiguousarray(C[rows] if len(rows) < len(C) else C))

    def direction(self, given: dict[str, Array | None]) -> Array | None:
        """Return dC, or dC_aa or dC_bb of a divergence, in float64, in the shape of the cost."""
        refuse_directions({"dx": given["dx"], "dy": given["dy"]}, "a stored cost, which has no points")
        ((name, dC),) = ((name, x) for name, x in given.items() if name not in ("dx", "dy"))
        if dC is not None and dC.ndim == self.ndim + 1 and len(dC) == 1:
            dC = dC[0]  # of a batch of one
        return None if dC is None else like(name, dC, self.shape, self.xp)

    def block_tangent(self, direction: Array, problems: slice, rows: slice) -> Array:
        """Return a block of dC."""
        return direction[rows] if self.shared else direction[problems, rows]

    def own(self, side: int) -> Self:
        """Return the cost itself, which is between bins that both sides share."""
        del side
        return self

    def span(self, x: Array, y: Array) -> tuple[float, float]:
        """Return numbers between which the finite costs of bins with weight lie, given masks (B, n) and (B, m)."""
        if x.all() and y.all():
            return self.range()
        rows, columns = x.any(axis=0), y.any(axis=0)
        if rows.all() and columns.all():
            return self.range()
        return self.ops.cost_range(self.xp.ascontiguousarray(self.data[..., rows, :][..., columns]))

    def exponent_rounding(self) -> float:
        """Return the rounding of float64 on the host, which takes exponents in it, and of the dtype on a device."""
        return float(np.finfo("float64" if self.xp is np else self.dtype.name).eps) / 2 * self.roundings

    def row_bytes(self, copies: int) -> int:
        """Return the size of that many copies."""
        return copies * int(self.data.size) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class PointCost(Cost[BetweenPoints]):
    """The cost between points as an operand."""

    kind: ClassVar[str] = "points"

    def __setstate__(self, state: tuple[BetweenPoints, str]) -> None:
        self.__dict__.update(data=state[0], ops=doors_of(state[1])[state[0].kind])

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)`` or ``(B, n, m)``."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the computation."""
        return self.data.dtype

    @property
    def cheap_blocks(self) -> bool:
        """Whether the points have few coordinates, which are subtracted one by one."""
        return self.data.cheap_blocks

    def exponent_rounding(self) -> float:
        """Return the relative rounding of an exponent."""
        return super().exponent_rounding() * self.data.roundings

    @property
    def symmetric(self) -> bool:
        """Whether both sides are one cloud, and its costs symmetric."""
        return self.data.symmetric

    def astype(self, dtype: Any) -> Self:
        """Return the same cost in another precision."""
        return replace(self, data=self.data.astype(dtype))

    def at(self, problems: Index) -> Self:
        """Return the costs of some problems, where each has its own."""
        return self if self.shared else replace(self, data=self.data.at(problems))

    def kept(self) -> Cost[Any]:
        """Return the costs as an array in float64, where they may be kept; else the cost itself."""
        make = self.ops.kept_costs
        costs = None if make is None else make(self.data)
        if costs is None:
            return self
        return DenseCost(costs, doors_of(self.xp.__name__)["dense"], self.data.astype(np.float64).roundings)

    def in_units_of(self, eps: HostArray) -> DenseCost | None:
        """Return stored costs divided by an eps (B,) each; None where they are shared, or would take too much."""
        size, data = math.prod(self.shape) * self.dtype.itemsize, self.data
        if self.shared or COPIES_IN_UNITS * size > data.memory_limit:
            return None
        costs = data.block(self.xp)
        with np.errstate(over="ignore"):
            costs /= per_problem(self.xp, eps, costs)
        return DenseCost(costs, doors_of(self.xp.__name__)["dense"])

    def between(self, rows: Array, columns: Array) -> Self:
        """Return the cost between some points."""
        return replace(self, data=self.data.take(rows, columns))

    @property
    def has_own(self) -> bool:
        """Whether the costs of each cloud to itself are symmetric."""
        return self.data.has_own

    def own(self, side: int) -> Self:
        """Return the cost of the points of one side to themselves."""
        return replace(self, data=self.data.own(side))

    def weighted(self, x: Array, y: Array) -> Self:
        """Return the same cost with masks of the points that have weight, which alone decide how large it is."""
        return replace(self, data=self.data.weighted(x, y))

    def squares_fit(self) -> bool:
        """Whether the dtype has room for the squared distances behind the costs."""
        return self.data.squares_fit(self.xp)

    def with_loss(self, loss: float) -> Self:
        """Return the cost that may leave out a share of a sum."""
        return replace(self, data=replace(self.data, loss=loss))

    def extended(self, side: int, points: Any) -> Self:
        """Return the cost between new points in the place of those of a side."""
        assert self.data.cloud is not None
        return replace(self, data=self.data.cloud._costs_with(self.xp, self.data, side, points))

    def user_points(self, side: int) -> tuple[Array, bool]:
        """Return the points of a side, and whether they came as numbers."""
        data, flat = self.data, self.data.cloud.flat if self.data.cloud is not None else (False, False)
        return (data.given or (data.x, data.y))[side], bool(flat[0] if flat[side] is None else flat[side])

    def user_batch(self, side: int) -> int | None:
        """Return the size of the batch axis that the points of a side came with."""
        assert self.data.cloud is not None
        return self.data.cloud.batches[side]

    def row_bytes(self, copies: int) -> int:
        """Return the memory of the kernels that may be kept, and of the points."""
        n, m = self.shape[-2:]
        return min(copies * n * m * self.dtype.itemsize, self.data.memory_limit) + self.data.point_bytes

    def points_adjoint(
        self, blocks: Iterable[GradientBlock], sums: KnownSums = (None, None)
    ) -> tuple[Array, Array | None]:
        """Pull the gradient of all costs back to the user's points, summed over problems that share a cloud."""
        xp, costs, excess = self.xp, self.data, self._excess_of(sums)

        def pulled() -> Iterator[tuple[slice, slice, Array, Array]]:
            for problems, rows, gradient in blocks:
                gradient = _total(gradient) if self.shared else gradient
                self._add_sums(excess, problems, rows, gradient)
                yield problems, rows, *costs.block_adjoint(xp, gradient, problems, rows)

        (gx, gy), cloud = self._without(excess, self._summed(pulled())), costs.cloud
        assert cloud is not None
        return to_user_points(xp, cloud, to_points(xp, costs.embedding, cloud, gx, gy))

    def metric_adjoint(self, blocks: Iterable[GradientBlock]) -> dict[str, Array]:
        """Pull the gradient of all costs, in blocks, back to the parameters of the metric, by name."""
        return parameter_gradients(self.xp, self.data, blocks)

    def direction(self, given: dict[str, Array | None]) -> PointMoves | None:
        """Return how the points move."""
        refuse_directions({"dC": given["dC"]}, "a PointCloud, whose points may move")
        if not self.data.movable:
            refuse_directions(given, "a 'metric' that is a function, of which only the gradient is known")
        cloud, xp = self.data.cloud, self.xp
        assert cloud is not None
        one = cloud.x is cloud.y
        if one:
            refuse_directions({"dy": given["dy"]}, "a PointCloud of 'x' alone, which moves on both sides")
        if given["dx"] is None and given["dy"] is None:
            return None
        moves = []
        for name, points, flat in zip(("dx", "dy"), (cloud.x, cloud.y), cloud.flat, strict=True):
            move = given["dx" if one else name]
            if move is None:
                moves.append(xp.zeros(points.shape))
                continue
            on_a_line = points.shape[-1] == 1 and move.shape == points.shape[:-1]  # as numbers
            if (cloud.flat[0] if one else flat) or on_a_line:
                move = move[..., None]
            moves.append(like(name, move, points.shape, xp))
        return self._moves(moves[0], moves[1])

    def _moves(self, x: Array, y: Array) -> PointMoves:
        """Return moves of the points of the user, and those of the points of the data that follow."""
        return PointMoves((x, y), image_moves(self.xp, self.data, x, y))

    def block_tangent(self, direction: PointMoves, problems: slice, rows: slice) -> Array:
        """Return the derivative of a block while the points move."""
        return self.data.block_tangent(self.xp, direction.data, problems, rows)

    def affine_tangent(self, direction: PointMoves) -> tuple[Array, Array] | None:
        """Return the part of a tangent that goes with the distance of two clouds, by rows and by columns."""
        return self.data.affine_tangent(direction.data)

    def points_curvature(
        self, blocks: Iterable[TangentBlock], direction: PointMoves | None, sums: KnownSums = (None, None)
    ) -> tuple[Array, Array | None]:
        """Return the derivative of `points_adjoint` while the points move, or stay, and the gradient moves."""
        xp, costs, excess = self.xp, self.data, self._excess_of(sums)
        cloud, embedding = costs.cloud, costs.embedding
        assert cloud is not None
        moves = self._moves(xp.zeros(cloud.x.shape), xp.zeros(cloud.y.shape)) if direction is None else direction
        plain = [xp.zeros(points.shape) for points in (costs.x, costs.y)]  # the gradient, for images

        def pulled() -> Iterator[tuple[slice, slice, Array, Array]]:
            for problems, rows, gradient, tangent in blocks:
                if self.shared:
                    gradient, tangent = _total(gradient), _total(tangent)
                if embedding is not None:
                    of_rows, of_columns = costs.block_adjoint(xp, gradient, problems, rows)
                    self._add(plain, problems, rows, of_rows, of_columns)
                self._add_sums(excess, problems, rows, tangent)
                yield problems, rows, *costs.block_curvature(xp, gradient, tangent, moves.data, problems, rows)

        gx, gy = self._without(excess, self._summed(pulled()))
        of_points = to_points(xp, embedding, cloud, gx, gy)
        if embedding is not None:
            add_curvature(xp, embedding, cloud, of_points, plain, moves.given)
        return to_user_points(xp, cloud, of_points)

    def _summed(self, parts: Iterable[tuple[slice, slice, Array, Array]]) -> tuple[Array, Array]:
        """Return the sums over blocks of what falls on the points x and y of the data."""
        out = [self.xp.zeros(points.shape, np.float64) for points in (self.data.x, self.data.y)]
        for part in parts:
            self._add(out, *part)
        return out[0], out[1]

    def _excess_of(self, sums: KnownSums) -> KnownSums:
        """Return what sums of a gradient begin at, so that they end as what is beyond those that are known."""
        if self.data.apart is None:
            return None, None
        of_rows, of_columns = (x if x is None else -x.sum(axis=0) if self.shared else -x for x in sums)
        return of_rows, of_columns

    def _add_sums(self, sums: KnownSums, problems: slice, rows: slice, block: Array) -> None:
        of_rows, of_columns = sums
        if of_rows is not None:
            of_rows[rows if self.shared else (problems, rows)] += block.sum(axis=-1)
        if of_columns is not None:
            of_columns[... if self.shared else problems] += block.sum(axis=-2)

    def _without(self, excess: KnownSums, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return gradients of points without what comes of sums that should not be."""
        for side, (total, gradient) in enumerate(zip(excess, gradients, strict=True)):
            if total is not None:
                gradient -= self.data.pulled_excess(side, total)
        return gradients

    def _add(self, out: list[Array], problems: slice, rows: slice, of_rows: Array, of_columns: Array) -> None:
        if self.shared:
            out[0][rows] += of_rows
            out[1] += of_columns
        else:
            out[0][problems, rows] += of_rows
            out[1][problems] += of_columns


def _total(gradient: Array) -> Array:
    """Return the sum of a block over its problems; without a pass over it, where there is one."""
    total: Array = gradient[0] if len(gradient) == 1 else gradient.sum(axis=0)
    return total
