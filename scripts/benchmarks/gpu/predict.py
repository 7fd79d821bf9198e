#!/usr/bin/env python3
"""Predict the time of CUDA kernels by counting, for any size and device. These are predictions: nothing is measured.

The inner loop's instructions for each useful term come from `tests/wheels/speed_budget.json` (counted in the machine
code for compute capability 9.0), registers from `tests/kernels/budget.json`, blocks and shared memory from
`cusink.backends.cupy.launch`. A kernel is taken to be as slow as the slowest of: issue slots, the exponential unit, the
float units, shared memory, the bytes that must cross the bus; then blocks are dealt out in waves. Waiting for memory,
launches, the host and what lies outside the inner loop are left out, so that a time can only be longer: `iterate` and
`documents`, which spend much of it there, are not predicted.

`split_step` is a half-step with a large shared cost, a thread block for each multiprocessor. On an H100 tensor cores
are taken to reach 62.9 % of their rate, and the L2 cache 4472 bytes a clock, as Luo et al. have measured of mma.sync
and of loads on Hopper (2025, arXiv:2501.12084, section 6.2 and table 5). The busiest multiprocessor counts, and each of
its tiles in full. The update of a tile issues its instructions beside the products of the next one. That of the last
tile, and the test of all sums of a tile, have no products beside them, and are added.

`softmin_products` and `apply_plan_products` are a half-step between points of many coordinates, by the same products.
The busiest multiprocessor has whole strips of kept points. Of each tile of a strip first the products are taken, then
the exponentials: they have nothing beside them but the copies of the next tile. `--products 1` is for ``tf32=True``.

`kernel_sums_products` and its relatives sum a kernel in the same way, `kernel_sums` does so in float. A Gaussian is
counted; others take a root or a logarithm more for each pair. Pairs that are taken from differences are not counted.

    predict.py                          # the rows of docs/gpu.md
    predict.py --device T4 softmin 256 1000 1000
    predict.py --report docs/measurements/gpu-truth.json    # the device of a report, beside what was measured on it
    predict.py split_step 1665 4000 4000
    predict.py softmin_points 1 100000 100000 --coordinates 3
    predict.py softmin_products 1 10000 10000 --coordinates 64 --products 1
    predict.py kernel_sums_products 1 10000 10000 --coordinates 64
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this checkout, whatever is installed

from benchmarks.gpu.machines import EXPONENTIALS, MACHINES, SCHEDULERS, WARPS, machine_of_report

from cusink.backends.cupy.launch import (
    COORDINATES,
    GROUP,
    PARTS,
    PLAN_CHUNK,
    PLAN_ROWS,
    SPLIT_THREADS,
    SPLIT_TILE,
    STRIP,
    TILE_COLUMNS,
    configure,
    plan_parts,
    split_tiles,
)

ROOT = Path(__file__).resolve().parents[3]
# Instructions of a warp of `split_step`, counted by hand in the same machine code: for the copies of a block, which
# branches can skip; for the test of the sums of a tile (of 4000 summed indices), and their way to memory; for the
# update of 32 entries without over-relaxation (254 where it measures, as in the last iteration of a call).
COPYING, TESTING, UPDATING = 180, 2170, 184
STAGING = 280  # counted likewise: of a warp of `plan_sum` for the logits of a chunk of problems
# And likewise: of a thread of `kernel_sums_wide`, for a coordinate that it brings to shared memory.
BRINGING = 33
SUM_PRODUCTS = ("kernel_sums_products", "kernel_log_sums_products", "distance_sums_products")
ON_TENSOR_CORES = ("split_step", "softmin_products", "apply_plan_products", *SUM_PRODUCTS)
PREDICTED = (
    "softmin",
    "apply_plan",
    "transport_cost",
    "softmin_points",
    "apply_plan_points",
    "plan",
    "plan_sum",
    "kernel_sums",
    *ON_TENSOR_CORES,
)
ROWS = (
    # operator, B, n, m, coordinates, products for each product
    ("softmin", 256, 1000, 1000, 1, 3),
    ("softmin", 1, 1000, 1000, 1, 3),
    ("apply_plan", 256, 1000, 1000, 1, 3),
    ("softmin_points", 1, 100_000, 100_000, 3, 3),
    ("softmin_points", 1, 100_000, 100_000, 2, 3),
    ("apply_plan_points", 1, 100_000, 100_000, 3, 3),
    ("plan_sum", 256, 1000, 1000, 1, 3),
    ("split_step", 1665, 4000, 4000, 1, 3),
    ("softmin_products", 1, 10_000, 10_000, 64, 3),
    ("softmin_products", 1, 10_000, 10_000, 64, 1),
    ("softmin_products", 1, 100_000, 100_000, 64, 3),
    ("kernel_sums", 1, 10_000, 10_000, 32, 3),
    ("kernel_sums_products", 1, 10_000, 10_000, 32, 3),
    ("kernel_sums", 1, 10_000, 10_000, 64, 3),
    ("kernel_sums_products", 1, 10_000, 10_000, 64, 3),
    ("distance_sums_products", 1, 10_000, 10_000, 64, 3),
)


class Prediction(NamedTuple):
    """Seconds by what they go into, the whole, and the share of the limit of the operation that is reached.

    The whole is the largest part, and on tensor cores what has nothing beside it.
    """

    kernel: str
    parts: dict
    bound: str
    seconds: float
    share: float
    blocks: int  # of this kernel that fit on a multiprocessor


def hot_loop(kernel, coordinates):
    """Return (terms, instructions, units) of the loop in which a kernel spends its time."""
    loops = json.loads((ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"][kernel]
    if kernel.endswith("_points"):  # by products, which take a multiply-add for each coordinate: 2 of them, 3
        least, most = (5, 6) if coordinates >= 3 else (4, 5)
        return next(loop for loop in loops if least <= loop[2]["float"] / loop[0] < most and "global" not in loop[2])
    if kernel == "split_step":  # the others test its sums
        return max(loops, key=lambda loop: loop[0])
    return loops[-1] if kernel in ("softmin_rows", "softmin_columns", "apply_plan_rows") else loops[0]


def registers(launch, capability):
    """Return the registers that a thread is allowed, in float32."""
    kernels = json.loads((ROOT / "tests/kernels/budget.json").read_text())["kernels"]
    return kernels[f"{launch.file} {launch.kernel} float32"][capability][0]


def predict(operator, B, n, m, coordinates=1, machine=MACHINES["H100"], products=3):
    """Return the `Prediction` of one call in float32 with a shared cost, or None where no launch fits.

    Between points on tensor cores a product of coordinates is one of 3 of halves, or of 1.
    """
    if operator not in PREDICTED:
        raise ValueError(
            f"only {', '.join(PREDICTED)} are predicted, whose time is in their inner loop; got {operator}"
        )
    device = machine.device
    launch = configure(operator, B, n, m, "float32", device, d=coordinates)
    if launch is None:
        return None
    if operator == "split_step":
        return split_step(launch, B, n, m, machine)
    if operator in ON_TENSOR_CORES:
        return point_products(launch, B, n, m, coordinates, machine, products)
    if launch.kernel.endswith("_wide"):
        return wide_sums(launch, B, n, m, coordinates, machine)
    terms_in_loop, instructions, units = hot_loop(launch.kernel, coordinates)
    terms = float(B) * n * m
    fit = min(
        32 * WARPS[machine.capability] // launch.block,
        65536 // (registers(launch, machine.capability) * launch.block),
        machine.shared // (launch.shared + 1024),
        32,
    )
    # Blocks come in waves, of which the last counts in full; a wave that is not full leaves multiprocessors idle.
    waves = math.ceil(launch.grid / (device.multiprocessors * fit))
    busy = min(device.multiprocessors, launch.grid / (waves * fit) if waves > 1 else launch.grid)
    slots = min(SCHEDULERS, fit * launch.block // 32)
    clocks = busy * machine.clock
    each = {unit: units.get(unit, 0) / terms_in_loop for unit in ("exponential", "float", "shared")}
    made = {"plan": B, "plan_sum": plan_parts(B, n, m, device)}.get(operator, 0)  # arrays of the size of the cost
    entries = n * m * (1 + made)
    outside = STAGING / (PLAN_CHUNK * PLAN_ROWS) if operator == "plan_sum" else 0
    parts = {
        "issue": terms / 32 * (instructions / terms_in_loop + outside) / (slots * clocks),
        "exponential": terms * each["exponential"] / (EXPONENTIALS * clocks),
        "float": terms * each["float"] / (machine.float_lanes * clocks),
        "shared": terms / 32 * each["shared"] / clocks,
        "bytes": 4.0 * (entries * (not operator.endswith(("_points", "_sums"))) + 3 * B * (n + m)) / machine.bandwidth,
    }
    bound = max(parts, key=parts.get)
    limit = max(terms / (EXPONENTIALS * device.multiprocessors * machine.clock), parts["bytes"])
    return Prediction(launch.kernel, parts, bound, parts[bound], limit / parts[bound], fit)


def split_step(launch, B, n, m, machine):
    """Return the `Prediction` of a half-step (kept n, summed m), by the tiles of the busiest multiprocessor."""
    products, instructions, units = hot_loop("split_step", 1)
    device, blocks = machine.device, -(-m // PARTS)
    warps, rows, pieces = (
        SPLIT_THREADS // 32,
        2 * STRIP + TILE_COLUMNS // 2,
        SPLIT_TILE // PARTS,
    )  # of a tile of two strips
    tiles = math.ceil(split_tiles(B, n) / device.multiprocessors)
    matrices = products // 5  # loads of four of them, each of 512 bytes; the other loads take a wavefront each
    copied = rows * (4 * PARTS + 4)
    clocks = {
        "issue": warps * (instructions + COPYING) / SCHEDULERS,
        "tensor": warps * products * 2048 / (machine.reached * machine.halves),
        "shared": warps * (4 * matrices + units["shared"] - matrices) + copied / 128,
        "cache": copied * device.multiprocessors / machine.cache,
    }
    clocks = {unit: tiles * blocks * each for unit, each in clocks.items()}
    update = pieces * UPDATING / SCHEDULERS
    clocks["issue"] += (tiles - 1) * update
    parts = {unit: each / machine.clock for unit, each in clocks.items()}
    parts["bytes"] = 4.0 * (n * m + 7 * B * n + B * m) / machine.bandwidth
    bound = max(parts, key=parts.get)
    seconds = parts[bound] + (tiles * warps * TESTING / SCHEDULERS + update) / machine.clock
    limit = 3.0 * B * n * m / (machine.halves * device.multiprocessors * machine.clock)
    return Prediction(launch.kernel, parts, bound, seconds, limit / seconds, 1)


def point_products(launch, B, n, m, d, machine, products):
    """Return the `Prediction` of a half-step between points, by the strips of the busiest multiprocessor."""
    loops = json.loads((ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"][launch.kernel]
    of_products = next(loop for loop in loops if "tensor" in loop[2])
    of_exponentials = max((loop for loop in loops if "tensor" not in loop[2]), key=lambda loop: loop[0])
    device, warps, blocks, rows = machine.device, SPLIT_THREADS // 32, -(-d // PARTS), STRIP + TILE_COLUMNS
    tiles = math.ceil(B * math.ceil(n / STRIP) / device.multiprocessors) * math.ceil(m / TILE_COLUMNS)
    share, copied = products / 3, rows * (4 * PARTS + 4)
    # Loads of four matrices are 512 bytes each; the others take a wavefront each. One product needs no low parts of x.
    all_matrices = of_products[0] // 5
    matrices, others = all_matrices * (3 if products == 3 else 2) // 3, of_products[2]["shared"] - all_matrices
    clocks = {  # of a block of coordinates of a tile
        "issue": warps * (of_products[1] - (1 - share) * of_products[0] + COPYING) / SCHEDULERS,
        "tensor": warps * share * of_products[0] * 2048 / (machine.reached * machine.halves),
        "shared": warps * (4 * matrices + others) + copied / 128,
    }
    slowest = max(clocks, key=clocks.get)
    exponentials = warps * max(of_exponentials[1] / SCHEDULERS, 32 * of_exponentials[0] / EXPONENTIALS)
    parts = {unit: tiles * blocks * each / machine.clock for unit, each in clocks.items()}
    parts["exponential"] = tiles * exponentials / machine.clock
    parts["cache"] = tiles * blocks * copied * device.multiprocessors / machine.cache / machine.clock
    one_after_the_other = parts[slowest] + parts["exponential"]
    bound = slowest if one_after_the_other >= parts["cache"] else "cache"
    seconds = max(one_after_the_other, parts["cache"])
    each = max(products * d / machine.halves, 1 / EXPONENTIALS)
    return Prediction(
        launch.kernel, parts, bound, seconds, B * n * m * each / device.multiprocessors / machine.clock / seconds, 1
    )


def wide_sums(launch, B, n, m, d, machine):
    """Return the `Prediction` of a sum in float over points of many coordinates, by the busiest multiprocessor."""
    loops = json.loads((ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"][launch.kernel]
    of_coordinates = next(loop for loop in loops if loop[0] == GROUP * COORDINATES)
    of_exponentials = next(loop for loop in loops if loop[2].get("exponential") == loop[0] == GROUP)
    device, warps, stages = machine.device, launch.block // 32, -(-d // COORDINATES)
    brought = COORDINATES * (32 + GROUP * warps) / launch.block  # by a thread in a stage, of x and y
    rounds = math.ceil(launch.grid / device.multiprocessors) * math.ceil(m / (GROUP * warps))
    clocks = {
        "issue": warps * (stages * (of_coordinates[1] + BRINGING * brought) + of_exponentials[1]) / SCHEDULERS,
        "float": 32 * warps * stages * of_coordinates[2]["float"] / machine.float_lanes,
        # A load of four numbers for all lanes alike takes a wavefront, as one of a number each does.
        "shared": warps * stages * (of_coordinates[2]["shared"] + brought),
        "exponential": 32 * warps * GROUP / EXPONENTIALS,
    }
    parts = {unit: rounds * each / machine.clock for unit, each in clocks.items()}
    bound = max(parts, key=parts.get)
    limit = B * n * m * max(2 * d / machine.float_lanes, 1 / EXPONENTIALS) / device.multiprocessors / machine.clock
    return Prediction(launch.kernel, parts, bound, parts[bound], limit / parts[bound], 1)


def expected(case, machine):
    """Return (ms, prediction) of what a row of ``gpu/kernels.py`` times, or None where that is not predicted.

    A row of several iterations has two half-steps for each, of which one is predicted.
    """
    if case.operator not in PREDICTED or case.dtype != "float32" or case.cost == "own":
        return None
    found = predict(case.operator, case.B, case.n, case.m, getattr(case, "d", 0) or 1, machine)
    return found and (1e3 * found.seconds * half_steps(case), found)


def half_steps(case):
    """Return how many launches of its kernel a row times."""
    return 2 * case.count if case.operator in ("softmin_products", "split_step") else 1


def measured_ms(report, operator, B, n, m, d, products):
    """Return the ms that a report of ``gpu_truth.py`` has for one launch in float32, or None."""
    for row in report["steps"].get("operators", {}).get("rows", ()) if report else ():
        same = (operator, B, n, m, "float32") == tuple(row.get(key) for key in ("operator", "B", "n", "m", "dtype"))
        if same and row.get("d", d) in (d, 0) and "ms" in row and products == 3 and row.get("cost") != "own":
            return row["ms"] / row["launches"]
    return None


def table(rows, machine, report=None):
    """Return the lines of a Markdown table of predictions, beside what a report has measured."""
    lines = ["| operator | B | n | m | d | kernel | predicted ms | bound by | share of the limit | measured ms |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        operator, B, n, m, d, products = row
        found, ms = predict(operator, B, n, m, d, machine, products), measured_ms(report, *row)
        last = "not measured" if ms is None else f"{ms:.3g}"
        sizes = f"| {operator}{', 11 bits' if products == 1 else ''} | {B} | {n} | {m} | {d} "
        if found is None:
            lines.append(f"{sizes}| does not fit | | | | {last} |")
            continue
        said = f"{1e3 * found.seconds:.3g} | {found.bound} | {found.share:.0%}"
        lines.append(f"{sizes}| {found.kernel} | {said} | {last} |")
    return lines


def main(arguments=None):
    """Print predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operator", nargs="?", choices=PREDICTED, help="what is predicted")
    parser.add_argument("sizes", nargs="*", type=int, help="B n m")
    parser.add_argument("--coordinates", type=int, default=1)
    parser.add_argument("--products", type=int, choices=(1, 3), default=3, help="of halves, for one of coordinates")
    parser.add_argument("--device", choices=MACHINES, default="H100")
    parser.add_argument("--report", type=Path, help="the JSON of gpu_truth.py, whose device is taken")
    given = parser.parse_args(arguments)
    if given.operator and len(given.sizes) != 3:
        parser.error(f"an operator takes the sizes B, n and m; got {given.sizes}")
    rows = [(given.operator, *given.sizes, given.coordinates, given.products)] if given.operator else ROWS
    report = given.report and json.loads(given.report.read_text(encoding="utf-8"))
    machine, name = machine_of_report(report) if report else (MACHINES[given.device], given.device)
    beside = "beside what was measured" if report else "nothing here was measured"
    print(f"PREDICTED by count for {name}, in float32; {beside}.\n")
    print("\n".join(table(rows, machine, report)))


if __name__ == "__main__":
    main()
