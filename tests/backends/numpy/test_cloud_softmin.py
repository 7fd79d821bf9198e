"""Softmins between clouds that are prepared for many calls: equal to single ones, whatever comes in which order."""

import numpy as np
import pytest

import cusink
from cusink.backends.numpy.clouds import softmin as prepared
from cusink.backends.numpy.clouds.reductions import softmin
from cusink.costs.clouds import point_costs


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eps", [0.05, 1e-4])
@pytest.mark.parametrize(("batch", "sizes"), [(None, (300, 290)), (3, (300, 290)), (3, (20, 30))])
def test_calls_that_follow_each_other_are_single_ones(batch, sizes, eps, dtype):
    rng = np.random.default_rng(0)
    lead = () if batch is None else (batch,)
    cloud = cusink.PointCloud(*(rng.random((*lead, k, 2)).astype(dtype) for k in sizes))
    C = point_costs(np, cloud, cloud.x, cloud.y)
    repeated = prepared.repeated_softmin(C, eps)
    logits = [rng.normal(size=(batch or 2, k)).astype(dtype) - 5 for k in sizes[::-1]]
    logits[0][0, 3] = logits[1][-1, 5] = -np.inf  # bins without weight
    for step in (0.0, 0.1, 3.0, 300.0):  # small moves, and jumps out of the range of what was absorbed
        for axis in (1, 0):
            given = logits[1 - axis] = logits[1 - axis] + dtype(step) * rng.normal(size=logits[1 - axis].shape).astype(
                dtype
            )
            found, expected = repeated(given, axis), softmin(C, given, eps, axis)
            assert found.dtype == dtype
            rounding = (
                64 * np.finfo(dtype).eps * (1 + np.abs(expected).max() + eps * np.abs(given[given > -np.inf]).max())
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
    if batch is None:  # a problem that leaves takes its kernel with it
        np.testing.assert_allclose(repeated(logits[0][:1], 1), softmin(C, logits[0][:1], eps, 1), rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", [(300, 290), (20, 30)])
def test_many_problems_share_one_kernel_while_they_are_in_its_range(sizes, dtype):
    """Sums and transport costs by products are those of single problems, and so are those that leave the range."""
    rng = np.random.default_rng(1)
    cloud = cusink.PointCloud(*(rng.random((k, 2)).astype(dtype) for k in sizes))
    C, B = point_costs(np, cloud, cloud.x, cloud.y), prepared.PRODUCT_PROBLEMS + 1
    p, q = (rng.normal(size=(B, k)).astype(dtype) - 5 for k in sizes)
    p[0, 3] = q[-1, 5] = -np.inf  # bins without weight
    for eps in (0.05, 2e-6):
        repeated = prepared.repeated_softmin(C, eps)
        expected = softmin(C, q, eps, 1)
        near = 64 * np.finfo(dtype).eps * (1 + np.abs(expected).max())
        np.testing.assert_allclose(repeated(q, 1), expected, rtol=0, atol=near)
        if sizes[0] > 256:
            assert isinstance(repeated, prepared.SharedSoftmin)
            assert (repeated.kernel is not None) == (eps == 0.05)
        f = np.where(np.isneginf(p), p, softmin(C, q, eps, 1) / eps - 5).astype(dtype)  # plans of finite mass
        found, single = (
            prepared.transport_cost(C, f, q, eps),
            np.concatenate([prepared.transport_cost(C, f[k : k + 1], q[k : k + 1], eps) for k in range(B)]),
        )
        assert found.dtype == dtype
        np.testing.assert_allclose(found, single, rtol=64 * np.finfo(dtype).eps * (1 + C.largest(np) / eps))
