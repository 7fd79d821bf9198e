"""Solve pairs of measures of unequal sizes: together where that is possible, else as batches of padded problems."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from cusink.checks.arrays import kind, narrowed, to_host
from cusink.checks.scalars import integer, positive_bytes
from cusink.convergence.options import Options
from cusink.costs.blockwise import check_stored_row
from cusink.costs.clouds import PointCloud
from cusink.costs.operators import Operators
from cusink.deferred import cached_property
from cusink.errors import ConvergenceWarning, deferred_warnings, warn, warn_if_unconverged
from cusink.operand import operators
from cusink.solver.pairs.at_once import solve_at_once
from cusink.solver.pairs.batches import Batch, batches
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side, put, put_in_order, rows, weight_rows
from cusink.solver.pairs.selves import with_selves
from cusink.solver.pairs.together import Together, can_be_solved_together, solve_together
from cusink.solver.prices import alike
from cusink.types import Array, Eps, Reach

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class SolvedPairs(Generic[R]):
    """Checked pairs, what was solved together, the result of each batch of the others, and the eps of each pair.

    `make` makes the result of a batch of pairs that were solved together; `reach` are the prices of the marginals.
    """

    given: CheckedPairs
    eps: Eps
    together: Together | None
    others: tuple[tuple[Batch, R], ...]
    make: "Callable[[SolvedPairs[R], Batch], R]"
    reach: Reach | None
    memory_limit: int | None

    @classmethod
    def of(
        cls,
        given: CheckedPairs,
        eps: Eps,
        options: Options,
        reach: Reach | None,
        own: bool,
        call: Callable[..., R],
        make: "Callable[[SolvedPairs[R], Batch], R]",
        memory_limit: int | None,
    ) -> "SolvedPairs[R]":
        """Solve all pairs.

        `call` solves those that are not solved together; it takes weights (P, n) and (P, m), a cloud between points
        (P, n, d) and (P, m, d), and `eps`. `own` asks for the solutions of each measure with itself.
        """
        limit = None if memory_limit is None else positive_bytes(memory_limit)
        if limit is not None:
            check_stored_row(limit, max(int(side.sizes.max()) for side in (given.A, given.B)))
        together: Together | None = None
        if given.ground.has_kernels and can_be_solved_together(options):
            every = np.broadcast_to(eps, given.count)
            solve = operators("points", given.xp).solve_ragged
            if given.xp is np and reach is None:
                together = solve_together(given, every, options, own, limit)
            elif solve is not None and own and alike(reach):  # one launch has two prices, self-terms four
                found = solve_at_once(
                    solve, with_selves(given, reach is None), np.tile(every, 3), options, reach, limit
                )
                together = None if found is None else Together.of_divergences(found, given)
            elif solve is not None and not own:
                found = solve_at_once(solve, given, every, options, reach, limit)
                together = None if found is None else Together.of(found)
        left = np.ones(given.count, bool) if together is None else ~together.solved
        solved, warned = cls(given, eps, together, (), make, reach, limit), list[tuple[str, type[Warning]]]()
        others = []
        for batch in solved.batches(left):
            with deferred_warnings(warned):
                a, b, cloud, its_eps = solved.problem(batch)
                others.append((batch, call(a, b, cloud, eps=its_eps)))
        for message, category in dict.fromkeys(warned):
            if category is not ConvergenceWarning:  # which is given once, for all pairs
                warn(message, category)
        return cls(given, eps, together, tuple(others), make, reach, limit)

    def batches(self, among: Any) -> list[Batch]:
        """Divide the pairs that are `among` (K,) them into batches."""
        # Costs without kernels are made in float64.
        itemsize = 8 if self.given.dtype == np.float64 or not self.given.ground.has_kernels else 4
        return batches((self.given.A.sizes, self.given.B.sizes), itemsize, self.memory_limit, among)

    def problem(self, batch: Batch) -> tuple[Array, Array, PointCloud, Eps]:
        """Return weights, the cost and eps of a batch of padded problems."""
        given = self.given
        sides = (given.A, batch.n), (given.B, batch.m)
        a, b = (weight_rows(given.xp, side, batch.pairs, width) for side, width in sides)
        x, y = (rows(given.xp, side, side.points, batch.pairs, width) for side, width in sides)
        eps = self.eps[batch.pairs] if isinstance(self.eps, np.ndarray) else self.eps
        return a, b, given.cloud(x, y), eps

    @cached_property
    def parts(self) -> tuple[tuple[Batch, R], ...]:
        """The results of batches of all pairs."""
        if self.together is None:
            return self.others
        made = ((batch, self.make(self, batch)) for batch in self.batches(self.together.solved))
        return (*made, *self.others)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are met."""
        return self.reach is None

    @property
    def known(self) -> Together:
        """What was solved together."""
        assert self.together is not None
        return self.together

    @property
    def ops(self) -> Operators[Any]:
        """The operators of costs between points."""
        return operators("points", self.given.xp)

    def shown(self) -> tuple[Array, Array]:
        """Return the potentials (N,) and (M,) of what was solved together, with the shift between both."""
        known, given = self.known, self.given
        if known.shift is None:
            return known.f, known.g
        of_a, of_b = (side.spread(given.xp, known.shift) for side in (given.A, given.B))
        return known.f + of_a, known.g - of_b

    def shift(self, batch: Batch) -> Array | None:
        """Return the shifts (P,) between the potentials of a batch."""
        known = self.known.shift
        return None if known is None else known[self.given.xp.asarray(batch.pairs)]

    def rows(self, batch: Batch, f: Array, g: Array) -> tuple[Array, Array]:
        """Return values (N,) and (M,) of both sides as rows (P, n) and (P, m) of a batch."""
        sides = (self.given.A, f, batch.n), (self.given.B, g, batch.m)
        of_f, of_g = (rows(self.given.xp, side, x, batch.pairs, width) for side, x, width in sides)
        return of_f, of_g

    def values(self, name: str, known: Array | None) -> Array:
        """Return an attribute (P,) of the results for all pairs (K,), of which those solved together are `known`."""
        out = self._narrowed(known)
        for batch, result in self.others:
            out = put_in_order(self.given.xp, out, batch.pairs, getattr(result, name), self.given.count)
        return out

    def flat(self, name: str, side: Side, known: Array | None) -> Array:
        """Return an attribute (P, n) of the results for all points (N,) of a side, item after item."""
        out = self._narrowed(known)
        for batch, result in self.others:
            out = put(self.given.xp, side, out, batch.pairs, getattr(result, name))
        return out

    def _narrowed(self, known: Array | None) -> Array | None:
        """Return values in the dtype of the user, to be completed."""
        if known is None or known.dtype.kind != "f":
            return None if known is None else known.copy()
        return narrowed(known, self.given.dtype, self.given.xp).copy()

    def place(self, k: int) -> tuple[int, R, int]:
        """Return the number of a pair, which may count from the end, the result it is in, and its row there."""
        count, number = self.given.count, integer(k)
        if number is None:
            raise TypeError(f"the number of a pair must be an integer; got {kind(k)}. Take pairs one at a time")
        k = number
        if not -count <= k < count:
            raise IndexError(f"the number of a pair must be from {-count} to {count - 1}; got {k}")
        k %= count
        result, row = next(
            (result, int(np.flatnonzero(batch.pairs == k)[0])) for batch, result in self.parts if k in batch.pairs
        )
        return k, result, row


def warn_of_pairs(converged: Array, error: Array, tol: float | None, max_iter: int) -> None:
    """Emit one `ConvergenceWarning` if some of the pairs (K,) missed `tol`."""
    warn_if_unconverged(to_host(converged), to_host(error), tol, max_iter)
