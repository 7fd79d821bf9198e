"""Clouds of which some points lie far from the others, with weight or without: no digit of the near ones is lost."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

import cusink
from cusink.backends.numpy import points as ops
from cusink.backends.numpy.clouds.exponents import DOUBLE_RADIUS
from cusink.costs.kinds import data_of, named_arrays

FLOATS = (np.float32, np.float64)
DIMENSIONS = (1, 2, 3, 10, 20, 70)
METRICS = (("sqeuclidean", 1), ("euclidean", 1), ("cityblock", 1), ("sqeuclidean", 1.5))
EPS = 0.02


def padded(rng, d, far, pads=1, n=70):
    """Return points in the unit cube, and as many without weight at `far`."""
    x, y = rng.random((n, d)), rng.random((n + 5, d))
    x[rng.choice(n, pads, replace=False)] = far
    y[rng.choice(n + 5, pads, replace=False)] = far
    a, b = (np.where((p == far).all(axis=1), 0.0, 1.0) for p in (x, y))
    return x, y, a, b


def towns(rng, d, apart, n=70):
    """Return two unit cubes, half of the points of either side in each."""
    x, y = rng.random((n, d)), rng.random((n, d))
    x[::2, 0] += apart
    y[n // 2 :, 0] += apart
    return x, y, np.ones(n), np.ones(n)


def outlier(rng, d, far, n=70):
    """Return the unit cube, and a point with weight far off on both sides."""
    x, y = rng.random((n, d)), rng.random((n, d))
    x[3] = y[-1] = far
    return x, y, np.ones(n), np.ones(n)


def elsewhere(rng, d, far, n=70):
    """Return the unit cube, moved; with padding at the origin."""
    x, y, a, b = padded(rng, d, 0.0, 20, n)
    return np.where(x == 0, x, x + far), np.where(y == 0, y, y + far), a, b


CLOUDS = {
    "padded with -9999": lambda rng, d: padded(rng, d, -9999.0),
    "padded with 1e3": lambda rng, d: padded(rng, d, 1e3),
    "half padded with 1e5": lambda rng, d: padded(rng, d, 1e5, 35),
    "padded with 1e8": lambda rng, d: padded(rng, d, 1e8, 3),
    "two towns": lambda rng, d: towns(rng, d, 1000.0),
    "two towns far away": lambda rng, d: towns(rng, d, 1e5),
    "an outlier": lambda rng, d: outlier(rng, d, 1e3),
    "moved, with padding at the origin": lambda rng, d: elsewhere(rng, d, 1e3),
}


@pytest.fixture(params=["default blocks", "many blocks"], autouse=True)
def cut(request, limits):
    """As blocks are for clouds of thousands of points, too."""
    if request.param != "default blocks":
        limits(
            cloud_array_pairs=0,
            cloud_block_entries=1 << 9,
            cloud_block_rows=(4, 8),
            cloud_leaf_points=4,
            cloud_sparse_pairs=1,
            product_multiplications=1 << 7,
        )


def made(name, d, dtype, seed=0):
    """Return points in `dtype`, and normalised weights."""
    x, y, a, b = CLOUDS[name](np.random.default_rng(seed), d)
    return x.astype(dtype), y.astype(dtype), a / a.sum(), b / b.sum()


def dense(x, y, metric="sqeuclidean", power=1):
    """Return the cost between the points as they are, in float64."""
    return cdist(x.astype(np.float64), y.astype(np.float64), metric) ** power


def given(x, y, metric="sqeuclidean", power=1):
    cloud = cusink.PointCloud(x, y, metric, power=power)
    return data_of(cloud, np, x.dtype, list(named_arrays(cloud).values()))


def log(weights):
    with np.errstate(divide="ignore"):
        return np.log(weights)


def near(found, want, allowed):
    """Assert equality up to `allowed` in every entry."""
    assert np.isfinite(found).all()
    excess = np.abs(found - want) - allowed
    assert (excess <= 0).all(), f"{excess.max():g} more than {np.ravel(allowed)[excess.argmax()]:g}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("metric", "power"), METRICS)
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", CLOUDS)
def test_operators(name, d, metric, power, dtype):
    """Each as exact as with a cost in this precision, of which every entry is right to rounding."""
    x, y, a, b = made(name, d, dtype)
    D, C, eps = dense(x, y, metric, power), given(x, y, metric, power), EPS * d
    rounding = 8 * np.finfo(dtype).eps
    q = log(b).astype(dtype)[None]
    f = -eps * logsumexp(q - D / eps, axis=1)
    p = (log(a) + f / eps).astype(dtype)[None]
    rows = q.astype(np.float64) - D / eps
    P = np.exp(p[0, :, None].astype(np.float64) + rows)
    # Products of float64 are taken of terms of up to this size, of whatever size the sum is.
    lost = DOUBLE_RADIUS if dtype == np.float64 and (metric, power) == ("sqeuclidean", 1) else 0
    exponent = 4 + lost + D / eps + np.where(P > 0, np.abs(p[0, :, None]), 0)

    to = np.exp(rows - logsumexp(rows, axis=1, keepdims=True))
    of_rows = (to * (4 + lost + D / eps)).sum(axis=1)
    near(ops.softmin(C, q, eps, 1)[0], f, rounding * eps * of_rows)
    found = ops.plan(C, p, q, eps)[0]
    near(found, P, rounding * exponent * P + np.finfo(dtype).tiny)
    v, w = (np.random.default_rng(1).normal(size=(1, k)).astype(dtype) for k in (len(b), len(a)))
    near(ops.apply_plan(C, p, q, v, eps, 1)[0], P @ v[0], rounding * (exponent * P) @ np.abs(v[0]))
    near(ops.apply_plan(C, p, q, w, eps, 0)[0], w[0] @ P, rounding * np.abs(w[0]) @ (exponent * P))
    near(ops.transport_cost(C, p, q, eps)[0], (P * D).sum(), rounding * (exponent * P * D).sum())
    least = (D - q).min(axis=1)
    near(ops.c_transform(C, q, 1)[0], least, rounding * (np.abs(least) + 8))
    near(ops.cost_block(C, slice(None), slice(3, 9)), D[3:9], rounding * D[3:9])
    near(ops.bilinear(C, a.astype(dtype)[None], b.astype(dtype)[None])[0], a @ D @ b, rounding * (a @ D @ b))
