"""`workers=` of the functions between points: so many threads, the same bytes, and BLAS on one thread meanwhile."""

import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import cusink
from cusink import workers
from cusink.backends.numpy import limits
from cusink.solver.pairs import batches

RNG = np.random.default_rng(0)
N = 60
X, Y = RNG.random((2, N, 2))
A, B = RNG.dirichlet(np.ones(N), 2)
ROWS, OTHERS = RNG.dirichlet(np.ones(N), (2, 4))
CLOUD, OWN, EACH = cusink.PointCloud(X, Y), cusink.PointCloud(X), np.stack([cusink.cost_matrix(X, Y)] * 4)
SIZES = 9, 4, 70, 40, 2
CLOUDS, MORE = (cusink.Measures.of([RNG.random((count, 2)) for count in sizes]) for sizes in (SIZES, SIZES[::-1]))
HOW = {"eps": 0.1, "tol": 1e-4}
SOLVED, PAIRS = cusink.sinkhorn(A, B, CLOUD, **HOW), cusink.sinkhorn(CLOUDS, MORE, "euclidean", **HOW)
DIVERGENCE, MEAN = cusink.sinkhorn_divergence(A, B, CLOUD, **HOW), cusink.barycenter(ROWS, OWN, **HOW)
FREE_HOW = {"x": X[:30], "eps": 0.1, "max_iter": 3, "tol": 0.5}
FREE = cusink.free_barycenter(CLOUDS, **FREE_HOW)
POINTS = {"x": X, "y": Y, "b": B, "scale": 0.3}
NORM = {"x": X, "a": A, "y": Y, "b": B, "scale": 0.3}

CALLS = {
    "points": (cusink.sinkhorn, {"a": A, "b": B, "C": CLOUD, **HOW}),
    "a cost for each": (cusink.sinkhorn, {"a": ROWS, "b": OTHERS, "C": EACH, **HOW}),
    "measures": (cusink.sinkhorn, {"a": CLOUDS, "b": MORE, "C": "euclidean", **HOW}),
    "divergence": (cusink.sinkhorn_divergence, {"a": A, "b": B, "C": CLOUD, **HOW}),
    "gradients": (cusink.sinkhorn_adjoint, {"result": SOLVED, "grad_cost": 1.0}),
    "gradients of measures": (cusink.sinkhorn_adjoint, {"result": PAIRS, "grad_cost": np.ones(5)}),
    "tangents": (cusink.sinkhorn_jvp, {"result": SOLVED, "da": A - B}),
    "curvature": (cusink.sinkhorn_hvp, {"result": SOLVED, "grad_cost": 1.0, "da": A - B}),
    "curvature of a divergence": (cusink.sinkhorn_divergence_hvp, {"result": DIVERGENCE, "dx": X}),
    "maps": (cusink.barycentric_map_adjoint, {"result": SOLVED, "values": Y, "grad_map": X}),
    "extension": (cusink.extension_adjoint, {"extension": SOLVED.at(X + 0.01), "grad_potential": A}),
    "barycenter": (cusink.barycenter, {"A": ROWS, "C": OWN, **HOW}),
    "gradients of a barycenter": (cusink.barycenter_adjoint, {"result": MEAN, "grad_barycenter": A}),
    "free barycenter": (cusink.free_barycenter, {"measures": CLOUDS, **FREE_HOW}),
    "gradients of a free one": (cusink.free_barycenter_adjoint, {"result": FREE, "grad_points": X[:30]}),
    "flow": (cusink.gradient_flow, {"x": X, "y": Y, "eps": 0.1, "max_iter": 2}),
    "sums": (cusink.kernel_product, POINTS),
    "gradients of sums": (cusink.kernel_product_adjoint, {**POINTS, "grad": A}),
    "logarithms": (cusink.kernel_product_log, {"x": X, "y": Y, "log_b": B, "scale": 0.3}),
    "gradients of logarithms": (cusink.kernel_product_log_adjoint, {"x": X, "y": Y, "log_b": B, "grad": A}),
    "scalar product": (cusink.kernel_scalar_product, NORM),
    "gradients of a scalar product": (cusink.kernel_scalar_product_adjoint, NORM),
    "norm": (cusink.kernel_distance, NORM),
    "gradients of a norm": (cusink.kernel_distance_adjoint, NORM),
    "likelihood": (cusink.kernel_neg_log_likelihood, NORM),
    "gradients of a likelihood": (cusink.kernel_neg_log_likelihood_adjoint, NORM),
}


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Let small clouds be many blocks, which threads share; nobody has said how many these are to be."""
    sizes = {"threaded_pairs": 1, "cloud_array_pairs": 1, "cloud_block_entries": 1 << 9, "cloud_block_rows": (8, 8)}
    sizes |= {"kernel_tile_bytes": 1 << 9, "sum_block_columns": 16, "sum_block_entries": 64}
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, **sizes))
    monkeypatch.setattr(batches, "TILE_PAIRS", 100)
    monkeypatch.delenv(workers.VARIABLE, raising=False)
    yield
    cusink.set_workers(None)


def arrays_in(found):
    """Yield the arrays in what a call returned, those that are computed when they are read too."""
    if isinstance(found, (np.ndarray, np.generic)):
        yield np.asarray(found).tobytes()
    for name in getattr(found, "__dataclass_fields__", ()):
        if not name.startswith(("_", "problem")):
            yield from arrays_in(getattr(found, name))


@pytest.mark.filterwarnings("ignore:points still moved", "ignore:.*problems did not reach")
@pytest.mark.parametrize("name", CALLS)
def test_so_many_threads_and_the_same_bytes(name, monkeypatch):
    function, given = CALLS[name]
    pool, asked, holding = workers._threads, [], []
    monkeypatch.setattr(workers, "_threads", lambda count: asked.append(count) or pool(count))
    hold = workers._blas().limit
    monkeypatch.setattr(type(workers._blas()), "limit", lambda _, **to: holding.append(to) or hold(**to))
    cusink.set_workers(2)
    one = list(arrays_in(function(**given, workers=1)))
    assert asked == [] and len(one) >= 1
    assert list(arrays_in(function(**given, workers=3))) == one
    assert asked and max(asked) == 2 and holding[0] == {"limits": 1, "user_api": "blas"}
    asked.clear()
    assert list(arrays_in(function(**given))) == one
    assert asked and set(asked) == {1}  # the setting, and the caller is the other one


def test_every_function_that_takes_workers_is_here_or_a_search():
    taking = {name for name in cusink.__all__ if "workers" in getattr(parameters(getattr(cusink, name)), "keys", set)()}
    searches = {"distance_matrix", "nearest", "set_workers"}
    assert taking - searches == {function.__name__ for function, _ in CALLS.values()}


def test_the_page_names_them_and_the_size_from_which_on_it_pays():
    page = (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text(encoding="utf-8")
    table = page.partition("Other functions have `workers=`")[2].partition("\n\nOf one stored cost")[0]
    named = set(re.findall(r"`(\w+)`", table))
    adjoints = {f"{name}_adjoint" for name in named if name.startswith("kernel")}  # "and their adjoints"
    assert named | adjoints == {function.__name__ for function, _ in CALLS.values()}
    assert table.count("2 million pairs of points") == 3 and round(limits.Limits().threaded_pairs / 1e6) == 2


def parameters(public):
    return inspect.signature(public).parameters if callable(public) and not isinstance(public, type) else None


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)])
@pytest.mark.parametrize("name", ["points", "flow", "sums"])
def test_what_is_no_number_of_workers(name, count, error):
    function, given = CALLS[name]
    with pytest.raises(error, match="'workers' must be"):
        function(**given, workers=count)


def test_one_stored_cost_leaves_blas_its_threads_unless_somebody_asks(monkeypatch):
    seen = []

    def threads(*_):
        known = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
        seen.append({library["num_threads"] for library in known if "faiss" not in library["filepath"]})

    C = cusink.cost_matrix(X, Y)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        cusink.sinkhorn(ROWS, OTHERS, C, callback=threads, **HOW)
        cusink.sinkhorn(ROWS, OTHERS, C, callback=threads, workers=2, **HOW)
    assert seen[0] == {2} and seen[-1] == {1}
