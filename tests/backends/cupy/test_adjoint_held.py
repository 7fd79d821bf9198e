"""``adjoint_held``, emulated: gradients of one small problem with its plan in registers, beside float64 on the host."""

import emulated
import numpy as np
import pytest
from backends.cupy.test_at_once import DTYPES, check_gradients, make, pulled
from emulated.cupy_stand_in import force, operators, part

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.fused_memory import HELD_BINS, HELD_THREADS, held_adjoint_memory
from cusink.backends.cupy.launch import H100, Launch, configure
from cusink.costs.at_once import FitRules, SolvedArrays

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")


def force_held(grid, less_shared=0):
    """Give every gradient this launch."""

    def choose(operator, B, n, m, dtype, device, **options):
        if operator != "adjoint_at_once":
            return configure(operator, B, n, m, dtype, device, **options)
        shared = held_adjoint_memory(np.dtype(dtype).itemsize) - less_shared
        return Launch("adjoint_held.cu", "adjoint_held", grid, HELD_THREADS, shared)

    force(choose)


def pull(C, a, b, f, g, eps, cotangents, tol=1e-10):
    """Return the gradients on the stand-in."""
    given = SolvedArrays(a, b, f, g, np.ones(len(a), bool))
    return part("at_once").adjoint_at_once(C, given, cotangents, eps, FitRules(tol, 1000, 3))


def check_sizes(dtype, sizes, seed=0, eps=0.05):
    """Compare with float64 for problems with a cost each, one of which has empty bins at the end."""
    rng = np.random.default_rng(seed)
    for B, n, m in sizes:
        a, b, C = rng.dirichlet(np.ones(n), B), rng.dirichlet(np.ones(m), B), rng.random((B, n, m))
        a[0, n // 2 + 1 :], b[-1, : m // 3] = 0, 0
        a, b, C = (x.astype(dtype) for x in (a / a.sum(axis=1)[:, None], b / b.sum(axis=1)[:, None], C))
        solved = cusink.sinkhorn(*(x.astype(float) for x in (a, b, C)), eps=eps, tol=1e-12)
        w, level = np.linspace(-1, 2, B).astype(dtype), 0.5
        exact = cusink.sinkhorn_adjoint(solved, grad_cost=w.astype(float), grad_reg_cost=level - w, tol=1e-11)
        found = pull(C, a, b, solved.problem.f, solved.problem.g, eps, (w, level))
        assert found.solved.all() and not found.odd.any() and found.sound.all()
        for name in ("a", "b", "C", "eps"):
            right, digits = getattr(exact, name), 1e-8 if dtype == np.float64 else 3e-4
            np.testing.assert_allclose(getattr(found, name), right, rtol=0, atol=digits * abs(right).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_any_size_that_fits(dtype):
    most = HELD_BINS[np.dtype(dtype).itemsize]
    with operators() as ops:
        for turn, sizes in enumerate([(3, most, most), (2, most - 1, 3), (4, 2, 40), (2, 13, 13)]):
            emulated.shuffle(turn)
            force_held((1, 2, 30)[turn % 3])
            check_sizes(dtype, [sizes], turn)
        check_gradients(dtype)
        assert set(ops.launched) == {"adjoint_held"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_the_regularised_cost_takes_no_iteration(dtype):
    """Its system is zero, and its gradients are those of the envelope: of (f, g), of the plan."""
    rng = np.random.default_rng(3)
    a, b, C = rng.dirichlet(np.ones(40), 2), rng.dirichlet(np.ones(37), 2), rng.random((40, 37))
    solved = cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-12)
    f, g = solved.problem.f, solved.problem.g
    with operators():
        force_held(2)
        found = pull(np.stack([C, C]).astype(dtype), *(x.astype(dtype) for x in (a, b)), f, g, 0.05, (0.0, 1.0))
    assert found.solved.all() and not found.x.any() and not found.y.any()
    P = a[:, :, None] * b[:, None] * np.exp((f[:, :, None] + g[:, None] - C) / 0.05)
    near = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(found.a, f - f.mean(axis=1, keepdims=True), atol=near)
    np.testing.assert_allclose(found.b, g - g.mean(axis=1, keepdims=True), atol=near)
    np.testing.assert_allclose(found.C, P, atol=near * P.max())


def test_what_is_forbidden_has_no_gradient():
    rng = np.random.default_rng(4)
    a, b, C = rng.dirichlet(np.ones(20), 1), rng.dirichlet(np.ones(20), 1), rng.random((1, 20, 20))
    C[0, 3, 4] = np.inf
    solved = cusink.sinkhorn(a, b, C, eps=0.1, tol=1e-12)
    exact = cusink.sinkhorn_adjoint(solved, grad_cost=1.0, tol=1e-11)
    with operators():
        force_held(1)
        found = pull(C, a, b, solved.problem.f, solved.problem.g, 0.1, (1.0, 1.0))
    assert found.solved.all() and found.C[0, 3, 4] == 0
    for name in ("a", "C", "eps"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-7)


def test_a_system_that_is_not_solved_is_said_to_be():
    rng = np.random.default_rng(5)
    a, b, C = (
        x.astype("f") for x in (rng.dirichlet(np.ones(30), 1), rng.dirichlet(np.ones(30), 1), rng.random((30, 30)))
    )
    solved = cusink.sinkhorn(*(x.astype(float) for x in (a, b, C)), eps=0.01)
    with operators():
        force_held(1)
        given = SolvedArrays(a, b, solved.problem.f, solved.problem.g, np.ones(1, bool))
        few = part("at_once").adjoint_at_once(C, given, (1.0, 1.0), 0.01, FitRules(1e-6, 2, 1))
        broken = pull(C, a, b, solved.problem.f * np.nan, solved.problem.g, 0.01, (1.0, 1.0))
    assert not few.solved.any() and not broken.solved.any()


SYNC = "__syncthreads();"
BROKEN = {
    "no barrier before a product": (f"column.weight * v;\n        {SYNC}", "column.weight * v;"),
    "no barrier before parts are added": (
        f"multiply_columns(memory.parts, memory.vector);\n        {SYNC}",
        "multiply_columns(memory.parts, memory.vector);",
    ),
    "one place for all totals": ("turn ^= 1;", "turn = 0;"),
    "no barrier before the sums of rows": (
        f"        {SYNC}\n        // The right-hand sides",
        "        // The right-hand sides",
    ),
    "weights of the other side": ("= row.weight * v", "= column.weight * v"),
    "no right-hand side of the rows": (
        "row.unknown = row.right - mean_of_row(column.unknown);\n            residual",
        "row.unknown = -mean_of_row(column.unknown);\n            residual",
    ),
    "no step for empty bins": ("column.unknown += residual;", ""),
    "a direction that forgets": ("REAL(next) / REAL(now) * direction", "REAL(0) * direction"),
    "half of the columns' sums": ("__shfl_xor_sync(FULL_WARP, of_column[c].x, HELD_WIDE)", "REAL(0)"),
    "lines that do not go round": ("r + 1 < HELD_ROWS ? E.at[r + 1][c] : line[c]", "r ? E.at[r][c] : line[c]"),
    "no mean of a gradient": ("REAL(by_a - sums.x / n)", "REAL(by_a)"),
    "an eps without the cost's own": ("(gradient - w * P) * ratio", "gradient * ratio"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_found(what):
    old, new = BROKEN[what]
    assert loader.source("adjoint_held.cu").count(old) == 1

    def function(file, name, dtype):
        change = (lambda text: text.replace(old, new)) if file == "adjoint_held.cu" else None
        return emulated.Kernel(file, name, dtype, change=change, checks=True)

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        exercise()


def exercise():
    """Compare with float64 in several orders of threads, with blocks that take several problems."""
    for turn in range(3):
        emulated.shuffle(turn)
        force_held(2)
        check_sizes(np.float32, [(3, 30, 37)], turn)
    force_held(1)
    check_steps()


def check_steps():
    """Conjugate gradients take no more iterations than there are dimensions; rounding allows some more."""
    rng = np.random.default_rng(6)
    a, b, C = (
        x.astype("f") for x in (rng.dirichlet(np.ones(30), 1), rng.dirichlet(np.ones(30), 1), rng.random((30, 30)))
    )
    solved = cusink.sinkhorn(*(x.astype(float) for x in (a, b, C)), eps=0.02, tol=1e-10)
    given = SolvedArrays(a, b, solved.problem.f, solved.problem.g, np.ones(1, bool))
    found = part("at_once").adjoint_at_once(C, given, (1.0, 1.0), 0.02, FitRules(1e-5, 30, 1))
    assert found.solved.all()


def test_no_fault_is_found_where_there_is_none():
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, checks=True)):
        exercise()


def test_too_little_shared_memory_is_found():
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, checks=True)):
        force_held(1, less_shared=8)
        with pytest.raises(emulated.EmulationError, match="behind the dynamic shared memory"):
            check_sizes(np.float32, [(1, 13, 37)])


def test_it_is_chosen_for_what_fits():
    for dtype, most in (("float32", 112), ("float64", 64)):
        sizes = ((32, 8), (33, 1), (most, 3), (3, most + 1))
        kernels = [configure("adjoint_at_once", 8, *size, dtype, H100).kernel for size in sizes]
        assert kernels == ["adjoint_at_once", "adjoint_held", "adjoint_held", "adjoint_at_once"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_is_one_launch_of_it(dtype):
    given = make("one problem", dtype, n=40, m=37)
    solved = cusink.sinkhorn(*(x.astype(float) for x in given), eps=0.05, tol=1e-12)
    exact = cusink.sinkhorn_adjoint(solved, grad_cost=1.0, tol=1e-10)
    found, work, launched = pulled(given, {"grad_cost": 1.0}, eps=0.05, tol=1e-10 if dtype == np.float64 else 1e-5)
    assert work == [(1, 1)] * len(work) and launched[-1] == "adjoint_held"
    for name, values in found.items():
        right, rough = getattr(exact, name), 1e-5 if dtype == np.float64 else 1e-3
        np.testing.assert_allclose(values, right, rtol=0, atol=rough * abs(right).max())


def costs(kind, n):
    """Return costs between 0 and 1, as docs/gpu.md names them."""
    steps = abs(np.subtract.outer(np.arange(n), np.arange(n))) / n
    return {"squares": steps**2, "steps": steps, "random": np.random.default_rng(0).random((n, n))}[kind]


@pytest.mark.parametrize(("kind", "iterations"), [("squares", 24), ("random", 55), ("steps", 213)])
def test_how_many_iterations_a_gradient_takes(kind, iterations):
    """Of `cost`, for 100 bins and eps = 1e-3 after 200 iterations, to the usual tolerance. The time follows from it."""

    def counted(file, name, dtype):
        begin = ("bool reached = system.solve", "TURNS = 0; bool reached = system.solve")
        each = ("if (!(curvature > 0)) break;", "TURNS += threadIdx.x == 0; if (!(curvature > 0)) break;")
        end = ("facts[problem * 3 + 2] = solved[problem]", "facts[problem * 3 + 2] = TURNS")

        def change(text):
            for old, new in (begin, each, end, ("struct HeldSystem {", "static int TURNS;\nstruct HeldSystem {")):
                assert text.count(old) == 1
                text = text.replace(old, new)
            return text

        return emulated.Kernel(file, name, dtype, change=change)

    rng = np.random.default_rng(0)
    C, a, b = costs(kind, 100), rng.dirichlet(np.ones(100), 1), rng.dirichlet(np.ones(100), 1)
    a, b, C = (x.astype("f") for x in (a, b, C))
    solved = cusink.sinkhorn(*(x.astype(float) for x in (a, b, C)), eps=1e-3, tol=None, max_iter=200)
    with operators(function=counted):
        force_held(1)
        found = pull(C, a, b, solved.problem.f, solved.problem.g, 1e-3, (1.0, 1.0), tol=1e-6)
    assert found.solved.all() and abs(found.sound[0] - iterations) <= 0.1 * iterations
