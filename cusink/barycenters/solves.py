"""The transport problems from a cloud whose points move to all clouds, and the objective that is made of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from cusink.barycenters.checks import FreeProblem
from cusink.barycenters.free_result import Start
from cusink.costs.clouds import PointCloud
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.solver.result import SinkhornResult
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Array


class Pulls(NamedTuple):
    """Where points go: a step (n, d), and the mass (n,) that it is a mean over, 0 for points that stay."""

    step: Array
    mass: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Solves:
    """Solved problems of points x (n, d) with weights a (n,), in the order of the clouds.

    `own` is that of the points with themselves, for a debiased objective.
    """

    given: FreeProblem
    x: Array
    a: Array
    clouds: list[SinkhornResult]
    own: SinkhornResult | None
    balanced: bool

    @property
    def starts(self) -> list[Start]:
        """Potentials that the next step starts from, the last for `own`."""
        every = [*self.clouds] if self.own is None else [*self.clouds, self.own]
        return [(result.f, result.g) for result in every]

    @property
    def shared(self) -> list[tuple[float, SinkhornResult]]:
        """The problems with their factors in the objective."""
        out = [(cloud.share, result) for cloud, result in zip(self.given.clouds, self.clouds, strict=True)]
        return out if self.own is None else [*out, (-0.5, self.own)]

    def pulls(self) -> Pulls:
        """Return the step down the gradient whose length is best for plans that stay."""
        xp = self.given.xp
        pull, total = xp.zeros_like(self.x), xp.zeros_like(self.a)
        for cloud, result in zip(self.given.clouds, self.clouds, strict=True):
            mass, means = self._rows(result, cloud.points)
            pull += cloud.share * mass[:, None] * (means - self.x)
            total += cloud.share * mass
        if self.own is not None:
            mass, means = self._rows(self.own, self.x)
            pull -= mass[:, None] * (means - self.x)
        return Pulls(pull / xp.where(total > 0, total, 1)[:, None], total)

    def _rows(self, result: SinkhornResult, values: Array) -> tuple[Any, Any]:
        """Return the mass (n,) of the rows of a plan, and the means (n, d) of values under them."""
        mass = self.a if self.balanced else result.apply(self.given.xp.ones_like(values[:, 0]), axis=1)
        return mass, result.barycentric_map(values, axis=1)

    def objective(self) -> float:
        """Return the weighted sum of costs, or of divergences less what does not depend on x and a."""
        out = sum(share * float(result.reg_cost) for share, result in self.shared)
        return out + sum(eps / 2 * share * difference**2 for share, eps, difference in self._masses())

    def by_weights(self) -> Array:
        """Return the gradient (n,) of the objective by the weights; up to a constant where transport is balanced."""
        out = self.given.xp.zeros_like(self.a)
        for share, result in self.shared:
            gradient = sinkhorn_adjoint(result, grad_reg_cost=1.0)
            out += share * (gradient.a + gradient.b if result is self.own else gradient.a)
        return out + sum(eps * share * difference for share, eps, difference in self._masses())

    def _masses(self) -> list[tuple[float, float, float]]:
        """Return share, eps and difference of masses of each cloud, for the term of divergences with `reach`."""
        if self.own is None or self.balanced:
            return []
        eps, mass = float(self.own.eps), float(self.a.sum())
        return [(cloud.share, eps, mass - float(cloud.weights.sum())) for cloud in self.given.clouds]


def solve_all(
    given: FreeProblem, x: Array, a: Array, *, starts: list[Start] | None, debiased: bool, options: dict[str, Any]
) -> Solves:
    """Solve the problem of each cloud, from the potentials of a step before; `options` are those of `sinkhorn`."""
    count = len(given.clouds)
    starts = [None] * (count + 1) if starts is None else starts
    clouds = [
        sinkhorn(a, cloud.weights, PointCloud(x, cloud.points), init=start, **options)
        for cloud, start in zip(given.clouds, starts[:count], strict=True)
    ]
    own = sinkhorn(a, a, PointCloud(x), init=starts[count], **options) if debiased else None
    return Solves(given=given, x=x, a=a, clouds=clouds, own=own, balanced=options["reach"] is None)
