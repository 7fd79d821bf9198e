"""The same bytes whenever and wherever a call runs; inputs as they were; memory within its limit."""

import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import problems
import pytest
import scipy.sparse

import cusink
from cusink.retrieval import tiles as retrieval_tiles

rng = np.random.default_rng(0)
C = problems.grid_cost(4, 4)
A, B = problems.histograms(rng, 14, 16, 0.4), problems.histograms(rng, 11, 16, 0.4)
X, Y = rng.random((2, 40, 2))
WORDS = [scipy.sparse.csr_array(x) for x in (A, B)]
CLOUDS = [cusink.Measures.of(list(x.reshape(8, 5, 2))) for x in (X, Y)]


def gradients(result, **cotangents):
    """List the gradients of a result as arrays."""
    found = cusink.sinkhorn_adjoint(result, **cotangents)
    return [x for name in ("a", "b", "C", "x", "y", "eps") if (x := getattr(found, name)) is not None]


def solved(cost, a=A[:11], b=B, **options):
    """List the arrays of a solve."""
    result = cusink.sinkhorn(a, b, cost, eps=0.05, tol=1e-4, **options)
    return [result.f, result.g, result.cost, result.error, result.n_iter, result.plan()]


PAIRS = {"eps": 0.05, "tol": 1e-4}
CALLS = {
    "dense": lambda: solved(C),
    "log": lambda: solved(C, method="log"),
    "a cost each": lambda: solved(np.stack([C * (1 + k / 10) for k in range(11)])),
    "cloud": lambda: solved(cusink.PointCloud(X, Y), None, None),
    "grid": lambda: solved(cusink.Grid((4, 4))),
    "unbalanced": lambda: solved(C, reach=1.0),
    "gradients": lambda: gradients(cusink.sinkhorn(A[:11], B, C, **PAIRS), grad_cost=np.ones(11)),
    "gradients of a cloud": lambda: gradients(
        cusink.sinkhorn(None, None, cusink.PointCloud(X, Y), **PAIRS), grad_cost=1.0
    ),
    "divergence": lambda: [cusink.sinkhorn_divergence(A[:11], B, C, **PAIRS).divergence],
    "matrix": lambda: [cusink.distance_matrix(A, B, C, memory_limit=60_004, **PAIRS)],
    "matrix of divergences": lambda: [cusink.distance_matrix(A, None, C, value="divergence", **PAIRS)],
    "neighbours": lambda: list(cusink.nearest(A, B, C, k=3, **PAIRS)),
    "documents": lambda: [cusink.distance_matrix(*WORDS, C, **PAIRS), *cusink.nearest(*WORDS, C, k=2, **PAIRS)],
    "measures": lambda: [cusink.distance_matrix(*CLOUDS, "sqeuclidean", **PAIRS)],
    "barycenter": lambda: [cusink.barycenter(A, C, eps=0.1, tol=1e-4).barycenter],
}


def bytes_of(arrays):
    """Every byte of some arrays."""
    return [np.ascontiguousarray(x).tobytes() for x in arrays]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_bytes_again_and_in_many_threads_at_once(name):
    want = bytes_of(CALLS[name]())
    assert bytes_of(CALLS[name]()) == want
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: bytes_of(CALLS[name]()), range(4)):
            assert found == want


def test_different_calls_at_once_do_not_touch_each_other():
    want = {name: bytes_of(call()) for name, call in CALLS.items()}
    with ThreadPoolExecutor(8) as pool:
        names = [name for name in CALLS for _ in range(2)]
        for name, found in zip(names, pool.map(lambda name: bytes_of(CALLS[name]()), names), strict=True):
            assert found == want[name], name


FAR, TOWARDS = np.arange(60.0)[:, None] / 6, np.linspace(-1.0, 1.0, 60)
APART, RISING = (FAR - FAR.T) ** 2, np.tile((TOWARDS + 2) / 120, (3, 1))  # up to 2000 eps


def late(cost, a, b, **options):
    """List what is computed of a solve when it is first asked for."""
    result = cusink.sinkhorn(a, b, cost, eps=0.05, **options)
    moves = cusink.sinkhorn_hvp(result, grad_reg_cost=1.0, da=np.broadcast_to(TOWARDS, result.f.shape))
    return [result.f, result.cost, result.plan(), moves.a, moves.eps, *gradients(result, grad_reg_cost=1.0)]


UNDERFLOWING = {
    "dense": lambda: late(APART, RISING, RISING),
    "log": lambda: late(APART, RISING, RISING, method="log"),
    "cloud": lambda: late(cusink.PointCloud(FAR, FAR), RISING, RISING),
    "unbalanced": lambda: late(APART, RISING, RISING, reach=1.0),
    "divergence": lambda: [cusink.sinkhorn_divergence(RISING, RISING[:, ::-1], APART, eps=0.05).divergence],
}


@pytest.mark.parametrize("name", UNDERFLOWING)
def test_a_caller_who_lets_floating_point_errors_raise_gets_the_same_bytes(name):
    want = bytes_of(UNDERFLOWING[name]())
    with np.errstate(all="raise"):
        assert bytes_of(UNDERFLOWING[name]()) == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_gives_the_same_bytes(tmp_path):
    """After calls of the parent, whose caches and threads the child inherits or lacks."""
    code = """
import os, sys
sys.path[:0] = sys.argv[1:]
import test_calls as t
want = {name: t.bytes_of(call()) for name, call in t.CALLS.items()}
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(t.bytes_of(call()) == want[name] for name, call in t.CALLS.items()) else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child has other bytes"
assert all(t.bytes_of(call()) == want[name] for name, call in t.CALLS.items())
"""
    here, package = Path(__file__).parent, Path(cusink.__file__).parents[1]
    command = [sys.executable, "-c", code, *map(str, (package, here, here.parent))]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", ["cost", "divergence"])
def test_tiles_in_any_order_give_the_same_bytes(monkeypatch, symmetric, value):
    def call():
        return cusink.distance_matrix(A, None if symmetric else B, C, value=value, memory_limit=20_000, **PAIRS)

    want, original, orders = call().tobytes(), retrieval_tiles.tiles, []

    def shuffled(*args):
        found = list(original(*args))
        order = np.random.default_rng(len(orders)).permutation(len(found))
        orders.append(order.tolist())
        return [found[k] for k in order]

    monkeypatch.setattr(retrieval_tiles, "tiles", shuffled)
    for _ in range(3):
        assert call().tobytes() == want
    assert len(orders[0]) > 4 and all(order != sorted(order) for order in orders)


def test_no_call_writes_to_its_inputs():
    inputs = [A, B, C, X, Y, *(x.data for x in WORDS), *(x.points for x in CLOUDS), *(x.weights for x in CLOUDS)]
    before = bytes_of(inputs)
    for call in CALLS.values():
        call()
    assert bytes_of(inputs) == before


@pytest.mark.parametrize("name", ["divergence", "divergence of clouds", "barycenter", "matrix", "neighbours"])
def test_results_of_many_problems_keep_no_view_of_their_inputs(name):
    a, b, costs, x, y = (v.copy() for v in (A[:11], B, C, X, Y))
    if name.startswith("divergence"):
        cost = cusink.PointCloud(x) if name != "divergence" else costs
        weights = (a, b) if name == "divergence" else (None, None)
        result = cusink.sinkhorn_divergence(*weights, cost, **PAIRS)

        def tell():
            found = cusink.sinkhorn_divergence_adjoint(result, grad=np.ones_like(result.divergence))
            return [result.divergence, found.a, found.b]

    else:
        result = {
            "barycenter": lambda: [cusink.barycenter(a, costs, eps=0.1, tol=1e-4).barycenter],
            "matrix": lambda: [cusink.distance_matrix(a, b, costs, **PAIRS)],
            "neighbours": lambda: list(cusink.nearest(a, b, costs, k=3, **PAIRS)),
        }[name]()

        def tell():
            return result

    want = bytes_of(tell())
    for v in (a, b, costs, x, y):
        v[...] = v[::-1] + 1
    assert bytes_of(tell()) == want
    assert not any(np.shares_memory(v, w) for v in (a, b, costs, x, y) for w in tell())


def test_measures_keep_no_view_of_their_points():
    x, w = X.copy(), np.full(40, 1 / 20)
    made = cusink.Measures.of([x[:20], x[20:]], [w[:20], w[20:]])
    want = bytes_of([cusink.distance_matrix(made, None, "sqeuclidean", **PAIRS)])
    x[...], w[...] = 0.5, 0.7
    assert bytes_of([cusink.distance_matrix(made, None, "sqeuclidean", **PAIRS)]) == want


def test_free_barycenters_keep_no_view_of_their_inputs():
    x, a, points, weights = X[:6].copy(), np.full(6, 1 / 6), X.copy(), np.full(len(X), 2 / len(X))
    measures = cusink.Measures([0, len(X) // 2, len(X)], weights, points)
    result = cusink.free_barycenter(measures, x=x, a=a, eps=0.1, max_iter=20, tol=1e-2)

    def tell():
        grads = cusink.free_barycenter_adjoint(result, grad_points=np.ones((6, X.shape[1])))
        return [result.points, result.weights, grads.y, grads.weights]

    want = bytes_of(tell())
    for v in (x, a, points, weights):
        v[...] = v[::-1] + 1
    assert bytes_of(tell()) == want
    assert not any(np.shares_memory(v, w) for v in (x, a, points, weights) for w in tell())


@pytest.mark.parametrize("name", ["dense", "log", "unbalanced", "cloud", "grid"])
def test_an_interrupt_leaves_nothing_behind(name):
    """Ctrl-C in a callback ends the call at once; the next one gives the bytes that it always gave."""
    want = bytes_of(CALLS[name]())
    arguments = {"dense": (C, {}), "log": (C, {"method": "log"}), "unbalanced": (C, {"reach": 1.0})}
    arguments |= {"cloud": (cusink.PointCloud(X, Y), {}), "grid": (cusink.Grid((4, 4)), {})}
    cost, options = arguments[name]
    weights = (None, None) if name == "cloud" else (A[:11], B)
    seen = []

    def stop(done, error):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cusink.sinkhorn(*weights, cost, callback=stop, **PAIRS, **options)
    assert len(seen) == 1
    assert bytes_of(CALLS[name]()) == want


def peak(call):
    """Return the largest memory that Python and NumPy took at a time in a call, beyond what was there."""
    tracemalloc.start()
    try:
        kept = call()
        return tracemalloc.get_traced_memory()[1] if kept is not None else None
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("forbidden", [False, True])
def test_documents_with_a_large_cost_keep_to_the_memory_limit(forbidden):
    """The input does not count; no array of its size is made."""
    many = 1500
    points = np.random.default_rng(1).random((many, 2))
    costs = ((points[:, None] - points) ** 2).sum(axis=-1)
    if forbidden:
        costs[0, 1] = costs[1, 0] = np.inf
    chosen = np.random.default_rng(2).integers(2, many, (45, 10))
    rows = np.zeros((45, many))
    np.put_along_axis(rows, chosen, 0.1, axis=1)
    rows /= rows.sum(axis=1, keepdims=True)
    first, second = scipy.sparse.csr_array(rows[:5]), scipy.sparse.csr_array(rows[5:])
    limit = 2_000_000
    assert costs.nbytes > 8 * limit
    for call in (
        lambda: cusink.distance_matrix(first, second, costs, memory_limit=limit, **PAIRS),
        lambda: cusink.distance_matrix(first, None, costs, memory_limit=limit, value="divergence", **PAIRS),
        lambda: cusink.nearest(first, second, costs, k=3, memory_limit=limit, **PAIRS),
    ):
        call()  # modules that are imported now do not count
        assert peak(call) < limit


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("cotangents", [{"grad_cost": 1.0}, {"grad_reg_cost": 1.0}])
def test_gradients_of_a_cloud_keep_to_the_memory_limit(metric, cotangents):
    x, y = np.random.default_rng(3).random((2, 1200, 2))
    limit, found = 2_000_000, {}
    for memory_limit in (limit, None):
        cloud = cusink.PointCloud(x, y, metric=metric)
        result = cusink.sinkhorn(None, None, cloud, eps=0.1, tol=1e-3, memory_limit=memory_limit)
        adjoint = cusink.sinkhorn_adjoint(result, **cotangents)
        assert memory_limit is None or peak(lambda: adjoint.x) < limit  # noqa: B023
        assert memory_limit is None or peak(lambda: adjoint.eps) < limit  # noqa: B023
        found[memory_limit] = adjoint.x, adjoint.y
    assert len(x) * len(y) * 8 > 4 * limit
    for blocks, whole in zip(found[limit], found[None], strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-6, atol=1e-9)
