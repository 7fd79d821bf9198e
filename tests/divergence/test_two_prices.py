"""Divergences whose sides have a price each: values, those of equal measures, derivatives. See docs/divergence.md."""

import numpy as np
import problems
import pytest
import reference

import cusink

PAIRS = [(0.3, 0.9), (0.7, 0.05), (0.3, None), (None, 2.0)]
TIGHT = {"tol": 1e-12, "max_iter": 20000}


def drawn(B=2, n=6, m=5, zeros=0.0):
    rng = np.random.default_rng(3)
    a = problems.histograms(rng, B, n, zeros) * rng.uniform(0.6, 2, (B, 1))
    b = problems.histograms(rng, B, m, zeros) * rng.uniform(0.6, 2, (B, 1))
    return a, b, rng.random((n, 2)), rng.random((m, 2)) + 0.3


def oracle(a, b, C, C_aa, C_bb, eps, reach):
    """Return the divergence of one pair from its definition: each self-term at the price of its side."""
    rho_a, rho_b = (np.inf if rho is None else rho for rho in reach)
    value = reference.unbalanced_value(a, b, C, eps, rho_a, rho_b) + eps / 2 * (a.sum() - b.sum()) ** 2
    of_a = reference.unbalanced_value(a, a, C_aa, eps, rho_a, rho_a)
    return value - of_a / 2 - reference.unbalanced_value(b, b, C_bb, eps, rho_b, rho_b) / 2


@pytest.mark.parametrize("reach", [0.4, *PAIRS])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eps", [0.05, np.array([0.5, 0.1])])
def test_values_are_those_of_three_problems_at_their_prices(reach, dtype, eps):
    a, b, x, y = (v.astype(dtype) for v in drawn(zeros=0.3))
    eps = eps if np.ndim(eps) == 0 else eps.astype(dtype)
    found = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=eps, reach=reach, tol=1e-6)
    costs = [cusink.cost_matrix(*(v.astype(float) for v in of)) for of in ((x, y), (x, x), (y, y))]
    pair = reach if isinstance(reach, tuple) else (reach, reach)
    for k, number in enumerate(np.broadcast_to(eps, 2)):
        wanted = oracle(a[k], b[k], *costs, float(number), pair)
        assert abs(found.divergence[k] - wanted) <= 1e-8 + 4 * np.finfo(dtype).eps * abs(wanted)
    assert found.divergence.dtype == dtype and found.converged.all()
    stored = cusink.sinkhorn_divergence(
        a, b, costs[0].astype(dtype), C_aa=costs[1].astype(dtype), C_bb=costs[2].astype(dtype), eps=eps, reach=reach
    )
    np.testing.assert_allclose(stored.divergence, found.divergence, rtol=1e-6 if dtype == np.float64 else 3e-5)


@pytest.mark.parametrize("rho", [0.4, np.inf, None])
def test_a_pair_of_equal_prices_is_the_number_to_the_last_bit(rho):
    a, b, x, y = drawn()
    b = b if rho and rho < np.inf else b * (a.sum(axis=1) / b.sum(axis=1))[:, None]
    cloud = cusink.PointCloud(x, y)
    one, *pairs = (
        cusink.sinkhorn_divergence(a, b, cloud, eps=0.1, reach=reach)
        for reach in (rho, (rho, rho), [rho, rho], np.array([rho, rho], float if rho else object))
    )
    of_one = cusink.sinkhorn_divergence_adjoint(one)
    for two in pairs:
        for name in ("divergence", "f", "g", "f_self", "g_self", "error", "n_iter"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
        grads = cusink.sinkhorn_divergence_adjoint(two)
        for name in ("a", "b", "x", "y", "eps"):
            np.testing.assert_array_equal(getattr(grads, name), getattr(of_one, name))
        if one.problems[0].reach is None:
            assert grads.reach is None is of_one.reach
        else:
            assert of_one.reach.shape == (2,) and grads.reach.shape == (2, 2)
            np.testing.assert_allclose(grads.reach.sum(axis=1), of_one.reach, rtol=1e-12)
    same = cusink.sinkhorn_divergence(a, a, cusink.PointCloud(x), eps=0.1, reach=(rho, rho))
    assert not same.divergence.any() and not cusink.sinkhorn_divergence_adjoint(same).a.any()


@pytest.mark.parametrize("reach", PAIRS)
def test_equal_measures_have_a_value_at_unlike_prices_and_none_is_below_zero(reach):
    a, b, x, _ = drawn()
    C = cusink.cost_matrix(x)
    for eps in (0.5, 0.05):
        same = cusink.sinkhorn_divergence(a, a, C, eps=eps, reach=reach, **TIGHT)
        wanted = [oracle(w, w, C, C, C, eps, reach) for w in a]
        np.testing.assert_allclose(same.divergence, wanted, rtol=1e-9)
        # The bound of docs/divergence.md, by the potentials of the self-terms.
        u, v = a * np.exp(same.f_self / eps), a * np.exp(same.g_self / eps)
        least = eps / 2 * np.einsum("bi,ij,bj->b", u - v, np.exp(-C / eps), u - v)
        assert (same.divergence >= least - 1e-12).all() and (least > 0).all()
        grads = cusink.sinkhorn_divergence_adjoint(same)
        assert np.abs(grads.a).max() > 1e-4  # which is no minimum either
    assert cusink.sinkhorn_divergence([1.0], [1.0], [[0.0]], eps=0.1, reach=reach).divergence == pytest.approx(0)


def test_what_rounding_explains_below_zero_is_kept_at_unlike_prices():
    point, cost, every = np.ones((1, 1)), np.zeros((1, 1)), np.linspace(0.05, 1, 40)
    for call in (
        lambda eps: cusink.sinkhorn_divergence(point, point, cost, eps=eps, reach=(0.3, 0.9)).divergence[0],
        lambda eps: cusink.distance_matrix(point, None, cost, eps=eps, reach=(0.3, 0.9), value="divergence")[0, 0],
    ):
        values = [call(eps) for eps in every]
        assert -1e-14 < min(values) < 0 and max(values) < 1e-14


@pytest.mark.parametrize("reach", PAIRS)
def test_derivatives_are_differences(reach):
    (a, b, x, y), rng = drawn(), np.random.default_rng(4)
    free = {"a": a, "b": b, "eps": np.array([0.2, 0.3]), "x": x, "y": y}
    step = {name: 0.1 * rng.normal(size=v.shape) * v for name, v in free.items()}

    def solved(t=0.0, by=reach):
        moved = {name: v + t * step[name] for name, v in free.items()}
        cloud = cusink.PointCloud(moved["x"], moved["y"])
        return cusink.sinkhorn_divergence(moved["a"], moved["b"], cloud, eps=moved["eps"], reach=by, **TIGHT)

    t, grad = 1e-4, np.array([1.0, -0.5])
    result, moves = solved(), {f"d{name}": v for name, v in step.items()}
    slopes = (solved(t).divergence - solved(-t).divergence) / (2 * t)
    np.testing.assert_allclose(cusink.sinkhorn_divergence_jvp(result, **moves), slopes, rtol=1e-6)
    grads = cusink.sinkhorn_divergence_adjoint(result, grad=grad)
    total = sum((getattr(grads, name) * v).sum() for name, v in step.items())
    np.testing.assert_allclose(total, (grad * slopes).sum(), rtol=1e-6)
    up, down = (cusink.sinkhorn_divergence_adjoint(solved(sign * t), grad=grad) for sign in (1, -1))
    product = cusink.sinkhorn_divergence_hvp(result, grad=grad, tol=1e-11, **moves)
    assert product.converged.all()
    for name in free:
        wanted = (getattr(up, name) - getattr(down, name)) / (2 * t)
        np.testing.assert_allclose(getattr(product, name), wanted, rtol=2e-5, atol=2e-6 * np.abs(wanted).max())
    assert grads.reach.shape == (2, 2)
    for side, rho in enumerate(reach):
        if rho is None:
            assert not grads.reach[:, side].any()
            continue
        up, down = (
            solved(by=tuple(old if k != side else rho * (1 + sign * 1e-4) for k, old in enumerate(reach))).divergence
            for sign in (1, -1)
        )
        np.testing.assert_allclose(grads.reach[:, side], grad * (up - down) / (2e-4 * rho), rtol=1e-6)


@pytest.mark.parametrize("reach", PAIRS)
def test_pairs_of_measures_are_the_pairs_alone(reach, xp):
    a, b, x, y = drawn(B=1)
    A, B = (cusink.Measures(offsets, xp(w[0]), xp(p)) for offsets, w, p in (([0, 2, 6], a, x), ([0, 3, 5], b, y)))
    pairs = cusink.sinkhorn_divergence(A, B, "euclidean", eps=0.2, reach=reach, **TIGHT)
    grads = cusink.sinkhorn_divergence_adjoint(pairs, grad=xp(np.array([2.0, -1.0])))
    places = [((slice(0, 2), slice(0, 3)), 2.0), ((slice(2, 6), slice(3, 5)), -1.0)]
    for k, ((i, j), grad) in enumerate(places):
        cloud = cusink.PointCloud(x[i], y[j], "euclidean")
        one = cusink.sinkhorn_divergence(a[0, i], b[0, j], cloud, eps=0.2, reach=reach, **TIGHT)
        np.testing.assert_allclose(xp.numpy(pairs.divergence)[k], one.divergence, rtol=1e-10)
        np.testing.assert_allclose(xp.numpy(pairs[k].divergence), one.divergence, rtol=1e-10)
        alone = cusink.sinkhorn_divergence_adjoint(one, grad=grad)
        for name, at in (("a", i), ("x", i), ("b", j), ("y", j), ("reach", k)):
            wanted = getattr(alone, name)
            np.testing.assert_allclose(xp.numpy(getattr(grads, name))[at], wanted, rtol=1e-6, atol=1e-9)
    picked = cusink.sinkhorn_divergence_adjoint(pairs[1]).reach
    np.testing.assert_allclose(-xp.numpy(picked), xp.numpy(grads.reach)[1], rtol=1e-9, atol=1e-12)


def test_prices_of_a_flow():
    _, _, x, y = drawn(n=8, m=9)
    flow = cusink.gradient_flow(x, y, eps=0.1, reach=(0.5, None), step=0.5, max_iter=10)
    assert (np.diff(flow.losses) < 0).all()


@pytest.mark.parametrize(
    ("reach", "error", "message"),
    [
        ((0.1, 0.2, 0.3), ValueError, "a pair of these for 'a' and 'b'; got 3 values"),
        (np.array([0.1, 0.2, 0.3]), ValueError, "a pair of these for 'a' and 'b'; got 3 values"),
        (np.array([0.1, -0.2]), ValueError, "'reach' must be a positive number.*; got -0.2. A small reach"),
        (np.ones((2, 2)), TypeError, "'reach' must be a positive number"),
        ((0.1, "far"), TypeError, "'reach' must be a positive number.*; got str"),
        ((0.1, 1e-320), ValueError, "'reach' must be such that C / reach is finite"),
    ],
)
def test_prices_that_are_none(reach, error, message):
    a, b, x, y = drawn()
    for call in (
        lambda: cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=0.1, reach=reach),
        lambda: cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.1, reach=reach),
        lambda: cusink.distance_matrix(a, a, cusink.cost_matrix(x), eps=0.1, reach=reach, value="divergence"),
    ):
        with pytest.raises(error, match=message):
            call()
