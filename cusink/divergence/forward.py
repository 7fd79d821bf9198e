"""Sinkhorn divergences: regularised costs without what the regularisation adds to them."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

import numpy as np

from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps, relative_or_numbers
from cusink.checks.scalars import flag, tolerance
from cusink.convergence.rules import ANNEAL_ABOVE
from cusink.costs.cost import Cost
from cusink.costs.ground import CloudMetric
from cusink.costs.measures import Measures
from cusink.costs.metric import Metric
from cusink.divergence import checks
from cusink.divergence.pairs import DivergencePairs, divergences, without_rounding
from cusink.divergence.result import SinkhornDivergence
from cusink.divergence.selves import self_terms
from cusink.divergence.values import range_of, value_in_float64
from cusink.errors import warn_if_unconverged
from cusink.operand import eps_of_each
from cusink.solver import checks as solver_checks
from cusink.solver.each import HowToSolve, solve_each
from cusink.solver.form import form_of
from cusink.solver.newton import sharing
from cusink.solver.pairs.checks import are_measures, eps_of_pairs, normalised_measures, pairs_of_measures, unused
from cusink.solver.pairs.solve import warn_of_pairs
from cusink.solver.prices import alike, own_prices
from cusink.solver.problem import CheckedProblem, Problem
from cusink.solver.values import values
from cusink.types import Array, HostArray, Method, Overrelaxation, Reach, Tolerance
from cusink.workers import shares_out

__all__ = ["sinkhorn_divergence"]


@overload
def sinkhorn_divergence(
    a: Measures,
    b: Measures,
    C: CloudMetric | Metric,
    *,
    eps: float | Array,
    reach: float | tuple[float | None, float | None] | None = None,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    memory_limit: int | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> DivergencePairs: ...


@overload
def sinkhorn_divergence(
    a: Array | None,
    b: Array | None,
    C: Any,
    *,
    eps: float | Array | RelativeEps,
    C_aa: Array | None = None,
    C_bb: Array | None = None,
    reach: float | tuple[float | None, float | None] | None = None,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    memory_limit: int | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> SinkhornDivergence: ...


@memory_advice("Solve fewer pairs at a time: pass a part of the rows of 'a' and 'b' (and of a batched 'C') per call")
@shares_out
def sinkhorn_divergence(
    a: Array | None,
    b: Array | None,
    C: Any,
    *,
    eps: float | Array | RelativeEps,
    C_aa: Array | None = None,
    C_bb: Array | None = None,
    reach: float | tuple[float | None, float | None] | None = None,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    memory_limit: int | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> SinkhornDivergence | DivergencePairs:
    """Compare measures by the Sinkhorn divergence, which is zero where they are equal.

    Parameters
    ----------
    a : array, shape (n,) or (B, n), or None, or Measures
        Source weights, as for `cusink.sinkhorn`.
    b : array, shape (m,) or (B, m), or None, or Measures
        Target weights.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or Grid, or str, or Metric
        Cost. A `cusink.PointCloud` or `cusink.Grid` knows the costs within `a` and within `b`. An array stands for bins
        that `a` and `b` share, so that it must be symmetric with a zero diagonal, unless `C_aa` and `C_bb` are given.
        For `cusink.Measures` it is the name of a metric, or a `cusink.Metric`.
    eps : float, or array, shape (B,), or RelativeEps
        Regularisation in the unit of `C`, for all pairs or one for each, as for `cusink.sinkhorn`.
    C_aa : array, shape (n, n) or (B, n, n), optional
        Cost between the bins of `a`, symmetric.
    C_bb : array, shape (m, m) or (B, m, m), optional
        Cost between the bins of `b`, symmetric.
    reach : float, or pair of float or None, optional
        Price of marginals that differ, as for `cusink.sinkhorn`; masses may then be unequal. Of a pair, `a` has the
        first with itself, and `b` the second. Where both are unlike, equal measures do not have the value 0.
    max_iter : int
        Iterations at most, of each of the three problems.
    tol : "auto", float or None
        Marginal error at which a problem stops, as for `cusink.sinkhorn`.
    check_every : int
        Iterations between two looks at the error.
    method : {"auto", "log", "scaling"}
        As for `cusink.sinkhorn`.
    overrelaxation : "auto", float in [1, 2) or None
        As for `cusink.sinkhorn`, for the problem of `a` and `b`.
    memory_limit : int, optional
        Bytes that the kernel of a `cusink.PointCloud` may take.
    normalise : bool
        Divide the weights by their sums, as for `cusink.sinkhorn`.
    check : bool
        False skips the checks of the values of the input.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    SinkhornDivergence or DivergencePairs
        The divergence, potentials, error, iterations; per pair, of shape () or (B,). `cusink.DivergencePairs` for
        `cusink.Measures`.

    Raises
    ------
    TypeError
        An input of the wrong kind, library or dtype.
    ValueError
        An input of the wrong shape or with forbidden values, a `C` that does not say what `a` costs to itself.
    MemoryError
        With what to change.

    Warns
    -----
    ConvergenceWarning
        If one of the three problems of a pair did not reach `tol`.

    Notes
    -----
    ``S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2``, with ``eps / 2 (mass_a - mass_b)**2`` added for `reach`. Where
    ``exp(-C / eps)`` is positive definite, as for "sqeuclidean", "euclidean" and "cityblock", it is positive, convex in
    each of a and b, and zero for equal measures only. Its error is of the order of eps times the square of `tol`; in
    float32 the values are taken in float64 from potentials in float32, so that nothing cancels. What is negative by no
    more than rounding and the marginal error explain is returned as 0. For a `reach` of two unlike prices the values
    are returned as they are, and equal measures have one above 0 in general.

    References
    ----------
    J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019.
    T. Sejourne et al., Sinkhorn divergences for unbalanced optimal transport, 2019.

    Examples
    --------
    >>> import cusink
    >>> a, b = [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    >>> C = cusink.cost_matrix([0.0, 1.0, 2.0])
    >>> print(f"{cusink.sinkhorn_divergence(a, b, C, eps=0.5).divergence:.4f}")
    1.0000
    >>> print(f"{cusink.sinkhorn_divergence(a, a, C, eps=0.5).divergence:.4f}")
    0.0000
    """
    del workers  # `shares_out` has read it
    tol = tolerance(tol, a, b, C)
    eps = relative_or_numbers(eps)
    prices = solver_checks.reach(reach, method)
    one_price = not solver_checks.for_each_side(reach)
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    if are_measures(a, b):
        unused(C_aa=C_aa, C_bb=C_bb)
        if flag("normalise", normalise):
            a, b = normalised_measures(a, b)
        pairs = pairs_of_measures(a, b, C, prices is None, flag("check", check))
        call: Callable[..., Any] = functools.partial(
            sinkhorn_divergence,
            reach=reach,
            max_iter=max_iter,
            tol=tol,
            check_every=check_every,
            method=method,
            overrelaxation=overrelaxation,
            memory_limit=memory_limit,
            check=False,
        )
        by = eps_of_pairs(eps_of_each(eps, pairs.clouds()), pairs)
        out = divergences(pairs, by, options, prices, one_price, call, memory_limit)
        warn_of_pairs(out.converged, out.error, tol, max_iter)
        return out
    given = solver_checks.problem(
        a, b, C, eps=eps, check=check, memory_limit=memory_limit, reach=prices, normalise=normalise
    )
    of_a, of_b = checks.self_costs(C, C_aa, C_bb, given, memory_limit, check)
    of_one = [given.batch_of_one if own is None else np.ndim(own) == 3 and len(own) == 1 for own in (C_aa, C_bb)]
    if prices is not None:
        solver_checks.reach_in_range(prices, given.C.dtype.name)
        for weights in (given.a, given.b) if check else ():
            mass = weights.sum(axis=1, dtype=np.float64)
            solver_checks.values_in_range((mass, mass), given.eps, prices, given.C.dtype)
    xp = given.C.xp
    own = self_terms(given, (of_a, of_b), prices, options)
    # With prices float32 may turn out to have too few digits, and points have more of them than their costs.
    cost = given.C.kept() if prices is None else given.C
    low, high = cost.range()
    equal = _equal(given, of_a, of_b, C_aa is None and C_bb is None, prices)
    near = high - low <= 2 * ANNEAL_ABOVE * np.min(given.eps) or bool(equal.all())
    init = (own.f, own.g) if near else None  # the solution, if a and b are equal
    together = sharing(len(given.a), cost.shared)
    how = HowToSolve(options, prices, together=together, coarse=not equal.all())
    pair, shift = solve_each(cost, given.a, given.b, given.eps, how, init=init)

    error = np.maximum(pair.error, own.error)
    f, g = pair.f, pair.g
    if equal.any():  # one problem three times: with one solution, all of its terms cancel
        f, g = (xp.where(equal[:, None], own.f, x) for x in (f, g))
        own = own._replace(g=xp.where(equal[:, None], own.f, own.g))
        error = np.where(cost.to_host(equal), own.error, error)
        shift = None if shift is None else xp.where(equal, 0, shift)
    cross = Problem.of(given, f, g, prices, shift)
    alone = replace(cross, shift=None if prices is None else xp.zeros(len(given.a)))
    of_aa, of_bb = (replace(alone, reach=own_prices(prices, k), batch_of_one=of_one[k]) for k in range(2))
    problems = (
        cross,
        replace(of_aa, b=given.a, C=of_a, f=own.f, g=own.f, images=cross.images[:1] * 2),
        replace(of_bb, a=given.b, C=of_b, f=own.g, g=own.g, images=cross.images[1:] * 2),
    )
    converged = error <= (math.inf if options.tol is None else options.tol)
    later = pair.error >= own.error
    effort = (np.where(later, pair.n_iter, own.n_iter), np.where(later, pair.needed, np.nan))
    warn_if_unconverged(converged, error, options.tol, options.max_iter, effort=effort, dtype=pair.computed)
    forms = form_of(pair), *own.forms
    divergence = xp.where(equal, 0, _divergence(cross, cost, own.reg_cost, error, exact=not forms[0].loss))
    numbers = {"divergence": divergence, "error": error}
    numbers = {name: cross.to_user(xp.asarray(value)) for name, value in numbers.items()}
    for name, value in (("n_iter", pair.n_iter), ("converged", converged)):
        numbers[name] = xp.asarray(value) if given.batched else xp.asarray(value)[0]
    f, g = cross.shown_potentials()
    return SinkhornDivergence(
        problems=problems,
        own_costs=of_a.stored and not (of_a is cost and of_b is cost),
        one_price=one_price,
        forms=forms,
        f=cross.bins_to_user(f, 0),
        g=cross.bins_to_user(g, 1),
        f_self=cross.bins_to_user(own.f, 0),
        g_self=cross.bins_to_user(own.g, 1),
        **numbers,
    )


def _equal(given: CheckedProblem, of_a: Cost[Any], of_b: Cost[Any], one_metric: bool, prices: Reach | None) -> Array:
    """Return for which problems (B,) both measures are the same, and all three of their problems with them."""
    C, a, b = given.C, given.a, given.b
    none: Array = C.xp.zeros(len(a), bool)
    if a.shape != b.shape or not alike(prices):
        return none
    if of_a is C and of_b is C:
        return (a == b).all(axis=1)
    if not one_metric or C.stored or C.data.x.shape != C.data.y.shape:
        return none
    return (a == b).all(axis=1) & C.data.same_points()


def _divergence(cross: Problem, cost: Cost[Any], of_self: Array, error: HostArray, exact: bool) -> Array:
    """Return the divergence (B,) in float64; `of_self` is the sum of the half values of both self-terms.

    `cost` is that of the pair, or what is kept of it. Differences of values that are almost equal need more digits than
    potentials in float32 have, or such as are not `exact` softmins of each other.
    """
    xp = cross.xp
    mass_a, mass_b = (x.sum(axis=1, dtype=np.float64) for x in (cross.a, cross.b))
    exact = exact and cross.a.dtype == np.float64
    of_pair = values(cross)[0] if exact else value_in_float64(replace(cross, C=cost), mass_a)
    out = of_pair - of_self
    if cross.reach is not None:
        out += cross.eps_as(1) / 2 * (mass_a - mass_b) ** 2
    if not alike(cross.reach):  # no rule says that it is not negative
        return out
    spread = sum(range_of(xp, w > 0, p) for w, p in ((cross.a, cross.f), (cross.b, cross.g)))
    return without_rounding(xp, out, of_pair, of_self, (cross.eps_as(1) + spread) * mass_a, xp.asarray(error))
