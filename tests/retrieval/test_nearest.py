"""`cusink.nearest`: the neighbours that all distances give, the bounds that spare most of them, and what it refuses."""

import dataclasses
import warnings

import emulated
import numpy as np
import problems
import pytest
import reference
import scipy.sparse
from emulated.cupy_stand_in import operators

import cusink
from cusink import connection
from cusink.convergence.options import Options
from cusink.convergence.rules import RELAX_ABOVE
from cusink.retrieval import bounds as retrieval_bounds
from cusink.retrieval import search
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.collections import check_collections
from cusink.retrieval.engine import corpus_of, find
from cusink.retrieval.query import Query
from cusink.retrieval.ranking import TopK

VALUES = ["cost", "reg_cost", "entropic_cost", "divergence"]
EPS = 0.01
K = 3


def blots(count, side=6, seed=0, mass=1.0):
    """Histograms (count, side**2), each a blot somewhere on a grid, with most of its bins empty."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)).reshape(2, -1)
    centre, width = rng.uniform(0, side - 1, (2, count, 1)), rng.uniform(0.4, 0.9, (count, 1))
    weights = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2)) * rng.uniform(0.5, 1.5, y.shape)
    weights[weights < 0.03 * weights.max(axis=1, keepdims=True)] = 0
    return mass * weights / weights.sum(axis=1, keepdims=True)


def collection(queries=7, corpus=90, side=6, mass=1.0):
    return blots(queries, side, 1, mass), blots(corpus, side, 2, mass), problems.grid_cost(side, side)


def best(matrix, k=K):
    """Return the first k of a stable sort of the rows of a matrix: distances, indices."""
    indices = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(matrix, indices, axis=1), indices


def rounding(dtype):
    """How far apart two batches may bring one pair: a few hundred roundings."""
    return 500 * np.finfo(dtype).eps


# The same neighbours


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", VALUES)
def test_it_is_the_sorted_matrix(xp, value, dtype):
    A, B, C = (xp(x, dtype) for x in collection())
    tol = 1e-4 if dtype == np.float32 else 1e-6
    want, order = best(xp.numpy(cusink.distance_matrix(A, B, C, eps=EPS, value=value, tol=tol)))
    found = cusink.nearest(A, B, C, k=K, eps=EPS, value=value, tol=tol, full_output=True)
    assert xp.owns(found.distances) and xp.owns(found.indices) and found.distances.dtype == dtype
    np.testing.assert_array_equal(xp.numpy(found.indices), order)
    # A divergence is small beside what it is the difference of.
    scale = 10 if value == "divergence" else 1
    np.testing.assert_allclose(
        xp.numpy(found.distances), want, rtol=scale * rounding(dtype), atol=rounding(dtype) * EPS
    )
    assert found.pruning == "dual" and found.converged.all() and (found.error <= tol).all()
    assert found.bounded == 7 * 90 and found.finished <= found.started < found.bounded / 2


def test_it_is_what_the_oracle_says():
    A, B, C = collection(2, 40, 4)
    matrix = np.array([[reference.optimum(a, b, C, 0.05)[0] for b in B] for a in A])
    distances, indices = cusink.nearest(A, B, C, k=4, eps=0.05, tol=1e-10)
    want, order = best(matrix, 4)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("value", ["cost", "divergence"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_items_of_one_collection_are_no_neighbours_of_themselves(value, symmetric):
    A, C = blots(48), problems.grid_cost(6, 6)
    if not symmetric:
        if value == "divergence":
            return  # only symmetric costs have one
        C = C * np.linspace(1, 1.2, 36)
    matrix = cusink.distance_matrix(A, None, C, eps=EPS, value=value)
    np.fill_diagonal(matrix, np.inf)
    for prune in (True, False):
        found = cusink.nearest(A, None, C, k=K, eps=EPS, value=value, prune=prune, full_output=True)
        np.testing.assert_array_equal(found.indices, best(matrix)[1])
        np.testing.assert_allclose(found.distances, best(matrix)[0], rtol=1e-9)
        if prune:
            assert found.bounded == 48 * 47 and found.finished < found.bounded / 2
        else:
            assert found.finished == 48 * 49 // 2 if symmetric else 48 * 48
            assert found.pruning == "none: not asked for"


@pytest.mark.parametrize("prune", [True, False])
def test_equal_distances_come_in_the_order_of_their_indices(prune):
    A, B, C = collection(4, 30)
    B = np.concatenate([B, B[::-1], B])  # each item three times
    distances, indices = cusink.nearest(A, B, C, k=6, eps=EPS, prune=prune)
    if prune:  # else the matrix decides, and rounding with it
        assert (np.diff(indices.reshape(4, 2, 3)) > 0).all() and not np.diff(distances.reshape(4, 2, 3)).any()
    for some in (indices[:, :3], indices[:, 3:]):
        assert (B[some] == B[some[:, :1]]).all()


def test_an_equal_item_is_the_nearest_neighbour_and_not_the_item_itself():
    A = blots(40)
    A = np.concatenate([A, A[:5]])
    distances, indices = cusink.nearest(A, None, problems.grid_cost(6, 6), k=2, eps=EPS, value="divergence")
    np.testing.assert_array_equal(indices[:5, 0], np.arange(40, 45))
    np.testing.assert_array_equal(indices[40:, 0], np.arange(5))
    np.testing.assert_allclose(distances[:5, 0], 0, atol=1e-7)


def test_a_loose_tolerance_prunes_less_and_finds_the_same():
    A, B, C = collection()
    finished = []
    for tol in (1e-2, 1e-6):
        matrix = cusink.distance_matrix(A, B, C, eps=EPS, value="reg_cost", tol=tol)
        found = cusink.nearest(A, B, C, k=K, eps=EPS, value="reg_cost", tol=tol, full_output=True)
        np.testing.assert_array_equal(found.indices, best(matrix)[1])
        finished.append(found.finished)
    assert finished[1] < finished[0] < found.bounded


def test_eps_may_be_a_numpy_scalar():
    A, B, C = (x.astype(np.float32) for x in collection(4, 60))
    want = cusink.nearest(A, B, C, k=K, eps=EPS, value="reg_cost", tol=1e-4)
    found = cusink.nearest(A, B, C, k=K, eps=np.float64(EPS), value="reg_cost", tol=1e-4)
    for one, other in zip(want, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mass", [1e-3, 50.0])
def test_any_mass_and_unit(mass):
    A, B, C = collection(3, 60, mass=mass)
    unit = 1e4
    matrix = cusink.distance_matrix(A, B, unit * C - 5, eps=unit * EPS)  # costs may be negative
    found = cusink.nearest(A, B, unit * C - 5, k=K, eps=unit * EPS, full_output=True)
    np.testing.assert_array_equal(found.indices, best(matrix)[1])
    assert found.finished < found.bounded / 2


def test_half_precision_ties_as_its_matrix_does():
    A, B, C = (x.astype(np.float16) for x in collection(5, 80))
    A, B = (x / x.sum(axis=1, keepdims=True, dtype=np.float32).astype(np.float16) for x in (A, B))
    matrix = cusink.distance_matrix(A, B, C, eps=0.05, tol=1e-4, check=False)
    distances, indices = cusink.nearest(A, B, C, k=8, eps=0.05, tol=1e-4, check=False)
    assert distances.dtype == np.float16
    np.testing.assert_array_equal(indices, best(matrix, 8)[1])


@pytest.mark.parametrize("geometry", ["cloud", "grid"])
def test_costs_that_are_not_stored(geometry):
    A, B, _ = collection(4, 60)
    cells = np.indices((6, 6)).reshape(2, -1).T / 10
    cost = cusink.PointCloud(cells) if geometry == "cloud" else cusink.Grid((6, 6), spacing=0.1)
    found = cusink.nearest(A, B, cost, k=K, eps=EPS, full_output=True)
    stored = cusink.nearest(A, B, cusink.cost_matrix(cells), k=K, eps=EPS)
    np.testing.assert_array_equal(found.indices, stored[1])
    np.testing.assert_allclose(found.distances, stored[0], rtol=1e-5)
    assert found.pruning == "dual" and found.finished < found.bounded / 2


def test_documents_and_those_without_a_word():
    A, B, C = collection(3, 33)
    B[4] = 0
    A, B = (scipy.sparse.csr_array(x) for x in (A, B))
    with pytest.warns(UserWarning, match="'B'"):
        matrix = cusink.distance_matrix(A, B, C, eps=EPS)
    with pytest.warns(UserWarning, match="'B'"):
        found = cusink.nearest(A, B, C, k=33, eps=EPS, full_output=True)
    np.testing.assert_array_equal(found.indices, best(matrix, 33)[1])
    np.testing.assert_array_equal(found.distances, best(matrix, 33)[0])
    assert (found.indices[:, -1] == 4).all() and np.isnan(found.distances[:, -1]).all()
    assert found.pruning.startswith("none: ") and found.finished == 99


@pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")
def test_the_cuda_kernels_find_the_same(monkeypatch):
    A, B, C = collection(2, 33, 4)
    want = [cusink.nearest(A, B, C, k=2, eps=0.05, value=value) for value in ("cost", "reg_cost")]
    with operators() as ops:
        monkeypatch.setitem(connection._doors, "numpy", lambda: {"dense": ops.OPERATORS})
        found = [
            cusink.nearest(A, B, C, k=2, eps=0.05, value=value, full_output=True) for value in ("cost", "reg_cost")
        ]
    for (distances, indices), other in zip(want, found, strict=True):
        np.testing.assert_array_equal(other.indices, indices)
        np.testing.assert_allclose(other.distances, distances, rtol=1e-6)
        assert other.pruning == "dual"


# The bounds


@pytest.mark.parametrize("sharp", [True, False])
def test_bounds_hold_and_grow(sharp):
    A, B, C = collection(2, 32, 4)
    A, B, C = A[:, :15], B / 1, C[:15]  # not square
    A /= A.sum(axis=1, keepdims=True)
    pairs = check_collections(A, B, C, eps=0.05, check=True)
    batches = PairBatches(pairs, "cost" if sharp else "reg_cost", Options(), 1024)
    if sharp:
        value = np.array([[reference.exact_cost(a, b, C) for b in B[:6]] for a in A])
    else:
        value = np.array([[reference.optimum(a, b, C, 0.05)[1] for b in B[:6]] for a in A])
    bounds = retrieval_bounds.RowBounds(
        pairs, batches, np.arange(2), retrieval_bounds.prototypes(pairs.B, batches.columns, np), sharp
    )
    steps = [bounds.lower.copy()]
    bounds.add(np.random.default_rng(0).normal(size=(2, 3, 15)))  # any potentials will do
    steps.append(bounds.lower.copy())
    solved = batches.solve(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    bounds.add(solved.f.reshape(2, 2, -1))
    steps.append(bounds.lower.copy())
    bounds.tighten(*np.divmod(np.arange(64), 32))
    steps.append(bounds.lower.copy())
    for lower in steps:
        assert (lower[:, :6] <= value + 1e-12).all()
    assert all((after >= before).all() for before, after in zip(steps, steps[1:], strict=False))
    assert (steps[3] > steps[0]).mean() > 0.5  # and do not only hold, but are of use
    np.testing.assert_allclose(steps[2][:, :2], value[:, :2], rtol=0.3 if sharp else 1e-5)


def test_pairs_picked_one_by_one_have_the_values_of_the_matrix():
    """Also where some rows by themselves would begin with over-relaxation, and others not."""
    A, B, C = collection(12, 50)
    A[:3, 14] += 1  # A blot in the middle keeps the costs below what starts over-relaxation.
    A[:3] *= np.isin(np.arange(36), [14, 15, 20, 21])
    A /= A.sum(axis=1, keepdims=True)
    eps = 1 / 90
    matrix = cusink.distance_matrix(A, B, C, eps=eps)
    pairs = check_collections(A, B, C, eps=eps, check=True)
    batches = PairBatches(pairs, "cost", Options(), 16)
    steep = [np.ptp(C[np.ix_(a > 0, (B > 0).any(axis=0))]) / eps >= RELAX_ABOVE for a in A]
    assert any(steep) and not all(steep)
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(12, size=100), rng.integers(50, size=100)
    solved = batches.solve(rows, columns)
    np.testing.assert_allclose(solved.values, matrix[rows, columns], rtol=1e-12)
    flat = dataclasses.replace(pairs, span=(0.0, 0.0))
    begun_otherwise = PairBatches(flat, "cost", Options(), 16).solve(rows, columns)
    assert np.abs(begun_otherwise.values / matrix[rows, columns] - 1).max() > 1e-11  # it does make a difference
    potentials = cusink.sinkhorn(A[rows[0]], B[columns[0]], C, eps=eps).f
    used = A[rows[0]] > 0
    shift = solved.f[0] - potentials
    np.testing.assert_allclose(shift[used], shift[used].mean(), atol=1e-6)


# What it took


def test_what_cannot_be_pruned_is_solved_and_told():
    A, B, C = collection(2, 40)
    forbidden = np.where(C > 0.9, np.inf, C)
    cases = [
        (C, K, {"prune": False}, "not asked for"),
        (C, 30, {}, "k is not small"),
        (C, K, {"tol": None, "max_iter": 20}, "tol=None"),
        (forbidden, K, {"eps": 0.1, "value": "reg_cost", "reach": 1.0}, "forbidden"),
        (C, K, {"memory_limit": 40_000}, "memory_limit"),
    ]
    for cost, k, given, why in cases:
        given = {"eps": EPS} | given
        found = cusink.nearest(A, B, cost, k=k, full_output=True, **given)
        assert found.pruning.startswith("none: ") and why in found.pruning
        assert found.bounded == 0 and found.started == found.finished == 80
        given.pop("prune", None)
        np.testing.assert_array_equal(found.indices, best(cusink.distance_matrix(A, B, cost, **given), k)[1])


def test_any_memory_limit_gives_the_same(monkeypatch):
    A, B, C = collection()
    want = cusink.nearest(A, B, C, k=K, eps=EPS)
    monkeypatch.setattr(search, "BOUND_BYTES", 1)  # a row at a time
    for limit in (None, 300_000):
        distances, indices = cusink.nearest(A, B, C, k=K, eps=EPS, memory_limit=limit)
        np.testing.assert_array_equal(indices, want[1])
        np.testing.assert_allclose(distances, want[0], rtol=1e-12)


@pytest.mark.parametrize("prune", [True, False])
def test_pairs_that_do_not_converge_are_told_once(prune):
    A, B, C = collection(3, 40)
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol=1e-06") as caught:
        found = cusink.nearest(A, B, C, k=K, eps=EPS, max_iter=3, prune=prune, full_output=True)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not found.converged.all() and np.isfinite(found.distances).all()


def test_progress_counts_all_pairs(capsys):
    A, B, C = collection(2, 40)
    cusink.nearest(A, B, C, k=K, eps=EPS, progress=True)
    assert "100%" in capsys.readouterr().err


def test_the_closest_are_kept_in_order():
    kept = TopK(2, 2, 10)
    kept.add(np.array([1]), np.array([7]), np.array([3.0]), np.array([0.1]), np.array([True]))
    assert kept.columns.tolist() == [[10, 10], [7, 10]] and kept.values[1].tolist() == [3, np.inf]
    rows, columns, values = np.array([1, 1, 0]), np.array([9, 5, 4]), np.array([np.nan, 3.0, 1.0])
    kept.add(rows, columns, values, np.zeros(3), np.zeros(3, bool))
    assert kept.columns.tolist() == [[4, 10], [5, 7]] and kept.error[1].tolist() == [0, 0.1]
    kept.add(np.array([0]), np.array([2]), np.array([np.nan]), np.zeros(1), np.ones(1, bool))
    assert kept.columns.tolist() == [[4, 2], [5, 7]] and np.isnan(kept.values[0, 1])


# Bad input


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": 0}, ValueError, "'k' must be at least 1; got 0"),
        ({"k": 5}, ValueError, "the rows of 'B', 4; got 5"),
        ({"k": 3, "B": None}, ValueError, "the other rows of 'A', of which there are 2; got 3"),
        ({"k": 1.5}, TypeError, "'k' must be an integer; got float"),
        ({"k": True}, TypeError, "'k' must be an integer; got bool"),
        ({"value": "emd"}, ValueError, "'value' must be one of"),
        ({"eps": 0}, ValueError, "'eps' must be positive"),
        ({"memory_limit": "1GB"}, TypeError, "'memory_limit' must be"),
        ({"A": [[0.5, 0.5, 0.5]]}, ValueError, "all histograms must have the same mass"),
    ],
)
def test_bad_input_says_what_to_change(given, error, message):
    good = {"A": np.eye(3), "B": np.eye(3)[[0, 1, 2, 0]], "C": np.ones((3, 3)), "k": 1, "eps": 0.1}
    arguments = good | given
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        cusink.nearest(arguments.pop("A"), arguments.pop("B"), arguments.pop("C"), **arguments)


@pytest.mark.parametrize("how", [{}, {"prune": False}, {"candidates": True}])
def test_a_search_for_some_rows_finds_what_one_for_all_does(how):
    """As where rows are shared out to devices, among them equal ones of a collection with itself."""
    A = np.concatenate([blots(40), blots(3)])
    pairs = check_collections(A, None, problems.grid_cost(6, 6), eps=0.05, check=True)
    listed = np.tile(np.arange(0, 43, 2), (43, 1)) if how.get("candidates") else None
    query = Query(
        k=2,
        value="cost",
        options=Options(1000, 1e-6, 10, "auto", "auto"),
        excludes_self=True,
        memory_limit=None,
        candidates=listed,
    )
    whole, _ = find(pairs, corpus_of(pairs, query), query, how.get("prune", True), False)
    finished = 0
    for rows in (slice(0, 17), slice(17, 43)):
        part, _ = find(
            pairs, corpus_of(pairs, query), dataclasses.replace(query, rows=rows), how.get("prune", True), False
        )
        np.testing.assert_array_equal(part.best.columns[rows], whole.best.columns[rows])
        np.testing.assert_allclose(part.best.values[rows], whole.best.values[rows], atol=1e-9)
        assert np.isinf(np.delete(part.best.values, np.r_[rows], axis=0)).all()
        finished += part.counts.finished
    assert finished >= whole.counts.finished
