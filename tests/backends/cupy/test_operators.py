"""The CuPy backend above the kernels, on emulated kernels and NumPy arrays: iterations in all forms, and plumbing."""

import collections
import dataclasses
import functools
import itertools
import sys

import emulated
import numpy as np
import pytest
from emulated import oracle
from emulated.cupy_stand_in import Device, Memory, changed, force, operators, part, swapped
from emulated.oracle import assert_as_good

import cusink
from cusink import connection
from cusink.backends.cupy import loader
from cusink.backends.cupy.fused_memory import shared_memory
from cusink.backends.cupy.launch import Launch, configure
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.solver.annealing import Patience
from cusink.solver.newton import sharing, worth

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
# The shared memory that a block may have, which decides about the form.
FUSED, APART = 99 << 10, 0
FORMS = (
    ("FusedForm", FUSED, "auto", False),
    ("FusedForm", FUSED, "auto", True),
    ("FusedForm", FUSED, "log", False),
    ("MatmulForm", APART, "auto", False),
    ("LogForm", APART, "log", False),
    ("LogForm", APART, "auto", True),
)
INPUTS = ("plain", "zero weights", "forbidden", "far apart", "wide range", "small eps", "large costs", "warm start")
OMEGA = np.array([1.0, 1.25, 1.0, 1.5, 1.75])


def make(inputs, B, n, m, own, dtype, seed=0):
    """``(C, a, b, eps, f, g)``: B problems of the given dtype."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((B if own else 1, n, 1)), rng.random((B if own else 1, 1, m))
    C, a, b, eps = (x - y) ** 2, rng.random((B, n)) + 0.05, rng.random((B, m)) + 0.05, 0.05
    f, g = np.zeros((B, n)), np.zeros((B, m))
    if inputs == "zero weights":
        a[rng.random(a.shape) < 0.4], b[rng.random(b.shape) < 0.4] = 0, 0
        a[:, 0] = b[:, 0] = 1
    elif inputs == "forbidden":
        C[rng.random(C.shape) < 0.3] = np.inf
        C[:, 0], C[..., 0] = 0.5, 0.5  # so that every weight finds a way
        if n > 1:
            C[:, -1], a[:, -1] = np.inf, 0  # and a bin without any has no weight
    elif inputs == "far apart":
        C = np.broadcast_to(np.subtract.outer(np.arange(n) / n, np.arange(m) / m)[None] ** 2, C.shape).copy()
        width = 0.06 + 0.01 * np.arange(B)[:, None]
        a, b = (np.exp(-0.5 * ((np.arange(k) / k - centre) / width) ** 2) for k, centre in ((n, 0.1), (m, 0.9)))
        eps = 2e-3
    elif inputs == "wide range":
        # Kernels from 1 to far below the smallest number; the corner is one where scalings must not pass the cap.
        eps, bits = 1.0, 180 if dtype == np.float32 else 1900
        C = rng.random(C.shape) * bits * np.log(2)
        C[:, :2, :2] = bits / 180 * np.log(2) * np.array([[144, 0], [174, 50]])[:n, :m]
    elif inputs == "small eps":
        eps = 1e-4
    elif inputs == "large costs":
        C += 300
    elif inputs == "warm start":
        f, g = rng.normal(size=f.shape) * 0.3, rng.normal(size=g.shape) * 0.3
    a, b = (w / w.sum(axis=1, keepdims=True) for w in (a, b))
    return *(array.astype(dtype) for array in ((C if own else C[0]), a, b)), eps, f.astype(dtype), g.astype(dtype)


def check(form, method, problem, dtype, counts=(2, 3)):
    """Iterate, drop problems, iterate, finish; after each step compare with the oracle in the log domain."""
    C, a, b, eps, f, g = problem
    ops = part("dense")
    omega = OMEGA[np.arange(len(a)) % len(OMEGA)]
    iteration = ops.Iteration(C, a, b, eps, f, g, method)
    assert type(iteration.form).__name__ == form
    # Subnormals are zeros to a GPU.
    a, b = (np.where(w < np.finfo(dtype).tiny, 0, w) for w in (a, b))
    exact = naive = f, g
    # Each iteration rounds exponents of this size anew.
    exponent = sum(counts) * np.abs(C[np.isfinite(C)]).max() / eps
    with np.errstate(all="ignore"):
        for turn, count in enumerate(counts):
            omega = np.roll(omega, turn)
            bound = iteration.advance(omega, count)
            *exact, exact_bound = oracle.iterate(C, a, b, eps, *exact, omega, count)
            *naive, naive_bound = oracle.iterate(C, a, b, eps, *naive, omega, count, dtype=np.float32)
            assert_as_good(bound.astype(dtype), exact_bound, naive_bound, exponent, 1)
            if turn == 0:
                keep = np.arange(len(a))[::-2]
                iteration.keep(keep)
                C, omega = (C if C.ndim == 2 else C[keep]), omega[keep]
                a, b, *exact = (x[keep] for x in (a, b, *exact))
                naive = [x[keep] for x in naive]
        chosen = np.array([len(a) - 1, 0])
        C = C if C.ndim == 2 else C[chosen]
        f, g, cost, error = iteration.finish(chosen)
        expected = oracle.finish(C, a[chosen], b[chosen], eps, exact[1][chosen])
        allowed = oracle.finish(C, a[chosen], b[chosen], eps, naive[1][chosen], dtype=np.float32)
    results, scales = (f, g, cost, error.astype(dtype)), (eps, eps, None, 1)
    for actual, right, rough, scale in zip(results, expected, allowed, scales, strict=True):
        assert_as_good(actual, right, rough, exponent, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("form", "memory", "method", "own"), FORMS)
def test_iteration_follows_the_oracle(form, memory, method, own, inputs, dtype):
    with operators(shared_memory=memory):
        for seed, (B, n, m) in enumerate([(5, 13, 37), (1, 1, 1), (9, 34, 5)]):
            emulated.shuffle(seed)
            check(form, method, make(inputs, B, n, m, own, dtype, seed), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", ["plain", "zero weights", "large costs", "warm start"])
@pytest.mark.parametrize(("form", "memory"), [("FusedForm", FUSED), ("MatmulForm", APART)])
def test_no_sum_in_range_is_left_to_the_fallback(form, memory, inputs, dtype):
    with operators(shared_memory=memory):
        check(form, "scaling", make(inputs, 5, 13, 37, False, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problems", [1, 2, 4])
def test_the_fused_kernel_is_right_for_any_launch(problems, dtype):
    with operators():
        sizes = [(5, 13, 37), (9, 70, 33), (3, 1, 40), (2, 33, 1)]
        for turn, (grid, warps) in enumerate([(1, 1), (1, 3), (2, 8), (30, 8), (1, 5), (3, 2)]):
            emulated.shuffle(turn)
            force_fused(problems, grid, warps)
            for method, inputs in (("auto", "plain"), ("auto", "far apart"), ("log", "zero weights")):
                own = problems == 1 and turn % 2 == 0
                check("FusedForm", method, make(inputs, *sizes[turn % 4], own, dtype, turn), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("grid", "warps"), [(1, 1), (3, 2), (1, 16), (50, 5)])
def test_the_elementwise_kernels_are_right_for_any_launch(grid, warps, dtype):
    for form, memory, method, own in FORMS:
        with operators(shared_memory=memory):
            force_elementwise(grid, warps)
            for turn, inputs in enumerate(("zero weights", "far apart")):
                emulated.shuffle(turn)
                check(form, method, make(inputs, 5, 70, 33, own, dtype, turn), dtype)


def force_elementwise(grid, warps):
    """Give every kernel of ``scaling.cu`` this launch."""

    def choose(*sizes, **options):
        launch = configure(*sizes, **options)
        elementwise = launch is not None and launch.file == "scaling.cu"
        return launch._replace(grid=grid, block=32 * warps) if elementwise else launch

    force(choose)


def force_fused(problems, grid, warps, less_shared=0):
    """Give every fused kernel this launch."""

    def choose(operator, B, n, m, dtype, device, **options):
        if operator != "iterate":
            return configure(operator, B, n, m, dtype, device, **options)
        log = options.get("log", False)
        shared = shared_memory(problems, n, m, warps, np.dtype(dtype).itemsize, log) - less_shared
        return Launch("iterate.cu", f"iterate_{problems}", grid, 32 * warps, shared)

    force(choose)


def plan_sums(dtype, launches=(None, (1, 1), (7, 3), (40, 16)), less_shared=0):
    """Hold ``plan_sum`` to the oracle: any launch, one problem and many, forbidden pairs, parts left out."""
    rng = np.random.default_rng(5)
    for turn, (B, n, m) in enumerate([(1, 1, 1), (3, 5, 40), (19, 37, 33), (40, 3, 70)]):
        C, a, b, eps, f, g = make("forbidden" if turn % 2 else "zero weights", B, n, m, False, dtype, turn)
        p, q = (x.astype(dtype) for x in (oracle.logits(a, f, eps), oracle.logits(b, g, eps)))
        p = p - 3  # so that plans are about 1 at most
        rows, columns, costs = (rng.normal(size=size).astype(dtype) for size in ((B, n), (B, m), B))
        if launch := launches[turn % len(launches)]:
            grid, warps = launch
            shared = np.dtype(dtype).itemsize * 8 * (16 * warps + 65) - less_shared
            chosen = Launch("plan.cu", "plan_sum", grid, 32 * warps, shared)
            force(lambda *_, chosen=chosen, **__: chosen)
        for given in ((rows, columns, costs), (rows, None, None), (rows, columns, None), (rows, None, costs)):
            emulated.shuffle(turn)
            found = part("reductions").plan_sum(C, p, q, *given, eps)
            exact, naive = (oracle.plan_sum(C, p, q, *given, eps, t) for t in (np.float64, np.float32))
            size = oracle.plan_sum(C, p, q, *(None if x is None else np.abs(x) for x in given), eps).max()
            assert_as_good(found, exact, naive, np.abs(C[np.isfinite(C)]).max() / eps, size)
            assert (found[np.isposinf(C)] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_of_plans_follows_the_oracle(dtype):
    with operators() as ops:
        plan_sums(dtype)
        assert set(ops.launched) == {"plan_sum"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__syncthreads();  // all have used the last chunk", ""),
        ("b < end ? costs[b]", "b < B ? costs[0]"),
        ("cost[r] == infinity() ? REAL(0) : sum[r]", "sum[r]"),
        ("unit % tiles / across * high", "unit % tiles / across * 8"),
        ("(B + parts - 1) / parts", "B / parts"),
    ],
)
def test_a_broken_sum_of_plans_is_found(old, new):
    def change(text):
        assert text.count(old) == 1
        return text.replace(old, new)

    kernel = functools.cache(lambda file, name, dtype: emulated.Kernel(file, name, dtype, change))
    with operators(function=kernel), pytest.raises((AssertionError, emulated.EmulationError)):
        plan_sums(np.float32, launches=((7, 3), (40, 16), (3, 2), (1, 1)))


def test_too_little_shared_memory_for_a_sum_of_plans_is_found():
    with operators(), pytest.raises(emulated.EmulationError, match="behind the dynamic shared memory"):
        plan_sums(np.float32, launches=((7, 3),), less_shared=4)


def test_the_gradient_by_a_shared_cost_makes_no_plans():
    with operators() as ops:
        C, a, b, eps, f, g = make("plain", 9, 13, 37, False, np.float64)
        means = next(ops.OPERATORS.plan_means(C, a, b, f, g, eps))[1]
        rows, columns, costs = f + 1, g - 1, f[:, 0]
        p, q = oracle.logits(a, f, eps), oracle.logits(b, g, eps)
        np.testing.assert_allclose(
            means.plan_sum(rows, columns, costs), oracle.plan_sum(C, p, q, rows, columns, costs, eps)
        )
        assert "plan" not in ops.launched and ops.launched.count("plan_sum") == 1


@pytest.mark.parametrize("form", ["FusedForm", "MatmulForm"])
def test_scaling_alone_says_what_it_loses_and_auto_loses_nothing(form):
    problem = make("far apart", 3, 40, 37, False, np.float32)
    C, a, b, eps, f, g = problem
    with operators(shared_memory=FUSED if form == "FusedForm" else APART) as ops:
        alone, auto = (ops.Iteration(C, a, b, eps, f, g, method) for method in ("scaling", "auto"))
        omega = np.ones(3)
        assert np.isinf(alone.advance(omega, 10)).all()
        assert np.isfinite(auto.advance(omega, 10)).all()
        for iteration in (alone, auto):
            assert all(np.isfinite(part).all() for part in iteration.finish(np.arange(3)))
    with np.errstate(all="ignore"):
        _, g, _ = oracle.iterate(C, a, b, eps, f, g, omega, 10)
        expected = oracle.finish(C, a, b, eps, g)
    with operators(shared_memory=FUSED if form == "FusedForm" else APART) as ops:
        np.testing.assert_allclose(auto.finish(np.arange(3))[2], expected[2], rtol=1e-4)


@pytest.mark.parametrize(("form", "memory", "method", "own"), FORMS)
def test_iterations_converge_and_say_so(form, memory, method, own):
    C, a, b, eps, f, g = make("zero weights", 6, 12, 17, own, np.float64)
    with operators(shared_memory=memory) as ops:
        iteration = ops.Iteration(C, a, b, eps, f, g, method)
        for _ in range(40):
            bound = iteration.advance(np.full(6, 1.4), 10)
            if bound.max() < 1e-12:
                break
        f, g, cost, error = iteration.finish(np.arange(6))
        P = ops.plan(C, oracle.logits(a, f, eps), oracle.logits(b, g, eps), eps)
    assert (error <= bound + 1e-14).all() and bound.max() < 1e-12
    np.testing.assert_allclose(P.sum(axis=2), a, atol=1e-13)
    np.testing.assert_allclose(P.sum(axis=1), b, atol=1e-12)
    np.testing.assert_allclose((P * C).sum(axis=(1, 2)), cost, rtol=1e-12)


def test_the_bound_holds_for_over_relaxed_iterations():
    C, a, b, eps, f, g = make("plain", 5, 12, 17, False, np.float64)
    with operators() as ops:
        iteration = ops.Iteration(C, a, b, eps, f, g, "auto")
        for count in (1, 1, 2, 5, 10):
            bound = iteration.advance(OMEGA, count)
            error = iteration.finish(np.arange(5))[3]
            assert (error <= bound * (1 + 1e-12)).all()
            np.testing.assert_allclose(error[OMEGA == 1], bound[OMEGA == 1], rtol=1e-9)


def test_repeated_launches_become_a_graph_that_reads_the_new_omega():
    C, a, b, eps, f, g = make("plain", 5, 9, 17, False, np.float64)
    with operators(shared_memory=APART) as ops:
        iteration = ops.Iteration(C, a, b, eps, f, g, "log")
        exact = f, g
        for turn, count in enumerate([3, 3, 3, 1, 3, 1]):
            omega = np.roll(OMEGA, turn)
            bound = iteration.advance(omega, count)
            *exact, exact_bound = oracle.iterate(C, a, b, eps, *exact, omega, count)
            np.testing.assert_allclose(bound, exact_bound, rtol=1e-9)
        assert set(iteration.form.graphs) == {1, 3}
        assert len(iteration.form.graphs[3].launches) == 2 * (2 * 3 + 1)
        iteration.keep(np.array([3, 1]))
        bound = iteration.advance(omega[[3, 1]], 3)
        *_, exact_bound = oracle.iterate(C, a, b, eps, *exact, omega, 3)
        np.testing.assert_allclose(bound, exact_bound[[3, 1]], rtol=1e-9)


def test_arrays_that_are_not_contiguous_are_made_so():
    rng = np.random.default_rng(0)
    C, a, b, eps, f, g = make("plain", 9, 8, 6, False, np.float64)
    p, q, v = (rng.normal(size=shape)[::-1].T for shape in ((8, 9), (6, 9), (6, 9)))
    C = np.asfortranarray(C)
    with operators() as ops:
        for args in (
            (ops.softmin, C, q, eps, 1),
            (ops.apply_plan, C, p, q, v, eps, 1),
            (ops.transport_cost, C, p, q, eps),
        ):
            function, *args = args
            np.testing.assert_allclose(function(*args), getattr(oracle, function.__name__)(*args), rtol=1e-12)
        for args in ((ops.plan, C, p, q, eps), (ops.c_transform, C, p, 0)):
            function, *args = args
            np.testing.assert_allclose(function(*args), getattr(oracle, function.__name__)(*args), rtol=1e-12)
        iteration = ops.Iteration(C, *(np.asfortranarray(x) for x in (a, b)), eps, f.T.copy().T, g, "auto")
        iteration.advance(np.ones(18)[::2], 2)
        exact = oracle.iterate(C, a, b, eps, f, g, np.ones(9), 2)
        np.testing.assert_allclose(
            iteration.finish(np.arange(9))[0], oracle.finish(C, a, b, eps, exact[1])[0], atol=1e-13
        )


# What the emulation is for: mistakes in the backend and in the kernels are found


def give(memory):
    """Let the device give a block so much shared memory from now on."""
    part("run")._device.cache_clear()
    sys.modules["cupy"].shared_memory(memory)


def exercise():
    """Run every operator and form once, and compare with the oracle."""
    rng = np.random.default_rng(0)
    ops = part("dense")
    for own, B in ((False, 9), (False, 3), (True, 3)):
        C, a, b, eps, f, g = make("plain", B, 13, 37, own, np.float64)
        p, q = oracle.logits(a, f, eps), oracle.logits(b, g, eps)
        for axis, logits in ((0, p), (1, q)):
            v = rng.normal(size=logits.shape)
            np.testing.assert_allclose(ops.softmin(C, logits, eps, axis), oracle.softmin(C, logits, eps, axis))
            np.testing.assert_allclose(ops.apply_plan(C, p, q, v, eps, axis), oracle.apply_plan(C, p, q, v, eps, axis))
            np.testing.assert_allclose(ops.c_transform(C, logits, axis), oracle.c_transform(C, logits, axis))
        np.testing.assert_allclose(ops.plan(C, p, q, eps), oracle.plan(C, p, q, eps))
        np.testing.assert_allclose(ops.transport_cost(C, p, q, eps), oracle.transport_cost(C, p, q, eps))
        if not own:
            sums = (C, p, q, f + 1, g - 1, f[:, 0], eps)
            np.testing.assert_allclose(part("reductions").plan_sum(*sums), oracle.plan_sum(*sums))
    for form, memory, method, own in FORMS:
        give(memory)
        check(form, method, make("zero weights", 5, 13, 37, own, np.float64), np.float64, counts=(2, 2, 2))
        check(form, method, make("far apart", 5, 13, 37, own, np.float32), np.float32)


def test_the_exercise_passes_and_runs_every_kernel():
    with operators() as ops:
        exercise()
        run = set(ops.launched)
    files = ("apply_plan.cu", "c_transform.cu", "iterate.cu", "plan.cu", "scaling.cu", "softmin.cu")
    missing = {name for file in files for name in loader.names(file)} - run
    # Half precision and other numbers of problems per block have tests of their own.
    assert missing == {name for name in missing if name.endswith("_half")} | {"iterate_4"}


def of_type(name, kind):
    return lambda given: {name: kind(given[name])}


def without(name):
    return lambda given: {name: np.int64(0)} if name in given else {}


class Kept:
    """A `change` that goes on passing what an argument was in the first launch."""

    def __init__(self, name):
        self.name, self.first = name, None

    def __call__(self, given):
        if self.first is None or self.first.shape != given[self.name].shape:
            self.first = given[self.name].copy()
        return {self.name: self.first}


# The kernels that get wrong arguments, by the beginning of their names, and what is wrong.
WRONG = {
    "weights of the fused kernel": ("iterate_", swapped("a", "b")),
    "scalings and logits": ("iterate_", swapped("u", "p")),
    "method and count": ("iterate_", swapped("method", "count")),
    "rows and columns": ("iterate_", swapped("n", "m")),
    "logits of an update": ("scaling_update", lambda given: {"logits": given["logit"]}),
    "strides of an update": ("scaling_update", swapped("kept_stride", "summed_stride")),
    "sums and deviations": ("logit_update", swapped("log_sums", "deviation")),
    "potentials of the start": ("start_scalings", swapped("f", "g")),
    "gauge of the finish": ("read_potentials", lambda given: {"constant": -given["constant"]}),
    "sides of a plan": ("apply_plan", swapped("x", "y")),
    "scales of a softmin": ("softmin", swapped("cost_scale", "logit_scale")),
    "logits and values": ("apply_plan", swapped("y", "v")),
    "a scalar of the wrong type": ("iterate_", of_type("cost_scale", np.float32)),
    "a size of the wrong type": ("softmin", of_type("n", np.int32)),
    "a bare Python number": ("softmin", of_type("B", int)),
    "a stride that is left out": ("softmin_columns", without("cost_stride")),
    "a graph that keeps the old omega": ("logit_update", Kept("omega")),
    "strides that a kernel would ignore": ("apply_plan", lambda given: {"v": np.asfortranarray(given["v"])}),
}


def found():
    """Whether a mistake shows in any form."""
    try:
        exercise()
        give(FUSED)
        force_fused(1, 3, 4)
        check("FusedForm", "auto", make("plain", 2, 100, 104, False, np.float64), np.float64)
    except (AssertionError, emulated.EmulationError, IndexError, ValueError, TypeError):
        return True
    return False


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_of_a_kernel_are_found(what):
    with operators(arguments=changed(*WRONG[what])):
        assert found()


def test_no_mistake_is_found_where_there_is_none():
    with operators(arguments=changed("", dict)):
        assert not found()


def test_an_array_made_while_a_stream_captures_is_found(monkeypatch):
    with operators():
        forms = part("forms")
        log_sums = forms.reductions.log_sums

        def allocating(*arguments):
            arguments[-1][...] = log_sums(*arguments[:-1])

        monkeypatch.setattr(forms.reductions, "log_sums", allocating)
        assert found()


def test_a_limit_on_shared_memory_that_is_not_raised_is_found(monkeypatch):
    with operators():
        monkeypatch.setattr(part("run"), "PLAIN_SHARED_MEMORY", 1 << 30)
        assert found()


def test_more_shared_memory_than_the_device_has_is_found():
    with operators(shared_memory=64 << 10):
        force_fused(1, 3, 4)
        with pytest.raises(emulated.EmulationError, match="cannot have"):
            check("FusedForm", "auto", make("plain", 2, 130, 130, False, np.float64), np.float64)


def test_the_properties_of_a_device_are_read_from_what_cupy_has(monkeypatch):
    """`Device.attributes` has no compute capability, which real devices have as a string."""
    with operators():
        device = sys.modules["cupy"].cuda.Device
        for capability, fast in (("75", False), ("80", True), ("89", False), ("100", True)):
            part("run")._device.cache_clear()
            monkeypatch.setattr(device, "compute_capability", capability)
            assert part("run").device() == (4, FUSED, fast)


def bound_without_repairs(change=None):
    """Return bounds of ten iterations by scalings alone, after twenty at costs of 1000 eps, and those of the oracle."""
    C, a, b, _, f, g = make("far apart", 3, 13, 37, False, np.float32)
    eps, omega = float(C.max()) * 1e-3, np.ones(3)
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, change=change)), np.errstate(all="ignore"):
        force_fused(1, 2, 4)
        iteration = part("dense").Iteration(C, a, b, eps, f, g, "auto")
        iteration.advance(omega, 20)
        iteration.form.method = 0
        return iteration.advance(omega, 10), oracle.iterate(C, a, b, eps, f, g, omega, 30)[-1]


def logits_of_scalings(change=None):
    """Return the largest error of the logits that ten iterations leave, beside log2 of their scalings.

    In units of what they may lose: the error of the device's logarithm of a mantissa, and three roundings, of the logit
    and of balances between the sides.
    """
    C, a, b, _, f, g = make("plain", 8, 70, 90, False, np.float32)
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, change, checks=True)):
        force_fused(2, 2, 4)
        iteration = part("dense").Iteration(C, a, b, 0.1, f, g, "auto")
        iteration.advance(np.full(8, 1.2), 10)
        state = iteration.state
    scalings, found = (np.concatenate(pair, axis=1).astype(float) for pair in ((state.u, state.v), (state.p, state.q)))
    exact = np.log2(scalings)
    return (abs(found - exact) / (2.0**-22 + 1.5 * np.spacing(abs(exact).astype(np.float32)))).max()


def test_the_logits_that_a_fused_call_leaves_are_those_of_its_scalings():
    assert logits_of_scalings() <= 1
    mantissa = ("- 127) + __log2f(mantissa)", "- 127) + (mantissa - 1)")
    assert mantissa[0] in loader.source("iterate.cu")
    assert logits_of_scalings(lambda text: text.replace(*mantissa)) > 1


def test_a_block_absorbs_potentials_instead_of_repairing_entries():
    """What K has absorbed leaves no sum out of range, so that no entry is summed in the log domain."""
    start = ("PROBLEMS == 1 && x.method == AUTO", "PROBLEMS == 1 && x.method != LOG")
    bound, exact = bound_without_repairs(lambda text: text.replace(*start))
    np.testing.assert_allclose(bound, exact, rtol=2e-3)
    assert not np.isfinite(bound_without_repairs()[0]).any()  # without it, scalings leave the range


SYNC = "__syncthreads();"
BROKEN = {
    "no barrier before slices are added": (
        f"u, kept, summed, of_columns);\n                {SYNC}",
        "u, kept, summed, of_columns);",
    ),
    "no barrier after an update": (f"{SYNC}\n    return false;", "return false;"),
    "no barrier before the first half-step": (f"{SYNC}\n        int resting", "int resting"),
    "padding that is not zero": (
        "u[t * rows + i] = inside ? x.u[(b0 + t) * x.n + i] : REAL(0);",
        "if (inside) u[t * rows + i] = x.u[(b0 + t) * x.n + i];",
    ),
    "a row behind the cost": ("i < row.size && j < column.size ? C[", "j < column.size ? C["),
    "the other side's weights": ("int(b - K), int(absorbed", "int(q - K), int(absorbed"),
    "no range check": ("return sum > least_certified(terms) && sum < infinity();", "return sum > 0;"),
    "no cap": ("return scaling <= Range<REAL>::CAP ? scaling : infinity();", "return scaling;"),
    "a relaxation that takes all": ("omega == 1 ? REAL(1)", "omega >= 1 ? REAL(1)"),
    "a shuffle in a divergent branch": (
        "REAL logarithm = log_sum(fails,",
        "if (weight > 0) absorbs = absorbs && true; else continue;\n                REAL logarithm = log_sum(fails,",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_fused_kernel_is_caught(what):
    old, new = BROKEN[what]
    assert old in loader.source("iterate.cu")

    def function(file, name, dtype):
        change = (lambda text: text.replace(old, new)) if file == "iterate.cu" else None
        return emulated.Kernel(file, name, dtype, change=change)

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        exercise_fused()


def exercise_fused():
    """Compare the fused form with the oracle on awkward inputs, in several orders of threads."""
    for turn in range(6):
        emulated.shuffle(turn)
        force_fused(2, 1 + turn % 2, 3 + turn)
        for inputs in ("plain", "zero weights", "wide range"):
            check("FusedForm", "auto", make(inputs, 5, 13, 37, False, np.float32, turn), np.float32)
        check("FusedForm", "scaling", make("plain", 5, 13, 37, False, np.float32, turn), np.float32)
        force_fused(1, 1 + turn % 2, 3 + turn)
        check("FusedForm", "auto", make("far apart", 5, 13, 37, False, np.float32, turn), np.float32)
        force_fused(2, 1 + turn % 2, 3 + turn)
        check("FusedForm", "auto", make("wide range", 5, 2, 2, False, np.float32, turn), np.float32)


BROKEN_ELEMENTWISE = {
    "an update that starts behind its problem": ("bool inside = k < kept;", "bool inside = k <= kept;"),
    "an update of the wrong entry": ("logit[at] = entry.logit;", "logit[at] = entry.scaling;"),
    "a deviation that is not summed": ("REAL total = warp_sum(entry.deviation);", "REAL total = entry.deviation;"),
    "problems that are left out": ("k < B; k += all_warps())", "k < B; k += B)"),
    "a gauge that goes one way only": (
        "moved(v[j], q[j], level)",
        "moved(v[j], q[j], -level)",
    ),
    "a gauge that is not noted": ("gauge[k] += level;", ";"),
    "a kernel without its smallest cost": (
        "kernel_entry(C[e] - minimum[0], cost_scale)",
        "kernel_entry(C[e], cost_scale)",
    ),
    "potentials of empty bins": ("REAL(logarithm / cost_scale) : plain[e]", "REAL(logarithm / cost_scale) : REAL(0)"),
    "logits of another problem": ("costs, k, summed, logits + b * summed)", "costs, k, summed, logits)"),
}


@pytest.mark.parametrize("what", BROKEN_ELEMENTWISE)
def test_a_broken_elementwise_kernel_is_caught(what):
    old, new = BROKEN_ELEMENTWISE[what]
    assert old in loader.source("scaling.cu")

    def function(file, name, dtype):
        change = (lambda text: text.replace(old, new)) if file == "scaling.cu" else None
        return emulated.Kernel(file, name, dtype, change=change)

    with pytest.raises((AssertionError, emulated.EmulationError)):
        exercise_elementwise(function)


def exercise_elementwise(function):
    """Compare all forms with the oracle, with few blocks for the elementwise kernels."""
    for form, memory, method, own in FORMS:
        with operators(function=function, shared_memory=memory):
            force_elementwise(2, 2)
            for inputs, dtype in itertools.product(("zero weights", "far apart", "large costs"), DTYPES):
                check(form, method, make(inputs, 5, 70, 33, own, dtype), dtype)


def test_too_little_shared_memory_is_caught():
    with operators():
        force_fused(2, 1, 4, less_shared=8)
        with pytest.raises(emulated.EmulationError, match="behind the dynamic shared memory"):
            check("FusedForm", "auto", make("plain", 5, 13, 37, False, np.float32), np.float32)


# The public functions on top


def use(monkeypatch, ops, at_once=True):
    """Let the public functions run on `ops` with arrays of NumPy; small problems `at_once`, or with looks."""
    chosen = ops.OPERATORS if at_once else dataclasses.replace(ops.OPERATORS, solve_at_once=None)
    monkeypatch.setitem(connection._doors, "numpy", lambda: {"dense": chosen})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("memory", "own"), [(FUSED, False), (FUSED, True), (APART, False), (APART, True)])
def test_sinkhorn_agrees_with_numpy(monkeypatch, memory, own, dtype):
    C, a, b, eps, *_ = make("zero weights", 6, 12, 17, own, dtype)
    tol = 1e-9 if dtype == np.float64 else 1e-5
    expected = cusink.sinkhorn(a, b, C, eps=eps, tol=tol)
    with operators(shared_memory=memory) as ops:
        use(monkeypatch, ops)
        result = cusink.sinkhorn(a, b, C, eps=eps, tol=tol)
        plan, (lower, upper) = result.plan(), result.bounds()
    assert result.converged.all() and (result.error <= tol).all()
    for field in ("cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(result, field), getattr(expected, field), rtol=100 * tol)
    np.testing.assert_allclose(plan.sum(axis=1), b, atol=10 * tol)
    assert (lower <= result.cost).all() and (upper >= lower).all()


@pytest.mark.parametrize("memory", [FUSED, APART])
def test_distance_matrix_agrees_with_numpy(monkeypatch, memory):
    C, A, _, eps, *_ = make("zero weights", 5, 9, 9, False, np.float64)
    _, B, _, *_ = make("plain", 4, 9, 9, False, np.float64, 1)
    expected = [cusink.distance_matrix(A, other, C, eps=eps, tol=1e-10) for other in (B, None)]
    with operators(shared_memory=memory) as ops:
        use(monkeypatch, ops)
        actual = [cusink.distance_matrix(A, other, C, eps=eps, tol=1e-10) for other in (B, None)]
    for right, found in zip(expected, actual, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-7)


def counted(monkeypatch, owner, name):
    """Return a list that grows with each call of a method."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: calls.append(args) or method(*args))
    return calls


def turns_until(n_iter, check_every, look):
    """Return after how many launches of iterations a problem ends that is first looked at there, and never in vain."""
    turns, done = 0, 0
    while done < n_iter:
        done += check_every * min(16, -(-(look - done) // check_every))
        look = 2 * done if done >= look else look
        turns += 1
    return turns


def test_a_solve_of_small_problems_tests_for_its_end_on_the_device(monkeypatch):
    """`docs/gpu.md` states these numbers of launches; NumPy's results and iterations are the same."""
    C, a, b, eps, *_ = make("plain", 9, 20, 30, False, np.float64)
    for check_every in (2, 20):
        options = {"eps": eps, "tol": 1e-9, "check_every": check_every}
        expected = cusink.sinkhorn(a, b, C, **options)
        with operators() as ops:
            use(monkeypatch, ops, at_once=False)
            vain = counted(monkeypatch, StopState, "refuse")
            result = cusink.sinkhorn(a, b, C, **options)
            monkeypatch.undo()
            launched = collections.Counter(name.partition("_")[0] for name in ops.launched)
        assert result.converged.all()
        np.testing.assert_array_equal(result.n_iter, expected.n_iter)
        np.testing.assert_allclose(result.cost, expected.cost, rtol=1e-9)
        # 16 checks in a launch, fewer to the next look, and one more plain update of all that have ended by then.
        first = Patience.start(9, worth(20, 30, sharing(9, shared=True)), 1.0, 1000).due
        turns = np.array([turns_until(count, check_every, first) for count in result.n_iter])
        assert result.n_iter.max() // check_every > 2 and (check_every > 2 or turns.max() > 1)
        # Errors measured in vain take one more launch for that, and one in which those problems catch up.
        more = launched["iterate"] - (turns.max() + len(set(turns.tolist())))
        assert 0 <= more <= 2 * len(vain) and more <= 5 and (check_every == 2 or not vain)
        assert launched["balance"] == 0 and launched["start"] == 1
    with operators() as ops:
        use(monkeypatch, ops, at_once=False)
        cusink.sinkhorn(a, b, C, eps=eps, tol=None, max_iter=40)
        assert sum(name.startswith("iterate") for name in ops.launched) == 2


@pytest.mark.parametrize("inputs", ["plain", "far apart", "wide range", "zero weights"])
@pytest.mark.parametrize(("own", "B", "count"), [(False, 9, 5), (False, 9, 2), (True, 3, 5)])
def test_checks_on_the_device_are_the_checks_of_the_host(own, B, count, inputs):
    """The same omegas, errors and stops from the kernel as from the rules in Python, check by check."""
    problem = C, a, b, eps, f, g = make(inputs, B, 21, 34, own, np.float64)
    checks, tol = 30 // count, 1e-7
    steepness = np.abs(C).max() / eps
    with operators():
        emulated.shuffle(B)
        start = part("dense").Iteration
        device, host = start(*problem, "auto"), start(*problem, "auto")
        assert device.stops_itself
        stall = StallDetector.start(B, np.dtype(np.float64), 0.0 if inputs == "plain" else 1e9)
        stall = dataclasses.replace(stall, checks=np.full(B, 7))  # so that rounding, too, stops some
        state = StopState.start(Relaxation.start(B, "auto", steepness), stall)
        before = [array.copy() for array in (state.relaxation.omega, state.stall.best, state.stall.checks)]
        after, bound, taken, over = device.advance_until_converged(state, tol, count, checks)
        for array, old in zip((state.relaxation.omega, state.stall.best, state.stall.checks), before, strict=True):
            np.testing.assert_array_equal(array, old)
        rows, expected = np.arange(B), np.zeros((3, B))
        for check in range(checks):
            error = np.asarray(host.advance(state.relaxation.omega, count))
            stop = state.may_end(error, tol) | ~np.isfinite(error)
            state = state.observe(error, count)
            stop |= state.stall.stalled
            expected[:, rows] = error, np.full(len(rows), (check + 1) * count), stop
            if stop.any():
                left = np.flatnonzero(~stop)
                host.keep(left)
                state = state.select(left)
                rows = rows[left]
            if not len(rows):
                break
    np.testing.assert_array_equal(taken, expected[1])
    np.testing.assert_array_equal(over, expected[2])
    np.testing.assert_allclose(bound, expected[0], rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(after.relaxation.omega[rows], state.relaxation.omega, rtol=1e-6)
    np.testing.assert_array_equal(after.relaxation.since[rows], state.relaxation.since)
    np.testing.assert_array_equal(after.stall.checks[rows], state.stall.checks)
    np.testing.assert_allclose(after.stall.best[rows], state.stall.best, rtol=1e-6, atol=1e-14)


# Out of memory, and arrays that cannot be computed with


def distances(a, b, C, **options):
    """`cusink.distance_matrix` of a square problem."""
    return cusink.distance_matrix(a, b, C, tol=None, **options)


def solved(a, b, C, **options):
    """`cusink.sinkhorn` with a look at every check."""
    return cusink.sinkhorn(a, b, C, tol=None, callback=lambda *_: None, **options)


@pytest.mark.parametrize(
    ("call", "lower"), [(solved, "part of the rows of 'a' and 'b'"), (distances, "'memory_limit'")]
)
@pytest.mark.parametrize(("memory", "method"), [(FUSED, "auto"), (APART, "auto"), (APART, "log")])
def test_a_full_device_says_what_to_lower_and_nothing_stays_allocated(monkeypatch, memory, method, call, lower):
    C, a, b, eps, *_ = make("plain", 2, 3, 4, False, np.float64)
    with operators(shared_memory=memory) as ops:
        use(monkeypatch, ops)
        for allowed in itertools.count():
            Memory.left, Memory.made = allowed, []
            try:
                call(a, b, C, eps=eps, max_iter=4, check_every=2, method=method)
                break
            except MemoryError as error:
                caught = error
            assert lower in str(caught) and "512 bytes" in str(caught), caught
            assert caught.__context__ is None and type(caught) is MemoryError
            assert len(Memory.made) == allowed and Memory.held() == 0  # while the caller holds the error, too
        assert allowed > 10


@pytest.mark.parametrize(
    ("call", "lower"), [(solved, "part of the rows of 'a' and 'b'"), (distances, "'memory_limit'")]
)
def test_a_full_host_says_what_to_lower(call, lower):
    endless = np.broadcast_to(np.ones(1), (10**17, 1))  # more than any address space, should somebody copy it
    with pytest.raises(MemoryError, match=r"ran out of memory \(Unable to allocate .*\)\. ") as caught:
        call(endless, endless, np.zeros((1, 1)), eps=1.0, max_iter=1, check_every=1)
    assert lower in str(caught.value)


class OnDevice:
    """An array that is not NumPy's and lies on a device."""

    def __init__(self, values, device=0):
        self.values, self.device = values, Device(device)

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.mark.parametrize(
    ("place", "array", "parts"),
    [
        ("a", OnDevice(np.ones(2), device=1), ("'a' is <CUDA Device 1> and 'b' is <CUDA Device 0>", "one device")),
        ("C", OnDevice(np.zeros((2, 2)), device=1), ("'a' is <CUDA Device 0> and 'C' is <CUDA Device 1>",)),
        ("b", OnDevice(np.ones(2, np.float16)), ("'a' is float64 and 'b' is float16",)),
        ("b", OnDevice(np.ones(2).astype(">f8")), ("'b'", "byte order", ">f8")),
        ("C", OnDevice(np.zeros((2, 2), object)), ("'C'", "real numbers", "object")),
        ("a", np.ones(2), ("'a' is numpy and 'b' is cupy",)),
    ],
)
@pytest.mark.parametrize("matrix", [False, True])
def test_device_arrays_that_cannot_be_computed_with(monkeypatch, place, array, parts, matrix):
    given = {"a": OnDevice(np.ones(2)), "b": OnDevice(np.ones(2)), "C": OnDevice(np.zeros((2, 2)))} | {place: array}
    a, b, C = given.values()
    with operators():
        monkeypatch.setattr(sys.modules["cupy"], "ndarray", OnDevice, raising=False)
        with pytest.raises(TypeError) as caught:
            cusink.distance_matrix(a, b, C, eps=1.0) if matrix else cusink.sinkhorn(a, b, C, eps=1.0)
    for words in parts:
        words = words.replace("'a'", "'A'").replace("'b'", "'B'") if matrix else words
        assert words in str(caught.value), caught.value
