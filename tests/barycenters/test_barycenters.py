"""Barycenters: stationary points of the objective that the oracle computes, and the closed form of Gaussians."""

import warnings

import numpy as np
import problems
import pytest
import reference

import cusink


def objective(p, A, C, weights, eps, debiased):
    """Return the objective of a barycenter, from its definition."""
    if debiased:
        own = reference.optimum(p, p, C, eps).reg_cost / 2
        return sum(w * (reference.optimum(a, p, C, eps).reg_cost - own) for a, w in zip(A, weights, strict=True))
    return sum(w * reference.optimum(a, p, C, eps).entropic_cost for a, w in zip(A, weights, strict=True))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("eps", [0.1, 0.02])
def test_no_histogram_near_by_is_better(eps, debiased):
    rng = np.random.default_rng(1)
    A, weights, C = problems.histograms(rng, 3, 6), np.array([0.5, 0.2, 0.3]), problems.line_cost(6)
    if debiased:
        A = 0.2 + A  # the barycenter keeps away from the edge of the simplex, where it would have no derivative
        A /= A.sum(axis=1, keepdims=True)
    result = cusink.barycenter(A, C, weights, eps=eps, debiased=debiased, tol=1e-8, max_iter=5000)
    p = result.barycenter
    assert result.converged and abs(p.sum() - 1) <= 1e-12 and p.min() > 0
    best = objective(p, A, C, weights, eps, debiased)
    for _ in range(3):
        way = rng.normal(size=6)
        way -= way.mean()
        up, down = (objective(p + sign * 1e-3 * p.min() * way, A, C, weights, eps, debiased) for sign in (1, -1))
        assert up > best and down > best
        # Stationary: of the change to either side next to nothing is linear.
        assert abs(up - down) <= 2e-2 * (up + down - 2 * best)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gaussians_in_closed_form(dtype):
    """Equal variances s2: the mean of the means; the variance is s2 when debiased, and s2 + eps / 2 when not."""
    x = np.linspace(-5, 5, 161)
    A = np.exp(-(((x - np.array([[-2.0], [1.0]])) / 0.5) ** 2) / 2)
    A = (A / A.sum(axis=1, keepdims=True)).astype(dtype)
    C, weights = cusink.cost_matrix(x).astype(dtype), np.array([0.3, 0.7], dtype)
    for eps in (1.0, 0.1):
        for debiased in (False, True):
            tol = 1e-7 if dtype == np.float64 else 1e-4
            p = cusink.barycenter(A, C, weights, eps=eps, debiased=debiased, tol=tol, max_iter=3000).barycenter
            assert p.dtype == dtype
            mean = (p * x).sum()
            variance = (p * (x - mean) ** 2).sum()
            within = 1e-6 if dtype == np.float64 else 2e-3
            assert abs(mean - 0.1) <= within and abs(variance - 0.25 - (0 if debiased else eps / 2)) <= within


def test_one_histogram_is_its_own_barycenter_if_debiased_and_blurred_if_not():
    a = problems.histograms(np.random.default_rng(3), 1, 20) + 0.02
    a /= a.sum()
    C, eps = problems.line_cost(20), 0.002
    blurred = cusink.barycenter(a, C, eps=eps, tol=1e-10).barycenter
    K = np.exp(-C / eps)
    np.testing.assert_allclose(blurred, (a[0] / K.sum(axis=1)) @ K, rtol=0, atol=1e-10)
    sharp = cusink.barycenter(a, C, eps=eps, debiased=True, tol=1e-7).barycenter
    np.testing.assert_allclose(sharp, a[0], rtol=0, atol=1e-5)


def test_a_batch_is_its_problems_and_each_stops_by_itself():
    rng = np.random.default_rng(5)
    A, weights, C = problems.histograms(rng, 4, 15, zeros=0.5, mass=3.0), rng.random((3, 4)), problems.line_cost(15, 12)
    weights[0] = (0, 0, 5, 0)
    result = cusink.barycenter(A, C, weights, eps=0.01, check_every=3)
    assert result.barycenter.shape == (3, 12) and len(set(result.n_iter)) > 1 and result.converged.all()
    np.testing.assert_allclose(result.barycenter.sum(axis=1), 3, rtol=1e-12)
    stacked = cusink.barycenter(np.stack([A] * 3), C, weights, eps=0.01, check_every=3)
    np.testing.assert_array_equal(stacked.barycenter, result.barycenter)
    for k in range(3):
        one = cusink.barycenter(A, C, weights[k], eps=0.01, check_every=3)
        assert one.n_iter == result.n_iter[k] and one.barycenter.shape == (12,)
        np.testing.assert_allclose(one.barycenter, result.barycenter[k], rtol=0, atol=1e-12)
    order = [2, 0, 3, 1]  # of sums, whose rounding a choice of omega would multiply
    straight, turned = (
        cusink.barycenter(A[index], C, weights[:, index], eps=0.01, overrelaxation=1.5)
        for index in (slice(None), order)
    )
    np.testing.assert_allclose(turned.barycenter, straight.barycenter, rtol=0, atol=1e-12)
    np.testing.assert_allclose(straight.barycenter, result.barycenter, rtol=0, atol=1e-5)
    alone = cusink.barycenter(A[2:3], C, eps=0.01, tol=1e-9)  # what weighs nothing counts for nothing
    np.testing.assert_allclose(result.barycenter[0], alone.barycenter, rtol=0, atol=1e-5)


def test_over_relaxation_is_quicker_and_changes_nothing():
    A, C = problems.histograms(np.random.default_rng(6), 3, 30, zeros=0.5), problems.line_cost(30)
    plain, auto, fixed = (
        cusink.barycenter(A, C, eps=0.003, tol=1e-9, max_iter=5000, overrelaxation=o) for o in (None, "auto", 1.9)
    )
    assert auto.n_iter * 3 < plain.n_iter
    np.testing.assert_allclose(auto.barycenter, plain.barycenter, rtol=0, atol=1e-7)
    np.testing.assert_allclose(fixed.barycenter, plain.barycenter, rtol=0, atol=1e-7)


def test_small_eps_stays_in_range():
    """Costs of 1e5 eps: every kernel entry off the diagonal underflows."""
    A = np.zeros((2, 21))
    A[0, 0] = A[1, -1] = 1
    C = problems.line_cost(21)
    p = cusink.barycenter(A, C, eps=1e-5, tol=1e-9, max_iter=3000).barycenter
    assert np.isfinite(p).all() and p.argmax() == 10 and p[10] > 0.999


@pytest.mark.parametrize("debiased", [False, True])
def test_costs_that_are_not_stored_and_both_libraries(xp, debiased):
    rng = np.random.default_rng(7)
    A = problems.histograms(rng, 3, 20, zeros=0.3)
    grid, points = cusink.Grid((4, 5), spacing=0.4), rng.random((20, 2))
    options = {"eps": 0.1, "debiased": debiased, "tol": 1e-3, "max_iter": 3000}
    for C, dense in ((grid, grid.dense()), (cusink.PointCloud(xp(points)), cusink.cost_matrix(points))):
        result = cusink.barycenter(xp(A), C, **options)
        assert xp.owns(result.barycenter) and xp.owns(result.error) and xp.owns(result.converged)
        best = cusink.barycenter(A, dense, **options)
        np.testing.assert_allclose(xp.numpy(result.barycenter), best.barycenter, rtol=0, atol=1e-6)


def test_a_miss_is_said_and_none_runs_all():
    A, C = problems.histograms(np.random.default_rng(8), 2, 9), problems.line_cost(9)
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol=1e-12") as record:
        result = cusink.barycenter(A, C, eps=0.001, tol=1e-12, max_iter=5)
    assert record[0].filename == __file__ and not result.converged and result.n_iter == 5
    exact = cusink.barycenter(A, C, eps=0.001, tol=None, max_iter=7)
    assert exact.n_iter == 7 and exact.converged


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("dtype", "mass"), [("float32", 2e30), ("float32", 3e-30), ("float64", 1e200)])
def test_errors_are_those_of_any_mass(dtype, mass, debiased):
    """The unit of mass changes neither the error nor where the iterations end."""
    rng = np.random.default_rng(0)
    A, C, grad = rng.dirichlet(np.ones(8), 3), rng.random((8, 8)), rng.normal(size=8).astype(dtype)
    C, options = (C + C.T).astype(dtype), {"eps": 0.05, "debiased": debiased}
    for stop, off in (({"max_iter": 1, "check_every": 1}, 0.05), ({}, 2e-5)):
        want = cusink.barycenter(A, C.astype(float), tol=1e-9, max_iter=20_000, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cusink.ConvergenceWarning)
            one, heavy = (cusink.barycenter((A * m).astype(dtype), C, **stop, **options) for m in (1, mass))
        assert heavy.converged == one.converged == (not stop)
        assert abs(heavy.n_iter - one.n_iter) <= 10 and heavy.error == pytest.approx(float(one.error), rel=0.5)
        found = heavy.barycenter.astype(float) / mass
        assert (abs(found - want.barycenter).sum() > off) == bool(stop)
    slopes = [cusink.barycenter_adjoint(x, grad_barycenter=grad).A for x in (one, heavy)]
    np.testing.assert_allclose(slopes[1], slopes[0], atol=1e-4 * abs(slopes[0]).max())


def test_a_histogram_of_weight_zero_counts_nothing_however_far_it_is():
    A = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    C = np.array([[0, 0.1, 0.4], [0.1, 0, 0.1], [0.4, 0.1, 0]], np.float32)
    found = cusink.barycenter(A, C, np.float32([0, 2]), eps=0.003)
    np.testing.assert_allclose(found.barycenter, cusink.barycenter(A[1:], C, eps=0.003).barycenter, rtol=1e-5)


def test_the_error_of_bins_without_mass_is_a_number():
    C = np.array([[0, 0.25, 1], [0.25, 0, 0.25], [1, 0.25, 0]], np.float32)
    found = cusink.barycenter(np.float32([[1, 0, 0]]), C, eps=0.003, debiased=True, tol=1e-4)
    assert found.converged and found.error <= 1e-4
    np.testing.assert_allclose(found.barycenter, [1, 0, 0], atol=1e-6)


A = np.full((3, 4), 0.25)


def forbidding(seed=0):
    """Histograms and costs of which some are forbidden, so that bins of the barycenter stay empty."""
    rng = np.random.default_rng(seed)
    A, C = rng.dirichlet(np.ones(7), size=3), rng.random((7, 6))
    A[0, :3] = 0
    C[3:, 4] = np.inf  # the first histogram cannot reach bin 4
    C[rng.random(C.shape) < 0.2] = np.inf
    C[:, 0] = rng.random(7)
    return A / A.sum(axis=1, keepdims=True), C


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.0, 0.6, 0.4)])
@pytest.mark.parametrize("overrelaxation", ["auto", None])
def test_forbidden_pairs_carry_nothing(weights, overrelaxation):
    A, C = forbidding()
    found = cusink.barycenter(A, C, weights, eps=0.2, tol=1e-11, max_iter=20_000, overrelaxation=overrelaxation)
    assert found.converged
    # Plain iterations with the scalings themselves, of the histograms that count.
    w, A = np.array(weights)[np.array(weights) > 0], A[np.array(weights) > 0]
    K, v = np.exp(-C / 0.2), np.ones((len(A), 6))
    for _ in range(20_000):
        u = A / (v @ K.T)
        p = np.prod((u @ K) ** w[:, None], axis=0)
        v = np.divide(p, u @ K, out=np.zeros_like(v), where=u @ K > 0)
    np.testing.assert_allclose(found.barycenter, p / p.sum(), atol=1e-9)
    assert (found.barycenter[4] == 0) == (weights[0] > 0)


def test_a_bin_that_may_send_its_mass_to_no_common_bin_is_refused():
    A, C = forbidding()
    C[1, [0, 1, 2, 3, 5]] = np.inf  # to bin 4 alone, which the first histogram cannot reach
    with pytest.raises(ValueError, match=r"'C' must allow .* in problem 0, bin 1 of histogram [12] has none"):
        cusink.barycenter(A, C, eps=0.2)
    assert cusink.barycenter(A, C, [0.0, 0.5, 0.5], eps=0.2).converged
    with pytest.raises(ValueError, match="'C' must be finite for a debiased barycenter"):
        cusink.barycenter(A[:, :6], C[:6], eps=0.2, debiased=True)


def apart(*pairs, n=4, m=4):
    """Return costs of which these pairs alone are allowed."""
    C = np.full((n, m), np.inf)
    for at in pairs:
        C[at] = 0.1
    return C


def test_histograms_that_nothing_connects_are_refused_before_any_work(xp):
    A = np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0]])
    diagonal = apart(*((k, k) for k in range(4)))
    for call in (
        lambda **how: cusink.barycenter(xp(A), xp(diagonal), eps=0.1, **how),
        lambda **how: cusink.barycenter(xp(7 * A), xp(diagonal), eps=[0.1, 0.2], **how),
        lambda **how: cusink.barycenter(xp(np.stack([A[[0, 0]], A])), xp(diagonal), eps=0.1, **how),
        lambda **how: cusink.barycenter(xp(A), xp(diagonal), xp(np.array([[1.0, 0.0], [0.5, 0.5]])), eps=0.1, **how),
        lambda **how: cusink.barycenter(xp(A * [[3.0], [1.0]]), xp(diagonal), eps=0.1, normalise=True, **how),
    ):
        with pytest.raises(
            ValueError, match=r"histogram 0 has the share 0.5 of its mass there, histogram 1 0.25. Allow"
        ):
            call()
    blocks = apart((0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3))  # two groups of two bins
    with pytest.raises(ValueError, match="in problem 0, .inf parts bin 0 .* from all others"):
        cusink.barycenter(xp(np.array([[0.2, 0.3, 0.5, 0.0], [0.3, 0.5, 0.2, 0.0]])), xp(blocks), eps=0.1)
    # What has no mass connects nothing, and what has no weight is not asked.
    joined = apart((0, 0), (1, 1), (2, 0), (2, 1))
    with pytest.raises(ValueError, match="histogram 0 has the share 0.5"):
        cusink.barycenter(xp(A), xp(joined), eps=0.1)
    assert cusink.barycenter(xp(A[[0, 1, 0]]), xp(diagonal), [1.0, 0.0, 2.0], eps=0.1).converged


def test_histograms_of_one_share_in_each_group_have_their_barycenter():
    A = np.array([[0.5, 0.1, 0.4, 0.0], [0.2, 0.4, 0.1, 0.3]])
    C = apart((0, 0), (0, 1), (1, 1), (1, 0), (2, 2), (2, 3), (3, 3))
    A[1, 2:] = A[1, 2:][::-1]
    for dtype, off in ((np.float64, 1e-8), (np.float32, 1e-4)):  # to the digits of the masses
        given = A.astype(dtype)
        given[0, :2] += dtype(off)
        given[0, 2] -= dtype(2 * off)
        found = cusink.barycenter(given, C.astype(dtype), eps=0.1, tol=1e-3)
        assert found.converged and found.barycenter[:2].sum() == pytest.approx(0.6, abs=1e-3)


def test_what_no_check_of_groups_sees_is_said_by_the_warning():
    A, C = np.array([[0.5, 0.01, 0.49], [0.9, 0.0, 0.1]]), apart((0, 0), (1, 0), (1, 1), (2, 1), n=3, m=2)
    with pytest.warns(cusink.ConvergenceWarning, match="the pairs that 'C' forbids .* may leave no histogram"):
        cusink.barycenter(A, C, eps=0.1, max_iter=300)
    with pytest.warns(cusink.ConvergenceWarning) as record:
        cusink.barycenter(A, np.where(np.isfinite(C), C, 1.0), eps=0.01, max_iter=2)
    assert "forbids" not in str(record[0].message)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("large", [5e2, 1e9, 1e25])
def test_float32_has_the_digits_of_float64_where_costs_are_steep(large, debiased):
    """At C / eps of 2e11 the error was NaN."""
    A = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    C = np.array([[0.0, 1.0, large], [1.0, 0.0, 1.0], [large, 1.0, 0.0]])
    wanted = cusink.barycenter(A, C, eps=0.01, debiased=debiased, tol=1e-6)
    found = cusink.barycenter(A.astype(np.float32), C.astype(np.float32), eps=0.01, debiased=debiased, tol=1e-6)
    assert found.converged and found.barycenter.dtype == np.float32
    np.testing.assert_allclose(found.barycenter, wanted.barycenter, atol=2e-6)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
def test_what_has_no_digits_has_an_error_that_is_a_number():
    """Logarithms beyond the digits of float64 too: nothing overflows but the error."""
    rng = np.random.default_rng(5)
    for exponent in rng.uniform(13, 29, 100):
        C = 10.0**exponent * np.array([[0.1], [0.7]])
        found = cusink.barycenter(rng.dirichlet([1.0, 0.3], 2), C, eps=0.003, max_iter=50)
        assert np.isfinite(found.error) and np.isfinite(found.barycenter).all()


BAD = [
    ({"A": None}, TypeError, "'A' must be an array of histograms; got None"),
    ({"A": A[0]}, ValueError, r"'A' must have shape \(K, 4\) or \(B, K, 4\)"),
    ({"A": A[:, :3]}, ValueError, r"to match C of shape \(4, 4\); got \(3, 3\)"),
    ({"A": -A}, ValueError, "'A' must be non-negative"),
    ({"A": A * [[1], [2], [1]]}, ValueError, "row 0 has 1 and row 1 has 2 in problem 0. normalise=True"),
    ({"weights": [1.0, 2.0]}, ValueError, r"'weights' must have shape \(3,\) or \(B, 3\)"),
    ({"weights": [1.0, -2.0, 3.0]}, ValueError, "'weights' must be non-negative"),
    ({"weights": [0.0, 0.0, 0.0]}, ValueError, "'weights' must have a positive sum"),
    ({"A": np.stack([A, A]), "weights": np.ones((3, 3))}, ValueError, "batch sizes must be equal or 1; got 'A' 2"),
    ({"C": np.full((4, 4), np.inf)}, ValueError, "'C' must hold finite costs"),
    ({"C": np.full((4, 4), np.nan)}, ValueError, "'C' must hold finite costs"),
    ({"C": np.zeros((2, 4, 4))}, ValueError, r"'C' must have shape \(n, m\)"),
    ({"C": np.arange(16.0).reshape(4, 4), "debiased": True}, ValueError, "'C' must be symmetric for a debiased"),
    ({"C": np.ones((4, 5)), "debiased": True}, ValueError, "'C' must be symmetric for a debiased"),
    ({"debiased": "yes"}, TypeError, "'debiased' must be a bool"),
    ({"eps": 0}, ValueError, "'eps' must be positive"),
    ({"eps": [0.1, -1.0]}, ValueError, r"'eps' must be positive and finite; got -1 at \[1\]"),
    ({"eps": [0.1, 1e-320]}, ValueError, "'eps' must be such that C / eps is finite"),
    ({"eps": np.ones((2, 2))}, ValueError, r"an array of one for each problem, shape \(B,\); got shape \(2, 2\)"),
    ({"eps": [0.1, 0.2], "A": np.stack([A] * 3)}, ValueError, "batch sizes must be equal or 1; got 'A' 3, 'eps' 2"),
    ({"tol": -1}, ValueError, "'tol' must be positive"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    given = {"A": A, "C": problems.line_cost(4), "eps": 0.1} | options
    with pytest.raises(error, match=message):
        cusink.barycenter(**given)
