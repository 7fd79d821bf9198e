"""Kernels that took the place of long chains of array operations: between the cells of a grid, and for `reach`.

Their iterations are held to oracles in tests/backends/numpy/test_grid.py and test_api.py too; here are the kernels by
themselves, for any launch, and how many things an iteration gives the device to do.
"""

import functools
import math

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays
from emulated.cupy_stand_in import force, operators, part
from emulated.oracle import assert_as_good

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import GRID_PASSES, configure
from cusink.costs.grid import grid_costs

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

DTYPES = (np.float32, np.float64)
LINE, IMAGE, VOLUME = cusink.Grid(5), cusink.Grid((3, 4)), cusink.Grid((2, 3, 2))


def forced(grid, warps, operator, *sizes, **options):
    """Return a launch with so many blocks, and so many warps where that is free."""
    launch = configure(operator, *sizes, **options)
    if launch.file not in CHECKS:
        return launch
    return launch._replace(grid=grid, block=launch.block if operator in GRID_PASSES else 32 * warps)


def dense_kernel(grid, eps, s):
    """Return ``2**s exp(-C / eps)`` in float64."""
    return np.ldexp(np.exp(-grid.dense() / eps), s)


def check_products(dtype, seed=0, cells=((5,), (1,), (33, 3), (3, 34), (2, 35, 3))):
    """Products along all axes are those with the dense kernel, and so are those with the cost."""
    scalings, rng = part("grid_scalings"), np.random.default_rng(seed)
    for shape in cells:
        grid, eps = cusink.Grid(shape, "cityblock"), 7.0
        form = scalings.AxisScalings(grid_costs(np, grid, np.dtype(dtype)), dtype, eps)
        x = np.ldexp(rng.random((3, grid.shape[0])), [[70], [0], [-70]]).astype(dtype)
        slot = scalings.Slot(np.zeros(3), x.max(axis=1), x.min(axis=1))
        out = form._product(x, slot, (np.empty_like(x), np.empty_like(x)))
        K = dense_kernel(grid, eps, form.kernel.s)
        x = np.ldexp(x, int(form.top) - np.frexp(slot.high)[1][:, None]).astype(float)  # brought to size
        np.testing.assert_allclose(out, x @ K, rtol=sum(shape) * 2 * np.finfo(dtype).eps)
        of_cost = form._cost_product(
            np.ldexp(x, 9).astype(dtype), slot._replace(high=x.max(axis=1).astype(dtype) * 512)
        )
        np.testing.assert_allclose(
            of_cost, x @ (K * grid.dense() / form.kernel.unit), rtol=sum(shape) * 4 * np.finfo(dtype).eps
        )


def check_iterations(dtype, seed=0, method="scaling"):
    """Two chunks and an end of two problems, one with empty bins, against log-sum-exps in float64."""
    iteration_of, eps, omega = part("grid").Iteration, 2.0, np.array([1.0, 1.5])
    rng = np.random.default_rng(seed)
    for grid in (LINE, IMAGE, VOLUME):
        n, C = grid.shape[0], grid.dense()
        a, b = (rng.dirichlet(np.ones(n), 2).astype(dtype) for _ in "ab")
        a[1, :2] = b[1, -1:] = 0
        a, b = (w / w.sum(axis=1, keepdims=True) for w in (a, b))
        f, g = (rng.normal(size=(2, n)).astype(dtype) for _ in "fg")
        iteration = iteration_of(grid_costs(np, grid, np.dtype(dtype)), a, b, eps, f, g, method)
        u, v = f.astype(float), g.astype(float)
        with np.errstate(all="ignore"):
            for _ in range(2):
                bound = iteration.advance(omega, 2)
                for _ in range(2):
                    v = relaxed(v, softmin(C, a, u, eps), omega, eps)
                    plain = softmin(C, b, v, eps)
                    u = relaxed(u, plain, omega, eps)
                off = (b * abs(1 - np.exp((v - softmin(C, a, u, eps)) / eps))).sum(axis=1)
                past = (a * abs(1 - np.exp((u - plain) / eps))).sum(axis=1)
                np.testing.assert_allclose(bound, off + past * (omega > 1), rtol=0, atol=40 * np.finfo(dtype).eps)
                if method == "scaling":
                    check_slots(iteration.work[0][1])
            found, after, cost, error = iteration.finish(np.array([1, 0]))
        u, exact = softmin(C, b, v, eps), np.where(b > 0, v, softmin(C, a, softmin(C, b, v, eps), eps))
        tight = {"rtol": 0, "atol": 100 * eps * np.finfo(dtype).eps * n}
        np.testing.assert_allclose(found, u[::-1], **tight)
        np.testing.assert_allclose(after, exact[::-1], **tight)
        P = a[:, :, None] * b[:, None, :] * np.exp((u[:, :, None] + v[:, None, :] - C) / eps)
        np.testing.assert_allclose(cost, (P * C).sum(axis=(1, 2))[::-1], rtol=40 * np.finfo(dtype).eps)
        off = abs(P.sum(axis=1) - b).sum(axis=1)
        np.testing.assert_allclose(error, off[::-1], rtol=0, atol=40 * np.finfo(dtype).eps)


def check_slots(work):
    """Blocks have found the largest and the smallest scaling of the last half-step, with no other one's in it."""
    for side in (work.rows, work.columns):
        slot = side.slots[0]  # after 2 iterations
        assert (slot.high == side.x.max(axis=1)).all()
        assert (slot.low == np.where(side.weights > 0, side.x, np.inf).min(axis=1)).all()


def softmin(C, weights, potential, eps):
    """Return the softmin of a symmetric cost, in float64."""
    with np.errstate(divide="ignore"):
        terms = np.log(weights.astype(float)) + potential / eps
    return -eps * np.logaddexp.reduce(terms[:, :, None] - C / eps, axis=1)


def relaxed(old, plain, omega, eps):
    past = (omega - 1)[:, None]
    return plain + eps * np.log(past + np.maximum(1 - past * np.exp((old - plain) / eps), 0))


def check_damped(dtype, seed=0):
    """Compare the update of a side and the shift with the formulas of docs/unbalanced.md in float64."""
    steps, eps, rng = part("unbalanced").STEPS, 0.1, np.random.default_rng(seed)
    for n, m, reach in ((1, 1, (1.0, 2.0)), (37, 5, (0.3, math.inf)), (70, 33, (math.inf, 5.0)), (5, 70, (0.01, 1e9))):
        a, b = (rng.dirichlet(np.ones(size), 3).astype(dtype) for size in (n, m))
        a[2, 1:] = b[1, 1:] = 0
        f, g, image = (rng.normal(size=(3, size)).astype(dtype) for size in (n, m, n))
        f[0] -= dtype(300 * min(reach[0], 1.0))  # its exp(-f / rho) is out of range where rho is small
        shift = rng.normal(size=(3, 1))
        with np.errstate(divide="ignore"):
            log_a = np.log(a)
        for past, rho, sign in ((None, reach[0], 1), (np.array([[0], [0.4], [0.8]], dtype), reach[0], -1)):
            out, logits = steps.update(f, image, shift, sign, a, log_a, past, eps, rho)
            exact, rough = (
                updated(f, image, sign * shift, a, past, eps, rho, kind) for kind in (np.float64, np.float32)
            )
            assert_as_good(out, exact, rough)
            np.testing.assert_allclose(logits, log_a + out / dtype(eps), rtol=8 * np.finfo(dtype).eps)
        t = steps.translation(a, b, f, g, reach)
        with np.errstate(divide="ignore"):
            masses = (
                np.logaddexp.reduce(np.log(weights.astype(float)) - x.astype(float) / rho, axis=1)
                for weights, x, rho in ((a, f, reach[0]), (b, g, reach[1]))
            )
            exact = np.subtract(*masses) / (1 / reach[0] + 1 / reach[1])
        np.testing.assert_allclose(t, exact, rtol=1e-12, atol=1e-12)


def updated(f, image, shift, weights, past, eps, rho, kind):
    """Return the potential after a step, in a dtype."""
    f, image, kappa = f.astype(kind), image.astype(kind), 1 / (1 + eps / rho)
    plain = kind(kappa) * image - (shift * (kappa * eps / rho)).astype(kind)
    if past is not None:
        step = plain - f
        unit = np.where(step > 0, kind(eps), kind(min(rho, 1e12 * eps)))
        further = unit * np.log1p(-past.astype(kind) * np.expm1(-abs(step) / unit))
        plain = plain + np.sign(step) * further
    return np.where(weights > 0, plain, kind(0))


def check_logs(dtype, seed=0):
    check_iterations(dtype, seed, "log")


def check_far_logs(dtype, seed=0):
    """Take sums whose terms leave the range of a dtype within one line; and a problem with nothing in it."""
    rng, eps, wide = np.random.default_rng(seed), 0.5, dtype == np.float64
    for grid in (cusink.Grid(35), cusink.Grid((33, 2)), cusink.Grid((2, 3, 34), spacing=(5.0, 1.0, 1.0))):
        softmin_of = part("grid_logs").LineSoftmin(grid_costs(np, grid, np.dtype(dtype)), eps)
        x = (rng.normal(size=(3, grid.shape[0])) * (300 if wide else 30)).astype(dtype)
        x[1, 3:] = -np.inf  # all from one end of each line
        x[2] = -np.inf
        found = softmin_of(x, 1)
        with np.errstate(invalid="ignore"):
            exact = -eps * np.logaddexp.reduce(x.astype(float)[:, :, None] - grid.dense() / eps, axis=1)
        largest = abs(x[np.isfinite(x)]).max() * eps + grid.max()
        np.testing.assert_allclose(found, exact, rtol=0, atol=4 * np.finfo(dtype).eps * largest)
    # All terms of the sum for cell 20 are about the smallest number: some underflow, and the others are no zero.
    steep = -np.finfo(dtype).minexp * np.log(2) / 20
    line = cusink.Grid(24, "cityblock", spacing=steep)
    x = (-steep * np.arange(24) + rng.normal(size=(2, 24))).astype(dtype)
    x[:, 20:] = -np.inf
    found = part("grid_logs").LineSoftmin(grid_costs(np, line, np.dtype(dtype)), 1.0)(x, 1)
    exact = -np.logaddexp.reduce(x.astype(float)[:, :, None] - line.dense(), axis=1)
    np.testing.assert_allclose(found, exact, rtol=8 * np.finfo(dtype).eps)


def test_no_sum_passes_that_lost_digits():
    """All entries of K that a cell needs underflow, beside one sum of any size about the bound on what they take."""
    cells, tiny, rounding = 600, *(float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "eps"))
    grid = cusink.Grid(cells, "cityblock", spacing=((-math.log(0.9 * tiny), *[1e-5] * (cells - 2)),))
    x = np.zeros((25, cells), np.float32)
    x[:, 0] = np.log(tiny / rounding * 10 ** np.linspace(-2, 4, 25))
    with operators():
        C = grid_costs(np, grid, np.dtype(np.float32))
        found = part("grid_logs").LineSoftmin(C, 1.0)(x, 1)
    exact = -np.logaddexp.reduce(x.astype(float) - C.axes[0][0].astype(float), axis=1)
    np.testing.assert_allclose(found[:, 0], exact, rtol=0, atol=3 * np.spacing(np.float32(exact.max())))


def check_damped_grid(dtype, seed=0):
    """Compare iterations with `reach` on grids with a softmin, an update and a shift in turn, in float64."""
    steps, rng, eps = part("grid_unbalanced").GRID_STEPS, np.random.default_rng(seed), 2.0
    cases = ((LINE, (1.0, 2.0), 3), (cusink.Grid((35, 2)), (3.0, math.inf), 2), (VOLUME, (0.3, 7.0), 3))
    for grid, reach, count in cases:
        softmin_of = part("grid_logs").LineSoftmin(grid_costs(np, grid, np.dtype(dtype)), eps)
        n = grid.shape[0]
        a, b = (rng.dirichlet(np.ones(n), 2).astype(dtype) for _ in "ab")
        a[1, :2] = b[0, -1:] = 0
        b *= dtype(3)
        f, g = (rng.normal(size=(2, n)).astype(dtype) for _ in "fg")
        f[0] -= dtype(90 * min(reach))  # its exp(-f / rho) is out of range of float32
        with np.errstate(divide="ignore"):
            log_a, log_b = np.log(a), np.log(b)
        t, past, start = rng.normal(size=(2, 1)), np.array([[0.4], [0]], dtype), part("grid_unbalanced").Damped
        for excess in (None, past):
            given = start(f, g, t, log_b + g / dtype(eps), f)
            found = steps.iterate(softmin_of, (a, log_a), (b, log_b), given, excess, eps, reach, count)
            exact, rough = (
                damped_in_turn(grid.dense(), (a, b), given, excess, eps, reach, count, kind)
                for kind in (np.float64, np.float32)
            )
            for one, wide, naive in zip(found, exact, rough, strict=True):
                if one is not found.logits:
                    assert_as_good(one.astype(dtype), wide, naive.astype(np.float32))
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(found.logits, log_a + found.f / eps, rtol=8 * np.finfo(dtype).eps)


def damped_in_turn(C, weights, start, past, eps, reach, count, kind):
    """Return what an iteration with `reach` leaves: softmins in float64, rounded to a dtype, and updates in it."""
    a, b = weights
    f, g, t = start.f.astype(kind), start.g.astype(kind), start.t
    for k in range(count):
        if k:
            g = updated(g, softmin(C, a, f.astype(float), eps).astype(kind), -t, b, past, eps, reach[1], kind)
            with np.errstate(divide="ignore"):
                levels = (
                    np.logaddexp.reduce(np.log(w.astype(float)) - x.astype(float) / rho, axis=1, keepdims=True)
                    for w, x, rho in ((a, f, reach[0]), (b, g, reach[1]))
                )
                t = np.subtract(*levels) / (1 / reach[0] + 1 / reach[1])
        image = softmin(C, b, g.astype(float), eps).astype(kind)
        f = updated(f, image, t, a, past, eps, reach[0], kind)
    return f, g, t, f, image


CHECKS = {
    "grid.cu": (check_products, check_iterations),
    "grid_logs.cu": (check_logs, check_far_logs, check_damped_grid),
    "unbalanced.cu": (check_damped,),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("file", CHECKS)
def test_kernels_follow_the_oracle_in_any_launch(file, dtype):
    for seed, launch in enumerate((None, (1, 1), (3, 2), (40, 16))):
        with operators() as ops:
            emulated.shuffle(seed)
            if launch:
                force(functools.partial(forced, *launch))
            for check in CHECKS[file]:
                check(dtype, seed)
            assert set(loader.names(file)) <= set(ops.launched)


@pytest.mark.parametrize("file", CHECKS)
def test_kernels_keep_to_the_rules_of_cuda(file):
    """In a build that checks every access."""
    for seed, launch in enumerate(((2, 1), (1, 3))):
        with operators(function=emulated.checked_function):
            emulated.shuffle(seed)
            force(functools.partial(forced, *launch))
            for check in CHECKS[file]:
                check(np.float32)


BROKEN = {
    "a product that forgets a barrier": ("grid.cu", "__syncthreads();\n#pragma unroll 8", "#pragma unroll 8"),
    "scalings without their exponent": ("grid.cu", "- LIFT - factor.of(line.b).exponent;", "- LIFT;"),
    "scalings that are not brought to size": ("grid.cu", "scales ? -size.shift(", "scales && p < 0 ? -size.shift("),
    "a largest scaling of the half-step before": ("grid.cu", "spare_high[line.b] = 0;", ""),
    "a largest scaling of a part": ("grid.cu", "line.high = warp_maximum(line.high);", ""),
    "an error without the past": ("grid.cu", "? error[b] + off / mass :", "? off / mass :"),
    "a log that goes as far as it is told": (
        "grid_logs.cu",
        "fmax(beyond, double(line.past) - 1)",
        "beyond + line.past",
    ),
    "sums that are not certified": ("grid_logs.cu", "if (sum >= floor)", "if (sum > 0)"),
    "exponentials over another line's largest": ("grid_logs.cu", "* shape.lines + l0 + k)", "* shape.lines + l0)"),
    "a mass without the part of a warp": ("grid_logs.cu", "if (part.sum > 0) mass.add(", "if (k > 0) mass.add("),
    "a mass of one line": ("grid_logs.cu", "line.mass.merge_warp();", ""),
    "a shift of the half-step before": ("grid_logs.cu", "shift[b] = best;", "shift[b] += 0 * best;"),
    "a damped step with the other side's shift": ("grid_logs.cu", "Damping::of(sign,", "Damping::of(-sign,"),
    "a step down in the unit of a step up": ("unbalanced.cu", "step > 0 ? eps : fall", "eps"),
    "a mass that underflows": ("unbalanced.cu", "exp(mass.least - double(", "exp(mass.least * 0 - double("),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_found(what):
    file, old, new = BROKEN[what]
    assert old in loader.source(file)

    def function(name, *rest):
        change = (lambda text: text.replace(old, new)) if name == file else None
        return emulated.Kernel(name, *rest, change=change)

    def run():
        for check in CHECKS[file]:
            check(np.float32)

    with operators(function=function), pytest.raises((AssertionError, emulated.EmulationError)):
        run()


def test_what_leaves_the_range_of_float32_is_told_and_goes_on_in_float64():
    """Certified sums only: an inside that says otherwise would leave wrong digits."""
    grid, eps = cusink.Grid((40, 2)), 3.0
    a, b = np.zeros((2, 2, 80), np.float32)
    a[0, :4], b[0, -4:], a[1], b[1] = 0.25, 0.25, 1 / 80, 1 / 80
    with operators():
        iteration = part("grid").Iteration(grid_costs(np, grid, a.dtype), a, b, eps, 0 * a, 0 * b, "auto")
        for _ in range(3):
            iteration.advance(np.ones(2), 10)
        assert iteration.level.tolist() == [1, 0]
        f, g, cost, _ = iteration.finish(np.arange(2))
    exact = cusink.sinkhorn(a.astype(float), b.astype(float), grid, eps=eps, tol=None, max_iter=31)
    assert abs(cost - exact.cost).max() < 1e-4 * exact.cost.max()
    assert np.isfinite(f).all() and np.isfinite(g).all()


def work(call, memory=99 << 10):
    """Return how many things a call gives the device to do."""
    with device_arrays.device(memory) as (cupy, _):
        given = call(cupy)
        before = cupy_stand_in.Work.count
        given()
        return cupy_stand_in.Work.count - before


def of_grid(grid, count, **options):
    n = grid.shape[0]
    a, b = (np.random.default_rng(1).dirichlet(np.ones(n), 2).astype(np.float32) for _ in "ab")

    def call(cupy):
        x, y = cupy.asarray(a), cupy.asarray(b)
        return lambda: cusink.sinkhorn(x, y, grid, eps=4.0, max_iter=count, **{"tol": None} | options)

    return work(call)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize(
    ("grid", "most"), [(LINE, 2), (IMAGE, 4), (VOLUME, 6), (cusink.Grid((1, 5)), 2), (cusink.Grid((1, 1)), 2)]
)
def test_an_iteration_on_a_grid_is_two_launches_for_each_axis(grid, most, method):
    assert of_grid(grid, 20, method=method) - of_grid(grid, 10, method=method) == 10 * most


@pytest.mark.filterwarnings("ignore:.*did not reach")
@pytest.mark.parametrize("method", ["auto", "log"])
def test_from_the_second_check_on_a_grid_takes_a_graph(method):
    """25 iterations are a chunk; one more gives the device a graph, copies of what goes in and out, and little else."""
    assert of_grid(IMAGE, 100, method=method) - of_grid(IMAGE, 75, method=method) == 8
    never = {"tol": 1e-30, "overrelaxation": 1.5, "method": method}
    assert of_grid(IMAGE, 40, **never) - of_grid(IMAGE, 30, **never) == 8


def test_many_iterations_in_the_log_domain_are_graphs():
    """Ten iterations of 4 launches are one graph; the answer is that of as many iterations with no graph."""
    a, b = (np.random.default_rng(2).dirichlet(np.ones(6), 2) for _ in "ab")
    C, options = np.random.default_rng(3).random((6, 6)), {"eps": 0.1, "method": "log", "tol": None}

    def of(count):
        def call(cupy):
            x, y, costs = map(cupy.asarray, (a, b, C))
            return lambda: cusink.sinkhorn(x, y, costs, max_iter=count, **options)

        return work(call, 0)

    assert of(65) - of(45) == 2
    assert of(20) - of(10) == 40
    for count in (20, 21, 47):
        with device_arrays.device(0) as (cupy, _):
            found = cusink.sinkhorn(*map(cupy.asarray, (a, b, C)), max_iter=count, **options)
        exact = cusink.sinkhorn(a, b, C, max_iter=count, **options)
        np.testing.assert_allclose(found.f.get(), exact.f, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.error.get(), exact.error, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("omega", [None, 1.5])
def test_an_iteration_with_reach_is_five_launches(omega):
    a, b = (np.random.default_rng(2).dirichlet(np.ones(6), 2) for _ in "ab")
    C = np.random.default_rng(3).random((6, 6))

    def of(count):
        def call(cupy):
            x, y, costs = map(cupy.asarray, (a, b, C))
            return lambda: cusink.sinkhorn(
                x, y, costs, eps=0.1, reach=1.0, tol=None, max_iter=count, overrelaxation=omega
            )

        return work(call)

    assert of(30) - of(10) == 20 * 5


@pytest.mark.parametrize("omega", [None, 1.5])
@pytest.mark.parametrize(("grid", "most"), [(LINE, 3), (IMAGE, 4), (VOLUME, 6)])
def test_an_iteration_with_reach_on_a_grid_is_two_launches_for_each_axis(grid, most, omega):
    """On a line, whose only pass is the last, and one for the shift."""
    unbalanced = {"reach": 1.0, "overrelaxation": omega}
    assert of_grid(grid, 20, **unbalanced) - of_grid(grid, 10, **unbalanced) == 10 * most
