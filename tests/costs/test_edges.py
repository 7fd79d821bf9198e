"""Points at the edges of their dtype: a finite answer or one clear error, and never a warning of NumPy's.

Answers are compared with those in another unit, which scales them by a power that is known.
"""

import numpy as np
import pytest

import cusink

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(4, 2)), RNG.normal(size=(5, 2))
ENDS = [(np.float32, 1e20), (np.float32, 1e30), (np.float64, 1e160), (np.float64, 1e200)]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def errors_of_numpy():
    """Let NumPy raise where it would warn, as a caller may have it."""
    with np.errstate(all="raise"):
        yield


def clouds(dtype, size):
    return tuple((size * p).astype(dtype) for p in (X, Y))


@pytest.mark.parametrize(("dtype", "size"), ENDS)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_gradients_of_costs_are_those_in_another_unit(dtype, size, metric):
    grad = RNG.normal(size=(4, 5)).astype(dtype)
    found = cusink.cost_matrix_adjoint(*clouds(dtype, size), grad, metric)
    wanted = cusink.cost_matrix_adjoint(X, Y, grad.astype(np.float64), metric)
    power = {"sqeuclidean": 1, "cosine": -1}.get(metric, 0)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        scale = np.abs(other).max()
        np.testing.assert_allclose(one.astype(np.float64) / float(size) ** power, other, rtol=0, atol=3e-6 * scale)


def test_points_of_float32_that_nearly_coincide_pull_each_other_along_a_unit():
    x, y = np.float32([[1e-30, 0]]), np.float32([[0, 0]])
    np.testing.assert_array_equal(cusink.cost_matrix_adjoint(x, y, np.float32([[1]]), "euclidean").x, [[1, 0]])


@pytest.mark.parametrize(
    ("dtype", "size", "metric"),
    [
        (np.float32, 1e38, "sqeuclidean"),
        (np.float32, 1e15, "sqeuclidean"),
        (np.float64, 1e150, "sqeuclidean"),
        (np.float64, 1e200, "sqeuclidean"),
        (np.float32, 1e38, "minkowski"),
        (np.float32, 1e38, "mahalanobis"),
    ],
)
def test_gradients_of_costs_beyond_the_range_are_refused(dtype, size, metric):
    given = {"mahalanobis": {"factor": np.eye(2)}, "minkowski": {"p": 3}}.get(metric, {})
    grad = np.full((4, 5), 100, dtype)
    with pytest.raises(ValueError, match=f"'x' and 'y' must be so near, .* gradients are finite in {dtype.__name__}"):
        cusink.cost_matrix_adjoint(*clouds(dtype, size), grad, metric, power=2, **given)


@pytest.mark.parametrize(("dtype", "size"), ENDS)
def test_free_barycenters_and_flows_say_that_squares_have_no_room(dtype, size):
    x, y = clouds(dtype, size)
    for eps in (1.0, cusink.RelativeEps(0.1)):
        with pytest.raises(ValueError, match="'x' and 'measures' must hold points so near that squared distances are"):
            cusink.free_barycenter(cusink.Measures.of([x, y]), x=y[:3], eps=eps)
        with pytest.raises(ValueError, match="'x' and 'y' must hold points so near that squared distances are at most"):
            cusink.gradient_flow(x, y, eps=eps)


def test_the_largest_squares_that_have_room_are_taken():
    half = 0.49 * np.sqrt(np.finfo(np.float32).max * 2.0**-20 / 4)
    line = np.float32([[0.0], [half]])
    found = cusink.free_barycenter(cusink.Measures.of([line]), x=line, eps=cusink.RelativeEps(0.1))
    assert np.isfinite(found.points).all()


@pytest.mark.parametrize("loss", ["energy", "distance", "laplace"])
@pytest.mark.parametrize("size", [1e160, 1e200])
def test_flows_of_kernels_go_as_far_as_their_kernels(loss, size):
    found = cusink.gradient_flow(size * X, size * Y, loss=loss, max_iter=3)
    assert np.isfinite(found.points).all() and np.isfinite(found.losses).all()


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
@pytest.mark.parametrize(("dtype", "far"), [(np.float32, 3e38), (np.float64, 1.5e308)])
def test_differences_that_are_no_numbers_are_refused(kernel, dtype, far):
    x, y = np.array([[-far]], dtype), np.array([[far]], dtype)
    for call in (cusink.kernel_distance, cusink.kernel_distance_adjoint):
        with pytest.raises(ValueError, match="'x' must be at most .* so that differences of points are numbers"):
            call(x, None, y, None, kernel=kernel)


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
@pytest.mark.parametrize(("dtype", "size"), ENDS)
def test_log_likelihoods_are_numbers_or_refused(kernel, dtype, size):
    x, y = clouds(dtype, size)
    if dtype == np.float32:  # whose slopes are taken in float64
        found = cusink.kernel_neg_log_likelihood_adjoint(x, None, y, None, kernel=kernel).y
        wanted = cusink.kernel_neg_log_likelihood_adjoint(x.astype(float), None, y.astype(float), None, kernel=kernel)
        np.testing.assert_allclose(found, wanted.y, rtol=1e-5)
    else:
        for call in (cusink.kernel_neg_log_likelihood, cusink.kernel_neg_log_likelihood_adjoint):
            with pytest.raises(ValueError, match="'y' must lie so near to 'x', beside 'scale', that log likelihoods"):
                call(x, None, y, None, kernel=kernel)


def test_a_kernel_as_wide_as_the_range_has_its_value():
    size = 1e153
    found = cusink.kernel_product(size * X, size * Y, np.ones(5), "gaussian", size)
    np.testing.assert_allclose(found, cusink.kernel_product(X, Y, np.ones(5), "gaussian", 1.0), rtol=1e-12)
    assert np.isfinite(cusink.kernel_distance(size * X, None, size * Y, None, scale=1e154))


@pytest.mark.parametrize("eps", [1.0, 1e300])
def test_pairs_whose_costs_leave_the_range_are_refused(eps):
    A = cusink.Measures.of([1e160 * X, 1e160 * Y])
    B = cusink.Measures.of([1e160 * Y, 1e160 * X])
    for solve in (cusink.sinkhorn, cusink.sinkhorn_divergence):
        with pytest.raises(ValueError, match="'C' must hold finite costs; the largest exceed the range of float64"):
            solve(A, B, "sqeuclidean", eps=eps)


def test_maps_of_points_whose_sums_leave_the_range_are_refused():
    x, y = clouds(np.float32, 1e38)
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, "cosine"), eps=0.1)
    with pytest.raises(ValueError, match=r"'C\.y' must be at most 3.2e\+32 in float32, so that sums do not leave"):
        result.at(x).map()


@pytest.mark.parametrize("metric", ["seuclidean", "canberra", "chebyshev"])
def test_metrics_of_scipy_are_refused_or_finite(metric):
    if metric == "seuclidean":
        with pytest.raises(ValueError, match="'x' and 'y' must be so near that costs are finite in float64"):
            cusink.cost_matrix(1e200 * X, 1e200 * Y, metric)
    else:
        assert np.isfinite(cusink.cost_matrix(1e200 * X, 1e200 * Y, metric)).all()
