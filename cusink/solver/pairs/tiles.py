"""Iterations of a few pairs of clouds whose kernels lie in the cache of a core, in float64 on the host.

All weights are of mass 1 here and potentials in the unit of eps, so that a plan is ``a_i b_j exp(f_i + g_j) A_ij`` with
the kernel ``A = exp(-C / eps)``, and an eps is part of the kernel alone.
"""

from typing import NamedTuple

import numpy as np

from cusink.convergence.options import Options
from cusink.convergence.rules import STEPS, estimated_omega, overrelaxed
from cusink.costs.points import PointCosts
from cusink.types import HostArray

STEEPEST = 600.0  # of C / eps whose kernel has digits in float64
UNIT = 2.0**-53
CARRIED = 4  # roundings of a product of scalings and a kernel that an entry of the plan carries
LEAST_SUM = 2.0**-960  # per term and unit of the factors: what sums of a kernel may lose to underflow is below rounding
CHECK_EVERY = 6  # iterations between two looks, which cost nothing
FIRST_OMEGA = 1.4  # of over-relaxation, before anything is known
ITERATIONS = 200, 100  # of pairs, and of measures with themselves, after which these are left to the solver's loop
KEPT = 0.75  # share of a tile that may still iterate, from which on the others leave it


class Kernels(NamedTuple):
    """Kernels A (T, n, m), the costs, and a bound (T,) on the rounding of their exponents.

    `x` (T, n, d) and `y` (T, m, d) are the points, in float64, about a centre of each pair. `usable` (T,) are those
    whose A has digits.
    """

    A: HostArray
    x: HostArray
    y: HostArray
    rounding: HostArray
    usable: HostArray


class Scalings(NamedTuple):
    """Solutions: u (T, n) and v (T, m), exponentials of potentials; errors, iterations, whether it is one (T,)."""

    u: HostArray
    v: HostArray
    error: HostArray
    n_iter: HostArray
    solved: HostArray


class OwnScalings(NamedTuple):
    """Solutions u (T, n) of measures with themselves, and their values (T,) in the unit of eps."""

    u: HostArray
    value: HostArray
    error: HostArray
    n_iter: HostArray
    solved: HostArray


@np.errstate(over="ignore", invalid="ignore", under="ignore")  # costs beyond the range make none that is usable
def kernels(costs: PointCosts, eps: HostArray) -> Kernels:
    """Return the kernels of costs between points (T, n, d) and (T, m, d) with an eps (T,) each."""
    x, y = costs.centred()
    if costs.norm == "squared" and costs.exponent == 1:
        by = (eps / costs.factor)[:, None]
        of_x, of_y = (np.einsum("tik,tik->ti", points, points) / by for points in (x, y))
        # One product with two more coordinates gives the exponents: 2 x'y / eps - |x|^2 / eps - |y|^2 / eps.
        (T, n, d), m = x.shape, y.shape[1]
        left, right = np.empty((T, n, d + 2)), np.empty((T, d + 2, m))
        np.multiply(x, 2 / by[:, :, None], out=left[..., :d])
        left[..., d], left[..., d + 1] = -of_x, -1
        right[:, :d], right[:, d], right[:, d + 1] = y.swapaxes(1, 2), 1, of_y
        A = left @ right
        largest = (np.sqrt(of_x.max(axis=1)) + np.sqrt(of_y.max(axis=1))) ** 2
    else:
        A = costs.block(np)
        A *= -1 / eps[:, None, None]
        largest, d = -A.min(axis=(1, 2)), x.shape[2]
    np.exp(A, out=A)
    return Kernels(A, x, y, (d + 4) * UNIT * largest, largest <= STEEPEST)


@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")  # no such scalings are accepted
def iterate(A: HostArray, a: HostArray, b: HostArray, tol: HostArray, options: Options) -> Scalings:
    """Iterate until every pair meets its `tol` (T,) or has taken too many iterations.

    At a look the last update is a plain one of f, so that rows have their sums; the error is that of the columns.
    """
    T, most = len(a), min(options.max_iter, ITERATIONS[0])
    out = Scalings(np.ones_like(a), np.ones_like(b), np.full(T, np.inf), np.zeros(T, np.int64), np.zeros(T, bool))
    active, u, v = np.arange(T), np.ones_like(a), np.ones_like(b)
    omega, before, taken = np.full(T, FIRST_OMEGA), np.full(T, np.inf), 0
    S = np.vecmat(a, A)
    while taken < most:
        count, excess = min(CHECK_EVERY, most - taken), omega[:, None] - 1
        for left in range(count - 1, -1, -1):
            v = overrelaxed(np, v, 1 / S, excess, out=v)
            q = b * v
            R = 1 / np.matvec(A, q)
            u = overrelaxed(np, u, R, excess, out=u) if left else R
            p = a * u
            S = np.vecmat(p, A)
        taken += count
        error = np.abs(q * S - b).sum(axis=1)
        ends = error <= tol
        if ends.any():
            at = np.flatnonzero(ends)
            out.solved[active[at]] = _sound(S[at], p[at]) & _sound(1 / u[at], q[at])
            # Of a bin without weight the potential is the best one for the other side.
            out.u[active[at]], out.v[active[at]] = u[at], np.where(b[at] > 0, v[at], 1 / S[at])
            out.error[active[at]], out.n_iter[active[at]] = error[at], taken
            tol = np.where(ends, -1, tol)
        going = np.flatnonzero(tol >= 0)
        if not len(going):
            break
        if taken > count:
            omega = estimated_omega(omega, before, error, count)
        before = error
        if len(going) < KEPT * len(tol):
            A, active, a, b, u, v, S, tol, omega, before = (
                x[going] for x in (A, active, a, b, u, v, S, tol, omega, before)
            )
    return out


@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def iterate_own(A: HostArray, a: HostArray, tol: HostArray, options: Options) -> OwnScalings:
    """Solve measures with themselves by averaging, as `cusink.solver.symmetric` does, until each meets `tol` (T,)."""
    T, most = len(a), min(options.max_iter, ITERATIONS[1])
    error, n_iter, solved = np.full(T, np.inf), np.zeros(T, np.int64), np.zeros(T, bool)
    f, hopeless = np.zeros_like(a), tol < 0
    for taken in range(1, most + 1):
        w = np.exp(f)
        p = a * w
        S = np.matvec(A, p)
        ratio = w * S  # of the rows of the plan to their weights
        reached = (a * np.abs(1 - ratio)).sum(axis=1)
        ends = (reached <= tol) & ~solved
        error[ends], n_iter[ends], solved = reached[ends], taken, solved | ends
        step = -np.log(ratio)
        if taken == most or (solved | hopeless).all():
            break
        f += STEPS[taken % len(STEPS)] * step
    # The dual value of f and of its best partner; bins without weight have the best one.
    value = (a * (2 * f + step)).sum(axis=1)
    u = np.exp(np.where(a > 0, f + step / 2, f + step))
    return OwnScalings(u, value, error, n_iter, solved & _sound(S, p))


def _sound(sums: HostArray, factors: HostArray) -> HostArray:
    """Return in which problems (T,) no sum with a kernel of at most 1 lost anything to underflow."""
    floor = LEAST_SUM * factors.shape[1] * np.fmax(factors.max(axis=1), 1)
    sound: HostArray = (sums.min(axis=1) >= floor) & np.isfinite(sums).all(axis=1) & np.isfinite(factors).all(axis=1)
    return sound


def pulled(A: HostArray, p: HostArray, q: HostArray, x: HostArray, y: HostArray) -> tuple[HostArray, HostArray]:
    """Return ``sum_j P_ij 2 (x_i - y_j)`` (T, n, d) with ``P = p A q`` of squared distances, and its like for y."""
    return _pulled(A, p, q, x, y), _pulled(A.swapaxes(1, 2), q, p, y, x)


@np.errstate(over="ignore", invalid="ignore")  # of potentials that solve nothing, which is said before
def _pulled(A: HostArray, p: HostArray, q: HostArray, x: HostArray, y: HostArray) -> HostArray:
    weighted = np.concatenate([y, np.ones_like(y[..., :1])], axis=2) * q[:, :, None]
    means = A @ weighted
    out: HostArray = (2 * p)[:, :, None] * (means[..., -1:] * x - means[..., :-1])
    return out


def own_pulled(A: HostArray, p: HostArray, x: HostArray) -> HostArray:
    """Return `pulled` of measures with themselves, by x as the points of one side."""
    return _pulled(A, p, p, x, x)


@np.errstate(over="ignore", invalid="ignore")  # of pairs that are not solved
def mean_cost(A: HostArray, p: HostArray, q: HostArray, costs: PointCosts) -> HostArray:
    """Return ``sum_ij P_ij C_ij`` (T,) with ``P = p A q``; the kernels are overwritten."""
    A *= costs.block(np)
    out: HostArray = (p * np.matvec(A, q)).sum(axis=1)
    return out


def tolerance(tol: float, rounding: HostArray) -> tuple[HostArray, HostArray]:
    """Return the errors (T,) at which to stop, and what rounding adds to them; where it is too much, -1."""
    added = CARRIED * UNIT + np.expm1(np.minimum(2 * rounding, 1.0))
    return np.where(added <= tol / 2, tol - added, -1.0), added


def lift(mass: HostArray, eps: HostArray) -> HostArray:
    """Return what potentials of measures of a `mass` (T,) are less than those of mass 1."""
    out: HostArray = eps / 2 * np.log(mass)
    return out
