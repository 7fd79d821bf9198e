"""The rows of docs/migration.md that are marked as compared with POT: both calls give one number."""

import numpy as np
import pytest

import cusink

ot = pytest.importorskip("ot")

pytestmark = pytest.mark.filterwarnings("ignore")  # POT's own, about its iterations

REG = 0.05


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(6), size=2)
    return a, b, rng.random((6, 6))


@pytest.fixture(scope="module")
def result(problem):
    return cusink.sinkhorn(*problem, eps=REG, tol=1e-12)


@pytest.fixture(scope="module")
def histograms():
    A = np.random.default_rng(1).dirichlet(np.ones(6), size=3)
    return A, np.subtract.outer(np.arange(6.0), np.arange(6.0)) ** 2 / 25, np.array([0.2, 0.3, 0.5])


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized", "greenkhorn"])
def test_sinkhorn_of_every_method(problem, result, method):
    plan = ot.sinkhorn(*problem, REG, method=method, stopThr=1e-13, numItermax=100_000)
    np.testing.assert_allclose(result.plan(), plan, atol=1e-8)


def test_values(problem, result):
    a, b, M = problem
    np.testing.assert_allclose(result.cost, ot.sinkhorn2(a, b, M, REG, stopThr=1e-13), rtol=1e-9)
    solved = ot.solve(M, a, b, reg=REG, tol=1e-13, max_iter=100_000)
    np.testing.assert_allclose([result.reg_cost, result.cost], [solved.value, solved.value_linear], rtol=1e-9)
    np.testing.assert_allclose(result.plan(), solved.plan, atol=1e-10)
    low, high = cusink.sinkhorn(*problem, eps=0.001, max_iter=10_000).bounds()
    assert low - 1e-9 <= ot.emd2(a, b, M) <= high + 1e-9
    assert high - low < 0.01


def test_potentials(problem, result):
    a, b, M = problem
    log = ot.sinkhorn(a, b, M, REG, stopThr=1e-13, log=True)[1]
    for ours, scaling, weights in ((result.f, log["u"], a), (result.g, log["v"], b)):
        assert np.ptp(ours - REG * np.log(scaling / weights)) < 1e-8  # up to a constant


def test_one_to_many_with_empty_bins(histograms):
    A, M, _ = histograms
    a = np.array([0.5, 0.5, 0, 0, 0, 0])
    inside = a > 0  # POT's plain iteration has to be kept from them
    theirs = ot.sinkhorn2(a[inside], A.T, M[inside], REG, stopThr=1e-13, numItermax=100_000)
    ours = cusink.distance_matrix(a[None], A, M, eps=REG, tol=1e-11, max_iter=10_000)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_batches(problem, result):
    a, b, M = problem
    from ot.batch import solve_batch

    solved = solve_batch(np.stack([M, 2 * M]), REG, np.stack([a, a]), np.stack([b, b]), tol=1e-13, max_iter=100_000)
    ours = cusink.sinkhorn(np.stack([a, a]), np.stack([b, b]), np.stack([M, 2 * M]), eps=REG, tol=1e-12)
    np.testing.assert_allclose(ours.entropic_cost, solved.value, rtol=1e-8)
    np.testing.assert_allclose(ours.cost, solved.value_linear, rtol=1e-8)
    np.testing.assert_allclose(ours.cost[0], result.cost, rtol=1e-10)


def test_points():
    x, y = np.random.default_rng(2).normal(size=(2, 20, 2))

    def cost(p, q):
        return float(cusink.sinkhorn(None, None, cusink.PointCloud(p, q), eps=1.0, tol=1e-12).cost)

    ours = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=1.0, tol=1e-12)
    np.testing.assert_allclose(ours.plan(), ot.bregman.empirical_sinkhorn(x, y, 1.0, stopThr=1e-13), atol=1e-9)
    np.testing.assert_allclose(cost(x, y), ot.bregman.empirical_sinkhorn2(x, y, 1.0, stopThr=1e-13), rtol=1e-9)
    theirs = ot.bregman.empirical_sinkhorn_divergence(x, y, 1.0, stopThr=1e-13)
    np.testing.assert_allclose(cost(x, y) - cost(x, x) / 2 - cost(y, y) / 2, theirs, rtol=1e-8)
    np.testing.assert_allclose(cusink.cost_matrix(x, y), ot.dist(x, y), rtol=1e-12)
    theirs = ot.solve_sample(x, y, reg=1.0, tol=1e-13, max_iter=100_000)
    np.testing.assert_allclose([ours.reg_cost, ours.cost], [theirs.value, theirs.value_linear], rtol=1e-8)
    batch = ot.batch.solve_sample_batch(x[None], y[None], 1.0, tol=1e-13, max_iter=100_000)
    np.testing.assert_allclose(cost(x, y), np.asarray(batch.value_linear)[0], rtol=1e-8)


def test_steps_of_batches(problem, result):
    a, b, M = problem
    from ot import batch

    plan = result.plan()
    np.testing.assert_allclose(batch.loss_linear_batch(M[None], plan[None])[0], result.cost, rtol=1e-9)
    entropy = (result.cost - result.entropic_cost) / REG
    np.testing.assert_allclose(batch.entropy_batch(plan[None])[0], entropy, rtol=1e-9)
    ours = cusink.sinkhorn(a, b, M / REG, eps=1.0, tol=1e-12).plan()
    for name, kernel in (("bregman_projection_batch", np.exp(-M / REG)), ("bregman_log_projection_batch", -M / REG)):
        theirs = getattr(batch, name)(kernel[None], a[None], b[None], tol=1e-13, max_iter=100_000)["T"]
        np.testing.assert_allclose(ours, theirs[0], atol=1e-9)


def test_lines():
    x, y = np.random.default_rng(4).normal(size=(2, 7, 5))
    a, b = np.random.default_rng(5).dirichlet(np.ones(5), size=2)
    for power in (1.0, 2.0):
        theirs = ot.wasserstein_1d(x.T, y.T, a, b, p=power)
        np.testing.assert_allclose(cusink.wasserstein_1d(x, a, y, b, power=power), theirs, rtol=1e-9)
    theirs = ot.emd2_1d(x[0], y[0], a, b)
    np.testing.assert_allclose(cusink.wasserstein_1d(x[0], a, y[0], b, power=2.0), theirs, rtol=1e-9)


def test_barycenters(histograms):
    A, M, weights = histograms
    precise = {"stopThr": 1e-13, "numItermax": 100_000}
    ours = cusink.barycenter(A, M, weights, eps=REG, tol=1e-10).barycenter
    theirs = ot.bregman.barycenter_stabilized(A.T, M, REG, weights=weights, **precise)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)
    debiased = cusink.barycenter(A, M, weights, eps=REG, tol=1e-7, debiased=True, max_iter=100_000).barycenter
    np.testing.assert_allclose(debiased, ot.bregman.barycenter_debiased(A.T, M, REG, weights, **precise), atol=1e-5)


def test_the_default_barycenter_of_pot_has_a_higher_objective(histograms):
    A, M, weights = histograms

    def objective(p):
        return weights @ cusink.sinkhorn(A, np.tile(p, (3, 1)), M, eps=REG, tol=1e-10, max_iter=10_000).entropic_cost

    ours = cusink.barycenter(A, M, weights, eps=REG, tol=1e-10).barycenter
    theirs = ot.bregman.barycenter(A.T, M, REG, weights, stopThr=1e-13, numItermax=100_000)
    assert objective(theirs / theirs.sum()) > objective(ours) + 1e-6


def test_convolutional_barycenters():
    images = np.random.default_rng(3).dirichlet(np.ones(64), size=2).reshape(2, 8, 8)
    theirs = ot.bregman.convolutional_barycenter2d(images, REG, np.array([0.5, 0.5]), stopThr=1e-13)
    grid = cusink.Grid((8, 8), spacing=1 / 7)
    ours = cusink.barycenter(images.reshape(2, -1), grid, [0.5, 0.5], eps=REG, tol=1e-10).barycenter
    np.testing.assert_allclose(ours.reshape(8, 8), theirs / theirs.sum(), atol=1e-8)


@pytest.mark.parametrize("reach", [0.3, (0.3, None)])
def test_unbalanced(problem, reach):
    a, b, M = problem
    b = b if isinstance(reach, tuple) else 1.5 * b
    price = tuple(np.inf if r is None else r for r in reach) if isinstance(reach, tuple) else reach
    theirs = ot.unbalanced.sinkhorn_unbalanced(a, b, M, REG, price, reg_type="kl", stopThr=1e-14, numItermax=100_000)
    ours = cusink.sinkhorn(a, b, M, eps=REG, reach=reach, tol=1e-12, max_iter=10_000)
    np.testing.assert_allclose(ours.plan(), theirs, atol=1e-9)
    linear = ot.unbalanced.sinkhorn_unbalanced2(a, b, M, REG, price, reg_type="kl", stopThr=1e-14, numItermax=100_000)
    np.testing.assert_allclose(ours.cost, linear, rtol=1e-7)
