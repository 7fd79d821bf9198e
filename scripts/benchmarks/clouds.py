#!/usr/bin/env python3
"""Time and check costs between point clouds beside OTT-JAX, POT, GeomLoss and plain NumPy; print tables as Markdown.

The work: d = 3, squared distances, uniform weights, eps = 0.01 of the mean cost, exactly so many iterations, float32.
All competitors of a row run interleaved in one process. Before that every answer is compared with a float64 log-sum-exp
of its own: a wrong one is shown as WRONG. Compilation and the first call are left out for everyone.

Run it in the environment that ``scripts/bench`` makes: ``.venv-bench/bin/python scripts/benchmarks/clouds.py``.
GeomLoss and KeOps take part if they are installed there.
"""

import argparse
import importlib
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness.timing import machine

TOLERANCE = 1e-4  # of a right answer in float32, relative to the float64 reference
BLOCK = 1 << 22


@dataclass(frozen=True)
class Clouds:
    """One problem."""

    x: np.ndarray
    y: np.ndarray
    eps: float
    iterations: int


def clouds(kind, n, iterations):
    """Two clouds of n points each in float32: of a normal or of a uniform distribution."""
    rng = np.random.default_rng(n)
    x, y = (rng.normal(size=(n, 3)) if kind == "normal" else rng.random((n, 3)) for _ in range(2))
    x, y = x.astype(np.float32), y.astype(np.float32)
    mean = (x.astype(float) ** 2).sum(1).mean() + (y.astype(float) ** 2).sum(1).mean() - 2 * x.mean(0) @ y.mean(0)
    return Clouds(x, y, float(0.01 * mean), iterations)


def blocks(x, y):
    """Slices of x, and their squared distances from all y."""
    step = max(1, BLOCK // len(y))
    squares = (y * y).sum(axis=1)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, np.maximum((x[rows] * x[rows]).sum(axis=1)[:, None] + squares - 2 * x[rows] @ y.T, 0)


def softmin(x, y, potential, eps):
    """``-eps log mean_j exp((potential_j - C_ij) / eps)`` in the dtype of the points, in blocks."""
    out = np.empty(len(x), x.dtype)
    for rows, C in blocks(x, y):
        C -= potential
        C /= -eps
        top = C.max(axis=1)
        C -= top[:, None]
        out[rows] = -eps * (np.log(np.exp(C, out=C).sum(axis=1) / len(y)) + top)
    return out


def cost_of(work, f, g):
    """``<P, C>`` of potentials in float64."""
    x, y, f, g = (np.asarray(v, np.float64) for v in (work.x, work.y, f, g))
    total = 0.0
    for rows, C in blocks(x, y):
        total += float((np.exp((f[rows, None] + g - C) / work.eps) * C).sum())
    return total / (len(x) * len(y))


def iterate(work, dtype):
    """Return the potentials after so many iterations by blocks of log-sum-exp."""
    x, y = work.x.astype(dtype), work.y.astype(dtype)
    f = np.zeros(len(x), dtype)
    for _ in range(work.iterations):
        g = softmin(y, x, f, dtype(work.eps))
        f = softmin(x, y, g, dtype(work.eps))
    return f, g


def reference(work, folder):
    """Return the cost in float64, kept in `folder`: it takes minutes for large clouds."""
    key = f"{work.x.shape[0]}-{work.iterations}-{float(work.x.sum()):.6f}-{work.eps:.9f}.txt"
    path = folder / key
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(repr(cost_of(work, *iterate(work, np.float64))))
    return float(path.read_text())


# Everyone who takes part: ``make(work)`` gives ``run``, which is timed, and ``read``, which makes a cost of its answer.


def cusink_points(work, memory_limit=None):
    import cusink

    def run():
        # The cloud is made inside: what it prepares is part of the work.
        C = cusink.PointCloud(work.x, work.y)
        options = {"max_iter": work.iterations, "tol": None, "memory_limit": memory_limit}
        return cusink.sinkhorn(None, None, C, eps=work.eps, **options)

    return run, lambda result: float(result.cost)


def numpy_blocks(work):
    return lambda: iterate(work, np.float32), lambda potentials: cost_of(work, *potentials)


def ott_points(work):
    import jax
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    n = work.iterations
    solver = sinkhorn.Sinkhorn(lse_mode=True, min_iterations=n, max_iterations=n, threshold=-1.0)

    @jax.jit
    def solve(x, y):
        out = solver(linear_problem.LinearProblem(pointcloud.PointCloud(x, y, epsilon=work.eps)))
        return out.f, out.g

    x, y = jax.numpy.asarray(work.x), jax.numpy.asarray(work.y)

    def run():
        return [np.asarray(v) for v in solve(x, y)]

    def read(potentials):
        # Its weights are inside: f + eps log a.
        return cost_of(work, *(v + work.eps * np.log(len(v)) for v in potentials))

    return run, read


def pot_points(work, dtype, lazy=False):
    import ot

    x, y = work.x.astype(dtype), work.y.astype(dtype)
    if lazy:  # which updates f first: a and b change places
        x, y = y, x

    def run():
        options = {"numIterMax": work.iterations, "stopThr": 0, "log": True, "isLazy": lazy, "warn": False}
        return ot.bregman.empirical_sinkhorn(x, y, work.eps, metric="sqeuclidean", **options)

    def read(answer):
        if lazy:
            u, v = (np.asarray(answer[k], np.float64) for k in (0, 1))
            size = work.eps * np.log(len(x))
            return cost_of(work, v * work.eps + size, u * work.eps + size)
        G = answer[0]
        return float(sum((G[rows] * C).sum(dtype=np.float64) for rows, C in blocks(x.astype(float), y.astype(float))))

    return run, read


def geomloss_points(work, backend):
    """Its own annealed iteration, one symmetric update at a time: counted, not compared."""
    import torch
    from geomloss import SamplesLoss

    theirs = importlib.import_module(SamplesLoss.__module__.rpartition(".")[0] + ".sinkhorn_divergence")
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y)
    blur, diameter = (work.eps / 2) ** 0.5, theirs.max_diameter(x, y)  # its cost is half the square
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.9, diameter=diameter, debias=False, backend=backend)
    count = len(theirs.epsilon_schedule(2, diameter, blur, 0.9)) + 1
    return lambda: loss(x, y), lambda value: None, count


def competitors(n):
    """Name, maker, rounds at most (None for all) and iterations at most."""
    large = n > 10_000
    yield "cusink", cusink_points, None, None
    if large:
        yield "cusink, `memory_limit` 200 MB", partial(cusink_points, memory_limit=200_000_000), None, None
    yield "OTT `PointCloud`", ott_points, 2 if large else None, 10 if large else None  # it looks up every 10
    if not large:
        yield "POT `empirical_sinkhorn`", partial(pot_points, dtype=np.float32), 3, None
        yield "POT `empirical_sinkhorn`, float64", partial(pot_points, dtype=np.float64), 3, None
        yield "POT `empirical_sinkhorn`, lazy", partial(pot_points, dtype=np.float32, lazy=True), 1, 10
        yield "GeomLoss, tensorized", partial(geomloss_points, backend="tensorized"), 2, None
    yield "GeomLoss, online (KeOps)", partial(geomloss_points, backend="online"), 2, None
    yield "NumPy, blocks of log-sum-exp", numpy_blocks, 1, 2 if large else 10


def first_call(make, work, folder):
    """Make, call once, judge: ``(run, iterations, verdict)``; a peer that fails must not end the others' run."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            run, read, *count = make(work)
            cost = read(run())
    except Exception as problem:
        return None, 0, f"FAILED: {type(problem).__name__}: {' '.join(str(problem).split())[:60]}"
    if cost is None:
        return run, count[0], "an iteration of its own"
    right = reference(work, folder)
    error = abs(cost - right) / right
    verdict = f"right, {error:.1e}" if error <= TOLERANCE else f"WRONG: off by {error:.1e}"
    return run, work.iterations, verdict


def run_row(kind, n, iterations, rounds, clock, folder):
    """Print the table of one size."""
    print(f"\n### {n} x {n} points, {kind}, {iterations} iterations\n", flush=True)
    entries = {}
    for name, make, most, fewer in competitors(n):
        print(f"{n} {name} ...", file=sys.stderr, flush=True)
        work = clouds(kind, n, min(iterations, fewer or iterations))
        run, count, verdict = first_call(make, work, folder)
        entries[name] = {"run": run, "count": count, "verdict": verdict, "most": most or rounds, "times": []}
    for turn in range(rounds):
        for entry in entries.values():
            if entry["run"] is not None and turn < entry["most"]:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    start = clock()
                    entry["run"]()
                    entry["times"].append((clock() - start) / entry["count"])
    ours = statistics.median(entries["cusink"]["times"])
    print("| | answer | iterations | time per iteration | time / cusink's |\n|---|---|---|---|---|")
    for name, e in entries.items():
        if e["times"]:
            median = statistics.median(e["times"])
            numbers = f"{e['count']} | {1e3 * median:.3g} ms | {median / ours:.3g}"
        else:
            numbers = " | | "
        print(f"| {name} | {e['verdict']} | {numbers} |", flush=True)


def memory_row(n, iterations, limits):
    """Peak growth of the resident set for each limit, in a process of its own."""
    print(
        f"\n### Memory, {n} x {n} points, {iterations} iterations\n\n| | peak resident growth |\n|---|---|", flush=True
    )
    for limit in limits:
        command = [sys.executable, __file__, "--measure-memory", str(limit), str(n), str(iterations)]
        child = subprocess.run(command, capture_output=True, text=True)
        answer = child.stdout.strip() or f"FAILED: {child.stderr.strip().splitlines()[-1][:80]}"
        print(f"| cusink, `memory_limit` {limit / 1e6:g} MB | {answer} |", flush=True)


def measure_memory(limit, n, iterations):
    """Print by how much a solve makes this process grow; `memory_row` runs it in a process of its own."""

    def resident(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    cusink_points(clouds("normal", 500, 2))[0]()  # what the first call loads is not the call's memory
    run, _ = cusink_points(clouds("normal", n, iterations), limit)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh
    before = resident("VmRSS")
    run()
    print(f"{(resident('VmHWM') - before) / 1e6:.0f} MB")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 5000, 20000])
    parser.add_argument("--kind", choices=["normal", "uniform"], default="normal")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5, help="how often the fast ones are timed (default: 5)")
    parser.add_argument("--one-core", action="store_true", help="use one core and count CPU time: for a busy machine")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory rows out")
    parser.add_argument("--measure-memory", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure_memory:
        measure_memory(*args.measure_memory)
        return
    clock, how = time.perf_counter, f"wall time, {len(os.sched_getaffinity(0))} cores"
    if args.one_core:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before the peers count the cores
        clock, how = time.process_time, "CPU time, one core"
    for key, value in machine().items():
        print(f"- {key}: {value}")
    print(f"- {how}; load {os.getloadavg()[0]:.1f} at the start", flush=True)
    folder = Path(__file__).resolve().parents[2] / ".cache" / "point-clouds"
    for n in args.sizes:
        run_row(args.kind, n, args.iterations, args.rounds, clock, folder)
    if not args.no_memory:
        memory_row(max(args.sizes), 10, (20_000_000, 200_000_000, 1_000_000_000))


if __name__ == "__main__":
    main()
