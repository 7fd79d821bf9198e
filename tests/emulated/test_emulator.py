"""The emulator finds what it is there to find: toy kernels, right ones and broken ones."""

import numpy as np
import pytest

import emulated
from emulated import EmulationError, Kernel, cupy_stand_in

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

HEAD = "extern __shared__ __align__(16) unsigned char dynamic_shared[];\n"
REVERSE = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    REAL* kept = reinterpret_cast<REAL*>(dynamic_shared);
    int t = threadIdx.x;
    kept[t] = blockIdx.x == 0 && t < n ? x[t] : REAL(0);
    __syncthreads();
    if (blockIdx.x == 0 && t < n) out[t] = kept[n - 1 - t];
}
"""


@pytest.fixture
def toy(tmp_path):
    """Build a toy kernel and run it on x (n,); return what it wrote."""

    def run(text, n=64, block=64, shared=None, grid=1, dtype=np.float32, seeds=range(1), checks=False):
        path = tmp_path / "toy.cu"
        path.write_text(HEAD + text)
        kernel = Kernel(str(path), "toy", dtype, checks=checks)
        x = np.arange(1, n + 1, dtype=dtype)
        for seed in seeds:
            emulated.shuffle(seed)
            out = np.zeros(n, dtype)
            shared_mem = block * x.itemsize if shared is None else shared
            kernel((grid,), (block,), (out, x, np.int32(n)), shared_mem=shared_mem)
            yield out, x

    return lambda *args, **kwargs: list(run(*args, **kwargs))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_right_kernel_is_right_in_every_order(toy, dtype):
    for out, x in toy(REVERSE, grid=3, dtype=dtype, seeds=range(10)):
        np.testing.assert_array_equal(out, x[::-1])


def test_a_missing_barrier_shows(toy):
    results = toy(REVERSE.replace("__syncthreads();", ""), seeds=range(5))
    assert not any(np.array_equal(out, x[::-1]) for out, x in results)


def test_a_warp_that_overtakes_shows(toy):
    # Only the second barrier keeps a fast warp from writing the next value before a slow one has read this one.
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    __shared__ REAL kept;
    REAL sum = 0;
    for (int round = 0; round < 8; round++) {
        if (int(threadIdx.x) == round) kept = x[round];
        __syncthreads();
        for (int wait = 0; wait < 4; wait++) sum += __shfl_xor_sync(0xffffffffu, REAL(0), 1);
        sum += kept;
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
"""
    assert all((out == 36).all() for out, _ in toy(text, seeds=range(5)))
    broken = text.replace("sum += kept;\n        __syncthreads();", "sum += kept;")
    assert not all((out == 36).all() for out, _ in toy(broken, seeds=range(5)))


def gather(path, texts):
    """Write `texts` of kernels 'toy' into one file, as toy_0, toy_1 and so on: one build for all."""
    parts = [text.replace("void toy", f"void toy_{k}") for k, text in enumerate(texts)]
    path.write_text(
        HEAD + "".join(f"namespace toys_{k} {{\n{text}\n}}\nusing toys_{k}::toy_{k};\n" for k, text in enumerate(parts))
    )


UNDEFINED = [
    ("__syncthreads();", "if (t == 5) return; __syncthreads();", "has left the block while others wait"),
    ("__syncthreads();", "if (t < 32) __syncthreads();", "has left|different lines"),
    ("__syncthreads();", "if (t < 32) {\n__syncthreads();\n} else {\n__syncthreads();\n}", "different lines"),
    ("__syncthreads();", "if (t == 3) __shfl_sync(0xffffffffu, 1, 0); __syncthreads();", "the rest never reaches"),
    ("__syncthreads();", "__shfl_sync(0x0000ffffu, 1, 0); __syncthreads();", "partial mask"),
    (
        "__syncthreads();",
        "if (t & 1)\n__shfl_sync(0xffffffffu, 1, 0);\nelse\n__shfl_sync(0xffffffffu, 1, 0); __syncthreads();",
        "its lanes reach at different lines",
    ),
    (
        "__syncthreads();",
        "if (t & 1) __shfl_sync(~0u, 1, 0); else __shfl_sync(~0u, 1, 0); __syncthreads();",
        "its lanes reach at different lines .line [1-9]",
    ),
    (
        "int t = threadIdx.x;",
        "int t = threadIdx.x; volatile REAL own[1 << 14]; own[t] = n, n = own[t];",
        "own memory",
    ),
    ("out[t] =", "out[t + 1] =", "a read or write outside its array"),
    ("x[t] :", "x[t + 1] :", "a read or write outside its array"),
    ("out[t] =", "out[t - 1] =", "a write before the beginning"),
    ("out[t] =", "out[t - 4096] =", "a read or write outside its array"),
    ("kept[t] =", "kept[t + 1] =", "a write behind the dynamic shared memory"),
    ("int t = threadIdx.x;", "int t = threadIdx.x; n /= t;", "a division by zero"),
]


@pytest.fixture(scope="module")
def undefined(tmp_path_factory):
    path = tmp_path_factory.mktemp("undefined") / "toys.cu"
    gather(path, [REVERSE, *(REVERSE.replace(old, new) for old, new, _ in UNDEFINED)])

    def run(number):
        out, x = np.zeros(64, np.float32), np.arange(1, 65, dtype=np.float32)
        emulated.shuffle(0)
        Kernel(str(path), f"toy_{number}", np.float32)((1,), (64,), (out, x, np.int32(64)), shared_mem=4 * 64)
        return out

    return run


@pytest.mark.parametrize("number", range(len(UNDEFINED)), ids=[f"{old}-{new}" for old, new, _ in UNDEFINED])
def test_what_cuda_leaves_undefined_is_an_error(undefined, number):
    old, _, message = UNDEFINED[number]
    assert old in REVERSE and undefined(0).any()
    with pytest.raises(EmulationError, match=message):
        undefined(1 + number)


@pytest.mark.skipif(len(emulated.compiler() or ()) != 1, reason="clang lets an array at the end of a struct be longer")
def test_an_index_outside_the_last_member_of_a_struct_is_an_error(toy):
    text = """
struct State { REAL sum, slope[4]; };
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    State state = {0, {0, 0, 0, 0}};
    for (int k = 0; k < 4; k++) state.slope[k] = x[threadIdx.x];
    for (int k = 0; k < 4; k++) state.sum += state.slope[k];
    out[threadIdx.x] = state.sum;
}
"""
    toy(text, n=32, block=32)
    with pytest.raises(EmulationError, match="an index outside its array"):
        toy(text.replace("k < 4; k++) state.sum", "k <= 4; k++) state.sum"), n=32, block=32)


def test_an_index_outside_a_static_array_is_an_error(toy):
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    __shared__ REAL kept[32];
    kept[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = kept[threadIdx.x];
}
"""
    toy(text, n=32, block=32)
    with pytest.raises(EmulationError, match="an index outside its array"):
        toy(text)


def test_shared_memory_that_nobody_wrote_is_nan(toy):
    (out, _), *_ = toy(REVERSE.replace("kept[t] =", "if (t != 7) kept[t] ="))
    assert np.isnan(out[56]) and np.isfinite(np.delete(out, 56)).all()


def test_shared_memory_behind_what_was_asked_for_is_nan(toy):
    (out, _), *_ = toy(REVERSE.replace("kept[n - 1 - t]", "kept[n - t]"))
    assert np.isnan(out[0]) and np.isfinite(out[1:]).all()


def test_float_has_no_subnormals_as_on_the_device(toy):
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    out[threadIdx.x] = x[threadIdx.x] * REAL(%s);
}
"""
    (out, _), *_ = toy(text % "1e-39")
    assert (out[:11] == 0).all()
    (out, _), *_ = toy(text % "1e-310", dtype=np.float64)
    assert (out > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out, x, n: (out, x), "takes 3 arguments; got 2"),
        (lambda out, x, n: (out, x.astype(np.float64), n), "argument 1: array of f4 expected, got float64"),
        (lambda out, x, n: (out, x, 64), "argument 2: i4 expected, got int"),
        (lambda out, x, n: (out, x, np.int64(64)), "argument 2: i4 expected, got int64"),
        (lambda out, x, n: (out, x[::2], n), "argument 1: the array is not C-contiguous"),
        (lambda out, x, n: (out, 3.0, n), "argument 1: array of f4 expected, got float"),
    ],
)
def test_arguments_are_checked(tmp_path, change, message):
    path = tmp_path / "toy.cu"
    path.write_text(HEAD + REVERSE)
    kernel = Kernel(str(path), "toy", np.float32)
    args = np.zeros(64, np.float32), np.zeros(64, np.float32), np.int32(64)
    kernel((1,), (64,), args, shared_mem=256)
    with pytest.raises(EmulationError, match=message):
        kernel((1,), (64,), change(*args), shared_mem=256)


def test_launches_that_a_device_refuses(toy):
    for options, message in (
        ({"block": 48}, "multiple of 32"),
        ({"block": 2048}, "launch bound"),
        ({"grid": 0}, "grid"),
        ({"shared": 49 << 10}, "exceed its limit"),
    ):
        with pytest.raises(EmulationError, match=message):
            toy(REVERSE, **options)


def test_a_block_above_the_kernel_s_own_launch_bound_is_refused(toy):
    bounded = REVERSE.replace("void toy", "void __launch_bounds__(2 * 48) toy")
    toy(bounded, block=96)
    with pytest.raises(EmulationError, match="launch bound"):
        toy(bounded, block=128)


def test_more_shared_memory_than_the_device_gives_is_refused(tmp_path):
    """What is static counts too: the default limit and that of the device are for both together."""
    with cupy_stand_in.operators(shared_memory=64 << 10):
        kernel = cupy_stand_in.CapturingKernel(emulated.function("iterate.cu", "iterate_1", np.dtype("f8")), [])
        static = kernel.static_shared_size_bytes
        assert static > 0 and kernel.max_dynamic_shared_size_bytes == (48 << 10) - static
        fused = emulated.function("iterate.cu", "iterate_1", np.dtype("f8"))
        with pytest.raises(EmulationError, match="exceed its limit"):
            fused((1,), (32,), [None] * len(fused.parameters), shared_mem=48 << 10)
        kernel.max_dynamic_shared_size_bytes = 64 << 10
        with pytest.raises(EmulationError, match="a block of this device cannot have"):
            kernel((1,), (32,), (), shared_mem=64 << 10)


def test_an_error_of_the_compiler_names_file_and_line(toy):
    with pytest.raises(EmulationError, match=r"toy\.cu:7:\d+: error"):
        toy(REVERSE.replace("__syncthreads();", "__syncthreads() no"))


# Kernels that give the right numbers here and break the rules of CUDA: a checked build finds them.

STATIC = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    __shared__ REAL kept[64];
    __shared__ int count;
    int t = threadIdx.x;
    if (t == 0) count = n;
    kept[t] = x[t];
    __syncthreads();
    if (blockIdx.x == 0) out[t] = count == n ? kept[63 - t] : REAL(0);
}
"""
WIDE = """
struct alignas(8) Two { REAL at[2]; };
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    REAL* kept = reinterpret_cast<REAL*>(dynamic_shared) + 0;
    int t = threadIdx.x;
    kept[t] = x[t];
    if (t == 0) kept[n] = 0;
    __syncthreads();
    if (t % 2 == 0) {
        Two two = *reinterpret_cast<const Two*>(kept + t);
        out[t] = two.at[0], out[t + 1] = two.at[1];
    }
}
"""
HELPER = """
__device__ REAL total(REAL x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ void wait() { __syncthreads(); }
struct Sum {
    REAL value;
    template <int WARPS> __device__ REAL /* of a lane, (see total) */ add(REAL) const { return total(value); }
    __device__ REAL operator()(bool odd) const {
        return add<2>(odd) + add<1>(odd);
    }
};
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    REAL* kept = reinterpret_cast<REAL*>(dynamic_shared);
    bool odd = threadIdx.x % 2;
    kept[threadIdx.x] = 0;
    REAL most = total(REAL(1));
    if (odd) most += 1;
    wait();
    if (odd) most -= kept[0];
#pragma unroll
    for (int k = 0; k < 4; k++) most += Sum{most}(odd);
    out[threadIdx.x] = most;
}
"""
LARGEST = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    unsigned* most = reinterpret_cast<unsigned*>(out);
    if (blockIdx.x < 2) atomicMax(most, __float_as_uint(x[threadIdx.x]));
    if (blockIdx.x == 2 && threadIdx.x > 0) out[threadIdx.x] = 1;
}
"""
PLANTED = {
    "a largest number that blocks find with no atomic": (
        LARGEST,
        "atomicMax(most, __float_as_uint(x[threadIdx.x]));",
        "if (threadIdx.x == 5 && *most < 7) *most = 7;",
        "two threads write|a read and a write",
    ),
    "an atomic and a plain write of another block": (
        LARGEST,
        "threadIdx.x > 0) out[threadIdx.x] = 1;",
        "true) out[threadIdx.x] = 1;",
        "two threads write|a read and a write",
    ),
    "a largest number that is read while other blocks look for it": (
        LARGEST,
        "if (blockIdx.x == 2 && threadIdx.x > 0)",
        "if (blockIdx.x == 0 && threadIdx.x == 0) out[2] = out[0];\n    if (blockIdx.x == 2 && threadIdx.x > 2)",
        "two threads write|a read and a write",
    ),
    "a warp that overtakes": (REVERSE, "__syncthreads();", "__syncwarp();", "no barrier between|nobody has written"),
    "a barrier too few": (
        REVERSE,
        "out[t] = kept[n - 1 - t];",
        "{ out[t] = kept[n - 1 - t]; kept[t] = 1; }",
        "a read and a write of one place",
    ),
    "lanes that trust a shuffle to order memory": (
        REVERSE,
        "__syncthreads();",
        "__syncthreads(); kept[t ^ 1] = x[t]; __shfl_sync(0xffffffffu, 1, 0);",
        "a read and a write of one place",
    ),
    "blocks that add to one place": (
        REVERSE,
        "if (blockIdx.x == 0 && t < n) out[t] =",
        "if (blockIdx.x < 2) out[t] +=",
        "two threads write|a read and a write",
    ),
    "a read far behind the shared memory": (
        REVERSE,
        "out[t] = kept[n - 1 - t];",
        "out[t] = kept[n - 1 - t] + (kept[n + 5000 - t] > 0 ? 1e-30f : 0);",
        "a read behind the dynamic shared memory",
    ),
    "a write far behind the shared memory": (REVERSE, "kept[t] =", "kept[t + 9000 * (t == 5)] =", "a write behind"),
    "a read of what nobody wrote, which does not show": (
        REVERSE,
        "kept[t] = blockIdx.x",
        "if (t != 63) kept[t] = blockIdx.x",
        "nobody has written",
    ),
    "static memory that nobody wrote": (STATIC, "kept[t] = x", "if (t != 5) kept[t] = x", "nobody has written"),
    "static memory of the block before": (
        STATIC,
        "if (t == 0) count = n;",
        "if (t == 0 && blockIdx.x == gridDim.x) count = n;",
        "nobody has written",
    ),
    "a wide access at a narrow address": (WIDE, "dynamic_shared) + 0", "dynamic_shared) + 1", "at a narrow address"),
    "a shuffle in both branches, in one helper": (
        HELPER,
        "total(REAL(1));",
        "threadIdx.x % 2 ? total(REAL(1)) : total(REAL(2));",
        "different lines",
    ),
    "a barrier in both branches, in one helper": (
        HELPER,
        "    wait();",
        "    if (threadIdx.x < 32) wait(); else { out[0] = 1; wait(); }",
        "different lines|two threads write",
    ),
    "a barrier in both branches": (HELPER, "    wait();", "    if (odd) wait(); else wait();", "different lines"),
    "a shuffle in a helper's helper": (HELPER, "+ add<1>(odd)", "+ (odd ? add<1>(1) : add<1>(1))", "lines"),
    "instances of a template in both branches": (HELPER, "+ add<1>(odd)", "+ (odd ? add<1>(1) : add<2>(1))", "lines"),
    "a helper of helpers in both branches": (HELPER, "}(odd);", "}(odd ? true : Sum{1}(0) > 0);", "lines|never"),
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Run a kernel of a checked build, which has the right ones and all broken ones: one build for all."""
    texts = {"reverse": REVERSE, "static": STATIC, "wide": WIDE, "helper": HELPER, "largest": LARGEST}
    for what, (text, old, new, _) in PLANTED.items():
        assert text.count(old) == 1, what
        texts[what] = text.replace(old, new)
    path = tmp_path_factory.mktemp("checked") / "toys.cu"
    gather(path, texts.values())

    def run(what, grid):
        kernel = Kernel(str(path), f"toy_{list(texts).index(what)}", np.float32, checks=True)
        for seed in range(4):
            emulated.shuffle(seed)
            x, out = np.arange(1, 65, dtype=np.float32), np.zeros(64, np.float32)
            kernel((grid,), (64,), (out, x, np.int32(64)), shared_mem=4 * 66)
            assert np.isfinite(out).all() and out.any()

    return run


@pytest.mark.parametrize("what", ["reverse", "static", "wide", "helper", "largest"])
def test_a_right_kernel_passes_the_checks(checked, what):
    checked(what, 3 if what in ("reverse", "largest") else 1)


@pytest.mark.parametrize("what", PLANTED)
def test_a_checked_build_finds(checked, what):
    text, *_, message = PLANTED[what]
    with pytest.raises(EmulationError, match=message):
        checked(what, 3 if text in (REVERSE, LARGEST) else 1)


def test_exponentials_and_logarithms_have_the_errors_of_the_device_s(toy):
    """A kernel that needs exp2(x) exp2(-x) to be 1, or any digit beyond what the device promises, must fail."""
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    out[threadIdx.x] = exp2f(x[threadIdx.x] / 7) * exp2f(-x[threadIdx.x] / 7) - 1 + 0 * log2f(x[threadIdx.x]);
}
"""
    ((exact, _),) = toy(text)
    ((off, _),) = toy(text, checks=True)
    assert np.abs(exact).max() < 2e-7 and 2e-7 < np.abs(off).max() < 8e-7


def test_the_device_s_own_logarithm_has_an_absolute_error(toy):
    """And units in the last place away from 1."""
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    out[threadIdx.x] = __log2f(ARGUMENT);
}
"""
    whole, near = "x[threadIdx.x] * 0x1p80f", "1 + x[threadIdx.x] / 65"
    for argument, least, most in ((near, 2.0**-24, 2.0**-22), (whole, 1e-5, 2e-5)):
        ((exact, _),) = toy(text.replace("ARGUMENT", argument))
        ((off, _),) = toy(text.replace("ARGUMENT", argument), checks=True)
        assert least < np.abs(off - exact.astype(float)).max() <= most + np.spacing(np.abs(exact).max()) / 2


def test_a_graph_does_not_keep_its_arrays_alive():
    """A captured launch holds addresses: when an array is freed, its memory belongs to another one."""
    with cupy_stand_in.operators():
        kernel = cupy_stand_in.CapturingKernel(emulated.function("plan.cu", "plan", np.dtype("f4")), [])
        out, C, p, q = (cupy_stand_in.empty(size, np.float32) for size in ((1, 2, 3), (2, 3), (1, 2), (1, 3)))
        for array in (C, p, q):
            array[...] = 0
        sizes = map(np.int64, (0, 1, 2, 3))
        with cupy_stand_in.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            kernel((1,), (32,), (out, C, p[:, :], q, np.float32(1), *sizes))
            graph = stream.end_capture()
        graph.launch()
        assert (out == 1).all()
        del p
        with pytest.raises(EmulationError, match="an array that has been freed"):
            graph.launch()


TENSOR = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    unsigned short* halves = reinterpret_cast<unsigned short*>(dynamic_shared);
    int lane = threadIdx.x, row = lane / 4, column = 2 * (lane % 4);
    for (int k = lane; k < 256; k += 32) {
        halves[k] = to_half(x[k % n]);              // (16, 16): rows of the first factor
        halves[256 + k] = to_half(x[k % n] - 3.5f);  // (16, 16): columns of the second, of which 8 are used
    }
    __syncwarp();
    unsigned a[4], b[4];
    load_matrices(a, halves + lane % 16 * 16 + lane / 16 * 8);
    load_matrices(b, halves + 256 + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
    float c[4] = {float(START), 0, 0, 0};
    unsigned first[2] = {b[0], b[1]};
    PRODUCT(c, a, first);
    for (int k = 0; k < 4; k++) out[(row + k / 2 * 8) * 8 + column + k % 2] = c[k];
}
"""


def test_products_of_tensor_cores_are_those_of_their_matrices(toy):
    text = TENSOR.replace("START", "0").replace("PRODUCT", "tensor_core_half")
    ((out, x),) = toy(text, n=128, block=32, shared=1024)
    a, b = (np.resize(x, (16, 16)), np.resize(x - np.float32(3.5), (16, 16)))
    np.testing.assert_array_equal(out.reshape(16, 8), a @ b[:8].T)  # whole and half numbers: nothing is rounded


def test_sums_of_tensor_cores_are_truncated(toy):
    """1 to 16 and 16 numbers from -2.5 on are more than a half-unit above what a float holds of such a sum."""
    text = TENSOR.replace("START", "0x1p28").replace("PRODUCT", "tensor_core_half")
    ((out, x),) = toy(text, n=128, block=32, shared=1024)
    exact = 2.0**28 + np.arange(1, 17) @ (np.arange(1, 17) - 3.5)
    assert np.float32(exact) > exact > out[0] == np.nextafter(np.float32(exact), np.float32(0))


def test_bfloats_are_the_upper_halves_of_floats(toy):
    """The bits of halves are those of other numbers here."""
    text = TENSOR.replace("START", "0").replace("PRODUCT", "tensor_core_bfloat")
    ((out, x),) = toy(text, n=128, block=32, shared=1024)
    a, b = (np.resize(y, (16, 16)).astype(np.float16).view(np.uint16).astype(np.uint32) << 16 for y in (x, x - 3.5))
    exact = a.view(np.float32).astype(float) @ b[:8].view(np.float32).astype(float).T
    np.testing.assert_allclose(out.reshape(16, 8), exact, rtol=1e-6)


def test_halves_are_rounded_as_numpy_rounds_them(toy):
    x = [0.0, 1.0, -2.5, 65504.0, 65519.0, 65520.0, 1e9, 2.0**-24, 2.0**-25, 3e-8, -6.1e-5, 2049.0, 2051.0]
    text = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    const float given[] = {VALUES};
    out[threadIdx.x] = of_half(to_half(given[threadIdx.x % COUNT]));
}
"""
    text = text.replace("VALUES", ", ".join(f"{number}f" for number in x)).replace("COUNT", str(len(x)))
    ((out, _),) = toy(text, n=32, block=32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out[: len(x)], np.float32(np.float16(np.float32(x))))


AHEAD = """
extern "C" __global__ void toy(REAL* out, const REAL* x, int n) {
    REAL* kept = reinterpret_cast<REAL*>(dynamic_shared);
    int t = threadIdx.x;
    for (int k = 0; k < 2; k++) {
        if (t < 32) copy_ahead(kept + 128 * k + 4 * t, x + 128 * k + 4 * t);
        end_copies();
    }
    await_copies<1>();
    __syncthreads();
    out[t] = kept[127 - t];
    await_copies<0>();
    __syncthreads();
    out[128 + t] = kept[128 + 127 - t];
}
"""


def test_copies_arrive_when_they_are_waited_for(toy):
    for checks in (False, True):
        for out, x in toy(AHEAD, n=256, block=128, shared=1024, seeds=range(3), checks=checks):
            np.testing.assert_array_equal(out.reshape(2, -1), x.reshape(2, -1)[:, ::-1])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("await_copies<0>();", "await_copies<1>();"),
        ("await_copies<1>();\n    __syncthreads();", "await_copies<1>();"),
    ],
)
def test_copies_that_are_not_there_yet_show(toy, old, new):
    assert old in AHEAD
    results = toy(AHEAD.replace(old, new), n=256, block=128, shared=1024, seeds=range(5))
    assert not all((out.reshape(2, -1) == x.reshape(2, -1)[:, ::-1]).all() for out, x in results)


def test_a_race_with_a_copy_is_found(toy):
    with pytest.raises(EmulationError, match="no barrier between|nobody has written"):
        toy(
            AHEAD.replace("await_copies<1>();\n    __syncthreads();", "await_copies<1>();"),
            n=256,
            block=128,
            shared=1024,
            checks=True,
        )


def test_copies_that_are_not_aligned_are_errors(toy):
    with pytest.raises(EmulationError, match="aligned"):
        toy(AHEAD.replace("x + 128 * k", "x + 1 + 120 * k"), n=256, block=128, shared=1024)
