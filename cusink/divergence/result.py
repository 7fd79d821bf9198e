"""What `cusink.sinkhorn_divergence` returns."""

from dataclasses import dataclass, field

from cusink.solver.form import SinkhornForm
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array

__all__ = [
    "SinkhornDivergence",
]


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
    forms : tuple of three SinkhornForm, or None
        Which form solved each of ``OT(a, b)``, ``OT(a, a)`` and ``OT(b, b)``, as `SinkhornResult.form`. None for a pair
        of `cusink.DivergencePairs`.
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
    forms: tuple[SinkhornForm, SinkhornForm, SinkhornForm] | None = field(default=None, repr=False)
    one_price: bool = field(default=True, repr=False)  # whether `reach` was one number, for both sides
