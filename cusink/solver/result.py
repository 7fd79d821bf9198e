"""What a solve returns: potentials, values, and what can be made of them without solving again."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.checks.regularisation import RelativeEps, relative_or_numbers
from cusink.checks.scalars import positive_number, tolerance
from cusink.deferred import Deferring
from cusink.solver import checks
from cusink.solver.bounds import bounds
from cusink.solver.extension import SinkhornExtension, extend
from cusink.solver.form import SinkhornForm
from cusink.solver.known import known_solution
from cusink.solver.maps import conditional_means, map_values
from cusink.solver.pairs.batches import Batch
from cusink.solver.pairs.single import alone
from cusink.solver.pairs.solve import SolvedPairs
from cusink.solver.problem import Problem
from cusink.solver.solution import in_range
from cusink.solver.values import values
from cusink.summary import Summary
from cusink.types import Array, Axis, Tolerance

__all__ = [
    "SinkhornPairs",
    "SinkhornResult",
]

Potentials = tuple[Array, Array]
VALUES = ("cost", "reg_cost", "entropic_cost", "error", "n_iter", "converged")  # of every problem


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornResult(Deferring, Summary):
    """Solution of one problem, or of a batch; on the CPU, what needs the potentials may be computed when it is read.

    Attributes
    ----------
    f : array, shape (n,) or (B, n)
        Dual potential of the source, in the unit of the cost. Finite for empty bins too: the derivative of `reg_cost`
        with respect to their weight, up to a constant. Sums of f and g over the bins with weight are equal. Plans and
        gradients are computed from float64 potentials, which these are in the dtype of the inputs.
    g : array, shape (m,) or (B, m)
        Dual potential of the target.
    cost : array, shape () or (B,)
        Transport cost ``<P, C>``, also called E0 or the sharp Sinkhorn loss.
    reg_cost : array, shape () or (B,)
        ``<P, C> + eps KL(P | a b')``, which is ``<a, f> + <b, g>``; the value of GeomLoss and OTT. With `reach`, the
        whole objective of `cusink.sinkhorn`, prices of the marginals included.
    entropic_cost : array, shape () or (B,)
        ``<P, C> - eps H(P)``, Cuturi's and Viehmann's E-lambda.
    error : array, shape () or (B,)
        L1 error of the column marginal relative to the mass; the row marginal is met up to rounding, and for large
        clouds up to less than this error. With `reach`, the distance is that from ``b exp(-g / rho_b)``, the marginal
        of the optimum.
    n_iter : array of int, shape () or (B,)
        Iterations taken.
    converged : array of bool, shape () or (B,)
        Whether `error` reached the tolerance.
    form : SinkhornForm or None
        Which form solved it, coarse to fine or by Newton's method, and the loss that `error` counts. None where no
        solve of its own made the result, as for a pair of `cusink.SinkhornPairs`.
    """

    f: Array
    g: Array
    cost: Array
    reg_cost: Array
    entropic_cost: Array
    error: Array
    n_iter: Array
    converged: Array
    problem: Problem = field(repr=False)
    form: SinkhornForm | None = field(default=None, repr=False)

    @property
    def eps(self) -> float | Array:
        """The regularisation: a number, or an array (B,) of one for each problem."""
        eps = self.problem.eps
        return self.problem.xp.asarray(eps) if isinstance(eps, np.ndarray) else eps

    @staticmethod
    @one_call
    def from_potentials(
        a: Array | None,
        b: Array | None,
        C: Any,
        *,
        eps: float | Array | RelativeEps,
        f: Array | None = None,
        g: Array | None = None,
        reach: float | tuple[float | None, float | None] | None = None,
        tol: Tolerance = "auto",
        check: bool = True,
    ) -> "SinkhornResult":
        """Return the result of potentials that are known, from another solver or a network that predicts them.

        Parameters
        ----------
        a : array, shape (n,) or (B, n), or None
            Source weights, as for `cusink.sinkhorn`.
        b : array, shape (m,) or (B, m), or None
            Target weights.
        C : array, shape (n, m) or (B, n, m), or PointCloud, or Grid
            The cost.
        eps : float, array of shape (B,), or RelativeEps
            Regularisation in the unit of `C`, as for `cusink.sinkhorn`.
        f : array, shape (n,) or (B, n), optional
            Potential of the source, of which g is made where that is not given.
        g : array, shape (m,) or (B, m), optional
            Potential of the target.
        reach : float, or pair of float or None, optional
            Price of marginals that differ, as for `cusink.sinkhorn`.
        tol : "auto" or float
            Marginal error up to which `converged` is true.
        check : bool
            False skips the checks of the values of the weights and costs.

        Returns
        -------
        SinkhornResult
            With g as it was, up to a constant, and f its softmin: rows of the plan have their sums exactly, and `error`
            says by how much columns miss theirs. It does not iterate, and does not warn. With `reach` the constant is
            kept, and f is the best for g: rows sum to ``a exp(-f / rho_a)``, columns are to have ``b exp(-g / rho_b)``.

        Raises
        ------
        TypeError
            As for `cusink.sinkhorn`, or if neither potential is given.
        ValueError
            As for `cusink.sinkhorn`.

        Notes
        -----
        Potentials are those of ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``, weights outside. Those of solvers with
        ``P_ij = exp((f_i + g_j - C_ij) / eps)`` are larger by ``eps log b_j``, which is to be taken off.
        """
        if f is None and g is None:
            raise TypeError("one of 'f' and 'g' must be given; got neither")
        tol = positive_number("tol", tolerance(tol, a, b, C))
        prices = checks.reach(reach)
        given = checks.problem(a, b, C, eps=relative_or_numbers(eps), check=check, reach=prices)
        if prices is not None:
            checks.reach_in_range(prices, given.C.dtype.name)
        name, side, known = ("f", 0, f) if g is None else ("g", 1, g)
        known = checks.potential(name, known, side, given, float(np.min(given.eps)), prices is None)
        with np.errstate(over="ignore", invalid="ignore"):
            problem, found = known_solution(given, 0 if g is None else 1, known, prices)
            reg_cost, entropic_cost = values(problem)
        if not bool(given.C.xp.isfinite(reg_cost).all()):
            largest = float(abs(known).max())
            raise ValueError(f"'{name}' must be such that reg_cost is finite with 'reach'; got sizes up to {largest:g}")
        named = {"cost": found.cost, "reg_cost": reg_cost, "entropic_cost": entropic_cost, "error": found.error}
        return make_result(problem, named, found.n_iter, found.error <= tol)

    @one_call
    def plan(self) -> Array:
        """Return the transport plan, shape (n, m) or (B, n, m): memory of that size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``.
        """
        problem = self.problem.in_float64()
        with np.errstate(over="ignore"):
            plan = problem.C.plan(*problem.logits(), problem.eps)
        if (self.error >= 1).any():  # potentials of no digits: their products may leave the range, but stay numbers
            plan = problem.xp.minimum(plan, float(np.finfo(problem.dtype).max))
        return problem.to_user(plan)

    @one_call
    def apply(self, v: Array, axis: Axis) -> Array:
        """Multiply the plan with vectors, without forming it.

        Parameters
        ----------
        v : array, shape (m,) or (B, m) for axis 1; (n,) or (B, n) for axis 0
            Vectors of any sign.
        axis : {0, 1}
            The axis of the plan to sum over: 1 gives ``P v``, 0 gives ``P' v``.

        Returns
        -------
        array, shape (n,) or (B, n) for axis 1; (m,) or (B, m) for axis 0
            The products.
        """
        problem = self.problem.in_float64()
        v = checks.vector(v, axis, problem).astype(np.float64)
        return problem.bins_to_user(problem.C.apply_plan(*problem.logits(), v, problem.eps, axis), 1 - axis)

    @one_call
    def barycentric_map(self, values: Array, axis: Axis = 1) -> Array:
        """Return the means of values under the rows of the plan, without forming it.

        Parameters
        ----------
        values : array, shape (m,) or (m, d) or (B, m, d) for axis 1; (n,) or (n, d) or (B, n, d) for axis 0
            One value, or d of them, for each bin: with the points of the bins it maps the others to points.
        axis : {0, 1}
            The axis of the plan to sum over: 1 gives ``sum_j P_ij v_j / sum_j P_ij``, 0 the same of columns.

        Returns
        -------
        array, shape (n,) or (n, d) or (B, n, d) for axis 1; (m,) or (m, d) or (B, m, d) for axis 0
            The means. A bin without weight gets the limit for a small weight, and one that `C` forbids all partners 0.
            Their derivatives are those of `cusink.barycentric_map_adjoint`.
        """
        problem, axis = self.problem.in_one_dtype(), checks.plan_axis(axis)
        checked, flat = map_values(values, axis, self.problem)
        side = problem.logits()[axis]
        found = problem.to_user(conditional_means(problem.C, side, checked, problem.eps, axis))
        if (cells := problem.images[1 - axis]) is not None:
            found = found.reshape(*found.shape[:-2], *cells, found.shape[-1])
        return found[..., 0] if flat else found

    @one_call
    def at(self, x: Any = None, y: Any = None) -> SinkhornExtension:
        """Return the solution at new points, for a `C` that is a `cusink.PointCloud`.

        Parameters
        ----------
        x : array, shape (k, d) or (k,), or (B, k, d), optional
            New source points, of the kind of those of the cloud.
        y : array, shape (k, d) or (k,), or (B, k, d), optional
            New target points, in the place of `x`.

        Returns
        -------
        SinkhornExtension
            The potential there, its gradient, and the entropic map.

        Raises
        ------
        TypeError
            Points of another library or dtype, or none.
        ValueError
            Points of another dimension, or so far away that costs over eps have no digits left; a `C` that is no cloud.

        References
        ----------
        A.-A. Pooladian and J. Niles-Weed, Entropic estimation of optimal transport maps, 2021.
        """
        if (x is None) == (y is None):
            raise TypeError(f"one of 'x' and 'y' must be given; got {'neither' if x is None else 'both'}")
        return extend(self.problem, y if x is None else x, 0 if x is None else 1)

    @one_call
    def bounds(self) -> tuple[Array, Array]:
        """Enclose the cost of the unregularised problem.

        Returns
        -------
        lower : array, shape () or (B,)
            A number below ``min <P, C>`` over all plans, converged or not; with `reach` the minimum is that of
            ``<P, C> + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)``.
        upper : array, shape () or (B,)
            A number above it.

        Notes
        -----
        The lower bound is the dual value of potentials made feasible by two c-transforms. The upper bound is the cost
        of the plan made feasible by the rounding of Altschuler, Weed and Rigollet (NIPS 2017). Both are widened by
        what rounding can have done to them. After ``sinkhorn(..., gap=...)`` they are those of a linear programme, and
        as close as was asked for.
        """
        return bounds(self.problem)


def make_result(
    problem: Problem, values: dict[str, Array], n_iter: Array, converged: Array, shown: Potentials | None = None
) -> SinkhornResult:
    """Return the result of a problem, given its values (B,) by name, in the user's shape and library.

    `shown` are its potentials, where they are known to be finite.
    """
    values = {name: problem.to_user(problem.xp.asarray(in_range(x, problem.dtype))) for name, x in values.items()}
    n_iter, converged = (problem.one_or_all(problem.xp.asarray(x)) for x in (n_iter, converged))
    f, g = (problem.bins_to_user(x, side) for side, x in enumerate(shown or problem.shown_potentials()))
    return SinkhornResult(f=f, g=g, n_iter=n_iter, converged=converged, problem=problem, **values)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornPairs(Summary):
    """Solutions of K pairs of measures of unequal sizes; ``len(pairs)`` is K.

    ``pairs[k]`` is the `cusink.SinkhornResult` of pair k alone, with its plan, bounds and derivatives.

    Attributes
    ----------
    f : array, shape (N,)
        Dual potentials of all points of the first measures, item after item, as their weights are.
    g : array, shape (M,)
        Dual potentials of all points of the second measures.
    cost, reg_cost, entropic_cost, error, n_iter, converged : array, shape (K,)
        As in `cusink.SinkhornResult`.
    """

    f: Array
    g: Array
    cost: Array
    reg_cost: Array
    entropic_cost: Array
    error: Array
    n_iter: Array
    converged: Array
    solved: SolvedPairs[SinkhornResult] = field(repr=False)

    def __len__(self) -> int:
        return self.solved.given.count

    @one_call
    def __getitem__(self, k: int) -> SinkhornResult:
        """Return the result of one pair."""
        given = self.solved.given
        k, result, row = self.solved.place(k)
        problem = alone(given, (given.A, given.B), k, result.problem, row)
        values = {name: getattr(self, name)[k : k + 1] for name in VALUES[:4]}
        return make_result(problem, values, self.n_iter[k : k + 1], self.converged[k : k + 1])


def joined(solved: SolvedPairs[SinkhornResult]) -> SinkhornPairs:
    """Join the results of batches and of what was solved together."""
    given, known = solved.given, solved.together
    named: dict[str, Any] = dict.fromkeys((*VALUES, "f", "g"))
    if known is not None:
        named |= {name: getattr(known, name) for name in ("cost", "error", "n_iter")}
        named["f"], named["g"] = solved.shown()
        of_entropy = known.value - given.xp.asarray(solved.eps) * known.entropy
        named |= {"reg_cost": known.value, "entropic_cost": of_entropy, "converged": given.xp.asarray(known.solved)}
    values = {name: solved.values(name, named[name]) for name in VALUES}
    f, g = (solved.flat(name, side, named[name]) for name, side in (("f", given.A), ("g", given.B)))
    return SinkhornPairs(f=f, g=g, solved=solved, **values)


def made(solved: SolvedPairs[SinkhornResult], batch: Batch) -> SinkhornResult:
    """Return the result of a batch of pairs that were solved together."""
    known, (a, b, cloud, eps) = solved.known, solved.problem(batch)
    f, g = solved.rows(batch, known.f, known.g)
    checked = checks.problem(a, b, cloud, eps=eps, check=False, reach=solved.reach)
    problem = Problem.of(checked, f, g, solved.reach, solved.shift(batch))
    reg_cost, entropic_cost = values(problem)
    at = solved.given.xp.asarray(batch.pairs)
    every = {"cost": known.cost[at], "reg_cost": reg_cost, "entropic_cost": entropic_cost, "error": known.error[at]}
    return make_result(problem, every, known.n_iter[at], known.solved[batch.pairs])
