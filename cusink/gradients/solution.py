"""A solved problem in float64, and what is taken of it bin by bin: right-hand sides of fits, and projections."""

from dataclasses import dataclass

from cusink.costs.means import Means
from cusink.deferred import cached_property
from cusink.gradients.parts import Directions, RightSide
from cusink.solver.problem import Problem
from cusink.types import Array, HostArray


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedBins:
    """A solved problem in float64 with finite potentials f and g.

    `reached` are masks of the bins that can take weight. With `reach`, `dual` are the potentials with their shift and
    `kept` the fractions of their weights that bins keep; else `kept` is None. `far` says that such a fraction may leave
    the range of numbers.
    """

    problem: Problem
    reached: tuple[Array, Array]
    dual: tuple[Array, Array]
    kept: tuple[Array, Array] | None
    far: bool = False

    @cached_property
    def weight_logs(self) -> tuple[Array, Array]:
        """The logarithms of the weights (B, n) and (B, m), 0 in empty bins."""
        xp = self.problem.xp
        log_a, log_b = (xp.log(xp.where(w > 0, w, 1)) for w in (self.problem.a, self.problem.b))
        return log_a, log_b

    @cached_property
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
        return f + means.mean_less_cost(g, eps, 1), g + means.mean_less_cost(f, eps, 0)

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

    def feasible(self, along: Directions) -> Directions:
        """Return directions whose weights are `projected`."""
        if along.a is None and along.b is None:
            return along
        zero = self.problem.xp.zeros_like(self.problem.a), self.problem.xp.zeros_like(self.problem.b)
        of_a, of_b = self.projected(*(z if v is None else v for v, z in zip(along[:2], zero, strict=True)))
        return along._replace(a=None if along.a is None else of_a, b=None if along.b is None else of_b)
