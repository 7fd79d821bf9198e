#!/usr/bin/env python3
"""Time a distance matrix and a search for neighbours with two threads beside one, one BLAS thread each.

    threads.py                # two threads beside one
    threads.py --busy         # while another process keeps one core busy

The two take turns on the clock; a ratio is that of the medians, with the least and the largest of a round. Every answer
must have the same bytes. What was to be reached is said at the end, and whether it was.
"""

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before NumPy is loaded

import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

# How many times faster two threads have to be than one.
TWO_FREE_CORES, BESIDE_A_BUSY_CORE = 1.6, 1.0


def main(arguments=None):
    """Run the benchmark; status 1 if an answer differs."""
    from arguments import Parser

    from benchmarks.harness.timing import print_targets

    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="digits that are looked up (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="keep a core busy meanwhile")
    given = parser.parse_args(arguments)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if given.busy else None
    try:
        outcomes = [report(name, run, given) for name, run in works(given.queries).items()]
        print_targets(outcomes)
        return 0 if all(outcome["right"] for outcome in outcomes) else 1
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()


def works(queries):
    """Return functions of the number of threads, which return arrays."""
    import cusink
    from benchmarks.retrieval import digits

    A, B, C = digits(queries, "float32")
    A64, B64, C64 = digits(queries, "float64")
    W, grid = enlarged()
    return {
        f"distance_matrix, {queries} x {len(B)} digits, float32, tol 1e-4": lambda workers: (
            cusink.distance_matrix(A, B, C, eps=0.01, tol=1e-4, workers=workers),
        ),
        f"nearest, {queries} among {len(B)} digits, reg_cost, float64, tol 1e-6": lambda workers: cusink.nearest(
            A64, B64, C64, k=10, eps=0.01, tol=1e-6, value="reg_cost", workers=workers
        ),
        f"distance_matrix, 8 x {len(W) - 8} digits of 24 x 24 pixels, float64, tol 1e-4": lambda workers: (
            cusink.distance_matrix(W[:8], W[8:], grid, eps=0.01 * grid.max(), tol=1e-4, workers=workers),
        ),
    }


def enlarged():
    """Return 200 digits of 24 x 24 pixels (200, 576), a little brighter than black, and the grid of their pixels."""
    import numpy as np
    from sklearn.datasets import load_digits

    import cusink

    images = np.kron(load_digits().images[:200], np.ones((3, 3))) + 0.01
    images = images.reshape(len(images), -1)
    return images / images.sum(axis=1, keepdims=True), cusink.Grid((24, 24))


def report(name, run, given):
    """Print the times of a work; return its title, what was wanted of it, and whether every answer was the same."""
    from benchmarks.harness.timing import compare, reached

    name += ", a core busy" if given.busy else ""
    want = [x.tobytes() for x in run(1)]
    times = {1: [], 2: []}
    for k in range(given.rounds):
        for workers in (1, 2) if k % 2 else (2, 1):
            start = time.perf_counter()
            found = run(workers)
            times[workers].append(time.perf_counter() - start)
            if [x.tobytes() for x in found] != want:
                print(f"{name}: WRONG, the bytes differ")
                return {"title": name, "right": False, "targets": []}
    ratio, low, high = compare(times[2], times[1])
    one, two = map(statistics.median, times.values())
    print(
        f"{name}: one thread {one:.2f} s, two {two:.2f} s, "
        f"{ratio:.2f} times faster ({low:.2f} to {high:.2f}), same bytes",
        flush=True,
    )
    least = BESIDE_A_BUSY_CORE if given.busy else TWO_FREE_CORES
    wanted = reached("one thread", f">= {least:g} x faster", f"{ratio:.2f} ({low:.2f} to {high:.2f})", ratio >= least)
    return {"title": name, "right": True, "targets": [wanted]}


if __name__ == "__main__":
    sys.exit(main())
