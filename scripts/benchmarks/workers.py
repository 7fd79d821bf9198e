#!/usr/bin/env python3
"""Time a distance matrix of digit images on Dask worker processes beside one process, one BLAS thread each.

    workers.py                # 2 workers beside 1 process
    workers.py --workers 4 --queries 400

The two take turns, so that a machine busy with something else slows both; the ratio is that of their least times. On a
machine that has no idle core for each worker, that of the CPU times tells more: what a core has to do.
Every answer of the workers must have the bytes of the one process.
"""

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before NumPy is loaded, here and by the workers

import argparse  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402


def main(arguments=None):
    """Run the benchmark; status 1 if an answer differs, 3 if the ratio is below the aim."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=300, help="images compared with all 1797 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--aim", type=float, help="ratio to reach (default: 0.8 for each worker)")
    given = parser.parse_args(arguments)

    import dask
    import dask.array as da
    from dask.distributed import Client, LocalCluster

    import cusink
    import cusink.distributed

    # Dask's workers give memory back to the system as soon as it is free, and then have to fetch it again: see
    # docs/distributed.md. One process keeps it, and so shall these.
    environ = {"MALLOC_TRIM_THRESHOLD_": 1 << 28, "MALLOC_MMAP_THRESHOLD_": 1 << 26}
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environ.items()})
    A, C = problem()
    options = {"eps": 0.01, "tol": 1e-6}
    queries = da.from_array(A[: given.queries], chunks=(max(given.queries // (8 * given.workers), 1), -1))
    with (
        LocalCluster(n_workers=given.workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        corpus = da.from_array(A, chunks=(1024, -1))
        lazy = cusink.distributed.distance_matrix(queries, corpus, C, client=client, **options)
        lazy[:1].compute()  # the workers import what they need
        times = {"one process": [], f"{given.workers} workers": []}
        cpu = {name: [] for name in times}
        for _ in range(given.rounds):
            start, spent = time.perf_counter(), time.process_time()
            here = cusink.distance_matrix(A[: given.queries], A, C, **options)
            times["one process"].append(time.perf_counter() - start)
            cpu["one process"].append(time.process_time() - spent)
            start, spent = time.perf_counter(), client.run(time.process_time)
            there = lazy.compute()
            times[f"{given.workers} workers"].append(time.perf_counter() - start)
            after = client.run(time.process_time)
            cpu[f"{given.workers} workers"].append(max(after[worker] - spent[worker] for worker in spent))
            if here.tobytes() != there.tobytes():
                print("the bytes differ")
                return 1
    pairs = here.size
    for name, seconds in times.items():
        rounds = ", ".join(f"{x:.2f}" for x in seconds)
        print(f"{name:12} {min(seconds):7.2f} s  {pairs / min(seconds):9.0f} pairs/s  (rounds: {rounds})")
        print(f"{'':12} {min(cpu[name]):7.2f} s of CPU time, of the busiest worker if there are several")
    one, many = map(min, times.values())
    print(f"ratio of CPU times {min(cpu['one process']) / min(cpu[f'{given.workers} workers']):.2f}")
    aim = given.aim or 0.8 * given.workers
    print(f"ratio {one / many:.2f}, aim {aim:.2f}; {pairs} pairs, float64, eps 0.01, tol 1e-6, equal bytes")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load {load:.1f}")
    return 0 if one / many >= aim else 3


def problem():
    """Return the 1797 digits as histograms on 64 cells, and the squared distances of the cells, scaled to at most 1."""
    import numpy as np
    from sklearn.datasets import load_digits

    import cusink

    images = load_digits().data
    C = cusink.cost_matrix(np.indices((8, 8)).reshape(2, -1).T.astype(float))
    return images / images.sum(axis=1, keepdims=True), C / C.max()


if __name__ == "__main__":
    sys.exit(main())
