"""Pairs of clouds of unequal sizes in every metric that has a name: the optimum of written-out costs, and one pair."""

import numpy as np
import pytest
import reference
from scipy.spatial.distance import cdist

import cusink
from cusink import Metric

EPS = 0.1
SIZES = [(4, 7), (9, 3), (5, 5), (12, 6)]
FACTOR = np.array([[1.0, 0.3, -0.5], [-0.4, 0.8, 0.2]])


def arc(x, y):
    """Return angles between points on the sphere by their unit vectors."""
    u, v = (np.stack([np.cos(p) * np.cos(q), np.cos(p) * np.sin(q), np.sin(p)], axis=1) for p, q in (x.T, y.T))
    return 2 * np.arcsin(np.linalg.norm(u[:, None] - v, axis=2) / 2)


METRICS = [
    ("hellinger", {}, lambda x, y: cdist(np.sqrt(x), np.sqrt(y)) / np.sqrt(2)),
    ("minkowski", {}, cdist),
    ("minkowski", {"p": 3, "power": 3}, lambda x, y: cdist(x, y, "minkowski", p=3) ** 3),
    ("minkowski", {"p": 1.5}, lambda x, y: cdist(x, y, "minkowski", p=1.5)),
    ("mahalanobis", {"factor": FACTOR, "power": 2}, lambda x, y: cdist(x @ FACTOR, y @ FACTOR) ** 2),
    ("kl", {}, lambda x, y: (x[:, None] * np.log(x[:, None] / y) - x[:, None] + y).sum(axis=2)),
    ("haversine", {"radius": 2.0}, lambda x, y: 2 * arc(x, y)),
    ("euclidean", {"power": 1.5}, lambda x, y: cdist(x, y) ** 1.5),
    ("sqeuclidean", {"power": 2}, lambda x, y: cdist(x, y) ** 4),
    ("cityblock", {"power": 2}, lambda x, y: cdist(x, y, "cityblock") ** 2),
    ("cosine", {"power": 0.5}, lambda x, y: cdist(x, y, "cosine") ** 0.5),
]
NAMES = ["-".join(map(str, (name, *(o for o in options if o != "factor")))) for name, options, _ in METRICS]


def drawn(dtype=np.float64, mass=1.0):
    """Return clouds and weights, of which pair 3 has a point without weight and pair 2 is one measure twice."""
    rng = np.random.default_rng(3)
    x, y = ([(rng.random((s[side], 2)) + 0.1 + side / 8).astype(dtype) for s in SIZES] for side in (0, 1))
    a, b = ([rng.dirichlet(np.full(s[side], 3.0)).astype(dtype) for s in SIZES] for side in (0, 1))
    b[3][2], b[3][3] = 0, b[3][2] + b[3][3]
    y[2], b[2] = x[2].copy(), a[2].copy()
    return x, y, a, [dtype(mass) * w for w in b]


def measures(x, y, a, b):
    return cusink.Measures.of(x, a), cusink.Measures.of(y, b)


def alone(given, name, options, solve, **how):
    return [
        solve(p, q, cusink.PointCloud(u, v, name, **options), eps=EPS, **how) for u, v, p, q in zip(*given, strict=True)
    ]


@pytest.mark.parametrize(("name", "options", "costs"), METRICS, ids=NAMES)
def test_costs_are_those_of_the_optimum(name, options, costs):
    given = drawn()
    found = cusink.sinkhorn(*measures(*given), Metric(name, **options), eps=EPS, tol=1e-10, max_iter=5000)
    for k, (x, y, a, b) in enumerate(zip(*given, strict=True)):
        np.testing.assert_allclose(found.cost[k], reference.optimum(a, b, costs(x, y), EPS)[0], atol=1e-7)
    if not options:
        by_name = cusink.sinkhorn(*measures(*given), name, eps=EPS, tol=1e-10, max_iter=5000)
        np.testing.assert_array_equal(by_name.cost, found.cost)


@pytest.mark.parametrize(("reach", "dtype"), [(None, np.float64), ((0.5, 0.3), np.float64), (None, np.float32)])
@pytest.mark.parametrize("solve", [cusink.sinkhorn, cusink.sinkhorn_divergence])
@pytest.mark.parametrize(("name", "options", "costs"), METRICS, ids=NAMES)
def test_values_and_gradients_are_those_of_single_solves_in_float64(name, options, costs, solve, reach, dtype):
    if name == "kl" and solve is cusink.sinkhorn_divergence:
        with pytest.raises(ValueError, match="'C' must be a symmetric cost within either side.*got 'kl'"):
            solve(*measures(*drawn()), "kl", eps=EPS)
        return
    single, given = dtype == np.float32, drawn(dtype, 1.0 if reach is None else 1.5)
    how, value = {"reach": reach, "max_iter": 5000}, "cost" if solve is cusink.sinkhorn else "divergence"
    # The slope of a cost by a light weight moves more with the tolerance than a divergence's.
    tol = (1e-7 if value == "cost" else 1e-6) if single else 1e-12
    pairs = solve(*measures(*given), Metric(name, **options), eps=EPS, tol=tol, **how)
    exact = tuple([p.astype(np.float64) for p in side] for side in given)
    if single:  # whose sums of weights differ by rounding
        exact = (*exact[:2], *([w / w.sum() for w in side] for side in exact[2:]))
    each = alone(exact, name, options, solve, tol=1e-12, **how)
    near = {"rtol": 1e-4, "atol": 1e-4} if single else {"rtol": 1e-9, "atol": 1e-9}
    assert pairs.converged.all() and getattr(pairs, value).dtype == dtype and pairs.f.shape == (30,)
    np.testing.assert_allclose(getattr(pairs, value), [getattr(one, value) for one in each], **near)
    if value == "cost":
        pulled = cusink.sinkhorn_adjoint(pairs, grad_cost=1.0, tol=1e-6 if single else 1e-12)
        theirs = [cusink.sinkhorn_adjoint(one, grad_cost=1.0, tol=1e-12) for one in each]
    else:
        assert reach is not None or pairs.divergence[2] == 0
        pulled = cusink.sinkhorn_divergence_adjoint(pairs)
        theirs = list(map(cusink.sinkhorn_divergence_adjoint, each))
    loose = {"rtol": 2e-3, "atol": 2e-3} if single else {"rtol": 1e-8, "atol": 1e-8}
    for part in "xyab":
        np.testing.assert_allclose(
            getattr(pulled, part), np.concatenate([getattr(one, part) for one in theirs]), **loose
        )
    np.testing.assert_allclose(pulled.eps, [one.eps for one in theirs], **loose)
    assert set(pulled.metric) == {name for name in options if name == "factor"}
    for parameter, slope in pulled.metric.items():
        np.testing.assert_allclose(slope, sum(one.metric[parameter] for one in theirs), **loose)
    np.testing.assert_allclose(getattr(pairs[3], value), getattr(each[3], value), **near)


@pytest.mark.parametrize("value", ["cost", "divergence"])
@pytest.mark.parametrize("metric", [Metric("minkowski", p=3), Metric("mahalanobis", factor=FACTOR), "hellinger"])
def test_matrices_and_searches_take_metrics_too(metric, value, tmp_path):
    x, y, a, b = drawn()
    A, B = measures(x, y, a, b)
    options = {"eps": EPS, "value": value, "tol": 1e-10}
    solve = cusink.sinkhorn if value == "cost" else cusink.sinkhorn_divergence
    known = metric if isinstance(metric, Metric) else Metric(metric)
    words = {"p": known.p, "factor": known.factor}
    want = np.array(
        [
            [getattr(solve(p, q, cusink.PointCloud(u, v, known.name, **words), eps=EPS, tol=1e-10), value)]
            for u, p in zip(x, a, strict=True)
            for v, q in zip(y, b, strict=True)
        ]
    ).reshape(4, 4)
    np.testing.assert_allclose(cusink.distance_matrix(A, B, metric, **options), want, atol=1e-9)
    np.testing.assert_allclose(cusink.nearest(A, B, metric, k=4, **options)[0], np.sort(want, axis=1), atol=1e-9)
    index = cusink.Index(B[:2], metric, **options)
    index.add(B[2:])
    index.save(tmp_path / "index")
    for one in (index, cusink.Index.load(tmp_path / "index")):
        np.testing.assert_allclose(one.search(A, 4)[0], np.sort(want, axis=1), atol=1e-9)


def test_a_metric_is_checked_where_it_is_made():
    assert repr(Metric("minkowski", p=3, power=3)) == "Metric('minkowski', power=3, p=3)"
    assert repr(Metric("mahalanobis", factor=FACTOR)) == "Metric('mahalanobis', factor=<2x3>)"
    for wrong, error, message in (
        (("chebyshev", {}), ValueError, "'name' must be one of 'sqeuclidean'"),
        ((cdist, {}), TypeError, "A function|'name' must be one of"),
        (("euclidean", {"p": 3}), ValueError, "'p' must be None unless 'metric' is 'minkowski'"),
        (("minkowski", {"p": 20}), ValueError, "'p' must be at most 16"),
        (("kl", {"power": 0}), ValueError, "'power' must be positive"),
        (("mahalanobis", {}), ValueError, "'factor' must be given"),
        (("mahalanobis", {"factor": np.ones(3)}), ValueError, "'factor' must have two axes"),
        (("mahalanobis", {"factor": [[np.nan]]}), ValueError, "'factor' must be finite"),
    ):
        with pytest.raises(error, match=message):
            Metric(wrong[0], **wrong[1])


def test_what_no_metric_takes_is_refused_before_any_work():
    A, B = measures(*drawn())
    minus = cusink.Measures(A.offsets, A.weights, -A.points)
    for given, error, message in (
        ((A, B, "mahalanobis"), ValueError, r"cusink.Metric\('mahalanobis', factor=L\)"),
        ((A, B, cdist), TypeError, "or a cusink.Metric, for cusink.Measures; got .*A function goes with"),
        ((A, B, Metric("mahalanobis", factor=np.eye(3))), ValueError, "a row for each of the 2 coordinates"),
        ((minus, B, "hellinger"), ValueError, "'a.points' must be non-negative for metric 'hellinger'"),
        ((B, minus, "kl"), ValueError, "'b.points' must be non-negative for metric 'kl'"),
    ):
        with pytest.raises(error, match=message):
            cusink.sinkhorn(*given, eps=EPS)
    with pytest.raises(ValueError, match="within either side.*value='reg_cost'"):
        cusink.distance_matrix(A, B, "kl", eps=EPS, value="divergence")
    with pytest.raises(ValueError, match="'A.points' must be non-negative for metric 'kl'"):
        cusink.distance_matrix(minus, B, "kl", eps=EPS)
    with pytest.raises(TypeError, match="got the metric .*cusink.Measures"):
        cusink.distance_matrix(np.eye(2), np.eye(2), Metric("kl"), eps=EPS)
    with pytest.raises(ValueError, match="'eps' must be a number in retrieval of cusink.Measures"):
        cusink.distance_matrix(A, B, Metric("kl"), eps=cusink.RelativeEps(0.1))


def test_a_factor_that_is_written_to_later_changes_nothing():
    A, B = measures(*drawn())
    factor = FACTOR.copy()
    metric = Metric("mahalanobis", factor=factor)
    pairs, index = cusink.sinkhorn(A, B, metric, eps=EPS), cusink.Index(B, metric, eps=EPS)
    before = cusink.sinkhorn_adjoint(pairs, grad_cost=1.0).x, index.search(A, 2)[0]
    factor[:] = 7
    np.testing.assert_array_equal(cusink.sinkhorn_adjoint(pairs, grad_cost=1.0).x, before[0])
    np.testing.assert_array_equal(index.search(A, 2)[0], before[1])
