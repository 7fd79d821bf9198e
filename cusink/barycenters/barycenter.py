"""Barycenters: the histogram that is nearest to several, each with its weight."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cusink.barycenters import checks
from cusink.barycenters.iteration import BarycenterIteration
from cusink.barycenters.solved import Found, SolvedBarycenter
from cusink.calls import memory_advice
from cusink.checks.regularisation import RelativeEps, regularisations
from cusink.checks.scalars import tolerance
from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.costs.each import groups
from cusink.errors import DEFAULT_ADVICE, warn_if_unconverged
from cusink.operand import eps_of_shared
from cusink.solver import checks as solver_checks
from cusink.solver.loop import UNCHECKED
from cusink.summary import Summary
from cusink.types import Array, HostArray, Overrelaxation, Tolerance
from cusink.workers import shares_out

__all__ = [
    "Barycenter",
    "barycenter",
]

MAYBE_NONE = (
    f"{DEFAULT_ADVICE}. If the error does not fall, the pairs that 'C' forbids (+inf) may leave no histogram that all "
    "can be moved to: allow more of them"
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Barycenter(Summary):
    """Barycenter of one set of histograms, or of a batch of sets.

    Attributes
    ----------
    barycenter : array, shape (m,) or (B, m)
        The histogram, of the mass of the given ones.
    error : array, shape () or (B,)
        The largest L1 error of a marginal of the K plans, relative to the mass.
    n_iter : array of int, shape () or (B,)
        Iterations taken.
    converged : array of bool, shape () or (B,)
        Whether `error` reached the tolerance.
    """

    barycenter: Array
    error: Array
    n_iter: Array
    converged: Array
    problem: SolvedBarycenter = field(repr=False)


@memory_advice("Solve fewer barycenters at a time: pass a part of the batch of 'A' or of 'weights' per call")
@shares_out
def barycenter(
    A: Array,
    C: Any,
    weights: Array | None = None,
    *,
    eps: float | Array | RelativeEps,
    debiased: bool = False,
    max_iter: int = 1000,
    tol: Tolerance = "auto",
    check_every: int = 10,
    overrelaxation: Overrelaxation = "auto",
    memory_limit: int | None = None,
    normalise: bool = False,
    check: bool = True,
    workers: int | None = None,
) -> Barycenter:
    """Find the histogram with the least weighted sum of regularised transport costs to K given ones.

    Parameters
    ----------
    A : array, shape (K, n) or (B, K, n)
        Histograms, of one mass: non-negative, zeros allowed. Beside a `cusink.Grid` also images, shape (K, H, W) or
        (B, K, H, W), and volumes; barycenters and gradients are then images too.
    C : array, shape (n, m), or PointCloud, or Grid
        Cost of moving a unit of mass from a bin of `A` to a bin of the barycenter. +inf forbids a pair, unless
        `debiased`: a bin that some histogram cannot send mass to gets none.
    weights : array, shape (K,) or (B, K), optional
        How much each histogram counts, in any unit: only their ratios matter. If not given, all count the same. A
        batch of weights with one set of histograms gives one barycenter for each.
    eps : float, or array, shape (B,), or RelativeEps
        Regularisation in the unit of `C`, for all problems or one for each. Several with one set of histograms give one
        barycenter for each.
    debiased : bool
        Whether to minimise the Sinkhorn divergence, which undoes the blur that eps causes. `C` must be symmetric.
    max_iter : int
        Iterations at most; one is an update of both potentials of each of the K plans.
    tol : "auto", float or None
        Marginal error at which a barycenter stops, relative to the mass; each by itself. None runs exactly `max_iter`
        plain iterations.
    check_every : int
        Iterations between two looks at the error.
    overrelaxation : "auto", float in [1, 2) or None
        Over-relaxation of the updates, as for `cusink.sinkhorn`; "auto" is none for a debiased barycenter.
    memory_limit : int, optional
        Bytes that a kernel made of a `cusink.PointCloud` may take. If not given, 1 GiB.
    normalise : bool
        Divide each histogram by its sum; gradients are then those by the normalised histograms.
    check : bool
        False skips the checks of the values of the input.
    workers : int, optional
        Threads, as for `cusink.sinkhorn`.

    Returns
    -------
    Barycenter
        The barycenter, error, iterations; per problem, of shape () or (B,).

    Raises
    ------
    TypeError
        An input of the wrong kind, library or dtype.
    ValueError
        An input of the wrong shape or with forbidden values.
    MemoryError
        With what to change.

    Warns
    -----
    ConvergenceWarning
        If a barycenter did not reach `tol`.

    Notes
    -----
    Minimises ``sum_k w_k OT(a_k, p)`` over p, with ``OT(a, p) = min <P, C> - eps H(P)``, the `entropic_cost` of
    `cusink.sinkhorn`, by iterated projections on logarithms of scalings. That minimum is blurred by about
    ``exp(-C / eps)``; one histogram is not its own barycenter. With `debiased` it is ``sum_k w_k S(a_k, p)`` with the
    divergence of `cusink.sinkhorn_divergence`, by the iteration of Janati et al. with momentum. Undoing a blur is
    ill-conditioned where eps is large: the last digits then come slowly, and a `tol` of 1e-4 is a sensible one. Memory
    is about ten arrays of the size of B K histograms.

    References
    ----------
    J.-D. Benamou et al., Iterative Bregman projections for regularized transportation problems, SISC 2015.
    H. Janati et al., Debiased Sinkhorn barycenters, ICML 2020.

    Examples
    --------
    >>> import cusink
    >>> A = [[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    >>> result = cusink.barycenter(A, cusink.Grid(5), [0.75, 0.25], eps=0.2, debiased=True)
    >>> print(result.barycenter.round(3))
    [0. 1. 0. 0. 0.]
    """
    del workers  # `shares_out` has read it
    tol = tolerance(tol, A, C)
    eps = regularisations(eps_of_shared(eps, C))
    given = checks.problem(
        A, C, weights, eps=eps, debiased=debiased, check=check, memory_limit=memory_limit, normalise=normalise
    )
    options = solver_checks.options(max_iter, tol, check_every, "auto", overrelaxation)
    given = _with_digits(given, float(np.min(given.eps)), options.tol)
    found = _solve_each(given, debiased, options)
    converged = found.error <= (np.inf if options.tol is None else options.tol)
    warn_if_unconverged(
        converged,
        found.error,
        options.tol,
        options.max_iter,
        effort=(found.n_iter, np.full(len(found.n_iter), np.nan)),
        dtype=given.A.dtype,
        advice=MAYBE_NONE if given.forbids else "",
    )
    return make_barycenter(given, found, converged)


def make_barycenter(given: checks.BarycenterProblem, found: Found, converged: HostArray) -> Barycenter:
    """Return the result of checked problems, given their solution."""
    xp = given.C.xp
    problem = SolvedBarycenter(
        A=given.A,
        weights=given.weights,
        total=given.total,
        C=given.C,
        eps=given.eps,
        v=found.v,
        log_p=found.log_p,
        d=found.d,
        dtype=given.dtype,
        batched=given.batched,
        image=given.image,
    )
    shown = {"error": xp.asarray(found.error).astype(given.dtype)}
    shown |= {"n_iter": xp.asarray(found.n_iter), "converged": xp.asarray(converged)}
    shown = {name: value if given.batched else value[0] for name, value in shown.items()}
    return Barycenter(barycenter=problem.bins_to_user(xp.exp(found.log_p)), problem=problem, **shown)


def _with_digits(given: checks.BarycenterProblem, eps: float, tol: float | None) -> checks.BarycenterProblem:
    """Return the checked problems, in float64 where logarithms of scalings, like C / eps, need more than float32."""
    low, high = given.C.range()
    rounding = float(np.finfo(given.A.dtype).eps) / 2 * max(abs(low), abs(high)) / eps
    if given.A.dtype == np.float64 or rounding <= (UNCHECKED if tol is None else tol / 2):
        return given
    names = ("A", "weights", "total")
    wide = {name: getattr(given, name).astype(np.float64) for name in names}
    # Masses that were equal in float32 are so in float64, or the error would not fall.
    mass = wide["A"].sum(axis=2, keepdims=True)
    wide["A"] *= mass[:, :1] / mass
    wide["weights"] /= wide["weights"].sum(axis=1, keepdims=True)
    return replace(given, C=given.C.widened(), **wide)


def _solve_each(given: checks.BarycenterProblem, debiased: bool, options: Options) -> Found:
    """Return the solutions of the checked problems, of which those of equal eps are solved together."""
    if not isinstance(given.eps, np.ndarray):
        return _solve(given, given.eps, debiased, options)
    found = Found.empty(given.C.xp, given.A, given.C.shape[1], debiased)
    for value, at in groups(given.eps):
        part = _solve(given.at(at, value), value, debiased, options)
        found.put(at, part.log_p, part.error, part.n_iter, (part.v, part.d))
    return found


def _solve(given: checks.BarycenterProblem, eps: float, debiased: bool, options: Options) -> Found:
    """Return the solutions of the checked problems."""
    C, A, tol = given.C, given.A, options.tol
    low, high = C.range()
    plain = options.overrelaxation == "auto" and (tol is None or debiased)
    rules = StopState.start(
        Relaxation.start(
            len(A), None if plain else options.overrelaxation, (high - low) / eps, check_every=options.check_every
        ),
        StallDetector.start(len(A), A.dtype, max(abs(low), abs(high)) / eps),
    )
    iteration = BarycenterIteration(C, A, given.weights, eps, debiased)
    found = Found.empty(C.xp, A, C.shape[1], debiased)
    active, done = np.arange(len(A)), 0
    while len(active):
        count = options.max_iter if tol is None else min(options.check_every, options.max_iter - done)
        reached = C.to_host(iteration.advance(rules.relaxation.omega, count))
        rules = rules.observe(reached, count)
        done += count
        over = np.full(len(active), done >= options.max_iter)
        if tol is not None:
            over |= (reached <= tol) | rules.stall.stalled
        if over.any():
            index, at = np.flatnonzero(over), active[over]
            found.put(at, iteration.logarithms(index), reached[index], done, iteration.scalings(index))
            index = np.flatnonzero(~over)
            iteration.keep(index)
            rules, active = rules.select(index), active[index]
    return found
