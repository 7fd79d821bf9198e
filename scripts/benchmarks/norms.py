#!/usr/bin/env python3
"""Time and peak memory of `cusink.kernel_product` beside NumPy in plain blocks and, where it is installed, KeOps.

Everything runs on the CPU on the same points. Each answer is first compared with the sum in float64 by definition, and
a wrong one is shown as wrong. Times are medians of interleaved rounds: CPU time of all threads, which a busy machine
disturbs less, and elapsed time. Peak memory is by how much a call raises the resident set of a process of its own.

    python scripts/benchmarks/norms.py                 # 20000 x 20000 points in the plane, float32
    python scripts/benchmarks/norms.py --points 5000 --coordinates 3 --kernel laplace --dtype float64

KeOps: pip install pykeops; it compiles a formula at its first use, which is not timed.
"""

import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import cusink

KERNELS = ("gaussian", "laplace", "energy", "exponential", "distance")
FORMULAS = {
    "gaussian": "Exp(-S * SqDist(x, y)) * b",
    "laplace": "Exp(-Sqrt(SqDist(x, y) + S)) * b",
    "energy": "Rsqrt(Sqrt(SqDist(x, y) + S)) * b",
    "exponential": "Exp(-Sqrt(SqDist(x, y) * S)) * b",
    "distance": "-Sqrt(SqDist(x, y) * S) * b",
}
ROWS = 512  # of a block of plain NumPy


def make(points, coordinates, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, points, coordinates)).astype(dtype)
    return x, y, rng.random(points).astype(dtype)


def kernel_of(q, kernel, s):
    if kernel == "gaussian":
        return np.exp(-q / q.dtype.type(s**2))
    if kernel in ("exponential", "distance"):
        log = -np.sqrt(q / q.dtype.type(s**2))
        return np.exp(log) if kernel == "exponential" else log
    root = q + q.dtype.type(s**2)
    return np.exp(-np.sqrt(root)) if kernel == "laplace" else root ** q.dtype.type(-0.25)


def numpy_differences(x, y, b, kernel, s):
    """Blocks of rows, squared differences as they are written down."""
    rows = range(0, len(x), ROWS)
    return np.concatenate([kernel_of(((x[i : i + ROWS, None] - y) ** 2).sum(axis=2), kernel, s) @ b for i in rows])


def numpy_products(x, y, b, kernel, s):
    """Blocks of rows, |x|^2 + |y|^2 - 2 x y by a matrix product, as scikit-learn does it."""
    out, squares = [], (y * y).sum(axis=1)
    for i in range(0, len(x), ROWS):
        block = x[i : i + ROWS]
        q = (block * block).sum(axis=1)[:, None] + squares - 2 * (block @ y.T)
        out.append(kernel_of(np.maximum(q, 0, out=q), kernel, s) @ b)
    return np.concatenate(out)


def keops(x, y, b, kernel, s):
    from pykeops.numpy import Genred

    d = x.shape[1]
    variables = [f"x = Vi({d})", f"y = Vj({d})", "b = Vj(1)", "S = Pm(1)"]
    scale = s**2 if kernel in ("laplace", "energy") else 1 / s**2
    reduce = Genred(FORMULAS[kernel], variables, reduction_op="Sum", axis=1)
    return reduce(x, y, b[:, None], np.array([scale], x.dtype), backend="CPU")[:, 0]


def cusink_product(x, y, b, kernel, s):
    return cusink.kernel_product(x, y, b, kernel, s)


def contestants():
    some = {"cusink": cusink_product, "NumPy, products": numpy_products, "NumPy, differences": numpy_differences}
    return some | ({"KeOps": keops} if importlib.util.find_spec("pykeops") else {})


def exact(x, y, b, kernel, s):
    """Return the sums in float64 for every 100th point."""
    q = ((x[::100, None].astype(np.float64) - y) ** 2).sum(axis=2)
    return kernel_of(q, kernel, s) @ b.astype(np.float64)


def resident(field):
    """VmRSS (now) or VmHWM (the peak) of this process in bytes; Linux only."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak(name, options):
    """Bytes by which one call of `name` raises the resident set of this process."""
    x, y, b = make(options.points, options.coordinates, options.dtype)
    few = slice(0, 3000)  # loads what is loaded once
    contestants()[name](x[few], y[few], b[few], options.kernel, options.scale)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh
    before = resident("VmRSS")
    contestants()[name](x, y, b, options.kernel, options.scale)
    return resident("VmHWM") - before


def measure(options):
    """Return a dictionary per contestant: error, CPU and elapsed seconds, peak bytes."""
    x, y, b = make(options.points, options.coordinates, options.dtype)
    right, found = exact(x, y, b, options.kernel, options.scale), {}
    runners = contestants()
    for name, run in runners.items():
        answer = run(x, y, b, options.kernel, options.scale)
        found[name] = {
            "error": float(np.abs(answer[::100] - right).max() / np.abs(right).max()),
            "cpu": [],
            "elapsed": [],
        }
    for _ in range(options.rounds):
        for name, run in runners.items():
            cpu, elapsed = time.process_time(), time.perf_counter()
            run(x, y, b, options.kernel, options.scale)
            found[name]["cpu"].append(time.process_time() - cpu)
            found[name]["elapsed"].append(time.perf_counter() - elapsed)
    for name, entry in found.items():
        child = subprocess.run([*options.again, "--peak", name], capture_output=True, text=True)
        entry["peak"] = int(child.stdout.split()[-1]) if child.returncode == 0 else None
        entry |= {key: statistics.median(entry[key]) for key in ("cpu", "elapsed")}
        entry["right"] = entry["error"] <= 64 * float(np.finfo(options.dtype).eps)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--points", type=int, default=20000, help="points on either side")
    parser.add_argument("--coordinates", type=int, default=2)
    parser.add_argument("--kernel", choices=KERNELS, default="gaussian")
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.again = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
    if options.peak:
        print(peak(options.peak, options))
        return 0
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    ours = found["cusink"]
    print(
        f"\n{options.kernel}, {options.points} x {options.points} points, d = {options.coordinates}, {options.dtype}\n"
    )
    print("| | CPU time | elapsed | CPU time / cusink's | elapsed / cusink's | peak memory | largest error |")
    print("|---|---|---|---|---|---|---|")
    for name, entry in found.items():
        ratios = (entry[key] / ours[key] for key in ("cpu", "elapsed"))
        memory = "-" if entry["peak"] is None else f"{entry['peak'] / 2**20:.1f} MiB"
        error = f"{entry['error']:.1e}" + ("" if entry["right"] else ", **wrong**")
        numbers = [f"{entry[key]:.2f} s" for key in ("cpu", "elapsed")] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {name} | {' | '.join(numbers)} | {memory} | {error} |")
    return 0 if ours["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
