"""Divergences of large clouds, from coarse to fine: every claim is held to sums over all pairs in float64."""

import dataclasses

import numpy as np
import pytest
from problems import SMALL_LIMITS

import cusink
from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds import near
from cusink.costs.clouds import point_costs
from cusink.gradients.terms import GradientTerms
from cusink.solver import coarse


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let clouds of some hundreds of points count as large."""
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, **SMALL_LIMITS))


rng = np.random.default_rng(4)


def uniform(n, d):
    return rng.random((n, d))


def in_three_places(n):
    places = np.array([[0, 0], [5, 0], [0, 5]])
    return 0.1 * uniform(n, 2) + places[np.arange(n) % 3]


def some_without(n):
    return np.where(uniform(n, 1)[:, 0] < 0.3, 0, 1) * uniform(n, 1)[:, 0]


CASES = {
    "uniform": (uniform(700, 3), uniform(600, 3), 1e-2, {}),
    "dense": (uniform(1100, 2), uniform(1000, 2), 3e-2, {}),
    "steep": (uniform(600, 2), uniform(600, 2), 1e-3, {}),
    "one far from the other": (uniform(600, 2), uniform(600, 2) + [3, 1], 3e-3, {}),
    "clusters": (in_three_places(600), in_three_places(600), 1e-3, {}),
    "cosine": (uniform(600, 3) + 0.2, uniform(600, 3) ** 2 + 0.2, 1e-2, {"metric": "cosine"}),
    "duplicates": (np.repeat(uniform(8, 2), 75, axis=0), np.repeat(uniform(10, 2), 60, axis=0), 3e-3, {}),
    "zero weights": (uniform(700, 2), uniform(600, 2), 3e-3, {"a": some_without(700), "b": some_without(600)}),
    "uneven weights": (uniform(600, 2), uniform(600, 2), 3e-3, {"a": uniform(600, 1)[:, 0] ** 30 + 1e-12}),
}
SOLVED = {  # of few points and large eps, for plain sums to end
    "few, uniform": (uniform(260, 3), uniform(230, 3), 2e-2, {}),
    "few, far": (uniform(240, 2), uniform(220, 2) + [3, 1], 2e-2, {}),
    "few, zero weights": (uniform(280, 2), uniform(250, 2), 2e-2, {"a": some_without(280), "b": some_without(250)}),
}


def given(case, dtype):
    """Return points and weights of a case, and a cloud of the points."""
    x, y, eps, more = (CASES | SOLVED)[case]
    x, y = x.astype(dtype), y.astype(dtype)
    a, b = (more.get(name, np.ones(len(p))).astype(float) for name, p in (("a", x), ("b", y)))
    a, b = (a / a.sum()).astype(dtype), (b / b.sum()).astype(dtype)
    return x, y, a, b, eps, cusink.PointCloud(x, y, more.get("metric", "sqeuclidean"))


def costs_between(x, y, metric="sqeuclidean"):
    x, y = x.astype(float), y.astype(float)
    if metric == "cosine":
        x, y = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in (x, y))
        return 1 - x @ y.T
    return ((x[:, None] - y[None]) ** 2).sum(axis=2)


def softmin(C, weights, potential, eps):
    """Return the plain log-sum-exp over the columns, each row with its own largest term."""
    with np.errstate(divide="ignore"):
        exponents = np.log(weights) + (potential - C) / eps
    top = exponents.max(axis=1)
    return -eps * (np.log(np.exp(exponents - top[:, None]).sum(axis=1)) + top)


def solved_plainly(x, y, a, b, eps):
    """Return the divergence and the potentials of all three problems, by log-sum-exp alone, to an error of 1e-10."""
    a, b = a.astype(float), b.astype(float)
    b = b * (a.sum() / b.sum())
    C, f, g = costs_between(x, y), np.zeros(len(x)), np.zeros(len(y))
    for _ in range(4000):
        g = softmin(C.T, a, f, eps)
        before, f = f, softmin(C, b, g, eps)
        if a @ np.abs(np.expm1((before - f) / eps)) < 1e-10:
            break
    else:
        pytest.fail("plain sums did not end")
    selves = []
    for points, w in ((x, a), (y, b)):
        own, h = costs_between(points, points), np.zeros(len(points))
        for _ in range(500):
            step = softmin(own, w, h, eps) - h
            h = h + step / 2
            if w @ np.abs(step) < 1e-12 * eps:
                break
        selves.append(h)
    value = a @ f + b @ g - a @ selves[0] - b @ selves[1]
    return value, (f, g, *selves)


def errors(result, x, y, a, b, eps, metric):
    """Return the errors of both marginals of all three problems, from the potentials of the result alone."""
    wide_a, wide_b = a.astype(float), b.astype(float)
    wide_b = wide_b * (wide_a.sum() / wide_b.sum())
    out = []
    sides = ((x, wide_a), (y, wide_b)), ((x, wide_a), (x, wide_a)), ((y, wide_b), (y, wide_b))
    for problem, ((p, u), (q, v)) in zip(result.problems, sides, strict=True):
        f, g = (z[0].astype(float) for z in (problem.f, problem.g))
        P = u[:, None] * v * np.exp((f[:, None] + g - costs_between(p, q, metric)) / eps)
        out += [np.abs(P.sum(axis=1) - u).sum() / u.sum(), np.abs(P.sum(axis=0) - v).sum() / u.sum()]
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_what_is_claimed_holds_for_all_pairs(case, dtype):
    x, y, a, b, eps, cloud = given(case, dtype)
    tol = 1e-3 if dtype == np.float32 else 1e-5
    result = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, tol=tol, max_iter=3000)
    assert all(form.stages for form in result.forms)
    assert result.converged
    assert result.error <= tol
    assert max(errors(result, x, y, a, b, eps, cloud.metric)) <= result.error * (1 + 1e-6) + 1e-7
    for problem in result.problems[1:]:  # both sides of a self-term have one potential
        assert np.array_equal(problem.f, problem.g)
    if case == "zero weights":  # empty bins have their own softmin
        for problem, w, points in zip(result.problems[1:], (a, b), (x, y), strict=True):
            right = softmin(costs_between(points[w == 0], points), w.astype(float), problem.f[0].astype(float), eps)
            assert np.abs(problem.f[0][w == 0] - right).max() <= 1e-5 * eps * (1 + 1e3 * (dtype == np.float32))


@pytest.mark.parametrize("case", SOLVED)
def test_values_and_gradients_are_those_of_plain_sums(case):
    x, y, a, b, eps, cloud = given(case, float)
    result = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, tol=1e-6, max_iter=3000)
    right, (f, g, f_self, g_self) = solved_plainly(x, y, a, b, eps)
    # Of the order of eps times the square of the tolerance, whatever is lost in the potentials.
    assert abs(float(result.divergence) - right) <= 1e-11 * eps
    grads = cusink.sinkhorn_divergence_adjoint(result)
    filled = a > 0
    rate = f - f_self
    off = grads.a - rate
    assert np.ptp(off[filled]) <= 1e-4 * eps

    def pulled(p, q, u, v, of_p, of_q):
        P = u[:, None] * v * np.exp((of_p[:, None] + of_q - costs_between(p, q)) / eps)
        return 2 * (P.sum(axis=1)[:, None] * p - P @ q)

    for found, mine in (
        (grads.x, pulled(x, y, a, b, f, g) - pulled(x, x, a, a, f_self, f_self)),
        (grads.y, pulled(y, x, b, a, g, f) - pulled(y, y, b, b, g_self, g_self)),
    ):
        assert np.abs(found - mine).max() <= 1e-5 * np.abs(mine).max()
    assert all(form.loss > 0 for form in result.forms)


def test_losses_of_any_size_are_counted(monkeypatch):
    """With a hundred times the usual loss the marginals show it, and the error still bounds them."""
    monkeypatch.setattr(coarse, "LOSS", 1.0)
    x, y, a, b, eps, cloud = given("dense", float)
    with pytest.warns(cusink.ConvergenceWarning):  # the loss alone is more than the tolerance
        result = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-2, max_iter=40)
    found = errors(result, x, y, a, b, eps, "sqeuclidean")
    assert min(form.loss for form in result.forms) > 1e-4
    assert min(found) > 1e-9  # more than rounding
    assert max(found) <= result.error


def test_values_are_taken_without_the_loss(monkeypatch):
    """Those of the potentials as they come out of a kernel with this loss would be 2e-5 eps off."""
    monkeypatch.setattr(coarse, "LOSS", 1.0)
    x, y, a, b, eps, cloud = given("dense", float)
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-2, max_iter=200)
    right, _ = solved_plainly(x, y, a, b, eps)
    assert abs(float(result.divergence) - right) <= 1e-5 * eps


def test_the_error_of_a_self_term_holds_without_rounding_up(monkeypatch):
    """The error alone, less what it says was lost, may be below that of all pairs by no more than the loss."""
    monkeypatch.setattr(coarse, "LOSS", 0.2)
    x, _, a, _, eps, _ = given("uniform", float)
    cloud = cusink.PointCloud(x, x + 1.0)
    result = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-3)
    for form, problem in zip(result.forms[1:], result.problems[1:], strict=True):
        f = problem.f[0]
        P = np.exp((f[:, None] + f - costs_between(x, x)) / eps) * (a[:, None] * a)
        assert np.abs(P.sum(axis=1) - a).sum() <= result.error
        assert 0 < form.loss < result.error


@pytest.mark.parametrize("off", ["nothing", "few", "all"])
@pytest.mark.parametrize("loss", [0.0, 1e-3])
def test_softmins_near_potentials_are_those_of_all_pairs(off, loss):
    """Wherever the potentials are said to be near is only a matter of speed."""
    x, y, _, _, eps, cloud = given("steep", float)
    solved = cusink.sinkhorn(None, None, cloud, eps=eps, tol=1e-3, method="log")
    f, g = solved.f[None].copy(), solved.g[None].copy()
    C, a, b = costs_between(x, y), np.full((1, 600), 1 / 600), np.full((1, 600), 1 / 600)
    if off == "few":
        f[0, [3, 77, 200]] -= 60 * eps
    elif off == "all":
        f -= 100 * eps * rng.random(f.shape)
    costs = dataclasses.replace(point_costs(np, cloud, x, y), loss=loss)
    made = near.near_softmin(costs, a, b, eps, many=True)
    for moved in (0.0, 0.5, 40.0):
        at = g + moved * eps * np.sin(np.arange(600))
        off_by = (made(f, at)[0] - softmin(C, b[0], at[0], eps)) / eps
        assert np.abs(off_by).max() <= (2 * loss if loss else 1e-10)


def test_the_gradient_of_a_plan_is_refused_where_too_much_would_be_left_out(monkeypatch):
    x, y, a, b, eps, cloud = given("steep", float)
    solved = cusink.sinkhorn(None, None, cloud, eps=eps, tol=1e-3)
    costs = point_costs(np, cloud, x, y)
    f, g = solved.f[None], solved.g[None]
    gx, gy = near.pull_plan(costs, a[None], b[None], f, g, eps)
    P = solved.plan()
    assert np.abs(gx - 2 * (P.sum(axis=1)[:, None] * x - P @ y)).max() <= 1e-12 * np.abs(gx).max()
    assert np.abs(gy - 2 * (P.sum(axis=0)[:, None] * y - P.T @ x)).max() <= 1e-12 * np.abs(gy).max()
    assert near.pull_plan(costs, a[None], b[None], f - 30 * eps, g, eps) is None
    for other in (dataclasses.replace(costs, exponent=0.5), dataclasses.replace(costs, norm="cityblock")):
        assert near.pull_plan(other, a[None], b[None], f, g, eps) is None


@pytest.mark.parametrize("level", [-2.0, 0.0, 3.0])
@pytest.mark.parametrize("case", ["uniform", "zero weights", "cosine"])
def test_gradients_are_those_of_small_clouds(case, level, monkeypatch):
    _, _, a, b, eps, cloud = given(case, float)
    result = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, tol=1e-3, max_iter=3000)
    found = cusink.sinkhorn_divergence_adjoint(result, grad=level)
    found = found.x, found.y
    monkeypatch.setattr(GradientTerms, "_of_pairs_that_count", lambda _: None)
    right = cusink.sinkhorn_divergence_adjoint(result, grad=level)
    for one, other in zip(found, (right.x, right.y), strict=True):
        assert np.abs(one - other).max() <= 1e-11 * np.abs(other).max()


@pytest.mark.parametrize(
    "options",
    [{"method": "log"}, {"reach": 1.0}, {"reach": (1.0, None)}, {"tol": None}, {"metric": "euclidean"}, "batch"],
)
def test_other_problems_begin_as_they_did(options):
    x, y, eps, _ = CASES["uniform"]
    options, a = ({}, np.full((2, len(x)), 1.0 / len(x))) if options == "batch" else (dict(options), None)
    cloud = cusink.PointCloud(x, y, options.pop("metric", "sqeuclidean"))
    result = cusink.sinkhorn_divergence(a, None, cloud, eps=20 * eps, **{"tol": 1e-3, "max_iter": 100} | options)
    assert not any(form.stages or form.loss for form in result.forms)
    assert np.isfinite(result.error).all()


def test_equal_measures_have_no_divergence():
    x, _, a, _, eps, _ = given("uniform", float)
    result = cusink.sinkhorn_divergence(a, a.copy(), cusink.PointCloud(x, x.copy()), eps=eps, tol=1e-4)
    assert float(result.divergence) == 0
    assert result.converged
    assert result.forms[1].stages


def test_self_terms_take_few_iterations_of_all_points(monkeypatch):
    _, _, a, b, eps, cloud = given("steep", float)
    passes, plain = [], near.NearSoftmin.__call__
    monkeypatch.setattr(near.NearSoftmin, "__call__", lambda self, f, g: passes.append(f.shape) or plain(self, f, g))
    monkeypatch.setattr(near.NearSoftmin, "_of_all_pairs", lambda *_: pytest.fail("all pairs were looked at"))
    result = cusink.sinkhorn_divergence(a, b, cloud, eps=eps, tol=1e-3)
    assert result.converged
    assert passes.count((1, 600)) <= 2 * 12 + 3
    assert all(form.left_out > 0.5 for form in result.forms)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    *_, eps, cloud = given("dense", np.float32)
    found = []
    for threads in (1, 3):
        sizes = dataclasses.replace(limits.LIMITS, threads=threads, threaded_pairs=1)
        monkeypatch.setattr(limits, "LIMITS", sizes)
        result = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-3)
        x = cusink.sinkhorn_divergence_adjoint(result).x
        found.append((result.f_self.tobytes(), float(result.divergence), float(result.error), x.tobytes()))
    assert found[0] == found[1]


def test_a_flow_begins_from_coarse_to_fine(monkeypatch):
    x, y, _, _, eps, cloud = given("uniform", float)
    starts, plain = [], coarse.coarse_start

    def remember(*given):
        starts.append(plain(*given))
        return starts[-1]

    monkeypatch.setattr("cusink.solver.each.coarse_start", remember)
    flow = cusink.gradient_flow(x, y, eps=eps, step=0.5, max_iter=1, solver_tol=1e-5)
    assert len(starts) >= 6
    assert all(start is not None for start in starts)
    alone = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-5)
    assert flow.losses[0] == float(alone.divergence)
    assert flow.losses[1] < flow.losses[0]
    moved = x - 0.5 * len(x) * cusink.sinkhorn_divergence_adjoint(alone).x
    assert np.abs(flow.points - moved).max() <= 1e-12


def test_losses_of_pytorch_begin_so_too():
    torch = pytest.importorskip("torch")
    from cusink.torch import PointCloud, sinkhorn_divergence

    x, y, _, _, eps, cloud = given("uniform", float)
    points = torch.tensor(x, requires_grad=True)
    loss = sinkhorn_divergence(None, None, PointCloud(points, torch.tensor(y)), eps=eps, tol=1e-5)
    loss.backward()
    alone = cusink.sinkhorn_divergence(None, None, cloud, eps=eps, tol=1e-5)
    assert alone.forms[0].stages
    assert loss.item() == float(alone.divergence)
    assert np.abs(points.grad.numpy() - cusink.sinkhorn_divergence_adjoint(alone).x).max() <= 1e-14


def test_losses_of_jax_begin_so_too():
    jax = pytest.importorskip("jax")
    from cusink.jax import PointCloud, sinkhorn_divergence

    x, y, _, _, eps, _ = given("uniform", np.float32)

    def loss(x, y):
        return sinkhorn_divergence(None, None, PointCloud(x, y), eps=eps, tol=1e-4)

    value, slope = jax.value_and_grad(loss)(*map(jax.numpy.asarray, (x, y)))
    alone = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-4)
    assert all(form.stages for form in alone.forms)
    assert float(value) == float(alone.divergence)
    wanted = cusink.sinkhorn_divergence_adjoint(alone).x
    assert np.abs(np.asarray(slope) - wanted).max() <= 1e-6 * np.abs(wanted).max()
