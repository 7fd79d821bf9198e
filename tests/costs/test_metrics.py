"""Metrics that are made in blocks, or between images of points: costs, derivatives, and everything built on them.

The oracles are `scipy.spatial.distance.cdist`, formulas in float64, central differences, and stored costs.
"""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

import cusink

RNG = np.random.default_rng(0)
X, Y = RNG.random((6, 3)) + 0.1, RNG.random((5, 3)) + 0.1
FACTOR = RNG.normal(size=(3, 2))
LABELS = np.array([0, 1, 2, 0, 1, 2]), np.array([2, 2, 0, 3, 1])
TABLE = RNG.random((3, 4))
SQUARE = np.array([[0.0, 1.0, 2.0, 0.5], [1.0, 0.0, 0.7, 1.0], [2.0, 0.7, 0.0, 3.0], [0.5, 1.0, 3.0, 0.0]])
EPS, FEW_BYTES = 0.5, 1280  # bytes that hold two or three rows of costs


def city(x, y):
    return np.abs(x[:, None] - y).sum(axis=-1) ** 2


def city_gradient(x, y, grad):
    d = x[:, None] - y
    slope = (2 * np.abs(d).sum(axis=-1) * grad)[..., None] * np.sign(d)
    return slope.sum(axis=1), -slope.sum(axis=0)


def great_circle(x, y):
    high = np.sin((x[:, None, 0] - y[:, 0]) / 2) ** 2
    wide = np.cos(x[:, None, 0]) * np.cos(y[:, 0]) * np.sin((x[:, None, 1] - y[:, 1]) / 2) ** 2
    return 2 * np.arcsin(np.sqrt(high + wide))


def entropy(x, y):
    return (x[:, None] * np.log(x[:, None] / y) - x[:, None] + y).sum(axis=-1)


def table_of(table):
    return lambda x, y: table[LABELS[0][: len(x), None], LABELS[1][: len(y)]]


# Name: metric, parameters, and the cost of points (n, d) and (m, d) by other means.
CASES = {
    "minkowski 3": ("minkowski", {"p": 3}, lambda x, y: cdist(x, y, "minkowski", p=3)),
    "minkowski": ("minkowski", {}, cdist),
    "|x - y|^0.7": ("minkowski", {"p": 0.7, "power": 0.7}, lambda x, y: (np.abs(x[:, None] - y) ** 0.7).sum(axis=-1)),
    "|x - y|^1.5": ("minkowski", {"p": 1.5, "power": 1.5}, lambda x, y: (np.abs(x[:, None] - y) ** 1.5).sum(axis=-1)),
    "minkowski 16, squared": ("minkowski", {"p": 16, "power": 2}, lambda x, y: cdist(x, y, "minkowski", p=16) ** 2),
    "mahalanobis": ("mahalanobis", {"factor": FACTOR}, lambda x, y: cdist(x @ FACTOR, y @ FACTOR)),
    "hellinger": ("hellinger", {}, lambda x, y: cdist(np.sqrt(x), np.sqrt(y)) / np.sqrt(2)),
    "hellinger, squared": ("hellinger", {"power": 2}, lambda x, y: cdist(np.sqrt(x), np.sqrt(y), "sqeuclidean") / 2),
    "kl": ("kl", {}, entropy),
    "root of kl": ("kl", {"power": 0.5}, lambda x, y: entropy(x, y) ** 0.5),
    "haversine": ("haversine", {"radius": 3.0}, lambda x, y: 3 * great_circle(x, y)),
    "haversine, squared": ("haversine", {"power": 2}, lambda x, y: great_circle(x, y) ** 2),
    "labels": (
        "sqeuclidean",
        {"labels": LABELS, "table": TABLE},
        lambda x, y: cdist(x, y) ** 2 + table_of(TABLE)(x, y),
    ),
    "labels, cosine": (
        "cosine",
        {"labels": LABELS, "table": SQUARE},
        lambda x, y: cdist(x, y, "cosine") + table_of(SQUARE)(x, y),
    ),
    "labels, city-block": (
        "cityblock",
        {"labels": LABELS, "table": SQUARE, "power": 1.5},
        lambda x, y: cdist(x, y, "cityblock") ** 1.5 + table_of(SQUARE)(x, y),
    ),
    "labels, mahalanobis": (
        "mahalanobis",
        {"labels": LABELS, "table": TABLE, "factor": FACTOR, "power": 2},
        lambda x, y: cdist(x @ FACTOR, y @ FACTOR) ** 2 + table_of(TABLE)(x, y),
    ),
    "function": (city, {"gradient": city_gradient}, city),
}
SYMMETRIC = [name for name in CASES if "kl" not in name and CASES[name][1].get("table") is not TABLE]


@pytest.fixture(params=CASES)
def case(request):
    """``(cloud of x and y by keyword, oracle, x, y)``."""
    metric, given, oracle = CASES[request.param]
    x, y = (X[:, :2] * 2 - 1, Y[:, :2] * 2 - 1) if metric == "haversine" else (X, Y)

    def cloud(x=x, y=y, **other):
        return cusink.PointCloud(x, y, metric, **given | other)

    return cloud, oracle, x, y


def without_gradient(given):
    return {name: value for name, value in given.items() if name != "gradient"}


def slope(function, step=1e-5):
    """Return the derivative of a function of a number at 0, by central differences."""
    return (function(step) - function(-step)) / (2 * step)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_costs_are_those_of_the_formula(case, dtype):
    cloud, oracle, x, y = case
    x, y = x.astype(dtype), y.astype(dtype)
    got, expected = cloud(x, y).dense(), oracle(x.astype(np.float64), y.astype(np.float64))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
    assert cloud(x, y).mean() == pytest.approx(expected.mean(), rel=1e-6)


def test_points_that_coincide_cost_nothing_and_pull_nothing():
    for name, (metric, given, _) in CASES.items():
        points = X[:, :2] if metric == "haversine" else X
        given = {name: value for name, value in given.items() if name not in ("labels", "table")}
        assert not np.diag(cusink.PointCloud(points, points.copy(), metric, **given).dense()).any(), name
        gx, gy = cusink.cost_matrix_adjoint(points, points.copy(), np.eye(6), metric, **given)
        np.testing.assert_allclose(np.concatenate([gx, gy]), 0, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("batch", [False, True])
def test_cost_matrices_have_derivatives(batch):
    for name, (metric, given, _) in CASES.items():
        x, y = (X[:, :2], Y[:, :2]) if metric == "haversine" else (X, Y)
        x, y = (np.stack([x, x + 0.1]), y) if batch else (x, y)
        grad, dx, dy = (RNG.normal(size=shape) for shape in (((2,) if batch else ()) + (6, 5), x.shape, y.shape))

        def cost(t, x=x, y=y, dx=dx, dy=dy, metric=metric, given=given, grad=grad):
            return (grad * cusink.cost_matrix(x + t * dx, y + t * dy, metric, **without_gradient(given))).sum()

        gx, gy = cusink.cost_matrix_adjoint(x, y, grad, metric, **given)
        np.testing.assert_allclose((gx * dx).sum() + (gy * dy).sum(), slope(cost), rtol=1e-6, err_msg=name)


def test_a_cloud_solves_as_the_stored_cost_does_in_one_block_or_many(case):
    cloud, oracle, x, y = case
    a, b = np.array([0.3, 0.0, 0.2, 0.2, 0.1, 0.2]), np.array([0.2, 0.3, 0.1, 0.4, 0.0])
    stored = cusink.sinkhorn(a, b, oracle(x, y), eps=EPS, tol=1e-11)
    v = RNG.normal(size=5)
    w = np.arange(5.0)
    wanted = cusink.sinkhorn_adjoint(stored, grad_cost=1.0, grad_g=w)
    gx, gy = cusink.cost_matrix_adjoint(x, y, wanted.C, **_given(cloud()))
    for limit in (None, FEW_BYTES):
        result = cusink.sinkhorn(a, b, cloud(), eps=EPS, tol=1e-11, memory_limit=limit)
        for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
            np.testing.assert_allclose(getattr(result, name), getattr(stored, name), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(result.plan(), stored.plan(), rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(result.apply(v, 1), stored.apply(v, 1), rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(result.barycentric_map(v), stored.barycentric_map(v), rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(result.bounds(), stored.bounds(), rtol=1e-8)
        got = cusink.sinkhorn_adjoint(result, grad_cost=1.0, grad_g=w)
        np.testing.assert_allclose(got.a, wanted.a, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.eps, wanted.eps, rtol=1e-5)
        np.testing.assert_allclose(got.x, gx, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got.y, gy, rtol=1e-4, atol=1e-6)
    loose = [cusink.sinkhorn(a, b, C, eps=EPS, reach=0.5, tol=1e-9).cost for C in (cloud(), oracle(x, y))]
    assert loose[0] == pytest.approx(loose[1], rel=1e-6)


def _given(made):
    given = {name: value for name, value in made.ground.keywords.items() if name != "tf32"}
    return given | {"labels": made.labels}


@pytest.mark.parametrize(
    "name", ["minkowski 3", "root of kl", "haversine, squared", "hellinger", "labels, mahalanobis"]
)
def test_second_derivatives_are_those_of_differences(name):
    metric, given, _ = CASES[name]
    x, y = (X[:, :2], Y[:, :2]) if metric == "haversine" else (X, Y)
    x = np.stack([x, x + 0.1])
    dx, dy = (np.random.default_rng(1).normal(size=(2, *shape)) for shape in (x.shape[1:], y.shape))

    def solved(t):
        C = cusink.PointCloud(x + t * dx, y + t * dy, metric, **given)
        return cusink.sinkhorn(None, None, C, eps=[0.5, 0.8], tol=1e-11)

    result = solved(0.0)
    along = cusink.sinkhorn_jvp(result, dx=dx, dy=dy)
    np.testing.assert_allclose(along.cost, slope(lambda t: solved(t).cost, 1e-4), rtol=1e-4, atol=1e-5)
    product = cusink.sinkhorn_hvp(result, grad_reg_cost=np.ones(2), dx=dx, dy=dy)
    for side in "xy":
        wanted = slope(lambda t, side=side: getattr(cusink.sinkhorn_adjoint(solved(t), grad_reg_cost=1.0), side), 1e-4)
        np.testing.assert_allclose(getattr(product, side), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_metrics_have_gradients_by_their_parameters(batch):
    x = np.stack([X, X + 0.2]) if batch else X

    def loss(factor, table):
        C = cusink.PointCloud(x + 1e3, Y + 1e3, "mahalanobis", factor=factor, labels=LABELS, table=table, power=2)
        return cusink.sinkhorn(None, None, C, eps=1.0, tol=1e-11, memory_limit=FEW_BYTES)

    found = cusink.sinkhorn_adjoint(loss(FACTOR, TABLE), grad_cost=1.0).metric
    of_factor, of_table = np.random.default_rng(2).normal(size=(3, 2)), np.random.default_rng(3).random((3, 4))
    assert found["factor"].shape == (3, 2) and found["table"].shape == (3, 4)
    assert (found["factor"] * of_factor).sum() == pytest.approx(
        slope(lambda t: loss(FACTOR + t * of_factor, TABLE).cost.sum()), rel=1e-5
    )
    assert (found["table"] * of_table).sum() == pytest.approx(
        slope(lambda t: loss(FACTOR, TABLE + t * of_table).cost.sum()), rel=1e-5
    )


def test_a_factor_alone_has_its_gradient_in_a_divergence_and_other_metrics_none():
    def divergence(factor):
        C = cusink.PointCloud(X, Y, "mahalanobis", factor=factor, power=2)
        return cusink.sinkhorn_divergence(None, None, C, eps=0.3, tol=1e-11)

    move = np.random.default_rng(4).normal(size=(3, 2))
    found = cusink.sinkhorn_divergence_adjoint(divergence(FACTOR)).metric
    assert (found["factor"] * move).sum() == pytest.approx(
        slope(lambda t: divergence(FACTOR + t * move).divergence), rel=1e-5
    )
    assert (
        cusink.sinkhorn_adjoint(cusink.sinkhorn(None, None, cusink.PointCloud(X), eps=1.0), grad_cost=1.0).metric == {}
    )
    assert cusink.sinkhorn_adjoint(cusink.sinkhorn(None, None, TABLE, eps=1.0), grad_cost=1.0).metric == {}


@pytest.mark.parametrize("name", [name for name in SYMMETRIC if name != "minkowski"])
def test_divergences_are_those_of_stored_costs(name):
    metric, given, oracle = CASES[name]
    x, y = (X[:, :2], Y[:, :2]) if metric == "haversine" else (X, Y)
    C = cusink.PointCloud(x, y, metric, **given)
    own = [cusink.PointCloud(p, None, metric, **given | _own_labels(given, k)).dense() for k, p in enumerate((x, y))]
    got = cusink.sinkhorn_divergence(None, None, C, eps=EPS, tol=1e-10, memory_limit=FEW_BYTES)
    wanted = cusink.sinkhorn_divergence(None, None, oracle(x, y), C_aa=own[0], C_bb=own[1], eps=EPS, tol=1e-10)
    np.testing.assert_allclose(got.divergence, wanted.divergence, rtol=1e-6, atol=1e-9)
    move = np.random.default_rng(5).normal(size=x.shape)
    gradient = cusink.sinkhorn_divergence_adjoint(got).x

    def moved(t):
        C = cusink.PointCloud(x + t * move, y, metric, **given)
        return cusink.sinkhorn_divergence(None, None, C, eps=EPS, tol=1e-11).divergence

    assert (gradient * move).sum() == pytest.approx(slope(moved), rel=1e-4)
    again = cusink.PointCloud(
        x, x.copy(), metric, **given | ({"labels": (LABELS[0],) * 2} if "labels" in given else {})
    )
    assert abs(cusink.sinkhorn_divergence(None, None, again, eps=EPS).divergence) < 1e-12


def _own_labels(given, side):
    return {"labels": given["labels"][side]} if "labels" in given else {}


def test_labels_tell_equal_points_apart():
    C = cusink.PointCloud(X, X.copy(), labels=(LABELS[0], (LABELS[0] + 1) % 3), table=SQUARE)
    assert cusink.sinkhorn_divergence(None, None, C, eps=0.1).divergence > 0.1


@pytest.mark.parametrize("name", ["minkowski 3", "hellinger", "root of kl", "labels, mahalanobis", "function"])
def test_matrices_and_neighbours_are_those_of_stored_costs(name):
    metric, given, oracle = CASES[name]
    x, y = (X[:, :2], Y[:, :2]) if metric == "haversine" else (X, Y)
    C = cusink.PointCloud(x, y, metric, **given)
    A, B = (np.random.default_rng(k).dirichlet(np.ones(n), size=4) for k, n in ((6, 6), (7, 5)))
    options = {"eps": EPS, "tol": 1e-9}
    wanted = cusink.distance_matrix(A, B, oracle(x, y), **options)
    np.testing.assert_allclose(cusink.distance_matrix(A, B, C, **options), wanted, rtol=1e-6)
    _, nearest = cusink.nearest(A, B, C, k=2, **options)
    np.testing.assert_array_equal(nearest, np.argsort(wanted, axis=1)[:, :2])
    some = A * (A > 0.1)
    some /= some.sum(axis=1, keepdims=True)
    sparse = cusink.distance_matrix(csr_array(some), csr_array(B), C, **options)
    dense = cusink.distance_matrix(some, B, oracle(x, y), **options)
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)
    copied = pickle.loads(pickle.dumps(cusink.sinkhorn(None, None, C, **options)))
    np.testing.assert_allclose(copied.plan(), cusink.sinkhorn(None, None, C, **options).plan(), rtol=1e-12)


@pytest.mark.parametrize("name", ["labels, mahalanobis", "haversine", "minkowski 3"])
def test_an_index_keeps_the_metric_and_a_matrix_on_disk_tells_it_from_others(name, tmp_path):
    metric, given, oracle = CASES[name]
    x, y = (X[:, :2], Y[:, :2]) if metric == "haversine" else (X, Y)
    C = cusink.PointCloud(x, y, metric, **given)
    A, B = (np.random.default_rng(k).dirichlet(np.ones(n), size=4) for k, n in ((6, 6), (7, 5)))
    cusink.Index(B, C, eps=EPS).save(tmp_path / "index")
    found, _ = cusink.Index.load(tmp_path / "index").search(A, k=1)
    wanted = cusink.distance_matrix(A, B, oracle(x, y), eps=EPS)
    np.testing.assert_allclose(found[:, 0], wanted.min(axis=1), rtol=1e-5)
    cusink.distance_matrix(A, B, C, eps=EPS, out=str(tmp_path / "matrix.npy"))
    other = {"radius": 2.0} if metric == "haversine" else {"p": 4} if metric == "minkowski" else {"table": TABLE + 1}
    changed = cusink.PointCloud(x, y, metric, **given | other)
    with pytest.raises(ValueError, match="another|other"):
        cusink.distance_matrix(A, B, changed, eps=EPS, out=str(tmp_path / "matrix.npy"))


def test_new_points_have_potentials_and_gradients(case):
    cloud, _, x, y = case
    result = cusink.sinkhorn(None, None, cloud(), eps=EPS, tol=1e-11)
    if cloud().labels is not None:
        with pytest.raises(ValueError, match="'x' must be points with labels"):
            result.at(x)
        return
    np.testing.assert_allclose(result.at(x).potential, result.f, atol=1e-8)
    move = np.random.default_rng(8).normal(size=y.shape)
    wanted = slope(lambda t: result.at(y=y + t * move).potential)
    np.testing.assert_allclose((result.at(y=y).gradient() * move).sum(axis=1), wanted, rtol=1e-5, atol=1e-7)


def test_points_far_from_zero_keep_the_digits_of_their_differences():
    x, y = (p.astype(np.float32) for p in (X, Y))
    for far in (0, 4096):
        shifted = ((p + np.float32(far)).astype(np.float32) for p in (x, y))
        x64, y64 = (p.astype(np.float64) for p in shifted)
        for name in ("minkowski 3", "mahalanobis"):
            metric, given, oracle = CASES[name]
            got = cusink.PointCloud(x64.astype(np.float32), y64.astype(np.float32), metric, **given).dense()
            np.testing.assert_allclose(got, oracle(x64, y64), rtol=2e-5, atol=1e-6)


def test_small_differences_are_not_lost_in_large_powers():
    x, y = np.array([[0.0], [1e-10], [1e6]]), np.array([[0.0]])
    got = cusink.PointCloud(x, y, "minkowski", p=16).dense()
    np.testing.assert_allclose(got[:, 0], [0, 1e-10, 1e6], rtol=1e-9)


def test_a_function_is_never_given_all_pairs_where_memory_is_short_and_gets_the_dtype_of_the_points():
    largest, dtypes = [0], set()

    def seen(x, y):
        largest[0] = max(largest[0], len(x) * len(y))
        dtypes.update((x.dtype, y.dtype))
        return cdist(x, y)

    x, y = (np.random.default_rng(k).random((n, 2), np.float32) for k, n in ((0, 60), (1, 50)))
    C = cusink.PointCloud(x, y, seen)
    result = cusink.sinkhorn(None, None, C, eps=0.1, memory_limit=8000)
    assert largest[0] <= 125 and dtypes == {np.dtype(np.float32)}
    stored = cusink.sinkhorn(None, None, cdist(x, y).astype(np.float32), eps=0.1)
    assert result.cost == pytest.approx(stored.cost, rel=1e-5)


def returns(value):
    return lambda x, y: value if not callable(value) else value(np.ones((len(x), len(y))))


def bad_at_last(x, y):
    return np.where(np.all(x[:, None] == X[-1], axis=-1), np.nan, 1.0) + np.zeros((len(x), len(y)))


BAD = {
    "metric": ((X, Y, "chebyshov"), {}, ValueError, "'metric' must be one of .*'haversine'.* got 'chebyshov'"),
    "p below": ((X, Y, "minkowski"), {"p": 0}, ValueError, "'p' must be positive"),
    "p beyond": ((X, Y, "minkowski"), {"p": 17}, ValueError, "'p' must be at most 16"),
    "p of another": ((X, Y), {"p": 3}, ValueError, "'p' must be None unless 'metric' is 'minkowski'"),
    "radius of another": ((X, Y), {"radius": 3}, ValueError, "'radius' must be None unless"),
    "radius": ((X[:, :2], None, "haversine"), {"radius": -1}, ValueError, "'radius' must be positive"),
    "factor of another": ((X, Y), {"factor": FACTOR}, ValueError, "'factor' must be None unless"),
    "no factor": ((X, Y, "mahalanobis"), {}, ValueError, "'factor' must be given"),
    "rows": ((X, Y, "mahalanobis"), {"factor": np.eye(2)}, ValueError, "'factor' must have a row for each of the 3"),
    "axes": ((X, Y, "mahalanobis"), {"factor": np.ones(3)}, ValueError, "'factor' must have two axes"),
    "NaN factor": ((X, Y, "mahalanobis"), {"factor": np.full((3, 1), np.nan)}, ValueError, "'factor' must be finite"),
    "negative rows": ((-X, Y, "kl"), {}, ValueError, "'x' must be non-negative for metric 'kl'; got -"),
    "negative rows of hellinger": ((X, -Y, "hellinger"), {}, ValueError, "'y' must be non-negative"),
    "zeros": ((X, Y * (Y > 0.5), "kl"), {}, ValueError, "'y' must be positive for metric 'kl'.*it holds 0"),
    "zeros of one cloud": ((Y * (Y > 0.5), None, "kl"), {}, ValueError, "'x' must be positive for metric 'kl'"),
    "latitudes": ((X[:, :2] * 90, None, "haversine"), {}, ValueError, r"'x' must have latitudes in \[-pi/2, pi/2\]"),
    "three coordinates": ((X, Y, "haversine"), {}, ValueError, "'x' must hold pairs of latitude and longitude"),
    "no coordinates": ((X[:, :0], Y[:, :0], "kl"), {}, ValueError, "at least one point and one coordinate"),
    "NaN": ((X * np.nan, Y, "kl"), {}, ValueError, "'x' must be finite"),
    "infinite": ((X, np.full((5, 3), np.inf), "minkowski"), {}, ValueError, "'y' must be finite"),
    "label beyond": ((X, Y), {"labels": LABELS, "table": TABLE[:, :3]}, ValueError, r"'labels\[1\]' .* 0 to 2.* got 3"),
    "label below": ((X, None), {"labels": LABELS[0] - 1, "table": SQUARE}, ValueError, "'labels' must lie .* got -1"),
    "real labels": ((X, None), {"labels": LABELS[0] * 1.0, "table": SQUARE}, TypeError, "'labels' must be integers"),
    "too few labels": (
        (X, None),
        {"labels": LABELS[1], "table": SQUARE},
        ValueError,
        r"'labels' must have shape \(6,\)",
    ),
    "one array": ((X, Y), {"labels": LABELS[0], "table": TABLE}, TypeError, "'labels' must be a pair of arrays"),
    "no table": ((X, Y), {"labels": LABELS}, ValueError, "'table' must be given with 'labels'"),
    "no labels": ((X, Y), {"table": TABLE}, ValueError, "'labels' must be given with 'table'"),
    "negative table": (
        (X, Y),
        {"labels": LABELS, "table": -TABLE},
        ValueError,
        "'table' must hold costs of at least 0",
    ),
    "gradient of a name": ((X, Y), {"gradient": city_gradient}, TypeError, "'gradient' must be a function, and go"),
    "gradient": ((X, Y, city), {"gradient": 3}, TypeError, "'gradient' must be a function"),
    "power of a function": ((X, Y, city), {"power": 2}, ValueError, "'power' must be 1"),
    "shape": ((X, Y, returns(np.ones((2, 2)))), {}, ValueError, r"'metric' must return shape \(2, 3\).*got \(2, 2\)"),
    "no array": ((X, Y, returns(1.0)), {}, TypeError, "'metric' must return a numpy array"),
    "masked costs": (
        (X, Y, returns(np.ma.masked_array)),
        {},
        TypeError,
        "'metric' must return an array without a mask",
    ),
    "sign": ((X, Y, returns(np.negative)), {}, ValueError, "'metric' must return costs of at least 0; got -1"),
    "NaN costs": ((X, Y, returns(lambda one: one * np.nan)), {}, ValueError, "'metric' must return .* got NaN"),
    "infinite costs": ((X, Y, returns(lambda one: one * np.inf)), {}, ValueError, "'metric' must return finite"),
    "complex costs": ((X, Y, returns(lambda one: one * 1j)), {}, TypeError, "'metric' must return real numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_clouds_are_refused(name):
    arguments, given, error, message = BAD[name]
    with pytest.raises(error, match=message):
        cusink.PointCloud(*arguments, **given)


def test_what_a_function_answers_is_looked_at_before_anything_is_solved():
    with pytest.raises(ValueError, match="'metric' must return costs that are numbers; got NaN"):
        cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, bad_at_last), eps=1.0, max_iter=1)


def test_a_mask_that_comes_late_is_refused_too():
    def late(x, y):
        return np.ma.masked_greater(city(x, y), 1.0) if len(x) > 2 else city(x, y)

    with pytest.raises(TypeError, match=r"'metric' must return an array without a mask; got numpy.ma.MaskedArray"):
        cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, late), eps=EPS)


def test_a_function_cannot_change_the_points():
    def at_once(x, y):
        x -= y[0]
        return city(x, y)

    def later(x, y):
        if len(x) > 2:
            x -= y[0]
        return city(x, y)

    def gradient(x, y, G):
        if len(y) > 3:
            y *= 2
        return x, y

    def gradient_at_once(x, y, G):
        y *= 2
        return x, y

    kept = X.copy()
    with pytest.raises(TypeError, match="it raised ValueError: .*read-only"):
        cusink.PointCloud(kept, Y, at_once)
    with pytest.raises(TypeError, match="'gradient' must be a function of .* it raised ValueError: .*read-only"):
        cusink.PointCloud(kept, Y, city, gradient=gradient_at_once)
    with pytest.raises(ValueError, match="read-only"):
        cusink.sinkhorn(None, None, cusink.PointCloud(kept, Y, later), eps=EPS)
    result = cusink.sinkhorn(None, None, cusink.PointCloud(kept, Y, city, gradient=gradient), eps=EPS)
    with pytest.raises(ValueError, match="read-only"):
        print(cusink.sinkhorn_adjoint(result, grad_cost=1.0).x)
    np.testing.assert_array_equal(kept, X)


def test_gradients_of_a_function_are_refused_or_checked():
    result = cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, city), eps=EPS)
    with pytest.raises(ValueError, match="'gradient' must be given with a 'metric' that is a function"):
        print(cusink.sinkhorn_adjoint(result, grad_cost=1.0).x)
    for late, error, message in (
        (lambda x, y: x, TypeError, "'gradient' must return a pair"),
        (lambda x, y: (x, y[:1]), ValueError, r"'gradient' must return shape \(5, 3\)"),
        (lambda x, y: (x, np.ma.masked_array(y)), TypeError, "'gradient' must return an array without a mask"),
        (lambda x, y: (x * np.nan, y), ValueError, "'gradient' must return finite numbers; got NaN"),
    ):

        def wrong(x, y, G, late=late):
            return late(x, y) if len(y) > 3 else city_gradient(x, y, G)

        result = cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, city, gradient=wrong), eps=EPS)
        with pytest.raises(error, match=message):
            print(cusink.sinkhorn_adjoint(result, grad_cost=1.0).x)
    result = cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, city, gradient=city_gradient), eps=EPS)
    with pytest.raises(ValueError, match="'dx' must be None for a 'metric' that is a function"):
        cusink.sinkhorn_jvp(result, dx=X)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x, y, G: G, TypeError, "'gradient' must return a pair, the gradients of x and of y; got ndarray"),
        (lambda x, y, G: (x, y[:1]), ValueError, r"'gradient' must return shape \(3, 3\) for these .*got \(1, 3\)"),
        (lambda x, y, G: (x[:, 0], y), ValueError, r"'gradient' must return shape \(2, 3\) for these .*got \(2,\)"),
        (lambda x, y, G: (x, y.tolist()), TypeError, "'gradient' must return a numpy array"),
        (lambda x, y, G: (x, y + 0j), TypeError, "'gradient' must return real numbers; got dtype complex128"),
        (lambda x, y: (x, y), TypeError, "'gradient' must be a function of points x and y and of the gradient"),
    ],
)
def test_a_gradient_of_the_wrong_form_is_found_before_any_work(wrong, error, message):
    for call in (
        lambda: cusink.PointCloud(X, Y, city, gradient=wrong),
        lambda: cusink.PointCloud(np.stack([X, X]), Y, city, gradient=wrong),
        lambda: cusink.cost_matrix_adjoint(X, Y, np.ones((6, 5)), city, gradient=wrong),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.filterwarnings("error")
def test_the_trial_of_a_gradient_looks_at_no_values():
    def euclidean(x, y):
        return np.sqrt(((x[:, None] - y) ** 2).sum(axis=-1))

    def nan_where_points_coincide(x, y, G):
        pull = (G / euclidean(x, y))[..., None] * (x[:, None] - y)
        return pull.sum(axis=1), -pull.sum(axis=0)

    C = cusink.PointCloud(X, X.copy(), euclidean, gradient=nan_where_points_coincide)
    assert cusink.sinkhorn(None, None, C, eps=EPS).converged
    apart = cusink.PointCloud(X, Y, euclidean, gradient=nan_where_points_coincide)
    by_name = cusink.cost_matrix_adjoint(X, Y, np.ones((6, 5)), "euclidean").x
    grads = cusink.cost_matrix_adjoint(apart.x, apart.y, np.ones((6, 5)), euclidean, gradient=nan_where_points_coincide)
    np.testing.assert_allclose(grads.x, by_name, rtol=1e-12)


def test_a_limit_below_a_row_is_refused():
    with pytest.raises(ValueError, match=r"'memory_limit' must hold a row of costs .* 672 bytes; got 200"):
        cusink.sinkhorn(None, None, cusink.PointCloud(X, Y, "kl"), eps=1.0, memory_limit=200)


@pytest.mark.parametrize(
    "C",
    [
        cusink.PointCloud(X, Y, "kl"),
        cusink.PointCloud(X, Y, labels=LABELS, table=TABLE),
        cusink.PointCloud(X, Y, labels=LABELS, table=SQUARE + np.tri(4)),
        cusink.PointCloud(X, Y, lambda x, y: cdist(x, y) + x[:, :1]),
    ],
    ids=["kl", "a table that is not square", "a table that is not symmetric", "a function"],
)
def test_costs_that_are_not_symmetric_have_no_divergence(C):
    with pytest.raises(ValueError, match="'C' must be a symmetric cost within either side"):
        cusink.sinkhorn_divergence(None, None, C, eps=1.0)
    with pytest.raises(ValueError, match="value='divergence'"):
        cusink.distance_matrix(np.eye(6), np.eye(5), C, eps=1.0, value="divergence")


@pytest.mark.parametrize(
    ("x", "metric", "given"),
    [
        ([[0.0], [1e304]], "minkowski", {"p": 3}),
        (np.float32([[0.0], [1e20]]), "minkowski", {"p": 3, "power": 2}),
        ([[1e300, 1e-300]], "kl", {"power": 2}),
        ([[1e306, 1e306], [1e-306, 1e-306]], "kl", {}),
        ([[0.5, 1.0], [0.1, 3.0]], "haversine", {"radius": 1e304}),
    ],
)
def test_costs_beyond_the_range_are_refused(x, metric, given):
    y = np.flip(np.asarray(x), axis=-1) if metric == "kl" else None
    C = cusink.PointCloud(x, y, metric, **given)
    with pytest.raises(ValueError, match="'C' must hold finite costs; the largest exceed the range"):
        cusink.sinkhorn(None, None, C, eps=1.0)


def test_powers_of_parameters_beyond_the_range_are_refused():
    with pytest.raises(ValueError, match="'power' must be such that costs are finite; got 2 for distances of 1e"):
        cusink.PointCloud([[0.1, 0.2]], None, "haversine", power=2, radius=1e200).dense()
    for metric, given in (
        ("minkowski", {"p": 3}),
        ("euclidean", {}),
        ("euclidean", {"labels": [0, 0], "table": [[0]]}),
    ):
        C = cusink.PointCloud([[0.0], [1e200]], None, metric, power=2, **given)
        for call in (C.dense, C.mean):
            with pytest.raises(ValueError, match="'x' and 'y' must be so near that costs are finite in float64"):
                call()
    with pytest.raises(ValueError, match="'x' and 'y' must be so near that costs are finite in float32"):
        cusink.cost_matrix(np.float32([[0.0], [1e30]]), None, "minkowski", p=3, power=2)


def test_relative_entropy_of_close_points_keeps_its_digits():
    def exact(x, y):
        x, y = Fraction(x), Fraction(y)
        u = (x - y) / y  # y ((1 + u) log(1 + u) - u), by its series
        return float(y * sum((-u) ** k / (k * (k - 1)) for k in range(2, 12)))

    rng = np.random.default_rng(0)
    y = 10 ** rng.uniform(-5, 8, 200)
    x = y * (1 + rng.choice([-1, 1], 200) * 10 ** rng.uniform(-12, -2.2, 200))
    found = [cusink.cost_matrix([[p]], [[q]], "kl")[0, 0] for p, q in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, [exact(p, q) for p, q in zip(x, y, strict=True)], rtol=1e-12)
    gradient = cusink.cost_matrix_adjoint([[1e8 + 1]], [[1e8]], [[1.0]], "kl")
    np.testing.assert_allclose(gradient[0], np.log1p([[1e-8]]), rtol=1e-12)


IN_ANY_UNIT = {
    "euclidean": ("euclidean", {}),
    "root": ("euclidean", {"power": 0.5}),
    "mahalanobis": ("mahalanobis", {"factor": FACTOR}),
    "minkowski": ("minkowski", {"p": 2}),
    "minkowski 3": ("minkowski", {"p": 3}),
    "minkowski 16": ("minkowski", {"p": 16}),
    "labels, euclidean": ("euclidean", {"labels": LABELS, "table": np.zeros((3, 4))}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-200, 1e-170, 1e160, 1e200])
@pytest.mark.parametrize("name", IN_ANY_UNIT)
def test_distances_whose_squares_are_no_numbers_are_those_in_another_unit(name, size):
    metric, given = IN_ANY_UNIT[name]
    power, labels = given.get("power", 1), given.get("labels")
    x, y = size * X, size * Y
    want = cusink.PointCloud(X, Y, metric, **given).dense() * size**power
    for found in (cusink.cost_matrix(x, y, metric, **given), cusink.PointCloud(x, y, metric, **given).dense()):
        np.testing.assert_allclose(found, want, rtol=1e-13)
    np.testing.assert_allclose(cusink.PointCloud(x, y, metric, **given).mean(), want.mean(), rtol=1e-13)
    grad = np.random.default_rng(1).normal(size=want.shape)
    gradients = cusink.cost_matrix_adjoint(x, y, grad, metric, **given)
    for found, one in zip(gradients, cusink.cost_matrix_adjoint(X, Y, grad, metric, **given), strict=True):
        np.testing.assert_allclose(found, one * size ** (power - 1), rtol=1e-11)
    if labels is not None:
        found, one = (
            cusink.sinkhorn(None, None, cusink.PointCloud(s * X, s * Y, metric, **given), eps=s) for s in (size, 1)
        )
        np.testing.assert_allclose(found.cost, one.cost * size, rtol=1e-6)


def test_a_pair_keeps_its_distance_and_its_gradient_beside_others_far_from_it():
    x = np.array([[0.0, 0.0], [3e-170, 4e-170], [1.0, 1.0]])
    for metric, given in (("euclidean", {}), ("minkowski", {"p": 3}), ("minkowski", {"p": 16})):
        p = given.get("p", 2)
        assert cusink.cost_matrix(x, None, metric, **given)[0, 1] == pytest.approx(1e-170 * (3**p + 4**p) ** (1 / p))
        grad = np.zeros((3, 3))
        grad[1, 0] = 1
        found = cusink.cost_matrix_adjoint(x, x, grad, metric, **given)[0]
        np.testing.assert_allclose(found[1], np.array([3.0, 4.0]) ** (p - 1) * (3**p + 4**p) ** (1 / p - 1), rtol=1e-13)


@pytest.mark.parametrize(("p", "power"), [(16, 1), (16, 2), (3, 1), (1.5, 1)])
@pytest.mark.parametrize("size", [1e-11, 1e-60])
def test_second_derivatives_of_close_pairs_are_those_in_another_unit(p, power, size):
    # With one column that has weight the plan is known: products with the Hessian are those of the cost alone.
    x, y = np.array([[0.0, 1.0, 2.0]]), np.array([[1.0, -0.5, 0.25]])
    far = np.array([[1e3, 0.0, 0.0]])

    def product(size):
        C = cusink.PointCloud(size * x, np.concatenate([size * y, far]), "minkowski", p=p, power=power)
        result = cusink.sinkhorn(None, [1.0, 0.0], C, eps=1.0)
        return cusink.sinkhorn_hvp(result, dx=np.array([[1.0, 0.3, -2.0]]), grad_reg_cost=1.0).x

    np.testing.assert_allclose(product(size) * size ** (2 - power), product(1.0), rtol=1e-10)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-8])
def test_great_circles_between_antipodes_keep_their_digits(apart, batch):
    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(-1.2, 1.2, 5), rng.uniform(-3, 3, 5)], axis=-1)
    y = np.stack([-x[:, 0], x[:, 1] + np.pi], axis=-1) + apart * rng.normal(size=x.shape)
    high, wide = (x[:, None, 0] + y[:, 0]) / 2, (x[:, None, 1] - y[:, 1]) / 2
    level = np.cos(x[:, None, 0]) * np.cos(y[:, 0])
    rest = np.sin(high) ** 2 + level * np.cos(wide) ** 2  # of the way from the antipode
    want = np.pi - 2 * np.arcsin(np.sqrt(rest))
    by_latitude = np.sin(high) * np.cos(high) - np.sin(x[:, None, 0]) * np.cos(y[:, 0]) * np.cos(wide) ** 2
    slopes = (
        -np.stack([by_latitude, -level * np.sin(wide) * np.cos(wide)], axis=-1) / np.sqrt(rest * (1 - rest))[..., None]
    )
    x, y = (p[None] if batch else p for p in (x, y))
    np.testing.assert_allclose(cusink.cost_matrix(x, y, "haversine").reshape(5, 5), want, rtol=0, atol=2e-15)
    found = cusink.cost_matrix_adjoint(x, y, np.eye(5).reshape(*x.shape[:-1], 5), "haversine")[0]
    np.testing.assert_allclose(found.reshape(5, 2), slopes[range(5), range(5)], rtol=0, atol=1e-15 / apart)


def test_second_derivatives_near_antipodes_are_those_of_differences():
    x, y = np.array([[0.3, 0.4]]), np.array([[-0.3 + 2e-3, 0.4 + np.pi - 1e-3]])
    dx, dy = np.array([[0.7, -0.2]]), np.array([[-0.1, 0.5]])

    def gradient(t):
        return cusink.cost_matrix_adjoint(x + t * dx, y + t * dy, [[1.0]], "haversine", power=2)

    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, "haversine", power=2), eps=1.0)
    product = cusink.sinkhorn_hvp(result, dx=dx, dy=dy, grad_reg_cost=1.0)
    for side, found in enumerate((product.x, product.y)):
        np.testing.assert_allclose(found, slope(lambda t, side=side: gradient(t)[side], 1e-6), rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_second_derivatives_of_relative_entropy_beside_tiny_targets():
    x, y = np.array([[1.0, 2.0]]), np.array([[1e-200, 1.0]])
    dx, dy = np.array([[0.5, -1.0]]), np.array([[2e-200, 0.3]])
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, "kl"), eps=1.0)
    product = cusink.sinkhorn_hvp(result, dx=dx, dy=dy, grad_reg_cost=1.0)
    np.testing.assert_allclose(product.x, dx / x - dy / y, rtol=1e-12)
    np.testing.assert_allclose(product.y, (x * (dy / y) - dx) / y, rtol=1e-12)
