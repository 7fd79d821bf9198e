"""Large clouds on a device, by emulated kernels: what is left out of a sum is below its rounding, and is most of it."""

import contextlib
import dataclasses

import emulated
import numpy as np
import pytest
from emulated import device_arrays, oracle
from emulated.cupy_stand_in import changed, operators, part, swapped

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.clouds import near_launch
from cusink.backends.cupy.launch import H100, PLAIN_SHARED_MEMORY, POINTS, TILE, Launch
from cusink.costs.points import PointCosts

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

METRICS = (("squared", 1.0, 1.0), ("squared", 0.5, 2.0), ("squared", 1.5, 0.7), ("cityblock", 1.0, 1.0))
LAUNCHES = ((1, 1), (3, 2), (7, 8))
KINDS = ("plain", "apart", "steep", "zeros", "moved")
EPS = 3e-3


def clouds(kind, n, m, d, dtype, rng, B=2):
    """``(x, y, logits)``, of which the last are natural and for a sum over y."""
    x, y, q = rng.random((n, d)), rng.random((m, d)), rng.normal(size=(B, m))
    if kind == "apart":  # towns; a point far from all, which has no weight
        x[::3] += 50
        y[::2] += 50
        y[5] = -9e3
        q[:, 5] = -np.inf
    if kind == "steep":  # as the potentials of a plan that moves all points, of any size
        q += (y @ rng.normal(size=d) * 2 + (y**2).sum(axis=1)) / EPS + 1e4
    if kind == "zeros":
        q[:, rng.random(m) < 0.7] = -np.inf
        q[1] = -np.inf
        q[1, -1] = 0
    if kind == "moved":
        x += 0.4
        q += 2 * 0.4 * y.sum(axis=1) / EPS
    return *(p.astype(dtype) for p in (x, y)), q.astype(dtype)


def near_sums(C, q, eps, axis, B=None):
    """Return the softmin that leaves out pairs, with points and logits in the order of the caller."""
    points = part("clouds.near").NearPoints.of(C, len(q) if B is None else B)
    kept, summed = points.sides[1 - axis], points.sides[axis]
    out = points.log_sums(q[:, summed.order], part("reductions").Scales.softmin(eps), axis)
    return out[:, kept.place]


@contextlib.contextmanager
def launched(grid, warps):
    """Let every ``softmin_near`` have this launch."""
    module = part("clouds.near").near_launch
    plain = module.configure

    def configure(operator, B, kept, summed, dtype, device, d):
        launch = plain(operator, B, kept, summed, dtype, device, d)
        if operator != "softmin_near":
            return launch._replace(grid=grid)
        size = np.dtype(dtype).itemsize
        mine = 64 if size == 4 else 32
        shared = size * max(d * (mine + 32 * warps + 8) + 32 * warps, 2 * mine * warps)
        return Launch(launch.file, launch.kernel, grid, 32 * warps, shared)

    module.configure = configure
    try:
        yield
    finally:
        module.configure = plain


def compare(
    dtypes=(np.float32, np.float64),
    metrics=METRICS,
    kinds=KINDS,
    sizes=((130, 333), (65, 40), (40, 2200)),
    d=(2, 3, 1, 5),
):
    """Hold sums to the oracle, or to twice the error of those that are taken over all pairs."""
    rng, turn = np.random.default_rng(0), 0
    for dtype in dtypes:
        for metric in metrics:
            for kind in kinds:
                emulated.shuffle(turn)
                x, y, q = clouds(kind, *sizes[turn % len(sizes)], d[turn % len(d)], dtype, rng)
                C = PointCosts(x, y, *metric)
                stored, axis = C.astype(np.float64).block(np), turn % 2
                q = q if axis else np.resize(q, (2, len(x)))
                with launched(*LAUNCHES[turn % len(LAUNCHES)]), np.errstate(all="ignore"):
                    exact, naive = (oracle.softmin(stored, q, EPS, axis, dtype=t) for t in (np.float64, np.float32))
                    plain, found = part("clouds.reductions").softmin(C, q, EPS, axis), near_sums(C, q, EPS, axis)
                finite = np.isfinite(exact)
                assert (finite == np.isfinite(found)).all()
                if not np.abs(found - exact)[finite].max() <= 2 * np.abs(plain - exact)[finite].max():
                    oracle.assert_as_good(found, exact, naive, 0)
                turn += 1


def test_sums_are_those_over_all_pairs():
    with operators() as ops:
        compare()
        assert set(loader.names("near_points.cu")) <= set(ops.launched)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_tiles_than_a_block_lists_at_a_time(dtype):
    """Where all of them count."""
    x, y, q = clouds("plain", 3, 40_000, 2, dtype, np.random.default_rng(4), 1)
    with operators():
        found = near_sums(PointCosts(x, y, "squared"), q, 10.0, 1)
    exact = oracle.softmin(PointCosts(x, y, "squared").astype(np.float64).block(np), q, 10.0, 1)
    np.testing.assert_allclose(found, exact, rtol=40 * np.finfo(dtype).eps)


def counting(text):
    """Return a source whose softmin is how many tiles its block has taken."""
    for old, new in (
        ("struct NearTiles {", "static long taken;\nstruct NearTiles {"),
        ("        begun = false;\n", "        begun = false;\n        if (threadIdx.x == 0) taken = 0;\n"),
        (
            "        at += theirs / 32;\n",
            "        if (threadIdx.x == 0) taken += at + theirs / 32 < listed ? theirs / 32 "
            ": listed - at;\n        at += theirs / 32;\n",
        ),
        ("out[b * kept + k] = value_scale * state.value();", "out[b * kept + k] = taken;"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def with_source(change):
    """Return what gives kernels, those of ``near_points.cu`` from a changed source."""

    def function(file, name, dtype):
        return emulated.Kernel(file, name, dtype, change=change if file == "near_points.cu" else None)

    return function


@pytest.mark.parametrize(
    ("d", "metric", "kind", "most"),
    [
        (2, METRICS[0], "plain", 0.18),
        (3, METRICS[0], "plain", 0.3),
        (2, METRICS[0], "moved", 0.05),
        (3, METRICS[1], "plain", 0.3),
        (2, METRICS[3], "plain", 0.22),
        (2, METRICS[0], "apart", 0.18),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_most_tiles_are_left_out(d, metric, kind, most, dtype):
    eps = 3e-4 if metric[1] == 1 and metric[0] == "squared" else 3e-3
    x, y, q = clouds("plain" if kind == "moved" else kind, 3000, 4000, d, dtype, np.random.default_rng(1), 1)
    if kind == "moved":  # potentials of a plan that moves all points as far as the cloud is large
        x, q = x + dtype(1), (2 * y.sum(axis=1) / eps)[None].astype(dtype)
    with operators(function=with_source(counting)):
        taken = near_sums(PointCosts(x, y, *metric), q, eps, 1)
    tiles = -(-len(y) // 32)
    assert (taken >= 1).all()
    assert (taken <= tiles).all()
    assert taken.mean() <= most * tiles


def lost(change=lambda text: text, bits=6):
    """Largest part of a sum that is left out, where that may be 2^-bits, in units of it; for many problems."""
    assert "REAL TAIL = sizeof(REAL) == sizeof(float) ? 27 : 56;" in loader.source("near_points.cu")

    def lossy(text):
        return change(text.replace("sizeof(float) ? 27 : 56;", f"sizeof(float) ? {bits} : {bits};"))

    rng, worst = np.random.default_rng(3), 0.0
    with operators(function=with_source(lossy)):
        for turn in range(30):
            emulated.shuffle(turn)
            metric, kind = METRICS[turn // 2 % 4 if turn % 2 else 0], KINDS[turn % len(KINDS)]
            d, eps = (2, 3, 1)[turn % 3], EPS * 4 ** (turn // 3 % 3)
            x, y, q = clouds(kind, 200, 500, d, np.float64, rng)
            if turn % 4 == 0:  # rows that have hardly anything near
                x[::7] *= 3
                q[:, :250] -= rng.random() * 40
            C = PointCosts(x, y, *metric)
            with launched(*LAUNCHES[turn % len(LAUNCHES)]), np.errstate(all="ignore"):
                found = near_sums(C, q, eps, 1)
            exact = oracle.softmin(C.block(np), q, eps, 1)
            assert np.isfinite(exact).all()
            worst = max(worst, float(-np.expm1((exact - found) / eps).min()))
    return worst * 2.0**bits


def test_no_sum_lacks_more_than_it_may():
    """Seen where much may be left out: something is, and it is less than the bound, whatever the logits are."""
    assert 0 < lost() <= 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("REAL highest = warp_maximum(!known", "REAL highest = warp_sum(REAL(0)) + (!known"),  # of the last point alone
        ("log_two(REAL(summed)) + TAIL", "TAIL - log_two(REAL(summed))"),
        ("up ? s * a + t * b : -(s * a + t * b)", "s * a + t * b"),
        ("value + larger(on_left, on_right)", "value + smaller(on_left, on_right)"),
        ("REAL s = -share * rows->slope[c]", "REAL s = 4 * share * rows->slope[c]"),
        ("magnitude(apart) - half - width", "magnitude(apart)"),
        ("(-least);\n        if (lane == 0) rows", "(-least) + 20;\n        if (lane == 0) rows"),
        ("state[r].value() - length[r]", "state[r].value() + 40"),
    ],
)
def test_bounds_that_are_wrong_are_found(old, new):
    assert loader.source("near_points.cu").count(old) == 1
    assert not lost(lambda text: text.replace(old, new)) <= 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__syncthreads();  // all have used the list, and the floor is there", ""),
        ("__syncthreads();  // the list is there, and all have used the votes", ""),
        ("near = rows->seeds[w] != tile", "near = true"),  # a tile that counts twice
        ("before += w < warp ? rows->votes[w] : 0;", "before += w < warp - 1 ? rows->votes[w] : 0;"),
        ("bounds = all_bounds + b * (1 + points.d) * all;", "bounds = all_bounds;"),
        ("state.shift -= length;", ""),
    ],
)
def test_broken_kernels_are_found(old, new):
    assert loader.source("near_points.cu").count(old) == 1
    with operators(function=with_source(lambda text: text.replace(old, new))):
        with pytest.raises((AssertionError, emulated.EmulationError)):
            compare(metrics=METRICS[:1] * 3, sizes=((40, 2200),), d=(2, 3))


@pytest.mark.parametrize(
    ("prefix", "change"),
    [
        ("softmin_near", swapped("x", "y")),
        ("softmin_near", swapped("kept", "summed")),
        ("softmin_near", swapped("bounds", "boxes")),
        ("tile_bounds", lambda given: {"logit_scale": given["logit_scale"] / 2}),
        ("tile_bounds", lambda given: {"boxes": given["boxes"][::-1].copy()}),
    ],
)
def test_wrong_arguments_are_found(prefix, change):
    def sums(given=None):
        rng, found = np.random.default_rng(2), []
        with operators(arguments=given), np.errstate(all="ignore"):
            for kind in ("steep", "apart", "moved"):
                x, y, q = clouds(kind, 100, 1500, 2, np.float64, rng)
                found.append(near_sums(PointCosts(x, y, "squared"), q, EPS, 1))
        return np.stack(found)

    try:
        found = sums(changed(prefix, change))
    except emulated.EmulationError:
        return
    assert not np.allclose(found, sums(), rtol=1e-9, atol=0)


# Orders


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_neighbours_along_the_curve_are_near(d):
    x = np.random.default_rng(0).random((4096, d))
    x[7], x[8] = 1e30, -1e5  # which must not put all others into one cell
    with operators():
        order = part("clouds.curve").along_curve(x)
    assert (np.sort(order) == np.arange(4096)).all()
    runs = x[order].reshape(-1, 32, d)
    width = np.median((runs.max(axis=1) - runs.min(axis=1)).max(axis=1))
    assert width <= 3 * (32 / 4096) ** (1 / d)


def test_points_that_coincide_have_an_order():
    with operators():
        along_curve = part("clouds.curve").along_curve
        for x in (np.zeros((5, 3), np.float32), np.full((1, 2), 1e30), np.zeros((70, 1))):
            assert (np.sort(along_curve(x)) == np.arange(len(x))).all()


# Calls


def solved(monkeypatch, near_pairs, dtype=np.float32, metric="sqeuclidean", B=None, **options):
    """Return what a solve on the stand-in gives: f, g, error, cost, iterations."""
    rng = np.random.default_rng(5)
    x, y, a = rng.random((300, 2)), rng.random((260, 2)) ** 1.3, rng.dirichlet(np.ones(300), B)
    b = rng.dirichlet(np.ones(260), B)
    with monkeypatch.context() as patch, device_arrays.device() as (cupy, launches):
        from cusink.backends.cupy import limits

        patch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, near_pairs=near_pairs))
        given = [cupy.asarray(w.astype(dtype)) for w in (a, b)]
        cloud = cusink.PointCloud(*(cupy.asarray(z.astype(dtype)) for z in (x, y)), metric=metric)
        result = cusink.sinkhorn(*given, cloud, eps=1e-2, **options)
        assert result.form.left_out == (None if near_pairs == 1 else 0)  # nobody counts them
        out = [v.get() for v in (result.f, result.g, result.error, result.cost, result.n_iter)]
        return *out, list(launches)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("metric", "B"), [("sqeuclidean", None), ("euclidean", 2)])
def test_a_solve_is_the_same_without_what_does_not_count(metric, B, dtype, monkeypatch):
    options = {"tol": 1e-3, "max_iter": 300}
    *near, ran = solved(monkeypatch, 1, dtype, metric, B, **options)
    *plain, ran_plain = solved(monkeypatch, 1 << 60, dtype, metric, B, **options)
    assert "softmin_near" in ran
    assert "softmin_near" not in ran_plain
    assert (near[4] == plain[4]).all()
    for mine, other in zip(near[:4], plain[:4], strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4 if dtype == np.float32 else 1e-9, atol=1e-6)


def test_points_of_many_coordinates_take_all_pairs():
    with operators(near_pairs=1):
        pays = part("clouds.near").NearPoints.pays
        x = np.zeros((2, 9))
        assert pays(PointCosts(x[:, :8], x[:, :8], "squared"))
        assert not pays(PointCosts(x, x, "squared"))
        assert not pays(PointCosts(x[None, :, :2], x[None, :, :2], "squared"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_launch_is_legal(dtype):
    for d in range(1, near_launch.MOST_NEAR + 1):
        for B, n, m in ((1, 1, 1), (1, 16_384, 16_384), (3, 10**6, 40), (1, 10**9, 10**9)):
            for name in loader.names("near_points.cu"):
                launch = near_launch.configure(name, B, n, m, dtype, H100, d)
                points, tiles = POINTS[np.dtype(dtype).itemsize], -(-m // TILE)
                work = -(-n // points) * B if name == "softmin_near" else -(-tiles * B // 4)  # a warp for each tile
                assert launch.grid == min(work, 2**31 - 1)  # as many as CUDA takes
                assert launch.block % 32 == 0 and 32 <= launch.block <= 256
                assert launch.shared + 7000 < PLAIN_SHARED_MEMORY
