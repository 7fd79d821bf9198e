"""Every reduction kernel, emulated: dtypes, blocks, grids, thread orders, adversarial inputs, a float64 oracle.

The kernels run behind the functions of the backend; only the launch (which kernel, blocks, threads) is forced here.
"""

import emulated
import numpy as np
import pytest
from emulated import oracle
from emulated.cupy_stand_in import force, operators, part
from emulated.oracle import assert_as_good

from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import FILE, STATE, SUMMED, TILE, TILE_PROBLEMS, Launch

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
# Blocks from one warp to the launch bound; a grid of one block, of too few, of more than there is work for.
LAUNCHES = ((1, 1), (1, 4), (3, 2), (7, 5), (20, 16))
SHAPES = ((1, 1, 1), (3, 5, 31), (2, 33, 64), (9, 40, 70), (17, 7, 33), (1, 150, 3), (5, 2, 300), (18, 6, 35))
INPUTS = ("plain", "zero weights", "forbidden", "huge")


def make(inputs, B, n, m, own, dtype, rng):
    """``(C, p, q, eps)`` of `dtype`."""
    C = rng.random((B, n, m) if own else (n, m))
    p, q = (rng.normal(size=(B, size)) - np.log(size) for size in (n, m))
    eps = 0.1
    if inputs == "zero weights":
        for x in (p, q):
            x[rng.random(x.shape) < 0.3] = -np.inf
            x[0] = -np.inf
    elif inputs == "forbidden":
        C[rng.random(C.shape) < 0.3] = np.inf
        C[..., n // 2, :] = np.inf
        C[..., m // 2] = np.inf
        q[:, 0] = -np.inf
    elif inputs == "huge":
        eps = 1e-6
        p, q = p * 1e4, q * 1e4
    return C.astype(dtype), p.astype(dtype), q.astype(dtype), eps


def forced(variant, grid, warps, less_shared=0):
    """Return a `configure` that launches `variant` of any kernel with the given grid and block."""

    def configure(operator, B, n, m, dtype, device, *, axis=1, shared_cost=True, half=False):
        size, threads = np.dtype(dtype).itemsize, 32 * warps
        name, shared = operator + ("_rows" if axis else "_columns") + variant, 0
        if operator == "plan":
            name = operator
        elif variant.startswith("_tiled"):
            shared = size * (TILE * (TILE + 1) + warps * TILE_PROBLEMS * TILE * SUMMED[operator])
        elif not axis:
            shared = threads * STATE[operator] * size
        return Launch(FILE[operator], name, grid, threads, shared - less_shared)

    return configure


def compare(operator, C, p, q, eps, axis, rng):
    """Run one operator of the emulated backend and the oracle on the same arrays."""
    ops = part("reductions")
    kept, summed = (p, q) if axis else (q, p)
    dtype = p.dtype.type
    if operator == "softmin":
        args = (C, summed, eps, axis)
    elif operator == "apply_plan":
        args = (C, p, q, rng.normal(size=summed.shape).astype(dtype), eps, axis)
    elif operator == "c_transform":
        args = (C, summed, axis)
    else:
        args = (C, p, q, eps)
    function = getattr(oracle, operator)
    with np.errstate(all="ignore"):
        exact, naive = function(*args), function(*args, dtype=np.float32)
        actual = getattr(ops, operator)(*args)
    parts = (C / eps, p, q) if "plan" in operator or operator == "transport_cost" else ()
    return actual, exact, naive, sum(np.abs(x[np.isfinite(x)]).max(initial=0) for x in parts)


def tame(C, p, q, eps):
    """Lower p until no entry of the plan exceeds about 1, as in use; huge logits would make them infinite."""
    with np.errstate(invalid="ignore"):
        top = -oracle.softmin(C, q, eps, 1) / eps
        return np.where(np.isfinite(top), p - np.abs(p) - top, p).astype(p.dtype)


def cases(operator, variant, axis, dtype, shapes=SHAPES, inputs=INPUTS, launches=LAUNCHES):
    """Run an operator on all inputs and shapes, with launches and thread orders in turn; raise at a wrong answer."""
    rng = np.random.default_rng(7)
    turn = 0
    for kind in inputs:
        for shape in shapes:
            for own in (False,) if variant == "_tiled" else (False, True):
                C, p, q, eps = make(kind, *shape, own, dtype, rng)
                if operator not in ("softmin", "c_transform"):
                    p = tame(C, p, q, eps)
                grid, warps = launches[turn % len(launches)]
                turn += 1
                emulated.shuffle(turn)
                force(forced(variant, grid, warps))
                try:
                    assert_as_good(*compare(operator, C, p, q, eps, axis, rng))
                except AssertionError as error:
                    raise AssertionError(f"{kind}, {shape}, own={own}, grid {grid}, {warps} warps: {error}") from None


HALF = ("_half", "_tiled_half")
CASES = [
    *(
        (operator, variant, axis)
        for operator in ("softmin", "apply_plan", "c_transform")
        for variant in ("", "_tiled")
        for axis in (0, 1)
    ),
    *(("transport_cost", variant, 1) for variant in ("", "_tiled")),
    ("plan", "", 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("operator", "variant", "axis"), CASES)
def test_reduction(operator, variant, axis, dtype):
    with operators():
        cases(operator, variant, axis, dtype)


def test_every_reduction_kernel_is_run_here():
    run = {
        forced(variant, 1, 1)(operator, 1, 1, 1, np.float32, None, axis=axis)[:2] for operator, variant, axis in CASES
    }
    run |= {("softmin.cu", f"softmin_{side}{variant}") for side in ("rows", "columns") for variant in HALF}
    run.add(("plan.cu", "plan_sum"))  # in test_operators.py: any launch, both dtypes, broken on purpose
    files = ("apply_plan.cu", "c_transform.cu", "plan.cu", "softmin.cu")
    assert run == {(file, name) for file in files for name in loader.names(file)}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("variant", "B", "own"), [("_half", 3, True), ("_half", 2, False), ("_tiled_half", 19, False)])
def test_softmin_of_a_cost_in_half_precision(variant, B, own, axis):
    rng = np.random.default_rng(3)
    with operators():
        C, p, q, eps = make("forbidden", B, 37, 45, own, np.float16, rng)
        # Subnormals, the largest number, both zeros and a negative cost.
        C.flat[:6] = 6e-8, 3e-5, 65504, 0.0, -0.0, -2.5
        force(forced(variant, 3, 2))
        p, q = p.astype(np.float32), q.astype(np.float32)
        actual, exact, _, _ = compare("softmin", C, p, q, eps, axis, rng)
        naive = oracle.softmin(C.astype(np.float32), q if axis else p, eps, axis, dtype=np.float32)
        assert_as_good(actual, exact, naive)


def test_softmin_knows_where_a_cost_lies_after_problems_were_dropped():
    rng = np.random.default_rng(4)
    with operators():
        C, _, q, eps = make("plain", 6, 5, 40, True, np.float64, rng)
        reductions = part("reductions")
        chosen = np.array([4, 1, 1, 5])
        for axis, logits in ((1, q[:4]), (0, q[:4, :5].copy())):
            scales = (1 / (eps * np.log(2)), 1 / np.log(2), -eps * np.log(2))
            actual = reductions.log_sums(C, logits, scales, axis, chosen)
            np.testing.assert_allclose(actual, oracle.softmin(C[chosen], logits, eps, axis), rtol=1e-13)


def far_cost():
    """Costs of more than 2^31 entries, of which only the last matrix has pages in memory, and logits for it."""
    C = np.zeros((33_000, 8, 8192), np.float16)
    rng = np.random.default_rng(5)
    C[-1] = rng.random(C.shape[1:])
    return C, rng.normal(size=(1, 8)).astype(np.float32), rng.normal(size=(1, 8192)).astype(np.float32)


def softmin_of_the_last(axis):
    C, p, q = far_cost()
    logits = q if axis else p
    reductions = part("reductions")
    actual = reductions.log_sums(C, logits, (1.0, 1.0, 1.0), axis, np.array([len(C) - 1]))
    exact = oracle.softmin(C[-1], logits * np.log(2), 1 / np.log(2), axis) * -1
    np.testing.assert_allclose(actual, exact, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_have_64_bits(axis):
    with operators():
        softmin_of_the_last(axis)

    def function(file, name, dtype):
        old, new = (
            "(cost_index ? cost_index[b] : b) * cost_stride",
            "int((cost_index ? cost_index[b] : b) * cost_stride)",
        )
        assert old in loader.source(file)
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new))

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        softmin_of_the_last(axis)


SYNC = "__syncthreads();"
BROKEN = {
    "no barrier before a block's parts are read": (
        "softmin",
        "",
        1,
        f"parts[warp] = state;\n    {SYNC}",
        "parts[warp] = state;",
    ),
    "no barrier before a block's parts are reused": (
        "softmin",
        "",
        1,
        f"    {SYNC}  // the next call",
        "    // the next call",
    ),
    "no barrier before the columns are merged": (
        "softmin",
        "",
        0,
        f"parts[threadIdx.x] = state;\n        {SYNC}",
        "parts[threadIdx.x] = state;",
    ),
    "no barrier before the next columns": ("softmin", "", 0, f"{SYNC}  // the next tile", "// the next tile"),
    "no barrier before a piece is overwritten": (
        "softmin",
        "_tiled",
        1,
        f"{SYNC}  // the last piece",
        "// the last piece",
    ),
    "no barrier after a piece is read": (
        "softmin",
        "_tiled",
        0,
        f"            {SYNC}\n            for (int s = 0",
        "            for (int s = 0",
    ),
    "a cost read behind its row": ("softmin", "", 1, "j < m ? to_real", "j <= m ? to_real"),
    "a logit read behind its row": ("softmin", "", 0, "i < n ? term.read", "i <= n ? term.read"),
    "a piece read without a guard": ("softmin", "_tiled", 1, "i0 + r < n && j < m ?", "i0 + r < n ?"),
    "a row written that does not exist": (
        "apply_plan",
        "_tiled",
        1,
        "if (b + r < B && k < kept) term",
        "if (b + r < B) term",
    ),
    "a problem written that does not exist": (
        "c_transform",
        "_tiled",
        0,
        "if (b + r < B && k < kept) term",
        "if (k < kept) term",
    ),
    "a sum that starts at -inf": (
        "softmin",
        "",
        1,
        "return {Limits<REAL>::lowest, REAL(0)}",
        "return {-infinity(), REAL(0)}",
    ),
    "a merge that forgets one side's scale": (
        "softmin",
        "",
        0,
        "other.sum * power_of_two(other.shift - highest)",
        "other.sum",
    ),
    "0 * inf in a cost": ("transport_cost", "", 1, "cost[k] == infinity() ? REAL(0) : mass", "mass"),
    "a forbidden pair in a minimum": (
        "c_transform",
        "",
        1,
        "REAL slack = cost[k] == infinity() ? cost[k] : cost[k]",
        "REAL slack = cost[k] == infinity() ? -cost[k] : cost[k]",
    ),
    "a thread that leaves before a barrier": (
        "softmin",
        "_tiled",
        1,
        "    for (long long tile = blockIdx.x",
        "    if (threadIdx.x == 40) return;\n    for (long long tile = blockIdx.x",
    ),
    "a barrier for one warp only": (
        "softmin",
        "",
        0,
        "if (warp == 0 && inside) {",
        f"if (warp == 0 && inside) {{\n            {SYNC}",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_caught(what):
    operator, variant, axis, old, new = BROKEN[what]
    text = loader.source(FILE[operator])
    assert old in text

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new))

    shapes = ((9, 40, 70), (17, 7, 33), (5, 2, 300))
    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        # Few blocks of several warps: work follows on work in the same shared memory.
        cases(operator, variant, axis, np.float64, shapes, launches=((1, 2), (2, 5), (1, 4)))


def test_too_little_shared_memory_is_caught():
    with operators():
        C, p, q, eps = make("plain", 9, 40, 70, False, np.float64, np.random.default_rng(0))
        for operator, variant, axis in (("softmin", "_tiled", 1), ("softmin", "", 0)):
            force(forced(variant, 2, 4, less_shared=8))
            with pytest.raises(emulated.EmulationError, match="behind the dynamic shared memory"):
                compare(operator, C, p, q, eps, axis, np.random.default_rng(1))


def test_two_processes_may_build_the_same_kernel_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(emulated, "CACHE", tmp_path)
    names = tuple(loader.names("c_transform.cu"))
    compile_alone = emulated._compile

    def build():
        return emulated.build.__wrapped__(loader.source("c_transform.cu"), names, "float32")

    def compile_while_another_builds(*arguments):
        monkeypatch.setattr(emulated, "_compile", compile_alone)
        build()
        compile_alone(*arguments)

    emulated.precompiled.__wrapped__(emulated.HERE / "cuda_emulation.h", "float", emulated.options())
    monkeypatch.setattr(emulated, "_compile", compile_while_another_builds)
    assert all(hasattr(build(), f"signature_{name}") for name in names)
    assert len(list(tmp_path.iterdir())) == 2  # the library and the header's folder: nothing half-made is left
