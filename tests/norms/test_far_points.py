"""Points far apart: each sum keeps the digits that its own pairs have, beside definitions in extended precision."""

import numpy as np
import pytest
from kernels import oracle

import cusink

DTYPES = (np.float32, np.float64)
DIMENSIONS = (2, 5, 10, 40)
WIDE = np.longdouble


def towns(n, d, gap, dtype, seed=0, count=2):
    """Points in groups far apart, in no order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + gap * rng.integers(count, size=(n, 1))
    return x.astype(dtype)


def near_to(x, seed=1):
    """Points as many as x, each near one of them, the first at the very place."""
    rng = np.random.default_rng(seed)
    y = (x.astype(float) + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-6, 0, (len(x), 1))).astype(x.dtype)
    y[0] = x[0]
    return y[rng.permutation(len(y))]


def weights(n, dtype, seed=2):
    """Weights, some of them zero."""
    b = np.random.default_rng(seed).random(n) + 0.1
    b[n // 3] = 0
    return b.astype(dtype)


def wide(*arrays):
    return (array.astype(WIDE) for array in arrays)


def assert_digits(actual, exact, dtype, size=None, steep=1.0):
    """Compare beside the size of each entry, or beside that of what was summed; `steep` is that of the logarithm."""
    size = np.abs(exact) if size is None else size
    assert np.isfinite(actual).all()
    worst = float(np.max(np.abs(actual - exact) / np.maximum(size, np.finfo(dtype).tiny)))
    assert worst <= 16 * steep * np.finfo(dtype).eps, worst


@pytest.mark.parametrize("gap", [1e3, 1e7, 1e8])
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", oracle.KERNELS)
def test_towns_far_apart_keep_their_digits(kernel, dtype, d, gap):
    x = towns(60, d, gap, dtype)
    y, b = near_to(x), weights(60, dtype)
    actual = cusink.kernel_product(x, y, b, kernel, 1.0)
    exact = oracle.product(*wide(x, y, b), kernel, 1.0, WIDE)
    # A logarithm of -50 has lost its rounding, 50 times over, before it is a number.
    assert_digits(actual, exact, dtype, steep=20)
    grads = cusink.kernel_product_adjoint(x, y, b, np.ones(60, dtype), kernel, 1.0)
    zeros = np.zeros(60)
    for points, others, values, found in ((x, y, b, grads.x), (y, x, np.ones(60), grads.y)):
        slopes = oracle.slopes(*wide(points, others, values, zeros, zeros), kernel, 1.0, WIDE)[1]
        slopes = slopes * (1 if found is grads.x else b[:, None])
        assert_digits(found, slopes, dtype, size=np.abs(slopes).max(), steep=20)
    if kernel != "distance":
        log_b = np.log(np.where(b > 0, b, 1e-3)).astype(dtype)
        actual = cusink.kernel_product_log(x, y, log_b, kernel, 1.0)
        exact = oracle.product_log(*wide(x, y, log_b), kernel, 1.0, WIDE)
        assert_digits(actual, exact, dtype, size=1 + np.abs(exact))
        grads = cusink.kernel_product_log_adjoint(x, y, log_b, np.ones(60, dtype), kernel, 1.0)
        slopes = oracle.slopes(*wide(x, y, np.ones(60), -exact, log_b), kernel, 1.0, WIDE)[1]
        assert_digits(grads.x, slopes, dtype, size=np.abs(slopes).max(), steep=20)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(
    ("dtype", "far"), [*((dtype, far) for dtype in DTYPES for far in (1e7, 1e8, 1e30)), (np.float64, 1e200)]
)
def test_a_far_point_without_weight_touches_no_other(dtype, far, d):
    x, b = towns(40, d, 0, dtype), weights(40, dtype)
    y = near_to(x)
    lone, zero = np.full((1, d), far, dtype), np.zeros(1, dtype)
    padded, padding = np.vstack([y, lone]), np.append(b, zero)
    for kernel in ("gaussian", "laplace", "energy"):
        alone = cusink.kernel_product(x, y, b, kernel, 0.7)
        np.testing.assert_array_equal(cusink.kernel_product(x, padded, padding, kernel, 0.7), alone)
        seen = cusink.kernel_product(np.vstack([x, lone]), padded, padding, kernel, 0.7)
        assert_digits(seen[:-1], oracle.product(*wide(x, y, b), kernel, 0.7, WIDE), dtype, steep=20)
        log_b = np.append(np.zeros(40, dtype), np.array([-np.inf], dtype))
        alone = cusink.kernel_product_log(x, y, log_b[:-1], kernel, 0.7)
        np.testing.assert_array_equal(cusink.kernel_product_log(x, padded, log_b, kernel, 0.7), alone)
        for x_too in (x, np.vstack([x, lone])):
            a = np.zeros(len(x_too), dtype)
            a[:40] = 1
            value = cusink.kernel_distance(x_too, a, padded, padding, kernel=kernel, scale=0.7)
            exact = oracle.distance(*wide(x, np.ones(40), y, b), kernel, 0.7, WIDE)
            assert_digits(value, exact, dtype, size=float(a.sum()) ** 2)


def test_all_weights_zero_give_nothing():
    x, none = towns(5, 6, 1e8, np.float64), np.zeros(5)
    for kernel in oracle.KERNELS:
        assert not cusink.kernel_product(x, x, none, kernel).any()
        grads = cusink.kernel_product_adjoint(x, x, none, np.ones(5), kernel)
        assert not grads.x.any() and np.isfinite(grads.b).all()
    assert (cusink.kernel_product_log(x, x, np.full(5, -np.inf)) == -np.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [6, 30])
def test_blocks_have_origins_of_their_own(limits, d, dtype):
    """Many small blocks: of one town each, of both, and with an outlier among the rows."""
    limits(sum_block_columns=40, sum_block_entries=200, threaded_pairs=1, threads=3)
    x = towns(90, d, 1e6, dtype)
    x[7] = -1e8
    y, b = near_to(x), weights(90, dtype)
    for kernel in oracle.KERNELS:
        actual = cusink.kernel_product(x, y, b, kernel, 1.0)
        assert_digits(actual, oracle.product(*wide(x, y, b), kernel, 1.0, WIDE), dtype, steep=20)
        slopes = oracle.slopes(*wide(x, y, b, np.zeros(90), np.zeros(90)), kernel, 1.0, WIDE)[1]
        actual = cusink.kernel_product_adjoint(x, y, b, np.ones(90, dtype), kernel, 1.0, wrt="x").x
        assert_digits(actual, slopes, dtype, size=np.abs(slopes).max(), steep=20)
    # A batch is a loop, each problem with its own order.
    both = np.stack([x, x[::-1]])
    found = cusink.kernel_product(both, y, b)
    np.testing.assert_allclose(found[1], found[0][::-1], rtol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("gap", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("d", [1, 2, 5, 10])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", oracle.KERNELS)
def test_a_distance_between_towns_is_not_lost_in_its_terms(kernel, dtype, d, gap):
    """What float32 has not resolved is computed in float64, whose rounding of the terms is all that is left."""
    x = towns(40, d, gap, dtype)
    y, scale = near_to(x), 1.0 if kernel in ("distance", "laplace") else gap
    a = np.full(40, 1 / 40, dtype)
    given = tuple(wide(x, a, y, a))
    norms = oracle.scalar_product(*given[:2], *given[:2], kernel, scale, WIDE)
    exact = oracle.distance(*given, kernel, scale, WIDE)
    assert exact > 0
    rounding = 16 * 2.0**-53 * abs(float(norms))
    share = 1e-3 if dtype == np.float32 else 1e-12  # float32 leaves 2^-24 of terms of which 2^-13 is left
    actual = cusink.kernel_distance(x, a, y, a, kernel=kernel, scale=scale)
    assert actual.dtype == dtype
    assert abs(actual - exact) <= share * exact + rounding
    points, signed = np.concatenate(given[::2]), np.concatenate([given[1], -given[3]])
    field, slopes = oracle.slopes(given[0], points, signed, np.zeros(40), np.zeros(80), kernel, scale, WIDE)
    grads = cusink.kernel_distance_adjoint(x, a, y, a, kernel=kernel, scale=scale, wrt=("x", "a"))
    terms = np.abs(oracle.product(*given[:1], *given[:2], kernel, scale, WIDE)).max()
    assert np.abs(grads.a / 2 - field).max() <= share * np.abs(field).max() + 16 * 2.0**-53 * terms
    steepest = 2 / scale / 40  # of a kernel, times a weight
    assert np.abs(grads.x - slopes / 20).max() <= share * np.abs(slopes / 20).max() + 64 * 2.0**-53 * steepest


def test_only_problems_that_cancel_are_computed_anew():
    """One of them in a batch leaves the others to the last bit as they are, and has its own digits."""
    x = np.stack([towns(30, 2, gap, np.float32) for gap in (0, 1e6, 3)])
    y = x + np.random.default_rng(3).normal(size=x.shape).astype(np.float32) / 10
    together, field = cusink.kernel_distance(x, None, y, None, kernel="distance", field_at=x[1])
    assert together.dtype == field.dtype == np.float32
    a = np.full((3, 30), 1 / 30, np.float32)
    grads = cusink.kernel_distance_adjoint(x, a, y, a, kernel="distance")
    for i in range(3):
        alone, its_field = cusink.kernel_distance(x[i], None, y[i], None, kernel="distance", field_at=x[1])
        assert together[i] == alone
        np.testing.assert_array_equal(field[i], its_field)
        its_grads = cusink.kernel_distance_adjoint(x[i], a[i], y[i], a[i], kernel="distance")
        np.testing.assert_array_equal(grads.x[i], its_grads.x)
        np.testing.assert_array_equal(grads.b[i], its_grads.b)
    uniform = np.full(30, 1 / 30)
    exact = oracle.distance(x[1], uniform, y[1], uniform, "distance", 1.0, WIDE)
    assert abs(together[1] - exact) <= 1e-6 * exact


@pytest.mark.parametrize("kernel", ["exponential", "distance", "gaussian", "laplace", "energy"])
@pytest.mark.parametrize("off", [1e21, 1e30])
@pytest.mark.parametrize("d", [2, 6])
def test_padding_as_far_as_float32_goes(kernel, off, d):
    """A point without weight must not set the unit in which squares of near points have to be numbers."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 12, d)).astype("f")
    padded = np.concatenate([y, np.full((1, d), off, "f")])
    a, b = np.full(12, 1 / 12, "f"), np.append(np.full(12, 1 / 12, "f"), np.float32(0))
    right = cusink.kernel_distance(*(v.astype(float) for v in (x, a, y, a)), kernel=kernel)
    assert float(cusink.kernel_distance(x, a, padded, b, kernel=kernel)) == pytest.approx(float(right), rel=1e-4)
    assert float(cusink.kernel_distance(padded, b, x, a, kernel=kernel)) == pytest.approx(float(right), rel=1e-4)
    near = cusink.kernel_distance_adjoint(*(v.astype(float) for v in (x, a, y, a)), kernel=kernel)
    found = cusink.kernel_distance_adjoint(x, a, padded, b, kernel=kernel)
    for name in ("a", "x", "b", "y"):
        got, want = getattr(found, name), getattr(near, name)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[:12], want, rtol=0, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(found.y[12], 0)
