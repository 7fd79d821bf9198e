"""Kernel products, norms and likelihoods against their definitions, and their gradients against centred differences."""

import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.spatial
import scipy.stats
from emulated.oracle import assert_as_good
from kernels import oracle

import cusink

DTYPES = (np.float32, np.float64)
VALUES = {
    "kernel_product": oracle.product,
    "kernel_product_log": oracle.product_log,
    "kernel_scalar_product": oracle.scalar_product,
    "kernel_distance": oracle.distance,
    "kernel_neg_log_likelihood": oracle.neg_log_likelihood,
}
LOG_FORMS = ("kernel_product_log", "kernel_neg_log_likelihood")
CASES = [(name, kernel) for name in VALUES for kernel in (oracle.LOG_KERNELS if name in LOG_FORMS else oracle.KERNELS)]


def inputs(name, n, m, d, seed=0, dtype=np.float64, kernel=None):
    """Arguments of a function by their names, with a weight of zero among them."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    a[n // 2] = b[0] = 0
    a[-1] = 1
    given = {"x": rng.normal(size=(n, d)), "a": a, "y": rng.normal(size=(m, d)), "b": b}
    if name.startswith("kernel_product"):
        del given["a"]
    if name == "kernel_product_log":
        given["log_b"] = reference.log_weights(given.pop("b"))
    elif name != "kernel_neg_log_likelihood":
        given["b"] = given["b"] * rng.choice([-1, 1], m)  # weights of either sign
    if name == "kernel_distance" and kernel == "distance":  # which needs equal masses
        given["b"] += (given["a"].sum() - given["b"].sum()) / m
    return {key: value.astype(dtype) for key, value in given.items()}


# Values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_values_are_the_definitions(xp, name, kernel, dtype):
    for n, m, d in ((9, 40, 2), (33, 5, 7)):
        given = inputs(name, n, m, d, dtype=dtype, kernel=kernel)
        actual = getattr(cusink, name)(*map(xp, given.values()), kernel=kernel, scale=0.6)
        assert xp.owns(actual) or actual.shape == ()
        assert actual.dtype == dtype
        exact, naive = (np.atleast_1d(VALUES[name](*given.values(), kernel, 0.6, t)) for t in (np.float64, np.float32))
        # Differences of a distance cancel: its rounding is that of the norms.
        scale = None if name != "kernel_distance" else given["a"].sum() ** 2 + np.abs(given["b"]).sum() ** 2
        assert_as_good(np.atleast_1d(xp.numpy(actual)), exact, naive.astype(np.float32), scale=scale)


def test_log_form_is_right_where_the_sum_is_no_number(xp):
    x, y = np.linspace(0, 90, 7), np.linspace(0, 1, 5)
    log_b = np.array([-700.0, -1e5, 3.0, -np.inf, 200.0])
    for dtype in DTYPES:
        arrays = [array.astype(dtype) for array in (x, y, log_b)]
        actual = cusink.kernel_product_log(*map(xp, arrays), scale=0.5)
        columns = (arrays[0][:, None], arrays[1][:, None], arrays[2])
        exact, naive = (oracle.product_log(*columns, "gaussian", 0.5, t) for t in (np.float64, np.float32))
        assert exact.min() < -1e4
        assert_as_good(xp.numpy(actual), exact, naive)
    assert (xp.numpy(cusink.kernel_product_log(xp(x), xp(y), xp(np.full(5, -np.inf)))) == -np.inf).all()


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize(("name", "kernel"), [("kernel_product", "gaussian"), ("kernel_product_log", "exponential")])
def test_far_from_the_origin_nothing_is_lost(xp, name, kernel, d):
    """Coordinates of 1e4 are given to 1e-3 in float32; their differences are exact, and so is what is made of them."""
    given = inputs(name, 30, 20, d, dtype=np.float32)
    for key in "xy":
        given[key] = given[key] + np.float32(1e4)
    actual = getattr(cusink, name)(*map(xp, given.values()), kernel=kernel, scale=0.8)
    exact = VALUES[name](*given.values(), kernel, 0.8)
    near = {key: (value - 1e4).astype(np.float32) if key in "xy" else value for key, value in given.items()}
    naive = VALUES[name](*near.values(), kernel, 0.8, np.float32)
    np.testing.assert_array_equal(near["x"].astype(float), given["x"].astype(float) - 1e4)
    assert_as_good(xp.numpy(actual), exact, naive)


def test_close_points_in_many_coordinates(xp):
    """The matrix product cannot tell points apart that are nearer than 1e-8 of the cloud; equal ones it can."""
    x = np.random.default_rng(0).normal(size=(60, 50)) + 100
    y = np.concatenate([x[:30], x[30:] + 1e-3])
    actual = cusink.kernel_product_log(xp(x), xp(y), None, "exponential", 1e-3)
    exact = oracle.product_log(x, y, np.full(60, -np.log(60)), "exponential", 1e-3)
    np.testing.assert_allclose(xp.numpy(actual), exact, atol=1e-7)
    np.testing.assert_array_equal(xp.numpy(actual)[:30], exact[:30])
    grads = cusink.kernel_product_log_adjoint(xp(x[:30]), xp(x[:30]), None, xp(np.ones(30)), "exponential", 1e-3)
    np.testing.assert_array_equal(xp.numpy(grads.x), 0)


@pytest.mark.parametrize("d", [2, 6])
def test_blocks_and_threads_change_nothing(limits, d):
    n, m = 50, 47
    calls = {}
    for name in VALUES:
        given = inputs(name, n, m, d)
        grad = (np.ones(n),) if name.startswith("kernel_product") else ()
        whole = getattr(cusink, name)(*given.values(), kernel="laplace")
        gradients = getattr(cusink, f"{name}_adjoint")(*given.values(), *grad, kernel="laplace")
        calls[name] = given, grad, whole, gradients
    limits(sum_block_columns=9, sum_block_entries=40, threaded_pairs=1, threads=3)
    for name, (given, grad, whole, gradients) in calls.items():
        np.testing.assert_allclose(getattr(cusink, name)(*given.values(), kernel="laplace"), whole, rtol=1e-13)
        again = getattr(cusink, f"{name}_adjoint")(*given.values(), *grad, kernel="laplace")
        for key in given:
            np.testing.assert_allclose(getattr(again, key), getattr(gradients, key), rtol=1e-11, atol=1e-13)


def test_no_array_of_all_pairs_is_made():
    n = 3000
    x, b = np.random.default_rng(0).random((n, 2), dtype=np.float32), np.ones(n, np.float32)
    for name, arguments in (("kernel_product", (x, x, b)), ("kernel_product_log_adjoint", (x, x, b, b))):
        tracemalloc.start()
        getattr(cusink, name)(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * n * n / 8, name


# Norms


def test_distance_of_equal_measures_is_zero_and_never_negative(xp):
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        x, a = rng.normal(size=(300, 2)).astype(dtype), rng.random(300).astype(dtype)
        order = rng.permutation(300)
        for kernel in oracle.KERNELS:
            assert cusink.kernel_distance(xp(x), xp(a), xp(x), xp(a), kernel=kernel) == 0
            shuffled = float(cusink.kernel_distance(xp(x), xp(a), xp(x[order]), xp(a[order]), kernel=kernel))
            norm = abs(oracle.scalar_product(x, a, x, a, kernel, 1.0))
            assert 0 <= shuffled <= 8 * np.finfo(dtype).eps * norm
            grads = cusink.kernel_distance_adjoint(xp(x), xp(a), xp(x), xp(a), kernel=kernel)
            assert not any(xp.numpy(g).any() for g in (grads.x, grads.a, grads.y, grads.b))


def test_the_energy_distance_is_that_of_statistics():
    """SciPy's on a line, whose square it is twice, and by its expectations between points of many coordinates."""
    rng = np.random.default_rng(0)
    x, y, a, b = rng.normal(size=9), rng.normal(size=7) + 1, rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(7))
    actual = cusink.kernel_distance(x, a, y, b, kernel="distance")
    np.testing.assert_allclose(actual, scipy.stats.energy_distance(x, y, a, b) ** 2, rtol=1e-12)
    x, y = rng.normal(size=(9, 6)), rng.normal(size=(7, 6))
    expected = sum(
        sign * first @ scipy.spatial.distance.cdist(p, q) @ second
        for sign, p, first, q, second in ((2, x, a, y, b), (-1, x, a, x, a), (-1, y, b, y, b))
    )
    np.testing.assert_allclose(cusink.kernel_distance(x, a, y, b, kernel="distance"), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["exponential", "distance"])
@pytest.mark.parametrize(("dtype", "power"), [("float32", 60), ("float32", -60), ("float64", 500), ("float64", -500)])
def test_distances_have_digits_where_their_squares_have_no_room(xp, kernel, dtype, power):
    """The unit of the points and of the scale, a power of two, changes no digit."""
    given = inputs("kernel_distance", 5, 6, 2, dtype=dtype, kernel=kernel)
    scale = 0.6 if kernel == "exponential" else 1.0
    x, a, y, b = map(xp, given.values())
    far = {side: xp(np.ldexp(given[side], power)) for side in "xy"}
    in_scale = 2.0 ** min(max(power, -62), 62) if kernel == "exponential" and dtype == "float32" else 2.0**power
    options = {"kernel": kernel, "scale": scale}
    moved = {"kernel": kernel, "scale": scale * (in_scale if kernel == "exponential" else 1)}
    factor = 1.0 if kernel == "exponential" else 2.0**power
    wanted, found = (
        cusink.kernel_distance(x, a, y, b, **options),
        cusink.kernel_distance(far["x"], a, far["y"], b, **moved),
    )
    assert float(found) / factor == float(wanted) > 0
    for by, rate in (("a", factor), ("x", factor / 2.0**power)):
        near, away = (
            xp.numpy(getattr(cusink.kernel_distance_adjoint(*points, **how, wrt=by), by))
            for points, how in (((x, a, y, b), options), ((far["x"], a, far["y"], b), moved))
        )
        np.testing.assert_array_equal(away.astype(float) / rate, near.astype(float))


def test_default_weights_are_uniform():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 2))
    uniform = np.full(5, 0.2)
    for name, given, full in (
        ("kernel_product", (None,), (uniform,)),
        ("kernel_product_log", (None,), (np.log(uniform),)),
    ):
        np.testing.assert_array_equal(getattr(cusink, name)(x, y, *given), getattr(cusink, name)(x, y, *full))
    for name in ("kernel_scalar_product", "kernel_distance", "kernel_neg_log_likelihood"):
        assert getattr(cusink, name)(x, None, y, None) == getattr(cusink, name)(x, uniform, y, uniform)


@pytest.mark.parametrize("name", ["kernel_distance", "kernel_neg_log_likelihood"])
def test_field_on_a_grid(xp, name):
    given = inputs(name, 6, 8, 2)
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 4), np.linspace(-2, 2, 3)), axis=-1)
    value, field = getattr(cusink, name)(*map(xp, given.values()), scale=0.5, field_at=xp(grid))
    np.testing.assert_array_equal(xp.numpy(value), xp.numpy(getattr(cusink, name)(*map(xp, given.values()), scale=0.5)))
    cells, x, a, y, b = grid.reshape(-1, 2), *given.values()
    if name == "kernel_distance":
        expected = oracle.product(cells, x, a, "gaussian", 0.5) - oracle.product(cells, y, b, "gaussian", 0.5)
    else:
        expected = oracle.product_log(cells, x, reference.log_weights(a), "gaussian", 0.5)
    np.testing.assert_allclose(xp.numpy(field), expected.reshape(3, 4), rtol=1e-12, atol=1e-14)
    # On a line a point is a number, and the field has the shape of the numbers.
    value, field = getattr(cusink, name)(x[:, 0], a, y[:, 0], b, field_at=grid)
    assert field.shape == (3, 4, 2)


def test_the_first_costs_of_the_notebook():
    """Its untrained model (one straight line) against its sample costs 0.98 and 12.2, each of one draw of 50 points."""
    distances, likelihoods = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)

        def draw(sigmas, coefficients, rng=rng):
            t = np.concatenate([sigmas[0] * rng.normal(size=25) - 1, sigmas[1] * rng.normal(size=25) + 1])
            return np.stack([np.polynomial.polynomial.polyval(t, c) for c in coefficients], axis=1)

        y = draw((0.2, 0.4), ((-0.2, 1, 0.2, -0.3), (-1, -0.5, 0.9, 0.2))) + 0.05 * rng.normal(size=(50, 2))
        x = draw((0.1, 0.1), ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)))
        share = 1 / (1 + np.exp(-1.0))
        b = np.repeat([share / 25, (1 - share) / 25], 25)
        distances.append(cusink.kernel_distance(x, None, y, b, kernel="energy", scale=0.25))
        likelihoods.append(cusink.kernel_neg_log_likelihood(x, None, y, b, scale=0.25))
    for costs, printed in ((distances, 0.983868), (likelihoods, 12.1658)):
        assert min(costs) < printed < max(costs)


# Shapes


def test_batches_are_loops_and_shared_inputs_gather_their_gradients(xp):
    rng = np.random.default_rng(0)
    B, n, m = 3, 5, 4
    x, a, y, b = rng.normal(size=(B, n, 2)), rng.random(n), rng.normal(size=(m, 2)), rng.random((B, m))
    grad = rng.normal(size=B)
    for name in ("kernel_scalar_product", "kernel_distance", "kernel_neg_log_likelihood"):
        function, adjoint = getattr(cusink, name), getattr(cusink, f"{name}_adjoint")
        values = xp.numpy(function(*map(xp, (x, a, y, b))))
        grads = adjoint(*map(xp, (x, a, y, b, grad)))
        singles = [adjoint(x[i], a, y, b[i], grad[i]) for i in range(B)]
        np.testing.assert_allclose(values, [function(x[i], a, y, b[i]) for i in range(B)], rtol=1e-13)
        for key in "xb":
            expected = np.stack([getattr(single, key) for single in singles])
            np.testing.assert_allclose(xp.numpy(getattr(grads, key)), expected, rtol=1e-12)
        for key in "ay":
            expected = sum(getattr(single, key) for single in singles)
            np.testing.assert_allclose(xp.numpy(getattr(grads, key)), expected, rtol=1e-11, atol=1e-14)
    product = cusink.kernel_product(xp(x), xp(y), xp(b))
    np.testing.assert_allclose(xp.numpy(product)[1], cusink.kernel_product(x[1], y, b[1]), rtol=1e-13)
    field = cusink.kernel_distance(x, a, y, b, field_at=np.zeros((7, 6, 2)))[1]
    assert field.shape == (B, 7, 6)
    assert cusink.kernel_product(x[:1], y, b[0]).shape == (1, n)  # a batch of one is a batch


def test_half_precision_is_computed_in_float32_and_returned_in_its_own():
    given = inputs("kernel_distance", 6, 8, 2, dtype=np.float16)
    value = cusink.kernel_distance(*given.values())
    assert value.dtype == np.float16
    single = cusink.kernel_distance(*(array.astype(np.float32) for array in given.values()))
    assert value == np.float16(single)
    assert cusink.kernel_distance_adjoint(*given.values()).x.dtype == np.float16


def test_points_on_a_line_are_numbers():
    x, y, b = np.array([0.0, 1.0, 3.0]), np.array([0.5, 2.0]), np.array([0.3, 0.7])
    np.testing.assert_array_equal(cusink.kernel_product(x, y, b), cusink.kernel_product(x[:, None], y[:, None], b))
    grads = cusink.kernel_product_adjoint(x, y, b, np.ones(3))
    assert grads.x.shape == (3,) and grads.y.shape == grads.b.shape == (2,)


# Gradients


def slopes(value, given, key):
    """Return derivatives of ``value(**given)`` by every entry of one array, by centred differences."""
    out = np.zeros(given[key].shape)
    for at in np.ndindex(out.shape):

        def moved(t, at=at):
            array = given[key].copy()
            array[at] += t
            return value(*(given | {key: array}).values())

        out[at] = reference.derivative(moved, 1e-4)
    return out


@pytest.mark.parametrize("d", [2, 6])
@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_gradients_are_the_slopes_of_the_definitions(xp, name, kernel, d):
    given = inputs(name, 4, 5, d, kernel=kernel)
    product = name.startswith("kernel_product")
    grad = np.random.default_rng(1).normal(size=4 if product else ())
    kept = given
    if name == "kernel_product_log":  # a log weight of -inf cannot be moved
        kept = given | {"log_b": np.where(np.isfinite(given["log_b"]), given["log_b"], -40.0)}

    def value(*arguments):
        return (grad * VALUES[name](*arguments, kernel, 1.5)).sum()

    actual = getattr(cusink, f"{name}_adjoint")(*map(xp, kept.values()), xp(grad), kernel=kernel, scale=1.5)
    assert {key for key, entry in vars(actual).items() if entry is not None} == set(given)
    for key in given:
        expected = slopes(value, kept, key)
        np.testing.assert_allclose(xp.numpy(getattr(actual, key)), expected, rtol=1e-8, atol=1e-9, err_msg=key)
    some = getattr(cusink, f"{name}_adjoint")(*map(xp, kept.values()), xp(grad), kernel=kernel, scale=1.5, wrt="y")
    np.testing.assert_array_equal(xp.numpy(some.y), xp.numpy(actual.y))
    assert some.x is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dot_test(xp, dtype):
    """<J u, v> = <u, J' v> with J the derivative of a product by all its inputs, J u by its own formula."""
    rng = np.random.default_rng(3)
    n, m, d, s = 20, 30, 3, 0.8
    x, y, u_x, u_y = (rng.normal(size=(k, d)).astype(dtype).astype(float) for k in (n, m, n, m))
    b, u_b, v = (rng.normal(size=k).astype(dtype).astype(float) for k in (m, m, n))
    zeros = np.zeros(n), np.zeros(m)
    for kernel in oracle.KERNELS:
        forward = oracle.product(x, y, u_b, kernel, s)
        forward += (u_x * oracle.slopes(x, y, b, *zeros, kernel, s)[1]).sum(axis=1)
        for k in range(d):  # the gradient by y_j is that by x_i with its sign turned
            forward -= oracle.slopes(x, y, b * u_y[:, k], *zeros, kernel, s)[1][:, k]
        grads = cusink.kernel_product_adjoint(*(xp(z.astype(dtype)) for z in (x, y, b, v)), kernel=kernel, scale=s)
        parts = (xp.numpy(grads.x) * u_x, xp.numpy(grads.y) * u_y, xp.numpy(grads.b) * u_b)
        backward = sum(float(part.sum()) for part in parts)
        size = sum(float(np.abs(part).sum()) for part in parts)
        assert abs((forward * v).sum() - backward) <= 4 * np.finfo(dtype).eps * size


def test_weights_of_zero_have_true_gradients(xp):
    """Of a model's weight by what it would add, however far; its point and an empty sum have none."""
    x, y = np.array([[0.0], [5.0], [30.0]]), np.array([[0.1], [5.2], [29.0]])
    a, b = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.0])
    grads = cusink.kernel_neg_log_likelihood_adjoint(*map(xp, (x, a, y, b)))
    density = -(y[:2, 0] ** 2)
    expected = -(np.exp(-((x - y[:2].T) ** 2) - density) * 0.5).sum(axis=1)
    np.testing.assert_allclose(xp.numpy(grads.a), expected, rtol=1e-13)
    np.testing.assert_array_equal(xp.numpy(grads.x)[1:], 0)
    assert np.isfinite(xp.numpy(grads.y)).all()
    nothing = cusink.kernel_product_log_adjoint(xp(x), xp(y), xp(np.full(3, -np.inf)), xp(np.ones(3)))
    for gradient in (nothing.x, nothing.y, nothing.log_b):
        np.testing.assert_array_equal(xp.numpy(gradient), 0)


def test_a_kink_has_slope_zero(xp):
    x = np.array([[1.0, 2.0]])
    for kernel in ("exponential", "distance"):
        grads = cusink.kernel_product_adjoint(xp(x), xp(x), None, xp([1.0]), kernel, 0.5)
        np.testing.assert_array_equal(xp.numpy(grads.x), 0)
    grads = cusink.kernel_product_log_adjoint(xp(x), xp(x), None, xp([1.0]), "exponential", 0.5)
    np.testing.assert_array_equal(xp.numpy(grads.x), 0)
    np.testing.assert_array_equal(xp.numpy(grads.y), 0)


# Bad input

P, W = np.zeros((3, 2)), np.ones(3)
BAD = [
    (cusink.kernel_product, (P, P, W, "gausian"), {}, ValueError, "'exponential', 'distance'; got 'gausian'"),
    (cusink.kernel_product_log, (P, P, W, "distance"), {}, ValueError, "has no logarithm: take 'exponential'"),
    (cusink.kernel_distance, (P, W, P, W), {"kernel": "laplacian"}, ValueError, "is called 'exponential' here"),
    (cusink.kernel_distance, (P, W, P, 2 * W), {"kernel": "distance"}, ValueError, "got 3 and 6 in row 0"),
    (cusink.kernel_distance_adjoint, (P, W, P, 2 * W), {"kernel": "distance"}, ValueError, "the same mass"),
    (cusink.kernel_product, ([0.0], [1e300], [1.0], "distance", 1e-100), {}, ValueError, "nearer to the distances"),
    (cusink.kernel_product_log, (P, P, W, "rbf"), {}, ValueError, "'energy', 'exponential'; got 'rbf'"),
    (cusink.kernel_product, (P, P, W, "energy", 0.0), {}, ValueError, "'scale' must be positive and finite; got 0.0"),
    (cusink.kernel_product, (P, P, W, "energy", -1), {}, ValueError, "'scale' must be positive and finite; got -1"),
    (cusink.kernel_product, (P, P, W, "energy", np.nan), {}, ValueError, "'scale' must be positive and finite"),
    (cusink.kernel_product, (P, P, W, "energy", "1"), {}, TypeError, "'scale' must be a number; got str"),
    (cusink.kernel_product, (P, P, W, "energy", 1e-200), {}, ValueError, "Change the unit of the points"),
    (cusink.kernel_product, (P, P, W, "energy", 1e-130), {}, ValueError, "between 8.7e-124 and 2e+123"),
    (cusink.kernel_product, (P, P[:, :1], W), {}, ValueError, "the same number of coordinates; got shapes (3, 2)"),
    (cusink.kernel_product, (P, P[:, :0], W), {}, ValueError, "at least one point and one coordinate; got (3, 0)"),
    (cusink.kernel_product, (P[:0], P, W), {}, ValueError, "'x' must have shape (points, d)"),
    (cusink.kernel_product, (P * np.nan, P, W), {}, ValueError, "'x' must be finite; got NaN"),
    (cusink.kernel_product, (None, P, W), {}, TypeError, "'x' must be an array of points; got None"),
    (cusink.kernel_product, (P, P, W[:2]), {}, ValueError, "'b' must have shape (3,) or (B, 3), a number per point"),
    (cusink.kernel_product, (P, P, W * np.inf), {}, ValueError, "'b' must be finite"),
    (cusink.kernel_product, (P, P, W.astype("f2")), {}, TypeError, "all inputs must share one dtype"),
    (cusink.kernel_product_log, (P, P, W * np.inf), {}, ValueError, "finite or -inf (for a weight of zero); got +inf"),
    (cusink.kernel_product_adjoint, (P, P, W, None), {}, TypeError, "'grad' must be an array"),
    (cusink.kernel_product_adjoint, (P, P, W, W[:1]), {}, ValueError, "'grad' must have shape (3,)"),
    (cusink.kernel_product_adjoint, (P, P, W, W), {"wrt": "a"}, ValueError, "'wrt' must name some of 'x', 'y', 'b'"),
    (cusink.kernel_product_adjoint, (P, P, W, W), {"wrt": ()}, ValueError, "or be None for all; got ()"),
    (cusink.kernel_distance, (P, W, P, W), {"field_at": W}, ValueError, "'field_at' must have shape (..., 2)"),
    (cusink.kernel_distance, (P, W, P, W), {"field_at": P * np.nan}, ValueError, "'field_at' must be finite"),
    (cusink.kernel_distance, (P[None][[0, 0]], W, P[None][[0] * 3], W), {}, ValueError, "got 'x' 2, 'y' 3"),
    (cusink.kernel_distance_adjoint, (P, W, P, W, W), {}, ValueError, "'grad' must have shape (), as the value"),
    (cusink.kernel_distance_adjoint, (P, W, P, W, np.nan), {}, ValueError, "'grad' must be finite"),
    (cusink.kernel_neg_log_likelihood, (P, -W, P, W), {}, ValueError, "'a' must be non-negative; got -1"),
    (cusink.kernel_neg_log_likelihood, (P, W * 0, P, W), {}, ValueError, "'a' must have a positive sum"),
    (cusink.kernel_neg_log_likelihood, (P, W, P, W, W), {}, TypeError, "positional arguments"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), BAD)
def test_bad_input_says_what_to_do(function, arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments, **options)


def test_one_point_and_equal_points_are_fine():
    assert cusink.kernel_product([[0.0, 0.0]], [[0.0, 0.0]], [2.0]) == [2.0]
    assert cusink.kernel_distance(np.zeros((4, 2)), None, np.zeros((3, 2)), None) == 0


# The benchmark


def test_the_benchmark_shows_a_wrong_answer_as_wrong(monkeypatch, capsys):
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    if not (scripts / "benchmarks" / "norms.py").exists():
        pytest.skip("the scripts are not beside the tests")
    monkeypatch.syspath_prepend(str(scripts))
    bench = pytest.importorskip("benchmarks.norms")
    ours = bench.cusink_product
    wrong = {"cusink": ours, "off by 1 %": lambda *given: 1.01 * ours(*given)}
    monkeypatch.setattr(bench, "contestants", lambda: wrong)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="1048576\n"))
    for kernel in oracle.KERNELS:
        assert bench.main(["--points", "250", "--kernel", kernel, "--rounds", "1"]) == 0
        first, second = capsys.readouterr().out.splitlines()[-2:]
        assert "wrong" not in first and "1.0 MiB" in first
        assert "**wrong**" in second
    x, y, b = bench.make(300, 3, "float64")
    for kernel in oracle.KERNELS:
        for function in (bench.numpy_differences, bench.numpy_products):
            expected = oracle.product(x, y, b, kernel, 0.5)
            np.testing.assert_allclose(function(x, y, b, kernel, 0.5), expected, rtol=1e-11)


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy", "exponential"])
def test_shares_far_below_the_scale_have_the_digits_of_float64(kernel):
    rng = np.random.default_rng(5)
    x, y = (10 * rng.normal(size=(k, 3)).astype(np.float32) for k in (5, 4))
    grad, logs = rng.random(5).astype(np.float32), np.log(rng.dirichlet(np.ones(4))).astype(np.float32)
    found, wanted = (
        cusink.kernel_product_log_adjoint(*(v.astype(dtype) for v in (x, y, logs, grad)), kernel, 0.02)
        for dtype in (np.float32, np.float64)
    )
    of_sample, of_wide = (
        cusink.kernel_neg_log_likelihood_adjoint(
            x.astype(dtype), None, y.astype(dtype), None, kernel=kernel, scale=0.02
        )
        for dtype in (np.float32, np.float64)
    )
    assert found.x.dtype == of_sample.a.dtype == np.float32
    for a, b in ((found, wanted), (of_sample, of_wide)):
        for name in ("x", "y", "a", "b", "log_b"):
            if getattr(b, name, None) is not None:
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((of_sample.a / 5).sum(), -1, rtol=1e-5)
