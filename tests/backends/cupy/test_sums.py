"""The CUDA side of kernel products, emulated: every kernel, any launch, awkward sizes, the public functions above."""

import contextlib
import functools
import inspect

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in
from emulated.oracle import assert_as_good
from kernels import oracle

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import COORDINATES, GROUP, H100, NEAR, PAIR_STATE, Launch, configure, wide_shared
from cusink.backends.numpy import sums
from cusink.norms import likelihood, norms, products
from cusink.norms.profiles import profile

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
# Blocks from one warp to the launch bound; a grid of one block, of too few, of more than there is work for.
LAUNCHES = ((1, 1), (2, 3), (1, 16), (40, 2), (3, 8))
# B, n, m, d: one pair, one coordinate, sizes around a warp and a block, as many coordinates as fit and one more.
SHAPES = (
    (1, 1, 1, 1),
    (2, 33, 40, 3),
    (1, 5, 70, NEAR),
    (2, 32, 3, NEAR + 1),
    (1, 40, 66, 2 * COORDINATES + 3),
)


@contextlib.contextmanager
def backend(launch=None, function=emulated.function):
    """`cusink.backends.cupy.sums` on the stand-in; `launch` is a grid and a number of warps for every kernel."""
    with cupy_stand_in.operators(function=function):
        if launch:
            cupy_stand_in.force(functools.partial(forced, *launch))
        yield cupy_stand_in.part("sums")


def forced(grid, warps, operator, B, n, m, dtype, device, *, d, less_shared=0):
    if operator.endswith("_products"):  # test_strip_sums.py has those
        return None
    size = np.dtype(dtype).itemsize
    if d <= NEAR:
        return Launch(
            "kernel_product.cu", operator, grid, 32 * warps, 32 * warps * (32 if size == 4 else 48) - less_shared
        )
    shared = size * wide_shared(warps, PAIR_STATE[operator] + COORDINATES * operator.endswith("slopes"))
    return Launch("kernel_product.cu", operator + "_wide", grid, 32 * warps, shared - less_shared)


def make(shape, dtype, seed):
    """x, y, v, p, q, with weights of zero among q; one x_i lies on a y_j."""
    B, n, m, d = shape
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(B, n, d)), rng.normal(size=(B, m, d))
    x[:, -1] = y[:, 0]
    q = rng.normal(size=(B, m)) - 3
    q[rng.random(q.shape) < 0.2] = -np.inf
    return (*(array.astype(dtype) for array in (x, y, rng.normal(size=(B, m)), rng.normal(size=(B, n)), q)),)


def compare(ops, operator, shape, kernel, dtype, seed, plain=False):
    """One operator of `ops` and of the oracle on the same arrays, problem by problem."""
    if operator.startswith("distance"):
        operator, kernel = operator.replace("distance", "kernel"), "distance"
    scale, (x, y, v, p, q) = 0.7, make(shape, dtype, seed)
    chosen = profile(kernel, scale)
    if operator == "kernel_sums":
        actual, by_hand, arguments = (ops.kernel_sums(x, y, v, chosen),), oracle.product, (x, y, v)
    elif operator == "kernel_log_sums":
        q[0] = -np.inf
        actual, by_hand, arguments = (ops.kernel_log_sums(x, y, q, chosen),), oracle.product_log, (x, y, q)
    elif plain:
        actual = ops.kernel_slopes(x, y, v, None, None, chosen)
        by_hand, arguments = oracle.slopes, (x, y, v, np.zeros_like(p), np.zeros_like(q))
    else:
        actual, by_hand, arguments = ops.kernel_slopes(x, y, v, p, q, chosen), oracle.slopes, (x, y, v, p, q)
    for b in range(len(x)):
        exact, naive = (by_hand(*(z[b] for z in arguments), kernel, scale, t) for t in (np.float64, np.float32))
        for got, right, rough in zip(
            actual, *(r if isinstance(r, tuple) else (r,) for r in (exact, naive)), strict=True
        ):
            assert got.dtype == dtype
            # Terms cancel in a sum of either sign, so its rounding is that of their absolute values.
            size = np.abs(right[np.isfinite(right)]).max(initial=0) + np.sqrt(y.shape[1])
            assert_as_good(got[b], right, rough, scale=size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", PAIR_STATE)
def test_every_kernel_is_right_for_any_launch(operator, dtype):
    turn = 0
    for shape in SHAPES:
        for kernel in ("distance",) if operator.startswith("distance") else oracle.LOG_KERNELS:
            turn += 1
            emulated.shuffle(turn)
            with backend(LAUNCHES[turn % len(LAUNCHES)]) as ops:
                compare(ops, operator, shape, kernel, dtype, turn, plain=turn % 2 == 0)


@pytest.mark.parametrize("operator", PAIR_STATE)
def test_configured_launches_and_the_numpy_side_agree_with_the_oracle(operator):
    for shape in SHAPES:
        with backend() as ops:
            compare(ops, operator, shape, "laplace", np.float32, 1)
        for dtype in DTYPES:
            compare(sums, operator, shape, "energy", dtype, 2, plain=True)


@pytest.mark.parametrize("shape", [(2, 20, 30, 2), (1, 20, 30, 20)])
def test_less_shared_memory_than_configured_is_too_little(shape):
    def short(*arguments, **options):
        return forced(3, 2, *arguments, **options, less_shared=64)

    for operator in PAIR_STATE:
        with backend() as ops:
            cupy_stand_in.force(short)
            with pytest.raises(emulated.EmulationError):
                compare(ops, operator, shape, "gaussian", np.float64, 0)


@pytest.mark.parametrize("barrier", range(4))
def test_a_missing_barrier_shows(barrier):
    """Each of near's barriers but one, in turn; the launch has several tiles and several units per block."""
    text = (loader.folder() / "point_pairs.cuh").read_text()
    near = text[: text.index("void walk_wide")]
    places = [at for at in range(len(near)) if near.startswith("__syncthreads();", at)]
    assert len(places) == 4
    at = places[barrier]

    def change(source):
        broken = text[:at] + " " * len("__syncthreads();") + text[at + len("__syncthreads();") :]
        assert text.rstrip() in source
        return source.replace(text.rstrip(), broken.rstrip())

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change if "kernel_product" in file else None)

    wrong = 0
    for seed in range(6):
        emulated.shuffle(seed)
        try:
            with backend((1, 3), function) as ops:
                compare(ops, "kernel_sums", (2, 70, 230, 3), "gaussian", np.float32, seed)
        except (AssertionError, emulated.EmulationError):
            wrong += 1
    assert wrong


def test_public_functions_run_on_the_device_side(monkeypatch):
    rng = np.random.default_rng(0)
    x, y, a, b = rng.normal(size=(6, 2)), rng.normal(size=(9, 2)), rng.random(6), rng.random(9)
    a[2] = b[3] = 0
    calls = {
        "kernel_product": (x, y, b),
        "kernel_product_adjoint": (x, y, b, a),
        "kernel_product_log": (x, y, b),
        "kernel_product_log_adjoint": (x, y, b, a),
        "kernel_scalar_product": (x, a, y, b),
        "kernel_scalar_product_adjoint": (x, a, y, b),
        "kernel_distance": (x, a, y, b),
        "kernel_distance_adjoint": (x, a, y, b),
        "kernel_neg_log_likelihood": (x, a, y, b),
        "kernel_neg_log_likelihood_adjoint": (x, a, y, b),
    }
    expected = {name: getattr(cusink, name)(*arguments) for name, arguments in calls.items()}
    with backend() as ops:
        for module in (products, norms, likelihood):
            monkeypatch.setattr(module, "backend", lambda given: ops)
        for name, arguments in calls.items():
            actual = getattr(cusink, name)(*arguments)
            if not name.endswith("_adjoint"):
                np.testing.assert_allclose(actual, expected[name], rtol=1e-13, err_msg=name)
                continue
            for field, value in vars(expected[name]).items():
                if value is not None:
                    np.testing.assert_allclose(getattr(actual, field), value, rtol=1e-12, atol=1e-13, err_msg=name)


def test_both_sides_have_equal_signatures():
    with backend() as ops:
        for operator in PAIR_STATE:
            name = operator.replace("distance", "kernel")
            ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ops, sums))
            assert list(ours) == list(theirs)


def test_launches_fill_the_device():
    few, many = (configure("kernel_sums", 1, n, 100_000, "float32", H100, d=3) for n in (10_000, 100_000))
    assert (few.block, many.block) == (512, 128)
    assert few.shared == 512 * 32 and many.grid == 3125
    wide = configure("kernel_slopes", 1, 10_000, 10_000, "float32", H100, d=64)
    assert wide == Launch("kernel_product.cu", "kernel_slopes_wide", 313 * 4, 128, 4 * 32 * 4 * (1 + COORDINATES))
    assert wide_shared(1, 1) == COORDINATES * GROUP + 32 * (COORDINATES + 1) + 2 * GROUP
