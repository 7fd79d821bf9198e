#!/usr/bin/env python3
"""Solve large pairs of clouds until the marginal error is reached, beside GeomLoss's multiscale; print Markdown.

The work: uniform random points of the unit cube, squared distances, uniform weights, float32. Each solve runs in a
process of its own: seconds of CPU time and of the clock, and the growth of the resident set, are those of the call. The
error is taken from the returned potentials by float64 sums over all pairs of a random sample of columns.

GeomLoss and KeOps take part if they are installed. GeomLoss has no tolerance: its annealing gets finer until the error
is reached. Its first call, which compiles, is made before on a small pair.

    .venv-bench/bin/python scripts/benchmarks/large_clouds.py 100000:3:1e-3
    .venv-bench/bin/python scripts/benchmarks/large_clouds.py 10000:2:1e-2 100000:2:1e-2 1000000:2:1e-2 --no-peer
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness.timing import machine

EPS = 1e-3
SCALINGS = 0.5, 0.7, 0.9  # of GeomLoss: the factor between two of its blurs
SAMPLE_PAIRS = 200_000_000  # of the columns whose sums are taken again
BLOCK = 1 << 22


def clouds(n, d):
    """Make two clouds of n points in float32."""
    rng = np.random.default_rng(n)
    return rng.random((n, d), np.float32), rng.random((n, d), np.float32)


def column_error(x, y, f, g, eps):
    """Return the L1 error of the column marginal, estimated from the columns of a random sample."""
    count = min(len(y), max(100, SAMPLE_PAIRS // len(x)))
    columns = np.random.default_rng(0).choice(len(y), count, replace=False)
    x, errors = x.astype(float), []
    step = max(1, BLOCK // len(x))
    for start in range(0, count, step):
        some = columns[start : start + step]
        exponents = f[:, None] + g[some]
        for along, other in zip(x.T, y[some].astype(float).T, strict=True):
            exponents -= (along[:, None] - other) ** 2
        exponents /= eps
        errors.append(np.abs(np.exp(exponents, out=exponents).mean(axis=0) - 1))
    return float(np.concatenate(errors).mean())


def cusink_solve(x, y, tol, scaling):
    import cusink

    del scaling
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=EPS, tol=tol)
    return result.problem.f[0], result.problem.g[0], {"error": float(result.error), "n_iter": int(result.n_iter)}


def cusink_divergence(x, y, tol, scaling):
    """Solve the three problems of a divergence, and take its gradients by the points."""
    import cusink

    del scaling
    result = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(x, y), eps=EPS, tol=tol)
    solved = time.process_time()
    cusink.sinkhorn_divergence_adjoint(result).x  # noqa: B018 - computed when it is read
    of_pair, more = result.problems[0], {"gradient": time.process_time() - solved}
    return of_pair.f[0], of_pair.g[0], more | {"error": float(result.error), "n_iter": int(result.n_iter)}


def geomloss_solve(x, y, tol, scaling):
    import torch
    from geomloss import SamplesLoss

    del tol
    # Its cost is half the square, and eps is the blur squared.
    options = {"p": 2, "blur": math.sqrt(EPS / 2), "debias": False, "potentials": True}
    loss = SamplesLoss("sinkhorn", scaling=scaling, backend="multiscale", **options)
    f, g = loss(torch.from_numpy(x), torch.from_numpy(y))
    return *(2 * v.double().numpy().reshape(-1) for v in (f, g)), {}


def resident(field):
    """Return a line of the status of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{field}:")[1].split()[0])


def watch(peak, done):
    """Keep the largest resident set."""
    while not done.wait(0.05):
        peak[0] = max(peak[0], resident("VmRSS"))


SOLVES = {"cusink": cusink_solve, "divergence": cusink_divergence, "geomloss": geomloss_solve}


def measure(name, n, d, tol, scaling):
    """Solve once in this process; print what it took as JSON."""
    solve = SOLVES[name]
    solve(*clouds(500, d), tol, 0.5)  # what the first call loads or compiles is not the call's
    x, y = clouds(n, d)
    before, peak, done = resident("VmRSS"), [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    clock, cpu = time.perf_counter(), time.process_time()
    f, g, more = solve(x, y, tol, scaling)
    seconds = {"wall": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    done.set()
    watcher.join()
    print(json.dumps(seconds | {"memory": peak[0] - before, "measured": column_error(x, y, f, g, EPS)} | more))


def in_a_process(*args):
    """Return what `measure` prints, or why it failed."""
    child = subprocess.run([sys.executable, __file__, "--measure", *map(str, args)], capture_output=True, text=True)
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        return {"failed": " ".join((child.stderr.strip().splitlines() or ["killed"])[-1].split())[:80]}
    return json.loads(lines[-1])


def row(name, found):
    """Print one row of the table."""
    if "failed" in found:
        print(f"| {name} | FAILED: {found['failed']} | | | | | |", flush=True)
        return
    iterations, claimed = found.get("n_iter", ""), f"{found['error']:.1e}" if "error" in found else ""
    times = f"{found['cpu']:.3g} s | {found['wall']:.3g} s | {found['memory'] / 1e6:.0f} MB"
    print(f"| {name} | {found['measured']:.1e} | {claimed} | {iterations} | {times} |", flush=True)


def compare(n, d, tol, peer):
    """Print the table of one size; return cusink's CPU time."""
    print(f"\n### {n} x {n} points, d = {d}, eps = {EPS:g}, error {tol:g}\n")
    print("| | error, measured | error, claimed | iterations | CPU | wall | memory |\n|---|---|---|---|---|---|---|")
    ours = in_a_process("cusink", n, d, tol, 0)
    row("cusink", ours)
    divergence = in_a_process("divergence", n, d, tol, 0)
    row("cusink, divergence and gradients", divergence)
    if "failed" not in divergence:
        print(f"| of it the gradients | | | | {divergence['gradient']:.3g} s | | |", flush=True)
    for scaling in SCALINGS if peer else ():
        theirs = in_a_process("geomloss", n, d, tol, scaling)
        row(f"GeomLoss, multiscale, scaling {scaling}", theirs)
        if "failed" not in theirs and "failed" not in ours:
            print(f"| its CPU time / cusink's | {theirs['cpu'] / ours['cpu']:.2f} | | | | | |", flush=True)
        if theirs.get("measured", 0) <= tol:
            break
    return ours.get("cpu", math.nan)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="*", default=["100000:3:1e-3"], help="points:dimensions:error (%(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave GeomLoss out")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        name, n, d, tol, scaling = args.measure
        measure(name, int(n), int(d), float(tol), float(scaling))
        return
    for key, value in machine().items():
        print(f"- {key}: {value}")
    print(f"- {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f} at the start", flush=True)
    done = []
    for text in args.work:
        n, d, tol = text.split(":")
        done.append((int(n), compare(int(n), int(d), float(tol), not args.no_peer)))
    if len({n for n, _ in done}) > 2:
        points, times = (np.log(np.array(v, float)) for v in zip(*done, strict=True))
        print(f"\nCPU time grows like the number of points to the power {np.polyfit(points, times, 1)[0]:.2f}.")


if __name__ == "__main__":
    main()
