"""Entropy-regularised optimal transport of many pairs of measures at once."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps, relative_or_numbers
from cusink.checks.scalars import flag, flags, tolerance
from cusink.costs.ground import CloudMetric
from cusink.costs.measures import Measures
from cusink.costs.metric import Metric
from cusink.deferred import Deferred
from cusink.errors import warn_if_unconverged
from cusink.operand import eps_of_each
from cusink.solver import checks
from cusink.solver.at_once import solve_at_once
from cusink.solver.each import HowToSolve, solve_each
from cusink.solver.form import SinkhornForm, form_of
from cusink.solver.gap import proved_bounds
from cusink.solver.newton import sharing
from cusink.solver.pairs.checks import are_measures, eps_of_pairs, normalised_measures, pairs_of_measures, unused
from cusink.solver.pairs.solve import SolvedPairs, warn_of_pairs
from cusink.solver.problem import CheckedProblem, Problem
from cusink.solver.result import SinkhornPairs, SinkhornResult, joined, made, make_result
from cusink.solver.solution import Callback, FoundLater, Solution
from cusink.solver.values import values
from cusink.types import Array, Method, Overrelaxation, Tolerance
from cusink.workers import shares_out

__all__ = [
    "sinkhorn",
]

VALUES = ("cost", "reg_cost", "entropic_cost", "error")


@overload
def sinkhorn(
    a: Measures,
    b: Measures,
    C: CloudMetric | Metric,
    *,
    eps: float | Array,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    reach: float | tuple[float | None, float | None] | None = None,
    memory_limit: int | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> SinkhornPairs: ...


@overload
def sinkhorn(
    a: Array | None,
    b: Array | None,
    C: Any,
    *,
    eps: float | Array | RelativeEps,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    init: tuple[Array, Array] | None = None,
    reach: float | tuple[float | None, float | None] | None = None,
    callback: Callback | None = None,
    memory_limit: int | None = None,
    gap: float | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> SinkhornResult: ...


@memory_advice("Solve fewer pairs at a time: pass a part of the rows of 'a' and 'b' (and of a batched 'C') per call")
@shares_out
def sinkhorn(
    a: Array | None,
    b: Array | None,
    C: Any,
    *,
    eps: float | Array | RelativeEps,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Overrelaxation = "auto",
    init: tuple[Array, Array] | None = None,
    reach: float | tuple[float | None, float | None] | None = None,
    callback: Callback | None = None,
    memory_limit: int | None = None,
    gap: float | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> SinkhornResult | SinkhornPairs:
    """Solve entropy-regularised optimal transport for one pair of histograms or for many at once.

    Parameters
    ----------
    a : array, shape (n,) or (B, n), or None, or Measures
        Source weights: non-negative, with a positive sum. Zeros are allowed. None stands for uniform weights of sum 1.
        Beside a `cusink.Grid` also images, shape (H, W) or (B, H, W), and volumes, of the shape of its cells.
        `cusink.Measures` are clouds of unequal sizes, which are compared pair by pair with those of `b`.
    b : array, shape (m,) or (B, m), or None, or Measures
        Target weights, of the same sum as `a` unless `reach` is given; as many `cusink.Measures` as in `a`.
    C : array, shape (n, m) or (B, n, m), or PointCloud, or Grid, or str, or Metric
        Cost of moving a unit of mass, shared by all pairs (never copied per pair) or one for each. +inf forbids a
        pair of bins. A `cusink.PointCloud` or `cusink.Grid` is never stored. For `cusink.Measures` it is the name of a
        metric, or a `cusink.Metric` with its options.
    eps : float, or array, shape (B,), or RelativeEps
        Regularisation in the unit of `C`, also called reg, lambda, or blur to the power p: for all problems, or one
        for each. A `cusink.RelativeEps` says it as a share of the largest, the mean or the median cost.
        Pairs of `cusink.Measures` have one number, an array (K,), or a share of the costs of each.
    max_iter : int
        Iterations at most; one iteration is one update of g and one of f, or one evaluation of the plan where a problem
        that hardly converges takes Newton's method.
    tol : "auto", float or None
        Marginal error at which a problem stops: ``sum_j |sum_i P_ij - b_j|`` relative to the mass. Each problem stops
        by itself. "auto" is 1e-6, and 1e-5 where everything given is float32 or half precision: what sums of such
        weights can be told apart by. None runs exactly `max_iter` iterations, which are plain ones unless
        `overrelaxation` is a number.
    check_every : int
        Iterations between two looks at the error.
    method : {"auto", "log", "scaling"}
        "log" takes a log-sum-exp in every step. "scaling" multiplies scalings with ``exp(-C / eps)``, which is a
        matrix product for a shared cost; a problem that leaves the floating-point range stops unconverged. "auto"
        does the same where every single sum is certified to have lost nothing, and goes over to forms of larger
        range, in the end to log-sum-exp, where one is not. All three agree up to rounding.
    overrelaxation : "auto", float in [1, 2) or None
        Over-relaxation of the updates: estimated for each problem from its own convergence, fixed, or none. No value
        makes the iteration diverge.
    init : (f, g), optional
        Potentials to start from, of the shapes of the result's; those that prove to be far off are left out after one
        iteration. Not for `cusink.Measures`, nor is `callback`.
    reach : float, or pair of float or None, optional
        Lets the marginals of the plan differ from `a` and `b`, so that these may have different masses: the price of
        the difference, in the unit of `C`, for both or for each. Mass that would have to go for more than about
        twice the reach is left behind, as is that of a bin whose partners are all forbidden. None, for both or for
        one, stands for a marginal that is met.
    callback : callable, optional
        Called as ``callback(iteration, error)`` at every check, with the latest error of every problem.
    memory_limit : int, optional
        Bytes that a kernel made of a `cusink.PointCloud` or a Euclidean `cusink.Grid` may take; where it would be
        larger, it is recreated in blocks in every iteration, which is slower. If not given, 1 GiB. Of
        `cusink.Measures` it limits what is solved together.
    gap : float, optional
        Relative gap up to which `SinkhornResult.bounds` is to enclose the cost of the problem without regularisation,
        such as 1e-3. All else in the result is as without it. Not with `reach`, nor for `cusink.Measures`.
    normalise : bool
        Divide the weights by their sums, so that masses may be any; gradients are then those by the normalised weights.
    check : bool
        False skips the checks of the values of the input (not those of shapes and types), for speed.
    workers : int, optional
        Threads for clouds of points, `cusink.Measures` and costs of their own, -1 for all cores that the process may
        use; BLAS then has one thread. None for what `cusink.set_workers` says, and BLAS's own threads elsewhere.

    Returns
    -------
    SinkhornResult or SinkhornPairs
        Potentials, the three values, error, iterations; per problem, of shape () or (B,). Of images the potentials are
        images too, as are gradients by them. `cusink.SinkhornPairs` for `cusink.Measures`.

    Raises
    ------
    TypeError
        An input of the wrong kind, library or dtype.
    ValueError
        An input of the wrong shape or with forbidden values; masses whose part of ``reg_cost`` is no number of the
        dtype, see Notes.
    MemoryError
        With what to change; nothing of the failed call stays allocated.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`, or `gap`.

    Notes
    -----
    Solves ``min <P, C> + eps KL(P | a b')`` over the plans P >= 0 with marginals a and b, through the dual potentials
    of ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``. float32 and float64 are computed in their own precision,
    both together in float64; float16 and bfloat16 in float32 and returned as they came; lists and integers follow the
    arrays beside them, and become float64 where there are none. `b` is scaled to the mass of `a`, from which it may
    differ by 1e-2 in half precision, 1e-3 in float32 and 1e-6 in float64, relative to it.

    With ``reach=(rho_a, rho_b)`` it solves ``min <P, C> + eps KL(P | a b') + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)``
    with ``KL(p | q) = sum p log(p / q) - p + q``, see docs/unbalanced.md.

    One pair of large clouds, of 2^25 pairs of points or more, begins from coarser clouds; `n_iter` counts the
    iterations of all points, and `form` says what else was used, see docs/point-clouds.md.

    ``eps m_a m_b``, of the masses, is part of ``reg_cost`` with `reach`, and about ``eps m log(m)`` without: it must be
    a number of the dtype.

    With an eps each, problems of equal eps are solved together; without `reach` those with costs of their own, stored
    or of a cloud that memory holds, are one batch, for which the costs are copied in float64.

    For `gap` a sparse linear programme follows for each pair, over the pairs of bins that the potentials do not rule
    out; see docs/exact.md. It runs on the CPU, one pair after the other, with memory for some copies of one cost.

    Memory is about six arrays of the size of `a` and `b`; with `reach`, about twelve; and a copy of a stored `C`, which
    the result keeps so that it does not follow when arrays of the caller change.

    References
    ----------
    M. Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, NIPS 2013.
    B. Schmitzer, Stabilized sparse scaling algorithms for entropy regularized transport problems, SISC 2019.
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    T. Lehmann et al., A note on overrelaxation in the Sinkhorn algorithm, Optimization Letters 2022.
    T. Sejourne et al., Faster unbalanced optimal transport: translation invariant Sinkhorn, AISTATS 2022.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.cost_matrix([[0.0], [1.0], [2.0]])
    >>> result = cusink.sinkhorn([0.5, 0.5, 0.0], [0.0, 0.5, 0.5], C, eps=0.1)
    >>> print(f"{result.cost:.4f}")
    1.0000
    """
    del workers  # `shares_out` has read it
    tol = tolerance(tol, a, b, C)
    eps = relative_or_numbers(eps)
    prices = checks.reach(reach, method)
    options = checks.options(max_iter, tol, check_every, method, overrelaxation)
    gap = checks.gap(gap, prices)
    if are_measures(a, b):
        unused(init=init, callback=callback, gap=gap)
        if flag("normalise", normalise):
            a, b = normalised_measures(a, b)
        pairs = pairs_of_measures(a, b, C, prices is None, flag("check", check))
        if prices is not None:
            checks.reach_in_range(prices, pairs.computing)
        call: Callable[..., Any] = functools.partial(
            sinkhorn,
            max_iter=max_iter,
            tol=tol,
            check_every=check_every,
            method=method,
            overrelaxation=overrelaxation,
            reach=reach,
            memory_limit=memory_limit,
            check=False,
        )
        by = eps_of_pairs(eps_of_each(eps, pairs.clouds()), pairs)
        out = joined(SolvedPairs.of(pairs, by, options, prices, False, call, made, memory_limit))
        warn_of_pairs(out.converged, out.error, tol, max_iter)
        return out
    flags(check=check, normalise=normalise)
    arrived = checks.arrived(a, b, C, eps=eps, init=init, memory_limit=memory_limit)
    if prices is None and callback is None and gap is None and not normalise:
        at_once = solve_at_once(arrived, options, check)
        if at_once is not None:
            problem, known = at_once
            every = {name: getattr(known, name) for name in VALUES}
            made_at_once = make_result(problem, every, known.n_iter, known.converged, (known.shown_f, known.shown_g))
            return replace(made_at_once, form=SinkhornForm())
    given = checks.checked(arrived, check, prices, normalise)
    checks.callback(callback)
    if prices is not None:
        checks.reach_in_range(prices, given.C.dtype.name)
    together = sharing(len(given.a), given.C.shared)
    how = HowToSolve(
        options,
        prices,
        together=together,
        spanned=True,
        coarse=given.init is None,
        judge=True,
        defer=gap is None,
    )
    found, shift = solve_each(given.C, given.a, given.b, given.eps, how, init=given.init, callback=callback)
    if found.later is not None:
        return _unread(given, found, found.later)
    effort, dtype = (found.n_iter, found.needed), found.computed
    warn_if_unconverged(found.converged, found.error, options.tol, options.max_iter, effort=effort, dtype=dtype)
    problem = Problem.of(given, found.f, found.g, prices, shift)
    if gap is not None:
        problem = replace(problem, proved=proved_bounds(problem, gap))
    reg_cost, entropic_cost = values(problem)
    every = {"cost": found.cost, "reg_cost": reg_cost, "entropic_cost": entropic_cost, "error": found.error}
    return replace(make_result(problem, every, found.n_iter, found.converged), form=form_of(found))


def _unread(given: CheckedProblem, found: Solution, later: FoundLater) -> SinkhornResult:
    """Return the result of balanced problems whose potentials and errors are `later`.

    All that is not there is computed at once: a user who has the potentials, and may change them, has the rest.
    """

    def of_problem() -> dict[str, Array]:
        f, g, _ = later()
        return {"f": f, "g": g}

    def of_result() -> dict[str, Array]:
        error = later()[2]
        reg_cost, entropic_cost = values(problem)
        every = {"cost": found.cost, "reg_cost": reg_cost, "entropic_cost": entropic_cost, "error": error}
        made = make_result(problem, every, found.n_iter, found.converged)
        return {name: getattr(made, name) for name in ("f", "g", "reg_cost", "entropic_cost", "error")}

    potentials, rest = Deferred(of_problem), Deferred(of_result)
    problem = Problem.of(given, potentials, potentials, None, None)
    cost, n_iter, converged = (problem.xp.asarray(x) for x in (found.cost, found.n_iter, found.converged))
    return SinkhornResult(
        f=rest,
        g=rest,
        cost=problem.to_user(cost),
        reg_cost=rest,
        entropic_cost=rest,
        error=rest,
        n_iter=problem.one_or_all(n_iter),
        converged=problem.one_or_all(converged),
        problem=problem,
        form=form_of(found),
    )
