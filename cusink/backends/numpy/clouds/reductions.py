"""Operators for point costs in NumPy: reductions over blocks of exponents that are made anew.

Each problem is one pass over its pairs of points, on all cores where there are many; memory is a block for each core.
"""

import numpy as np

from cusink.backends.numpy.clouds.exponents import Exponents, costs, flat, row_sums, shifted
from cusink.backends.numpy.clouds.layout import ABSENT, Workspace, extended, pairs_for


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows)."""
    return _each(C, axis, logits, lambda side, k: softmin_of(side, logits[k][side.columns], eps))


def softmin_of(side, logits, eps, pool=None):
    """`softmin` of one problem, in the order of the side, in float64."""
    exponents = Exponents(side, logits, 1 / eps)
    ones = side.all.tiled(extended(np.ones(side.shape[1], side.dtype)))

    def run(blocks, work):
        out = []
        for k in blocks:
            block, offset = exponents.block(k, work)
            top = shifted(block)
            out.append(np.log(row_sums(block, ones)) + (top + offset))
        return np.concatenate(out)

    out = np.concatenate(side.for_parts(run, pool))
    out[out < ABSENT / 2] = -np.inf
    out *= -eps
    return out


def hardmin_of(side, logits, eps, pool=None):
    """``-eps max_j (logits_j - C_ij / eps)`` of one problem: a softmin within ``eps log m``, without exp."""
    exponents = Exponents(side, logits, 1 / eps)

    def run(blocks, work):
        out = []
        for k in blocks:
            block, offset = exponents.block(k, work)
            out.append(block.max(axis=0).max(axis=1).astype(np.float64) + offset)
        return np.concatenate(out)

    return np.concatenate(side.for_parts(run, pool)) * -eps


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`."""
    return lambda logits, axis: softmin(C, logits, eps, axis)


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    kept, summed = (p, q) if axis == 1 else (q, p)

    def one(side, k):
        exponents = Exponents(side, summed[k][side.columns], 1 / eps)
        vector, rows = side.all.tiled(extended(v[k][side.columns])), kept[k][side.order].astype(np.float64)

        def run(blocks, work):
            out = []
            for b in blocks:
                block, offset = exponents.block(b, work)
                top = shifted(block)
                out.append(np.exp(rows[side.blocks[b]] + (top + offset)) * row_sums(block, vector))
            return np.concatenate(out)

        return np.concatenate(side.for_parts(run))

    return _each(C, axis, p, one)


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    out = np.zeros(len(p), p.dtype)
    for k in range(len(p)):
        side = pairs_for(C, k).side(1)
        rows = p[k][side.order].astype(np.float64)
        logits = np.maximum(q[k][side.columns], ABSENT)
        largest = logits.max()
        columns = side.all.tiled(extended((logits - largest).astype(side.dtype), ABSENT))

        def run(blocks, work, side=side, rows=rows, columns=columns, largest=largest):
            total = 0.0
            for b in blocks:
                cost = costs(side, side.blocks[b], work, exact=True)
                exponents = work.second(cost.shape[1], side.all)
                np.multiply(cost, side.dtype.type(-1 / eps), out=exponents)
                exponents += columns[:, None, :]
                top = shifted(exponents)
                factor = np.exp(rows[side.blocks[b]] + (top + largest))
                total += float(factor @ np.einsum("trw,trw->r", exponents, cost))
            return total

        out[k] = sum(side.for_parts(run))
    return out


def plan(C, p, q, eps):
    """Plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    out = np.empty((len(p), *C.shape[-2:]), p.dtype)
    for k in range(len(p)):
        for place, part in _plan_blocks(C, k, p, q, eps):
            out[k][place] = part
    return out


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, m)."""
    out = np.zeros(C.shape[-2:], p.dtype)
    for k in range(len(p)):
        for place, part in _plan_blocks(C, k, p, q, eps):
            out[place] += weights[k] * part
    return out


def _plan_blocks(C, k, p, q, eps):
    """The plan of problem k block by block: where in the plan it is, and the block (rows, m)."""
    side = pairs_for(C, k).side(1)
    exponents, work = Exponents(side, q[k][side.columns], 1 / eps), Workspace(side)
    rows = p[k][side.order]
    for b, block in enumerate(side.blocks):
        part, offset = exponents.block(b, work)
        part += (rows[block] + offset).astype(part.dtype)[:, None]
        np.exp(part, out=part)
        yield np.ix_(side.order[block], side.columns), flat(part, side.shape[1])


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""

    def one(side, k):
        columns = side.all.tiled(extended(np.maximum(potential[k][side.columns], ABSENT), ABSENT))[:, None, :]

        def run(blocks, work):
            out = []
            for b in blocks:
                slack = costs(side, side.blocks[b], work, exact=True)
                slack -= columns
                out.append(slack.min(axis=0).min(axis=1))
            return np.concatenate(out)

        return np.concatenate(side.for_parts(run))

    out = _each(C, axis, potential, one)
    out[out > -ABSENT / 2] = np.inf
    return out


def cost_range(C):
    """Numbers between which the costs lie."""
    return 0.0, C.largest(np)


def cost_block(C, problems, rows):
    """Costs (rows, m) or (problems, rows, m) as an array."""
    return C.block(np, problems, rows)


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    out = np.empty(len(x), x.dtype)
    for k in range(len(x)):
        side = pairs_for(C, k).side(1)
        weights = x[k][side.order].astype(np.float64), y[k][side.columns].astype(np.float64)
        out[k] = _squared_bilinear(side, *weights) if side.squared else _bilinear(side, *weights)
    return out


def _squared_bilinear(side, x, y):
    """The sum without the pairs: about the mean of x the mixed terms vanish, and nothing is left that could cancel."""
    points = side.x.astype(np.float64), side.y.T.astype(np.float64)
    sums = x.sum(), y.sum()
    if not sums[0] > 0:
        return 0.0
    centre = (x @ points[0]) / sums[0]
    spread = (w @ ((p - centre) ** 2).sum(axis=1) for w, p in zip((x, y), points, strict=True))
    about_x, about_y = spread
    return side.costs.factor * (about_x * sums[1] + about_y * sums[0])


def _bilinear(side, x, y):
    columns = side.all.tiled(extended(y.astype(side.dtype)))

    def run(blocks, work):
        return sum(float(x[side.blocks[b]] @ row_sums(costs(side, side.blocks[b], work), columns)) for b in blocks)

    return sum(side.for_parts(run))


def _each(C, axis, like, one):
    """``one(side, k)`` of every problem k, in the caller's order of rows: (B, rows)."""
    n, m = C.shape[-2:]
    out = np.empty((len(like), n if axis == 1 else m), like.dtype)
    for k in range(len(like)):
        side = pairs_for(C, k).side(axis)
        out[k, side.order] = one(side, k)
    return out
