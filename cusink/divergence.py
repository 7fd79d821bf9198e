"""Sinkhorn divergences: regularised costs without what the regularisation adds to them."""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink import _checks, _checks_adjoint, _checks_divergence
from cusink._gradient_terms import Terms
from cusink._ops import memory_advice, ops_for
from cusink._self_transport import self_potentials
from cusink._unbalanced import UnbalancedIteration, damped
from cusink._unbalanced_adjoint import unbalanced_terms
from cusink.result import Problem, values
from cusink.sinkhorn import STEEP, solve, warn_unconverged

__all__ = [
    "DivergenceGradients",
    "SinkhornDivergence",
    "self_potentials",
    "sinkhorn_divergence",
    "sinkhorn_divergence_adjoint",
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
    rho = _checks_divergence.reach(reach, method)
    prices = None if rho == math.inf else (rho, rho)
    given = _checks.sinkhorn(
        a, b, C, eps=eps, init=None, check=check, memory_limit=memory_limit, balanced=prices is None
    )
    options = _checks.options(max_iter, tol, check_every, method, overrelaxation)
    of_one = [given.batch_of_one if own is None else np.ndim(own) == 3 and len(own) == 1 for own in (C_aa, C_bb)]
    C_aa, C_bb = _checks_divergence.self_costs(C, C_aa, C_bb, given, memory_limit, check)
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


@dataclass(frozen=True, eq=False, kw_only=True)
class DivergenceGradients:
    """Gradients of ``sum(grad * divergence)`` by the inputs of `cusink.sinkhorn_divergence`.

    All but `a` and `b` are computed when they are first asked for.

    Attributes
    ----------
    a : array, shape (n,) or (B, n)
        By the source weights: ``f - f_self``, of mean zero over the bins; with `reach`, as it is.
    b : array, shape (m,) or (B, m)
        By the target weights.
    """

    a: Any
    b: Any
    _terms: tuple[Any, Any, Any] = field(repr=False)
    _of_masses: Any = field(repr=False)
    _own_costs: bool = field(repr=False)

    @functools.cached_property
    def eps(self):
        """By the regularisation: array of shape () or (B,), the share of each problem."""
        return sum(terms.by_eps() for terms in self._terms) + self._of_masses

    @functools.cached_property
    def C(self):
        """By the cost: array of shape (n, m), summed over the batch, or (B, n, m); None for a cost that is not stored.

        Without `C_aa` and `C_bb` it is by the cost of the shared bins, in all three problems.
        """
        of_pair = self._terms[0].by_cost()
        if of_pair is None or self._own_costs:
            return of_pair
        return of_pair + self._terms[1].by_cost() + self._terms[2].by_cost()

    @functools.cached_property
    def C_aa(self):
        """By the cost between the bins of `a`, if it was given; None else."""
        return self._terms[1].by_cost() if self._own_costs else None

    @functools.cached_property
    def C_bb(self):
        """By the cost between the bins of `b`, if it was given; None else."""
        return self._terms[2].by_cost() if self._own_costs else None

    @property
    def x(self):
        """By the source points of a `cusink.PointCloud`, in their shape; summed over the batch for a shared cloud.

        By the points as sources and as targets, if the cloud was given as `x` alone. None for other costs.
        """
        return self._points[0]

    @property
    def y(self):
        """By the target points of a `cusink.PointCloud`; None if it was given as `x` alone, and for other costs."""
        return self._points[1]

    @functools.cached_property
    def _points(self):
        (x, y), (x_self, _), (y_self, _) = (terms.by_points() for terms in self._terms)
        if x is None:
            return None, None
        if y is None:
            return x + x_self.reshape(x.shape) + y_self.reshape(x.shape), None
        return x + x_self.reshape(x.shape), y + y_self.reshape(y.shape)


def sinkhorn_divergence_adjoint(result, *, grad=1.0):
    """Pull a gradient with respect to Sinkhorn divergences back to what they were computed from.

    Parameters
    ----------
    result : SinkhornDivergence
        What `cusink.sinkhorn_divergence` returned.
    grad : array, shape () or (B,), or float
        Derivative of the final loss by each divergence; a number is for every pair.

    Returns
    -------
    DivergenceGradients
        a, b, eps, C, and for a `cusink.PointCloud` x and y.

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
    _checks_adjoint.instance("result", result, SinkhornDivergence, "cusink.sinkhorn_divergence")
    cross = result.problems[0]
    grad = _checks_divergence.cotangent(grad, result)
    ops = ops_for(cross.C)
    terms = tuple(
        _terms(ops, problem, share * grad) for problem, share in zip(result.problems, (1, -0.5, -0.5), strict=True)
    )
    of_a, of_b = terms[0].by_a() + 2 * terms[1].by_a(), terms[0].by_b() + 2 * terms[2].by_a()
    of_masses = 0
    if cross.reach is not None:
        excess = cross.a.sum(axis=1, dtype=np.float64) - cross.b.sum(axis=1, dtype=np.float64)
        of_masses = cross.outward(grad * excess**2 / 2)
        step = (grad * cross.eps * excess)[:, None].astype(cross.a.dtype)
        of_a, of_b = of_a + step, of_b - step
    return DivergenceGradients(
        a=cross.outward(of_a),
        b=cross.outward(of_b),
        _terms=terms,
        _of_masses=of_masses,
        _own_costs=result.own_costs,
    )


def _terms(ops, problem, grad):
    """What the gradients of ``grad * reg_cost`` (B,) of one of the three problems are made of."""
    if problem.reach is not None:
        return unbalanced_terms(ops, problem, None, grad, None, None, None, None)[0]
    absent = dict.fromkeys(("grad_cost", "grad_entropic_cost", "grad_f", "grad_g", "x", "y"))
    return Terms(problem=problem, level=grad, **absent)
