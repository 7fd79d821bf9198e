"""What `cusink.sinkhorn_divergence` returns."""

from dataclasses import dataclass, field

from cusink.errors import one_call
from cusink.solver.pairs.single import alone
from cusink.solver.pairs.solve import SolvedPairs
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array

__all__ = [
    "DivergencePairs",
    "SinkhornDivergence",
]

VALUES = ("divergence", "error", "n_iter", "converged")  # of every pair


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornDivergence(Summary):
    """The Sinkhorn divergence of one pair of measures, or of a batch.

    Attributes
    ----------
    divergence : array, shape () or (B,)
        ``OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2``, where OT is the `reg_cost` of `cusink.sinkhorn`.
    f, g : array, shape (n,) or (B, n); (m,) or (B, m)
        Potentials of ``OT(a, b)``.
    f_self, g_self : array, shape (n,) or (B, n); (m,) or (B, m)
        The potentials of ``OT(a, a)`` and of ``OT(b, b)``, each of which has one for both sides. ``f - f_self`` is the
        gradient by `a`, up to a constant.
    error : array, shape () or (B,)
        The largest marginal error of the three problems.
    n_iter : array of int, shape () or (B,)
        Iterations taken for ``OT(a, b)``.
    converged : array of bool, shape () or (B,)
        Whether all three errors reached the tolerance.
    """

    divergence: Array
    f: Array
    g: Array
    f_self: Array
    g_self: Array
    error: Array
    n_iter: Array
    converged: Array
    problems: tuple[Problem, Problem, Problem] = field(repr=False)  # of a and b, of a itself, of b itself
    own_costs: bool = field(repr=False)  # whether C_aa and C_bb are arrays that were passed


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DivergencePairs(Summary):
    """Sinkhorn divergences of K pairs of measures of unequal sizes; ``len(pairs)`` is K.

    ``pairs[k]`` is the `cusink.SinkhornDivergence` of pair k alone.

    Attributes
    ----------
    divergence, error, n_iter, converged : array, shape (K,)
        As in `cusink.SinkhornDivergence`.
    f, f_self : array, shape (N,)
        Potentials of all points of the first measures, item after item, as their weights are.
    g, g_self : array, shape (M,)
        Potentials of all points of the second measures.
    """

    divergence: Array
    f: Array
    g: Array
    f_self: Array
    g_self: Array
    error: Array
    n_iter: Array
    converged: Array
    solved: SolvedPairs[SinkhornDivergence] = field(repr=False)

    def __len__(self) -> int:
        return self.solved.given.count

    @one_call
    def __getitem__(self, k: int) -> SinkhornDivergence:
        """Return the divergence of one pair."""
        given = self.solved.given
        k, result, row = self.solved.place(k)
        sides = (given.A, given.B), (given.A, given.A), (given.B, given.B)
        cross, of_a, of_b = (
            alone(given, pair, k, problem, row) for pair, problem in zip(sides, result.problems, strict=True)
        )
        of_f, of_g = given.A.item(k), given.B.item(k)
        return SinkhornDivergence(
            problems=(cross, of_a, of_b),
            own_costs=False,
            f=self.f[of_f],
            g=self.g[of_g],
            f_self=self.f_self[of_f],
            g_self=self.g_self[of_g],
            **{name: getattr(self, name)[k] for name in VALUES},
        )
