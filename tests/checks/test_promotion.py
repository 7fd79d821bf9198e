"""float32 beside float64 is computed in float64, as if all had come so; of an earlier call nothing becomes wider."""

import numpy as np
import pytest
import scipy.sparse

import cusink

RNG = np.random.default_rng(0)
A, B = RNG.dirichlet(np.ones(6), 4), RNG.dirichlet(np.ones(6), 5)
X, Y = RNG.random((6, 2)), RNG.random((6, 2))
C = cusink.cost_matrix(X)
OFFSETS = np.array([0, 2, 6])


def cloud_of(points, others):
    return cusink.PointCloud(points, others)


CALLS = {
    "weights": lambda a, b: cusink.sinkhorn(a(A[0]), b(B[0]), b(C), eps=0.1),
    "costs": lambda a, b: cusink.sinkhorn(b(A), b(B[0]), a(C), eps=0.1),
    "start": lambda a, b: cusink.sinkhorn(b(A[0]), b(B[0]), b(C), eps=0.1, init=(a(A[0]), b(B[0]))),
    "points": lambda a, b: cusink.sinkhorn(None, None, cloud_of(a(X), b(Y)), eps=0.1),
    "weights of points": lambda a, b: cusink.sinkhorn(b(A[0]), None, cloud_of(a(X), a(Y)), eps=0.1),
    "new points": lambda a, b: cusink.sinkhorn(b(A[0]), None, cloud_of(a(X), a(Y)), eps=0.1).at(a(X[:2])).map(),
    "divergence": lambda a, b: cusink.sinkhorn_divergence(a(A), b(B[0]), a(C), eps=0.1),
    "own costs": lambda a, b: cusink.sinkhorn_divergence(b(A), b(B[0]), b(C), eps=0.1, C_aa=a(C), C_bb=b(C)),
    "divergence of points": lambda a, b: cusink.sinkhorn_divergence(b(A[0]), None, cloud_of(a(X), a(Y)), eps=0.1),
    "barycenter": lambda a, b: cusink.barycenter(a(A), a(C), b(np.full(4, 0.25)), eps=0.1),
    "cost_matrix": lambda a, b: cusink.cost_matrix(a(X), b(Y)),
    "kernel": lambda a, b: cusink.kernel_product(a(X), b(Y), a(B[0])),
    "distance_matrix": lambda a, b: cusink.distance_matrix(a(A), a(B), b(C), eps=0.1, full_output=True),
    "two collections": lambda a, b: cusink.distance_matrix(a(A), b(B), a(C), eps=0.1, value="divergence"),
    "nearest": lambda a, b: cusink.nearest(a(A), a(B), b(C), k=2, eps=0.1, full_output=True),
    "documents": lambda a, b: cusink.distance_matrix(
        scipy.sparse.csr_array(a(A)), scipy.sparse.csr_array(b(B)), a(C), eps=0.1
    ),
    "measures": lambda a, b: cusink.distance_matrix(
        cusink.Measures(OFFSETS, None, a(X)), cusink.Measures(OFFSETS, None, b(Y)), "euclidean", eps=0.1
    ),
    "index": lambda a, b: cusink.Index(a(B), b(C), eps=0.1).search(a(A), 2),
    "index of documents": lambda a, b: cusink.Index(scipy.sparse.csr_array(a(B)), b(C), eps=0.1).search(
        scipy.sparse.csr_array(a(A)), 2
    ),
}


def single(x):
    return x.astype(np.float32)


def rounded(x):
    """Return what float32 holds of x, in float64."""
    return single(x).astype(np.float64)


def numbers(found):
    """Return the arrays of a result."""
    if hasattr(found, "__dataclass_fields__"):
        found = [getattr(found, name) for name in found.__dataclass_fields__ if name not in ("problem", "problems")]
    if isinstance(found, (list, tuple)):
        return [array for part in found for array in numbers(part)]
    return [found] if isinstance(found, (np.ndarray, np.generic)) else []


@pytest.mark.parametrize("call", CALLS)
def test_the_result_is_that_of_float64(call):
    found, wanted = (numbers(CALLS[call](kind, np.asarray)) for kind in (single, rounded))
    assert found and len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype != np.float32
        np.testing.assert_array_equal(got, want)


RESULT = cusink.sinkhorn(A, B[:4], cloud_of(X, Y), eps=0.1)
DIVERGENCE = cusink.sinkhorn_divergence(A, B[:4], cusink.PointCloud(X), eps=0.1)
MEAN = cusink.barycenter(A, C, eps=0.1)
OF_RESULTS = {
    "apply": lambda kind: RESULT.apply(kind(A), axis=0),
    "barycentric_map": lambda kind: RESULT.barycentric_map(kind(Y)),
    "at": lambda kind: RESULT.at(kind(X)).map(),
    "adjoint of values": lambda kind: cusink.sinkhorn_adjoint(RESULT, grad_cost=kind(A[:, 0])),
    "adjoint of potentials": lambda kind: cusink.sinkhorn_adjoint(RESULT, grad_f=kind(A)),
    "adjoint of the plan": lambda kind: cusink.sinkhorn_adjoint(RESULT, grad_plan=kind(C)),
    "jvp": lambda kind: cusink.sinkhorn_jvp(RESULT, dx=kind(X), da=kind(A)),
    "adjoint of a map": lambda kind: cusink.barycentric_map_adjoint(RESULT, kind(Y), kind(np.stack([X] * 4))),
    "adjoint of divergences": lambda kind: cusink.sinkhorn_divergence_adjoint(DIVERGENCE, grad=kind(A[:, 0])),
    "adjoint of a barycenter": lambda kind: cusink.barycenter_adjoint(
        cusink.barycenter(A, C, eps=0.1), grad_barycenter=kind(A[0])
    ),
    "potentials": lambda kind: cusink.SinkhornResult.from_potentials(A, B[:4], C, eps=0.1, f=kind(A)),
    "adjoint of a kernel": lambda kind: cusink.kernel_product_adjoint(X, Y, B[0], kind(A[0])),
}


@pytest.mark.parametrize("call", OF_RESULTS)
def test_narrower_arrays_beside_a_result_are_widened(call):
    found, wanted = (numbers(OF_RESULTS[call](kind)) for kind in (single, rounded))
    assert found
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_wider_arrays_beside_a_result_are_refused():
    narrow = cusink.sinkhorn(single(A), single(B[:4]), single(C), eps=0.1)
    for call in (
        lambda: narrow.apply(A, axis=0),
        lambda: narrow.barycentric_map(Y),
        lambda: cusink.sinkhorn_adjoint(narrow, grad_f=A),
        lambda: cusink.sinkhorn_jvp(narrow, da=A),
    ):
        with pytest.raises(TypeError, match=r"share one dtype; '.*' is float64 and '(plan|result)' is float32"):
            call()


def test_masses_are_judged_by_the_digits_of_the_weights():
    """Weights that float32 normalised have masses that differ by more than float64 allows."""
    a, b = single(A[0]), single(B[0]) * np.float32(1 + 1e-5)
    assert cusink.sinkhorn(a, b, C, eps=0.1).converged
    assert np.isfinite(cusink.distance_matrix(np.stack([a, b]), None, C, eps=0.1)).all()
    assert cusink.barycenter(np.stack([a, b]), C, eps=0.1).converged
    with pytest.raises(ValueError, match="same mass"):
        cusink.sinkhorn(a.astype(float), b.astype(float), C, eps=0.1)


def test_half_precision_stays_apart():
    index = cusink.Index(B.astype(np.float16), C.astype(np.float16), eps=0.1)
    for call in (lambda: index.search(A, 2), lambda: index.add(A)):
        with pytest.raises(TypeError, match="share one dtype; .* is float64 and 'the index' is float16"):
            call()
    with pytest.raises(TypeError, match="share one dtype"):
        cusink.sinkhorn(A[0].astype(np.float16), B[0], C, eps=0.1)


def test_grids_are_equal_where_they_say_the_same():
    grid = cusink.Grid((3, 4), spacing=2)
    assert grid == cusink.Grid([3, 4], spacing=(2.0, 2.0)) and hash(grid) == hash(cusink.Grid((3, 4), spacing=2.0))
    others = (cusink.Grid((4, 3), spacing=2), cusink.Grid((3, 4)), cusink.Grid((3, 4), "cityblock", spacing=2))
    assert grid not in (*others, cusink.Grid((3, 4), spacing=2, periodic=True), (3, 4))
