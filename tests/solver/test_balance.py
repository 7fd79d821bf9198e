"""How parts of a plan that hardly exchange mass stand to each other."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

import cusink
from cusink.solver.balance import EVEN, _components, _exchanging, _largest, _mutual, offsets


def spread(x, y):
    """Return squared distances, the largest 1."""
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return C / C.max()


def parted(kind, seed):
    """Return weights, costs, and the part of each row and column, of which each gives all its mass to its own."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    one = np.arange(n)
    if kind == "towns":  # of two points and three, of a quarter of the mass each
        centres = np.array([[0, 0], [3, 0], [0, 4], [5, 5]])
        x, y = (np.concatenate([c + rng.random((k, 2)) / 4 for c in centres]) for k in (2, 3))
        y += np.repeat(rng.random((4, 2)), 3, axis=0)
        a, b = (np.tile(w, 4) / 64 for w in ([5, 11], [2, 7, 7]))
        return a, b, spread(x, y), np.repeat(range(4), 2), np.repeat(range(4), 3)
    if kind == "moved":  # a lattice, and the same elsewhere
        x = rng.permutation(np.stack(np.divmod(np.arange(16), 4), axis=1))[:n].astype(float)
        C = spread(x, x + 5)
    elif kind == "turned":  # what one passes on to the next comes back around the circle
        angle = 2 * np.pi * one / n
        x, y = (np.stack([np.cos(t), np.sin(t)], axis=1) for t in (angle, angle + rng.uniform(-0.8, 0.8) * np.pi / n))
        C = spread(x, y + rng.random((n, 2)) / 50)
    else:
        C = rng.random((n, n))
        C = C[:, linear_sum_assignment(C)[1]]
    return *np.full((2, n), 1 / n), C, one, one


def out_of_balance(f, g, a, b, C, eps, rows, columns):
    """Return by how much what leaves a set of parts differs at most from what enters it, relative to their logarithms.

    It would be nothing at the solution: whatever the set, as much mass enters as leaves.
    """
    logs, parts, worst = np.log(a)[:, None] + np.log(b) + (f[:, None] + g - C) / eps, rows.max() + 1, 0.0
    for some in itertools.product([False, True], repeat=parts):
        inside = np.array(some)
        if inside.any() and not inside.all():
            at, to = inside[rows], inside[columns]
            leaving, entering = logsumexp(logs[np.ix_(at, ~to)]), logsumexp(logs[np.ix_(~at, to)])
            worst = max(worst, abs(leaving - entering) / -max(leaving, entering))
    return worst


@pytest.mark.parametrize("kind", ["towns", "moved", "turned", "assigned"])
def test_what_leaves_parts_comes_back(kind):
    looked_at = 0
    for seed, tol in itertools.product(range(6), (1e-4, 1e-9)):
        a, b, C, rows, columns = parted(kind, seed)
        for eps in (1e-3, 1e-4, 1e-5):
            result = cusink.sinkhorn(a, b, C, eps=eps, tol=tol)
            plan = result.plan()
            assert result.converged
            assert np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum() <= result.error + 1e-9
            if plan[rows[:, None] != columns].max() < 1e-4 / rows.max():
                assert out_of_balance(result.f, result.g, a, b, C, eps, rows, columns) < 0.15  # by iterations: 1
                looked_at += 1
    assert looked_at >= 20


def test_between_two_parts_it_is_the_middle():
    """In closed form: the offset by which as much leaves as enters."""
    rng = np.random.default_rng(0)
    for far in (10, 1000, 100_000):
        logs = -rng.random((5, 4)) * far - 10
        logs[:2, :1] = logs[2:, 1:] = -1
        moved = offsets(logs, np.array([0.25, 0.25, 0.2, 0.2, 0.1]), np.array([0.5, 0.2, 0.2, 0.1]), 1e-3)
        assert (moved[1:] == moved[1]).all()
        leaving, entering = logsumexp(logs[:2, 1:]), logsumexp(logs[2:, :1])
        assert abs(moved[1] - moved[0] - (entering - leaving) / 2) <= max(0.02 * far, 1.5)  # the largest term counts


def test_the_same_points_in_any_order_have_the_same_potentials_on_both_sides():
    """By symmetry, whatever the parts: what is left to balance by sweeps would be tenths of eps."""
    for seed in (1, 2, 3):
        rng = np.random.default_rng(seed)
        x = rng.random((int(rng.integers(20, 60)), 2))
        order = rng.permutation(len(x))
        for eps in (1e-3, 1e-4):
            result = cusink.sinkhorn(None, None, spread(x, x[order]), eps=eps, tol=1e-8)
            apart = result.f[order] - result.g
            assert result.converged and np.ptp(apart) < 1e-3 * eps


def test_parts_that_give_each_other_equally_much_are_found_at_once():
    """Beside the offsets that the masses were made with; None where they are more apart than balance allows."""
    rng = np.random.default_rng(0)
    for parts in (2, 3, 40):
        even = -20 - 1000 * rng.random((parts, parts))
        right = 300 * rng.normal(size=parts)
        right -= right.mean()
        crossing = even + even.T + right[:, None] - right
        np.testing.assert_allclose(_mutual(crossing.astype(np.float32)), right, atol=1e-2)
        crossing[0, 1] = -np.inf
        assert _mutual(crossing) is None
    circle = np.roll(np.eye(40), 1, axis=1)
    for share in (0.9, 1.1):  # of what may be more one way around than the other
        more = share * EVEN * 1000 / 2 * (circle - circle.T)
        found = _mutual(more - 1000 + right[:, None] - right)
        assert (found is None) == (share > 1)


def test_groups_of_parts_are_balanced_as_parts_are(monkeypatch):
    """Pairs that exchange far more with each other than with other pairs, and those more than with other groups."""
    n, rng = 16, np.random.default_rng(1)
    bins = np.arange(n)
    level = np.floor(np.log2(np.maximum(np.bitwise_xor.outer(bins, bins), 1))).astype(int)
    apart = -500.0 * 4**level
    right = sum(rng.uniform(-1, 1, n)[bins >> k] * 120.0 * 4**k for k in range(4))
    logs = apart + right[:, None] - right
    np.fill_diagonal(logs, -np.log(n))
    monkeypatch.setattr("cusink.solver.balance._mutual", lambda crossing: None)  # as if not every way led back
    moved = offsets(logs, *np.full((2, n), 1 / n), 1e-3)

    def off(moved):
        return np.abs(np.subtract.outer(moved - right, moved - right) / apart).max()

    assert off(moved) < 0.05 < 0.3 < off(0 * right)
    monkeypatch.setattr("cusink.solver.balance.ROUNDS", 1)
    assert off(offsets(logs, *np.full((2, n), 1 / n), 1e-3)) > 0.05


def test_what_is_not_moved():
    w = np.full(4, 0.25)
    assert offsets(np.log(np.outer(w, w)), w, w, 1e-3) is None  # one part
    least = np.array([1, 5e-324])
    assert offsets(np.add.outer(np.log(least), np.log([0.5, 0.5])), least, w[:2] * 2, 0.0) is None
    logs = np.full((4, 4), -30.0)
    np.fill_diagonal(logs, np.log(w))
    logs[0, 1], logs[3, 0] = -20, -22
    known = offsets(logs, w, w, 0.0)  # what moves is known where it is more than the error
    assert known[0] == known[1] == known[3]
    uneven = w + [1e-9, -1e-9, 0, 0]  # what one part has too much has to cross, and says where it stands
    moved = offsets(logs, uneven, w, 1e-3)
    assert moved[0] == moved[1] and moved[3] != moved[0]
    assert (
        offsets(logs, w + [1e-9, 0, 0, -1e-9], w, 1e-3) is not None
        and offsets(logs, w * [1, 1, 1, 1 + 1e-15], w, 1e-3)[1] != 0
    )
    logs[:] = np.where(np.eye(4) > 0, logs, -np.inf)
    assert (offsets(logs, w, w, 1e-3) == 0).all()  # nothing crosses
    logs[[0, 1, 2], [1, 2, 3]] = -30, -50, -40  # and nothing comes back
    kept = offsets(logs, w, w, 1e-3)
    assert kept[0] == kept[3] == 0 and (offsets(logs, uneven, w, 1e-3) is not None)
    assert offsets(logs, 2 * w, w, 1e-3) is None  # all has to cross


def test_what_is_found_after_parts_have_moved_is_the_solution_or_left_alone(monkeypatch):
    a, b, C, *_ = parted("moved", 0)
    monkeypatch.setattr("cusink.solver.newton.offsets", lambda logs, a, b, error: None)
    before = cusink.sinkhorn(a, b, C, eps=1e-3, tol=1e-9)
    monkeypatch.setattr("cusink.solver.newton.offsets", lambda logs, a, b, error: 1e4 * np.arange(len(b)))
    found = cusink.sinkhorn(a, b, C, eps=1e-3, tol=1e-9)
    np.testing.assert_allclose(found.plan(), before.plan(), atol=1e-9)
    assert found.converged and found.n_iter > before.n_iter


def test_new_points_go_where_the_nearest_ones_go():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, new = rng.random((int(rng.integers(3, 40)), 2)), rng.random((200, 2))
        result = cusink.sinkhorn(None, None, cusink.PointCloud(x, x + 0.5), eps=10 ** rng.uniform(-4, -3), tol=1e-6)
        squared = ((new[:, None] - x) ** 2).sum(axis=2)
        nearest, second = np.sort(squared, axis=1)[:, :2].T
        clear = second - nearest > 0.03
        wanted = x[squared.argmin(axis=1)] + 0.5
        np.testing.assert_allclose(result.at(new).map()[clear], wanted[clear], atol=1e-6)


@pytest.mark.parametrize(("share", "one"), [(1.5e-3, True), (0.5e-3, False)])
def test_parts_are_one_where_the_lighter_bin_gives_a_thousandth(share, one):
    """Of 0.01 of mass, which is nothing beside 0.49; above what an error may move that does not count."""
    P = np.array([[0.49, 0.01 * share], [0.01 * share, 0.01 * (1 - share)]])
    given, taken = P.sum(axis=1), P.sum(axis=0)
    assert (offsets(np.log(P), given, taken, 1e-2) is None) == one
    assert offsets(np.log(P), given, taken, 1e-9) is None  # 5e-6 is more than an error of 1e-8
    one_way = np.array([[0.49, 0.01 * share], [1e-30, 0.01]])  # seen from the column alone
    edges_alone = offsets(np.log(one_way), np.array([0.49, 0.01]), np.array([0.49, 0.01]), 1e-2)
    assert (edges_alone is None) == one


def test_a_plan_of_many_steps_from_row_to_row_is_still_one_part():
    """A chain of 20 rows, each of which shares a column with the next: more steps than are looked at first."""
    P = (np.eye(20) + np.eye(20, k=1)) / 39
    with np.errstate(divide="ignore"):
        assert offsets(np.log(P), P.sum(axis=1), P.sum(axis=0), 1e-2) is None
        P[9, 10] = 0
        assert offsets(np.log(P), P.sum(axis=1), P.sum(axis=0), 1e-2) is not None


def test_a_part_that_exchanges_nothing_stays_one_whatever_it_is_short_of():
    """Where its rows and columns differ there is nobody from whom the rest could come."""
    P = np.diag([0.2, 0.3, 0.5])
    with np.errstate(divide="ignore"):
        apart = offsets(np.log(P), np.array([0.2, 0.3, 0.5]), np.array([0.2, 0.3 + 1e-6, 0.5 - 1e-6]), 1e-9)
    assert apart is not None and apart.tolist() == [0.0, 0.0, 0.0]


def test_the_largest_entries_of_parts_some_of_which_have_no_rows():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, m, parts = rng.integers(1, 9, 3)
        entries = rng.normal(size=(n, m)).astype(np.float32)
        rows, columns = rng.integers(0, parts, n), rng.integers(0, parts, m)
        want = np.full((parts, parts), -np.inf, np.float32)
        np.maximum.at(want, (rows[:, None], columns), entries)
        before = entries.copy()
        np.testing.assert_array_equal(_largest(entries, rows, columns, int(parts)), want)
        np.testing.assert_array_equal(entries, before)


def test_which_bins_exchange_mass_and_which_parts_pass_it_on():
    """Beside powers of the matrices of edges: a step along each, and none."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, m = rng.integers(1, 8, 2)
        edges = rng.random((n, m)) < 0.2
        both = np.block([[np.zeros((n, n), bool), edges], [edges.T, np.zeros((m, m), bool)]])
        one_way = rng.random((n, n)) < 0.2
        for found, steps in ((_exchanging(edges), both), (_components(one_way), one_way)):
            reached = np.linalg.matrix_power((steps | np.eye(len(steps), dtype=bool)).astype(float), len(steps)) > 0
            np.testing.assert_array_equal(found[:, None] == found, reached & reached.T)
