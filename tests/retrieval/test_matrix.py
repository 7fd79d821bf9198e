"""`cusink.distance_matrix`: all pairs, however they are tiled, stored and reported."""

import dataclasses
import tracemalloc
import warnings

import numpy as np
import problems
import pytest
import reference

import cusink
from cusink.costs.operands import DenseCost
from cusink.solver import loop as solver_loop
from cusink.solver.newton import newton

FLOATS = [np.float32, np.float64]
VALUES = ["cost", "reg_cost", "entropic_cost"]
EPS = 0.05


def digits(seed=0, queries=7, corpus=11, side=5, zeros=0.5):
    """Histograms on a square grid, half of whose bins are empty; the last bin is empty in all of them."""
    rng = np.random.default_rng(seed)
    A, B = (problems.histograms(rng, count, side * side, zeros) for count in (queries, corpus))
    A[:, -1] = B[:, -1] = 0
    return A / A.sum(axis=1, keepdims=True), B / B.sum(axis=1, keepdims=True), problems.grid_cost(side, side)


def loop(xp, A, B, C, value="cost", dtype=np.float64, **options):
    """Return the same by one call of sinkhorn per pair."""
    return np.array(
        [
            [
                float(getattr(cusink.sinkhorn(xp(a, dtype), xp(b, dtype), xp(C, dtype), **options), value))
                for b in np.asarray(B)
            ]
            for a in np.asarray(A)
        ]
    )


@pytest.mark.parametrize("value", VALUES)
def test_it_is_a_loop_of_sinkhorn(xp, value):
    A, B, C = digits(queries=4, corpus=5)
    matrix = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=EPS, value=value, tol=1e-10, max_iter=5000)
    assert xp.owns(matrix) and matrix.shape == (4, 5)
    want = loop(xp, A, B, C, value, eps=EPS, tol=1e-10, max_iter=5000)
    np.testing.assert_allclose(xp.numpy(matrix), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", range(3))
def test_it_is_what_the_oracle_says(xp, k):
    A, B, C = digits(queries=3, corpus=4)
    matrix = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=EPS, value=VALUES[k], tol=1e-10, max_iter=5000)
    want = [[reference.optimum(a, b, C, EPS)[k] for b in B] for a in A]
    np.testing.assert_allclose(xp.numpy(matrix), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("overrelaxation", [None, "auto", 1.4])
def test_methods_agree(xp, method, overrelaxation):
    A, B, C = digits()
    options = {"eps": EPS, "tol": 1e-9, "max_iter": 5000}
    matrix = cusink.distance_matrix(xp(A), xp(B), xp(C), method=method, overrelaxation=overrelaxation, **options)
    want = cusink.sinkhorn(xp(np.repeat(A, 11, axis=0)), xp(np.tile(B, (7, 1))), xp(C), **options)
    np.testing.assert_allclose(xp.numpy(matrix), xp.numpy(want.cost).reshape(7, 11), rtol=0, atol=1e-7)


def test_default_value_is_the_transport_cost(xp):
    A, B, C = (xp(x) for x in digits())
    default, cost = (cusink.distance_matrix(A, B, C, eps=EPS, **chosen) for chosen in ({}, {"value": "cost"}))
    np.testing.assert_array_equal(xp.numpy(default), xp.numpy(cost))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(xp, dtype):
    A, B, C = digits()
    matrix = cusink.distance_matrix(xp(A, dtype), xp(B, dtype), xp(C, dtype), eps=EPS, tol=1e-4)
    assert matrix.dtype == dtype
    want = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=EPS, tol=1e-4)
    np.testing.assert_allclose(
        xp.numpy(matrix).astype(float), xp.numpy(want), rtol=0, atol=20 * np.finfo(dtype).eps + 1e-4
    )


def test_lists_become_float64():
    matrix = cusink.distance_matrix([[1, 0]], [[0, 1], [1, 0]], [[0, 2], [2, 0]], eps=0.1)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, [[2.0, 0.0]], atol=1e-12)


# One set against itself


@pytest.mark.parametrize("value", VALUES)
def test_a_set_against_itself(xp, value):
    A, _, C = digits(queries=9)
    matrix = xp.numpy(cusink.distance_matrix(xp(A), None, xp(C), eps=EPS, value=value, tol=1e-10, max_iter=5000))
    whole = xp.numpy(cusink.distance_matrix(xp(A), xp(A), xp(C), eps=EPS, value=value, tol=1e-10, max_iter=5000))
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix, whole, rtol=0, atol=1e-8)
    diagonal = cusink.sinkhorn(xp(A), xp(A), xp(C), eps=EPS, tol=1e-10, max_iter=5000)
    np.testing.assert_allclose(np.diag(matrix), xp.numpy(getattr(diagonal, value)), rtol=0, atol=1e-8)
    # Regularised, the distance of a histogram to itself is not zero, and no one may set it so.
    assert (np.diag(matrix) != 0).all()


def test_a_set_against_itself_has_all_its_reports(xp):
    A, _, C = digits(queries=6)
    result = cusink.distance_matrix(xp(A), None, xp(C), eps=EPS, tol=1e-6, full_output=True)
    for name in ("distances", "error", "n_iter", "converged"):
        field = xp.numpy(getattr(result, name))
        assert field.shape == (6, 6)
        np.testing.assert_array_equal(field, field.T)
    assert (xp.numpy(result.n_iter) > 0).all() and xp.numpy(result.converged).all()


def test_one_triangle_is_solved(monkeypatch):
    started, real = [], DenseCost.iteration
    monkeypatch.setattr(DenseCost, "iteration", lambda C, a, *args: started.append(len(a)) or real(C, a, *args))
    A, _, C = digits(queries=10)
    cusink.distance_matrix(A, None, C, eps=EPS)
    assert sum(started) == 10 * 11 // 2
    started.clear()
    cusink.distance_matrix(A, A, C, eps=EPS)
    assert sum(started) == 100


def test_a_set_against_itself_at_a_cost_that_is_not_symmetric(xp):
    """No triangle may stand for the other then."""
    A, _, C = digits(queries=5)
    C = C + np.triu(np.random.default_rng(0).random(C.shape))
    options = {"eps": EPS, "tol": 1e-10, "max_iter": 5000}
    matrix = xp.numpy(cusink.distance_matrix(xp(A), None, xp(C), **options))
    whole = xp.numpy(cusink.distance_matrix(xp(A), xp(A), xp(C), **options))
    np.testing.assert_allclose(matrix, whole, rtol=0, atol=1e-8)
    assert np.abs(matrix - matrix.T).max() > 1e-3


# Empty bins


def test_empty_bins_leave_the_problem_without_a_trace(xp):
    """The same histograms with a hundred bins more that nobody uses, at absurd costs."""
    A, B, C = digits()
    n = C.shape[0]
    wide = np.full((n + 100, n + 100), 1e6)
    place = np.sort(np.random.default_rng(0).permutation(n + 100)[:n])
    wide[np.ix_(place, place)] = C
    wider = [np.zeros((len(x), n + 100)) for x in (A, B)]
    for new, old in zip(wider, (A, B), strict=True):
        new[:, place] = old
    options = {"eps": EPS, "tol": 1e-9, "max_iter": 5000}
    want = cusink.distance_matrix(xp(A), xp(B), xp(C), **options)
    found = cusink.distance_matrix(xp(wider[0]), xp(wider[1]), xp(wide), **options)
    np.testing.assert_allclose(xp.numpy(found), xp.numpy(want), rtol=0, atol=1e-8)


def test_forbidden_pairs_between_bins_nobody_uses(xp):
    A, B, C = digits()
    C[-1, :] = C[:, -1] = np.inf
    options = {"eps": EPS, "tol": 1e-9, "max_iter": 5000}
    found = cusink.distance_matrix(xp(A), xp(B), xp(C), **options)
    want = cusink.distance_matrix(xp(A[:, :-1]), xp(B[:, :-1]), xp(C[:-1, :-1]), **options)
    np.testing.assert_allclose(xp.numpy(found), xp.numpy(want), rtol=0, atol=1e-8)


def test_point_masses_have_the_cost_between_their_bins(xp):
    C = problems.grid_cost(4, 4)
    matrix = cusink.distance_matrix(xp(np.eye(16)), xp(np.eye(16)[::3]), xp(C), eps=1e-3)
    np.testing.assert_allclose(xp.numpy(matrix), C[:, ::3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [0.01, 0.003, 0.001])
def test_small_eps_converges_everywhere(xp, eps, dtype):
    """Empty bins, many iterations: every pair reaches tol, none is NaN, and none lies below the exact cost."""
    A, B, C = digits(queries=3, corpus=6, side=8)
    A, B, C = (x.astype(dtype) for x in (A, B, C))
    tol = 1e-6 if dtype == np.float64 else 1e-3
    result = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=eps, tol=tol, max_iter=100_000, full_output=True)
    assert xp.numpy(result.converged).all() and (xp.numpy(result.error) <= tol).all()
    exact = np.array([[reference.exact_cost(a, b, C) for b in B] for a in A])
    found = xp.numpy(result.distances)
    assert (found >= exact - 2 * tol).all()
    assert (found <= exact + eps * np.log(64) + 2 * tol).all()


# Tiles and memory


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("memory_limit", [20_000, 100_000, 1_000_000])
def test_tiles_change_nothing(xp, memory_limit, symmetric):
    A, B, C = digits(queries=13, corpus=17)
    other = None if symmetric else xp(B)
    options = {"eps": EPS, "tol": 1e-9, "max_iter": 5000}
    whole = cusink.distance_matrix(xp(A), other, xp(C), **options)
    tiled = cusink.distance_matrix(xp(A), other, xp(C), memory_limit=memory_limit, **options)
    np.testing.assert_allclose(xp.numpy(tiled), xp.numpy(whole), rtol=0, atol=1e-7)


def test_memory_limit_bounds_the_working_memory():
    rng = np.random.default_rng(0)
    A, B = problems.histograms(rng, 60, 49), problems.histograms(rng, 400, 49)
    C = problems.grid_cost(7, 7)
    options = {"eps": 0.1, "tol": None, "max_iter": 3}
    cusink.distance_matrix(A[:2], B[:2], C, **options)
    peaks = {}
    for limit in (2_000_000, None):
        tracemalloc.start()
        cusink.distance_matrix(A, B, C, memory_limit=limit, **options)
        peaks[limit] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    output = 60 * 400 * 8
    assert peaks[2_000_000] < 2_000_000 + 4 * output


@pytest.mark.parametrize(("limit", "error"), [(-5, ValueError), ("1GB", TypeError), (True, TypeError)])
def test_a_memory_limit_is_checked_as_it_was_given(limit, error):
    A, _, _ = digits(queries=2, side=3)
    with pytest.raises(error, match=f"'memory_limit' must be .*got ({limit}|str|bool)"):
        cusink.distance_matrix(A, None, cusink.PointCloud(np.arange(9.0)), eps=1.0, memory_limit=limit)


def test_peak_memory_is_a_few_copies_of_the_histograms():
    """No (queries x corpus x bins) array, and nothing like (pairs, n, m), whatever the default tile."""
    rng = np.random.default_rng(0)
    A, B = problems.histograms(rng, 2, 64), problems.histograms(rng, 3000, 64)
    C = problems.grid_cost(8, 8)
    cusink.distance_matrix(A[:1], B[:2], C, eps=0.2, tol=None, max_iter=3)
    tracemalloc.start()
    cusink.distance_matrix(A, B, C, eps=0.2, tol=None, max_iter=3, memory_limit=4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 + 2 * (2 * 3000 * 8 + B.nbytes)


# Where the answer goes


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_out_is_filled_and_returned(xp, dtype, symmetric):
    A, B, C = digits()
    A, B, C = xp(A, dtype), None if symmetric else xp(B, dtype), xp(C, dtype)
    want = xp.numpy(cusink.distance_matrix(A, B, C, eps=EPS, tol=1e-4))
    out = xp.numpy(want).copy()
    out[:] = np.nan
    if xp.name == "cupy":
        import cupy

        out = cupy.asarray(out)
    returned = cusink.distance_matrix(A, B, C, eps=EPS, tol=1e-4, out=out)
    assert returned is out
    np.testing.assert_array_equal(xp.numpy(out), want)


def test_out_may_be_a_view():
    A, B, C = digits()
    large = np.full((20, 30), -1.0)
    cusink.distance_matrix(A, B, C, eps=EPS, out=large[3:10, 5:27:2])
    np.testing.assert_array_equal(large[3:10, 5:27:2], cusink.distance_matrix(A, B, C, eps=EPS))
    assert (large[:3] == -1).all() and (large[10:] == -1).all() and (large[:, ::2] == -1).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_out_may_be_a_file(tmp_path, symmetric):
    A, B, C = digits()
    B = None if symmetric else B
    want = cusink.distance_matrix(A, B, C, eps=EPS)
    path = tmp_path / "matrix.npy"
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=want.shape)
    returned = cusink.distance_matrix(A, B, C, eps=EPS, out=out, memory_limit=100_000)
    assert returned is out
    out.flush()
    np.testing.assert_allclose(np.load(path), want, rtol=0, atol=1e-7)


def test_memory_mapped_histograms_are_read(tmp_path):
    A, B, C = digits()
    np.save(tmp_path / "B.npy", B)
    mapped = np.load(tmp_path / "B.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        cusink.distance_matrix(A, mapped, C, eps=EPS), cusink.distance_matrix(A, B, C, eps=EPS)
    )


def test_full_output(xp):
    A, B, C = (xp(x) for x in digits())
    result = cusink.distance_matrix(A, B, C, eps=EPS, tol=1e-6, full_output=True)
    assert isinstance(result, cusink.DistanceMatrix)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.error = None
    with pytest.raises(TypeError):
        iter(result)
    shapes = {getattr(result, name).shape for name in ("distances", "error", "n_iter", "converged")}
    assert shapes == {(7, 11)}
    np.testing.assert_array_equal(
        xp.numpy(result.distances), xp.numpy(cusink.distance_matrix(A, B, C, eps=EPS, tol=1e-6))
    )
    assert xp.numpy(result.converged).all() and xp.numpy(result.converged).dtype == bool
    assert (xp.numpy(result.error) <= 1e-6).all()
    assert xp.numpy(result.n_iter).dtype.kind in "iu" and (xp.numpy(result.n_iter) > 0).all()


def test_full_output_with_out(xp):
    A, B, C = digits()
    out = np.empty((7, 11))
    result = cusink.distance_matrix(A, B, C, eps=EPS, out=out, full_output=True)
    assert result.distances is out


def test_fixed_count(xp):
    A, B, C = digits(queries=3, corpus=4)
    result = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=EPS, tol=None, max_iter=6, full_output=True)
    assert (xp.numpy(result.n_iter) == 6).all()
    for q, a in enumerate(A):
        for d, b in enumerate(B):
            exact = reference.sinkhorn(a, b, C, EPS, 6)
            P = reference.plan(a, b, C, EPS, exact.f, exact.g)
            assert float(result.distances[q, d]) == pytest.approx(reference.transport_cost(P, C), rel=1e-10)
            assert float(result.error[q, d]) == pytest.approx(exact.error, rel=1e-8)


def test_pairs_that_do_not_converge_are_reported_once(xp):
    A, B, C = digits(queries=13, corpus=17)
    with pytest.warns(cusink.ConvergenceWarning, match="221") as caught:
        result = cusink.distance_matrix(
            xp(A), xp(B), xp(C), eps=0.001, tol=1e-13, max_iter=2, memory_limit=50_000, full_output=True
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not xp.numpy(result.converged).any()
    assert (xp.numpy(result.n_iter) == 2).all()
    assert np.isfinite(xp.numpy(result.distances)).all()


def test_a_result_shows_shapes_and_not_values():
    A, B, C = digits(queries=2, corpus=3)
    shown = repr(cusink.distance_matrix(A, B, C, eps=EPS, full_output=True))
    assert (
        shown
        == "DistanceMatrix(distances=float64[2, 3], error=float64[2, 3], n_iter=int64[2, 3], converged=bool[2, 3])"
    )
    assert "indices=int64[2, 1]" in repr(cusink.nearest(A, B, C, k=1, eps=EPS, full_output=True))


def test_progress_shows_a_bar_and_silence_is_the_default(capfd):
    pytest.importorskip("tqdm")
    A, B, C = digits()
    want = cusink.distance_matrix(A, B, C, eps=EPS)
    assert capfd.readouterr() == ("", "")
    found = cusink.distance_matrix(A, B, C, eps=EPS, progress=True)
    shown = capfd.readouterr()
    assert shown.out == "" and "100%" in shown.err
    np.testing.assert_array_equal(found, want)


def test_progress_counts_every_pair(capfd):
    pytest.importorskip("tqdm")
    A, _, C = digits(queries=12)
    cusink.distance_matrix(A, None, C, eps=EPS, progress=True, memory_limit=50_000)
    assert "100%" in capfd.readouterr().err


def test_masses_other_than_one(xp):
    A, B, C = digits()
    options = {"eps": EPS, "tol": 1e-9, "max_iter": 5000}
    want = xp.numpy(cusink.distance_matrix(xp(A), xp(B), xp(C), **options))
    found = xp.numpy(cusink.distance_matrix(xp(40 * A), xp(40 * B), xp(C), **options))
    np.testing.assert_allclose(found, 40 * want, rtol=0, atol=1e-6)


def test_rectangular_supports(xp):
    """Queries on 9 bins, corpus on 14: C is (9, 14)."""
    rng = np.random.default_rng(0)
    A, B, C = problems.histograms(rng, 4, 9, 0.3), problems.histograms(rng, 5, 14, 0.3), rng.random((9, 14))
    matrix = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=0.1, tol=1e-10, max_iter=5000)
    np.testing.assert_allclose(
        xp.numpy(matrix), loop(xp, A, B, C, eps=0.1, tol=1e-10, max_iter=5000), rtol=0, atol=1e-8
    )


def test_one_query_and_one_document(xp):
    A, B, C = digits(queries=1, corpus=1)
    matrix = cusink.distance_matrix(xp(A), xp(B), xp(C), eps=EPS)
    assert matrix.shape == (1, 1)
    np.testing.assert_allclose(
        xp.numpy(matrix)[0, 0], float(cusink.sinkhorn(xp(A[0]), xp(B[0]), xp(C), eps=EPS).cost), rtol=1e-5
    )


def test_nothing_but_convergence_is_warned_of(xp):
    A, B, C = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        for dtype in FLOATS:
            matrix = cusink.distance_matrix(xp(A, dtype), xp(B, dtype), xp(C, dtype), eps=1e-4, max_iter=50)
            assert np.isfinite(xp.numpy(matrix)).all()


# Sinkhorn divergence


def exact_divergences(A, B, C, eps):
    """By the oracle: the value of each pair less half of that of each item with itself."""
    pair, ours, theirs = (
        np.array([[reference.optimum(a, b, C, eps)[1] for b in right] for a in left])
        for left, right in ((A, B), (A, A), (B, B))
    )
    return pair - (np.diag(ours)[:, None] + np.diag(theirs)) / 2


@pytest.mark.parametrize("cost", ["array", "points", "grid"])
def test_divergence_is_what_the_oracle_says(xp, cost):
    A, B, C = digits(queries=3, corpus=4)
    cells = np.indices((5, 5)).reshape(2, -1).T / np.sqrt(32)
    given = {
        "array": lambda: xp(C),
        "points": lambda: cusink.PointCloud(xp(cells)),
        "grid": lambda: cusink.Grid((5, 5), spacing=1 / np.sqrt(32)),
    }[cost]()
    options = {"eps": EPS, "value": "divergence", "tol": 1e-10, "max_iter": 5000}
    found = xp.numpy(cusink.distance_matrix(xp(A), xp(B), given, **options))
    np.testing.assert_allclose(found, exact_divergences(A, B, C, EPS), rtol=0, atol=1e-8)
    among = xp.numpy(cusink.distance_matrix(xp(A), None, given, **options))
    np.testing.assert_allclose(among, exact_divergences(A, A, C, EPS), rtol=0, atol=1e-8)
    assert np.abs(np.diag(among)).max() < 1e-9 < among[~np.eye(3, dtype=bool)].min()


def test_divergence_between_clouds_on_other_points(xp):
    """Each side is compared with itself on its own points."""
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 2)), rng.random((9, 2))
    A, B = problems.histograms(rng, 2, 6), problems.histograms(rng, 3, 9)
    found = cusink.distance_matrix(
        xp(A), xp(B), cusink.PointCloud(xp(x), xp(y)), eps=0.1, value="divergence", tol=1e-10, max_iter=5000
    )

    def value(a, b, x, y):
        return reference.optimum(a, b, ((x[:, None] - y) ** 2).sum(axis=-1), 0.1)[1]

    want = [[value(a, b, x, y) - (value(a, a, x, x) + value(b, b, y, y)) / 2 for b in B] for a in A]
    np.testing.assert_allclose(xp.numpy(found), want, rtol=0, atol=1e-8)


def test_a_divergence_is_as_good_as_its_three_parts():
    """The error of a pair is the largest among those of the pair and of the two items with themselves."""
    A, B, C = digits(queries=2, corpus=3)
    A[0] = B[0] = np.eye(25)[3]  # a point mass: one iteration solves it beside any other
    options = {"eps": 0.01, "max_iter": 5, "full_output": True}
    with pytest.warns(cusink.ConvergenceWarning, match="5 of 6"):
        result = cusink.distance_matrix(A, B, C, value="divergence", **options)
    with pytest.warns(cusink.ConvergenceWarning, match="2 of 6"):
        pair = cusink.distance_matrix(A, B, C, value="reg_cost", **options)
    np.testing.assert_array_equal(result.converged, [[True, False, False], [False, False, False]])
    np.testing.assert_array_equal(pair.converged, [[True, True, True], [True, False, False]])
    assert (result.error >= pair.error).all() and result.error[1, 0] > 1e-3 > 1e-12 > pair.error[1, 0]


@pytest.mark.parametrize(("columns", "how"), [(14, r"has shape \(25, 14\)"), (25, "is not symmetric")])
def test_divergence_needs_a_cost_within_one_space(columns, how):
    A, B, C = digits(queries=2, corpus=3)
    C[0, 1] += 1
    with pytest.raises(ValueError, match=f"value='divergence'.*{how}"):
        cusink.distance_matrix(A, np.ones((3, columns)) / columns, C[:, :columns], eps=EPS, value="divergence")


# Tiles


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("memory_limit", [70_000, 200_000, None])
def test_tiles_hold_every_pair_once(symmetric, memory_limit):
    from cusink.retrieval import collections, tiles

    A, B, C = digits(queries=53, corpus=71)
    pairs = collections.check_collections(A, None if symmetric else B, C, eps=EPS, check=True)
    shape = tiles.tile_shape(pairs, memory_limit)
    seen = np.zeros(pairs.shape, int)
    for rows, columns in tiles.tiles(pairs, *shape):
        seen[rows, columns] += 1
        if symmetric and rows.start != columns.start:
            seen[columns, rows] += 1
        elif symmetric:
            seen[rows.stop : columns.stop, rows] += 1
        assert rows.start % shape[0] == 0 and (columns.start % shape[0] == 0 or not symmetric)
    assert (seen == 1).all()
    assert sum(tiles.pair_count(pairs, *at) for at in tiles.tiles(pairs, *shape)) == tiles.pair_count(pairs)


def test_a_tile_is_its_own_whatever_was_solved_before():
    """Bytes, not digits: what a run after a stop relies on."""
    A, B, C = digits(queries=20, corpus=40)
    options = {"eps": EPS, "memory_limit": 150_000}
    whole = cusink.distance_matrix(A, B, C, **options)
    for rows in (slice(0, 3), slice(7, 20)):
        np.testing.assert_array_equal(cusink.distance_matrix(A[rows], B, C, **options), whole[rows])


def test_pairs_that_share_their_iterations_do_not_go_over_to_newtons_method_early(monkeypatch):
    """A step of a single pair takes as long as hundreds of its iterations in a tile: five times the time, at 1000."""
    digits = pytest.importorskip("sklearn.datasets").load_digits().data[:60]
    weights = digits / digits.sum(axis=1, keepdims=True)
    C = cusink.cost_matrix(np.indices((8, 8)).reshape(2, -1).T.astype(float))
    taken = []
    monkeypatch.setattr(solver_loop, "newton", lambda *args: taken.append(newton(*args)) or taken[-1])
    found = cusink.distance_matrix(weights[:2], weights, C / C.max(), eps=0.001, max_iter=10_000, full_output=True)
    assert found.converged.all() and found.n_iter.max() < 4000
    assert len(taken) <= 2
