"""Sinkhorn divergences, their two self-terms, and their gradients."""

import numpy as np
import problems
import pytest
import reference

from cusink._ops import ops_for
from cusink.divergence import self_potentials


def assert_solves_itself(a, C, eps, dtype, tol):
    """Potentials, value and error of `self_potentials` against the oracle, in every bin."""
    a, C = a.astype(dtype), C.astype(dtype)
    f, reg_cost, error, n_iter, converged = self_potentials(ops_for(C), a, C, eps, max_iter=1000, tol=tol)
    assert converged.all() and (error <= tol).all() and f.dtype == dtype
    rounding = 8 * np.finfo(dtype).eps * np.abs(C).max()
    for k, (weights, cost) in enumerate(zip(a, np.broadcast_to(C, (len(a), *C.shape[-2:])), strict=True)):
        best = reference.optimum(weights, weights, cost, eps)
        assert abs(reg_cost[k] - best.reg_cost) <= rounding + eps * tol**2 * 10
        wide = f[k].astype(np.float64)
        image = reference.softmin(cost.astype(np.float64), wide, weights.astype(np.float64), eps, axis=1)
        assert np.abs(image - wide)[weights > 0].max() <= rounding + eps * tol / weights[weights > 0].min()
        assert np.abs(image - wide).max() <= rounding + eps * tol * 1e3
    return n_iter


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_self_potentials_are_a_fixed_point(eps, dtype):
    a = problems.histograms(np.random.default_rng(0), 5, 30, zeros=0.3)
    n_iter = assert_solves_itself(a, problems.line_cost(30), eps, dtype, tol=1e-6)
    assert n_iter.max() <= 16  # each step makes the error of a positive definite kernel four times smaller


def test_self_potentials_with_a_cost_per_problem():
    rng = np.random.default_rng(1)
    C = rng.random((4, 12, 12))
    C += np.swapaxes(C, 1, 2)  # no positive definite kernel
    n_iter = assert_solves_itself(problems.histograms(rng, 4, 12, mass=3.0), C, 0.2, np.float64, tol=1e-9)
    assert len(set(n_iter)) > 1  # each problem stops by itself
