"""Newton's method on the semi-dual: it finds what the iterations would, where these take for ever."""

import numpy as np
import pytest
import reference

import cusink
from cusink.operand import dense_cost
from cusink.solver.newton import LARGEST, newton, worth


def points(rng, n, m, d, shared=0):
    x, y = rng.random((n, d)), rng.random((m, d))
    y[:shared] = x[:shared]
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return C / C.max()


def towns(rng):
    """Return weights and costs of two towns whose masses differ, so that a little has to travel."""
    x, y = (np.concatenate([rng.random((30, 2)), rng.random((n, 2)) + 5]) for n in (20, 30))
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return np.full(50, 1 / 50), np.full(60, 1 / 60), C / C.max()


def hard(name):
    rng = np.random.default_rng(3)
    if name == "two towns":
        return towns(rng)
    if name == "tie":
        C = np.zeros((4, 4))
        C[1, 3] = -1.85
        return np.full(4, 0.25), np.full(4, 0.25), C
    n, m, d, shared = {"shared points": (60, 60, 16, 30), "tall": (40, 25, 2, 0), "wide": (25, 40, 2, 0)}[name]
    return np.full(n, 1 / n), np.full(m, 1 / m), points(rng, n, m, d, shared)


def solved(a, b, C, eps, tol=1e-10, start=None):
    steepness = (C[np.isfinite(C)].max() - C.min()) / eps
    start = (np.zeros((1, len(a))), np.zeros((1, len(b)))) if start is None else start
    return newton(dense_cost(C), a[None], b[None], eps, start, tol, steepness, 1000)


def marginal_error(found, a, b, C, eps):
    """Return the larger of the two, of the plan in float64."""
    with np.errstate(divide="ignore"):
        logs = np.log(a)[:, None] + found.f[0][:, None] / eps + np.log(b) + found.g[0] / eps - C / eps
    plan = np.exp(logs)
    return max(np.abs(plan.sum(axis=1) - a).sum(), np.abs(plan.sum(axis=0) - b).sum())


@pytest.mark.parametrize("eps", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", ["two towns", "tie", "shared points", "tall", "wide"])
def test_the_plan_meets_both_marginals(name, eps):
    a, b, C = hard(name)
    found = solved(a, b, C, eps)
    assert found.error <= 1e-10
    assert marginal_error(found, a, b, C, eps) <= 1.1e-10 + 1e-15 * np.abs(C).max() / eps
    assert found.taken <= 150


def test_it_finds_what_the_iterations_find():
    a, b, C = hard("tall")
    found, plain = solved(a, b, C, 0.05), reference.sinkhorn(a, b, C, 0.05, 3000)
    moved = (found.f[0] - plain.f).mean()
    np.testing.assert_allclose(found.f[0], plain.f + moved, atol=1e-9)
    np.testing.assert_allclose(found.g[0], plain.g - moved, atol=1e-9)


def test_empty_bins_and_forbidden_pairs_are_left_out():
    a, b, C = hard("shared points")
    a, b, C = a.copy(), b.copy(), C.copy()
    a[:7] = b[20:25] = 0
    C[40:, :30] = np.inf
    a[40:] *= b[30:].sum() * 0.5 / a[40:].sum()
    a, b = a / a.sum(), b / b.sum()
    found = solved(a, b, C, 1e-3)
    assert marginal_error(found, a, b, C, 1e-3) <= 2e-10


def test_what_cannot_be_reached_is_said():
    """Two islands of unequal mass: no plan has these marginals."""
    a, b, C = np.array([0.5, 0.5]), np.array([0.3, 0.7]), np.array([[0, np.inf], [np.inf, 0]])
    found = solved(a, b, C, 0.1)
    assert found.error > 0.1
    assert np.isfinite(found.f).all() and np.isfinite(found.g).all()


def test_few_evaluations_are_kept_to():
    a, b, C = hard("two towns")
    found = newton(dense_cost(C), a[None], b[None], 1e-3, (0 * a[None], 0 * b[None]), 1e-10, 1e3, 5)
    assert found.taken <= 9


def test_the_price_of_a_start_grows_with_size_and_with_the_batch():
    assert worth(10, 10, False) < worth(100, 100, False) < worth(1000, 1000, False)
    assert worth(100, 100, False) < worth(100, 100, True)
    assert worth(LARGEST, 2, False) == np.inf


@pytest.mark.parametrize("kind", ["stored", "points", "a batch", "a cost each"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_solver_turns_to_it(kind, dtype):
    """Shared points, where plain iterations take more than ten thousand."""
    rng = np.random.default_rng(0)
    p = rng.random((80, 16)).astype(dtype)
    x, y = p[:50], p[30:]
    tol = 1e-8 if dtype == np.float64 else 1e-5
    C = cusink.cost_matrix(x, y)
    eps = float(C.max()) * (1e-3 if dtype == np.float64 else 1e-4)
    cost = {"stored": C, "points": cusink.PointCloud(x, y), "a batch": C, "a cost each": np.stack([C, C])}[kind]
    a = np.full((2, 50), 1 / 50, dtype) if kind == "a batch" else None
    result = cusink.sinkhorn(a, a, cost, eps=eps, tol=tol, max_iter=1200)
    assert np.all(result.converged) and np.all(result.n_iter < 1000)
    plan = np.asarray(result.plan(), np.float64).reshape(-1, 50, 50)
    error = np.abs(plan.sum(axis=1) - 1 / 50).sum(axis=1) + np.abs(plan.sum(axis=2) - 1 / 50).sum(axis=1)
    assert (error <= 2 * tol + 50 * np.finfo(dtype).eps).all()
