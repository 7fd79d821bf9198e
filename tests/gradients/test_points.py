"""Gradients by the points of a cloud, beside those by a stored cost pulled back to the points, and beside slopes."""

import numpy as np
import pytest

import cusink
from cusink.gradients import terms

METRICS = [("sqeuclidean", 1), ("euclidean", 1), ("euclidean", 1.5), ("cityblock", 1), ("cityblock", 2), ("cosine", 1)]


def clouds(seed, shape_x=(9, 2), shape_y=(7, 2)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape_x), rng.normal(size=shape_y) + 0.5


def loss(x, y, metric, power, a, b, eps):
    return cusink.sinkhorn(a, b, cusink.PointCloud(x, y, metric, power=power), eps=eps, tol=1e-13, max_iter=5000)


def slope(of_points, points, direction, step=1e-5):
    """Centred difference of a loss along a direction."""
    return (of_points(points + step * direction) - of_points(points - step * direction)) / (2 * step)


@pytest.mark.parametrize(("metric", "power"), METRICS)
@pytest.mark.parametrize("value", ["cost", "reg_cost"])
def test_gradients_are_the_slopes(metric, power, value):
    x, y = clouds(1)
    rng = np.random.default_rng(2)
    a, b = rng.dirichlet(np.ones(9), 3), rng.dirichlet(np.ones(7), 3)
    a[0, 2] = 0
    a /= a.sum(axis=1, keepdims=True)
    weights = np.array([1.0, -0.5, 2.0])
    result = loss(x, y, metric, power, a, b, 0.3)
    grads = cusink.sinkhorn_adjoint(result, **{f"grad_{value}": weights}, tol=1e-12)
    assert grads.C is None
    for gradient, points, of_points in (
        (grads.x, x, lambda p: (weights * getattr(loss(p, y, metric, power, a, b, 0.3), value)).sum()),
        (grads.y, y, lambda p: (weights * getattr(loss(x, p, metric, power, a, b, 0.3), value)).sum()),
    ):
        direction = rng.normal(size=points.shape)
        assert gradient.shape == points.shape
        assert (gradient * direction).sum() == pytest.approx(slope(of_points, points, direction), rel=2e-6, abs=1e-9)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_gradients_agree_with_those_by_a_stored_cost(xp, metric):
    x, y = (xp(points) for points in clouds(3))
    cotangents = {"grad_cost": 1.5, "grad_f": xp(np.linspace(-1, 1, 9)), "grad_entropic_cost": 0.5}
    cloud = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, metric), eps=0.5, tol=1e-10)
    stored = cusink.sinkhorn(None, None, cusink.cost_matrix(x, y, metric), eps=0.5, tol=1e-10)
    ours, theirs = (cusink.sinkhorn_adjoint(result, **cotangents, tol=1e-10) for result in (cloud, stored))
    gx, gy = cusink.cost_matrix_adjoint(x, y, theirs.C, metric)
    for mine, other in ((ours.x, gx), (ours.y, gy), (ours.a, theirs.a), (ours.eps, theirs.eps)):
        np.testing.assert_allclose(xp.numpy(mine), xp.numpy(other), rtol=1e-7, atol=1e-9)


def test_each_problem_with_points_of_its_own_is_the_problem_alone():
    x, y = clouds(4, (3, 6, 2), (3, 5, 2))
    batch = cusink.sinkhorn_adjoint(
        cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.5, tol=1e-9), grad_cost=1.0, tol=1e-9
    )
    assert batch.x.shape == x.shape and batch.y.shape == y.shape
    for k in range(3):
        single = cusink.sinkhorn(None, None, cusink.PointCloud(x[k], y[k]), eps=0.5, tol=1e-9)
        single = cusink.sinkhorn_adjoint(single, grad_cost=1.0, tol=1e-9)
        np.testing.assert_allclose(batch.x[k], single.x, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(batch.y[k], single.y, rtol=1e-6, atol=1e-9)
    one = cusink.sinkhorn(None, None, cusink.PointCloud(x[:1], y[:1]), eps=0.5, tol=1e-9)
    one = cusink.sinkhorn_adjoint(one, grad_cost=1.0, tol=1e-9)
    assert one.x.shape == (1, 6, 2)
    np.testing.assert_allclose(one.x, batch.x[:1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_points_on_both_sides_take_both_gradients(metric):
    x, _ = clouds(5)
    rng = np.random.default_rng(6)
    a, b = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    both = cusink.sinkhorn_adjoint(loss(x, None, metric, 1, a, b, 0.4), grad_reg_cost=1.0)
    sides = cusink.sinkhorn_adjoint(loss(x, x.copy(), metric, 1, a, b, 0.4), grad_reg_cost=1.0)
    assert both.y is None
    np.testing.assert_allclose(both.x, sides.x + sides.y, rtol=1e-9, atol=1e-12)


def test_numbers_are_points_on_a_line_and_dtypes_stay():
    x, y = np.linspace(0, 1, 5, dtype=np.float32), np.array([[0.2], [0.9]], np.float32)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.1), grad_cost=1.0)
    assert grads.x.shape == (5,) and grads.y.shape == (2, 1)
    assert grads.x.dtype == grads.y.dtype == np.float32


def test_points_far_from_the_origin_lose_nothing():
    x, y = (points.astype(np.float32) for points in clouds(7))
    shift = np.float32(4096)  # a power of two, and coordinates cut to what is left of the digits: the shift is exact
    x, y = ((points + shift) for points in (x, y))
    kept = cusink.PointCloud(x - shift, y - shift)
    far = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.2)
    near = cusink.sinkhorn(None, None, kept, eps=0.2)
    ours, theirs = (cusink.sinkhorn_adjoint(result, grad_cost=1.0) for result in (far, near))
    np.testing.assert_allclose(far.cost, near.cost, rtol=1e-5)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reach", [None, (0.7, 0.4)])
def test_problems_that_share_a_cloud_are_summed_before_their_costs_are(xp, monkeypatch, reach):
    """Their plans are products with one kernel, of which no block is made for each problem."""
    rng = np.random.default_rng(9)
    x, y, a, b = rng.random((6, 2)), rng.random((5, 2)), rng.dirichlet(np.ones(6), 3), rng.dirichlet(np.ones(5), 3)
    result = cusink.sinkhorn(xp(a), xp(b), cusink.PointCloud(xp(x), xp(y)), eps=0.1, reach=reach, tol=1e-10)
    weights = {f"grad_{value}": xp(rng.normal(size=3)) for value in ("cost", "reg_cost")}

    def points():
        grads = cusink.sinkhorn_adjoint(result, **weights, tol=1e-12)
        return grads.x, grads.y

    with monkeypatch.context() as patched:
        patched.setattr(terms, "SUM_COPIES", 1 << 40)
        expected = points()
    monkeypatch.setattr(terms.GradientTerms, "_block", None)
    for found, wanted in zip(points(), expected, strict=True):
        np.testing.assert_allclose(xp.numpy(found), xp.numpy(wanted), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_points_that_stand_beside_a_batch_of_others_are_shared(side, lead):
    """Their gradients have their shape and are sums over the problems."""
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 4, 2), "y": (3, 5, 2), "new": (3, 6, 2)}
    points = {name: rng.random(shape) for name, shape in shapes.items()}
    for name in (side, "new"):
        points[name] = points[name][0].reshape(*lead, *shapes[name][1:])
    spread = {name: np.array(np.broadcast_to(x, shapes[name])) for name, x in points.items()}
    of_C, of_f, of_map = rng.random((3, 4, 5)), rng.random((3, 4)), rng.random((3, 6, 2))

    def gradients(x, y, new):
        cloud = cusink.PointCloud(x, y, "euclidean")
        result = cusink.sinkhorn(None, None, cloud, eps=0.2, tol=1e-10, max_iter=10_000)
        apart = cusink.sinkhorn_divergence(None, None, cloud, eps=0.2, tol=1e-10, max_iter=10_000)
        there = result.at(new)
        at = cusink.extension_adjoint(there, grad_map=of_map, grad_gradient=of_map)
        found = [
            cusink.sinkhorn_adjoint(result, grad_cost=1.0, grad_f=of_f),
            cusink.sinkhorn_hvp(result, grad_cost=1.0, dx=np.ones((4, 2)), dy=np.ones((5, 2))),
            cusink.sinkhorn_divergence_adjoint(apart),
            cusink.sinkhorn_divergence_hvp(apart, dx=np.ones((4, 2))),
        ]
        pairs = [(grads.x, grads.y) for grads in found]
        pairs += [cusink.cost_matrix_adjoint(x, y, of_C, "euclidean")]
        return there.gradient(), [*pairs, (None, at.partners), (None, at.points)]

    field, found = gradients(**points)
    wanted_field, wanted = gradients(**spread)
    np.testing.assert_allclose(field, wanted_field, rtol=1e-12, atol=1e-14)
    for k, (got, want) in enumerate(zip(found, wanted, strict=True)):
        for name, x, w in zip(("x", "y" if k < 6 else "new"), got, want, strict=True):
            if x is not None:
                assert x.shape == points[name].shape, (k, name)
                np.testing.assert_allclose(x, _summed(w, points[name]), rtol=1e-9, atol=1e-9)


def _summed(gradient, points):
    return gradient.sum(axis=0).reshape(points.shape) if points.shape != gradient.shape else gradient
