"""`SinkhornResult.bounds` beside the same construction in plain float64 NumPy, and what its margins cover."""

import numpy as np
import pytest

import cusink
from cusink.solver.bounds import marginal_divergence

TINY = 1e-13


def drawn(seed, n=5, m=4, zeros=True):
    """Return weights (3, n), (3, m) of masses about 2 and costs of both signs (n, m)."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((3, n)), rng.random((3, m))
    if zeros:
        a[0, 1] = b[0, 2] = b[2, 0] = 0
    a, b = (2 * x / x.sum(axis=1, keepdims=True) for x in (a, b))
    return a, b, rng.normal(size=(n, m))


def plain_plan(a, b, C, eps, f, g):
    return a[:, None] * b * np.exp((f[:, None] + g - C) / eps)


def balanced(a, b, C, eps, f, g):
    """Return the value of feasible potentials, and the cost of a feasible plan, of one problem."""
    u = (C - g)[:, b > 0].min(axis=1)
    v = (C - u[:, None])[a > 0].min(axis=0)
    P = plain_plan(a, b, C, eps, f, g)
    P = P * np.minimum(1, a / np.where(a > 0, P.sum(axis=1), 1))[:, None]
    P = P * np.minimum(1, b / np.where(b > 0, P.sum(axis=0), 1))
    left, right = a - P.sum(axis=1), b - P.sum(axis=0)
    if left.sum() > 1e-15:
        P = P + np.outer(left, right) / left.sum()
    np.testing.assert_allclose(P.sum(axis=1), a, atol=1e-14)
    np.testing.assert_allclose(P.sum(axis=0), b, atol=1e-14)
    return a @ u + b @ v, (P * C).sum()


@pytest.mark.parametrize("max_iter", [1, 3, 400])
def test_bounds_are_those_of_feasible_potentials_and_a_feasible_plan(max_iter):
    a, b, C = drawn(0)
    result = cusink.sinkhorn(a, b, C, eps=0.3, tol=None, max_iter=max_iter)
    lower, upper = result.bounds()
    for k in range(3):
        dual, primal = balanced(a[k], b[k], C, 0.3, result.f[k], result.g[k])
        assert dual - TINY <= lower[k] <= dual < primal <= upper[k] <= primal + 1e-11, k


def test_margins_are_some_roundings_of_the_dtype_of_the_cost():
    a, b, C = drawn(1)
    single = [x.astype(np.float32) for x in (a, b, C)]
    result = cusink.sinkhorn(*single, eps=0.3, tol=None, max_iter=50)
    lower, upper = result.bounds()
    u = float(np.finfo(np.float32).eps)
    double = [x.astype(np.float64) for x in single]
    for k in range(3):
        one = double[0][k], double[1][k] * (double[0][k].sum() / double[1][k].sum()), double[2]
        dual, primal = balanced(*one, 0.3, result.problem.f[k], result.problem.g[k])
        size = 2 * np.abs(C).max()
        assert 2 * u * size < dual - lower[k] < 40 * u * size
        assert 2 * u * size < upper[k] - primal < 600 * u * size  # exponents have several roundings, each
        assert lower.dtype == upper.dtype == np.float32


def unbalanced(a, b, C, f, g, reach, eps):
    """Return the dual value after the best shift, and the cost of the plan with the prices of its marginals."""
    u = (C - g)[:, b > 0].min(axis=1)
    v = (C - u[:, None])[a > 0].min(axis=0)

    def dual(shift):
        return sum(
            w @ (p if rho == np.inf else rho * (1 - np.exp(-p / rho)))
            for w, p, rho in ((a, u + shift, reach[0]), (b, v - shift, reach[1]))
        )

    shifts = np.linspace(-5, 5, 201)
    best = max(shifts, key=dual)
    shifts = best + np.linspace(-0.06, 0.06, 2401)
    lower = max(dual(t) for t in shifts)
    P = plain_plan(a, b, C, eps, f, g)
    if reach[0] == np.inf:
        P = P * (a / np.where(a > 0, P.sum(axis=1), 1))[:, None]
    if reach[1] == np.inf:
        P = P * (b / np.where(b > 0, P.sum(axis=0), 1))
    upper = (P * C).sum()
    for rho, p, w in ((reach[0], P.sum(axis=1), a), (reach[1], P.sum(axis=0), b)):
        if rho < np.inf:
            used = w > 0
            upper += rho * (p[used] * np.log(p[used] / w[used]) - p[used] + w[used]).sum()
    return lower, upper


@pytest.mark.parametrize("reach", [(0.7, 0.4), (None, 0.4), (0.7, None)])
def test_bounds_with_reach_are_those_of_their_construction(reach):
    a, b, C = drawn(2)
    result = cusink.sinkhorn(a, b * 1.3, C, eps=0.3, reach=reach, tol=None, max_iter=4)
    lower, upper = result.bounds()
    rho = tuple(np.inf if x is None else x for x in reach)
    for k in range(3):
        dual, primal = unbalanced(a[k], 1.3 * b[k], C, result.f[k], result.g[k], rho, 0.3)
        assert dual - 1e-7 <= lower[k] <= dual + 1e-7 and lower[k] < upper[k], k
        assert primal <= upper[k] <= primal + 1e-11, k


def test_a_bin_that_no_mass_reaches_leaves_no_upper_bound():
    """Its marginal is to be met, but its row of the plan underflows to nothing."""
    result = cusink.sinkhorn(
        [0.5, 0.5], [1.0, 0.0], [[0.0, 0.0], [1e5, 0.0]], eps=0.1, reach=(None, 0.1), tol=None, max_iter=1
    )
    lower, upper = result.bounds()
    assert np.isfinite(lower) and lower <= upper


def test_the_divergence_of_marginals():
    p, w = np.array([[0.2, 0.0, 0.5, 0.0]]), np.array([[0.4, 0.3, 0.25, 0.0]])
    want = 0.2 * np.log(0.5) - 0.2 + 0.4 + 0.3 + 0.5 * np.log(2) - 0.5 + 0.25
    np.testing.assert_allclose(marginal_divergence(np, p, w), [want], rtol=1e-14)


def test_bounds_that_meet_are_in_order():
    """One pair with weight beside a far point: both bounds are the cost, up to rounding."""
    x = np.array([[0.3], [0.2], [0.0], [1.0], [300.0]])
    result = cusink.sinkhorn(np.eye(5)[0], np.ones(1), cusink.PointCloud(x, np.zeros((1, 1))), eps=0.2)
    lower, upper = result.bounds()
    assert lower <= upper
    np.testing.assert_allclose([lower, upper], 0.09, rtol=1e-9)
