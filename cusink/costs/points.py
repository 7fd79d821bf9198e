"""Costs between points as operators take them: the points, never the costs."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import numpy as np

from cusink.costs.between import BetweenPoints
from cusink.costs.blocks import blocks
from cusink.deferred import cached_property
from cusink.types import Array, ArrayModule, HostArray, Index

BLOCK_ENTRIES = 1 << 15  # costs between points of several problems that are made at a time on the host
SUM_ENTRIES = 1 << 18  # of a gradient that are summed at a time, in float64
FEW_COORDINATES = 8
FAR_APART = 8.0  # of two clouds' centres over their sizes: beyond it, what a sum lacks would be multiplied by that
LEAST_DIFFERENCE = 2.0**-6  # of its terms, that has digits enough in float32


@dataclasses.dataclass(frozen=True, eq=False)
class PointCosts(BetweenPoints):
    """``C_ij = factor * s_ij ** exponent`` with s the squared Euclidean distance, or the city-block distance.

    What takes squares apart does so about a centre of its own.
    """

    norm: Literal["squared", "cityblock"]
    exponent: float = 1.0
    factor: float = 1.0
    _: dataclasses.KW_ONLY
    terms: int = 3  # of a product on tensor cores, see point_products.cuh: 1 for 11 bits
    kind: ClassVar[str] = "points"

    @property
    def cheap_blocks(self) -> bool:
        """Whether the points have few coordinates, which are subtracted one by one."""
        return bool(self.x.shape[-1] <= FEW_COORDINATES)

    @property
    def power_of_squares(self) -> float:
        """Which power of squared distances the costs are."""
        return self.exponent

    @cached_property
    def origin(self) -> Array:
        """The mean of the points x with weight, (1, d) or (B, 1, d), about which those that lie together are small."""
        if self.filled is None:
            return self.x.mean(axis=-2, keepdims=True, dtype=np.float64).astype(self.dtype)
        weights = self.filled[0].astype(np.float64)[..., None, :]
        weights = weights + (weights.max(axis=-1, keepdims=True) == 0)  # without any weight all count
        return (weights @ self.x / weights.sum(axis=-1, keepdims=True)).astype(self.dtype)

    @cached_property
    def apart(self) -> tuple[Array, Array] | None:
        """The centres (1, d) or (B, 1, d) of both clouds, if they are farther from each other than points from them.

        None for others than squared distances: of these alone the gradients grow with what lies between the clouds.
        """
        if self.norm != "squared" or self.exponent != 1:
            return None
        centres, sizes = [], []
        for own in (self.own(0), self.own(1)):
            centre = own.origin.astype(np.float64)
            count = own.x.shape[-2] if own.filled is None else own.filled[0].sum(axis=-1)
            offsets = own.x - centre
            if own.filled is not None:  # wherever a point without weight lies, it makes no cloud larger
                offsets[~own.filled[0]] = 0
            centres.append(centre)
            sizes.append((offsets * offsets).sum(axis=(-1, -2)) / count)
        between = ((centres[0] - centres[1]) ** 2).sum(axis=(-1, -2))
        return (centres[0], centres[1]) if bool((between > FAR_APART**2 * (sizes[0] + sizes[1])).any()) else None

    def affine_tangent(self, moves: tuple[Array, Array]) -> tuple[Array, Array] | None:
        """Return rows and columns of a tangent that go with what lies between."""
        if self.apart is None:
            return None
        between = 2 * self.factor * (self.apart[0] - self.apart[1])
        return (between * moves[0]).sum(axis=-1), -(between * moves[1]).sum(axis=-1)

    def pulled_excess(self, side: int, excess: Array) -> Array:
        """Return what of a gradient of points (n, d) or (B, n, d) comes of an `excess` (n,) or (B, n) of its sums."""
        assert self.apart is not None
        points = (self.x, self.y)[side].astype(np.float64, copy=False)
        return 2 * self.factor * excess[..., None] * (points - self.apart[1 - side])

    def centred(self) -> tuple[Array, Array]:
        """Return x and y about the `origin`."""
        x = self.x - self.origin
        return x, x if self.y is self.x else self.y - self.origin

    def block(self, xp: ArrayModule, problems: Index = slice(None), rows: Index = slice(None)) -> Array:
        """Return the costs (n, m) or (B, n, m) of some problems and rows as an array: differences before squares.

        On the host each is rounded once: it is taken in float64.
        """
        x, y = self._points(problems, rows)
        out = xp.empty((*x.shape[:-1], y.shape[-2]), self.dtype)
        if xp is not np:
            coordinates = ((x[..., :, None, k], y[..., None, :, k]) for k in range(x.shape[-1]))
            return self._costs(xp, xp.subtract, coordinates, out, xp.empty_like(out) if x.shape[-1] > 1 else out)
        x, y, stacked = (p if p.ndim == 3 else p[None] for p in (x, y, out))
        of_rows, of_columns = _as_factors(x, y)
        # So few at a time that these stay in the cache.
        work = np.empty((2, min(stacked.size, max(BLOCK_ENTRIES, y.shape[1]))))
        for some, part in blocks(len(stacked), x.shape[1], y.shape[1], BLOCK_ENTRIES):
            into = stacked[some, part]
            made, scratch = (w[: into.size].reshape(into.shape) for w in work)
            made = into if out.dtype == np.float64 else made
            factors = zip(of_rows[:, some, part], of_columns[:, some], strict=True)
            self._costs(np, np.matmul, factors, made, scratch)
            if made is not into:
                into[...] = made
        return out

    def _costs(
        self,
        xp: ArrayModule,
        difference: Callable[..., Array],
        coordinates: Iterable[tuple[Array, Array]],
        out: Array,
        scratch: Array,
    ) -> Array:
        """Return the costs between points, written into `out`, by the `difference` of each pair of coordinates."""
        for k, (of_rows, of_columns) in enumerate(coordinates):
            apart = scratch if k else out
            difference(of_rows, of_columns, out=apart)
            if self.norm == "cityblock":
                xp.abs(apart, out=apart)
            else:
                apart *= apart
            if k:
                out += apart
        return self.of_distances(xp, out)

    def block_adjoint(
        self, xp: ArrayModule, gradient: Array, problems: Index = slice(None), rows: Index = slice(None)
    ) -> tuple[Array, Array]:
        """Pull the `gradient` of a `block` back to the points of its rows (n, d) and of all columns (m, d).

        Points that coincide get zero where the cost has no derivative, as in `cusink.cost_matrix_adjoint`.
        """
        x, y = self._points(problems, rows)
        rate, _ = self._rate(xp, problems, rows)
        return self._pulled(xp, gradient * (rate if self.exponent != 1 else gradient.dtype.type(rate)), x, y, problems)

    def block_tangent(
        self, xp: ArrayModule, moves: tuple[Array, Array], problems: Index = slice(None), rows: Index = slice(None)
    ) -> Array:
        """Return the derivative of a `block` while the points x and y `moves`, in float64."""
        rate, _ = self._rate(xp, problems, rows)
        tangent = self._distance_tangent(xp, moves, problems, rows)
        return tangent if isinstance(rate, float) and rate == 1 else rate * tangent

    def block_curvature(
        self,
        xp: ArrayModule,
        gradient: Array,
        tangent: Array,
        moves: tuple[Array, Array],
        problems: Index = slice(None),
        rows: Index = slice(None),
    ) -> tuple[Array, Array]:
        """Return the derivative of `block_adjoint` while the points `moves`, and its `gradient` moves by `tangent`."""
        x, y = self._points(problems, rows)
        rate, s = self._rate(xp, problems, rows)
        if s is not None or rate != 1:
            tangent, gradient = tangent * rate, gradient * rate
        if s is not None:
            slope = self._distance_tangent(xp, moves, problems, rows)
            tangent = tangent + gradient * ((self.exponent - 1) * slope / xp.where(s > 0, s, 1))
        of_x, of_y = self._pulled(xp, tangent, x, y, problems)
        if self.norm == "cityblock":
            return of_x, of_y
        move_x, move_y = self._moves(moves, problems, rows)
        more_x, more_y = _squares_adjoint(xp, gradient, move_x, move_y)
        return of_x + more_x, of_y + more_y

    def _rate(self, xp: ArrayModule, problems: Index, rows: Index) -> tuple[Array | float, Array | None]:
        """Return the derivative of a block of costs by the distances s, and these; a number and None for powers of 1.

        Points that coincide get zero where the cost has no derivative.
        """
        if self.exponent == 1:
            return self.factor, None
        # In float64: squares of 1e-30 and of 1e20 are not numbers of float32.
        s = dataclasses.replace(self.astype(np.float64), exponent=1.0, factor=1.0).block(xp, problems, rows)
        positive = xp.where(s > 0, s, xp.inf if self.exponent < 1 else 0)
        return self.factor * self.exponent * xp.power(positive, s.dtype.type(self.exponent - 1)), s

    def _distance_tangent(self, xp: ArrayModule, moves: tuple[Array, Array], problems: Index, rows: Index) -> Array:
        """Return the derivative of the distances s while the points move."""
        x, y = self._points(problems, rows)
        move_x, move_y = self._moves(moves, problems, rows)
        if self.norm == "cityblock":
            out = xp.zeros((*x.shape[:-1], y.shape[-2]))
            for k in range(x.shape[-1]):
                slope = xp.sign(x[..., :, None, k] - y[..., None, :, k])
                out += slope * (move_x[..., :, None, k] - move_y[..., None, :, k])
            return out
        of_rows, of_columns = self._tangent_factors(xp, x, y, move_x, move_y, problems)
        return of_rows @ xp.swapaxes(of_columns, -1, -2)

    def factors(self, xp: ArrayModule) -> tuple[Array, Array] | None:
        """Return thin matrices (n, r) and (m, r), or some of each problem, whose product are the costs.

        None where they are no such product.
        """
        if self.norm != "squared" or self.exponent != 1:
            return None
        x, y = (points.astype(np.float64, copy=False) - self.origin for points in (self.x, self.y))
        own_x, own_y = ((p * p).sum(axis=-1, keepdims=True) for p in (x, y))
        of_rows = xp.concatenate([-2 * x, own_x, xp.ones_like(own_x)], axis=-1)
        return self.factor * of_rows, xp.concatenate([y, xp.ones_like(own_y), own_y], axis=-1)

    def tangent_factors(self, xp: ArrayModule, moves: tuple[Array, Array]) -> tuple[Array, Array] | None:
        """Return thin matrices (n, r) and (m, r), or some of each problem, of which `block_tangent` is the product.

        None where it is no such product.
        """
        if self.norm != "squared" or self.exponent != 1:
            return None
        of_rows, of_columns = self._tangent_factors(xp, self.x, self.y, *moves, slice(None))
        return self.factor * of_rows, of_columns

    def _tangent_factors(
        self, xp: ArrayModule, x: Array, y: Array, move_x: Array, move_y: Array, problems: Index
    ) -> tuple[Array, Array]:
        """Return the factors of the derivative ``2 (x - y) (move_x - move_y)`` of squared distances."""
        origin = self.origin if self.ndim == 2 else self.origin[problems]
        x, y = (points.astype(np.float64, copy=False) - origin for points in (x, y))
        own_x, own_y = ((p * move).sum(axis=-1, keepdims=True) for p, move in ((x, move_x), (y, move_y)))
        of_rows = xp.concatenate([x, move_x, own_x, xp.ones_like(own_x)], axis=-1)
        return of_rows, xp.concatenate([-2 * move_y, -2 * y, 2 * xp.ones_like(own_y), 2 * own_y], axis=-1)

    @np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
    def _pulled(self, xp: ArrayModule, gradient: Array, x: Array, y: Array, problems: Index) -> tuple[Array, Array]:
        """Pull the `gradient` of distances s back to points."""
        if self.norm == "squared":
            origin = self.origin if self.ndim == 2 else self.origin[problems]
            return _squares_adjoint(
                xp, gradient, *(points.astype(np.float64, copy=False) - origin for points in (x, y))
            )
        gx, gy = xp.empty(x.shape, gradient.dtype), xp.empty(y.shape, gradient.dtype)
        for k in range(x.shape[-1]):
            slope = xp.sign(x[..., :, None, k] - y[..., None, :, k]) * gradient
            gx[..., k], gy[..., k] = slope.sum(axis=-1), -slope.sum(axis=-2)
        return gx, gy

    def of_distances(self, xp: ArrayModule, s: Array) -> Array:
        """Return the costs of the distances `s`, which are overwritten."""
        if self.exponent == 0.5:
            xp.sqrt(s, out=s)
        elif self.exponent != 1:
            xp.power(s, s.dtype.type(self.exponent), out=s)
        if self.factor != 1:
            s *= s.dtype.type(self.factor)
        return s

    def mean(self, xp: ArrayModule) -> float:
        """Return the mean cost, over the problems too; of squared distances in one pass over the points."""
        if self.norm == "squared" and self.exponent == 1:
            x, y = self.centred()
            squares = sum(float(xp.einsum("...ik,...ik->", p, p)) / p[..., 0].size for p in (x, y))
            between = float((x.mean(axis=-2) * y.mean(axis=-2)).sum(axis=-1).mean())
            return float(self.factor * (squares - 2 * between))
        return super().mean(xp)

    def largest(self, xp: ArrayModule) -> float:
        """Return a bound that no cost between points with weight exceeds."""
        with np.errstate(over="ignore"):  # inf is a bound
            own = self._size(xp, 0)
            other = own if self.y is self.x and self.filled is None else self._size(xp, 1)
            s = own + other if self.norm == "cityblock" else (xp.sqrt(own) + xp.sqrt(other)) ** 2
            return float(self.factor * s.max() ** self.exponent)

    def squares_fit(self, xp: ArrayModule) -> bool:
        """Whether squared distances are numbers of the dtype, with all their digits, where a power of them is taken."""
        if self.norm != "squared" or self.exponent == 1:
            return True
        reach = 0.0
        for side, points in enumerate((self.x, self.y)):
            sizes = xp.abs(points - self.origin).max(axis=-1)
            reach = max(reach, float((sizes if self.filled is None else xp.where(self.filled[side], sizes, 0)).max()))
        number = np.finfo(self.dtype)
        least, most = math.sqrt(number.tiny / number.eps**2), math.sqrt(number.max / (8 * self.x.shape[-1]))
        return reach == 0 or least <= reach <= most

    def _size(self, xp: ArrayModule, side: int) -> Array:
        """Return the largest distance of points with weight from the origin, in float64, of which no copy is made."""
        points = (self.x, self.y)[side] - self.origin
        if self.norm == "cityblock":
            sizes = xp.abs(points).sum(axis=-1, dtype=np.float64)
        else:
            sizes = xp.einsum("...ik,...ik->...i", points, points, dtype=np.float64)
        if self.filled is not None:
            sizes = xp.where(self.filled[side], sizes, 0)
        return sizes.max(axis=-1)


def _as_factors(x: HostArray, y: HostArray) -> tuple[HostArray, HostArray]:
    """Return factors (d, B, n, 2) and (d, B, 2, m) in float64, whose products are the differences of coordinates.

    That is ``x * 1 + 1 * (-y)``, rounded once as ``x - y`` is: a product takes a third of the time that NumPy takes to
    subtract rows from a column.
    """
    (B, n, d), m = x.shape, y.shape[1]
    of_rows, of_columns = np.ones((d, B, n, 2)), np.ones((d, B, 2, m))
    of_rows[..., 0] = np.moveaxis(x, -1, 0)
    np.negative(np.moveaxis(y, -1, 0), out=of_columns[:, :, 1])
    return of_rows, of_columns


def _squares_adjoint(xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Pull a `gradient` of squared distances back to points: in float64, if its own precision loses too many digits."""
    pulled = [_pull(xp, gradient, *(points.astype(gradient.dtype, copy=False) for points in (x, y)))]
    if gradient.dtype == np.float32 and not all(_has_digits(xp, *side) for side in pulled[0]):
        step = max(1, SUM_ENTRIES * gradient.shape[-2] // gradient.size)
        slices = [slice(start, start + step) for start in range(0, x.shape[-2], step)]
        pulled = [_pull(xp, gradient[..., rows, :].astype(np.float64), x[..., rows, :], y) for rows in slices]
    of_x, of_y = zip(*pulled, strict=True)
    return 2 * xp.concatenate([kept - taken for kept, taken in of_x], axis=-2), 2 * sum(k - t for k, t in of_y)


def _pull(xp: ArrayModule, gradient: Array, x: Array, y: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return for both sides ``sum_j G_ij x_i`` and ``sum_j G_ij y_j``, whose difference is half the gradient."""
    both = (gradient, x, y), (xp.swapaxes(gradient, -1, -2), y, x)
    # With a coordinate of ones one product gives the sums of the gradient too.
    sums = [xp.matmul(G, xp.concatenate([q, xp.ones_like(q[..., :1])], axis=-1)) for G, _, q in both]
    of_x, of_y = ((total[..., -1:] * p, total[..., :-1]) for (_, p, _), total in zip(both, sums, strict=True))
    return of_x, of_y


def _has_digits(xp: ArrayModule, kept: Array, taken: Array) -> bool:
    """Whether a difference is not much less than its terms."""
    terms = max(float(xp.abs(part).max()) for part in (kept, taken))
    return bool(xp.abs(kept - taken).max() >= LEAST_DIFFERENCE * terms)
