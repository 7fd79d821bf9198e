"""Equal rows of B have the very same distance, and come in the order of their indices."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import cusink

C = (np.arange(8.0)[:, None] - np.arange(8.0)[None]) ** 2 / 49


def items(dtype, count=40, contents=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(8), contents).astype(dtype)[rng.integers(0, contents, count)]


def collection(kind, A):
    if kind == "measures":
        points = np.arange(8.0, dtype=A.dtype)[:, None] / 7
        return cusink.Measures.of([points] * len(A), list(A)).normalised(), "sqeuclidean"
    return (csr_array(A) if kind == "documents" else A), C.astype(A.dtype)


def broken(A, distances, indices):
    """Return the rows in which equal neighbours have unequal distances, or come out of order."""
    unequal, disordered = [], []
    for row, (values, columns) in enumerate(zip(distances, indices, strict=True)):
        for content in {A[j].tobytes() for j in columns}:
            group = [(v, int(j)) for v, j in zip(values, columns, strict=True) if A[j].tobytes() == content]
            if len({v for v, _ in group}) > 1:
                unequal.append(row)
            if [j for _, j in group] != sorted(j for _, j in group):
                disordered.append(row)
    return unequal, disordered


@pytest.mark.parametrize("against", ["None", "itself", "another"])
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("kind", ["histograms", "documents", "measures"])
@pytest.mark.parametrize("value", ["cost", "reg_cost", "divergence"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_neighbours(dtype, value, kind, prune, against):
    A = items(dtype)
    given, cost = collection(kind, A)
    others = collection(kind, items(dtype, 7, 7, seed=1))[0]
    left, right = (given, None) if against == "None" else (given, given) if against == "itself" else (others, given)
    distances, indices = cusink.nearest(left, right, cost, k=12, eps=0.05, value=value, prune=prune)
    unequal, disordered = broken(A, distances, indices)
    assert not unequal and not disordered, f"unequal in rows {unequal}, out of order in {disordered}"


@pytest.mark.parametrize("options", [{}, {"method": "log"}, {"tol": None, "max_iter": 20}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_neighbours_where_all_pairs_are_solved(dtype, options):
    A = items(dtype, contents=3)
    distances, indices = cusink.nearest(A, None, C.astype(dtype), k=12, eps=0.05, prune=False, **options)
    unequal, disordered = broken(A, distances, indices)
    assert not unequal and not disordered, f"unequal in rows {unequal}, out of order in {disordered}"
