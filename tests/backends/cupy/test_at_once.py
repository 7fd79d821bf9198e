"""Small problems that are solved without a look by the host: their answers, certificates, gradients and launches."""

import functools

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays
from emulated.cupy_stand_in import force, operators, part

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.fused_memory import adjoint_memory
from cusink.backends.cupy.launch import Launch, configure
from cusink.costs.at_once import AtOnceRules, FitRules, SolvedArrays

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
VALUES = ("cost", "reg_cost", "entropic_cost")


def make(kind, dtype, B=3, n=12, m=9, seed=0):
    """Return a, b, C of a kind of problem."""
    rng = np.random.default_rng(seed)
    a, b, C = rng.dirichlet(np.ones(n), B), rng.dirichlet(np.ones(m), B), rng.random((n, m))
    if kind == "empty bins":
        a[0, :5] = b[1, -4:] = b[0, 2] = 0
    a, b = (w / w.sum(axis=1, keepdims=True) for w in (a, b))
    if kind == "masses":
        masses = np.array([3e-4, 1.0, 700.0])[:B, None]
        a, b = a * masses, b * masses
    if kind == "a cost each":
        C = np.stack([C + k / 9 for k in range(B)])
    if kind == "one problem":
        a, b = a[0], b[0]
    if kind == "one source":
        a = a[:1]
    if kind == "far from zero":
        C = C + 1
    return a.astype(dtype), b.astype(dtype), C.astype(dtype)


def on_device(a, b, C, **options):
    """Solve on the stand-in; return the result, what the device was given to do, and how often the host waited."""
    with device_arrays.device() as (cupy, launched):
        given = [None if x is None else cupy.asarray(x) for x in (a, b, C)]
        work = cupy_stand_in.Work.count, cupy_stand_in.Work.waits
        result = cusink.sinkhorn(*given, **options)
        work = cupy_stand_in.Work.count - work[0], cupy_stand_in.Work.waits - work[1]
        found = {name: getattr(result, name).get() for name in ("f", "g", *VALUES, "error", "n_iter", "converged")}
        return found, work, [name.partition("_")[0] for name in launched], result.problem


def exact_errors(problem, eps):
    """Return both marginal errors of the returned potentials, in float64, relative to the mass."""
    a, b, C, f, g = (x.get().astype(float) for x in (problem.a, problem.b, problem.C.data, problem.f, problem.g))
    P = a[:, :, None] * b[:, None, :] * np.exp((f[:, :, None] + g[:, None, :] - C) / eps)
    mass = a.sum(axis=1)
    return (
        abs(P.sum(axis=1) - b).sum(axis=1) / mass,
        abs(P.sum(axis=2) - a).sum(axis=1) / mass,
        (P * C).sum(axis=(1, 2)),
    )


KINDS = ("plain", "empty bins", "masses", "a cost each", "one problem", "one source", "far from zero")
HOW = {
    "a tolerance": {"eps": 0.05},
    "a number of iterations": {"eps": 0.01, "tol": None, "max_iter": 12},
    "logarithms": {"eps": 0.05, "method": "log", "overrelaxation": 1.3},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_numpy_s_with_an_error_that_holds(kind, dtype):
    for how in HOW if kind in ("plain", "empty bins") else ("a tolerance",):
        given, options, single = make(kind, dtype), HOW[how], dtype == np.float32
        tol = options.get("tol", 1e-5 if single else 1e-6)
        exact = cusink.sinkhorn(*(x.astype(float) for x in given), **options | {"tol": tol})
        found, work, launched, problem = on_device(*given, **options)
        assert work == (3, 1) and launched == ["begin", "iterate", "end"], (kind, how)
        # Two solutions within a tolerance of 1e-6 differ by some hundred times as much.
        close, eps = (1e-4 if single else 1e-11) if tol is None else 1e3 * tol, options["eps"]
        for side in "fg":
            assert found[side].dtype == dtype and found[side].shape == getattr(exact, side).shape
            np.testing.assert_allclose(found[side], getattr(exact, side), rtol=0, atol=close * eps)
        for name in VALUES:
            np.testing.assert_allclose(found[name], getattr(exact, name), rtol=close)
        assert found["n_iter"].dtype == np.int64 and found["converged"].dtype == bool and found["converged"].all()
        if not single and kind != "a cost each":  # where each problem goes by the range of its own costs
            np.testing.assert_array_equal(found["n_iter"], exact.n_iter)
        columns, rows, cost = exact_errors(problem, eps)
        error = np.atleast_1d(found["error"])
        assert (columns <= error).all() and (error <= columns + (1e-5 if single else 1e-12)).all()
        assert rows.max() <= (1e-6 if dtype == np.float32 else 1e-14)
        np.testing.assert_allclose(np.atleast_1d(found["cost"]), cost, rtol=1e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize(("dtype", "arrays"), [(np.float32, 18), (np.float64, 16)])
def test_arrays_without_content_are_as_many_as_the_documentation_says(dtype, arrays):
    with device_arrays.device() as (cupy, _):
        given, made = [cupy.asarray(x) for x in make("one problem", dtype)], cupy_stand_in.Memory.made
        result = cusink.sinkhorn(*given, eps=0.05)
        assert len(made) == arrays
        assert cusink.sinkhorn_adjoint(result, grad_cost=1.0).a.shape == given[0].shape
        assert len(made) == arrays + 8


def test_uniform_weights_and_one_bin():
    C = make("plain", np.float64, n=9)[2]
    for a, b, costs in ((None, None, C), (np.ones(1), np.ones(1), np.full((1, 1), 2.0))):
        exact = cusink.sinkhorn(a, b, costs, eps=0.1)
        found, work, *_ = on_device(a, b, costs, eps=0.1)
        assert work == (3, 1)
        np.testing.assert_allclose(found["reg_cost"], exact.reg_cost, rtol=1e-12)
        np.testing.assert_allclose(found["f"], exact.f, atol=1e-12)


def test_most_weight_in_one_bin_stays_plain_for_longer():
    a, b = np.full(6, 1 / 6), np.array([0.02, 0.01, 0.96, 0, 0.005, 0.005])
    C = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    for pair in ((a, b), (b, a)):
        twice = [np.stack([w, w]) for w in pair]  # by iterations: one alone has Newton's method
        exact = cusink.sinkhorn(*twice, C, eps=0.03, tol=1e-9)
        found, work, *_ = on_device(*twice, C, eps=0.03, tol=1e-9)
        assert work == (3, 1) and (found["n_iter"] == exact.n_iter).all() and (exact.n_iter >= 40).all()
        np.testing.assert_allclose(found["reg_cost"], exact.reg_cost, rtol=1e-9)


def test_small_eps_in_float32_is_solved_in_float64_at_once():
    """The digits of float32 do not do for this eps: the second try has 12 conversions beside its launches."""
    given = make("plain", np.float32)
    exact = cusink.sinkhorn(*given, eps=0.01)
    found, work, launched, problem = on_device(*given, eps=0.01)
    assert work == (15, 2) and launched == ["begin", "iterate", "end"] * 2
    assert problem.a.dtype == problem.C.dtype == np.float32 and problem.f.dtype == np.float64
    assert found["f"].dtype == found["cost"].dtype == np.float32 and found["converged"].all()
    np.testing.assert_allclose(found["cost"], exact.cost, rtol=1e-5)


def test_the_report_s_problem_is_three_launches_and_one_copy():
    """100 bins, eps = 1e-3, 200 iterations in float32, cut to a size that the emulation can take."""
    given = make("one problem", np.float32, n=20, m=20)
    found, work, launched, problem = on_device(*given, eps=1e-3, tol=None, max_iter=20)
    assert work == (3, 1) and launched == ["begin", "iterate", "end"] and problem.f.dtype == np.float64
    exact = cusink.sinkhorn(*(x.astype(float) for x in given), eps=1e-3, tol=None, max_iter=20)
    np.testing.assert_allclose(found["reg_cost"], exact.reg_cost, rtol=1e-6)
    assert abs(found["error"] - exact.error) <= 2e-3 * exact.error + 1e-3


def bad(a, b, C):
    """Yield inputs with one fault each, and what the message begins with."""
    for value in (np.nan, -0.1, np.inf):
        yield "'a' must be", (with_entry(a, value), b, C)
        yield "'b' must be", (a, with_entry(b, value), C)
    yield "'a' must have a positive sum", (a * np.array([[1], [0], [1]]), b, C)
    yield "'a' and 'b' must have the same mass", (a, 1.1 * b, C)
    yield "'C' must hold finite costs", (a, b, with_entry(C, np.nan))
    yield "'C' must hold finite costs", (a, b, with_entry(C, -np.inf))
    yield "'C' must hold costs of at most", (a, b, with_entry(C, 1e308))
    forbidden = C.copy()
    forbidden[3] = np.inf
    yield "'C' must allow every bin", (a, b, forbidden)
    yield "'eps' must be", (a, b, C), {"eps": 1e-320}


def with_entry(x, value):
    x = x.copy()
    x[1, 2] = value
    return x


def test_messages_are_those_of_numpy():
    for begins, given, *more in bad(*make("plain", np.float64)):
        options = {"eps": 0.05} | (more[0] if more else {})
        with pytest.raises(ValueError, match=begins) as expected:
            cusink.sinkhorn(*given, **options)
        with pytest.raises(ValueError, match=begins) as found:
            on_device(*given, **options)
        assert str(found.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore:.*did not reach")
def test_what_needs_a_look_is_solved_with_looks():
    """Forbidden pairs, and problems that do not end: as if nothing had been tried before."""
    a, b, C = make("plain", np.float64)
    forbidden = np.where(C > 0.9, np.inf, C)
    for costs, options in ((forbidden, {"tol": 1e-10}), (C, {"eps": 0.003, "max_iter": 30})):
        options = {"eps": 0.05} | options
        exact = cusink.sinkhorn(a, b, costs, **options)
        found, _, launched, _ = on_device(a, b, costs, **options)
        assert launched[:3] == ["begin", "iterate", "end"] and len(launched) > 3
        close = 1e-9 if exact.converged.all() else 0.1 * options["eps"]
        np.testing.assert_allclose(found["f"], exact.f, rtol=0, atol=close)
        np.testing.assert_array_equal(found["n_iter"], exact.n_iter)
        np.testing.assert_array_equal(found["converged"], exact.converged)


def test_without_checks_masses_may_differ():
    a, b, C = make("plain", np.float64)
    exact = cusink.sinkhorn(a, 3 * b, C, eps=0.05, check=False)
    found, work, *_ = on_device(a, 3 * b, C, eps=0.05, check=False)
    assert work == (3, 1)
    np.testing.assert_allclose(found["reg_cost"], exact.reg_cost, rtol=1e-10)


def test_what_a_result_keeps_is_its_own():
    a, b, C = make("plain", np.float64)
    with device_arrays.device() as (cupy, _):
        given = [cupy.asarray(x) for x in (a, b, C)]
        result = cusink.sinkhorn(*given, eps=0.05)
        plan = result.plan().get()
        for x in given:
            x[...] = np.nan
        np.testing.assert_array_equal(result.plan().get(), plan)


GRADIENTS = ("a", "b", "C", "eps")
COTANGENTS = {
    "the cost": {"grad_cost": 1.0},
    "the value of the problem": {"grad_reg_cost": 2},
    "both": {"grad_cost": np.array([1.0, -0.3, 2.0]), "grad_reg_cost": -0.5},
}


def pulled(given, cotangents, tol=1e-9, **options):
    """Return the gradients on the stand-in, and what they took: for the weights, and for all that is lazy."""
    with device_arrays.device() as (cupy, launched):
        result = cusink.sinkhorn(*map(cupy.asarray, given), **options)
        values = {k: cupy.asarray(x.astype(given[0].dtype)) if np.ndim(x) else x for k, x in cotangents.items()}
        before, work = (cupy_stand_in.Work.count, cupy_stand_in.Work.waits), []
        gradients = cusink.sinkhorn_adjoint(result, **values, tol=tol)
        for name in GRADIENTS[1:]:
            getattr(gradients, name)
            work.append((cupy_stand_in.Work.count - before[0], cupy_stand_in.Work.waits - before[1]))
        assert gradients.converged.get().all() and gradients.converged.shape == result.converged.shape
        assert gradients.x is None and gradients.axes is None and gradients.reach is None and gradients.metric == {}
        return {name: getattr(gradients, name).get() for name in GRADIENTS}, work, launched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of", COTANGENTS)
def test_gradients_are_numpy_s(of, dtype):
    for kind in ("empty bins", "a cost each", "masses") if of == "both" else ("one problem", "a cost each"):
        a, b, C = given = make(kind, dtype, n=7 if of == "both" else 12)
        tol = {"eps": 0.05, "tol": 1e-10 if dtype == np.float64 else 1e-5}
        solved = cusink.sinkhorn(*(x.astype(float) for x in given), **tol | {"tol": 1e-12})
        exact = cusink.sinkhorn_adjoint(solved, **COTANGENTS[of], tol=1e-10)
        found, work, launched = pulled(given, COTANGENTS[of], **tol)
        count = 2 if of == "both" else 1  # with the sum of both cotangents
        assert work[0] == (count, 1) and "adjoint_at_once" in launched
        if kind in ("one problem", "a cost each"):  # there is no sum over problems
            assert work[-1] == (count, 1) and launched[-1] == "adjoint_at_once"
        for name in GRADIENTS:
            right, rough = getattr(exact, name), 1e-5 if dtype == np.float64 else 1e-3
            assert found[name].dtype == dtype and found[name].shape == right.shape
            np.testing.assert_allclose(found[name], right, rtol=0, atol=rough * abs(right).max())


@pytest.mark.filterwarnings("ignore:.*(did not reach|had not converged)")
def test_gradients_that_need_a_look_are_taken_with_looks():
    given = make("plain", np.float64)
    for cotangents, options, tol in (
        ({"grad_cost": 1.0}, {"max_iter": 10}, 1e-6),
        ({"grad_cost": 1.0, "grad_entropic_cost": 1.0}, {}, 1e-6),
    ):
        options = {"eps": 0.02} | options
        exact = cusink.sinkhorn_adjoint(cusink.sinkhorn(*given, **options), **cotangents, tol=tol)
        with device_arrays.device() as (cupy, _):
            result = cusink.sinkhorn(*map(cupy.asarray, given), **options)
            found = cusink.sinkhorn_adjoint(result, **cotangents, tol=tol)
            np.testing.assert_allclose(found.a.get(), exact.a, rtol=0, atol=0.1 * abs(exact.a).max())
    with device_arrays.device() as (cupy, _):
        result = cusink.sinkhorn(*map(cupy.asarray, given), eps=0.05)
        with pytest.raises(ValueError, match="'grad_cost' must be finite; got nan"):
            cusink.sinkhorn_adjoint(result, grad_cost=cupy.asarray(np.array([1.0, np.nan, 1.0])))
        with pytest.raises(ValueError, match="'grad_cost' must be finite"):
            cusink.sinkhorn_adjoint(result, grad_cost=np.inf)


def check_gradients(dtype, seed=0):
    """Pull cotangents back through problems with empty bins, of both orders of the sides, and compare with float64."""
    for kind, n, own in (("empty bins", 37, False), ("a cost each", 19, True)):
        a, b, C = make(kind, dtype, n=n, m=35, seed=seed)
        eps, w = 0.1, np.array([1.0, -0.3, 2.0], dtype)
        solved = cusink.sinkhorn(*(x.astype(float) for x in (a, b, C)), eps=eps, tol=1e-12)
        exact = cusink.sinkhorn_adjoint(solved, grad_cost=w.astype(float), grad_reg_cost=w.astype(float), tol=1e-11)
        arrays = SolvedArrays(a, b, solved.problem.f, solved.problem.g, np.ones(3, bool))
        found = part("at_once").adjoint_at_once(C, arrays, (w, 2 * w), eps, FitRules(1e-10, 1000, 3))
        assert found.solved.all() and not found.odd.any() and found.sound.all() and found.converged.all()
        for name in ("a", "b", "eps", *(("C",) if own else ())):
            right = getattr(exact, name)
            digits = 1e-9 if dtype == np.float64 else 1e-4
            np.testing.assert_allclose(getattr(found, name), right, rtol=0, atol=digits * abs(right).max())


def forced(grid, warps, operator, B, n, m, dtype, device, **options):
    """Return this launch of a kernel of ``at_once.cu``; from 33 bins on gradients would have another kernel."""
    if operator == "adjoint_at_once":
        shared = adjoint_memory(n, m, np.dtype(dtype).itemsize)
        return Launch("at_once.cu", operator, grid, 32 * warps, shared)
    launch = configure(operator, B, n, m, dtype, device, **options)
    return launch._replace(grid=grid, block=32 * warps) if operator.endswith("at_once") else launch


def check(dtype, seed=0):
    """Solve problems with empty bins and other masses, and compare all outputs with float64."""
    for kind in ("empty bins", "masses", "a cost each"):
        a, b, C = make(kind, dtype, n=37, m=35, seed=seed)
        eps, rules = 0.07, AtOnceRules(4, None, 10, "auto", 1.2, 1e-9, 1e-14, 0.999)
        found = part("at_once").solve_at_once(C, a, b, 3, eps, rules)
        wide = [x.astype(float) for x in (a, b, C)]
        wide[1] *= (wide[0].sum(axis=1) / wide[1].sum(axis=1))[:, None]
        exact = cusink.sinkhorn(*wide, eps=eps, tol=None, max_iter=4, overrelaxation=1.2, method="log")
        digits = 1e-12 if dtype == np.float64 else 2e-5
        for name, scale in (("f", eps), ("g", eps), ("shown_f", eps), ("shown_g", eps)):
            right = getattr(exact, name[-1])
            np.testing.assert_allclose(getattr(found, name), right, rtol=0, atol=digits * scale * 10)
        for name in VALUES:
            np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=10 * digits)
        np.testing.assert_allclose(found.error - 1e-9, exact.error, rtol=100 * digits, atol=1e-11)
        np.testing.assert_allclose(found.a.sum(axis=1), found.b.sum(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(found.C, C)
        facts = found.facts
        np.testing.assert_allclose(facts.mass_a, a.sum(axis=1, dtype=float), rtol=1e-14)
        np.testing.assert_array_equal(facts.least, np.minimum(a.min(axis=1), b.min(axis=1)).astype(float))
        np.testing.assert_array_equal(facts.high, np.broadcast_to(C.max(axis=(-2, -1)).astype(float), 3))
        largest = np.maximum(abs(found.f).max(axis=1), abs(found.g).max(axis=1))
        np.testing.assert_allclose(facts.largest, largest, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_right_in_any_launch(dtype):
    for seed, launch in enumerate(((1, 1), (2, 3), (40, 16))):
        with operators() as ops:
            emulated.shuffle(seed)
            force(functools.partial(forced, *launch))
            check(dtype, seed)
            check_gradients(dtype, seed)
            assert set(loader.names("at_once.cu")) <= set(ops.launched)


def test_kernels_keep_to_the_rules_of_cuda():
    """In a build that checks every access."""
    with operators(function=emulated.checked_function):
        force(functools.partial(forced, 2, 3))
        check(np.float32)
        check_gradients(np.float32)


BROKEN = {
    "an unlifted potential": ("to_f[i] - lift + constant", "to_f[i] + constant"),
    "a gauge of all bins": ("if (of_b[j] > 0) sums.g", "sums.g"),
    "an empty bin without potential": ("            if (!(of_b[j] > 0)) {", "            if (of_b[j] < 0) {"),
    "an entropy of one side": (
        "            sums.entropy -= weight * log2(weight);\n        }\n        sizes",
        "        }\n        sizes",
    ),
    "a mass that is kept": (
        "REAL weight = given_weight(given_b, k * b_stride + j, m) * scale",
        "REAL weight = given_weight(given_b, k * b_stride + j, m)",
    ),
    "a missing barrier": (
        "        columns[threadIdx.x] = sum;\n        __syncthreads();",
        "        columns[threadIdx.x] = sum;",
    ),
    "a plan of other masses": (" * cost_scale + more);", " * cost_scale);"),
    "no step for empty bins": ("unknown[s] += residual[s];", "unknown[s] += 0;"),
    "means of the other side": ("rows ? b : a, *factor", "rows ? a : b, *factor"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_found(what):
    old, new = BROKEN[what]
    assert old in loader.source("at_once.cu")

    def function(name, *rest):
        change = (lambda text: text.replace(old, new)) if name == "at_once.cu" else None
        return emulated.Kernel(name, *rest, change=change)

    def run():
        check(np.float32)
        check_gradients(np.float32)

    with operators(function=function):
        force(functools.partial(forced, 2, 3))
        with pytest.raises((AssertionError, emulated.EmulationError)):
            run()
