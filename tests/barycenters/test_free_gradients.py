"""Gradients through free barycenters against differences, and weights that are free against what is known of them."""

import numpy as np
import pytest
import reference

import cusink

SHARES = np.array([1.0, 2.0, 3.0])
SIZES = (4, 5, 3)
OFFSETS = np.cumsum([0, *SIZES])


def drawn(seed=0):
    """Points and weights of three clouds in the plane, points to start from, and their weights."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(size=(n, 2)) * 0.5 + rng.normal(size=2) for n in SIZES])
    masses = np.concatenate([rng.dirichlet(np.ones(n) * 3) for n in SIZES])
    return points, masses, rng.normal(size=(3, 2)), rng.dirichlet(np.ones(3) * 5)


def solved(points, masses, shares, a, eps, x, xp=np.asarray, **options):
    given = cusink.Measures(OFFSETS, xp(masses), xp(points))
    options = {"tol": 1e-8, "solver_tol": 1e-10, "max_iter": 1000} | options
    return cusink.free_barycenter(given, xp(shares), x=xp(x), a=xp(a), eps=eps, **options)


def directions(rng, masses, balanced):
    """How all inputs but the start move; masses stay where they have to."""
    of_points, of_masses, of_a = rng.normal(size=(len(masses), 2)), rng.normal(size=len(masses)), rng.normal(size=3)
    if balanced:
        of_a -= of_a.mean()
        of_masses -= np.repeat(np.add.reduceat(of_masses, OFFSETS[:-1]) / SIZES, SIZES)
    return of_points, 0.05 * of_masses, rng.normal(size=3), 0.05 * of_a, 0.3


@pytest.mark.parametrize("options", [{}, {"reach": 2.0, "debiased": True}], ids=["plain", "debiased with reach"])
def test_gradients_are_differences(options, xp):
    points, masses, x, a = drawn()
    rng = np.random.default_rng(1)
    eps, h = 0.2, 1e-3
    found = solved(points, masses, SHARES, a, eps, x, xp, **options)
    cotangent = rng.normal(size=(3, 2))
    grads = cusink.free_barycenter_adjoint(found, grad_points=xp(cotangent), tol=1e-9)
    assert grads.converged and xp.owns(grads.y)
    inputs, found_at = (points, masses, SHARES, a, eps), xp.numpy(found.points)
    along = directions(rng, masses, balanced="reach" not in options)
    wanted = []
    for step in (h, -h):
        moved = [v + step * d for v, d in zip(inputs, along, strict=True)]
        wanted.append((solved(*moved, found_at, **options).points * cotangent).sum())
    parts = [xp.numpy(v) for v in (grads.y, grads.b, grads.weights, grads.a, grads.eps)]
    given = sum((v * d).sum() for v, d in zip(parts, map(np.asarray, along), strict=True))
    assert given == pytest.approx((wanted[0] - wanted[1]) / (2 * h), rel=1e-4)
    assert abs(parts[2] @ SHARES) < 1e-12


def test_a_share_of_zero_has_a_gradient_too_and_points_without_weight_stay():
    points, masses, x, a = drawn(2)
    shares, a = np.array([1.0, 0.0, 2.0]), np.array([0.4, 0.6, 0.0])
    found = solved(points, masses, shares, a, 0.2, x)
    cotangent = np.random.default_rng(3).normal(size=(3, 2))
    grads = cusink.free_barycenter_adjoint(found, grad_points=cotangent, tol=1e-9)
    h = 1e-3
    more, twice = (
        (solved(points, masses, shares + [0, step, 0], a, 0.2, found.points).points * cotangent).sum()
        for step in (h, 2 * h)
    )
    start = (found.points * cotangent).sum()
    np.testing.assert_array_equal(found.points[2], x[2])
    assert grads.weights[1] == pytest.approx((4 * more - twice - 3 * start) / (2 * h), rel=1e-4)
    assert not grads.y[OFFSETS[1] : OFFSETS[2]].any() and not grads.b[OFFSETS[1] : OFFSETS[2]].any()


def test_float32_stays_and_what_is_not_at_rest_is_said():
    points, masses, x, a = (v.astype(np.float32) for v in drawn())
    given = cusink.Measures(OFFSETS, masses, points)
    with pytest.warns(cusink.ConvergenceWarning):
        early = cusink.free_barycenter(given, x=x, a=a, eps=0.7, max_iter=1, tol=1e-6)
    with pytest.warns(cusink.ConvergenceWarning, match="gradients are off by as much or more"):
        grads = cusink.free_barycenter_adjoint(early, grad_points=np.ones((3, 2), np.float32))
    assert {v.dtype for v in (grads.y, grads.b, grads.weights, grads.a, grads.eps)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"result": None}, TypeError, "'result' must be what cusink.free_barycenter returned"),
        ({"grad_points": None}, TypeError, r"'grad_points' must be an array of shape \(2, 1\)"),
        ({"grad_points": np.ones(2)}, ValueError, r"'grad_points' must have shape \(2, 1\)"),
        ({"grad_points": np.full((2, 1), np.inf)}, ValueError, "'grad_points' must be finite"),
        ({"tol": None}, TypeError, "'tol' must be a number"),
        ({"free_weights": True}, ValueError, "'result' must be of weights that are fixed"),
    ],
)
def test_bad_input_is_one_clear_error(change, kind, message):
    clouds = cusink.Measures.of([[0.0, 1.0]])
    free = change.pop("free_weights", False)
    result = cusink.free_barycenter(clouds, x=[0.2, 0.8], eps=0.1, free_weights=free)
    with pytest.raises(kind, match=message):
        cusink.free_barycenter_adjoint(**({"result": result, "grad_points": np.ones((2, 1))} | change))


def test_a_debiased_barycenter_has_one_reach():
    with pytest.raises(ValueError, match="'reach' must be one number for a debiased barycenter"):
        cusink.free_barycenter(cusink.Measures.of([[0.0]]), x=[0.0], eps=0.1, debiased=True, reach=(1.0, 2.0))


@pytest.mark.parametrize("reach", [None, 3.0])
def test_free_weights_are_those_of_the_one_cloud(reach, xp):
    """From even weights, at the points of the cloud; with `reach` from another mass too."""
    rng = np.random.default_rng(4)
    cloud, masses = 1.2 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]), rng.dirichlet(np.ones(4) * 4)
    given = cusink.Measures.of([xp(cloud)], [xp(masses)])
    start = np.full(4, 0.25 if reach is None else 0.3)
    options = {"eps": 0.3, "debiased": True, "free_weights": True}
    found = cusink.free_barycenter(given, x=xp(cloud), a=xp(start), reach=reach, **options)
    weights, points = xp.numpy(found.weights), xp.numpy(found.points)
    assert found.converged and 0 <= found.weights_gap <= 1e-3
    np.testing.assert_allclose(weights, masses, atol=0.02)
    left = [
        cusink.sinkhorn_divergence(w, masses, cusink.PointCloud(p, cloud), eps=0.3, reach=reach).divergence
        for w, p in ((start, cloud), (weights, points))
    ]
    assert left[1] < 0.02 * left[0]


def test_free_weights_are_within_their_gap_of_the_best():
    """By potentials of the oracle; the start is worse, and a weight of zero stays."""
    points, masses, x, a = drawn(5)
    x, a, eps = np.concatenate([x, x + 1, x[:1] - 1]), np.append(np.repeat(a, 2) / 2, 0.0), 0.1
    options = {"tol": 1e-2, "solver_tol": 1e-8, "max_iter": 100}
    found = solved(points, masses, SHARES, a, eps, x, free_weights=True, **options)
    fixed = solved(points, masses, SHARES, a, eps, x, **options)
    parts = [slice(*ends) for ends in zip(OFFSETS, OFFSETS[1:], strict=False)]
    shares = SHARES / SHARES.sum()

    def objective(w, p):
        some, value, slopes = w > 0, 0.0, 0.0
        for share, part in zip(shares, parts, strict=True):
            C = ((p[:, None] - points[part]) ** 2).sum(axis=-1)
            f, g = reference.solve(w[some], masses[part], C[some], eps)[:2]
            value += share * (w[some] @ f + masses[part] @ g)
            slopes = slopes + share * f
        return value, slopes

    value, slopes = objective(found.weights, found.points)
    centre = sum(share * masses[part] @ points[part] for share, part in zip(shares, parts, strict=True))
    squares = ((points - centre) ** 2).sum(axis=1)
    unit = sum(share * masses[part] @ squares[part] for share, part in zip(shares, parts, strict=True))
    gap = found.weights[found.weights > 0] @ slopes - slopes.min()
    assert found.converged and found.weights[-1] == 0 and found.weights.sum() == pytest.approx(1)
    assert found.weights_gap == pytest.approx(gap / unit, abs=1e-5)
    assert value < 0.99 * objective(a, fixed.points)[0]
