#!/usr/bin/env python3
"""Time and check retrieval: `cusink.nearest` beside the full distance matrix and a sort, on handwritten digits.

The competitors of a row run interleaved in one process, each one's time is its median over the rounds. An answer is
right if it has the indices of a stable sort of the matrix. Each row starts from the same 100 queries and 1697 items.
"""

import argparse
import json
import os
import sys
import time

import numpy as np
from bench_harness import Target, machine, print_targets, quiet_turn, schedule, shown, summarise

# name: (value, eps of the largest cost, dtype, how many times faster than the matrix it has to be)
NEAREST = {
    "reg_cost": ("reg_cost", 0.01, "float64", 8),
    "divergence": ("divergence", 0.01, "float64", 8),
    "cost": ("cost", 0.003, "float64", 3),
    "entropic_cost": ("entropic_cost", 0.01, "float64", None),
    "reg_cost-small-eps": ("reg_cost", 0.003, "float64", None),
    "cost-large-eps": ("cost", 0.01, "float64", None),
    "reg_cost-float32": ("reg_cost", 0.01, "float32", None),
    "cost-float32": ("cost", 0.003, "float32", None),
}
K, TOL = 10, 1e-6
OURS, FULL = "cusink.nearest", "distance_matrix and sort"


def digits(queries, dtype):
    """Histograms of `queries` digits and of all others, in an order drawn at random, and the cost between cells."""
    from sklearn.datasets import load_digits

    import cusink

    images = load_digits().data[np.random.default_rng(0).permutation(1797)]
    weights = images / images.sum(axis=1, keepdims=True)
    cells = np.indices((8, 8)).reshape(2, -1).T
    C = cusink.cost_matrix(cells.astype(float))
    return (x.astype(dtype) for x in (weights[:queries], weights[queries:], C / C.max()))


def sort(matrix):
    indices = np.argsort(matrix, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(matrix, indices, axis=1), indices


def nearest_row(name, args, clock, until):
    """Time one row; return all of its numbers."""
    import cusink

    value, eps, dtype, least = NEAREST[name]
    A, B, C = digits(20 if args.quick else 100, dtype)
    options = {"eps": eps, "value": value, "tol": TOL}
    title = f"{name}: {len(A)} x {len(B)} digits, {value}, eps {eps:g}, {dtype}, k {K}, each pair to L1 error {TOL:g}"
    print(f"{title} ...", file=sys.stderr, flush=True)
    want = sort(cusink.distance_matrix(A, B, C, **options))
    found = cusink.nearest(A, B, C, k=K, full_output=True, **options)
    same = np.array_equal(found.indices, want[1])
    relative = float(np.max(np.abs(found.distances / want[0] - 1)))
    verdict = "indices identical" if same else f"WRONG: {np.count_nonzero(found.indices != want[1])} indices differ"
    runs = {
        OURS: lambda: cusink.nearest(A, B, C, k=K, **options),
        FULL: lambda: sort(cusink.distance_matrix(A, B, C, **options)),
    }
    entries = {
        OURS: {"kind": "ours", "right": same, "verdict": verdict, "relative": relative},
        FULL: {"kind": "matrix", "right": True, "verdict": "the reference"},
    }
    for each, entry in entries.items():
        entry |= {"name": each, "share": 1.0, "times": [], "others": []}
    for each in schedule(dict.fromkeys(runs), args.repeats):
        seconds, share = quiet_turn(runs[each], until, clock=clock)
        entries[each]["times"].append(seconds)
        entries[each]["others"].append(share)
    shares = {count: getattr(found, count) / (len(A) * len(B)) for count in ("started", "finished")}
    targets = [] if least is None else [Target(FULL, at_least=least)]
    return summarise(title, list(entries.values()), targets) | shares


def print_head():
    head = "work | answer | distances differ by | pairs begun, solved | nearest | full matrix | times faster (pairwise)"
    print(f"\n### Nearest neighbours\n\n| {head} |\n|---|---|---|---|---|---|---|", flush=True)


def print_nearest(outcome):
    ours, full = outcome["entries"]
    line = [
        outcome["title"],
        ours["verdict"],
        f"{ours['relative']:.1e}",
        f"{outcome['started']:.1%}, {outcome['finished']:.1%}",
        shown(ours["median"]),
        shown(full["median"]),
        "{:.3g} ({:.3g} to {:.3g})".format(*full["ratio"]),
    ]
    print("| " + " | ".join(line) + " |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=NEAREST, default=list(NEAREST), help="which work (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--quick", action="store_true", help="20 queries instead of 100")
    parser.add_argument("--patience", type=float, default=60, help="seconds that a row waits for a quiet CPU")
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one core: steady where others use the machine, too"
    )
    parser.add_argument("--json", metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    if args.one_core and len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    clock, patience = (time.process_time, 0) if args.one_core else (time.perf_counter, args.patience)
    facts = machine() | {"time": "CPU time on one core" if args.one_core else "wall time on all cores"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    done = []
    print_head()
    for name in args.rows:
        done.append(nearest_row(name, args, clock, time.perf_counter() + patience))
        print_nearest(done[-1])
    print_targets(done)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": facts, "rounds": args.repeats, "rows": done}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
