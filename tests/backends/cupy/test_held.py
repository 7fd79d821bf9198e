"""``iterate_held``, emulated: K of one small problem in registers. What it shares is in test_operators.py."""

import emulated
import numpy as np
import pytest
from backends.cupy.test_operators import DTYPES, check, make
from emulated.cupy_stand_in import force, operators, part

from cusink.backends.cupy import loader
from cusink.backends.cupy.fused_memory import HELD_BINS, HELD_THREADS, held_memory
from cusink.backends.cupy.launch import Launch, configure

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")


def force_held(grid, less_shared=0):
    """Give every fused kernel this launch."""

    def choose(operator, B, n, m, dtype, device, **options):
        if operator != "iterate" or options.get("log"):
            return configure(operator, B, n, m, dtype, device, **options)
        shared = held_memory(np.dtype(dtype).itemsize) - less_shared
        return Launch("iterate.cu", "iterate_held", grid, HELD_THREADS, shared)

    force(choose)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", ["plain", "zero weights", "forbidden", "far apart", "wide range", "small eps"])
def test_a_held_kernel_follows_the_oracle(inputs, dtype):
    most = HELD_BINS[np.dtype(dtype).itemsize]
    with operators() as ops:
        for turn, (B, n, m) in enumerate([(5, 13, 37), (3, most, most), (2, most - 1, 1), (4, 1, 40)]):
            emulated.shuffle(turn)
            force_held((1, 2, 30)[turn % 3])
            check("FusedForm", "auto", make(inputs, B, n, m, turn % 2 == 0, dtype, turn), dtype)
        assert "iterate_held" in ops.launched


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_sum_in_range_of_a_held_kernel_is_left_to_the_fallback(dtype):
    with operators():
        force_held(2)
        for inputs in ("plain", "zero weights", "large costs", "warm start"):
            check("FusedForm", "scaling", make(inputs, 5, 13, 37, False, dtype), dtype)


def test_scaling_alone_says_what_a_held_kernel_loses():
    C, a, b, eps, f, g = make("far apart", 3, 40, 37, False, np.float32)
    with operators():
        force_held(3)
        alone, auto = (part("dense").Iteration(C, a, b, eps, f, g, method) for method in ("scaling", "auto"))
        assert np.isinf(alone.advance(np.ones(3), 10)).all()
        assert np.isfinite(auto.advance(np.ones(3), 10)).all()


@pytest.mark.parametrize("weight", [2.0**-120, 2.0**127])
def test_weights_without_a_reciprocal_in_range_are_taken_the_long_way(weight):
    """`reciprocal` is 0 for the larger one. The other side has as much mass."""
    C, a, b, eps, f, g = make("plain", 1, 3, 40, False, np.float32)
    a[:], b[:] = 0, 0
    a[0, 1] = b[0, 7] = weight
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, checks=True)):
        force_held(1)
        iteration = part("dense").Iteration(C, a, b, eps, f, g, "auto")
        assert np.isfinite(iteration.advance(np.ones(1), 3)).all()
        f, g, cost, _ = iteration.finish(np.arange(1))
    np.testing.assert_allclose(cost / weight, C[1, 7], rtol=1e-5)


def test_a_problem_that_starts_out_of_range_does_not_take_the_kernel_of_the_one_before():
    C, a, b, eps, f, g = make("plain", 3, 13, 37, False, np.float32)
    f[1] = np.linspace(0, -200 * eps, 13)  # e^-200 is below the least scaling
    with operators():
        force_held(1)
        check("FusedForm", "auto", (C, a, b, eps, f, g), np.float32)


def bound_without_repairs(change=None):
    """Return what ten iterations by scalings alone leave of three problems with costs of 1000 eps, after twenty."""
    C, a, b, _, f, g = make("far apart", 3, 13, 37, False, np.float32)
    eps = float(C.max()) * 1e-3
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, change=change)), np.errstate(all="ignore"):
        force_held(2)
        iteration = part("dense").Iteration(C, a, b, eps, f, g, "auto")
        iteration.advance(np.ones(3), 20)
        iteration.form.method = 0
        return iteration.advance(np.ones(3), 10)


def test_a_held_kernel_absorbs_potentials():
    start = ("PROBLEMS == 1 && x.method == AUTO", "PROBLEMS == 1 && x.method != LOG")
    assert np.isfinite(bound_without_repairs(lambda text: text.replace(*start))).all()
    assert not np.isfinite(bound_without_repairs()).any()


def repaired(change=lambda text: text):
    """Return how many half-steps of 40 iterations with costs of 1000 eps were summed in the log domain."""
    repairs = "REAL logarithm = log_sum(fails, costs, k, ROWS ? x.m"
    C, a, b, _, f, g = make("far apart", 1, 40, 37, False, np.float32)

    def kernel(file, name, dtype):
        assert loader.source("iterate.cu").count(repairs) == 1
        counted = f"if (lane == 0) atomicMax(x.taken, x.taken[0] + 1);\n{repairs}"
        return emulated.Kernel(file, name, dtype, change=lambda text: change(text.replace(repairs, counted)))

    with operators(function=kernel), np.errstate(all="ignore"):
        force_held(1)
        iteration = part("dense").Iteration(C, a, b, float(C.max()) * 1e-3, f, g, "auto")
        taken = np.zeros(1, np.int64)
        iteration.form._launch(
            iteration.state,
            (np.empty(1, np.float32), part("forms").NULL, part("forms").NULL, taken),
            (np.ones(1, np.float32), part("forms").NULL, part("forms").NULL),
            part("forms").NO_RULES,
            (40, 1, 0),
        )
    return int(taken[0])


def test_a_half_step_in_vain_is_taken_again_with_what_was_absorbed():
    """Few half-steps are repaired; without what they leave in `failed`, most are."""
    never = ("atomicMax(failed, course.taken);", ";")
    assert 4 * repaired() < repaired(lambda text: text.replace(*never))


SYNC = "__syncthreads();"
BROKEN = {
    "no barrier before parts are added": (f"    {SYNC}\n    course.resting++", "    course.resting++"),
    "no barrier after an update": (f"mine.scaling = entry.scaling;\n    {SYNC}", "mine.scaling = entry.scaling;"),
    "no barrier after absorbing": (f"{SYNC}\n        course.stale", "course.stale"),
    "no range check": ("(sum > mine.least) & (sum < infinity())", "sum > 0"),
    "no range check of a scaling": ("doubtful | !in_range_by_bits(carries ? updated : REAL(1))", "doubtful"),
    "a logit that is not stored": (", kept[HELD_THREADS + k] = entry.logit + by", ""),
    "logits of a scaling that is out of range": (
        "return in_range(scaling) ? log_in_range(scaling) + absorbed[k]",
        "return scaling > 0 ? log_in_range(scaling) + absorbed[k]",
    ),
    "logits without what was absorbed": ("log_in_range(scaling) + absorbed[k]", "log_in_range(scaling)"),
    "a kernel that is not made anew": ("course.stale = course.absorbed = true", "course.absorbed = true"),
    "lines that do not go round": ("r + 1 < HELD_ROWS ? held.at[r + 1][c] : line[c]", "r ? held.at[r][c] : line[c]"),
    "a line behind the cost": ("i < row.size && j < column.size ? C[i * column", "j < column.size ? C[i * column"),
    "parts of another thread": ("parts[j * ROW_PARTS + i + r", "parts[j * COLUMN_PARTS + i + r"),
    "a relaxation that takes all": ("omega == 1 ? REAL(1)", "omega >= 1 ? REAL(1)"),
    "a measurement that updates": ("if (!step.measure) kept[k] = entry.scaling;", "kept[k] = entry.scaling;"),
    "a quotient that is not corrected": (
        "return multiply_add(multiply_add(-y, rough, x), reciprocal_of_y, rough);",
        "return rough * REAL(1.001);",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_held_kernel_is_caught(what):
    old, new = BROKEN[what]
    assert old in loader.source("iterate.cu")

    def function(file, name, dtype):
        change = (lambda text: text.replace(old, new)) if file == "iterate.cu" else None
        return emulated.Kernel(file, name, dtype, change=change, checks=True)

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        exercise()


def exercise():
    """Compare with the oracle on awkward inputs, in several orders of threads, and hold a call to few repairs."""
    for turn in range(3):
        emulated.shuffle(turn)
        force_held(2)
        for inputs in ("plain", "zero weights", "wide range", "small eps"):
            check("FusedForm", "auto", make(inputs, 5, 13, 37, turn == 1, np.float32, turn), np.float32)


def test_no_fault_is_found_where_there_is_none():
    with operators(function=lambda *kernel: emulated.Kernel(*kernel, checks=True)):
        exercise()


def test_too_little_shared_memory_of_a_held_kernel_is_found():
    with operators():
        force_held(2, less_shared=4)
        with pytest.raises(emulated.EmulationError, match="behind the dynamic shared memory"):
            check("FusedForm", "auto", make("plain", 2, 13, 37, False, np.float32), np.float32)


def test_constants_are_those_of_the_kernel():
    text = loader.source("iterate.cu")
    assert "HELD_HIGH = 8, HELD_WIDE = 16, HELD_THREADS = HELD_HIGH * HELD_WIDE;" in text
    assert "HELD_ROWS = sizeof(REAL) == sizeof(float) ? 14 : 8" in text
    assert HELD_BINS == {4: 14 * 8, 8: 8 * 8} and HELD_THREADS == 8 * 16
