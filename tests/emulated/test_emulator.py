"""The emulator finds what it is there to find: toy kernels, right ones and broken ones."""

import numpy as np
import pytest

import emulated
from emulated import EmulationError, Kernel

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

    def run(text, n=64, block=64, shared=None, grid=1, dtype=np.float32, seeds=range(1)):
        path = tmp_path / "toy.cu"
        path.write_text(HEAD + text)
        kernel = Kernel(str(path), "toy", dtype)
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
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
        ("out[t] =", "out[t + 1] =", "a read or write outside its array"),
        ("x[t] :", "x[t + 1] :", "a read or write outside its array"),
        ("out[t] =", "out[t - 1] =", "a write before the beginning"),
        ("out[t] =", "out[t - 4096] =", "a read or write outside its array"),
        ("kept[t] =", "kept[t + 1] =", "a write behind the dynamic shared memory"),
        ("int t = threadIdx.x;", "int t = threadIdx.x; n /= t;", "a division by zero"),
    ],
)
def test_what_cuda_leaves_undefined_is_an_error(toy, old, new, message):
    assert old in REVERSE
    with pytest.raises(EmulationError, match=message):
        toy(REVERSE.replace(old, new))


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
        ({"block": 1024}, "launch bound"),
        ({"grid": 0}, "grid"),
        ({"shared": 49 << 10}, "exceed its limit"),
    ):
        with pytest.raises(EmulationError, match=message):
            toy(REVERSE, **options)


def test_an_error_of_the_compiler_names_file_and_line(toy):
    with pytest.raises(EmulationError, match=r"toy\.cu:7:\d+: error"):
        toy(REVERSE.replace("__syncthreads();", "__syncthreads() no"))
