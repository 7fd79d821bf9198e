"""Conditional distributions of bins over those of the other side, and means under them, block by block.

The bins that are kept, where `axis` of the plan is summed over, have the distributions ``w_j E_ij`` with the weights w
of the other side: ``E_ij = exp((s_i + g_j - C_ij) / eps)``, in which the softmin s makes each sum 1 exactly, converged
or not, and whatever part of its mass a bin sends with `reach`. Nothing divides by a weight, so that bins of both sides
may be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cusink.deferred import cached_property
from cusink.gradients.affine import Affine
from cusink.gradients.motion import Pairs, Solved, solved
from cusink.gradients.parts import Directions
from cusink.solver.problem import Problem
from cusink.types import Array, Axis

DIGITS_LEFT = 2.0**18  # costs over eps, up to which the rounding of an exponent is not worth a pass over the pairs


@dataclass(frozen=True, eq=False, kw_only=True)
class Shares:
    """The distributions of bins, values (B, bins, d) of the other side, and cotangents (B, kept, d) of their means.

    The values are those about their mean.

    `softmin` (B, kept) is s, +inf for a bin without partners, whose means stay 0 and whose cotangents are 0.
    """

    given: Solved
    axis: Axis
    softmin: Array
    values: Array
    cotangent: Array

    @property
    def weights(self) -> Array:
        """The weights (B, bins) of the other side."""
        return self.given.problem.b if self.axis == 1 else self.given.problem.a

    def block(self, problems: slice, rows: slice) -> Pairs:
        """Return a block of E, as the density."""
        return self._normalised(self.given.blocks(self.given.affine(Directions()), problems)(rows))

    def pairs(self, along: Directions, *others: Affine, problems: slice | None = None) -> Iterator[Pairs]:
        """Iterate over blocks of E, as the density, and of other arrays."""
        yield from map(self._normalised, self.given.pairs(along, *others, problems=problems))

    def _normalised(self, pairs: Pairs) -> Pairs:
        if self._factors is None:
            return pairs
        at, rows = pairs.problems, pairs.rows
        factors = self._factors[at, rows, None] if self.axis == 1 else self._factors[at, None, :]
        return pairs._replace(density=pairs.density * factors)

    @cached_property
    def _factors(self) -> Array | None:
        """Factors (B, kept) that make sums 1 again, where exponents are so large that they lost digits; else None."""
        problem, xp = self.given.problem, self.given.problem.xp
        if problem.C.largest() <= DIGITS_LEFT * float(np.min(problem.eps)):
            return None
        total = xp.zeros((*self.softmin.shape, 1))
        for pairs in self.given.pairs(Directions()):
            self.add_kept(total, pairs, pairs.density, self.weights[..., None])
        return xp.where(total > 0, 1 / xp.where(total > 0, total, 1), 1)[..., 0]

    @cached_property
    def means(self) -> Array:
        """The means (B, kept, d) of the values."""
        out, weighted = self.given.problem.xp.zeros(self.cotangent.shape), self.weights[..., None] * self.values
        for pairs in self.pairs(Directions()):
            self.add_kept(out, pairs, pairs.density, weighted)
        return out

    @cached_property
    def of_means(self) -> Array:
        """The scalar products (B, kept) of cotangents and means."""
        out: Array = (self.cotangent * self.means).sum(axis=-1)
        return out

    @cached_property
    def of_values(self) -> Array:
        """The gradients (B, bins, d) of ``sum(cotangent * means)`` by the values."""
        out = self.given.problem.xp.zeros(self.values.shape)
        for pairs in self.pairs(Directions()):
            self.add_other(out, pairs, pairs.density, self.cotangent)
        return self.weights[..., None] * out

    def pulled(self, pairs: Pairs) -> Array:
        """Return ``E_ij <cotangent_i, v_j - mean_i>``: what the logarithm of a share takes, but for the weight."""
        xp, at, rows = self.given.problem.xp, pairs.problems, pairs.rows
        if self.axis == 1:
            inner = self.cotangent[at, rows] @ xp.swapaxes(self.values[at], -1, -2) - self.of_means[at, rows, None]
        else:
            inner = self.values[at, rows] @ xp.swapaxes(self.cotangent[at], -1, -2) - self.of_means[at, None, :]
        inner *= pairs.density
        return inner

    def weighted(self, pairs: Pairs, x: Array) -> Array:
        """Return a block times the weights of the other side."""
        at = pairs.problems
        return x * (self.weights[at, None, :] if self.axis == 1 else self.weights[at, pairs.rows, None])

    def add_kept(self, out: Array, pairs: Pairs, block: Array, v: Array) -> None:
        """Add the products of a block with arrays (B, bins, d) of the other side to those (B, kept, d) of bins."""
        at, rows = pairs.problems, pairs.rows
        if self.axis == 1:
            out[at, rows] += block @ v[at]
        else:
            out[at] += self.given.problem.xp.swapaxes(block, -1, -2) @ v[at, rows]

    def add_other(self, out: Array, pairs: Pairs, block: Array, v: Array) -> None:
        """Add the products of a block with arrays (B, kept, d) of the bins to those (B, bins, d) of the other side."""
        at, rows = pairs.problems, pairs.rows
        if self.axis == 1:
            out[at] += self.given.problem.xp.swapaxes(block, -1, -2) @ v[at, rows]
        else:
            out[at, rows] += block @ v[at]


def shares(problem: Problem, axis: Axis, values: Array, cotangent: Array) -> Shares:
    """Return the distributions of the bins that are kept where `axis` is summed over, in float64."""
    double, given, xp = problem.in_float64(), solved(problem), problem.xp
    softmin = double.C.softmin(double.logits()[axis], double.eps, axis)
    kept = xp.isfinite(softmin)
    own = replace(given.problem, **{"gf"[axis]: xp.where(kept, softmin, 0)})
    size = len(double.a)
    # Of means only differences to values are taken, which keep digits about a centre; equal values are 0 about it.
    other = (double.b, double.a)[1 - axis][..., None]
    least = xp.where(other > 0, values, xp.inf).min(axis=1, keepdims=True)
    most = xp.where(other > 0, values, -xp.inf).max(axis=1, keepdims=True)
    mean = (other * values).sum(axis=1, keepdims=True) / other.sum(axis=1, keepdims=True)
    centre = xp.minimum(xp.maximum(mean, least), most)
    return Shares(
        given=replace(given, problem=own),
        axis=axis,
        softmin=softmin,
        values=xp.broadcast_to(values - centre, (size, *values.shape[1:])),
        cotangent=xp.where(kept[..., None], xp.broadcast_to(cotangent, (size, *cotangent.shape[1:])), 0),
    )


def means_along(of: Shares, along: Directions, change: Array) -> tuple[Array, Array]:
    """Return the derivatives of the means (B, kept, d) and of the softmins (B, kept) along a direction.

    `change` (B, bins) is that of the other side's potential; the values stay. Weights and potential of the bins
    that are kept do not matter.
    """
    problem, axis, xp = of.given.problem, of.axis, of.given.problem.xp
    moves = along.b if axis == 1 else along.a
    out, total = xp.zeros(of.cotangent.shape), xp.zeros((*of.softmin.shape, 1))
    ones = xp.ones((*of.weights.shape, 1))
    of_other = Affine(columns=change) if axis == 1 else Affine(rows=change)
    for pairs in of.pairs(along, of_other.minus(of.given.shift(along)).times(1 / problem.eps_as(1))):
        at, rows, (moved,) = pairs.problems, pairs.rows, pairs.others
        block = of.weighted(pairs, pairs.density * moved)
        if moves is not None:
            block += pairs.density * (moves[at, None, :] if axis == 1 else moves[at, rows, None])
        of.add_kept(out, pairs, block, of.values)
        of.add_kept(total, pairs, block, ones)
    return out - total * of.means, -problem.eps_as(2) * total[..., 0]
