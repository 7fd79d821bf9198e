"""Searches and matrices by workers with a GPU: chunks go to emulated devices, and what is found comes back."""

import emulated
import numpy as np
import problems
import pytest
from emulated import device_arrays

import cusink

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("cusink.distributed")

from cusink.distributed.jobs import Place, Task  # noqa: E402
from cusink.distributed.nearest import look_in_chunk, merge_chunks  # noqa: E402
from cusink.distributed.parts import How, part_of_chunk  # noqa: E402
from cusink.solver.checks import options as check_options  # noqa: E402

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

C = problems.grid_cost(3, 3).astype("f")
A, B = (
    problems.histograms(np.random.default_rng(seed), count, 9, 0.4).astype("f") for seed, count in ((1, 5), (2, 11))
)
CUTS = slice(0, 6), slice(6, 11)
HOW = {"k": 3, "eps": 0.05, "tol": 1e-4}


def chunks(x, rows):
    return da.from_array(x, chunks=(rows, -1))


@pytest.fixture(autouse=True)
def here():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def client():
    cluster = pytest.importorskip("dask.distributed")
    with cluster.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client


def alike(found, want):
    np.testing.assert_array_equal(found[1], want[1])
    np.testing.assert_allclose(found[0], want[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"value": "divergence"}, {"normalise": True}, {"prune": False}, {"reach": 0.5}], ids=str
)
def test_chunks_are_searched_on_the_device_of_the_worker(more, itself):
    how = HOW | more
    want = cusink.nearest(A, None if itself else B, C, **how)
    given = chunks(A, 3), None if itself else chunks(B, 6)
    with device_arrays.device() as (_, launched):
        lazy = distributed.nearest(*given, C, device="cuda", **how)
        assert not launched
        found = dask.compute(*lazy)
        assert launched and all(type(x) is np.ndarray for x in found)
    alike(found, want)


def test_a_certificate_and_candidates_come_back_to_the_host():
    listed = np.array([[0, 7, 9], [1, 2, 3], [10, 4, 5], [6, 0, 8], [3, 9, 10]])
    for more in ({"solve_at_most": 3}, {"candidates": listed}):
        want = cusink.nearest(A, B, C, full_output=True, **HOW | more)
        with device_arrays.device() as (_, launched):
            near = distributed.nearest(chunks(A, 3), chunks(B, 11), C, device="cuda", full_output=True, **HOW | more)
            found = dict(zip(vars(near), dask.compute(*vars(near).values()), strict=True))
            assert launched and type(found["undercut"]) is np.ndarray
        alike((found["distances"], found["indices"]), (want.distances, want.indices))
        np.testing.assert_array_equal(found["proved"], want.proved)


@pytest.mark.parametrize("value", ["cost", "divergence"])
def test_blocks_of_a_matrix_are_solved_on_the_device_and_come_back(value):
    want = cusink.distance_matrix(A, B, C, eps=0.05, tol=1e-4, value=value)
    with device_arrays.device() as (_, launched):
        lazy = distributed.distance_matrix(
            chunks(A, 3), chunks(B, 6), C, eps=0.05, tol=1e-4, value=value, device="cuda"
        )
        found = lazy.compute()
        assert launched and type(found) is np.ndarray
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_points_on_the_host_are_a_cost_on_the_device():
    x = np.indices((3, 3)).reshape(2, -1).T.astype("f") / 3
    cloud = cusink.PointCloud(x)
    want = cusink.nearest(A, B, cloud, **HOW)
    with device_arrays.device() as (_, launched):
        found = dask.compute(*distributed.nearest(chunks(A, 3), chunks(B, 6), cloud, device="cuda", **HOW))
        assert launched
    alike(found, want)


def test_chunks_that_lie_on_a_device_are_answered_there():
    """As Dask calls it: its arrays of device arrays need the real CuPy, which they are told about."""
    options = check_options(1000, 1e-4, 10, "auto", "auto")
    task = Task(eps=0.05, value="cost", options=options, width=11, memory_limit=None, check=True, device="cpu")
    how, place = How(k=3, prune=True, solve_at_most=None, check=True), Place(0, 0)
    with device_arrays.device() as (cupy, launched):
        a, b, cost = map(cupy.asarray, (A, B, C))
        parts = [part_of_chunk(b[rows], cost, 1.0, place, B.dtype, task=task, make=cusink.Index._of) for rows in CUTS]
        launched.clear()
        found = [look_in_chunk(a, part, len(part), None, False, place, task=task, how=how) for part in parts]
        near = merge_chunks(found, sizes=[6, 5], k=3)
        assert launched and all(type(near[name]) is cupy.ndarray for name in ("distances", "indices", "proved"))
        alike((near["distances"].get(), near["indices"].get()), cusink.nearest(A, B, C, **HOW))


def test_workers_of_a_cluster_search_on_their_devices(client):
    want = cusink.nearest(A, B, C, **HOW)
    with device_arrays.device() as (_, launched):
        lazy = distributed.nearest(chunks(A, 3), chunks(B, 6), C, device="cuda", client=client, **HOW)
        found = client.gather(client.compute(list(lazy)))
        assert launched
    alike(found, want)


def test_an_index_in_parts_is_searched_on_the_device_of_its_items():
    want = cusink.Index(B, C, eps=0.05, tol=1e-4).search(A, 3)
    with device_arrays.device() as (cupy, launched):
        there = cupy.asarray(B), cupy.asarray(C)
        parts = [cusink.Index(there[0][rows], there[1], eps=0.05, tol=1e-4) for rows in CUTS]
        launched.clear()
        found = distributed.Index(parts).search(cupy.asarray(A), 3)
        assert launched
    alike(found, want)
