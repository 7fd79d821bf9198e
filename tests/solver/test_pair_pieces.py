"""The pieces behind pairs of clouds, each by a definition of its own: batches, padding, tiles and their iterations."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import reference

import cusink
from cusink.checks.regularisation import RelativeEps
from cusink.convergence.options import Options
from cusink.convergence.rules import estimated_omega
from cusink.costs.clouds import PointCloud, point_costs
from cusink.costs.ground import Ground
from cusink.operand import eps_of_each
from cusink.solver.pairs import batches, checks, ragged, tiles, together
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.solver.pairs.solve import SolvedPairs

UNIT = 2.0**-53


# ---- which pairs are solved together -------------------------------------------------------------------------------


def whole(sizes, pairs):
    return len(pairs) * sizes[0][pairs].max() * sizes[1][pairs].max()


@pytest.mark.parametrize("seed", range(4))
def test_the_best_cut_is_the_best_of_all_places(seed):
    rng = np.random.default_rng(seed)
    sizes, others = rng.integers(1, 9, (2, 7))
    taken, order, at = batches._best_cut(sizes, others)
    assert order.tolist() == sorted(range(7), key=lambda k: (sizes[k], others[k]))
    every = [whole((sizes, others), order[:cut]) + whole((sizes, others), order[cut:]) for cut in range(1, 7)]
    assert taken == min(every) == every[at - 1] and at == 1 + every.index(min(every))


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_equal_pairs_are_cut_in_halves(count):
    taken, order, at = batches._best_cut(np.full(count, 3), np.full(count, 2))
    assert (taken, order.tolist(), at) == (6 * count, list(range(count)), count // 2)


def test_a_cut_is_made_where_it_saves_more_than_a_call():
    for wide, parts in ((173, 1), (174, 2)):  # the padding of a point of 1 by `wide` pairs of points, squared
        sizes = np.array([1, wide]), np.array([2, wide - 1])
        saved = 2 * wide * (wide - 1) - 2 - wide * (wide - 1)
        assert (saved > batches.CALL_PAIRS == 30_000) == (parts == 2)
        found = batches.batches(sizes, 8)
        assert len(found) == parts
    # By either side.
    assert len(batches.batches((np.array([400, 400]), np.array([1, 399])), 8)) == 2
    assert len(batches.batches((np.array([1, 399]), np.array([400, 400])), 8)) == 2


def test_a_batch_has_no_more_entries_than_a_limit_gives():
    sizes = np.full(10, 4), np.full(10, 5)
    for itemsize in (4, 8):  # of eight copies
        for limit, most in ((8 * itemsize * 200, 10), (8 * itemsize * 200 - 8, 5), (8 * itemsize * 20, 1), (1, 1)):
            found = batches.batches(sizes, itemsize, limit)
            assert max(len(batch.pairs) for batch in found) == most
            assert sorted(np.concatenate([batch.pairs for batch in found])) == list(range(10))
    large = np.full(2, 1 << 11), np.full(2, 1 << 10)
    assert [len(batch.pairs) for batch in batches.batches(large, 8)] == [2]  # 2**22 numbers of 8 bytes
    assert [len(batch.pairs) for batch in batches.batches((large[0] + 1, large[1]), 8)] == [1, 1]


def test_squares_stay_among_squares_and_others_may_be_left_out():
    sizes = np.array([3, 4, 3, 5, 4]), np.array([3, 3, 3, 5, 4])
    found = batches.batches(sizes, 8)
    assert [(batch.pairs.tolist(), batch.n, batch.m) for batch in found] == [([0, 2, 3, 4], 5, 5), ([1], 4, 3)]
    some = np.array([False, True, True, False, True])
    assert [batch.pairs.tolist() for batch in batches.batches(sizes, 8, among=some)] == [[2, 4], [1]]
    assert batches.batches(sizes, 8, among=np.zeros(5, bool)) == []


def test_tiles_hold_a_cache_and_leave_large_pairs_out():
    sizes = np.array([1 << 11, (1 << 11) + 1, 2]), np.array([1 << 10, 1 << 10, 2])
    assert [batch.pairs.tolist() for batch in batches.tiles_of(sizes, np.arange(3))] == [[2], [0]]
    assert batches.tiles_of(sizes, np.array([1])) == [] == batches.tiles_of(sizes, np.array([], int))
    same = np.full(1 << 7, 1 << 6), np.full(1 << 7, 1 << 5)
    found = batches.tiles_of(same, np.arange(1 << 7))  # of 2**11 points each, 2**18 together
    assert [len(batch.pairs) for batch in found] == [1 << 7]
    limit = 8 * 8 * (1 << 11)  # of bytes, for eight copies: one pair at a time
    assert [len(batch.pairs) for batch in batches.tiles_of(same, np.arange(4), limit)] == [1] * 4
    assert [len(batch.pairs) for batch in batches.tiles_of(same, np.arange(4), 2 * limit)] == [2, 2]
    assert batches.tiles_of(same, np.arange(4), limit - 8) == []
    assert [batch.pairs.tolist() for batch in batches.tiles_of(same, np.array([5, 3]))] == [[5, 3]]


# ---- rows of items, and back ---------------------------------------------------------------------------------------

OFFSETS = np.array([0, 2, 3, 7])


def side(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return Side.of(cusink.Measures(OFFSETS, rng.random(7).astype(dtype) + dtype(0.1), rng.random((7, 2)).astype(dtype)))


def test_rows_of_items_are_filled_by_the_last_point():
    one, items = side(), np.array([2, 0])
    assert one.sizes.tolist() == [2, 1, 4] and [one.item(k) for k in range(3)] == [
        slice(0, 2),
        slice(2, 3),
        slice(3, 7),
    ]
    assert one.places(items, 5).tolist() == [[3, 4, 5, 6, 6], [0, 1, 1, 1, 1]]
    assert one.filled(items, 5).tolist() == [[True] * 4 + [False], [True, True] + [False] * 3]
    found = ragged.rows(np, one, one.points, items, 4)
    np.testing.assert_array_equal(found, one.points[[[3, 4, 5, 6], [0, 1, 1, 1]]])
    weights = ragged.weight_rows(np, one, items, 4)
    np.testing.assert_array_equal(weights, [one.weights[3:], [*one.weights[:2], 0, 0]])
    parts = [(np.array([1]), np.array([[5.0]])), (items, np.arange(8.0).reshape(2, 4))]
    assert ragged.flat(np, one, parts).tolist() == [4, 5, 5, 0, 1, 2, 3]
    assert ragged.in_order(np, [(np.array([1]), np.array([[5.0, 1]])), (items, np.ones((2, 2)))], 3).tolist() == [
        [1, 1],
        [5, 1],
        [1, 1],
    ]
    values = np.arange(7.0)
    np.testing.assert_allclose(ragged.centred(np, one, values), [-0.5, 0.5, 0, -1.5, -0.5, 0.5, 1.5])
    assert ragged.centred(np, one, values.astype(np.float32)).dtype == np.float32
    assert ragged.put(np, one, None, items, np.ones((2, 4, 3), np.float32)).shape == (7, 3)
    kept = np.full(7, 9.0)
    assert ragged.put(np, one, kept, np.array([1]), np.zeros((1, 3))) is kept and kept.tolist() == [9, 9, 0, 9, 9, 9, 9]
    before = np.zeros(3)
    assert ragged.put_in_order(np, before, np.array([1]), np.ones(1), 3) is before and before.tolist() == [0, 1, 0]


def test_clouds_of_tiles_have_mass_one():
    one = side()
    clouds = together.Clouds.of(one, one.points)
    mass = [one.weights[:2].sum(), one.weights[2], one.weights[3:].sum()]
    np.testing.assert_allclose(clouds.mass, mass, rtol=1e-15)
    x, a = clouds.rows(np.array([2, 1]), 5)
    np.testing.assert_array_equal(x, one.points[[[3, 4, 5, 6, 6], [2] * 5]])
    np.testing.assert_allclose(a, [[*one.weights[3:] / mass[2], 0], [1, 0, 0, 0, 0]], rtol=1e-15)
    assert x.flags.c_contiguous and a.flags.c_contiguous
    out = np.full(7, 9.0)
    clouds.put(out, np.array([2, 1]), np.arange(10.0).reshape(2, 5))
    assert out.tolist() == [9, 9, 5, 0, 1, 2, 3]
    share = one.weights / np.repeat(mass, [2, 1, 4])
    share[1] = 0
    entropy = together._entropy(clouds._replace(table=np.concatenate([one.points, share[:, None]], axis=1)))
    np.testing.assert_allclose(entropy, [-share[0] * np.log(share[0]), 0, -(share[3:] * np.log(share[3:])).sum()])


def test_who_may_be_solved_together():
    options = Options()
    assert together.can_be_solved_together(options)
    for change in ({"method": "log"}, {"overrelaxation": 1.5}, {"overrelaxation": None}, {"tol": None}):
        assert not together.can_be_solved_together(replace(options, **change)), change


def test_measures_that_are_one_stand_for_one():
    A, B = side(), side(seed=1)
    points, weights = B.points.copy(), B.weights.copy()
    points[2], weights[2] = A.points[2], A.weights[2]  # item 1 is that of A
    points[3:], weights[3:] = A.points[3:], A.weights[3:] * 2  # item 2 has other weights
    given = SimpleNamespace(A=A, B=Side(offsets=OFFSETS, weights=weights, points=points), count=3)
    which, members = together._distinct(given, np.ones(3))
    assert which.tolist() == [0, 1, 2, 3, 1, 4] and members.tolist() == [0, 1, 2, 3, 5]
    sides = tuple(together.Clouds.of(one, one.points) for one in (given.A, given.B))
    offsets, table = together._chosen(sides, members)
    assert offsets.tolist() == [0, 2, 3, 7, 9, 13]
    np.testing.assert_array_equal(table, np.concatenate([sides[0].table, sides[1].table[:2], sides[1].table[3:]]))
    moved = SimpleNamespace(A=A, B=A, count=3)
    assert together._distinct(moved, np.array([1.0, 2.0, 1.0]))[0].tolist() == [0, 1, 2, 0, 1, 2]


def test_the_gauge_of_tiles_counts_points_with_weight():
    f, g = np.array([[1.0, 2.0, 50.0]]), np.array([[7.0, np.inf]])
    has_a, has_b = np.array([[True, True, False]]), np.array([[True, False]])
    u, v = together._in_gauge(f, g, has_a, has_b)
    constant = (7 - 3) / 3
    np.testing.assert_allclose(u, f + constant)
    np.testing.assert_allclose(v[0, 0], 7 - constant)
    assert u[0, :2].sum() == pytest.approx(v[0, 0])


# ---- kernels and iterations ----------------------------------------------------------------------------------------


def drawn(T=4, n=5, m=6, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    x, y = spread * rng.random((T, n, 2)) + 3, spread * rng.random((T, m, 2)) + 3.2
    a, b = rng.dirichlet(np.ones(n), T), rng.dirichlet(np.ones(m), T)
    a[1, 2] = b[0, -1] = b[1, 1] = 0
    return x, y, a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)


def between(x, y, metric="sqeuclidean", power=1):
    return point_costs(np, PointCloud(x, y, metric, power=power), x, y)


@pytest.mark.parametrize(
    ("metric", "power"), [("sqeuclidean", 1), ("euclidean", 1), ("sqeuclidean", 2), ("cityblock", 1)]
)
def test_kernels_and_the_rounding_of_their_exponents(metric, power):
    x, y, _, _ = drawn()
    eps = np.array([0.1, 0.2, 0.05, 1.0])
    found = tiles.kernels(between(x, y, metric, power), eps)
    difference = x[:, :, None] - y[:, None]
    distance = abs(difference).sum(axis=-1) if metric == "cityblock" else (difference**2).sum(axis=-1)
    C = (distance**0.5 if metric == "euclidean" else distance) ** power
    np.testing.assert_allclose(found.A, np.exp(-C / eps[:, None, None]), rtol=1e-13)
    np.testing.assert_allclose(found.x[:, :, None] - found.y[:, None], difference, atol=1e-14)
    if (metric, power) == ("sqeuclidean", 1):
        np.testing.assert_allclose(found.x.mean(axis=1), 0, atol=1e-15)  # about a centre of their own
        largest = sum(np.sqrt((p**2).sum(axis=2).max(axis=1)) for p in (found.x, found.y)) ** 2 / eps
    else:
        largest = C.max(axis=(1, 2)) / eps
    np.testing.assert_allclose(found.rounding, (2 + 4) * UNIT * largest, rtol=1e-12)
    assert found.usable.all()


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_a_kernel_has_digits_up_to_600(metric):
    x, y = np.array([[[-1.0], [1.0]]] * 2), np.array([[[-1.0], [1.0]]] * 2)
    largest = 4.0 if metric == "sqeuclidean" else 2.0
    found = tiles.kernels(between(x, y, metric), largest / np.array([599.9, 600.1]))
    assert found.usable.tolist() == [True, False]


def test_a_tolerance_leaves_room_for_rounding():
    rounding = np.array([0.0, 1e-8, 1e-3, 10.0])
    tol, added = tiles.tolerance(1e-4, rounding)
    want = 4 * UNIT + np.expm1([0, 2e-8, 2e-3, 1.0])
    np.testing.assert_allclose(added, want, rtol=1e-12)
    np.testing.assert_allclose(tol, [1e-4 - want[0], 1e-4 - want[1], -1, -1], rtol=1e-14)
    at = np.log1p(0.5e-4 - 4 * UNIT) / 2  # half of the tolerance
    assert (tiles.tolerance(1e-4, np.array([0.999 * at, 1.001 * at]))[0] > 0).tolist() == [True, False]
    np.testing.assert_allclose(tiles.lift(np.array([1.0, 3.0]), np.array([2.0, 0.5])), [0, 0.25 * np.log(3)])


def relaxed(old, plain, omega):
    return np.maximum((omega - 1) * plain, omega * plain - (omega - 1) * old)


def one_pair(A, a, b, tol, most):
    """Return scalings, error and iterations of a pair by itself, written out; None where it does not end."""
    u, v, omega, before, taken = np.ones(len(a)), np.ones(len(b)), 1.4, np.inf, 0
    while taken < most:
        count = min(6, most - taken)
        for left in range(count - 1, -1, -1):
            v = relaxed(v, 1 / ((a * u) @ A), omega)
            u = relaxed(u, 1 / (A @ (b * v)), omega) if left else 1 / (A @ (b * v))
        first, taken = taken == 0, taken + count
        error = abs(b * v * ((a * u) @ A) - b).sum()
        if error <= tol:
            return u, np.where(b > 0, v, 1 / ((a * u) @ A)), error, taken
        if not first:
            omega = float(estimated_omega(np.array([omega]), np.array([before]), np.array([error]), count)[0])
        before = error
    return None


@pytest.mark.parametrize("max_iter", [1000, 15, 4])
def test_a_tile_iterates_each_pair_as_if_it_were_alone(max_iter):
    x, y, a, b = drawn(T=6)
    eps = np.array([0.5, 0.05, 2.0, 0.02, 0.1, 0.2])
    A = tiles.kernels(between(x, y), eps).A
    tol = np.array([1e-10, 1e-9, 1e-6, 1e-9, 1e-12, 1e-10])
    found = tiles.iterate(A.copy(), a, b, tol, Options(max_iter=max_iter))
    solved = []
    for k in range(6):
        want = one_pair(A[k], a[k], b[k], tol[k], min(max_iter, tiles.ITERATIONS[0]))
        solved.append(want is not None)
        assert found.solved[k] == (want is not None)
        if want is None:
            assert found.error[k] == np.inf and found.n_iter[k] == 0
            continue
        np.testing.assert_allclose(found.u[k], want[0], rtol=1e-7)
        np.testing.assert_allclose(found.v[k], want[1], rtol=1e-7)
        assert found.n_iter[k] == want[3]
        assert found.error[k] == pytest.approx(want[2], rel=1e-2, abs=1e-15) and found.error[k] <= tol[k]
    assert any(solved) == (max_iter > 4)
    hopeless = np.where(np.arange(6) == 2, -1.0, tol)  # whose kernel has no digits
    again = tiles.iterate(A.copy(), a, b, hopeless, Options(max_iter=max_iter))
    assert again.solved.tolist() == [found.solved[k] and k != 2 for k in range(6)]


def test_pairs_leave_a_tile_once_a_quarter_has_ended(monkeypatch):
    x, y, a, b = drawn(T=8)
    a, b = a[[2, 3] * 4], b[[2, 3] * 4]
    A = tiles.kernels(between(x, y), np.where(np.arange(8) < 3, 5.0, 0.03)).A
    sizes, original = [], np.matvec
    monkeypatch.setattr(np, "matvec", lambda A, x: sizes.append(len(A)) or original(A, x))
    found = tiles.iterate(A.copy(), a, b, np.full(8, 1e-8), Options())
    assert found.solved.all() and set(sizes) == {8, 5} | set(sizes) and 8 in sizes and 5 in sizes
    sizes.clear()
    A[2] = A[7]  # two of eight are a quarter
    tiles.iterate(A.copy(), a, b, np.where(np.arange(8) < 2, 1e-3, 1e-9), Options(max_iter=24))
    assert set(sizes) == {8}


def one_measure(A, a, tol, most):
    """Return the potential over eps of a measure with itself, its value, the error, and iterations; None likewise."""
    f, ends, found = np.zeros(len(a)), None, None
    for taken in range(1, most + 1):
        ratio = np.exp(f) * (A @ (a * np.exp(f)))
        error = (a * abs(1 - ratio)).sum()
        step = -np.log(ratio)
        if ends is None and error <= tol:
            ends = error, taken
            found = np.where(a > 0, f + step / 2, f + step), (a * (2 * f + step)).sum()
        f = f + step / (1.5 + 0.5 * np.cos(np.pi / 4 * (3 if taken % 2 else 1)))
    return ends, found


def test_measures_with_themselves():
    x, _, a, _ = drawn(T=4)
    eps = np.array([1.0, 0.2, 0.5, 0.1])
    A = tiles.kernels(between(x, x), eps).A
    tol = np.full(4, 1e-9)
    found = tiles.iterate_own(A, a, tol, Options())
    assert found.solved.all()
    for k in range(4):
        (error, taken), (f, value) = one_measure(A[k], a[k], 1e-9, 100)
        assert found.n_iter[k] == taken and found.error[k] == pytest.approx(error, rel=1e-3)
        np.testing.assert_allclose(np.log(found.u[k]), f, atol=3e-9)
        assert found.value[k] == pytest.approx(value, rel=1e-12, abs=1e-14)
        exact = reference.optimum(a[k], a[k], -np.log(A[k]), 1.0).reg_cost
        assert found.value[k] == pytest.approx(exact, abs=1e-12)
    least = int(found.n_iter.min())
    few = tiles.iterate_own(A, a, tol, Options(max_iter=least))
    assert few.solved.tolist() == (found.n_iter == least).tolist()
    assert np.isinf(few.error[~few.solved]).all() and (few.n_iter[~few.solved] == 0).all()
    mixed = tiles.iterate_own(A, a, np.array([-1, 1e-9, -1, 1e-9]), Options())
    assert mixed.solved.tolist() == [False, True, False, True]
    assert not tiles.iterate_own(A, a, np.full(4, -1.0), Options()).solved.any()


def test_sums_are_sound_above_what_underflow_takes():
    factors = np.array([[1.0, 0.5], [4.0, 0.5], [0.25, 0.1], [1.0, np.inf], [1.0, 1.0], [1.0, 1.0]])
    floor = 2.0**-960 * 2 * np.array([1, 4, 1, 1, 1, 1])
    sums = np.stack([floor, np.ones(6), np.full(6, 2.0)], axis=1)
    sums[4, 1], sums[5, 2] = np.inf, np.nan
    assert tiles._sound(sums, factors).tolist() == [True, True, True, False, False, False]
    sums[:3, 0] *= 0.999
    assert not tiles._sound(sums, factors).any()


def test_what_points_pull_is_that_of_the_plan():
    x, y, a, b = drawn()
    K = tiles.kernels(between(x, y), np.full(4, 0.3))
    P = a[:, :, None] * K.A * b[:, None]
    difference = 2 * P[..., None] * (x[:, :, None] - y[:, None])
    of_x, of_y = tiles.pulled(K.A, a, b, K.x, K.y)
    np.testing.assert_allclose(of_x, difference.sum(axis=2), atol=1e-14)
    np.testing.assert_allclose(of_y, -difference.sum(axis=1), atol=1e-14)
    own = tiles.kernels(between(x, x), np.full(4, 0.3))
    Q = a[:, :, None] * own.A * a[:, None]
    want = (2 * Q[..., None] * (x[:, :, None] - x[:, None])).sum(axis=2)
    np.testing.assert_allclose(tiles.own_pulled(own.A, a, own.x), want, atol=1e-14)
    C = ((x[:, :, None] - y[:, None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(tiles.mean_cost(K.A, a, b, between(x, y)), (P * C).sum(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_what_is_solved_together_says_what_it_found(own):
    """Potentials in their gauge and values by mass, beside the oracle; and what ends too late is left."""
    A, B = side(), side(seed=1)
    scale = np.repeat([A.weights[:2].sum(), A.weights[2], A.weights[3:].sum()], [2, 1, 4])
    theirs = np.repeat([B.weights[:2].sum(), B.weights[2], B.weights[3:].sum()], [2, 1, 4])
    B = Side(offsets=OFFSETS, weights=B.weights / theirs * scale, points=B.points)
    given = CheckedPairs(A, B, Ground(), np.float64)
    eps = np.array([0.3, 0.5, 0.2])
    found = together.solve_together(given, eps, Options(tol=1e-11), own, None)
    assert found.solved.all() and not found.equal.any() and (found.error <= 1e-11).all()
    np.testing.assert_allclose(found.mass, scale[[0, 2, 3]], rtol=1e-15)
    for k in range(3):
        at = A.item(k)
        a, b, x, y = A.weights[at], B.weights[at], A.points[at], B.points[at]
        C = ((x[:, None] - y) ** 2).sum(axis=-1)
        best = reference.solve(a, b, C, eps[k])
        f, g = reference.in_gauge(best.f, best.g, a, b)
        np.testing.assert_allclose(found.f[at], f, atol=1e-9)
        np.testing.assert_allclose(found.g[at], g, atol=1e-9)
        values = reference.optimum(a, b, C, eps[k])
        assert found.value[k] == pytest.approx(a @ f + b @ g, rel=1e-10)
        if not own:
            assert found.cost[k] == pytest.approx(values.cost, rel=1e-8)
            entropies = reference.entropy(a) + reference.entropy(b)
            assert found.entropy[k] == pytest.approx(entropies, rel=1e-12, abs=1e-14)
            continue
        own_values = []
        for w, p, own_f in ((a, x, found.own.f[at]), (b, y, found.own.g[at])):
            D = ((p[:, None] - p) ** 2).sum(axis=-1)
            np.testing.assert_allclose(reference.softmin(D, own_f, w, eps[k], 1), own_f, atol=1e-9)
            own_values.append(reference.optimum(w, w, D, eps[k]).reg_cost)
        assert found.own.value[k] == pytest.approx(sum(own_values) / 2, rel=1e-9, abs=1e-12)
    assert (found.own is None) == (found.pulled is None) == (not own)
    early = together.solve_together(given, eps, Options(tol=1e-11, max_iter=2), own, None)
    assert early.solved.tolist() == [False, not own or early.solved[1], False]
    tight = together.solve_together(given, eps, Options(tol=1e-11), own, 8 * 8 * 10)
    assert tight.solved.tolist() == [True, True, False]  # the kernel of the last pair has 16 entries


def test_equal_measures_are_done_before_they_begin():
    A = side()
    given = CheckedPairs(A, A, Ground(), np.float64)
    found = together.solve_together(given, np.full(3, 0.3), Options(tol=1e-10), True, None)
    assert found.equal.all() and found.solved.all() and (found.n_iter > 0).all()
    np.testing.assert_array_equal(found.f, found.own.f)
    np.testing.assert_array_equal(found.g, found.own.g)
    assert not np.any(found.pulled[0]) and not np.any(found.pulled[1])
    assert (found.error > 0).all() and (found.error <= 1e-10).all()


# ---- what a caller is told -----------------------------------------------------------------------------------------


def side_of(clouds):
    return Side.of(cusink.Measures.of(clouds))


def test_an_eps_of_pairs_is_a_number_or_one_for_each():
    given = SimpleNamespace(count=3, computing="float64")
    assert checks.eps_of_pairs(0.5, given) == 0.5
    assert checks.eps_of_pairs(np.array([1.0, 2, 3]), given).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"each of the 3 pairs; got shape \(2,\)"):
        checks.eps_of_pairs(np.ones(2), given)
    with pytest.raises(ValueError, match=r"got shape \(3, 1\)"):
        checks.eps_of_pairs(np.ones((3, 1)), given)
    x, y = (side_of([[0.0, 4.0], [1.0]]), side_of([[1.0], [3.0, 5.0]]))
    pairs = CheckedPairs(x, y, Ground(metric="euclidean"), np.dtype(np.float64))
    np.testing.assert_allclose(eps_of_each(RelativeEps(0.1, "mean"), pairs.clouds()), [0.2, 0.3])
    # A number below those of float32 is one of float64.
    assert checks.eps_of_pairs(1e-60, given) == 1e-60
    with pytest.raises(ValueError, match="float32"):
        checks.eps_of_pairs(1e-60, SimpleNamespace(count=3, computing="float32"))


def test_options_that_pairs_do_not_have():
    checks.unused(init=None, gap=None)
    with pytest.raises(ValueError, match="'gap' must be None"):
        checks.unused(init=None, gap=0)
    measures = cusink.Measures([0, 2], [1.0, 3.0], [0.0, 1.0])
    other = object()
    assert checks.are_measures(measures, other) and checks.are_measures(other, measures)
    assert not checks.are_measures(other, None)
    first, second = checks.normalised_measures(measures, other)
    assert first.weights.tolist() == [0.25, 0.75] and second is other


def test_masses_are_asked_for_where_they_count():
    points, weights = np.zeros((3, 1)), np.array([1.0, 1.0, 2.0])
    one, other = (cusink.Measures([0, 2, 3], weights * by, points) for by in (1, 3))
    assert checks.pairs_of_measures(one, other, "euclidean", False, True).count == 2
    assert checks.pairs_of_measures(one, other, "euclidean", True, False).count == 2
    with pytest.raises(ValueError, match="got 2 and 6 in pair 0"):
        checks.pairs_of_measures(one, other, "euclidean", True, True)
    empty = cusink.Measures([0, 2, 3], np.array([1.0, 1.0, 0.0]), points)
    for check in (True, False):
        with pytest.raises(ValueError, match="'b' must hold measures with weight; item 1 has none"):
            checks.pairs_of_measures(one, empty, "euclidean", False, check)
    with pytest.raises(ValueError, match=r"equally many measures.*got 2 and 1"):
        checks.pairs_of_measures(one, one[:1], "euclidean", True, True)
    zero = np.array([[0.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match="'a' must hold no zero vector for metric 'cosine'; point 1 is one"):
        checks.pairs_of_measures(*[cusink.Measures([0, 2, 3], weights, zero)] * 2, "cosine", True, True)
    checks.pairs_of_measures(*[cusink.Measures([0, 2, 3], weights, zero)] * 2, "euclidean", True, True)


def test_places_count_from_both_ends():
    given = SimpleNamespace(count=4)
    parts = tuple(
        (batches.Batch(np.array(pairs), 1, 1), name) for pairs, name in (([3, 0], "first"), ([2, 1], "second"))
    )
    solved = SolvedPairs(given, 0.1, None, parts, None, True, None)
    found = [solved.place(k) for k in (0, 1, 2, 3, -1, -4)]
    assert found == [
        (0, "first", 1),
        (1, "second", 1),
        (2, "second", 0),
        (3, "first", 0),
        (3, "first", 0),
        (0, "first", 1),
    ]
    for k in (4, -5):
        with pytest.raises(IndexError, match=f"from -4 to 3; got {k}"):
            solved.place(k)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("own_eps", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_a_pair_of_the_batch_is_a_problem_of_its_own(balanced, own_eps, dtype):
    A, B = (
        cusink.Measures(OFFSETS, np.ones(7, dtype), np.random.default_rng(k).random((7, 2)).astype(dtype))
        for k in (0, 1)
    )
    eps = np.array([0.5, 0.3, 0.4]) if own_eps else 0.4
    pairs = cusink.sinkhorn(A, B, "sqeuclidean", eps=eps, reach=None if balanced else 0.7)
    for k in (0, -1):
        one, at = pairs[k], slice(*OFFSETS[k % 3 : k % 3 + 2])
        own = float(np.broadcast_to(eps, 3)[k])
        assert one.eps == own and one.f.shape == (at.stop - at.start,) and one.f.dtype == dtype
        cloud = PointCloud(A.points[at], B.points[at])
        alone = cusink.sinkhorn(A.weights[at], B.weights[at], cloud, eps=own, reach=None if balanced else 0.7)
        near = {"atol": 1e-5 if dtype == np.float64 else 3e-4}
        np.testing.assert_allclose(one.plan(), alone.plan(), **near)
        np.testing.assert_allclose(one.f, alone.f, **near)
        for name in ("cost", "reg_cost", "entropic_cost"):
            np.testing.assert_allclose(getattr(one, name), getattr(alone, name), **near)
            assert getattr(pairs, name).dtype == dtype and getattr(pairs, name).shape == (3,)
