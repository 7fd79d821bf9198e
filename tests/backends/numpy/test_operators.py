"""The operators on NumPy, each against its one-line definition, with all that is legal put in."""

import numpy as np
import problems
import pytest
import reference
from scipy.special import logsumexp

from cusink import operand
from cusink.backends.numpy import dense
from cusink.convergence.rules import overrelaxed, overrelaxed_log
from cusink.solver import gauge

FLOATS = [np.float32, np.float64]
SHAPES = [(1, 1, 1), (1, 1, 7), (2, 7, 1), (3, 31, 33), (5, 32, 64), (4, 65, 3), (2, 100, 100)]


@pytest.fixture(params=[1, 50, 1 << 16], ids=["blocks of a row", "blocks of 50", "default blocks"])
def block(request, limits):
    """How many entries a block may have: results must not depend on where blocks end."""
    limits(dense_block_entries=request.param)


def make(shape, dtype, shared, seed=0, eps=0.1, hard=True):
    """Costs, logits of weights and potentials, some -inf; costs partly +inf, one row of them wholly."""
    B, n, m = shape
    rng = np.random.default_rng(seed)
    C = rng.random((n, m) if shared else (B, n, m))
    p, q = (rng.normal(size=(B, k)) * 2 for k in (n, m))
    if hard and n > 2 and m > 2:
        C[..., rng.random((n, m)) < 0.2] = np.inf
        C[..., n // 2, :] = np.inf
        p[:, 1] = q[:, 0] = -np.inf
        q[-1, 1:] -= 300  # one that matters, or none in float32's range
    arrays = tuple(x.astype(dtype) for x in (C, p, q))
    for x in arrays:
        x.flags.writeable = False
    return (*arrays, dtype(eps))


def exponents(C, p, q, eps):
    """p_i + q_j - C_ij / eps in float64."""
    C, p, q = (x.astype(np.float64) for x in (C, p, q))
    return p[:, :, None] + q[:, None, :] - C / float(eps)


def rounding(C, eps, dtype, largest=1.0):
    """Relative error of exp of a number whose parts are as large as C / eps."""
    finite = C[np.isfinite(C)]
    return 8 * np.finfo(dtype).eps * (np.abs(finite).max(initial=0) / float(eps) + largest)


@pytest.mark.parametrize(("dtype", "edge"), [(np.float64, 745.13), (np.float32, 103.97)])
def test_only_entries_of_a_plan_below_the_smallest_number_are_zero(dtype, edge):
    """A plan of weights of 1e-300 is made of denormals: without them its rows would not have their mass."""
    C = np.array([[0, edge - 38, edge - 0.1, edge + 0.9, edge + 30, 1e6, np.inf]], dtype)
    (found,), few = dense.plan(C, np.zeros((1, 1), dtype), np.zeros((1, 7), dtype), 1.0), C[0, :3].astype(float)
    np.testing.assert_array_equal(found[0, :3], np.exp(-C[0, :3]))
    np.testing.assert_allclose(found[0, :2], np.exp(-few[:2]), rtol=30 * np.finfo(dtype).eps)
    assert 0 < found[0, 2] < np.finfo(dtype).tiny
    np.testing.assert_array_equal(found[0, 3:], np.zeros(4))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmin(shape, dtype, shared, axis, block):
    C, p, q, eps = make(shape, dtype, shared)
    logits = q if axis == 1 else p
    found = dense.softmin(C, logits, eps, axis)
    shaped = logits[:, None, :] if axis == 1 else logits[:, :, None]
    with np.errstate(divide="ignore"):
        want = -float(eps) * logsumexp(shaped.astype(float) - C.astype(float) / float(eps), axis=2 if axis == 1 else 1)
    assert found.dtype == dtype and found.shape == want.shape
    if shape[1] > 2 and shape[2] > 2 and axis == 1:
        assert np.isposinf(found[:, shape[1] // 2]).all()
    np.testing.assert_allclose(found, want, rtol=8 * np.finfo(dtype).eps, atol=float(eps) * rounding(C, eps, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_softmin_of_huge_costs(axis, dtype, ratio):
    """C / eps far beyond the range of exp."""
    rng = np.random.default_rng(0)
    C, eps = rng.random((20, 30)).astype(dtype), dtype(1 / ratio)
    logits = rng.normal(size=(3, 30 if axis == 1 else 20)).astype(dtype)
    shaped = logits[:, None, :] if axis == 1 else logits[:, :, None]
    want = -float(eps) * logsumexp(shaped.astype(float) - C.astype(float) / float(eps), axis=2 if axis == 1 else 1)
    tolerance = float(eps) * rounding(C, eps, dtype, 5)
    np.testing.assert_allclose(dense.softmin(C, logits, eps, axis), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
def test_softmin_of_nothing_is_infinite(axis):
    C = np.zeros((3, 4))
    found = dense.softmin(C, np.full((2, 4 if axis == 1 else 3), -np.inf), 0.1, axis)
    assert np.isposinf(found).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_plan(shape, dtype, shared):
    C, p, q, eps = make(shape, dtype, shared)
    found, want = dense.plan(C, p, q, eps), np.exp(exponents(C, p, q, eps))
    assert found.dtype == dtype and found.shape == shape
    np.testing.assert_allclose(found, want, rtol=rounding(C, eps, dtype, 310), atol=np.finfo(dtype).tiny)
    assert (found[np.broadcast_to(np.isinf(C), shape)] == 0).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_apply_plan(shape, dtype, shared, axis, block):
    C, p, q, eps = make(shape, dtype, shared)
    v = np.random.default_rng(1).normal(size=(q if axis == 1 else p).shape).astype(dtype)
    P = np.exp(exponents(C, p, q, eps))
    rule = "bij,bj->bi" if axis == 1 else "bij,bi->bj"
    found = dense.apply_plan(C, p, q, v, eps, axis)
    want, size = np.einsum(rule, P, v.astype(float)), np.einsum(rule, P, np.abs(v).astype(float))
    assert found.dtype == dtype and found.shape == want.shape
    assert (np.abs(found - want) <= rounding(C, eps, dtype, 310) * size + np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transport_cost(shape, dtype, shared, block):
    C, p, q, eps = make(shape, dtype, shared)
    P = np.exp(exponents(C, p, q, eps))
    want = (P * np.where(np.isfinite(C), C, 0).astype(float)).sum(axis=(1, 2))
    found = dense.transport_cost(C, p, q, eps)
    assert found.dtype == dtype and found.shape == shape[:1]
    np.testing.assert_allclose(found, want, rtol=rounding(C, eps, dtype, 310), atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize(
    ("dtype", "log_mass", "unit"),
    [
        (np.float64, -60, 1),
        (np.float64, -200, 1),
        (np.float64, -315, 1e100),
        (np.float64, 315, 1e-100),
        (np.float64, -150, 1e-100),
        (np.float32, -42, 1e20),
        (np.float32, 42, 1e-20),
    ],
)
@pytest.mark.parametrize("size", [1, 40])
def test_sums_in_range_of_plans_that_are_not(size, dtype, log_mass, unit):
    """Of entries of any size times costs and values of any size, with one problem and by products with a kernel."""
    rng = np.random.default_rng(2)
    C, v = ((rng.random(shape) * unit).astype(dtype) for shape in ((5, 4), (size, 4)))
    p, q = ((rng.normal(size=(size, k)) + log_mass / 2 * np.log(10)).astype(dtype) for k in C.shape)
    log_plan = exponents(C, p, q, 0.3 * unit)
    tolerance = rounding(C, 0.3 * unit, dtype, 500)
    want = np.exp(logsumexp(log_plan + np.log(C.astype(float)), axis=(1, 2)))
    np.testing.assert_allclose(dense.transport_cost(C, p, q, 0.3 * unit), want, rtol=tolerance)
    want = np.exp(logsumexp(log_plan + np.log(v.astype(float))[:, None, :], axis=2))
    np.testing.assert_allclose(dense.apply_plan(C, p, q, v, 0.3 * unit, 1), want, rtol=tolerance)


def test_transport_cost_of_costs_below_zero():
    C, p, q, eps = make((3, 10, 12), np.float64, True)
    P = np.exp(exponents(-C - 1 if np.isfinite(C).all() else C, p, q, eps))
    shifted = np.where(np.isfinite(C), C - 2, np.inf)
    P = np.exp(exponents(shifted, p, q, eps))
    want = (P * np.where(np.isfinite(shifted), shifted, 0)).sum(axis=(1, 2))
    np.testing.assert_allclose(dense.transport_cost(shifted, p, q, eps), want, rtol=1e-12)
    assert (want < 0).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_c_transform(shape, dtype, shared, axis, block):
    C, p, q, _ = make(shape, dtype, shared)
    potential = q if axis == 1 else p
    found = dense.c_transform(C, potential, axis)
    shaped = potential[:, None, :] if axis == 1 else potential[:, :, None]
    np.testing.assert_array_equal(found, (C - shaped).min(axis=2 if axis == 1 else 1))
    assert found.dtype == dtype


def test_c_transform_is_the_softmin_at_small_eps():
    C, p, q, _ = make((2, 9, 11), np.float64, True, hard=False)
    for axis, potential in ((0, p), (1, q)):
        soft = dense.softmin(C, potential / 1e-9, 1e-9, axis)
        np.testing.assert_allclose(dense.c_transform(C, potential, axis), soft, rtol=0, atol=1e-7)


def test_no_operator_forms_the_whole_batch():
    """64 problems on 256 x 256 bins: 34 MB if anything were formed per problem."""
    import tracemalloc

    C, p, q, eps = make((64, 256, 256), np.float64, True, hard=False)
    v = np.ones_like(q)
    calls = {
        "softmin": lambda: [dense.softmin(C, x, eps, axis) for x, axis in ((q, 1), (p, 0))],
        "apply_plan": lambda: [dense.apply_plan(C, p, q, v, eps, axis) for axis in (0, 1)],
        "transport_cost": lambda: dense.transport_cost(C, p, q, eps),
        "c_transform": lambda: [dense.c_transform(C, x, axis) for x, axis in ((q, 1), (p, 0))],
    }
    for name, call in calls.items():
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, name


# Problems under way


def under_way(p, method, dtype=np.float64):
    a, b, C = (np.ascontiguousarray(x, dtype) for x in (np.atleast_2d(p.a), np.atleast_2d(p.b), p.C))
    B = max(len(a), len(b))
    a, b = (np.array(np.broadcast_to(x, (B, x.shape[1]))) for x in (a, b))
    f, g = np.zeros_like(a), np.zeros_like(b)
    return dense.Iteration(C, a, b, dtype(p.eps), f, g, method), a, b, C


PROBLEMS = [p for p in problems.HARD if p.name != "large cost / eps"]


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_iteration_advances_and_finishes(p, method):
    iteration, a, b, C = under_way(p, method)
    omega = np.ones(len(a))
    for count in (1, 4, 6):
        error = iteration.advance(omega, count)
    want = reference.each(reference.sinkhorn, a, b, C, p.eps, 11)
    np.testing.assert_allclose(error, [s.error for s in want], rtol=1e-7, atol=1e-12)
    f, g, cost, error = iteration.finish(np.arange(len(a)))
    used = b > 0
    scale = np.abs(C[np.isfinite(C)]).max() + p.eps
    np.testing.assert_allclose(f, [s.f for s in want], rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(g[used], np.array([s.g for s in want])[used], rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(error, [s.error for s in want], rtol=1e-7, atol=1e-12)
    for k, (one, s) in enumerate(zip(reference.each(lambda *x: x, a, b, C), want, strict=True)):
        exact = reference.transport_cost(reference.plan(*one, p.eps, s.f, s.g), one[2])
        assert cost[k] == pytest.approx(exact, rel=1e-10, abs=1e-13 * scale)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_what_is_measured_is_what_is_finished(p, dtype):
    """Cost, error and what is kept to the bit, and a bound on the size of the potentials; or nothing."""
    iteration, a, b, C = under_way(p, "auto", dtype)
    rng, everyone = np.random.default_rng(0), np.arange(len(a))
    iteration.advance(np.ones(len(a)), 5)
    iteration.advance(rng.uniform(1, 1.9, len(a)), 4)
    for index in (everyone, everyone[::-1], everyone[:1]):
        measured = iteration.measure(index, keep=True)
        f, g, cost, error = iteration.finish(index)
        assert measured is not None or p.name not in ("n < m, shared cost", "empty bins")
        if measured is not None:
            assert iteration.measure(index).potentials is None
            size = measured.size
            iteration.advance(np.ones(len(a)), 2)  # which changes nothing of what is kept
            for found, want in zip((*measured[1:3], *measured.potentials()), (cost, error, f, g), strict=True):
                np.testing.assert_array_equal(found, want)
            f, g = gauge.in_gauge(operand.dense_cost(C), a[index], b[index], f, g, p.eps)
            assert (size >= gauge.size(np, a[index], b[index], f, g)).all()


@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("name", ["n < m, shared cost", "a cost per problem", "empty bins", "forbidden pairs"])
def test_iteration_keeps_what_it_is_told_in_the_order_it_is_told(name, method):
    p = next(p for p in problems.HARD if p.name == name)
    iteration, a, b, C = under_way(p, method)
    iteration.advance(np.ones(len(a)), 3)
    index = np.array([2, 0])
    iteration.keep(index)
    iteration.advance(np.ones(2), 2)
    f, _, _, error = iteration.finish(np.array([1, 0]))
    want = [reference.each(reference.sinkhorn, a, b, C, p.eps, 5)[k] for k in (0, 2)]
    np.testing.assert_allclose(f, [s.f for s in want], rtol=0, atol=1e-13)
    np.testing.assert_allclose(error, [s.error for s in want], rtol=1e-9)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_reported_error_bounds_that_after_a_plain_update(p, method):
    """Over-relaxed, advance() may report too much, never too little."""
    iteration, a, *_ = under_way(p, method)
    rng = np.random.default_rng(0)
    everyone = np.arange(len(a))
    for _ in range(12):
        bound = iteration.advance(rng.uniform(1, 1.99, len(a)), 2)
        error = iteration.finish(everyone)[3]
        assert (error <= bound * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("omega", [1.0, 1.2, 1.5, 1.9, 1.999, float(np.nextafter(2.0, 0.0))])
def test_over_relaxation_raises_the_dual_value_entry_by_entry(omega):
    """The reason why none can diverge: one entry's share of the dual is d - exp(d), d = (f - plain) / eps, at any d.

    And the two forms of the step, on scalings and on potentials, are one step.
    """
    d = np.concatenate([np.linspace(-8, 8, 3001), [-300.0, 300.0]])
    scaled = np.exp(d)[:, None].copy()
    overrelaxed(np, scaled, np.ones_like(scaled), omega - 1, scratch=np.empty_like(scaled), out=scaled)
    stepped = overrelaxed_log(np, 0.3 * d, np.zeros_like(d), omega - 1, 0.3) / 0.3
    np.testing.assert_allclose(stepped, np.log(scaled[:, 0]), rtol=0, atol=1e-12)

    def share(x):
        return x - np.exp(x)

    assert (share(stepped) >= share(d) - 1e-9).all()
    # To first order it is f + omega (plain - f), as the textbook has it, where the guard is out of reach.
    near = np.abs(d) < min(0.01, (2 - omega) / 4)
    np.testing.assert_allclose(stepped[near], (1 - omega) * d[near], rtol=0, atol=1e-4)


def test_operators_are_chosen_by_the_array():
    assert operand.operators("dense", np) is dense.OPERATORS
