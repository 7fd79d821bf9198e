"""An index of float32 that meets float64: the answers are those of float64, as the array API standard promotes."""

import pickle

import numpy as np
import pytest
from retrieval.test_nearest import EPS, collection
from retrieval.test_search import topical, topics

import cusink

VALUES = ["cost", "reg_cost", "entropic_cost", "divergence"]


def clouds(count, seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 1, 2)) * 3
    return cusink.Measures.of([centre + 0.3 * rng.normal(size=(rng.integers(2, 6), 2)) for centre in centres])


def narrow(x):
    """Return a collection or a cost in float32."""
    if isinstance(x, cusink.Measures):
        return cusink.Measures(x.offsets, x.weights.astype("f4"), x.points.astype("f4"))
    if isinstance(x, cusink.PointCloud):
        return cusink.PointCloud(x.x.astype("f4"), metric=x.metric)
    return x.astype("f4") if hasattr(x, "astype") else x


def kinds():
    A, B, C = collection(4, 60)
    cells = np.indices((6, 6)).reshape(2, -1).T / 10
    some = {"eps": EPS}
    yield "dense", A, B, C, some
    yield "grid", A, B, cusink.Grid((6, 6), spacing=0.1), some
    yield "cloud", A, B, cusink.PointCloud(cells, metric="euclidean"), some
    yield "normalised", 7 * A, 3 * B, C, some | {"normalise": True}
    yield "reach", 7 * A, 3 * B, C, some | {"reach": 0.5, "tol": 1e-6}
    yield "sparse", topical(4, 1), topical(60, 2), cusink.cost_matrix(topics(), metric="euclidean"), {"eps": 0.2}
    yield "measures", clouds(4, 1), clouds(60, 2), "euclidean", {"eps": 0.05}


KINDS = {name: rest for name, *rest in kinds()}


@pytest.mark.parametrize(
    ("kind", "value"),
    [(kind, value) for kind in KINDS for value in VALUES if (kind, value) != ("reach", "entropic_cost")],
)
def test_queries_of_float64(kind, value):
    A, B, C, options = KINDS[kind]
    options = options | {"value": value}
    index = cusink.Index(narrow(B), narrow(C), **options)
    want = cusink.nearest(A, narrow(B), narrow(C), k=3, full_output=True, **options)
    found = index.search(A, 3, full_output=True)
    np.testing.assert_array_equal(found.indices, want.indices)
    assert found.distances.dtype == want.distances.dtype == np.float64
    np.testing.assert_allclose(found.distances, want.distances, rtol=1e-6, atol=1e-9)
    assert found.converged.all() and found.error.max() <= 1e-6  # the tolerance of float64
    # All is as it was for queries of float32.
    assert index.dtype == np.float32
    single = index.search(narrow(A), 3)
    assert single[0].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_float64_make_an_index_of_float64(kind, tmp_path):
    A, B, C, options = KINDS[kind]
    index = cusink.Index(narrow(B), narrow(C), **options)
    index.search(A, 3)  # whose copy in float64 lacks what comes
    index.add(A)
    assert index.dtype == np.float64 and len(index) == 64
    distances, indices = index.search(narrow(A), 2)
    assert distances.dtype == np.float64
    if kind in ("sparse", "measures"):
        np.testing.assert_array_equal(indices[:, 0], 60 + np.arange(4))  # themselves
        np.testing.assert_array_equal(index.search(A, 2)[1][:, 0], 60 + np.arange(4))
    else:
        every = np.concatenate([narrow(B), A])
        want = cusink.nearest(narrow(A), every, narrow(C), k=2, **options)
        np.testing.assert_array_equal(indices, want[1])
        np.testing.assert_allclose(distances, want[0], rtol=1e-6, atol=1e-9)
    index.save(tmp_path / "index")
    loaded = cusink.Index.load(tmp_path / "index")
    np.testing.assert_array_equal(loaded.search(narrow(A), 2)[0], distances)


def test_masses_are_judged_as_those_of_float32():
    """Items differ by more than float64 allows, and by less than float32 does."""
    A, B, C = collection(3, 40)
    B = (B * (1 + 1e-5 * np.arange(40)[:, None] / 40)).astype("f4")
    index = cusink.Index(B[1:], C.astype("f4"), eps=EPS)
    want = cusink.nearest(A * 1.0001, B[1:], C.astype("f4"), k=3, eps=EPS)
    np.testing.assert_array_equal(index.search(A * 1.0001, 3)[1], want[1])
    index.add(A * 1.0001)
    assert len(index) == 42
    with pytest.raises(ValueError, match="the index has 1 and 'A' row 0 has 1.1"):
        index.search(1.1 * A, 3)


def test_lists_follow_the_items_and_tolerances_stay():
    A, B, C = collection(3, 40)
    index = cusink.Index(B.astype("f4"), C.astype("f4"), eps=EPS, tol=1e-3)
    assert index.search(A.tolist(), 2)[0].dtype == np.float32
    found = index.search(A, 2, full_output=True)
    assert found.distances.dtype == np.float64 and found.error.max() > 1e-6


def test_items_without_queries_come_back_in_their_library():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    _, B, C = collection(3, 40)
    single = B.astype("f4")
    want = cusink.nearest(single, None, C.astype("f4"), k=2, eps=EPS)
    for make, kind in ((torch.from_numpy, torch.Tensor), (jax.numpy.asarray, jax.Array)):
        index = cusink.Index(make(single), C.astype("f4"), eps=EPS)
        for other in (index, pickle.loads(pickle.dumps(index))):
            distances, indices = other.search(None, 2)
            assert isinstance(distances, kind) and isinstance(indices, kind)
            np.testing.assert_array_equal(np.asarray(indices), want[1])
            assert isinstance(other.search(None, 2, full_output=True).proved, kind)
            assert isinstance(other.search(single, 2)[0], np.ndarray)  # the queries decide
        index.add(make(single[:2]))
        assert len(index) == 42 and isinstance(index.search(None, 2)[0], kind)
