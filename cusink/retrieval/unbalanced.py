"""Pairs whose marginals may differ from the weights at a price: how they are solved, and bounds on their values."""

import functools
from dataclasses import dataclass
from typing import Any

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.solver.loop import Start, solve
from cusink.solver.newton import TILE
from cusink.solver.prices import alike
from cusink.solver.solution import Solution
from cusink.solver.unbalanced import UnbalancedIteration, partnered
from cusink.types import Array, Reach


def mirrored(C: Cost[Any], reach: Reach | None) -> bool:
    """Whether the pair (j, i) of items of one collection has the distance of the pair (i, j)."""
    return C.symmetric and alike(reach)


@dataclass(frozen=True)
class HowToPair:
    """What all pairs of a call share: eps, numbers between which the costs lie, and the prices of the marginals."""

    eps: float
    span: tuple[float, float]
    reach: Reach | None

    def solve(
        self, C: Cost[Any], a: Array, b: Array, options: Options, potentials: bool
    ) -> tuple[Solution, Array | None]:
        """Solve problems a (K, n), b (K, m) on some bins; with prices return the shifts (K,) of the potentials too."""
        if self.reach is None:
            found = solve(
                C, a, b, self.eps, options, span=self.span, costs_of=C.at, together=TILE, potentials=potentials
            )
            return found, None
        shift = C.xp.zeros(len(a))
        start: Start = functools.partial(UnbalancedIteration, reach=self.reach, shift=shift)
        return solve(C, *partnered(C, a, b), self.eps, options, start=start, span=self.span), shift
