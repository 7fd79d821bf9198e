"""Gradients of pairs of `cusink.Measures`: those of batches, without what is in their padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.checks.arrays import all_widened, array_module, in_range
from cusink.checks.scalars import real
from cusink.costs.ragged import RaggedGradients
from cusink.gradients.parts import Terms
from cusink.solver.pairs.batches import Batch
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side, centred, flat, in_order
from cusink.types import Array


@dataclass(frozen=True, eq=False)
class PairTerms:
    """The terms of all batches of pairs of two sides, which are made when they are first needed.

    So are the gradients of pairs that are in no batch, which `found` returns.
    """

    given: CheckedPairs
    sides: tuple[Side, Side]
    make: Callable[[], Sequence[tuple[Batch, Terms]]]
    found: Callable[[], RaggedGradients | None]

    @property
    def known(self) -> RaggedGradients | None:
        """The gradients of pairs that are in no batch."""
        return self.found()

    @property
    def parts(self) -> Sequence[tuple[Batch, Terms]]:
        """The terms."""
        return self.make()

    def wrt_a(self) -> Array:
        """Return the gradients (N,) with respect to the source weights."""
        parts = ((batch.pairs, terms.wrt_a()) for batch, terms in self.parts)
        return flat(self.given.xp, self.sides[0], parts, None if self.known is None else self.known.a)

    def wrt_b(self) -> Array:
        """Return the gradients (M,) with respect to the target weights."""
        parts = ((batch.pairs, terms.wrt_b()) for batch, terms in self.parts)
        return flat(self.given.xp, self.sides[1], parts, None if self.known is None else self.known.b)

    def wrt_cost(self) -> None:
        """Return None: no cost is stored."""
        return

    def wrt_eps(self) -> Array:
        """Return the gradients (K,) with respect to the regularisation."""
        parts = ((batch.pairs, terms.wrt_eps()) for batch, terms in self.parts)
        return in_order(self.given.xp, parts, self.given.count, None if self.known is None else self.known.eps)

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients (N, d) and (M, d) with respect to the points; None for sides that are one."""
        pulled = [(batch.pairs, *terms.wrt_points()) for batch, terms in self.parts]
        known_x, known_y = (None, None) if self.known is None else (self.known.x, self.known.y)
        if known_x is not None and self.sides[0] is self.sides[1]:
            known_x = known_x + known_y
        x = flat(self.given.xp, self.sides[0], ((pairs, of_x) for pairs, of_x, _ in pulled), known_x)
        if any(of_y is None for _, _, of_y in pulled):
            return x, None
        return x, flat(self.given.xp, self.sides[1], ((pairs, of_y) for pairs, _, of_y in pulled), known_y)

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of the metric, by name."""
        out: dict[str, Array] = {}
        for _, terms in self.parts if self.given.ground.factor is not None else ():
            out |= {name: out.get(name, 0) + part for name, part in terms.wrt_metric().items()}
        return out

    def wrt_axes(self) -> None:
        """Return None: no cost is that of a grid."""
        return

    def wrt_reach(self) -> Array | None:
        """Return the gradients (K, 2) with respect to the prices of both marginals; None where these are met."""
        found = ((batch.pairs, terms.wrt_reach()) for batch, terms in self.parts)
        parts = [(pairs, part) for pairs, part in found if part is not None]
        known = None if self.known is None else self.known.reach
        return None if known is None and not parts else in_order(self.given.xp, parts, self.given.count, known)


def wrt_weights(
    given: CheckedPairs, side: Side, parts: Sequence[tuple[Batch, Array]], balanced: bool, known: Array | None
) -> Array:
    """Return gradients (P, n) of batches by weights as (N,); of mean zero over each item, if they are balanced."""
    out = flat(given.xp, side, ((batch.pairs, part) for batch, part in parts), known)
    return centred(given.xp, side, out) if balanced else out


class PerPair:
    """Checked derivatives by the values of all pairs, by name: each a number, an array (K,), or None."""

    def __init__(self, given: CheckedPairs, f: Array, named: dict[str, Any]) -> None:
        """Check the derivatives; `f` is a potential of the result."""
        self.given = given
        self.numbers: dict[str, float | None] = {}
        for name, x in named.items():
            number = None if isinstance(x, array_module(f).ndarray) else real(x)
            if number is not None:
                with np.errstate(over="ignore"):
                    in_range(name, np.full((), number, given.A.weights.dtype), np)
            if x is None or number is not None:
                self.numbers[name] = number
        rest = {name: x for name, x in named.items() if name not in self.numbers}
        checked, xp = all_widened(rest, "result", f[:0])
        for name, x in zip(rest, checked, strict=True):
            if x.shape != (given.count,):
                raise ValueError(f"'{name}' must have shape {(given.count,)} to match the result; got {x.shape}")
            in_range(name, x, xp)
        self.arrays = dict(zip(rest, checked, strict=True))

    def every(self, name: str) -> Any:
        """Return one of them, a number or an array (K,)."""
        return self.arrays.get(name, self.numbers.get(name))

    def of(self, batch: Batch) -> dict[str, Any]:
        """Return the share of a batch."""
        pairs = self.given.xp.asarray(batch.pairs)
        return self.numbers | {name: x[pairs] for name, x in self.arrays.items()}
