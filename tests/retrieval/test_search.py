"""The nearest documents: bounds that hold, the neighbours of the whole matrix, from few of its pairs."""

import numpy as np
import pytest
import reference
from retrieval.test_documents import WORDS, core, corpus, vectors
from scipy import sparse

import cusink
from cusink.retrieval.collections import check_collections
from cusink.retrieval.documents import search
from cusink.retrieval.documents.tiles import PaddedDocuments
from cusink.retrieval.nearest import nearest

DTYPES = (np.float32, np.float64)
TOPICS = 8


def topical(count, seed, dtype=np.float64, empty=()):
    """Texts that each draw most words from one of a few topics, so that some are near and most are far."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, WORDS))
    for k, row in enumerate(rows):
        topic = rng.integers(TOPICS) * (WORDS // TOPICS)
        words = np.concatenate([topic + rng.choice(WORDS // TOPICS, 8, replace=False), rng.integers(0, WORDS, 4)])
        row[words] = rng.integers(1, 4, len(words))
        if k in empty:
            row[:] = 0
    return sparse.csr_array((rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)).astype(dtype))


def topics(dtype=np.float64):
    """Vectors of words, near each other in a topic."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(TOPICS, 12)), WORDS // TOPICS, axis=0)
    return (centres + 0.3 * rng.normal(size=(WORDS, 12))).astype(dtype)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_bounds_hold_and_are_those_of_their_relaxations(steps, monkeypatch):
    monkeypatch.setattr(search, "WORDS_TO_FILL", steps)
    A, B, C = corpus((9, 2), seed=1), corpus(), cusink.cost_matrix(vectors(), metric="euclidean")
    pairs = check_collections(A, B, C, eps=1.0, check=True)
    documents = PaddedDocuments.of(pairs.B, np.arange(len(pairs.B)), WORDS)
    places = np.searchsorted(documents.used, pairs.B.places)
    for row in range(2):
        a, words = pairs.A.item(row)
        costs = C[np.ix_(documents.used, words)]
        ours, theirs = search.lower_bounds(a, costs, search.Words(places, pairs.B.weights, pairs.B.offsets[:-1]))
        for k, dense in enumerate(B.toarray()):
            own, b, cost = core(A.toarray()[row], dense, C)
            exact = reference.exact_cost(own, b, cost)
            assert ours[k] <= exact + 1e-12 and theirs[k] <= exact + 1e-12
            assert ours[k] == pytest.approx(own @ cost.min(axis=1))
            filled = 0.0  # by words of the document, in the order of costs, the last of `steps` without a limit
            for share, column in zip(b, cost.T, strict=True):
                order = np.argsort(column)[:steps]
                room = own[order].copy()
                room[-1] = np.inf
                before = np.concatenate([[0], np.cumsum(room)[:-1]])
                filled += np.clip(share - before, 0, room) @ column[order]
            assert theirs[k] == pytest.approx(filled)
    assert steps == 1 or (theirs > ours).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alone", [True, False])
def test_neighbours_are_those_of_the_matrix_from_few_pairs(alone, dtype):
    A, B = topical(60, 1, dtype), None if alone else topical(90, 2, dtype)
    options = {"eps": 0.2, "tol": 1e-3}
    C = cusink.PointCloud(topics(dtype), metric="euclidean")
    D = cusink.distance_matrix(A, A if alone else B, C, **options)
    if alone:
        np.fill_diagonal(D, np.inf)
    found = nearest(A, B, C, k=3, full_output=True, **options)
    order = np.argsort(D, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.distances, np.take_along_axis(D, order, axis=1), rtol=1e-5)
    assert found.pruning == "words" and found.bounded == 60 * (59 if alone else 90)
    assert found.finished < found.bounded / 2 and found.converged.all() and (found.error <= 1e-3).all()
    small = nearest(A, B, C, k=3, memory_limit=1_000_000, full_output=True, **options)
    assert small.pruning == "words"
    np.testing.assert_array_equal(small.indices, order)


@pytest.mark.parametrize("value", ["reg_cost", "entropic_cost", "divergence"])
@pytest.mark.parametrize("mass", [1.0, 40.0])
def test_every_value_of_documents_is_pruned(value, mass):
    A, B = mass * topical(12, 1), mass * topical(70, 2)
    options = {"eps": 0.05, "tol": 1e-3, "value": value, "max_iter": 5000}
    C = cusink.cost_matrix(topics(), metric="euclidean")
    D = cusink.distance_matrix(A, B, C, **options)
    found = nearest(A, B, C, k=3, full_output=True, **options)
    order = np.argsort(D, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.distances, np.take_along_axis(D, order, axis=1), rtol=1e-5)
    assert found.pruning == "words" and found.finished < found.bounded and found.proved.all()


def test_the_slack_covers_what_the_tolerance_allows():
    """At a coarse tolerance costs fall below the exact ones, and so may their order change: the bounds follow."""
    A, B, C = topical(20, 1), topical(80, 2), cusink.cost_matrix(topics(), metric="euclidean")
    options = {"eps": 0.02, "tol": 0.2, "max_iter": 5000}
    D = cusink.distance_matrix(A, B, C, **options)
    found = nearest(A, B, C, k=3, full_output=True, **options)
    np.testing.assert_array_equal(found.indices, np.argsort(D, axis=1, kind="stable")[:, :3])
    assert found.pruning == "words"


def test_empty_documents_come_last():
    A, B = topical(5, 1, empty=(2,)), topical(70, 2, empty=(0, 30))
    C = cusink.cost_matrix(topics(), metric="euclidean")
    with pytest.warns(UserWarning, match="NaN for 'A' row 2; 'B' rows 0, 30"):
        found = nearest(A, B, C, k=4, eps=0.2, tol=1e-3, full_output=True)
    assert found.pruning == "words"
    assert np.isnan(found.distances[2]).all() and found.indices[2].tolist() == [0, 1, 2, 3]
    assert np.isfinite(found.distances[[0, 1, 3, 4]]).all() and not np.isin(found.indices[[0, 1, 3, 4]], [0, 30]).any()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tol": None, "max_iter": 5}, "tol=None"),
        ({"k": 20}, "k is not small"),
        ({"prune": False}, "not asked for"),
        ({"memory_limit": 60_000}, "'memory_limit'"),
    ],
)
def test_why_all_pairs_are_solved(options, why):
    A, B, C = topical(2, 1), topical(30, 2), cusink.cost_matrix(topics())
    found = nearest(A, B, C, **{"k": 2, "eps": 3.0, "tol": 1e-2, "full_output": True} | options)
    assert found.pruning.startswith("none: ") and why in found.pruning and found.finished == 60
