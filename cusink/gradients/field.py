"""Gradients of the field of a potential at new points, its gradient by these points.

The field's scalar product with a cotangent is the slope of the potential while the new points move along it. Its
gradients are therefore those of the potential, moved: with shares p of a row and ``Q_ij = kappa p_ij``, which C takes,

    ds_i = sum_j p_ij dC_ij        dQ_ij = Q_ij (ds_i - dC_ij) / eps
"""

from collections.abc import Iterator
from typing import NamedTuple

from cusink.costs.cost import TangentBlock
from cusink.gradients.parts import Directions
from cusink.gradients.shares import Shares
from cusink.types import Array


class Field(NamedTuple):
    """What the field gives: by new points and partners; sums (B, bins) of dQ by the weights; by eps; by the price."""

    points: Array
    partners: Array
    sums: Array
    eps: Array
    price: Array


def field_gradients(of: Shares, rho: float, cotangent: Array) -> Field:
    """Return the gradients for a cotangent (B, kept, d), or (B, kept) of numbers; `rho` is the price of these bins."""
    problem, axis, xp = of.given.problem, of.axis, of.given.problem.xp
    C, (size, kept) = problem.C, of.softmin.shape
    own, other = ("dx", "dy") if axis == 1 else ("dy", "dx")
    eps = problem.eps_as(1)
    moved, sums, of_eps = xp.zeros((size, kept)), xp.zeros(of.weights.shape), xp.zeros(size)
    kappa, damped = (1.0, 0.0 * eps) if rho == float("inf") else (rho / (rho + eps), 1 / (rho + eps))
    kappas = xp.zeros(size) + kappa

    def moving(group: slice, along: Directions) -> Iterator[TangentBlock]:
        for pairs in of.pairs(along, of.given.shift(along), problems=group):
            at, rows, E = pairs.problems, pairs.rows, kappas[pairs.problems, None, None] * pairs.density
            change = moved[at, rows, None] if axis == 1 else moved[at, None, :]
            dE = E * (change - pairs.others[0]) / problem.eps_as(3, at)
            if axis == 1:
                sums[at] += dE.sum(axis=1)
            else:
                sums[at, rows] += dE.sum(axis=2)
            Q, dQ = of.weighted(pairs, E), of.weighted(pairs, dE)
            of_eps[at] += (dQ * pairs.log_ratio).sum(axis=(1, 2))
            yield at, rows, Q, dQ

    parts = []
    for group in [slice(k, k + 1) for k in range(size)] if C.shared else [slice(0, size)]:
        move = cotangent[group.start] if C.shared else cotangent  # a shared cloud moves with one problem at a time
        along = Directions(cost=C.direction({"dC": None, own: move, other: None}))
        for pairs in of.pairs(along, of.given.shift(along), problems=group):
            means = of.weighted(pairs, pairs.density) * pairs.others[0]
            if axis == 1:
                moved[pairs.problems, pairs.rows] += means.sum(axis=2)
            else:
                moved[pairs.problems] += means.sum(axis=1)
        x, y = C.points_curvature(moving(group, along), along.cost)
        assert x is not None and y is not None  # new points are never those of the other side
        parts.append((x, y))
    points, partners = (sum(part[side] for part in parts) for side in (1 - axis, axis))
    total = moved.sum(axis=1)
    return Field(points, partners, sums, of_eps - kappa * damped * total, eps * damped * damped * total)
