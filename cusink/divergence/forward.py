"""Sinkhorn divergences: regularised costs without what the regularisation adds to them."""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink.backends.operators import ops_for
from cusink.divergence import checks
from cusink.errors import memory_advice, warn_unconverged
from cusink.solver import checks as solver_checks
from cusink.solver.loop import STEEP, solve
from cusink.solver.problem import Problem
from cusink.solver.symmetric import self_potentials
from cusink.solver.unbalanced import UnbalancedIteration, damped
from cusink.solver.values import values

__all__ = [
    "SinkhornDivergence",
    "sinkhorn_divergence",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class SinkhornDivergence:
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

    divergence: Any
    f: Any
    g: Any
    f_self: Any
    g_self: Any
    error: Any
    n_iter: Any
    converged: Any
    problems: tuple[Problem, Problem, Problem] = field(repr=False)  # of a and b, of a itself, of b itself
    own_costs: bool = field(repr=False)  # whether C_aa and C_bb are arrays that were passed


@memory_advice("Solve fewer pairs at a time: pass a part of the rows of 'a' and 'b' (and of a batched 'C') per call")
def sinkhorn_divergence(
    a,
    b,
    C,
    *,
    eps,
    C_aa=None,
    C_bb=None,
    reach=None,
    max_iter=1000,
    tol=1e-6,
    check_every=10,
    method="auto",
    overrelaxation="auto",
    memory_limit=None,
    check=True,
):
    """Compare measures by the Sinkhorn divergence, which is zero where they are equal.

    Parameters
    ----------
    a, b, C
        As for `cusink.sinkhorn`. A `cusink.PointCloud` or `cusink.Grid` knows the costs within `a` and within `b`. An
        array stands for bins that `a` and `b` share, so that it must be symmetric with a zero diagonal, unless `C_aa`
        and `C_bb` are given.
    eps : float
        Regularisation in the unit of `C`.
    C_aa : array, shape (n, n) or (B, n, n), optional
        Cost between the bins of `a`, symmetric.
    C_bb : array, shape (m, m) or (B, m, m), optional
        Cost between the bins of `b`, symmetric.
    reach : float, optional
        Price of marginals that differ, as for `cusink.sinkhorn`, one for both sides; masses may then be unequal.
    max_iter, tol, check_every, method, overrelaxation, memory_limit, check
        As for `cusink.sinkhorn`; `tol` is for each of the three problems.

    Returns
    -------
    SinkhornDivergence
        The divergence, potentials, error, iterations; per pair, of shape () or (B,).

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
    more than rounding and the marginal error explain is returned as 0.

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
    rho = checks.reach(reach, method)
    prices = None if rho == math.inf else (rho, rho)
    given = solver_checks.sinkhorn(
        a, b, C, eps=eps, init=None, check=check, memory_limit=memory_limit, balanced=prices is None
    )
    options = solver_checks.options(max_iter, tol, check_every, method, overrelaxation)
    of_one = [given.batch_of_one if own is None else np.ndim(own) == 3 and len(own) == 1 for own in (C_aa, C_bb)]
    C_aa, C_bb = checks.self_costs(C, C_aa, C_bb, given, memory_limit, check)
    ops = ops_for(given.C)
    f_self, g_self, own = _self_problems(ops, given, C_aa, C_bb, eps, rho, options)
    start = shift = None
    if prices is not None:
        shift = ops.xp.zeros(len(given.a))
        start = functools.partial(UnbalancedIteration, ops, prices, shift)
    low, high = ops.cost_range(given.C)
    init = (f_self, g_self) if high - low <= 2 * STEEP * eps else None  # the solution, if a and b are equal
    f, g, _, error, n_iter, _ = solve(ops, given.a, given.b, given.C, eps, init, start=start, **options)

    cross = Problem.of(given, eps, f, g, prices, shift)
    alone = replace(cross, shift=None if prices is None else ops.xp.zeros(len(given.a)))
    problems = (
        cross,
        replace(alone, b=given.a, C=C_aa, f=f_self, g=f_self, batch_of_one=of_one[0]),
        replace(alone, a=given.b, C=C_bb, f=g_self, g=g_self, batch_of_one=of_one[1]),
    )
    error = np.maximum(error, own["error"])
    divergence = _divergence(ops, problems, own["reg_cost"], error)
    converged = error <= (math.inf if tol is None else tol)
    if not converged.all():
        warn_unconverged(np.count_nonzero(~converged), len(error), error[~converged].max(), tol, max_iter)
    numbers = {"divergence": divergence, "error": error}
    numbers = {name: cross.outward(ops.xp.asarray(value)) for name, value in numbers.items()}
    counts = {"n_iter": n_iter, "converged": converged}
    for name, value in counts.items():
        numbers[name] = ops.xp.asarray(value) if given.batched else ops.xp.asarray(value)[0]
    potentials = {"f_self": f_self, "g_self": g_self} | dict(zip("fg", cross.potentials(), strict=True))
    return SinkhornDivergence(
        problems=problems,
        own_costs=not (C_aa is given.C and C_bb is given.C) and isinstance(C_aa, ops.xp.ndarray),
        **{name: cross.outward(value) for name, value in potentials.items()},
        **numbers,
    )


def _self_problems(ops, given, C_aa, C_bb, eps, rho, options):
    """The potentials (B, n) and (B, m) of both measures with themselves, and their largest errors and half values."""
    xp = ops.xp
    potentials, total = [], {"reg_cost": 0, "error": np.zeros(len(given.a))}
    for weights, C in ((given.a, C_aa), (given.b, C_bb)):
        # One measure that is compared with many is solved once.
        same = C.ndim == 2 and len(weights) > 1 and bool((weights == weights[:1]).all())
        once = weights[:1] if same else weights
        f, reg_cost, error, _, _ = self_potentials(
            ops, once, C, eps, max_iter=options["max_iter"], tol=options["tol"], rho=rho
        )
        potentials.append(xp.ascontiguousarray(xp.broadcast_to(f, weights.shape)))
        total["reg_cost"] = total["reg_cost"] + reg_cost / 2
        total["error"] = np.maximum(total["error"], error)
    return *potentials, total


def _divergence(ops, problems, of_self, error):
    """The divergence (B,) in float64; `of_self` are the two half values of the measures with themselves."""
    xp, cross = ops.xp, problems[0]
    if cross.a.dtype == np.float64:
        of_pair = values(xp, cross)[0]
    else:  # differences of values that are almost equal need more digits than the potentials have
        of_pair, *of_each = (_in_float64(ops, problem, cross) for problem in problems)
        of_self = sum(of_each) / 2
    out = of_pair - of_self
    mass_a, mass_b = (x.sum(axis=1, dtype=np.float64) for x in (cross.a, cross.b))
    if cross.reach is not None:
        out += cross.eps / 2 * (mass_a - mass_b) ** 2
    explained = cross.eps * mass_a * xp.asarray(error) + 1e-14 * (
        xp.abs(of_pair) + xp.abs(of_self) + cross.eps * mass_a
    )
    return xp.where((out < 0) & (out > -explained), 0, out)


def _in_float64(ops, problem, cross):
    """The dual value (B,) of the potential g with the best f for it: as accurate as the square of the error of g."""
    xp, eps = ops.xp, problem.eps
    problem = replace(problem, **{name: getattr(problem, name).astype(np.float64) for name in "abCg"})
    if problem.reach is None:  # all of one mass, to more digits than the weights were given with
        mass = cross.a.sum(axis=1, keepdims=True, dtype=np.float64)
        a, b = (weights * (mass / weights.sum(axis=1, keepdims=True)) for weights in (problem.a, problem.b))
        problem = replace(problem, a=a, b=b)
    with np.errstate(divide="ignore"):
        logits = xp.log(problem.b) + xp.where(problem.b > 0, problem.g, 0) / eps
    f = ops.repeated_softmin(problem.C, eps)(logits, 1)
    if problem.reach is not None:
        f = damped(f, problem.shift[:, None], eps, problem.reach[0])
    return values(xp, replace(problem, f=f))[0]
