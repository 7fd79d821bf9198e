"""Half-steps of many problems with one large cost on emulated tensor cores: digits, certificate, launches."""

import emulated
import numpy as np
import pytest
from backends.cupy.test_operators import INPUTS, check, make
from emulated import cupy_stand_in
from emulated.cupy_stand_in import force, operators, part

from cusink.backends.cupy import launch, loader
from cusink.backends.cupy.launch import H100, SPLIT_TILE, Device, Launch, configure, split_tiles

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

FILE, NUMBERS = "split_step.cu", np.float32
UNIT = 2.0**-23
# Three products leave out 3 2^-22 of each term. Of a block's sum six truncations take a unit each; to add and to scale
# the sums of all blocks rounds twice half a unit for each.
LOST = 3 * 2 * UNIT + 6 * UNIT


def split_only(grid=None):
    """Let problems go to ``split_step``, however few, in a grid of so many blocks; no launch of ``iterate`` fits."""
    launch.SPLIT_SHARE = 0
    cupy_stand_in.ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = H100.shared_memory  # until `operators` ends

    def choose(operator, *sizes, **options):
        chosen = None if operator == "iterate" else configure(operator, *sizes, **options)
        return chosen._replace(grid=grid) if grid and chosen and chosen.file == FILE else chosen

    force(choose)


@pytest.fixture(autouse=True)
def share():
    """Give the device its own rule back."""
    kept = launch.SPLIT_SHARE
    yield
    launch.SPLIT_SHARE = kept


def decoded(parts, rows, numbers):
    """Return the numbers (rows, numbers) of some parts in float64."""
    halves = parts.halves.astype(float)[:rows]
    scales = parts.scales.T[:rows, :, None].astype(float)
    whole = ((halves[..., :32] + halves[..., 32:]) * scales).reshape(rows, -1)
    assert (whole[:, numbers:] == 0).all()
    return whole[:, :numbers]


def test_numbers_are_parts_but_for_the_digits_that_half_precision_has_not():
    rng = np.random.default_rng(0)
    with operators():
        split_only()
        form = part("split_form")
        for B, n in ((33, 70), (1, 1), (3, 160)):
            x = np.exp2(rng.uniform(-30, 30, (B, 1)) + rng.uniform(-40, 0, (B, n))).astype(NUMBERS)
            x[rng.random(x.shape) < 0.3], x[-1, :40] = 0, 0
            x[0, 0], x[0, -1] = 2.0**-126, 2.0**46
            parts = form.Parts.empty(B, n)
            launch = part("run").choose_launch("split_scalings", B, n, 1, x.dtype, axis=0)
            part("run").run(launch, x.dtype, *parts, x, *map(np.int64, (B, n, parts.padded)))
            scale = np.repeat(parts.scales.T[:B], 32, axis=1)[:, :n].astype(float)
            off = abs(decoded(parts, B, n) - x)
            assert (off <= np.maximum(2.0**-22 * x, 2.0**-25 * scale)).all()
            assert (x <= 2.0**15 * scale).all() and (np.frexp(scale)[0] % 0.5 == 0).all()
        x[:] = 1
        x[0, 33] = np.inf
        part("run").run(launch, x.dtype, *parts, x, *map(np.int64, (B, n, parts.padded)))
        with np.errstate(invalid="ignore"):
            wrong = np.isnan(decoded(parts, B, n))
        assert wrong[0, 33] and wrong.sum() == 1 or not np.isfinite(parts.halves[0, 1]).all()


def half_steps(B, n, m, seed=0, spread=8.0, sparse=0.0):
    """Return sums (B, m) and (B, n) that two half-steps took, and what they are in float64 for the same scalings."""
    rng = np.random.default_rng(seed)
    C = rng.random((n, m)).astype(NUMBERS)
    a, b = (rng.dirichlet(np.ones(size), B).astype(NUMBERS) for size in (n, m))
    a[rng.random(a.shape) < sparse] = 0
    f, g = (rng.normal(size=x.shape).astype(NUMBERS) for x in (a, b))
    ops = part("dense")
    iteration = ops.Iteration(C, a, b, 1 / spread, f / spread, g / spread, "auto")
    form, state = iteration.form, iteration.state
    assert type(form).__name__ == "SplitForm"
    K, u = form.K.astype(float), state.u.astype(float)
    iteration.form.run(state, np.ones(B, NUMBERS), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = state.b / state.v.astype(float), state.a / state.u.astype(float)
    return found, (u @ K, state.v.astype(float) @ K.T)


def test_sums_have_the_digits_of_a_float():
    """And are not lower one and all, as sums that tensor cores truncate would be."""
    with operators() as ops:
        split_only()
        for sizes, sparse in (((33, 1000, 20), 0.0), ((170, 37, 5), 0.0), ((32, 1, 200), 0.0), ((101, 300, 333), 0.9)):
            for found, exact in zip(*half_steps(*sizes, sparse=sparse), strict=True):
                carries = np.isfinite(found)
                off = (found - exact)[carries] / exact[carries]
                assert abs(off).max() <= LOST + UNIT * (2 + sizes[1] / 32)  # and two roundings of the update
                assert abs(np.median(off)) <= 2 * UNIT
        assert "scaling_update" in ops.launched  # measures
        assert ops.launched.count("split_step") == 8


def stored_logits(function=emulated.checked_function, last=True):
    """Return logits of columns that an iteration stored, and log2 of its scalings in float64, where these are in range.

    An iteration that is not the last of its call stores them with fewer digits.
    """
    rng = np.random.default_rng(0)
    B, n, m = 40, 33, 200
    C = rng.random((n, m)).astype(NUMBERS)
    a, b = rng.dirichlet(np.ones(n), B).astype(NUMBERS), np.exp2(rng.uniform(-60, 80, (B, m))).astype(NUMBERS)
    with operators(function=function):
        split_only()
        iteration = part("dense").Iteration(C, a, b, 0.1, 0 * a, 0 * b, "auto")
        form, state, step = iteration.form, iteration.state, iteration.form._split_step
        form._split_step = lambda *arguments, measured: step(*arguments, measured=measured and last)
        form.run(state, np.ones(B, NUMBERS), 1)
    inside = (state.v >= np.finfo(NUMBERS).tiny) & (state.v <= 2.0**46)
    return state.q[inside].astype(float), np.log2(state.v[inside].astype(float))


def unit(logits):
    """Return the unit in the last place of numbers."""
    return np.spacing(abs(logits).astype(NUMBERS)).astype(float)


def most_lost(logits):
    """Return the error that a stored logit may have: of the device's logarithm of the mantissa, and a rounding."""
    return 2.0**-22 + unit(logits) / 2


def test_stored_logits_lose_no_more_than_the_device_s_logarithm_of_the_mantissa():
    """With the errors that the device may have; from 4 on that is no more than the unit of a log2f."""
    found, exact = stored_logits(last=False)
    assert (abs(found - exact) <= most_lost(exact)).all()
    assert (most_lost(exact) <= unit(exact))[abs(exact) >= 4].all()
    assert (abs(exact) < 1).sum() > 50 and (abs(exact) >= 64).sum() > 1000


def test_logits_that_a_call_leaves_have_all_digits():
    """Those of log2f, off by a unit beside its rounding; so have not those of the iterations before."""
    found, exact = stored_logits()
    assert (abs(found - exact) <= 1.5 * unit(exact)).all()
    found, exact = stored_logits(last=False)
    assert (abs(found - exact) > 1.5 * unit(exact)).any()


@pytest.mark.parametrize("inputs", INPUTS)
def test_iterations_follow_the_oracle(inputs, monkeypatch):
    """In any grid, and in hard problems too, whose entries are repaired in the launch, however many they are."""
    with operators() as ops:
        split_only((None, 1, 3, 40)[INPUTS.index(inputs) % 4])
        monkeypatch.setattr(part("split_form"), "MOST_REPAIRED", 1.0)
        emulated.shuffle(INPUTS.index(inputs))
        check("SplitForm", "auto", make(inputs, 176, 20, 140, False, NUMBERS), NUMBERS)
        assert ops.launched.count("split_step") == 2 * 5  # of 88 problems after the first two iterations


def test_the_form_gives_up_where_many_entries_are_repaired():
    with operators() as ops:
        split_only()
        check("SplitForm", "auto", make("small eps", 66, 40, 137, False, NUMBERS), NUMBERS)
        assert ops.launched.count("split_step") == 2
        assert ops.launched.count("scaling_update") == 2 * 4 + 4  # of which two measure, and two finish


@pytest.mark.parametrize("kept", [1, 159, 161, 640])
def test_tiles_hold_each_entry_once(kept):
    """Of any number of problems, and those of two strips come first."""
    for B in (1, 79, 80, 81, 160, 161, 240, 241, 320, 1665):
        pairs, alone = divmod(-(-B // 80), 2)
        assert split_tiles(B, kept) == pairs * -(-kept // 160) + alone * -(-kept // 320)
        assert split_tiles(B, kept) * SPLIT_TILE >= B * kept


def uncertain(function=emulated.function):
    """Solve problems whose mass lies where K is 2^-36 of what is beside it: parts have none of its digits, floats all.

    Returns the largest relative error of the sums, and how many entries were repaired.
    """
    B, n, m = 32, 64, 128
    C, b = np.zeros((n, m), NUMBERS), np.full((B, m), 1 / m, NUMBERS)
    C[1], C[40] = 36.3 * np.log(2), 37.4 * np.log(2)
    a = np.zeros((B, n), NUMBERS)
    a[:, 1], a[:, 40] = 0.25, 0.75
    repaired = []
    with operators(function=function):
        split_only()
        part("split_form").MOST_REPAIRED = 1.0
        iteration = part("dense").Iteration(C, a, b, 1.0, 0 * a, 0 * b, "auto")
        form, step = iteration.form, iteration.form._split_step

        def counting(side, *rest, **options):
            step(side, *rest, **options)
            repaired.append(int(side.repaired.sum()))

        form._split_step = counting
        u, K = iteration.state.u.astype(float), form.K.astype(float)
        form.run(iteration.state, np.ones(B, NUMBERS), 1)
        found = b / iteration.state.v.astype(float)
    return abs(found / (u @ K) - 1).max(), repaired


def test_sums_that_parts_cannot_hold_are_taken_as_log_sum_exp():
    off, repaired = uncertain()
    assert off <= 64 * UNIT  # of the logarithm of 2^-36
    assert repaired[0] == 32 * 128


def test_an_iteration_is_two_launches_and_a_look_now_and_then():
    problem = make("plain", 33, 40, 137, False, NUMBERS)

    def of(count):
        with operators() as ops:
            split_only()
            C, a, b, eps, f, g = problem
            part("dense").Iteration(C, a, b, eps, f, g, "auto").advance(np.ones(33), count)
            return len(ops.launched)

    assert of(4) - of(1) == 6


def test_tensor_cores_are_taken_where_they_are_faster():
    T4, L40, A100 = Device(40, 64 << 10), Device(142, 99 << 10), Device(108, 166912, True)
    sizes = 1665, 4000, 4000
    assert split_tiles(1665, 4000) == 10 * 25 + 13  # for 132 multiprocessors
    assert configure("split_step", *sizes, "float32", H100) == Launch(FILE, "split_step", 132, 256, 158400)
    assert configure("split_step", *sizes, "float32", A100).grid == 108
    assert configure("split_step", *sizes, "float64", H100) is None
    assert all(configure("split_step", *sizes, "float32", device) is None for device in (T4, L40))
    assert configure("split_step", 31, 42_240, 42_240, "float32", H100) is None  # a strip has 80
    assert configure("split_step", 32, 42_240, 42_240, "float32", H100).grid == 132
    assert configure("split_step", 64, 4000, 4000, "float32", H100) is None  # 13 tiles for 132 multiprocessors
    with operators(shared_memory=0):
        for method, own in (("scaling", False), ("log", False), ("auto", True)):
            problem = make("plain", 40, 5, 6, own, NUMBERS)
            form = part("dense").Iteration(*problem, method).form
            assert type(form).__name__ != "SplitForm"


def test_a_kernel_that_does_not_fit_beside_the_others_is_kept_once():
    with operators():
        split_only()
        C = np.zeros((40, 50), NUMBERS)
        pays = part("split_form").SplitForm.pays
        assert pays(C, 40, "auto") and pays(C, 40, "auto", 4 * C.nbytes) and not pays(C, 40, "auto", 4 * C.nbytes - 1)


BROKEN = {
    "no small parts of K": ("product == 1 ? 2 : 0", "0"),
    "a sum that only tensor cores add": ("float part[N][4] = {};", "static thread_local float part[N][4];"),
    "one copy too few that is waited for": ("await_copies<STAGES - 2>();", "await_copies<STAGES - 1>();"),
    "no barrier before the updates": ("__syncthreads();  // all sums of the tile are there", ""),
    "no barrier before the sums": (
        "__syncthreads();  // all have used the last stage, and the sums of the tile before",
        "",
    ),
    "parts of the scalings before": ("write_parts(entry.scaling,", "write_parts(old.scaling,"),
    "rows that have no products": ("if (m >= units) break;", "if (m + 1 >= units) break;"),
    "updates that begin and do not end": ("while (updates.left(pending))", "if (updates.left(pending))"),
}


def broken(old, new, checks=False):
    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new), checks=checks)

    return function


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_found(what):
    old, new = BROKEN[what]
    assert old in loader.source(FILE)

    def run():
        for seed in range(3):
            emulated.shuffle(seed)
            for found, exact in zip(*half_steps(70, 150, 40, seed), strict=True):
                assert abs(found / exact - 1).max() <= LOST + UNIT * (2 + 150 / 32)
            check("SplitForm", "auto", make("plain", 66, 40, 137, False, NUMBERS, seed), NUMBERS)

    with operators(function=broken(old, new)):
        split_only(1)
        with pytest.raises((AssertionError, emulated.EmulationError)) as found:
            run()
    assert "error:" not in str(found.value)  # of the compiler


def test_a_call_ends_with_the_bytes_that_it_had_with_all_digits_in_between():
    """Where no entry is repaired nothing reads the logits of the iterations before."""
    ends = []
    for old in ("log_in_range(scaling) : ", ""):
        with operators(function=broken(old, "log_two(scaling) : ", checks=True) if old else emulated.checked_function):
            split_only(2)
            C, a, b, eps, f, g = make("plain", 40, 33, 60, False, NUMBERS)
            iteration = part("dense").Iteration(C, a, b, eps, f, g, "auto")
            iteration.form.run(iteration.state, np.ones(40, NUMBERS), 3)
            assert int(iteration.form.unread[0]) == 0
            state = iteration.state
            ends.append([array.tobytes() for array in (state.u, state.v, state.p, state.q)])
    assert ends[0] == ends[1]


def test_a_logarithm_of_the_whole_scaling_is_found():
    old = "float(int(bits >> 23) - 127) + __log2f(mantissa)"
    assert old in loader.source(FILE)
    found, exact = stored_logits(broken(old, "__log2f(scaling) + 0 * mantissa", checks=True), last=False)
    assert (abs(found - exact) > most_lost(exact)).any()


def test_a_missing_certificate_is_found():
    old = "sum >= LEAST_OVER_SCALES * least[m - FIRST][n][c] ? sum"
    assert old in loader.source(FILE)
    off, repaired = uncertain(broken(old, "sum > 0 ? sum"))
    assert off > 64 * UNIT and repaired[0] == 0


def test_the_kernels_keep_to_the_rules_of_cuda():
    """In a build that checks every access."""
    with operators(function=emulated.checked_function):
        split_only(2)
        emulated.shuffle(1)
        for sizes in ((66, 100, 33), (170, 70, 200)):
            for found, exact in zip(*half_steps(*sizes), strict=True):
                assert abs(found / exact - 1).max() <= 4 * (LOST + UNIT * (2 + sizes[1] / 32))
