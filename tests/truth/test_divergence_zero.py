"""Divergences between equal items are 0, none is negative, and neighbours and estimators can rely on it."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from truth.claims import attempt, divergence

import cusink

EPS = 0.05
C = (np.arange(8.0)[:, None] - np.arange(8.0)[None]) ** 2 / 49


def items(dtype, zeros=False):
    """Return 12 histograms, rows 5 and 9 equal to row 2."""
    weights = np.random.default_rng(0).dirichlet(np.ones(8), 12)
    if zeros:
        weights[:, ::3] = 0
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
    weights[5] = weights[9] = weights[2]
    return weights


def collections(kind, dtype):
    """Return the items in one kind of collection, and the cost that goes with it."""
    A, cost = items(dtype), C.astype(dtype)
    points = (np.arange(8.0) / 7)[:, None].astype(dtype)
    if kind == "dense":
        return A, cost
    if kind == "cloud":
        return A, cusink.PointCloud(points)
    if kind == "grid":
        return A, cusink.Grid((8,), spacing=1 / 7)
    if kind == "documents":
        return csr_array(items(dtype, zeros=True)), cost
    return cusink.Measures.of([points] * 12, list(A)).normalised(), "sqeuclidean"


@pytest.mark.parametrize("against", ["itself", "None"])
@pytest.mark.parametrize("kind", ["dense", "cloud", "grid", "documents", "measures"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"method": "log"}, {"tol": 1e-2}], ids=str)
def test_matrices_are_zero_on_the_diagonal_and_never_negative(options, dtype, kind, against):
    A, cost = collections(kind, dtype)
    D = attempt(
        cusink.distance_matrix, A, A if against == "itself" else None, cost, eps=EPS, value="divergence", **options
    )
    assert D.refused is None, repr(D.refused)
    found = np.asarray(D.result)
    assert np.isfinite(np.sqrt(found)).all() if (found >= 0).all() else False, f"as low as {found.min()}"
    np.testing.assert_array_equal(np.diag(found), 0)
    for i, j in ((2, 5), (2, 9), (5, 9)):
        assert found[i, j] == found[j, i] == 0, f"{found[i, j]} between equal rows"
    if "tol" not in options and kind in ("dense", "cloud", "grid"):
        off = [(0, 1), (3, 7), (10, 2)]
        want = [divergence(items(dtype)[i], items(dtype)[j], C, EPS) for i, j in off]
        np.testing.assert_allclose([found[i, j] for i, j in off], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("kind", ["dense", "cloud", "grid", "documents", "measures"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_item_is_its_own_nearest(dtype, kind, prune):
    A, cost = collections(kind, dtype)
    distances, indices = cusink.nearest(A, A, cost, k=3, eps=EPS, value="divergence", prune=prune)
    assert (np.asarray(distances) >= 0).all(), f"as low as {np.min(distances)}"
    np.testing.assert_array_equal(distances[:, 0], 0)
    for row in (2, 5, 9):
        np.testing.assert_array_equal(distances[row], 0)
        np.testing.assert_array_equal(indices[row], [2, 5, 9])


@pytest.mark.parametrize("reach", [None, 1.0, 30.0])
@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_divergence_of_an_item_with_itself(dtype, method, reach):
    A = items(dtype)
    found = attempt(cusink.sinkhorn_divergence, A, A, C.astype(dtype), eps=EPS, method=method, reach=reach)
    np.testing.assert_array_equal(found.result.divergence, 0)
    single = attempt(cusink.sinkhorn_divergence, A[0], A[0], C.astype(dtype), eps=EPS, method=method, reach=reach)
    assert single.result.divergence == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_between_equal_items_is_zero(dtype):
    A = items(dtype)
    result = cusink.sinkhorn_divergence(A, A, C.astype(dtype), eps=EPS, tol=1e-6 if dtype == "float32" else 1e-12)
    grads = cusink.sinkhorn_divergence_adjoint(result)
    level = 1e-5 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(grads.a, 0, atol=level)
    np.testing.assert_allclose(grads.b, 0, atol=level)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_nearly_equal_items_are_not_negative(dtype, size):
    A = items("float64")
    near = A * (1 + size * np.random.default_rng(1).standard_normal(A.shape))
    near /= near.sum(axis=1, keepdims=True)
    D = attempt(
        cusink.distance_matrix, A.astype(dtype), near.astype(dtype), C.astype(dtype), eps=EPS, value="divergence"
    )
    assert (D.result >= 0).all(), f"as low as {D.result.min()}"


def test_a_bin_lighter_than_the_error_makes_no_distance_negative():
    """Its mass is worth what costs differ by, a hundred times eps here: distances of -2e-10 were left as they were."""
    A = np.array([[0.9980214671989346, 1.1195066819387823e-06], [0.9980218037072751, 7.829983413343133e-07]])
    cost = np.array([[0.0, 0.02], [0.02, 0.0]])
    for B in (None, A):
        distances = cusink.distance_matrix(A, B, cost, eps=2e-4, value="divergence")
        assert (distances >= 0).all() and (np.diag(distances) == 0).all()
    assert (cusink.nearest(A, None, cost, k=1, eps=2e-4, value="divergence")[0] >= 0).all()


def test_neighbours_of_scikit_learn_take_the_matrix():
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    for dtype in ("float32", "float64"):
        D = cusink.distance_matrix(items(dtype), None, C.astype(dtype), eps=EPS, value="divergence")
        labels = np.arange(12) % 2
        KNeighborsClassifier(3, metric="precomputed").fit(D, labels).predict(D)
        DBSCAN(eps=0.1, metric="precomputed").fit(D)
        silhouette_score(D, labels, metric="precomputed")
