"""A given start that is far from the solution costs one iteration and no digit with `reach`."""

import numpy as np
import pytest

import cusink

C = np.array([[0.0, 1.0], [1.0, 0.0]])
A, B = np.array([0.5, 0.5]), np.array([0.3, 0.7])
SIGNS = [((-1, 1), (-1, 0)), ((1, -1), (1, 0)), ((-1, -1), (-1, -1)), ((1, 1), (-1, -1))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e2, 1e6, 1e10, 1e20, 1e100])
@pytest.mark.parametrize("reach", [1.0, 0.05, (None, 1.0), (1.0, None)])
def test_a_far_start_is_left_out(reach, size, dtype):
    if size > float(np.finfo(dtype).max):
        pytest.skip("no number of float32")
    given = [x.astype(dtype) for x in (A, B, C)]
    cold = cusink.sinkhorn(*given, eps=0.1, reach=reach)
    for signs in SIGNS:
        start = tuple(size * np.array(side, dtype) for side in signs)
        found = cusink.sinkhorn(*given, eps=0.1, reach=reach, init=start)
        assert found.converged and found.n_iter <= cold.n_iter + 1
        rtol = 1e-4 if dtype == "float32" else 1e-5
        for name in ("cost", "reg_cost", "entropic_cost"):
            np.testing.assert_allclose(getattr(found, name), getattr(cold, name), rtol=rtol)
        np.testing.assert_allclose(np.r_[found.f, found.g], np.r_[cold.f, cold.g], atol=1e-5)


def test_a_far_start_in_a_batch_is_left_out_alone():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(6), 3), 1.5 * rng.dirichlet(np.ones(7), 3)
    cost = rng.random((3, 6, 7))
    seen = []
    for C_or_own in (cost, cost[0]):
        for eps in (0.1, np.array([0.1, 0.2, 0.3])):
            cold = cusink.sinkhorn(a, b, C_or_own, eps=eps, reach=0.7, tol=1e-9)
            f, g = cold.f.copy(), cold.g.copy()
            f[1], g[1] = 1e12, -1e12 * np.arange(7)
            seen.clear()
            found = cusink.sinkhorn(
                a, b, C_or_own, eps=eps, reach=0.7, tol=1e-9, init=(f, g), callback=lambda n, _: seen.append(n)
            )
            assert found.converged.all() and found.n_iter[1] > found.n_iter[[0, 2]].max()
            np.testing.assert_allclose(found.f, cold.f, atol=1e-8)
            np.testing.assert_allclose(found.g, cold.g, atol=1e-8)
            np.testing.assert_allclose(found.reg_cost, cold.reg_cost, rtol=1e-9)
            grads = [cusink.sinkhorn_adjoint(result, grad_reg_cost=np.ones(3)) for result in (found, cold)]
            np.testing.assert_allclose(grads[0].a, grads[1].a, atol=1e-8)
            assert max(seen) >= found.n_iter[1] - 10


def test_one_iteration_is_no_more():
    start = np.full(2, 1e10), np.full(2, 1e10)
    with pytest.warns(cusink.ConvergenceWarning):
        assert cusink.sinkhorn(A, B, C, eps=0.1, reach=1.0, init=start, max_iter=1).n_iter == 1
    exact = cusink.sinkhorn(A, B, C, eps=0.1, reach=1.0, init=start, max_iter=3, tol=None)
    assert exact.n_iter == 3  # without a tolerance a start is used, as it is
