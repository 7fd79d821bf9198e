"""How a solved problem moves with its inputs: the first-order change of potentials and plans, block by block.

With ``Z = (f + g - C) / eps`` and the density ``E = exp Z`` the plan is ``P = a b' E``. Along a direction the
optimality conditions give, with the conditional means R and S' of docs/gradients.md and ``D = dC + Z deps``,

    df + R dg = <R, D> - eps E db        S'df + dg = <S, D> - eps E'da        dZ = (df + dg - D) / eps

With `reach` the rows of E sum to ``exp(-f / rho)`` instead of 1, and the system has slack, see docs/unbalanced.md.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cusink.costs.blocks import blocks
from cusink.costs.operators import Means
from cusink.gradients.affine import Affine, AffineBlocks, leading
from cusink.gradients.first_bits import in_all_digits, in_range
from cusink.gradients.parts import Directions, replace_inf
from cusink.gradients.products import left_product, right_product
from cusink.gradients.system import (
    IndexedMeans,
    LinearSolve,
    MarginalSolution,
    RightSide,
    plan_means,
    solve_marginal_systems,
)
from cusink.solver.problem import Problem
from cusink.solver.values import sides
from cusink.types import Array, HostArray
from cusink.workers import one_blas_thread

BLOCK_ENTRIES = 1 << 16  # of a block of pairs
THIN_RANGE = 2.0**14  # of costs in eps, up to which exponents may be products of thin matrices: these err by 2**-36
DENSEST = 600.0  # exponent at which the density is cut off; pairs with weight are far below
LARGEST_SHARE = 1e150  # of a first bit of weight in a bin that is empty on both sides


class Pairs(NamedTuple):
    """Pairs (problems, rows, m): Z, zero where forbidden; E; and blocks of other arrays that were asked for."""

    problems: slice
    rows: slice
    log_ratio: Array
    density: Array
    others: list[Array]


@dataclass(frozen=True, eq=False, kw_only=True)
class Solved:
    """A solved problem in float64 with finite potentials f and g.

    `reached` are masks of the bins that can take weight. With `reach`, `dual` are the potentials with their shift and
    `kept` the fractions of their weights that bins keep; else `kept` is None.
    """

    problem: Problem
    reached: tuple[Array, Array]
    dual: tuple[Array, Array]
    kept: tuple[Array, Array] | None

    def pairs(self, along: Directions, *others: Affine, problems: slice | None = None) -> Iterator[Pairs]:
        """Iterate over blocks of pairs of bins, with those of other arrays, of all problems or some."""
        (size, n), m = self.problem.a.shape, self.problem.b.shape[1]
        first, last = (0, size) if problems is None else (problems.start, problems.stop)
        source = self.affine(along)
        for some, group in itertools.groupby(blocks(last - first, n, m, BLOCK_ENTRIES), key=operator.itemgetter(0)):
            block = self.blocks(source, slice(first + some.start, first + some.stop), *others)
            for _, rows in group:
                yield block(rows)

    def blocks(self, source: AffineBlocks, problems: slice, *others: Affine) -> Callable[[slice], Pairs]:
        """Return a function that makes these blocks of some problems, given the rows."""
        xp = self.problem.xp
        made = source.maker(problems, [self.log_ratio, *others])

        def block(rows: slice) -> Pairs:
            (Z, *rest), forbidden = made(rows)
            if forbidden is not None:
                Z = xp.where(forbidden, 0, Z)
            E = xp.exp(Z) if self._bounded else xp.exp(xp.minimum(Z, DENSEST))
            if forbidden is not None:
                E = xp.where(forbidden, 0, E)
            return Pairs(problems, rows, Z, E, rest)

        return block

    @functools.cached_property
    def log_ratio(self) -> Affine:
        """The array Z."""
        problem = self.problem
        costs = Affine(rows=problem.f, columns=problem.g, cost=-problem.xp.ones(len(problem.a)))
        return costs.times(1 / problem.eps_as(1))

    def shift(self, along: Directions) -> Affine:
        """Return the array D."""
        of_costs = Affine() if along.cost is None else Affine(move=self.problem.xp.ones(len(self.problem.a)))
        return of_costs if along.eps is None else of_costs.plus(self.log_ratio.times(along.eps))

    def affine(self, along: Directions) -> AffineBlocks:
        """Return what makes blocks of arrays while the costs move."""
        return AffineBlocks(self.problem.C, along.cost, self._thin_costs, self._thin_moves(along))

    @functools.cached_property
    def _thin_costs(self) -> tuple[Array, Array] | None:
        """Thin matrices whose product are the costs, where these keep their digits by them."""
        factors, least = self.problem.C.factors(), float(np.min(self.problem.eps))
        return factors if factors is not None and self.problem.C.range()[1] <= THIN_RANGE * least else None

    @functools.cached_property
    def _bounded(self) -> bool:
        """Whether no exponent can reach `DENSEST`."""
        problem = self.problem
        top = problem.f.max(axis=1) + problem.g.max(axis=1) - problem.C.range()[0]
        return float((top / problem.eps_as(1)).max()) <= DENSEST

    def solve(self, rights: Sequence[RightSide], how: LinearSolve) -> list[MarginalSolution]:
        """Return solutions x, y of ``x + R y = h``, ``S'x + y = k``, or of the damped system with factors 1 + slack."""
        if self.problem.reach is not None:
            eps = self.problem.eps_as(2)
            how = replace(how, slack=(eps / self.problem.reach[0], eps / self.problem.reach[1]))
        return solve_marginal_systems(self._marginal, rights, how, self._kept_means)

    @functools.cached_property
    def _marginal(self) -> Problem:
        """The problem with the same plan in which its marginals are the weights."""
        problem = self.problem
        if self.kept is None:
            return problem
        assert problem.reach is not None
        eps, (a, b), (f, g) = problem.eps_as(2), self.kept, self.dual
        f, g = problem.f + f * (eps / problem.reach[0]), problem.g + g * (eps / problem.reach[1])
        return replace(problem, a=problem.a * a, b=problem.b * b, f=f, g=g)

    @functools.cached_property
    def _kept_means(self) -> list[IndexedMeans] | None:
        """Means for more than one system, of one problem; those of a batch would take the memory of all its kernels."""
        return list(plan_means(self._marginal)) if len(self.problem.a) == 1 else None

    def sums(self, h: Array, k: Array) -> RightSide:
        """Return sums over rows (B, n) and columns (B, m) of the density as the right-hand sides of the system.

        Bins so far from all others that nothing of their weight is left in float64 have 0: no other bin sees them.
        """
        if self.kept is not None:
            assert self.problem.reach is not None
            xp, damped = self.problem.xp, (1 + self.problem.eps_as(2) / rho for rho in self.problem.reach)
            h, k = (
                xp.where(kept > 0, x / (xp.where(kept > 0, kept, 1) * by), 0)
                for x, kept, by in zip((h, k), self.kept, damped, strict=True)
            )
        return lambda index, _: (h[index], k[index])

    def _thin_moves(self, along: Directions) -> tuple[Array, Array] | None:
        """Return thin matrices whose product are the moves of the costs, without columns of zeros; None for others."""
        factors = None if along.cost is None else self.problem.C.tangent_factors(along.cost)
        if factors is None:
            return None
        of_rows, of_columns = factors
        moving = [
            k for k in range(of_rows.shape[-1]) if bool((of_rows[..., k] != 0).any() & (of_columns[..., k] != 0).any())
        ]
        contiguous = self.problem.xp.ascontiguousarray  # as BLAS takes them
        return contiguous(of_rows[..., moving]), contiguous(of_columns[..., moving])

    @functools.cached_property
    def weight_logs(self) -> tuple[Array, Array]:
        """The logarithms of the weights (B, n) and (B, m), 0 in empty bins."""
        xp = self.problem.xp
        log_a, log_b = (xp.log(xp.where(w > 0, w, 1)) for w in (self.problem.a, self.problem.b))
        return log_a, log_b

    @functools.cached_property
    def plan_logs(self) -> tuple[Array, Array]:
        """Rows and columns whose sum is ``C / eps + log P + 1``, as C / eps + Z is ``(f + g) / eps``."""
        eps, (log_a, log_b) = self.problem.eps_as(2), self.weight_logs
        return self.problem.f / eps + log_a + 1, self.problem.g / eps + log_b

    def behind_values(self, cost: Array, entropic: Array | None) -> RightSide:
        """Return the right-hand sides of the fit behind values with cotangents (B,).

        It is that of Z behind `cost` in balanced transport; with `reach` of ``H = cost C / eps + entropic (C / eps +
        log P + 1)``, by whose means the gradients go.
        """
        if self.kept is None:
            return self.log_ratio_means

        def right(index: HostArray, means: Means) -> tuple[Array, Array]:
            rows, columns = (cost[index, None] * x for x in self.cost_means(index, means))
            if entropic is None:
                return rows, columns
            assert self.problem.reach is not None
            (of_rows, of_columns), eps = (x[index] for x in self.plan_logs), self.problem.eps_as(2, index)
            (damped_a, damped_b), w = (1 + eps / rho for rho in self.problem.reach), entropic[index, None]
            rows = rows + w * (of_rows + means.mean(of_columns, 1)) / damped_a
            return rows, columns + w * (of_columns + means.mean(of_rows, 0)) / damped_b

        return right

    def log_ratio_means(self, index: HostArray, means: Means) -> tuple[Array, Array]:
        """Return the means of Z, the right-hand sides of the fit behind `cost` in balanced transport."""
        eps = self.problem.eps_as(2, index)
        f, g = self.problem.f[index] / eps, self.problem.g[index] / eps
        return f + means.mean(g, 1) - means.mean_cost(1) / eps, g + means.mean(f, 0) - means.mean_cost(0) / eps

    def cost_means(self, index: HostArray, means: Means) -> tuple[Array, Array]:
        """Return the right-hand sides of the fit of ``C / eps`` behind `cost` with `reach`."""
        assert self.problem.reach is not None
        eps = self.problem.eps_as(2, index)
        of_rows, of_columns = (eps * (1 + eps / rho) for rho in self.problem.reach)
        return means.mean_cost(1) / of_rows, means.mean_cost(0) / of_columns

    def projected(self, of_a: Array, of_b: Array) -> tuple[Array, Array]:
        """Return arrays by bins (B, n) and (B, m) that are 0 in bins which no weight can reach.

        In balanced transport, where weights vary on the simplex, the rest has mean zero.
        """
        xp, out = self.problem.xp, []
        for x, reached in zip((of_a, of_b), self.reached, strict=True):
            x = xp.where(reached, x, 0)
            if self.kept is None:
                x = xp.where(reached, x - x.sum(axis=1, keepdims=True) / reached.sum(axis=1, keepdims=True), 0)
            out.append(x)
        return out[0], out[1]

    def by_weights(self, of_a: Array, of_b: Array) -> tuple[Array, Array]:
        """Return gradients by the weights `projected`, those by a first bit of weight within the range of the dtype."""
        xp, dtype = self.problem.xp, self.problem.dtype
        if self.kept is not None:
            of_a, of_b = in_range(xp, of_a, dtype), in_range(xp, of_b, dtype)
        return self.projected(of_a, of_b)

    def feasible(self, along: Directions) -> Directions:
        """Return directions whose weights are `projected`."""
        if along.a is None and along.b is None:
            return along
        zero = self.problem.xp.zeros_like(self.problem.a), self.problem.xp.zeros_like(self.problem.b)
        of_a, of_b = self.projected(*(z if v is None else v for v, z in zip(along[:2], zero, strict=True)))
        return along._replace(a=None if along.a is None else of_a, b=None if along.b is None else of_b)


@dataclass(frozen=True, eq=False)
class Motion:
    """Changes df (B, n) and dg (B, m) of the potentials of a solved problem along a direction.

    `fit` is the solution behind values, if it was asked for.
    """

    solved: Solved
    along: Directions
    df: Array
    dg: Array
    converged: HostArray  # (B,), of the linear systems
    fit: MarginalSolution | None = None

    @functools.cached_property
    def log_ratio(self) -> Affine:
        """The array dZ."""
        given = self.solved
        change = Affine(rows=self.df, columns=self.dg).minus(given.shift(self.along))
        return change.times(1 / given.problem.eps_as(1))

    def plans(self, *others: Affine) -> Iterator[tuple[Pairs, Array, Array, Array]]:
        """Iterate over pairs, their plans P and the changes dP and dZ; with blocks of other arrays."""
        problem, along = self.solved.problem, self.along
        for pairs in self.solved.pairs(along, self.log_ratio, *others):
            problems, rows, (dZ, *rest) = pairs.problems, pairs.rows, pairs.others
            a, b = problem.a[problems, rows, None], problem.b[problems, None, :]
            weights_stay = along.a is None and along.b is None
            P = pairs.density if weights_stay else pairs.density.copy()  # in place: few arrays stay in the cache
            P *= a
            P *= b
            dP = P * dZ
            if along.a is not None:
                dP += pairs.density * along.a[problems, rows, None] * b
            if along.b is not None:
                dP += pairs.density * a * along.b[problems, None, :]
            yield pairs._replace(others=rest), P, dP, dZ


def solved(problem: Problem) -> Solved:
    """Return a solved problem in float64 with finite potentials."""
    problem, xp = in_all_digits(problem), problem.xp
    f, g = problem.f, problem.g
    reached = xp.isfinite(f), xp.isfinite(g)
    dual, kept = (f, g), None
    if problem.reach is not None:
        dual = tuple(replace_inf(xp, side.potential) for side in sides(problem))
        # In an empty bin it may be any number, of which nothing must come: 0 times inf is not 0.
        kept = tuple(xp.exp(xp.minimum(-x / rho, DENSEST)) for x, rho in zip(dual, problem.reach, strict=True))
    problem = replace(problem, f=replace_inf(xp, f), g=replace_inf(xp, g))
    return Solved(
        problem=problem,
        reached=reached,
        dual=(dual[0], dual[1]),
        kept=None if kept is None else (kept[0], kept[1]),
    )


def motion(given: Solved, along: Directions, how: LinearSolve, fit: RightSide | None = None) -> Motion:
    """Return how the potentials move along a direction, whose weights are projected as their gradients are.

    `fit` are the right-hand sides of one more system, whose solution comes with them.
    """
    along = given.feasible(along)
    lead = None if given.kept is not None else leading(given.problem.C, along.cost, given.problem.f, given.problem.g)
    rights = [_sums(given, along, lead), *(() if fit is None else (fit,))]
    (df, dg, converged), *fits = given.solve(rights, how)
    if lead is not None:
        df, dg = df + lead.rows, dg + lead.columns
    for found in fits:
        converged = converged & found.converged
    return Motion(given, along, df, dg, converged, *fits)


@one_blas_thread()
def _sums(given: Solved, along: Directions, lead: Affine | None) -> RightSide:
    """Return the right-hand sides of the system for a direction but for a `lead`, by a pass over all pairs."""
    problem, xp = given.problem, given.problem.xp
    a, b = problem.a, problem.b
    h, k = xp.zeros_like(a), xp.zeros_like(b)
    moves = along.cost is not None or along.eps is not None
    shift = given.shift(along)
    shift = shift if lead is None else shift.minus(lead)
    for pairs in given.pairs(along, *([shift] if moves else [])):
        problems, rows, E = pairs.problems, pairs.rows, pairs.density
        for M in pairs.others:
            M *= E
            h[problems, rows] += right_product(M, b[problems])
            k[problems] += left_product(M, a[problems, rows])
        if along.b is not None:
            share = xp.clip(right_product(E, along.b[problems]), -LARGEST_SHARE, LARGEST_SHARE)
            h[problems, rows] -= problem.eps_as(2, problems) * share
        if along.a is not None:
            share = xp.clip(left_product(E, along.a[problems, rows]), -LARGEST_SHARE, LARGEST_SHARE)
            k[problems] -= problem.eps_as(2, problems) * share
    return given.sums(h, k)
