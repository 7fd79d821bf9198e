"""The range check: it lets no sum through that underflow spoilt, and sends away none that it did not."""

import tracemalloc

import numpy as np
import pytest

from cusink.backends.numpy.certificate import certified, in_range, repair
from cusink.backends.ranges import (
    KERNEL_EXPONENT,
    SCALING_EXPONENT,
    SCALING_LIMIT,
    UnderflowBound,
    exp_times,
    flush,
    scaled_kernel,
)

DTYPES = [np.float32, np.float64]


def smallest(dtype):
    """Return the smallest normal number and the distance of 1 from the next number."""
    info = np.finfo(dtype)
    return float(info.tiny), float(info.eps)


# ---- the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_is_what_underflow_may_take_over_the_rounding(dtype):
    tiny, eps = smallest(dtype)
    bound = UnderflowBound.of_product(10, 8.0)
    assert (bound.of_kernel, bound.of_products, bound.of_factor, bound.gain) == (10, 10, 80, 80)
    largest = np.array([1.0, 4.0])
    np.testing.assert_allclose(bound.floor(dtype, largest, False), tiny / eps * (10 * largest + 10), rtol=1e-15)
    lost = bound.floor(dtype, largest, np.array([False, True]))
    np.testing.assert_allclose(lost, tiny / eps * np.array([20, 50 + 80]), rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_scaled_and_have_no_denormals(dtype):
    tiny, _ = smallest(dtype)
    C = np.array([[0.0, 1.0, 2.5], [10.0, 60.0, np.inf]])
    for shift, s in ((0.5, 3), (0.5, None)):
        K = scaled_kernel(C, dtype, 0.2, shift, s)
        power = KERNEL_EXPONENT[np.dtype(dtype).name] if s is None else s
        want = np.exp((shift - C.astype(np.longdouble)) / np.longdouble(0.2)) * np.longdouble(2) ** power
        assert K.dtype == dtype
        np.testing.assert_allclose(K[want >= tiny], want[want >= tiny].astype(dtype), rtol=200 * np.finfo(dtype).eps)
        assert (K[want < tiny] == 0).all() and K[1, 2] == 0


def test_a_kernel_is_made_in_three_arrays():
    """Of exponents, which become the kernel, and of powers in two types: fetching memory takes longer than using it."""
    C = np.linspace(0, 3000, 1 << 16)[None]  # with entries to flush
    tracemalloc.start()
    scaled_kernel(C, np.float64, 1.0, 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8 + 8 + 4 + 4) * C.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_denormals_are_flushed(dtype):
    tiny = np.finfo(dtype).tiny
    for array in ([1.0, tiny, 0.0], [tiny / 2, tiny, 3.0], []):
        given = np.array(array, dtype)
        found = flush(given)
        assert found is given
        assert found.tolist() == [x if x >= tiny else 0.0 for x in np.array(array, dtype).tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_exponentials_stay_numbers(dtype):
    largest = np.finfo(dtype).max
    exponents = np.array([0.5, -3.0, 1e4, 1e4, 1e4, 700.0, -np.inf], dtype)
    factors = np.array([2.0, -4.0, 0.0, 1.0, -3.0, 1e-3, 5.0], dtype)
    found = exp_times(exponents, factors)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:2], np.exp([0.5, -3.0]) * [2, -4], rtol=1e-6)
    assert found[2:5].tolist() == [0, largest, -largest] and found[6] == 0
    assert found[5] == (largest if dtype == np.float32 else pytest.approx(np.exp(700.0) * 1e-3, rel=1e-6))


def test_rescaled_kernels_and_scalings_leave_room():
    """The largest entry times the largest scaling of each side, and a sum of many, are below the largest number."""
    for dtype in ("float32", "float64"):
        top = np.finfo(dtype).maxexp
        limit = np.log2(SCALING_LIMIT[dtype])
        assert KERNEL_EXPONENT[dtype] + limit + SCALING_EXPONENT[dtype] < top
        assert SCALING_EXPONENT[dtype] < limit


# ---- what is certified ---------------------------------------------------------------------------------------------


def products(dtype, entry, rows=4, columns=3):
    """Return products (rows, 3) of ones, with one entry of its own, and a factor (6, 3) of ones with its weights."""
    product, factor = np.ones((rows, columns), dtype), np.ones((6, columns), dtype)
    product[2, 1] = entry
    return product, factor, np.ones_like(factor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_entry_is_certified_down_to_the_floor_and_no_further(dtype):
    bound = UnderflowBound.of_product(6, 1.0)
    floor = bound.floor(dtype, 1.0, False)
    assert certified(bound, *products(dtype, 1.001 * floor)) is True
    product, factor, weights = products(dtype, 0.999 * floor)
    found = certified(bound, product, factor, weights)
    want = np.ones((4, 3), bool)
    want[2, 1] = False
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_that_underflowed_asks_for_more_where_it_has_weight(dtype):
    tiny, _ = smallest(dtype)
    bound = UnderflowBound.of_product(6, 1000.0)
    between = 2 * bound.floor(dtype, 1.0, False)
    assert between < bound.floor(dtype, 1.0, True)
    for value, weight, lost in ((0.0, 1.0, True), (tiny / 2, 1.0, True), (tiny, 1.0, False), (0.0, 0.0, False)):
        for lone in (False, True):  # a zero without weight beside it, which has all entries looked at
            product, factor, weights = products(dtype, between)
            factor[3, 1], weights[3, 1] = value, weight
            if lone:
                factor[4, 1] = weights[4, 1] = 0
            found = certified(bound, product, factor, weights)
            assert (found is not True) == lost, (value, weight, lone)
            if lost:
                assert found.sum() == 11 and not found[2, 1]
    product, factor, weights = products(dtype, between)
    factor[3, 0] = 0.0  # of a column whose sums are large
    assert certified(bound, product, factor, weights) is True


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_from_which_a_sum_may_overflow_is_not_certified(dtype):
    bound = UnderflowBound.of_product(6, 8.0)
    limit = float(np.finfo(dtype).max) / (6 * 8.0)
    for value, sound in ((0.99 * limit, True), (1.01 * limit, False), (np.inf, False)):
        product, factor, weights = products(dtype, 1.0)
        product[:, 1] = np.finfo(dtype).max / 2
        factor[0, 1] = value
        found = certified(bound, product, factor, weights)
        assert (found is True) == sound
        if not sound:
            assert found[:, [0, 2]].all() and not found[:, 1].any()


@pytest.mark.parametrize("largest", [1.0, 0.125, 16.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_is_that_of_the_largest_factor_and_includes_it(dtype, largest):
    """By column and by entry: an entry that underflowed without weight sends its column to the slower form."""
    bound = UnderflowBound.of_product(6, 8.0)
    floor = np.dtype(dtype).type(bound.floor(dtype, largest, False))
    for lone in (False, True):
        for entry, sound in ((floor, True), (np.nextafter(floor, np.dtype(dtype).type(0)), False)):
            product, factor, weights = products(dtype, entry)
            factor *= np.dtype(dtype).type(largest)
            if lone:
                factor[3, 1] = weights[3, 1] = 0
            assert (certified(bound, product, factor, weights) is True) == sound


def test_nothing_is_certified_at_once():
    bound = UnderflowBound.of_product(6, 1.0)
    assert certified(bound, np.ones((0, 2)), np.ones((6, 2)), np.ones((6, 2))) is True
    assert certified(bound, np.ones((4, 0)), np.ones((6, 0)), np.ones((6, 0))) is True


def test_what_is_certified_has_the_digits_of_its_dtype():
    """Kernels and factors of any size, in float32; exact sums in long double."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        n, m, B = 7, 5, 4
        K = np.float32(10.0) ** rng.uniform(-44, 8, (n, m)).astype(np.float32)
        weights = (rng.random((n, B)) > 0.2).astype(np.float32)
        exact = weights * 10.0 ** rng.uniform(-60, 20, (n, B))
        factor = exact.astype(np.float32)
        product = flush(K.copy()).T @ factor
        bound = UnderflowBound.of_product(n, float(K.max()))
        found = np.broadcast_to(certified(bound, product, factor, weights), product.shape)
        want = K.astype(np.longdouble).T @ exact.astype(np.longdouble)
        wrong = np.abs(product - want) > 20 * np.finfo(np.float32).eps * want
        assert not (wrong & found).any()
        refused += int((~found).sum())
    assert 0 < refused < 4000


# ---- columns, and repair -------------------------------------------------------------------------------------------


def test_columns_are_in_range_where_all_that_carries_weight_is_sound():
    product = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    tiny = np.finfo(float).tiny
    sound = np.array([[False, True, False], [True, False, True]])
    weights = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 1.0]])
    assert in_range(product, True, weights) is True and product[0, 0] == 0
    np.testing.assert_array_equal(in_range(product, sound, weights), [True, True, False])
    np.testing.assert_array_equal(product, [[tiny, 1.0, tiny], [1.0, tiny, 1.0]])
    assert in_range(product[:, :2], sound[:, :2], weights[:, :2]) is True


@pytest.mark.parametrize("axis", [0, 1])
def test_repair_replaces_what_is_not_sound_by_the_softmin(axis):
    rng = np.random.default_rng(1)
    C, eps = rng.random((5, 4)), 0.1
    rows = C if axis == 1 else C.T
    logits = rng.normal(size=(3, rows.shape[1]))
    want = -eps * np.log(np.exp(logits[:, None, :] - rows / eps).sum(axis=-1))
    sound = rng.random((rows.shape[0], 3)) > 0.4
    assert not sound.all() and sound.any()
    potential = np.full((3, rows.shape[0]), 7.0)
    repair(potential, True, C, logits, eps, axis)
    repair(potential, np.ones_like(sound), C, logits, eps, axis)
    assert (potential == 7).all()
    repair(potential, sound, C, logits, eps, axis)
    np.testing.assert_allclose(potential, np.where(sound.T, 7.0, want), rtol=1e-12)
