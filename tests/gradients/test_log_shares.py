"""Shares in the log domain against dense ones, and steps on a known spectrum against a direct solution."""

import dataclasses

import numpy as np
import pytest

import cusink
from cusink.gradients.chebyshev import chebyshev, chebyshev_steps
from cusink.gradients.conditional import FAR, LEAST, goes_far, log_shares
from cusink.gradients.motion import solved

RNG = np.random.default_rng(2)
A, B = RNG.dirichlet(np.ones(7), 2), RNG.dirichlet(np.ones(5), 2)
C = RNG.random((7, 5))
EPS, REACH = 0.1, (0.3, 0.2)


@pytest.fixture(scope="module")
def problem():
    result = cusink.sinkhorn(A, B, C, eps=EPS, reach=REACH, tol=1e-10)
    return solved(result.problem).problem


@pytest.fixture(scope="module")
def dense(problem):
    """Return the shares R of rows and S of columns, and the plan (B, n, m)."""
    P = A[:, :, None] * B[:, None] * np.exp((problem.f[:, :, None] + problem.g[:, None] - C) / EPS)
    return P / P.sum(axis=2, keepdims=True), P / P.sum(axis=1, keepdims=True), P


def test_means_and_their_transposes(problem, dense):
    R, S, _ = dense
    shares, u, v = log_shares(problem), RNG.normal(size=A.shape), RNG.normal(size=B.shape)
    np.testing.assert_allclose(shares.mean(v, 1), np.einsum("bij,bj->bi", R, v), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shares.mean(u, 0), np.einsum("bij,bi->bj", S, u), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shares.spread(u, 1), np.einsum("bij,bi->bj", R, u), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shares.spread(v, 0), np.einsum("bij,bj->bi", S, v), rtol=1e-10, atol=1e-12)
    both = np.einsum("bij,bkj,bk->bi", R, S, u), np.einsum("bij,bik,bk->bj", S, R, v)
    np.testing.assert_allclose(shares.smoothed(u, 1), both[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shares.smoothed(v, 0), both[1], rtol=1e-10, atol=1e-12)
    second = shares.at(np.array([1]))
    np.testing.assert_allclose(second.mean(v[1:], 1), shares.mean(v, 1)[1:], rtol=1e-12)


def test_marginals_are_those_of_the_plan_in_a_unit(problem, dense):
    shares, P = log_shares(problem), dense[2]
    for axis in (0, 1):
        found, right = shares.marginal(axis), P.sum(axis=2 if axis else 1)
        unit = found / right
        np.testing.assert_allclose(unit, unit[:, :1] * np.ones_like(unit), rtol=1e-9)
        if axis == 1:
            np.testing.assert_allclose(found.max(axis=1), 1, rtol=1e-12)


def test_marginals_far_below_the_largest_are_numbers(problem):
    f = problem.f.copy()
    f[:, 2] = 0
    costs = C.copy()
    costs[2] += 1000  # of which exp underflows
    far = dataclasses.replace(problem, C=type(problem.C)(costs, problem.C.ops), f=f)
    marginal = log_shares(far).marginal(1)
    np.testing.assert_allclose(marginal[:, 2], LEAST, rtol=1e-9)
    assert (marginal.max(axis=1) == 1).all()


@pytest.mark.parametrize(("size", "far"), [(0.99 * FAR, False), (1.01 * FAR, True), (-1.01 * FAR, True)])
@pytest.mark.parametrize("side", ["f", "g"])
def test_what_is_far(problem, size, far, side):
    potential = np.zeros_like(getattr(problem, side))
    potential[1, 3] = size * REACH["fg".index(side)]
    zero = {name: np.zeros_like(getattr(problem, name)) for name in "fg"}
    assert goes_far(dataclasses.replace(problem, **(zero | {side: potential}), shift=None), FAR) == far


@pytest.mark.parametrize("least", [0.9, 0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_steps_reach_their_tolerance_and_not_much_earlier(least, tol):
    """For every eigenvalue between `least` and 1 the residual is below `tol`: a Chebyshev polynomial, the smallest."""
    eigenvalues = np.linspace(least, 1, 2001)[None]
    steps = chebyshev_steps(least, tol)
    found = chebyshev(lambda y: eigenvalues * y, np.ones_like(eigenvalues), least, steps)
    assert abs(1 - eigenvalues * found).max() <= tol * (1 + 1e-6)
    if steps > 3:
        fewer = chebyshev(lambda y: eigenvalues * y, np.ones_like(eigenvalues), least, steps - 2)
        assert abs(1 - eigenvalues * fewer).max() > tol


def test_each_problem_has_its_own_spectrum():
    eigenvalues = np.stack([np.linspace(0.5, 1, 50), np.linspace(0.05, 1, 50)])
    least = np.array([[0.5], [0.05]])
    found = chebyshev(lambda y: eigenvalues * y, np.ones((2, 50)), least, chebyshev_steps(0.05, 1e-8))
    np.testing.assert_allclose(found, 1 / eigenvalues, rtol=1e-6)
