"""The work of `cusink.RelativeEps`: a regularisation in the unit of the costs of each problem."""

from dataclasses import dataclass
from typing import Any

from cusink.bridges.options import CostKind
from cusink.bridges.works import Arrays, Inputs, Shapes, Work
from cusink.checks.arrays import array_module, arrays
from cusink.checks.regularisation import RelativeEps, in_units
from cusink.costs.checks import cost_values
from cusink.costs.kinds import named_arrays
from cusink.costs.statistics import statistic
from cusink.operand import eps_of_shared, operand
from cusink.types import Statistic


@dataclass(frozen=True)
class EpsOfCosts(Work):
    """The eps of each cost, through which no gradient goes."""

    cost: CostKind
    share: float
    of: Statistic

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.share, self.of)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of the arrays of one cost."""
        return self.cost.ranks

    @property
    def outputs(self) -> dict[str, int]:
        """The regularisation."""
        return {"eps": 0}

    @property
    def state(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shape of the output."""
        return {"eps": self.batch(given)}

    def run(self, given: Inputs) -> Arrays:
        """Return the regularisation."""
        C = self.cost.build(given)
        if self.cost.kind == "grid":
            some = next(iter(given.values()))
            return {"eps": array_module(some).asarray(eps_of_shared(RelativeEps(self.share, self.of), C), some.dtype)}
        parts, xp, dtype = arrays(**named_arrays(C))
        if self.cost.kind == "dense":
            cost_values(given["C"], xp)
        eps = in_units(RelativeEps(self.share, self.of), statistic(operand(C, xp, dtype, parts), self.of))
        return {"eps": xp.asarray(eps, dtype)}

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return zeros."""
        del state, cotangents
        return {name: given[name] * 0 for name in wanted}

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return zeros."""
        del state, directions
        some = next(iter(given.values()))
        batch = self.batch({name: x.shape for name, x in given.items()})
        return {"eps": array_module(some).zeros(batch, some.dtype)}


def eps_of_grid(eps: RelativeEps, kind: CostKind) -> float:
    """Return the regularisation in the unit of the costs of a grid."""
    return float(eps_of_shared(eps, kind.build({})))
