"""What all gradients have in common whose part by the costs is made block by block, in float64."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from cusink.checks.arrays import narrowed
from cusink.costs.cost import GradientBlock
from cusink.gradients.parts import Terms
from cusink.solver.problem import Problem
from cusink.types import Array


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockTerms(Terms, ABC):
    """A problem as it is shown, and gradients by its costs in float64, made block by block."""

    shown: Problem

    @property
    @abstractmethod
    def problem(self) -> Problem:
        """The problem in float64."""

    @abstractmethod
    def _blocks(self, of_eps: Array | None = None) -> Iterator[GradientBlock]:
        """Yield the gradients by costs; add up those by eps, which move Z and not the plan itself."""

    def wrt_cost(self) -> Array | None:
        """Return the gradient with respect to a stored cost, in the shape of `GradientTerms.wrt_cost`."""
        C, shown = self.problem.C, self.shown
        if not C.stored:
            return None
        out = C.xp.zeros(C.shape)
        for problems, rows, gradient in self._blocks():
            if C.shared:
                out[rows] += gradient.sum(axis=0)
            else:
                out[problems, rows] += gradient
        out = narrowed(out, shown.dtype, C.xp)
        if C.shared:
            return out[None] if shown.batch_of_one else out
        return out if shown.batched else out[0]

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud."""
        return self.problem.C.points_adjoint(self._blocks())

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of a metric."""
        return self.problem.C.metric_adjoint(self._blocks())

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """Return the gradients with respect to the positions of the cells of a grid."""
        found = self.problem.C.axes_adjoint(self._blocks())
        return found if found is None else tuple(narrowed(x, self.shown.dtype, self.shown.xp) for x in found)

    def wrt_eps(self) -> Array:
        """Return the gradient with respect to the regularisation, (B,) or ()."""
        return self.shown.to_user(self._summed_eps())

    def _summed_eps(self) -> Array:
        """Return the gradient (B,) by eps in float64."""
        out = self.problem.xp.zeros(len(self.problem.a))
        for _ in self._blocks(out):
            pass
        return out
