"""Float64 oracle in plain NumPy and SciPy, one problem at a time; imports nothing of cusink.

Written for being obviously right, not for speed: every reduction forms the whole ``(n, m)`` array, every value is
computed from the plan by its definition. Conventions as in the package: weights stay outside the potentials,

    P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)

and one iteration is one g-update followed by one f-update, beginning at f = 0.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array


class Solution(NamedTuple):
    f: np.ndarray
    g: np.ndarray
    error: float
    n_iter: int


class Values(NamedTuple):
    cost: float
    reg_cost: float
    entropic_cost: float


def log_weights(weights):
    """Return the log of the weights, with a true -inf for a zero weight."""
    with np.errstate(divide="ignore"):
        return np.log(weights)


def logsumexp(z, axis):
    """Return log sum exp along `axis`, -inf where every term is zero."""
    top = z.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(top), top, z.dtype.type(0))
    with np.errstate(divide="ignore"):
        return np.log(np.exp(z - shift).sum(axis=axis)) + np.squeeze(shift, axis=axis)


def softmin(C, potential, weights, eps, axis):
    """-eps log sum_k w_k exp((potential_k - C_ik) / eps), summed over `axis` of C."""
    along = (None, slice(None)) if axis == 1 else (slice(None), None)
    return -eps * logsumexp(log_weights(weights)[along] + (potential[along] - C) / eps, axis)


def plan(a, b, C, eps, f, g):
    """Return the plan that potentials f and g stand for."""
    with np.errstate(over="ignore"):
        return np.exp(log_weights(a)[:, None] + log_weights(b)[None, :] + (f[:, None] + g[None, :] - C) / eps)


def marginal_error(P, b):
    """L1 distance of the column sums of P from b, relative to the mass of b."""
    return float(np.abs(P.sum(axis=0) - b).sum() / b.sum())


def sinkhorn(a, b, C, eps, n_iter, f=None, dtype=np.float64):
    """Exactly `n_iter` plain iterations in the given precision: the oracle in float64, the naive solver in float32."""
    a, b, C = (np.asarray(x, dtype=dtype) for x in (a, b, C))
    eps = dtype(eps)
    f = np.zeros(len(a), dtype=dtype) if f is None else np.asarray(f, dtype=dtype)
    g = np.zeros(len(b), dtype=dtype)
    for _ in range(n_iter):
        g = softmin(C, f, a, eps, axis=0)
        f = softmin(C, g, b, eps, axis=1)
    return Solution(f, g, marginal_error(plan(a, b, C, eps, f, g), b), n_iter)


def in_gauge(f, g, a, b):
    """Return potentials with equal sums over the bins with weight: the constant that may move between them, removed."""
    used_f, used_g = f[np.asarray(a) > 0], g[np.asarray(b) > 0]
    constant = (used_g.sum() - used_f.sum()) / (len(used_f) + len(used_g))
    return f + constant, g - constant


def iterated(a, b, C, eps, n_iter, **options):
    """Return what `sinkhorn` does, with the potentials in the gauge of a result."""
    found = sinkhorn(a, b, C, eps, n_iter, **options)
    f, g = in_gauge(found.f, found.g, a, b)
    return found._replace(f=f, g=g)


def solve(a, b, C, eps, tol=1e-13):
    """Solve by annealed Sinkhorn iterations and Newton's method on the dual, as near to `tol` as rounding lets.

    Newton's method works on the bins with positive weight; the last g- and f-update give every other bin its potential.
    """
    a, b, C = (np.asarray(x, dtype=np.float64) for x in (a, b, C))
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    core = (a[rows], b[columns], C[np.ix_(rows, columns)])
    finite = core[2][np.isfinite(core[2])]
    spread = float(finite.max() - finite.min()) if finite.size else 0.0
    solution, step = sinkhorn(*core, eps, 1), max(spread, eps)
    while step > eps:
        solution = sinkhorn(*core, step, 20, f=solution.f)
        step /= 2
    solution = sinkhorn(*core, eps, 20, f=solution.f)
    steps = 0
    while steps < 400:
        steps += 1
        if solution.error <= tol:
            break
        better = _newton_step(*core, eps, solution)
        if better is None:
            better = sinkhorn(*core, eps, 100, f=solution.f)
            if better.error >= 0.999 * solution.error and solution.error < 1e-9:
                break
        solution = better
    f = np.zeros(len(a))
    f[rows] = solution.f
    full = sinkhorn(a, b, C, eps, 1, f=f)
    return full._replace(n_iter=steps)


def _newton_step(a, b, C, eps, solution):
    """One damped Newton step for g with f eliminated; None if no step length lowers the error."""
    P = plan(a, b, C, eps, solution.f, solution.g)
    columns = P.sum(axis=0)
    # With P 1 = a the f-block is eliminated: (diag(P'1) - P' diag(1/a) P) dg = eps (b - P'1), singular along constants.
    # The scaling by the square roots of the weights keeps tiny weights from spoiling the least squares.
    scale = 1 / np.sqrt(np.maximum(columns, np.finfo(float).tiny))
    Q = P * scale / np.sqrt(a)[:, None]
    schur = np.diag(columns * scale**2) - Q.T @ Q
    rhs = eps * (b - columns) * scale
    if not (np.isfinite(schur).all() and np.isfinite(rhs).all()):
        return None
    dg = scale * np.linalg.lstsq(schur, rhs, rcond=1e-15)[0]
    if not np.isfinite(dg).all():
        return None
    for length in (1.0, 0.5, 0.25, 0.1, 0.01):
        f = softmin(C, solution.g + length * dg, b, eps, axis=1)
        trial = sinkhorn(a, b, C, eps, 1, f=f)
        if np.isfinite(trial.error) and trial.error < 0.9 * solution.error:
            return trial
    return None


def transport_cost(P, C):
    """<P, C>, where nothing on a forbidden pair costs nothing."""
    return float((P * np.where(P > 0, C, 0.0)).sum())


def entropy(p):
    """-sum p log p with 0 log 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def kl_to_product(P, a, b):
    """Return sum P log(P / (a x b)); logarithms of the weights are added, as their product may underflow."""
    i, j = np.nonzero(P)
    p = P[i, j]
    return float((p * (np.log(p) - np.log(a[i]) - np.log(b[j]))).sum())


def values(P, a, b, C, eps):
    """Return the three values of a plan, each from its definition."""
    P, a, b, C = (np.asarray(x, dtype=np.float64) for x in (P, a, b, C))
    cost = transport_cost(P, C)
    return Values(cost, cost + eps * kl_to_product(P, a, b), cost - eps * entropy(P))


def optimum(a, b, C, eps):
    """Return the three values at the optimum."""
    solution = solve(a, b, C, eps)
    assert solution.error < 1e-9, f"the oracle did not converge: marginal error {solution.error}"
    P = plan(*(np.asarray(x, dtype=np.float64) for x in (a, b, C)), eps, solution.f, solution.g)
    return values(P, a, b, C, eps)


def unbalanced_value(a, b, C, eps, rho_a, rho_b, n_iter=20000):
    """Return the `reg_cost` of unbalanced transport by plain alternating updates; an infinite price meets a marginal.

    It is the dual objective, off by the square of what is missing.
    """
    a, b, C = (np.asarray(x, dtype=np.float64) for x in (a, b, C))
    of_a, of_b, f, g = 1 / (1 + eps / rho_a), 1 / (1 + eps / rho_b), np.zeros(len(a)), np.zeros(len(b))
    for _ in range(n_iter):
        new = of_a * softmin(C, g, b, eps, axis=1)
        g, change, f = of_b * softmin(C, new, a, eps, axis=0), np.abs(new - f).max(), new
        if change < 1e-13:
            break
    else:
        raise AssertionError("the oracle did not converge")
    value = eps * (a.sum() * b.sum() - plan(a, b, C, eps, f, g).sum())
    for rho, weights, potential in ((rho_a, a, f), (rho_b, b, g)):
        value += (weights * (potential if rho == np.inf else -rho * np.expm1(-potential / rho))).sum()
    return value


def exact_cost(a, b, C):
    """Unregularised optimal cost by SciPy's linear programming over the allowed pairs; inf if there is no plan."""
    a, b, C = (np.asarray(x, dtype=np.float64) for x in (a, b, C))
    mass = a.sum()
    # What is below rounding of the mass moves no digit of the cost, but is infeasible to a solver with tolerances.
    rows, columns = np.flatnonzero(a > 1e-16 * mass), np.flatnonzero(b > 1e-16 * mass)
    a, b, C = a[rows], b[columns], C[np.ix_(rows, columns)]
    n, m = C.shape
    i, j = np.nonzero(np.isfinite(C))
    k = np.arange(len(i))
    ones = np.ones(len(i))
    A = coo_array((np.r_[ones, ones], (np.r_[i, n + j], np.r_[k, k])), shape=(n + m, len(i))).tocsr()
    # The last equation follows from the others, up to a rounding that would make the problem infeasible.
    marginals = np.r_[a / a.sum(), b / b.sum()]
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    answer = linprog(C[i, j], A_eq=A[:-1], b_eq=marginals[:-1], method="highs", options=tight)
    if answer.status == 2:
        return float("inf")
    assert answer.status == 0, answer.message
    return float(answer.fun * mass)


def assignment_cost(C):
    """Unregularised optimal cost between uniform weights on equally many bins, by the assignment problem."""
    rows, columns = linear_sum_assignment(C)
    return float(np.asarray(C)[rows, columns].mean())


def each(function, a, b, C, *args, **kwargs):
    """Apply a one-problem function to every problem of a batch (leading axes broadcast); the outcomes as a list."""
    a, b, C = np.asarray(a), np.asarray(b), np.asarray(C)
    size = max(1 if x.ndim == base else len(x) for x, base in ((a, 1), (b, 1), (C, 2)))
    a = np.broadcast_to(a, (size, a.shape[-1]))
    b = np.broadcast_to(b, (size, b.shape[-1]))
    C = np.broadcast_to(C, (size, *C.shape[-2:]))
    return [function(a[k], b[k], C[k], *args, **kwargs) for k in range(size)]


def jacobian(a, b, C, eps, f, g):
    """Differentiate f, g and the three values with respect to a, b, C and eps at the optimum (f, g), by dense algebra.

    The optimality conditions ``f = softmin(g)``, ``g = softmin(f)`` are differentiated as they stand, in all bins,
    and solved by least squares with equal sums of df and dg over the bins with weight. Returns
    ``{output: {input: array (output, input)}}``, the cost as n*m inputs. Only directions that
    keep the masses equal have a meaning.
    """
    a, b, C, f, g = (np.asarray(x, dtype=np.float64) for x in (a, b, C, f, g))
    n, m = C.shape
    allowed = np.isfinite(C)
    C = np.where(allowed, C, 0.0)
    Z = (f[:, None] + g[None, :] - C) / eps  # log(P / (a x b))
    E = np.where(allowed, np.exp(Z), 0.0)
    P = a[:, None] * b * E
    R, S = E * b, E * a[:, None]
    inputs = {"a": n, "b": m, "C": n * m, "eps": 1}
    ends = np.cumsum([0, *inputs.values()])
    by = {name: slice(*ends[k : k + 2]) for k, name in enumerate(inputs)}
    # d f + R d g = <R, dC> - eps E db + <R, Z> d eps, and likewise for g.
    right = np.zeros((n + m + 1, ends[-1]))
    right[:n, by["b"]], right[n:-1, by["a"]] = -eps * E, -eps * E.T
    per_pair = right[:, by["C"]].reshape(n + m + 1, n, m)
    per_pair[np.arange(n), np.arange(n)] = R
    per_pair[n + np.arange(m), :, np.arange(m)] = S.T
    right[:, by["C"]] = per_pair.reshape(n + m + 1, n * m)
    right[:n, by["eps"]], right[n:-1, by["eps"]] = (R * Z).sum(1)[:, None], (S * Z).sum(0)[:, None]
    gauge = np.r_[1.0 * (a > 0), -1.0 * (b > 0)]
    system = np.block([[np.eye(n), R], [S.T, np.eye(m)], [gauge]])
    d = np.linalg.lstsq(system, right, rcond=1e-15)[0]
    # Through the plan: P = a b exp(Z), so that each direction moves Z and the weights.
    dZ = (d[:n, None] + d[n:][None]) / eps
    dZ.reshape(n * m, -1)[:, by["C"]] -= np.eye(n * m) / eps
    dZ[:, :, by["eps"]] -= Z[:, :, None] / eps
    dP = P[:, :, None] * dZ
    dP[np.arange(n), :, np.arange(n)] += R  # advanced indices at 0 and 2: (n, m)
    for j in range(m):
        dP[:, j, n + j] += S[:, j]
    cost = np.einsum("ijk,ij->k", dP, C)
    cost[by["C"]] += P.ravel()
    kl = np.einsum("ijk,ij->k", dP, Z) + np.einsum("ijk,ij->k", dZ, P)
    reg_cost = cost + eps * kl
    reg_cost[by["eps"]] += (P * Z).sum()
    entropic_cost = reg_cost.copy()
    for name, w in (("a", a), ("b", b)):
        entropic_cost[by[name]] += eps * np.where(w > 0, np.log(np.where(w > 0, w, 1)) + 1, 0)
    entropic_cost[by["eps"]] -= entropy(a) + entropy(b)
    outputs = {
        "f": d[:n],
        "g": d[n:],
        "cost": cost[None],
        "reg_cost": reg_cost[None],
        "entropic_cost": entropic_cost[None],
    }
    return {name: {given: rows[:, by[given]] for given in inputs} for name, rows in outputs.items()}


def derivative(value, step=1e-3):
    """Return the derivative of a function of a number at 0, by centred differences of fourth order."""
    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8 * near - far) / (12 * step)
