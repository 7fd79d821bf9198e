"""Divergences of ragged pairs on emulated kernels: one launch, the oracle's values, zero for equal measures."""

import emulated
import numpy as np
import pytest
import reference
from backends.cupy.test_ragged import DTYPES, METRICS, SIZES, VALUES, device, drawn, measures, objectives
from emulated import cupy_stand_in, device_arrays
from emulated.cupy_stand_in import part

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import H100

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

FIELDS = ("divergence", "f", "g", "f_self", "g_self", "error", "n_iter", "converged")
GRADIENTS = ("a", "b", "x", "y", "eps")


def on_device(given, metric="sqeuclidean", multiprocessors=132, shared_memory=99 << 10, grad=1.0, **options):
    """Solve on the stand-in; return fields, gradients, what was solved in float64, and launches of both."""
    with device(multiprocessors, shared_memory) as (cupy, launched):
        pairs = cusink.sinkhorn_divergence(*measures(given, cupy.asarray), metric, **options)
        found = {name: getattr(pairs, name).get() for name in FIELDS}
        known, solving = pairs.solved.together, list(launched)
        pulled = cusink.sinkhorn_divergence_adjoint(pairs, grad=cupy.asarray(grad) if np.ndim(grad) else grad)
        assert pulled.C is None and pulled.axes is None and pulled.metric == {}
        gradients = {name: getattr(pulled, name) for name in (*GRADIENTS, "reach")}
        gradients = {name: None if x is None else x.get() for name, x in gradients.items()}
        return found, gradients, known, (solving, launched[len(solving) :])


def on_host(given, metric="sqeuclidean", grad=1.0, **options):
    pairs = cusink.sinkhorn_divergence(*measures(given), metric, **options)
    pulled = cusink.sinkhorn_divergence_adjoint(pairs, grad=grad)
    return {name: getattr(pairs, name) for name in FIELDS}, {
        name: getattr(pulled, name) for name in (*GRADIENTS, "reach")
    }


def some_equal(dtype, mass=1.0):
    """Return pairs of which the first, the third and the last are one measure twice, with weights of 0 in the last."""
    x, y, a, b = drawn(dtype, mass=mass)
    for k in (0, 2, 5):
        y[k], b[k] = x[k].copy(), a[k].copy()
    return x, y, a, b


def one_by_one(given):
    """Split fields of points into those of the items: the ends of both sides."""
    return [np.cumsum([len(p) for p in side])[:-1] for side in given[:2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_values_follow_the_oracle_and_errors_hold(metric, dtype):
    given, single = drawn(dtype, mass=1.5), dtype == np.float32
    given[3][1][:] *= dtype(1 + 1e-6 if single else 1 + 1e-12)  # masses of a pair are equal up to rounding
    eps = 0.1 * np.linspace(0.5, 2, len(SIZES)) if metric == "sqeuclidean" else 0.1
    tol = "auto" if single else 1e-10
    grad = np.linspace(-1, 2, len(SIZES)).astype(dtype)
    found, gradients, known, launched = on_device(given, metric, eps=eps, tol=tol, grad=grad)
    assert launched == (["ragged"], ["ragged_adjoint"]) and known.solved.all() and found["converged"].all()
    ends, error = one_by_one(given), known.error.get()
    assert (error <= (1e-5 if single else 1e-10)).all()
    cross = (np.split(known.f.get(), ends[0]), np.split(known.g.get(), ends[1]))
    alone = (np.split(known.own.f.get(), ends[0]), np.split(known.own.g.get(), ends[1]))
    for k, (x, y, p, q, by) in enumerate(zip(*given, np.broadcast_to(eps, len(SIZES)), strict=True)):
        x, y, p, q = (z.astype(float) for z in (x, y, p, q))
        q = q * (p.sum() / q.sum())
        problems = (
            (x, y, p, q, cross[0][k], cross[1][k]),
            *((z, z, w, w, h, h) for z, w, h in ((x, p, alone[0][k]), (y, q, alone[1][k]))),
        )
        values = []
        for u, v, s, t, f, g in problems:
            C = cusink.cost_matrix(u, v, metric=metric)
            values.append(reference.optimum(s, t, C, float(by)).reg_cost)
            P = reference.plan(s, t, C, float(by), f, g)
            assert max(reference.marginal_error(P, t), reference.marginal_error(P.T, s)) <= error[k]
        near = 1e-6 if single else 1e-10
        np.testing.assert_allclose(found["divergence"][k], values[0] - (values[1] + values[2]) / 2, atol=near)
    host, theirs = on_host(given, metric, eps=eps, tol=tol if single else 1e-11, grad=grad)
    near = 3e-3 if single else 1e-7
    for name in FIELDS[:6]:
        assert found[name].dtype == dtype and found[name].shape == host[name].shape
    for name in FIELDS[1:5]:  # of points without weight too
        np.testing.assert_allclose(found[name], host[name], rtol=0, atol=near)
    for name in GRADIENTS:
        assert gradients[name].dtype == dtype
        np.testing.assert_allclose(gradients[name], theirs[name], rtol=0, atol=2e-3 if single else 1e-7)
    assert gradients["reach"] is None and found["n_iter"].dtype == np.int64 and found["converged"].dtype == bool


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [0.3, 20.0])
def test_marginals_at_a_price_are_one_launch_too(reach, dtype):
    given, single = drawn(dtype), dtype == np.float32
    given[2][1][:] *= dtype(1.7)  # masses differ
    eps, tol = 0.1 * np.linspace(0.5, 2, len(SIZES)), "auto" if single else 1e-10
    grad = np.linspace(-1, 2, len(SIZES)).astype(dtype)
    found, gradients, known, launched = on_device(given, "euclidean", eps=eps, reach=reach, tol=tol, grad=grad)
    assert launched == (["ragged_unbalanced"], ["ragged_adjoint"]) and known.solved.all() and found["converged"].all()
    host, theirs = on_host(given, "euclidean", eps=eps, reach=reach, tol=1e-5 if single else 1e-11, grad=grad)
    np.testing.assert_allclose(found["divergence"], host["divergence"], atol=1e-6 if single else 1e-10)
    near = 1e-3 if single else 1e-8
    for name in FIELDS[1:5]:
        np.testing.assert_allclose(found[name], host[name], rtol=near, atol=near)
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, theirs[name], rtol=near, atol=near)


@pytest.mark.parametrize("shared_memory", [99 << 10, 9 << 10], ids=["inside", "some outside"])
@pytest.mark.parametrize("reach", [None, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_measures_are_exactly_zero(dtype, reach, shared_memory):
    """The kernel sees that both clouds are one, and solves them as it solves each of them alone."""
    given = some_equal(dtype, mass=1.3)
    equal = np.isin(np.arange(len(SIZES)), (0, 2, 5))
    options = {"eps": 0.1, "reach": reach, "tol": 1e-5 if dtype == np.float32 else 1e-9}
    found, gradients, known, _ = on_device(given, "euclidean", shared_memory=shared_memory, **options)
    assert known.solved.all() and found["converged"].all() and (found["error"] > 0).all()
    assert not found["divergence"][equal].any() and (found["divergence"][~equal] > 0).all()
    for side, names in ((0, "fax"), (1, "gby")):
        points = np.repeat(equal, [len(p) for p in given[side]])
        np.testing.assert_array_equal(found[names[0]][points], found[names[0] + "_self"][points])
        for name in names[1:]:
            assert not gradients[name][points].any() and gradients[name][~points].any()
    assert not gradients["eps"][equal].any() and gradients["eps"][~equal].all()
    host, _ = on_host(given, "euclidean", **options)
    np.testing.assert_allclose(found["divergence"], host["divergence"], atol=1e-6)


def test_equal_measures_are_zero_where_float32_has_too_few_digits():
    found, gradients, known, launched = on_device(some_equal(np.float32), eps=0.006, tol=1e-6)
    assert launched[0] == ["ragged"] * 2 and known.solved.all()
    assert np.flatnonzero(found["divergence"]).tolist() == [1, 3, 4] and not gradients["x"][:1].any()


@pytest.mark.parametrize("reach", [None, 0.5])
def test_measures_that_are_almost_equal_are_never_below_zero(reach):
    """Values differ by less than what is lost in each."""
    x, y, a, b = some_equal(np.float64)
    rng = np.random.default_rng(1)
    y, b = ([p * (1 + rng.uniform(-1, 1, p.shape) * 1e-9) for p in side] for side in (x, a))
    b = [q * (p.sum() / q.sum()) for p, q in zip(a, b, strict=True)]
    found, _, known, _ = on_device((x, y, a, b), eps=0.05, reach=reach, tol=1e-6)
    assert known.solved.all() and (found["divergence"] >= 0).all() and (found["divergence"] <= 1e-8).all()


@pytest.mark.parametrize("reach", [None, 0.4])
def test_one_measure_twice_has_one_potential_and_an_error_that_holds(reach):
    given = some_equal(np.float64, mass=1.3)
    options = {"eps": 0.02, "tol": 1e-8, "reach": reach}
    with device() as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), "euclidean", **options)
        f, g, error, n_iter = (getattr(pairs, name).get() for name in ("f", "g", "error", "n_iter"))
        assert len(launched) == 1 and pairs.solved.known.solved.all()
        found = [getattr(pairs, name).get() for name in VALUES]
    host = cusink.sinkhorn(*measures(given), "euclidean", **{**options, "tol": 1e-12})
    for values, name in zip(found, VALUES, strict=True):
        np.testing.assert_allclose(values, getattr(host, name), atol=1e-8)
    ends, price = one_by_one(given), (np.inf if reach is None else reach,) * 2
    rows, columns, *_ = objectives(given, "euclidean", np.full(len(SIZES), 0.02), price, f, g)
    for k in (0, 2, 5):
        used = given[2][k] > 0
        np.testing.assert_array_equal(np.split(f, ends[0])[k][used], np.split(g, ends[1])[k][used])
        measured = max(rows[k], columns[k])
        assert measured <= error[k] <= measured + 1e-12 and error[k] <= 1e-8 and n_iter[k] <= 40


@pytest.mark.parametrize(("grid", "warps"), [(1, 1), (2, 3), (50, 8)])
@pytest.mark.parametrize("reach", [None, 0.5])
def test_any_launch_is_right(grid, warps, reach):
    given = some_equal(np.float32)
    with device() as (cupy, launched):
        ragged = part("ragged")
        real = ragged.ragged_launches
        ragged.ragged_launches = lambda *given: [
            one._replace(launch=one.launch._replace(grid=grid, block=32 * warps)) for one in real(*given)
        ]
        emulated.shuffle(grid)
        pairs = cusink.sinkhorn_divergence(*measures(given, cupy.asarray), "euclidean", eps=0.3, reach=reach)
        assert len(launched) == 1 and pairs.converged.get().all()
        found, slopes = pairs.divergence.get(), cusink.sinkhorn_divergence_adjoint(pairs).x.get()
    assert np.flatnonzero(found).tolist() == [1, 3, 4]
    host, theirs = on_host(given, "euclidean", eps=0.3, reach=reach)
    np.testing.assert_allclose(found, host["divergence"], atol=1e-6)
    np.testing.assert_allclose(slopes, theirs["x"], atol=1e-4)


def work_of_fifty():
    """Return launches, operations and waits for 50 divergences of 20 to 200 points, and for their gradients."""
    given = drawn(np.float32, np.random.default_rng(0).integers(20, 201, (50, 2)))
    with device(shared_memory=H100.shared_memory) as (cupy, launched):
        sides, work = measures(given, cupy.asarray), cupy_stand_in.Work

        def counted(call):
            before = len(launched), work.count, work.waits
            out = call()
            return out, (len(launched) - before[0], work.count - before[1], work.waits - before[2])

        pairs, solving = counted(lambda: cusink.sinkhorn_divergence(*sides, "sqeuclidean", eps=3.0, tol=1e-3))
        slopes, pulling = counted(lambda: cusink.sinkhorn_divergence_adjoint(pairs).x)
        assert pairs.converged.get().all()
        return solving, pulling, pairs.divergence.get(), slopes.get(), given


def test_fifty_divergences_are_two_launches_and_few_operations(monkeypatch):
    """150 problems are more than there are multiprocessors: those that share one have a launch of their own."""
    solving, pulling, found, slopes, given = work_of_fifty()
    assert solving == (2, 66, 7) and pulling == (2, 82, 3)
    host, theirs = on_host(given, eps=3.0, tol=1e-6)
    np.testing.assert_allclose(found, host["divergence"], atol=1e-6)
    np.testing.assert_allclose(slopes, theirs["x"], atol=1e-5)
    monkeypatch.setattr("cusink.solver.pairs.solve.solve_at_once", lambda *_: None)
    solving, pulling, found, _, _ = work_of_fifty()
    assert solving[0] >= 250 and solving[1] >= 8000 and pulling[0] >= 70 and pulling[1] >= 4500, (solving, pulling)
    np.testing.assert_allclose(found, host["divergence"], atol=1e-6)


def test_what_the_launch_does_not_solve_is_solved_as_before(monkeypatch):
    given, eps = drawn(np.float64), np.array([0.1] * 5 + [0.0005])
    host, theirs = on_host(given, eps=eps)
    found, gradients, known, launched = on_device(given, eps=eps)
    assert known.solved.tolist() == [True] * 5 + [False] and found["converged"].all()
    assert launched[0][0] == "ragged" and len(launched[0]) > 1
    assert "ragged_adjoint" in launched[1] and len(launched[1]) > 1
    np.testing.assert_allclose(found["divergence"], host["divergence"], atol=1e-7)
    for name in GRADIENTS:
        np.testing.assert_allclose(gradients[name], theirs[name], atol=1e-4)
    monkeypatch.setattr("cusink.gradients.ragged.LARGEST_PAIR", 2)
    _, batched, _, launched = on_device(given, eps=eps)  # a launch cannot make all gradients: batches make all of them
    assert "ragged_adjoint" not in launched[1]
    for name in GRADIENTS:
        np.testing.assert_allclose(batched[name], gradients[name], atol=1e-6)
    monkeypatch.setattr("cusink.solver.pairs.at_once.LARGEST_PAIR", 1)
    none, _, known, launched = on_device(given, eps=0.3)
    assert known is None and "ragged" not in launched[0] and none["converged"].all()


def test_one_launch_solves_pairs_at_one_price_and_batches_those_at_two():
    given = some_equal(np.float64, mass=1.3)
    for reach in ((0.8, 0.8), (0.8, 0.3), (None, 0.3)):
        options = {"eps": 0.1, "tol": 1e-11, "reach": reach}
        host, theirs = on_host(given, **options)
        found, gradients, known, launched = on_device(given, **options)
        assert (known is None) == (reach[0] != reach[1]) and ("ragged" in launched[0][0]) == (reach[0] == reach[1])
        assert not any("ragged" in name for name in launched[0] + launched[1]) or reach[0] == reach[1]
        np.testing.assert_allclose(found["divergence"], host["divergence"], atol=1e-9)
        same = found["divergence"][[0, 2, 5]]
        assert (same == 0).all() if reach[0] == reach[1] else (same > 1e-9).all()
        for name in (*GRADIENTS, "reach"):
            np.testing.assert_allclose(gradients[name], theirs[name], atol=1e-7)
        assert gradients["reach"].shape == (len(SIZES), 2)


def test_divergences_alone_are_the_host_s():
    given = some_equal(np.float64, mass=1.3)
    for reach in (None, 0.8):
        options = {"eps": 0.1, "tol": 1e-11, "reach": reach}
        host = cusink.sinkhorn_divergence(*measures(given), "sqeuclidean", **options)
        with device() as (cupy, launched):
            pairs = cusink.sinkhorn_divergence(*measures(given, cupy.asarray), "sqeuclidean", **options)
            assert len(launched) == 1
            for k in (0, 3, -1):
                one, other = pairs[k], host[k]
                for name in FIELDS[:5]:
                    np.testing.assert_allclose(getattr(one, name).get(), getattr(other, name), atol=1e-9)
                for problem, wanted in zip(one.problems, other.problems, strict=True):
                    assert problem.reach == wanted.reach
                    shown = problem.shown_potentials()[0]
                    np.testing.assert_allclose(shown.get(), wanted.shown_potentials()[0], atol=1e-8)
                assert one.error.get() == pairs.error.get()[k]
                pulled = cusink.sinkhorn_divergence_adjoint(one).x.get()
                np.testing.assert_allclose(pulled, cusink.sinkhorn_divergence_adjoint(other).x, atol=1e-7)


# What makes equal measures zero and errors hold, in the kernels and in what they share.
BROKEN = {
    "nothing": ("", ""),
    "clouds that differ in weights": (" || rows.weights[i] != columns.weights[i]", ""),
    "clouds that differ in points": ("(cost > 0 || rows", "(rows"),
    "one potential for two": ("rows.potential[i] = columns.potential[i] = (", "rows.potential[i] = ("),
    "a mean of other potentials": ("columns.potential[i]) / 2;", "columns.potential[i]) / 3;"),
    "an average that is not one": ("share * (targets.", "2.5 * share * (targets."),
    "an average without a barrier": ("                }\n            __syncthreads();", "                }"),
    "an average of points without weight": ("if (sources.weights[i] > 0) {", "{"),
    "prices that differ": ("facts.same && rho_a == rho_b", "facts.same"),
    "an average of potentials alone": ("sources.points.logits[i] = targets.points.logits[i] = logit", ""),
    "values of the mean": ("updated - t, updated,", "potential - t, potential,"),
    "a shift beside one potential": ("if (!same) {\n                t =", "{\n                t ="),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_found(what):
    """One pair is equal, one in its points alone, one in its weights alone."""
    old, new = BROKEN[what]
    files = [file for file in ("ragged.cu", "ragged_unbalanced.cu") if old in loader.source(file)]
    assert files and all(loader.source(file).count(old) == 1 for file in files if old)

    def function(file, *rest):
        change = (lambda text: text.replace(old, new)) if old and file in files else None
        return emulated.Kernel(file, *rest, change=change, checks="barrier" in what)

    given = x, y, a, b = drawn(np.float64, [(9, 9), (7, 7), (5, 5), (6, 4), (8, 8)])
    y[0], b[0], y[1], b[2], y[4], b[4] = x[0], a[0], x[1], a[2], x[4], a[4]

    def check():
        for reach in (None, 0.2):
            pairs = cusink.sinkhorn_divergence(*sides, "euclidean", eps=0.05, tol=1e-4, reach=reach)
            host, theirs = on_host(given, "euclidean", eps=0.05, tol=1e-12, reach=reach)
            assert pairs.solved.known.solved.all() and (pairs.n_iter.get()[[0, 4]] <= 40).all()
            np.testing.assert_allclose(pairs.divergence.get(), host["divergence"], atol=1e-8)
            for name in FIELDS[1:5]:
                found = getattr(pairs, name).get()
                assert np.isfinite(found).all()
                np.testing.assert_allclose(found, host[name], atol=1e-3)
            np.testing.assert_array_equal(pairs.f.get()[:9], pairs.g.get()[:9])
            slopes = cusink.sinkhorn_divergence_adjoint(pairs).x.get()
            assert not slopes[:9].any()
            np.testing.assert_allclose(slopes, theirs["x"], atol=1e-3)
            early = cusink.sinkhorn(*sides, "euclidean", eps=0.05, tol=0.1, reach=reach, check_every=1)
            host = cusink.sinkhorn(*measures(given), "euclidean", eps=0.05, tol=1e-12, reach=reach)
            below = (host.reg_cost - early.reg_cost.get())[[0, 4]]  # as the square of the error
            assert (early.error.get()[[0, 4]] > 1e-4).all() and (below >= 0).all() and (below <= 1e-5).all()
        pairs = cusink.sinkhorn(*sides, "euclidean", eps=0.05, tol=1e-9, reach=(0.2, 3.0))
        host = cusink.sinkhorn(*measures(given), "euclidean", eps=0.05, tol=1e-12, reach=(0.2, 3.0))
        assert pairs.solved.known.solved.all()
        np.testing.assert_allclose(pairs.reg_cost.get(), host.reg_cost, atol=1e-8)

    with device_arrays.device(function=function) as (cupy, _):
        sides = measures(given, cupy.asarray)
        if what == "nothing":
            check()
            return
        with pytest.raises((AssertionError, emulated.EmulationError)):
            check()
