"""What is checked and measured around a solve, piece by piece: arguments, gauges, values, programmes, prices."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import reference

import cusink
from cusink.convergence.options import Options
from cusink.operand import dense_cost
from cusink.solver import bounds, checks, gap, gauge, maps, unbalanced, values
from cusink.solver.problem import Problem
from cusink.solver.symmetric import self_potentials

rng = np.random.default_rng(3)
A, B, C = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(6)), rng.random((4, 6))


def checked(a=A, b=B, cost=C, eps=0.1, check=True, **given):
    return checks.problem(a, b, cost, eps=eps, check=check, **given)


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size", "batched", "of_one", "shape"),
    [
        ({}, 1, False, False, (4, 6)),
        ({"a": A[None]}, 1, True, False, (4, 6)),
        ({"b": np.stack([B, B])}, 2, True, False, (4, 6)),
        ({"cost": C[None]}, 1, True, True, (4, 6)),
        ({"cost": np.stack([C, C])}, 2, True, False, (2, 4, 6)),
        ({"cost": C[None], "a": np.stack([A, A])}, 2, True, True, (4, 6)),
        ({"init": (np.zeros((3, 4)), np.zeros(6))}, 3, True, False, (4, 6)),
        ({"a": None}, 1, False, False, (4, 6)),
    ],
)
def test_batch_axes(given, size, batched, of_one, shape):
    found = checked(**given)
    assert (len(found.a), found.batched, found.batch_of_one, found.C.shape) == (size, batched, of_one, shape)
    assert found.a.shape == (size, 4) and found.b.shape == (size, 6) and found.dtype == np.float64
    if "init" in given:
        assert found.init[0].shape == (3, 4) and found.init[1].shape == (3, 6)
    else:
        assert found.init is None


def test_an_eps_for_each_problem_is_one_of_the_batch():
    assert checked(a=np.stack([A, A]), eps=np.array([0.1, 0.2])).eps.tolist() == [0.1, 0.2]
    assert checked(cost=C[None], eps=np.array([0.1, 0.2])).a.shape == (2, 4)  # eps makes the batch
    assert checked(a=np.stack([A, A]), eps=0.1).eps == 0.1
    with pytest.raises(ValueError, match="'eps'"):
        checked(eps=np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="batch sizes must be equal or 1"):
        checked(a=np.stack([A, A]), eps=np.array([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="batch sizes must be equal or 1; got 'a' 2, 'C' 3"):
        checked(a=np.stack([A, A]), cost=np.stack([C] * 3))


def test_masses_are_one_mass_unless_there_is_a_price():
    found = checked(b=B * (1 + 5e-7))
    assert found.b.sum() == pytest.approx(found.a.sum(), rel=1e-15)
    with pytest.raises(ValueError, match="same mass"):
        checked(b=3 * B)
    np.testing.assert_array_equal(checked(b=3 * B, reach=(1.0, 1.0)).b[0], 3 * B)
    np.testing.assert_allclose(checked(b=3 * B, check=False).b[0], B, rtol=1e-14)
    scaled = checked(a=5 * A, b=3 * B, normalise=True)
    np.testing.assert_allclose(scaled.a[0], A, rtol=1e-14)
    np.testing.assert_allclose(scaled.b[0], B, rtol=1e-14)
    uniform = checked(a=None, b=None)
    np.testing.assert_allclose(uniform.a, [[1 / 4] * 4], rtol=1e-15)
    np.testing.assert_allclose(uniform.b, [[1 / 6] * 6], rtol=1e-15)
    # float32 weights beside float64 costs are judged as what they are.
    assert checked(b=np.float32(B * (1 + 5e-4))).C.dtype == np.float64


def test_values_are_looked_at_where_they_are_to_be():
    bad = A.copy()
    bad[1] = -0.1
    infinite = np.full(4, np.inf)
    for given, said in (
        ({"a": bad}, "'a' must be non-negative"),
        ({"b": np.zeros(6)}, "'b' must have a positive sum"),
        ({"cost": np.where(C > 0.5, np.nan, C)}, "'C'"),
        ({"cost": np.where(np.arange(4)[:, None] == 2, np.inf, C)}, "'C' must allow every bin with weight a partner"),
        ({"init": (infinite, np.zeros(6))}, r"'init\[0\]' must be finite; got inf. Start without 'init'"),
        ({"init": (np.zeros(4), np.full(6, np.nan))}, r"'init\[1\]' must be finite"),
    ):
        with pytest.raises(ValueError, match=said):
            checked(**given)
        with np.errstate(invalid="ignore", divide="ignore"):
            checked(**given, check=False)
    with pytest.raises(TypeError, match="'check' must be a bool"):
        checked(check=1)
    with pytest.raises(TypeError, match="'normalise' must be a bool"):
        checked(normalise=0)
    for init in (np.zeros((2, 6)), (np.zeros(4),), (np.zeros(4), np.zeros(6), np.zeros(6)), "fg"):
        with pytest.raises(TypeError, match=r"'init' must be a pair \(f, g\) of potentials; got"):
            checked(init=init)
    for init in ((None, np.zeros(6)), (np.zeros(4), None)):
        with pytest.raises(TypeError, match="got None for one"):
            checked(init=init)
    assert checked(init=[np.zeros(4), np.zeros(6)]).init[1].shape == (1, 6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": B, "b": A}, "'a' must have shape (4,) to match C of shape (4, 6); got (6,). Did you swap 'a' and 'b'?"),
        ({"a": B}, "'a' must have shape (4,) to match C of shape (4, 6); got (6,)"),
        ({"b": A}, "'b' must have shape (6,) to match C of shape (4, 6); got (4,)"),
        ({"a": B, "b": None}, "'a' must have shape (4,) to match C of shape (4, 6); got (6,)"),
        ({"a": A[None, None]}, "'a' must have shape (4,) to match C of shape (4, 6); got (1, 1, 4)"),
        ({"a": np.float64(1.0)}, "'a' must have shape (4,) to match C of shape (4, 6); got ()"),
        ({"b": A, "cost": np.stack([C, C])}, "'b' must have shape (2, 6) to match C of shape (2, 4, 6); got (4,)"),
        ({"init": (np.zeros(4), np.zeros(5))}, "'init[1]' must have shape (6,) to match C of shape (4, 6); got (5,)"),
    ],
)
def test_shapes_that_do_not_fit(given, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        checked(**given)
    assert str(caught.value) == said


def test_what_is_kept_is_not_the_callers():
    a, cost = A.copy(), C.copy()
    found = checked(a=a, cost=cost)
    assert not np.may_share_memory(found.a, a) and not np.may_share_memory(found.C.data, cost)
    assert not np.may_share_memory(checked(a=np.stack([a, a])).a, a)


def test_images_are_those_of_either_side():
    grid, image = cusink.Grid((2, 3)), np.full((2, 3), 1 / 6)
    row = image.ravel()
    for a, b, want in (
        (image, row, ((2, 3), None)),
        (row, image, (None, (2, 3))),
        (image, None, ((2, 3), (2, 3))),
        (None, image, ((2, 3), (2, 3))),
        (None, None, (None, None)),
        (row, None, (None, None)),
    ):
        assert checked(a, b, grid).images == want


def test_options_are_what_they_say():
    assert checks.options(7, None, 3, "log", None) == Options(7, None, 3, "log", None)
    assert checks.options(1, 1e-3, 1) == Options(1, 1e-3, 1, "auto", "auto")
    for given in (1, 1.0, 1.999, np.float32(1.5)):
        assert checks.options(5, 1e-6, overrelaxation=given).overrelaxation == float(given)
    for bad in (0.999, 2, 2.5, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"'overrelaxation' must be 'auto', a number in \[1, 2\) or None; got"):
            checks.options(5, 1e-6, overrelaxation=bad)
    for bad, said in (("fast", "'fast'"), (True, "bool"), ([1.5], "list")):
        with pytest.raises(TypeError, match=f"or None; got {said}"):
            checks.options(5, 1e-6, overrelaxation=bad)


def test_prices_of_marginals():
    assert checks.reach(None) is None is checks.reach((None, None)) is checks.reach((math.inf, None))
    assert checks.reach(2) == (2.0, 2.0) and checks.reach([1, None]) == (1.0, math.inf)
    assert checks.reach((None, 3.0), "log") == (math.inf, 3.0)
    assert checks.reach(np.array([1.0, 0.5])) == (1.0, 0.5) and checks.reach(np.float32(2)) == (2.0, 2.0)
    assert checks.reach(None, "scaling") is None  # a price alone is what it cannot have
    for bad, kind, said in (
        ((1,), ValueError, "got 1 values"),
        ((1, 2, 3), ValueError, "got 3 values"),
        (np.ones(3), ValueError, "got 3 values"),
        (np.array([1.0, -2.0]), ValueError, "got -2.0. A small reach"),
        ("x", TypeError, "got str"),
        ((1.0, "x"), TypeError, "got str"),
        ((0, 1), ValueError, "got 0. A small reach"),
        (-1.0, ValueError, "got -1.0. A small reach"),
        (math.nan, ValueError, "got nan"),
    ):
        with pytest.raises(kind, match=said):
            checks.reach(bad)
    with pytest.raises(ValueError, match="'method' must be 'auto' or 'log' for unbalanced transport"):
        checks.reach(1.0, "scaling")
    checks.reach_in_range((math.inf, 1.0), "float32")
    with pytest.raises(ValueError, match="'reach'"):
        checks.reach_in_range((math.inf, 1e-60), "float32")
    checks.reach_in_range((1e-60, math.inf), "float64")


def test_gaps_callbacks_and_axes():
    assert checks.gap(None, None) is None is checks.gap(None, (1.0, 1.0)) and checks.gap(1e-3, None) == 1e-3
    with pytest.raises(ValueError, match="'gap' must be None with 'reach'.*got 0.001"):
        checks.gap(1e-3, (1.0, 1.0))
    checks.callback(None)
    checks.callback(print)
    with pytest.raises(TypeError, match="'callback' must be callable"):
        checks.callback(3)
    assert (checks.plan_axis(0), checks.plan_axis(1), checks.plan_axis(np.int64(1))) == (0, 1, 1)
    for bad, said in ((2, "got 2"), (-1, "got -1"), ("x", "got str"), (0.5, "got float")):
        with pytest.raises(ValueError, match=f"'axis' must be 0 .*{said}"):
            checks.plan_axis(bad)


@pytest.mark.parametrize("batched", [True, False])
def test_potentials_that_are_brought(batched):
    given = checked(a=np.stack([A, A]) if batched else A)
    size = 2 if batched else 1
    for x in (np.arange(4.0), np.arange(4.0)[None], *([np.ones((2, 4))] if batched else [])):
        found = checks.potential("f", x, 0, given, 0.1)
        assert found.shape == (size, 4) and found.dtype == np.float64
        np.testing.assert_array_equal(found, np.broadcast_to(x - x.mean(), (size, 4)))  # without its constant
    assert checks.potential("g", np.zeros(6), 1, given, 0.1).shape == (size, 6)
    wanted = r"\(4,\) or \(2, 4\)" if batched else r"\(4,\)"
    for bad in (np.zeros(6), np.zeros((3, 4)), np.zeros((1, 1, 4))):
        with pytest.raises(ValueError, match=f"'f' must have shape {wanted} to match"):
            checks.potential("f", bad, 0, given, 0.1)
    for bad in (1e302, -1e302):
        with pytest.raises(ValueError, match="'f' must be such that f / eps is finite; got 1e.302"):
            checks.potential("f", np.full(4, bad), 0, given, 1e-10)
    checks.potential("f", np.full(4, -1e302), 0, given, 1.0)
    with pytest.raises(ValueError, match="'f' must be at most .* in float64, so that sums do not leave the range"):
        checks.potential("f", np.full(4, -1e308), 0, given, 1.0)


# ---- problems ------------------------------------------------------------------------------------------------------


def solved(dtype=np.float64, f=1.0, g=-2.0, scale=1.0, eps=0.1, **given):
    cost = dense_cost((scale * C).astype(dtype))
    return Problem(
        **{"a": A[None].astype(dtype), "b": B[None].astype(dtype), "C": cost, "eps": eps, "dtype": np.dtype(dtype)}
        | {"f": np.full((1, 4), f), "g": np.full((1, 6), g), "batched": False}
        | given
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rounding_of_a_plan(dtype):
    unit = float(np.finfo(dtype).eps)
    found = solved(dtype).rounding()
    largest = float(C.astype(dtype).max())
    assert found == pytest.approx([8 * unit * (1 + (3 + largest) / 0.1)], rel=1e-12, abs=0)
    # Costs beyond what the potentials reach carry no mass: 2000 eps above.
    assert solved(dtype, scale=1e6).rounding() == pytest.approx(
        [8 * unit * (1 + (3 + 3 + 200) / 0.1)], rel=1e-12, abs=0
    )
    each = solved(dtype, eps=np.array([0.2]), f=4.0).rounding()
    assert each == pytest.approx([8 * unit * (1 + (6 + largest) / 0.2)], rel=1e-6, abs=0)


def test_a_dtype_serves_if_it_has_the_digits():
    unit = float(np.finfo(np.float32).eps)
    size = 0.1 * (1e-4 / (8 * unit) - 1) - float(np.float32(C.max()))  # of potentials, at which the rounding is 1e-4
    for share, dtype in ((0.999, np.float32), (1.001, np.float64)):
        found = solved(np.float32, f=share * size, g=0.0).in_one_dtype()
        assert {x.dtype for x in (found.a, found.b, found.f, found.g)} == {np.dtype(dtype)} and found.C.dtype == dtype
    assert solved().in_one_dtype().f.dtype == np.float64


def test_potentials_that_are_shown_are_finite():
    cost = C.copy()
    cost[1] = np.inf
    f, g = np.array([[0.5, np.inf, np.inf, 0.1]]), np.array([[0.2, np.inf, 0.3, 0.4, 0.5, 0.6]])
    problem = solved(C=dense_cost(cost), f=0.0)
    shown_f, shown_g = replace(problem, f=f, g=g).shown_potentials()
    through_g = (cost[2] - np.where(np.isfinite(g[0]), g[0], -np.inf)).min()
    through_f = (cost[:, 1] - np.where(np.isfinite(f[0]), f[0], -np.inf)).min()
    np.testing.assert_allclose(shown_f, [[0.5, 0, through_g, 0.1]])
    np.testing.assert_allclose(shown_g, [[0.2, through_f, 0.3, 0.4, 0.5, 0.6]])
    whole = replace(problem, f=np.zeros((1, 4)), shift=np.array([3.0]))
    assert whole.shown_potentials()[0].tolist() == [[3.0] * 4]
    assert whole.shown_potentials()[1].tolist() == [[-5.0] * 6]
    only = replace(problem, f=f).shown_potentials()
    assert np.isfinite(only[0]).all() and only[1].tolist() == [[-2.0] * 6]


def test_weights_that_stay_behind_do_not_move():
    f = np.array([[1.0, np.inf, 0.0, 1.0]])
    problem = replace(solved(), f=f)
    assert problem.moving()[0] is problem.a
    a, b = replace(problem, reach=(1.0, 1.0)).moving()
    np.testing.assert_array_equal(a[0], np.where(np.arange(4) == 1, 0, A))
    np.testing.assert_array_equal(b[0], B)
    assert problem.eps_as(3) == 0.1 and replace(problem, eps=np.array([0.3])).eps_as(3).shape == (1, 1, 1)
    assert problem.to_user(f).shape == (4,) and replace(problem, batched=True).to_user(f).shape == (1, 4)


# ---- gauges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1, 1 << 18])
def test_islands_are_told_from_edges_in_blocks(entries):
    edges = np.zeros((5, 6), bool)
    for i, j in ((0, 0), (1, 0), (1, 2), (2, 1), (3, 3), (3, 4)):
        edges[i, j] = True
    step = max(1, entries // 6)
    parts = [(slice(k, min(k + step, 5)), edges[k : k + step]) for k in range(0, 5, step)]
    rows, columns = gauge.islands(parts, 5, 6)
    groups = [({0, 1}, {0, 2}), ({2}, {1}), ({3}, {3, 4}), ({4}, set()), (set(), {5})]
    for own, theirs in groups:
        numbers = {int(rows[k]) for k in own} | {int(columns[k]) for k in theirs}
        assert len(numbers) == 1
        assert {k for k in range(5) if int(rows[k]) in numbers} == own
        assert {k for k in range(6) if int(columns[k]) in numbers} == theirs


@pytest.mark.parametrize("entries", [1, 1 << 18])
def test_each_island_has_equal_sums(monkeypatch, entries):
    monkeypatch.setattr(gauge, "BLOCK_ENTRIES", entries)
    cost = np.full((3, 4), 1e9)
    cost[:2, :2], cost[2, 3] = C[:2, :2], 0.3
    a, b = np.array([[0.3, 0.2, 0.5]]), np.array([[0.4, 0.1, 0.0, 0.5]])  # the third column is empty
    f, g = np.array([[500.1, 500.2, -40.0]]), np.array([[-500.0, -499.9, 77.0, 40.2]])
    found = f.copy(), g.copy()
    gauge.equalise(dense_cost(cost), a, b, *found, 1.0, 100.0)
    first = (g[0, :2].sum() - f[0, :2].sum()) / 4
    second = (g[0, 3] - f[0, 2]) / 2
    np.testing.assert_allclose(found[0], [[500.1 + first, 500.2 + first, -40 + second]], rtol=1e-12)
    np.testing.assert_allclose(found[1], [[-500 - first, -499.9 - first, 77.0, 40.2 - second]], rtol=1e-12)
    # Of two problems that one alone which is large.
    two = np.stack([f[0] / 100, f[0]]), np.stack([g[0] / 100, g[0]])
    kept = two[0][0].copy()
    gauge.equalise(dense_cost(cost), *(np.repeat(w, 2, axis=0) for w in (a, b)), *two, 1.0, 100.0)
    np.testing.assert_array_equal(two[0][0], kept)
    np.testing.assert_allclose(two[0][1], found[0][0], rtol=1e-12)
    low = f.copy(), g.copy()
    gauge.equalise(dense_cost(cost), a, b, *low, 1.0, 1100.0)
    np.testing.assert_array_equal(low[0], f)


def test_an_edge_is_an_exponent_above_minus_hundred():
    f, g, a = np.zeros((1, 2)), np.array([[4.0, 200.0]]), np.array([[0.5, 0.5]])
    for far, joined in ((99.0, True), (101.0, False)):
        cost = np.array([[4.0, 200.0 + far], [1e9, 200.0]])
        u, v = f.copy(), g.copy()
        gauge.equalise(dense_cost(cost), a, a, u, v, 1.0, 100.0)
        want = [[51.0, 51.0]] if joined else [[2.0, 100.0]]
        np.testing.assert_allclose(u, want)
        np.testing.assert_allclose(u + v, g, rtol=1e-14)


def test_islands_stay_where_their_gauges_would_join_them():
    f, g, a = np.array([[0.0, 0.0]]), np.array([[300.0, 100.0]]), np.array([[0.5, 0.5]])
    cost = np.array([[300.0, 220.0], [1e9, 100.0]])  # apart at 120; with gauges of their own the pair is at 20
    u, v = f.copy(), g.copy()
    gauge.equalise(dense_cost(cost), a, a, u, v, 1.0, 100.0)
    np.testing.assert_array_equal(u, f)
    np.testing.assert_array_equal(v, g)


# ---- values --------------------------------------------------------------------------------------------------------


def test_balanced_values_are_sums_over_bins_with_weight():
    a, b = np.array([[0.5, 0.0, 0.5]]), np.array([[0.25, 0.75]])
    f, g = np.array([[1.0, np.inf, 3.0]]), np.array([[-1.0, 2.0]])
    problem = Problem(a=a, b=b, C=dense_cost(np.zeros((3, 2))), eps=0.2, f=f, g=g, dtype=np.float64, batched=True)
    reg_cost, entropic_cost = values.values(problem)
    assert reg_cost == pytest.approx([2 + 1.25])
    assert entropic_cost == pytest.approx(reg_cost - 0.2 * (reference.entropy(a[0]) + reference.entropy(b[0])))
    assert values.weighted_sum(np, a, f).tolist() == [2.0] and values.weighted_sum(np, b, g).tolist() == [1.25]
    both = np.concatenate([f, [[1.0, 7.0, 2.0]]])  # one row without an infinite value beside one with
    assert values.weighted_sum(np, np.concatenate([a, a]), both).tolist() == [2.0, 1.5]
    assert values.price(np, a, np.zeros((1, 3)) + 2, np.inf) == pytest.approx([2.0])
    assert values.price(np, b, g, 0.5) == pytest.approx([0.5 * (b[0] @ (1 - np.exp(-g[0] / 0.5)))], rel=1e-14)


def test_ratios_of_marginals():
    wanted, have = np.array([[1.0, 2.0, 0.0, 3.0]]), np.array([[2.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(bounds._shrink(np, wanted, have), [[0.5, 1, 1, 1]])
    np.testing.assert_allclose(bounds._shrink(np, have, wanted), [[1, 0.5, 1, 0]])
    np.testing.assert_allclose(bounds._log_ratio(np, wanted, have), [[-np.log(2), np.log(2), 0, 0]])
    np.testing.assert_allclose(bounds._log_ratio(np, have, wanted), [[np.log(2), -np.log(2), 0, 0]])


# ---- linear programmes ---------------------------------------------------------------------------------------------


def test_an_interval_and_its_relative_width():
    interval = gap.Interval
    assert interval().relative() == np.inf
    assert interval(1.0, 2.0, 9.0).relative() == 0.5 and interval(-2.0, -1.0).relative() == 0.5
    assert interval(-1.0, 1.0, 0.5).relative() == 0 and interval(-1.0, 1.0, 0.499).relative() == 2
    assert interval(0.0, 1.0, 0.25).relative() == 0 == interval(-1.0, 0.0, 0.25).relative()
    assert interval(-np.inf, 3.0).relative() == np.inf


def test_pieces_of_a_programme():
    g = np.array([0.3, -0.2, 0.5, 0.0, 0.1, 0.9])
    u, v = gap._feasible(C, g)
    np.testing.assert_allclose(u, [min(C[i] - g) for i in range(4)])
    np.testing.assert_allclose(v, [min(C[:, j] - u) for j in range(6)])
    for count in (1, 5, 23, 24, 30):
        assert sorted(gap._least(C, count)) == sorted(np.argsort(C, axis=None)[:count])
    b = B * A.sum() / B.sum()
    left, right, want, i, j = A.copy(), b.copy(), set(), 0, 0
    while i < 4 and j < 6:
        want.add(i * 6 + j)
        least = min(left[i], right[j])
        left[i], right[j] = left[i] - least, right[j] - least
        i, j = (i + 1, j) if left[i] <= 1e-14 else (i, j + 1)
    assert set(gap._northwest(A, b).tolist()) == want
    assert set(gap._northwest(np.array([0.5, 0.5]), np.array([0.5, 0.5])).tolist()) <= {0, 1, 2, 3}
    pairs = np.arange(24)
    plan, f, h = gap._programme(A, b, C.ravel(), pairs)
    exact = reference.exact_cost(A, b, C)
    assert plan @ C.ravel() == pytest.approx(exact, rel=1e-8) and A @ f + b @ h == pytest.approx(exact, rel=1e-8)
    assert (C - f[:, None] - h >= -1e-8).all() and (plan >= 0).all()
    np.testing.assert_allclose(np.bincount(pairs // 6, plan), A, atol=1e-9)
    scaled = gap._programme(A, b, 1e-9 * C.ravel(), pairs)
    assert scaled[0] @ C.ravel() == pytest.approx(exact, rel=1e-7)
    assert gap._programme(A, b, np.zeros(24), pairs) is not None
    assert gap._programme(A, b, C.ravel()[:6], pairs[:6]) is None  # one row alone


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mass", [1.0, 5.0])
def test_bounds_of_a_programme_leave_room_for_rounding(dtype, mass):
    a, b = mass * A, mass * B / B.sum() * A.sum()
    found = gap._solve(a, b, C + 2, np.zeros(6), 1e-12, dtype)
    exact = reference.exact_cost(a, b, C + 2)
    unit = 8 * float(np.finfo(dtype).eps)
    assert 2 * unit * mass < found.rounding < 2 * unit * mass * 3.1  # potentials of at least 2 and at most 3 in sum
    assert found.upper == pytest.approx(exact + found.rounding, rel=1e-13)
    assert found.lower == pytest.approx(exact - found.rounding, rel=1e-13)
    sums = gap._solve(a, 3 * b, C + 2, np.full(6, np.inf), 1e-12, dtype)  # whatever the sum of b and the potentials
    assert sums.upper == pytest.approx(found.upper, rel=1e-12)
    cut = np.array([[0.0, np.inf, np.inf], [1.0, np.inf, np.inf], [0.0, 1.0, 0.0]])  # two rows have one column alone
    assert gap._solve(np.array([0.4, 0.3, 0.3]), np.array([0.3, 0.3, 0.4]), cut, np.zeros(3), 1e-6, dtype) is None


def test_the_cost_of_a_plan_whose_marginals_are_made_right():
    a, b, cost = np.array([0.5, 0.5]), np.array([0.25, 0.75]), np.array([[1.0, 2.0], [4.0, 8.0]])
    pairs = np.array([0, 1, 3])
    right = np.array([0.25, 0.25, 0.5])
    assert gap._cost_of_rounded(a, b, cost, right, pairs) == pytest.approx(0.25 + 0.5 + 4)
    # What is missing goes from bins that lack it to bins that lack it.
    assert gap._cost_of_rounded(a, b, cost, np.array([0.15, 0.25, 0.5]), pairs) == pytest.approx(0.25 + 0.5 + 4)
    less = np.array([0.15, 0.25, 0.3])  # rows lack 0.1 and 0.2, columns 0.1 and 0.2
    rest = (0.1 * (0.1 * 1 + 0.2 * 2) + 0.2 * (0.1 * 4 + 0.2 * 8)) / 0.3
    assert gap._cost_of_rounded(a, b, cost, less, pairs) == pytest.approx(0.15 + 0.5 + 2.4 + rest)
    more = np.array([0.3, 0.3, 0.5])  # a row of 0.6 is cut, then columns of 0.25 and 0.75
    assert gap._cost_of_rounded(a, b, cost, more, pairs) == pytest.approx(0.25 + 0.5 + 4)
    forbidden = np.where(cost == 4, np.inf, cost)
    assert np.isfinite(gap._cost_of_rounded(a, b, forbidden, right * (1 - 1e-16), pairs))


# ---- prices of marginals -------------------------------------------------------------------------------------------

REACHES = [(0.7, 0.4), (math.inf, 0.4), (0.7, math.inf)]


@pytest.mark.parametrize("reach", REACHES)
def test_the_shift_is_that_of_the_highest_dual_value(reach):
    a, b = np.stack([A, A]), 1.5 * np.stack([B, B])
    a[0, 1] = 0
    f, g = rng.normal(size=a.shape), rng.normal(size=b.shape)
    f[0, 1] = -200.0  # without weight

    @np.errstate(over="ignore", invalid="ignore")
    def dual(t):
        return values.price(np, a, f + t[:, None], reach[0]) + values.price(np, b, g - t[:, None], reach[1])

    t = unbalanced.translation(np, a, b, f, g, reach)
    best = dual(t)
    for step in (1e-3, -1e-3):
        assert (dual(t + step) < best).all()
    far = unbalanced.translation(np, a, b, f + 3000.0, g - 3000.0, reach)  # far out of the range of exp
    np.testing.assert_allclose(far, t - 3000, rtol=1e-12)


def test_masses_do_not_underflow():
    f = np.array([[1000.0, 1000.5, -5.0]])
    s, c = unbalanced._mass(np, np.array([[0.5, 0.25, 0.0]]), f, 0.5)
    assert c == pytest.approx([2000.0]) and s == pytest.approx([0.5 + 0.25 * np.exp(-1)])
    assert unbalanced._mass(np, np.array([[0.5, 0.25, 0.0]]), f, np.inf)[0] == pytest.approx([0.75])


@pytest.mark.parametrize("rho", [0.4, math.inf])
def test_updates_are_damped(rho):
    eps, shift, image = 0.3, np.array([[0.7]]), np.array([[1.0, -2.0]])
    kappa = 1.0 if rho == math.inf else rho / (rho + eps)
    np.testing.assert_allclose(unbalanced.damped(image, shift, eps, rho), kappa * (image + 0.7) - 0.7, rtol=1e-14)
    steps = unbalanced.ArraySteps(np)
    weights, old = np.array([[0.5, 0.0]]), np.array([[0.2, 0.3]])
    with np.errstate(divide="ignore"):
        log = np.log(weights)
    for sign in (1, -1):
        plain = kappa * (image + sign * 0.7) - sign * 0.7
        new, logits = steps.update(old, image, shift, sign, weights, log, None, eps, rho)
        np.testing.assert_allclose(new, [[plain[0, 0], 0]], rtol=1e-14)
        np.testing.assert_allclose(logits, [[np.log(0.5) + plain[0, 0] / eps, -np.inf]])
        further = steps.update(old, image, shift, sign, weights, log, np.array([[0.5]]), eps, rho)[0]
        d = plain[0, 0] - 0.2
        if d > 0:
            want = plain[0, 0] + eps * np.log(1.5 - 0.5 * np.exp(-d / eps))
        else:
            price = 1e12 * eps if rho == math.inf else rho
            want = plain[0, 0] - price * np.log1p(-0.5 * np.expm1(d / price))
        assert further[0, 0] == pytest.approx(want, rel=1e-6) and further[0, 1] == 0


@pytest.mark.parametrize("rho", [0.4, math.inf])
def test_the_error_of_a_marginal_is_its_distance_from_what_the_price_leaves(rho):
    a = np.array([[0.5, 0.0, 0.3, 0.2]])
    f, image, shift, eps = (
        np.array([[0.1, 9.0, -0.4, 0.3]]),
        np.array([[0.2, 0.0, -0.5, 0.25]]),
        np.array([[0.15]]),
        0.2,
    )
    marginal = a * np.exp(-(f + shift) / rho)
    plan = a * np.exp((f - image) / eps)
    want = abs(plan - marginal).sum() / marginal.sum()
    assert unbalanced.marginal_error(np, a, f, image, shift, eps, rho) == pytest.approx([want], rel=1e-12)
    far = unbalanced.marginal_error(np, a, f + 30, image, shift, eps, rho)  # a ratio of exp(150)
    plan = a * np.exp((f + 30 - image) / eps)
    marginal = a * np.exp(-(f + 30 + shift) / rho)
    assert far == pytest.approx([abs(plan - marginal).sum() / marginal.sum()], rel=1e-10)
    with np.errstate(over="ignore"):
        beyond = unbalanced.marginal_error(np, a, f + 1e4, image, shift, eps, rho)
    assert np.isfinite(beyond).all() and beyond > 1e100


def test_the_error_of_a_marginal_counts_what_lies_in_a_bin_with_hardly_any_weight():
    weights, potential = np.array([[5e-228, 1.0]]), np.array([[523.0, 0.0]])
    error = unbalanced.marginal_error(np, weights, potential, np.zeros((1, 2)), np.zeros((1, 1)), 1.0, 1e9)
    assert error == pytest.approx(np.exp(523 + np.log(5e-228)), rel=1e-5)


def test_bins_without_partners_keep_their_mass():
    cost = C.copy()
    cost[2], cost[:, 5] = np.inf, np.inf
    a, b = unbalanced.partnered(dense_cost(cost), A[None], B[None])
    np.testing.assert_array_equal(a[0], np.where(np.arange(4) == 2, 0, A))
    np.testing.assert_array_equal(b[0], np.where(np.arange(6) == 5, 0, B))
    given = A[None], B[None]
    assert unbalanced.partnered(dense_cost(C), *given)[0] is given[0]


def test_an_unbalanced_iteration_begins_between_its_lowest_potentials():
    """A constant of any size in f and -g is the shift, and no digit of either is lost to it."""
    f, g, shift = np.array([[50.0, 51.0, 52.0, 53.0]]), np.full((1, 6), -40.0), np.zeros(1)
    begun = unbalanced.UnbalancedIteration(
        dense_cost(C), A[None], B[None], 0.2, f, g, "log", reach=(1.0, 1.0), shift=shift
    )
    np.testing.assert_allclose(begun.f, f - 45)
    np.testing.assert_allclose(begun.g, g + 45)
    again = unbalanced.UnbalancedIteration(
        dense_cost(C), A[None], B[None], 0.2, np.full((1, 4), np.inf), g, "log", reach=(1.0, 1.0), shift=shift
    )
    assert again.f.tolist() == [[-20.0] * 4]
    for one in (begun, again):  # by their shift both marginals have one mass
        t = one.t[0, 0]
        assert (A * np.exp(-(one.f[0] + t))).sum() == pytest.approx((B * np.exp(-(one.g[0] - t))).sum(), rel=1e-12)
    bound = begun.advance(np.ones(1), 3)
    found_f, found_g, cost, error = begun.finish(np.arange(1))
    P = reference.plan(A, B, C, 0.2, found_f[0], found_g[0])
    assert cost == pytest.approx([(P * C).sum()], rel=1e-12)
    wanted = B * np.exp(-(found_g[0] - shift) / 1.0)
    assert error == pytest.approx([abs(P.sum(axis=0) - wanted).sum() / wanted.sum()], rel=1e-9)
    np.testing.assert_allclose(P.sum(axis=1), A * np.exp(-(found_f[0] + shift)), rtol=1e-12)
    assert bound > 0 and bound == pytest.approx(error, rel=1.0)


@pytest.mark.parametrize("far", [1e6, 8e10, 1e14])
def test_a_start_far_from_its_shift_leaves_no_potential_of_its_size(far):
    """One side sends all it has: the other one's potential is small, and what it says of its marginal holds."""
    a, b, cost, rho = np.array([0.4, 0.3]), np.array([0.5]), np.array([[far], [0.0]]), 0.036
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        found = cusink.sinkhorn(a, b, cost, eps=6.0, reach=(None, rho))
    wanted = b * np.exp(-found.g / rho)
    assert found.g == pytest.approx([-rho * np.log(0.7 / 0.5)], rel=1e-9)
    assert abs(found.plan().sum(axis=0) - wanted).sum() / wanted.sum() <= found.error
    shift, still = np.full((1, 1), 1e9), np.zeros((1, 1))
    moved, at_rest = (
        unbalanced.marginal_error(np, b[None], g, g * (1 + 6 / rho) - s * (6 / rho), -s, 6.0, rho)
        for s, g in ((shift, found.g[None] + shift), (still, found.g[None]))
    )
    assert at_rest < 1e-12 and 2e-16 * 1e9 / rho < moved < 1e-2  # what rounding may do to a number of that size


# ---- maps ----------------------------------------------------------------------------------------------------------


def test_values_of_bins_or_of_images():
    numbers, rows, image = np.arange(6.0), np.arange(12.0).reshape(6, 2), np.arange(6.0).reshape(2, 3)
    found, flat = maps._in_bins(numbers, None)
    assert found.shape == (6, 1) and flat
    found, flat = maps._in_bins(rows, None)
    assert found.shape == (6, 2) and not flat
    for cells, x, shape, flat in (
        ((2, 3), image, (6, 1), True),
        ((2, 3), np.zeros((2, 3, 4)), (6, 4), False),
        ((2, 3), np.zeros((5, 2, 3)), (5, 6, 1), True),
        ((2, 3), np.zeros((5, 2, 3, 4)), (5, 6, 4), False),
        ((2, 3), numbers, (6, 1), True),
    ):
        found = maps._in_bins(x, cells)
        assert found[0].shape == shape and found[1] == flat


def test_values_of_a_map_are_told_what_shape_they_must_have():
    single = SimpleNamespace(f=np.zeros((1, 4)), dtype=np.dtype(float), C=dense_cost(C), a=A[None], images=(None,) * 2)
    single.batched = False
    assert maps.map_values(np.zeros(6), 1, single)[0].shape == (1, 6, 1)
    assert maps.map_values(np.zeros((4, 3)), 0, single)[0].shape == (1, 4, 3)
    batch = SimpleNamespace(**{**vars(single), "a": np.stack([A, A]), "batched": True})
    assert maps.map_values(np.zeros((2, 6, 3)), 1, batch)[0].shape == (2, 6, 3)
    for problem, x, axis, wanted in (
        (single, np.zeros(4), 1, r"\(6,\) or \(6, d\) for axis=1; got \(4,\)"),
        (single, np.zeros((2, 6, 3)), 1, r"\(6,\) or \(6, d\) for axis=1; got \(2, 6, 3\)"),
        (single, np.zeros((6, 0)), 1, r"\(6,\) or \(6, d\) for axis=1; got \(6, 0\)"),
        (batch, np.zeros((3, 6, 3)), 1, r"\(6,\) or \(6, d\) or \(2, 6, d\) for axis=1; got \(3, 6, 3\)"),
        (batch, np.zeros((1, 1, 6, 3)), 1, r".*; got \(1, 1, 6, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"'values' must have shape {wanted}"):
            maps.map_values(x, axis, problem)


@pytest.mark.parametrize("axis", [0, 1])
def test_means_of_rows_that_may_have_nothing_are_zero(axis):
    cost = np.where(np.arange(4)[:, None] == 1, np.inf, C)
    cost = cost if axis == 1 else cost.T.copy()
    logits, v = np.log(B)[None], rng.normal(size=(1, 6, 2))
    found = maps.conditional_means(dense_cost(cost), logits, v, 0.1, axis)
    K = B * np.exp(-C / 0.1)
    want = K @ v[0] / K.sum(axis=1, keepdims=True)
    want[1] = 0
    np.testing.assert_allclose(found[0], want, atol=1e-13)


def test_a_self_term_whose_error_is_the_tolerance_has_converged():
    cost, a = dense_cost(abs(np.subtract.outer(range(4), range(4))) / 3.0), np.stack([A, A[::-1]])
    few = self_potentials(cost, a, 0.1, Options(tol=None, max_iter=3))
    error = float(few.error.max())
    assert few.converged.all() and error > 1e-6
    again = self_potentials(cost, a, 0.1, Options(tol=error, max_iter=3))
    assert again.error.max() == error and again.converged.all()
    assert not self_potentials(cost, a, 0.1, Options(tol=0.999 * error, max_iter=3)).converged.all()
