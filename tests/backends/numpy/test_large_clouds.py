"""Large clouds: coarse to fine, on the pairs that count. Every claim is held to sums over all pairs in float64."""

import dataclasses

import numpy as np
import pytest
from problems import SMALL_LIMITS

import cusink
from cusink.backends.neighbours import nested
from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds import cells, expanded
from cusink.backends.numpy.clouds.absorbed import StabilisedProblem
from cusink.backends.numpy.clouds.kernel import PlanKernel
from cusink.backends.numpy.clouds.layout import sorted_clouds
from cusink.costs.clouds import point_costs
from cusink.solver import coarse


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let clouds of some hundreds of points count as large."""
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, **SMALL_LIMITS))


def costs_between(x, y, metric="sqeuclidean"):
    difference = x.astype(float)[:, None] - y.astype(float)[None]
    if metric == "cityblock":
        return np.abs(difference).sum(axis=2)
    squares = (difference**2).sum(axis=2)
    return squares if metric == "sqeuclidean" else np.sqrt(squares)


def measured(result, x, y, a, b, eps):
    """Return errors of both marginals and the cost, from the potentials of the result alone."""
    C = costs_between(x, y)
    with np.errstate(divide="ignore"):
        logits = np.log(a)[:, None] + np.log(b) + (result.problem.f[0][:, None] + result.problem.g[0] - C) / eps
    P = np.exp(logits)
    return np.abs(P.sum(axis=1) - a).sum() / a.sum(), np.abs(P.sum(axis=0) - b).sum() / a.sum(), (P * C).sum()


# Parts


@pytest.mark.parametrize(("n", "d"), [(1000, 1), (1024, 2), (777, 3), (5, 2)])
def test_runs_of_neighbours_lie_together(n, d):
    x = np.random.default_rng(0).random((n, d))
    order = nested(x, limits.LIMITS.cloud_least_run)
    assert (np.sort(order) == np.arange(n)).all()
    for size in (8, 64):
        runs = [x[order[k : k + size]] for k in range(0, n, size)]
        if d == 1:
            assert all(low.max() <= high.min() for low, high in zip(runs, runs[1:], strict=False))
        widths = np.mean([np.ptp(run, axis=0).max() for run in runs])
        assert widths <= 2.5 * (size / n) ** (1 / d)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_cells_that_are_left_out_have_no_large_exponent(metric):
    rng = np.random.default_rng(1)
    x, y = rng.random((500, 2)), rng.random((437, 2)) + ([4, -1] if metric == "sqeuclidean" else 0)
    f, g, eps = 2 * x @ [-4, 1] + 0.01 * rng.random(500), 2 * y @ [4, -1] - 17 + 0.01 * rng.random(437), 2e-3
    if metric != "sqeuclidean":
        f, g = 0.05 * rng.random(500), 0.05 * rng.random(437)
    C = point_costs(np, cusink.PointCloud(x, y, metric), x, y)
    side = sorted_clouds(C, 0).side(1)
    f, g = f[side.order], g[side.columns]
    exponents = (f[:, None] + g - costs_between(side.x, side.y.T, metric)) / eps
    found = cells.ColumnCells(side, f, g, eps)
    looked_at = 0
    for level in (-5.0, -15.0):
        for k, rows in enumerate(side.blocks):
            near = found.near(k, level)
            looked_at += len(near)
            index = found.index(near)
            rest = np.delete(exponents[rows], index, axis=1)
            assert (rest <= level).all()
            assert (np.diff(index) > 0).all()
            middle, far = found.around(near)
            assert (np.linalg.norm(side.y.T[index] - middle, axis=1) <= far + 1e-12).all()
    assert looked_at < 1.3 * len(side.blocks) * len(found.columns.level)  # of twice as many


@pytest.mark.parametrize("share", [1e-3, 1e-7])
def test_polynomials_are_as_close_to_exp_as_they_say(share):
    for degree in (2, 4, 9, 20):
        found = expanded.polynomial(share, degree)
        z = np.random.default_rng(degree).uniform(-found.reach, found.reach, 20_000)
        z[:2] = -found.reach, found.reach
        error = np.abs(np.polyval(found.coefficients[::-1], z) / np.exp(z) - 1).max()
        assert 0.2 * share <= error <= share


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 2])
def test_thin_factors_have_the_sums_of_the_entries(dtype, d):
    rng = np.random.default_rng(2)
    n, eps, share, least = 2048, 0.05 if d == 1 else 0.2, 1e-4, 1e-6
    x, y = (rng.random((n, d)).astype(dtype) + 3 for _ in range(2))
    y += dtype(0.5)
    C = point_costs(np, cusink.PointCloud(x, y), x, y)
    side = sorted_clouds(C, 0).side(1)
    # Potentials of a plan that shifts points, so that large terms of both sides cancel.
    f = -side.x.astype(float).sum(axis=1) + 0.02 * rng.random(n)
    g = side.y.astype(float).sum(axis=0) - 0.25 * d + 0.02 * rng.random(n)
    A = np.exp((f[:, None] + g - costs_between(side.x, side.y.T)) / eps)
    p, q = (rng.random(n).astype(dtype) / n for _ in range(2))
    kernel = PlanKernel(side, f, g, eps, 0, least, share)
    T, S = kernel.sums(q, lambda rows, _: p[rows])
    assert kernel.inexact
    assert all(expansion is not None for expansion in kernel.expansions.values())
    for found, right, lost in ((T, A @ q, least * q.sum()), (S, A.T @ p, least * p.sum())):
        assert (np.abs(found - right) <= share * right + lost).all()
    sums = PlanKernel(side, f, g, eps, 0, least, share).cost_sums(q, lambda rows, _: p[rows], columns=False)
    right = (A * costs_between(side.x, side.y.T)) @ q
    assert (np.abs(sums.TC - right) <= 4 * share * right + 10 * least).all()
    assert np.array_equal(sums.T, T)
    assert np.array_equal(sums.S, S)


# Whole problems

rng = np.random.default_rng(3)


def uniform(n, d):
    return rng.random((n, d))


def in_three_places(n):
    places = np.array([[0, 0], [5, 0], [0, 5]])
    return 0.1 * uniform(n, 2) + places[np.arange(n) % 3]


CASES = {
    "uniform": (uniform(700, 3), uniform(600, 3), 1e-2, {}),
    "dense": (uniform(1500, 2), uniform(1400, 2), 3e-2, {}),
    "steep": (uniform(800, 2), uniform(800, 2), 5e-4, {}),
    "one far from the other": (uniform(600, 2), uniform(600, 2) + [3, 1], 1e-3, {}),
    "far from the origin": (uniform(600, 2) + 1000, uniform(600, 2) + 1000, 3e-3, {}),
    "clusters": (in_three_places(600), in_three_places(600), 1e-3, {}),
    "on a line": (uniform(800, 1), uniform(800, 1) ** 2, 1e-3, {}),
    "ten dimensions": (uniform(400, 10), uniform(400, 10), 5e-2, {}),
    "duplicates": (np.repeat(uniform(8, 2), 75, axis=0), np.repeat(uniform(10, 2), 60, axis=0), 3e-3, {}),
    "zero weights": (uniform(700, 2), uniform(600, 2), 3e-3, {"a": np.where(uniform(700, 1)[:, 0] < 0.3, 0, 1)}),
    "uneven weights": (uniform(600, 2), uniform(600, 2), 3e-3, {"a": uniform(600, 1)[:, 0] ** 30 + 1e-12}),
}


@pytest.fixture
def starts(monkeypatch):
    """Whether each solve began from coarse levels."""
    made, plain = [], coarse.coarse_start

    def remember(*args):
        made.append(plain(*args))
        return made[-1]

    monkeypatch.setattr("cusink.solver.each.coarse_start", remember)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_what_is_claimed_holds_for_all_pairs(case, dtype, starts):
    x, y, eps, weights = CASES[case]
    x, y, tol = x.astype(dtype), y.astype(dtype), 1e-3 if dtype == np.float32 else 1e-5
    a, b = (weights.get(name, np.ones(len(p))).astype(float) for name, p in (("a", x), ("b", y)))
    a, b = (a / a.sum()).astype(dtype), (b / b.sum()).astype(dtype)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=eps, tol=tol, max_iter=3000)
    assert [start is not None for start in starts] == [case != "ten dimensions"]
    wide_a = a.astype(float)
    wide_b = b * (wide_a.sum() / b.sum(dtype=float))
    of_rows, of_columns, cost = measured(result, x, y, wide_a, wide_b, eps)
    assert result.converged
    assert result.error <= tol
    assert of_columns <= result.error * (1 + 1e-6)
    assert of_rows <= max(result.error, 1e-6)
    assert float(result.cost) == pytest.approx(cost, rel=0.1 * tol)


def test_losses_of_any_size_are_counted(monkeypatch, starts):
    """With a hundred times the usual loss the marginals show it, and the error still bounds them."""
    monkeypatch.setattr(coarse, "LOSS", 1.0)
    x, y, eps, _ = CASES["dense"]
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    with pytest.warns(cusink.ConvergenceWarning):  # the loss alone is more than the tolerance
        result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-2, max_iter=20)
    of_rows, of_columns, _ = measured(result, x, y, a, b, eps)
    assert starts[0] is not None
    assert of_rows > 1e-9  # more than rounding
    assert max(of_rows, of_columns) <= result.error


def test_potentials_are_those_of_the_full_solver(monkeypatch):
    x, y, eps, _ = CASES["uniform"]
    found = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-10)
    right = cusink.sinkhorn(None, None, costs_between(x, y), eps=eps, tol=1e-12)
    assert np.abs(found.f - right.f).max() <= 1e-8
    assert float(found.reg_cost) == pytest.approx(float(right.reg_cost), rel=1e-9)
    assert float(found.entropic_cost) == pytest.approx(float(right.entropic_cost), rel=1e-9)


@pytest.mark.parametrize(("side", "off"), [(0, -40.0), (0, 40.0), (1, 40.0)])
def test_the_few_potentials_that_are_far_off_are_repaired(side, off, monkeypatch):
    x, y, eps, _ = CASES["dense"]
    solved = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-6)
    f, g = solved.f.copy(), solved.g.copy()
    (f, g)[side][[5, 9, 1300]] += off * eps
    monkeypatch.setattr(StabilisedProblem, "_iterate_log", lambda *_: pytest.fail("all pairs were looked at"))
    C = point_costs(np, cusink.PointCloud(x, y), x, y)
    weights = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    problem = StabilisedProblem(sorted_clouds(C, 0), *weights, f, g, eps, 1 << 30, loss=1e-5)
    assert problem.advance(1.0, 3) <= 1e-4


def test_it_takes_few_iterations_of_all_points():
    x, y, eps, _ = CASES["dense"]
    cloud = cusink.PointCloud(x, y)
    cold = cusink.sinkhorn(None, None, cloud, eps=eps, tol=1e-3, init=(np.zeros(len(x)), np.zeros(len(y))))
    assert cusink.sinkhorn(None, None, cloud, eps=eps, tol=1e-3).n_iter <= 0.6 * cold.n_iter


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    x, y, eps, _ = CASES["dense"]
    found = []
    for threads in (1, 3):
        sizes = dataclasses.replace(limits.LIMITS, threads=threads, threaded_pairs=1)
        monkeypatch.setattr(limits, "LIMITS", sizes)
        result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-3)
        found.append((result.f.tobytes(), result.g.tobytes(), float(result.cost), float(result.error)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options", [{"method": "log"}, {"reach": 1.0}, {"tol": None}, {"metric": "euclidean"}, "batch"]
)
def test_other_problems_begin_as_they_did(options, starts):
    x, y, eps, _ = CASES["uniform"]
    options, a = ({}, np.full((2, len(x)), 1.0 / len(x))) if options == "batch" else (dict(options), None)
    cloud = cusink.PointCloud(x, y, options.pop("metric", "sqeuclidean"))
    result = cusink.sinkhorn(a, None, cloud, eps=20 * eps, **{"tol": 1e-3, "max_iter": 100} | options)
    assert not any(start is not None for start in starts)
    assert np.isfinite(result.error).all()


def test_bounds_products_and_gradients_are_those_of_small_clouds(monkeypatch):
    x, y, eps, _ = CASES["uniform"]

    def answers():
        cloud = cusink.PointCloud(x, y)
        result = cusink.sinkhorn(None, None, cloud, eps=eps, tol=1e-10)
        gradient = cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=1e-9)
        return result, [*result.bounds(), result.apply(y[:, 0], 1), gradient.x, gradient.y, gradient.a]

    large, found = answers()
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, cloud_cell_pairs=1 << 40))
    _, right = answers()
    for one, other in zip(found, right, strict=True):
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()
    assert found[0] <= large.cost <= found[1] * 1.5
