"""Scalars beside arrays of the stand-in count as in CuPy 14 (NumPy 2), or as in CuPy 13 (NumPy 1)."""

import numpy as np
import pytest

import emulated
from cusink.backends.cupy import loader
from emulated import cupy_stand_in, device_arrays, promotion

C_TYPES = {"float": "f4", "double": "f8", "int": "i4", "long long": "i8", "signed char": "i1", "Half": "f2"}

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

# The dtype of what NumPy 1.26 makes of an array and a scalar, as its documentation of result_type has it.
BY_VALUE = [
    ("f4", np.float64(2), "f4"),
    ("f4", np.float64(0.1), "f4"),
    ("f4", np.float64(1e300), "f8"),
    ("f4", 1e300, "f8"),
    ("f4", np.float64(np.inf), "f4"),
    ("f4", np.int64(3), "f4"),
    ("f4", 2.0, "f4"),
    ("f8", np.float32(2), "f8"),
    ("i8", np.float32(2), "f8"),
    ("i4", np.int64(3), "i4"),
    ("i1", np.int64(3), "i1"),
    ("i1", np.int64(300), "i2"),
    ("u1", np.int64(-1), "i2"),
    ("i4", np.float64(2), "f8"),
]


@pytest.mark.parametrize(("dtype", "scalar", "wanted"), BY_VALUE)
def test_scalars_count_by_their_value_in_cupy_13(dtype, scalar, wanted):
    with device_arrays.device(by_value=True) as (cupy, _), np.errstate(all="ignore"):
        x = cupy.asarray(np.ones(3, dtype))
        made = [x + scalar, scalar + x, cupy.add(x, scalar), cupy.where(x > 0, x, scalar), cupy.maximum(x, scalar)]
        assert [found.dtype for found in made] == [np.dtype(wanted)] * 5
        assert made[3].get().tolist() == [1] * 3 and made[1].get().dtype == np.dtype(wanted)


def test_numpy_s_scalars_have_their_dtype_in_cupy_14():
    with device_arrays.device() as (cupy, _):
        x = cupy.asarray(np.ones(3, "f"))
        assert (x * np.float64(2)).dtype == np.float64 and (x * 2.0).dtype == np.float32
        assert x.clip(np.float64(0), None).dtype == np.float64
    assert not promotion.Promotion.by_value


def test_no_digit_of_a_scalar_is_lost():
    with device_arrays.device(by_value=True) as (cupy, _):
        x = cupy.asarray(np.ones(3, "f"))
        assert (x * np.float64(0.1)).get().tolist() == [float(np.float32(0.1))] * 3
        assert x.clip(np.float64(0), None).dtype == np.float32
        assert (x * cupy.asarray(2.0)).dtype == np.float64  # arrays of no dimension are arrays
        assert cupy.ldexp(x, 3).get().tolist() == [8.0] * 3


# For scaled_kernel (REAL* K, const REAL* C, const REAL* minimum, double cost_scale, long long count).
@pytest.mark.parametrize("by_value", [False, True])
def test_a_kernel_is_not_launched_on_another_dtype(by_value):
    """What is float64 in CuPy 14 and float32 in CuPy 13: a kernel would read the bytes of floats as doubles."""
    with device_arrays.device(by_value=by_value) as (cupy, launched):
        run = cupy_stand_in.part("run")
        launch = run.choose_launch("scaled_kernel", 1, 2, 2, np.dtype("d"))
        C = cupy.asarray(np.ones((2, 2), "f")) * np.float64(2)
        minimum, scale, count = cupy.zeros(1), np.float64(1), np.int64(4)
        given = [cupy.empty((2, 2)), C, minimum, scale, count]
        if by_value:
            with pytest.raises(TypeError, match=r"argument 1: REAL\* as float64 expected, got float32"):
                run.run(launch, np.dtype("d"), *given)
            given[1] = C.astype(float)
        run.run(launch, np.dtype("d"), *given)
        wrong = {0: np.int64(8), 2: cupy.zeros(1, "f"), 3: np.float32(1), 4: 4, 1: cupy.zeros((2, 2), int)}
        for place, argument in wrong.items():
            run._checked.clear()
            with pytest.raises((TypeError, AttributeError)):
                run.run(launch, np.dtype("d"), *given[:place], argument, *given[place + 1 :])
        with pytest.raises(TypeError, match="takes 5 arguments; got 4"):
            run.run(launch, np.dtype("d"), *given[:4])
        assert launched == ["scaled_kernel"]


def test_a_launch_is_checked_once(monkeypatch):
    with device_arrays.device() as (cupy, _):
        run, checks = cupy_stand_in.part("run"), []
        check = run._check
        monkeypatch.setattr(run, "_check", lambda *given: (checks.append(given[0].kernel), check(*given)))
        for _ in range(3):
            launch = run.choose_launch("scaled_kernel", 1, 2, 2, np.dtype("d"))
            arrays = [cupy.zeros((2, 2)) for _ in range(3)]
            run.run(launch, np.dtype("d"), *arrays, np.float64(1), np.int64(4))
        assert checks == ["scaled_kernel"]


def test_the_types_of_all_parameters_are_read_as_the_compiler_reads_them():
    for file in loader.kernel_files():
        for name in loader.names(file):
            for dtype in (np.dtype("f"), np.dtype("d")):
                types = loader.parameters(file, name)
                kinds = {"REAL": dtype.str[1:], **C_TYPES}
                found = [("p" if kind[-1] == "*" else "") + kinds[kind.rstrip("*")] for kind in types]
                compiled = emulated.function(file, name, dtype).parameters
                assert found == [kind.replace("r", "p").replace("w", "p") for kind in compiled], (file, name)
