"""Derivatives between clouds that are far from each other: the plan does not see the distance, nor do they.

Squared distances of a cloud that is moved as a whole change by rows and columns. Offsets are numbers of few bits,
so that coordinates are exact.
"""

import numpy as np
import pytest

import cusink

# The tolerance is below what rounding leaves of exponents of 1e9.
pytestmark = pytest.mark.filterwarnings("ignore::cusink.errors.ConvergenceWarning")

RNG = np.random.default_rng(3)
N = 24
X, Y, NEW = (np.round(RNG.normal(size=(n, 2)) * 64) / 64 for n in (N, N, 5))
DX, DY, G = RNG.normal(size=(3, N, 2))
DA = RNG.normal(size=N) / N
DA -= DA.mean()
OFFSET = np.array([1.0, -0.5])
FAR = {np.float64: (1e3, 16384.0), np.float32: (64.0, 1024.0)}
EPS = 0.5


def clouds(dtype, off, side=1):
    """Return both clouds, one of them moved."""
    moved = [X, Y]
    moved[side] = moved[side] + off * OFFSET
    return cusink.PointCloud(*(p.astype(dtype) for p in moved))


def solve(dtype, off, side=1, **options):
    return cusink.sinkhorn(None, None, clouds(dtype, off, side), eps=EPS, tol=1e-9, max_iter=20_000, **options)


def cast(dtype, *arrays):
    return [x.astype(dtype) for x in arrays]


def of_map(dtype, result):
    points = result.problem.C.user_points(1)[0]
    found = cusink.barycentric_map_adjoint(result, points, *cast(dtype, G), tol=1e-9)
    return found.x, found.y, found.a, found.b, found.eps, found.values


def of_hessian(dtype, result, weights=False, **value):
    dx, dy, da = cast(dtype, DX, DY, DA)
    moves = {"da": da} if weights else {"dx": dx, "dy": dy}
    found = cusink.sinkhorn_hvp(result, **value, **moves, tol=1e-9)
    return found.x, found.y, found.eps


def of_new_points(dtype, result, cotangent):
    there = result.at(*cast(dtype, NEW))
    found = cusink.extension_adjoint(there, **{cotangent: np.ones((5, 2), dtype)})
    return found.points, found.potential, found.weights  # partners move by themselves, with potentials that stay


DERIVATIVES = {
    "map": of_map,
    "hessian of reg_cost": lambda dtype, r: of_hessian(dtype, r, grad_reg_cost=1.0),
    "hessian of cost": lambda dtype, r: of_hessian(dtype, r, grad_cost=1.0),
    "map at new points": lambda dtype, r: of_new_points(dtype, r, "grad_map"),
    "plan": lambda dtype, r: [
        getattr(cusink.sinkhorn_adjoint(r, grad_plan=np.outer(G[:, 0], G[:, 1]).astype(dtype), tol=1e-9), name)
        for name in ("x", "y", "a", "eps")
    ],
}


# With the first cloud new points would have to move, too.
SIDES = [(name, side) for name in DERIVATIVES for side in (0, 1) if (name, side) != ("map at new points", 0)]


@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize(("name", "side"), SIDES)
def test_the_distance_does_not_matter(name, side, dtype):
    near = DERIVATIVES[name](np.float64, solve(np.float64, 0.0))
    for off in FAR[dtype]:
        far = DERIVATIVES[name](dtype, solve(dtype, off, side))
        for found, right in zip(far, near, strict=True):
            scale = np.abs(right).max()
            np.testing.assert_allclose(found, right, rtol=0, atol=(1e-5 if dtype == np.float64 else 1e-3) * scale)


@pytest.mark.parametrize("off", FAR[np.float64])
def test_gradients_by_points_that_move_with_weights_grow_with_the_distance(off):
    """By x_i they are ``2 sum_j P_ij (x_i - y_j)``: a weight that moves takes the distance along."""
    near, far = (of_hessian(np.float64, solve(np.float64, o), weights=True, grad_reg_cost=1.0) for o in (0.0, off))
    np.testing.assert_allclose(far[0] + 2 * off * DA[:, None] * OFFSET, near[0], atol=1e-6)
    np.testing.assert_allclose(far[1], near[1], atol=1e-5)


@pytest.mark.parametrize("off", FAR[np.float64])
def test_potentials_move_as_the_costs_between_do(off):
    """``dC_ij = 2 (x_i - y_j) (dx_i - dy_j)``; what goes with the distance are rows and columns."""
    near, far = (cusink.sinkhorn_jvp(solve(np.float64, o), dx=DX, dy=DY, tol=1e-9) for o in (0.0, off))
    rows, columns = -2 * off * DX @ OFFSET, 2 * off * DY @ OFFSET
    lead = (rows.sum() - columns.sum()) / (2 * N)  # of the gauge
    np.testing.assert_allclose(far.f, near.f + rows - lead, rtol=1e-9, atol=1e-5)
    np.testing.assert_allclose(far.g, near.g + columns + lead, rtol=1e-9, atol=1e-5)
    want = float(near.reg_cost) + (rows.sum() + columns.sum()) / N
    assert float(far.reg_cost) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("batch", ["shared", "each"])
def test_batches_are_not_mixed(batch):
    """Problems that share clouds, and problems of which only one has its clouds far apart."""
    off = 16384.0
    x, y = (X, Y + off * OFFSET) if batch == "shared" else (np.stack([X, X]), np.stack([Y, Y + off * OFFSET]))
    a = RNG.dirichlet(np.ones(N), 2)
    result = cusink.sinkhorn(a, a[::-1].copy(), cusink.PointCloud(x, y), eps=EPS, tol=1e-9, max_iter=20_000)
    found = cusink.sinkhorn_hvp(result, grad_reg_cost=np.array([1.0, 2.0]), dx=DX, tol=1e-9)
    total = 0
    for k, weight in enumerate((1.0, 2.0)):
        single = cusink.sinkhorn(a[k], a[1 - k], cusink.PointCloud(X, Y), eps=EPS, tol=1e-9, max_iter=20_000)
        one = cusink.sinkhorn_hvp(single, grad_reg_cost=weight, dx=DX, tol=1e-9)
        if batch == "each":
            np.testing.assert_allclose(found.x[k], one.x, atol=1e-5)
            np.testing.assert_allclose(found.y[k], one.y, atol=1e-5)
        total = total + one.x
    if batch == "shared":
        np.testing.assert_allclose(found.x, total, atol=1e-5)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("lone", [1e6, 1e8])
def test_padding_does_not_hide_the_distance(lone, side):
    """A point without weight that is far from both clouds must not make them seem large."""
    near = cusink.sinkhorn_hvp(solve(np.float64, 0.0), grad_reg_cost=1.0, dx=DX, tol=1e-9)
    points, weights = [X, Y + 16384.0 * OFFSET], [None, None]
    points[side] = np.vstack([points[side], [[lone, lone]]])
    weights[side] = np.append(np.full(N, 1 / N), 0.0)
    result = cusink.sinkhorn(*weights, cusink.PointCloud(*points), eps=EPS, tol=1e-9, max_iter=20_000)
    dx = np.vstack([DX, np.zeros((len(points[0]) - N, 2))])
    found = cusink.sinkhorn_hvp(result, grad_reg_cost=1.0, dx=dx, tol=1e-9)
    np.testing.assert_allclose(found.x[:N], near.x, atol=1e-5)
    np.testing.assert_allclose(found.y[:N], near.y, atol=1e-5)


@pytest.mark.parametrize("eps", [0.1, 1e-3])
@pytest.mark.parametrize("off", [1e4, 1e6, 1e7])
def test_shares_at_far_points_add_up_to_one(off, eps):
    """Exponents of 1e15 are off by a tenth, all in a row alike: the field is ``2 (x - map)``."""
    result = cusink.sinkhorn(None, None, cusink.PointCloud(X[:3], Y[:3]), eps=eps, max_iter=20_000)
    point = np.array([[off, off / 3]])
    there = result.at(point)
    np.testing.assert_allclose(there.gradient(), 2 * (point - there.map()), rtol=1e-12)
    found = cusink.extension_adjoint(there, grad_map=np.ones((1, 2)))
    np.testing.assert_allclose(found.partners.sum(axis=0), [1, 1], atol=1e-15 * off / eps)
    np.testing.assert_allclose(found.points, 0, atol=1e-9)  # the nearest partner has all
    slope = cusink.extension_adjoint(there, grad_potential=np.ones(1))
    np.testing.assert_allclose(slope.points, there.gradient(), rtol=1e-12)


@pytest.mark.parametrize("large", [1e9, 1e12, 1e14])
def test_shares_of_bins_without_weight_add_up_to_one(large):
    C = np.array([[0.0, 1.0], [1.0, 0.0], [large, large]])
    result = cusink.sinkhorn([0.5, 0.5, 0.0], [0.5, 0.5], C, eps=0.1)
    found = cusink.barycentric_map_adjoint(result, np.array([0.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(found.values, [0.5, 0.5], rtol=1e-9)
