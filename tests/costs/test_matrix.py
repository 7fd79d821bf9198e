"""`cusink.cost_matrix` against direct formulas and SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import cusink

FLOATS = [np.float32, np.float64]

# Each metric from its definition, pair by pair, in float64.
DEFINITIONS = {
    "sqeuclidean": lambda d, x, y: (d**2).sum(axis=-1),
    "euclidean": lambda d, x, y: np.sqrt((d**2).sum(axis=-1)),
    "cityblock": lambda d, x, y: np.abs(d).sum(axis=-1),
    "cosine": lambda d, x, y: 1 - (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1)),
}


def by_definition(x, y, metric):
    x, y = (np.asarray(z, dtype=np.float64) for z in (x, y))
    x, y = x[..., :, None, :], y[..., None, :, :]
    return DEFINITIONS[metric](x - y, x, y)


def points(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("metric", DEFINITIONS)
@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (40, 33, 20), (3, 90, 2)])
def test_metrics_have_their_definitions(xp, metric, shape, dtype):
    n, m, d = shape
    x, y = points(0, n, d).astype(dtype), points(1, m, d).astype(dtype)
    C = cusink.cost_matrix(xp(x), xp(y), metric)
    assert C.shape == (n, m) and C.dtype == dtype and xp.owns(C)
    want = by_definition(x, y, metric)
    # Naive: the definition in the dtype itself.
    naive = DEFINITIONS[metric](x[:, None] - y[None], x[:, None], y[None])
    tolerance = 4 * np.abs(naive - want).max() + 8 * np.finfo(dtype).eps * np.abs(want).max()
    np.testing.assert_allclose(xp.numpy(C), want, rtol=0, atol=tolerance)


def test_the_default_is_squared_euclidean(xp):
    x, y = xp(points(0, 4, 2)), xp(points(1, 3, 2))
    np.testing.assert_array_equal(xp.numpy(cusink.cost_matrix(x, y)), xp.numpy(cusink.cost_matrix(x, y, "sqeuclidean")))


@pytest.mark.parametrize("metric", ["chebyshev", "braycurtis", "canberra", "correlation"])
def test_any_metric_of_scipy(metric):
    x, y = np.abs(points(0, 6, 4)), np.abs(points(1, 5, 4))
    np.testing.assert_allclose(cusink.cost_matrix(x, y, metric), cdist(x, y, metric), rtol=1e-12, atol=1e-15)
    single = cusink.cost_matrix(x.astype(np.float32), y.astype(np.float32), metric)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, cdist(x, y, metric), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_far_from_the_origin_distances_keep_their_digits(xp, metric, offset, dtype):
    """|x|^2 + |y|^2 - 2 xy loses everything here, and may turn negative."""
    x, y = (points(0, 20, 3) + offset).astype(dtype), (points(1, 15, 3) + offset).astype(dtype)
    C = xp.numpy(cusink.cost_matrix(xp(x), xp(y), metric))
    want = by_definition(x, y, metric)
    np.testing.assert_allclose(C, want, rtol=32 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_distance_to_itself_is_zero_and_none_is_negative(xp, metric, dtype):
    x = points(0, 50, 8).astype(dtype) * 100 + 7
    C = xp.numpy(cusink.cost_matrix(xp(x), xp(x), metric))
    assert (np.diag(C) == 0).all()
    assert (C >= 0).all()
    np.testing.assert_array_equal(C, C.T)


def test_cosine_stays_between_zero_and_two(xp):
    x = points(0, 30, 2).astype(np.float32)
    C = xp.numpy(cusink.cost_matrix(xp(np.concatenate([x, 1e3 * x])), xp(np.concatenate([x, -1e-3 * x])), "cosine"))
    assert (C >= 0).all() and (C <= 2).all()


def test_lists_integers_and_half_precision():
    C = cusink.cost_matrix([[0, 0], [3, 4]], [[0, 0]], "euclidean")
    assert C.dtype == np.float64
    np.testing.assert_array_equal(C, [[0.0], [5.0]])
    x = points(0, 5, 2).astype(np.float16)
    half = cusink.cost_matrix(x, x)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(
        half, cusink.cost_matrix(x.astype(np.float32), x.astype(np.float32)).astype(np.float16)
    )


def test_it_feeds_sinkhorn(xp):
    x, y = xp(points(0, 6, 2), np.float32), xp(points(1, 9, 2), np.float32)
    C = cusink.cost_matrix(x, y)
    result = cusink.sinkhorn(None, None, C, eps=0.1 * float(C.max()), tol=1e-4)
    assert bool(result.converged) and result.cost.dtype == np.float32
