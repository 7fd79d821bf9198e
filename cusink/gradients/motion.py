"""How a solved problem moves with its inputs: the first-order change of potentials and plans, block by block.

With ``Z = (f + g - C) / eps`` and the density ``E = exp Z`` the plan is ``P = a b' E``. Along a direction the
optimality conditions give, with the conditional means R and S' of docs/gradients.md and ``D = dC + Z deps``,

    df + R dg = <R, D> - eps E db        S'df + dg = <S, D> - eps E'da        dZ = (df + dg - D) / eps

With `reach` the rows of E sum to ``exp(-f / rho)`` instead of 1, and the system has slack, see docs/unbalanced.md.
"""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cusink.costs.blocks import blocks
from cusink.deferred import cached_property
from cusink.gradients.affine import Affine, AffineBlocks, leading
from cusink.gradients.conditional import FAR, LogShares, goes_far, log_shares
from cusink.gradients.first_bits import clipped, in_all_digits, largest_shares
from cusink.gradients.parts import Directions, RightSide, replace_inf
from cusink.gradients.products import left_product, right_product
from cusink.gradients.solution import SolvedBins
from cusink.gradients.system import (
    IndexedMeans,
    LinearSolve,
    MarginalSolution,
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


class Pairs(NamedTuple):
    """Pairs (problems, rows, m): Z, zero where forbidden; E; and blocks of other arrays that were asked for."""

    problems: slice
    rows: slice
    log_ratio: Array
    density: Array
    others: list[Array]


@dataclass(frozen=True, eq=False, kw_only=True)
class Solved(SolvedBins):
    """A solved problem with its pairs of bins, and the linear systems of its conditional means."""

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

    @cached_property
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

    @cached_property
    def _thin_costs(self) -> tuple[Array, Array] | None:
        """Thin matrices whose product are the costs, where these keep their digits by them."""
        factors, least = self.problem.C.factors(), float(np.min(self.problem.eps))
        return factors if factors is not None and self.problem.C.range()[1] <= THIN_RANGE * least else None

    @cached_property
    def _bounded(self) -> bool:
        """Whether no exponent can reach `DENSEST`."""
        problem = self.problem
        top = problem.f.max(axis=1) + problem.g.max(axis=1) - problem.C.range()[0]
        return float((top / problem.eps_as(1)).max()) <= DENSEST

    def solve(self, rights: Sequence[RightSide], how: LinearSolve) -> list[MarginalSolution]:
        """Return solutions x, y of ``x + R y = h``, ``S'x + y = k``, or of the damped system with factors 1 + slack."""
        return solve_marginal_systems(self._marginal, rights, self.damped(how), self._kept_means)

    def solve_sums(self, right: RightSide, how: LinearSolve) -> MarginalSolution:
        """Return the solution for right-hand sides that are `sums`, in bins that keep nothing of their weight, too."""
        how = replace(how, evenly=True)
        if not self.far:
            return self.solve([right], how)[0]
        prepared = [(np.arange(len(self.problem.a)), self.shares)]
        return solve_marginal_systems(self._marginal, [right], self.damped(how), prepared)[0]

    def damped(self, how: LinearSolve) -> LinearSolve:
        """Return how a system is solved with the slack of `reach`, if there is one."""
        if self.problem.reach is None or min(self.problem.reach) == np.inf:  # as of a self-term that is met
            return how
        eps = self.problem.eps_as(2)
        return replace(how, slack=(eps / self.problem.reach[0], eps / self.problem.reach[1]))

    @cached_property
    def shares(self) -> LogShares:
        """The conditional means in the log domain."""
        return log_shares(self.moving)

    @cached_property
    def sided(self) -> tuple["Solved", "Solved"]:
        """The same with potentials by which rows, or columns, of ``E b`` and of ``E'a`` have the sum 1."""
        problem, xp = self.moving, self.problem.xp
        f, g = (xp.where(xp.isfinite(x), x, 0) for x in self.shares.softmins)
        return replace(self, problem=replace(problem, f=f)), replace(self, problem=replace(problem, g=g))

    @cached_property
    def moving(self) -> Problem:
        """The problem without the weights of bins that C forbids all partners, of which it has some with `reach`."""
        problem, xp = self.problem, self.problem.xp
        if problem.reach is None:
            return problem
        a, b = (xp.where(at, x, 0) for at, x in zip(self.reached, (problem.a, problem.b), strict=True))
        return replace(problem, a=a, b=b)

    @cached_property
    def _marginal(self) -> Problem:
        """The problem with the same plan in which its marginals are the weights."""
        problem = self.problem
        if self.kept is None:
            return problem
        assert problem.reach is not None
        eps, (a, b), (f, g) = problem.eps_as(2), self.kept, self.dual
        f, g = problem.f + f * (eps / problem.reach[0]), problem.g + g * (eps / problem.reach[1])
        return replace(problem, a=self.moving.a * a, b=self.moving.b * b, f=f, g=g)

    @cached_property
    def _kept_means(self) -> list[IndexedMeans] | None:
        """Means for more than one system, of one problem; those of a batch would take the memory of all its kernels."""
        return list(plan_means(self._marginal)) if len(self.problem.a) == 1 else None

    def sums(self, h: Array, k: Array) -> RightSide:
        """Return sums over rows (B, n) and columns (B, m) of the density as the right-hand sides of the system.

        Bins so far from all others that nothing of their weight is left in float64 have 0: no value sees them.
        """
        if self.kept is not None:
            xp = self.problem.xp
            h, k = (
                xp.where(kept > 0, x / (xp.where(kept > 0, kept, 1) * by), 0)
                for x, kept, by in zip((h, k), self.kept, self.damping, strict=True)
            )
        return lambda index, _: (h[index], k[index])

    @property
    def damping(self) -> tuple[float | Array, float | Array]:
        """The factors 1 / kappa of both sides, with `reach`."""
        assert self.problem.reach is not None
        eps, (rho_a, rho_b) = self.problem.eps_as(2), self.problem.reach
        return 1 + eps / rho_a, 1 + eps / rho_b

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

    def by_weights(self, of_a: Array, of_b: Array) -> tuple[Array, Array]:
        """Return gradients by the weights `projected`, those by a first bit of weight within the range of the dtype."""
        xp, dtype = self.problem.xp, self.problem.dtype
        if self.kept is not None:
            of_a, of_b = clipped(xp, of_a, dtype), clipped(xp, of_b, dtype)
        return self.projected(of_a, of_b)


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

    @cached_property
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
    dual, kept, far = (f, g), None, False
    if problem.reach is not None:
        far = goes_far(problem, FAR)
        dual = tuple(replace_inf(xp, side.potential) for side in sides(problem))
        # In an empty bin it may be any number, of which nothing must come: 0 times inf is not 0.
        kept = tuple(xp.exp(xp.minimum(-x / rho, DENSEST)) for x, rho in zip(dual, problem.reach, strict=True))
    problem = replace(problem, f=replace_inf(xp, f), g=replace_inf(xp, g))
    return Solved(
        problem=problem,
        reached=reached,
        dual=(dual[0], dual[1]),
        kept=None if kept is None else (kept[0], kept[1]),
        far=far,
    )


def motion(given: Solved, along: Directions, how: LinearSolve, fit: RightSide | None = None) -> Motion:
    """Return how the potentials move along a direction, whose weights are projected as their gradients are.

    `fit` are the right-hand sides of one more system, whose solution comes with them.
    """
    along = given.feasible(along)
    lead = None if given.kept is not None else leading(given.problem.C, along.cost, given.problem.f, given.problem.g)
    sums = _sums(given, along, lead)
    if given.far or fit is None:
        df, dg, converged = given.solve_sums(sums, how)
        fits = [] if fit is None else given.solve([fit], how)
    else:
        (df, dg, converged), *fits = given.solve([sums, fit], how)
    if lead is not None:
        df, dg = df + lead.rows, dg + lead.columns
    for found in fits:
        converged = converged & found.converged
    return Motion(given, along, df, dg, converged, *fits)


@one_blas_thread()
def _sums(given: Solved, along: Directions, lead: Affine | None) -> RightSide:
    """Return the right-hand sides of the system for a direction but for a `lead`, by a pass over all pairs."""
    shift = given.shift(along)
    if not given.far:
        return given.sums(*_density_sums(given, along, shift if lead is None else shift.minus(lead)))
    rows, columns = given.sided
    h, _ = _density_sums(rows, along, shift)
    _, k = _density_sums(columns, along, shift)
    of_rows, of_columns = given.damping
    h, k = h / of_rows, k / of_columns
    return lambda index, _: (h[index], k[index])


def _density_sums(given: Solved, along: Directions, shift: Affine) -> tuple[Array, Array]:
    """Return the sums over rows and columns of ``E D`` for the array D, less those of eps E and the weights' moves."""
    problem, xp = given.problem, given.problem.xp
    a, b = given.moving.a, given.moving.b
    h, k = xp.zeros_like(a), xp.zeros_like(b)
    moves = along.cost is not None or along.eps is not None
    most_a, most_b = (largest_shares(xp, w if v is None else v) for v, w in ((along.a, a), (along.b, b)))
    for pairs in given.pairs(along, *([shift] if moves else [])):
        problems, rows, E = pairs.problems, pairs.rows, pairs.density
        for M in pairs.others:
            M *= E
            h[problems, rows] += right_product(M, b[problems])
            k[problems] += left_product(M, a[problems, rows])
        if along.b is not None:
            share = xp.clip(right_product(E, along.b[problems]), -most_b[problems], most_b[problems])
            h[problems, rows] -= problem.eps_as(2, problems) * share
        if along.a is not None:
            share = xp.clip(left_product(E, along.a[problems, rows]), -most_a[problems], most_a[problems])
            k[problems] -= problem.eps_as(2, problems) * share
    return h, k
