"""Bounds on `cost` by concavity in eps: true against float64 optima, near where they are to be near, and of use."""

import numpy as np
import pytest
import reference
from problems import grid_cost

import cusink
from cusink.convergence.options import Options
from cusink.retrieval import bounds as retrieval_bounds
from cusink.retrieval import concavity
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.collections import check_collections

QUERIES, ITEMS = 3, 40


def collections(dtype=np.float64, mass=1.0, seed=0):
    """Blots of many shapes on a grid of cells, with empty cells, and the cost between cells."""
    rng = np.random.default_rng(seed)
    C = grid_cost(5, 5)
    C /= C.max()
    centres = rng.integers(25, size=QUERIES + ITEMS)
    rows = np.exp(-C[centres] / rng.uniform(0.02, 0.2, size=(len(centres), 1))) * rng.random((len(centres), 25))
    rows *= rng.random(rows.shape) > 0.3
    rows[:, 12] += 0.05
    rows *= mass / rows.sum(axis=1, keepdims=True)
    rows, C = rows.astype(dtype), C.astype(dtype)
    return rows[:QUERIES], rows[QUERIES:], C


def enclosed(A, B, C, eps, enough=np.inf, tol=1e-6):
    pairs = check_collections(A, B, C, eps=eps, check=True)
    batches = PairBatches(pairs, "cost", Options(), 1024)
    centres = retrieval_bounds.prototypes(pairs.B, batches.columns, np)
    mass = float(A[0].sum(dtype=float))
    slack = retrieval_bounds.slack(pairs, tol, mass, float(B[B > 0].min()))
    bounds = retrieval_bounds.RowBounds(pairs, batches, np.arange(len(A)), centres, True, slack)
    before = bounds.lower.copy()
    at, columns = np.divmod(np.arange(len(A) * len(B)), len(B))
    bounds.enclose(at, columns, np.full(len(at), enough))
    return before, bounds.lower, slack


def optima(A, B, C, eps, mass=1.0):
    """Return the exact costs, of weights that have the same mass to the last digit."""
    A, B = (x.astype(float) / x.sum(axis=1, dtype=float, keepdims=True) for x in (A, B))
    return mass * np.array([[reference.optimum(a, b, C.astype(float), eps).cost for b in B] for a in A])


@pytest.mark.parametrize(
    ("dtype", "mass", "eps"),
    [(np.float64, 1.0, 0.01), (np.float64, 7.0, 0.05), (np.float32, 1.0, 0.02), (np.float64, 1.0, 0.5)],
)
def test_bounds_hold_and_come_near(dtype, mass, eps):
    A, B, C = collections(dtype, mass)
    exact = optima(A[:2], B[:4], C, eps, mass)
    transport, lower, slack = enclosed(A, B, C, eps)
    transport, lower = transport[:2, :4], lower[:2, :4]
    assert (lower <= exact + slack / 10).all()
    # The last stage leaves a tenth of the gap of a cut on the transport cost, or little beside eps.
    gap = exact - lower
    assert np.median(gap) < max(0.25 * np.median(exact - transport), 5 * slack)
    assert (lower >= transport).all() and (lower > transport).mean() > 0.9


@pytest.mark.parametrize("stage", concavity.STAGES)
def test_every_stage_bounds_by_itself(monkeypatch, stage):
    A, B, C = collections(seed=1)
    monkeypatch.setattr(concavity, "STAGES", (stage._replace(at_eps=14),))
    transport, lower, _ = enclosed(A, B, C, 0.05)
    assert (lower[:1, :5] <= optima(A[:1], B[:5], C, 0.05)).all()
    assert (lower > transport).mean() > 0.9


def test_the_upper_bound_is_the_value_of_a_plan_and_the_lower_one_of_potentials():
    """Each half by itself, far from convergence too, in both precisions."""
    A, B, C = collections(seed=2)
    a, b, eps = np.repeat(A[:1], 5, axis=0).T, B[:5].T, 0.05
    bounds = concavity.ConcavityBounds(np, C, eps, 0.0)
    want = np.array([reference.optimum(A[0], item, C, eps).reg_cost for item in B[:5]]) / eps
    want_t = np.array([reference.optimum(A[0], item, 1.5 * C, eps).reg_cost for item in B[:5]]) / eps
    gaps = []
    for count in (1, 3, 12):
        _, V = bounds._iterate(1.0, *(x.astype(np.float32) for x in (a, b)), None, b.astype(np.float32), count)
        for dtype in (np.float32, np.float64):
            above, log_V = bounds._above(*(np.ascontiguousarray(x, dtype) for x in (a, b, V)))
            below = bounds._below(1.5, *(np.ascontiguousarray(x, dtype) for x in (a, b, V)))
            rounding = 1e-4 if dtype == np.float32 else 1e-12
            assert (above >= want - rounding).all() and (below <= want_t + rounding).all()
            np.testing.assert_allclose(np.exp(log_V)[b == 0], 1)
        gaps.append(np.median(above - want))
    assert gaps[0] > 2 * gaps[1] > 8 * gaps[2]


def test_what_is_enough_stops_and_what_overflows_bounds_nothing():
    A, B, C = collections(seed=3)
    _, first, _ = enclosed(A, B, C, 0.02, enough=-np.inf)  # the first stage is enough for all
    _, last, _ = enclosed(A, B, C, 0.02)
    assert (last >= first).all() and (last > first).mean() > 0.5
    bounds = concavity.ConcavityBounds(np, C, 0.001, 0.0)  # far too steep
    found = bounds.bounds(A[:1], B[:1], np.full((1, 25), np.inf, np.float32), np.array([np.inf]))
    assert found[0] == -np.inf


@pytest.mark.parametrize(("dtype", "eps"), [(np.float64, 0.01), (np.float32, 0.03), (np.float64, 0.2)])
def test_searches_by_them_find_what_the_matrix_has(dtype, eps):
    A, B, C = collections(dtype, seed=4)
    options = {"eps": eps, "value": "cost", "tol": 1e-4 if dtype == np.float32 else 1e-6}
    matrix = cusink.distance_matrix(A, B, C, **options)
    found = cusink.nearest(A, B, C, k=3, full_output=True, **options)
    np.testing.assert_array_equal(found.indices, np.argsort(matrix, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(matrix, axis=1)[:, :3], rtol=options["tol"])
    assert found.pruning == "dual" and found.finished < 0.7 * matrix.size
    assert found.proved.all() and found.converged.all()


def test_a_steep_cost_is_left_to_bounds_on_the_transport_cost():
    A, B, C = collections(seed=5)
    pairs = check_collections(A, B, C, eps=1 / (concavity.STEEPEST + 1), check=True)
    batches = PairBatches(pairs, "cost", Options(), 1024)
    centres = retrieval_bounds.prototypes(pairs.B, batches.columns, np)
    bounds = retrieval_bounds.RowBounds(pairs, batches, np.arange(2), centres, True, 1e-6)
    assert bounds.by_concavity is None
