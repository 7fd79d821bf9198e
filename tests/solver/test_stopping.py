"""When a problem stops: against plain iterations from the same start, and on problems that hardly converge."""

import warnings

import numpy as np
import pytest
import reference

import cusink


def spread(x, y):
    """Return squared distances between points, the largest of which is 1."""
    C = cusink.cost_matrix(x, y)
    return C / C.max()


def shared_points(n, d, shared):
    """Return costs between points of which some are the same."""
    rng = np.random.default_rng(0)
    x = rng.random((n, d))
    return spread(x, np.concatenate([rng.random((n - shared, d)), x[n - shared :]]))


def drawn(seed):
    """Return weights, costs and eps of a small problem: permuted or shared points, ties, images, Gaussians."""
    rng = np.random.default_rng(seed)
    kind, n, d = seed % 5, int(rng.integers(2, 20)), int(rng.choice([1, 2, 8, 64]))
    x = rng.random((n, d))
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n))
    if kind == 0:
        order = rng.permutation(n)
        C, b = spread(x, x[order]), a[order]
    elif kind == 1:
        shared = int(rng.integers(0, n))
        C, a, b = spread(x, np.concatenate([x[:shared], rng.random((n - shared, d))])), None, None
    elif kind == 2:
        C = rng.integers(0, 4, (n, n)) / 3
    elif kind == 3:
        pixels = np.stack(np.meshgrid(*[np.linspace(0, 1, 4)] * 2), axis=-1).reshape(-1, 2)
        C, (a, b) = spread(pixels, pixels), rng.random((2, 16)) ** 3
    else:
        line = np.linspace(0, 1, n)
        C, (u, v) = spread(line[:, None], line[:, None]), rng.random(2)
        a, b = (np.exp(-((line - center) ** 2) / 0.02) + 1e-6 for center in (u, v))
    if kind > 2:
        a, b = a / a.sum(), b / b.sum()
    return a, b, C, float(rng.choice([0.1, 0.03, 0.01, 0.003, 0.001]))


def both(a, b, C, **options):
    """Return the result of the default and that of plain iterations; neither has to converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        return [cusink.sinkhorn(a, b, C, overrelaxation=o, **options) for o in ("auto", None)]


def test_no_problem_takes_more_than_twice_the_plain_iterations_plus_ten():
    total = np.zeros(2, int)
    for seed in range(200):
        a, b, C, eps = drawn(seed)
        found, plain = both(a, b, C, eps=eps, max_iter=2000)
        if plain.converged:
            assert found.converged and found.n_iter <= 2 * plain.n_iter + 10, seed
            total += int(found.n_iter), int(plain.n_iter)
        assert found.converged == (found.error <= 1e-6), seed
        assert found.n_iter <= 2000, seed
    assert total[0] < 0.35 * total[1]


# Drawn by their numbers: costs of up to 30 000 eps. What Newton's method did wrong: it started from the other side's
# half-step, moved islands by 20 eps at a time, or gave up and came back.
@pytest.mark.parametrize("seed", [27, 514, 521, 534, 541, 556, 559, 569, 577])
def test_nor_does_a_steep_one(seed):
    a, b, C, eps = drawn(seed)
    tol = 1e-6
    if seed > 500:
        rng = np.random.default_rng(seed + 10**6)
        eps, tol = C.max() * 10 ** rng.uniform(-4.5, -1.8), 10 ** rng.uniform(-10, -3)
    found, plain = both(a, b, C, eps=eps, tol=tol, max_iter=2000)
    assert found.converged and (not plain.converged or found.n_iter <= 2 * plain.n_iter + 10)
    plan = found.plan()
    rows, columns = plan.sum(axis=1), plan.sum(axis=0)
    a, b = (np.full(len(p), 1 / len(p)) if w is None else w for w, p in ((a, rows), (b, columns)))
    assert np.abs(rows - a).sum() + np.abs(columns - b).sum() <= 1.01 * found.error + 1e-14


def test_nor_does_one_that_is_looked_at_more_often_or_started_anywhere():
    """Rates of single iterations swing: factors taken from them needed ten times the plain iterations."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        C, a, b = rng.random((3, 4)), rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(4))
        eps, tol = 10 ** rng.uniform(-1.7, 0), 10 ** rng.uniform(-12, -3)
        options = {"eps": eps, "tol": tol, "check_every": 1 + seed % 9, "max_iter": 5000}
        if seed % 2:
            options["init"] = eps * rng.normal(size=3), eps * rng.normal(size=4)
        found, plain = both(a, b, C, **options)
        assert plain.converged and found.converged and found.n_iter <= 2 * plain.n_iter + 10, seed


@pytest.mark.parametrize("rest", [0.0, 1e-12, 6e-7, 1e-4])
@pytest.mark.parametrize("check_every", [1, 10])
def test_nor_does_one_with_its_weight_in_one_bin(check_every, rest):
    """One plain iteration nearly solves it; over-relaxed from the start, as steep problems are, it took 22 and 40."""
    C = np.subtract.outer(np.arange(6.0), np.arange(6.0)) ** 2
    a, b = np.full(6, rest), np.random.default_rng(0).dirichlet(np.ones(6))
    a[4] = 1 - 5 * rest
    for pair in ((a, b), (b, a)):
        found, plain = both(*pair, C, eps=0.1, check_every=check_every)
        assert found.converged and (rest > 1e-12 or plain.n_iter <= 10)
        assert found.n_iter <= 2 * plain.n_iter + 10


def test_a_steep_problem_that_is_looked_at_often_is_not_overrelaxed_at_once():
    C = np.subtract.outer(np.arange(5.0), np.arange(5.0)) ** 2
    a, b = np.array([0.0, 0.1, 0.0, 0.6, 0.3]), np.array([0.9, 0.0, 0.1, 0.0, 0.0])
    found, plain = both(a, b, C, eps=0.1, check_every=1)
    assert found.converged and found.n_iter <= 2 * plain.n_iter + 10


@pytest.mark.parametrize("seed", range(40))
def test_nor_does_one_whose_mass_arrives_all_at_once(seed):
    """With most weight in one bin, plain iterations end some steps after they began to count: 14 of them, not 46."""
    rng = np.random.default_rng(seed)
    n, rest = int(rng.integers(3, 7)), 10 ** rng.uniform(-7, -1.3)
    steps = np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float)
    a, b = rng.dirichlet(np.ones(n)), rest * rng.dirichlet(np.ones(n))
    b[rng.integers(n)] += 1 - rest
    eps, every = steps.max() / 10 ** rng.uniform(1.9, 2.7), int(rng.choice([1, 3, 10]))
    for pair in ((a, b), (b, a)):
        found, plain = both(*pair, steps, eps=eps, tol=1e-9, check_every=every)
        allowed = 2 * int(plain.n_iter) + 10
        assert plain.converged and found.converged and found.n_iter <= -(-allowed // every) * every


def test_nor_does_one_of_huge_costs_whose_stages_would_take_longer():
    """Five stages were thought to take as long as five looks; they took 241 iterations, where 90 were left."""
    a, b = np.array([[0.32, 0.68], [0.69, 0.31]]), np.array([[0.3, 0.7], [0.3, 0.7]])
    C = np.array([[[0.0, 0.0], [100.0, 0.0]], [[0.0, 0.0], [0.0, 500.0]]])
    found, _ = both(a, b, C, eps=np.array([0.004, 0.0006]))
    _, plain = both(a[0], b[0], C[0], eps=0.004)
    assert plain.converged and found.converged[0] and found.n_iter[0] <= 2 * plain.n_iter + 10


def test_nor_does_one_of_huge_costs_that_converges_at_once():
    """Annealing is not paid for where the first iterations do: it took 54."""
    a, b, C = np.array([0.04, 0.96]), np.array([0.5, 0.5]), np.array([[9.0, 0.0], [0.0, 0.0]])
    found, _ = both(a, b, C, eps=2e-4)
    assert found.converged and found.n_iter <= 12


def test_a_mode_that_hardly_converges_does_not_hide_that_the_error_is_small():
    rng = np.random.default_rng(14)
    x = rng.random((6, 2))
    C, a = spread(x, x), rng.dirichlet(np.ones(6))
    found, plain = both(a, a, C, eps=0.003)
    assert plain.n_iter == 10 and found.n_iter <= 30 and found.converged
    rows, columns = found.plan().sum(axis=1), found.plan().sum(axis=0)
    assert np.abs(rows - a).sum() + np.abs(columns - a).sum() < 2e-6


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("method", ["auto", "log"])
def test_a_bin_that_overflows_without_weight_does_not_end_a_problem(method, warm):
    options = {"eps": 0.02, "check_every": 1, "method": method}
    a, b, C = [0.5, 0.5], [0.0, 1.0], [[0.0, 0.0], [0.0, 8.0]]
    init = ([-0.0138, 7.98], [-7.97, 0.0138]) if warm else None
    result = cusink.sinkhorn(a, b, C, init=init, **options)
    assert result.converged and result.error <= 1e-6
    np.testing.assert_allclose(result.cost, 4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_at_small_eps_are_annealed_to_the_end(dtype):
    a, b, C = (np.array(x, dtype) for x in ([0.5, 0.5], [0.25, 0.75], 1 - np.eye(2)))
    result = cusink.sinkhorn(a, b, C, eps=1e-4, tol=1e-5)
    assert result.converged and result.n_iter <= 1000
    np.testing.assert_allclose(result.cost, 0.25, rtol=1e-4)


@pytest.mark.parametrize(
    ("C", "eps", "tol", "most"),
    [
        (shared_points(10, 128, 5), 1e-3, 1e-6, 700),
        (shared_points(50, 64, 49), 1e-2, 1e-6, 700),
        (np.where(np.arange(16).reshape(4, 4) == 7, -1.85, 0.0), 0.01, 1e-5, 1237),
    ],
)
def test_problems_that_crawl_are_annealed(C, eps, tol, most):
    result = cusink.sinkhorn(None, None, C, eps=eps, tol=tol, max_iter=20_000)
    assert result.converged and result.n_iter <= most
    p, q = (np.log(1 / len(C)) + x / eps for x in (result.f, result.g))
    plan = np.exp(p[:, None] + q - C / eps)
    assert np.abs(plan.sum(axis=0) * len(C) - 1).mean() <= 2 * tol
    assert abs(result.f.mean() - result.g.mean()) <= 10 * np.ptp(C)


def test_a_restart_does_not_depend_on_the_other_problems():
    """Problems give up at different iterations, and each has all that its own leave."""
    slow = [shared_points(12, 64, k) for k in (2, 6, 9, 11)]
    quick = np.random.default_rng(0).random((12, 12))
    batch = np.stack([x / x.max() - (x / x.max()).min() for x in [*slow, quick]])
    batch /= batch.max(axis=(1, 2), keepdims=True)
    options = {"eps": 2e-3, "max_iter": 3000}
    seen = []
    weights = np.full((len(batch), 12), 1 / 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        together = cusink.sinkhorn(weights, weights, batch, callback=lambda *x: seen.append(x), **options)
        twice = [cusink.sinkhorn(None, None, np.stack([C, C]), **options) for C in batch]
    np.testing.assert_array_equal(together.n_iter, [r.n_iter[0] for r in twice])
    np.testing.assert_allclose(together.cost, [r.cost[0] for r in twice], rtol=1e-9)
    assert all(len(error) == len(batch) for _, error in seen) and max(done for done, _ in seen) <= 3000


def test_restarted_problems_are_those_of_the_oracle():
    C, w, eps = shared_points(10, 128, 5), np.full(10, 0.1), 5e-3
    result = cusink.sinkhorn(w, w, C, eps=eps, tol=1e-9, max_iter=20_000)
    best = reference.solve(w, w, C, eps)
    assert result.converged
    np.testing.assert_allclose(result.plan(), reference.plan(w, w, C, eps, best.f, best.g), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [(2, 2), (12, 12)])
def test_max_iter_is_kept(size):
    C = np.random.default_rng(1).integers(0, 2, size).astype(float)
    w = np.random.default_rng(2).dirichlet(np.ones(size[0]), 2)
    for max_iter in (1, 7, 305, 499, 500, 777, 1000):
        found, _ = both(*w, C, eps=1e-4, max_iter=max_iter)
        assert found.n_iter <= max_iter


def advice(*args, **options):
    """Return the text of the warning."""
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol") as record:
        cusink.sinkhorn(*args, **options)
    return str(record[0].message)


def test_the_warning_says_what_helps():
    C = np.random.default_rng(0).random((12, 12))
    w = np.full(12, 1 / 12, np.float32)
    text = advice(w, w, C.astype(np.float32), eps=0.01, tol=1e-17, max_iter=100_000)
    assert "rounding of float64" in text and "raise 'eps'" in text and "does not help" in text
    limit = float(text.rpartition(" of ")[2].rstrip("."))
    assert cusink.sinkhorn(w, w, C.astype(np.float32), eps=0.01, tol=limit, max_iter=100_000).converged

    text = advice(None, None, C, eps=0.001, max_iter=50)
    assert "takes about" in text and "raise 'max_iter'" in text
    assert "hardly falls" in advice([0.5, 0.5], [0.25, 0.75], 1 - np.eye(2), eps=1e-4, max_iter=59)


@pytest.mark.parametrize("max_iter", [500, 1000])
def test_a_step_of_newtons_method_at_the_end_keeps_to_max_iter(max_iter):
    a, b = np.array([[0, 1.0], [0.3, 0.7]]), np.full((2, 2), 0.5)
    C = np.array([[[0.6, 0.9], [0, 0.5]], [[0.6, 0], [0.4, 5e7]]])
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, b, C, eps=1e-5, max_iter=max_iter)
    assert result.n_iter.max() <= max_iter


def test_errors_beyond_the_square_root_of_the_range_are_compared_without_a_warning():
    """A pair of 7e18 that light weight must use: on the way the error is 1e304, and over `tol` it is infinite."""
    a, C = np.array([1 - 1e-6, 1e-6]), np.array([[0.1], [7e18]])
    with pytest.warns(cusink.ConvergenceWarning) as seen:
        found = cusink.sinkhorn(a, np.ones(1), C, eps=0.4, max_iter=20000)
    assert [w.category for w in seen] == [cusink.ConvergenceWarning]
    assert not found.converged and found.error > 1


def test_a_problem_that_is_about_to_end_is_not_annealed():
    """After 50 iterations the error was 1.1e-6, and 96 more were taken where one look was left."""
    a, b = np.array([0.2, 0.21, 0.2, 0.2, 0.19]), np.array([0.5, 0.5])
    C = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [700.0, 0.2], [0.0, 1.0]])
    for found in both(a, b, C, eps=0.001):
        assert found.converged and found.n_iter <= 60


def test_what_is_at_the_rounding_of_its_costs_is_not_annealed():
    """The reserve for rounding is not all used: an error between it and the tolerance is done when it is there."""
    a, b = np.full((2, 2), 0.5), np.array([[0.8, 0.2]] * 2)
    x, y = np.array([[0.0] * 3, [17000.0] * 3]), np.array([[1.0, 0.6, 0.6], [0.8, 0.4, 0.5]])
    for method in ("auto", "log"):
        result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=2.0, method=method)
        assert result.converged.all() and (result.n_iter <= 2 * 10 + 10).all()  # plain ones take 10
