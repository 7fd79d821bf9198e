"""Pairs of clouds of unequal sizes on emulated kernels: one launch, the oracle's values, and errors that hold."""

import contextlib

import emulated
import numpy as np
import pytest
import reference
from emulated import cupy_stand_in, device_arrays
from emulated.cupy_stand_in import part

import cusink
from cusink.backends.cupy.launch import H100, Device
from cusink.backends.cupy.ragged_launch import SCRATCH, ragged_launches

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

METRICS = ("sqeuclidean", "euclidean", "cityblock", "cosine")
SIZES = [(1, 7), (12, 3), (5, 5), (9, 33), (40, 2), (17, 20)]
DTYPES = (np.float32, np.float64)
VALUES = ("cost", "reg_cost", "entropic_cost")


def drawn(dtype=np.float64, sizes=SIZES, d=2, mass=1.0, seed=5):
    """Return clouds x and y and their weights, where the last pair has points without weight, one of them far off."""
    rng = np.random.default_rng(seed)
    x, y = ([rng.random((size[side], d)) + side / 4 for size in sizes] for side in (0, 1))
    a, b = ([mass * rng.dirichlet(np.full(size[side], 3.0)) for size in sizes] for side in (0, 1))
    for w, points in ((a[-1], x[-1]), (b[-1], y[-1])):
        w[2] += w[1] + w[0]
        w[:2], points[1] = 0, 30
    return tuple([p.astype(dtype) for p in side] for side in (x, y, a, b))


def measures(given, of=np.asarray):
    x, y, a, b = ([of(p) for p in side] for side in given)
    return cusink.Measures.of(x, a), cusink.Measures.of(y, b)


@contextlib.contextmanager
def device(multiprocessors=132, shared_memory=99 << 10):
    """Yield the stand-in for CuPy and the kernels that have run on it."""
    with device_arrays.device() as (cupy, launched):
        cupy_stand_in.ATTRIBUTES |= {
            "MultiProcessorCount": multiprocessors,
            "MaxSharedMemoryPerBlockOptin": shared_memory,
        }
        yield cupy, launched


def on_device(given, metric="sqeuclidean", multiprocessors=132, shared_memory=99 << 10, **options):
    """Solve on the stand-in; return values, potentials in float64, which were solved there, and launches."""
    with device(multiprocessors, shared_memory) as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), metric, **options)
        found = {name: getattr(pairs, name).get() for name in ("f", "g", *VALUES, "error", "n_iter", "converged")}
        known = pairs.solved.together
        wide = () if known is None else (known.f.get(), known.g.get(), known.error.get(), known.solved)
        return found, wide, list(launched)


def exact(given, metric, eps):
    """Return the costs and the optimum of each pair by the oracle."""
    costs = [
        cusink.cost_matrix(u.astype(float), v.astype(float), metric=metric) for u, v in zip(*given[:2], strict=True)
    ]
    best = []
    for p, q, C, by in zip(*given[2:], costs, np.broadcast_to(eps, len(costs)), strict=True):
        p, q = p.astype(float), q.astype(float)
        best.append(reference.optimum(p, q * (p.sum() / q.sum()), C, float(by)))
    return costs, best


def errors_of(given, costs, eps, f, g):
    """Return the errors (K,) of both marginals of potentials (N,) and (M,), in float64."""
    out = []
    ends = [np.cumsum([len(p) for p in side])[:-1] for side in given[:2]]
    parts = zip(
        *given[2:], costs, np.broadcast_to(eps, len(costs)), np.split(f, ends[0]), np.split(g, ends[1]), strict=True
    )
    for p, q, C, by, u, v in parts:
        p, q = p.astype(float), q.astype(float)
        q = q * (p.sum() / q.sum())
        P = reference.plan(p, q, C, by, u, v)
        out.append((reference.marginal_error(P, q), reference.marginal_error(P.T, p)))
    return np.array(out).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_values_follow_the_oracle_and_errors_hold(metric, dtype):
    given, single = drawn(dtype, mass=1.5), dtype == np.float32
    eps = 0.1 * np.linspace(0.5, 2, len(SIZES)) if metric == "sqeuclidean" else 0.1
    costs, best = exact(given, metric, eps)
    tol = "auto" if single else 1e-10
    found, (f, g, error, solved), launched = on_device(given, metric, eps=eps, tol=tol)
    assert launched == ["ragged"] and solved.all() and found["converged"].all()
    assert (error <= (1e-5 if single else 1e-10)).all()
    columns, rows = errors_of(given, costs, eps, f, g)
    assert (columns <= error).all() and (error <= columns + 1e-12).all() and rows.max() <= 1e-13
    near = 1e-5 if single else 1e-9
    for name in VALUES:
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name], [getattr(one, name) for one in best], rtol=near, atol=near)
    host = cusink.sinkhorn(*measures(given), metric, eps=eps, tol=1e-11 if not single else "auto")
    for name in "fg":  # of points without weight too
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name], getattr(host, name), rtol=0, atol=3e-3 if single else 1e-7)
    assert found["n_iter"].dtype == np.int64 and found["converged"].dtype == bool


def divergence(p, q):
    """KL(p | q) of any masses."""
    return (p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1))).sum() - p.sum() + q.sum()


def objectives(given, metric, eps, prices, f, g):
    """Return for each pair what its potentials are worth: errors of both marginals, cost, objective, entropic cost."""
    out, ends = [], [np.cumsum([len(p) for p in side])[:-1] for side in given[:2]]
    for x, y, p, q, by, u, v in zip(*given, eps, np.split(f, ends[0]), np.split(g, ends[1]), strict=True):
        p, q, C = p.astype(float), q.astype(float), cusink.cost_matrix(x.astype(float), y.astype(float), metric=metric)
        P = reference.plan(p, q, C, by, u, v)
        sides = [(P.sum(axis=1), p, u, prices[0]), (P.sum(axis=0), q, v, prices[1])]
        errors = [abs(w - s * np.exp(-z / rho)).sum() / (s * np.exp(-z / rho)).sum() for w, s, z, rho in sides]
        cost, entropy = (P * C).sum(), -(P * np.log(np.where(P > 0, P, 1))).sum()
        price = sum(rho * divergence(w, s) for w, s, _, rho in sides if rho < np.inf)
        out.append((*errors, cost, cost + by * divergence(P, np.outer(p, q)) + price, cost - by * entropy))
    return np.array(out).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prices", [(0.5, 0.5), (0.3, 4.0), (np.inf, 0.2), (50.0, np.inf)])
def test_marginals_at_a_price_are_one_launch_too(prices, dtype):
    """Their potentials solve the problem by its definition: marginals, the primal objective, and the host's numbers."""
    given, single = drawn(dtype), dtype == np.float32
    given[2][1][:] *= dtype(1.7)  # masses differ
    eps, tol = 0.1 * np.linspace(0.5, 2, len(SIZES)), "auto" if single else 1e-10
    with device() as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), "euclidean", eps=eps, reach=prices, tol=tol)
        known = pairs.solved.together
        assert launched == ["ragged_unbalanced"] and known.solved.all() and pairs.converged.get().all()
        f, g, error, t = (getattr(known, name).get() for name in ("f", "g", "error", "shift"))
        found = {name: getattr(pairs, name).get() for name in ("f", "g", *VALUES)}
        one = pairs[3]
        plan, alone, shown = one.plan().get(), one.error.get(), pairs.error.get()[3]
        grad = np.linspace(-1, 2, len(SIZES)).astype(dtype)
        before = len(launched)
        pulled = cusink.sinkhorn_adjoint(pairs, grad_cost=cupy.asarray(grad), grad_reg_cost=0.5, tol=1e-9)
        assert set(launched[before:]) == {"ragged_adjoint"}
        pulled = {name: getattr(pulled, name).get() for name in ("a", "b", "x", "y", "eps", "reach")}
    each_f, each_g = (np.repeat(t, [size[side] for size in SIZES]) for side in (0, 1))
    rows, columns, *exact_values = objectives(given, "euclidean", eps, prices, f + each_f, g - each_g)
    assert rows.max() <= 1e-12 and (columns <= error).all() and (error <= columns + 1e-12).all()
    assert (error <= (1e-5 if single else 1e-10)).all() and alone == shown
    near = 2e-5 if single else 1e-9
    for name, right in zip(VALUES, exact_values, strict=True):
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name], right, rtol=near, atol=near)
    host = cusink.sinkhorn(*measures(given), "euclidean", eps=eps, reach=prices, tol=1e-5 if single else 1e-11)
    near = 1e-3 if single else 1e-8
    for name in ("f", "g", *VALUES):
        np.testing.assert_allclose(found[name], getattr(host, name), rtol=near, atol=near)
    np.testing.assert_allclose(plan, host[3].plan(), atol=near)
    theirs = cusink.sinkhorn_adjoint(host, grad_cost=grad, grad_reg_cost=0.5, tol=1e-9)
    for name, gradient in pulled.items():
        np.testing.assert_allclose(gradient, getattr(theirs, name), rtol=50 * near, atol=50 * near)


@pytest.mark.parametrize("solve", [cusink.sinkhorn, cusink.sinkhorn_divergence])
@pytest.mark.parametrize(
    ("metric", "ragged"),
    [
        (cusink.Metric("hellinger"), True),
        (cusink.Metric("mahalanobis", factor=[[1.0, 0.3, -0.5], [-0.4, 0.8, 0.2]], power=2), True),
        (cusink.Metric("euclidean", power=1.5), False),
        (cusink.Metric("minkowski", p=3), False),
    ],
    ids=repr,
)
def test_every_metric_gives_the_numbers_of_the_host(metric, ragged, solve):
    """Euclidean distances and their squares by one launch, others by batches; with gradients, by a factor too."""
    given, options = drawn(sizes=SIZES[:4]), {"eps": 0.2, "tol": 1e-9, "max_iter": 3000}
    adjoint = {
        cusink.sinkhorn: lambda r: cusink.sinkhorn_adjoint(r, grad_cost=1.0, tol=1e-10),
        cusink.sinkhorn_divergence: cusink.sinkhorn_divergence_adjoint,
    }[solve]
    value = "cost" if solve is cusink.sinkhorn else "divergence"
    with device() as (cupy, launched):
        pairs = solve(*measures(given, cupy.asarray), metric, **options)
        assert (pairs.solved.together is not None) == ragged == any(name.startswith("ragged") for name in launched)
        found, pulled = getattr(pairs, value).get(), adjoint(pairs)
        slopes = [getattr(pulled, name).get() for name in "xyab"]
        of_metric = {name: slope.get() for name, slope in pulled.metric.items()}
    host = solve(*measures(given), metric, **options)
    theirs = adjoint(host)
    np.testing.assert_allclose(found, getattr(host, value), atol=1e-7)
    for slope, name in zip(slopes, "xyab", strict=True):
        np.testing.assert_allclose(slope, getattr(theirs, name), atol=1e-6)
    assert set(of_metric) == set(theirs.metric)
    for name, slope in of_metric.items():
        np.testing.assert_allclose(slope, theirs.metric[name], atol=1e-6)


def test_potentials_are_in_their_gauge():
    given = drawn(mass=2.5)
    _, (f, g, *_), _ = on_device(given, eps=0.2)
    for side, potential in ((0, f), (1, g)):
        assert len(potential) == sum(map(len, given[side]))
    ends = [np.cumsum([len(p) for p in side])[:-1] for side in given[:2]]
    for u, v, p, q in zip(np.split(f, ends[0]), np.split(g, ends[1]), *given[2:], strict=True):
        np.testing.assert_allclose(u[p > 0].sum(), v[q > 0].sum(), atol=1e-12)


def test_fifty_pairs_are_one_launch_and_few_operations():
    """50 pairs of 20 to 200 points, all conversions and checks of the input counted."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 201, (50, 2))
    given = drawn(np.float32, sizes)
    with device(shared_memory=H100.shared_memory) as (cupy, launched):
        A, B = measures(given, cupy.asarray)
        work = cupy_stand_in.Work.count, cupy_stand_in.Work.waits
        pairs = cusink.sinkhorn(A, B, "sqeuclidean", eps=3.0, tol=1e-3)
        work = cupy_stand_in.Work.count - work[0], cupy_stand_in.Work.waits - work[1]
        assert launched == ["ragged"] and work[0] <= 40 and work[1] <= 8, work
        assert pairs.converged.get().all() and pairs.solved.known.solved.all()
        cost = pairs.cost.get()
    host = cusink.sinkhorn(*measures(given), "sqeuclidean", eps=3.0, tol=1e-6)
    np.testing.assert_allclose(cost, host.cost, rtol=5e-3)


def test_padded_batches_take_many_launches(monkeypatch):
    """As all pairs did, and those do that the launch does not solve."""
    monkeypatch.setattr("cusink.solver.pairs.solve.solve_at_once", lambda *_: None)
    found, known, launched = on_device(drawn(), eps=0.1)
    assert known == () and len(launched) >= 20 and "ragged" not in launched and found["converged"].all()


@pytest.mark.parametrize(
    "shared_memory", [99 << 10, 9 << 10, 4 << 10], ids=["inside", "some outside", "some elsewhere"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_lie_in_global_memory_where_they_do_not_fit(shared_memory, dtype):
    given = drawn(dtype, [*SIZES, (50, 60), (3, 200)])
    found, (*_, solved), launched = on_device(given, shared_memory=shared_memory, eps=0.2)
    assert launched.count("ragged") == 1 and found["converged"].all()
    assert solved.all() == (len(launched) == 1) and solved[:4].all()
    assert solved.all() or shared_memory < 9 << 10
    host = cusink.sinkhorn(*measures(given), "sqeuclidean", eps=0.2)
    near = 2e-4 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(found["cost"], host.cost, rtol=near)
    np.testing.assert_allclose(found["g"], host.g, atol=0.1 * near)


def test_memory_that_is_limited_takes_more_launches():
    given = drawn(np.float64, [(50, 60)] * 3 + SIZES)
    found, (*_, solved), launched = on_device(given, shared_memory=9 << 10, eps=0.2, memory_limit=50 * 61 * 8 * 2)
    assert launched == ["ragged"] * 2 and solved.all() and found["converged"].all()
    _, (*_, solved), _ = on_device(given, shared_memory=9 << 10, eps=0.2, memory_limit=50 * 61 * 8 - 1)
    assert not solved[:3].any() and solved[3:].all()


@pytest.mark.parametrize(("grid", "warps"), [(1, 1), (2, 3), (50, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_launch_is_right(grid, warps, dtype, monkeypatch):
    given = drawn(dtype)
    with device() as (cupy, launched):
        ragged = part("ragged")
        real = ragged.ragged_launches

        def chosen(*arguments):
            return [one._replace(launch=one.launch._replace(grid=grid, block=32 * warps)) for one in real(*arguments)]

        monkeypatch.setattr(ragged, "ragged_launches", chosen)
        emulated.shuffle(grid)
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), "euclidean", eps=0.3)
        assert launched == ["ragged"] and pairs.converged.get().all()
        cost, f = pairs.cost.get(), pairs.f.get()
    host = cusink.sinkhorn(*measures(given), "euclidean", eps=0.3)
    near = 1e-4 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(cost, host.cost, rtol=near)
    np.testing.assert_allclose(f, host.f, atol=near)


def test_what_float32_has_too_few_digits_for_is_a_second_launch():
    """Costs of hundreds of eps, and a tolerance near the rounding of such exponents."""
    given = drawn(np.float32)
    costs, best = exact(given, "sqeuclidean", 0.006)
    found, (f, g, error, solved), launched = on_device(given, eps=0.006, tol=1e-6)
    assert launched == ["ragged"] * 2 and solved.all() and found["converged"].all()
    assert (errors_of(given, costs, 0.006, f, g)[0] <= error).all() and (error <= 1e-6).all()
    np.testing.assert_allclose(found["cost"], [one.cost for one in best], rtol=1e-5)
    _, (*_, solved), launched = on_device(given, eps=0.2, tol=1e-9)
    assert launched == ["ragged"] and solved.all()  # in float64 at once


@pytest.mark.filterwarnings("ignore:.*did not reach")
def test_what_the_launch_does_not_solve_is_solved_as_before(monkeypatch):
    given = drawn(np.float64)
    host = cusink.sinkhorn(*measures(given), "sqeuclidean", eps=[0.1] * 5 + [0.0005])
    steep, (*_, solved), launched = on_device(given, eps=np.array([0.1] * 5 + [0.0005]))
    assert solved.tolist() == [True] * 5 + [False] and launched[0] == "ragged" and len(launched) > 1
    assert steep["converged"].all()
    np.testing.assert_allclose(steep["cost"], host.cost, rtol=1e-5)
    slow, (*_, solved), _ = on_device(given, eps=0.05, max_iter=12)
    assert 0 < solved.sum() < 6 and (slow["converged"] == solved).all()
    monkeypatch.setattr("cusink.solver.pairs.at_once.LARGEST_PAIR", 81)
    large, (*_, solved), _ = on_device(given, eps=0.3)
    assert solved.tolist() == [n * m < 81 for n, m in SIZES] and large["converged"].all()
    monkeypatch.setattr("cusink.solver.pairs.at_once.LARGEST_PAIR", 1)
    none, known, launched = on_device(given, eps=0.3)
    assert known == () and "ragged" not in launched and none["converged"].all()
    np.testing.assert_allclose(none["cost"], large["cost"], rtol=1e-6)


@pytest.mark.parametrize("options", [{"method": "log"}, {"overrelaxation": 1.5}, {"tol": None, "max_iter": 5}])
def test_what_asks_for_another_way_has_it(options):
    found, known, launched = on_device(drawn(), eps=0.3, **options)
    host = cusink.sinkhorn(*measures(drawn()), "sqeuclidean", eps=0.3, **options)
    assert known == () and "ragged" not in launched
    np.testing.assert_allclose(found["cost"], host.cost, rtol=1e-5)


def test_pairs_alone_are_the_host_s():
    given = drawn(mass=1.5)
    host = cusink.sinkhorn(*measures(given), "sqeuclidean", eps=0.1, tol=1e-11)
    with device() as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), "sqeuclidean", eps=0.1, tol=1e-11)
        assert launched == ["ragged"]
        for k in (0, 3, -1):
            np.testing.assert_allclose(pairs[k].f.get(), host[k].f, atol=1e-9)
            np.testing.assert_allclose(pairs[k].plan().get(), host[k].plan(), atol=1e-9)
            assert pairs[k].error.get() == pairs.error.get()[k]


def test_launches_follow_from_the_sizes():
    rng = np.random.default_rng(1)
    n, m = rng.integers(20, 201, (2, 50))
    (one,) = ragged_launches(n, m, "float32", H100, 1 << 20)
    assert sorted(one.pairs) == list(range(50)) and (np.diff((n * (m | 1))[one.pairs]) <= 0).all()
    assert (one.launch.grid, one.launch.block, one.scratch) == (50, 512, 0) and (one.tiles == -1).all()
    assert one.launch.shared == max(4 * (4 * (n + m) + n * (m | 1)))
    n, m = rng.integers(20, 1000, (2, 50))
    (one,) = ragged_launches(n, m, "float64", H100, 1 << 20)
    outside = one.tiles >= 0
    sizes = (n * (m | 1))[one.pairs]
    assert outside.any() and not outside.all() and one.scratch == sizes[outside].sum()
    np.testing.assert_array_equal(one.tiles[outside], np.cumsum(sizes[outside]) - sizes[outside])
    n, m = rng.integers(20, 201, (2, 2000))
    wide, narrow = ragged_launches(n, m, "float32", H100, 1 << 20)
    assert (wide.launch.block, narrow.launch.block) == (512, 128) and 4 * narrow.launch.shared <= H100.shared_memory
    assert len(wide.pairs) + len(narrow.pairs) == 2000
    assert ragged_launches(np.array([2000]), np.array([2000]), "float32", H100, 1 << 20) == []


@pytest.mark.parametrize("target", [H100, Device(40, 64 << 10), Device(1, 48 << 10)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["ragged", "ragged_unbalanced", "ragged_adjoint"])
def test_every_launch_is_legal_and_no_pair_is_lost(target, dtype, kernel):
    rng, size = np.random.default_rng(2), np.dtype(dtype).itemsize
    for count, most in ((1, 30), (40, 1023), (3000, 1023), (5, 100_000)):
        n, m = rng.integers(1, most + 1, (2, count))
        launches = ragged_launches(n, m, dtype, target, 1 << 20, kernel=kernel)
        state = (6 if kernel == "ragged_unbalanced" else 4) * (n + m)
        if kernel == "ragged_adjoint":
            state += 3 * np.minimum(n, m) + np.maximum(n, m)
        pairs = np.concatenate([one.pairs for one in launches]) if launches else np.zeros(0, int)
        assert len(np.unique(pairs)) == len(pairs)
        fits = (n * m < 1 << 20) & (size * state <= target.shared_memory - 1024)
        np.testing.assert_array_equal(np.sort(pairs), np.flatnonzero(fits))
        for one in launches:
            assert 0 < one.launch.shared <= target.shared_memory - 1024 and one.launch[:2] == (f"{kernel}.cu", kernel)
            assert one.launch.block in (128, 512 if kernel == "ragged" else 256)
            assert one.launch.grid == len(one.pairs) and size * one.scratch <= SCRATCH
            sizes = (n * (m | 1))[one.pairs]
            inside = one.tiles < 0
            shared = size * (state[one.pairs] + np.where(inside, sizes, 0))
            assert shared.max() == one.launch.shared
            assert (one.tiles[~inside] + sizes[~inside] <= one.scratch).all()
