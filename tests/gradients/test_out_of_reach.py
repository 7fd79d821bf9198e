"""Derivatives where marginals of unbalanced plans leave the range of numbers: closed forms, and differences.

The differences are of an own solver in the log domain, which takes damped softmins until they stay.
"""

import warnings

import numpy as np
import pytest

import cusink

OUTLIER = np.array([0.0, 0.1, 4.2]), np.array([0.0, 0.1])
EPS = 0.05


def softmin(logs, C, eps):
    """Return the softmin over the last axis of costs for the other side's ``log weight + potential / eps``."""
    exponents = logs - C / eps
    top = exponents.max(axis=-1, keepdims=True)
    return -eps * (np.log(np.exp(exponents - top).sum(axis=-1)) + top[..., 0])


def potentials(a, b, C, eps, reach):
    kappa = [1 if rho is None else rho / (rho + eps) for rho in (reach if isinstance(reach, tuple) else (reach, reach))]
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    g = np.zeros(len(b))
    for _ in range(800):
        f = kappa[0] * softmin(log_b + np.where(b > 0, g, 0) / eps, C, eps)
        g = kappa[1] * softmin(log_a + np.where(a > 0, f, 0) / eps, C.T, eps)
    return f, g


def slopes(given, name, direction, step):
    """Return the derivatives of f and g as one argument moves."""
    up, down = (potentials(**(given | {name: given[name] + s * direction})) for s in (step, -step))
    return [(x - y) / (2 * step) for x, y in zip(up, down, strict=True)]


def result_of(given, tol):
    return cusink.sinkhorn(
        *(given[name] for name in "abC"), eps=given["eps"], reach=given["reach"], tol=tol, max_iter=5000
    )


@pytest.mark.parametrize("weight", [None, 0.0])
@pytest.mark.parametrize("reach", [0.01, (0.01, None), (0.02, 0.01)])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-5), (np.float32, 2e-3)])
def test_the_potential_of_an_outlier_moves(weight, reach, dtype, rtol):
    x, y = OUTLIER
    a = np.full(3, 1 / 3) if weight is None else np.array([0.5, 0.5, weight])
    given = {"a": a, "b": np.full(2, 0.5), "C": (x[:, None] - y) ** 2, "eps": 0.01, "reach": reach}
    cloud = cusink.PointCloud(x.astype(dtype), y.astype(dtype))
    solve = [np.asarray(given[name], dtype) for name in "ab"]
    result = cusink.sinkhorn(*solve, cloud, eps=0.01, reach=reach, tol=1e-11 if dtype == np.float64 else 1e-5)
    moved = cusink.sinkhorn_jvp(result, dx=np.ones(3, dtype), tol=1e-9)
    df, dg = slopes(given, "C", 2 * (x[:, None] - y), 1e-6)
    assert moved.converged
    np.testing.assert_allclose(moved.f, df, rtol=rtol, atol=1e-6 * 100 ** (dtype == np.float32))
    np.testing.assert_allclose(moved.g, dg, rtol=rtol, atol=1e-6 * 100 ** (dtype == np.float32))
    pulled = cusink.sinkhorn_adjoint(result, grad_f=np.array([0, 0, 1], dtype), tol=1e-9)
    assert pulled.converged
    assert pulled.x.sum() == pytest.approx(df[2], rel=rtol)
    assert pulled.x[2] + pulled.x[:2].sum() + pulled.y.sum() == pytest.approx(0, abs=1e-4)  # all move along


@pytest.mark.parametrize("c", [1.0, 20.0, 85.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_pair_has_its_closed_form_however_little_it_moves(c, dtype):
    """By symmetry ``f = g = c rho / (2 rho + eps)``."""
    rho, eps, one = 0.01, 0.1, np.ones(1, dtype)
    kappa, whole = rho / (rho + eps), 2 * rho + eps
    result = cusink.sinkhorn(one, one, np.array([[c]], dtype), eps=eps, reach=rho)
    moved = cusink.sinkhorn_jvp(result, dC=np.ones((1, 1), dtype))
    pulled = cusink.sinkhorn_adjoint(result, grad_f=one)
    np.testing.assert_allclose([moved.f, moved.g], rho / whole, rtol=1e-5)
    assert pulled.C[0, 0] == pytest.approx(rho / whole, rel=1e-5)
    assert pulled.eps == pytest.approx(-c * rho / whole**2, rel=1e-5)
    assert pulled.reach.sum() == pytest.approx(c * eps / whole**2, rel=1e-5)
    assert pulled.b[0] == pytest.approx(-eps * kappa / (1 - kappa**2), rel=1e-5)  # f + kappa g + kappa eps log b = ...
    assert pulled.a[0] == pytest.approx(eps * kappa**2 / (1 - kappa**2), rel=1e-5)


@pytest.mark.parametrize("c", [3.0, 22.0, 45.0, 60.0])
@pytest.mark.parametrize("reach", [(0.01, None), 0.01, (0.01, 0.05)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_empty_bin_with_cheap_partners_has_bounded_gradients(c, reach, dtype):
    """With ``f_0 = kappa_a (C_00 - g)`` and one pair that is full, where g moves with C_10."""
    rho = reach if isinstance(reach, tuple) else (reach, reach)
    of_a, of_b = (1 if x is None else x / (x + EPS) for x in rho)
    arrays = np.array([0, 1], dtype), np.ones(1, dtype), np.array([[0], [c]], dtype)
    result = cusink.sinkhorn(*arrays, eps=EPS, reach=reach)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cusink.sinkhorn_adjoint(result, grad_f=np.array([1, 0], dtype))
        by_g = (1 - of_a) * of_b / (1 - of_a * of_b)
        np.testing.assert_allclose(np.ravel(found.C), [of_a, -of_a * by_g], rtol=2e-5)
        assert found.converged and np.isfinite(found.a).all() and np.isfinite(found.eps)
        for values in ({"grad_cost": 1.0}, {"grad_reg_cost": 1.0}, {"grad_plan": np.ones((2, 1), dtype)}):
            terms = cusink.sinkhorn_adjoint(result, **values)
            assert all(np.isfinite(x).all() for x in (terms.a, terms.b, terms.C, terms.eps)), values
        # Its only partner is what every bin is mapped to, whatever its weight.
        of_map = cusink.barycentric_map_adjoint(result, np.ones(1, dtype), np.ones(2, dtype))
    assert not of_map.a.any() and not of_map.b.any() and not of_map.C.any()
    assert of_map.values == pytest.approx(2)


def drawn(seed, reach, light):
    """Two groups of bins with a common partner, the second one out of reach by `light`; an empty bin in each."""
    rng = np.random.default_rng(seed)
    a, b, C = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(5)), rng.random((6, 5)) / 4
    a[1], b[4] = 0, 0
    C[:3, 2:], C[3:, :2] = 3 * light + C[:3, 2:], 3 * light + C[3:, :2]
    C[3:, 2:] += light
    return {"a": a, "b": b, "C": C, "eps": EPS, "reach": reach}


@pytest.mark.parametrize("light", [0.5, 3.0, 30.0, 300.0])  # exp(-f / rho) from 1e-4 to nothing
@pytest.mark.parametrize("reach", [0.05, (0.05, None), (0.02, 0.1)])
def test_groups_of_bins_that_keep_nothing_move_like_others(light, reach):
    given = drawn(4, reach, light)
    rng = np.random.default_rng(5)
    u, v = rng.normal(size=6), rng.normal(size=5)
    result = result_of(given, 1e-12 * max(1, light))
    pulled = cusink.sinkhorn_adjoint(result, grad_f=u, grad_g=v, tol=1e-9)
    assert pulled.converged
    moves = {"C": rng.normal(size=(6, 5)), "eps": 1.0, "a": given["a"] * rng.random(6), "b": given["b"] * rng.random(5)}
    for name, move in moves.items():
        df, dg = slopes(given, name, move, 1e-5)
        moved = cusink.sinkhorn_jvp(result, **{f"d{name}": move}, tol=1e-9)
        assert moved.converged
        size = max(np.abs(df).max(), np.abs(dg).max())
        np.testing.assert_allclose(moved.f, df, rtol=1e-6, atol=1e-6 * size + 1e-8 * light, err_msg=name)
        np.testing.assert_allclose(moved.g, dg, rtol=1e-6, atol=1e-6 * size + 1e-8 * light, err_msg=name)
        terms = np.concatenate([u * df, v * dg])
        found = np.sum(getattr(pulled, name) * move)
        assert abs(found - terms.sum()) <= 1e-6 * np.abs(terms).sum() + 1e-7 * light, name
    prices = reach if isinstance(reach, tuple) else (reach, reach)
    for side, rho in enumerate(prices):
        if rho is not None:
            values = []
            for step in (1e-5 * rho, -1e-5 * rho):
                there = tuple(old if k != side else old + step for k, old in enumerate(prices))
                f, g = potentials(**(given | {"reach": there}))
                values.append(u @ f + v @ g)
            slope = (values[0] - values[1]) / (2e-5 * rho)
            assert pulled.reach[side] == pytest.approx(slope, rel=1e-6, abs=1e-6 * light / rho)


@pytest.mark.parametrize("axis", [0, 1])
def test_maps_of_bins_that_keep_nothing_move_like_others(axis):
    given = drawn(6, (0.05, 0.03), 100.0)
    rng = np.random.default_rng(7)
    values, cotangent = (rng.normal(size=(n, 2)) for n in ((5, 6) if axis == 1 else (6, 5)))
    found = cusink.barycentric_map_adjoint(result_of(given, 1e-10), values, cotangent, axis=axis, tol=1e-9)

    def loss(**moved):
        a, b, C, eps = ((given | moved)[name] for name in ("a", "b", "C", "eps"))
        f, g = potentials(a, b, C, eps, given["reach"])
        weights, potential, costs = (b, g, C) if axis == 1 else (a, f, C.T)
        with np.errstate(divide="ignore"):
            logs = np.where(weights > 0, np.log(weights) + potential / eps, -np.inf) - costs / eps
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        return (cotangent * (shares @ values) / shares.sum(axis=1, keepdims=True)).sum()

    moves = {"C": rng.normal(size=(6, 5)), "eps": 1.0, "a": given["a"] * rng.random(6), "b": given["b"] * rng.random(5)}
    for name, move in moves.items():
        slope = (loss(**{name: given[name] + 1e-6 * move}) - loss(**{name: given[name] - 1e-6 * move})) / 2e-6
        terms = np.asarray(getattr(found, name) * move)
        assert terms.sum() == pytest.approx(slope, rel=1e-5, abs=1e-5 * np.abs(terms).sum() + 1e-5), name
    assert found.converged


def test_one_problem_of_a_batch_may_go_out_of_range(xp):
    """With an eps for each problem; by itself each has the same derivatives."""
    every = [drawn(seed, 0.04, light) for seed, light in ((1, 0.1), (2, 200.0), (3, 1.0))]
    eps = [0.05, 0.06, 0.05]
    rng = np.random.default_rng(9)
    u, dC = rng.normal(size=(3, 6)), rng.normal(size=(3, 6, 5))
    stacked = [xp(np.stack([given[name] for given in every])) for name in "abC"]
    whole = cusink.sinkhorn(*stacked, eps=np.array(eps), reach=0.04, tol=1e-10)
    moved = cusink.sinkhorn_jvp(whole, dC=xp(dC), tol=1e-10)
    pulled = cusink.sinkhorn_adjoint(whole, grad_f=xp(u), tol=1e-10)
    for k, given in enumerate(every):
        given["eps"] = eps[k]
        df, dg = slopes(given, "C", dC[k], 1e-5)
        np.testing.assert_allclose(xp.numpy(moved.f)[k], df, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(xp.numpy(moved.g)[k], dg, rtol=1e-6, atol=1e-6)
        assert (xp.numpy(pulled.C)[k] * dC[k]).sum() == pytest.approx(u[k] @ df, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("light", [1.0, 200.0])
@pytest.mark.parametrize("reach", [0.05, (0.1, 0.02)])
def test_a_bin_without_partners_moves_no_other(light, reach):
    """Of row 2 all costs are forbidden but one, to a bin without weight, which sees nothing of it."""
    given, rng = drawn(8, reach, light), np.random.default_rng(8)
    given["C"][2, :4], given["C"][0, 1] = np.inf, np.inf
    u, v, move = rng.normal(size=6), rng.normal(size=5), rng.normal(size=(6, 5))
    u[2], move[~np.isfinite(given["C"])] = 0, 0
    result = result_of(given, 1e-11 * max(1, light))
    rest = given | {"a": np.delete(given["a"], 2), "C": np.delete(given["C"], 2, 0)}
    df, dg = slopes(rest, "C", np.delete(move, 2, 0), 1e-6)
    moved = cusink.sinkhorn_jvp(result, dC=move, tol=1e-9)
    np.testing.assert_allclose(np.delete(moved.f, 2), df, rtol=0, atol=1e-8 * max(1, light))
    np.testing.assert_allclose(moved.g, dg, rtol=0, atol=1e-8 * max(1, light))
    pulled = cusink.sinkhorn_adjoint(result, grad_f=u, grad_g=v, tol=1e-9)
    assert (pulled.C * move).sum() == pytest.approx(np.delete(u, 2) @ df + v @ dg, abs=1e-7 * max(1, light))
