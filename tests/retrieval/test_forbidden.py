"""Searches beside forbidden pairs of bins: bounds below true values, and the neighbours of the whole matrix."""

import numpy as np
import pytest
import reference
from retrieval.test_documents import WORDS
from retrieval.test_search import topical, topics
from scipy import sparse

import cusink
from cusink.convergence.options import Options
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.bounding import Bounding
from cusink.retrieval.bounds import prototypes
from cusink.retrieval.collections import check_collections
from cusink.retrieval.documents import search as documents
from cusink.retrieval.documents.tiles import PaddedDocuments
from cusink.retrieval.query import Query

BINS, K = 10, 3
VALUES = ("cost", "reg_cost", "entropic_cost", "divergence")
DISTANCE = np.abs(np.subtract.outer(range(BINS), range(BINS)))
# Patterns of forbidden pairs; of the last two some pairs of histograms have no plan at all.
PATTERNS = {
    "one": (DISTANCE == 0) & (np.arange(BINS) == 4),
    "band": DISTANCE > 4,
    "random": np.random.default_rng(3).random((BINS, BINS)) < 0.4,
    "corner": (np.arange(BINS)[:, None] < 4) & (np.arange(BINS) > 4),
}
PATTERNS["random"] = (PATTERNS["random"] | PATTERNS["random"].T) & (DISTANCE > 0)


def cost(pattern, dtype=np.float64):
    return np.where(PATTERNS[pattern], np.inf, DISTANCE / BINS).astype(dtype)


def histograms(count, seed, dtype=np.float64):
    rows = np.random.default_rng(seed).dirichlet(np.full(BINS, 0.7), count) + 0.003
    return (rows / rows.sum(axis=1, keepdims=True)).astype(dtype)


def feasible(a, b, forbids):
    """Whether there is a plan: a weighted form of Hall's condition, for every set of bins of a."""
    sets = (np.arange(1 << BINS)[:, None] >> np.arange(BINS)) & 1
    return bool((sets @ a <= ((sets @ ~forbids) > 0) @ b + 1e-12).all())


def is_complete(found, matrix, rtol):
    """No pair that converged is nearer than the last neighbour and left out, and distances are those of the matrix."""
    mine = np.take_along_axis(matrix.distances, found.indices, axis=1)
    np.testing.assert_allclose(found.distances, mine, rtol=rtol, atol=rtol)
    others = np.where(matrix.converged, matrix.distances, np.inf)
    np.put_along_axis(others, found.indices, np.inf, axis=1)
    return bool((others.min(axis=1) >= found.distances[:, -1] - rtol).all())


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # where there is no plan
@pytest.mark.parametrize(
    ("value", "pattern"),
    [(value, pattern) for value in VALUES for pattern in PATTERNS if (value, pattern) != ("divergence", "corner")],
)
@pytest.mark.parametrize(("eps", "tol", "dtype"), [(0.2, 1e-2, np.float32), (0.03, 1e-6, np.float64)])
def test_neighbours_are_those_of_the_matrix(pattern, value, eps, tol, dtype):
    A, B, C = histograms(5, 1, dtype), histograms(70, 2, dtype), cost(pattern, dtype)
    options = {"eps": eps, "tol": tol, "value": value, "max_iter": 400, "full_output": True}
    matrix = cusink.distance_matrix(A, B, C, **options)
    found = cusink.nearest(A, B, C, k=K, **options)
    assert found.pruning == "dual" and found.bounded == 350
    assert is_complete(found, matrix, 1e-9 if dtype is np.float64 else 1e-5)
    if value != "cost":
        assert found.finished < 0.5 * found.bounded
    assert pattern in ("one", "band") or value == "divergence" or not matrix.converged.all()


def test_some_pairs_of_the_patterns_have_no_plan():
    A, B = histograms(5, 1), histograms(70, 2)
    for pattern, forbids in PATTERNS.items():
        share = np.mean([feasible(a, b, forbids) for a in A for b in B])
        assert 0.1 < share < 1 or (pattern == "one" and share == 1)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sharp", [True, False])
def test_bounds_less_what_they_allow_for_are_below_true_values(pattern, sharp):
    """True values where there is a plan: linear programming for `cost`, for `reg_cost` plain iterations."""
    A, B, C = 2 * histograms(3, 1), 2 * histograms(40, 2), cost(pattern)
    pairs = check_collections(A, B, C, eps=0.05, check=True)
    value = "cost" if sharp else "reg_cost"
    query = Query(k=2, value=value, options=Options(tol=1e-4), excludes_self=False, memory_limit=None)
    batches = PairBatches(pairs, value, query.options, 1024)
    centres = prototypes(pairs.B, batches.columns, np)

    class Corpus:
        smallest = float(B.min())

    Corpus.centres = centres
    found = Bounding(pairs, batches, Corpus(), query)
    bounds = found.first(np.arange(3))
    i, j = (x.ravel() for x in np.indices((3, 40)))
    bounds.tighten(i, j)
    assert np.isfinite(bounds.lower).all()
    gaps = []
    for row, column in zip(i, j, strict=True):
        if feasible(A[row], B[column], PATTERNS[pattern]):
            exact = reference.exact_cost(A[row], B[column], C)
            if not sharp:
                long = reference.sinkhorn(A[row], B[column], C, 0.05, 200)
                exact = A[row] @ long.f + B[column] @ long.g  # a dual value: below the optimum, if at all
            gaps.append(exact - bounds.lower[row, column])
    assert len(gaps) > 10 and min(gaps) > -1e-9
    g = np.ptp(bounds.slopes, axis=2)
    plain = type(bounds)(pairs, batches, np.arange(3), centres, sharp)
    np.testing.assert_allclose(bounds.constant, plain.constant - 2 * 1e-4 * (0.5 if sharp else 1) * g, rtol=1e-9)


def test_the_slack_beside_forbidden_pairs_is_that_of_columns_and_rounding():
    A, B = histograms(3, 1), histograms(40, 2)
    taken = {}
    for name in ("one", "none"):
        C = cost("one") if name == "one" else np.where(PATTERNS["one"], 0, cost("one"))
        pairs = check_collections(A, B, C, eps=0.05, check=True)
        for value in ("cost", "reg_cost"):
            query = Query(k=2, value=value, options=Options(tol=1e-3), excludes_self=False, memory_limit=None)
            batches = PairBatches(pairs, value, query.options, 1024)
            corpus = type("Corpus", (), {"smallest": float(B.min()), "centres": B[:2]})()
            taken[name, value] = Bounding(pairs, batches, corpus, query).slack
    widest = 0.05 * (1 + np.log(1 / B.min()))
    assert taken["one", "reg_cost"] - taken["one", "cost"] == pytest.approx(1e-3 * widest, rel=1e-6)
    assert taken["none", "reg_cost"] - taken["one", "reg_cost"] == pytest.approx(1e-3 * 0.9, rel=1e-6)
    assert taken["one", "cost"] < 1e-10  # rounding


# Documents


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_bounds_of_documents_fill_from_allowed_words(steps, monkeypatch):
    monkeypatch.setattr(documents, "WORDS_TO_FILL", steps)
    C = cost("band")
    A, B = np.zeros((2, BINS)), np.zeros((6, BINS))
    A[0, [2, 5, 8]] = A[1, [0, 1, 4, 8]] = 0.25
    A[0, 8] = 0.5
    rng = np.random.default_rng(5)
    for row in B:
        row[[0, 4, 7, 9][: rng.integers(2, 5)]] = 1
        row[4] += 1
    B = B / B.sum(axis=1, keepdims=True)
    pairs = check_collections(sparse.csr_array(A), sparse.csr_array(B), C, eps=1.0, check=True)
    columns = PaddedDocuments.of(pairs.B, np.arange(len(B)), BINS)
    places = np.searchsorted(columns.used, pairs.B.places)
    truths = []
    for row, dense in enumerate(A):
        a, words = pairs.A.item(row)
        costs = C[np.ix_(columns.used, words)]
        ours, theirs = documents.lower_bounds(a, costs, documents.Words(places, pairs.B.weights, pairs.B.offsets[:-1]))
        for k, b in enumerate(B):
            used = np.flatnonzero(b)
            own = C[np.ix_(words, used)]
            assert ours[k] == pytest.approx(a @ own.min(axis=1), rel=1e-14)
            filled = 0.0
            for share, column in zip(b[used], own.T, strict=True):
                order = [i for i in np.argsort(column, kind="stable") if column[i] < np.inf][:steps]
                for at, i in enumerate(order):
                    taken = share if at + 1 == len(order) else min(share, a[i])
                    filled, share = filled + taken * column[i], share - taken
            assert theirs[k] == pytest.approx(filled, rel=1e-13)
            if feasible(dense, b, PATTERNS["band"]):
                truths.append(reference.exact_cost(dense, b, C))
                assert max(ours[k], theirs[k]) <= truths[-1] + 1e-12
    assert truths


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
@pytest.mark.parametrize("value", VALUES)
def test_neighbours_of_documents_are_those_of_the_matrix(value):
    rows = np.concatenate([topical(count, seed).toarray() for count, seed in ((12, 1), (70, 2))])
    rows[:, 0] += 0.1  # a word that takes from all, but not any amount
    A, B = np.split(rows / rows.sum(axis=1, keepdims=True), [12])
    A, B, C = sparse.csr_array(A), sparse.csr_array(B), cusink.cost_matrix(topics(), metric="euclidean")
    forbids = np.random.default_rng(4).random(C.shape) < 0.5
    forbids = (forbids | forbids.T) & ~np.eye(WORDS, dtype=bool)
    forbids[0] = forbids[:, 0] = False
    C[forbids] = np.inf
    options = {"eps": 0.05, "tol": 1e-3, "value": value, "max_iter": 500, "full_output": True}
    matrix = cusink.distance_matrix(A, B, C, **options)
    found = cusink.nearest(A, B, C, k=K, **options)
    assert found.pruning == "words" and found.finished < 0.7 * found.bounded
    assert is_complete(found, matrix, 1e-6)
    assert not matrix.converged.all()
