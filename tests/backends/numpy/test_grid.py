"""Costs between the cells of a grid, reduced axis by axis: every operator and the iterations, against dense oracles."""

import contextlib
import itertools
import sys
import tracemalloc

import emulated
import numpy as np
import pytest
from emulated import oracle
from emulated.cupy_stand_in import operators
from emulated.oracle import assert_as_good

import cusink
from cusink.backends.numpy import grid as numpy_grid
from cusink.backends.numpy.certificate import certified
from cusink.backends.numpy.grid import NumpyGridKernel
from cusink.backends.ranges import SCALING_LIMIT, flush
from cusink.costs.grid import grid_costs

NO_COMPILER = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")
LIBRARIES = ("numpy", pytest.param("cupy", marks=NO_COMPILER))
DTYPES = (np.float32, np.float64)
# All distances are whole multiples of 1/4: the costs are exact in both dtypes.
GRIDS = {
    "line around": cusink.Grid(7, "cityblock", periodic=True),
    "plane": cusink.Grid((3, 5), spacing=(0.5, 1.0)),
    "space": cusink.Grid((3, 1, 4), "cityblock", spacing=(1.0, 1.0, 0.25), periodic=(False, True, True)),
    "one cell": cusink.Grid((1, 1)),
}
OMEGA = np.array([1.0, 1.25, 1.0, 1.5, 1.75])


@contextlib.contextmanager
def grid_operators(library):
    """Give the operators for a grid, those of CuPy on emulated kernels."""
    if library == "numpy":
        yield numpy_grid
    else:
        with operators():
            yield sys.modules["cusink.backends.cupy.grid"]


def cost(grid):
    """Return the cost between cells, written down without the package's."""
    total = 0
    centres = np.indices(grid.cells).reshape(len(grid.cells), -1)
    for cells, spacing, periodic, at in zip(grid.cells, grid.spacing, grid.periodic, centres, strict=True):
        steps = abs(at[:, None] - at)
        steps = np.minimum(steps, cells - steps) if periodic else steps
        total = total + (spacing * steps) ** (2 if grid.metric == "sqeuclidean" else 1)
    return total


def parts(grid, dtype, seed=0, B=5):
    """``(GridCosts, oracle's cost, p, q, v)``: logits with empty bins, and vectors of any sign."""
    rng, n = np.random.default_rng(seed), grid.shape[0]
    p, q, v = (rng.normal(size=(B, n)) * 3 for _ in range(3))
    if n > 1:
        p[rng.random(p.shape) < 0.3], q[rng.random(q.shape) < 0.3] = -np.inf, -np.inf
        p[0], q[0] = -np.inf, -np.inf  # and one with nothing in it
        p[1:, 0] = q[1:, 0] = 0
    return grid_costs(np, grid, np.dtype(dtype)), cost(grid), *(x.astype(dtype) for x in (p, q, v))


@pytest.mark.parametrize("eps", [2.0, 0.01])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_operators_are_those_of_the_cost(library, name, dtype, eps):
    C, full, p, q, v = parts(GRIDS[name], dtype)
    exponent = 4 + full.max() / eps

    def compare(operator, arguments, after=(), scale=None, exponent=exponent):
        actual = getattr(ops, operator)(C, *arguments, *after)
        exact, naive = (
            getattr(oracle, operator)(full, *(x.astype(kind) for x in arguments), *after, dtype=kind)
            for kind in (np.float64, np.float32)
        )
        assert actual.dtype == dtype
        assert_as_good(actual, exact, naive, exponent, scale)

    with grid_operators(library) as ops, np.errstate(invalid="ignore"):
        for axis in (0, 1):
            summed = q if axis else p
            compare("softmin", (summed,), (eps, axis), scale=eps)
            assert_as_good(
                ops.repeated_softmin(C, eps)(summed, axis),
                oracle.softmin(full, summed, eps, axis),
                oracle.softmin(full, summed, eps, axis, np.float32),
                exponent,
                eps,
            )
            compare("apply_plan", (p, q, v), (eps, axis))
            compare("c_transform", (summed,), (axis,), exponent=1)
        compare("transport_cost", (p, q), (eps,))
        compare("plan", (p, q), (eps,))
        x, y = abs(v), abs(v[::-1])
        np.testing.assert_allclose(
            ops.bilinear(C, x, y), np.einsum("bi,ij,bj->b", x, full, y), rtol=8 * np.finfo(dtype).eps
        )
        np.testing.assert_array_equal(ops.cost_block(C, slice(None), slice(0, 2)), full[:2])
        assert ops.cost_range(C) == (0, full.max())


def problem(inputs, dtype):
    """``(grid, a, b, eps, f, g)`` of 5 problems."""
    rng = np.random.default_rng(1)
    grid, eps = GRIDS["plane"], 0.5
    if inputs in ("far apart", "very far apart"):
        grid = cusink.Grid((24, 2)) if inputs == "far apart" else cusink.Grid((64, 2))
        eps = {"far apart": 2.0, "very far apart": 1.0}[inputs]
    a, b = rng.random((2, 5, grid.shape[0])) + 0.05
    f, g = np.zeros_like(a), np.zeros_like(b)
    if inputs == "zero weights":
        a[rng.random(a.shape) < 0.4], b[rng.random(b.shape) < 0.4] = 0, 0
        a[:, 0] = b[:, 0] = 1
    elif inputs.endswith("far apart"):
        a[:3, 4:], b[:3, :-4] = 0, 0  # three of five at the two ends
    elif inputs == "warm start":
        f, g = rng.normal(size=f.shape), rng.normal(size=g.shape)
    a, b = (w / w.sum(axis=1, keepdims=True) for w in (a, b))
    return grid, *(w.astype(dtype) for w in (a, b)), eps, *(x.astype(dtype) for x in (f, g))


def forms_of(iteration):
    """Return the number of the form that each problem is in, in either library."""
    if hasattr(iteration, "level"):
        return iteration.level.tolist()
    form = np.zeros(sum(map(len, iteration.rows)), int)
    for k, rows in enumerate(iteration.rows):
        form[rows] = k
    return form.tolist()


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", ["plain", "zero weights", "warm start", "far apart", "very far apart"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_iterations_follow_the_oracle(library, inputs, dtype, method):
    grid, a, b, eps, f, g = problem(inputs, dtype)
    full, omega = cost(grid), OMEGA
    exact = naive = f, g
    exponent = 5 * full.max() / eps  # each iteration rounds exponents of this size anew
    with grid_operators(library) as ops, np.errstate(all="ignore"):
        C = grid_costs(np, grid, np.dtype(dtype))
        iteration = ops.Iteration(C, a, b, eps, f, g, method)
        for count in (2, 3):
            bound = iteration.advance(omega, count)
            *exact, exact_bound = oracle.iterate(full, a, b, eps, *exact, omega, count)
            *naive, naive_bound = oracle.iterate(full, a, b, eps, *naive, omega, count, dtype=np.float32)
            assert_as_good(np.asarray(bound, dtype), exact_bound, naive_bound, exponent, 1)
            if count == 2:
                keep = np.array([4, 2, 0])
                iteration.keep(keep)
                omega, a, b = OMEGA[keep], a[keep], b[keep]
                exact, naive = ([x[keep] for x in both] for both in (exact, naive))
        chosen = np.array([2, 0])
        results = iteration.finish(chosen)
        expected = oracle.finish(full, a[chosen], b[chosen], eps, exact[1][chosen])
        allowed = oracle.finish(full, a[chosen], b[chosen], eps, naive[1][chosen], dtype=np.float32)
    for actual, right, rough, scale in zip(results, expected, allowed, (eps, eps, None, 1), strict=True):
        assert_as_good(np.asarray(actual, dtype), right, rough, exponent, scale)
    if method == "auto":
        end = {"far apart": 1 if dtype == np.float32 else 0, "very far apart": 2 if dtype == np.float32 else 1}
        assert forms_of(iteration) == [0, end.get(inputs, 0), end.get(inputs, 0)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_scaling_form_alone_says_which_problem_it_lost(library):
    grid, a, b, eps, f, g = problem("very far apart", np.float32)
    with grid_operators(library) as ops:
        iteration = ops.Iteration(grid_costs(np, grid, np.dtype(np.float32)), a, b, eps, f, g, "scaling")
        lost = ~np.isfinite(iteration.advance(np.ones(5), 10))
        assert lost.tolist() == [True, True, True, False, False]
        assert all(np.isfinite(x).all() for x in iteration.finish(np.arange(5)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cells", [(40,), (12, 10), (5, 6, 7)])
def test_a_certified_sum_lost_nothing(cells, dtype):
    """Factors over the whole range of the dtype, costs from nothing to beyond it: no sum that was changed may pass."""
    rng, outcome = np.random.default_rng(2), []
    for steepness, spread in itertools.product((1, 200, 1500, 6000), (0, 1000)):
        grid = cusink.Grid(cells)
        C = grid_costs(np, grid, np.dtype(dtype))
        kernel = NumpyGridKernel(C, dtype, grid.max() / steepness)
        factor = np.exp2(-rng.uniform(0, spread, (grid.shape[0], 4)))
        weights = rng.random(factor.shape) < 0.5
        factor *= weights
        # Whole blocks without weight, so that some sums have far to go.
        factor[: 3 * len(factor) // 4, :2] = weights[: 3 * len(factor) // 4, :2] = 0
        # A large entry far away, whose part in a sum is lost with an entry of the kernel, and small ones near by.
        low = np.exp2(np.linspace(0, np.finfo(dtype).minexp + 1, 20)) * (1 + rng.random((len(factor), 20)))
        low[0] = SCALING_LIMIT[np.dtype(dtype).name]
        factor, weights = (np.concatenate(pair, axis=1) for pair in ((factor, low), (weights, low > 0)))
        logs = (-cost(grid) * steepness / grid.max())[:, :, None] + np.log(
            factor, where=factor > 0, out=factor * 0 - 1e9
        )
        exact = np.logaddexp.reduce(logs, axis=1) + kernel.s * np.log(2)
        product = kernel.product(flush(factor.astype(dtype)), 1)
        sound = np.ones(product.shape, bool) & certified(
            kernel.underflow_bound(1), product, factor.astype(dtype), weights
        )
        error = abs(np.log(product[sound].astype(float)) - exact[sound])
        # A rounding of K for each axis, of each term, and as much again for what was lost; those of the oracle's logs.
        allowed = 4 * np.finfo(dtype).eps * sum(cells) + 2 * np.spacing(abs(exact[sound]) + kernel.s + steepness)
        assert (error <= allowed).all()
        outcome += [sound.mean()]
    assert max(outcome) == 1 and min(outcome) < 0.97


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["products", "products far out", "a plan", "logs"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_means_are_those_of_the_plan(library, kind, dtype, limits):
    eps = {"products": 8.0, "products far out": 0.5, "a plan": 0.01, "logs": 0.01}[kind]
    limits(grid_plan_bytes=0 if kind == "logs" else 1 << 20)
    grid, rng = cusink.Grid((5, 9)), np.random.default_rng(3)
    full, a, b = cost(grid), *(rng.random((2, 3, 45)) + 0.2)
    a[:, 3] = b[:, 20] = 0
    if kind in ("a plan", "logs"):  # far apart
        a[:, 20:] = b[:, :25] = 0
    a, b = (w / w.sum(axis=1, keepdims=True) for w in (a, b))
    f, g, _ = oracle.iterate(full, a, b, eps, 0 * a, 0 * b, np.ones(3), 100)
    g = np.where(b > 0, g, oracle.softmin(full, oracle.logits(a, f, eps), eps, 0))  # as a solve leaves empty bins
    arguments = [x.astype(dtype) for x in (a, b, f, g)]
    v, w = rng.normal(size=(2, 3, 45)).astype(dtype)
    a, b, f, g = (x.astype(np.float64) for x in arguments)
    p, q = oracle.logits(a, f, eps), oracle.logits(b, g, eps)
    P = oracle.plan(full, p, q, eps)
    # Given each bin, whether it has weight or not.
    rows, columns = softmax(q[:, None, :] - full / eps, 2), softmax(p[:, :, None] - full / eps, 1)
    wide = library == "numpy" and kind in ("a plan", "logs")  # they compute in float64
    precision = np.finfo(np.float64 if wide else dtype).eps
    exponent = 1 if library == "numpy" and kind.startswith("products") else full.max() / eps
    tolerance = {"rtol": 8 * precision * (45 + exponent)}
    tolerance["atol"] = tolerance["rtol"]
    with grid_operators(library) as ops:
        groups = list(ops.plan_means(grid_costs(np, grid, np.dtype(dtype)), *arguments, eps))
        assert sorted(i for index, _ in groups for i in index) == [0, 1, 2]
        if library == "numpy":
            expected = {"a plan": "TileMeans", "logs": "LogMeans"}.get(kind, "SharedMeans")
            assert {type(means).__name__ for _, means in groups} == {expected}
        total = 0
        for index, means in groups:
            means, index = means.at(np.arange(len(index))[::-1]), index[::-1]
            for axis, plans, x in ((1, rows, v), (0, columns, w)):
                plans, x = plans[index], x[index]
                mean = np.einsum("bij,bj->bi" if axis else "bij,bi->bj", plans, x)
                np.testing.assert_allclose(means.mean(x, axis), mean, **tolerance)
                np.testing.assert_allclose(means.mean_cost(axis), (plans * full).sum(axis=1 + axis), **tolerance)
                np.testing.assert_allclose(means.marginal(axis), P[index].sum(axis=1 + axis), **tolerance)
            total = total + means.plan_sum(v[index], w[index], v[index, 0])
        expected = P * (v[:, :, None] + w[:, None, :] + v[:, :1, None] * full)
        rounded = 16 * np.finfo(dtype).eps * full.max()  # rows + columns + costs are added in their own precision
        np.testing.assert_allclose(
            total, expected.sum(axis=0), rtol=tolerance["rtol"], atol=tolerance["rtol"] + rounded
        )


def softmax(x, axis):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def images(count, height, width, seed=4):
    """Spots on an empty ground, (count, height * width)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres = rng.uniform(0.2, 0.8, (2, count, 3)) * np.array([height, width])[:, None, None]
    spots = np.exp(-0.5 * ((y - centres[0, ..., None, None]) ** 2 + (x - centres[1, ..., None, None]) ** 2))
    image = spots.sum(axis=1).reshape(count, -1)
    image[image < 0.02] = 0
    return image / image.sum(axis=1, keepdims=True)


def test_gradients_bounds_and_plans_are_those_of_the_cost(xp):
    grid, a, b = cusink.Grid((6, 7)), xp(images(3, 6, 7)), xp(images(3, 6, 7, seed=5))
    full, v = xp(cost(grid)), xp(np.random.default_rng(6).normal(size=(3, 42)))
    ours, theirs = (cusink.sinkhorn(a, b, C, eps=0.5, tol=1e-11, max_iter=5000) for C in (grid, full))
    pairs = [
        (ours.plan(), theirs.plan()),
        (ours.apply(v, 0), theirs.apply(v, 0)),
        (ours.f, theirs.f),
        (ours.g, theirs.g),
    ]
    pairs += zip(ours.bounds(), theirs.bounds(), strict=True)
    for cotangent in ({"grad_cost": 1.0}, {"grad_entropic_cost": v[:, 0]}, {"grad_f": v, "grad_g": v}):
        grads = [cusink.sinkhorn_adjoint(result, tol=1e-11, **cotangent) for result in (ours, theirs)]
        pairs += [[getattr(x, name) for x in grads] for name in ("a", "b", "eps")]
    for actual, expected in pairs:
        expected = xp.numpy(expected)
        np.testing.assert_allclose(xp.numpy(actual), expected, rtol=1e-7, atol=1e-8 * abs(expected).max())


@pytest.mark.parametrize("value", ["cost", "divergence"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_matrices_are_those_of_the_cost(value, dtype):
    grid, a = cusink.Grid((6, 7), periodic=(False, True)), images(5, 6, 7).astype(dtype)
    ours, theirs = (
        cusink.distance_matrix(a, None, C, eps=1.0, value=value, tol=1e-5) for C in (grid, cost(grid).astype(dtype))
    )
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.max())


@pytest.mark.parametrize("eps", [200.0, 1.0])
def test_no_array_of_all_pairs_of_cells_is_made(eps):
    grid, (a, b) = cusink.Grid((64, 64)), images(2, 64, 64)
    with pytest.warns(cusink.ConvergenceWarning):
        cusink.sinkhorn(a, b, grid, eps=eps, max_iter=1)
    tracemalloc.start()
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(a, b, grid, eps=eps, max_iter=2, tol=1e-12)
    result.apply(a, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4096**2 * 8 / 20
