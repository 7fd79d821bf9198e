"""One eps for each problem of a batch: every result is that of the problem alone, and that of the oracle."""

import functools

import numpy as np
import pytest
import reference

import cusink
from cusink.costs import statistics

EPS = np.array([0.1, 0.5, 0.1, 0.03, 1.0])
B, N, M = len(EPS), 6, 6
VALUES = ("cost", "reg_cost", "entropic_cost")
PARTS = ("a", "b", "eps")
EXACT = {"tol": 1e-11, "max_iter": 20_000}
SYSTEM = {"tol": 1e-11}


def weights(rng, bins):
    w = rng.gamma(1.0, size=(B, bins))
    w[:, 0] = 0
    return w / w.sum(axis=1, keepdims=True)


class Batch:
    """Problems with an eps each, and each of them alone."""

    def __init__(self, kind, dtype=np.float64):
        rng = np.random.default_rng(5)
        self.rng, self.dtype = rng, dtype
        self.a, self.b = (weights(rng, bins).astype(dtype) for bins in (N, M))
        x, y = (rng.normal(size=(B, bins, 2)).astype(dtype) for bins in (N, M))
        own, C = rng.random((B, N, M)).astype(dtype), rng.random((N, M)).astype(dtype)
        own[:, 2, 3] = np.inf
        self.shared = kind in ("shared", "a cloud", "a grid")
        self.C, self.each = {
            "shared": (C, [C] * B),
            "own": (own, list(own)),
            "a cloud": (cusink.PointCloud(x[0], y[0]), [cusink.PointCloud(x[0], y[0])] * B),
            "clouds": (cusink.PointCloud(x, y), [cusink.PointCloud(*pair) for pair in zip(x, y, strict=True)]),
            "a grid": (cusink.Grid((2, 3)), [cusink.Grid((2, 3))] * B),
        }[kind]

    def direction(self, *shape):
        return self.rng.normal(size=(B, *shape)).astype(self.dtype)

    def solved(self, function, **options):
        """Return the result of the batch, and those of the problems alone."""
        together = function(self.a, self.b, self.C, eps=EPS, **options)
        parts = zip(self.a, self.b, self.each, EPS, strict=True)
        return together, [function(a, b, C, eps=eps, **options) for a, b, C, eps in parts]


def same(found, each, off, what):
    """Compare an array (B, ...) with those of single problems, to `off` times the largest entry of each."""
    for k, (one, alone) in enumerate(zip(found, each, strict=True)):
        size = np.abs(np.where(np.isfinite(alone), alone, 0)).max(initial=1e-2)
        np.testing.assert_allclose(one, alone, rtol=0, atol=off * size, err_msg=f"{what} of problem {k}")


def compare(found, alone, names, off, what):
    for name in names:
        same(getattr(found, name), [getattr(one, name) for one in alone], off, f"{what}: {name}")


def compare_costs(batch, found, alone, off, what):
    """Compare gradients by what the costs are made of: one for each problem, or the sum."""
    for name in ("C", "x", "y"):
        total, each = getattr(found, name), [getattr(one, name) for one in alone]
        if total is None:
            assert each[0] is None
        elif batch.shared:
            same([total], [np.sum(each, axis=0)], off, f"{what}: {name}")
        else:
            same(total, each, off, f"{what}: {name}")


@pytest.mark.parametrize(
    ("kind", "reach", "dtype", "off"),
    [
        ("shared", None, np.float64, 1e-8),
        ("own", None, np.float64, 1e-8),
        ("own", (0.3, None), np.float64, 1e-8),
        ("shared", 0.7, np.float64, 1e-8),
        ("clouds", None, np.float64, 1e-5),
        ("a grid", (None, 0.7), np.float64, 1e-8),
        ("own", None, np.float32, 1e-3),
        ("shared", 0.7, np.float32, 1e-3),
    ],
)
def test_a_batch_has_the_results_of_its_problems_alone(kind, reach, dtype, off):
    batch = Batch(kind, dtype)
    exact, system = (EXACT, SYSTEM) if dtype == np.float64 else ({"tol": 1e-5, "max_iter": 20_000}, {"tol": 1e-6})
    found, alone = batch.solved(cusink.sinkhorn, reach=reach, **exact)
    assert found.converged.all() and found.f.dtype == dtype and np.array_equal(found.eps, EPS)
    compare(found, alone, ("f", "g", *VALUES), off, "solve")
    same(found.plan(), [one.plan() for one in alone], off, "plan")
    v = batch.direction(M)
    same(found.apply(v, 1), [one.apply(x, 1) for one, x in zip(alone, v, strict=True)], off, "apply")
    for k in (0, 1) if kind != "own" else ():  # of rounded masses in forbidden pairs the bound is infinite
        same(found.bounds()[k], [one.bounds()[k] for one in alone], off, "bounds")

    cotangents = [{f"grad_{name}": batch.direction()} for name in VALUES]
    cotangents += [{"grad_f": batch.direction(N)}, {"grad_plan": batch.direction(N, M)}]
    for given in cotangents:
        (name, cotangent), *_ = given.items()
        grads = cusink.sinkhorn_adjoint(found, **given, **system)
        each = [cusink.sinkhorn_adjoint(one, **{name: x}, **system) for one, x in zip(alone, cotangent, strict=True)]
        assert grads.eps.shape == (B,)
        compare(grads, each, PARTS, off, name)
        compare_costs(batch, grads, each, off, name)

    along = {"da": batch.direction(N), "db": batch.direction(M), "deps": 0.1 * batch.direction()}
    lines = [{name: x[k] for name, x in along.items()} for k in range(B)]
    moved = cusink.sinkhorn_jvp(found, **along, **system)
    each = [cusink.sinkhorn_jvp(one, **line, **system) for one, line in zip(alone, lines, strict=True)]
    compare(moved, each, ("f", "g", *VALUES), off, "jvp")
    value = "grad_cost" if reach is None else "grad_reg_cost"
    moved = cusink.sinkhorn_hvp(found, **{value: 1.0}, **along, **system)
    each = [cusink.sinkhorn_hvp(one, **{value: 1.0}, **line, **system) for one, line in zip(alone, lines, strict=True)]
    compare(moved, each, PARTS, off, "hvp")
    compare_costs(batch, moved, each, off, "hvp")


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_values_and_gradients_are_those_of_the_oracle(kind):
    batch = Batch(kind)
    found = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=EPS, **EXACT)
    grads = cusink.sinkhorn_adjoint(found, grad_cost=1.0, **SYSTEM)
    of_cost = np.zeros((B, N, M))
    for k, (a, b, C, eps) in enumerate(zip(batch.a, batch.b, batch.each, EPS, strict=True)):
        best = reference.solve(a, b, C, eps)
        P = reference.plan(a, b, C, eps, best.f, best.g)
        wanted = reference.values(P, a, b, C, eps)
        np.testing.assert_allclose([getattr(found, name)[k] for name in VALUES], wanted, rtol=1e-9)
        wrt = reference.jacobian(a, b, C, eps, best.f, best.g)["cost"]
        np.testing.assert_allclose(grads.eps[k], wrt["eps"], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(grads.a[k], wrt["a"][0] - wrt["a"][0].mean(), atol=1e-7)
        of_cost[k] = wrt["C"].reshape(N, M)
    np.testing.assert_allclose(grads.C, of_cost.sum(axis=0) if batch.shared else of_cost, atol=1e-8)


@pytest.mark.parametrize(("kind", "reach"), [("clouds", None), ("a cloud", 0.7)])
def test_divergences_are_those_of_the_pairs_alone(kind, reach):
    batch = Batch(kind)
    found, alone = batch.solved(cusink.sinkhorn_divergence, reach=reach, **EXACT)
    compare(found, alone, ("divergence", "f", "g", "f_self", "g_self"), 1e-7, "divergence")
    grad = batch.direction()
    grads = cusink.sinkhorn_divergence_adjoint(found, grad=grad)
    each = [cusink.sinkhorn_divergence_adjoint(one, grad=x) for one, x in zip(alone, grad, strict=True)]
    compare(grads, each, PARTS, 1e-6, "gradient")
    along = {"da": batch.direction(N), "deps": 0.1 * batch.direction()}
    lines = [{name: x[k] for name, x in along.items()} for k in range(B)]
    slopes = [cusink.sinkhorn_divergence_jvp(one, **line) for one, line in zip(alone, lines, strict=True)]
    same(cusink.sinkhorn_divergence_jvp(found, **along), slopes, 1e-6, "jvp")
    moved = cusink.sinkhorn_divergence_hvp(found, **along, **SYSTEM)
    each = [cusink.sinkhorn_divergence_hvp(one, **line, **SYSTEM) for one, line in zip(alone, lines, strict=True)]
    compare(moved, each, PARTS, 1e-5, "hvp")


def test_equal_eps_are_one_number_to_the_last_bit():
    batch = Batch("own")
    expected = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=0.1)
    for eps in ([0.1] * B, np.full(B, 0.1), (0.1,)):
        found = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=eps)
        assert found.f.tobytes() == expected.f.tobytes() and found.cost.tobytes() == expected.cost.tobytes()
    assert expected.eps == 0.1


def test_one_pair_is_solved_with_several_eps():
    a, b = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    C = cusink.cost_matrix([0.0, 1.0, 2.0])
    found = cusink.sinkhorn(a[None], b, C, eps=[0.1, 0.2, 0.4])
    wanted = [cusink.sinkhorn(a, b, C, eps=eps).reg_cost for eps in (0.1, 0.2, 0.4)]
    np.testing.assert_allclose(found.reg_cost, wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["shared", "own"])
def test_one_steep_problem_leaves_the_others_as_they_are(kind, dtype):
    """The small eps asks for annealing and, in float32, for float64; the error of each is that of its plan."""
    batch, eps = Batch(kind, dtype), np.array([1e-4, 1.0, 0.1, 3e-4, 0.5])
    found = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=eps, max_iter=20_000, tol=1e-4)
    assert found.converged.all()
    P = found.plan().astype(np.float64)
    off = np.abs(P.sum(axis=1) - batch.b).sum(axis=1)
    assert (off <= found.error + 32 * np.finfo(dtype).eps).all()
    for k, (a, b, C) in enumerate(zip(batch.a, batch.b, batch.each, strict=True)):
        exact = reference.exact_cost(a, b, np.where(np.isfinite(C), C, 1e3))
        lower, upper = (bound[k] for bound in found.bounds())
        assert lower <= exact + 1e-6 and upper >= exact - 1e-6


def test_a_start_and_a_callback_are_of_the_whole_batch():
    for kind in ("shared", "own"):
        batch, seen = Batch(kind), []
        solve = functools.partial(cusink.sinkhorn, batch.a, batch.b, batch.C, eps=EPS)
        found = solve(callback=lambda iteration, error: seen.append((iteration, error.shape)))  # noqa: B023
        assert seen and {shape for _, shape in seen} == {(B,)}
        again = solve(init=(found.f, found.g))
        assert (again.n_iter <= 2).all() and again.converged.all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"eps": [0.1, 0.2]}, ValueError, ["'eps' 2", "'a' 5"]),
        ({"eps": [0.1, 0.2, -1.0, 1.0, 1.0]}, ValueError, ["'eps'", "positive", "got -1 at [2]"]),
        ({"eps": [0.1, np.nan, 1.0, 1.0, 1.0]}, ValueError, ["'eps'", "finite", "got nan at [1]"]),
        ({"eps": [0.1, 0.1, 0.1, np.inf, 0.0]}, ValueError, ["'eps'", "got inf at [3]"]),
        ({"eps": np.ones((B, 1))}, ValueError, ["'eps'", "(B,)", "(5, 1)"]),
        ({"eps": []}, ValueError, ["'eps'", "(0,)"]),
        ({"eps": ["0.1"] * B}, TypeError, ["'eps'", "real numbers"]),
        ({"eps": np.ones(B, bool)}, TypeError, ["'eps'", "bool"]),
        ({"eps": [0.1, 1e-310, 1.0, 1.0, 1.0]}, ValueError, ["'eps'", "C / eps", "1e-310"]),
    ],
)
@pytest.mark.parametrize("function", [cusink.sinkhorn, cusink.sinkhorn_divergence])
def test_bad_eps_are_refused(function, changes, error, words):
    batch = Batch("clouds")
    with pytest.raises(error) as caught:
        function(batch.a, batch.b, batch.C, **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_costs_over_an_eps_that_leave_the_range_are_refused():
    for shape in ((3, 2, 2), (2, 2)):
        with pytest.raises(ValueError, match=r"'eps' must be such that C / eps is finite; got 1e-290"):
            cusink.sinkhorn([[0.5, 0.5]] * 3, None, 1e30 * np.eye(2) + np.zeros(shape), eps=[1.0, 1e-290, 1.0])


def test_eps_of_several_problems_is_refused_for_one():
    with pytest.raises(ValueError, match=r"'eps' must be a number for one problem; got 3 of them.*a\[None\]"):
        cusink.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], eps=[0.1, 0.2, 0.3])


STATISTICS = {"max": np.max, "mean": np.mean, "median": np.median}


@pytest.mark.parametrize("of", STATISTICS)
@pytest.mark.parametrize("kind", ["shared", "own", "a cloud", "clouds", "a grid"])
def test_relative_eps_is_a_share_of_the_costs_of_each_problem(kind, of):
    batch = Batch(kind)
    costs = batch.C if isinstance(batch.C, np.ndarray) else batch.C.dense()
    found = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=cusink.RelativeEps(0.1, of))
    each = [costs] if batch.shared else costs
    wanted = [0.1 * STATISTICS[of](C[np.isfinite(C)]) for C in each]
    np.testing.assert_allclose(np.atleast_1d(found.eps), wanted, rtol=1e-12)
    same_number = cusink.sinkhorn(batch.a, batch.b, batch.C, eps=found.eps)
    assert found.cost.tobytes() == same_number.cost.tobytes()


def test_relative_eps_of_many_points_looks_at_evenly_spaced_ones(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    grid = cusink.Grid((6, 7), spacing=(1.0, 0.3))
    monkeypatch.setattr(statistics, "PAIRS", 400)
    for C, step in ((cusink.PointCloud(x, y), 2), (grid, 3)):
        seen = C.dense()[::step, ::step]
        found = cusink.sinkhorn(None, None, C, eps=cusink.RelativeEps(0.5, "median")).eps
        np.testing.assert_allclose(found, 0.5 * np.median(seen), rtol=1e-12)


def test_relative_eps_is_one_number_wherever_a_cost_is_shared():
    rng = np.random.default_rng(1)
    A, C = rng.dirichlet(np.ones(5), size=4), cusink.cost_matrix(np.arange(5.0), metric="cityblock")
    relative, eps = cusink.RelativeEps(0.1, "max"), 0.1 * C.max()
    for call in (
        lambda eps: cusink.distance_matrix(A, None, C, eps=eps),
        lambda eps: cusink.nearest(A, None, C, k=2, eps=eps)[0],
        lambda eps: cusink.Index(A, C, eps=eps).search(A, 2)[0],
        lambda eps: cusink.barycenter(A, C, eps=eps).barycenter,
        lambda eps: cusink.sinkhorn_divergence(A, A[0], C, eps=eps).divergence,
    ):
        np.testing.assert_array_equal(call(relative), call(eps))


def test_relative_eps_that_is_none_is_refused():
    C, relative = np.zeros((2, 3, 3)), cusink.RelativeEps(0.1, "mean")
    C[0] = 1
    with pytest.raises(ValueError, match=r"'eps' is relative to the mean of 'C'.*positive; got 0 in problem 1"):
        cusink.sinkhorn(None, None, C, eps=relative)
    clouds = cusink.Measures([0, 2, 4], None, np.arange(4.0)[:, None])
    for call in (
        lambda eps: cusink.distance_matrix(clouds, None, "euclidean", eps=eps),
        lambda eps: cusink.nearest(clouds, clouds, "euclidean", k=1, eps=eps),
        lambda eps: cusink.Index(clouds, "euclidean", eps=eps),
    ):
        with pytest.raises(ValueError, match="a number in retrieval of cusink.Measures.*for a part.*Take one number"):
            call(relative)
        call(0.1 * cusink.PointCloud(clouds.points, None, "euclidean").mean())  # as the message says
    for bad, error, word in (
        ((-1.0,), ValueError, "share"),
        (("a",), TypeError, "share"),
        ((0.1, "min"), ValueError, "of"),
    ):
        with pytest.raises(error, match=f"'{word}' must be"):
            cusink.RelativeEps(*bad)
