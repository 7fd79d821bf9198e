"""Collections in which all items on one side are empty: NaN, said once, and no division by anything."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import cusink

C = np.array([[0, 1.0], [1.0, 0]])
FULL = csr_array(np.eye(2)[np.arange(40) % 2])
EMPTY = csr_array((2, 2))


@pytest.mark.parametrize("value", ["cost", "reg_cost", "entropic_cost", "divergence"])
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_query_has_weight(dtype, prune, value):
    with pytest.warns(UserWarning, match="without weight"):
        distances, indices = cusink.nearest(
            EMPTY.astype(dtype), FULL.astype(dtype), C.astype(dtype), k=3, eps=0.1, prune=prune, value=value
        )
    assert np.isnan(distances).all() and distances.shape == (2, 3)
    assert ((indices >= 0) & (indices < 40)).all()


@pytest.mark.parametrize("prune", [True, False])
def test_no_candidate_has_weight(prune):
    with pytest.warns(UserWarning, match="without weight"):
        distances, _ = cusink.nearest(FULL, csr_array((20, 2)), C, k=2, eps=0.1, prune=prune)
    assert np.isnan(distances).all()


def test_no_item_has_weight():
    with pytest.warns(UserWarning, match="without weight"):
        distances, _ = cusink.nearest(csr_array((40, 2)), None, C, k=2, eps=0.1)
    assert np.isnan(distances).all()


@pytest.mark.parametrize("sides", ["rows", "columns", "both", "None"])
def test_matrices_without_weight(sides):
    A, B = {"rows": (EMPTY, FULL), "columns": (FULL, EMPTY), "both": (EMPTY, EMPTY), "None": (EMPTY, None)}[sides]
    with pytest.warns(UserWarning, match="without weight"):
        D = cusink.distance_matrix(A, B, C, eps=0.1)
    assert np.isnan(D).all()


@pytest.mark.parametrize("prune", [True, False])
def test_clouds_without_points(prune):
    full = cusink.Measures.of([np.random.default_rng(k).random((3, 2)) for k in range(40)])
    empty = cusink.Measures(np.array([0, 2, 4]), np.zeros(4), np.zeros((4, 2)))
    with pytest.warns(UserWarning, match="without weight"):
        distances, _ = cusink.nearest(empty, full, "sqeuclidean", k=2, eps=0.1, prune=prune)
    assert np.isnan(distances).all()
    nothing = cusink.Measures(np.array([0, 0, 0]), np.zeros(0), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="at least one point"):
        cusink.nearest(nothing, full, "sqeuclidean", k=2, eps=0.1, prune=prune)


def test_one_query_of_many_has_weight():
    A = csr_array(np.array([[0, 0], [1.0, 0], [0, 0]]))
    with pytest.warns(UserWarning, match="without weight"):
        distances, indices = cusink.nearest(A, FULL, C, k=2, eps=0.01)
    assert np.isnan(distances[[0, 2]]).all()
    np.testing.assert_allclose(distances[1], 0, atol=1e-6)
    np.testing.assert_array_equal(indices[1], [0, 2])


def test_empty_queries_can_be_refused():
    with pytest.raises(ValueError, match="on_empty"):
        cusink.nearest(EMPTY, FULL, C, k=1, eps=0.1, on_empty="raise")
