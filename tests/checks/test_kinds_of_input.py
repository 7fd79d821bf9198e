"""What is taken as a number, as equal masses and as an input, and what results keep of it."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog

import cusink

ml_dtypes = pytest.importorskip("ml_dtypes")

N = 5
HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(N), (2, 3))
    return a, b, np.abs(np.subtract.outer(np.arange(float(N)), np.arange(float(N)))) / N


@pytest.mark.parametrize(
    "tenth",
    [Fraction(1, 10), Decimal("0.1"), np.array(0.1), np.float64(0.1), np.longdouble("0.1")],
    ids=lambda value: type(value).__name__,
)
def test_a_real_number_of_any_kind_is_the_float_that_it_is_near(problem, tenth):
    a, b, C = problem
    for options in ({}, {"reach": 0.1}, {"tol": 0.1}):
        said = dict.fromkeys(options, tenth) | {"eps": tenth}
        expected = cusink.sinkhorn(a, b, C, **(options | {"eps": 0.1}))
        np.testing.assert_array_equal(cusink.sinkhorn(a, b, C, **said).f, expected.f)
    for call in (
        cusink.distance_matrix,
        cusink.sinkhorn_divergence,
        lambda a, b, C, eps: cusink.barycenter(a, C, eps=eps),
    ):
        found, expected = call(a, b, C, eps=tenth), call(a, b, C, eps=0.1)
        for field in ("divergence", "barycenter"):
            found, expected = getattr(found, field, found), getattr(expected, field, expected)
        np.testing.assert_array_equal(found, expected)
    cloud, other = (cusink.PointCloud([0.0, 2.0], power=power) for power in (tenth, 0.1))
    np.testing.assert_array_equal(cloud.dense(), other.dense())
    np.testing.assert_array_equal(cusink.Grid(3, spacing=tenth).dense(), cusink.Grid(3, spacing=0.1).dense())
    x = np.arange(3.0)
    np.testing.assert_array_equal(
        cusink.kernel_product(x, x, None, scale=tenth), cusink.kernel_product(x, x, None, scale=0.1)
    )


def test_an_eps_in_float64_leaves_float32_as_it_is(problem):
    a, b, C = (x.astype(np.float32) for x in problem)
    for eps in (np.float64(0.1), np.array(0.1)):
        result = cusink.sinkhorn(a, b, C, eps=eps)
        assert result.f.dtype == np.float32
        np.testing.assert_array_equal(result.f, cusink.sinkhorn(a, b, C, eps=0.1).f)


# ---- masses ----------------------------------------------------------------------------------------------------------


def transport_cost(a, b, C):
    """Return the exact cost between weights of mass 1, in float64."""
    n, m = C.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    return linprog(C.ravel(), A_eq=np.concatenate([rows, columns])[:-1], b_eq=np.concatenate([a, b])[:-1]).fun


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("n", "m"), [(17, 29), (29, 17)])
def test_weights_normalised_in_half_precision_have_one_mass(dtype, n, m):
    """29 uniform bins of bfloat16 sum to 0.99829, and 17 to 1.00024."""
    a, b = (np.full(k, 1 / k).astype(HALF[dtype]) for k in (n, m))
    C = np.abs(np.subtract.outer(np.linspace(0, 1, n), np.linspace(0, 1, m))).astype(HALF[dtype])
    exact = transport_cost(np.full(n, 1 / n), np.full(m, 1 / m), C.astype(float))
    result = cusink.sinkhorn(a, b, C, eps=0.01, max_iter=20000)
    lower, upper = (float(x) for x in result.bounds())
    slack = 3 * float(ml_dtypes.finfo(HALF[dtype]).eps) * (1 + exact)  # of the weights' mass, and of the result
    assert lower - slack <= exact <= upper + slack
    x, y = (np.linspace(0, 1, k).astype(HALF[dtype]) for k in (n, m))
    divergence = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.5)
    wide = cusink.PointCloud(x.astype(float), y.astype(float))
    expected = cusink.sinkhorn_divergence(None, None, wide, eps=0.5).divergence
    assert abs(float(divergence.divergence) - expected) <= slack
    rows = np.stack([np.full(n, 1 / n), np.linspace(1, 2, n) / np.linspace(1, 2, n).sum()]).astype(HALF[dtype])
    own = np.abs(np.subtract.outer(np.linspace(0, 1, n), np.linspace(0, 1, n))).astype(HALF[dtype])
    assert np.isfinite(cusink.distance_matrix(rows, None, own, eps=0.5).astype(float)).all()
    assert np.isfinite(cusink.barycenter(rows, own, eps=0.5, tol=1e-3).barycenter.astype(float)).all()


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_does_not_excuse_other_masses(dtype):
    b, C = (np.full(shape, 0.25).astype(HALF[dtype]) for shape in (4, (4, 4)))
    heavy = np.full(4, 1.03125 / 4).astype(HALF[dtype])
    for call in (
        lambda: cusink.sinkhorn(heavy, b, C, eps=0.1),
        lambda: cusink.distance_matrix(np.stack([heavy, b]), None, C, eps=0.1),
        lambda: cusink.barycenter(np.stack([heavy, b]), C, eps=0.1),
    ):
        with pytest.raises(ValueError, match="same mass"):
            call()


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 3e38), (np.float64, 1e308)])
def test_a_mass_beyond_the_range_is_refused(dtype, large):
    a = np.array([large, large], dtype)
    C = np.array([[0, 1], [1, 0]], dtype)
    points = np.arange(2, dtype=dtype)
    for call in (
        lambda: cusink.sinkhorn(a, a, C, eps=0.5),
        lambda: cusink.sinkhorn(a, a, C, eps=0.5, reach=1.0),
        lambda: cusink.sinkhorn_divergence(a, a, C, eps=0.5),
        lambda: cusink.distance_matrix(a[None], None, C, eps=0.5),
        lambda: cusink.nearest(a[None], a[None], C, k=1, eps=0.5),
        lambda: cusink.barycenter(a[None], C, eps=0.5),
        lambda: cusink.distance_matrix(cusink.Measures([0, 2], a, points), None, "euclidean", eps=0.5),
        lambda: cusink.kernel_neg_log_likelihood(points, a, points, a),
    ):
        with pytest.raises(ValueError, match="must have a sum between|must be at most"):
            call()


def test_numbers_in_lists_must_fit_the_arrays_that_they_come_with():
    """As +inf the cost would forbid a pair."""
    a = np.full(2, 0.5, np.float32)
    with pytest.raises(ValueError, match="'C' must lie in the range of float32"):
        cusink.sinkhorn(a, a, [[0.0, 1e39], [1.0, 0.0]], eps=0.1)


def test_costs_that_overflow_are_not_forbidden_pairs():
    for metric in ("sqeuclidean", "euclidean", "cityblock"):
        with pytest.raises(ValueError, match="'x' and 'y' must be so near"):
            cusink.cost_matrix([1.7e308], [-1.7e308], metric)
    with pytest.raises(ValueError, match="'x' and 'y' must be so near"):
        cusink.cost_matrix(np.array([1e20], np.float32), np.array([-1e20], np.float32))


def test_a_grid_of_more_cells_than_arrays_have_is_refused():
    with pytest.raises(ValueError, match="'shape' .*18446744073709551616 cells"):
        cusink.Grid((2**32, 2**32))
    with pytest.raises(ValueError, match="'shape'"):
        cusink.Grid(2**33)
    assert cusink.Grid((2**20, 2**20)).shape == (2**40, 2**40)


def test_offsets_without_a_sign_may_not_fall():
    with pytest.raises(ValueError, match="'offsets' must rise"):
        cusink.Measures(np.array([0, 3, 2, 4], np.uint64), None, np.arange(4.0))


@pytest.mark.parametrize("call", [cusink.distance_matrix, lambda *a, **k: cusink.nearest(*a, k=1, **k)])
def test_on_empty_is_checked_for_dense_histograms_too(problem, call):
    a, b, C = problem
    with pytest.raises(ValueError, match="'on_empty' must be one of 'nan', 'raise'"):
        call(a, b, C, eps=0.1, on_empty="abc")


# ---- what results keep -----------------------------------------------------------------------------------------------


def everything(result):
    lower, upper = result.bounds()
    grads = cusink.sinkhorn_adjoint(result, grad_cost=np.ones_like(result.cost))
    return [result.plan(), lower, upper, result.apply(np.ones(N), 1), grads.a, grads.b, grads.C]


@pytest.mark.parametrize("reach", [None, 1.0])
@pytest.mark.parametrize("batched", [False, True])
def test_a_result_does_not_follow_its_inputs(problem, reach, batched):
    a, b, C = problem
    C = np.stack([C, C + 1, 2 * C]) if batched else C
    result = cusink.sinkhorn(a, b, C, eps=0.1, reach=reach)
    before = everything(result)
    for x in (a, b, C):
        x[...] = 7
    for old, new in zip(before, everything(result), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_result_does_not_follow_points_nor_one_side_of_a_shared_array(problem):
    _, b, C = problem
    x = np.arange(float(N))
    result = cusink.sinkhorn(None, b, cusink.PointCloud(x), eps=0.1)
    plan, slope = result.plan(), cusink.sinkhorn_adjoint(result, grad_cost=np.ones(3)).x
    x[:] = 3 * x[::-1]
    np.testing.assert_array_equal(result.plan(), plan)
    np.testing.assert_array_equal(cusink.sinkhorn_adjoint(result, grad_cost=np.ones(3)).x, slope)
    wide = np.concatenate([b, b])
    part = cusink.sinkhorn(wide[:3], wide[3:], C, eps=0.1, reach=1.0)
    plan = part.plan()
    wide[:] = 7
    np.testing.assert_array_equal(part.plan(), plan)


def test_divergences_do_not_follow_their_inputs(problem):
    a, b, C = problem
    own, other = C.copy(), C.copy()
    result = cusink.sinkhorn_divergence(a, b, C, eps=0.1, C_aa=own, C_bb=other)
    before = cusink.sinkhorn_divergence_adjoint(result)
    before = [before.a, before.b, *before.C]
    for x in (a, b, C, own, other):
        x[...] = 7
    after = cusink.sinkhorn_divergence_adjoint(result)
    for old, new in zip(before, [after.a, after.b, *after.C], strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradients_do_not_follow_the_gradient_that_they_were_made_of(problem):
    a, b, C = problem
    result = cusink.sinkhorn(a, b, C, eps=0.1)
    grad, slope = np.arange(1.0, 4.0), np.ones((3, N))
    of_values = cusink.sinkhorn_adjoint(result, grad_reg_cost=grad, grad_f=slope)
    expected = cusink.sinkhorn_adjoint(result, grad_reg_cost=grad.copy(), grad_f=slope.copy()).C
    of_divergence = cusink.sinkhorn_divergence(a, b, C, eps=0.1)
    lazy, sure = (cusink.sinkhorn_divergence_adjoint(of_divergence, grad=g) for g in (grad, grad.copy()))
    sure = sure.C
    grad[:] = slope[:] = 0
    np.testing.assert_array_equal(of_values.C, expected)
    np.testing.assert_array_equal(lazy.C, sure)
