"""Threads: the same bytes for any number, one pool, BLAS on one thread inside, and what they may not change."""

import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from retrieval.test_nearest import EPS, blots, collection
from retrieval.test_search import topical, topics

import cusink
from cusink import workers
from cusink.calls import one_call
from cusink.errors import warn

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.delenv(workers.VARIABLE, raising=False)
    yield
    cusink.set_workers(None)


class Threads(set):
    """Those that solve; and whether a pool was asked for more than the one of the caller."""

    asked = False

    def clear(self):
        super().clear()
        self.asked = False


@pytest.fixture
def seen(monkeypatch):
    """Count the threads that solve. Where a pool is asked the first waits for a second, or it might do everything."""
    from cusink.retrieval import batches, histograms

    threads, pool = Threads(), workers._threads

    def watched(function):
        def wrapped(*args, **keywords):
            threads.add(threading.get_ident())
            late = time.monotonic() + 60
            while threads.asked and len(threads) < 2 and time.monotonic() < late:
                time.sleep(0.001)
            return function(*args, **keywords)

        return wrapped

    def asked(count):
        threads.asked = True
        return pool(count)

    monkeypatch.setattr(workers, "_threads", asked)
    for name in ("solve", "solve_selves"):
        monkeypatch.setattr(histograms.HistogramPairs, name, watched(getattr(histograms.HistogramPairs, name)))
    monkeypatch.setattr(batches.PairBatches, "_solve", watched(batches.PairBatches._solve))
    return threads


# The same bytes


@pytest.mark.parametrize("value", ["cost", "divergence"])
@pytest.mark.parametrize("limit", [None, 8_000_000])
def test_any_number_of_workers_gives_the_same_bytes(seen, value, limit):
    A, B, C = collection(12, 60)
    options = {"eps": EPS, "value": value, "memory_limit": limit}
    answers = []
    for count in (1, 2, 5):
        seen.clear()
        matrix = cusink.distance_matrix(A, B, C, workers=count, **options)
        own = cusink.distance_matrix(B, None, C, workers=count, **options)
        assert (len(seen) > 1) == (count > 1)
        near = cusink.nearest(A, B, C, k=3, workers=count, **options)
        among = cusink.Index(B, C, **options).search(A, 3, workers=count)
        answers.append([x.tobytes() for x in (matrix, own, *near, *among)])
    assert answers[0] == answers[1] == answers[2]


def test_an_index_is_built_and_grown_by_so_many_threads(seen, monkeypatch):
    A, B, C = collection(12, 60)
    options, answers = {"eps": EPS, "value": "divergence", "memory_limit": 150_000}, []  # in batches of 7
    monkeypatch.setattr("cusink.retrieval.facts.calls_at_once", lambda *_: None)  # room for them all
    for count in (1, 2, 5):
        seen.clear()
        index = cusink.Index(B[:50], C, workers=count, **options)
        assert (len(seen) > 1) == (count > 1)
        seen.clear()
        index.add(B[50:], workers=count)
        assert (len(seen) > 1) == (count > 1)
        answers.append([x.tobytes() for x in (index._corpus.terms, *index.search(A, 3))])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("cost", [cusink.Grid((6, 6), spacing=0.1), cusink.PointCloud(np.arange(36.0) / 36)])
def test_costs_that_are_not_stored(cost):
    A, B, _ = collection(8, 50)
    one, two = (cusink.distance_matrix(A, B, cost, eps=EPS, workers=count) for count in (1, 4))
    assert one.tobytes() == two.tobytes()


def test_documents():
    A, B, C = topical(20, 1), topical(40, 2), cusink.cost_matrix(topics(), metric="euclidean")
    one, two = (cusink.distance_matrix(A, B, C, eps=0.2, tol=1e-3, workers=count) for count in (1, 3))
    assert one.tobytes() == two.tobytes()


def test_the_setting_holds_where_nothing_is_said(seen):
    A, B, C = collection(12, 40)
    for count in (1, 3):
        cusink.set_workers(count)
        seen.clear()
        cusink.distance_matrix(A, B, C, eps=EPS)
        assert (len(seen) > 1) == (count > 1)
        seen.clear()
        cusink.distance_matrix(A, B, C, eps=EPS, workers=1)
        assert len(seen) == 1


@pytest.mark.parametrize("least", [1 << 30, 1], ids=["all columns", "those that count"])
@pytest.mark.parametrize("coordinates", [3, 24])
def test_a_kernel_that_is_kept_in_part_has_the_same_bytes(many_blocks, monkeypatch, coordinates, least):
    """Which blocks are kept decides over digits; the limit does, and no thread that comes first."""
    from cusink.backends.numpy import limits
    from cusink.backends.numpy.clouds.kernel import PlanKernel

    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, cloud_sparse_pairs=least))
    kernels, begin = [], PlanKernel.__init__
    monkeypatch.setattr(PlanKernel, "__init__", lambda self, *given: kernels.append(self) or begin(self, *given))
    x, y = np.random.default_rng(2).random((2, 400, coordinates))
    eps, whole, parts = 0.01 * coordinates, 8 * 400**2, []
    for limit in (whole // 2, whole, whole * 5 // 4):
        answers = set()
        for count in (1, 2, 3, 8):
            C = cusink.PointCloud(x, y)
            with pytest.warns(cusink.ConvergenceWarning):
                found = cusink.sinkhorn(None, None, C, eps=eps, max_iter=6, memory_limit=limit, workers=count)
            answers.add(b"".join(part.tobytes() for part in (found.f, found.g, found.cost)))
            parts.append(len(kernels[-1].kept) / len(kernels[-1].columns))
        assert len(answers) == 1
    assert any(0 < part < 1 for part in parts)


# How many


def histograms(bins, columns, dtype):
    A, B = rng.dirichlet(np.ones(bins), 3).astype(dtype), rng.dirichlet(np.ones(bins), columns).astype(dtype)
    return A, B, cusink.cost_matrix(np.arange(float(bins)) / bins).astype(dtype)


@pytest.mark.parametrize(
    ("bins", "columns", "dtype", "several"),
    [
        (64, 1500, "float32", False),
        (64, 1500, "float64", False),
        (65, 1024, "float64", True),
        (65, 1000, "float64", False),
    ],
)
def test_short_calls_are_left_to_one_thread_unless_somebody_asks(seen, monkeypatch, bins, columns, dtype, several):
    A, B, C = histograms(bins, columns, dtype)
    monkeypatch.setattr(workers, "cores", lambda: 3)

    def matrix(**given):
        seen.clear()
        found = cusink.distance_matrix(A, B, C, eps=1, max_iter=1, tol=None, **given).tobytes()
        return found, len(seen)

    want, threads = matrix()
    assert (threads > 1) == several
    assert matrix(workers=1) == (want, 1)
    for asking in ({"workers": 3}, {"workers": -1}):
        found, threads = matrix(**asking)
        assert found == want and threads > 1
    monkeypatch.setenv(workers.VARIABLE, "3")
    assert matrix()[0] == want and len(seen) > 1
    monkeypatch.setenv(workers.VARIABLE, "1")
    assert matrix() == (want, 1)
    cusink.set_workers(2)  # comes before the environment
    assert matrix()[0] == want and len(seen) > 1


def test_a_search_asks_the_same(monkeypatch):
    from cusink.retrieval import batches

    A, B, C = collection(12, 60)
    told = []

    def watched(run, calls, at_most):
        told.append(at_most)
        return workers.each(run, calls, at_most)

    monkeypatch.setattr(batches, "each", watched)
    answers = []
    for given, at_most in (({}, 1), ({"workers": 3}, None)):
        told.clear()
        answers.append([x.tobytes() for x in cusink.nearest(A, B, C, k=3, eps=EPS, **given)])
        answers.append([x.tobytes() for x in cusink.Index(B, C, eps=EPS).search(A, 3, **given)])
        assert told and set(told) == {at_most}
    assert answers[:2] == answers[2:]


def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(workers, "QUOTA", (quota, tmp_path / "cpu.cfs_quota_us"))
    assert workers.cores() == 6
    for text, count in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6)):
        quota.write_text(text)
        assert workers.cores() == count
    quota.unlink()
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    for text, count in (("-1", 6), ("300000", 3)):
        (tmp_path / "cpu.cfs_quota_us").write_text(text)
        assert workers.cores() == count
    assert workers.check_workers(-1) == 3 == workers.workers()


def test_the_environment_sets_the_start(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "3")
    assert workers.workers() == 3
    cusink.set_workers(2)
    assert workers.workers() == 2
    cusink.set_workers(None)
    monkeypatch.setenv(workers.VARIABLE, "none")
    with pytest.raises(ValueError, match="CUSINK_WORKERS must be a positive integer; got 'none'"):
        workers.workers()


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)])
def test_what_is_no_number_of_workers(count, error):
    A, B, C = collection(2, 5)
    index = cusink.Index(B, C, eps=EPS)
    for call in (
        lambda: cusink.set_workers(count),
        lambda: cusink.distance_matrix(A, B, C, eps=EPS, workers=count),
        lambda: cusink.nearest(A, B, C, k=1, eps=EPS, workers=count),
        lambda: cusink.Index(B, C, eps=EPS, workers=count),
        lambda: index.add(B, workers=count),
        lambda: index.search(A, 1, workers=count),
    ):
        with pytest.raises(error, match="'workers' must be"):
            call()


def test_a_memory_limit_leaves_room_for_fewer(seen):
    A, B, C = collection(12, 60)
    cusink.distance_matrix(A, B, C, eps=EPS, workers=4, memory_limit=200_000)
    assert len(seen) == 1


# What happens inside


def blas_threads():
    """Return the threads of NumPy's and SciPy's BLAS; another test may have loaded a library that brings its own."""
    known = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return [library["num_threads"] for library in known if "faiss" not in library["filepath"]]


def test_blas_has_one_thread_inside_and_its_own_number_afterwards():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert set(before) == {2}
        with workers.working(2):
            first = workers.each(lambda _: blas_threads(), [(0,), (1,)])
            with workers.working(1):  # another call that ends first
                pass
            assert first == [[1] * len(before)] * 2 and blas_threads() == [1] * len(before)
        assert blas_threads() == before
        with pytest.raises(ZeroDivisionError), workers.working(2):
            workers.each(lambda x: 1 / x, [(1,), (0,)])
        assert blas_threads() == before


def test_calls_in_several_threads_hold_blas_together():
    A, B, C = collection(6, 40)
    want = cusink.distance_matrix(A, B, C, eps=EPS)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: cusink.distance_matrix(A, B, C, eps=EPS, workers=3), range(8)))
        assert all(x.tobytes() == want.tobytes() for x in found) and set(blas_threads()) == {2}


def test_work_is_not_shared_out_twice():
    def outer(_):
        names = workers.each(lambda _: threading.get_ident(), [(0,), (1,), (2,)])
        return workers.workers(), len(set(names)) == 1 and names[0] == threading.get_ident()

    with workers.working(3):
        assert workers.each(outer, [(k,) for k in range(6)]) == [(1, True)] * 6
        assert workers.workers() == 3
    assert workers.alone(workers.workers)() == 1


def test_results_and_warnings_come_in_order():
    def work(k):
        time.sleep(0.002 * (7 - k))
        if k % 2:
            warn(f"number {k}")
        return k * k

    @one_call
    def call():
        with workers.working(4):
            return workers.each(work, [(k,) for k in range(7)])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert call() == [k * k for k in range(7)]
    assert [str(x.message) for x in caught] == ["number 1", "number 3", "number 5"]
    assert {x.filename for x in caught} == {__file__}


def test_an_error_ends_the_work_and_is_the_callers():
    done = []

    def work(k):
        if k == 3:
            raise KeyError("third")
        time.sleep(0.001)
        done.append(k)

    with workers.working(3), pytest.raises(KeyError, match="third"):
        workers.each(work, [(k,) for k in range(500)])
    assert len(done) < 100


IN_A_CHILD = """
import multiprocessing, sys
import numpy as np
import cusink

A = np.random.default_rng(0).dirichlet(np.ones(9), 40)
C = cusink.cost_matrix(np.arange(9.0))

def solve(queue=None):
    found = cusink.distance_matrix(A, None, C, eps=0.5, workers=2).tobytes()
    return found if queue is None else queue.put(found)

if __name__ == "__main__":
    want = solve()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    child = context.Process(target=solve, args=(queue,))
    child.start()
    assert queue.get() == want
    child.join()
    assert child.exitcode == 0 and solve() == want
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_child_process_has_threads_of_its_own(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_A_CHILD)
    path = {"PYTHONPATH": str(Path(cusink.__file__).parents[1])}
    subprocess.run([sys.executable, script, how], check=True, timeout=120, env=os.environ | path)


def test_half_precision_warns_at_the_users_line():
    A, C = blots(6), 1e4 * np.ones((36, 36))
    half = (1000 * A).astype(np.float16)
    with pytest.warns(RuntimeWarning, match="exceeds the range of float16") as caught:
        cusink.distance_matrix(half, None, C.astype(np.float16), eps=100.0, check=False, workers=3)
    assert len(caught) == 1 and caught[0].filename == __file__


# One pool


@pytest.fixture
def many_blocks(monkeypatch):
    """Let small clouds be many blocks, which threads share."""
    from cusink.backends.numpy import limits

    sizes = {"threaded_pairs": 1, "cloud_array_pairs": 1, "cloud_block_entries": 1 << 9, "cloud_block_rows": (8, 8)}
    sizes |= {"kernel_tile_bytes": 1 << 9, "sum_block_columns": 16, "sum_block_entries": 64}
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, **sizes))


def test_the_numpy_backend_has_the_threads_of_the_library(many_blocks, monkeypatch):
    from cusink.backends.numpy.workers import run_all

    def solved():
        x, y = np.random.default_rng(1).random((2, 60, 2))
        return cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.1).f.tobytes()

    cusink.set_workers(1)
    want = solved()
    cusink.set_workers(3)
    pool, asked = workers._threads(2), []
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", lambda *_: pytest.fail("a pool of its own"))
    monkeypatch.setattr(workers, "_threads", lambda count: asked.append(count) or pool)
    assert solved() == want and set(asked) == {2}
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        inside = run_all(lambda k: (k, blas_threads(), threading.current_thread().name), range(40))
        assert blas_threads() == before
    assert [k for k, *_ in inside] == list(range(40))
    assert all(set(threads) == {1} for _, threads, _ in inside)
    assert {name.partition("_")[0] for *_, name in inside} <= {"MainThread", "cusink"}


def test_tasks_of_the_pool_do_not_wait_for_the_pool():
    from cusink.backends.numpy.workers import cores, run_all

    def inner(k):
        return k, threading.get_ident()

    def outer(k):
        found = run_all(inner, range(5))
        return cores(), [n for n, _ in found] == list(range(5)) and {t for _, t in found} == {threading.get_ident()}

    cusink.set_workers(4)
    assert run_all(outer, range(30)) == [(1, True)] * 30
    with concurrent.futures.ThreadPoolExecutor(6) as users:  # more than the pool has
        for found in users.map(lambda _: run_all(outer, range(30)), range(12)):
            assert found == [(1, True)] * 30


def test_what_a_task_warns_of_and_fails_with_is_the_callers():
    from cusink.backends.numpy.workers import run_all

    @one_call
    def call(fails):
        def work(k):
            if k == fails:
                raise ZeroDivisionError(f"number {k}")
            warn(f"number {k}")

        return run_all(work, range(6))

    cusink.set_workers(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(None)
    assert [str(x.message) for x in caught] == [f"number {k}" for k in range(6)]
    assert {x.filename for x in caught} == {__file__}
    with pytest.raises(ZeroDivisionError, match="number 2"):
        call(2)
