"""Documents over a vocabulary and ragged point clouds: the values of the dense problems, whatever they are beside."""

import pickle
import warnings

import numpy as np
import pytest
import reference
from scipy import sparse
from scipy.spatial.distance import cdist

import cusink
from cusink.backends.numpy.documents import iteration
from cusink.backends.numpy.documents.buffers import Buffers, Loan, PairCosts
from cusink.backends.numpy.documents.costs import squared_distances
from cusink.backends.numpy.documents.tiles import PairTile
from cusink.convergence.options import Options
from cusink.retrieval.collections import check_collections
from cusink.retrieval.documents import pairs as documents_pairs
from cusink.retrieval.nearest import nearest

DTYPES = (np.float32, np.float64)
SIZES = (17, 3, 70, 33, 1, 9, 34, 35)  # words of the documents
WORDS = 120
VALUES = ("cost", "reg_cost", "entropic_cost")


def vectors(dtype=np.float64, d=12, seed=0):
    return np.random.default_rng(seed).normal(size=(WORDS, d)).astype(dtype)


def corpus(sizes=SIZES, dtype=np.float64, seed=0):
    """Rows of sum 1 with these numbers of words, unequal weights, and words in common."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(sizes), WORDS))
    for row, size in zip(rows, sizes, strict=True):
        row[rng.choice(WORDS, size, replace=False)] = rng.integers(1, 5, size)
    return sparse.csr_array((rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)).astype(dtype))


def normalised(rows):
    return sparse.csr_array(sparse.diags_array(1 / rows.sum(axis=1)) @ rows)


def core(a, b, C):
    """Return a dense problem without its empty bins."""
    rows, columns = a > 0, b > 0
    return a[rows], b[columns], C[np.ix_(rows, columns)]


def after(a, b, C, eps, count, dtype=np.float64):
    """Return the three values after `count` plain iterations in the log domain."""
    a, b, C = core(a, b, C)
    f, g, _, _ = reference.sinkhorn(a, b, C, eps, count, dtype=dtype)
    P = reference.plan(*(x.astype(dtype) for x in (a, b, C)), dtype(eps), f, g)
    cost = reference.transport_cost(P, C.astype(dtype))
    reg_cost = float(a.astype(dtype) @ f + b.astype(dtype) @ g)
    return cost, reg_cost, reg_cost - eps * (reference.entropy(a) + reference.entropy(b))


def table(A, B, C, eps, count, dtype=np.float64):
    """`after` for all pairs, (3, Q, D)."""
    A, B, C = (np.asarray(x.toarray() if sparse.issparse(x) else x, np.float64) for x in (A, B, C))
    return np.moveaxis(np.array([[after(a, b, C, eps, count, dtype) for b in B] for a in A]), 2, 0)


def exactly(count):
    return {"max_iter": count, "tol": None, "overrelaxation": None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cost", ["dense", "euclidean", "cosine"])
def test_every_pair_has_the_value_of_its_dense_problem(cost, dtype):
    X, A, B, eps = vectors(dtype), corpus((5, 40), dtype, 1), corpus(dtype=dtype), 0.3
    C = cdist(X, X, "cosine" if cost == "cosine" else "euclidean")
    given = C.astype(dtype) if cost == "dense" else cusink.PointCloud(X, metric=cost)
    exact, naive = table(A, B, C, eps, 7), table(A, B, C, eps, 7, np.float32)
    for value, right, rough in zip(VALUES, exact, naive, strict=True):
        found = cusink.distance_matrix(A, B, given, eps=eps, value=value, **exactly(7))
        assert found.dtype == dtype
        allowed = 1e-12 if dtype == np.float64 else 4 * np.abs(rough - right).max()
        np.testing.assert_allclose(found, right, rtol=0, atol=allowed)


@pytest.mark.parametrize("group", [1, 1 << 30])
def test_neither_padding_nor_company_shows_in_a_value(group, limits):
    """Alone, in any order, in groups of one or all in one: only the order of sums may differ."""
    limits(document_tile_bytes=group, document_tile_pairs=100)
    A, B, C = corpus((12, 30), seed=1), corpus(), cusink.cost_matrix(vectors(), metric="euclidean")
    both = cusink.distance_matrix(A, B, C, eps=0.2, **exactly(9))
    order = np.random.default_rng(3).permutation(B.shape[0])
    shuffled = cusink.distance_matrix(A, B[order], C, eps=0.2, **exactly(9))
    np.testing.assert_allclose(shuffled, both[:, order], rtol=1e-13)
    options = {"eps": 0.6, "tol": 1e-4, "full_output": True}
    stopped = cusink.distance_matrix(A, B, C, **options)
    assert len(np.unique(stopped.n_iter)) > 1
    for k in range(B.shape[0]):
        alone = cusink.distance_matrix(A, B[[k]], C, eps=0.2, **exactly(9))
        np.testing.assert_allclose(alone[:, 0], both[:, k], rtol=1e-13)
        alone = cusink.distance_matrix(A, B[[k]], C, **options)
        np.testing.assert_allclose(alone.distances[:, 0], stopped.distances[:, k], rtol=1e-12)
        np.testing.assert_array_equal(alone.n_iter[:, 0], stopped.n_iter[:, k])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_stop_by_themselves_and_converge_to_the_optimum(dtype, limits, monkeypatch):
    limits(document_tile_pairs=2)  # several groups, that are joined as pairs leave
    joins = []
    real = iteration.join_tiles
    monkeypatch.setattr(iteration, "join_tiles", lambda tiles: joins.append(len(tiles)) or real(tiles))
    X, A, eps, tol = vectors(dtype), corpus((3, 9, 34), dtype, 1), 1.0, 1e-9 if dtype == np.float64 else 1e-5
    B = sparse.vstack([corpus(dtype=dtype), A], format="csr")  # each of A meets itself as well
    C = cdist(X.astype(np.float64), X.astype(np.float64))
    result = cusink.distance_matrix(A, B, C.astype(dtype), eps=eps, tol=tol, full_output=True, max_iter=5000)
    assert result.converged.all() and (result.error <= tol).all() and len(np.unique(result.n_iter)) > 2
    assert max(joins) > 1
    for i, a in enumerate(A.toarray().astype(np.float64)):
        for j, b in enumerate(B.toarray().astype(np.float64)):
            best = reference.optimum(*core(a / a.sum(), b / b.sum(), C), eps)
            assert abs(result.distances[i, j] - best.cost) <= 20 * tol * C.max(), (i, j)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steep", [100, 1000, 20000])
def test_steep_costs_leave_the_fast_form_and_lose_nothing(steep, dtype):
    """Costs of so many eps, words in common, tiny weights: the same iterations in the log domain say what is right."""
    X, rng = vectors(dtype, d=2), np.random.default_rng(5)
    A, B = corpus((1, 8, 40), dtype, 1), corpus((20, 1, 60), dtype)
    A.data = (A.data * rng.choice([1, 1e-6], len(A.data))).astype(dtype)
    A = sparse.csr_array(normalised(A).astype(dtype))
    B = sparse.vstack([B, A], format="csr")
    C = cdist(X, X).astype(dtype)
    eps = float(C.max()) / steep
    fast = cusink.distance_matrix(A, B, C, eps=eps, **exactly(30))
    exact, naive = table(A, B, C, eps, 30)[0], table(A, B, C, eps, 30, np.float32)[0]
    allowed = 1e-11 * steep if dtype == np.float64 else 4 * np.abs(naive - exact).max() + 1e-6
    np.testing.assert_allclose(fast, exact, rtol=0, atol=allowed)


def test_steep_costs_take_log_sum_exp_where_they_must(monkeypatch):
    taken, real = [], PairTile._log_step
    monkeypatch.setattr(PairTile, "_log_step", lambda *args: taken.append(len(args[1])) or real(*args))
    C = cusink.cost_matrix(vectors(np.float32, d=2), metric="euclidean")
    A = corpus((40,), np.float32, 1)
    for eps, steps in ((float(C.max()), False), (float(C.max()) / 20000, True)):
        taken.clear()
        cusink.distance_matrix(A, corpus(dtype=np.float32), C, eps=eps, **exactly(5))
        assert bool(taken) == steps


@pytest.mark.parametrize("method", ["log", "scaling"])
def test_methods_agree(method):
    A, B, C = corpus((12, 30), seed=1), corpus(), cusink.cost_matrix(vectors())
    auto = cusink.distance_matrix(A, B, C, eps=2.0, **exactly(9))
    np.testing.assert_allclose(cusink.distance_matrix(A, B, C, eps=2.0, method=method, **exactly(9)), auto, rtol=1e-10)


def test_one_collection_against_itself_is_symmetric_and_solved_once():
    A, X = corpus(), vectors()
    for C in (cusink.cost_matrix(X), cusink.PointCloud(X)):
        D = cusink.distance_matrix(A, None, C, eps=6.0, tol=1e-8)
        np.testing.assert_array_equal(D, D.T)
        np.testing.assert_allclose(D, cusink.distance_matrix(A, A, C, eps=6.0, tol=1e-8), rtol=1e-6)
    skewed = cusink.cost_matrix(X) + np.triu(np.ones((WORDS, WORDS)))
    D = cusink.distance_matrix(A, None, skewed, eps=6.0, tol=1e-8)
    assert np.abs(D - D.T).max() > 0.01


def test_costs_between_two_vocabularies():
    rng = np.random.default_rng(0)
    X, Y = vectors(), rng.normal(size=(50, 12))
    A, B = corpus((5, 40)), normalised(sparse.random_array((4, 50), density=0.3, rng=rng, format="csr"))
    C = cdist(X, Y)
    for given in (C, cusink.PointCloud(X, Y, metric="euclidean")):
        found = cusink.distance_matrix(A, B, given, eps=0.3, **exactly(7))
        np.testing.assert_allclose(found, table(A, B, C, 0.3, 7)[0], rtol=1e-11)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("d", [2, 20])
def test_measures_have_the_values_of_their_points(metric, d):
    rng = np.random.default_rng(d)
    clouds = [rng.normal(size=(size, d)) + 0.1 for size in (4, 1, 30, 7)]
    weights = [rng.dirichlet(np.ones(len(cloud))) for cloud in clouds]
    measures = cusink.Measures.of(clouds, weights)
    found = cusink.distance_matrix(measures[:2], measures, metric, eps=0.5, **exactly(6))
    for i in range(2):
        for j, cloud in enumerate(clouds):
            right = after(weights[i], weights[j], cdist(clouds[i], cloud, metric), 0.5, 6)[0]
            assert abs(found[i, j] - right) < 1e-11
    D = cusink.distance_matrix(measures, None, metric, eps=0.5, tol=1e-2)
    np.testing.assert_array_equal(D, D.T)


def test_measures_keep_what_they_are_given():
    measures = cusink.Measures([0, 2, 2, 5], [1, 2, 3, 4, 5], [0.0, 1, 2, 3, 4])
    assert len(measures) == 3 and measures.points.shape == (5, 1)
    assert repr(measures) == "Measures(3 items, 5 points, d=1)"
    np.testing.assert_allclose(measures.normalised().weights, [1 / 3, 2 / 3, 3 / 12, 4 / 12, 5 / 12])
    part = measures[1:3]
    assert part.offsets.tolist() == [0, 0, 3] and part.weights.tolist() == [3, 4, 5]
    uniform = cusink.Measures([0, 1, 3], None, np.zeros((3, 2), np.float32))
    assert uniform.weights.dtype == np.float32 and uniform.weights.tolist() == [1, 0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence_is_that_of_the_dense_problem_and_vanishes(dtype):
    A, X = corpus((5, 1, 40), dtype), vectors(dtype)
    for C in (cusink.cost_matrix(X), cusink.PointCloud(X)):
        D = cusink.distance_matrix(A, None, C, eps=1.0, value="divergence", tol=1e-5)
        dense = cusink.distance_matrix(A.toarray(), None, cusink.cost_matrix(X), eps=1.0, value="divergence", tol=1e-5)
        np.testing.assert_allclose(D, dense, atol=1e-4)
        assert np.abs(np.diag(D)).max() < 1e-4 < np.abs(D - np.diag(np.diag(D))).max()


def test_empty_documents_give_nan_and_one_warning_that_names_them():
    A, B, C = corpus((4, 0, 6)), corpus((0, 5, 0)), cusink.cost_matrix(vectors())
    with pytest.warns(UserWarning, match="NaN for 'A' row 1; 'B' rows 0, 2") as record:
        result = cusink.distance_matrix(A, B, C, eps=2.0, tol=1e-4, full_output=True)
    assert len(record) == 1 and record[0].filename == __file__
    expected = np.array([[1, 0, 1], [1, 1, 1], [1, 0, 1]], bool)
    np.testing.assert_array_equal(np.isnan(result.distances), expected)
    np.testing.assert_array_equal(np.isnan(result.error), expected)
    assert result.converged.all() and (result.n_iter[expected] == 0).all()
    with pytest.raises(ValueError, match="on_empty='nan'"):
        check_collections(A, B, C, eps=2.0, check=True, on_empty="raise")
    with pytest.warns(UserWarning, match="NaN"):
        D = cusink.distance_matrix(A, None, C, eps=2.0, value="divergence", tol=1e-4)
    assert np.isnan(D[1]).all() and np.isfinite(D[[0, 2]][:, [0, 2]]).all()
    empty = cusink.Measures([0, 0, 2], None, np.zeros((2, 1)))
    with pytest.warns(UserWarning, match="'A' row 0"):
        assert np.isnan(cusink.distance_matrix(empty, None, "euclidean", eps=1.0)[0]).all()


def test_duplicates_are_summed_zeros_dropped_and_inputs_never_written():
    X = vectors()
    C = cusink.cost_matrix(X)
    data, indices, indptr = np.array([0.25, 0.0, 0.5, 0.25, 1.0]), np.array([7, 3, 2, 7, 9]), np.array([0, 4, 5])
    messy = sparse.csr_array((data.copy(), indices.copy(), indptr.copy()), shape=(2, WORDS))
    for array in (messy.data, messy.indices, messy.indptr):
        array.flags.writeable = False
    clean = sparse.csr_array(messy.toarray())
    found = cusink.distance_matrix(messy, corpus(), C, eps=2.0, **exactly(5))
    np.testing.assert_allclose(found, cusink.distance_matrix(clean, corpus(), C, eps=2.0, **exactly(5)), rtol=1e-13)
    np.testing.assert_array_equal(messy.data, data)
    np.testing.assert_array_equal(messy.indices, indices)
    counts = sparse.coo_array(([2, 3, 5], ([0, 0, 1], [1, 4, 4])), shape=(2, WORDS))
    of_counts = cusink.distance_matrix(counts, None, C.astype(np.float32), eps=2.0, tol=1e-4)
    assert of_counts.dtype == np.float32
    np.testing.assert_allclose(of_counts[0, 1], 2 * C[1, 4], rtol=1e-5)


@pytest.mark.parametrize("form", ["bsr", "coo", "csc", "dia", "dok", "lil"])
def test_every_sparse_form_is_taken(form):
    A, C = corpus((4, 6), np.float32), cusink.cost_matrix(vectors(np.float32))
    given = A.asformat(form)
    found = cusink.distance_matrix(given, None, C, eps=2.0, **exactly(3))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, cusink.distance_matrix(A, None, C, eps=2.0, **exactly(3)))
    _, indices = nearest(given, A, C, k=1, eps=2.0, tol=1e-3)
    assert indices.tolist() == [[0], [1]]


def test_small_counts_add_up_beyond_their_dtype():
    row = sparse.csr_array((np.full(3, 100, np.uint8), [4, 4, 4], [0, 3]), shape=(1, WORDS))
    other = sparse.csr_array(([300], [5], [0, 1]), shape=(1, WORDS))
    C = cusink.cost_matrix(vectors())
    np.testing.assert_allclose(cusink.distance_matrix(row, other, C, eps=1.0), [[300 * C[4, 5]]])


def test_forbidden_pairs():
    A, B = corpus((5, 8)), corpus((30, 40), seed=1)
    C = cusink.cost_matrix(vectors())
    C[np.random.default_rng(0).random(C.shape) < 0.2] = np.inf
    found = cusink.distance_matrix(A, B, C, eps=3.0, **exactly(4))
    np.testing.assert_allclose(found, table(A, B, C, 3.0, 4)[0], rtol=1e-11)
    C[A[[1]].indices[0], B[[0]].indices] = np.inf
    with pytest.raises(ValueError, match="'A' row 1 has weight where 'C' forbids .* of 'B' row 0"):
        cusink.distance_matrix(A, B, C, eps=3.0)
    with pytest.raises(ValueError, match="'B' row 1 has weight where 'C' forbids .* of 'A' row 0"):
        cusink.distance_matrix(B, A, C.T, eps=3.0)


def test_equal_words_cost_nothing_and_near_ones_what_they_are_apart():
    """|x|^2 + |y|^2 - 2 xy alone would leave nothing of a distance of 1e-3 between vectors of length 20."""
    x = (np.random.default_rng(0).normal(size=(40, 200)) * 1.5).astype(np.float32)
    y = np.concatenate([x, x + np.float32(1e-4) * x[::-1], -x])
    s = squared_distances(y, x)
    right = cdist(y.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    assert (np.diag(s) == 0).all()
    positive = right > 0
    np.testing.assert_allclose(s[positive], right[positive], rtol=3e-5)


def test_buffers_of_ever_other_sizes_take_no_more_than_the_largest():
    buffers = Buffers()
    for size in (*range(1000, 2000), *range(3000, 100, -7), *range(100, 3000, 7)):
        loan = Loan(buffers)
        for part in (loan.take((size, 2), np.float32), loan.take((size // 2,), np.float64)):
            part[...] = 0
        del loan
    assert sum(map(len, buffers.free)) <= 2 * 3000 * 8


def test_an_array_has_one_owner():
    """Nobody else gets the memory of a loan before it is gone."""
    buffers = Buffers()
    first = Loan(buffers)
    ours = first.take((100,), np.float32)
    second = Loan(buffers)
    assert not np.shares_memory(ours, second.take((100,), np.float32))
    del first
    third = Loan(buffers)
    assert np.shares_memory(ours, third.take((50,), np.float64))


def test_pairs_have_their_costs_as_an_array():
    rng = np.random.default_rng(0)
    block, index = rng.random((9, 4)), np.array([[0, 2, 8], [5, 5, 5]])
    C = PairCosts(block, index, np.array([3, 1]), (0.0, 1.0))
    np.testing.assert_array_equal(C.array(), np.moveaxis(block[index], 1, 2))
    # As wide as the weights, whichever of the documents are left.
    np.testing.assert_array_equal(C.at(np.array([1])).array(), np.moveaxis(block[index[1:]], 1, 2))


@pytest.mark.parametrize("method", ["auto", "log"])
def test_what_one_row_took_is_free_for_the_next(method):
    pairs = check_collections(corpus(), corpus(), cusink.cost_matrix(vectors()), eps=2.0, check=True)
    held, options = set(), Options(max_iter=2, tol=None, method=method, overrelaxation=None)
    buffers = pairs.setting.buffers
    for _ in range(3):
        for row in range(len(SIZES)):
            pairs.solve(slice(row, row + 1), slice(None), "cost", options)
        held.add(sum(map(len, buffers.free)))
    assert len(held) == 1


def test_a_limit_counts_the_points_of_a_cost_that_is_not_stored():
    A, C = corpus(), cusink.PointCloud(vectors(), metric="euclidean")
    free = cusink.distance_matrix(A, None, C, eps=0.3, tol=1e-6)
    for limit, few in ((400_000, True), (4_000_000, False)):
        pairs = check_collections(A, A, C, eps=0.3, check=True, memory_limit=limit)
        assert pairs.point_bytes == C.x.nbytes
        assert (pairs.shared_bytes == C.x.nbytes) == few  # too few documents at once for all words to be among them
        limited = cusink.distance_matrix(A, None, C, eps=0.3, tol=1e-6, memory_limit=limit)
        np.testing.assert_allclose(limited, free, rtol=1e-9)


def test_out_of_memory_bounds_and_files(tmp_path):
    A, C = corpus(), cusink.cost_matrix(vectors())
    plain = cusink.distance_matrix(A, None, C, eps=2.0, tol=1e-6)
    np.testing.assert_allclose(
        cusink.distance_matrix(A, None, C, eps=2.0, tol=1e-6, memory_limit=1_000_000), plain, rtol=1e-4
    )
    with pytest.raises(ValueError, match="'memory_limit'"):
        cusink.distance_matrix(A, None, C, eps=2.0, memory_limit=100)
    cusink.distance_matrix(A, None, C, eps=2.0, tol=1e-6, out=tmp_path / "d.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), plain)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_documents_over_the_cells_of_a_grid(tmp_path, metric, dtype):
    """Their distances are those of the dense images, whose costs are never stored."""
    rng = np.random.default_rng(0)
    images = (rng.integers(1, 9, (40, 30)) * (rng.random((40, 30)) < 0.3)).astype(dtype)
    images[:, 3] = 1
    grid, some = cusink.Grid((5, 6), metric, spacing=0.1, periodic=(False, True)), sparse.csr_array(images)
    options = {"eps": cusink.RelativeEps(0.1, "max"), "normalise": True, "tol": 1e-5, "value": "reg_cost"}
    want = cusink.distance_matrix(images[:4], images, grid, **options)
    found = cusink.distance_matrix(some[:4], some, grid, **options)
    assert found.dtype == want.dtype
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-5 * want.max())
    index = cusink.Index(some, grid, **options)
    index.save(tmp_path / "index")
    for one in (index, cusink.Index.load(tmp_path / "index"), pickle.loads(pickle.dumps(index))):
        one.add(some[:2])
        np.testing.assert_array_equal(one.search(some[:4], 1)[1][:, 0], want.argmin(axis=1))
        assert one.search(some[:4].astype(np.float64), 1)[1].shape == (4, 1)


def test_nearest_of_documents_are_those_of_the_matrix():
    A, B, C = corpus((5, 40), seed=1), corpus(), cusink.cost_matrix(vectors())
    D = cusink.distance_matrix(A, B, C, eps=2.0, tol=1e-6)
    distances, indices = nearest(A, B, C, k=3, eps=2.0, tol=1e-6)
    np.testing.assert_array_equal(indices, np.argsort(D, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(distances, np.sort(D, axis=1)[:, :3], rtol=1e-12)


@pytest.mark.parametrize("value", VALUES)
def test_nearest_with_log_has_the_distances_of_the_matrix_whichever_pairs_are_left_out(value):
    x = vectors()
    x[60:] += 6  # the longest documents are far away, and so are the largest costs
    rng, rows = np.random.default_rng(0), np.zeros((82, WORDS))
    for row, (size, far) in zip(rows, [(7, 0), (9, 0)] * 11 + [(12, 60), (15, 60)] * 30, strict=True):
        row[far + rng.choice(60, size, replace=False)] = 1
    rows, C = normalised(sparse.csr_array(rows)), cusink.cost_matrix(x)
    options = {"eps": 2.0, "value": value, "method": "log", "tol": 1e-2}
    D = cusink.distance_matrix(rows[:2], rows[2:], C, **options)
    found = nearest(rows[:2], rows[2:], C, k=2, full_output=True, **options)
    assert found.finished < D.size
    np.testing.assert_array_equal(found.indices, np.argsort(D, axis=1, kind="stable")[:, :2])
    np.testing.assert_allclose(found.distances, np.take_along_axis(D, found.indices, 1), rtol=1e-12)


def rows(*entries):
    """Two documents with these (row, word, weight)."""
    row, word, weight = np.array(entries).T
    return sparse.csr_array(sparse.coo_array((weight, (row.astype(int), word.astype(int))), shape=(2, WORDS)))


COST = cusink.cost_matrix(vectors())
GOOD = rows((0, 1, 1.0), (1, 2, 1.0))
CLOUDS = cusink.Measures([0, 1, 3], None, np.zeros((3, 2)))
BAD = {
    "negative": ((rows((0, 3, -0.5), (1, 1, 1)), None, COST), ValueError, r"'A' must hold finite, non-neg.* at \[0, 3"),
    "nan": ((GOOD, rows((0, 3, np.nan), (1, 1, 1)), COST), ValueError, r"'B' must hold finite.* got nan at \[0, 3\]"),
    "masses": (
        (rows((0, 3, 2), (1, 1, 3)), None, COST),
        ValueError,
        "same mass.*2 and 'A' row 1 has 3.*normalise=True",
    ),
    "vocabulary": ((GOOD, None, COST[:100, :100]), ValueError, "'A' must have a column for each of the 100 words"),
    "other vocabulary": ((GOOD, GOOD, COST[:, :100]), ValueError, "'B' must have a column for each of the 100 words"),
    "square": ((GOOD, None, COST[:, :100]), ValueError, "'B' must be given with a 'C' that is not square"),
    "one dense": ((GOOD, GOOD.toarray(), COST), TypeError, "of one kind.*'B' is numpy.ndarray"),
    "mixed": ((GOOD, CLOUDS, COST), TypeError, "of one kind.*Sparse rows have a vocabulary in common"),
    "name as cost": ((GOOD, None, "euclidean"), TypeError, r"PointCloud\(vectors, metric='euclidean'\)"),
    "grid": ((GOOD, None, cusink.Grid((10, 1200))), ValueError, "a Grid of at most 4096 cells .*; got 12000"),
    "cost of measures": ((CLOUDS, None, COST), TypeError, "'C' must be the name of a metric"),
    "metric": ((CLOUDS, None, "euclid"), ValueError, "'C' must be one of"),
    "dimension": ((CLOUDS, cusink.Measures([0, 1], None, [[1.0]]), "euclidean"), ValueError, "d = 2 and d = 1"),
    "dtypes": ((GOOD, GOOD.astype(np.float32), COST.astype(np.float16)), TypeError, "must share one dtype"),
    "complex": ((GOOD.astype(complex), None, COST), TypeError, "real numbers"),
    "nan in C": ((GOOD, None, np.where(COST > 3, np.nan, COST)), ValueError, "'C' must hold finite costs"),
    "no rows": ((GOOD[:0], None, COST), ValueError, "'A' must be sparse rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_collections(case):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        cusink.distance_matrix(*arguments, eps=1.0)


def test_a_broken_csr_is_refused():
    broken = sparse.csr_array((2, WORDS))
    broken.data, broken.indices, broken.indptr = np.ones(2), np.array([0, WORDS]), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="'A' must be a valid sparse array; SciPy says"):
        cusink.distance_matrix(broken, None, COST, eps=1.0)


@pytest.mark.parametrize("form", [sparse.coo_array, sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.int64, np.bool_])
def test_duplicate_counts_add_up(form, dtype):
    most = 1 if dtype is np.bool_ else np.iinfo(dtype).max // 4 * 3
    data, at = np.array([most] * 4, dtype), (np.zeros(4, int), np.array([0, 0, 0, 1]))
    rows = sparse.coo_array((data, at), shape=(1, 2))
    if form is not sparse.coo_array:  # conversions add duplicates up themselves
        indices, indptr = (at[1], [0, 4]) if form is sparse.csr_array else (at[0], [0, 3, 4])
        rows = form((data, indices, indptr), shape=(1, 2))
    other = sparse.csr_array(np.array([[0, 1]]))
    for C in (np.array([[0, 1], [1, 0]], np.float32), np.array([[0, 1.0], [1, 0]])):
        found = cusink.distance_matrix(rows, other, C, eps=0.1, normalise=True)
        assert found.dtype == C.dtype
        np.testing.assert_allclose(found, 0.75, rtol=1e-5)


BAD_MEASURES = {
    "end": (([0, 2], None, [1.0, 2, 3]), ValueError, "from 0 to the number of points, 3"),
    "fall": (([0, 2, 1, 3], None, [1.0, 2, 3]), ValueError, "must rise"),
    "floats": (([0.0, 3.0], None, [1.0, 2, 3]), TypeError, "'offsets' must be integers"),
    "weights": (([0, 3], [1.0, 2], [1.0, 2, 3]), ValueError, r"'weights' must have shape \(3,\)"),
    "negative": (([0, 3], [1.0, -2, 1], [1.0, 2, 3]), ValueError, r"non-negative; got -2 at \[1\]"),
    "nan": (([0, 1, 3], None, [1.0, 2, np.nan]), ValueError, "got NaN or infinity in point 2, of item 1"),
    "axes": (([0, 3], None, np.zeros((3, 1, 1))), ValueError, "'points' must have shape"),
    "none": (([0, 3], None, None), TypeError, "'points' must be an array"),
}


@pytest.mark.parametrize("case", BAD_MEASURES)
def test_bad_measures(case):
    arguments, error, message = BAD_MEASURES[case]
    with pytest.raises(error, match=message):
        cusink.Measures(*arguments)


def test_bad_clouds():
    with pytest.raises(ValueError, match="at least one"):
        cusink.Measures.of([])
    with pytest.raises(ValueError, match="of one d"):
        cusink.Measures.of([np.zeros((2, 2)), np.zeros((2, 3))])
    with pytest.raises(ValueError, match="a weight for each of its points"):
        cusink.Measures.of([np.zeros((2, 2))], [np.ones(3)])
    with pytest.raises(TypeError, match="sequence of arrays"):
        cusink.Measures.of(np.zeros(3))
    with pytest.raises(TypeError, match="slices"):
        CLOUDS[0]


def test_unconverged_pairs_are_counted_once():
    with pytest.warns(cusink.ConvergenceWarning, match="of 64 problems") as record:
        cusink.distance_matrix(corpus(), corpus(seed=2), COST, eps=0.05, max_iter=3)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cusink.distance_matrix(corpus((3,)), corpus((4,)), COST, eps=30.0)


def test_rows_solved_together_are_told_apart(monkeypatch):
    """Any block of rows against any columns, and few rounds of iterations for many rows."""
    A, B = corpus((5, 40, 1, 22), seed=1), corpus()
    options = Options(max_iter=9, tol=None, overrelaxation=None)
    pairs = check_collections(A, B, COST, eps=2.0, check=True)
    right = table(A, B, COST, 2.0, 9)
    for rows, columns in ((slice(0, 3), slice(2, 7)), (slice(3, 4), slice(0, 1)), (slice(1, 3), slice(None))):
        for value, values in zip(VALUES, right, strict=True):
            found = pairs.solve(rows, columns, value, options).distances
            np.testing.assert_allclose(found, values[rows, columns], rtol=1e-11)
    rounds, real = [], documents_pairs.Queries.of
    monkeypatch.setattr(documents_pairs.Queries, "of", lambda *args: rounds.append(len(args[0])) or real(*args))
    monkeypatch.setattr(documents_pairs, "ROWS_PER_CALL", 3)
    cusink.distance_matrix(A, B, COST, eps=2.0, workers=1, **exactly(9))
    assert rounds == [3, 1]


def test_a_library_gets_arrays_of_its_own(xp):
    """Sparse rows and clouds of a library, with the values of the dense problems."""
    if xp.name == "numpy":
        csr = sparse.csr_matrix
    else:
        from cupyx.scipy.sparse import csr_matrix as csr

    A, B, X = corpus((5, 40), seed=1), corpus(), vectors()
    rows = [csr(tuple(xp(part) for part in (x.data, x.indices, x.indptr)), shape=x.shape) for x in (A, B)]
    for C in (xp(COST), cusink.PointCloud(xp(X))):
        found = cusink.distance_matrix(*rows, C, eps=2.0, **exactly(5))
        assert xp.owns(found)
        np.testing.assert_allclose(xp.numpy(found), table(A, B, COST, 2.0, 5)[0], rtol=1e-10)
    points = [X[x.indices] for x in (A, B)]
    clouds = [cusink.Measures(x.indptr, xp(x.data), xp(p)) for x, p in zip((A, B), points, strict=True)]
    found = cusink.distance_matrix(*clouds, "sqeuclidean", eps=2.0, **exactly(5))
    np.testing.assert_allclose(xp.numpy(found), table(A, B, COST, 2.0, 5)[0], rtol=1e-10)
    divergence = cusink.distance_matrix(clouds[0], None, "sqeuclidean", eps=4.0, value="divergence", tol=1e-6)
    assert xp.owns(divergence) and np.abs(np.diag(xp.numpy(divergence))).max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_very_steep_costs_are_annealed(dtype, monkeypatch):
    """Beyond 2000 eps a problem starts from potentials of a larger eps, which its kernel absorbs."""
    starts, real = [], iteration.start_tile
    monkeypatch.setattr(iteration, "start_tile", lambda *args: starts.append(bool(args[5].any())) or real(*args))
    X, A, B = vectors(dtype, d=2), corpus((8, 1), dtype, 1), corpus((20, 5, 33), dtype)
    C = cdist(X.astype(np.float64), X.astype(np.float64), "sqeuclidean").astype(dtype)
    eps, tol = float(C.max()) / 5000, 1e-4
    found = cusink.distance_matrix(A, B, C, eps=eps, tol=tol, max_iter=100_000, full_output=True)
    assert found.converged.all() and True in starts and False in starts
    for i, a in enumerate(A.toarray().astype(np.float64)):
        for j, b in enumerate(B.toarray().astype(np.float64)):
            best = reference.optimum(*core(a / a.sum(), b / b.sum(), C.astype(np.float64)), eps)
            assert abs(found.distances[i, j] - best.cost) <= 2 * tol * C.max(), (i, j)


def test_distances_that_float32_makes_equal_come_in_the_order_of_columns():
    """They may differ in float64, in which pairs are solved."""
    ties = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        words = rng.normal(size=(8, 2)).astype(np.float32)
        items = [words[rng.permutation(8)[:4]] for _ in range(40)]
        B = cusink.Measures.of(items)
        for limit in (31, None):
            found = cusink.nearest(
                B[:1], B, "euclidean", k=30, eps=5.0, value="reg_cost", solve_at_most=limit, full_output=True
            )
            equal = np.diff(found.distances[0]) == 0
            ties += int(equal.sum())
            assert (np.diff(found.indices[0])[equal] > 0).all()
    assert ties > 50
