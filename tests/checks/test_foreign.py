"""Arrays of other libraries: what goes in comes out as what it was, with the values of NumPy."""

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import zarr

import cusink
from cusink.checks import foreign
from cusink.checks.foreign import any_array, taken

RNG = np.random.default_rng(0)
A, B = RNG.dirichlet(np.ones(5), 3).astype("f4"), RNG.dirichlet(np.ones(5), 40).astype("f4")
C = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0))).astype("f4")
OPTIONS = {"eps": 0.3, "value": "reg_cost"}


class Table:
    """An object with `__array__`, as data frames and labelled arrays have it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Capsule:
    """An object with nothing but DLPack."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


LIBRARIES = {
    "torch": (torch.from_numpy, torch.Tensor),
    "jax": (jnp.asarray, jax.Array),
    "dask": (lambda x: da.from_array(x, chunks=2), np.ndarray),
    "zarr": (lambda x: zarr.array(x), np.ndarray),
    "__array__": (Table, np.ndarray),
    "DLPack": (Capsule, np.ndarray),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_results_are_those_of_numpy_in_the_library_of_the_input(library):
    make, kind = LIBRARIES[library]
    want = cusink.distance_matrix(A, B, C, **OPTIONS)
    found = cusink.distance_matrix(make(A), make(B), make(C), **OPTIONS)
    assert isinstance(found, kind) and np.asarray(found).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(found), want)
    distances, indices = cusink.nearest(make(A), B=make(B), C=C, k=2, **OPTIONS)
    assert isinstance(distances, kind) and isinstance(indices, kind)
    near = cusink.nearest(A, B, C, k=2, **OPTIONS)
    np.testing.assert_array_equal(np.asarray(indices), near[1])
    np.testing.assert_array_equal(np.asarray(distances), near[0])
    index = cusink.Index(make(B[:20]), make(C), **OPTIONS)
    index.add(make(B[20:]))
    result = index.search(make(A), 2, full_output=True)
    assert isinstance(result, cusink.Neighbours) and isinstance(result.proved, kind)
    np.testing.assert_array_equal(np.asarray(result.indices), near[1])
    assert isinstance(index.search(A, 2)[0], np.ndarray)  # the queries decide, not the items


def test_the_default_tolerance_is_that_of_the_dtype():
    found = cusink.nearest(
        torch.from_numpy(A), torch.from_numpy(B), torch.from_numpy(C), k=2, full_output=True, eps=0.3
    )
    want = cusink.nearest(A, B, C, k=2, full_output=True, eps=0.3)
    np.testing.assert_array_equal(found.error.numpy(), want.error)


def test_tensors_are_not_copied_and_may_be_written_to():
    tensor = torch.from_numpy(B.copy())
    assert np.shares_memory(taken("B", tensor), tensor.numpy())
    out = torch.empty(3, 40)
    found = cusink.distance_matrix(torch.from_numpy(A), torch.from_numpy(B), torch.from_numpy(C), out=out, **OPTIONS)
    assert found.data_ptr() == out.data_ptr() and float(out.sum()) > 0


@pytest.mark.parametrize("make", [torch.from_numpy, jnp.asarray])
def test_matrices_on_the_disk_are_the_files(make, tmp_path):
    want = cusink.distance_matrix(A, B, C, **OPTIONS)
    for name, kind in {"matrix.npy": np.memmap, "matrix.zarr": zarr.Array}.items():
        found = cusink.distance_matrix(make(A), make(B), make(C), out=tmp_path / name, **OPTIONS)
        assert isinstance(found, kind)
        np.testing.assert_array_equal(found[:], want)
        assert kind is zarr.Array or not found.flags.writeable


def test_a_tensor_of_what_may_not_be_written_to_is_a_copy():
    fixed = A.copy()
    fixed.flags.writeable = False
    tensor = any_array(lambda x, y: y)(torch.from_numpy(B.copy()), fixed)
    tensor /= 2
    np.testing.assert_array_equal(fixed, A)


def test_without_64_bits_jax_gets_indices_of_32():
    _, indices = cusink.nearest(jnp.asarray(A), B, C, k=1, **OPTIONS)
    assert indices.dtype == (jnp.int64 if jax.config.jax_enable_x64 else jnp.int32)


def test_what_cannot_be_taken_says_why():
    with pytest.raises(TypeError, match=r"'A' must not require a gradient.*pass A\.detach\(\)"):
        cusink.nearest(torch.tensor(A, requires_grad=True), B, C, k=1, **OPTIONS)
    with pytest.raises(TypeError, match="'B' must be an array of numbers; got torch.Tensor, of which none can be made"):
        cusink.distance_matrix(A, torch.from_numpy(B).to_sparse(), C, **OPTIONS)
    with pytest.raises(TypeError, match="'A' must be an array of numbers; got .*Tracer"):
        jax.jit(lambda x: cusink.distance_matrix(x, B, C, **OPTIONS))(A)


def test_without_cupy_an_array_on_a_gpu_is_told_what_to_install(monkeypatch):
    def read(x, library):
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(foreign, "read", read)
    with pytest.raises(
        TypeError, match=r"'A' is on a GPU.*: pip install 'cupy-cuda12x\[ctk\]' .*; or move it to the CPU"
    ):
        cusink.nearest(torch.tensor(A), B, C, k=1, **OPTIONS)
