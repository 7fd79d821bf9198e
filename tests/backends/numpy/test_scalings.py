"""Scalings as columns: the memory that they share, and the logarithms that are taken of them."""

import contextlib
import itertools
import warnings

import numpy as np
import pytest

import cusink
from cusink.backends.numpy import means
from cusink.backends.numpy.forms.kernel import DenseKernel, log_scaled
from cusink.backends.numpy.forms.scalings import Room
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.iteration import Iteration as NumpyIteration
from cusink.backends.ranges import SCALING_EXPONENT
from cusink.solver.solution import Solution
from cusink.workers import one_blas_thread

rng = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1), (1, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("power", [0, 3, 900])
def test_logarithms_are_a_new_array_in_the_order_of_the_result(shape, dtype, power):
    """Where problems are one, or bins are, a transposed array may be the array itself."""
    x = rng.uniform(0.5, 2, shape).astype(dtype)
    if dtype is np.float64:
        x[0, 0] = 2.0**400  # beyond float64 with the largest power
    given, exponent = x.copy(), power + np.arange(float(shape[1]))
    with np.errstate(over="ignore"):  # as where it is called
        found = log_scaled(x, exponent)
    assert found.dtype == np.float64 and found.flags.c_contiguous and found.flags.owndata
    np.testing.assert_array_equal(x, given)
    np.testing.assert_allclose(
        found, np.log(given.T.astype(float)) + exponent[:, None] * np.log(2), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_a_room_do_not_overlap_and_those_of_fewer_problems_lie_in_it(order):
    room = Room(np.dtype(np.float32), order)
    states, work = room.begun((3, 5), 8)
    assert [x.shape for x in states] == [(3, 8), (5, 8)] * 2
    assert [x.shape for x in work] == [(3, 8)] * 5 + [(5, 8)] * 4 + [(3, 8), (5, 8)]
    assert all(x.dtype == np.float32 and x.flags[f"{order}_CONTIGUOUS"] for x in (*states, *work))
    for one, other in itertools.combinations((*states, *work[:10]), 2):
        assert not np.shares_memory(one, other)
    assert np.shares_memory(work.scratch_rows, work.scratch_columns)
    later = room.workspace((3, 5), 6)
    assert later.U.shape == (3, 6) and all(np.shares_memory(x, room._memory) for x in later)
    assert not room.is_large_for((3, 5), 4) and room.is_large_for((3, 5), 1)
    larger = room.workspace((3, 5), 80)  # more problems than ever
    assert larger.V.shape == (5, 80) and not np.shares_memory(larger.U, work.U)


@pytest.mark.parametrize("omega", [1.0, 1.4])
@pytest.mark.parametrize("empty", [False, True])
def test_problems_lie_by_rows_where_blas_has_threads_and_answers_are_the_same(omega, empty):
    """The threads of BLAS share out products of rows; the pool of the library, which holds BLAS, works by columns."""
    C, count = rng.random((6, 5)), 9
    a, b = rng.dirichlet(np.ones(6), count), rng.dirichlet(np.ones(5), count)
    if empty:
        a[::2, 1] = b[1::2, 3] = 0
    a, b = (x / x.sum(axis=1, keepdims=True) for x in (a, b))
    later = rng.dirichlet(np.ones(6), 2), rng.dirichlet(np.ones(5), 2)
    index, found = np.array([10, 3, 4, 8]), {}
    for held in (False, True):
        with one_blas_thread() if held else contextlib.nullcontext():
            form = NumpyIteration(C, a[:1], b[:1], 0.1, np.zeros((1, 6)), np.zeros((1, 5)), "auto").forms[0]
        form.keep(np.arange(0))
        form.append(a, b, np.zeros_like(a), np.zeros_like(b))
        form.advance(np.full(count, omega), 5)
        form.append(*later, *map(np.zeros_like, later))
        form.advance(np.full(count + 2, omega), 5)
        form.keep(index)
        outside = form.advance(np.full(len(index), omega), 5)
        contiguous = "C_CONTIGUOUS" if held else "F_CONTIGUOUS"
        arrays = form.a, form.b, form.U, form.V, *form._workspace()
        assert all(x.flags[contiguous] for x in arrays) and not outside.any()
        f, g, cost, error = form.finish(np.arange(len(index)))
        found[held] = f[:, :, None] + g[:, None, :], cost, error
    for one, other in zip(found[False], found[True], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kept", [range(12), range(7), [3], [11, 0, 5]])
def test_problems_go_on_in_the_same_room_as_if_they_had_been_alone(kept):
    """Some are dropped, some come later: states and work never lie on each other."""
    C, omega = rng.random((6, 5)), 1.3
    a, b = rng.dirichlet(np.ones(6), 15), rng.dirichlet(np.ones(5), 15)
    zeros = np.zeros_like(a), np.zeros_like(b)

    def begun(rows):
        form = SharedKernel(DenseKernel(C, np.float64, 0.1))
        form.append(a[rows], b[rows], zeros[0][rows], zeros[1][rows])
        form.advance(np.full(len(rows), omega), 3)
        return form

    every = begun(np.arange(12))
    every.keep(np.array(kept))
    every.advance(np.full(len(kept), omega), 2)
    every.append(a[12:], b[12:], zeros[0][12:], zeros[1][12:])
    every.advance(np.full(len(kept) + 3, omega), 4)
    found = every.finish(np.arange(len(kept) + 3))
    for place, k in enumerate(kept):
        alone = begun(np.array([k]))
        alone.advance(np.full(1, omega), 2)
        alone.advance(np.full(1, omega), 4)
        for x, y in zip(found, alone.finish(np.arange(1)), strict=True):
            np.testing.assert_allclose(x[place], y[0], rtol=1e-12, atol=1e-15)


def test_what_all_problems_end_with_is_kept_as_it_is():
    f, g, cost = rng.random((4, 3)), rng.random((4, 2)), rng.random(4)
    room = Solution.of_no_potentials(np, f, g)
    assert room.f.shape == (0, 3) and room.g.shape == (0, 2) and room.cost.shape == (4,)
    out = room.ended(slice(None), f, g, cost)
    assert out.f is f and out.g is g and out.cost is cost
    narrow = room.ended(slice(None), np.asfortranarray(f, np.float32), g, cost.astype(np.float32))
    assert narrow.f.dtype == np.float64 and narrow.f.flags.c_contiguous and narrow.cost.dtype == np.float64
    some = room.ended(np.array([2, 0]), f[:2], g[:2], cost[:2])
    again = some.ended(np.array([1]), f[2:3], g[2:3], cost[2:3])
    assert again.f is some.f  # there was room by then
    np.testing.assert_array_equal(again.f[[2, 0, 1]], f[:3])
    np.testing.assert_array_equal(again.g[[2, 0, 1]], g[:3])


def test_no_result_lies_in_memory_of_a_later_one():
    a, b, C = rng.dirichlet(np.ones(6), 8), rng.dirichlet(np.ones(5), 8), rng.random((6, 5))
    first = cusink.sinkhorn(a, b, C, eps=0.1)
    before = first.f.copy(), first.g.copy(), first.problem.a.copy(), first.problem.b.copy()
    second = cusink.sinkhorn(b, a, C.T, eps=0.05)
    for x, y in itertools.product((first.f, first.g, first.problem.a, first.problem.b), (second.f, second.g)):
        assert not np.shares_memory(x, y)
    for x, y in zip(before, (first.f, first.g, first.problem.a, first.problem.b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_products_do_not_warn_of_what_blas_leaves_out_of_them():
    """BLAS may set the flag of an invalid operation by what lies on its stack; here a product of 0 and inf sets it."""
    kernel = DenseKernel(np.array([[0.0, 1e6], [1e6, 0.0]]), np.float64, 1.0)
    assert not kernel.K[0, 1]
    factor = np.array([[np.inf, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel.product_of_rows(factor, 1)
        kernel.cost_product(factor.T, 1)
    with pytest.warns(RuntimeWarning, match="invalid value"):
        np.matmul(factor, kernel.K.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 299.0, -400.0, 5e4])
def test_a_scaling_does_not_depend_on_the_constant_of_its_potential(dtype, constant):
    """Moderate potentials have their exponentials as they are, others less their largest."""
    weights, potential = rng.random((3, 20)), rng.normal(size=(3, 20)) * 4
    weights[1, 4], kernel = 0, DenseKernel(np.zeros((20, 20)), dtype, 0.5)
    want = weights * np.exp(2 * (potential - potential.max(axis=1, keepdims=True)))
    found = means._scaling(weights.astype(dtype), potential + constant / 2, kernel)
    assert found.dtype == dtype
    assert (2.0 ** (SCALING_EXPONENT[kernel.dtype.name] - 1) <= found.max(axis=1)).all()
    assert (found.max(axis=1) <= 2.0 ** SCALING_EXPONENT[kernel.dtype.name]).all()
    rounding = 1e-11 if dtype is np.float64 else 1e-6
    np.testing.assert_allclose(
        found / found.max(axis=1, keepdims=True), want / want.max(axis=1, keepdims=True), rtol=rounding
    )
