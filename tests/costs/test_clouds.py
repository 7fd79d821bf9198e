"""`PointCloud` and `Grid`: what they stand for, and what they refuse."""

import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

import cusink
from cusink.backends.devices import to_device

POINTS = np.random.default_rng(0).normal(size=(6, 2))


@pytest.mark.parametrize("power", [1, 2, 0.5])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_a_cloud_stands_for_the_cost_between_its_points(xp, metric, power):
    x, y = xp(POINTS), xp(POINTS[:4] * 2 + 1)
    cloud, expected = cusink.PointCloud(x, y, metric, power=power), cusink.cost_matrix(x, y, metric) ** power
    assert cloud.shape == (6, 4) and xp.owns(cloud.dense())
    # The root of a cosine near zero has half the digits.
    np.testing.assert_allclose(xp.numpy(cloud.dense()), xp.numpy(expected), rtol=1e-10, atol=1e-7)
    assert cloud.mean() == pytest.approx(float(expected.mean()), rel=1e-6)


def test_points_may_be_numbers_alone_or_with_a_batch_axis():
    assert cusink.PointCloud([0.0, 1.0, 3.0]).dense().tolist() == [[0, 1, 9], [1, 0, 4], [9, 4, 0]]
    batch = cusink.PointCloud(np.stack([POINTS, -POINTS]), POINTS[:3])
    assert batch.shape == (2, 6, 3)
    np.testing.assert_allclose(batch.dense()[1], cusink.cost_matrix(-POINTS, POINTS[:3]), rtol=1e-12)
    assert "shape=(2, 6, 3)" in repr(batch)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_stay(dtype):
    cloud = cusink.PointCloud(POINTS.astype(dtype))
    assert cloud.dense().dtype == dtype
    assert cusink.sinkhorn(None, None, cloud, eps=1.0).cost.dtype == dtype


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("cells", [5, (3, 4), (2, 3, 4)])
def test_a_grid_stands_for_the_cost_between_its_cells(metric, cells, even):
    shape = np.atleast_1d(cells)
    spacing = tuple(0.5 + np.arange(len(shape)))
    places = [h * (np.arange(n) if even else np.arange(n) ** 1.5) for n, h in zip(shape, spacing, strict=True)]
    centres = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, len(shape))
    grid = cusink.Grid(cells, metric, spacing=spacing if even else tuple(map(np.diff, places)))
    np.testing.assert_allclose(grid.dense(), cusink.cost_matrix(centres, centres, metric), rtol=1e-13, atol=0)
    assert grid.max() == pytest.approx(grid.dense().max())
    assert repr(grid).startswith("Grid(") and eval(repr(grid), {"Grid": cusink.Grid}) == grid


def test_a_periodic_axis_goes_the_shorter_way():
    grid = cusink.Grid((4, 3), periodic=(True, False))
    cost = grid.dense().reshape(4, 3, 4, 3)
    assert cost[0, 0, :, 0].tolist() == [0, 1, 4, 1]
    assert cost[0, 0, 0, :].tolist() == [0, 1, 4]


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_a_periodic_grid_goes_to_the_nearest_image_of_a_cell(metric):
    gaps = (1.0, 0.5, 2.0, 0.25)  # four cells on a circle of length 3.75
    x = np.concatenate([[0], np.cumsum(gaps)])[:4]
    grid = cusink.Grid((4, 3), metric, spacing=(gaps, 0.5), periodic=(True, True))
    centres = np.stack(np.meshgrid(x, 0.5 * np.arange(3), indexing="ij"), axis=-1).reshape(-1, 2)
    images = [centres + np.array([i * 3.75, j * 1.5]) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    nearest = np.min([cusink.cost_matrix(centres, image, metric) for image in images], axis=0)
    np.testing.assert_allclose(grid.dense(), nearest, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("periodic", [False, True])
def test_a_small_gap_of_a_grid_beside_a_large_one_keeps_its_digits(metric, periodic):
    gaps = (1e10, 1e-8, 3e-8, 1.0, 1e-10, 2e10)[: 6 if periodic else 5]
    ends = np.array([Fraction(0), *np.cumsum([Fraction(gap) for gap in gaps])])
    apart = abs(ends[:6, None] - ends[:6])
    apart = np.minimum(apart, ends[-1] - apart) if periodic else apart
    want = (apart**2 if metric == "sqeuclidean" else apart).astype(np.float64)
    grid = cusink.Grid((6,), metric, spacing=(gaps,), periodic=(periodic,))
    np.testing.assert_allclose(grid.dense(), want, rtol=1e-14)
    plane = cusink.Grid((6, 2), metric, spacing=(gaps, 1e-9), periodic=(periodic, False))
    centre = cusink.cost_matrix([[want[1, 2] ** (0.5 if metric == "sqeuclidean" else 1), 1e-9]], [[0.0, 0.0]], metric)
    assert plane.dense()[2, 5] == pytest.approx(centre[0, 0], rel=1e-13)


def test_equal_distances_between_cells_are_one_number():
    grid = cusink.Grid((3, 1), spacing=([0.5, 0.5], ()))
    assert grid == cusink.Grid((3, 1), spacing=(0.5, 1.0)) and grid.spacing == (0.5, 1.0)
    assert cusink.Grid((3, 1), spacing=(np.array(0.5), 1.0)) == grid
    uneven = cusink.Grid((3, 1), spacing=([0.5, 0.75], 1.0))
    assert uneven != grid and hash(uneven) == hash(cusink.Grid((3, 1), spacing=((0.5, 0.75), 1)))


def test_a_distance_on_a_grid_is_right_where_its_square_is_no_number():
    """Squares are taken in units of the spacing: of 1e-30 they would be nothing in float32, and of 1e30 too much."""
    for spacing in (1e-30, 1e30):
        grid = cusink.Grid((2, 2), "euclidean", spacing=spacing)
        assert grid.max() == pytest.approx(2**0.5 * spacing)
        a, b = np.eye(4, dtype=np.float32)[[0, 3]]
        assert cusink.sinkhorn(a, b, grid, eps=0.1 * spacing).cost == pytest.approx(2**0.5 * spacing, rel=1e-6)


def test_solving_with_either_is_solving_with_the_cost(xp):
    rng = np.random.default_rng(1)
    a, b = xp(rng.dirichlet(np.ones(6), 3)), xp(rng.dirichlet(np.ones(6), 3))
    for C in (cusink.PointCloud(xp(POINTS)), cusink.Grid((2, 3)), cusink.Grid((2, 3), "euclidean")):
        stored = xp(xp.numpy(C.dense()))
        ours, theirs = (cusink.sinkhorn(a, b, cost, eps=0.2, tol=1e-9) for cost in (C, stored))
        for name in ("cost", "reg_cost", "entropic_cost", "f", "g"):
            np.testing.assert_allclose(
                xp.numpy(getattr(ours, name)), xp.numpy(getattr(theirs, name)), rtol=1e-6, atol=1e-8, err_msg=name
            )
        for bound, other in zip(ours.bounds(), theirs.bounds(), strict=True):
            np.testing.assert_allclose(xp.numpy(bound), xp.numpy(other), rtol=1e-6)
        np.testing.assert_allclose(xp.numpy(ours.plan()), xp.numpy(theirs.plan()), rtol=1e-5, atol=1e-10)
        np.testing.assert_allclose(xp.numpy(ours.apply(a, 0)), xp.numpy(theirs.apply(a, 0)), rtol=1e-5)


def test_one_point_and_equal_points_are_problems_like_any_other():
    one = cusink.sinkhorn([1.0], None, cusink.PointCloud([[1.0, 2.0]], POINTS), eps=0.1)
    assert one.cost == pytest.approx(cusink.cost_matrix([[1.0, 2.0]], POINTS).mean())
    equal = cusink.sinkhorn(None, None, cusink.PointCloud(np.ones((4, 3))), eps=0.1)
    assert equal.cost == 0 and equal.converged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.0, np.nan]],), "'x' must be finite"),
        (([[0.0, 1.0]], [[np.inf, 1.0]]), "'y' must be finite"),
        (([[0.0, 1.0]], [[1.0, 2.0, 3.0]]), r"same number of coordinates; got \(1, 2\) and \(1, 3\)"),
        ((np.empty((3, 0)),), r"at least one point and one coordinate; got \(3, 0\)"),
        ((np.empty((0, 3)),), r"at least one point and one coordinate; got \(0, 3\)"),
        ((np.ones((2, 3, 1)), np.ones((4, 3, 1))), "one batch size"),
        (([[0.0, 0.0]], None, "cosine"), "no zero vector"),
        (([[0.0]], None, "hamming"), "'metric' must be one of 'sqeuclidean', 'euclidean'"),
    ],
)
def test_bad_points_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cusink.PointCloud(*arguments)


def test_bad_powers_and_missing_points_are_refused():
    with pytest.raises(ValueError, match="'power' must be positive and finite; got 0"):
        cusink.PointCloud([0.0], power=0)
    with pytest.raises(TypeError, match="'power' must be a number"):
        cusink.PointCloud([0.0], power="2")
    with pytest.raises(TypeError, match="'x' must be an array of points; got None"):
        cusink.PointCloud(None)
    with pytest.raises(TypeError, match="'x' is float16 and 'y' is float64"):
        cusink.PointCloud(POINTS.astype(np.float16), POINTS)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((0, 3),), {}, "'shape' must be one, two or three positive numbers"),
        (((1, 2, 3, 4),), {}, "'shape' must be one, two or three positive numbers"),
        ((3.5,), {}, "'shape' must be one, two or three positive numbers"),
        (((3, 3), "cosine"), {}, "PointCloud"),
        (((3, 3),), {"spacing": ((1.0, 2.0, 3.0), 1.0)}, "2 distances between neighbours for axis 0 of 3 cells; got"),
        (((3, 3),), {"spacing": ((1.0, 2.0), 1.0), "periodic": True}, "3 distances .* the last one from the last cell"),
        (((3, 3),), {"spacing": ((1.0, 0.0), 1.0)}, "'spacing' must be positive and finite"),
        (((3, 3),), {"spacing": (np.ones((2, 2)), 1.0)}, "2 distances between neighbours for axis 0"),
        (((3, 3),), {"spacing": ((1e200, 2e200), 1.0)}, "costs are finite"),
        (((3, 3),), {"spacing": -1.0}, "'spacing' must be positive"),
        (((3, 3),), {"spacing": (1.0, 1.0, 1.0)}, "'spacing' must be one value, or 2"),
        (((3, 3),), {"periodic": "yes"}, "'periodic' must be a bool"),
    ],
)
def test_bad_grids_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cusink.Grid(*arguments, **options)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'a' must have shape \(6,\) to match C of shape \(6, 6\); got \(5,\)"):
        cusink.sinkhorn(np.ones(5), None, cusink.PointCloud(POINTS), eps=0.1)
    with pytest.raises(TypeError, match="float16"):
        cusink.sinkhorn(np.ones(6, np.float16) / 6, None, cusink.PointCloud(POINTS), eps=0.1)
    with pytest.raises(ValueError, match="'memory_limit' must be a number of bytes; got -1"):
        cusink.sinkhorn(None, None, cusink.PointCloud(POINTS), eps=0.1, memory_limit=-1)
    with pytest.raises(ValueError, match="'memory_limit' must hold a row of costs as they are made, 672 bytes; got 99"):
        cusink.sinkhorn(None, None, cusink.Grid((2, 3), "euclidean"), eps=0.1, memory_limit=99)
    with pytest.raises(TypeError, match="'memory_limit'"):
        cusink.sinkhorn(None, None, cusink.PointCloud(POINTS), eps=0.1, memory_limit=1e6)


@pytest.mark.parametrize(
    ("a", "C"),
    [
        (None, cusink.PointCloud(np.array([1e30, 0], np.float32))),
        (None, cusink.PointCloud([1e200, 0.0])),
        (np.full(9, 1 / 9, np.float32), cusink.Grid((3, 3), spacing=1e20)),
        (np.full(9, 1 / 9, np.float32), cusink.Grid((3, 3), "euclidean", spacing=2e38)),
    ],
)
def test_costs_beyond_the_range_are_refused(a, C):
    with pytest.raises(ValueError, match="'C' must hold finite costs; the largest exceed the range of float"):
        cusink.sinkhorn(a, None, C, eps=1.0)


def test_an_eps_that_is_nothing_beside_the_cost_is_refused():
    with pytest.raises(ValueError, match="'eps' must be such that C / eps is finite"):
        cusink.sinkhorn(None, None, cusink.PointCloud([0.0, 3.0]), eps=1e-320)


def test_a_cloud_moved_to_a_device_is_what_it_was(monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(2, 5, 16))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=lambda x: x.copy()))
    for cloud in (cusink.PointCloud(x, y, "euclidean", power=3, tf32=True), cusink.PointCloud(x)):
        array, moved, nothing = to_device(x, cloud, None)
        assert nothing is None and array is not x and moved.x is not cloud.x
        np.testing.assert_array_equal(moved.y, cloud.y)
        assert (moved.metric, moved.power, moved.tf32) == (cloud.metric, cloud.power, cloud.tf32)
        assert (moved.x is moved.y) == (cloud.x is cloud.y)


@pytest.mark.parametrize(("metric", "power"), [("sqeuclidean", 1), ("euclidean", 1), ("cityblock", 1.5)])
def test_costs_in_float32_are_rounded_once(metric, power):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(3, n, 7)).astype(np.float32) for n in (40, 500))
    exact = np.stack([cusink.cost_matrix(*pair, metric) for pair in zip(x.astype(float), y.astype(float), strict=True)])
    C = cusink.PointCloud(x, y, metric, power=power).dense()
    np.testing.assert_array_equal(C, (exact**power).astype(np.float32))
    np.testing.assert_array_equal(cusink.PointCloud(x[1], y[1], metric, power=power).dense(), C[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["sqeuclidean", "cityblock"])
def test_differences_are_taken_before_anything_else_and_rounded_once(metric, dtype):
    """To the last bit, also of points far off beside their distances, and where blocks end within a problem."""
    rng = np.random.default_rng(0)
    for size, n, m, d, far in ((3, 5, 7, 1, 0), (40, 30, 31, 3, 1e6), (2, 250, 260, 3, 0), (1, 4, 40_000, 9, 1e6)):
        x, y = (rng.normal(size=(size, k, d)).astype(dtype) + dtype(far) for k in (n, m))
        y[:, : min(n, m)] = x[:, : min(n, m)] + dtype(1e-3) * y[:, : min(n, m)]
        expected = 0
        for k in range(d):
            apart = x[:, :, None, k].astype(np.float64) - y[:, None, :, k]
            expected = expected + (np.abs(apart) if metric == "cityblock" else apart * apart)
        np.testing.assert_array_equal(cusink.PointCloud(x, y, metric).dense(), expected.astype(dtype))


def test_the_error_of_one_pair_holds_what_rounding_does_to_its_exponent():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = (rng.normal(size=(1, 7)).astype(np.float32) for _ in range(2))
        cloud = cusink.PointCloud(x, y + 3)
        result = cusink.sinkhorn(None, None, cloud, eps=cloud.mean() / 500, tol=1e-2)
        assert abs(result.plan()[0, 0] - 1) <= result.error


def test_the_error_of_steep_powers_holds_their_roundings():
    x, y = np.array([[0.0], [366.6115957143117]]), np.array([[73.21681153121168]])
    cloud = cusink.PointCloud(x, y, power=2)
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(None, None, cloud, eps=0.8)
    assert abs(result.plan().sum(axis=1) - 0.5).sum() <= result.error < 1e-3


def test_the_error_in_float32_holds_the_sums_of_many_coordinates():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 200)).astype(np.float32), (rng.normal(size=(3, 200)) + 3).astype(np.float32)
    cloud = cusink.PointCloud(x, y)
    result = cusink.sinkhorn(None, None, cloud, eps=cloud.mean() / 300, tol=3e-3)
    plan = np.asarray(result.plan(), float)
    assert abs(plan.sum(axis=0) - 1 / 3).sum() <= result.error
