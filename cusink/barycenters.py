"""Barycenters: the histogram that is nearest to several, each with its weight."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink import _checks, _checks_barycenter
from cusink._ops import memory_advice, ops_for
from cusink._overrelaxation import OverRelaxation
from cusink.sinkhorn import Rounding, warn_unconverged

__all__ = ["Barycenter", "barycenter"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Barycenter:
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

    barycenter: Any
    error: Any
    n_iter: Any
    converged: Any


@memory_advice("Solve fewer barycenters at a time: pass a part of the batch of 'A' or of 'weights' per call")
def barycenter(
    A,
    C,
    weights=None,
    *,
    eps,
    debiased=False,
    max_iter=1000,
    tol=1e-6,
    check_every=10,
    overrelaxation="auto",
    memory_limit=None,
    check=True,
):
    """Find the histogram with the least weighted sum of regularised transport costs to K given ones.

    Parameters
    ----------
    A : array, shape (K, n) or (B, K, n)
        Histograms, of one mass: non-negative, zeros allowed.
    C : array, shape (n, m), or PointCloud, or Grid
        Finite cost of moving a unit of mass from a bin of `A` to a bin of the barycenter.
    weights : array, shape (K,) or (B, K), optional
        How much each histogram counts, in any unit: only their ratios matter. If not given, all count the same. A
        batch of weights with one set of histograms gives one barycenter for each.
    eps : float
        Regularisation in the unit of `C`.
    debiased : bool
        Whether to minimise the Sinkhorn divergence, which undoes the blur that eps causes. `C` must be symmetric.
    max_iter : int
        Iterations at most; one is an update of both potentials of each of the K plans.
    tol : float or None
        Marginal error at which a barycenter stops, relative to the mass; each by itself. None runs exactly `max_iter`
        plain iterations.
    check_every : int
        Iterations between two looks at the error.
    overrelaxation : "auto", float in [1, 2) or None
        Over-relaxation of the updates, as for `cusink.sinkhorn`; "auto" is none for a debiased barycenter.
    memory_limit : int, optional
        Bytes that a kernel made of a `cusink.PointCloud` may take. If not given, 1 GiB.
    check : bool
        False skips the checks of the values of the input.

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
    given = _checks_barycenter.barycenter(
        A, C, weights, eps=eps, debiased=debiased, check=check, memory_limit=memory_limit
    )
    options = _checks.options(max_iter, tol, check_every, "auto", overrelaxation)
    ops = ops_for(given.C)
    histogram, error, n_iter = _solve(ops, given, eps, debiased, **options)
    converged = error <= (np.inf if tol is None else tol)
    if not converged.all():
        warn_unconverged(np.count_nonzero(~converged), len(error), error[~converged].max(), tol, max_iter)
    xp = ops.xp
    found = {"barycenter": histogram.astype(given.dtype), "error": xp.asarray(error).astype(given.dtype)}
    found |= {"n_iter": xp.asarray(n_iter), "converged": xp.asarray(converged)}
    return Barycenter(**{name: value if given.batched else value[0] for name, value in found.items()})


def _solve(ops, given, eps, debiased, *, max_iter, tol, check_every, overrelaxation, **_):
    """Histograms (B, m), errors and iterations (B,) of the checked problems, the latter two in NumPy."""
    xp, C, A = ops.xp, given.C, given.A
    low, high = ops.cost_range(C)
    plain = overrelaxation == "auto" and (tol is None or debiased)
    relaxation = OverRelaxation(len(A), None if plain else overrelaxation, (high - low) / eps)
    rounding = Rounding(len(A), A.dtype, max(abs(low), abs(high)) / eps)
    iteration = Iteration(ops, A, given.weights, C, eps, debiased)
    out = xp.empty((len(A), C.shape[1]), A.dtype)
    error, n_iter = np.full(len(A), np.inf), np.zeros(len(A), np.int64)
    active, done = np.arange(len(A)), 0
    while len(active):
        count = max_iter if tol is None else min(check_every, max_iter - done)
        reached = ops.to_host(iteration.advance(relaxation.omega, count))
        done += count
        over = np.full(len(active), done >= max_iter)
        if tol is not None:
            over |= (reached <= tol) | rounding.reached(reached)
        if over.any():
            index, at = np.flatnonzero(over), active[over]
            out[at], error[at], n_iter[at] = iteration.histograms(index), reached[index], done
            index = np.flatnonzero(~over)
            for part in (iteration, relaxation, rounding):
                part.keep(index)
            active, reached = active[index], reached[index]
        relaxation.observe(reached, count)
    return out, error, n_iter


class Iteration:
    """Problems under way: logarithms u (B, K, n) and v (B, K, m) of the scalings of K plans each.

    The u-update makes the rows of the plans right. The v-update gives all K plans one column marginal p, the weighted
    geometric mean of those they have, times d if the barycenter is debiased.
    """

    def __init__(self, ops, A, weights, C, eps, debiased):
        xp = ops.xp
        self.ops, self.eps = ops, eps
        self.reduce = ops.repeated_softmin(C, eps)
        self.A, self.weights, self.mass = A, weights[:, :, None], A[:, 0].sum(axis=1, dtype=np.float64)
        with np.errstate(divide="ignore"):
            self.log_A = xp.log(A)
        self.v = xp.zeros((*A.shape[:2], C.shape[1]), A.dtype)
        self.u = self.plain_u = self._rows()
        self.p, self.debiasing = None, Debiasing(xp, len(A), C.shape[1], A.dtype) if debiased else None

    def _rows(self):
        """The u that makes the rows right."""
        return self.log_A + self._log_sums(self.v, 1)

    def _log_sums(self, logits, axis):
        """Minus the logarithm of the sums that the kernel makes of scalings (B, K, .)."""
        flat = self.reduce(logits.reshape(-1, logits.shape[-1]), axis)
        flat /= self.eps
        return flat.reshape(*logits.shape[:-1], -1)

    def advance(self, omega, count):
        """Take `count` iterations of every problem; return their errors (B,)."""
        xp = self.ops.xp
        omega = None if (omega == 1).all() else xp.asarray(omega, self.A.dtype)[:, None, None]
        for _ in range(count):
            self.u = over_relaxed(xp, self.u, self.plain_u, omega)
            sums = self._log_sums(self.u, 0)
            self.p = -(self.weights * sums).sum(axis=1)
            if self.debiasing is not None:
                self.p += self.debiasing.d
            plain = self.p[:, None] + sums
            self.v = jointly_over_relaxed(xp, self.v, plain, omega, self.weights)
            if self.debiasing is not None:
                self.debiasing.advance(self.p, self._log_sums(self.debiasing.d, 1))
            self.plain_u = self._rows()
        return self._error(plain)

    def _error(self, plain_v):
        """The largest error (B,) of a row marginal, of a column marginal, and of what d is to solve."""
        xp = self.ops.xp
        p = xp.exp(self.p)
        counted = self.weights[:, :, 0] > 0
        with np.errstate(invalid="ignore", over="ignore"):
            rows = xp.where(self.A > 0, self.A * xp.abs(xp.expm1(self.u - self.plain_u)), 0).sum(axis=2)
            columns = (p[:, None] * xp.abs(xp.expm1(self.v - plain_v))).sum(axis=2)
            error = xp.where(counted, rows + columns, 0).max(axis=1)
            if self.debiasing is not None:
                error = xp.maximum(error, (p * xp.abs(xp.expm1(self.debiasing.excess))).sum(axis=1))
        error = xp.minimum(error, float(np.finfo(error.dtype.name).max) ** 0.5)
        return error.astype(np.float64) / self.mass

    def histograms(self, index):
        """The barycenters (., m) of the problems at `index`, with the mass of their histograms."""
        p = self.ops.xp.exp(self.p[index].astype(np.float64))
        return (p * (self.mass[index] / p.sum(axis=1))[:, None]).astype(self.A.dtype)

    def keep(self, index):
        """Drop all problems but those at `index`."""
        for name in ("A", "log_A", "weights", "mass", "u", "v", "plain_u", "p"):
            setattr(self, name, getattr(self, name)[index])
        if self.debiasing is not None:
            self.debiasing.keep(index)


class Debiasing:
    """Logarithms d (B, m) of the scalings of ``OT(p, p)``, which solve ``d K d = p``, K the kernel.

    Janati's iteration averages d with ``p / (K d)``. Where the kernel blurs a lot, that undoes the blur ever more
    slowly, hence Nesterov's momentum, which begins anew for each problem whose residual has risen.
    """

    def __init__(self, xp, problems, bins, dtype):
        self.xp = xp
        self.d = self.averaged = xp.zeros((problems, bins), dtype)
        self.age, self.residual = xp.zeros(problems), xp.full(problems, xp.inf)
        self.excess = None  # log of d K d / p

    def advance(self, p, image):
        """Take a step, given log p and minus the logarithm of the sums ``K d``."""
        xp = self.xp
        self.excess = self.d - p - image
        residual = (xp.exp(p) * xp.abs(self.excess)).sum(axis=1)
        self.age = xp.where(residual > self.residual, 0, self.age) + 1
        momentum = ((self.age - 1) / (self.age + 2)).astype(p.dtype)[:, None]
        averaged = self.d - self.excess / 2
        self.d = averaged + momentum * (averaged - self.averaged)
        self.averaged, self.residual = averaged, residual

    def keep(self, index):
        """Drop all problems but those at `index`."""
        for name in ("d", "averaged", "age", "residual", "excess"):
            setattr(self, name, getattr(self, name)[index])


def over_relaxed(xp, old, plain, omega):
    """Go from `old` to `plain` and beyond, as docs/method.md describes: it never lowers the dual objective."""
    if omega is None:
        return plain
    with np.errstate(invalid="ignore", divide="ignore"):
        step = xp.where(plain > -xp.inf, plain - old, 0)
        return plain + xp.log(omega - 1 + xp.maximum(1 - (omega - 1) * xp.exp(-step), 0))


def jointly_over_relaxed(xp, old, plain, omega, weights):
    """Go from `old` to `plain` and beyond, in those columns where that does not lower the dual objective.

    The update of column j minimises ``sum_k w_k exp(v_k - sums_k)`` with ``sum_k w_k v_k`` held fixed. Relative to its
    minimum that is ``sum_k w_k exp(-step_k)`` before, and ``sum_k w_k exp((omega - 1) step_k)`` beyond.
    """
    if omega is None:
        return plain
    step = plain - old
    step -= (weights * step).sum(axis=1, keepdims=True)  # what d has changed in between is no step of the update
    with np.errstate(over="ignore"):
        before = (weights * xp.exp(-step)).sum(axis=1, keepdims=True)
        beyond = (weights * xp.exp((omega - 1) * step)).sum(axis=1, keepdims=True)
    return plain + xp.where(beyond <= before, omega - 1, 0) * step
