#!/usr/bin/env python3
"""What ncu counts in the hot kernels at the sizes of the goals, one part of them at a time.

Without a filter ncu would profile the first launches that it meets, which are those of CuPy's own operations.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.gpu import kernels as bench  # noqa: E402
from benchmarks.gpu import workload  # noqa: E402

COUNTERS = (
    "gpu__time_duration.sum",
    "sm__cycles_active.avg",
    "sm__inst_executed.avg.per_cycle_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_xu.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
# What tensor cores do has other names on other devices; ncu refuses all where it does not know one.
TENSOR = (("sm__inst_executed_pipe_tensor_op_hmma.sum",), ("sm__inst_executed_pipe_tensor.sum",), ())
NAMES = (
    "softmin apply_plan transport_cost logit_update iterate split_step split_points plan begin_at_once end_at_once "
    "adjoint kernel_sums kernel_slopes documents ragged grid_half_step grid_log_step grid_product"
).split()
FILTER = f"^({'|'.join(NAMES)})"
MOST = 40  # launches of a part
NOT_PERMITTED = "ERR_NVGPUCTRPERM"


def small(draw, tiny):
    """Solve one problem and a thousand: 200 iterations, and the gradients of both values."""
    import cusink

    n = 20 if tiny else 100
    places = np.arange(n) / n
    C = draw.array((places[:, None] - places) ** 2)
    for B in (1, 3 if tiny else 1000):
        result = cusink.sinkhorn(draw.weights(B, n)[:B], draw.weights(B, n), C, eps=1e-3, tol=None, max_iter=200)
        workload.adjoint(result)


def dense(draw, tiny):
    """Take log-sum-exps of a stored cost, and its gradient."""
    import cusink

    B, n = (9, 230) if tiny else (256, 1000)
    a, b, C = draw.weights(B, n), draw.weights(B, n), draw.cost(n, n)
    workload.adjoint(cusink.sinkhorn(a, b, C, eps=0.05, tol=None, max_iter=1, method="log"))


def products(draw, tiny):
    """Iterate with a large shared cost on tensor cores."""
    import cusink

    B, n = (34, 230) if tiny else (45 * 37, 4000)
    cusink.sinkhorn(draw.weights(B, n), draw.weights(B, n), draw.cost(n, n), eps=0.1, tol=None, max_iter=2)


def points(draw, tiny):
    """Solve clouds of few and of many coordinates, and take sums of a kernel."""
    import cusink

    for d, n in ((3, 70), (64, 90)) if tiny else ((3, 10**4), (64, 10**4)):
        x, y = draw.points(n, d), draw.points(n - 1, d)
        cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.1 * d, tol=None, max_iter=1, memory_limit=8 * n)
        cusink.kernel_product(x, y, draw.weights(1, n - 1)[0])


def pairs(draw, tiny):
    """Solve documents, pairs of clouds, and a grid."""
    import cusink

    items, words = (2, 5) if tiny else (64, 50)
    x, y = (draw.measures(*[words] * items, d=64) for _ in range(2))
    cusink.distance_matrix(x, y, "sqeuclidean", eps=1.0, tol=None, max_iter=20)
    x, y = (draw.measures(*[2 * words] * items, d=3) for _ in range(2))
    workload.adjoint(cusink.sinkhorn(x, y, "sqeuclidean", eps=0.1, tol=1e-3))
    side = 9 if tiny else 256
    a, b = (draw.weights(2, side**2) for _ in range(2))
    for eps, options in ((0.1 * side, {}), (1.0, {"method": "log"})):
        cusink.sinkhorn(a, b, cusink.Grid((side, side)), eps=eps, tol=None, max_iter=1, **options)


# Each part, and beginnings of the names of kernels that it must show.
PARTS = {
    "small": (small, ("begin_at_once", "iterate", "end_at_once", "adjoint")),
    "dense": (dense, ("softmin_rows", "softmin_columns", "logit_update", "plan_sum")),
    "products": (products, ("split_step",)),
    "points": (points, ("softmin_points", "softmin_products", "kernel_sums", "kernel_sums_products")),
    "pairs": (pairs, ("documents", "ragged", "grid_half_step", "grid_log_step")),
}


def command(path, part, log, metrics):
    """Return the command that profiles a part into a file."""
    chosen = ["--kernel-name", f"regex:{FILTER}", "--launch-count", str(MOST), "--metrics", ",".join(metrics)]
    # At the clock that the device runs at anyway, not at its base clock.
    how = ["--clock-control", "none", "--target-processes", "all", "--csv", "--print-units", "base"]
    return [str(path), *how, "--log-file", str(log), *chosen, sys.executable, str(Path(__file__).resolve()), part]


def table(text):
    """Return a row for each launch in a CSV of ncu, which has a line for each of its metrics."""
    lines = text.splitlines()
    start = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = {}
    for line in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        row = rows.setdefault(
            line["ID"],
            {"kernel": line["Kernel Name"].partition("(")[0], "grid": line["Grid Size"], "block": line["Block Size"]},
        )
        value = line["Metric Value"].replace(",", "")
        row[line["Metric Name"]] = float(value) if re.fullmatch(r"[-+.\deE]+", value) else value
    return list(rows.values())


def missing(part, rows):
    """Return the kernels that a part should have shown and did not."""
    names = [row.get("kernel", "") for row in rows]
    return [name for name in PARTS[part][1] if not any(found.startswith(name) for found in names)]


def profiled(path, part, limit):
    """Yield a row for each launch of a part, and one that says what is missing."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        for tensor in TENSOR:
            log.unlink(missing_ok=True)
            call = command(path, part, log, (*COUNTERS, *tensor))
            try:
                done = subprocess.run(
                    call, env=environment, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=limit
                )
                code, said = done.returncode, done.stdout + done.stderr
            except subprocess.TimeoutExpired:
                code, said = None, "took too long"
            written = log.read_text(errors="replace") if log.exists() else ""
            rows, said = table(written), said + "\n".join(x for x in written.splitlines() if x.startswith("=="))
            if rows or code is None or NOT_PERMITTED in said:
                break
    for row in rows:
        yield {"part": part, **row}
    if lacking := missing(part, rows):
        reason = NOT_PERMITTED if NOT_PERMITTED in said else said[-800:]
        yield {"part": part, "missing": lacking, "code": code, "status": reason}


def profile(tiny, limit=20):
    """Yield ncu's counters of the hot kernels, where ncu is there and allowed."""
    if tiny:
        for name, (part, _) in PARTS.items():
            begun = len(workload.LAUNCHED)
            with workload.tensor_cores_always(), workload.quiet():
                part(workload.Draws("float32"), True)
            # What ncu would take of these launches.
            seen = [kernel for kernel in workload.LAUNCHED[begun:] if re.match(FILTER, kernel)][:MOST]
            lacking = missing(name, [{"kernel": kernel} for kernel in seen])
            yield {"part": name, "status": "emulated", "kernels": seen} | ({"missing": lacking} if lacking else {})
        return
    path = shutil.which("ncu") or next(iter(sorted(Path("/usr/local").glob("cuda*/bin/ncu"))), None)
    if path is None:
        yield {"status": bench.NOT_INSTALLED}
        return
    for part in PARTS:
        yield from profiled(path, part, limit)


if __name__ == "__main__":
    with workload.quiet():
        PARTS[sys.argv[1]][0](workload.Draws("float32"), False)
