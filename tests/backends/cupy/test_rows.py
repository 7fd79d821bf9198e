"""Rows of a distance matrix that share a call on an emulated device, which a row of few columns would leave idle."""

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays

import cusink
from cusink.backends.cupy import launch
from cusink.backends.cupy.launch import H100, configure
from cusink.retrieval import histograms
from cusink.retrieval.tiles import Sizes, tile_shape

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

RNG = np.random.default_rng(0)
x = RNG.random(6)
C = abs(x[:, None] - x).astype("f")
A, B = RNG.dirichlet(np.ones(6), 7).astype("f"), RNG.dirichlet(np.ones(6), 5).astype("f")
OPTIONS = {"eps": 0.3, "tol": 1e-5}


@pytest.fixture
def cupy():
    with device_arrays.device() as (cupy, launched):
        cupy.launched = launched
        yield cupy


@pytest.fixture
def calls(monkeypatch):
    """Note the problems (K, n, m) of each call of the solver."""
    sizes, solve = [], histograms.HistogramPairs.solve_problems

    def noted(self, a, b, *rest, **options):
        sizes.append((*a.shape, b.shape[1]))
        return solve(self, a, b, *rest, **options)

    monkeypatch.setattr(histograms.HistogramPairs, "solve_problems", noted)
    return sizes


def matrix(cupy, first, second, cost=C, **options):
    """Return a matrix, that of a device in NumPy."""
    first, second, cost = (None if part is None else cupy.asarray(part) for part in (first, second, cost))
    found = cusink.distance_matrix(first, second, cost, **OPTIONS | options)
    return found if cupy is np else found.get()


def test_a_tile_of_few_columns_has_many_rows():
    """45 rows and 37 columns of 4000 bins are one tile, and one call: 1665 problems."""
    pair_bytes, shared_bytes = 12 * 8000 * 4, 6 * 4000 * 4000 * 4
    assert tile_shape(Sizes((45, 37), False, pair_bytes, shared_bytes), None) == (75, 1024)
    assert -(-histograms.PROBLEMS_PER_CALL // 37) >= 45


@pytest.mark.parametrize("value", ["cost", "reg_cost", "entropic_cost", "divergence"])
@pytest.mark.parametrize("second", [B, None])
def test_dense_rows_are_one_call(cupy, calls, value, second):
    found = matrix(cupy, A, second, value=value)
    assert calls == [(7 * found.shape[1], 6, 6)]
    calls.clear()
    want = matrix(np, *(None if part is None else part.astype(float) for part in (A, second)), value=value, tol=1e-9)
    assert len(calls) == 7
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_rows_with_reach_are_one_call(cupy, calls):
    found = matrix(cupy, A, 2 * B, reach=0.5)
    assert calls == [(35, 6, 6)]
    np.testing.assert_allclose(found, matrix(np, A, 2 * B, reach=0.5), rtol=1e-4)


def test_rows_that_leave_out_many_bins_are_solved_without_them(cupy, calls):
    sparse = A.copy()
    sparse[np.arange(7), np.arange(7) % 6] = 0
    matrix(cupy, sparse, B, normalise=True)
    assert calls == [(35, 6, 6)]
    calls.clear()
    sparse[:, ::2], sparse[3] = 0, A[3]
    sparse /= sparse.sum(axis=1, keepdims=True)
    found = matrix(cupy, sparse, B)
    assert len(calls) == 7 and calls[3] == (5, 6, 6) and max(n for _, n, _ in calls[:3]) <= 3
    np.testing.assert_allclose(found, matrix(np, sparse, B), rtol=1e-4)


def test_as_many_rows_as_the_memory_takes(cupy, calls):
    pair = histograms.ARRAYS_PER_PROBLEM * 12 * 4
    shared = histograms.COSTS_PER_ROW * C.nbytes
    found = matrix(cupy, A, B, memory_limit=-(-(shared + 15 * pair) * 4 // 3) + 4)
    assert [K for K, _, _ in calls] == [15, 15, 5]
    np.testing.assert_allclose(found, matrix(cupy, A, B), rtol=1e-5)


def test_no_more_problems_than_fill_a_device(cupy, calls, monkeypatch):
    monkeypatch.setattr(histograms, "PROBLEMS_PER_CALL", 10)
    matrix(cupy, A, B)
    assert [K for K, _, _ in calls] == [10, 10, 10, 5]


def test_rows_against_few_columns_fill_tensor_cores(cupy, monkeypatch):
    """Alone a row has 5 problems, and no strip of tensor cores is full."""
    monkeypatch.setattr(launch, "SPLIT_SHARE", 0.001)
    monkeypatch.setitem(cupy_stand_in.ATTRIBUTES, "MaxSharedMemoryPerBlockOptin", H100.shared_memory)

    def choose(operator, *sizes, **options):
        return None if operator in {"iterate", "solve_at_once"} else configure(operator, *sizes, **options)

    cupy_stand_in.force(choose)
    A, B = RNG.dirichlet(np.ones(40), 12).astype("f"), RNG.dirichlet(np.ones(40), 5).astype("f")
    x = RNG.random(40)
    cost = abs(x[:, None] - x).astype("f")
    found = matrix(cupy, A, B, cost)
    assert "split_step" in cupy.launched
    np.testing.assert_allclose(found, matrix(np, A.astype(float), B.astype(float), cost, tol=1e-9), rtol=1e-4)
