"""Pairs of clouds of unequal sizes solved together: tiles of like sizes, of whose padding nothing is returned."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.clouds import point_costs
from cusink.costs.measures import sums
from cusink.costs.points import PointCosts
from cusink.costs.ragged import RaggedSolutions
from cusink.solver.pairs import tiles
from cusink.solver.pairs.batches import Batch, tiles_of
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side, by_problem
from cusink.types import Array, HostArray
from cusink.workers import each


class OwnTerms(NamedTuple):
    """Potentials (N,) and (M,) of both sides with themselves, and the sum (K,) of half the values."""

    f: Array
    g: Array
    value: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Together:
    """Solutions of the pairs that are `solved` (K,), in float64, item after item as their weights are.

    Which these are, and which are `equal`, the host knows; the rest is where the weights are.
    `mass` (K,) is that of both measures. `value` (K,) is ``<a, f> + <b, g>``; where no self-terms are asked for, `cost`
    (K,) is the transport cost and `entropy` (K,) the sum of those of both measures. `pulled` are the derivatives (N, d)
    and (M, d) of divergences of squared distances by the points; None for other costs. Pairs of one measure twice,
    which are `equal` (K,), have the potentials of this measure with itself. With prices of the marginals the potentials
    are ``f + shift`` and ``g - shift``, and eps times `entropy` is what `value` is above the entropic cost. `spread`
    (K,) is the sum of the ranges of both potentials, where a device has found it.
    """

    solved: HostArray
    equal: HostArray
    f: Array
    g: Array
    value: Array
    cost: Array
    entropy: Array
    mass: Array
    error: Array
    n_iter: Array
    shift: Array | None = None
    spread: Array | None = None
    own: OwnTerms | None = None
    pulled: tuple[HostArray, HostArray] | None = None

    @classmethod
    def of(cls, found: RaggedSolutions) -> "Together":
        """Return what a device has solved, where equal measures are not looked for."""
        return cls(
            solved=found.solved,
            equal=np.zeros(len(found.solved), bool),
            f=found.f,
            g=found.g,
            value=found.reg_cost,
            cost=found.cost,
            entropy=found.entropy,
            mass=found.mass,
            error=found.error,
            n_iter=found.n_iter,
            shift=found.shift,
        )

    @classmethod
    def of_divergences(cls, found: RaggedSolutions, given: CheckedPairs) -> "Together":
        """Return what a device has solved of `with_selves`; pairs of equal measures have one solution three times."""
        (f, g), (of_a, _), (_, of_b) = by_problem(given.A, given.B, found.f, found.g)
        K = given.count
        value, solved = found.reg_cost.reshape(3, K), found.solved.reshape(3, K)
        return cls(
            solved=solved[0] & solved[1] & solved[2],
            equal=np.zeros(K, bool),
            f=f,
            g=g,
            value=value[0],
            cost=found.cost[:K],
            entropy=found.entropy[:K],
            mass=found.mass[:K],
            error=found.error.reshape(3, K).max(axis=0),
            n_iter=found.n_iter[:K],
            shift=None if found.shift is None else found.shift[:K],
            spread=found.spread[:K],
            own=OwnTerms(of_a, of_b, (value[1] + value[2]) / 2),
        )


class Clouds(NamedTuple):
    """Items with the points from offsets[k] to offsets[k + 1]: points and weights of mass 1 (N, d + 1), masses (K,)."""

    offsets: HostArray
    table: HostArray
    mass: HostArray

    @classmethod
    def of(cls, side: Side, points: HostArray) -> "Clouds":
        """Return one side of the pairs with these points (N, d) in float64."""
        weights = side.weights.astype(np.float64)
        mass = sums(side.offsets, weights)
        weights /= np.repeat(mass, side.sizes)
        return cls(side.offsets, np.concatenate([points, weights[:, None]], axis=1), mass)

    def rows(self, items: HostArray, width: int) -> tuple[HostArray, HostArray]:
        """Return points (T, width, d) and weights (T, width): the last point fills a row, without weight."""
        out = np.empty((len(items), width, self.table.shape[1]))
        for row, k in zip(out, items, strict=True):
            own = self.table[self.offsets[k] : self.offsets[k + 1]]
            row[: len(own)] = own
            row[len(own) :] = own[-1]
            row[len(own) :, -1] = 0
        return np.ascontiguousarray(out[..., :-1]), np.ascontiguousarray(out[..., -1])

    def put(self, target: HostArray, items: HostArray, rows: HostArray) -> None:
        """Write rows (T, width, ...) of items into `target` (N, ...), without what is in their padding."""
        for k, row in zip(items, rows, strict=True):
            start, stop = self.offsets[k], self.offsets[k + 1]
            target[start:stop] = row[: stop - start]


def can_be_solved_together(options: Options) -> bool:
    """Say whether the call leaves the way of iterating open."""
    return options.method == "auto" and options.overrelaxation == "auto" and options.tol is not None


def solve_together(given: CheckedPairs, eps: HostArray, options: Options, own: bool, limit: int | None) -> Together:
    """Solve the pairs with an eps (K,) each, and with `own` each measure with itself, once if it stands in several.

    Pairs that have not converged, or whose kernel has no digits, are not `solved`. `limit` are bytes for all that is
    solved at a time.
    """
    points = [side.points.astype(np.float64) for side in (given.A, given.B)]
    cloud = given.cloud(points[0], points[1])
    costs = cast("PointCosts", point_costs(np, cloud, points[0], points[1]))  # as metrics with kernels have
    sides, K = (Clouds.of(given.A, costs.x), Clouds.of(given.B, costs.y)), given.count
    squared = own and given.ground.metric == "sqeuclidean" and given.ground.power == 1
    out = Together(
        solved=np.zeros(K, bool),
        equal=np.zeros(K, bool),
        f=np.zeros(len(given.A.points)),
        g=np.zeros(len(given.B.points)),
        value=np.zeros(K),
        cost=np.zeros(K),
        entropy=np.zeros(K),
        mass=sides[0].mass,
        error=np.full(K, np.inf),
        n_iter=np.zeros(K, np.int64),
        pulled=(np.zeros(given.A.points.shape), np.zeros(given.B.points.shape)) if squared else None,
    )
    if not own:
        out.entropy[:] = sum(sides[0].mass * (_entropy(side) - np.log(sides[0].mass)) for side in sides)
        _solve_pairs(out, sides, costs, eps, options, np.arange(K), limit)
        return out
    which, members = _distinct(given, eps)
    out.equal[:] = which[:K] == which[K:]
    terms = _solve_own(*_chosen(sides, members), costs, eps[members % K], options, limit, squared)
    _solve_pairs(out, sides, costs, eps, options, np.flatnonzero(~out.equal), limit)
    mass, potentials = sides[0].mass, []  # both measures of a pair have that of the first
    lift = tiles.lift(mass, eps)
    for k, side in enumerate(sides):
        item = which[k * K : (k + 1) * K]
        sizes = np.diff(side.offsets)
        at = np.arange(side.offsets[-1]) + np.repeat(terms.offsets[item] - side.offsets[:-1], sizes)
        potentials.append(terms.f[at] - np.repeat(lift, sizes))
        if out.pulled is not None and terms.pulled is not None:
            moved = out.pulled[k]
            moved -= np.repeat(mass, sizes)[:, None] * terms.pulled[at]
            moved[np.repeat(out.equal, sizes)] = 0
    of_a, of_b = which[:K], which[K:]
    with np.errstate(invalid="ignore"):  # of measures that are not solved
        value = mass * ((terms.value[of_a] + terms.value[of_b]) / 2 - 2 * lift)
    out.error[out.equal], out.solved[out.equal], out.n_iter[out.equal] = 0, True, terms.n_iter[of_a[out.equal]]
    np.maximum(out.error, np.maximum(terms.error[of_a], terms.error[of_b]), out=out.error)
    out.solved[:] &= terms.solved[of_a] & terms.solved[of_b]
    same = tuple(np.repeat(out.equal, np.diff(side.offsets)) for side in sides)
    out.f[same[0]], out.g[same[1]] = potentials[0][same[0]], potentials[1][same[1]]
    return replace(out, own=OwnTerms(potentials[0], potentials[1], value))


def _solve_pairs(
    out: Together,
    sides: tuple[Clouds, Clouds],
    costs: PointCosts,
    eps: HostArray,
    options: Options,
    pairs: HostArray,
    limit: int | None,
) -> None:
    """Solve some of the pairs, and write what is found into `out`."""

    def solve(tile: Batch) -> None:
        at = tile.pairs
        (x, a), (y, b) = (side.rows(at, width) for side, width in zip(sides, (tile.n, tile.m), strict=True))
        between = replace(costs, x=x, y=y, given=None, cloud=None)
        K = tiles.kernels(between, eps[at])
        tol, added = tiles.tolerance(options.tol or 0, K.rounding)
        found = tiles.iterate(K.A, a, b, np.where(K.usable, tol, -1.0), options)
        out.solved[at], out.error[at], out.n_iter[at] = found.solved, found.error + added, found.n_iter
        with np.errstate(divide="ignore", invalid="ignore"):  # of pairs that are not solved
            f, g = (eps[at, None] * np.log(w) for w in (found.u, found.v))
        lift = tiles.lift(sides[0].mass[at], eps[at])
        f, g = _in_gauge(f - lift[:, None], g - lift[:, None], a > 0, b > 0)
        out.value[at] = sides[0].mass[at] * ((a * f).sum(axis=1) + (b * g).sum(axis=1))
        for side, target, part in zip(sides, (out.f, out.g), (f, g), strict=True):
            side.put(target, at, part)
        p, q = a * found.u, b * found.v
        if out.pulled is not None:
            moved = tiles.pulled(K.A, p, q, K.x, K.y)
            for side, target, part in zip(sides, out.pulled, moved, strict=True):
                side.put(target, at, sides[0].mass[at, None, None] * part)
        else:
            out.cost[at] = sides[0].mass[at] * tiles.mean_cost(K.A, p, q, between)

    sizes = np.diff(sides[0].offsets), np.diff(sides[1].offsets)
    each(solve, ((tile,) for tile in tiles_of(sizes, pairs, limit)))


class _Own(NamedTuple):
    """Solutions of distinct measures with themselves, item after item; their values and derivatives by the points."""

    offsets: HostArray
    f: HostArray
    value: HostArray
    error: HostArray
    n_iter: HostArray
    solved: HostArray
    pulled: HostArray | None


def _solve_own(
    offsets: HostArray,
    table: HostArray,
    costs: PointCosts,
    eps: HostArray,
    options: Options,
    limit: int | None,
    squared: bool,
) -> _Own:
    """Solve measures of mass 1 with themselves, with an eps each."""
    count, (N, columns) = len(eps), table.shape
    clouds = Clouds(offsets, table, np.ones(count))
    out = _Own(
        offsets,
        np.zeros(N),
        np.zeros(count),
        np.full(count, np.inf),
        np.zeros(count, np.int64),
        np.zeros(count, bool),
        np.zeros((N, columns - 1)) if squared else None,
    )

    def solve(tile: Batch) -> None:
        at = tile.pairs
        x, a = clouds.rows(at, tile.n)
        K = tiles.kernels(replace(costs, x=x, y=x, given=None, cloud=None), eps[at])
        tol, added = tiles.tolerance(options.tol or 0, K.rounding)
        found = tiles.iterate_own(K.A, a, np.where(K.usable, tol, -1.0), options)
        out.solved[at], out.error[at], out.n_iter[at] = found.solved, found.error + added, found.n_iter
        out.value[at] = eps[at] * found.value
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # of measures that are not solved
            clouds.put(out.f, at, eps[at, None] * np.log(found.u))
            if out.pulled is not None:
                clouds.put(out.pulled, at, tiles.own_pulled(K.A, a * found.u, K.x))

    sizes = np.diff(offsets)
    each(solve, ((tile,) for tile in tiles_of((sizes, sizes), np.arange(count), limit)))
    return out


def _in_gauge(f: HostArray, g: HostArray, has_a: HostArray, has_b: HostArray) -> tuple[HostArray, HostArray]:
    """Return potentials with equal sums over the points that have weight, see `cusink.solver.gauge`."""
    of_f, of_g = (np.where(has, x, 0).sum(axis=1) for has, x in ((has_a, f), (has_b, g)))
    constant = ((of_g - of_f) / (has_a.sum(axis=1) + has_b.sum(axis=1)))[:, None]
    return f + constant, g - constant


def _entropy(side: Clouds) -> HostArray:
    """Return ``-sum_i w_i log w_i`` (K,) of weights of mass 1."""
    w = side.table[:, -1]
    return sums(side.offsets, -w * np.log(np.where(w > 0, w, 1)))


def _distinct(given: CheckedPairs, eps: HostArray) -> tuple[HostArray, HostArray]:
    """Return which distinct measure each of both sides (2 K,) is, and one that stands for each (items, 2 K in all)."""
    known: dict[Any, int] = {}
    which, members = np.empty(2 * given.count, np.int64), list[int]()
    for side, first in ((given.A, 0), (given.B, given.count)):
        points, weights = side.points, side.weights
        for k in range(given.count):
            own = side.item(k)
            name = (eps[k], points[own].tobytes(), weights[own].tobytes())
            number = known.setdefault(name, len(known))
            which[first + k] = number
            if number == len(members):
                members.append(first + k)
    return which, np.array(members)


def _chosen(sides: tuple[Clouds, Clouds], members: HostArray) -> tuple[HostArray, HostArray]:
    """Return offsets and points with weights of the items `members` of both sides, numbered one after the other."""
    count = len(sides[0].mass)
    pieces = []
    for member in members:
        side, k = sides[member // count], member % count
        pieces.append(side.table[side.offsets[k] : side.offsets[k + 1]])
    return np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]), np.concatenate(pieces)
