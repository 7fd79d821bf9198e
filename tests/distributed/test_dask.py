"""`cusink.distributed`: the bytes that one machine would give, whatever the chunks, and whoever dies on the way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import problems
import pytest
from scipy import sparse

import cusink

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("cusink.distributed")

C = problems.grid_cost(4, 4)
POINTS = np.random.default_rng(2).random((16, 2))
COSTS = {
    "array": C,
    "points": cusink.PointCloud(POINTS),
    "two clouds": cusink.PointCloud(POINTS, POINTS[::-1] + 0.1),
    "grid": cusink.Grid((4, 4), spacing=1 / np.sqrt(18)),
    "distances": cusink.Grid((4, 4), "euclidean", spacing=1 / np.sqrt(18)),
}
OPTIONS = {"eps": 0.05, "tol": 1e-3}
LIMIT = 60_004  # tiles of 10 x 10 pairs


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def histograms(count, seed=0, dtype=np.float64):
    return problems.histograms(np.random.default_rng(seed), count, 16, 0.4).astype(dtype)


def chunked(x, rows, bins=-1):
    return None if x is None else da.from_array(x, chunks=(rows, bins))


def test_a_cost_of_dask_is_computed():
    A = histograms(24)
    for cost in (chunked(C, 4), [list(row) for row in C]):
        found = distributed.distance_matrix(chunked(A, 12), None, cost, **OPTIONS).compute()
        np.testing.assert_array_equal(found, cusink.distance_matrix(A, None, C, **OPTIONS))
        np.testing.assert_array_equal(
            distributed.nearest(chunked(A, 12), None, cost, k=2, **OPTIONS)[1].compute(),
            cusink.nearest(A, None, C, k=2, **OPTIONS)[1],
        )


FIELDS = ("distances", "error", "n_iter", "converged")


@pytest.mark.parametrize(
    ("symmetric", "value", "limit"),
    [(False, "cost", LIMIT), (True, "cost", LIMIT), (False, "divergence", None), (True, "divergence", LIMIT)],
)
def test_the_same_bytes_as_on_one_machine(symmetric, value, limit):
    A, B = histograms(24), None if symmetric else histograms(21, seed=1)
    options = OPTIONS | {"value": value, "memory_limit": limit}
    want = cusink.distance_matrix(A, B, C, full_output=True, **options)
    found = distributed.distance_matrix(chunked(A, 12, 7), chunked(B, 8), C, full_output=True, **options)
    for name in FIELDS:
        lazy, local = getattr(found, name), getattr(want, name)
        assert isinstance(lazy, da.Array) and lazy.shape == local.shape and lazy.dtype == local.dtype
        here = lazy.compute()
        assert here.dtype == local.dtype and here.tobytes() == local.tobytes(), name
    assert distributed.distance_matrix(A, B, C, **options).compute().tobytes() == want.distances.tobytes()


@pytest.mark.parametrize(
    ("kind", "symmetric"), [("points", True), ("two clouds", False), ("grid", True), ("distances", True)]
)
def test_costs_that_are_not_stored(kind, symmetric):
    A, B = histograms(15), None if symmetric else histograms(12, seed=1)
    options = OPTIONS | {"value": "divergence", "memory_limit": LIMIT}
    want = cusink.distance_matrix(A, B, COSTS[kind], **options)
    found = distributed.distance_matrix(chunked(A, 9), chunked(B, 5), COSTS[kind], **options)
    assert found.compute().tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, int])
def test_dtypes(dtype):
    A = (1000 * histograms(12)).astype(int) if dtype is int else histograms(12, dtype=dtype)
    if dtype is int:
        A[:, 0] += 1000 - A.sum(axis=1)
    cost = (10 * C).astype(int) if dtype is int else C.astype(dtype)
    options = OPTIONS | {"eps": 0.5} if dtype is int else OPTIONS
    want = cusink.distance_matrix(A, None, cost, **options)
    found = distributed.distance_matrix(chunked(A, 5), None, cost, **options)
    assert found.dtype == want.dtype
    assert found.compute().tobytes() == want.tobytes()
    assert distributed.distance_matrix(A, A, cost, **options).compute().dtype == want.dtype  # arrays in memory


def test_whole_numbers_follow_the_cost():
    A = np.eye(16, dtype=int)[:5]
    found = distributed.distance_matrix(A, None, C.astype(np.float32), **OPTIONS)
    assert found.compute().tobytes() == cusink.distance_matrix(A, None, C.astype(np.float32), **OPTIONS).tobytes()


@pytest.mark.parametrize("kind", ["array", "two clouds", "grid"])
def test_neighbours_in_half_precision(kind):
    A, B, cost = histograms(6, dtype=np.float16), histograms(9, seed=1, dtype=np.float16), COSTS[kind]
    if kind == "array":
        cost = cost.astype(np.float16)
    elif kind == "two clouds":
        cost = cusink.PointCloud(cost.x.astype(np.float16), cost.y.astype(np.float16))
    want = cusink.nearest(A, B, cost, k=2, eps=0.05)
    found = dask.compute(*distributed.nearest(A, chunked(B, 5), cost, k=2, eps=0.05))
    assert found[0].dtype == want[0].dtype == np.float16
    np.testing.assert_allclose(found[0], want[0], rtol=2e-3)  # an ulp of float16 is a thousandth
    np.testing.assert_array_equal(found[1], want[1])


def test_a_cost_that_is_not_symmetric():
    A, cost = histograms(12), C + np.triu(np.full(C.shape, 0.1))
    found = distributed.distance_matrix(chunked(A, 5), None, cost, **OPTIONS)
    assert found.compute().tobytes() == cusink.distance_matrix(A, None, cost, **OPTIONS).tobytes()


def test_a_part_is_what_it_costs(monkeypatch):
    """Lazy: nothing is read before it is asked for, and no more than is asked for."""
    from cusink.retrieval import tiles

    read, solved, original = [], [], tiles.PairValues.solve

    def load(block_info):
        read.append(block_info[None]["chunk-location"][0])
        return histograms(40)[slice(*block_info[None]["array-location"][0])]

    A = da.map_blocks(load, chunks=((10,) * 4, (16,)), dtype=float, meta=np.empty((0, 0)))
    monkeypatch.setattr(tiles.PairValues, "solve", lambda *at: solved.append(at[1]) or original(*at))
    D = distributed.distance_matrix(A, histograms(10, seed=1), C, **OPTIONS)
    assert D.chunks == ((10,) * 4, (10,)) and read == [] and solved == []
    D[25:30].compute()
    assert set(read) == {0, 2} and len(solved) == 10  # the first chunk tells the mass


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", ["cost", "divergence"])
def test_neighbours_are_those_of_one_machine(symmetric, value):
    A, B = histograms(23), None if symmetric else histograms(37, seed=1)
    options = {"eps": 0.05, "tol": 1e-6, "value": value, "k": 5}
    distances, indices = cusink.nearest(A, B, C, **options)
    found = distributed.nearest(chunked(A, 12, 7), chunked(B, 10), C, **options)
    assert all(isinstance(lazy, da.Array) and lazy.shape == (23, 5) for lazy in found)
    here = dask.compute(*found)
    np.testing.assert_array_equal(here[1], indices)
    np.testing.assert_allclose(here[0], distances, rtol=0, atol=1e-6)
    assert here[0].dtype == distances.dtype and here[1].dtype == indices.dtype


def test_neighbours_at_equal_distances_come_in_order():
    """Copies of two point masses in several chunks, and chunks with fewer rows than neighbours are wanted."""
    B = np.tile(np.eye(16)[[0, 5]], (6, 1))
    _, indices = dask.compute(*distributed.nearest(B[:2], chunked(B, 3), C, k=7, eps=0.05))
    np.testing.assert_array_equal(indices, [[*range(0, 12, 2), 1], [*range(1, 12, 2), 0]])
    _, indices = dask.compute(*distributed.nearest(chunked(B, 1), None, C, k=3, eps=0.05))
    np.testing.assert_array_equal(indices[:3], [[2, 4, 6], [3, 5, 7], [0, 4, 6]])


# What is wrong


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"A": None}, TypeError, "'A' must be an array of histograms"),
        ({"A": histograms(3)[0]}, ValueError, "'A' must have shape"),
        ({"B": histograms(3)[:, :5]}, ValueError, "'B' must have shape .Q, 16., .* to match C"),
        ({"B": histograms(3, dtype=np.float16)}, TypeError, "one dtype"),
        ({"C": C * np.nan}, ValueError, "'C' must hold finite costs"),
        ({"C": C + np.triu(C), "value": "divergence"}, ValueError, "value='divergence'"),
        ({"eps": -1}, ValueError, "'eps' must be positive"),
        ({"value": "emd"}, ValueError, "'value' must be one of"),
        ({"device": "gpu"}, ValueError, "'device' must be one of"),
        ({"memory_limit": 10}, ValueError, "'memory_limit' must be at least"),
        ({"memory_limit": -5}, ValueError, "'memory_limit' must be .* got -5"),
        ({"A": sparse.csr_array(histograms(4))}, TypeError, "of one kind, .*; 'B' is numpy.ndarray"),
        ({"B": cusink.Measures([0, 1], None, np.zeros((1, 2)))}, TypeError, "of one kind, .*; 'A' is numpy.ndarray"),
        ({"A": sparse.csr_array(histograms(4)), "B": da.ones((4, 16))}, TypeError, "'B' must be sparse rows in memory"),
        ({"A": da.ones((4, 16), chunks=2).map_blocks(sparse.csr_array)}, TypeError, "distributed.Index of parts"),
        ({"A": sparse.csr_array(histograms(4)), "B": None, "device": "cuda"}, ValueError, "to cusink.distance_matrix"),
        (
            {"A": sparse.csr_array(histograms(4)), "B": None, "reach": 1.0},
            ValueError,
            "'reach' must be None for sparse",
        ),
        ({"A": da.from_array(histograms(9))[da.from_array(np.arange(9)) > 2]}, ValueError, "compute_chunk_sizes"),
    ],
)
def test_what_can_be_told_at_once_is(change, error, said):
    given = {"A": histograms(4), "B": histograms(3), "C": C, "eps": 0.1} | change
    with pytest.raises(error, match=said):
        distributed.distance_matrix(**given)


def test_what_a_task_finds_names_its_place():
    B = histograms(20)
    B[13, 2] = np.nan
    D = distributed.distance_matrix(histograms(9), chunked(B, 10), C, memory_limit=LIMIT, **OPTIONS)
    with pytest.raises(ValueError, match=r"'B' must be finite; got nan at \[3, 2\]") as caught:
        D.compute()
    assert any("from 10 of 'B'" in note for note in caught.value.__notes__)


def test_masses_are_compared_across_chunks():
    A = histograms(20)
    A[15] *= 2
    with pytest.raises(ValueError, match="'A' row 0 has 1 and 'A' row 5 has 2"):
        distributed.distance_matrix(chunked(A, 10), histograms(3), C, **OPTIONS).compute()


def test_pairs_that_do_not_converge_are_warned_of_where_they_are_solved():
    lazy = distributed.distance_matrix(histograms(4), None, C, eps=0.001, tol=1e-13, max_iter=2)
    with dask.config.set(scheduler="synchronous"), pytest.warns(cusink.ConvergenceWarning, match="of 10 problems"):
        lazy.compute()


# A cluster


CLUSTER = """
import os, signal, sys, time

def without_cupy():
    sys.modules["cupy"] = None

if __name__ == "__main__":  # the workers run this file too, and need none of it
    import dask, dask.array as da, numpy as np
    from dask.distributed import Client, LocalCluster, futures_of

    import cusink.distributed

    A, C, want = np.load("A.npy"), np.load("C.npy"), np.load("want.npy")
    options = {"eps": 0.03, "tol": 1e-3, "memory_limit": 400_000}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        lazy = cusink.distributed.distance_matrix(da.from_array(A, chunks=(4, -1)), A, C, client=client, **options)
        D = client.persist(lazy)
        while not sum(future.status == "finished" for future in futures_of(D)) >= 3:
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        left = sum(future.status != "finished" for future in futures_of(D))
        print("left", left)
        print("equal", D.compute().tobytes() == want.tobytes())
        now = set(client.run(os.getpid).values())
        print("lost", pids[0] not in now and os.getpid() not in now)

        B = A + 1 / 64
        B /= B.sum(axis=1, keepdims=True)
        halves = [cusink.Index(B[rows], C, eps=0.03, tol=1e-3) for rows in (slice(0, 20), slice(20, None))]
        halves[1].save("half")
        index = cusink.distributed.Index([halves[0], dask.delayed(cusink.Index.load)("half")], client=client)
        before = index.search(A[:4], 3)[1]
        lying = [len(keys) > 0 for keys in client.has_what().values()]  # of each worker, whether it keeps a part
        pids = list(client.run(os.getpid).values())
        os.kill(pids[lying.index(True)], signal.SIGKILL)
        print("found", bool((index.search(A[:4], 3)[1] == before).all()))
        lazy = cusink.distributed.distance_matrix(A[:4], B, C, client=client, **options)
        print("again", lazy.compute().tobytes() == cusink.distance_matrix(A[:4], B, C, **options).tobytes())

        client.run(without_cupy)
        try:
            cusink.distributed.distance_matrix(A[:2], None, C, device="cuda", **options).compute()
        except RuntimeError as error:
            print("error", error)
"""


def test_a_worker_that_is_killed_takes_nothing_with_it(tmp_path):
    """Two processes; SIGKILL for one of them when some blocks are done and some are not."""
    A = problems.histograms(np.random.default_rng(0), 60, 64, 0.4)
    cost = problems.grid_cost(8, 8)
    want = cusink.distance_matrix(A, A, cost, eps=0.03, tol=1e-3, memory_limit=400_000)
    for name, x in (("A", A), ("C", cost), ("want", want)):
        np.save(tmp_path / f"{name}.npy", x)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    answer = subprocess.run(
        [sys.executable, "cluster.py"],
        cwd=tmp_path,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(cusink.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    said = dict(line.split(" ", 1) for line in answer.stdout.splitlines())
    assert said["found"] == "True" and said["again"] == "True"
    assert int(said["left"]) > 0 and said["equal"] == "True" and said["lost"] == "True"
    assert "cannot use a GPU: CuPy is not installed" in said["error"] and "device='cpu'" in said["error"]


# An index in parts


def measures(count, seed):
    rng = np.random.default_rng(seed)
    return cusink.Measures.of([rng.random((rng.integers(2, 5), 2)) for _ in range(count)])


PARTS = {
    "histograms": (histograms(5, 3), histograms(70, 4), C, OPTIONS),
    "documents": (*(sparse.csr_array(histograms(count, seed)) for count, seed in ((5, 3), (70, 4))), C, OPTIONS),
    "measures": (measures(4, 1), measures(60, 2), "euclidean", OPTIONS),
}


@pytest.mark.parametrize("collection", PARTS)
def test_an_index_in_parts_is_one_index(collection):
    A, B, cost, options = PARTS[collection]
    want = cusink.Index(B, cost, **options).search(A, 4, full_output=True)
    cuts = [slice(0, 31), slice(31, 33), slice(33, None)]  # one is smaller than k
    parts = [cusink.Index(B[cut], cost, **options) for cut in cuts]
    index = distributed.Index([parts[0], dask.delayed(lambda: parts[1])(), parts[2]])
    found = index.search(A, 4, full_output=True)
    np.testing.assert_array_equal(found.indices, want.indices)
    np.testing.assert_allclose(found.distances, want.distances, rtol=1e-9)
    assert found.proved.all() and not found.undercut.any() and len(index) == sum(map(len, parts))
    for most in (4, 10):
        found = index.search(A, 4, solve_at_most=most, full_output=True)
        right = (found.indices == want.indices).all(axis=1)
        assert right[found.proved].all()
        assert (found.distances[:, -1] - found.undercut <= want.distances[:, -1] * (1 + 1e-9)).all()


def test_an_index_lies_with_the_workers(tmp_path):
    from dask.distributed import Client, LocalCluster

    A, B, cost, options = PARTS["histograms"]
    for number, cut in enumerate((slice(0, 40), slice(40, None))):
        cusink.Index(B[cut], cost, **options).save(tmp_path / str(number))
    want = cusink.Index(B, cost, **options).search(A, 4)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        parts = [dask.delayed(cusink.Index.load)(tmp_path / str(number)) for number in (0, 1)]
        index = distributed.Index(parts, client=client)
        distances, indices = index.search(A, 4)
        np.testing.assert_array_equal(indices, want[1])
        np.testing.assert_allclose(distances, want[0], rtol=1e-9)
        here = distributed.Index([cusink.Index.load(tmp_path / "0")], client=client)
        assert len(here) == 40 and here.search(A, 1)[1].shape == (5, 1)


def test_a_temporary_array_keeps_its_cost():
    """Dask lets go of what nobody holds, at times before it has read who needs it."""
    from dask.distributed import Client, LocalCluster

    A, B, cost, options = PARTS["histograms"]
    given = da.from_array(A, chunks=(3, -1)), da.from_array(B, chunks=(40, -1)), cost
    want = cusink.nearest(A, B, cost, k=4, **options)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for _ in range(6):
            _, both = dask.compute(*distributed.nearest(*given, k=4, client=client, **options))
            alone = distributed.nearest(*given, k=4, client=client, **options)[1].compute()
            for indices in (both, alone):
                np.testing.assert_array_equal(indices, want[1])


def test_chunks_without_rows_have_no_neighbours():
    A, B, cost, options = PARTS["histograms"]
    want = cusink.nearest(A, B, cost, k=3, **options)
    a, b = da.from_array(A, chunks=((0, 2, 3), -1)), da.from_array(B, chunks=((0, 30, 0, 40), -1))
    np.testing.assert_array_equal(dask.compute(*distributed.nearest(a, b, cost, k=3, **options))[1], want[1])
    selected = b[da.from_array(np.arange(70) >= 40, chunks=((0, 30, 0, 40),))]
    selected.compute_chunk_sizes()
    got = distributed.nearest(selected, None, cost, k=3, **options)[1].compute()
    np.testing.assert_array_equal(got, cusink.nearest(B[40:], None, cost, k=3, **options)[1])


def test_a_part_that_grew_is_told():
    A, B, cost, options = PARTS["histograms"]
    parts = [cusink.Index(B[cut], cost, **options) for cut in (slice(0, 31), slice(31, None))]
    index = distributed.Index(parts)
    parts[0].add(A)
    with pytest.raises(ValueError, match="a part of 31 items has 36 now"):
        index.search(A, 2)


@pytest.mark.filterwarnings("ignore:Items without weight:UserWarning")
def test_queries_without_words_are_proved_in_parts_too():
    A, B, cost, options = PARTS["documents"]
    empty = sparse.csr_array(A.toarray() * np.array([1, 0, 1, 1, 1])[:, None])
    want = cusink.Index(B, cost, **options).search(empty, 3, full_output=True)
    parts = [cusink.Index(B[cut], cost, **options) for cut in (slice(0, 31), slice(31, None))]
    found = distributed.Index(parts).search(empty, 3, full_output=True)
    assert np.isnan(want.distances[1]).all() and want.proved.all()
    np.testing.assert_array_equal(found.proved, want.proved)
    np.testing.assert_array_equal(found.undercut, want.undercut)


def test_clients_that_are_none_or_closed():
    from dask.distributed import Client

    A, B, cost, options = PARTS["histograms"]
    with pytest.raises(TypeError, match="'client' must be a dask.distributed.Client or None; got str"):
        distributed.distance_matrix(A, B, cost, client="here", **options)
    client = Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
    index = distributed.Index([cusink.Index(B, cost, **options)], client=client)
    client.close()
    for call in (
        lambda: distributed.distance_matrix(A, B, cost, client=client, **options),
        lambda: index.search(A, 2),
    ):
        with pytest.raises(ValueError, match="'client' must be open"):
            call()


def test_parts_that_do_not_belong_together():
    A, B, cost, options = PARTS["histograms"]
    one = cusink.Index(B[:40], cost, **options)
    for parts, error, message in (
        (
            [one, cusink.Index(B, cost, **options | {"eps": 0.1})],
            ValueError,
            "part 0 has .*0.05.* and part 1 has .*0.1",
        ),
        ([one, B], TypeError, "got numpy.ndarray at 1"),
        ([dask.delayed(len)([])], TypeError, "delayed calls that return one; got int"),
        ([], ValueError, "at least one index"),
        (one, TypeError, "a list or tuple of indexes; got cusink.Index"),
    ):
        with pytest.raises(error, match=message):
            distributed.Index(parts)
    index = distributed.Index([one])
    for call, error, message in (
        (lambda: index.search(A, 41), ValueError, "the items of the index, 40; got 41"),
        (lambda: index.search(None, 40), ValueError, "the items of the index, 39; got 40"),
        (lambda: index.search(None, 1, candidates=[[1]]), ValueError, "'candidates' must be None where 'A' is"),
        (lambda: index.search(A, 1, candidates=[[40]] * 5), ValueError, "'candidates' must be numbers of items"),
        (lambda: index.add(A[:, 1:]), ValueError, "'B' must have shape"),
        (lambda: index.search(A, 4, solve_at_most=3), ValueError, "'solve_at_most' must be at least 'k', 4"),
        (lambda: index.search(A[:, 1:], 4), ValueError, "'A' must have shape"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_parts_of_different_costs_are_refused_and_of_equal_ones_taken(tmp_path):
    # Their distances are not comparable: merged, the neighbours of one cost hid those of the other.
    A, B, cost, options = PARTS["histograms"]
    A, B, options = A[:2], B[:12], options | {"eps": 1.0}
    points = np.indices((len(cost), 1)).reshape(2, -1).T[:, :1] / 4
    for one, equal, other in (
        (cost, cost.copy(), cost * 100),
        (cusink.Grid(len(cost)), cusink.Grid(len(cost)), cusink.Grid(len(cost), spacing=2.0)),
        (cusink.PointCloud(points), cusink.PointCloud(points, points.copy()), cusink.PointCloud(points, points + 1)),
        (cusink.PointCloud(points), cusink.PointCloud(points.copy()), cusink.PointCloud(points, metric="euclidean")),
        (
            cusink.PointCloud(points, metric="mahalanobis", factor=np.eye(1)),
            cusink.PointCloud(points, metric="mahalanobis", factor=np.eye(1)),
            cusink.PointCloud(points, metric="mahalanobis", factor=2 * np.eye(1)),
        ),
    ):
        first, second = cusink.Index(B[:6], one, **options), cusink.Index(B[6:], equal, **options)
        second.save(tmp_path / "second", overwrite=True)
        second = cusink.Index.load(tmp_path / "second")
        found = distributed.Index([first, second]).search(A, 4)[1]
        np.testing.assert_array_equal(found, cusink.nearest(A, B, one, k=4, **options)[1])
        with pytest.raises(ValueError, match="'parts' must be indexes of one cost"):
            distributed.Index([first, cusink.Index(B[6:], other, **options)])
    first = cusink.Index(5 * B[:6], cost, **options)
    with pytest.raises(ValueError, match="part 0 has .*'normalise': False.*part 1 has .*'normalise': True"):
        distributed.Index([first, cusink.Index(B[6:], cost, normalise=True, **options)])
    clouds = PARTS["measures"][1]
    with pytest.raises(ValueError, match="'cost': 'euclidean'.*'cost': 'cityblock'"):
        distributed.Index([cusink.Index(clouds, metric, **options) for metric in ("euclidean", "cityblock")])


@pytest.mark.parametrize("value", ["reg_cost", "divergence"])
def test_images_of_unequal_masses_are_those_of_one_machine(value):
    images = np.random.default_rng(4).random((9, 3, 4)) + 0.1
    how = {"eps": 0.5, "value": value}
    grid, lazy = cusink.Grid((3, 4)), da.from_array(images, chunks=(4, 2, 4))
    for more in ({"reach": 2.0}, {"reach": (2.0, 0.7)}, {"reach": (2.0, None)}, {"normalise": True}):
        wanted = cusink.distance_matrix(images, None, grid, **how, **more)
        found = cusink.distributed.distance_matrix(lazy, None, grid, **how, **more).compute()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        near = cusink.distributed.nearest(lazy, None, grid, k=2, **how, **more)[1].compute()
        np.testing.assert_array_equal(near, cusink.nearest(images, None, grid, k=2, **how, **more)[1])
