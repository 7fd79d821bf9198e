"""Sums of kernels on tensor cores: the digits of the sums in float, for any launch and hard clouds; planted faults."""

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays
from emulated.oracle import assert_as_good
from kernels import oracle

import cusink
from cusink.backends.cupy import launch as launches
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import H100, PAIR_STATE, Device, configure
from cusink.norms.profiles import profile

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

SUMS = tuple(name for name in PAIR_STATE if name.endswith("sums"))
MEMORY = H100.shared_memory
# B, n, m, d: more than one strip and tile, as many as there are, one or several blocks of coordinates, one pair.
SHAPES = ((2, 90, 330, 17), (1, 80, 320, 64), (2, 5, 3, 40), (1, 170, 650, 33), (1, 1, 1, 16))
CLOUDS = ("plain", "towns", "far", "clusters", "duplicates", "outlier", "enormous")


def always(grid):
    """Return a `configure` that takes tensor cores for any sizes, with so many blocks."""

    def choose(operator, B, n, m, dtype, device, *, d=1, **options):
        if operator.removesuffix("_products") not in SUMS or operator in SUMS:
            return configure(operator, B, n, m, dtype, device, d=d, **options)
        large = configure(operator, B, 1 << 20, 1 << 20, dtype, device, d=d)
        return large and large._replace(grid=grid)

    return choose


def never(operator, *sizes, **options):
    return None if operator.endswith("sums_products") else configure(operator, *sizes, **options)


def make(kind, B, n, m, d, seed=0):
    """x, y, v and q in float32; some of the points coincide, some have no weight."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(B, n, d)), rng.normal(size=(B, m, d))
    v, q = rng.random((B, m)) + 0.1, rng.normal(size=(B, m)) - 3
    v[:, 1::7], q[:, 1::7] = 0, -np.inf
    if kind == "towns":
        x[:, ::2, 0] += 100
        y[:, m // 2 :, 0] += 100
    elif kind == "far":
        x, y = x + 500, y + 500
    elif kind == "clusters":
        middles = 3 * rng.normal(size=(4, d))
        x, y = (0.3 * z + middles[rng.integers(4, size=z.shape[1])] for z in (x, y))
    elif kind == "duplicates":
        x, y = x[:, np.arange(n) % 3], y[:, np.arange(m) % 5]
    elif kind == "outlier":  # without weight, among y
        x[:, -1], y[:, 1] = 1e6, 1e15
    elif kind == "enormous":  # squares beyond the range, and a point that is so far from the centre too
        x[:, -1], y[:, m // 2 :] = 3e38, -3e38
    y[:, 0] = x[:, 0]
    return tuple(array.astype(np.float32) for array in (x, y, v, q))


def scale_of(kernel, kind, d):
    """Return a scale at which sums have many terms; Gaussians are steeper among clusters."""
    return {"gaussian": (0.5 if kind == "clusters" else 1) * d**0.5, "exponential": d**0.5, "distance": d**0.5}.get(
        kernel, 1.0
    )


def kernels_of(operator, kind="plain"):
    kernels = ("distance",) if operator == "distance_sums" else oracle.LOG_KERNELS
    return tuple(k for k in kernels if kind != "enormous" or k != "energy")  # which such distances do not make 0


def sums(operator, kernel, scale, x, y, v, q):
    """Return the sums of one operator of the backend that is loaded, and by the oracle in both precisions."""
    ops, chosen, name = cupy_stand_in.part("sums"), profile(kernel, scale), operator.replace("distance", "kernel")
    numbers, by_hand = (q, oracle.product_log) if "log" in operator else (v, oracle.product)
    with np.errstate(all="ignore"):
        found = getattr(ops, name)(x, y, numbers, chosen)
        exact, naive = (
            np.stack([by_hand(*each, kernel, scale, dtype) for each in zip(x, y, numbers, strict=True)])
            for dtype in (np.float64, np.float32)
        )
    return found, exact, naive


def check(operator, kernel, kind, shape, seed=0):
    """As good as sums of differences in float: row by row, as one may be far smaller than another."""
    found, exact, naive = sums(operator, kernel, scale_of(kernel, kind, shape[-1]), *make(kind, *shape, seed))
    assert found.dtype == np.float32
    if "log" in operator:
        # In float a logarithm of a kernel has the digits of the largest of them.
        assert_as_good(found, exact, naive)
        return
    size = np.abs(exact) + np.finfo(np.float32).tiny
    assert_as_good((found / size).astype("f"), exact / size, (naive / size).astype("f"), exponent=8)


@pytest.fixture
def products():
    """Give the backend with sums on tensor cores, whatever their sizes; `launched` says what has run."""
    with cupy_stand_in.operators(shared_memory=MEMORY) as ops:
        cupy_stand_in.force(always(3))
        yield ops


@pytest.mark.parametrize("operator", SUMS)
def test_every_kernel_is_right_for_any_launch(operator, products):
    for turn, shape in enumerate(SHAPES):
        emulated.shuffle(turn)
        cupy_stand_in.force(always((3, 1, 2)[turn % 3]))
        for kernel in kernels_of(operator):
            check(operator, kernel, "plain", shape, turn)
    assert set(products.launched) == {"split_points", f"{operator}_products"}


@pytest.mark.parametrize("kind", CLOUDS[1:])
def test_sums_of_hard_clouds_have_the_digits_of_differences(kind, products):
    operators = SUMS[:1] if kind == "enormous" else SUMS
    for operator in operators:
        for kernel in kernels_of(operator, kind):
            check(operator, kernel, kind, (1, 90, 330, 40))
    assert set(products.launched) == {"split_points", *(f"{operator}_products" for operator in operators)}


def at_itself(grid):
    """Hold a sum whose only weight is at the point itself to k(0), to the last bit as in float."""
    rng = np.random.default_rng(1)
    y = (100 + rng.normal(size=(1, 40, 48))).astype("f")
    x, v, q = y[:, 20:24], np.zeros((1, 40), np.float32), np.full((1, 40), -np.inf, np.float32)
    v[:, 20], q[:, 20] = 1, 0
    for operator in SUMS:
        for kernel in kernels_of(operator):
            for scale in (1e-2, 1.0, 100.0):  # that of a wide kernel is far beyond the lengths
                found = []
                for choose in (always(grid), never):
                    cupy_stand_in.force(choose)
                    found.append(sums(operator, kernel, scale, x, y, v, q)[0])
                assert found[0][0, 0] == found[1][0, 0], (operator, kernel, scale)


def test_points_that_coincide_have_a_distance_of_exactly_zero(products):
    at_itself(1)
    assert {"kernel_sums_wide", "kernel_sums_products"} <= set(products.launched)


def test_a_point_without_weight_changes_no_bit(products):
    x, y, v, q = make("plain", 2, 30, 70, 20)
    nowhere = y.copy()
    nowhere[:, 1] = 3e38
    for operator in SUMS[:2]:
        for kernel in kernels_of(operator):
            one, other = (sums(operator, kernel, 3.0, x, points, v, q)[0] for points in (y, nowhere))
            assert np.isfinite(one).all() and (one == other).all()


def test_sums_go_where_they_are_faster():
    """By the work, the memory of the parts, and the device."""
    large, small = configure("kernel_sums_products", 1, 10_000, 10_000, "float32", H100, d=32), (4000, 4000)
    assert large == launches.Launch("strip_sums.cu", "kernel_sums_products", 125, 256, 161_280)
    for operator in SUMS:
        for n, m, d, dtype, device in (
            (*small, 64, "float32", H100),
            (10_000, 10_000, 15, "float32", H100),
            (10_000, 10_000, 64, "float64", H100),
            (10_000, 10_000, 64, "float32", H100._replace(fast_halves=False)),
            (10_000, 10_000, 64, "float32", Device(108, 99 << 10, True)),
        ):
            assert configure(f"{operator}_products", 1, n, m, dtype, device, d=d) is None
    x, y, v, _ = make("plain", 500, 3, 4, 96)
    with cupy_stand_in.operators(shared_memory=MEMORY) as ops:
        cupy_stand_in.force(always(2))
        cupy_stand_in.part("sums").kernel_sums(x, y, v, profile("laplace", 1.0))
        assert ops.launched == ["kernel_sums_wide"]  # 2 x 320 rows for each problem would be far more than its points


def test_public_functions_take_tensor_cores_and_their_gradients_by_weights(monkeypatch):
    monkeypatch.setattr(launches, "SUMS_FROM", 1)
    launches.configure.cache_clear()
    x, y, v, q = make("plain", 2, 30, 40, 24)
    a = np.random.default_rng(2).random((2, 30)).astype("f")
    calls = {
        "kernel_product": (x, y, v),
        "kernel_product_log": (x, y, q),
        "kernel_product_adjoint": (x, y, v, a),
        "kernel_scalar_product": (x, a, y, v),
        "kernel_neg_log_likelihood": (x, a, y, v),
    }
    try:
        with device_arrays.device(MEMORY) as (cupy, launched):
            for name, arguments in calls.items():
                given = [cupy.asarray(part) if isinstance(part, np.ndarray) else part for part in arguments]
                options = {"wrt": ("b",)} if name.endswith("adjoint") else {}
                found, expected = (
                    getattr(cusink, name)(*each, kernel="exponential", scale=4.0, **options)
                    for each in (given, arguments)
                )
                if name.endswith("adjoint"):
                    found, expected = found.b, expected.b
                np.testing.assert_allclose(cupy.asnumpy(found), expected, rtol=1e-5, err_msg=name)
            assert set(launched) == {"split_points", "kernel_sums_products", "kernel_log_sums_products"}
    finally:
        launches.configure.cache_clear()


def check_all():
    at_itself(3)
    for kind in ("enormous", "plain", "towns", "duplicates"):
        cupy_stand_in.force(always(3))
        for operator in SUMS[:1] if kind == "enormous" else SUMS:
            for kernel in kernels_of(operator, kind):
                check(operator, kernel, kind, (2, 90, 330, 17))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("larger(multiply_add(REAL(0.125), both, -room), REAL(3.8147e-6) * both)", "REAL(0)"),
        ("multiply_add(REAL(0.125), both, -room)", "REAL(0)"),
        (", REAL(3.8147e-6) * both)", ", -both)"),
        ("larger(multiply_add(REAL(0.125), both, -room)", "larger(multiply_add(REAL(0.125), both, -100 * room)"),
        ("!(cost[c] >= near.below(", "(cost[c] < near.below("),
        ("{x, x_lengths, x_parts, x_scales, n * d, n}", "{x, x_lengths, x_parts, x_scales, 0, n}"),
        ("{y, y_lengths, y_parts, y_scales, m * d, m}", "{x, y_lengths, y_parts, y_scales, m * d, m}"),
        ("return k < size ? k : size - 1;", "return k;"),
        ("return v[b * m + j];", "return v[j];"),
        ("return logits[b * m + j] * LOG2_E;", "return logits[b * m + j];"),
        ("out[b * n + i] = LN_2 * state.value();", "out[b * n + i] = state.value();"),
        ("out[b * n + i] = rate * state.sum;", "out[b * n + i] = state.sum;"),
        (
            "__device__ static Summed nothing() {\n        return 0;",
            "__device__ static Summed nothing() {\n        return 1;",
        ),
        ("-infinity();\n    }\n    __device__ Summed read", "0;\n    }\n    __device__ Summed read"),
        ("exponent[k] += logit[k];", ""),
        (
            "base[g] = q[g] + shift, exponent[g] = rate * log_two(base[g])",
            "base[g] = 1, exponent[g] = rate * log_two(q[g])",
        ),
    ],
)
def test_planted_faults_are_found(old, new):
    assert old in loader.source("strip_sums.cu")

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new))

    with cupy_stand_in.operators(shared_memory=MEMORY, function=function):
        with pytest.raises((AssertionError, emulated.EmulationError)):
            check_all()
