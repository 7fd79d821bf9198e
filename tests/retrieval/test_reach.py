"""Matrices and searches of histograms whose masses differ or are made one, and beside forbidden pairs of bins."""

import numpy as np
import pytest

import cusink

RNG = np.random.default_rng(5)
BINS = 12
C = cusink.cost_matrix(np.linspace(0, 1, BINS))
A = RNG.dirichlet(np.full(BINS, 0.5), 4) * RNG.uniform(0.5, 2, (4, 1))
B = RNG.dirichlet(np.full(BINS, 0.5), 60) * RNG.uniform(0.5, 2, (60, 1))
A[A < 1e-3] = B[B < 1e-3] = 0
HOW = {"eps": 0.05, "tol": 1e-7}
VALUES = ("cost", "reg_cost", "entropic_cost", "divergence")


def one_pair(a, b, reach, value):
    if value == "divergence":
        return cusink.sinkhorn_divergence(a, b, C, reach=reach, **HOW).divergence
    return getattr(cusink.sinkhorn(a, b, C, reach=reach, **HOW), value)


@pytest.mark.parametrize("value", VALUES)
def test_a_matrix_holds_what_single_solves_return(value):
    reach = (0.1, 0.4)
    found = cusink.distance_matrix(A, B[:3], C, reach=reach, value=value, **HOW)
    wanted = [[one_pair(a, b, reach, value) for b in B[:3]] for a in A]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    itself = cusink.distance_matrix(A, None, C, reach=reach, value=value, **HOW)
    np.testing.assert_allclose(itself, cusink.distance_matrix(A, A, C, reach=reach, value=value, **HOW), atol=1e-6)
    assert not np.allclose(itself, itself.T, atol=1e-3)  # its sides have different prices
    assert value != "divergence" or (itself.diagonal() > 1e-4).all()  # see docs/divergence.md


@pytest.mark.parametrize("reach", [(0.1, 0.4), (0.1, None), (None, 0.3)])
def test_divergences_at_two_prices_are_those_of_single_pairs(reach, tmp_path):
    how = {"reach": reach, "value": "divergence", **HOW}
    wanted = [[one_pair(a, b, reach, "divergence") for b in B[:3]] for a in A]
    np.testing.assert_allclose(cusink.distance_matrix(A, B[:3], C, **how), wanted, rtol=1e-5, atol=1e-6)
    matrix = cusink.distance_matrix(B, None, C, **how)
    np.testing.assert_allclose(
        matrix[:2, :4], [[one_pair(a, b, reach, "divergence") for b in B[:4]] for a in B[:2]], atol=1e-5
    )
    index = cusink.Index(B[:40], C, **how)
    index.add(B[40:])
    index.save(tmp_path / "index")
    indexes = (index, cusink.Index.load(tmp_path / "index"))
    for columns, own in ((None, np.inf), (B, 0.0)):  # without each item itself, and with it
        rows = matrix + np.where(np.eye(len(B)) > 0, own, 0)
        order = np.argsort(rows, axis=1, kind="stable")[:, :4]
        for prune in (True, False):
            found = cusink.nearest(B, columns, C, k=4, prune=prune, full_output=True, **how)
            np.testing.assert_array_equal(found.indices, order)
            np.testing.assert_allclose(found.distances, np.take_along_axis(rows, order, 1), rtol=1e-4, atol=1e-6)
            assert found.pruning == ("dual" if prune else "none: not asked for")
            assert not prune or found.finished < 0.7 * matrix.size
        for each in indexes:
            found = each.search(columns, 4)
            np.testing.assert_array_equal(found[1], order)
            np.testing.assert_allclose(found[0], np.take_along_axis(rows, order, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", VALUES)
def test_a_pair_of_equal_prices_is_the_number_to_the_last_bit(value):
    one, *pairs = (0.2, (0.2, 0.2), np.array([0.2, 0.2]))
    how = {"value": value, **HOW}
    for given in ((A, B), (A, None)):
        matrix, near = (
            cusink.distance_matrix(*given, C, reach=one, **how),
            cusink.nearest(*given, C, k=2, reach=one, **how),
        )
        for pair in pairs:
            np.testing.assert_array_equal(cusink.distance_matrix(*given, C, reach=pair, **how), matrix)
            np.testing.assert_array_equal(cusink.nearest(*given, C, k=2, reach=pair, **how)[0], near[0])
    assert value != "divergence" or not matrix.diagonal().any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "reach", "eps"),
    [
        ("reg_cost", 0.02, 0.01),
        ("reg_cost", (0.1, None), 0.05),
        ("reg_cost", (None, 0.5), 0.01),
        ("reg_cost", 5.0, 0.05),
        ("divergence", 0.1, 0.02),
        ("divergence", 3.0, 0.05),
        ("divergence", (0.1, 0.4), 0.02),
        ("divergence", (0.1, None), 0.02),
        ("cost", 0.1, 0.05),
    ],
)
def test_a_search_finds_what_all_pairs_give_and_leaves_out_most(value, reach, eps, dtype):
    given = [x.astype(dtype) for x in (A, B, C)]
    how = {"eps": eps, "reach": reach, "value": value}
    matrix = cusink.distance_matrix(*given, **how)
    found = cusink.nearest(*given, k=3, full_output=True, **how)
    np.testing.assert_array_equal(found.indices, np.argsort(matrix, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(matrix, axis=1)[:, :3], rtol=1e-4, atol=1e-5)
    if value == "cost":
        assert found.pruning.startswith("none: with 'reach'")
    else:
        assert found.pruning == "dual" and found.finished < 0.7 * matrix.size


@pytest.mark.parametrize("queried", [slice(0, 7), slice(None)])
def test_a_search_with_reach_takes_queries_on_other_bins_than_the_items(queried):
    cost = C if queried == slice(0, 7) else np.concatenate([C, C[:3] + 0.1])
    queries = np.zeros((4, len(cost)))
    queries[:, queried] = RNG.dirichlet(np.ones(queries[:, queried].shape[1]), 4)
    how = {"eps": 0.05, "reach": 0.02, "value": "reg_cost"}
    matrix = cusink.distance_matrix(queries, B, cost, **how)
    found = cusink.nearest(queries, B, cost, k=3, full_output=True, **how)
    np.testing.assert_array_equal(found.indices, np.argsort(matrix, axis=1, kind="stable")[:, :3])
    assert found.pruning == "dual" and found.finished < 0.7 * matrix.size


def test_an_index_keeps_prices_and_normalises(tmp_path):
    how = {"value": "reg_cost", "reach": (0.1, None), "eps": 0.05}
    index = cusink.Index(B[:50], C, **how)
    index.add(B[50:])
    wanted = cusink.nearest(A, B, C, k=3, **how)
    index.save(tmp_path / "index")
    for each in (index, cusink.Index.load(tmp_path / "index")):
        assert each.reach == (0.1, np.inf)
        np.testing.assert_array_equal(each.search(A, 3)[1], wanted[1])
        np.testing.assert_array_equal(each.search(A, 3)[0], wanted[0])
    scaled = cusink.Index(B[:50] * 7, C, normalise=True, **HOW)
    scaled.add(B[50:])
    scaled.save(tmp_path / "scaled")
    rows, columns = (x / x.sum(axis=1, keepdims=True) for x in (A, B))
    wanted = cusink.nearest(rows, columns, C, k=3, **HOW)
    for each in (scaled, cusink.Index.load(tmp_path / "scaled")):
        found = each.search(A * 3, 3)
        np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-9)


def test_documents_are_normalised_and_have_no_reach():
    from scipy import sparse

    counts = sparse.csr_array(RNG.integers(0, 3, (6, BINS)))
    shares = counts.astype(float) / counts.sum(axis=1)[:, None]
    wanted = cusink.distance_matrix(shares.tocsr(), None, C, **HOW)
    np.testing.assert_allclose(cusink.distance_matrix(counts, None, C, normalise=True, **HOW), wanted, atol=1e-7)
    index = cusink.Index(counts, C, normalise=True, **HOW)
    index.add(counts[:2] * 5)
    np.testing.assert_allclose(index.search(counts[:1] * 3, 8)[0][0, :2], 2 * [wanted[0, 0]], atol=1e-6)
    clouds = cusink.Measures([0, 3, 7], np.arange(1, 8), RNG.random((7, 2)))
    found = cusink.distance_matrix(clouds, None, "euclidean", eps=0.5, normalise=True)
    np.testing.assert_allclose(found, cusink.distance_matrix(clouds.normalised(), None, "euclidean", eps=0.5))
    for call in (cusink.distance_matrix, lambda x, _, C, **how: cusink.Index(x, C, **how)):
        with pytest.raises(ValueError, match="'reach' must be None for sparse rows and cusink.Measures"):
            call(counts, None, C, reach=1.0, **HOW)


def test_pairs_are_left_out_beside_forbidden_ones():
    rows, columns = (x + 0.1 for x in (A, B))
    rows, columns = (x / x.sum(axis=1, keepdims=True) for x in (rows, columns))
    cost = C.copy()
    cost[np.abs(np.subtract.outer(range(BINS), range(BINS))) > 9] = np.inf
    matrix = cusink.distance_matrix(rows, columns, cost, eps=0.01)
    found = cusink.nearest(rows, columns, cost, k=3, eps=0.01, full_output=True)
    np.testing.assert_array_equal(found.indices, np.argsort(matrix, axis=1, kind="stable")[:, :3])
    assert found.pruning == "dual" and found.finished < 0.8 * matrix.size
    for how in ({"reach": 1.0, "value": "reg_cost"}, {"reach": (None, 1.0), "value": "divergence"}):
        other = cusink.nearest(rows, columns, cost, k=3, eps=0.01, full_output=True, **how)
        assert other.pruning.startswith("none: with forbidden pairs")


def test_some_mass_of_every_pair_may_go_somewhere():
    cost = np.where(np.eye(BINS) > 0, 0.0, np.inf)
    lone = np.eye(BINS)[:2] + np.eye(BINS)[2]
    cusink.distance_matrix(lone, lone, cost, eps=0.1, reach=1.0)  # half of it stays behind
    with pytest.raises(ValueError, match=r"forbids \(\+inf\) all between 'A' row 0 and 'B' row 1"):
        cusink.distance_matrix(np.eye(BINS)[:2], np.eye(BINS)[:2], cost, eps=0.1, reach=1.0)
    with pytest.raises(ValueError, match="'A' row 0 has weight where"):
        cusink.distance_matrix(lone, lone, cost, eps=0.1, reach=(None, 1.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reach": -1.0}, ValueError, "'reach' must be a positive number"),
        ({"reach": "far"}, TypeError, "'reach' must be a positive number"),
        ({"reach": (0.1, -0.2), "value": "divergence"}, ValueError, "'reach' must be a positive number"),
        ({"reach": 1e-320}, ValueError, "'reach' must be such that C / reach is finite"),
        ({"normalise": 1}, TypeError, "'normalise' must be a bool"),
        ({}, ValueError, "normalise=True divides each row by its sum"),
    ],
)
def test_bad_prices_and_masses(change, error, message):
    for call in (cusink.distance_matrix, lambda *arrays, **how: cusink.nearest(*arrays, k=1, **how)):
        with pytest.raises(error, match=message):
            call(A, B, C, eps=0.1, **change)
