"""The rows of docs/migration.md that are marked as compared with POT and gensim: both calls give one number."""

import numpy as np
import pytest
from scipy import sparse

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


@pytest.mark.parametrize(
    "method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized", "sinkhorn_epsilon_scaling", "greenkhorn"]
)
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


def test_values_with_the_entropy_of_the_plan_alone(problem, result):
    a, b, M = problem
    solved = ot.solve(M, a, b, reg=REG, reg_type="entropy", tol=1e-13, max_iter=100_000)
    np.testing.assert_allclose([result.entropic_cost, result.cost], [solved.value, solved.value_linear], rtol=1e-9)
    np.testing.assert_allclose(result.plan(), solved.plan, atol=1e-10)


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
    theirs = ot.solve_sample(x, y, reg=1.0, tol=1e-13, max_iter=100_000, debias=True).value
    divergence = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x, y), eps=1.0, tol=1e-12).divergence
    np.testing.assert_allclose(divergence, theirs, rtol=1e-8)
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
    for method in ("sinkhorn_log", "sinkhorn_stabilized"):
        theirs = ot.bregman.barycenter(A.T, M, REG, weights, method=method, **precise)
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    debiased = cusink.barycenter(A, M, weights, eps=REG, tol=1e-7, debiased=True, max_iter=100_000).barycenter
    np.testing.assert_allclose(debiased, ot.bregman.barycenter_debiased(A.T, M, REG, weights, **precise), atol=1e-5)


@pytest.mark.parametrize("name", ["barycenter", "barycenter_sinkhorn"])
def test_the_default_barycenter_of_pot_has_a_higher_objective(histograms, name):
    A, M, weights = histograms

    def objective(p):
        return weights @ cusink.sinkhorn(A, np.tile(p, (3, 1)), M, eps=REG, tol=1e-10, max_iter=10_000).entropic_cost

    ours = cusink.barycenter(A, M, weights, eps=REG, tol=1e-10).barycenter
    theirs = getattr(ot.bregman, name)(A.T, M, REG, weights, stopThr=1e-13, numItermax=100_000)
    assert objective(theirs / theirs.sum()) > objective(ours) + 1e-6


def test_convolutional_barycenters():
    images = np.random.default_rng(3).dirichlet(np.ones(64), size=2).reshape(2, 8, 8)
    theirs = ot.bregman.convolutional_barycenter2d(images, REG, np.array([0.5, 0.5]), stopThr=1e-13)
    grid = cusink.Grid((8, 8), spacing=1 / 7)
    ours = cusink.barycenter(images.reshape(2, -1), grid, [0.5, 0.5], eps=REG, tol=1e-10).barycenter
    np.testing.assert_allclose(ours.reshape(8, 8), theirs / theirs.sum(), atol=1e-8)
    shares = np.array([0.5, 0.5])
    theirs = ot.bregman.convolutional_barycenter2d_debiased(images, 0.02, shares, stopThr=1e-13, numItermax=1000)
    ours = cusink.barycenter(images.reshape(2, -1), grid, shares, eps=0.02, tol=1e-7, debiased=True).barycenter
    np.testing.assert_allclose(ours.reshape(8, 8), theirs / theirs.sum(), atol=1e-5)


@pytest.fixture(scope="module")
def clouds():
    """Points near the corners of a square, their weights, the clouds' shares and a start."""
    rng, corners = np.random.default_rng(6), np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    points = [np.tile(corners, (n, 1)) + 0.3 * rng.normal(size=(4 * n, 2)) for n in (3, 2, 4)]
    weights = [rng.dirichlet(np.full(len(x), 20.0)) for x in points]
    return points, weights, np.array([0.2, 0.3, 0.5]), corners + 0.2 * rng.normal(size=(4, 2))


def free_points(clouds, reach=None):
    points, weights, shares, start = clouds
    measures, tight = cusink.Measures.of(points, weights), {"tol": 1e-8, "solver_tol": 1e-10}
    return cusink.free_barycenter(measures, shares, x=start, eps=0.5, reach=reach, **tight).points


def test_free_barycenters(clouds):
    points, weights, shares, start = clouds
    precise = {"stopThr": 1e-12, "numItermax": 300}
    theirs = ot.bregman.free_support_sinkhorn_barycenter(points, weights, start, 0.5, weights=shares, **precise)
    np.testing.assert_allclose(free_points(clouds), theirs, atol=1e-6)


@pytest.mark.parametrize("reach", [None, 2.0])
def test_barycenters_of_samples(clouds, reach):
    points, weights, shares, start = clouds
    precise = {"tol": 1e-8, "max_iter": 300, "tol_bary": 1e-6, "max_iter_bary": 12, "stopping_criterion": "bary"}
    given = {"X_b_init": start, "reg": 0.5, "unbalanced": reach}
    theirs = ot.solve_bary_sample(points, 4, weights, shares, **given, **precise).X
    np.testing.assert_allclose(free_points(clouds, reach), theirs, atol=1e-5)


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
    solved = ot.solve(M, a, b, reg=REG, unbalanced=price, tol=1e-14, max_iter=100_000)
    np.testing.assert_allclose(ours.plan(), solved.plan, atol=1e-9)
    np.testing.assert_allclose(ours.cost, solved.value_linear, rtol=1e-7)
    np.testing.assert_allclose(ours.reg_cost, objective(solved.plan, a, b, M, REG, reach), rtol=1e-9)
    if reach == 0.3:
        assert abs(solved.value) < 1e-9  # as the page says of POT's value


def objective(plan, a, b, M, reg, reach):
    """Return what `reg_cost` is of this plan."""

    def kl(p, q):
        return float(np.sum(p * np.log(p / q) - p + q))

    prices = reach if isinstance(reach, tuple) else (reach, reach)
    marginals = ((plan.sum(axis=1), a), (plan.sum(axis=0), b))
    missing = sum(rho * kl(*pair) for rho, pair in zip(prices, marginals, strict=True) if rho is not None)
    return np.sum(plan * M) + reg * kl(plan, np.outer(a, b)) + missing


@pytest.mark.parametrize("reach", [0.3, (0.3, None)])
def test_unbalanced_with_the_entropy_of_the_plan_alone(problem, reach):
    a, b, M = problem
    b = b if isinstance(reach, tuple) else 1.5 * b
    price = tuple(np.inf if r is None else r for r in reach) if isinstance(reach, tuple) else reach
    cost = M + REG * np.log(np.outer(a, b))
    ours = cusink.sinkhorn(a, b, cost, eps=REG, reach=reach, tol=1e-12, max_iter=10_000)
    how = {"reg_type": "entropy", "stopThr": 1e-15, "numItermax": 100_000}
    np.testing.assert_allclose(ours.plan(), ot.unbalanced.sinkhorn_unbalanced(a, b, M, REG, price, **how), atol=1e-9)
    linear = ot.unbalanced.sinkhorn_unbalanced2(a, b, M, REG, price, **how)
    np.testing.assert_allclose((ours.plan() * M).sum(), linear, rtol=1e-7)
    if reach == 0.3:  # POT's L-BFGS-B, which takes no infinite price
        solved = ot.solve(M, a, b, reg=REG, reg_type="entropy", unbalanced=reach, tol=1e-14, max_iter=100_000)
        np.testing.assert_allclose(ours.plan(), solved.plan, atol=1e-4)
        np.testing.assert_allclose(ours.reg_cost - REG * a.sum() * b.sum(), solved.value, rtol=1e-7)


def test_unbalanced_without_entropy(problem):
    a, b, M = problem
    b = 1.5 * b
    found = cusink.sinkhorn(a, b, M, eps=0.001, reach=0.3, tol=1e-10, max_iter=10_000)
    low, high = found.bounds()
    linear = ot.unbalanced.mm_unbalanced2(a, b, M, 0.3, div="kl", numItermax=100_000)
    totals = (
        ot.unbalanced.mm_unbalanced2(a, b, M, 0.3, div="kl", returnCost="total", numItermax=100_000),
        ot.unbalanced.lbfgsb_unbalanced2(a, b, M, 0, 0.3, regm_div="kl", returnCost="total", numItermax=100_000),
        ot.solve(M, a, b, unbalanced=0.3).value,
    )
    assert all(low - 1e-9 <= total <= high + 1e-9 for total in totals)
    assert high - low < 1e-3 and linear < low  # POT's default is no value that the bounds enclose
    np.testing.assert_allclose(found.cost, linear, atol=1e-3)


def test_the_word_mover_s_distance_of_gensim(tmp_path):
    models, similarities = (pytest.importorskip(f"gensim.{name}") for name in ("models", "similarities"))
    rng = np.random.default_rng(0)
    words = [f"word {i}" for i in range(12)]
    vectors = models.KeyedVectors(4)
    vectors.add_vectors(words, rng.normal(size=(12, 4)).astype(np.float32))
    texts = [[words[i] for i in rng.integers(12, size=5)] for _ in range(6)]
    A = sparse.csr_array(np.array([[text.count(word) / len(text) for word in words] for text in texts]))

    points = cusink.PointCloud(vectors.get_normed_vectors(), metric="euclidean")
    theirs = np.array([[vectors.wmdistance(one, other) for other in texts] for one in texts])
    ours = cusink.distance_matrix(A, A, points, eps=0.005)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    raw = np.array([[vectors.wmdistance(one, other, norm=False) for other in texts] for one in texts])
    points_as_they_are = cusink.PointCloud(vectors.vectors, metric="euclidean")
    np.testing.assert_allclose(cusink.distance_matrix(A, A, points_as_they_are, eps=0.005), raw, atol=1e-3)

    similarity = similarities.WmdSimilarity(texts, vectors, num_best=3)
    index = cusink.Index(A, points, eps=0.005)
    index.save(tmp_path / "index")
    similarity.save(str(tmp_path / "similarity"))
    similarity = similarities.WmdSimilarity.load(str(tmp_path / "similarity"))
    for number, text in enumerate(texts):
        numbers, closeness = zip(*similarity[text], strict=True)
        for distances, indices in (
            index.search(A[[number]], 3),
            cusink.Index.load(tmp_path / "index").search(A[[number]], 3),
            cusink.nearest(A[[number]], A, points, k=3, eps=0.005),
        ):
            assert tuple(indices[0]) == numbers
            np.testing.assert_allclose(1 / (1 + distances[0]), closeness, atol=1e-3)
