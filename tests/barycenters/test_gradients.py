"""Gradients through barycenters: differences, the full linear system of the fixed point, batches, edges."""

import numpy as np
import problems
import pytest

import cusink

TIGHT = {"tol": 1e-12, "max_iter": 100_000}


def difference(value, at, way, step=1e-5):
    """Return the derivative of `value` along a direction, by a central difference."""
    return (value(at + step * way) - value(at - step * way)) / (2 * step)


def directions(rng, A, C, weights, symmetric):
    """Return how histograms move with their mass and their empty bins kept, and how costs and weights do."""
    filled = A > 0
    dA = rng.normal(size=A.shape) * filled
    dA -= filled * dA.sum(axis=-1, keepdims=True) / filled.sum(axis=-1, keepdims=True)
    dC = rng.normal(size=C.shape)
    return 0.1 * dA, dC + dC.T if symmetric else dC, 0.1 * rng.normal(size=weights.shape)


def problem(debiased, seed=0):
    rng = np.random.default_rng(seed)
    n, m = (5, 5) if debiased else (6, 5)
    A = problems.histograms(rng, 3, n, mass=2.0)
    if debiased:
        A = A + 0.2  # the barycenter keeps away from the edge of the simplex
    else:
        A[0, 2] = A[1, [0, 3]] = 0
    A *= 2 / A.sum(axis=1, keepdims=True)
    C = problems.line_cost(n) if debiased else problems.line_cost(n, m) + 0.05 * rng.random((n, m))
    return rng, A, C, np.array([1.0, 0.4, 0.6])


@pytest.mark.parametrize(("debiased", "eps"), [(False, 0.1), (False, 0.02), (True, 0.03)])
def test_every_gradient_is_the_derivative(debiased, eps):
    rng, A, C, weights = problem(debiased)
    options = {"debiased": debiased, **TIGHT, "check": False}
    r = rng.normal(size=C.shape[1])
    result = cusink.barycenter(A, C, weights, eps=eps, **options)
    grads = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-12)
    assert grads.converged and result.converged
    dA, dC, dw = directions(rng, A, C, weights, debiased)

    def value(A, C, weights, eps):
        return cusink.barycenter(A, C, weights, eps=eps, **options).barycenter @ r

    for found, expected in (
        ((grads.A * dA).sum(), difference(lambda x: value(x, C, weights, eps), A, dA)),
        ((grads.C * dC).sum(), difference(lambda x: value(A, x, weights, eps), C, dC)),
        ((grads.weights * dw).sum(), difference(lambda x: value(A, C, x, eps), weights, dw)),
        (grads.eps * eps, difference(lambda x: value(A, C, weights, x), eps, eps, 1e-4)),
    ):
        assert abs(found - expected) <= 1e-6 * abs(expected)
    np.testing.assert_allclose(grads.A.sum(axis=1), 0, atol=1e-12)
    assert abs(grads.weights @ weights) <= 1e-12


@pytest.mark.parametrize("debiased", [False, True])
def test_gradients_are_those_of_the_full_linear_system(debiased):
    """Differentiate the equations of u, v, p and d as they stand, and solve for all of them with one dense matrix."""
    rng, A, C, weights = problem(debiased, 3)
    A = A + 0.01
    A *= 2 / A.sum(axis=1, keepdims=True)
    eps, w, r = 0.05, weights / weights.sum(), rng.normal(size=C.shape[1])
    result = cusink.barycenter(A, C, weights, eps=eps, debiased=debiased, **TIGHT)
    p, (K, n), m = result.barycenter, A.shape, C.shape[1]
    kernel = np.exp(-C / eps)
    v = result.problem.v[0]
    u = np.log(A) - np.log(np.exp(v) @ kernel.T)
    d = result.problem.d[0] if debiased else np.zeros(m)
    size = K * (n + m) + 2 * m
    at_u, at_v = (lambda k: slice(k * n, (k + 1) * n)), (lambda k: slice(K * n + k * m, K * n + (k + 1) * m))
    at_p, at_d = slice(size - 2 * m, size - m), slice(size - m, size)
    # Rows: u + log K V = log A. Columns: v + log K' U = log p. Joint: sum w v = d. Own: d + log K d = log p, or d = 0.
    matrix, right = np.zeros((size, size)), np.zeros((size, K * n + K + n * m))
    of_A, of_w, of_C = (slice(0, K * n), slice(K * n, K * n + K), slice(K * n + K, None))
    for k in range(K):
        P = np.exp(u[k])[:, None] * kernel * np.exp(v[k])
        R, S = P / P.sum(axis=1, keepdims=True), P / P.sum(axis=0)
        matrix[at_u(k), at_u(k)], matrix[at_u(k), at_v(k)] = np.eye(n), R
        matrix[at_v(k), at_v(k)], matrix[at_v(k), at_u(k)], matrix[at_v(k), at_p] = np.eye(m), S.T, -np.eye(m)
        right[at_u(k), of_A][:, k * n : (k + 1) * n] = np.diag(1 / A[k])
        right[at_u(k), of_C] = np.einsum("ij,il->ijl", np.eye(n), R).reshape(n, -1) / eps
        right[at_v(k), of_C] = np.einsum("lj,jq->jlq", S, np.eye(m)).reshape(m, -1) / eps
        matrix[at_p, at_v(k)] = w[k] * np.eye(m)
        right[at_p, of_w][:, k] = -v[k]
    matrix[at_p, at_d] = -np.eye(m)
    matrix[at_d, at_d] = np.eye(m)
    if debiased:
        Q = np.exp(d)[:, None] * kernel * np.exp(d)
        Q /= Q.sum(axis=1, keepdims=True)
        matrix[at_d, at_d] += Q
        matrix[at_d, at_p] = -np.eye(m)
        right[at_d, of_C] = np.einsum("ij,il->ijl", np.eye(m), Q).reshape(m, -1) / eps
    moved = np.linalg.lstsq(matrix, right, rcond=1e-12)[0][at_p]  # u and v have a constant each to spare
    pulled = (p * r) @ (moved - (p @ moved) / p.sum())
    grads = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-13)
    of_A = pulled[: K * n].reshape(K, n)
    np.testing.assert_allclose(grads.A, of_A - of_A.mean(axis=1, keepdims=True), rtol=0, atol=1e-7)
    of_w = pulled[K * n : K * n + K]
    np.testing.assert_allclose(grads.weights, (of_w - w @ of_w) / weights.sum(), rtol=0, atol=1e-8)
    np.testing.assert_allclose(grads.C, pulled[K * n + K :].reshape(n, m), rtol=0, atol=1e-6)


def test_one_sided_derivatives_of_empty_bins_and_of_no_weight():
    rng, A, C, _ = problem(False, 5)
    r, weights = rng.normal(size=C.shape[1]), np.array([1.0, 0.0, 0.5])
    grads = cusink.barycenter_adjoint(cusink.barycenter(A, C, weights, eps=0.05, **TIGHT), grad_barycenter=r, tol=1e-12)
    assert not grads.A[1].any()

    def value(A, weights):
        return cusink.barycenter(A, C, weights, eps=0.05, check=False, **TIGHT).barycenter @ r

    start, step = value(A, weights), 1e-5
    one, two = (value(A, weights + [0, k * step, 0]) - start for k in (1, 2))
    assert abs((4 * one - two) / (2 * step) - grads.weights[1]) <= 1e-6 * abs(grads.weights[1])
    way = np.zeros_like(A)
    way[0, [2, 4]] = 1, -1  # the first bit of an empty bin
    one, two = (value(A + k * step * way, weights) - start for k in (1, 2))
    assert abs((4 * one - two) / (2 * step) - (grads.A * way).sum()) <= 1e-6 * abs((grads.A * way).sum())


def test_a_batch_is_its_problems(xp):
    rng = np.random.default_rng(6)
    A, C = problems.histograms(rng, 6, 9, zeros=0.4, mass=3.0).reshape(2, 3, 9), problems.line_cost(9, 8)
    weights, r = rng.random((2, 3)), rng.normal(size=(2, 8))
    options = {"eps": 0.05, "tol": 1e-11, "max_iter": 5000}
    result = cusink.barycenter(xp(A), xp(C), xp(weights), **options)
    grads = cusink.barycenter_adjoint(result, grad_barycenter=xp(r), tol=1e-11)
    total = 0
    for k in range(2):
        one = cusink.barycenter_adjoint(
            cusink.barycenter(A[k], C, weights[k], **options), grad_barycenter=r[k], tol=1e-11
        )
        total = total + one.C
        for name in ("A", "weights", "eps"):
            found = getattr(grads, name)
            assert xp.owns(found)
            np.testing.assert_allclose(xp.numpy(found)[k], getattr(one, name), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(xp.numpy(grads.C), total, rtol=1e-6, atol=1e-8)
    assert xp.owns(grads.converged) and grads.converged.shape == (2,) and grads.x is None


@pytest.mark.parametrize("debiased", [False, True])
def test_costs_that_are_not_stored(debiased):
    """Points get what `cost_matrix_adjoint` makes of the gradient by the same costs stored."""
    rng = np.random.default_rng(7)
    A = 0.1 + problems.histograms(rng, 2, 12)
    places = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=-1) * 0.4
    x, y, r = places + 0.1 * rng.random((12, 2)), rng.random((10, 2)), rng.normal(size=12)
    A /= A.sum(axis=1, keepdims=True)
    options = {"eps": 0.05, "debiased": debiased, "tol": 1e-8, "max_iter": 20_000}
    grid = cusink.Grid((3, 4), spacing=0.4)
    clouds = [(grid, None)] + [(cusink.PointCloud(x, y if not debiased else None), y if not debiased else None)]
    for C, other in clouds:
        m = C.shape[1]
        dense, cotangent = C.dense(), r[:m]
        found, expected = (
            cusink.barycenter_adjoint(cusink.barycenter(A, each, **options), grad_barycenter=cotangent, tol=1e-9)
            for each in (C, dense)
        )
        assert found.C is None
        for name in ("A", "weights", "eps"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
        if C is not grid:
            gx, gy = cusink.cost_matrix_adjoint(x, other, expected.C)
            np.testing.assert_allclose(found.x, gx, rtol=0, atol=1e-5)
            assert (found.y is None) == debiased
            if gy is not None:
                np.testing.assert_allclose(found.y, gy, rtol=0, atol=1e-5)


def test_steep_costs_and_a_batch_that_is_taken_apart(monkeypatch):
    """Kernels that underflow, problems in several groups, and few at a time: the same numbers."""
    rng = np.random.default_rng(8)
    A, C = problems.histograms(rng, 8, 10, zeros=0.3).reshape(4, 2, 10), 40.0 * problems.line_cost(10)
    r = rng.normal(size=(4, 10))
    result = cusink.barycenter(A, C, eps=0.08, tol=1e-10, max_iter=20_000)
    whole = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-11)
    monkeypatch.setattr("cusink.barycenters.terms.MEANS_BYTES", 1)
    apart = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-11)
    assert whole.converged.all() and apart.converged.all()
    for name in ("A", "weights", "C", "eps"):
        np.testing.assert_allclose(getattr(apart, name), getattr(whole, name), rtol=1e-5, atol=1e-7)
    exact = [
        cusink.barycenter_adjoint(
            cusink.barycenter(a, C, eps=0.08, tol=1e-10, max_iter=20_000), grad_barycenter=each, tol=1e-11
        ).A
        for a, each in zip(A, r, strict=True)
    ]
    np.testing.assert_allclose(whole.A, exact, rtol=1e-5, atol=1e-7)


def test_float32_is_near_float64():
    rng, A, C, weights = problem(False)
    r, found = rng.normal(size=C.shape[1]), []
    for dtype, tol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        result = cusink.barycenter(*(x.astype(dtype) for x in (A, C, weights)), eps=0.05, tol=tol)
        grads = cusink.barycenter_adjoint(result, grad_barycenter=r.astype(dtype))
        assert {getattr(grads, name).dtype for name in ("A", "weights", "C", "eps")} == {np.dtype(dtype)}
        found.append(grads)
    for name in ("A", "weights", "C", "eps"):
        exact = getattr(found[0], name)
        np.testing.assert_allclose(getattr(found[1], name), exact, rtol=0, atol=1e-3 * np.abs(exact).max())


def test_forbidden_pairs_have_no_slope():
    rng, A, C, weights = problem(False)
    C[1, 2] = C[4, 0] = C[:, 4] = np.inf
    options, r = {"eps": 0.1, **TIGHT}, rng.normal(size=5)
    result = cusink.barycenter(A, C, weights, **options)
    grads = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-12)
    assert not grads.C[np.isinf(C)].any()
    _, dC, _ = directions(rng, A, C, weights, False)
    expected = difference(lambda x: cusink.barycenter(A, x, weights, **options).barycenter @ r, C, dC)
    assert abs((grads.C * dC).sum() - expected) <= 1e-6 * abs(expected)


def test_one_histogram_leaves_nothing_to_solve():
    """Its barycenter is its blur, whatever the weight: the right side is rounding, which is no reason for a warning."""
    a, C = problems.histograms(np.random.default_rng(9), 1, 8), problems.line_cost(8)
    result = cusink.barycenter(a, C, eps=0.02, tol=1e-12)
    grads = cusink.barycenter_adjoint(result, grad_barycenter=np.arange(8.0), tol=1e-11)
    K = np.exp(-C / 0.02)
    slope = (K / K.sum(axis=1, keepdims=True)) @ np.arange(8.0)
    np.testing.assert_allclose(grads.A[0], slope - slope.mean(), rtol=0, atol=1e-11)
    assert grads.converged and abs(grads.weights[0]) <= 1e-12


def test_what_did_not_converge_is_said():
    rng, A, C, weights = problem(False)
    r = rng.normal(size=C.shape[1])
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol"):
        rough = cusink.barycenter(A, C, weights, eps=0.02, max_iter=20)
    with pytest.warns(cusink.ConvergenceWarning, match="1 of 1 problems had not converged"):
        cusink.barycenter_adjoint(rough, grad_barycenter=r)
    result = cusink.barycenter(A, C, weights, eps=0.002, max_iter=10_000)
    with pytest.warns(cusink.ConvergenceWarning, match="the linear system of 1 of 1 problems") as record:
        assert not cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-12, max_iter=1).converged
    assert record[0].filename == __file__


SOLVED = cusink.barycenter(np.full((2, 3), 1 / 3), problems.line_cost(3), eps=0.1)
BAD = [
    ({"result": None}, TypeError, "'result' must be what cusink.barycenter returned, a Barycenter; got None"),
    ({"grad_barycenter": None}, TypeError, "'grad_barycenter' must be an array of the shape of the barycenter"),
    ({"grad_barycenter": np.ones(4)}, ValueError, r"'grad_barycenter' must have shape \(3,\) to match the result"),
    ({"grad_barycenter": [np.nan, 0, 0]}, ValueError, "'grad_barycenter' must"),
    ({"tol": None}, TypeError, "'tol' must be a number"),
    ({"max_iter": 0}, ValueError, "'max_iter' must"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    given = {"result": SOLVED, "grad_barycenter": np.ones(3)} | options
    with pytest.raises(error, match=message):
        cusink.barycenter_adjoint(given.pop("result"), **given)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e150, 1e290, [1, 1e-200]])
def test_gradients_are_linear_in_cotangents_of_any_size(scale):
    rng = np.random.default_rng(9)
    histograms, cost = rng.dirichlet(np.ones(6), (2, 3)), cusink.cost_matrix(np.linspace(0, 1, 6))
    result = cusink.barycenter(histograms, cost, eps=0.1, tol=1e-10)
    grad, scale = rng.normal(size=(2, 6)), np.broadcast_to(scale, 2)
    one = cusink.barycenter_adjoint(result, grad_barycenter=grad)
    scaled = cusink.barycenter_adjoint(result, grad_barycenter=grad * scale[:, None])
    for by in ("A", "weights"):
        for found, want, factor in zip(getattr(scaled, by), getattr(one, by), scale, strict=True):
            np.testing.assert_allclose(found / factor, want, rtol=0, atol=1e-12 * abs(want).max())
    if scale[0] == scale[1]:  # of a sum over all problems
        for by in ("C", "eps"):
            want = getattr(one, by)
            np.testing.assert_allclose(getattr(scaled, by) / scale[0], want, rtol=0, atol=1e-12 * abs(want).max())


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("mass", [1e-300, 1e-200, 1e200])
def test_gradients_are_those_of_histograms_of_mass_one(mass, debiased):
    _, A, C, weights = problem(debiased)
    slope = np.arange(float(C.shape[1]))

    def gradients(mass):
        result = cusink.barycenter(mass * A, C, weights, eps=0.05, debiased=debiased, tol=1e-9, max_iter=5000)
        return cusink.barycenter_adjoint(result, grad_barycenter=slope / mass, tol=1e-10)

    found, want = gradients(mass), gradients(1.0)
    np.testing.assert_allclose(found.A * mass, want.A, atol=1e-5)
    for name in ("weights", "C", "eps"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), atol=1e-5)


@pytest.mark.parametrize("debiased", [False, True])
def test_an_eps_each_is_each_problem_alone(debiased, xp):
    rng, A, C, weights = problem(debiased)
    A = np.stack([A, A[::-1], A[[1, 2, 0]], A])
    shares = np.stack([weights, weights[::-1], [0.0, 0.5, 0.5], weights])  # the third leaves a plan to be solved for it
    eps, r = np.array([0.1, 0.05, 0.1, 0.2]), rng.normal(size=(4, C.shape[1]))
    how = {"debiased": debiased, "tol": 1e-10, "max_iter": 100_000}
    found = cusink.barycenter(xp(A), xp(C), xp(shares), eps=xp(eps), **how)
    grads = cusink.barycenter_adjoint(found, grad_barycenter=xp(r), tol=1e-10)
    of_costs = 0
    for k in range(4):
        one = cusink.barycenter(A[k], C, shares[k], eps=float(eps[k]), **how)
        alone = cusink.barycenter_adjoint(one, grad_barycenter=r[k], tol=1e-10)
        np.testing.assert_allclose(xp.numpy(found.barycenter)[k], one.barycenter, atol=1e-8)
        assert xp.numpy(found.n_iter)[k] == one.n_iter
        for name in ("A", "weights", "eps"):
            np.testing.assert_allclose(xp.numpy(getattr(grads, name))[k], getattr(alone, name), rtol=1e-5, atol=1e-6)
        of_costs = of_costs + alone.C
    np.testing.assert_allclose(xp.numpy(grads.C), of_costs, rtol=1e-5, atol=1e-6)
    assert xp.numpy(grads.converged).all() and grads.eps.shape == (4,)
    equal = cusink.barycenter(xp(A), xp(C), xp(shares), eps=np.full(4, 0.1), **how)
    number = cusink.barycenter(xp(A), xp(C), xp(shares), eps=0.1, **how)
    np.testing.assert_array_equal(xp.numpy(equal.barycenter), xp.numpy(number.barycenter))


def test_several_eps_give_one_set_of_histograms_a_batch_and_clouds_their_gradients():
    rng = np.random.default_rng(2)
    A, x, y, eps = rng.dirichlet(np.ones(5), 3), rng.random((5, 2)), rng.random((4, 2)), [0.3, 0.1]
    cloud = cusink.PointCloud(x, y)
    found = cusink.barycenter(A, cloud, eps=eps, **TIGHT)
    grads = cusink.barycenter_adjoint(found, grad_barycenter=np.stack([np.arange(4.0)] * 2))
    each = [cusink.barycenter(A, cloud, eps=number, **TIGHT) for number in eps]
    alone = [cusink.barycenter_adjoint(one, grad_barycenter=np.arange(4.0)) for one in each]
    np.testing.assert_allclose(found.barycenter, [one.barycenter for one in each], atol=1e-10)
    for name in ("x", "y"):
        np.testing.assert_allclose(getattr(grads, name), sum(getattr(one, name) for one in alone), rtol=1e-5)
    one = cusink.barycenter(A, cloud, eps=[0.3], **TIGHT)
    assert one.barycenter.shape == (1, 4) and found.converged.shape == (2,)
    on_grid = cusink.barycenter(A, cusink.Grid(5), eps=np.array(eps), **TIGHT)
    of_axes = cusink.barycenter_adjoint(on_grid, grad_barycenter=np.eye(5)[:2]).axes
    parts = [
        cusink.barycenter_adjoint(cusink.barycenter(A, cusink.Grid(5), eps=number, **TIGHT), grad_barycenter=row).axes[
            0
        ]
        for number, row in zip(eps, np.eye(5), strict=False)
    ]
    np.testing.assert_allclose(of_axes[0], sum(parts), rtol=1e-5, atol=1e-9)
