"""What `memory_limit` holds: the memory of costs in blocks in either dtype, and limits that are refused at once."""

import tracemalloc

import numpy as np
import pytest

import cusink

SIZE = 600
VECTORS = 20 * 8 * 2 * SIZE  # bytes of points, potentials and scalings, which docs/point-clouds.md counts beside it
RNG = np.random.default_rng(5)
X, Y = RNG.random((2, SIZE, 3)) + 0.01
LABELS, TABLE = tuple(RNG.integers(0, 3, (2, SIZE))), RNG.random((3, 3))
COSTS = {
    "kl": ("kl", {}),
    "minkowski": ("minkowski", {"p": 3}),
    "haversine": ("haversine", {}),
    "table": ("sqeuclidean", {"labels": LABELS, "table": TABLE}),
}
STORED = 8 * 5 * SIZE**2  # where costs are just stored
BATCH = np.full((3, SIZE), 1 / SIZE)
WORK = {
    "solve": lambda result: result.cost,
    "bounds": lambda result: result.bounds(),
    "map": lambda result: result.barycentric_map(np.ones(SIZE, result.f.dtype)),
    "adjoint": lambda result: cusink.sinkhorn_adjoint(result, grad_cost=1.0).a,
    "points": lambda result: cusink.sinkhorn_adjoint(result, grad_cost=1.0).x,
}


def peak(work):
    """Return what a call gives and the largest memory that it held beside what was there, after one to warm up."""
    work()
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [STORED, 2_000_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", COSTS)
def test_costs_in_blocks_keep_to_the_limit_in_either_dtype(name, dtype, limit):
    metric, given = COSTS[name]
    x, y = (points.astype(dtype)[:, : 2 if metric == "haversine" else 3] for points in (X, Y))
    C, a = cusink.PointCloud(x, y, metric, **given), BATCH[: 3 if limit == STORED else 1].astype(dtype)
    largest, stored = float(C.dense().max()), limit == STORED
    for share in (0.3, 0.002) if stored else (0.3,):  # the second one goes through all kernels

        def solved(share=share):
            options = {"tol": None, "max_iter": 30 if stored else 2, "memory_limit": limit, "check": False}
            return cusink.sinkhorn(a, a[0], C, eps=share * largest, **options)

        result, used = peak(solved)
        assert used < limit + VECTORS, used / limit
        for work in WORK if stored and share == 0.3 else ():
            used = peak(lambda result=result, work=work: WORK[work](result))[1]
            assert used < limit + VECTORS, (work, used / limit)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_costs_of_a_grid_that_are_stored_keep_to_the_limit(dtype):
    grid = cusink.Grid((30, 20), "euclidean", spacing=(tuple(RNG.random(29) + 0.5), tuple(RNG.random(19) + 0.5)))
    a = BATCH.astype(dtype)

    def solved():
        return cusink.sinkhorn(a, a[0], grid, eps=0.1, tol=None, max_iter=30, memory_limit=STORED, check=False)

    assert peak(solved)[1] < STORED + VECTORS


CLOUD = cusink.PointCloud(X, Y)
ONE, OTHER = cusink.Measures.of([X[:7], X]), cusink.Measures.of([Y[:5], Y[:9]])
CALLS = {
    "sinkhorn": lambda limit: cusink.sinkhorn(None, None, CLOUD, eps=0.1, memory_limit=limit),
    "divergence": lambda limit: cusink.sinkhorn_divergence(None, None, CLOUD, eps=0.1, memory_limit=limit),
    "pairs": lambda limit: cusink.sinkhorn(ONE, OTHER, "sqeuclidean", eps=0.1, memory_limit=limit),
    "divergences": lambda limit: cusink.sinkhorn_divergence(ONE, OTHER, "sqeuclidean", eps=0.1, memory_limit=limit),
    "barycenter": lambda limit: cusink.barycenter(BATCH, cusink.PointCloud(X), eps=0.1, memory_limit=limit),
    "free": lambda limit: cusink.free_barycenter(ONE, x=Y[:4], eps=0.1, max_iter=1, memory_limit=limit),
    "flow": lambda limit: cusink.gradient_flow(X, Y[:9], eps=0.1, max_iter=1, memory_limit=limit),
}


@pytest.mark.parametrize("limit", [0, 1, 100, 8 * SIZE - 1])
@pytest.mark.parametrize("name", CALLS)
def test_limits_below_a_row_are_refused_before_any_iteration(name, limit, monkeypatch):
    import cusink.backends.numpy.clouds.iteration as clouds
    from cusink.solver.pairs import solve

    def never(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr(clouds.Iteration, "__init__", never)
    monkeypatch.setattr(solve, "solve_together", never)
    with pytest.raises(ValueError, match=rf"'memory_limit' must hold a row of costs .*, 4800 bytes; got {limit}\. "):
        CALLS[name](limit)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # after one step
@pytest.mark.parametrize("name", CALLS)
def test_a_row_is_enough(name):
    few, many = (CALLS[name](limit) for limit in (8 * SIZE, None))
    for value in ("cost", "divergence", "barycenter", "points"):
        if hasattr(few, value):
            np.testing.assert_allclose(getattr(few, value), getattr(many, value), rtol=1e-5, atol=1e-9)
