"""Barycentric maps, and potentials and maps at new points, held to the plan, to the softmin and to differences."""

import pickle

import numpy as np
import pytest

import cusink

SOLVE = {"tol": 1e-11, "max_iter": 20000}


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(9))
    a[2] = 0
    return a / a.sum(), b, rng.random((7, 2)), rng.random((9, 2)) + 0.2, rng.random((5, 2)) + 0.1


def rows_of(b, C, g, eps):
    """Return the potential and the conditional distribution of rows with costs C (k, m), in plain NumPy."""
    exponents = np.log(b) + (g - C) / eps
    top = exponents.max(axis=1, keepdims=True)
    shares = np.exp(exponents - top)
    return -eps * (np.log(shares.sum(axis=1)) + top[:, 0]), shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("reach", [None, (0.4, None)], ids=["balanced", "unbalanced"])
def test_new_points_have_the_softmin_and_its_mean(clouds, metric, reach):
    a, b, x, y, new = clouds
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y, metric), eps=0.1, reach=reach, **SOLVE)
    costs = cusink.PointCloud(new, y, metric).dense()
    f, shares = rows_of(b, costs, result.g, 0.1)
    kappa = 1.0 if reach is None else 0.4 / 0.5
    found = result.at(new)
    np.testing.assert_allclose(found.potential, kappa * f, atol=1e-13)
    np.testing.assert_allclose(found.map(), shares @ y, atol=1e-13)
    np.testing.assert_allclose(found.barycentric_map(y[:, 0]), shares @ y[:, 0], atol=1e-13)
    steps = 1e-6 * np.eye(2)
    wanted = [(result.at(new + h).potential - result.at(new - h).potential) / 2e-6 for h in steps]
    np.testing.assert_allclose(found.gradient(), np.stack(wanted, axis=-1), atol=1e-8)
    # At the points of the solve it is the solution, bins without weight included.
    np.testing.assert_allclose(result.at(x).potential, result.f, atol=1e-10)
    np.testing.assert_allclose(result.at(y=y).potential, result.g, atol=1e-10)
    P = result.plan()
    np.testing.assert_allclose(result.at(y=y).map(), P.T @ x / P.sum(axis=0)[:, None], atol=1e-12)
    filled = a > 0
    np.testing.assert_allclose(result.at(x).map()[filled], (P @ y / P.sum(axis=1, keepdims=True).clip(1e-300))[filled])


def test_the_map_of_squared_distances_is_the_gradient_step(clouds):
    a, b, x, y, new = clouds
    found = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.1).at(new)
    np.testing.assert_allclose(found.map(), new - found.gradient() / 2, atol=1e-13)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("kind", ["array", "own arrays", "cloud", "own clouds", "many coordinates", "grid"])
def test_barycentric_map_is_that_of_the_plan(clouds, kind, axis, monkeypatch):
    """Batched, and with blocks of a few rows where costs can be divided."""
    monkeypatch.setattr("cusink.solver.maps.BLOCK_ENTRIES", 20)
    rng = np.random.default_rng(1)
    C = {
        "array": cusink.cost_matrix(clouds[2], clouds[3]),
        "own arrays": rng.random((3, 7, 9)),
        "cloud": cusink.PointCloud(clouds[2], clouds[3]),
        "own clouds": cusink.PointCloud(rng.random((3, 7, 2)), rng.random((3, 9, 2))),
        "many coordinates": cusink.PointCloud(rng.random((7, 10)), rng.random((9, 10))),
        "grid": cusink.Grid((2, 4), spacing=0.3),
    }[kind]
    n, m = C.shape[-2:]
    result = cusink.sinkhorn(rng.dirichlet(np.ones(n), 3), rng.dirichlet(np.ones(m), 3), C, eps=0.1)
    P = result.plan() if axis == 1 else np.swapaxes(result.plan(), 1, 2)
    values = rng.normal(size=(3, P.shape[-1], 4))
    wanted = P @ values / P.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(result.barycentric_map(values, axis), wanted, atol=1e-13)
    for given, want in ((values[1], P @ values[1]), (values[1, :, 0], P @ values[1, :, 0])):
        total = P.sum(axis=-1, keepdims=given.ndim == 2)
        np.testing.assert_allclose(result.barycentric_map(given, axis), want / total, atol=1e-13)


@pytest.mark.parametrize("reach", [None, 0.5], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_an_eps_for_each_problem(clouds, own, reach):
    a, b, x, y, new = clouds
    eps, C = np.array([0.1, 0.3]), cusink.PointCloud(*(np.stack([p, p]) if own else p for p in (x, y)))
    both = cusink.sinkhorn(a, np.stack([b, b]), C, eps=eps, reach=reach, **SOLVE)
    there, mapped = both.at(new), both.barycentric_map(y)
    known = cusink.SinkhornResult.from_potentials(a, np.stack([b, b]), C, eps=eps, f=both.f, reach=reach)
    for k in range(2):
        alone = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=float(eps[k]), reach=reach, **SOLVE)
        for name in ("map", "gradient"):
            np.testing.assert_allclose(getattr(there, name)()[k], getattr(alone.at(new), name)(), atol=1e-9)
        np.testing.assert_allclose(there.potential[k], alone.at(new).potential, atol=1e-9)
        np.testing.assert_allclose(mapped[k], alone.barycentric_map(y), atol=1e-9)
        assert known.error[k] < 1e-9 and known.reg_cost[k] == pytest.approx(alone.reg_cost, abs=1e-9)


def test_batches_of_new_points(clouds):
    a, b, x, y, new = clouds
    eps, weights = 0.1, np.stack([b, np.roll(b, 1)])
    shared = cusink.sinkhorn(a, weights, cusink.PointCloud(x, y), eps=eps)
    own = cusink.sinkhorn(a, weights, cusink.PointCloud(np.stack([x, x]), np.stack([y, y])), eps=eps)
    for k in range(2):
        alone = cusink.sinkhorn(a, weights[k], cusink.PointCloud(x, y), eps=eps).at(new)
        for batch in (shared.at(new), own.at(new), own.at(np.stack([new, new]))):
            np.testing.assert_allclose(batch.potential[k], alone.potential, atol=1e-12)
            np.testing.assert_allclose(batch.map()[k], alone.map(), atol=1e-12)
            np.testing.assert_allclose(batch.gradient()[k], alone.gradient(), atol=1e-12)


@pytest.mark.parametrize("eps", [0.3, 1e-3])
def test_single_precision_has_its_digits(clouds, eps):
    """At a small eps float32 has no digits for the exponents, and float64 is taken."""
    a, b, x, y, new = (array.astype(np.float32) for array in clouds)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=eps, tol=1e-3)
    found = result.at(new)
    assert found.potential.dtype == found.map().dtype == found.gradient().dtype == np.float32
    costs = cusink.PointCloud(new.astype(float), y.astype(float)).dense()
    f, shares = rows_of(b.astype(float), costs, result.problem.g[0], eps)
    np.testing.assert_allclose(found.potential, f, atol=3e-6)
    np.testing.assert_allclose(found.map(), shares @ y, atol=3e-4)
    np.testing.assert_allclose(found.gradient(), 2 * (new - shares @ y), atol=1e-6)


def test_numbers_stay_numbers_and_results_follow_no_change_of_the_points(clouds):
    a, b = clouds[:2]
    x, y = np.arange(7.0), np.arange(9.0)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=1.0)
    found = result.at([0.5, 2.0])
    assert found.map().shape == found.gradient().shape == found.potential.shape == (2,)
    before = found.map()
    y += 100
    np.testing.assert_array_equal(result.at([0.5, 2.0]).map(), before)
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.at([0.5, 2.0]).map(), before)
    assert again.cost == result.cost and (again.plan() == result.plan()).all()


def test_a_bin_that_may_send_nothing_is_mapped_to_zero():
    C = np.array([[0.0, 1.0], [np.inf, np.inf]])
    result = cusink.sinkhorn([1.0, 0.0], [0.5, 0.5], C, eps=0.1)
    np.testing.assert_allclose(result.barycentric_map([[2.0], [4.0]]), [[3.0], [0.0]])


@pytest.mark.parametrize("given", ["f", "g", "both"])
@pytest.mark.parametrize("kind", ["array", "cloud", "own clouds", "grid"])
def test_potentials_of_a_result_give_it_again(clouds, kind, given):
    rng = np.random.default_rng(2)
    C = {
        "array": np.where(rng.random((6, 8)) < 0.1, np.inf, rng.random((6, 8))),
        "cloud": cusink.PointCloud(clouds[2][:6], clouds[3][:8]),
        "own clouds": cusink.PointCloud(rng.random((2, 6, 2)), rng.random((2, 8, 2))),
        "grid": cusink.Grid((2, 4), spacing=0.3),
    }[kind]
    a, b = rng.dirichlet(np.ones(C.shape[-2]), 2), rng.dirichlet(np.ones(C.shape[-1]), 2)
    a[0, 1] = 0
    a /= a.sum(axis=1, keepdims=True)
    solved = cusink.sinkhorn(a, b, C, eps=0.1, **SOLVE)
    known = {"f": solved.f, "g": solved.g} if given == "both" else {given: getattr(solved, given) + 3}
    result = cusink.SinkhornResult.from_potentials(a, b, C, eps=0.1, **known)
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(result, name), getattr(solved, name), atol=1e-10, err_msg=name)
    np.testing.assert_allclose(result.plan(), solved.plan(), atol=1e-11)
    assert result.converged.all() and (result.error < 1e-10).all() and (result.n_iter == 0).all()
    gradients = [cusink.sinkhorn_adjoint(one, grad_cost=1.0).a for one in (result, solved)]
    np.testing.assert_allclose(*gradients, atol=1e-8)


def test_poor_potentials_say_so(clouds):
    """Rows are met, columns miss by what is said, and the values are those of the plan."""
    a, b, x, y, _ = clouds
    C, g = cusink.cost_matrix(x, y), np.linspace(0, 0.3, 9)
    result = cusink.SinkhornResult.from_potentials(a, b, C, eps=0.1, g=g)
    P = result.plan()
    f, shares = rows_of(b, C, g, 0.1)
    np.testing.assert_allclose(P, a[:, None] * shares, atol=1e-14)
    assert result.error == pytest.approx(abs(P.sum(axis=0) - b).sum(), abs=1e-12) and not result.converged
    assert result.cost == pytest.approx((P * C).sum(), abs=1e-13)
    assert result.reg_cost == pytest.approx(a @ f + b @ g, abs=1e-13)
    lower, upper = result.bounds()
    assert lower <= cusink.sinkhorn(a, b, C, eps=1e-3, max_iter=20000).cost <= upper + 1e-3
    assert cusink.SinkhornResult.from_potentials(a, b, C, eps=0.1, g=g, tol=2).converged


PRICES = [0.5, (0.2, 3.0), (0.4, None), (None, 0.4), 1e5]


@pytest.mark.parametrize("reach", PRICES)
@pytest.mark.parametrize("given", ["f", "g", "both"])
def test_potentials_of_a_result_at_prices_give_it_again(reach, given, xp):
    rng = np.random.default_rng(8)
    a, b, C = rng.dirichlet(np.ones(6), 2) * [[1.0], [2.0]], rng.dirichlet(np.ones(8), 2) * 1.5, rng.random((6, 8))
    a[0, 1] = b[1, 2] = 0
    eps = np.array([0.1, 0.3])
    solved = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=eps, reach=reach, **SOLVE)
    known = {"f": solved.f, "g": solved.g} if given == "both" else {given: getattr(solved, given)}
    result = cusink.SinkhornResult.from_potentials(xp(a), xp(b), xp(C), eps=eps, reach=reach, **known)
    loose = 1e-7 if reach == 1e5 else 1e-9  # potentials of that size have as few digits
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        found, wanted = (xp.numpy(getattr(one, name)) for one in (result, solved))
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=loose, err_msg=name)
    np.testing.assert_allclose(xp.numpy(result.plan()), xp.numpy(solved.plan()), atol=loose)
    assert xp.numpy(result.converged).all() and not xp.numpy(result.n_iter).any()
    for name in ("a", "b", "C", "eps", "reach"):
        pulled = [
            xp.numpy(getattr(cusink.sinkhorn_adjoint(one, grad_cost=1.0, grad_reg_cost=0.5, tol=1e-10), name))
            for one in (result, solved)
        ]
        np.testing.assert_allclose(*pulled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reach", PRICES[:-1])
@pytest.mark.parametrize("side", ["f", "g"])
def test_poor_potentials_at_prices_say_so(clouds, reach, side):
    """The constant of the potential counts: rows keep what their price says, and columns miss theirs by the error."""
    a, b, x, y, _ = clouds
    b = 1.4 * b
    C, eps = cusink.cost_matrix(x, y), 0.1
    rho = np.array([np.inf if r is None else r for r in (reach if isinstance(reach, tuple) else (reach, reach))])
    kappa = rho_a, rho_b = 1 / (1 + eps / rho)
    potential = np.linspace(0.1, 0.4, 9 if side == "g" else 7)
    softmin = lambda p, w, costs: -eps * np.log((w * np.exp((p - costs) / eps)).sum(axis=1))  # noqa: E731
    g = potential if side == "g" else kappa[1] * softmin(potential, a, C.T)
    f = kappa[0] * softmin(g, b, C)
    result = cusink.SinkhornResult.from_potentials(a, b, C, eps=eps, reach=reach, **{side: potential})
    np.testing.assert_allclose(result.f, f, atol=1e-13)
    np.testing.assert_allclose(result.g, g, atol=1e-13)
    P = a[:, None] * b * np.exp((f[:, None] + g - C) / eps)
    np.testing.assert_allclose(result.plan(), P, atol=1e-13)
    np.testing.assert_allclose(P.sum(axis=1), a * np.exp(-f / rho[0]), atol=1e-13)
    kept = b * np.exp(-g / rho[1])
    assert result.error == pytest.approx(abs(P.sum(axis=0) - kept).sum() / kept.sum(), rel=1e-9)
    assert not result.converged and result.cost == pytest.approx((P * C).sum(), rel=1e-12)
    gains = [p if r == np.inf else r * -np.expm1(-p / r) for p, r in ((f, rho[0]), (g, rho[1]))]
    dual = a @ gains[0] + b @ gains[1] + eps * (a.sum() * b.sum() - P.sum())
    assert result.reg_cost == pytest.approx(dual, rel=1e-12)
    assert dual <= cusink.sinkhorn(a, b, C, eps=eps, reach=reach, **SOLVE).reg_cost + 1e-12
    other = cusink.SinkhornResult.from_potentials(a, b, C, eps=eps, reach=reach, **{side: potential + 0.1})
    assert abs(other.reg_cost - dual) > 1e-4


def test_potentials_at_prices_of_bins_without_partners_and_of_any_size():
    C, a, b = np.array([[np.inf, np.inf], [0.5, np.inf]]), np.array([0.4, 0.6]), np.array([0.7, 0.2])
    solved = cusink.sinkhorn(a, b, C, eps=0.1, reach=1.0, **SOLVE)
    known = cusink.SinkhornResult.from_potentials(a, b, C, eps=0.1, reach=1.0, f=solved.f, g=solved.g)
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        assert getattr(known, name) == pytest.approx(getattr(solved, name), abs=1e-11)
    C, b = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.3, 0.7])
    for size in (1e12, -1e12, 1e200, 1e300):
        for potential in (np.full(2, size), np.array([size, -size])):
            for side in ("f", "g"):
                for reach in (1.0, (0.5, None)):
                    # A marginal with a price is beyond all numbers, or one without holds the plan at 0.
                    given = {"reach": reach, side: potential}
                    if reach == 1.0 or (potential.max() < 0) == (side == "f"):
                        with pytest.raises(ValueError, match=f"'{side}' must be such that reg_cost is finite"):
                            cusink.SinkhornResult.from_potentials(a, b, C, eps=1.0, **given)
                        continue
                    found = cusink.SinkhornResult.from_potentials(a, b, C, eps=1.0, **given)
                    assert np.isfinite([found.cost, found.reg_cost, found.entropic_cost, found.error]).all()
                    assert not found.converged
    image = np.full((2, 3), 0.2)
    on_grid = cusink.sinkhorn(image, 2 * image, cusink.Grid((2, 3)), eps=0.3, reach=2.0, **SOLVE)
    known = cusink.SinkhornResult.from_potentials(
        image, 2 * image, cusink.Grid((2, 3)), eps=0.3, reach=2.0, g=on_grid.g
    )
    assert known.converged and known.f.shape == (2, 3)
    narrow = [x.astype(np.float32) for x in (a, 2 * b, C)]
    solved = cusink.sinkhorn(*narrow, eps=0.1, reach=1.0)
    known = cusink.SinkhornResult.from_potentials(*narrow, eps=0.1, reach=1.0, g=solved.g)
    assert known.converged and known.f.dtype == np.float32
    assert known.reg_cost == pytest.approx(solved.reg_cost, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one of 'f' and 'g' must be given; got neither"),
        ({"g": np.zeros(9), "reach": -1.0}, "'reach' must be a positive number"),
        ({"g": np.zeros(9), "reach": (1.0, 1e-320)}, "'reach' must be such that C / reach is finite"),
        ({"g": np.full(9, np.inf), "reach": 1.0}, "'g' must be finite"),
        ({"f": np.zeros(9)}, r"'f' must have shape \(7,\) to match the weights and 'C'; got \(9,\)"),
        ({"g": np.zeros((2, 9))}, r"'g' must have shape \(9,\)"),
        ({"g": np.full(9, np.nan)}, "'g' must be finite"),
        ({"g": np.zeros(9), "tol": None}, "'tol' must be a number"),
        ({"g": np.zeros(9), "eps": 0}, "'eps' must be positive"),
    ],
)
def test_bad_potentials(clouds, options, said):
    a, b, x, y, _ = clouds
    with pytest.raises((TypeError, ValueError), match=said):
        cusink.SinkhornResult.from_potentials(a, b, cusink.PointCloud(x, y), **{"eps": 0.1} | options)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.at(), "one of 'x' and 'y' must be given; got neither"),
        (lambda r: r.at([[0.0, 0.0]], [[0.0, 0.0]]), "got both"),
        (lambda r: r.at([[0.0, 0.0, 0.0]]), "must have the same number of coordinates"),
        (lambda r: r.at([[np.nan, 0.0]]), "'x' must be finite"),
        (lambda r: r.at(np.zeros((2, 3, 2))), r"'x' must have shape \(k, d\), for one shared cloud; got a batch of 2"),
        (lambda r: r.barycentric_map(np.zeros((8, 2))), r"'values' must have shape \(9,\) or \(9, d\) for axis=1"),
        (lambda r: r.barycentric_map(None), "'values' must be an array"),
        (lambda r: r.barycentric_map(np.zeros((9, 2)), 2), "'axis' must be 0"),
        (lambda r: r.barycentric_map(np.full((9, 1), np.inf)), "'values' must be finite"),
    ],
)
def test_bad_input(clouds, call, said):
    a, b, x, y, _ = clouds
    with pytest.raises((TypeError, ValueError), match=said):
        call(cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.5))


def test_other_costs_have_no_new_points():
    result = cusink.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], eps=0.5)
    with pytest.raises(ValueError, match="'C' must be a cusink.PointCloud for new points"):
        result.at([[0.0]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "minkowski", "hellinger"])
@pytest.mark.filterwarnings("error")
def test_maps_of_far_points_are_right_or_refused(metric, dtype):
    """Two targets are as near as each other from far along the first axis: digits of costs decide between them."""
    x = np.random.default_rng(0).random((6, 2)).astype(dtype)
    y = np.array([[1.5, 0.5], [1.5, 1.75], [0.25, 0.5], [0.5, 1.0]], dtype)
    result, refused = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, metric), eps=0.5), []
    for size in 10.0 ** np.array([*range(18), 20, 30, 37] + ([154, 160, 200, 300] if dtype == np.float64 else [])):
        new = np.array([[1.25 * size, 0.75], [0.5, 0.5]], dtype)[::-1]
        try:
            there = result.at(new)
        except ValueError as error:
            refused.append((size, str(error)))
            continue
        assert not refused
        p, q = new[1].astype(np.longdouble), y.astype(np.longdouble)
        apart = np.abs(p - q)
        if metric == "hellinger":
            costs = np.hypot(*(np.sqrt(p) - np.sqrt(q)).T) / np.sqrt(np.longdouble(2))
        else:
            costs = apart.sum(axis=1) if metric == "cityblock" else np.hypot(*apart.T)
        costs = costs**2 if metric == "sqeuclidean" else costs
        logits = (result.g - costs) / 0.5
        shares = np.exp(logits - logits.max())
        np.testing.assert_allclose(there.map()[1], (shares @ q / shares.sum()).astype(float), atol=1e-3)
        assert np.isfinite(there.gradient()).all() and np.isfinite(there.potential).all()
        if metric == "sqeuclidean":
            np.testing.assert_allclose(there.gradient(), 2 * (new - there.map()), rtol=1e-3)
    assert refused[0][0] >= 1e6
    assert all("'x' must have points so near" in said and "at point 1. Leave out" in said for _, said in refused)


def test_far_targets_without_part_do_not_refuse_points_nearby():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 2))
    y[5] = 1e9
    weights = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.0])
    near = cusink.sinkhorn(None, np.full(5, 0.2), cusink.PointCloud(x, y[:5]), eps=0.5).at(x[:2])
    found = cusink.sinkhorn(None, weights, cusink.PointCloud(x, y), eps=0.5).at(x[:2])
    np.testing.assert_allclose(found.map(), near.map(), atol=1e-6)


def test_the_one_target_is_the_image_of_every_point():
    x = np.random.default_rng(0).normal(size=(6, 2))
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, np.array([[3.0, 4.0]])), eps=0.5)
    found = result.at(np.array([[1e12, 0.0], [0.0, 1e9]]))
    np.testing.assert_array_equal(found.map(), [[3, 4], [3, 4]])
    np.testing.assert_allclose(found.gradient(), 2 * (np.array([[1e12, 0.0], [0.0, 1e9]]) - [3, 4]))


def test_a_far_point_is_told_with_its_problem():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 2))
    result = cusink.sinkhorn(np.full((2, 6), 1 / 6), None, cusink.PointCloud(x, y), eps=np.array([10.0, 1e-3]))
    with pytest.raises(ValueError, match=r"costs up to about 4\.4e\+09 at this 'eps'; got .* at point 1 of problem 1"):
        result.at(np.array([[0.0, 0.0], [2.4e8, 2e8]]))
