#!/usr/bin/env python3
"""Time the CUDA operators on this machine's GPU, beside what the device can do and beside the report's own kernel.

Every row is first checked against a float64 NumPy oracle: an operator whose answer is wrong is shown as wrong, not as
fast. Times are CUDA events around back-to-back calls. Each row is one line of JSON; a table and the floors follow.
Without a GPU nothing is measured and nothing is estimated: the cells say so, and the compiler's static budget stands.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/

from benchmarks.gpu.cases import FOLDER, Case, Data, all_cases, check, operation, report_operation
from benchmarks.gpu.clouds import FLASH, PointCase, point_cases, prepare

ROOT = FOLDER.parents[2]
NOT_MEASURED, NOT_INSTALLED = "not measured", "not installed"
COMMIT = "CUSINK_COMMIT"  # in the environment: the commit of a copy without its history


def missing_gpu():
    """Why nothing can be measured here; an empty string if it can."""
    try:
        import cupy

        cupy.cuda.runtime.getDevice()
        cupy.zeros(1).sum()
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install -e '.[cuda12]' or '.[cuda13]'"
    except Exception as error:  # whatever the driver says, it is the reason
        return f"CuPy finds no usable GPU ({type(error).__name__}: {error})"
    return ""


def device_time(xp, call, repeats=7, least=0.05):
    """Return (median, smallest) time of `call` in seconds, over `repeats` spans of at least `least` seconds each."""
    begin, end = xp.cuda.Event(), xp.cuda.Event()

    def span(calls):
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return xp.cuda.get_elapsed_time(begin, end) / 1000

    span(2)  # compiles, and fills the memory pool
    calls = max(1, int(least / max(span(1), 1e-6)))
    spans = [span(calls) / calls for _ in range(repeats)]
    return statistics.median(spans), min(spans)


def device_rates(xp, kernels):
    """Measure the device at its best: bytes/s of a copy (read and written), exp/s of each dtype."""
    source = xp.zeros(2**27, np.float64)
    target = xp.empty_like(source)
    rates = {"bytes_per_s": 2 * source.nbytes / device_time(xp, lambda: xp.copyto(target, source))[1], "exp_per_s": {}}
    grid, block, rounds = xp.cuda.Device().attributes["MultiProcessorCount"] * 16, 256, np.int32(2048)
    for dtype in ("float32", "float64"):
        kernel = kernels.function(str(FOLDER / "rates.cu"), "exp_rate", dtype)
        out = xp.empty(grid * block, dtype)
        seconds = device_time(xp, lambda kernel=kernel, out=out: kernel((grid,), (block,), (out, rounds)))[1]
        rates["exp_per_s"][dtype] = out.size * 8 * int(rounds) / seconds
    return rates


def measure(case, xp, ops, kernels, rates, time=device_time):
    """Check one case, then time it; return what its row says."""
    if isinstance(case, PointCase):
        if (prepared := prepare(case, xp)) is None:
            return {"status": NOT_INSTALLED}
        if isinstance(prepared, str):
            return {"status": prepared}
        call, judge = prepared
        return timed(case, call, *judge(call()), xp, rates, time)
    data = Data(case, xp)
    if case.operator.startswith("report"):
        kernel = kernels.function(str(FOLDER / "report.cu"), "report_half_step", data.dtype)
        work = {block: report_operation(case, data, kernel, block, xp) for block in (32, 64, 128, 256)}
        # The baseline is given the block size that suits it best here.
        call, read = work[min(work, key=lambda block: time(xp, work[block][0], 3, 0.0)[1])]
    else:
        call, read = operation(case, data, ops, xp)
    return timed(case, call, *check(case, data, read(call())), xp, rates, time)


def timed(case, call, error, allowed, xp, rates, time):
    """Return a row: how far off the answer is, and if it is right, the time that it takes."""
    row = {"status": "measured", "error": error, "allowed": allowed}
    if not error <= allowed:
        return row | {"status": "wrong"}
    seconds, least = time(xp, call)
    row |= {"ms": seconds * 1e3, "ms_least": least * 1e3, "bytes_per_s": case.bytes / seconds}
    row["of_copy"] = row["bytes_per_s"] / rates["bytes_per_s"]
    if case.exps:
        row["exp_per_s"] = case.exps / seconds
        row["of_exp"] = row["exp_per_s"] / rates["exp_per_s"][case.dtype]
    return row


def printed(output, *lines):
    """Print lines of JSON, and append them to `output` if there is one."""
    for line in map(json.dumps, lines):
        print(line, flush=True)
        if output:
            with output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def conditions(xp):
    """Return the conditions that a figure depends on: device, driver, versions, commit."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "device": xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode(),
        "driver": (answer(query).splitlines() or ["unknown"])[0],
        "driver_cuda": xp.cuda.runtime.driverGetVersion(),
        "nvrtc": ".".join(map(str, xp.cuda.nvrtc.getVersion())),
        "cupy": xp.__version__,
        "commit": commit(),
    }


def answer(command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit():
    """Return the commit that is measured, marked if the tree differs from it."""
    if named := os.environ.get(COMMIT):
        return named
    name = answer(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown"
    return name + "-dirty" * bool(answer(["git", "status", "--porcelain", "--untracked-files=no"]))


def table(rows):
    """Return the rows as text."""
    head = ("operator", "cost", "detail", "B x n x m", "dtype", "ms", "GB/s", "of copy", "Gexp/s", "of exp", "error")
    lines = [head]
    for case, row in rows:
        if row["status"] == "measured":
            error = f"{row['error']:.1e}"
            gexp, of_exp = (f"{row['exp_per_s'] / 1e9:.1f}", f"{row['of_exp']:.0%}") if case.exps else ("", "")
            speed = f"{row['bytes_per_s'] / 1e9:.1f}", f"{row['of_copy']:.0%}"
            cells = (f"{row['ms']:.4f}", *speed, gexp, of_exp, error)
        elif row["status"] == "wrong":
            cells = ("WRONG", "", "", "", "", f"{row['error']:.1e} > {row['allowed']:.1e}")
        else:
            cells = (row["status"],) * 6
        name = case.operator + f" x {case.count}" * (case.count > 1)
        detail = f"axis {case.detail}" if isinstance(case.detail, int) else case.detail or ""
        lines.append((name, case.cost, detail, f"{case.B} x {case.n} x {case.m}", case.dtype, *cells))
    return aligned(lines)


def aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def floors(rows):
    """Return the floors that hold on an H100, and the figures reached: (name, floor, reached)."""
    found = {case: row for case, row in rows if row["status"] == "measured"}

    def reached(field, words, *where):
        values = [found[case][field] for case in where if case in found]
        return words.format(values[0]) if values else NOT_MEASURED

    lines = [("floor (H100)", "at least", "reached")]
    for axis in (1, 0):
        shared = Case("softmin", "shared", axis, 256, 1000, 1000, "float32")
        own = dataclasses.replace(shared, cost="own")
        lines.append((f"softmin, shared cost, axis {axis}", "60% of exp", reached("of_exp", "{:.0%}", shared)))
        lines.append((f"softmin, own cost, axis {axis}", "80% of copy", reached("of_copy", "{:.0%}", own)))
    baseline = Case("report_iterations", "shared", None, 256, 100, 100, "float32", 100)
    for form in ("log", "auto"):
        ours = dataclasses.replace(baseline, operator="iterations", detail=form)
        lines.append((f"100 iterations of 256 x 100, {form}", "in 0.3 ms", reached("ms", "{:.3f} ms", ours)))
        ratio = (
            f"{found[baseline]['ms'] / found[ours]['ms']:.1f} x" if {baseline, ours} <= found.keys() else NOT_MEASURED
        )
        lines.append((f"the same, beside the report's kernel, {form}", "10 x", ratio))
    points = [case for case in point_cases() if case.dtype == "float32"]
    for case in points:
        if case.operator == "softmin_points":
            lines.append((f"softmin, {case.n} points, d=3", "60% of exp", reached("of_exp", "{:.0%}", case)))
    ours, peer = (next(case for case in points if case.operator == name) for name in ("softmin_products", FLASH))
    ratio = f"{found[peer]['ms'] / found[ours]['ms']:.1f} x" if {ours, peer} <= found.keys() else NOT_MEASURED
    lines.append((f"{ours.count} iterations, {ours.n} points, d=64, beside flash-sinkhorn", "1 x", ratio))
    return aligned(lines)


def static_budget(path=ROOT / "tests" / "kernels" / "budget.json"):
    """Return the committed budget of registers and static shared memory, as text."""
    if not path.exists():
        return "no static budget: tests/kernels/budget.json is not there"
    budget = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for key, by_arch in budget["kernels"].items():
        if not lines:
            lines.append(("file", "kernel", "dtype", *(f"{arch} registers, shared" for arch in by_arch)))
        lines.append((*key.split(), *(f"{registers}, {shared}" for registers, shared in by_arch.values())))
    return f"static budget per thread and block ({budget['compiler']}; no spills, no local memory)\n" + aligned(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require-gpu", action="store_true", help="exit with status 1 if nothing can be measured")
    parser.add_argument("--only", default="", metavar="TEXT", help="only operators whose name contains TEXT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the lines of JSON to FILE as well")
    wanted = parser.parse_args(arguments)
    cases = [case for case in (*all_cases(), *point_cases()) if wanted.only in case.operator]
    if not cases:
        parser.error(f"no operator's name contains {wanted.only!r}")

    if reason := missing_gpu():
        rows = [(case, {"status": NOT_MEASURED}) for case in cases]
        print(table(rows), floors(rows), static_budget(), f"{NOT_MEASURED}: {reason}", sep="\n\n")
        return int(wanted.require_gpu)

    sys.path.insert(0, str(ROOT))  # a bare checkout, where nothing is installed
    import cupy

    from cusink.backends.cupy import dense, loader

    here = conditions(cupy)
    rates = device_rates(cupy, loader)
    printed(wanted.output, {"operator": "device at its best"} | rates | here)
    rows = []
    for case in cases:
        row = measure(case, cupy, dense, loader, rates)
        rows.append((case, row))
        printed(wanted.output, dataclasses.asdict(case) | row | here)
        cupy.get_default_memory_pool().free_all_blocks()
    print("\n" + table(rows), floors(rows), sep="\n\n")
    return int(any(row["status"] == "wrong" for _, row in rows))


if __name__ == "__main__":
    sys.exit(main())
