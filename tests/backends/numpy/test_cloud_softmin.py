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
