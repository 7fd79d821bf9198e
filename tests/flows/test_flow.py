"""Gradient flows against plain loops in float64, and what they promise of the loss."""

import numpy as np
import pytest

import cusink


def drawn(seed=0, n=9, m=11):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, 2)) * 0.3,
        rng.normal(size=(m, 2)) + [2, 0],
        *(rng.dirichlet(np.ones(k) * 3) for k in (n, m)),
    )


def energy(x, y, a, b):
    """Return the squared kernel distance of (r**2 + 1)**(-1/4), and its gradient by x, by plain sums."""
    x, n, c = np.concatenate([x, y]), len(x), np.concatenate([a, -b])
    apart = x[:, None] - x
    square = (apart**2).sum(axis=-1) + 1
    slopes = (c[:, None] * c * square**-1.25)[..., None] * -apart
    return c @ square**-0.25 @ c, slopes.sum(axis=1)[:n]


def test_steps_are_those_of_a_plain_loop_with_momentum(xp):
    x, y, a, b = drawn()
    seen = []
    flow = cusink.gradient_flow(
        *map(xp, (x, y, a, b)),
        loss="energy",
        step=0.1,
        momentum=0.5,
        max_iter=4,
        callback=lambda step, points, loss: seen.append((step, xp.numpy(points).copy(), loss)),
    )
    move, losses = 0.0, []
    for step in range(5):
        value, gradient = energy(x, y, a, b)
        losses.append(value)
        np.testing.assert_allclose(seen[step][1], x, atol=1e-12)
        move = 0.5 * move - 0.1 * gradient / a[:, None]
        x = x + move
    np.testing.assert_allclose(flow.losses, losses, rtol=1e-9)
    assert [step for step, _, _ in seen] == list(range(5)) and seen[-1][2] == flow.losses[-1]
    assert xp.owns(flow.points) and flow.n_iter == 4 and flow.n_shortened == 0 and not flow.converged
    np.testing.assert_array_equal(xp.numpy(flow.points), seen[-1][1])


@pytest.mark.parametrize("reach", [None, 2.0])
def test_a_step_of_a_half_goes_by_the_means_under_the_plans(reach, xp):
    """With the plan between both clouds, and that of the moved one with itself."""
    x, y, a, b = drawn(1)
    flow = cusink.gradient_flow(*map(xp, (x, y, a, b)), eps=0.5, reach=reach, step=0.5, max_iter=1, solver_tol=1e-10)
    moved = x.copy()
    for other, weights, sign in ((y, b, 1), (x, a, -1)):
        plan = cusink.sinkhorn(a, weights, cusink.PointCloud(x, other), eps=0.5, reach=reach, tol=1e-10).plan()
        moved += sign * (plan @ other - plan.sum(axis=1)[:, None] * x) / a[:, None]
    np.testing.assert_allclose(xp.numpy(flow.points), moved, atol=1e-6)
    kept = [
        cusink.sinkhorn_divergence(a, b, cusink.PointCloud(p, y), eps=0.5, reach=reach).divergence for p in (x, moved)
    ]
    np.testing.assert_allclose(flow.losses, kept, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"loss": "energy"}, 20.0),
        ({"loss": "gaussian", "scale": 1.5, "momentum": 0.9}, 4.0),
        ({"loss": "laplace", "scale": 2.0}, 40.0),
        ({"loss": "distance"}, 20.0),
        ({"eps": 0.3, "momentum": 0.8}, 1.2),
    ],
    ids=["energy", "gaussian", "laplace", "distance", "sinkhorn"],
)
def test_the_loss_never_rises_however_long_the_step(options, step):
    x, y, a, b = drawn(2)
    flow = cusink.gradient_flow(x, y, a, b, step=step, max_iter=15, **options)
    assert (np.diff(flow.losses) < 0).all() and flow.losses[-1] < 0.2 * flow.losses[0]
    assert flow.n_shortened > 0 and flow.step <= step


def test_momentum_gets_further_and_a_tolerance_ends_the_flow():
    x, y, _, _ = drawn(3, 8, 8)
    options = {"loss": "energy", "step": 0.5}
    plain, fast = (cusink.gradient_flow(x, y, max_iter=20, momentum=m, **options) for m in (0.0, 0.8))
    assert fast.losses[-1] < 0.5 * plain.losses[-1]
    done = cusink.gradient_flow(x, y, eps=0.1, step=0.5, tol=0.02)
    assert done.converged and done.shift <= 0.02 and done.n_iter < 100
    with pytest.warns(cusink.ConvergenceWarning, match="points still moved by .* after max_iter=2 steps"):
        assert not cusink.gradient_flow(x, y, max_iter=2, tol=1e-9, **options).converged
    at_rest = cusink.gradient_flow(y, y, tol=1e-3, **options)
    assert at_rest.converged and at_rest.n_iter == 0 and at_rest.step == 0


def test_where_digits_end_it_says_so():
    """In float32, near the target; without a tolerance nothing was promised."""
    x = drawn()[0].astype(np.float32)
    with pytest.warns(cusink.ConvergenceWarning, match="no step lowers the loss"):
        flow = cusink.gradient_flow(x, x + np.float32(1e-4), loss="gaussian", max_iter=500, tol=1e-9)
    assert (np.diff(flow.losses) < 0).all() and flow.n_iter < 500 and not flow.converged
    assert np.abs(flow.points - x - np.float32(1e-4)).max() < 1e-5  # the loss has digits though its terms cancel
    assert cusink.gradient_flow(x, x + np.float32(1e-4), loss="gaussian", max_iter=500).n_iter == flow.n_iter


def test_a_step_out_of_the_range_is_shortened():
    x, y, _, _ = drawn()
    flow = cusink.gradient_flow(x, y, loss="laplace", step=1e6, max_iter=3)
    assert (np.diff(flow.losses) < 0).all() and np.isfinite(flow.points).all() and flow.n_shortened > 3
    far = cusink.gradient_flow(x, y, loss="laplace", step=1e300, max_iter=3)
    assert far.n_iter == 3 and (np.diff(far.losses) < 0).all() and np.isfinite(far.points).all()


@pytest.mark.parametrize("loss", ["gaussian", "energy", "exponential", "distance"])
@pytest.mark.parametrize("unit", [1e-4, 1e-9])
def test_points_move_in_any_unit_of_coordinates(loss, unit):
    """The step that was asked for is many times too long there, and no point is thrown beyond all others."""
    x, y, _, _ = drawn()
    x = 0.3 * x + [1.3, 0]  # within sight of y
    flow = cusink.gradient_flow(x * unit, y * unit, loss=loss, scale=unit, max_iter=40)
    assert (np.diff(flow.losses) < 0).all() and flow.losses[-1] < 0.5 * flow.losses[0]
    assert np.abs(flow.points / unit - y.mean(axis=0)).max() < 3


def test_points_without_weight_stay_and_shapes_are_kept():
    a = np.array([0.5, 0.0, 0.5])
    flow = cusink.gradient_flow([0.0, 1.0, 2.0], [3.0, 4.0], a, loss="energy", step=0.5, max_iter=3)
    assert flow.points.shape == (3,) and flow.points[1] == 1 and flow.points[0] > 0.03
    x, y, _, _ = drawn()
    narrow = cusink.gradient_flow(np.float32(x), np.float32(y), eps=0.5, max_iter=1)
    assert narrow.points.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": None}, TypeError, "'x' must be an array of points"),
        ({"x": np.zeros((3, 0))}, ValueError, "'x' must have shape"),
        ({"x": np.full((3, 2), np.nan)}, ValueError, "'x' must be finite"),
        ({"x": np.zeros((2, 3, 2))}, ValueError, "a flow is of one cloud"),
        ({"y": np.zeros((3, 1))}, ValueError, "'x' and 'y' must have the same number of coordinates"),
        ({"a": [0.5, 0.7, -0.2]}, ValueError, "'a' must be non-negative"),
        ({"a": [1.0, 1.0, 1.0]}, ValueError, "'a' and 'b' must have the same mass"),
        ({"loss": "euclidean"}, ValueError, "'loss' must be one of"),
        ({"eps": None}, TypeError, "'eps' must be a number with loss 'sinkhorn'"),
        ({"eps": 0}, ValueError, "'eps' must be positive"),
        ({"scale": 1.0}, ValueError, "'scale' must be None with loss 'sinkhorn'"),
        ({"loss": "energy"}, ValueError, "'eps' must be None with loss 'energy'"),
        ({"loss": "distance", "eps": None, "a": [1.0, 1.0, 1.0]}, ValueError, "Divide each by its sum$"),
        ({"loss": "energy", "eps": None, "solver_tol": 1e-3}, ValueError, "'solver_tol' must be 'auto'"),
        ({"step": 0}, ValueError, "'step' must be positive"),
        ({"momentum": 1.0}, ValueError, r"'momentum' must be a number in \[0, 1\)"),
        ({"tol": -1}, ValueError, "'tol' must be"),
        ({"max_iter": 0}, ValueError, "'max_iter' must be"),
        ({"callback": 3}, TypeError, "'callback' must be callable"),
    ],
)
def test_bad_input_is_one_clear_error(change, kind, message):
    given = {"x": np.zeros((3, 2)), "y": np.ones((3, 2)), "eps": 0.1, "max_iter": 1}
    with pytest.raises(kind, match=message):
        cusink.gradient_flow(**(given | change))


def test_a_share_of_the_costs_at_the_start():
    x, y, a, b = drawn()
    eps = 0.1 * ((x[:, None] - y) ** 2).sum(axis=-1).mean()
    options = {"step": 0.5, "max_iter": 4}
    found = cusink.gradient_flow(x, y, a, b, eps=cusink.RelativeEps(0.1, "mean"), **options)
    want = cusink.gradient_flow(x, y, a, b, eps=eps, **options)
    np.testing.assert_allclose(found.points, want.points, rtol=1e-9)
    np.testing.assert_allclose(found.losses, want.losses, rtol=1e-9)
    with pytest.raises(ValueError, match="relative to the max of the squared distances of 'x' and 'y', which must be"):
        cusink.gradient_flow([1.0], [1.0], eps=cusink.RelativeEps(0.1, "max"))
