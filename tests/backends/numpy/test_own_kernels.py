"""The softmin of costs of many problems by kernels of their own, and kernels that stay between checks."""

import numpy as np
import pytest
from scipy.special import logsumexp

import cusink
from cusink.backends.numpy.forms.log import chosen_costs
from cusink.backends.numpy.softmin import OwnKernelSoftmin, repeated_softmin


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("eps", [1.0, 0.02, 3e-4])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmin_is_right_to_rounding_for_any_range(dtype, eps, axis):
    rng = np.random.default_rng(3)
    C = (rng.random((4, 9, 12)) + 5).astype(dtype)
    with np.errstate(divide="ignore"):
        logits = np.log(rng.random((4, 12 if axis else 9)) * (rng.random((4, 12 if axis else 9)) > 0.3))
    logits = (logits + rng.normal(size=logits.shape) / eps).astype(dtype)
    logits[0] = -np.inf
    logits[1, 0] = 0
    exponents = (logits[:, None, :] if axis else logits[:, :, None]) - C.astype(np.float64) / eps
    want = -eps * logsumexp(exponents, axis=2 if axis else 1)
    got = OwnKernelSoftmin(C, eps)(logits, axis)
    assert got.dtype == dtype and np.isposinf(got[0]).all()
    largest = 6 + eps * np.abs(logits[np.isfinite(logits)]).max()
    np.testing.assert_allclose(got[1:], want[1:], atol=8 * np.finfo(dtype).eps * largest)


@pytest.mark.parametrize(("eps", "kernels"), [(0.1, np.float32), (0.01, np.float64)])
def test_costs_in_float64_take_logits_in_float32(eps, kernels):
    """Kernels are as narrow as the logits where there is room, and of costs that are not rounded before."""
    rng = np.random.default_rng(4)
    C, logits = rng.random((5, 30, 40)), rng.normal(size=(5, 40)).astype(np.float32)
    softmin = OwnKernelSoftmin(C, eps)
    got = softmin(logits, 1)
    assert got.dtype == np.float32 and softmin.kernels.dtype == kernels
    want = -eps * logsumexp(logits[:, None].astype(np.float64) - C / eps, axis=2)
    np.testing.assert_allclose(got, want, atol=4 * np.finfo(np.float32).eps * (1 + eps * np.abs(logits).max()))


def test_costs_that_forbid_pairs_take_no_kernels():
    rng = np.random.default_rng(5)
    C, logits = rng.random((3, 6, 7)), rng.normal(size=(3, 7))
    assert isinstance(repeated_softmin(C, 0.1), OwnKernelSoftmin)
    C[1, 2, 3], C[2] = np.inf, np.inf
    found = repeated_softmin(C, 0.1)
    assert not isinstance(found, OwnKernelSoftmin)
    want = -0.1 * logsumexp(logits[:2, None] - C[:2] / 0.1, axis=2)
    got = found(logits, 1)
    np.testing.assert_allclose(got[:2], want, rtol=1e-12)
    assert np.isposinf(got[2]).all()


def test_costs_that_follow_each_other_are_not_copied():
    C = np.arange(24.0).reshape(6, 2, 2)
    for problems in ([0, 1, 2, 3, 4, 5], [2, 3], [4]):
        chosen = chosen_costs(C, np.array(problems))
        np.testing.assert_array_equal(chosen, C[problems])
        assert np.shares_memory(chosen, C)
    for problems in ([0, 2], [3, 2], [1, 1], [5, 0]):
        np.testing.assert_array_equal(chosen_costs(C, np.array(problems)), C[problems])
    assert chosen_costs(C, np.arange(0)).shape == (0, 2, 2)


def test_kernels_that_stay_give_what_those_made_anew_give(limits):
    rng = np.random.default_rng(0)
    a, b = (rng.dirichlet(np.ones(n), 6) for n in (8, 11))
    a[2, 3], a[2, 4] = 0, a[2, 3] + a[2, 4]
    C = rng.random((6, 8, 11)) * np.array([1, 1, 1, 5, 20, 100])[:, None, None]
    kept = cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-9, max_iter=10_000)
    limits(own_kernel_bytes=0)
    anew = cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-9, max_iter=10_000)
    assert kept.converged.all() and len(set(kept.n_iter)) > 2
    np.testing.assert_allclose(kept.cost, anew.cost, rtol=1e-9)
    np.testing.assert_allclose(kept.f, anew.f, atol=1e-8)


def test_kernels_are_made_of_a_few_problems_at_a_time_to_the_same_bits(limits):
    rng = np.random.default_rng(1)
    a, b = (rng.dirichlet(np.ones(n), 7) for n in (8, 11))
    a[2, 3], a[2, 4] = 0, a[2, 3] + a[2, 4]
    C = rng.random((7, 8, 11)) * np.array([1, 1, 30, 5, 400, 100, 2])[:, None, None]  # some leave the range of products
    together = cusink.sinkhorn(a, b, C, eps=0.05, max_iter=60, tol=None)
    for entries in (1, 3 * 88):
        limits(dense_block_entries=entries)
        few = cusink.sinkhorn(a, b, C, eps=0.05, max_iter=60, tol=None)
        np.testing.assert_array_equal(few.f, together.f)
        np.testing.assert_array_equal(few.cost, together.cost)
