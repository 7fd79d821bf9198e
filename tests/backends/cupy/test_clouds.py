"""The CuPy operators for costs between points, on emulated kernels: values, forms, launches, broken kernels."""

import dataclasses
import sys

import emulated
import numpy as np
import pytest
from emulated import oracle
from emulated.cupy_stand_in import changed, force, operators, part, swapped
from emulated.oracle import assert_as_good

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import GROUP, H100, POINTS, STATE, SUMMED, Launch, configure
from cusink.backends.numpy import points as numpy_points
from cusink.convergence.options import Options
from cusink.costs.operands import PointCost
from cusink.costs.points import PointCosts
from cusink.gradients.system import LinearSolve, solve_marginal_system
from cusink.solver.loop import solve
from cusink.solver.problem import Problem

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
LAUNCHES = ((1, 1), (2, 3), (7, 16))
# Problems, points and coordinates: more than one tile of either side, one point, a dimension that is not compiled in.
SHAPES = ((1, 1, 1, 1), (2, 70, 35, 2), (3, 33, 130, 3), (1, 5, 70, 7))
METRICS = (("squared", 1.0, 1.0), ("squared", 0.5, 1.0), ("squared", 1.5, 0.7), ("cityblock", 1.0, 2.0))


def make(B, n, m, d, own, metric, dtype, rng):
    """``(points, stored cost, p, q, v, eps)``, zero weights and coinciding points among them."""
    norm, exponent, factor = metric
    x, y = (rng.normal(size=((B,) if own else ()) + (size, d)).astype(dtype) for size in (n, m))
    y[..., 0, :] = x[..., 0, :]
    points = PointCosts(x, y, norm, exponent, factor)
    p, q = (rng.normal(size=(B, size)) - 3 for size in (n, m))
    if n > 1 and m > 1:
        p[:, 1], q[:, -1] = -np.inf, -np.inf
    v = rng.normal(size=(B, m))
    return points, points.astype(np.float64).block(np), *(array.astype(dtype) for array in (p, q, v)), 0.5


def calls(C, p, q, v, eps, axis):
    """Name and arguments of each operator."""
    kept, summed = (p, q) if axis else (q, p)
    vector = v if axis else np.ascontiguousarray(p).clip(-2, 2)
    yield "softmin", (C, summed, eps, axis)
    yield "apply_plan", (C, p, q, vector, eps, axis)
    yield "c_transform", (C, summed, axis)
    if axis:
        yield "transport_cost", (C, p, q, eps)
        yield "plan", (C, p, q, eps)


def forced(grid, warps, less_shared=0):
    """Return a `configure` with this launch for every reduction over points."""

    def choose(operator, B, n, m, dtype, device, *, d=1, **options):
        launch = configure(operator, B, n, m, dtype, device, d=d, **options)
        if launch is None or not operator.endswith("_points") or operator == "cost_points":
            return launch
        term = operator.removesuffix("_points")
        size = np.dtype(dtype).itemsize
        points = d * (POINTS[size] + 32 * warps + 2 * GROUP) + 32 * warps * SUMMED[term]
        shared = size * max(points, POINTS[size] * warps * STATE[term])
        return Launch(launch.file, launch.kernel, grid, 32 * warps, shared - less_shared)

    return choose


def compare(metrics=METRICS, dtypes=DTYPES, shapes=SHAPES, launches=LAUNCHES, less_shared=0):
    rng = np.random.default_rng(1)
    reductions, turn = part("clouds.reductions"), 0
    for dtype in dtypes:
        for metric in metrics:
            for shape in shapes:
                own = turn % 2 == 1
                emulated.shuffle(turn)
                if launches:
                    force(forced(*launches[turn % len(launches)], less_shared))
                points, C, p, q, v, eps = make(*shape, own, metric, dtype, rng)
                for axis in (0, 1):
                    for (name, args), (_, stored) in zip(
                        calls(points, p, q, v, eps, axis), calls(C, p, q, v, eps, axis), strict=True
                    ):
                        with np.errstate(all="ignore"):
                            exact = getattr(oracle, name)(*stored)
                            naive = getattr(oracle, name)(*stored, dtype=np.float32)
                            actual = getattr(reductions, name)(*args)
                        exponent = np.abs(C).max() / eps + 10 if name not in ("softmin", "c_transform") else 0
                        assert_as_good(actual, exact, naive, exponent)
                turn += 1


def test_reductions_over_points_agree_with_those_over_a_stored_cost():
    with operators():
        compare()


def test_points_with_many_coordinates_go_by_blocks_of_costs():
    """Few bytes of shared memory stand for many coordinates."""
    with operators(shared_memory=4096, block_entries=200) as ops:
        compare(metrics=METRICS[:1], shapes=[(3, 9, 40, 30)], launches=())
        assert "cost_points" in ops.launched and "softmin_points" not in ops.launched


def products(terms, own, shape, grid, metric=METRICS[0], spread=1.0):
    """Largest error of softmin and of apply_plan on tensor cores, in units of what `terms` should leave.

    Of two neighbouring points one is `spread` times as large as the other.
    """
    rng = np.random.default_rng(4)
    reductions = part("clouds.reductions")
    points, _, p, q, v, eps = make(*shape, own, metric, np.float32, rng)
    for side in (points.x, points.y):
        side[..., ::2, :] *= np.float32(spread)
    points, eps = dataclasses.replace(points, terms=terms), 20.0
    C = points.astype(np.float64).block(np)
    lengths = sum(np.sqrt((side.astype(np.float64) ** 2).sum(axis=-1).max()) for side in (points.x, points.y))
    # Of the product of two points, as a part of the cost; a half has 11 bits, two have 22.
    unit = lengths**2 * (2.0**-20 if terms == 3 else 2.0**-10)

    def choose(operator, *arguments, d=1, **options):
        launch = configure(operator, *arguments, d=d, **options)
        if launch is None or "_products" not in operator:
            return launch
        return launch._replace(grid=grid)

    force(choose)
    errors = []
    for axis in (0, 1):
        kept, summed = (p, q) if axis else (q, p)
        with np.errstate(all="ignore"):
            actual = reductions.softmin(points, summed, eps, axis)
            exact = oracle.softmin(C, summed, eps, axis)
            finite = np.isfinite(exact)
            assert (finite == np.isfinite(actual)).all()
            errors.append(np.abs(actual - exact)[finite].max() / unit)
            vector = v if axis else p.clip(-2, 2)
            applied = reductions.apply_plan(points, p, q, vector, eps, axis)
            exact = oracle.apply_plan(C, p, q, vector, eps, axis)
            scale = oracle.apply_plan(C, p, q, np.abs(vector), eps, axis)
            errors.append((np.abs(applied - exact) / np.where(scale > 0, scale, 1)).max() * eps / unit)
    return max(errors)


@pytest.mark.parametrize("own", [False, True])
def test_products_on_tensor_cores_have_the_digits_of_a_float(own):
    with operators() as ops:
        sys.modules["cupy"].shared_memory(232448)
        # More than one strip and tile, as many as there are, one or several blocks of coordinates, and fewer points.
        for turn, (shape, grid) in enumerate((((2, 90, 70, 17), 3), ((1, 80, 330, 70), 1), ((3, 5, 3, 40), 2))):
            emulated.shuffle(turn)
            fine, coarse = (products(terms, own, shape, grid) for terms in (3, 1))
            assert fine < 1
            assert 2.0**-8 < coarse < 1  # 11 bits are what was asked for: beyond all that three terms may lose
        assert {"split_points", "softmin_products", "apply_plan_products"} <= set(ops.launched)
        assert products(3, own, (2, 20, 20, 16), 2, ("squared", 1.0, 0.25)) < 1
        assert products(3, own, (1, 20, 30, 33), 2, spread=1e6) < 1
        assert tiny_products(own) < 1
        assert split() < 1


def tiny_products(own):
    """Largest error of softmin between points of 1e-16, whose squares are numbers of a float, in units of eps / 100."""
    points, C, *_ = make(1, 20, 30, 33, own, METRICS[0], np.float32, np.random.default_rng(7))
    small, eps = np.float32(1e-16), 1e-30
    points = dataclasses.replace(points, x=points.x * small, y=points.y * small)
    logits = np.zeros((1, 30), np.float32)
    found = part("clouds.reductions").softmin(points, logits, eps, 1)
    exact = oracle.softmin(points.astype(np.float64).block(np), logits, eps, 1)
    return np.abs(found - exact).max() / (eps / 100)


def split():
    """Largest error of points made of their parts again, in units of what two halves leave.

    Products would not show that parts are no numbers: such pairs are made of differences.
    """
    points = (1e6 * np.random.default_rng(3).normal(size=(50, 40))).astype(np.float32)
    found = part("point_parts").SplitPoints.of(points)
    high, low = np.split(found.halves[:50].astype(np.float64), 2, axis=-1)
    with np.errstate(invalid="ignore"):
        whole = ((high + low) * found.scales.T[:50, :, None]).reshape(50, 64)[:, :40]
    return np.abs(whole - points).max() / (2.0**-21 * np.abs(points).max())


def test_parts_of_many_small_clouds_keep_to_the_memory_limit():
    """50 points are padded to 320: eight times the points, of which there may be any number."""
    with operators():
        room = part("clouds.reductions").SplitPoints.has_room
        few, many, large = (np.empty((B, size, 64), np.float32) for B, size in ((50, 50), (2000, 50), (1, 50_000)))
        assert room(few, few, 0) and room(large[0], large[0], 0)
        assert not room(many, many, 100 << 20)
        assert room(many, many, 2000 * 2 * 320 * 2 * 132) and not room(many, many, 2000 * 2 * 320 * 2 * 132 - 1)


def far_products():
    """Largest error of softmin on tensor cores between two towns 1000 apart, in units of what it may be."""
    rng, d, n = np.random.default_rng(5), 17, 40
    x, y = rng.random((n, d)), rng.random((n, d))
    x[::2, 0] += 1000
    y[n // 2 :, 0] += 1000
    x[0] = y[0] = -9999
    points = PointCosts(x.astype(np.float32), y.astype(np.float32), "squared")
    C, q, eps = points.astype(np.float64).block(np), np.zeros((1, n), np.float32), 0.5
    q[0, 0] = -np.inf
    exact = oracle.softmin(C, q, eps, 1)
    found = part("clouds.reductions").softmin(points, q, eps, 1)
    # A distance that is not recomputed is at least a hundredth of |x|^2 + |y|^2, of which it lost 2^-20.
    return (np.abs(found - exact) / np.abs(exact)).max() / (100 * 2.0**-20)


def far_points(d):
    """Largest error of softmin and apply_plan of points in two towns 1000 apart, in units of a few roundings."""
    rng, reductions, errors = np.random.default_rng(6), part("clouds.reductions"), []
    for towns in (1, 2):  # of the kept points; the second tile of those that are summed over has both
        x, y = rng.random((1, 40, d)), rng.random((1, 64, d))
        x[:, 20:, 0] += 1000 * (towns - 1)
        y[:, 48:, 0] += 1000
        points = PointCosts(x.astype(np.float32), y.astype(np.float32), "squared")
        C, q = points.astype(np.float64).block(np), np.zeros((1, 64), np.float32)
        p, v, eps = np.zeros((1, 40), np.float32), rng.random((1, 64)).astype(np.float32), 0.5
        found, exact = (f(c, q, eps, 1) for f, c in ((reductions.softmin, points), (oracle.softmin, C)))
        errors.append(np.abs(found - exact).max() / (8 * 2.0**-24 * max(1, np.abs(exact).max())))
        found, exact = (f(c, p, q, v, eps, 1) for f, c in ((reductions.apply_plan, points), (oracle.apply_plan, C)))
        errors.append((np.abs(found - exact) / exact).max() / (32 * 2.0**-24))
    return max(errors)


@pytest.mark.parametrize("d", [2, 3])
def test_few_coordinates_keep_their_digits_far_from_the_origin(d):
    with operators() as ops:
        force(forced(2, 1))
        assert far_points(d) < 1
        assert {"softmin_points", "apply_plan_points"} <= set(ops.launched)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("far || !(length < FAR)", "false"),
        ("Term::exponent(group.at[g])) + mine.length[r];", "Term::exponent(group.at[g]));"),
        ("state.shift -= length;", ""),
        ("state.logit -= length;", ""),
        ("apart ? value : Term::lowered(value, length)", "value"),
    ],
)
def test_broken_products_of_few_coordinates_are_found(old, new):
    assert old in loader.source("points.cu")

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new))

    with operators(function=function):
        force(forced(2, 1))
        with np.errstate(all="ignore"):
            assert not far_points(3) < 1


def test_products_of_far_points_keep_the_distances_of_near_ones():
    with operators() as ops:
        sys.modules["cupy"].shared_memory(232448)
        assert far_products() < 1
        assert "softmin_products" in ops.launched


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("!(cost[c] >= near.below(both))", "false"),
        ("__syncthreads();  // this block is there for all, and all have used the one before", ""),
        ("if (blocks == 1) __syncthreads();", ""),
        ("__syncthreads();  // all have used the last stage", ""),
        ("__syncthreads();  // the next strip writes there again", ""),
        ("if (product < 2 && !fine) continue;", "if (product < 2) continue;"),
        ("long long own = stride ? b : 0", "long long own = 0"),
        ("k < size ? smaller(lengths[k], REAL(1e38)) : REAL(0)", "lengths[k]"),
        ("ANY_SIGN ? fabsf(x) : x", "x"),
        ("tile.k0 += TILE_COLUMNS;", ""),
        ("k < n && c < d ?", "c < d ?"),
    ],
)
def test_broken_products_are_found(old, new):
    assert old in loader.source("point_products.cu")

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=lambda text: text.replace(old, new))

    def errors():
        yield split()
        yield far_products()
        yield products(3, True, (2, 20, 30, 33), 1, spread=1e6)
        for turn in range(6):
            emulated.shuffle(turn)
            yield products(3, True, (2, 90, 330, 17 if turn % 2 else 40), 1 + turn % 3)

    with operators(function=function):
        sys.modules["cupy"].shared_memory(232448)
        with pytest.raises((AssertionError, emulated.EmulationError)):
            assert all(error < 1 for error in errors())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_launch_is_legal(dtype):
    size = np.dtype(dtype).itemsize
    for d in (1, 3, 4, 16, 64, 128, 300):
        for B, n, m in ((1, 10, 10), (1, 100_000, 100_000), (300, 70, 20)):
            for term in STATE:
                launch = configure(f"{term}_points", B, n, m, dtype, H100, d=d)
                assert launch.block % 32 == 0 and 32 <= launch.block <= 512 and launch.grid >= 1
                needed = size * (d * (POINTS[size] + launch.block + 2 * GROUP) + launch.block * SUMMED[term])
                assert max(needed, size * POINTS[size] * launch.block // 32 * STATE[term]) <= launch.shared
                assert launch.shared < H100.shared_memory
    assert configure("softmin_points", 1, 10, 10, dtype, H100, d=2000) is None


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("points.cu", "__syncthreads();  // all have used the points", ""),
        ("points.cu", "w < warps; w++) state[r].merge", "w < warps - 1; w++) state[r].merge"),
        ("points.cu", "b * points.kept_stride", "0 * points.kept_stride"),
    ],
)
def test_broken_kernels_are_found(file, old, new):
    assert old in loader.source(file)

    def function(name_of_file, name, dtype):
        return emulated.Kernel(name_of_file, name, dtype, change=lambda text: text.replace(old, new))

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        compare(dtypes=DTYPES[:1], metrics=METRICS[:1], shapes=SHAPES[1:3] * 4)


@pytest.mark.parametrize(
    ("prefix", "change"),
    [
        ("softmin_", swapped("x", "y")),
        ("softmin_", swapped("kept", "summed")),
        ("softmin_", lambda given: {"x_stride": np.int64(0)}),
        ("apply_plan_", swapped("p", "q")),
        ("cost_points", lambda given: {"x": given["x"] * 2, "y": given["y"] * 2}),  # the factor in place of its root
    ],
)
def test_wrong_arguments_are_found(prefix, change):
    with operators(arguments=changed(prefix, change)), pytest.raises((AssertionError, emulated.EmulationError)):
        compare(dtypes=DTYPES[1:], shapes=SHAPES[1:3] * 2)


def test_too_little_shared_memory_is_found():
    with operators(), pytest.raises((AssertionError, emulated.EmulationError)):
        compare(dtypes=DTYPES[:1], metrics=METRICS[:1], shapes=SHAPES[2:3], less_shared=512)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [False, True])
def test_iterations_on_points_follow_the_oracle(own, dtype):
    rng = np.random.default_rng(2)
    with operators(shared_memory=16384) as ops:
        points_ops = part("points")
        points, C, *_ = make(3, 70, 68, 2, own, METRICS[0], dtype, rng)
        a, b = (rng.dirichlet(np.ones(size), 3).astype(dtype) for size in (70, 68))
        a[0, :5] = 0
        a[0] /= a[0].sum()
        eps, omega = 0.5, np.array([1.0, 1.3, 1.6])
        exact = naive = np.zeros_like(a), np.zeros_like(b)
        iteration = points_ops.Iteration(points, a, b, eps, *exact, "auto")
        assert type(iteration.form).__name__ == "StreamedForm"
        stored = C.astype(dtype)
        exponent = 10 * C.max() / eps
        keep = np.array([2, 0])
        for turn in range(3):
            bound = iteration.advance(omega, 2)
            with np.errstate(all="ignore"):
                *exact, exact_bound = oracle.iterate(stored, a, b, eps, *exact, omega, 2)
                *naive, naive_bound = oracle.iterate(stored, a, b, eps, *naive, omega, 2, dtype=np.float32)
            assert_as_good(np.asarray(bound, dtype), exact_bound, naive_bound, exponent, 1)
            if turn == 0:
                iteration.keep(keep)
                a, b, omega = a[keep], b[keep], omega[keep]
                exact, naive = ([x[keep] for x in side] for side in (exact, naive))
                stored = stored[keep] if own else stored
        f, g, cost, error = iteration.finish(np.array([1]))
        one = stored[1:] if own else stored
        with np.errstate(all="ignore"):
            expected = oracle.finish(one, a[1:], b[1:], eps, exact[1][1:])
            rough = oracle.finish(one, a[1:], b[1:], eps, naive[1][1:], dtype=np.float32)
        for actual, right, allowed, scale in zip(
            (f, g, cost, error.astype(dtype)), expected, rough, (eps, eps, None, 1), strict=True
        ):
            assert_as_good(actual, right, allowed, exponent, scale)
        assert "softmin_points" in ops.launched and "softmin_rows" not in ops.launched


def test_public_functions_run_on_points_through_the_emulated_backend():
    """Solve, bounds, products with the plan and gradients, as arrays of the stand-in, beside NumPy's."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(33, 3))
    costs = PointCosts(x, y, "squared")
    a, b = rng.dirichlet(np.ones(40), 2), rng.dirichlet(np.ones(33), 2)
    options = Options(max_iter=500, tol=1e-8)
    with operators(shared_memory=8192):
        theirs = part("points")
        operands = [PointCost(costs, module.OPERATORS) for module in (theirs, numpy_points)]
        results = [solve(C, a, b, 0.5, options) for C in operands]
        emulated_parts, numpy_parts = (
            [f[:, :, None] + g[:, None, :], cost, error < 1e-8, converged]
            for f, g, cost, error, _, converged, *_ in results
        )
        for mine, other in zip(emulated_parts, numpy_parts, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
        f, g = results[1][:2]
        fits = [
            solve_marginal_system(
                Problem(a=a, b=b, C=C, eps=0.5, f=f, g=g, dtype=a.dtype, batched=True),
                lambda _, means: (means.mean_cost(1), means.mean_cost(0)),
                LinearSolve(1e-10, 500),
            )
            for C in operands
        ]
        sums = [fit[0][:, :, None] + fit[1][:, None, :] for fit in fits]
        np.testing.assert_allclose(*sums, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            theirs.bilinear(costs, a, b), np.einsum("bi,ij,bj->b", a, cusink.cost_matrix(x, y), b), rtol=1e-12
        )
