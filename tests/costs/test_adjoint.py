"""`cusink.cost_matrix_adjoint` against centred differences, its definitions where there is no slope, and bad input."""

import numpy as np
import pytest
import reference

import cusink

FLOATS = [np.float32, np.float64]
METRICS = ["sqeuclidean", "euclidean", "cityblock", "cosine"]


def points(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def slopes(x, y, grad_C, metric):
    """``<grad_C, dC>`` for a step in each coordinate of x, by differences of the float64 cost matrix."""
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape):

        def value(t, at=at):
            moved = x.copy()
            moved[at] += t
            return (grad_C * cusink.cost_matrix(moved, moved if y is None else y, metric)).sum()

        out[at] = reference.derivative(value, 1e-4)
    return out


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 1, 2), (6, 2, 1)])
def test_gradients_are_the_slopes(xp, metric, shape):
    n, m, d = shape
    x, y, grad_C = points(0, n, d), points(1, m, d), points(2, n, m)
    gx, gy = cusink.cost_matrix_adjoint(xp(x), xp(y), xp(grad_C), metric)
    assert xp.owns(gx) and xp.owns(gy)
    np.testing.assert_allclose(xp.numpy(gx), slopes(x, y, grad_C, metric), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(xp.numpy(gy), slopes(y, x, grad_C.T, metric), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_points_against_themselves_have_both_gradients_in_one(xp, metric):
    x, grad_C = points(0, 5, 2), points(1, 5, 5)
    gx, gy = cusink.cost_matrix_adjoint(xp(x), None, xp(grad_C), metric)
    assert gy is None
    off_diagonal = grad_C * (1 - np.eye(5))  # "euclidean" and "cityblock" have a kink there, of slope zero
    np.testing.assert_allclose(xp.numpy(gx), slopes(x, None, off_diagonal, metric), rtol=1e-7, atol=1e-9)
    both = cusink.cost_matrix_adjoint(xp(x), xp(x), xp(grad_C), metric)
    np.testing.assert_allclose(xp.numpy(gx), xp.numpy(both[0]) + xp.numpy(both[1]), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_points_that_coincide_have_gradient_zero(xp, metric):
    x = xp([[1.0, 2.0], [3.0, 4.0]])
    gx, gy = cusink.cost_matrix_adjoint(x, x, xp(np.eye(2)), metric)
    np.testing.assert_array_equal(xp.numpy(gx), 0)
    np.testing.assert_array_equal(xp.numpy(gy), 0)


def test_cityblock_has_slope_zero_in_an_equal_coordinate(xp):
    gx, gy = cusink.cost_matrix_adjoint(xp([[1.0, 2.0]]), xp([[1.0, 5.0]]), xp([[3.0]]), "cityblock")
    np.testing.assert_array_equal(xp.numpy(gx), [[0, -3]])
    np.testing.assert_array_equal(xp.numpy(gy), [[0, 3]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_far_from_the_origin_gradients_keep_their_digits(xp, metric, offset, dtype):
    x, y = ((points(k, 8, 3) + offset).astype(dtype) for k in (0, 1))
    grad_C = points(2, 8, 8).astype(dtype)
    found = cusink.cost_matrix_adjoint(xp(x), xp(y), xp(grad_C), metric)
    want = cusink.cost_matrix_adjoint(*(z.astype(float) for z in (x, y, grad_C)), metric)
    for one, other in zip(found, want, strict=True):
        assert one.dtype == dtype
        scale = np.abs(grad_C).sum(axis=1).max() * np.abs(other).max()
        np.testing.assert_allclose(xp.numpy(one), other, rtol=0, atol=8 * np.finfo(dtype).eps * scale)


def test_numbers_are_points_on_a_line_and_lists_are_taken(xp):
    gx, gy = cusink.cost_matrix_adjoint([0, 1, 3], [2, 2], [[1.0, 0], [0, 1], [1, 1]])
    assert gx.shape == (3,) and gy.shape == (2,)
    np.testing.assert_array_equal(gx, [-4, -2, 4])
    np.testing.assert_array_equal(gy, [2, 0])
    half = cusink.cost_matrix_adjoint(*(np.array(z, np.float16) for z in ([0, 1], [2.0], [[1], [1]])))
    assert half[0].dtype == half[1].dtype == np.float16


def test_gradients_reach_the_points_of_a_solve(xp):
    """By hand, through both adjoints: against differences of the whole."""
    x, y, eps = points(0, 5, 2), points(1, 6, 2), 0.5

    def cost(moved):
        return reference.optimum(np.full(5, 0.2), np.full(6, 1 / 6), cusink.cost_matrix(moved, y), eps).cost

    result = cusink.sinkhorn(None, None, cusink.cost_matrix(xp(x), xp(y)), eps=eps, tol=1e-12)
    grads = cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=1e-12)
    gx, _ = cusink.cost_matrix_adjoint(xp(x), xp(y), grads.C)
    direction = points(2, 5, 2)
    slope = reference.derivative(lambda t: cost(x + t * direction))
    assert abs((xp.numpy(gx) * direction).sum() - slope) <= 1e-8 * abs(slope)


@pytest.mark.parametrize(
    ("x", "y", "grad_C", "metric", "error", "message"),
    [
        ([[0.0], [1.0]], [[2.0]], [[1.0, 1.0]], "euclidean", ValueError, r"shape \(2, 1\) to match.*got \(1, 2\)"),
        ([[0.0], [1.0]], [[2.0]], None, "euclidean", ValueError, r"'grad_C' must have shape \(2, 1\).*got NoneType"),
        ([[0.0]], [[2.0]], [[1.0]], "chebyshev", ValueError, "'metric' must be one of 'sqeuclidean'.*got 'chebyshev'"),
        ([[0.0]], [[2.0, 1.0]], [[1.0]], "euclidean", ValueError, "same number of coordinates"),
        (
            np.zeros((1, 1), np.float32),
            np.ones((1, 1), np.float32),
            np.ones((1, 1)),
            "euclidean",
            TypeError,
            "one dtype",
        ),
    ],
)
def test_bad_input_is_named(x, y, grad_C, metric, error, message):
    with pytest.raises(error, match=message):
        cusink.cost_matrix_adjoint(x, y, grad_C, metric)
