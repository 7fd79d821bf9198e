"""Gradients of unbalanced transport against centred differences of solves in float64."""

import math
from fractions import Fraction

import numpy as np
import problems
import pytest

import cusink

EPS = 0.05
REACHES = [(0.4, 0.1), (0.3, None), (None, 0.3), 1e4]


def drawn(shared=True):
    rng = np.random.default_rng(3)
    a, b = problems.histograms(rng, 2, 5), problems.histograms(rng, 2, 6, mass=1.5)
    a[:, 2] = b[:, 3] = 0
    return {"a": a, "b": b, "C": rng.random((5, 6)) if shared else rng.random((2, 5, 6)), "eps": EPS}


def loss(cotangents, reach, a, b, C, eps):
    result = cusink.sinkhorn(a, b, C, eps=eps, reach=reach, tol=1e-13, max_iter=400, check_every=50)
    return sum((v * getattr(result, name.removeprefix("grad_"))).sum() for name, v in cotangents.items())


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # the differences want more digits than there are
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("names", [("cost",), ("reg_cost",), ("f", "g"), ("cost", "reg_cost", "f", "g")])
def test_gradients_are_differences(names, reach):
    rng = np.random.default_rng(7)
    given = drawn(shared=len(names) != 2)
    result = cusink.sinkhorn(*list(given.values())[:3], eps=EPS, reach=reach, tol=1e-13, max_iter=2000)
    cotangents = {f"grad_{name}": rng.normal(size=getattr(result, name).shape) for name in names}
    grads = cusink.sinkhorn_adjoint(result, **cotangents, tol=1e-10)
    assert grads.converged.all()
    for name, value in given.items():
        step = 1e-5 * rng.normal(size=np.shape(value)) * (value > 0)  # an empty bin may only gain, see below
        up, down = (loss(cotangents, reach, **(given | {name: value + sign * step})) for sign in (1, -1))
        terms = getattr(grads, name) * step
        rounding = 3e-12 * max(1.0, 1e-2 * np.abs(result.f).max())
        assert abs((up - down) / 2 - terms.sum()) <= 2e-7 * np.abs(terms).sum() + rounding, name


@pytest.mark.parametrize("reach", [(0.4, 0.1), (None, 0.3), (1e4, 30.0)])
@pytest.mark.parametrize("names", [("cost", "entropic_cost"), ("reg_cost",), ("f", "g"), ("plan",)])
def test_gradients_by_the_prices_are_differences(names, reach, xp):
    rng, given = np.random.default_rng(8), drawn()
    given["C"][1, 2] = given["C"][3, :] = np.inf  # a forbidden pair, and a bin all of whose mass stays behind
    if reach[0] is None:
        given["C"][3, 0] = 0.5

    def solved(reach):
        arrays = [xp(given[name]) for name in "abC"]
        return cusink.sinkhorn(*arrays, eps=EPS, reach=reach, tol=1e-12, max_iter=20_000)

    result = solved(reach)
    outputs = {name: result.plan() if name == "plan" else getattr(result, name) for name in names}
    cotangents = {name: rng.normal(size=x.shape) for name, x in outputs.items()}
    if "f" in names:
        cotangents["f"][:, 3] = 0  # shown as 0 where it is infinite
    pulled = {f"grad_{name}": xp(v) for name, v in cotangents.items()}
    found = xp.numpy(cusink.sinkhorn_adjoint(result, **pulled, tol=1e-11).reach)
    assert found.shape == (2, 2)
    for side, rho in enumerate(reach):
        if rho is None:
            assert not found[:, side].any()
            continue
        values = []
        for change in (1e-4 * rho, -1e-4 * rho):
            moved = solved(tuple(old if k != side else rho + change for k, old in enumerate(reach)))
            totals = [
                v * xp.numpy(moved.plan() if name == "plan" else getattr(moved, name)) for name, v in cotangents.items()
            ]
            values.append(sum(total.reshape(2, -1).sum(axis=1) for total in totals))
        slope = (values[0] - values[1]) / (2e-4 * rho)
        np.testing.assert_allclose(found[:, side], slope, rtol=1e-6, atol=3e-8 / rho)


def test_the_divergence_has_a_gradient_by_its_reach():
    given, cloud = drawn(), cusink.PointCloud(np.linspace(0, 1, 5), np.linspace(0.2, 1, 6))

    def solved(reach):
        return cusink.sinkhorn_divergence(given["a"], given["b"], cloud, eps=EPS, reach=reach, tol=1e-12)

    up, down = (solved(0.3 + sign * 1e-5).divergence for sign in (1, -1))
    found = cusink.sinkhorn_divergence_adjoint(solved(0.3), grad=np.array([1.0, -2.0])).reach
    np.testing.assert_allclose(found, (up - down) / 2e-5 * [1, -2], rtol=1e-7)
    a = given["a"]
    assert cusink.sinkhorn_divergence_adjoint(cusink.sinkhorn_divergence(a, a, cusink.Grid(5), eps=EPS)).reach is None
    balanced = cusink.sinkhorn(a, a, cusink.Grid(5), eps=EPS)
    assert cusink.sinkhorn_adjoint(balanced, grad_cost=1.0).reach is None


@pytest.mark.parametrize("reach", [0.2, (None, 0.3)])
def test_an_empty_bin_has_the_derivative_by_a_first_bit_of_weight(reach):
    given = drawn()
    result = cusink.sinkhorn(*list(given.values())[:3], eps=EPS, reach=reach, tol=1e-12)
    weights = {"grad_cost": np.array([1.0, -2.0]), "grad_reg_cost": np.array([0.3, 0.5])}
    grads = cusink.sinkhorn_adjoint(result, **weights, tol=1e-11)
    for name, bin in (("a", 2), ("b", 3)):
        values = []
        for bit in (1e-5, 2e-5):
            more = given[name].copy()
            more[0, bin] = bit
            values.append(loss(weights, reach, **(given | {name: more})))
        none = loss(weights, reach, **given)
        slope = (4 * values[0] - values[1] - 3 * none) / 2e-5  # of the parabola through the three
        assert abs(slope - getattr(grads, name)[0, bin]) <= 1e-5 * max(1, abs(slope))


def test_a_cloud_has_gradients_by_its_points_and_a_batch_is_its_problems():
    rng = np.random.default_rng(1)
    a, b = problems.histograms(rng, 3, 6), problems.histograms(rng, 3, 5, mass=0.6)
    x, y = rng.random((6, 2)), rng.random((5, 2))
    cloud = cusink.PointCloud(x, y)
    weights = {"grad_cost": rng.normal(size=3), "grad_reg_cost": rng.normal(size=3)}
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, cloud, eps=EPS, reach=0.3, tol=1e-12), **weights, tol=1e-11)
    dense = cusink.sinkhorn(a, b, cusink.cost_matrix(x, y), eps=EPS, reach=0.3, tol=1e-12)
    by_cost = cusink.sinkhorn_adjoint(dense, **weights, tol=1e-11)
    for ours, theirs in zip((grads.x, grads.y), cusink.cost_matrix_adjoint(x, y, by_cost.C), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    for k in range(3):
        one = cusink.sinkhorn(a[k], b[k], cloud, eps=EPS, reach=0.3, tol=1e-12)
        single = cusink.sinkhorn_adjoint(one, **{name: v[k] for name, v in weights.items()}, tol=1e-11)
        np.testing.assert_allclose(single.a, grads.a[k], rtol=0, atol=1e-9)
        np.testing.assert_allclose(single.eps, grads.eps[k], rtol=0, atol=1e-9)


def test_a_large_reach_has_the_gradients_of_balanced_transport():
    given = drawn()
    given |= {name: given[name] / given[name].sum(axis=1, keepdims=True) for name in "ab"}
    solve = [given[name] for name in "abC"]
    far = cusink.sinkhorn_adjoint(cusink.sinkhorn(*solve, eps=EPS, reach=1e6, tol=1e-12), grad_cost=1.0, tol=1e-10)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(*solve, eps=EPS, tol=1e-12), grad_cost=1.0, tol=1e-10)
    for name in ("a", "b"):
        value = getattr(far, name)
        np.testing.assert_allclose(value - value.mean(axis=1, keepdims=True), getattr(grads, name), rtol=0, atol=1e-5)
    np.testing.assert_allclose(far.C, grads.C, rtol=0, atol=1e-5)
    np.testing.assert_allclose(far.eps, grads.eps, rtol=0, atol=1e-4)


def test_both_libraries_and_float32(xp):
    given = drawn()
    wide = cusink.sinkhorn_adjoint(cusink.sinkhorn(*(given[k] for k in "abC"), eps=EPS, reach=0.3), grad_cost=1.0)
    arrays = (xp(given[name], np.float32) for name in "abC")
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(*arrays, eps=EPS, reach=0.3, tol=1e-5), grad_cost=1.0, tol=1e-5)
    for name in ("a", "b", "C", "eps"):
        value = getattr(grads, name)
        assert xp.owns(value) and value.dtype == np.float32
        expected = getattr(wide, name)
        np.testing.assert_allclose(xp.numpy(value), expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_costs_beyond_all_reach_leave_finite_gradients(dtype):
    """The derivative by a first bit of weight is clipped to the dtype; a plan that underflows carries nothing."""
    weights, C = [np.array(x, dtype) for x in ([1, 0], [0.3, 0.2])], np.array([[90, 0], [0, 0]], dtype)
    result = cusink.sinkhorn(*weights, C, eps=0.02, reach=0.04)
    for cotangents in ({"grad_cost": 1.0}, {"grad_reg_cost": 1.0}, {"grad_f": np.ones(2, dtype)}):
        found = cusink.sinkhorn_adjoint(result, **cotangents)
        assert all(np.isfinite(x).all() for x in (found.a, found.b, found.C, found.eps)), cotangents
        assert found.a[0] == pytest.approx(0, abs=0.06)
        kappa = 2 / 3  # of the potential of the empty bin, kappa (C_10 - g_0)
        np.testing.assert_allclose(found.C[1], [kappa if "grad_f" in cotangents else 0, 0], rtol=1e-6)
    a, b = np.array([1], dtype), np.array([0.2], dtype)
    result = cusink.sinkhorn(a, b, np.array([[40000]], dtype), eps=0.1, reach=0.1)
    for value in ("grad_cost", "grad_reg_cost"):
        found = cusink.sinkhorn_adjoint(result, **{value: 1.0})
        assert found.C.tolist() == [[0]] and np.isfinite([found.a, found.b]).all() and np.isfinite(found.eps)


def test_densities_between_empty_bins_stay_in_the_dtype_of_the_user():
    weights, C = np.float32([1, 0]), np.float32([[0, 90], [0, 2]])
    result = cusink.sinkhorn(weights, weights, C, eps=0.1)
    found = cusink.sinkhorn_adjoint(result, grad_entropic_cost=1.2, grad_f=np.float32([0.7, 0]))
    assert all(np.isfinite(x).all() for x in (found.a, found.b, found.C, found.eps))


def test_cotangents_add_up():
    result = cusink.sinkhorn([0.5, 0.5], [0.4, 0.8], [[0.0, 1.0], [1.0, 0.0]], eps=0.5, reach=1.0, tol=1e-12)
    cotangents = {"grad_cost": 1.5, "grad_entropic_cost": -0.5, "grad_plan": np.eye(2)}
    parts = [cusink.sinkhorn_adjoint(result, **{name: x}, tol=1e-12) for name, x in cotangents.items()]
    whole = cusink.sinkhorn_adjoint(result, **cotangents, tol=1e-12)
    for name in ("a", "b", "C", "eps"):
        expected = sum(getattr(part, name) for part in parts)
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-10, err_msg=name)


def test_an_empty_bin_of_any_potential_leaves_the_other_gradients_numbers():
    """At a price of 0.01 for costs of 4 and eps of 1e-4, its entries of exp((f + g - C) / eps) leave the range."""
    a, b, C = np.ones(2, np.float32), np.array([0, 0.2], np.float32), np.array([[0, 0], [0, 4]], np.float32)
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=1e-4, reach=0.01), grad_cost=1.0)
    assert grads.converged
    np.testing.assert_allclose(grads.a, 0, atol=1e-6)  # moving nothing but along the free pair costs nothing
    np.testing.assert_allclose(grads.C, [[0, np.sqrt(0.2)], [0, 0]], rtol=1e-2, atol=1e-6)
    assert np.isfinite(grads.b).all() and np.isfinite(grads.eps)


@pytest.mark.parametrize("x", [-2.0, -0.04, -9e-3, -1e-3, 1e-9, 1e-4, 9e-3, 0.02, 3.0])
def test_what_a_marginal_is_off_by_has_its_digits_near_zero(x):
    """``1 - (1 + x) exp(-x)`` of a potential x = f / rho; here as a sum of rational numbers."""
    weight = np.ones(1)  # one pair of bins: by symmetry g = f, and the plan has the marginals exp(-f / rho)
    result = cusink.sinkhorn(weight, weight, [[3 * x]], eps=1.0, reach=1.0, tol=1e-12)
    share = Fraction(float(result.f[0]))
    assert share == pytest.approx(x, rel=1e-6)
    terms = ((-share) ** k * (k - 1) / Fraction(math.factorial(k)) for k in range(2, 60))
    assert cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0).reach[0] == pytest.approx(float(sum(terms)), rel=1e-12)
