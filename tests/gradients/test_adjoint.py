"""`cusink.sinkhorn_adjoint` against dense linear algebra, finite differences of an independent solver, and POT."""

import functools
import tracemalloc
import warnings
from dataclasses import replace

import emulated
import numpy as np
import problems
import pytest
import reference
from emulated.cupy_stand_in import operators

import cusink
from cusink.backends.numpy import means as numpy_means
from cusink.costs.operands import DenseCost
from cusink.gradients import system as gradients_system
from cusink.gradients import terms

FLOATS = [np.float32, np.float64]
VALUES = ("cost", "reg_cost", "entropic_cost")
INPUTS = ("a", "b", "C", "eps")
named = {"ids": str}


def problem(name, seed, n, m, eps, B=3, shared=True, empty=False, mass=1.0, shift=0.0):
    """Problems small enough for dense linear algebra; `empty` puts zero weights on both sides."""
    rng = np.random.default_rng(seed)
    a, b = (rng.dirichlet(np.ones(k), size=B) for k in (n, m))
    if empty:
        a[:, ::3], b[:, 1::4] = 0, 0
        a[0, 1] = 0
    a, b = (mass * w / w.sum(axis=1, keepdims=True) for w in (a, b))
    return problems.Problem(name, a, b, shift + rng.random((n, m) if shared else (B, n, m)), eps)


DENSE = [
    problem("n < m", 0, 5, 8, 0.1),
    problem("n > m", 1, 9, 4, 0.05),
    problem("n = m, small eps", 2, 6, 6, 0.01),
    problem("a cost per problem", 3, 7, 6, 0.05, shared=False),
    problem("empty bins", 4, 8, 9, 0.05, empty=True),
    problem("empty bins, a cost per problem", 5, 8, 6, 0.1, shared=False, empty=True),
    problem("mass 250", 6, 5, 6, 0.1, mass=250.0),
    problem("costs below zero", 7, 5, 6, 0.1, shift=-3.0),
    problem("one row", 8, 1, 5, 0.1),
    problem("one column", 9, 5, 1, 0.1),
    problem("B = 1", 10, 6, 7, 0.1, B=1),
]


def solve(xp, p, dtype=np.float64, tol=1e-13, **options):
    """Solve as accurately as rounding lets; in float64 the error is below the differences that the tests compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        return cusink.sinkhorn(
            xp(p.a, dtype), xp(p.b, dtype), xp(p.C, dtype), eps=p.eps, tol=tol, max_iter=100_000, **options
        )


def pull(result, **options):
    """Gradients of a solve that is as good as it gets, whatever its tolerance was."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ problems had not", cusink.ConvergenceWarning)
        return cusink.sinkhorn_adjoint(result, **options)


def cotangents(p, seed=0, names=(*VALUES, "f", "g")):
    rng = np.random.default_rng(seed)
    B, n, m = len(p.a), p.a.shape[1], p.b.shape[1]
    shapes = dict.fromkeys(VALUES, (B,)) | {"f": (B, n), "g": (B, m)}
    return {f"grad_{name}": rng.normal(size=shape) for name, shape in shapes.items() if name in names}


def dense(xp, p, result, cotangent):
    """Return the same gradients from the whole Jacobian of each problem, at the potentials of the result."""
    f, g, C = xp.numpy(result.f), xp.numpy(result.g), np.broadcast_to(p.C, (len(p.a), *p.C.shape[-2:]))
    out = {name: [] for name in INPUTS}
    for k in range(len(p.a)):
        J = reference.jacobian(p.a[k], p.b[k], C[k], p.eps, f[k], g[k])
        for name in INPUTS:
            row = sum(np.atleast_1d(w[k]) @ J[output.removeprefix("grad_")][name] for output, w in cotangent.items())
            out[name].append(row - row.mean() if name in "ab" else row.reshape(p.C.shape[-2:] if name == "C" else ()))
    out = {name: np.array(rows) for name, rows in out.items()}
    return out | ({"C": out["C"].sum(axis=0)} if p.C.ndim == 2 else {})


def assert_gradients(xp, grads, want, rtol):
    for name in INPUTS:
        found = xp.numpy(getattr(grads, name))
        assert found.shape == want[name].shape, name
        np.testing.assert_allclose(
            found, want[name], rtol=0, atol=rtol * np.abs(want[name]).max() + 1e-13, err_msg=name
        )


OUTPUTS = [*((name,) for name in VALUES), ("f",), ("g",), ("f", "g"), (*VALUES, "f", "g")]


@pytest.mark.parametrize("outputs", OUTPUTS, ids="+".join)
@pytest.mark.parametrize("p", DENSE, **named)
def test_gradients_are_those_of_dense_linear_algebra(xp, p, outputs):
    result, cotangent = solve(xp, p), cotangents(p, names=outputs)
    grads = pull(result, **{name: xp(w) for name, w in cotangent.items()}, tol=1e-13)
    assert xp.numpy(grads.converged).all()
    assert xp.owns(grads.a) and xp.owns(grads.C)
    assert_gradients(xp, grads, dense(xp, p, result, cotangent), 1e-9)


@pytest.mark.parametrize("p", DENSE, **named)
def test_dot_test(xp, p):
    """<J u, v> = <u, J' v> for directions u that keep the masses equal."""
    result, cotangent, rng = solve(xp, p), cotangents(p, 1), np.random.default_rng(2)
    grads = pull(result, **{name: xp(w) for name, w in cotangent.items()}, tol=1e-14)
    B, n, m = len(p.a), p.a.shape[1], p.b.shape[1]
    u = {"a": rng.normal(size=(B, n)), "b": rng.normal(size=(B, m)), "C": rng.normal(size=p.C.shape), "eps": np.ones(B)}
    for side in "ab":
        u[side] -= u[side].mean(axis=1, keepdims=True)
    right = [(xp.numpy(getattr(grads, name)) * u[name]).sum() for name in INPUTS]
    left = 0
    for k in range(B):
        C = p.C if p.C.ndim == 2 else p.C[k]
        J = reference.jacobian(p.a[k], p.b[k], C, p.eps, xp.numpy(result.f)[k], xp.numpy(result.g)[k])
        tangent = u | {"a": u["a"][k], "b": u["b"][k], "C": u["C"] if p.C.ndim == 2 else u["C"][k], "eps": u["eps"][k]}
        for output, w in cotangent.items():
            Ju = sum(J[output.removeprefix("grad_")][name] @ np.ravel(tangent[name]) for name in INPUTS)
            left += np.atleast_1d(w[k]) @ Ju
    assert abs(left - sum(right)) <= 1e-10 * np.abs(right).max()


# Finite differences of the independent solver


def smooth(bins=40, seed=1):
    """Return the problem of the table in docs/gradients.md."""
    rng = np.random.default_rng(seed)
    a, b = (w / w.sum() for w in rng.random((2, bins)))
    return a, b, problems.line_cost(bins)


@functools.cache
def slopes(eps):
    """Return derivatives of the three values along a direction of each input: ``{input: (direction, slopes)}``."""
    a, b, C = smooth()
    rng = np.random.default_rng(3)
    directions = {
        "a": a * rng.normal(size=len(a)),
        "b": b * rng.normal(size=len(b)),
        "C": eps * rng.normal(size=C.shape),
    }
    for name, w in (("a", a), ("b", b)):
        directions[name] -= w * directions[name].sum()
    directions["eps"] = eps

    def value(name, t):
        moved = {"a": a, "b": b, "C": C, "eps": eps}
        moved[name] = moved[name] + t * directions[name]
        return np.array(reference.optimum(*moved.values()))

    return {name: (d, reference.derivative(functools.partial(value, name))) for name, d in directions.items()}


@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-3])
def test_gradients_are_the_slopes_of_each_value(xp, eps):
    a, b, C = smooth()
    result = solve(xp, problems.Problem("40 bins", a, b, C, eps))
    for k, output in enumerate(VALUES):
        grads = pull(result, **{f"grad_{output}": 1.0}, tol=1e-12)
        for name, (direction, slope) in slopes(eps).items():
            found = (xp.numpy(getattr(grads, name)) * direction).sum()
            assert abs(found - slope[k]) <= 1e-6 * abs(slope[k]), (output, name)


@pytest.mark.parametrize(("eps", "percent"), [(1e-1, 169), (1e-2, 17.9), (1e-3, 3.0)])
def test_the_multiplier_is_not_the_gradient_of_the_cost(eps, percent):
    """The table in docs/gradients.md."""
    result = solve(np.asarray, problems.Problem("40 bins", *smooth(), eps))
    exact, multiplier = (pull(result, **{name: 1.0}, tol=1e-12).a for name in ("grad_cost", "grad_reg_cost"))
    off = np.linalg.norm(multiplier - exact) / np.linalg.norm(exact)
    assert abs(100 * off - percent) < 0.02 * percent


@pytest.mark.parametrize("eps", [0.1, 0.02])
def test_empty_bins_have_the_one_sided_derivative(xp, eps):
    """A first bit of weight in an empty bin, taken from all the others."""
    p = problem("empty bins", 4, 8, 9, eps, B=1, empty=True)
    a, b, C = p.a[0], p.b[0], p.C
    result = solve(xp, problems.Problem("one", a, b, C, eps))
    for k, output in enumerate(("cost", "reg_cost")):
        grads = pull(result, **{f"grad_{output}": 1.0}, tol=1e-13)
        for name, w in (("a", a), ("b", b)):
            gradient = xp.numpy(getattr(grads, name))
            assert np.isfinite(gradient).all()
            for empty in np.flatnonzero(w == 0):
                direction = -w.copy()
                direction[empty] = w.sum()

                def value(t, name=name, direction=direction, k=k):
                    moved = {"a": a, "b": b, name: (a if name == "a" else b) + t * direction}
                    return reference.optimum(moved["a"], moved["b"], C, eps)[k]

                at, h = [value(t) for t in (0.0, 1e-4, 2e-4, 3e-4)], 1e-4
                slope = (-11 * at[0] + 18 * at[1] - 9 * at[2] + 2 * at[3]) / (6 * h)
                assert abs(gradient @ direction - slope) <= 1e-6 * max(np.abs(gradient).max(), abs(slope))


def test_entropic_cost_leaves_the_entropy_of_empty_bins_out(xp):
    """Its slope there is -inf; on the face where empty bins stay empty it is exact."""
    p = problem("empty bins", 4, 8, 9, 0.1, B=1, empty=True)
    result = solve(xp, p)
    entropic, reg = (pull(result, **{name: 1.0}) for name in ("grad_entropic_cost", "grad_reg_cost"))
    entropy = p.eps * np.where(p.a > 0, np.log(np.where(p.a > 0, p.a, 1)) + 1, 0)
    np.testing.assert_allclose(xp.numpy(entropic.a) - xp.numpy(reg.a), entropy - entropy.mean(), atol=1e-14)


def test_pot_agrees_on_the_envelope():
    ot = pytest.importorskip("ot")
    a, b, C = smooth()
    eps = 0.05
    log = ot.sinkhorn(a, b, C, eps, numItermax=20_000, stopThr=1e-14, log=True)[1]
    # With P = u K v, eps log u is the multiplier of the problem with <P, C> - eps H(P).
    grads = pull(solve(np.asarray, problems.Problem("40 bins", a, b, C, eps)), grad_entropic_cost=1.0)
    for found, scaling in ((grads.a, log["u"]), (grads.b, log["v"])):
        multiplier = eps * np.log(scaling)
        np.testing.assert_allclose(found, multiplier - multiplier.mean(), atol=1e-9)


# Batches, shapes, dtypes


@pytest.mark.parametrize("p", [p for p in DENSE if len(p.a) > 1], **named)
def test_a_batch_is_a_loop_of_singles(xp, p):
    cotangent = cotangents(p)
    whole = pull(solve(xp, p), **{name: xp(w) for name, w in cotangent.items()}, tol=1e-13)
    C, summed = np.broadcast_to(p.C, (len(p.a), *p.C.shape[-2:])), 0
    for k in range(len(p.a)):
        single = problems.Problem("single", p.a[k], p.b[k], C[k], p.eps)
        one = pull(solve(xp, single), **{name: xp(w[k]) for name, w in cotangent.items()}, tol=1e-13)
        assert one.a.shape == p.a.shape[1:] and one.eps.shape == () and one.converged.shape == ()
        for name in ("a", "b", "eps", *(["C"] if p.C.ndim == 3 else [])):
            found, want = xp.numpy(getattr(whole, name))[k], xp.numpy(getattr(one, name))
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-9 * np.abs(want).max() + 1e-13)
        summed = summed + xp.numpy(one.C)
    if p.C.ndim == 2:
        np.testing.assert_allclose(xp.numpy(whole.C), summed, rtol=0, atol=1e-9 * np.abs(summed).max() + 1e-13)


@pytest.mark.parametrize("outputs", OUTPUTS, ids="+".join)
@pytest.mark.parametrize("p", [p for p in DENSE if p.C.ndim == 2], **named)
def test_a_shared_cost_has_the_sum_of_the_gradients(xp, p, outputs):
    cotangent = {name: xp(w) for name, w in cotangents(p, names=outputs).items()}
    shared = pull(solve(xp, p), **cotangent, tol=1e-13)
    copies = problems.Problem("copies", p.a, p.b, np.repeat(p.C[None], len(p.a), axis=0), p.eps)
    own = pull(solve(xp, copies), **cotangent, tol=1e-13)
    want = xp.numpy(own.C).reshape(-1, *p.C.shape).sum(axis=0)
    np.testing.assert_allclose(xp.numpy(shared.C), want, rtol=0, atol=1e-9 * np.abs(want).max() + 1e-13)
    for name in ("a", "b", "eps"):
        want = xp.numpy(getattr(own, name))
        np.testing.assert_allclose(
            xp.numpy(getattr(shared, name)), want, rtol=0, atol=1e-9 * np.abs(want).max() + 1e-13
        )


def test_gradients_add_up(xp):
    p = DENSE[0]
    result, cotangent = solve(xp, p), {name: xp(w) for name, w in cotangents(p).items()}
    together = pull(result, **cotangent, tol=1e-13)
    apart = [pull(result, **{name: w}, tol=1e-13) for name, w in cotangent.items()]
    for name in INPUTS:
        want = sum(xp.numpy(getattr(one, name)) for one in apart)
        np.testing.assert_allclose(
            xp.numpy(getattr(together, name)), want, rtol=0, atol=1e-10 * np.abs(want).max() + 1e-13
        )


def test_a_number_is_for_every_problem(xp):
    p = DENSE[0]
    result = solve(xp, p)
    one, each = pull(result, grad_cost=2), pull(result, grad_cost=xp(np.full(len(p.a), 2.0)))
    np.testing.assert_array_equal(xp.numpy(one.a), xp.numpy(each.a))


@pytest.mark.parametrize("outputs", [("cost",), ("reg_cost",), (*VALUES, "f", "g")], ids="+".join)
@pytest.mark.parametrize("p", [p for p in DENSE if "small" not in p.name], **named)
def test_float32_is_right_to_its_rounding(xp, p, outputs):
    """Of the exponents, which are as large as C / eps, times the condition of the system."""
    low, high = solve(xp, p, np.float32, tol=1e-6), solve(xp, p)
    cotangent = cotangents(p, names=outputs)
    single = pull(low, **{name: xp(w, np.float32) for name, w in cotangent.items()})
    double = pull(high, **{name: xp(w) for name, w in cotangent.items()}, tol=1e-12)
    assert xp.numpy(single.converged).all()
    for name in INPUTS:
        found, want = getattr(single, name), xp.numpy(getattr(double, name))
        assert found.dtype == np.float32
        tolerance = 64 * np.finfo(np.float32).eps * (1 + np.abs(p.C).max() / p.eps)
        np.testing.assert_allclose(xp.numpy(found), want, rtol=0, atol=tolerance * max(np.abs(want).max(), p.eps))


def test_half_precision_comes_back_as_it_went_in():
    a, b, C = (x.astype(np.float16) for x in smooth(8))
    result = cusink.sinkhorn(a, a, C, eps=0.1, tol=1e-4)
    grads = cusink.sinkhorn_adjoint(result, grad_cost=np.float16(1))
    assert {getattr(grads, name).dtype for name in INPUTS} == {np.dtype(np.float16)}
    double = solve(np.asarray, problems.Problem("", a.astype(float), a.astype(float), C.astype(float), 0.1))
    np.testing.assert_allclose(grads.a, pull(double, grad_cost=1.0).a, atol=2e-3)


# The forms of the means on NumPy


def forced_to_tiles(monkeypatch, limits, tile_bytes):
    limits(kernel_tile_bytes=tile_bytes)
    monkeypatch.setattr(numpy_means, "_shared", lambda C, a, *_: (None, np.zeros(len(a), bool)), raising=True)


@pytest.mark.parametrize("tile_bytes", [1, 1 << 10, 1 << 20])
@pytest.mark.parametrize("p", DENSE, **named)
def test_tiles_agree_with_products(monkeypatch, limits, p, tile_bytes):
    cotangent, result = cotangents(p), solve(np.asarray, p)
    want = pull(result, **cotangent, tol=1e-13)
    want = {name: getattr(want, name) for name in INPUTS}
    forced_to_tiles(monkeypatch, limits, tile_bytes)
    tiled = pull(result, **cotangent, tol=1e-13)
    for name in INPUTS:
        np.testing.assert_allclose(
            getattr(tiled, name), want[name], rtol=0, atol=1e-9 * np.abs(want[name]).max() + 1e-13
        )


def check_means(xp, ops, q, dtype):
    """Means of a solved problem, whole and in part, against the plan written out in float64."""
    rng, eps = np.random.default_rng(0), q.eps
    a, b, f, g, C = (xp.numpy(x).astype(float) for x in (q.a, q.b, q.f, q.g, q.C.data))
    B, n, m = len(a), a.shape[1], b.shape[1]
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    Z = (f[:, :, None] + g[:, None, :] - C) / eps
    R, S = np.exp(log_b[:, None, :] + Z), np.exp(log_a[:, :, None] + Z)
    R, S = R / R.sum(axis=2, keepdims=True), S / S.sum(axis=1, keepdims=True)
    u, v = rng.normal(size=(B, n)).astype(dtype), rng.normal(size=(B, m)).astype(dtype)
    finite = np.where(np.isfinite(C), C, 0)
    largest = np.abs(finite).max()
    most = 4 + largest / eps
    tolerance = 64 * np.finfo(dtype).eps * (1 + largest / eps)
    seen = []
    for index, means in ops.plan_means(q.C.data, q.a, q.b, q.f, q.g, eps):
        seen.extend(index)
        some = np.arange(len(index))[::-2]
        for at, part in ((index, means), (index[some], means.at(some))):
            cost = finite if C.ndim == 2 else finite[at]
            for found, want, scale in (
                (part.mean(xp(v[at]), 1), np.matvec(R[at], v[at].astype(float)), 4),
                (part.mean(xp(u[at]), 0), np.vecmat(u[at].astype(float), S[at]), 4),
                (part.mean_cost(1), (R[at] * cost).sum(axis=2), largest),
                (part.mean_cost(0), (S[at] * cost).sum(axis=1), largest),
                (part.mean_less_cost(xp(v[at]), eps, 1), (R[at] * (v[at][:, None, :] - cost / eps)).sum(axis=2), most),
                (part.mean_less_cost(xp(u[at]), eps, 0), (S[at] * (u[at][:, :, None] - cost / eps)).sum(axis=1), most),
                (part.marginal(1), a[at], a.max()),
                (part.marginal(0), np.vecmat(a[at], R[at]), a.max()),
            ):
                np.testing.assert_allclose(xp.numpy(found), want, rtol=0, atol=tolerance * scale)
            for axis, z in ((0, v[at]), (1, u[at])):
                weights = xp.numpy(part.marginal(axis))
                root = np.sqrt(weights / weights.sum(axis=1, keepdims=True))
                inverse = 1 / np.maximum(root, np.finfo(root.dtype).tiny)
                z = (root * z).astype(root.dtype)
                y = (inverse * z).astype(float)
                if axis == 0:
                    want = root * np.vecmat(np.matvec(R[at], y), S[at])
                else:
                    want = root * np.matvec(R[at], np.vecmat(y, S[at]))
                last = np.array([len(at) - 1])
                smoothing = part.rooted(axis, xp(root, root.dtype), xp(inverse, root.dtype))
                found = xp.numpy(smoothing(xp(z, z.dtype))).copy()
                np.testing.assert_allclose(found, want, rtol=0, atol=4 * tolerance)
                found = xp.numpy(smoothing.at(last)(xp(z[last], z.dtype)))
                np.testing.assert_allclose(found, want[last], rtol=0, atol=4 * tolerance)
    assert sorted(seen) == list(range(B))


@pytest.mark.parametrize("max_iter", [1, 100_000])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [p for p in problems.HARD if p.a.ndim == 2], **named)
def test_means_have_their_definitions(xp, p, dtype, max_iter):
    """Of every problem, in whatever form, and wherever its potentials are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        arrays = (xp(x, dtype) for x in (p.a, p.b, p.C))
        result = cusink.sinkhorn(*arrays, eps=p.eps, tol=1e-5, max_iter=max_iter)
    check_means(xp, result.problem.C.ops, result.problem, dtype)


def test_factors_of_a_smoothing_stay_in_range():
    """The ratio of a scaling and a sum may be no number of float32, where their products with the kernel are."""
    kernel = numpy_means.DenseKernel(np.array([[0.0, 1e4], [1e4, 0.0]], np.float32), np.float32, 1.0)
    a, V = np.full((1, 2), 0.5, np.float32), np.full((1, 2), 2.0**24, np.float32)
    U = np.array([[2.0**24, 2.0**-120]], np.float32)
    means = numpy_means.SharedMeans(kernel, a, U, V, kernel.product_of_rows(V, 1), kernel.product_of_rows(U, 0))
    for axis in (0, 1):
        smoothing, z = means.rooted(axis, np.sqrt(a), 1 / np.sqrt(a)), np.array([[3.0, -2.0]], np.float32)
        np.testing.assert_allclose(smoothing(z), z, rtol=1e-6)  # as of two islands


def test_certified_products_serve_what_is_in_range():
    """The far-apart Gaussians need tiles, the others do not; if all did, nothing above would test the products."""
    p = {str(p): p for p in problems.HARD}["far-apart Gaussians"]
    q = solve(np.asarray, p, tol=1e-6).problem
    forms = {type(means).__name__ for _, means in numpy_means.plan_means(q.C.data, q.a, q.b, q.f, q.g, p.eps)}
    assert forms == {"SharedMeans", "TileMeans"}


# Finite, whatever comes


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_gradients_are_finite_and_of_mean_zero(xp, p, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = cusink.sinkhorn(xp(p.a, dtype), xp(p.b, dtype), xp(p.C, dtype), eps=p.eps, tol=1e-5)
        for cotangent in (
            {"grad_cost": 1.0},
            {"grad_reg_cost": 1.0},
            {"grad_entropic_cost": 1.0},
            {"grad_f": result.f},
        ):
            grads = cusink.sinkhorn_adjoint(result, **cotangent)
            for name in INPUTS:
                found = xp.numpy(getattr(grads, name))
                assert np.isfinite(found).all() and found.dtype == dtype, (name, *cotangent)
                if name in "ab":
                    scale = np.abs(found).max() + np.abs(xp.numpy(result.f)).max()
                    assert np.abs(found.mean(axis=-1)).max() <= 8 * np.finfo(dtype).eps * scale


def test_forbidden_pairs(xp):
    """Those between two islands get no gradient, and each island has its own."""
    p = next(p for p in problems.KNOWN if "islands" in p.name)
    result = solve(xp, p)
    grads = pull(result, grad_cost=1.0, tol=1e-12)
    C, assigned = xp.numpy(grads.C), p.known["plan"] > 0
    assert (C[~assigned] == 0).all()
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(2, 5), slice(2, 5))):
        a, b = p.a[rows], p.b[columns]
        J = reference.jacobian(a, b, p.C[rows, columns], p.eps, xp.numpy(result.f)[rows], xp.numpy(result.g)[columns])
        np.testing.assert_allclose(C[rows, columns].ravel(), J["cost"]["C"][0], atol=1e-10)


def test_a_bin_without_any_partner_has_no_gradient(xp):
    C = np.array([[0.1, 0.9, 0.4], [0.6, 0.3, 0.8], [np.inf, np.inf, np.inf]])
    result = cusink.sinkhorn(xp([0.4, 0.6, 0.0]), xp([0.2, 0.3, 0.5]), xp(C), eps=0.2, tol=1e-12)
    small = cusink.sinkhorn(xp([0.4, 0.6]), xp([0.2, 0.3, 0.5]), xp(C[:2].copy()), eps=0.2, tol=1e-12)
    for cotangent in ({"grad_cost": 1.0}, {"grad_reg_cost": 1.0}, {"grad_g": xp([1.0, 2.0, -3.0])}):
        grads, want = (cusink.sinkhorn_adjoint(r, **cotangent, tol=1e-12) for r in (result, small))
        np.testing.assert_allclose(xp.numpy(grads.a), [*xp.numpy(want.a), 0], atol=1e-9)
        np.testing.assert_allclose(xp.numpy(grads.b), xp.numpy(want.b), atol=1e-9)
        np.testing.assert_allclose(xp.numpy(grads.C), [*xp.numpy(want.C), [0, 0, 0]], atol=1e-9)


# Convergence


def test_an_unconverged_solve_warns_with_its_error():
    p = DENSE[1]
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, tol=1e-12, max_iter=3)
    worst = result.error[~result.converged].max()
    with pytest.warns(cusink.ConvergenceWarning, match=f"marginal error is {worst:.2g}, and their gradients are off"):
        cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0)


def test_an_unconverged_system_says_so(xp):
    p = DENSE[2]
    result = solve(xp, p)
    with pytest.warns(cusink.ConvergenceWarning, match="linear system of 3 of 3 problems did not reach tol=1e-13"):
        grads = pull(result, grad_cost=1.0, tol=1e-13, max_iter=1)
    assert not xp.numpy(grads.converged).any()
    assert np.isfinite(xp.numpy(grads.a)).all()


@pytest.mark.parametrize("steepness", [650.0, 715.0, 734.34, 740.0])
@pytest.mark.parametrize("mass", [1.0, 1e-100])
def test_scalings_near_denormals_keep_their_digits(steepness, mass):
    """A pair at many eps must carry mass: one scaling is exp(-steepness) times another, and was 1e-318 in its unit."""
    a, b = mass * np.array([0.1, 0.9]), mass * np.array([0.25, 0.25, 0.5])
    C, grad_f, grad_g = np.zeros((2, 3)), np.array([0.7, 1.0]), np.array([-1.0, 1.0, 0.0])
    C[1, 0] = steepness
    result = cusink.sinkhorn(a, b, C, eps=1.0, tol=1e-11)
    grads = cusink.sinkhorn_adjoint(result, grad_f=grad_f, grad_g=grad_g, tol=1e-10)
    J = reference.jacobian(a, b, C, 1.0, result.problem.f[0], result.problem.g[0])
    for name in ("a", "b"):
        want = grad_f @ J["f"][name] + grad_g @ J["g"][name]
        np.testing.assert_allclose(getattr(grads, name), want - want.mean(), rtol=1e-8, atol=1e-8 / mass)


@pytest.mark.parametrize("light", [1e-3, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:.*did not reach")
def test_a_system_without_solution_is_not_solved_where_rounding_hides_it(dtype, light):
    """Parts between which no mass can go: the potentials of one against the other depend on their masses infinitely.

    Conjugate gradients end at numbers beside which both sides of the system are rounding, and leave no residual.
    """
    for rows, columns in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 2), (3, 2)):
        a = np.array([1.0] + [light] * rows, dtype)
        b = np.array([1.0] + [light * rows / columns] * columns, dtype)
        C = np.full((rows + 1, columns + 1), 500, dtype)
        C[0, 0], C[1:, 0], C[1:, 1:] = 0, 400, np.arange(rows * columns).reshape(rows, columns) / 100
        grad_f = np.array([1.62, *(np.linspace(0.5, 1.5, rows) * -1.62 / rows)], dtype)
        grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=0.0167), grad_f=grad_f)
        assert not grads.converged, (rows, columns)


def test_problems_converge_by_themselves(xp, monkeypatch):
    """One that is solved at once beside one that takes long: neither spoils the other, and the first leaves."""
    rng = np.random.default_rng(0)
    n = 30
    a = np.concatenate([np.full((3, n), 1 / n), rng.dirichlet(np.ones(n), size=1)])
    C = problems.line_cost(n)
    result = solve(xp, problems.Problem("", a, a[::-1].copy(), C, 2e-3))
    cotangent = np.array([0.0, 1.0, 0.0, 1.0])
    sizes, original = [], gradients_system.Bins.masked
    monkeypatch.setattr(gradients_system.Bins, "masked", lambda *args: (sizes.append(len(args[1])), original(*args))[1])
    rounds, solve_by = [], gradients_system._conjugate_gradients
    monkeypatch.setattr(gradients_system, "_conjugate_gradients", lambda *args: (rounds.append(1), solve_by(*args))[1])
    grads = pull(result, grad_cost=xp(cotangent), tol=1e-10)
    assert xp.numpy(grads.converged).all()
    assert {4, 2} <= set(sizes)
    assert rounds == [1]
    assert (xp.numpy(grads.a)[[0, 2]] == 0).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("max_iter", [2, 10_000])
@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_tol_bounds_the_residual(tol, max_iter, shared):
    """``x + R y = h`` and ``S' x + y = k``, with means of the plan written out, hold at the optimum and far from it."""
    p = problems._random("", 1, 40, 30, 0.01, B=4, shared=shared)
    q = cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, tol=None, max_iter=max_iter).problem
    C = np.broadcast_to(p.C, (4, 40, 30))
    P = np.stack([reference.plan(a, b, c, p.eps, f, g) for a, b, c, f, g in zip(q.a, q.b, C, q.f, q.g, strict=True)])
    rng = np.random.default_rng(0)
    h, k = rng.normal(size=q.a.shape), rng.normal(size=q.b.shape)
    rows, columns = P.sum(axis=2), P.sum(axis=1)
    k -= ((columns * k).sum(axis=1) - (rows * h).sum(axis=1))[:, None]
    how = gradients_system.LinearSolve(tol, 1000)
    x, y, converged = gradients_system.solve_marginal_system(q, lambda index, means: (h[index], k[index]), how)
    assert converged.all()
    of_rows = (rows * (h - x - np.matvec(P, y) / rows) ** 2).sum(axis=1)
    missed = of_rows + (columns * (k - np.vecmat(x, P) / columns - y) ** 2).sum(axis=1)
    size = np.sqrt((rows * h**2).sum(axis=1) + (columns * k**2).sum(axis=1))
    assert (np.sqrt(missed) <= 1.01 * tol * size).all()
    assert (np.sqrt(of_rows) <= 1e-5 * tol * size).all()  # of the eliminated side nothing but rounding is left


def test_a_step_that_falls_short_is_followed_by_another(monkeypatch):
    """The residual that counts is the true one, not the one of the recursion."""
    p, solve_by = DENSE[0], gradients_system._conjugate_gradients
    result = solve(np.asarray, p)
    want = pull(result, grad_cost=1.0, tol=1e-12).a
    monkeypatch.setattr(gradients_system, "_conjugate_gradients", lambda *args: 0.999 * solve_by(*args))
    grads = pull(result, grad_cost=1.0, tol=1e-8)
    assert grads.converged.all()
    np.testing.assert_allclose(grads.a, want, rtol=0, atol=1e-7)
    monkeypatch.setattr(gradients_system, "_conjugate_gradients", lambda *args: 0.5 * solve_by(*args))
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach"):
        assert not pull(result, grad_cost=1.0, tol=1e-8).converged.any()


def test_a_correction_in_float32_counts_by_its_residual_in_float64(monkeypatch):
    """It is taken where the kernel is shared and `tol` leaves room; one that fails is made good in float64."""
    p, solve_by, steps = DENSE[0], gradients_system._conjugate_gradients, []
    result = solve(np.asarray, p)
    want = pull(result, grad_cost=1.0, tol=1e-12).a

    def watched(system, bins, residual, target, spoil=1.0):
        steps.append(residual.dtype.name)
        return solve_by(system, bins, residual, target) * (spoil if residual.dtype == np.float32 else 1)

    monkeypatch.setattr(gradients_system, "_conjugate_gradients", watched)
    for tol, expected in ((1e-6, ["float32"]), (gradients_system.DRAFT / 2, ["float64"])):
        steps.clear()
        grads = pull(result, grad_cost=1.0, tol=tol)
        assert grads.converged.all() and steps == expected
        np.testing.assert_allclose(grads.a, want, rtol=0, atol=100 * tol * np.abs(want).max())
    for spoil in (np.nan, 0.5):
        steps.clear()
        monkeypatch.setattr(gradients_system, "_conjugate_gradients", lambda *args, s=spoil: watched(*args, spoil=s))
        grads = pull(result, grad_cost=1.0, tol=1e-6)
        assert grads.converged.all() and steps == ["float32", "float64"]
        np.testing.assert_allclose(grads.a, want, rtol=0, atol=1e-4 * np.abs(want).max())


def exact_by_elimination(result, p, dtype):
    """Return the gradient of `cost` with respect to a, from each problem's dense system at the result's potentials."""
    want = []
    for a, b, f, g in zip(
        *(x.astype(float) for x in (p.a.astype(dtype), p.b.astype(dtype), result.f, result.g)), strict=True
    ):
        C = p.C.astype(dtype).astype(float)
        Z = (f[:, None] + g[None, :] - C) / p.eps
        with np.errstate(divide="ignore"):
            R, S = np.exp(Z + np.log(b)), np.exp(Z + np.log(a)[:, None])
        R, S = R / R.sum(axis=1, keepdims=True), S / S.sum(axis=0)
        n, m = Z.shape
        system = np.block([[np.eye(n), R], [S.T, np.eye(m)], [np.r_[np.ones(n), -np.ones(m)]]])
        fit = np.linalg.lstsq(system, np.r_[(R * Z).sum(axis=1), (S * Z).sum(axis=0), 0], rcond=1e-15)[0]
        want.append(f - p.eps * fit[:n])
    return np.array(want) - np.mean(want, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
def test_bins_of_any_lightness(dtype, tolerance):
    """Weights down to 1e-195 (float64) and to the smallest number (float32) have their gradient in every bin."""
    p = {str(p): p for p in problems.HARD}["far-apart Gaussians"]
    result = solve(np.asarray, p, dtype, tol=1e-13 if dtype == np.float64 else 1e-6)
    grads = pull(result, grad_cost=1.0, tol=1e-12)
    assert grads.converged.all()
    want = exact_by_elimination(result, p, dtype)
    np.testing.assert_allclose(grads.a, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_float32_is_solved_in_spite_of_drift():
    """Rounding adds multiples of the constant vector, which the system cannot take away."""
    p = problems.far_gaussians(B=64, eps=1e-2)
    result = solve(np.asarray, p, np.float32, tol=1e-6)
    grads = pull(result, grad_cost=1.0)
    assert grads.converged.all()
    want = exact_by_elimination(result, p, np.float32)
    np.testing.assert_allclose(grads.a, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_empty_bins_stay_out_of_the_system():
    """The plan is nearly the identity: all eigenvalues but those of empty bins are tiny.

    The polynomials of conjugate gradients overflow there.
    """
    rng = np.random.default_rng(0)
    a = rng.random((1, 100)) + 0.5
    a[:, [0, 1, -1]] = 0
    a /= a.sum()
    x = np.arange(100.0)
    p = problems.Problem("nearly the identity", a, a, (x[:, None] - x) ** 2, 0.12)
    result = solve(np.asarray, p)
    grads = pull(result, grad_cost=1.0, tol=1e-10)
    assert grads.converged.all()
    want = exact_by_elimination(result, p, np.float64)
    np.testing.assert_allclose(grads.a, want, rtol=0, atol=1e-7 * np.abs(want).max())


@pytest.mark.parametrize("shared", [True, False])
def test_two_empty_bins_beyond_the_range_of_exp(xp, shared):
    """E = exp((f + g - C) / eps) is exp(2000) between the two bins at 1; where nothing asks for it, it does nothing."""
    x = np.array([0.0, 0.1, 1.0])
    C = (x[:, None] - x) ** 2
    a, b = np.array([[0.5, 0.5, 0.0]] * 2), np.array([[0.2, 0.8, 0.0]] * 2)
    result = cusink.sinkhorn(xp(a), xp(b), xp(C if shared else np.stack([C, C])), eps=1e-3, tol=1e-10)
    cost = cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=1e-10)
    small = cusink.sinkhorn(xp(a[0, :2]), xp(b[0, :2]), xp(C[:2, :2].copy()), eps=1e-3, tol=1e-10)
    want = xp.numpy(cusink.sinkhorn_adjoint(small, grad_cost=1.0, tol=1e-10).a)
    found = xp.numpy(cost.a)
    np.testing.assert_allclose(found[:, 0] - found[:, 1], want[0] - want[1], rtol=1e-8)
    for grads in (cost, cusink.sinkhorn_adjoint(result, grad_f=xp(np.ones((2, 3))), grad_g=xp(np.ones((2, 3))))):
        for name in INPUTS:
            assert np.isfinite(xp.numpy(getattr(grads, name))).all(), name


# What it costs


def with_operators(result, ops):
    """Return a result whose cost has other operators."""
    problem = result.problem
    return replace(result, problem=replace(problem, C=replace(problem.C, ops=ops)))


def test_the_envelope_reads_no_cost():
    p = DENSE[0]
    result = solve(np.asarray, p)
    touched, real = [], result.problem.C.ops

    class Operators:
        def __getattr__(self, name):
            operator = getattr(real, name)
            if name not in {"xp", "to_host"} and operator is not None:  # one that this backend lacks reads nothing
                touched.append(name)
            return operator

    grads = pull(with_operators(result, Operators()), grad_reg_cost=1.0)
    assert not touched
    first = grads.C
    assert touched and grads.C is first


def test_the_envelope_allocates_the_gradients_alone():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(100), size=(2, 2000))
    result = cusink.sinkhorn(a, b, problems.grid_cost(10, 10), eps=0.01, tol=None, max_iter=2)
    cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0)
    tracemalloc.start()
    grads = cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.05 * (grads.a.nbytes + grads.b.nbytes)


def test_the_exact_gradient_never_forms_all_plans():
    rng = np.random.default_rng(0)
    B, n = 200, 100
    a, b = rng.dirichlet(np.ones(n), size=(2, B))
    result = cusink.sinkhorn(a, b, problems.grid_cost(10, 10), eps=0.05, tol=1e-6)
    tracemalloc.start()
    grads = cusink.sinkhorn_adjoint(result, grad_cost=1.0)
    assert grads.C.shape == (n, n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * B * n * n * 8


# Bad input


def small_result(dtype=np.float64):
    p = DENSE[0]
    return cusink.sinkhorn(*(x.astype(dtype) for x in (p.a, p.b, p.C)), eps=p.eps, tol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "at least one of 'grad_cost'.* must be given; got none"),
        ({"grad_cost": np.ones(4)}, ValueError, r"'grad_cost' must have shape \(3,\) to match the result; got \(4,\)"),
        ({"grad_cost": np.ones((3, 5))}, ValueError, r"'grad_cost' must have shape \(3,\).*got \(3, 5\)"),
        (
            {"grad_f": np.ones((3, 8))},
            ValueError,
            r"'grad_f' must have shape \(3, 5\) to match the result; got \(3, 8\)",
        ),
        ({"grad_g": np.ones(8)}, ValueError, r"'grad_g' must have shape \(3, 8\).*got \(8,\)"),
        (
            {"grad_cost": np.ones(3, np.float16)},
            TypeError,
            "share one dtype; 'grad_cost' is float16 and 'result' is float64",
        ),
        ({"grad_reg_cost": np.array([1, np.nan, 1])}, ValueError, "'grad_reg_cost' must be finite; got nan"),
        ({"grad_cost": "one"}, TypeError, "'grad_cost' must be an array, or a list of numbers"),
        ({"grad_cost": 1.0, "tol": 0}, ValueError, "'tol' must be positive"),
        ({"grad_cost": 1.0, "tol": None}, TypeError, "'tol' must be a number; got None"),
        ({"grad_cost": 1.0, "max_iter": 0}, ValueError, "'max_iter' must be at least 1"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        cusink.sinkhorn_adjoint(small_result(), **options)


def test_a_result_of_another_kind():
    with pytest.raises(
        TypeError, match="'result' must be what cusink.sinkhorn returned, a SinkhornResult; got .*ndarray"
    ):
        cusink.sinkhorn_adjoint(np.ones(3), grad_cost=1.0)


def test_an_unbatched_result_takes_an_unbatched_gradient():
    a, b, C = smooth(6)
    result = cusink.sinkhorn(a, b, C, eps=0.1)
    with pytest.raises(ValueError, match=r"'grad_cost' must have shape \(\) to match the result; got \(1,\)"):
        cusink.sinkhorn_adjoint(result, grad_cost=np.ones(1))


# The CuPy operators on emulated kernels


class PLAIN:
    """Stands in for the `xp` fixture where arrays are NumPy's whatever they stand for."""

    numpy = staticmethod(np.asarray)

    def __new__(cls, values, dtype=None):
        return np.asarray(values, dtype)


@pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")
@pytest.mark.parametrize("block", [1, 1 << 24], ids=["blocks of a row", "default blocks"])
@pytest.mark.parametrize("p", [DENSE[0], DENSE[4], DENSE[5]], **named)
def test_the_cupy_operators_give_the_same(monkeypatch, p, block):
    cotangent, result = cotangents(p), solve(np.asarray, p)
    want = pull(result, **cotangent, tol=1e-13)
    want = {name: getattr(want, name) for name in INPUTS}
    sharp = pull(result, grad_cost=1.0, tol=1e-13).C
    with operators(block_entries=block) as ops:
        monkeypatch.setattr(terms, "dense_cost", lambda block: DenseCost(block, ops.OPERATORS))
        result = with_operators(result, ops.OPERATORS)
        grads = pull(result, **cotangent, tol=1e-12)
        for name in INPUTS:
            found = getattr(grads, name)
            np.testing.assert_allclose(found, want[name], rtol=0, atol=1e-8 * np.abs(want[name]).max(), err_msg=name)
        check_means(PLAIN, ops, result.problem, np.float64)
        np.testing.assert_allclose(pull(result, grad_cost=1.0, tol=1e-12).C, sharp, rtol=0, atol=1e-8)
        assert any("apply_plan" in name for name in ops.launched)


def test_the_gradient_has_the_batch_axis_of_the_cost():
    C = problems.grid_cost(2, 2)[None]
    assert pull(cusink.sinkhorn(None, None, C, eps=0.5), grad_cost=1.0).C.shape == (1, 4, 4)


@pytest.mark.parametrize(("n", "m"), [(4, 7), (7, 4), (5, 5)])
def test_conjugate_gradients_run_on_the_shorter_side(monkeypatch, n, m):
    sizes, original = [], gradients_system._conjugate_gradients

    def watched(system, weights, residual, target):
        sizes.append(residual.shape[1])
        return original(system, weights, residual, target)

    monkeypatch.setattr(gradients_system, "_conjugate_gradients", watched)
    p = problem("", 3, n, m, 0.05)
    cusink.sinkhorn_adjoint(cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, tol=1e-9), grad_cost=1.0)
    assert sizes == [min(n, m)]  # once: that was enough


def test_the_constant_of_potentials_is_that_of_the_bins_with_weight():
    """A loss that depends on it, beside bins without weight, against differences of solves."""
    rng = np.random.default_rng(4)
    a, b, C, dC = np.array([0.5, 0, 0.3, 0.2, 0]), rng.dirichlet(np.ones(3)), *rng.random((2, 5, 3))
    u, v = rng.random(5), rng.random(3)

    def loss(t):
        result = cusink.sinkhorn(a, b, C + t * dC, eps=0.2, tol=1e-13, max_iter=20_000)
        return u @ result.f + v @ result.g

    result = cusink.sinkhorn(a, b, C, eps=0.2, tol=1e-13, max_iter=20_000)
    found = cusink.sinkhorn_adjoint(result, grad_f=u, grad_g=v, tol=1e-12)
    assert (found.C * dC).sum() == pytest.approx(reference.derivative(loss), rel=1e-7)


@pytest.mark.parametrize("reach", [None, 0.7])
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        ("float32", (1e-36, 1e-18, 1e17, 1e20, 1e31, [1e30, 1, 1e-20])),
        ("float64", (1e-250, 1e290, [1e160, 1, 1e-160])),
    ],
)
def test_gradients_are_linear_in_their_cotangents_as_far_as_there_are_numbers(dtype, scales, reach):
    rng = np.random.default_rng(0)
    x, y = rng.random((5, 2)).astype(dtype), rng.random((4, 2)).astype(dtype)
    a, b = (rng.dirichlet(np.ones(k), 3).astype(dtype) for k in (5, 4))
    C = ((x[:, None] - y) ** 2).sum(axis=-1)
    result = cusink.sinkhorn(a, b, C, eps=0.3, reach=reach, tol=1e-6)
    given = {name: rng.normal(size=3).astype(dtype) for name in ("grad_cost", "grad_reg_cost", "grad_entropic_cost")}
    given |= {"grad_f": rng.normal(size=(3, 5)).astype(dtype), "grad_g": rng.normal(size=(3, 4)).astype(dtype)}
    for name, grad in given.items():
        one = cusink.sinkhorn_adjoint(result, **{name: grad})
        for scale in map(np.array, scales):
            scale = np.broadcast_to(scale, 3)
            scaled = cusink.sinkhorn_adjoint(result, **{name: (grad.T * scale).T.astype(dtype)})
            assert scaled.converged.all()
            for by in ("a", "b", "eps"):
                for want, found, factor in zip(getattr(one, by), getattr(scaled, by), scale, strict=True):
                    np.testing.assert_allclose(found / factor, want, rtol=0, atol=2e-4 * abs(want).max())
            if (scale == scale[0]).all():  # of a sum over all problems
                np.testing.assert_allclose(scaled.C / scale[0], one.C, rtol=0, atol=2e-4 * abs(one.C).max())
