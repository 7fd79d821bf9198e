"""Documents on emulated kernels: the values of the oracle and of the CPU, for any launch and any size of the tile."""

import dataclasses

import emulated
import numpy as np
import pytest
import reference
from emulated.cupy_stand_in import operators
from retrieval.test_documents import VALUES, core, corpus, exactly, table, vectors

import cusink
from cusink.backends.cupy import launch as cupy_launch
from cusink.convergence.options import Options
from cusink.retrieval.collections import check_collections

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

SIZES = (17, 3, 1, 40)


@pytest.fixture(
    params=[99 << 10, 8 << 10, 3 << 10], ids=["all in shared memory", "the tile outside", "the coordinates outside too"]
)
def device(request):
    """Yield the stand-in for CuPy, with so much shared memory for a block."""
    with operators(shared_memory=request.param) as ops:
        yield ops


def on_device(A, B, C, eps, **options):
    """Every value and outcome of all pairs of sparse rows, solved by the emulated kernel."""
    pairs = dataclasses.replace(check_collections(A, B, C, eps=eps, check=True), on_host=False)
    solved = {value: pairs.solve(slice(None), slice(None), value, Options(**options)) for value in VALUES}
    return pairs, {value: part.distances for value, part in solved.items()} | solved["cost"]._asdict()


def costs(kind, dtype):
    """Return a cost as the user gives it, and as an array."""
    X = vectors(dtype, d=11)
    if kind == "stored":
        dense = cusink.cost_matrix(X, metric="euclidean")
        dense[2::7, corpus(SIZES)[[3]].indices[::3]] = np.inf  # words of which others in the same document are allowed
        return dense, dense.astype(np.float64)
    metric, power = kind
    dense = cusink.cost_matrix(X.astype(np.float64), metric=metric) ** power
    return cusink.PointCloud(X, metric=metric, power=power), dense


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["stored", ("euclidean", 1), ("sqeuclidean", 1), ("cityblock", 1), ("cosine", 1.5)])
def test_values_follow_the_oracle(kind, dtype, device):
    given, dense = costs(kind, dtype)
    A, B, eps = corpus((5, 33), dtype, 1), corpus(SIZES, dtype), 0.1 * float(np.median(dense))
    _, found = on_device(A, B, given, eps, **exactly(6))
    exact, naive = table(A, B, dense, eps, 6), table(A, B, dense, eps, 6, np.float32)
    for value, right, rough in zip(VALUES, exact, naive, strict=True):
        allowed = 1e-11 if dtype == np.float64 else 4 * np.abs(rough - right).max() + 1e-6
        np.testing.assert_allclose(found[value], right, rtol=0, atol=allowed * np.abs(right).max())
    assert (found["n_iter"] == 6).all() and found["converged"].all()
    assert set(device.launched) == {"documents"}


@pytest.mark.parametrize("overrelaxation", ["auto", None, 1.5])
def test_pairs_stop_by_themselves_where_they_do_on_the_cpu(overrelaxation, device):
    A, B = corpus((3, 9), seed=1), corpus(SIZES)
    C, eps = cusink.cost_matrix(vectors(), metric="euclidean"), 0.45
    _, found = on_device(A, B, C, eps, tol=1e-8, max_iter=5000, overrelaxation=overrelaxation)
    options = {"tol": 1e-8, "max_iter": 5000, "overrelaxation": overrelaxation, "full_output": True}
    host = cusink.distance_matrix(A, B, C, eps=eps, **options)
    assert found["converged"].all() and (found["error"] <= 1e-8).all()
    np.testing.assert_allclose(found["cost"], host.distances, rtol=1e-6)
    # The rules are the same; estimates of omega feel every rounding, so that their counts may drift apart a little.
    apart = np.abs(found["n_iter"] - host.n_iter)
    assert (apart <= (10 + 0.2 * host.n_iter if overrelaxation == "auto" else 10)).all()
    assert len(np.unique(found["n_iter"])) > 1


@pytest.mark.parametrize("steep", [300, 20000])
def test_steep_costs(steep, device):
    C = cusink.cost_matrix(vectors(np.float32, d=2), metric="euclidean")
    A, B, eps = corpus((8, 30), np.float32, 1), corpus(SIZES, np.float32), float(C.max()) / steep
    _, found = on_device(A, B, C, eps, **exactly(12))
    exact, naive = table(A, B, C, eps, 12)[0], table(A, B, C, eps, 12, np.float32)[0]
    np.testing.assert_allclose(found["cost"], exact, rtol=0, atol=4 * np.abs(naive - exact).max() + 1e-6)


def test_what_does_not_converge_says_so_and_rounding_ends_it(device):
    A, B, C = corpus((40,), np.float32, 1), corpus((17, 30), np.float32), cusink.cost_matrix(vectors(np.float32))
    _, found = on_device(A, B, C, 2.0, tol=1e-6, max_iter=3, overrelaxation="auto")
    assert not found["converged"].any() and (found["n_iter"] == 3).all() and (found["error"] > 1e-6).all()
    _, found = on_device(A, B, C, 5.0, tol=1e-13, max_iter=5000, overrelaxation=None)
    assert (found["n_iter"] < 1000).all() and (found["error"] < 1e-5).all()  # some come to an error of exactly 0
    np.testing.assert_array_equal(found["converged"], found["error"] <= 1e-13)
    assert not found["converged"].all()


def test_items_meet_themselves(device):
    A, C = corpus((9, 1, 20)), cusink.PointCloud(vectors(), metric="euclidean")
    pairs, _ = on_device(A, None, C, 0.5, **exactly(1))
    options = Options(max_iter=500, tol=1e-9)
    found = pairs.solve_selves(0, slice(0, 3), options).distances
    dense = cusink.cost_matrix(vectors(), metric="euclidean")
    for value, a in zip(found, A.toarray(), strict=True):
        assert abs(value - reference.optimum(*core(a, a, dense), 0.5).reg_cost) < 1e-8


@pytest.mark.parametrize(("grid", "warps"), [(1, 1), (2, 3), (50, 16)])
def test_any_launch_is_right(grid, warps, device, monkeypatch):
    real = cupy_launch.configure_documents

    def configure(*arguments):
        chosen = real(*arguments)
        return chosen._replace(launch=chosen.launch._replace(grid=grid, block=32 * warps))

    monkeypatch.setattr(cupy_launch, "configure_documents", configure)
    emulated.shuffle(grid)
    given, dense = costs(("euclidean", 1), np.float64)
    A, B = corpus((5, 33), seed=1), corpus(SIZES)
    _, found = on_device(A, B, given, 0.4, **exactly(4))
    np.testing.assert_allclose(found["cost"], table(A, B, dense, 0.4, 4)[0], rtol=1e-11)


def test_the_launch_follows_from_the_sizes():
    launch, scratch, _ = cupy_launch.configure_documents(1000, 40, 66, "float32", cupy_launch.H100)
    assert (launch.grid, launch.block, scratch) == (1000, 256, 0)
    assert launch.shared == 4 * (2 * 106 + 9 * 106 + 40 * 67)
    launch, scratch, stage_outside = cupy_launch.configure_documents(1000, 400, 600, "float64", cupy_launch.H100)
    assert (launch.grid, scratch, stage_outside) == (4 * 132, 400 * 601, False) and launch.shared == 8 * 11 * 1000


def test_one_long_document_leaves_the_others_in_shared_memory(monkeypatch):
    """A launch has memory for its largest pair: one of 2600 points took 14 GB, and the fast way from all others."""
    n, m = np.array([10, 2600, 40, 229, 230, 2500]), np.array([20, 2600, 2600, 229, 10, 2500])
    groups = cupy_launch.document_groups(n, m, "float32", cupy_launch.H100)
    assert [list(group) for group in groups] == [[0, 3], [2], [4], [1, 5]]
    launches = [
        cupy_launch.configure_documents(len(g), n[g].max(), m[g].max(), "float32", cupy_launch.H100) for g in groups
    ]
    assert launches[0].scratch == 0
    assert all(4 * launch.scratch * launch.launch.grid <= 2 << 30 for launch in launches)
    many = cupy_launch.configure_documents(10**6, 2600, 2600, "float32", cupy_launch.H100)
    assert 4 * many.scratch * many.launch.grid <= 2 << 30 and many.launch.grid > 60
    with operators(shared_memory=8 << 10) as ops:
        A, B, C = corpus((5, 33), seed=1), corpus(SIZES), cusink.cost_matrix(vectors(), metric="euclidean")
        configured, real = [], cupy_launch.configure_documents
        monkeypatch.setattr(
            cupy_launch, "configure_documents", lambda *a: configured.append((a[0], real(*a))) or real(*a)
        )
        _, found = on_device(A, B, C, 0.4, **exactly(4))
        np.testing.assert_allclose(found["cost"], table(A, B, C, 0.4, 4)[0], rtol=1e-11)
        assert ops.launched.count("documents") > len(VALUES)  # more than one launch for all pairs
    inside = [count for count, chosen in configured if count > 1 and not chosen.scratch]
    assert inside, "no pair is left in shared memory"


@pytest.mark.parametrize("device", [cupy_launch.H100, cupy_launch.Device(40, 64 << 10)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_launch_asks_for_more_shared_memory_than_the_device_has(dtype, device):
    size = np.dtype(dtype).itemsize
    for n in (10, 200, 745, 1490, 2642, 4000):
        sizes = 10**6, n, n, dtype, device
        if 4 * n * size > device.shared_memory - 1024:
            with pytest.raises(ValueError, match="do not fit into the shared memory"):
                cupy_launch.configure_documents(*sizes)
            continue
        launch, scratch, stage_outside = cupy_launch.configure_documents(*sizes)
        assert launch.shared <= device.shared_memory - 1024
        assert scratch == (n * (n | 1) + 18 * n * stage_outside) * bool(scratch)
