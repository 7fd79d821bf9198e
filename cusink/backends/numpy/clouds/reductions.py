"""Operators of point costs in NumPy: reductions over blocks of exponents that are made when they are needed.

Each problem is one pass over its pairs of points, on all cores where there are many; memory is a block for each core.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cusink.backends.numpy.clouds.exponents import Exponents, costs, exp_shifted, flat, row_sums
from cusink.backends.numpy.clouds.layout import ABSENT, CloudSide, Workspace, extended, sorted_clouds
from cusink.backends.ranges import exp_times
from cusink.costs.points import PointCosts
from cusink.types import Array, Axis, HostArray


def softmin(C: PointCosts, logits: HostArray, eps: float, axis: Axis) -> HostArray:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows)."""
    return _each(C, axis, logits, lambda side, k: softmin_of(side, logits[k][side.columns], eps))


def softmin_of(side: CloudSide, logits: HostArray, eps: float) -> HostArray:
    """Return the `softmin` (n,) of one problem in float64; vectors are in the order of the side."""
    exponents = Exponents(side, logits, 1 / eps)
    ones = side.all.tiled(extended(np.ones(side.shape[1], side.dtype)))

    def log_sums(k: int, work: Workspace) -> HostArray:
        block, offset = exponents.block(k, work)
        top = exp_shifted(block)
        logs: HostArray = np.log(row_sums(block, ones)) + (top + offset)
        return logs

    out = each_row(side, log_sums)
    out[out < ABSENT / 2] = -np.inf
    out *= -eps
    return out


def hardmin_of(side: CloudSide, logits: HostArray, eps: float) -> HostArray:
    """Return ``-eps max_j (logits_j - C_ij / eps)`` (n,) of one problem: the softmin to ``eps log m``, without exp."""
    exponents = Exponents(side, logits, 1 / eps)

    def largest(k: int, work: Workspace) -> HostArray:
        block, offset = exponents.block(k, work)
        top: HostArray = block.max(axis=0).max(axis=1).astype(np.float64)
        top += offset
        return top

    return each_row(side, largest) * -eps


def apply_plan(C: PointCosts, p: HostArray, q: HostArray, v: HostArray, eps: float, axis: Axis) -> HostArray:
    """Return ``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    kept, summed = (p, q) if axis == 1 else (q, p)

    def one(side: CloudSide, problem: int) -> HostArray:
        exponents = Exponents(side, summed[problem][side.columns], 1 / eps)
        vector = side.all.tiled(extended(v[problem][side.columns]))
        rows = kept[problem][side.order].astype(np.float64)

        def sums(k: int, work: Workspace) -> HostArray:
            block, offset = exponents.block(k, work)
            top = exp_shifted(block)
            return exp_times(rows[side.blocks[k]] + (top + offset), row_sums(block, vector))

        return each_row(side, sums)

    return _each(C, axis, p, one)


def transport_cost(C: PointCosts, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    out = np.zeros(len(p), p.dtype)
    for problem in range(len(p)):
        side = sorted_clouds(C, problem).side(1)
        out[problem] = _transport_cost(side, p[problem][side.order], q[problem][side.columns], eps)
    return out


def _transport_cost(side: CloudSide, p: HostArray, q: HostArray, eps: float) -> float:
    """Return the `transport_cost` of one problem; logits are in the order of the side."""
    rows, logits = p.astype(np.float64), np.maximum(q, ABSENT)
    largest = logits.max()
    columns = side.all.tiled(extended((logits - largest).astype(side.dtype), ABSENT))

    def run(blocks: Sequence[int], work: Workspace) -> float:
        total = 0.0
        for k in blocks:
            cost = costs(side, side.blocks[k], work, exact=True)
            exponents = work.second(cost.shape[1], side.all)
            np.multiply(cost, side.dtype.type(-1 / eps), out=exponents)
            exponents += columns[:, None, :]
            top = exp_shifted(exponents)
            sums = exp_times(rows[side.blocks[k]] + (top + largest), np.einsum("trw,trw->r", exponents, cost))
            with np.errstate(over="ignore"):
                total += float(sums.sum())
        return total

    return min(sum(side.for_blocks(run)), float(np.finfo(np.float64).max))


def plan(C: PointCosts, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return the plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    out = np.empty((len(p), *C.shape[-2:]), p.dtype)
    for problem in range(len(p)):
        side = sorted_clouds(C, problem).side(1)
        exponents = Exponents(side, q[problem][side.columns], 1 / eps)
        rows = p[problem][side.order]
        with side.workspaces.borrow() as work:
            for k, block in enumerate(side.blocks):
                part, offset = exponents.block(k, work)
                part += (rows[block] + offset).astype(part.dtype)[:, None]
                np.exp(part, out=part)
                out[problem][np.ix_(side.order[block], side.columns)] = flat(part, side.shape[1])
    return out


def c_transform(C: PointCosts, potential: HostArray, axis: Axis) -> HostArray:
    """Return ``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""

    def one(side: CloudSide, problem: int) -> HostArray:
        columns = side.all.tiled(extended(potential[problem][side.columns], -np.inf))[:, None, :]

        def smallest(k: int, work: Workspace) -> HostArray:
            slack = costs(side, side.blocks[k], work, exact=True)
            slack -= columns
            out: HostArray = slack.min(axis=0).min(axis=1)
            return out

        return each_row(side, smallest)

    return _each(C, axis, potential, one)


def cost_range(C: PointCosts) -> tuple[float, float]:
    """Return numbers between which the costs lie."""
    return 0.0, C.largest(np)


def cost_block(C: PointCosts, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, m) or (problems, rows, m) as an array."""
    return C.block(np, problems, rows)


def bilinear(C: PointCosts, x: HostArray, y: HostArray) -> HostArray:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    out = np.empty(len(x), x.dtype)
    for problem in range(len(x)):
        side = sorted_clouds(C, problem).side(1)
        weights = x[problem][side.order].astype(np.float64), y[problem][side.columns].astype(np.float64)
        out[problem] = _squared_bilinear(side, *weights) if side.squared else _bilinear(side, *weights)
    return out


def _squared_bilinear(side: CloudSide, x: HostArray, y: HostArray) -> float:
    """Return the sum without the pairs: about the mean of x the mixed terms vanish, and no terms cancel.

    The mean is taken twice: it is rounded like the points, and they may all lie far from zero.
    """
    mass_x, mass_y = float(x.sum()), float(y.sum())
    if not mass_x > 0:
        return 0.0
    points_x, points_y = side.x.astype(np.float64), side.y.T.astype(np.float64)
    centre = (x @ points_x) / mass_x
    points_x, points_y = points_x - centre, points_y - centre
    centre = (x @ points_x) / mass_x
    about_x, about_y = (
        float(weights @ ((points - centre) ** 2).sum(axis=1)) for weights, points in ((x, points_x), (y, points_y))
    )
    return side.costs.factor * (about_x * mass_y + about_y * mass_x)


def _bilinear(side: CloudSide, x: HostArray, y: HostArray) -> float:
    columns = side.all.tiled(extended(y.astype(side.dtype)))

    def run(blocks: Sequence[int], work: Workspace) -> float:
        return sum(float(x[side.blocks[k]] @ row_sums(costs(side, side.blocks[k], work), columns)) for k in blocks)

    return sum(side.for_blocks(run))


def each_row(side: CloudSide, reduce: Callable[[int, Workspace], HostArray]) -> HostArray:
    """Return the results (rows,) of all blocks as one array (n,)."""
    return np.concatenate(side.for_blocks(lambda blocks, work: np.concatenate([reduce(k, work) for k in blocks])))


def _each(C: PointCosts, axis: Axis, like: HostArray, one: Callable[[CloudSide, int], HostArray]) -> HostArray:
    """Return ``one(side, problem)`` of every problem in the caller's order of rows, (B, rows)."""
    n, m = C.shape[-2:]
    out = np.empty((len(like), n if axis == 1 else m), like.dtype)
    for problem in range(len(like)):
        side = sorted_clouds(C, problem).side(axis)
        out[problem, side.order] = one(side, problem)
    return out
