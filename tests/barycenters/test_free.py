"""Barycenters with free points against POT, a float64 loop, and what is known of them."""

import numpy as np
import ot
import pytest
import reference

import cusink


def drawn(sizes=(14, 20, 9), seed=0, weighted=True):
    """Clouds in the plane, each about another centre, weights, and a start of 6 points."""
    rng = np.random.default_rng(seed)
    clouds = [rng.normal(size=(n, 2)) * 0.4 + rng.normal(size=2) for n in sizes]
    masses = [rng.dirichlet(np.ones(n)) if weighted else np.full(n, 1 / n) for n in sizes]
    return clouds, masses, rng.normal(size=(6, 2)), rng.dirichlet(np.ones(6) * 5)


def measures(xp, clouds, masses):
    offsets = np.cumsum([0, *map(len, clouds)])
    return cusink.Measures(offsets, xp(np.concatenate(masses)), xp(np.concatenate(clouds)))


def squared(x, y):
    return ((x[:, None] - y) ** 2).sum(axis=-1)


def test_steps_are_those_of_a_plain_loop(xp):
    """Three steps with plans of the oracle; a cloud without a share does not count."""
    clouds, masses, x, a = drawn()
    shares = np.array([1.0, 0.0, 3.0])
    with pytest.warns(cusink.ConvergenceWarning, match="points still moved by"):
        found = cusink.free_barycenter(
            measures(xp, clouds, masses),
            xp(shares),
            x=xp(x),
            a=xp(a),
            eps=0.1,
            max_iter=3,
            tol=1e-9,
            solver_tol=1e-9,
        )
    for _ in range(3):
        means = []
        for y, b in zip(clouds, masses, strict=True):
            C = squared(x, y)
            f, g = reference.solve(a, b, C, 0.1)[:2]
            means.append(reference.plan(a, b, C, 0.1, f, g) @ y / a[:, None])
        x = 0.25 * means[0] + 0.75 * means[2]
    np.testing.assert_allclose(xp.numpy(found.points), x, rtol=1e-6)
    np.testing.assert_array_equal(xp.numpy(found.weights), a)
    assert xp.owns(found.points) and found.n_iter == 3 and not found.converged and found.shift > 1e-9


def test_it_is_that_of_pot():
    """The exact one where eps is small, and the regularised one."""
    clouds, masses, x, a = drawn((6, 8, 5), weighted=False)
    shares = np.array([0.2, 0.5, 0.3])
    given = measures(np.asarray, clouds, masses)
    exact = ot.lp.free_support_barycenter(clouds, masses, x, b=a, weights=shares, numItermax=50, stopThr=1e-12)
    found = cusink.free_barycenter(given, shares, x=x, a=a, eps=0.02)
    best, close = (
        sum(s * ot.emd2(a, b, squared(z, y)) for s, y, b in zip(shares, clouds, masses, strict=True))
        for z in (exact, found.points)
    )
    assert found.converged and close < 1.02 * best
    how = {"numItermax": 40, "stopThr": 1e-14, "numInnerItermax": 1000, "stopInnerThr": 1e-8}
    blurred = ot.bregman.free_support_sinkhorn_barycenter(clouds, masses, x, 0.5, b=a, weights=shares, **how)
    found = cusink.free_barycenter(given, shares, x=x, a=a, eps=0.5, tol=1e-6)
    np.testing.assert_allclose(found.points, blurred, atol=1e-4)


def test_the_objective_never_rises():
    clouds, masses, x, a = drawn(seed=1)
    given, values = measures(np.asarray, clouds, masses), []
    for _ in range(5):
        costs = [
            cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.05).reg_cost
            for y, b in zip(clouds, masses, strict=True)
        ]
        values.append(np.mean(costs))
        x = cusink.free_barycenter(given, x=x, a=a, eps=0.05, max_iter=1, tol=10).points
    assert (np.diff(values) < 1e-9).all() and values[-1] < 0.9 * values[0]


def test_debiased_it_finds_a_cloud_again_that_a_plain_one_shrinks(xp):
    rng = np.random.default_rng(2)
    cloud = rng.normal(size=(12, 2))
    start = cloud + 0.1 * rng.normal(size=cloud.shape)
    given = cusink.Measures.of([xp(cloud)])
    options = {"x": xp(start), "eps": 1.0, "tol": 1e-3, "max_iter": 200}
    plain = xp.numpy(cusink.free_barycenter(given, **options).points)
    found = cusink.free_barycenter(given, debiased=True, **options)
    points = xp.numpy(found.points)
    assert found.converged
    assert plain.var() < 0.8 * cloud.var() and points.var() == pytest.approx(cloud.var(), rel=0.1)
    left = [
        cusink.sinkhorn_divergence(None, None, cusink.PointCloud(z, cloud), eps=1.0).divergence for z in (start, points)
    ]
    assert left[1] < 0.05 * left[0]


def test_the_mean_of_moved_clouds_is_the_cloud_moved_by_the_mean():
    rng = np.random.default_rng(3)
    cloud, moves = rng.normal(size=(10, 3)), rng.normal(size=(3, 3)) * 5
    shares = np.array([0.5, 0.3, 0.2])
    given = cusink.Measures.of([cloud + move for move in moves])
    found = cusink.free_barycenter(given, shares, x=cloud, eps=0.3, debiased=True, tol=1e-5)
    np.testing.assert_allclose(found.points, cloud + shares @ moves, atol=1e-3)


def test_with_reach_outliers_count_for_little(xp):
    rng = np.random.default_rng(4)
    cloud = rng.normal(size=(20, 2)) * 0.1
    far = np.concatenate([cloud, [[50.0, 0.0]]])
    given = cusink.Measures.of([xp(far)])
    start = xp(rng.normal(size=(5, 2)) * 0.1)
    kept = xp.numpy(cusink.free_barycenter(given, x=start, eps=0.05, reach=1.0, max_iter=50).points)
    taken = xp.numpy(cusink.free_barycenter(given, x=start, eps=0.05, max_iter=50).points)
    assert abs(kept).max() < 0.5 and abs(taken).max() > 5


def test_numbers_are_points_on_a_line_and_float32_stays():
    given = cusink.Measures.of([np.float32([0, 1]), np.float32([4, 5, 6])])
    found = cusink.free_barycenter(given, x=np.float32([2, 3]), eps=1e-3)
    assert found.points.dtype == np.float32
    np.testing.assert_allclose(found.points.ravel(), [13 / 6, 10 / 3], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"measures": [[0.0]]}, TypeError, "'measures' must be cusink.Measures"),
        ({"x": None}, TypeError, "'x' must be an array of points to start from"),
        ({"x": np.ones((3, 4))}, ValueError, r"'x' must have shape \(n, 2\)"),
        ({"x": np.full((6, 2), np.nan)}, ValueError, "'x' must be finite"),
        ({"a": np.ones(5) / 5}, ValueError, r"'a' must have shape \(6,\)"),
        ({"a": np.ones(6)}, ValueError, "'measures' and 'a' must have the same mass"),
        ({"weights": [1.0, -1.0, 1.0]}, ValueError, "'weights' must be non-negative"),
        ({"weights": [1.0, 1.0]}, ValueError, r"'weights' must have shape \(3,\)"),
        ({"eps": 0}, ValueError, "'eps' must be positive"),
        ({"tol": None}, TypeError, "'tol' must be a number"),
        ({"debiased": 1}, TypeError, "'debiased' must be a bool"),
        ({"measures": cusink.Measures([0, 0, 2], None, np.ones((2, 2)))}, ValueError, "'measures' must hold no empty"),
    ],
)
def test_bad_input_is_one_clear_error(change, kind, message):
    clouds, masses, x, a = drawn()
    given = {"measures": measures(np.asarray, clouds, masses), "x": x, "a": a, "eps": 0.1} | change
    with pytest.raises(kind, match=message):
        cusink.free_barycenter(**given)


def test_a_share_of_the_costs_at_the_start():
    clouds, masses, x, a = drawn()
    eps = 0.1 * squared(x, np.concatenate(clouds)).max()
    given, options = measures(np.asarray, clouds, masses), {"x": x, "a": a, "max_iter": 30}
    found = cusink.free_barycenter(given, eps=cusink.RelativeEps(0.1, "max"), **options)
    want = cusink.free_barycenter(given, eps=eps, **options)
    np.testing.assert_allclose(found.points, want.points, rtol=1e-9)


@pytest.mark.parametrize("free", [False, True])
def test_weights_are_divided_by_their_sums(xp, free):
    clouds, masses, x, a = drawn()
    units = np.array([3.0, 0.5, 7.0])
    options = {"eps": 0.1, "max_iter": 40, "free_weights": free, "tol": 0.05}
    in_units = measures(xp, clouds, [unit * b for unit, b in zip(units, masses, strict=True)])
    found = cusink.free_barycenter(in_units, x=xp(x), a=xp(5 * a), normalise=True, **options)
    want = cusink.free_barycenter(measures(xp, clouds, masses), x=xp(x), a=xp(a), **options)
    np.testing.assert_allclose(xp.numpy(found.points), xp.numpy(want.points), rtol=1e-6)
    np.testing.assert_allclose(xp.numpy(found.weights).sum(), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="normalise=True divides each by its sum"):
        cusink.free_barycenter(in_units, x=xp(x), a=xp(a), **options)
