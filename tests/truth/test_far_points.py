"""Clouds with points far from the others, with weight or without: as the dense cost in float64 has it."""

import numpy as np
import pytest
import reference
from truth.claims import (
    assert_claims_hold,
    assert_values,
    attempt,
    divergence,
    gradient,
    of_one_mass,
    optimum,
    unbalanced,
)

import cusink

EPS = 0.02
METHODS = ["auto", "log", "scaling"]


def distances(x, y, metric="sqeuclidean"):
    """Return costs in float64, differences first."""
    between = np.asarray(x, np.float64)[:, None] - np.asarray(y, np.float64)[None]
    if metric == "cityblock":
        return np.abs(between).sum(axis=2)
    squared = (between**2).sum(axis=2)
    return squared if metric == "sqeuclidean" else np.sqrt(squared)


def padded(pad, n=5, d=2, dtype="float32", seed=0):
    """Return clouds whose last point is (pad, pad, ...) of weight 0, and the weights."""
    rng = np.random.default_rng(seed)
    x, y = (np.vstack([rng.random((n, d)), np.full((1, d), pad)]).astype(dtype) for _ in range(2))
    a, b = (np.r_[rng.dirichlet(np.full(n, 5.0)), 0.0].astype(dtype) for _ in range(2))
    return x, y, a, b


def towns(apart, n=8, d=2, dtype="float32", outlier=False, seed=1):
    """Return two clouds of two towns each, `apart` from each other, all points with weight."""
    rng = np.random.default_rng(seed)
    shift = np.repeat([0.0, apart], n)[:, None]
    x, y = (rng.random((2 * n, d)) + shift for _ in range(2))
    if outlier:
        far = np.eye(d)[:1] * apart
        x, y = np.vstack([x, far]), np.vstack([y, far])
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pad", [-9999.0, 1e3, 1e5, 1e12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_far_point_without_weight_changes_nothing(dtype, pad, method):
    x, y, a, b = padded(pad, dtype=dtype)
    outcome = attempt(cusink.sinkhorn, a, b, cusink.PointCloud(x, y), eps=EPS, method=method)
    assert_claims_hold(outcome.result, a, b, distances(x, y), EPS, flags=outcome.flags)
    want = optimum(a[:-1], b[:-1], distances(x[:-1], y[:-1]), EPS)
    rtol = 1e-5 if dtype == "float32" else 2e-6
    assert_values(outcome, rtol, **want._asdict())


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize("n", [40, 300])
def test_a_far_point_without_weight_in_any_metric(n, d, metric):
    x, y, a, b = padded(1e4, n, d)
    eps = EPS * d
    outcome = attempt(cusink.sinkhorn, a, b, cusink.PointCloud(x, y, metric), eps=eps)
    # The cost is the one of the float32 points to some roundings of these, wherever the far point lies.
    near = of_one_mass(a[:-1], b[:-1])
    plain = attempt(cusink.sinkhorn, *near, distances(x[:-1], y[:-1], metric), eps=eps)
    assert_values(outcome, 2e-5, cost=plain.result.cost, reg_cost=plain.result.reg_cost)
    marginal = np.asarray(outcome.result.plan(), np.float64).sum(axis=0)
    assert np.abs(marginal - b).sum() <= float(outcome.result.error) + 1e-6


def test_the_report_on_five_points():
    x = np.vstack([np.random.default_rng(3).random((5, 2)), [[-9999.0, -9999.0]]]).astype(np.float32)
    a = np.array([0.2] * 5 + [0], np.float32)
    result = cusink.sinkhorn(a, a, cusink.PointCloud(x), eps=EPS, max_iter=10_000)
    np.testing.assert_allclose(result.plan().sum(axis=1), a, atol=1e-6)


@pytest.mark.parametrize("n", [5, 300])
@pytest.mark.parametrize("pad", [1e3, 1e5])
def test_gradients_by_points_beside_a_far_one(pad, n):
    x, y, a, b = padded(pad, n)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=EPS), grad_reg_cost=1.0)
    near = [*of_one_mass(a[:-1], b[:-1]), *(np.asarray(v, np.float64) for v in (x[:-1], y[:-1]))]
    result = cusink.sinkhorn(*near[:2], distances(*near[2:]), eps=EPS)
    P = np.asarray(result.plan())
    for found, weights, other, plan in ((grads.x, near[2], near[3], P), (grads.y, near[3], near[2], P.T)):
        want = 2 * (plan.sum(axis=1)[:, None] * weights - plan @ other)
        np.testing.assert_allclose(found[:-1], want, atol=1e-4 * np.abs(want).max())
        np.testing.assert_array_equal(found[-1], 0)


@pytest.mark.parametrize("reach", [1.0, (0.5, None)])
@pytest.mark.parametrize("pad", [1e3, 1e5])
def test_reach_beside_a_far_point(pad, reach):
    x, y, a, b = padded(pad)
    prices = tuple(np.inf if rho is None else rho for rho in (reach if isinstance(reach, tuple) else (reach, reach)))
    outcome = attempt(cusink.sinkhorn, a, b, cusink.PointCloud(x, y), eps=EPS, reach=reach)
    assert_claims_hold(outcome.result, a, b, distances(x, y), EPS, reach=prices, flags=outcome.flags)
    plan, value = unbalanced(a, b, distances(x, y), EPS, prices)
    assert_values(outcome, 1e-5, cost=(plan * distances(x, y)).sum(), reg_cost=value)


@pytest.mark.parametrize("pad", [1e3, 1e5])
def test_a_batch_of_clouds_with_a_far_point(pad):
    many = [padded(pad, seed=seed) for seed in range(3)]
    x, y, a, b = (np.stack(part) for part in zip(*many, strict=True))
    C = np.stack([distances(*pair) for pair in zip(x, y, strict=True)])
    outcome = attempt(cusink.sinkhorn, a, b, cusink.PointCloud(x, y), eps=EPS)
    assert_claims_hold(outcome.result, a, b, C, EPS, flags=outcome.flags)
    want = [optimum(a[k][:-1], b[k][:-1], C[k][:-1, :-1], EPS).cost for k in range(3)]
    assert_values(outcome, 1e-5, cost=want)


@pytest.mark.parametrize("pad", [1e3, 1e5])
def test_divergence_beside_a_far_point(pad):
    x, _, a, b = padded(pad)
    found = attempt(cusink.sinkhorn_divergence, a, b, cusink.PointCloud(x), eps=EPS)
    np.testing.assert_allclose(
        found.result.divergence, divergence(a[:-1], b[:-1], distances(x[:-1], x[:-1]), EPS), rtol=1e-4
    )
    zero = attempt(cusink.sinkhorn_divergence, a, a, cusink.PointCloud(x), eps=EPS)
    assert 0 <= zero.result.divergence <= 1e-7


@pytest.mark.parametrize("one_cloud", [False, True])
@pytest.mark.parametrize("pad", [1e3, 1e5, 1e12])
def test_divergence_beside_far_points_of_one_side(pad, one_cloud):
    """Each measure is compared with itself between the points that have weight there."""
    x, y, a, b = padded(pad)
    if one_cloud:  # the far points of either measure have weight in neither
        x = np.vstack([x, y])
        a, b = np.r_[a, np.zeros_like(b)], np.r_[np.zeros_like(a), b]
        cloud, near = cusink.PointCloud(x), (x[:5], x[6:11])
    else:
        y[-1] *= -1
        cloud, near = cusink.PointCloud(x, y), (x[:-1], y[:-1])
    found = attempt(cusink.sinkhorn_divergence, a, b, cloud, eps=EPS)
    assert not found.flags
    p, q = of_one_mass(a[a > 0], b[b > 0])
    parts = (1.0, p, q, *near), (-0.5, p, p, near[0], near[0]), (-0.5, q, q, near[1], near[1])
    want = sum(sign * optimum(v, w, distances(s, t), EPS).reg_cost for sign, v, w, s, t in parts)
    np.testing.assert_allclose(found.result.divergence, want, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize(("apart", "dtype"), [(100.0, "float32"), (1000.0, "float32"), (1e6, "float64")])
def test_two_towns_far_apart(apart, dtype, outlier, method):
    x, y = towns(apart, dtype=dtype, outlier=outlier)
    a = np.full(len(x), 1 / len(x), dtype)
    C = distances(x, y)
    outcome = attempt(cusink.sinkhorn, a, a, cusink.PointCloud(x, y), eps=EPS, method=method)
    assert_claims_hold(outcome.result, a, a, C, EPS, flags=outcome.flags)
    solution = reference.solve(np.asarray(a, float), np.asarray(a, float), np.where(C > 100, np.inf, C), EPS)
    P = reference.plan(a.astype(float), a.astype(float), np.where(C > 100, np.inf, C), EPS, solution.f, solution.g)
    want = reference.values(P, a, a, np.where(C > 100, np.inf, C), EPS)
    may_flag = method == "scaling" or apart == 1e6  # costs of 5e13 eps
    assert_values(outcome, 2e-5, may_flag=may_flag, cost=want.cost, reg_cost=want.reg_cost)


@pytest.mark.parametrize(("apart", "dtype"), [(1000.0, "float32"), (1e6, "float64")])
def test_two_towns_with_weights_of_their_own(apart, dtype):
    """Each town has the same mass on both sides, so that the pairs between them are never used."""
    x, y = towns(apart, dtype=dtype)
    rng = np.random.default_rng(4)
    a, b = (
        np.r_[0.3 * rng.dirichlet(np.full(8, 9.0)), 0.7 * rng.dirichlet(np.full(8, 9.0))].astype(dtype) for _ in "ab"
    )
    b = np.r_[b[:8] * (a[:8].sum() / b[:8].sum()), b[8:] * (a[8:].sum() / b[8:].sum())].astype(dtype)
    C = distances(x, y)
    outcome = attempt(cusink.sinkhorn, a, b, cusink.PointCloud(x, y), eps=EPS)
    assert_claims_hold(outcome.result, a, b, C, EPS, flags=outcome.flags)
    # Rounding of the weights leaves either town a surplus of some roundings: at this distance it costs the most.
    town = [slice(0, 8), slice(8, 16)]
    want = sum(optimum(a[k], b[k], C[k, k], EPS).cost for k in town)
    surplus = abs(float(a[:8].sum(dtype=float) - b[:8].sum(dtype=float)))
    slack = (surplus + 2e-6) * C.max() + 1e-4
    assert outcome.result.converged and abs(float(outcome.result.cost) - want) <= slack


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_documents_with_a_far_point(dtype):
    rng = np.random.default_rng(5)
    clouds = [rng.random((4, 2)).astype(dtype) for _ in range(4)]
    weights = [rng.dirichlet(np.full(4, 5.0)).astype(dtype) for _ in range(4)]
    far = np.array([[1e4, 1e4]], dtype)
    measures = cusink.Measures.of(
        [np.vstack([c, far]) for c in clouds], [np.r_[w, 0].astype(dtype) for w in weights]
    ).normalised()
    found = attempt(cusink.distance_matrix, measures, None, "sqeuclidean", eps=EPS, value="reg_cost")
    want = [
        [
            optimum(p / p.sum(dtype=float), q / q.sum(dtype=float), distances(x, y), EPS).reg_cost
            for y, q in zip(clouds, weights, strict=True)
        ]
        for x, p in zip(clouds, weights, strict=True)
    ]
    np.testing.assert_allclose(found.result, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_documents_far_from_each_other(dtype):
    """A cost of a million between two documents: the digits within each are those of its own distances."""
    rng = np.random.default_rng(6)
    clouds = [(rng.random((5, 2)) + shift).astype(dtype) for shift in (0, 0, 1000, 1000)]
    found = attempt(cusink.distance_matrix, cusink.Measures.of(clouds), None, "sqeuclidean", eps=EPS)
    uniform = np.full(5, 0.2)
    want = np.array([[optimum(uniform, uniform, distances(x, y), EPS).cost for y in clouds] for x in clouds])
    np.testing.assert_allclose(found.result, want, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize(("spacing", "dtype"), [(1e3, "float32"), (1e5, "float32"), (1e7, "float64")])
def test_a_grid_with_far_rows(spacing, dtype, method):
    """Rows of a grid so far from each other that all mass stays in its row."""
    rng = np.random.default_rng(7)
    a, b = (np.concatenate([part * rng.dirichlet(np.full(4, 5.0)) for part in (0.25, 0.25, 0.5)]) for _ in "ab")
    a, b = a.astype(dtype), b.astype(dtype)
    grid = cusink.Grid((3, 4), spacing=(spacing, 0.25))
    C = np.asarray(grid.dense(), np.float64)
    outcome = attempt(cusink.sinkhorn, a, b, grid, eps=EPS, method=method)
    assert_claims_hold(outcome.result, a, b, C, EPS, flags=outcome.flags)
    assert outcome.result.converged
    inside = np.where(C > 10, np.inf, C)
    rows = [slice(k, k + 4) for k in (0, 4, 8)]
    want = sum(optimum(a[k], b[k], inside[k, k], EPS).cost for k in rows)
    assert abs(float(outcome.result.cost) - want) <= 4 * float(outcome.result.error) * spacing**2 + 2e-5


def test_gradients_of_two_towns():
    x, y = towns(1000.0, n=4)
    a = np.full(8, 1 / 8, np.float32)
    grads = cusink.sinkhorn_adjoint(
        cusink.sinkhorn(a, a, cusink.PointCloud(x, y), eps=EPS, max_iter=10_000), grad_reg_cost=1.0
    )
    C = distances(x, y)
    wide = np.where(C > 100, np.inf, C)
    solution = reference.solve(a, a, wide, EPS)
    P = reference.plan(a.astype(float), a.astype(float), wide, EPS, solution.f, solution.g)
    want = 2 * (P[:, :, None] * (x.astype(float)[:, None] - y.astype(float)[None])).sum(axis=1)
    np.testing.assert_allclose(grads.x, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_by_weights_beside_a_far_point(dtype):
    """The far point has a gradient of its own, in proportion to its distance; the mean is taken over all points."""
    x, y, a, b = padded(1e3, dtype=dtype)
    near = distances(x[:-1], y[:-1])
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=EPS), grad_reg_cost=1.0)
    p, q = of_one_mass(a[:-1], b[:-1])
    want = gradient(lambda w: optimum(w, q, near, EPS).reg_cost, p)
    found = np.asarray(grads.a, np.float64)
    # float32 has no more digits beside a mean of a sixth of the gradient by the far point.
    digits = np.finfo(dtype).eps * np.abs(found).max()
    np.testing.assert_allclose(found[:-1] - found[:-1].mean(), want, atol=1e-4 + digits)
    assert np.abs(found.sum()) <= 8 * digits
