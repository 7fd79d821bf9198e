"""The facts that the derivative tests of OTT-JAX, GeomLoss and POT check; docs/migration.md says which is which.

The oracle is what peers differentiate: plain iterations in the log domain, recorded by PyTorch's autograd, in float64.
"""

import itertools

import numpy as np
import problems
import pytest
import reference

torch = pytest.importorskip("torch")

import cusink  # noqa: E402
from cusink import torch as bridge  # noqa: E402

TIGHT = {"tol": 1e-12, "max_iter": 50_000}
PRICES = [(None, None), (0.4, 0.1), (None, 0.3)]
WORDS = {"cost": "grad_cost", "reg_cost": "grad_reg_cost"}


def unrolled(a, b, C, eps, reach=(None, None), iterations=200):
    """Return the potentials after so many iterations, all of which autograd can go back through."""
    left, right = (1 if rho is None else rho / (rho + eps) for rho in reach)
    g = torch.zeros_like(b)
    for _ in range(iterations):
        f = -left * eps * torch.logsumexp(b.log() + (g - C) / eps, 1)
        g = -right * eps * torch.logsumexp(a.log() + (f - C.T) / eps, 1)
    return f, g


def plan_of(a, b, C, eps, f, g):
    return a[:, None] * b * torch.exp((f[:, None] + g - C) / eps)


def kl(p, q):
    return (p * (p / q).log() - p + q).sum()


def value_of(name, a, b, C, eps, reach=(None, None), iterations=200):
    """Return a value by its definition, of a plan that autograd can go back through."""
    P = plan_of(a, b, C, eps, *unrolled(a, b, C, eps, reach, iterations))
    cost = (P * C).sum()
    if name == "cost":
        return cost
    kept = [0 if rho is None else rho * kl(P.sum(axis), w) for rho, axis, w in zip(reach, (1, 0), (a, b), strict=True)]
    return cost + eps * kl(P, a[:, None] * b) + kept[0] + kept[1]


def squared(x, y):
    return ((x[:, None] - y) ** 2).sum(-1)


def cloud(n, m, d=3, seed=0):
    """Return weights and points, of masses 1."""
    rng = np.random.default_rng(seed)
    return problems.histograms(rng, 1, n)[0], problems.histograms(rng, 1, m)[0], rng.random((n, d)), rng.random((m, d))


def leaves(*arrays):
    return [torch.as_tensor(x, dtype=torch.float64).clone().requires_grad_() for x in arrays]


def by_autograd(value, given, balanced):
    """Return gradients of a value by tensors, those by the two weights without their mean where masses stay equal."""
    found = [x.numpy() for x in torch.autograd.grad(value, given)]
    return [x - x.mean() if balanced and k < 2 else x for k, x in enumerate(found)]


def close(found, expected, digits=1e-7):
    """Compare relative to the largest number."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= digits * np.abs(expected).max()


# What OTT-JAX checks


@pytest.mark.parametrize("reach", PRICES)
@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("eps", [0.1, 10.0])
def test_gradients_are_those_of_unrolled_iterations(name, reach, eps):
    """Implicit gradients and those of all iterations, of points and of a stored cost; POT calls the first envelope."""
    balanced = reach == (None, None)
    a, b, x, y = cloud(7, 9)
    given = leaves(a, b, x, y, eps)
    expected = by_autograd(value_of(name, *given[:2], squared(*given[2:4]), given[4], reach), given, balanced)
    options = {"eps": eps, "reach": None if balanced else reach, **TIGHT}
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), **options)
    grads = cusink.sinkhorn_adjoint(result, **{WORDS[name]: 1.0}, tol=1e-12)
    for field, slope in zip(("a", "b", "x", "y", "eps"), expected, strict=True):
        close(getattr(grads, field), slope)
    C = cusink.cost_matrix(x, y)
    given = leaves(a, b, C)
    expected = by_autograd(value_of(name, *given, eps, reach), given, balanced)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, **options), **{WORDS[name]: 1.0}, tol=1e-12)
    for field, slope in zip("abC", expected, strict=True):
        close(getattr(grads, field), slope)


@pytest.mark.parametrize(("n", "m"), [(7, 9), (11, 5)])
def test_weights_of_zero_leave_the_slopes_of_the_others(n, m):
    a, b, x, y = cloud(n, m)
    a[0] = b[3] = 0
    a, b = a / a.sum(), b / b.sum()
    C = cusink.cost_matrix(x, y)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=0.1, **TIGHT), grad_reg_cost=1.0)
    move = a * np.random.default_rng(1).normal(size=n)
    move -= a * move.sum()
    slope = reference.derivative(lambda t: reference.optimum(a + t * move, b, C, 0.1).reg_cost)
    assert np.isfinite(grads.a).all()
    assert abs(grads.a @ move - slope) <= 1e-7 * abs(slope)


def test_the_gradient_by_a_cost_is_the_plan_and_the_slope():
    rng = np.random.default_rng(2)
    C, move = np.abs(rng.normal(size=(7, 9))), rng.normal(size=(7, 9))
    a, b = np.full(7, 1 / 7), np.full(9, 1 / 9)
    result = cusink.sinkhorn(None, None, C, eps=0.5, **TIGHT)
    found = cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0).C
    solved = reference.solve(a, b, C, 0.5)
    close(found, reference.plan(a, b, C, 0.5, solved.f, solved.g), 1e-9)
    slope = reference.derivative(lambda t: reference.optimum(a, b, C + t * move, 0.5).reg_cost)
    assert abs((found * move).sum() - slope) <= 1e-7 * abs(slope)


@pytest.mark.parametrize(("metric", "eps"), [("euclidean", 1e-3), ("sqeuclidean", 1e-2)])
@pytest.mark.parametrize("stop", [{"tol": 1e-11, "max_iter": 50_000}, {"tol": None, "max_iter": 4000}])
def test_points_that_nearly_meet_and_empty_bins_at_a_small_eps(metric, eps, stop):
    """Stopped by an error, or after so many iterations."""
    a, b, x, y = cloud(11, 13, seed=3)
    x, y = (x - 0.5) / 5, (y - 0.5) / 5
    y[0] = x[0] + 1e-3
    a[0] = b[3] = 0
    a, b = a / a.sum(), b / b.sum()
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y, metric), eps=eps, **stop)
    found = cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0).x
    solved = reference.solve(a, b, cusink.cost_matrix(x, y, metric), eps)
    P = reference.plan(a, b, cusink.cost_matrix(x, y, metric), eps, solved.f, solved.g)
    apart = x[:, None] - y
    slopes = apart / np.linalg.norm(apart, axis=2, keepdims=True) if metric == "euclidean" else 2 * apart
    close(found, (P[..., None] * slopes).sum(1))
    move = np.random.default_rng(4).normal(size=x.shape) * 1e-3

    def value(t):
        return reference.optimum(a, b, cusink.cost_matrix(x + t * move, y, metric), eps).reg_cost

    slope = reference.derivative(value, 1e-2)
    assert abs((found * move).sum() - slope) <= 1e-6 * abs(slope)


def test_points_that_meet_have_no_slope_of_their_own():
    """The norm at zero, which peers test by itself: that pair alone gives nothing, and nothing is lost."""
    a, b, x, y = cloud(6, 5, d=2, seed=5)
    y[0] = x[0]
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y, "euclidean"), eps=0.1, **TIGHT)
    found = cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=1e-12).x
    apart = x[:, None] - y
    lengths = np.linalg.norm(apart, axis=2)
    given = leaves(lengths)
    by_cost = torch.autograd.grad(value_of("cost", *leaves(a, b), *given, 0.1), given)[0].numpy()
    lengths[0, 0] = 1  # of a difference of zero
    close(found, (by_cost[..., None] * apart / lengths[..., None]).sum(1))


def test_an_eps_that_follows_the_costs_counts_as_the_number_that_it_is():
    C = np.random.default_rng(6).random((15, 17))
    own = cusink.sinkhorn(None, None, C, eps=cusink.RelativeEps(0.05, "mean"), **TIGHT)
    given = leaves(C)
    a, b = torch.full((15,), 1 / 15, dtype=torch.float64), torch.full((17,), 1 / 17, dtype=torch.float64)
    expected = torch.autograd.grad(value_of("reg_cost", a, b, *given, 0.05 * C.mean(), iterations=1500), given)[0]
    close(cusink.sinkhorn_adjoint(own, grad_reg_cost=1.0).C, expected.numpy())


@pytest.mark.parametrize(
    ("reach", "by", "axis"), [(PRICES[0], "a", 1), (PRICES[0], "x", 0), ((0.7, None), "x", 1), (PRICES[1], "a", 0)]
)
def test_jacobians_of_a_product_with_the_plan(reach, by, axis):
    a, b, x, y = map(torch.as_tensor, cloud(6, 5, d=2, seed=7))
    v = torch.linspace(-0.5, 0.5, 5 if axis else 6, dtype=torch.float64)[:, None]

    def moved(given):
        return (given, b, x, y) if by == "a" else (a, b, given, y)

    def ours(given):
        u, w, *points = moved(given)
        prices = None if reach == PRICES[0] else reach
        return bridge.apply_plan(u, w, bridge.PointCloud(*points), 0.1, v, axis=axis, reach=prices, **TIGHT)

    def theirs(given):
        u, w, *points = moved(given)
        C = squared(*points)
        P = plan_of(u, w, C, 0.1, *unrolled(u, w, C, 0.1, reach, 400))
        return P @ v if axis else P.T @ v

    at = a if by == "a" else x
    found, expected = (torch.autograd.functional.jacobian(function, at).numpy() for function in (ours, theirs))
    found, expected = found[:, 0], expected[:, 0]
    if by == "a" and reach == PRICES[0]:  # the constant that a balanced problem leaves open
        expected = expected - expected.mean(-1, keepdims=True)
    close(found, expected)


@pytest.mark.parametrize("reach", [*PRICES, (0.5, None)])
@pytest.mark.parametrize(("n", "m"), [(8, 10), (11, 7)])
def test_jacobians_of_a_potential(n, m, reach):
    """Along a direction of sum zero; the linear system is that of the shorter side, whichever preconditioner."""
    balanced = reach == (None, None)
    a, b, x, y = cloud(n, m, seed=8)
    along = np.random.default_rng(9).normal(size=n)
    along -= along.mean()
    given = leaves(a, b, x, y)
    f, _ = unrolled(*given[:2], squared(*given[2:]), 0.1, reach, 400)
    expected = by_autograd(f @ torch.as_tensor(along), given, balanced)
    prices = None if balanced else reach
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.1, reach=prices, **TIGHT)
    grads = cusink.sinkhorn_adjoint(result, grad_f=along, tol=1e-12)
    for field, slope in zip("abxy", expected, strict=True):
        close(getattr(grads, field), slope)


def test_weights_on_a_grid_of_uneven_cells():
    grid = cusink.Grid((2, 3, 4), spacing=(1.0, (0.1, 0.3), (0.3, 1.1, 1.3)))
    places = np.stack(np.meshgrid([0, 1], [0, 0.1, 0.4], [0, 0.3, 1.4, 2.7], indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(10)
    a, b = (w / w.sum() for w in rng.random((2, 24)) + 1)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, grid, eps=1.0, **TIGHT), grad_reg_cost=1.0)
    given = leaves(a, b)
    C = torch.as_tensor(squared(places, places))
    for found, slope in zip(
        (grads.a, grads.b), by_autograd(value_of("reg_cost", *given, C, 1.0), given, True), strict=True
    ):
        close(found.ravel(), slope)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize(("reach", "by"), [*itertools.product(PRICES, "ax")])
def test_hessians_are_those_of_unrolled_iterations(name, reach, by):
    """Column by column, and symmetric."""
    balanced = reach == (None, None)
    a, b, x, y = cloud(5, 6, d=2, seed=11)
    at = a if by == "a" else x

    def value(given):
        u, points = (given, torch.as_tensor(x)) if by == "a" else (torch.as_tensor(a), given)
        return value_of(name, u, torch.as_tensor(b), squared(points, torch.as_tensor(y)), 0.2, reach)

    expected = torch.autograd.functional.hessian(value, torch.as_tensor(at)).reshape(at.size, at.size).numpy()
    prices = None if balanced else reach
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.2, reach=prices, **TIGHT)
    directions = np.eye(at.size)
    if by == "a" and balanced:  # weights that keep their mass
        directions -= 1 / at.size
        expected = directions @ expected @ directions
    columns = [
        getattr(cusink.sinkhorn_hvp(result, **{f"d{by}": d.reshape(at.shape), WORDS[name]: 1.0}, tol=1e-12), by)
        for d in directions
    ]
    found = np.stack([column.ravel() for column in columns], axis=1)
    close(found, expected)
    close(found, found.T)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_the_divergence_of_clouds_has_the_gradient_of_its_three_terms(metric):
    """The term of the measure that stays is constant, so that leaving it out changes no gradient."""
    a, b, x, y = cloud(13, 12, seed=12)
    result = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y, metric), eps=1.0, **TIGHT)
    found = cusink.sinkhorn_divergence_adjoint(result).x
    given = leaves(x)
    weights = [torch.as_tensor(w) for w in (a, b)]

    def cost(u, v):
        apart = squared(u, v)
        return apart if metric == "sqeuclidean" else torch.where(apart > 0, apart, 1).sqrt() * (apart > 0)

    between = value_of("reg_cost", *weights, cost(given[0], torch.as_tensor(y)), 1.0)
    within = value_of("reg_cost", weights[0], weights[0], cost(given[0], given[0]), 1.0)
    close(found, torch.autograd.grad(between - within / 2, given)[0].numpy())


def test_soft_ranks_move_with_what_they_rank():
    """Ranks are means of places under the rows of a plan: of each row of numbers, that of the fourth of them."""
    rng = np.random.default_rng(13)
    z, along, places = rng.random((3, 9)), rng.normal(size=3), np.linspace(0, 1, 12)
    columns = z[..., None], np.broadcast_to(places[:, None], (3, 12, 1))
    result = cusink.sinkhorn(None, None, cusink.PointCloud(*columns), eps=0.05, **TIGHT)
    cotangent = np.zeros((3, 9, 1))
    cotangent[:, 3, 0] = along
    grads = cusink.barycentric_map_adjoint(result, 9 * places[:, None], cotangent, tol=1e-12)
    for row, by_z, slope in zip(z, grads.x[..., 0], along, strict=True):
        given = leaves(row)
        a, b = (torch.full((k,), 1 / k, dtype=torch.float64) for k in (9, 12))
        C = squared(given[0][:, None], torch.as_tensor(places[:, None]))
        P = plan_of(a, b, C, 0.05, *unrolled(a, b, C, 0.05, iterations=600))
        rank = 9 * (P @ torch.as_tensor(9 * places))[3]
        close(by_z, torch.autograd.grad(slope * rank, given)[0].numpy())


def test_a_potential_at_new_points_slopes_away_from_the_map():
    """The sum of a solved problem's potential at points, as a function of these points."""
    a, b, x, y = cloud(18, 20, d=5, seed=14)
    new, move = np.random.default_rng(15).random((2, 6, 5))
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.2, **TIGHT)
    there = result.at(new)
    solved = reference.solve(a, b, squared(x, y), 0.2)
    offset = (result.g - solved.g)[0]  # the constant between the two potentials

    def total(t):
        costs = squared(new + t * move, y)
        return -0.2 * sum(np.log((b * np.exp((solved.g + offset - row) / 0.2)).sum()) for row in costs)

    np.testing.assert_allclose(there.potential.sum(), total(0), rtol=1e-9)
    slope = reference.derivative(total)
    assert abs((2 * (new - there.map()) * move).sum() - slope) <= 1e-8 * abs(slope)
    by_points = cusink.extension_adjoint(there, grad_potential=np.ones(6)).points
    assert abs((by_points * move).sum() - slope) <= 1e-8 * abs(slope)


# What GeomLoss checks


@pytest.mark.parametrize("eps", [1e-2, 0.7, 10.0])
@pytest.mark.parametrize("iterations", [1, 2, 50])
def test_one_point_and_one_point(eps, iterations):
    """Whatever eps and the number of iterations: the value is the cost, and half of it each potential."""
    x, y = np.array([[0.3, -2.0]]), np.array([[1.0, 4.0]])
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=None, max_iter=iterations)
    c = ((x - y) ** 2).sum()
    np.testing.assert_allclose([result.cost, result.reg_cost, *(2 * result.f), *(2 * result.g)], c, rtol=1e-12)
    grads = cusink.sinkhorn_adjoint(result, grad_cost=1.0)
    np.testing.assert_allclose([grads.x, -grads.y], [2 * (x - y)] * 2, rtol=1e-12)
    assert abs(grads.eps) < 1e-12 and abs(grads.a[0]) < 1e-12
    stored = cusink.sinkhorn(None, None, np.array([[-50.0]]), eps=eps, tol=None, max_iter=iterations)
    assert stored.cost == -50 and cusink.sinkhorn_adjoint(stored, grad_cost=1.0).C == pytest.approx(1)


@pytest.mark.parametrize("d", [1, 3])
def test_gradients_of_a_convex_function_are_optimal_moves(d):
    """Brenier: points move as the gradient of a convex function moved them, and the cost falls by that."""
    rng = np.random.default_rng(16)
    weights = problems.histograms(rng, 1, 6)[0]
    x = np.full((6, d), 0.5)
    x[:, 0] = np.arange(6) / 6
    centres, strengths = rng.random((6, d)), rng.uniform(0.1, 2, 6)
    apart = x[:, None] - centres
    y = x + (strengths[:, None] * apart / np.linalg.norm(apart, axis=2, keepdims=True)).sum(1)
    result = cusink.sinkhorn(weights, weights, cusink.PointCloud(x, y), eps=1e-3, tol=1e-10, max_iter=100_000)
    np.testing.assert_allclose(result.cost, weights @ ((x - y) ** 2).sum(1), rtol=1e-8)
    for name in WORDS.values():
        close(cusink.sinkhorn_adjoint(result, **{name: 1.0}).x, 2 * weights[:, None] * (x - y))


def test_a_permutation_is_the_gradient_by_its_cost():
    p = problems.permutation(7, 0.05)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, **TIGHT), grad_reg_cost=1.0)
    np.testing.assert_allclose(grads.C, p.known["plan"], atol=1e-12)


@pytest.mark.parametrize("eps", [0.05, 3.0])
def test_clouds_pull_each_other_by_the_difference_of_their_means(eps):
    """What moves a whole cloud of a Gaussian, or any other: nothing of it depends on eps, for loss and divergence."""
    a, b, x, y = cloud(12, 9, seed=17)
    C = cusink.PointCloud(x, y + 0.7)
    force = 2 * (a @ x - b @ (y + 0.7))
    loss = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=eps, **TIGHT), grad_reg_cost=1.0)
    divergence = cusink.sinkhorn_divergence_adjoint(cusink.sinkhorn_divergence(a, b, C, eps=eps, **TIGHT))
    for grads in (loss, divergence):
        np.testing.assert_allclose([grads.x.sum(0), -grads.y.sum(0)], [force, force], rtol=1e-9)


def test_one_last_step_has_the_gradient_of_the_whole():
    """Peers go back through one step from potentials that are held fixed: the envelope, for points and weights."""
    a, b, x, y = cloud(9, 8, seed=18)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.1, **TIGHT)
    f, g = map(torch.as_tensor, (result.f, result.g))
    given = leaves(a, b, x, y)
    u, w, C = *given[:2], squared(*given[2:])
    left = -0.1 * torch.logsumexp(w.detach().log() + (g - C) / 0.1, 1)
    right = -0.1 * torch.logsumexp(u.detach().log() + (f - C.detach().T) / 0.1, 1)
    # Through one of the two potentials alone do the costs count; else each pair would count twice.
    expected = by_autograd(u @ left + w @ right, given, True)
    grads = cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0)
    for field, slope in zip("abxy", expected, strict=True):
        close(getattr(grads, field), slope)


# What POT checks


@pytest.mark.parametrize("method", [None, "log"])
def test_gradients_scale_with_what_they_are_multiplied_by(method):
    """Each has the shape of its tensor, and ten times the loss has ten times the gradients."""
    a, b, x, y = cloud(20, 20, d=2, seed=19)
    options = TIGHT | ({} if method is None else {"method": method})
    once, tenfold = leaves(a, b, cusink.cost_matrix(x, y)), leaves(a, b, cusink.cost_matrix(x, y))
    bridge.sinkhorn_loss(*once, 1.0, **options).backward()
    (10 * bridge.sinkhorn_loss(*tenfold, 1.0, **options)).backward()
    expected = by_autograd(value_of("cost", *once, 1.0), once, True)
    for one, ten, slope in zip(once, tenfold, expected, strict=True):
        assert one.grad.shape == one.shape
        close(one.grad.numpy(), slope)
        close(ten.grad.numpy(), 10 * slope)


def test_what_needs_no_gradient_has_none():
    a, b, x, y = map(torch.as_tensor, cloud(5, 4))
    loss = bridge.sinkhorn_loss(a, b, bridge.PointCloud(x, y), 1.0)
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    b.requires_grad_()
    with torch.no_grad():
        assert not bridge.sinkhorn_loss(a, b, bridge.PointCloud(x, y), 1.0).requires_grad


def test_a_batch_of_clouds_has_the_gradients_of_each_and_its_mass_has_none():
    x, y = (torch.as_tensor(z) for z in np.random.default_rng(20).random((2, 2, 4, 2)))
    x.requires_grad_()
    loss = bridge.sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.5, reduction="sum", **TIGHT)
    found = torch.autograd.grad(loss, x)[0].numpy()
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    each = [value_of("cost", uniform, uniform, squared(x[k], y[k]), 0.5, iterations=400) for k in range(2)]
    close(found, torch.autograd.grad(sum(each), x)[0].numpy())
    ones = torch.ones(4, 1, dtype=torch.float64)
    mass = bridge.apply_plan(None, None, bridge.PointCloud(x, y), 0.5, ones, **TIGHT).sum()
    assert float(mass.detach()) == pytest.approx(2)
    assert torch.autograd.grad(mass, x)[0].abs().max() < 1e-9
