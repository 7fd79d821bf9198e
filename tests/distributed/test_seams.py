"""Where parts and chunks meet: dtypes that differ, libraries, and arguments of the wrong kind."""

import numpy as np
import problems
import pytest
from scipy import sparse

import cusink

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("cusink.distributed")

C = problems.grid_cost(3, 3)
HOW = {"eps": 0.05, "tol": 1e-3}


@pytest.fixture(autouse=True)
def here():
    with dask.config.set(scheduler="synchronous"):
        yield


def histograms(count, seed, dtype):
    return problems.histograms(np.random.default_rng(seed), count, 9, 0.4).astype(dtype)


def measures(count, seed, dtype):
    rng = np.random.default_rng(seed)
    return cusink.Measures.of([rng.random((rng.integers(2, 5), 2)).astype(dtype) for _ in range(count)])


def documents(count, seed, dtype):
    return sparse.csr_array(histograms(count, seed, dtype))


MAKERS = {"histograms": (histograms, C), "documents": (documents, C), "measures": (measures, "euclidean")}


def cost_in(cost, dtype):
    return cost if isinstance(cost, str) else cost.astype(dtype)


@pytest.mark.parametrize("kind", MAKERS)
def test_wider_queries_are_looked_for_in_their_dtype(kind):
    make, cost = MAKERS[kind]
    cost, B, A = cost_in(cost, np.float32), make(9, 1, np.float32), make(3, 2, np.float64)
    how = HOW | {"normalise": True}  # each part would scale items to the mass of its first, which has few digits
    want = cusink.Index(B, cost, **how).search(A, 2)
    parts = distributed.Index([cusink.Index(B[rows], cost, **how) for rows in (slice(0, 5), slice(5, 9))])
    distances, indices = parts.search(A, 2)
    assert distances.dtype == want[0].dtype == np.float64
    np.testing.assert_array_equal(indices, want[1])
    np.testing.assert_allclose(distances, want[0], rtol=1e-9)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("cuts", [(9,), (5, 9), (2, 5, 9)], ids=["one part", "two", "three"])
def test_items_that_are_wider_than_the_parts_make_all_of_them_wider(cuts, kind, tmp_path):
    make, cost = MAKERS[kind]
    cost, B, more, A = cost_in(cost, np.float32), make(9, 1, np.float32), make(3, 2, np.float64), make(4, 3, np.float64)
    how = {"eps": 0.05, "tol": "auto", "normalise": True}  # which is smaller in float64
    whole = cusink.Index(B, cost, **how)
    whole.add(more)
    given = [cusink.Index(B[low:high], cost, **how) for low, high in zip((0, *cuts), cuts, strict=False)]
    parts = distributed.Index(given)
    parts.add(more)
    assert len(parts) == 12 and parts._common["tol"] == whole.tol
    assert all(part.dtype == np.float32 for part in given) and sum(map(len, given)) == 9
    parts.save(tmp_path / "parts")
    for index in (parts, distributed.Index.load(tmp_path / "parts")):  # which compares what they have in common
        for rows in (A, more, None):
            want, (distances, indices) = whole.search(rows, 4), index.search(rows, 4)
            assert distances.dtype == np.float64
            np.testing.assert_array_equal(indices, want[1])
            np.testing.assert_allclose(distances, want[0], rtol=1e-6, atol=1e-9)
    parts.add(more)  # once more is as ever
    assert len(parts) == 15


def test_items_that_do_not_fit_leave_all_parts_as_they_were():
    B = histograms(9, 1, np.float32)
    parts = distributed.Index([cusink.Index(B[rows], C.astype("f4"), **HOW) for rows in (slice(0, 5), slice(5, 9))])
    with pytest.raises(ValueError, match="mass"):
        parts.add(2 * histograms(3, 2, np.float64))
    assert len(parts) == 9 and parts.search(B[:2], 1)[0].dtype == np.float32


def test_a_metric_and_its_name_are_one_cost():
    B = MAKERS["measures"][0](8, 1, np.float64)
    named = [cusink.Index(B[:4], "sqeuclidean", **HOW), cusink.Index(B[4:], cusink.Metric("sqeuclidean"), **HOW)]
    assert len(distributed.Index(named)) == 8
    with pytest.raises(ValueError, match="cost"):
        distributed.Index([named[0], cusink.Index(B[4:], cusink.Metric("sqeuclidean", power=2), **HOW)])


@pytest.mark.parametrize("first", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MAKERS)
def test_collections_of_unlike_dtypes_are_compared_in_the_wider(kind, first):
    make, cost = MAKERS[kind]
    second = np.float32 if first is np.float64 else np.float64
    cost, A, B = cost_in(cost, np.float32), make(3, 1, first), make(9, 2, second)
    want = cusink.nearest(A, B, cost, k=2, **HOW)
    lazy = distributed.nearest(A, B, cost, k=2, **HOW)
    distances, indices = dask.compute(*lazy)
    assert lazy[0].dtype == distances.dtype == want[0].dtype == np.float64
    np.testing.assert_array_equal(indices, want[1])
    assert distances.tobytes() == want[0].tobytes()


def test_counts_take_the_dtype_of_the_call():
    counts = sparse.csr_array(np.random.default_rng(3).integers(1, 5, (9, 9)))
    cost, how = np.rint(4 * C).astype(int), HOW | {"eps": 0.5, "normalise": True}
    A = documents(3, 1, np.float32)
    want = cusink.nearest(A, counts, cost, k=2, **how)
    lazy = distributed.nearest(A, counts, cost, k=2, **how)
    distances, indices = dask.compute(*lazy)
    assert lazy[0].dtype == distances.dtype == want[0].dtype == np.float32
    np.testing.assert_array_equal(indices, want[1])
    np.testing.assert_allclose(distances, want[0], rtol=1e-6)


def test_words_named_twice_add_up_in_their_own_dtype():
    whole = documents(9, 1, np.float32)
    halves = sparse.csr_array(
        (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), 2 * whole.indptr), shape=whole.shape
    )
    A, before = documents(3, 2, np.float64), halves.data.copy()
    want = cusink.nearest(A, whole, C, k=2, **HOW)
    found = dask.compute(*distributed.nearest(A, halves, C, k=2, **HOW))
    assert found[0].tobytes() == want[0].tobytes() and found[1].tobytes() == want[1].tobytes()
    np.testing.assert_array_equal(halves.data, before)


class OnDevice:
    """Rows that, as those of CuPy, do not become NumPy's by themselves."""

    def __init__(self, rows):
        self.rows, self.shape = rows, rows.shape

    def __array__(self, *arguments, **keywords):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __getitem__(self, items):
        return OnDevice(self.rows[items])


def test_some_rows_stay_in_their_library():
    from cusink.distributed.parts import rows_of

    rows = np.arange(6.0).reshape(3, 2)
    chosen = np.array([True, False, True])
    found = rows_of(OnDevice(rows), chosen)
    assert isinstance(found, OnDevice)
    np.testing.assert_array_equal(found.rows, rows[[0, 2]])
    np.testing.assert_array_equal(rows_of(rows.tolist(), chosen), rows[[0, 2]])


@pytest.mark.parametrize("metric", ["euclidean", cusink.Metric("euclidean")])
def test_a_metric_for_arrays_is_told_what_it_goes_with(metric):
    A = histograms(3, 1, np.float64)
    for call in (
        lambda: distributed.distance_matrix(A, None, metric, **HOW),
        lambda: distributed.nearest(A, None, metric, k=1, **HOW),
    ):
        with pytest.raises(TypeError, match=r"'C' must be an array of costs.* the metric .*cusink\.Measures"):
            call()


@pytest.mark.parametrize("narrow", ["A", "B"])
def test_masses_are_judged_by_the_narrower_dtype(narrow):
    A, B = histograms(3, 1, np.float64), histograms(9, 2, np.float64)
    B[4] *= 1 + 3e-5  # more than float64 may differ, and less than float32
    given = {"A": A, "B": B}
    given[narrow] = given[narrow].astype(np.float32)
    for cost in (C, C.astype(np.float32)):
        want = cusink.nearest(**given, C=cost, k=2, **HOW)
        distances, indices = dask.compute(*distributed.nearest(**given, C=cost, k=2, **HOW))
        assert distances.tobytes() == want[0].tobytes() and indices.tobytes() == want[1].tobytes()
    for wrong, said in ((B[4] * 1.01, "the same mass .relative 0.001.*'B' row 4"), (-B[4], "non-negative")):
        given["B"] = given["B"].copy()
        given["B"][4] = wrong
        with pytest.raises(ValueError, match=said):
            dask.compute(*distributed.nearest(**given, C=C, k=2, **HOW))
