"""Gradients of the Sinkhorn divergence, from its solved problems alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import narrowed
from cusink.costs.ragged import RaggedGradients
from cusink.deferred import cached_property
from cusink.divergence import checks
from cusink.divergence.pairs import DivergencePairs
from cusink.divergence.result import SinkhornDivergence
from cusink.gradients import checks as gradients_checks
from cusink.gradients.pairs import PairTerms, PerPair
from cusink.gradients.parts import Cotangents, Terms
from cusink.gradients.ragged import divergence_gradients_at_once
from cusink.gradients.system import LinearSolve
from cusink.gradients.terms import GradientTerms
from cusink.gradients.unbalanced import unbalanced_terms
from cusink.solver.pairs.batches import Batch
from cusink.solver.pairs.ragged import Side, centred, in_order, put
from cusink.solver.pairs.solve import SolvedPairs
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array

__all__ = [
    "DivergenceGradients",
    "sinkhorn_divergence_adjoint",
]

NOTHING_TO_SOLVE = LinearSolve(1.0, 1)  # the gradient of `reg_cost` has no linear system


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DivergenceGradients(Summary):
    """Gradients of ``sum(grad * divergence)`` by the inputs of `cusink.sinkhorn_divergence`.

    All but `a` and `b` are computed when they are first asked for.

    Attributes
    ----------
    a : array, shape (n,) or (B, n)
        By the source weights: ``f - f_self``, of mean zero over the bins; with `reach`, as it is.
    b : array, shape (m,) or (B, m)
        By the target weights.
    """

    a: Array
    b: Array
    _terms: tuple[Terms, Terms, Terms] = field(repr=False)
    _of_masses: Array | float = field(repr=False)
    _own_costs: bool = field(repr=False)
    _one_price: bool = field(repr=False)
    _pulled: Callable[[], tuple[Array, Array]] | None = field(default=None, repr=False)  # the points, if that is known

    @cached_property
    @one_call
    def eps(self) -> Array:
        """By the regularisation: array of shape () or (B,), the share of each problem."""
        return sum(terms.wrt_eps() for terms in self._terms) + self._of_masses

    @cached_property
    @one_call
    def axes(self) -> tuple[Array, ...] | None:
        """By the positions of the cells along each axis of a `cusink.Grid`: arrays of shape (n_k,), one for each axis.

        Summed over the batch. None for other costs.
        """
        found = [part for part in (terms.wrt_axes() for terms in self._terms) if part is not None]
        return tuple(map(sum, zip(*found, strict=True))) if found else None

    @cached_property
    @one_call
    def metric(self) -> dict[str, Array]:
        """By the parameters of the metric of a `cusink.PointCloud`, by name, see `cusink.SinkhornGradients`."""
        of_pair, *of_selves = (terms.wrt_metric() for terms in self._terms)
        return {name: x + sum(own[name] for own in of_selves) for name, x in of_pair.items()}

    @cached_property
    @one_call
    def reach(self) -> Array | None:
        """By the price of the marginals: array of shape () or (B,); None for balanced transport.

        Of a pair of prices, of shape (2,) or (B, 2); 0 where a marginal is met.
        """
        parts = [part for part in (terms.wrt_reach() for terms in self._terms) if part is not None]
        if not parts or self._one_price:
            return sum(part.sum(axis=-1) for part in parts) if parts else None
        of_pair, *of_selves = parts
        out = of_pair.copy()
        for k, own in enumerate(of_selves):
            out[..., k] += own.sum(axis=-1)
        return out

    @cached_property
    @one_call
    def C(self) -> Array | None:
        """By the cost: array of shape (n, m), summed over the batch, or (B, n, m); None for a cost that is not stored.

        Without `C_aa` and `C_bb` it is by the cost of the shared bins, in all three problems.
        """
        of_pair = self._terms[0].wrt_cost()
        if of_pair is None or self._own_costs:
            return of_pair
        return of_pair + self._terms[1].wrt_cost() + self._terms[2].wrt_cost()

    @cached_property
    @one_call
    def C_aa(self) -> Array | None:
        """By the cost between the bins of `a`, if it was given; None else."""
        return self._terms[1].wrt_cost() if self._own_costs else None

    @cached_property
    @one_call
    def C_bb(self) -> Array | None:
        """By the cost between the bins of `b`, if it was given; None else."""
        return self._terms[2].wrt_cost() if self._own_costs else None

    @property
    def x(self) -> Array | None:
        """By the source points of a `cusink.PointCloud`, in their shape; summed over the batch for a shared cloud.

        By the points as sources and as targets, if the cloud was given as `x` alone. None for other costs.
        """
        return self._points[0]

    @property
    def y(self) -> Array | None:
        """By the target points of a `cusink.PointCloud`; None if it was given as `x` alone, and for other costs."""
        return self._points[1]

    @cached_property
    @one_call
    def _points(self) -> tuple[Array | None, Array | None]:
        if self._pulled is not None:
            return self._pulled()
        (x, y), (x_self, _), (y_self, _) = (terms.wrt_points() for terms in self._terms)
        if x is None or x_self is None or y_self is None:
            return None, None
        if y is None:
            return x + x_self.reshape(x.shape) + y_self.reshape(x.shape), None
        return x + x_self.reshape(x.shape), y + y_self.reshape(y.shape)


@one_call
def sinkhorn_divergence_adjoint(
    result: SinkhornDivergence | DivergencePairs, *, grad: Array | float = 1.0
) -> DivergenceGradients:
    """Pull a gradient with respect to Sinkhorn divergences back to what they were computed from.

    Parameters
    ----------
    result : SinkhornDivergence or DivergencePairs
        What `cusink.sinkhorn_divergence` returned. Gradients of pairs of `cusink.Measures` have the shapes of their
        weights and points: (N,) and (N, d).
    grad : array, shape () or (B,), or float
        Derivative of the final loss by each divergence; a number is for every pair.

    Returns
    -------
    DivergenceGradients
        Gradients a, b, eps, C, and for a `cusink.PointCloud` x and y.

    Raises
    ------
    TypeError
        A result of another kind, a gradient of another library or dtype.
    ValueError
        A gradient of the wrong shape or with values that are not finite.

    Notes
    -----
    The envelope theorem gives all of it from the three solutions: no linear system is solved, and those for a and b
    cost nothing. They are exact at the optimum, and off by about the marginal error short of it.

    Examples
    --------
    >>> import cusink
    >>> cloud = cusink.PointCloud([0.0, 1.0], [2.0, 3.0])
    >>> grads = cusink.sinkhorn_divergence_adjoint(cusink.sinkhorn_divergence(None, None, cloud, eps=0.1))
    >>> print(grads.x.round(3), grads.y.round(3))
    [-2. -2.] [2. 2.]
    """
    if isinstance(result, DivergencePairs):
        return _of_pairs(result, grad)
    gradients_checks.instance("result", result, SinkhornDivergence, "cusink.sinkhorn_divergence")
    cross = result.problems[0]
    grad = checks.cotangent(grad, cross, result.f)
    of_pair, of_aa, of_bb = (
        _terms(problem.in_one_dtype(), share * grad)
        for problem, share in zip(result.problems, (1, -0.5, -0.5), strict=True)
    )
    of_a, of_b = of_pair.wrt_a() + 2 * of_aa.wrt_a(), of_pair.wrt_b() + 2 * of_bb.wrt_a()
    of_masses: Array | float = 0
    if cross.reach is not None:
        excess = cross.a.sum(axis=1, dtype=np.float64) - cross.b.sum(axis=1, dtype=np.float64)
        of_masses = cross.to_user(grad * excess**2 / 2)
        step = (grad * cross.eps_as(1) * excess)[:, None].astype(cross.a.dtype)
        of_a, of_b = of_a + step, of_b - step
    return DivergenceGradients(
        a=cross.bins_to_user(of_a, 0),
        b=cross.bins_to_user(of_b, 1),
        _terms=(of_pair, of_aa, of_bb),
        _of_masses=of_masses,
        _own_costs=result.own_costs,
        _one_price=result.one_price,
    )


def _of_pairs(result: DivergencePairs, grad: Array | float) -> DivergenceGradients:
    """Return the gradients of pairs of measures: by all weights and all points, item after item."""
    if grad is None:
        raise TypeError("'grad' must be a number or an array of the shape of the divergence; got None")
    solved, given = result.solved, result.solved.given
    every = _PairGradients(solved, PerPair(given, result.f, {"grad": grad}))
    a, b = every.wrt_weights()
    sides = (given.A, given.B), (given.A, given.A), (given.B, given.B)
    of_pair, of_aa, of_bb = (
        PairTerms(given, pair, partial(every.terms, k), partial(every.found, k)) for k, pair in enumerate(sides)
    )
    of_masses: Array | float = 0
    if not solved.balanced:
        of_others = ((batch.pairs, part._of_masses) for batch, part in every.others)
        of_masses = in_order(given.xp, of_others, given.count, every.of_masses())
    return DivergenceGradients(
        a=a,
        b=b,
        _terms=(of_pair, of_aa, of_bb),
        _of_masses=of_masses,
        _own_costs=False,
        _one_price=result.one_price,
        _pulled=every.wrt_points if every.knows_points else None,
    )


class _PairGradients:
    """Gradients of pairs: of those that were solved together from what is known, of the others batch by batch."""

    def __init__(self, solved: SolvedPairs[SinkhornDivergence], derivatives: PerPair) -> None:
        self.solved, self.given, self.derivatives = solved, solved.given, derivatives
        self.others = [self._pulled(batch, part) for batch, part in solved.others]
        together = solved.together
        self.knows_points = together is not None and together.pulled is not None

    def _pulled(self, batch: Batch, part: SinkhornDivergence) -> tuple[Batch, DivergenceGradients]:
        return batch, sinkhorn_divergence_adjoint(part, **self.derivatives.of(batch))

    @cached_property
    def _every(self) -> list[tuple[Batch, DivergenceGradients]]:
        made = self.solved.parts[: len(self.solved.parts) - len(self.others)]
        return [*(self._pulled(batch, part) for batch, part in made), *self.others]

    @cached_property
    def _at_once(self) -> tuple[RaggedGradients, RaggedGradients, RaggedGradients] | None:
        return divergence_gradients_at_once(self.solved, self.derivatives.every("grad"))

    def found(self, k: int) -> RaggedGradients | None:
        """Return what a device finds at once: of the pairs, of the first measures, of the second ones."""
        return None if self._at_once is None else self._at_once[k]

    def terms(self, k: int) -> list[tuple[Batch, Terms]]:
        """Return the terms of all batches: of the pairs, of the first measures, of the second ones."""
        every = self._every if self._at_once is None else self.others
        return [(batch, part._terms[k]) for batch, part in every]

    def wrt_weights(self) -> tuple[Array, Array]:
        """Return the gradients (N,) and (M,) by all weights."""
        known, given = self.solved.together, self.given
        differences: tuple[Any, Any] = (None, None)
        if known is not None and known.own is not None:
            (f, g), own = self.solved.shown(), known.own
            differences = self._rate(f, own.f, given.A), self._rate(g, own.g, given.B)
        out = []
        for side, name, of_known in zip((given.A, given.B), "ab", differences, strict=True):
            of_all = self._of_all(side, of_known, name)
            out.append(centred(given.xp, side, of_all) if self.solved.balanced else of_all)
        return out[0], out[1]

    def _rate(self, potential: Array, of_self: Array, side: Side) -> Array:
        """Return the derivatives (N,) of each divergence by the weights of a side, up to a constant if balanced."""
        if self.solved.reach is None:
            return potential - of_self
        xp, rho = self.given.xp, self.solved.reach[0]  # that of both sides, where pairs are solved together
        eps = side.spread(xp, xp.zeros(self.given.count) + xp.asarray(self.solved.eps))
        return (rho + eps) * (xp.exp(-of_self / rho) - xp.exp(-potential / rho))

    def of_masses(self) -> Array | None:
        """Return the gradients (K,) by eps of what masses that differ cost, of pairs that were solved together."""
        if self.solved.together is None:
            return None
        given, (of_a, of_b) = self.given, self.given.masses
        out = given.xp.asarray((of_a - of_b) ** 2 / 2) * self.derivatives.every("grad")
        return narrowed(out, given.dtype, given.xp)

    def wrt_points(self) -> tuple[Array, Array]:
        """Return the gradients (N, d) and (M, d) by all points."""
        x, y = self.solved.known.pulled or (None, None)
        return self._of_all(self.given.A, x, "x"), self._of_all(self.given.B, y, "y")

    def _of_all(self, side: Side, rate: Array | None, name: str) -> Array:
        """Return gradients of all points of a side, given the derivative of each divergence by its points."""
        out, xp = None, self.given.xp
        if rate is not None:
            grad = xp.zeros(self.given.count) + self.derivatives.every("grad")
            each = side.spread(xp, grad).reshape(-1, *(1,) * (rate.ndim - 1))
            out = narrowed(each * rate, self.given.dtype, xp)
        for batch, part in self.others:
            out = put(xp, side, out, batch.pairs, getattr(part, name))
        assert out is not None
        return out


def _terms(problem: Problem, grad: Array) -> GradientTerms:
    """Return the terms of the gradients of ``grad * reg_cost`` (B,) of one of the three problems."""
    if problem.reach is not None:
        return unbalanced_terms(problem, Cotangents(reg_cost=grad), NOTHING_TO_SOLVE)[0]
    return GradientTerms(problem=problem, level=grad)
